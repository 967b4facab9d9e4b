//! Finds the pid namespaces of the processes in a cgroup, and the pid 1 of a pid namespace.
//!
//! Whether a container may be entered is not decided here.

use crate::deadline::Deadline;
use crate::proc::{self, Inode, Proc, Status, unless_ended};
use crate::refusal::{Context, Reason, Refusal};
use crate::subtree::Subtree;
use crate::sys::{self, retry};
use crate::user_namespace;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{Mode, fstat, fstatat};
use std::os::fd::OwnedFd;

/// The pid namespaces of a cgroup's processes.
#[derive(Default)]
pub struct PidNamespaces {
    /// The pid namespaces that are direct children of ours.
    pub children: Vec<PidNamespace>,
    /// A process in any other pid namespace, such as ours.
    pub another: Option<i32>,
}

/// A pid namespace, and the processes in it that were found.
pub struct PidNamespace {
    /// Which one it is.
    pub inode: Inode,
    descriptor: OwnedFd,
    members: Vec<i32>,
}

/// How the pid namespace of a process is related to ours.
enum Relation {
    Child(PidNamespace),
    Other,
    /// The process has ended.
    Unknown,
}

/// Reads the pid namespace of each process. Calls `visit` for those in a direct child of ours.
pub fn of_processes(
    subtree: &Subtree,
    deadline: Deadline,
    visit: &mut dyn FnMut(i32, &PidNamespace) -> Result<(), Refusal>,
) -> Result<PidNamespaces, Refusal> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let proc = retry(|| open("/proc", flags, Mode::empty())).context(Reason::Broken, "open /proc")?;
    let ours = Proc::own_namespace("pid").context(Reason::Broken, "look at our pid namespace")?;
    let mut found = PidNamespaces::default();
    let mut others = vec![ours];
    subtree.for_each_process(deadline, &mut |pid| {
        let link = format!("{pid}/ns/pid");
        let inode = match retry(|| fstatat(&proc, link.as_str(), AtFlags::empty())) {
            // The process may have ended: Proc::namespace finds out.
            Err(Errno::EACCES) => Proc::of(pid).and_then(|process| process.namespace("pid")),
            status => status.map(Inode::from),
        };
        let inode = unless_ended(inode).context(Reason::Broken, format_args!("look at /proc/{link}"))?;
        let Some(inode) = inode else { return Ok(()) };
        if let Some(namespace) = found.children.iter_mut().find(|namespace| namespace.inode == inode) {
            namespace.members.push(pid);
            return visit(pid, namespace);
        }
        if !others.contains(&inode) {
            match PidNamespace::relation(inode, pid, ours)? {
                Relation::Other => others.push(inode),
                Relation::Child(namespace) => {
                    visit(pid, &namespace)?;
                    found.children.push(namespace);
                    return Ok(());
                }
                Relation::Unknown => return Ok(()), // another process of the same namespace may follow
            }
        }
        found.another.get_or_insert(pid);
        Ok(())
    })?;
    Ok(found)
}

impl PidNamespace {
    fn relation(inode: Inode, pid: i32, ours: Inode) -> Result<Relation, Refusal> {
        let descriptor = unless_ended(Proc::of(pid).and_then(|process| process.open("ns/pid")));
        let descriptor = descriptor.context(Reason::Broken, format_args!("open /proc/{pid}/ns/pid"))?;
        let Some(descriptor) = descriptor else { return Ok(Relation::Unknown) };
        let look = |descriptor: &OwnedFd| retry(|| fstat(descriptor)).map(Inode::from);
        if look(&descriptor).context(Reason::Broken, "fstat a pid namespace")? != inode {
            return Ok(Relation::Unknown); // the number is another process's by now
        }
        match sys::namespace_parent(&descriptor).and_then(|parent| look(&parent)) {
            Err(Errno::EPERM) => Ok(Relation::Other), // it is not below ours
            parent => {
                match parent.context(Reason::Broken, "get the parent of a pid namespace (NS_GET_PARENT)")? == ours {
                    true => Ok(Relation::Child(Self { inode, descriptor, members: vec![pid] })),
                    false => Ok(Relation::Other),
                }
            }
        }
    }

    /// Whether our user namespace owns it.
    pub fn is_owned_by_our_user_namespace(&self) -> Result<bool, Refusal> {
        let owner = match sys::namespace_owner(&self.descriptor) {
            Err(Errno::EPERM) => return Ok(false), // its owner is not below ours
            owner => owner.and_then(|owner| retry(|| fstat(&owner))),
        };
        let owner = owner.context(Reason::Broken, "get the owner of a pid namespace (NS_GET_USERNS)")?;
        Ok(Inode::from(owner) == user_namespace::own()?)
    }

    /// One of the processes that were found.
    pub fn member(&self) -> i32 {
        self.members.first().copied().unwrap_or_default()
    }

    /// The pid of its pid 1 in our pid namespace. The process can end and its pid be reused at any
    /// time.
    pub fn pid_1(self) -> Result<i32, Refusal> {
        let pid = match sys::pid_from_pidns(&self.descriptor, 1) {
            Err(Errno::ENOTTY) => self.pid_1_before_linux_6_11()?,
            Err(Errno::ESRCH) => None,
            pid => Some(pid.context(Reason::Broken, "get the pid 1 of a pid namespace (NS_GET_PID_FROM_PIDNS)")?),
        };
        pid.ok_or_else(|| Refusal::new(Reason::NotRunning, "its pid 1 has ended"))
    }

    /// It can be in another cgroup than the processes that were found. Then the whole of /proc is
    /// searched, so that the refusal says that.
    fn pid_1_before_linux_6_11(mut self) -> Result<Option<i32>, Refusal> {
        let is_pid_1 = |pid: &i32| {
            let status = Proc::of(*pid).map_err(std::io::Error::from).and_then(|process| process.read("status"));
            status.is_ok_and(|status| Status::new(&status).nspid().is_some_and(|pids| pids == [*pid as u32, 1]))
        };
        let is_in_it = |pid: &i32| Proc::of(*pid).and_then(|process| process.namespace("pid")) == Ok(self.inode);
        // It is the oldest process, so most often it has the lowest pid.
        self.members.sort_unstable();
        match self.members.iter().copied().find(is_pid_1) {
            Some(pid) => Ok(Some(pid)),
            None => Ok(proc::pids().context(Reason::Broken, "list /proc")?.find(|pid| is_in_it(pid) && is_pid_1(pid))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_pid_1_in_another_cgroup_is_found() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("NOT TRIED: a pid namespace (only root can make one)");
        }
        let child = |pid: u32| {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            children.split_whitespace().next()?.parse::<i32>().ok()
        };
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child", "cat"]).stdin(Stdio::piped());
        let mut outside = unshare.stdout(Stdio::piped()).spawn().unwrap();
        let pid = loop {
            if let Some(pid) = child(outside.id()) {
                break pid;
            }
            assert!(outside.try_wait().unwrap().is_none());
        };
        let namespace = |members| {
            let descriptor = Proc::of(pid).unwrap().open("ns/pid").unwrap();
            PidNamespace { inode: Proc::of(pid).unwrap().namespace("pid").unwrap(), descriptor, members }
        };
        for members in [vec![pid], vec![], vec![1]] {
            assert_eq!(namespace(members.clone()).pid_1().unwrap(), pid, "{members:?}");
            assert_eq!(namespace(members).pid_1_before_linux_6_11().unwrap(), Some(pid));
        }
        let gone = [namespace(vec![pid]), namespace(vec![])];
        drop(outside.stdin.take());
        outside.wait().unwrap();
        for gone in gone {
            assert_eq!(gone.pid_1_before_linux_6_11().unwrap(), None);
        }
    }
}
