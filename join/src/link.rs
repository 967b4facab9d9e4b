//! Find, for a container of any engine: which pid 1 is in the cgroup that root's link
//! `/etc/unbit/30001` leads to?
//!
//! Every engine has a cgroup for each container. The link says which cgroup is this account's, and
//! the kernel which processes are in it. No process is asked. An account with a link is never
//! looked up by its socket. [`Link::find_leader`] finds the pid 1 by these rules:
//!
//! 1. The cgroup, with those below it, has processes of exactly one pid namespace that is a direct
//!    child of ours.
//! 2. The pid 1 of that namespace is in one of these cgroups.
//! 3. It runs a program on a mount of its own mount namespace.
//! 4. It has its own cgroup namespace, or cannot be root, or its pid namespace belongs to a user
//!    namespace of the container.
//! 5. None of its cgroups is frozen.
//! 6. No process in these cgroups can have CAP_SYS_PTRACE in our user namespace, unless root says
//!    that it trusts root inside.
//!
//! [`LinkRules`] checks rules 2 to 6, and [`tracers`](crate::tracers) rule 6 for other processes
//! than pid 1. A seventh rule, that a session is in pid 1's root directory, holds for every
//! container: see [`root_directory`](crate::root_directory).

use crate::deadline::Deadline;
use crate::leader::{self, Leader};
use crate::link_rules::LinkRules;
use crate::pid_namespaces::{self, PidNamespace};
use crate::proc::Proc;
use crate::refusal::{Context, Reason, Refusal};
use crate::safe_path::{self, PathError};
use crate::subtree::Subtree;
use crate::sys::retry;
use crate::tracers::Search;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstatat};
use shared::ContainerUid;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The directory of the links. Root must own it and each link in it.
pub const DIRECTORY: &str = "/etc/unbit";

/// The suffix of a file next to the link, by which root says that it trusts root inside this
/// container.
pub const ROOT_IS_TRUSTED_SUFFIX: &str = ".root-is-trusted";

/// Where root's link of an account leads, without any check. Everybody may read it.
pub fn target_of(container: ContainerUid) -> Option<PathBuf> {
    std::fs::read_link(Path::new(DIRECTORY).join(container.to_string())).ok()
}

/// The cgroup that root has linked, or is about to link, to an account.
#[derive(Debug)]
pub struct Link {
    target: PathBuf,
    subtree: Subtree,
    root_is_trusted: bool,
}

impl Link {
    /// Reads the link of a container; `None` if it has none. A wrong link refuses the login, and
    /// the socket is not tried instead.
    pub fn read(container: ContainerUid) -> Result<Option<Self>, Refusal> {
        let Some(directory) = open_links()? else { return Ok(None) };
        let name = container.to_string();
        let Some(status) = status_of(&directory, &name)? else { return Ok(None) };
        let is_link = safe_path::kind(&status) == SFlag::S_IFLNK;
        if !is_link || status.st_uid != 0 {
            let cause = format!("{DIRECTORY}/{name} is not a symbolic link that root owns");
            return Err(Refusal::new(Reason::BadLink, cause));
        }
        let text = retry(|| readlinkat(&directory, name.as_str()))
            .context(Reason::BadLink, format_args!("read {DIRECTORY}/{name}"))?;
        let target = Path::new(DIRECTORY).join(text);
        let root_is_trusted = is_root_trusted(&directory, container)?;
        Self::open_target(target, root_is_trusted).map(Some)
    }

    /// A cgroup directory that could be linked to a container.
    pub fn candidate(path: &Path, container: ContainerUid) -> Result<Self, Refusal> {
        let root_is_trusted = match open_links()? {
            Some(directory) => is_root_trusted(&directory, container)?,
            None => false,
        };
        Self::open_target(Path::new("/").join(path), root_is_trusted)
    }

    fn open_target(target: PathBuf, root_is_trusted: bool) -> Result<Self, Refusal> {
        let path = target.display();
        let bad = |what: &str| Err(Refusal::new(Reason::BadLink, format!("its link leads to {path}, {what}")));
        let directory = match safe_path::open_directory(&target) {
            Ok(directory) => directory,
            // The engine makes the cgroup when it starts the container.
            Err(PathError::Missing(name, true)) => {
                let cause = format!("its link leads to {path}, and there is no cgroup {name}");
                return Err(Refusal::new(Reason::NotRunning, cause));
            }
            Err(error) => return Err(path_refusal(&path.to_string(), &error)),
        };
        if !safe_path::is_cgroup(&directory).context(Reason::Broken, "fstatfs what its link leads to")? {
            return bad("which is not a cgroup");
        }
        let Some(subtree) = Subtree::of(directory).context(Reason::Broken, "look at what its link leads to")? else {
            return bad("the root cgroup of a hierarchy");
        };
        let ours = Proc::of_self().context(Reason::Broken, "open /proc/self")?;
        if subtree.holds(&ours)? {
            return bad("and this process, which is to enter it, is in that cgroup itself");
        }
        Ok(Self { target, subtree, root_is_trusted })
    }

    /// Where it leads.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Finds the container's pid 1 by the rules above.
    pub fn find_leader(self, deadline: Deadline) -> Result<Leader, Refusal> {
        let mut search = if self.root_is_trusted { None } else { Some(Search::new()?) };
        let namespace = self.pid_namespace(search.as_mut(), deadline)?;
        let pid_namespace = namespace.inode;
        let our_user_namespace_owns_it = namespace.is_owned_by_our_user_namespace()?;
        let pid = namespace.pid_1()?;
        let pidfd = leader::open_pidfd(pid, format_args!("pidfd_open {pid}"))?;
        let root_is_trusted = self.root_is_trusted;
        let rules = LinkRules { subtree: self.subtree, pid_namespace, our_user_namespace_owns_it, root_is_trusted };
        let leader = Leader::by_link(pidfd, rules)?;
        if let Some(search) = search {
            leader.must_have_no_tracer(search, deadline)?;
        }
        Ok(leader)
    }

    /// Rule 1. Begins the search for tracers, which must know the processes before it can end: with
    /// many cgroups each further walk takes long.
    fn pid_namespace(&self, mut search: Option<&mut Search>, deadline: Deadline) -> Result<PidNamespace, Refusal> {
        let mut last = None;
        let mut visit = |pid: i32, namespace: &PidNamespace| {
            let Some(search) = search.as_mut() else { return Ok(()) };
            let is_ours = match last {
                Some((inode, is_ours)) if inode == namespace.inode => is_ours,
                _ => namespace.is_owned_by_our_user_namespace()?,
            };
            last = Some((namespace.inode, is_ours));
            if is_ours { search.look(pid).map(drop) } else { Ok(()) }
        };
        let found = pid_namespaces::of_processes(&self.subtree, deadline, &mut visit)?;
        let path = self.target.display();
        let refuse = |reason, what: String| Err(Refusal::new(reason, format!("{path} {what}")));
        let mut children = found.children.into_iter();
        match (children.next(), children.next(), found.another) {
            (Some(one), None, _) => Ok(one),
            (Some(one), Some(other), _) => {
                let (one, other) = (one.member(), other.member());
                let what = format!("has processes of more than one container, such as {one} and {other}");
                refuse(Reason::SeveralContainers, what)
            }
            (None, _, Some(example)) => {
                let what = format!(
                    "has processes, such as {example}, but none in a pid namespace that is a direct child of the node's"
                );
                refuse(Reason::NoPidNamespace, what)
            }
            (None, _, None) => refuse(Reason::NotRunning, "has no processes".to_owned()),
        }
    }
}

/// Opens the directory of the links; `None` if it does not exist.
fn open_links() -> Result<Option<OwnedFd>, Refusal> {
    match safe_path::open_directory(Path::new(DIRECTORY)) {
        Err(PathError::Missing(..)) => Ok(None),
        directory => directory.map(Some).map_err(|error| path_refusal(DIRECTORY, &error)),
    }
}

/// Whether root trusts root inside this container: by a regular file next to the link, which root
/// owns.
fn is_root_trusted(directory: &OwnedFd, container: ContainerUid) -> Result<bool, Refusal> {
    let name = format!("{container}{ROOT_IS_TRUSTED_SUFFIX}");
    let Some(status) = status_of(directory, &name)? else { return Ok(false) };
    let is_file = safe_path::kind(&status) == SFlag::S_IFREG;
    match safe_path::must_belong_to_root(&status) {
        Ok(()) if is_file => Ok(true),
        Ok(()) => Err(Refusal::new(Reason::BadLink, format!("{DIRECTORY}/{name} is not a regular file"))),
        Err(seen) => Err(Refusal::new(Reason::BadLink, format!("{DIRECTORY}/{name} {seen}"))),
    }
}

/// The status of a name in the directory; `None` if it does not exist.
fn status_of(directory: &OwnedFd, name: &str) -> Result<Option<FileStat>, Refusal> {
    match retry(|| fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)) {
        Err(Errno::ENOENT) => Ok(None),
        status => status.map(Some).context(Reason::Broken, format_args!("look at {DIRECTORY}/{name}")),
    }
}

fn path_refusal(path: &str, error: &PathError) -> Refusal {
    match error {
        PathError::Missing(name, _) => Refusal::new(Reason::BadLink, format!("{path}: {name} does not exist")),
        PathError::Refused(what) => Refusal::new(Reason::BadLink, format!("{path}: {what}")),
        PathError::Failed(name, errno) => Refusal::failed(Reason::Broken, format_args!("{path}: open {name}"), *errno),
    }
}
