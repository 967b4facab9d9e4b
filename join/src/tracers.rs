//! Verify, for rule 6 of [`link`](crate::link): can any process in a container have CAP_SYS_PTRACE
//! in our user namespace?
//!
//! Pid 1 can have dropped the capability (prctl(2), capset(2)) after it forked a child that still
//! has it, and each thread has capabilities of its own. A child has no capability that its parent
//! cannot have, so a process that was seen without it needs no second look. But before it was
//! looked at, it can have forked a child that the list of processes lacks, and then have ended,
//! become a zombie, or dropped the capability. So the list is read until it has only processes that
//! were seen without the capability before it was read. Then no process has it, and none will.
//!
//! [`LinkRules`](crate::link_rules::LinkRules) refuses such a container.

use crate::deadline::Deadline;
use crate::proc::{Inode, Proc, Status, unless_ended};
use crate::refusal::{Context, Reason, Refusal};
use crate::subtree::Subtree;
use crate::user_namespace;
use caps::Capability;
use std::collections::HashSet;
use std::io;
use std::thread::sleep;
use std::time::Duration;

/// A process that an engine starts inside (`docker exec`, a health check) has the capability until
/// it executes the container's program. So the search is repeated until only this much time is left
/// before the deadline.
const RESERVED: Duration = Duration::from_millis(100);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What is known about the processes of a container.
pub struct Search {
    our_user_namespace: Inode,
    /// By their identities, and not by their pids, which other processes could get meanwhile.
    harmless: HashSet<Inode>,
    tracer: Option<i32>,
}

impl Search {
    /// Nothing is known yet.
    pub fn new() -> Result<Self, Refusal> {
        Ok(Self { our_user_namespace: user_namespace::own()?, harmless: HashSet::new(), tracer: None })
    }

    /// Looks at a process, unless it is known to be harmless. Returns whether it was known before.
    pub fn look(&mut self, pid: i32) -> Result<bool, Refusal> {
        let Some(process) = Candidate::of(pid, self.our_user_namespace)? else { return Ok(false) };
        if self.harmless.contains(&process.identity) {
            return Ok(true);
        }
        let power = process.power()?;
        if matches!(power, Some(Power::CanTrace | Power::CouldTrace)) {
            self.tracer = Some(pid);
        }
        if matches!(power, Some(Power::CouldTrace | Power::Harmless)) {
            self.harmless.insert(process.identity);
        }
        Ok(false)
    }

    /// The pid of a process that can have the capability, or could until it ended.
    pub fn find(mut self, subtree: &Subtree, deadline: Deadline) -> Result<Option<i32>, Refusal> {
        loop {
            let mut all_are_known = true;
            subtree.for_each_process(deadline, &mut |pid| {
                all_are_known &= self.look(pid)?;
                Ok(())
            })?;
            if all_are_known {
                return Ok(None);
            }
            if deadline.left().is_none_or(|left| left <= RESERVED) {
                let cause = "there was no time left to look at all its processes, which change too fast";
                return self.tracer.map(Some).ok_or_else(|| Refusal::new(Reason::NotAnswering, cause));
            }
            if self.tracer.is_some() {
                sleep(POLL_INTERVAL);
            }
        }
    }
}

/// What a process can do, with all of its threads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    CanTrace,
    /// It has ended, and cannot fork any more.
    CouldTrace,
    /// Neither can it trace, nor can what it forks from now on.
    Harmless,
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
        let process = unless_ended(Proc::of(pid).and_then(|process| Ok((process.identity()?, process))));
        let process = process.context(Reason::Broken, format_args!("look at process {pid}, which is in its cgroup"))?;
        Ok(process.map(|(identity, process)| Self { pid, process, identity, our_user_namespace }))
    }

    fn step(&self, what: &str) -> String {
        format!("look at {what} of process {}, which is in its cgroup", self.pid)
    }

    /// `None` if it changed before it could be checked. There can be thousands, so only one file is
    /// read for most of them.
    fn power(&self) -> Result<Option<Power>, Refusal> {
        let Some(status) = read(&self.process, "status").context(Reason::Broken, self.step("the status"))? else {
            return Ok(None);
        };
        // A single pid belongs to a process in our own pid namespace: the engine's, on the node.
        let numbers = |key| Status::new(&status).numbers(key).map_err(|cause| Refusal::new(Reason::Broken, cause));
        if numbers("NSpid")?.len() == 1 {
            return Ok(Some(Power::Harmless));
        }
        if numbers("Threads")? == [1] {
            return self.power_of_thread("", &status);
        }
        let Some(threads) = self.threads()? else { return Ok(None) };
        // The leader, which is listed first, is checked last: see below.
        for (name, _) in threads.iter().rev() {
            let thread = format!("task/{name}/");
            let status = read(&self.process, &format!("{thread}status"));
            let Some(status) = status.context(Reason::Broken, self.step("a thread"))? else { return Ok(None) };
            match self.power_of_thread(&thread, &status)? {
                Some(Power::CouldTrace | Power::Harmless) => {}
                power => return Ok(power),
            }
        }
        // One of them can have made another thread before it was checked, or have taken the
        // leader's place: execve(2) does that, and ends all other threads.
        let are_the_same = threads.len() > 1 && self.threads()?.is_some_and(|again| again == threads);
        Ok(are_the_same.then_some(Power::Harmless))
    }

    /// Its threads, with their identities. `None` if one of them has ended.
    fn threads(&self) -> Result<Option<Vec<(String, Inode)>>, Refusal> {
        let threads = self.process.names("task").and_then(|names| {
            let identities =
                names.into_iter().map(|name| Ok((self.process.identity_of(&format!("task/{name}"))?, name)));
            identities.map(|thread| thread.map(|(identity, name)| (name, identity))).collect()
        });
        unless_ended(threads).context(Reason::Broken, self.step("the threads"))
    }

    /// In a user namespace below ours, the capability has no effect on ours.
    fn power_of_thread(&self, thread: &str, status: &str) -> Result<Option<Power>, Refusal> {
        if !can_trace(status)? {
            return Ok(Some(Power::Harmless));
        }
        // Not Status::has_ended, for which an unknown state is the end.
        if Status::new(status).field("State").is_some_and(|state| state.starts_with(['Z', 'X'])) {
            return Ok(Some(Power::CouldTrace));
        }
        let users = unless_ended(self.process.at_namespace(thread, "user"));
        let users = users.context(Reason::Broken, "look at the user namespace of a process in its cgroup")?;
        Ok(users.map(|users| if users == self.our_user_namespace { Power::CanTrace } else { Power::Harmless }))
    }
}

/// Whether a process with this status, or a program that it executes, can have CAP_SYS_PTRACE. The
/// bounding set alone does not say: permitted and inheritable capabilities stay (capabilities(7)).
pub fn can_trace(status: &str) -> Result<bool, Refusal> {
    let mut all = 0;
    for set in ["CapBnd", "CapPrm", "CapInh"] {
        let set = Status::new(status).capabilities(set);
        all |= set.map_err(|cause| Refusal::new(Reason::Broken, format!("a process in its cgroup: {cause}")))?;
    }
    Ok(all & Capability::CAP_SYS_PTRACE.bitmask() != 0)
}

fn read(process: &Proc, name: &str) -> io::Result<Option<String>> {
    match process.read(name) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        text => text.map(Some),
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
