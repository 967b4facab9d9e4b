//! Whether this node has a container: one stat(2) of its home directory, and for a second name one
//! readlink(2) before that.
//!
//! No record is made here.

use crate::abi::Failure;
use core::ffi::CStr;
use rustix::fs::Stat;
use rustix::io::Errno;
use shared::{ContainerUid, Home, LINK_TEXT_SIZE, SecondName, settings};

/// The account of a container that exists.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    /// Its uid and gid.
    pub container: ContainerUid,
    /// Its home, and with that its name.
    pub home: Home,
}

/// The account of the container, if it exists.
///
/// Only ENOENT below an existing directory means that there is no such account. EACCES, EIO, ELOOP,
/// or a missing `/containers` (which may not be mounted) mean that the service is unavailable.
#[inline(always)] // so that no `Account` is copied between stack frames
pub fn by_uid(container: ContainerUid) -> Result<Account, Failure> {
    let home = container.home();
    match stat_uninterrupted(home.as_c_str()) {
        Ok(found) if container.owns_directory(found.st_mode, found.st_uid, found.st_gid) => {
            Ok(Account { container, home })
        }
        Ok(_) => Err(Failure::ABSENT),
        Err(Errno::NOENT | Errno::NOTDIR) if stat_uninterrupted(settings::CONTAINERS_PATH).is_ok() => {
            Err(Failure::ABSENT)
        }
        Err(errno) => Err(Failure::unavailable(errno.raw_os_error())),
    }
}

/// The account of the container that has this second name.
///
/// Nearly every name that gets here is in no database, and must cost no more than the one
/// readlink(2). So a missing /containers is not reported as unavailable here.
pub fn by_second_name(name: &SecondName) -> Result<Account, Failure> {
    let mut text = [0; LINK_TEXT_SIZE];
    let container = loop {
        match readlink(name.link_path(), &mut text) {
            Ok(length) => break text.get(..length).and_then(SecondName::target_of),
            Err(Errno::INTR) => {}
            Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL) => break None, // EINVAL: it is there, and no link
            Err(errno) => return Err(Failure::unavailable(errno.raw_os_error())),
        }
    };
    container.ok_or(Failure::ABSENT).and_then(by_uid)
}

/// Reads a link and returns the length of its text, which is truncated as by readlink(2).
#[cfg(not(test))]
fn readlink(path: &CStr, text: &mut [u8]) -> rustix::io::Result<usize> {
    rustix::fs::readlinkat_raw(rustix::fs::CWD, path, text)
}

/// stat(2), repeated after EINTR: if this service failed, a later one would answer that there is no
/// such account.
#[inline(always)]
fn stat_uninterrupted(path: &CStr) -> rustix::io::Result<Stat> {
    loop {
        match stat(path) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
use crate::{readlink, stat};
#[cfg(not(test))]
use rustix::fs::stat;
