//! A cgroup with all cgroups below it: lists its processes, and says whether a process is in it.
//!
//! Root inside a container can make cgroups below its own, as many and as deep as it likes. So the
//! walk holds one descriptor, whatever the depth, and ends at the deadline or at a maximum number
//! of cgroups.
//!
//! Which process is pid 1 is decided in [`pid_namespaces`](crate::pid_namespaces).

use crate::cgroups::{self, Version};
use crate::deadline::Deadline;
use crate::proc::{Inode, Proc};
use crate::refusal::{Reason, Refusal};
use crate::sys::retry;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::read;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

/// The maximum number of cgroups that are walked.
const MAX_GROUPS: usize = 32_768;

const OPEN_DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC);

/// A cgroup, by its directory.
#[derive(Debug)]
pub struct Subtree {
    directory: OwnedFd,
    inode: Inode,
    version: Version,
}

/// A cgroup on the path down, and its children that have not been walked yet.
struct Level {
    inode: Inode,
    children: Vec<CString>,
}

impl Subtree {
    /// The cgroup of this directory; `None` for the root of the mount.
    pub fn of(directory: OwnedFd) -> nix::Result<Option<Self>> {
        let inode = inode_of(&directory)?;
        let version = cgroups::version_of(&directory)?;
        Ok(parent_of(&directory, inode)?.map(|_| Self { directory, inode, version }))
    }

    /// Whether a process is in this cgroup or in one below it.
    pub fn holds(&self, process: &Proc) -> Result<bool, Refusal> {
        cgroups::any_of(process, self.version, |group| {
            let mut inode = inode_of(group)?;
            if !inode.is_on_the_device_of(self.inode) {
                return Ok(false); // another hierarchy
            }
            let mut next = parent_of(group, inode)?;
            while inode != self.inode {
                let Some((directory, its_inode)) = next else { return Ok(false) };
                inode = its_inode;
                next = parent_of(&directory, inode)?;
            }
            Ok(true)
        })
    }

    /// Calls `found` with the pid of each process. A process that moves in the meantime can be
    /// found twice or not at all.
    pub fn for_each_process(
        &self,
        deadline: Deadline,
        found: &mut dyn FnMut(i32) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let failed = |errno| Refusal::failed(Reason::Broken, "walk through its cgroup", errno);
        let top = retry(|| openat(&self.directory, ".", OPEN_DIRECTORY, Mode::empty()));
        let mut here = match top {
            Err(errno @ (Errno::ENOENT | Errno::ENODEV)) => return Err(gone(errno)),
            top => top.map_err(failed)?,
        };
        let mut levels = vec![read_level(&here, true, deadline, found)?];
        let mut groups = 1;
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.children.pop() else {
                levels.pop();
                if let Some(level) = levels.last() {
                    here = retry(|| openat(&here, "..", OPEN_DIRECTORY, Mode::empty())).map_err(failed)?;
                    if inode_of(&here).map_err(failed)? != level.inode {
                        return Err(Refusal::new(
                            Reason::Broken,
                            "its cgroups were moved while they were walked through",
                        ));
                    }
                }
                continue;
            };
            here = match retry(|| openat(&here, name.as_c_str(), OPEN_DIRECTORY, Mode::empty())) {
                Err(Errno::ENOENT | Errno::ENODEV) => continue, // it is gone
                group => group.map_err(failed)?,
            };
            groups += 1;
            if groups > MAX_GROUPS {
                return Err(Refusal::new(Reason::TooManyCgroups, format!("it has more than {MAX_GROUPS} cgroups")));
            }
            levels.push(read_level(&here, false, deadline, found)?);
        }
        Ok(())
    }
}

/// Reads a cgroup's processes and the names of its children.
fn read_level(
    group: &OwnedFd,
    is_top: bool,
    deadline: Deadline,
    found: &mut dyn FnMut(i32) -> Result<(), Refusal>,
) -> Result<Level, Refusal> {
    let failed = |errno| Refusal::failed(Reason::Broken, "look at one of its cgroups", errno);
    match read_processes(group) {
        Ok(text) => {
            for pid in cgroups::pids_in(&text) {
                if deadline.left().is_none() {
                    return Err(Refusal::new(
                        Reason::NotAnswering,
                        "there was no time left to look at all its processes",
                    ));
                }
                found(pid)?;
            }
        }
        // A threaded cgroup (cgroups(7)). The nearest cgroup above that is not threaded lists its
        // processes.
        Err(Errno::EOPNOTSUPP) if !is_top => {}
        Err(Errno::EOPNOTSUPP) => return Err(Refusal::new(Reason::BadLink, "the link leads to a threaded cgroup")),
        Err(errno @ (Errno::ENOENT | Errno::ENODEV)) if is_top => return Err(gone(errno)),
        Err(Errno::ENOENT | Errno::ENODEV) => {} // it is gone
        Err(errno) => return Err(failed(errno)),
    }
    if deadline.left().is_none() {
        return Err(Refusal::new(Reason::NotAnswering, "there was no time left to look at all its cgroups"));
    }
    let status = retry(|| fstat(group)).map_err(failed)?;
    // kernfs counts subdirectories in st_nlink, and most cgroups have none.
    let has_children = status.st_nlink > 2;
    let children = if has_children { names_of_children(group).map_err(failed)? } else { Vec::new() };
    Ok(Level { inode: status.into(), children })
}

/// Reads a cgroup.procs. std would call statx(2) and lseek(2) for each of so many files.
fn read_processes(group: &OwnedFd) -> nix::Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = retry(|| openat(group, "cgroup.procs", flags, Mode::empty()))?;
    let (mut text, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let length = retry(|| read(&file, &mut part))?;
        text.extend(part.iter().take(length));
        if length == 0 {
            return String::from_utf8(text).map_err(|_| Errno::EILSEQ);
        }
    }
}

fn names_of_children(group: &OwnedFd) -> nix::Result<Vec<CString>> {
    let mut directory = match retry(|| Dir::openat(group, ".", OPEN_DIRECTORY, Mode::empty())) {
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(Vec::new()), // it is gone
        directory => directory?,
    };
    let mut names = Vec::new();
    for entry in directory.iter().filter(|entry| *entry != Err(Errno::EINTR)) {
        let entry = match entry {
            Err(Errno::ENOENT | Errno::ENODEV) => break, // it was removed while it was read
            entry => entry?,
        };
        let name = entry.file_name();
        if entry.file_type() == Some(Type::Directory) && ![c".", c".."].contains(&name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The cgroup above; `None` for the root of the mount.
fn parent_of(directory: &OwnedFd, inode: Inode) -> nix::Result<Option<(OwnedFd, Inode)>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let above = retry(|| openat(directory, "..", flags, Mode::empty()))?;
    let found = inode_of(&above)?;
    Ok((found != inode && found.is_on_the_device_of(inode)).then_some((above, found)))
}

fn inode_of(file: &impl AsFd) -> nix::Result<Inode> {
    retry(|| fstat(file)).map(Inode::from)
}

fn gone(errno: Errno) -> Refusal {
    Refusal::failed(Reason::NotRunning, "look at the cgroup that the link leads to", errno)
}
