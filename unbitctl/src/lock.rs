//! Locks a container, so that only one command changes it at a time.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use shared::ContainerUid;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Only root can write here, so nobody else can hold the lock.
const DIRECTORY: &str = "/run/unbit";

/// Released when dropped. The file is never removed: a process waiting for a removed file would
/// hold a lock that nobody else sees.
pub struct Lock(#[expect(dead_code, reason = "held, until it is dropped")] Flock<File>);

impl Lock {
    pub fn take(uid: ContainerUid) -> Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY).context(DIRECTORY)?;
        let path = Path::new(DIRECTORY).join(format!("{uid}.lock"));
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
            Err((_, Errno::EWOULDBLOCK)) => bail!("another unbitctl is working on {uid}"),
            Err((_, errno)) => Err(errno).context("lock"),
        }
    }
}
