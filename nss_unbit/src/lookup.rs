//! Whether a container is here: one `stat` of its home.

use crate::abi::Failure;
use rustix::io::Errno;
use shared::{ContainerUid, settings};

/// The container, if it is here.
///
/// Only a system that can tell says that there is no such account: not one that answers EACCES, EIO or ELOOP, and not one
/// where the whole folder is missing, because it is not mounted, say.
pub fn present(container: ContainerUid) -> Result<ContainerUid, Failure> {
    match stat(container.home().as_c_str()) {
        Ok(found) if container.is_owner_of(found.st_mode, found.st_uid, found.st_gid) => Ok(container),
        Ok(_) => Err(Failure::ABSENT),
        Err(Errno::NOENT | Errno::NOTDIR) if stat(settings::CONTAINERS_PATH).is_ok() => Err(Failure::ABSENT),
        Err(errno) => Err(Failure::unavailable(errno.raw_os_error())),
    }
}

/// The container of this account name, if it is here.
pub fn by_name(name: &[u8]) -> Result<ContainerUid, Failure> {
    present(ContainerUid::parse(name).ok_or(Failure::ABSENT)?)
}

/// The container of this uid or gid, if it is here.
pub fn by_id(id: u32) -> Result<ContainerUid, Failure> {
    present(ContainerUid::new(id).ok_or(Failure::ABSENT)?)
}

#[cfg(test)]
use crate::stat;
#[cfg(not(test))]
use rustix::fs::stat;
