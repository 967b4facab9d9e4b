//! How much of the disk a container may use: the user quota of the file system of /containers,
//! quotactl(2).

use crate::rootfs::RootFs;
use crate::sys;
use crate::vassal::size;
use anyhow::{Context, Result, bail};
use join::mountinfo::device_of;
use nix::errno::Errno;
use shared::ContainerUid;
use shared::settings::CONTAINERS;
use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Whether limits hold there, and which one a user has.
#[derive(Clone, Debug)]
pub struct State {
    directory: Rc<OwnedFd>,
    device: String,
    is_on: bool,
    limit: Option<u64>,
}

/// The quota of this user.
pub fn state(node: &RootFs, uid: ContainerUid) -> Result<State> {
    let directory = node.open(CONTAINERS).context(CONTAINERS)?;
    let device = device_of(CONTAINERS).context(CONTAINERS)?.unwrap_or_default();
    let is_on = sys::user_quota(&directory, &device).is_ok_and(|quota| quota.counts && quota.limits);
    let limit = if is_on { sys::disk_limit(&directory, &device, uid.get()).context("quotactl")? } else { 0 };
    Ok(State { directory: Rc::new(directory), device, is_on, limit: Some(limit).filter(|limit| *limit > 0) })
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

    /// In bytes, if there is one.
    pub const fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Whether that is the limit; the kernel keeps limits in whole blocks.
    pub fn is_limited_to(&self, bytes: u64) -> bool {
        self.limit == Some(sys::round_up_to_quota_block(bytes))
    }

    /// Sets the limit, in bytes; 0 is none.
    pub fn set(&self, uid: ContainerUid, bytes: u64) -> Result<()> {
        match sys::set_disk_limit(&self.directory, &self.device, uid.get(), bytes) {
            Err(Errno::ESRCH) => bail!("the user quota of {CONTAINERS} has been turned off"),
            other => other.context("set the limit on the disk"),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit {
            Some(limit) => f.write_str(&size(limit)),
            None if self.is_on => f.write_str("no limit: --disk 10G sets one"),
            None => write!(f, "no limit: the file system of {CONTAINERS} has no user quota"),
        }
    }
}
