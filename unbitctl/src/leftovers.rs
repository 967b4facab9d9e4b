//! Removes what the node keeps of a container's user when the container is gone, so that the next
//! user of its number does not find it: keyrings and the last login. The user's files are removed
//! in [`purge`](crate::purge).

use crate::command_line::warn_line;
use crate::keys::as_the_user;
use crate::sys::{
    COLLECTION_INTERVAL, COLLECTION_TIMEOUT, clear_persistent_keyring, clear_user_keyrings, end_key, key_owner,
    user_keyrings,
};
use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use shared::ContainerUid;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread::sleep;
use std::time::Instant;

/// An array by uid, from which sshd prints `Last login: ... from ...`.
const LASTLOG: &str = "/var/log/lastlog";
/// `struct lastlog` of lastlog.h.
const RECORD: usize = 4 + 32 + 256;

/// Removes the keys that the kernel keeps for the user until the next boot, and its last login. For
/// a user without processes.
pub fn remove(uid: ContainerUid) -> Result<()> {
    let persistent = clear_persistent_keyring(uid.get()).context("clear its persistent keyring")?;
    let kept = || persistent.into_iter().chain(user_keyrings()).collect::<Vec<_>>();
    // Only a process with this uid can look up its other keyrings.
    let (is_all, kept) = as_the_user(uid, || {
        end_keys_of(uid, &kept());
        let is_all = clear_user_keyrings().context("clear its keyrings")?;
        Ok((is_all, kept()))
    })?;
    end_keys_of(uid, &kept);
    if !is_all {
        // Nobody can change that before the next boot, and whoever did it must not keep the number
        // from being used.
        warn_line(format_args!(
            "the user {uid} has closed its keyrings (user-keyring(7)): whoever has that number next cannot use them before the next boot"
        ));
    } else if let Some(number) = kept_keys(uid) {
        warn_line(format_args!(
            "{number} keys of the user {uid} are in another user's keyring, and cannot be invalidated: until the next boot they count against the key quota of whoever has that number next"
        ));
    }
    forget_last_login(uid).context(LASTLOG)
}

/// Ends all keys of the user that the caller sees, but not the keyrings that the kernel keeps for
/// the user. Keys that another user has linked to a keyring of its own otherwise stay, and count as
/// the next user's.
fn end_keys_of(uid: ContainerUid, kept: &[i64]) {
    let keys = fs::read("/proc/keys").unwrap_or_default();
    String::from_utf8_lossy(&keys)
        .lines()
        .filter_map(|line| key_of(line, uid))
        // The name of a key may contain line feeds, and so whole lines of its owner's choice.
        .filter(|&key| !kept.contains(&key) && key_owner(key) == Some(uid.get()))
        .for_each(end_key);
}

/// The number of a key, if it is one of the user's. Its name does not matter: a user may call a key
/// of its own as the kernel calls the user's keyrings.
fn key_of(line: &str, uid: ContainerUid) -> Option<i64> {
    let mut words = line.split_whitespace();
    let (number, owner) = (words.next()?, words.nth(4)?);
    // A negative number would be one of the caller's own keyrings.
    (owner.parse() == Ok(uid.get())).then(|| u32::from_str_radix(number, 16).ok()).flatten().map(i64::from)
}

/// How many keys count as the user's, besides its two keyrings, once the kernel has collected those
/// that have ended. `None` if that is zero, or not known.
fn kept_keys(uid: ContainerUid) -> Option<u32> {
    const OWN: u32 = 2;
    let end = Instant::now() + COLLECTION_TIMEOUT;
    loop {
        let users = fs::read_to_string("/proc/key-users").ok()?;
        let kept = users.lines().find_map(|line| counted(line, uid))?.saturating_sub(OWN);
        match kept {
            0 => return None,
            kept if Instant::now() >= end => return Some(kept),
            _ => sleep(COLLECTION_INTERVAL),
        }
    }
}

/// `<uid>: <usage> <nkeys>/<nikeys> <qnkeys>/<maxkeys> <qnbytes>/<maxbytes>` of proc_key-users(5).
fn counted(line: &str, uid: ContainerUid) -> Option<u32> {
    let (owner, counts) = line.split_once(':')?;
    let counted = counts.split_whitespace().nth(2)?.split_once('/')?.0;
    (owner.trim().parse() == Ok(uid.get())).then(|| counted.parse().ok()).flatten()
}

fn forget_last_login(uid: ContainerUid) -> std::io::Result<()> {
    let file = match File::options().read(true).write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(LASTLOG) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let (at, mut record) = (RECORD as u64 * u64::from(uid.get()), [0; RECORD]);
    // Beyond its end and in its holes there is nothing to remove, and writing zeros there would
    // allocate blocks.
    match file.read_exact_at(&mut record, at) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
        Ok(()) if record == [0; RECORD] => Ok(()),
        Ok(()) => file.write_all_at(&[0; RECORD], at),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_user() {
        let uid = ContainerUid::new(30001).unwrap();
        let line =
            |owner: &str, name: &str| format!("1eac20a0 I--Q---     8 perm 3f030000 {owner} 65534 keyring   {name} 1");
        assert_eq!(key_of(&line("30001", "_ses:"), uid), Some(0x1eac_20a0));
        assert_eq!(key_of("3e7c62bc I--Q---     1   2d 3f3f3f3f 30001 30001 user      a b: 3", uid), Some(0x3e7c_62bc));
        assert_eq!(
            key_of("3e7c62bc I--Q---     1   2d 3f3f3f3f 30001 30001 user      _uid.30001: 5", uid),
            Some(0x3e7c_62bc)
        );
        for (owner, name) in [("30000", "_ses:"), ("0", "30001")] {
            assert_eq!(key_of(&line(owner, name), uid), None, "{owner} {name}");
        }
        assert_eq!(key_of("", uid), None);
        assert_eq!(key_of("-3 I--Q---     1 perm 3f3f3f3f 30001 30001 user      a: 3", uid), None);
        assert_eq!(counted("30001:   200 200/199 198/200 12549/20000", uid), Some(198));
        assert_eq!(counted("30000:   200 200/200 199/200 12549/20000", uid), None);
    }
}
