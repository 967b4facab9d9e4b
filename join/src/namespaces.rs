//! Prepare: opens and checks the container's namespaces.
//!
//! They are joined by these descriptors and not by the pidfd, setns(2): the namespaces of a pidfd
//! change if pid 1 unshares after the check.
//!
//! User namespaces have rules of their own, in [`user_namespace`](crate::user_namespace).

use crate::proc::{Inode, Proc};
use crate::refusal::{Context, Reason, Refusal};
use crate::sys::{self, retry};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};
use std::os::fd::OwnedFd;

/// A kind of namespace: its name in /proc/PID/ns, and its flag for setns(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// As in /proc/PID/ns.
    pub name: &'static str,
    flag: CloneFlags,
}

impl Kind {
    /// In the order in which they are joined: the mount namespace last, so that all other steps see
    /// the node's files. User namespaces are not among them, see
    /// [`user_namespace`](crate::user_namespace).
    pub const ALL: [Self; 7] = [
        Self { name: "pid", flag: CloneFlags::CLONE_NEWPID },
        Self { name: "uts", flag: CloneFlags::CLONE_NEWUTS },
        Self { name: "ipc", flag: CloneFlags::CLONE_NEWIPC },
        Self { name: "net", flag: CloneFlags::CLONE_NEWNET },
        Self { name: "cgroup", flag: CloneFlags::CLONE_NEWCGROUP },
        Self { name: "time", flag: CloneFlags::from_bits_retain(libc::CLONE_NEWTIME) },
        Self { name: "mnt", flag: CloneFlags::CLONE_NEWNS },
    ];

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name == name)
    }

    /// The namespaces that a session never shares with the node.
    fn is_needed(self) -> bool {
        matches!(self.name, "mnt" | "pid")
    }
}

/// One of the container's namespaces.
#[derive(Debug)]
pub struct Namespace {
    /// What it is a namespace of.
    pub kind: Kind,
    /// Which one it is.
    pub inode: Inode,
    descriptor: OwnedFd,
}

impl Namespace {
    /// Joins it by its descriptor, setns(2).
    pub fn join(&self) -> Result<(), Refusal> {
        let step = format!("join the container's {} namespace", self.kind.name);
        match retry(|| setns(&self.descriptor, self.kind.flag)) {
            Err(errno @ Errno::EPERM) => {
                let step = format!("{step} (does the service of this process have RestrictNamespaces=?)");
                Err(Refusal::failed(Reason::Misconfigured, step, errno))
            }
            joined => joined.context(Reason::Broken, step),
        }
    }
}

/// Their names, as in /proc/PID/ns: `pid,net,mnt`.
pub fn names(namespaces: &[Namespace]) -> String {
    namespaces.iter().map(|namespace| namespace.kind.name).collect::<Vec<_>>().join(",")
}

/// Opens pid 1's namespaces of the kinds `asked`, except for those that we are in, in the order of
/// `asked`. One of the user namespaces `owners` must own each of them.
pub fn open(pid_1: &Proc, owners: &[Inode], asked: &[Kind]) -> Result<Vec<Namespace>, Refusal> {
    let own = Proc::of_self().context(Reason::Broken, "open /proc/self")?;
    let mut namespaces = Vec::new();
    for &kind in asked {
        let ours = match own.namespace(kind.name) {
            Err(Errno::ENOENT) if !kind.is_needed() => continue, // this kernel has no such namespaces
            other => other.context(Reason::Broken, format_args!("look at our {} namespace", kind.name))?,
        };
        let step = format!("open the container's {} namespace", kind.name);
        let descriptor = pid_1.open(&format!("ns/{}", kind.name)).context(Reason::NotRunning, step)?;
        let inode = check(&descriptor, kind, owners)?;
        if inode != ours {
            namespaces.push(Namespace { kind, inode, descriptor });
        } else if kind.is_needed() {
            return Err(Refusal::new(Reason::NotTrusted, format!("it has no {} namespace of its own", kind.name)));
        }
    }
    Ok(namespaces)
}

/// Checks that a namespace is of this kind, and that one of these user namespaces owns it.
fn check(descriptor: &OwnedFd, kind: Kind, owners: &[Inode]) -> Result<Inode, Refusal> {
    let not_trusted = |what: &str| Err(Refusal::new(Reason::NotTrusted, format!("its {} namespace {what}", kind.name)));
    let inode = check_kind(descriptor, kind.name, kind.flag)?;
    let owner = match sys::namespace_owner(descriptor) {
        Err(Errno::EPERM) => return not_trusted("belongs to a user namespace that this process cannot see"),
        other => other.context(Reason::Broken, "get the owner of a namespace (NS_GET_USERNS)")?,
    };
    if !owners.contains(&retry(|| fstat(&owner)).context(Reason::Broken, "fstat a user namespace")?.into()) {
        return not_trusted("belongs to another user namespace");
    }
    Ok(inode)
}

/// The identity of the namespace behind a descriptor, which must be of this kind.
pub fn check_kind(descriptor: &OwnedFd, name: &str, flag: CloneFlags) -> Result<Inode, Refusal> {
    must_be_nsfs(descriptor, &format!("its {name} namespace"))?;
    if type_of(descriptor)? != flag {
        return Err(Refusal::new(Reason::NotTrusted, format!("its {name} namespace is one of another kind")));
    }
    retry(|| fstat(descriptor)).context(Reason::Broken, "fstat a namespace").map(Inode::from)
}

/// Must be called before any ioctl: on another file system the same number can mean anything.
fn must_be_nsfs(descriptor: &OwnedFd, what: &str) -> Result<(), Refusal> {
    let filesystem = retry(|| fstatfs(descriptor)).context(Reason::Broken, "fstatfs a namespace")?.filesystem_type();
    if filesystem == FsType(libc::NSFS_MAGIC as _) {
        return Ok(());
    }
    Err(Refusal::new(Reason::NotTrusted, format!("{what} is not a namespace")))
}

fn type_of(descriptor: &OwnedFd) -> Result<CloneFlags, Refusal> {
    sys::namespace_type(descriptor).context(Reason::Broken, "get the type of a namespace (NS_GET_NSTYPE)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn our_user_namespace() -> [Inode; 1] {
        [Proc::of_self().unwrap().namespace("user").unwrap()]
    }

    #[test]
    fn each_kind_is_told_from_every_other() {
        let own = Proc::of_self().unwrap();
        for kind in Kind::ALL {
            let descriptor = own.open(&format!("ns/{}", kind.name)).unwrap();
            assert_eq!(check(&descriptor, kind, &our_user_namespace()).unwrap(), own.namespace(kind.name).unwrap());
            for other in Kind::ALL.into_iter().filter(|other| *other != kind) {
                let refusal = check(&descriptor, other, &our_user_namespace()).unwrap_err();
                assert_eq!(refusal.reason, Reason::NotTrusted, "{} for {}", kind.name, other.name);
            }
        }
    }

    #[test]
    fn a_file_is_no_namespace() {
        let file = OwnedFd::from(File::open("/proc/self/status").unwrap());
        let refusal = check(&file, Kind::ALL[0], &our_user_namespace()).unwrap_err();
        assert_eq!(refusal.cause, "its pid namespace is not a namespace");
    }

    #[test]
    fn the_mount_namespace_is_joined_last() {
        assert_eq!(Kind::ALL.map(|kind| kind.name).last(), Some(&"mnt"));
    }
}
