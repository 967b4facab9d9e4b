//! Locks a container, or a root directory that is set up, so that only one command changes it at a
//! time.

use crate::names::Account;
use crate::rootfs::RootFs;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use shared::ContainerUid;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Only root can open a lock's file here. What others can open, even to read, they can lock.
const DIRECTORY: &str = "/run/unbit";

/// Released when dropped. The file is never removed: a process waiting for a removed file would
/// hold a lock that nobody else sees.
pub struct Lock(#[expect(dead_code, reason = "held, until it is dropped")] Flock<File>);

impl Lock {
    /// For what changes a container.
    pub fn of_container(account: &Account) -> Result<(ContainerUid, Self)> {
        let uid = account.uid()?;
        let lock = Self::take(&uid.to_string(), || format!("another unbitctl is working on {uid}"))?;
        // Before it was taken, another command may have given the name to another container.
        if account.uid()? != uid {
            bail!("{account} is no longer a name of {uid}: somebody has changed that just now");
        }
        Ok((uid, lock))
    }

    /// For what sets up a root directory, whatever its path.
    pub fn of_setup(node: &RootFs) -> Result<Self> {
        let root = fs::metadata(node.root()).with_context(|| node.root().display().to_string())?;
        let name = format!("setup-{}-{}", root.dev(), root.ino());
        Self::take(&name, || "another unbitctl setup is running".to_owned())
    }

    fn take(name: &str, is_taken: impl FnOnce() -> String) -> Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY).context(DIRECTORY)?;
        let path = Path::new(DIRECTORY).join(format!("{name}.lock"));
        let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags.bits())
            .open(&path);
        match Flock::lock(file.with_context(|| path.display().to_string())?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, Errno::EWOULDBLOCK)) => bail!(is_taken()),
            Err((_, errno)) => Err(errno).context("lock"),
        }
    }
}
