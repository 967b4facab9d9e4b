//! Verify: is the process behind a pidfd the container's pid 1?
//!
//! It must be pid 1 of a pid namespace that is a child of ours. If it was found by the container's
//! socket, it must also be in our user namespace and run as the container's user. A tenant cannot
//! make such a process: any process inside the container has another pid there, and a pid 1 that
//! the tenant makes is in a user namespace of its own. A tenant cannot trace the container's pid 1
//! either. A process that was found by root's link may run as any user, and must satisfy
//! [`LinkRules`].
//!
//! How it is found is not in this file.

use crate::deadline::Deadline;
use crate::link_rules::LinkRules;
use crate::proc::{Proc, Status};
use crate::refusal::{Context, Reason, Refusal};
use crate::sys::{self, retry};
use crate::tracers::Search;
use crate::user_namespace;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shared::ContainerUid;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The container's pid 1, held by a pidfd.
#[derive(Debug)]
pub struct Leader {
    pidfd: OwnedFd,
    /// Its pid on the node.
    pub pid: i32,
    /// Its directory of /proc.
    pub proc: Proc,
    found: FoundBy,
}

/// How it was found, and hence what it must be.
#[derive(Debug)]
enum FoundBy {
    /// It listens on the container's socket, so it must be this user.
    Socket(u32),
    /// It is in the cgroup that root's link leads to.
    Link(LinkRules),
}

impl Leader {
    /// Takes the process behind `pidfd`, which listens on the container's socket.
    pub fn by_socket(pidfd: OwnedFd, container: ContainerUid) -> Result<Self, Refusal> {
        Self::take(pidfd, FoundBy::Socket(container.get()))
    }

    /// Takes the process behind `pidfd`, which may be the pid 1 in the cgroup of root's link.
    pub fn by_link(pidfd: OwnedFd, rules: LinkRules) -> Result<Self, Refusal> {
        Self::take(pidfd, FoundBy::Link(rules))
    }

    fn take(pidfd: OwnedFd, found: FoundBy) -> Result<Self, Refusal> {
        let pid = pid_of(&pidfd)?;
        let proc = Proc::of(pid).context(Reason::NotRunning, format_args!("open /proc/{pid}"))?;
        let leader = Self { pidfd, pid, proc, found };
        // It is alive afterwards, so `pid` was not reused before the directory was opened.
        leader.check()?;
        Ok(leader)
    }

    /// Whether root's link led to it.
    pub const fn is_linked(&self) -> bool {
        matches!(self.found, FoundBy::Link(_))
    }

    /// Refuses a linked container if any process in it can trace a session.
    pub fn must_have_no_tracer(&self, search: Search, deadline: Deadline) -> Result<(), Refusal> {
        match &self.found {
            FoundBy::Socket(_) => Ok(()),
            FoundBy::Link(rules) => rules.must_have_no_tracer(search, deadline),
        }
    }

    /// Checks that it is alive and still satisfies all rules.
    pub fn check(&self) -> Result<(), Refusal> {
        let checked = self.check_while_it_lives();
        // First that it is alive: what was read about a process that has ended means nothing.
        if !self.is_alive()? {
            return Err(Refusal::new(Reason::NotRunning, format!("its pid 1 ({} here) has ended", self.pid)));
        }
        checked
    }

    fn check_while_it_lives(&self) -> Result<(), Refusal> {
        let status = self.status()?;
        self.check_status(&status)
            .map_err(|cause| Refusal::new(Reason::NotTrusted, format!("pid {}: {cause}", self.pid)))?;
        let theirs =
            self.proc.namespace("user").context(Reason::NotRunning, "look at the container's user namespace")?;
        let has_own_user_namespace = theirs != user_namespace::own()?;
        match &self.found {
            FoundBy::Socket(_) if has_own_user_namespace => {
                Err(Refusal::new(Reason::NotTrusted, format!("pid {} is in a user namespace of its own", self.pid)))
            }
            FoundBy::Socket(_) => Ok(()),
            FoundBy::Link(rules) => rules.check(&self.proc, &status, has_own_user_namespace),
        }
    }

    fn check_status(&self, status: &str) -> Result<(), String> {
        let status = Status::new(status);
        let pids = status.numbers("NSpid")?;
        if pids != [self.pid as u32, 1] {
            return Err(format!("its pids are {pids:?} where [{}, 1] would be a container's pid 1", self.pid));
        }
        let uids = status.numbers("Uid")?;
        match self.found {
            FoundBy::Socket(uid) if uids != [uid; 4] => Err(format!("its uids are {uids:?}, not the container's")),
            _ => Ok(()),
        }
    }

    /// Whether it is still running. A pidfd becomes readable when its process ends.
    pub fn is_alive(&self) -> Result<bool, Refusal> {
        let mut pidfd = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let ready =
            retry(|| poll(&mut pidfd, PollTimeout::ZERO)).context(Reason::Broken, "poll the pidfd of its pid 1")?;
        Ok(ready == 0)
    }

    fn status(&self) -> Result<String, Refusal> {
        self.proc.read("status").context(Reason::NotRunning, format_args!("read /proc/{}/status", self.pid))
    }

    /// Its parent, such as the node's Emperor; 0 if that is not in our pid namespace.
    pub fn parent(&self) -> Result<i32, Refusal> {
        let status = self.status()?;
        let no_parent = || Refusal::new(Reason::Broken, format!("/proc/{}/status has no PPid", self.pid));
        Status::new(&status).parent().ok_or_else(no_parent)
    }
}

/// A pidfd of a process that may have ended. `step` says in the message what looks for it.
pub(crate) fn open_pidfd(pid: i32, step: impl fmt::Display) -> Result<OwnedFd, Refusal> {
    match sys::pidfd_open(pid) {
        Err(errno @ Errno::ESRCH) => Err(Refusal::failed(Reason::NotRunning, step, errno)),
        pidfd => pidfd.context(Reason::Broken, "pidfd_open (Linux 5.3 or newer is needed)"),
    }
}

/// The pid of the process behind a pidfd, in the pid namespace of /proc, from the pidfd's fdinfo
/// (pidfd_open(2)).
fn pid_of(pidfd: &OwnedFd) -> Result<i32, Refusal> {
    let info = Proc::of_self()
        .map_err(std::io::Error::from)
        .and_then(|own| own.read(&format!("fdinfo/{}", pidfd.as_raw_fd())))
        .context(Reason::Broken, "read the pidfd's fdinfo")?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
    match pid {
        Some(pid) if pid > 0 => Ok(pid),
        Some(-1) => Err(Refusal::new(Reason::NotRunning, "the process that was found has ended")),
        _ => Err(Refusal::new(Reason::NotTrusted, "the process that was found is not in our pid namespace")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader() -> Leader {
        let pidfd = crate::sys::pidfd_open(std::process::id() as i32).unwrap();
        Leader { pidfd, pid: 4242, proc: Proc::of_self().unwrap(), found: FoundBy::Socket(30001) }
    }

    fn verdict(nspid: &str, uid: &str) -> Result<(), String> {
        leader().check_status(&format!("Name:\tuwsgi\nUid:\t{uid}\nNSpid:\t{nspid}\nNStgid:\t9\n"))
    }

    #[test]
    fn the_containers_pid_1_passes() {
        assert_eq!(verdict("4242\t1", "30001\t30001\t30001\t30001"), Ok(()));
    }

    #[test]
    fn everything_else_does_not() {
        let own = "30001\t30001\t30001\t30001";
        for nspid in ["4242", "4242\t5", "4242\t9\t1", "4243\t1", "1", "", "x", "4242\t1\tx"] {
            assert!(verdict(nspid, own).is_err(), "NSpid {nspid}");
        }
        for uid in [
            "0\t0\t0\t0",
            "30001\t0\t30001\t30001",
            "30000\t30000\t30000\t30000",
            "30001\t30001\t30001\t0",
            "30001",
            "",
        ] {
            assert!(verdict("4242\t1", uid).is_err(), "Uid {uid}");
        }
    }

    #[test]
    fn an_ended_process_is_not_alive_and_its_number_is_not_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = crate::sys::pidfd_open(child.id() as i32).unwrap();
        assert_eq!(pid_of(&pidfd).unwrap(), child.id() as i32);
        let (pid, found) = (child.id() as i32, FoundBy::Socket(0));
        let leader = Leader { pid, proc: Proc::of(pid).unwrap(), pidfd, found };
        assert!(leader.is_alive().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!leader.is_alive().unwrap());
        assert_eq!(leader.proc.read("status").unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(pid_of(&leader.pidfd).unwrap_err().reason, Reason::NotRunning);
    }
}
