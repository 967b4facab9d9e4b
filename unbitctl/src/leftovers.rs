//! Removes what the node keeps of a container's user when the container is gone, so that the next
//! user of its number does not find it: keyrings and the last login. The user's files are removed
//! in [`purge`](crate::purge).

use crate::command_line::tell;
use crate::keys::as_the_user;
use crate::sys::{clear_persistent_keyring, clear_user_keyrings};
use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use shared::ContainerUid;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// An array by uid, from which sshd prints `Last login: ... from ...`.
const LASTLOG: &str = "/var/log/lastlog";
/// `struct lastlog` of lastlog.h.
const RECORD: usize = 4 + 32 + 256;

/// Removes the keys that the kernel keeps for the user until the next boot, and its last login. For
/// a user without processes.
pub fn remove(uid: ContainerUid) -> Result<()> {
    clear_persistent_keyring(uid.get()).context("clear its persistent keyring")?;
    // The other keyrings of a user are found by who is that user.
    if !as_the_user(uid, || clear_user_keyrings().context("clear its keyrings"))? {
        // Nobody can change that before the next boot, and whoever did it must not keep the number
        // from being used.
        tell(format_args!(
            "the user {uid} has closed its keyrings (user-keyring(7)): whoever has that number next cannot use them before the next boot"
        ));
    }
    forget_last_login(uid).context(LASTLOG)
}

fn forget_last_login(uid: ContainerUid) -> std::io::Result<()> {
    let file = match File::options().read(true).write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(LASTLOG) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let (at, mut record) = (RECORD as u64 * u64::from(uid.get()), [0; RECORD]);
    // Beyond its end and in its holes there is nothing to remove, and nothing is to take room.
    match file.read_exact_at(&mut record, at) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
        Ok(()) if record == [0; RECORD] => Ok(()),
        Ok(()) => file.write_all_at(&[0; RECORD], at),
        Err(error) => Err(error),
    }
}
