//! Finds the pid namespaces of the processes in a cgroup, and the pid 1 of a pid namespace.
//!
//! Whether a container may be entered is not decided here.

use crate::deadline::Deadline;
use crate::proc::{Inode, Proc, numbers};
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
pub struct Found {
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

/// Reads the pid namespace of each process.
pub fn of_processes(subtree: &Subtree, deadline: Deadline) -> Result<Found, Refusal> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let proc = retry(|| open("/proc", flags, Mode::empty())).context(Reason::Broken, "open /proc")?;
    let ours = Proc::own_namespace("pid").context(Reason::Broken, "look at our pid namespace")?;
    let mut found = Found::default();
    let mut others = vec![ours];
    subtree.for_each_process(deadline, &mut |pid| {
        let link = format!("{pid}/ns/pid");
        let inode = match retry(|| fstatat(&proc, link.as_str(), AtFlags::empty())) {
            Err(Errno::EACCES) => Proc::of(pid).and_then(|process| process.namespace("pid")),
            status => status.map(Inode::from),
        };
        let inode = match inode {
            Err(Errno::ENOENT | Errno::ESRCH) => return Ok(()), // it has ended
            inode => inode.context(Reason::Broken, format_args!("look at /proc/{link}"))?,
        };
        if let Some(namespace) = found.children.iter_mut().find(|namespace| namespace.inode == inode) {
            namespace.members.push(pid);
            return Ok(());
        }
        if !others.contains(&inode) {
            match PidNamespace::relation(inode, pid, ours)? {
                Relation::Other => others.push(inode),
                Relation::Child(namespace) => {
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
        let descriptor = match Proc::of(pid).and_then(|process| process.open("ns/pid")) {
            Err(Errno::ENOENT | Errno::ESRCH) => return Ok(Relation::Unknown),
            descriptor => descriptor.context(Reason::Broken, format_args!("open /proc/{pid}/ns/pid"))?,
        };
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
    pub fn pid_1(mut self) -> Result<i32, Refusal> {
        let ended = || Refusal::new(Reason::NotRunning, "its pid 1 has ended");
        match sys::pid_from_pidns(&self.descriptor, 1) {
            Err(Errno::ENOTTY) => {} // before Linux 6.11
            Err(Errno::ESRCH) => return Err(ended()),
            pid => return pid.context(Reason::Broken, "get the pid 1 of a pid namespace (NS_GET_PID_FROM_PIDNS)"),
        }
        // It is the oldest process, so most often it has the lowest pid.
        self.members.sort_unstable();
        let is_pid_1 = |pid: &i32| {
            let status = Proc::of(*pid).map_err(std::io::Error::from).and_then(|process| process.read("status"));
            status.is_ok_and(|status| numbers(&status, "NSpid").is_ok_and(|pids| pids == [*pid as u32, 1]))
        };
        self.members.into_iter().find(is_pid_1).ok_or_else(ended)
    }
}
