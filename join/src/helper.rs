//! Runs a step of a login in a helper process, which reports an error to its parent.
//!
//! Steps that can wait on the container, or that change the process for good, run in a helper,
//! because it can be killed at the deadline.
//!
//! The caller says what a helper does. Nothing here joins a namespace.

use crate::deadline::{Deadline, is_ready};
use crate::refusal::{Context, Reason, Refusal};
use crate::sys::{self, Cloned, Shared, retry};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// How long a helper that is killed may take to end.
const KILL_TIMEOUT: Duration = Duration::from_millis(200);

/// Memory shared with the parent, in which a helper reports.
pub struct Report(Shared);

impl Report {
    /// Must be called before the helper is forked.
    pub fn new() -> Result<Self, Refusal> {
        Shared::new().map(Self).context(Reason::Broken, "map memory to share with the helper")
    }

    /// The pid of the process inside, in our pid namespace. 0 until it is forked.
    pub fn child(&self) -> &AtomicI32 {
        &self.0.pid
    }

    /// Must be called before the helper forks the session's process.
    pub fn keep_from_children(&self) -> Result<(), Refusal> {
        self.0.keep_from_children().context(Reason::Broken, "keep the helper's report from the session")
    }

    /// Reports a refusal. For the helper, before it ends.
    pub fn refuse(&self, refusal: &Refusal) {
        for (slot, byte) in self.0.text.iter().zip(refusal.cause.bytes()) {
            slot.store(byte, Ordering::Relaxed);
        }
        // Plus 1, because 0 is no reason.
        self.0.code.store(refusal.reason as i32 + 1, Ordering::Release);
    }

    fn refusal(&self) -> Option<Refusal> {
        let reason = Reason::ALL.get(usize::try_from(self.0.code.load(Ordering::Acquire)).ok()?.checked_sub(1)?)?;
        let text = self.0.text.iter().map(|byte| byte.load(Ordering::Relaxed)).take_while(|byte| *byte != 0);
        Some(Refusal::new(*reason, String::from_utf8_lossy(&text.collect::<Vec<_>>())))
    }
}

/// Runs `work` in a helper, and waits for it until the deadline. The result is a small number.
/// `task` says in messages what the helper does. The calling process must have one thread.
pub fn run(task: &str, deadline: Deadline, work: impl FnOnce() -> Result<usize, Refusal>) -> Result<usize, Refusal> {
    let report = Report::new()?;
    let caller = getpid();
    match sys::clone_into(None).context(Reason::Broken, "fork a helper")?.0 {
        Cloned::Parent(helper) => {
            wait_for(helper, task, "", deadline, &report)?;
            Ok(usize::try_from(report.0.code.load(Ordering::Acquire)).unwrap_or(0))
        }
        Cloned::Child => {
            let done = die_with_parent(caller)
                .and_then(|()| sys::set_not_dumpable().context(Reason::Broken, "make the helper not dumpable"))
                .and_then(|()| work());
            match &done {
                Ok(found) => report.0.code.store(i32::try_from(*found).unwrap_or(0), Ordering::Release),
                Err(refusal) => report.refuse(refusal),
            }
            sys::exit_now(if done.is_ok() { 0 } else { 255 })
        }
    }
}

/// Has the kernel kill the helper when its parent ends (PR_SET_PDEATHSIG). Otherwise the process
/// inside would have no supervisor.
pub fn die_with_parent(caller: Pid) -> Result<(), Refusal> {
    retry(|| set_pdeathsig(Signal::SIGKILL)).context(Reason::Broken, "make the helper end with its parent")?;
    if getppid() != caller {
        return Err(Refusal::new(Reason::Broken, "the process that waits for the helper has ended"));
    }
    Ok(())
}

/// Waits until the helper has ended, but not beyond the deadline. Returns the pid of the process
/// inside.
pub fn wait_for_child(helper: Pid, deadline: Deadline, report: &Report) -> Result<Pid, Refusal> {
    let ended = wait_for(helper, "enters", ": is a cgroup of the container frozen?", deadline, report);
    let child = Some(report.child().load(Ordering::Acquire)).filter(|pid| *pid > 0).map(Pid::from_raw);
    match (ended, child) {
        (Ok(()), Some(child)) => Ok(child),
        (Ok(()), None) => Err(Refusal::new(Reason::Broken, "the helper has forked no process")),
        (Err(refusal), child) => {
            if let Some(child) = child {
                let _ = kill(child, Signal::SIGKILL);
            }
            Err(refusal)
        }
    }
}

fn wait_for(helper: Pid, task: &str, hint: &str, deadline: Deadline, report: &Report) -> Result<(), Refusal> {
    let pidfd = sys::pidfd_open(helper.as_raw());
    let ended = pidfd
        .as_ref()
        .map_err(|errno| *errno)
        .context(Reason::Broken, "pidfd_open of the helper")
        .and_then(|pidfd| deadline.wait_for(pidfd).context(Reason::Broken, "wait for the helper"));
    let refusal = match ended {
        Ok(true) => match retry(|| waitpid(helper, None)) {
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(end) => {
                // Not killed: waitpid(2) has freed the helper's pid.
                let unsaid = || Refusal::new(Reason::Broken, format!("the helper that {task} ended by {end:?}"));
                return Err(report.refusal().unwrap_or_else(unsaid));
            }
            Err(errno) => Refusal::failed(Reason::Broken, "wait for the helper", errno),
        },
        Ok(false) => Refusal::new(Reason::NotAnswering, format!("the helper that {task} did not finish in time{hint}")),
        Err(refusal) => refusal,
    };
    let _ = kill(helper, Signal::SIGKILL);
    // It can be about to fork the process inside, whose pid is then still missing. One in a frozen
    // v1 cgroup ends when that is thawed: it has no privileges, and nobody needs to wait for it.
    let _ = pidfd.is_ok_and(|pidfd| is_ready(&pidfd, KILL_TIMEOUT));
    let _ = waitpid(helper, Some(WaitPidFlag::WNOHANG));
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::unistd::pause;

    #[test]
    fn a_helper_that_is_killed_at_the_deadline_is_reaped() {
        let caller = getpid();
        let waits = || loop {
            pause();
        };
        // In a child, which has no other thread, and no other child.
        let Cloned::Parent(child) = sys::clone_into(None).unwrap().0 else {
            let refused = run("waits", Deadline::after(Duration::from_millis(50)), waits);
            let is_refused = refused.is_err_and(|refusal| refusal.reason == Reason::NotAnswering);
            let is_reaped = waitpid(None, Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD);
            sys::exit_now(if is_refused && is_reaped && getppid() == caller { 0 } else { 1 })
        };
        assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
    }
}
