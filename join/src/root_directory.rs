//! The root directory of the container's pid 1: it must be the root of its mount namespace, because that is where setns(2) leads.
//!
//! A pid 1 in a chroot(2) has a root directory of its own, and a session that joined its mount namespace would see the files around it.

use crate::leader::Leader;
use crate::proc::Proc;
use crate::refusal::{Context, Reason, Refusal};
use crate::sys::{self, FileId, retry};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

/// Where a session has to find itself once it has joined the mount namespace.
#[derive(Debug)]
pub struct RootDirectory {
    theirs: FileId,
    ours: FileId,
}

impl RootDirectory {
    /// Looks at pid 1's root directory, and refuses the node's, and one that is not the root of its mount namespace.
    pub fn of(leader: &Leader) -> Result<Self, Refusal> {
        let root = leader
            .proc
            .open_directory("root")
            .context(Reason::NotRunning, format_args!("open /proc/{}/root", leader.pid))?;
        let theirs = sys::file_id(&root).context(Reason::Broken, "look at the root directory of its pid 1")?;
        // For us it is a directory like any other, so that ".." leads out of it, unless it is the top (path_resolution(7)).
        let above = retry(|| openat(&root, "..", PATH, Mode::empty()))
            .and_then(|above| sys::file_id(&above))
            .context(Reason::Broken, "look above the root directory of its pid 1")?;
        if above != theirs {
            return Err(not_the_root());
        }
        let ours = Proc::of_self()
            .and_then(|own| own.open_directory("root"))
            .and_then(|root| sys::file_id(&root))
            .context(Reason::Broken, "look at our own root directory")?;
        let found = Self { theirs, ours };
        found.must_not_be_ours(theirs)?;
        Ok(found)
    }

    /// After the mount namespace is joined: `/` must be what pid 1 has, and not what the node has.
    pub fn must_be_here(&self) -> Result<(), Refusal> {
        let here = retry(|| open("/", PATH, Mode::empty()))
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

const PATH: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

fn not_the_root() -> Refusal {
    let cause = "its pid 1's root directory is not the root of its mount namespace (chroot)";
    Refusal::new(Reason::NotTrusted, cause)
}
