//! Verify: the root directory of the container's pid 1 must be the root of its mount namespace,
//! which setns(2) makes a session's root.
//!
//! If pid 1 is in a chroot(2), a session that joins its mount namespace sees the files outside the
//! chroot.

use crate::leader::Leader;
use crate::proc::Proc;
use crate::refusal::{Context, Reason, Refusal};
use crate::sys::{self, FileId, retry};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use std::os::fd::AsFd;

/// The root directory that a session must have after it has joined the mount namespace.
#[derive(Debug)]
pub struct RootDirectory {
    theirs: FileId,
    ours: FileId,
}

impl RootDirectory {
    /// Refuses a pid 1 whose root directory is the node's, or is not the root of its mount
    /// namespace.
    pub fn of(leader: &Leader) -> Result<Self, Refusal> {
        let root = leader
            .proc
            .open_directory("root")
            .context(Reason::NotRunning, format_args!("open /proc/{}/root", leader.pid))?;
        let theirs = sys::file_id(&root).context(Reason::Broken, "look at the root directory of its pid 1")?;
        // We are outside its chroot, so ".." leads out of it, unless it is the root of the mount
        // namespace (path_resolution(7)). Root of a linked container may have mounted a file system
        // of its own: if the kernel would have to ask that, `must_be_here` decides.
        let above = match leader.is_linked() {
            true => sys::open_cached(root.as_fd(), "..").ok(),
            false => Some(
                retry(|| openat(&root, "..", OPEN_PATH_DIRECTORY, Mode::empty()))
                    .context(Reason::Broken, LOOK_ABOVE)?,
            ),
        };
        if let Some(above) = above {
            if sys::file_id(&above).context(Reason::Broken, LOOK_ABOVE)? != theirs {
                return Err(not_the_root());
            }
        }
        let ours = Proc::of_self()
            .and_then(|own| own.open_directory("root"))
            .and_then(|root| sys::file_id(&root))
            .context(Reason::Broken, "look at our own root directory")?;
        let found = Self { theirs, ours };
        found.must_not_be_ours(theirs)?;
        Ok(found)
    }

    /// Checks, after the mount namespace was joined, that `/` is pid 1's root directory and not the
    /// node's.
    pub fn must_be_here(&self) -> Result<(), Refusal> {
        let here = retry(|| open("/", OPEN_PATH_DIRECTORY, Mode::empty()))
            .and_then(|root| sys::file_id(&root))
            .context(Reason::Broken, "look at the root directory that was joined")?;
        if here != self.theirs {
            return Err(not_the_root());
        }
        self.must_not_be_ours(here)
    }

    fn must_not_be_ours(&self, root: FileId) -> Result<(), Refusal> {
        if (root.device, root.inode) == (self.ours.device, self.ours.inode) {
            return Err(Refusal::new(Reason::NotTrusted, "its root directory is the node's own"));
        }
        Ok(())
    }
}

const LOOK_ABOVE: &str = "look above the root directory of its pid 1";

const OPEN_PATH_DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

fn not_the_root() -> Refusal {
    let cause = "its pid 1's root directory is not the root of its mount namespace (chroot)";
    Refusal::new(Reason::NotTrusted, cause)
}
