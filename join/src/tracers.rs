//! Verify, for rule 6 of [`link`](crate::link): can any process in a container have CAP_SYS_PTRACE
//! in our user namespace?
//!
//! Pid 1 can have dropped the capability (prctl(2), capset(2)) after it forked a child that still
//! has it, and each thread has capabilities of its own. A child has no capability that its parent
//! cannot have. So a process that was seen without it needs no second look, and if no process has
//! it, none will. A process that ends before it is checked can leave a child behind, so the cgroup
//! is read again.
//!
//! [`LinkRules`](crate::link_rules::LinkRules) refuses such a container.

use crate::confinement;
use crate::deadline::Deadline;
use crate::proc::{Inode, Proc, numbers};
use crate::refusal::{Context, Reason, Refusal};
use crate::subtree::Subtree;
use crate::user_namespace;
use caps::Capability;
use nix::errno::Errno;
use std::collections::HashSet;
use std::io;
use std::thread::sleep;
use std::time::Duration;

/// A process that an engine starts inside (`docker exec`, a health check) has the capability until
/// it executes the container's program. So the search is repeated until only this much time is left
/// before the deadline.
const RESERVED: Duration = Duration::from_millis(100);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The pid of a process that can have the capability.
pub fn find(subtree: &Subtree, deadline: Deadline) -> Result<Option<i32>, Refusal> {
    let our_user_namespace = user_namespace::own()?;
    let mut harmless = HashSet::new();
    loop {
        let (mut tracer, mut one_has_ended) = (None, false);
        subtree.for_each_process(deadline, &mut |pid| {
            let Some(process) = Candidate::of(pid, our_user_namespace)? else {
                one_has_ended = true;
                return Ok(());
            };
            // Not its pid, which another process could get during the search.
            if harmless.contains(&process.identity) {
                return Ok(());
            }
            match process.can_trace()? {
                Some(true) => drop(tracer.get_or_insert(pid)),
                Some(false) => drop(harmless.insert(process.identity)),
                None => one_has_ended = true,
            }
            Ok(())
        })?;
        if tracer.is_none() && !one_has_ended {
            return Ok(None);
        }
        match tracer {
            Some(_) if deadline.left().is_some_and(|left| left > RESERVED) => sleep(POLL_INTERVAL),
            Some(tracer) => return Ok(Some(tracer)),
            None => {}
        }
    }
}

struct Candidate {
    pid: i32,
    process: Proc,
    identity: Inode,
    our_user_namespace: Inode,
}

impl Candidate {
    /// `None` if it has ended.
    fn of(pid: i32, our_user_namespace: Inode) -> Result<Option<Self>, Refusal> {
        let process = found(Proc::of(pid).and_then(|process| Ok((process.identity()?, process))));
        let process = process.context(Reason::Broken, format_args!("look at process {pid}, which is in its cgroup"))?;
        Ok(process.map(|(identity, process)| Self { pid, process, identity, our_user_namespace }))
    }

    /// `None` if it ended before it could be checked. There can be thousands, so only one file is
    /// read for most of them.
    fn can_trace(&self) -> Result<Option<bool>, Refusal> {
        let process = &self.process;
        let step = |what: &str| format!("look at {what} of process {}, which is in its cgroup", self.pid);
        let Some(status) = read(process, "status").context(Reason::Broken, step("the status"))? else {
            return Ok(None);
        };
        // A single pid belongs to a process in our own pid namespace: the engine's, on the node.
        let numbers = |key| numbers(&status, key).map_err(|cause| Refusal::new(Reason::Broken, cause));
        if numbers("NSpid")?.len() == 1 {
            return Ok(Some(false));
        }
        if numbers("Threads")? == [1] {
            return self.can_thread_trace("", &status);
        }
        let Some(names) = found(process.names("task")).context(Reason::Broken, step("the threads"))? else {
            return Ok(None);
        };
        let mut all_were_seen = true;
        for name in names {
            let thread = format!("task/{name}/");
            let status = read(process, &format!("{thread}status")).context(Reason::Broken, step("a thread"))?;
            match status.map_or(Ok(None), |status| self.can_thread_trace(&thread, &status))? {
                Some(true) => return Ok(Some(true)),
                Some(false) => {}
                None => all_were_seen = false,
            }
        }
        Ok(all_were_seen.then_some(false))
    }

    /// In a user namespace below ours, the capability has no effect on ours.
    fn can_thread_trace(&self, thread: &str, status: &str) -> Result<Option<bool>, Refusal> {
        let has_ended = status.lines().any(|line| line.starts_with("State:\tZ") || line.starts_with("State:\tX"));
        if has_ended || !can_trace(status)? {
            return Ok(Some(false));
        }
        let users = found(self.process.at_namespace(thread, "user"));
        let users = users.context(Reason::Broken, "look at the user namespace of a process in its cgroup")?;
        Ok(users.map(|users| users == self.our_user_namespace))
    }
}

/// Whether a process with this status, or a program that it executes, can have CAP_SYS_PTRACE. The
/// bounding set alone does not say: permitted and inheritable capabilities stay (capabilities(7)).
pub fn can_trace(status: &str) -> Result<bool, Refusal> {
    let mut sets = 0;
    for set in ["CapBnd", "CapPrm", "CapInh"] {
        let unreadable =
            || Refusal::new(Reason::Broken, format!("the status of a process in its cgroup has no readable {set}"));
        sets |= confinement::capability_set(status, set).ok_or_else(unreadable)?;
    }
    Ok(sets & Capability::CAP_SYS_PTRACE.bitmask() != 0)
}

fn read(process: &Proc, name: &str) -> io::Result<Option<String>> {
    match process.read(name) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        text => text.map(Some),
    }
}

/// `None` for a process that has ended.
fn found<T>(result: nix::Result<T>) -> nix::Result<Option<T>> {
    match result {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_trace() {
        let status = |inheritable: &str, permitted: &str, bounds: &str| {
            can_trace(&format!("CapInh:\t{inheritable}\nCapPrm:\t{permitted}\nCapEff:\t0\nCapBnd:\t{bounds}\n"))
        };
        let (none, one, all, others) = ("0000000000000000", "0000000000080000", "000001ffffffffff", "000001fffff7ffff");
        assert!(!status(none, none, none).unwrap() && !status(others, others, others).unwrap());
        for (inheritable, permitted, bounds) in
            [(none, all, all), (none, none, all), (none, one, others), (one, none, others)]
        {
            assert!(status(inheritable, permitted, bounds).unwrap(), "{inheritable} {permitted} {bounds}");
        }
        assert!(status(none, none, "").is_err() && status("x", none, none).is_err() && can_trace("").is_err());
    }
}
