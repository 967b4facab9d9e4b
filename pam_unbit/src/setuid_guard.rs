//! Keeps sshd's child from becoming the container's user before it has entered the container.
//!
//! From open_session on, a child of the monitor has no effective CAP_SETUID, until setcred raises
//! it again right before it enters. So if the child does not reach our setcred (because of a module
//! before ours, or an sshd that does not call it), the login ends in sshd's permanently_set_uid(),
//! and not in a session on the node. The monitor keeps all its capabilities, because other modules
//! close their sessions in it.
//!
//! The guard also hands the container's descriptors to the monitor's next child, and closes them in
//! the monitor after the fork. Nothing is joined here.
#![allow(unsafe_code)]

use crate::sys;
use caps::{CapSet, Capability};
use join::attach::Attachment;
use join::refusal::{Context, Reason, Refusal};
use join::sys::{exit_now, with_errno};
use std::ffi::{CString, c_int};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static REGISTERED: AtomicBool = AtomicBool::new(false);
static ARMED: AtomicBool = AtomicBool::new(false);
static ATTACHMENT: Mutex<Option<Attachment>> = Mutex::new(None);

/// In the monitor: its next child gets the attachment, and no child can change its uid before it
/// enters. Without an attachment none ever can.
pub fn arm(attachment: Option<Attachment>) -> Result<(), Refusal> {
    // SAFETY: functions of this library, which glibc unregisters when the library is unloaded.
    register(&REGISTERED, || unsafe { libc::pthread_atfork(None, Some(in_the_parent), Some(in_the_child)) })?;
    replace(attachment);
    ARMED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Registers the fork handlers, until that has succeeded once.
fn register(is_registered: &AtomicBool, register: impl FnOnce() -> c_int) -> Result<(), Refusal> {
    if is_registered.load(Ordering::Relaxed) {
        return Ok(());
    }
    match register() {
        0 => {
            is_registered.store(true, Ordering::Relaxed);
            Ok(())
        }
        error => Err(Refusal::new(
            Reason::Broken,
            format!("keep CAP_SETUID from what the monitor forks: pthread_atfork: {error}"),
        )),
    }
}

/// Puts an attachment, or none, in place of the one that is held.
fn replace(attachment: Option<Attachment>) -> Option<Attachment> {
    // The lock is never poisoned, because a panic ends the process.
    ATTACHMENT.lock().ok().and_then(|mut held| std::mem::replace(&mut *held, attachment))
}

unsafe extern "C" fn in_the_parent() {
    drop(replace(None));
}

unsafe extern "C" fn in_the_child() {
    if !ARMED.load(Ordering::Relaxed) {
        return;
    }
    let give_up = || caps::drop(None, CapSet::Effective, Capability::CAP_SETUID);
    let given_up = with_errno(give_up);
    if let Err(refusal) = given_up.context(Reason::Broken, "give up CAP_SETUID until the container is entered") {
        let line = format!("pam_unbit: login refused at the start of its session: {}", refusal.cause);
        sys::log_critical(&CString::new(line).unwrap_or_default());
        exit_now(255);
    }
}

/// In the child, before it enters. `None` if it has entered already, or is not the monitor's first
/// child.
pub fn disarm() -> Result<Option<Attachment>, Refusal> {
    let Some(attachment) = replace(None) else { return Ok(None) };
    ARMED.store(false, Ordering::Relaxed);
    with_errno(|| caps::raise(None, CapSet::Effective, Capability::CAP_SETUID))
        .context(Reason::Broken, "take CAP_SETUID back")?;
    Ok(Some(attachment))
}

/// At the end of the session: closes the descriptors, and lets children change their uid.
pub fn release() {
    drop(replace(None));
    ARMED.store(false, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fork_handlers_that_could_not_be_registered_refuse_each_session() {
        let is_registered = AtomicBool::new(false);
        for _ in 0..2 {
            let refusal = register(&is_registered, || libc::ENOMEM).unwrap_err();
            assert!(refusal.cause.ends_with("pthread_atfork: 12"), "{}", refusal.cause);
        }
        register(&is_registered, || 0).unwrap();
        register(&is_registered, || libc::ENOMEM).unwrap(); // which is not called again
    }
}
