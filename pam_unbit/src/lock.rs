//! Nobody becomes the container's user outside the container, and nobody but that user's process is born in it.
//!
//! From open_session on, what the monitor forks cannot change its uid: CAP_SETUID is not effective there until setcred takes it back, right before it
//! enters. So if setcred is not reached in the child (a module before ours in the stack, an sshd that does not call it), the login ends in
//! sshd's own permanently_set_uid(), and not in a session on the host. The monitor keeps all it has: other modules close their sessions there.
//!
//! Once it has forked by fork(3), what it forks later (a program of another module's that closes its session) is born where the monitor itself is.
#![allow(unsafe_code)]

use crate::sys;
use caps::{CapSet, Capability};
use join::refusal::{Reason, Refusal, Step};
use join::sys::{exit_now, retry};
use join::visit::{Visit, our_pids};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::ffi::CString;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// The descriptor of the pid namespace in which the monitor's children are born again once it has forked. -1 for none.
static CHILDREN: AtomicI32 = AtomicI32::new(-1);

/// In the monitor: its next child is born in the container, and is not its user before it has entered.
pub fn close(visit: &Visit) -> Result<(), Refusal> {
    static ONCE: Once = Once::new();
    let mut error = 0;
    ONCE.call_once(|| {
        // SAFETY: a function of this library, which glibc forgets when the library is unloaded. It only makes system calls.
        error = unsafe { libc::pthread_atfork(None, Some(in_the_parent), Some(in_the_child)) };
    });
    if error != 0 {
        return Err(Refusal::new(
            Reason::Broken,
            format!("lock the uid of what the monitor forks: pthread_atfork: {error}"),
        ));
    }
    drop(children_are_born_in(Some(our_pids()?)));
    CLOSED.store(true, Ordering::Relaxed);
    visit.bind_next_child()
}

/// Puts a descriptor into [`CHILDREN`], and hands out the one that was there.
fn children_are_born_in(namespace: Option<OwnedFd>) -> Option<OwnedFd> {
    let before = CHILDREN.swap(namespace.map_or(-1, OwnedFd::into_raw_fd), Ordering::Relaxed);
    // SAFETY: only this function puts a descriptor there, one that it owns, and takes it out.
    (before != -1).then(|| unsafe { OwnedFd::from_raw_fd(before) })
}

unsafe extern "C" fn in_the_parent() {
    if let Some(namespace) = children_are_born_in(None) {
        // Where that fails, close_session tries again.
        let _ = retry(|| setns(&namespace, CloneFlags::CLONE_NEWPID));
    }
}

unsafe extern "C" fn in_the_child() {
    if !CLOSED.load(Ordering::Relaxed) {
        return;
    }
    let give_up = || caps::drop(None, CapSet::Effective, Capability::CAP_SETUID).map_err(|_| Errno::last());
    if let Err(refusal) = retry(give_up).step(Reason::Broken, "give up CAP_SETUID until the container is entered") {
        let line = format!("pam_unbit: a login ends as its session begins: {}", refusal.cause);
        sys::log_critical(&CString::new(line).unwrap_or_default());
        exit_now(255);
    }
}

/// In the child that enters.
pub fn open() -> Result<(), Refusal> {
    forget();
    retry(|| caps::raise(None, CapSet::Effective, Capability::CAP_SETUID).map_err(|_| Errno::last()))
        .step(Reason::Broken, "take CAP_SETUID back")
}

/// Where nothing is locked any more.
pub fn forget() {
    drop(children_are_born_in(None));
    CLOSED.store(false, Ordering::Relaxed);
}
