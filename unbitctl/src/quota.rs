//! How much of the disk a container may use: the user quota of the file system of /containers,
//! quotactl(2).
//!
//! A limit on bytes comes with one on files. Empty files take no bytes, and with all files that a
//! file system can have one user would keep every other one from making any.

use crate::rootfs::RootFs;
use crate::sys::{self, DiskLimit, DiskQuota};
use crate::vassal::size;
use anyhow::{Context, Result, bail};
use join::mountinfo::device_of;
use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;
use shared::ContainerUid;
use shared::settings::CONTAINERS;
use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// The file system of /containers.
#[derive(Debug)]
pub struct Disk {
    directory: OwnedFd,
    /// Empty if it is on none.
    device: String,
}

impl Disk {
    /// Finds it.
    pub fn open(node: &RootFs) -> Result<Self> {
        let directory = node.open(CONTAINERS).context(CONTAINERS)?;
        Ok(Self { directory, device: device_of(CONTAINERS).context(CONTAINERS)?.unwrap_or_default() })
    }

    /// The quota of this user.
    pub fn quota(&self, uid: ContainerUid) -> nix::Result<DiskQuota> {
        sys::disk_quota(&self.directory, &self.device, uid.get())
    }
}

/// Whether limits hold there, and which one a user has.
#[derive(Clone, Debug)]
pub struct State {
    disk: Rc<Disk>,
    is_on: bool,
    limit: DiskLimit,
    space: Space,
}

/// All that a file system has room for.
#[derive(Clone, Copy, Debug)]
struct Space {
    bytes: u64,
    /// 0 if the file system has no fixed number of files.
    files: u64,
}

/// However little disk space a user may have, it may have some files.
const FEW_FILES: u64 = 1000;

impl Space {
    /// A limit on bytes, and the same share of the files.
    fn share(self, bytes: u64) -> DiskLimit {
        if bytes == 0 || self.files == 0 {
            return DiskLimit { bytes, files: 0 };
        }
        let share = u128::from(self.files) * u128::from(bytes) / u128::from(self.bytes.max(1));
        DiskLimit { bytes, files: u64::try_from(share).unwrap_or(u64::MAX).clamp(FEW_FILES, self.files.max(FEW_FILES)) }
    }
}

/// The quota of this user.
pub fn state(node: &RootFs, uid: ContainerUid) -> Result<State> {
    let disk = Disk::open(node)?;
    let is_on = sys::user_quota(&disk.directory, &disk.device).is_ok_and(|quota| quota.counts && quota.limits);
    let limit = match is_on.then(|| disk.quota(uid)) {
        None | Some(Err(Errno::ENOENT)) => DiskLimit::default(),
        Some(quota) => quota.context("quotactl")?.limit,
    };
    let all = fstatvfs(&disk.directory).context(CONTAINERS)?;
    let space = Space { bytes: all.blocks().saturating_mul(all.fragment_size()), files: all.files() };
    Ok(State { disk: Rc::new(disk), is_on, limit, space })
}

impl State {
    /// Refuses where a limit would not hold.
    pub fn must_be_on(&self) -> Result<()> {
        if !self.is_on {
            bail!(
                "no limit on the disk can be enforced: the file system of {CONTAINERS} has no user quota (unbitctl check says how to turn it on)"
            );
        }
        Ok(())
    }

    /// As it was found.
    pub const fn limit(&self) -> DiskLimit {
        self.limit
    }

    /// Whether there is any.
    pub fn is_limited(&self) -> bool {
        self.limit != DiskLimit::default()
    }

    /// Whether that is the limit; the kernel keeps limits in whole blocks. How many files a file
    /// system can have may change.
    pub fn is_limited_to(&self, bytes: u64) -> bool {
        self.limit.bytes == sys::round_up_to_quota_block(bytes)
            && (self.limit.files > 0 || self.space.share(bytes).files == 0)
    }

    /// Sets the limit, in bytes.
    pub fn set_bytes(&self, uid: ContainerUid, bytes: u64) -> Result<()> {
        self.set(uid, self.space.share(bytes))
    }

    /// Sets the limit.
    pub fn set(&self, uid: ContainerUid, limit: DiskLimit) -> Result<()> {
        match sys::set_disk_limit(&self.disk.directory, &self.disk.device, uid.get(), limit) {
            Err(Errno::ESRCH) => bail!("the user quota of {CONTAINERS} has been turned off"),
            other => other.context("set the limit on the disk"),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit.bytes {
            0 if self.is_on => f.write_str("no limit: --disk 10G sets one"),
            0 => write!(f, "no limit: the file system of {CONTAINERS} has no user quota"),
            bytes => f.write_str(&size(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_has_its_share_of_the_files() {
        const GB: u64 = 1 << 30;
        let ext4 = Space { bytes: 100 * GB, files: 6_553_600 };
        assert_eq!(ext4.share(10 * GB), DiskLimit { bytes: 10 * GB, files: 655_360 });
        assert_eq!(ext4.share(1 << 20), DiskLimit { bytes: 1 << 20, files: FEW_FILES });
        assert_eq!(ext4.share(1000 * GB).files, 6_553_600, "no more than there can be");
        assert_eq!(ext4.share(0), DiskLimit::default(), "no limit");
        let btrfs = Space { bytes: 100 * GB, files: 0 };
        assert_eq!(btrfs.share(10 * GB), DiskLimit { bytes: 10 * GB, files: 0 });
        assert_eq!(Space { bytes: 0, files: 5000 }.share(1).files, 5000);
    }
}
