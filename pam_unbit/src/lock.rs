//! Nobody becomes the container's user outside the container.
//!
//! From open_session on, what the monitor forks cannot change its uid: CAP_SETUID is not effective there until setcred takes it back, right before it
//! enters. So if setcred is not reached in the child (a module before ours in the stack, an sshd that does not call it), the login ends in
//! sshd's own permanently_set_uid(), and not in a session on the host. The monitor keeps all it has: other modules close their sessions there.
#![allow(unsafe_code)]

use caps::{CapSet, Capability};
use join::refusal::{Reason, Refusal, Step};
use join::sys::{exit_now, retry};
use nix::errno::Errno;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// In the monitor: for what it forks.
pub fn close() -> Result<(), Refusal> {
    static ONCE: Once = Once::new();
    let mut error = 0;
    ONCE.call_once(|| {
        // SAFETY: a function of this library, which glibc forgets when the library is unloaded. It only makes system calls.
        error = unsafe { libc::pthread_atfork(None, None, Some(in_the_child)) };
    });
    if error != 0 {
        return Err(Refusal::new(
            Reason::Broken,
            format!("lock the uid of what the monitor forks: pthread_atfork: {error}"),
        ));
    }
    CLOSED.store(true, Ordering::Relaxed);
    Ok(())
}

unsafe extern "C" fn in_the_child() {
    let give_up = || caps::drop(None, CapSet::Effective, Capability::CAP_SETUID).map_err(|_| Errno::last());
    if CLOSED.load(Ordering::Relaxed) && retry(give_up).is_err() {
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
    CLOSED.store(false, Ordering::Relaxed);
}
