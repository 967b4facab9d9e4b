//! What a container uses: of its cgroups, and of its quota.

use super::processes::Process;
use anyhow::Result;
use join::cgroups::{Hierarchies, Version};
use join::leader::Proc;
use join::mountinfo::Mount;
use nix::sys::quota::{QuotaType, quotactl_get};
use serde::Serialize;
use shared::ContainerUid;
use shared::settings::CONTAINERS;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// In bytes and seconds. `None`: there is no such cgroup, limit or quota, or it is not for us to see.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize)]
pub struct Use {
    pub memory: Option<u64>,
    pub memory_limit: Option<u64>,
    pub cpu_seconds: Option<f64>,
    pub quota_used: Option<u64>,
    pub quota_limit: Option<u64>,
}

/// Where to look.
pub struct Resources {
    hierarchies: Hierarchies,
    /// The device that holds the containers, if it is one with quotas that we may read.
    device: Option<PathBuf>,
}

impl Resources {
    /// Finds the cgroups and the device.
    pub fn new(is_root: bool) -> Result<Self> {
        let hierarchies = Hierarchies::mounted().map_err(|refusal| anyhow::anyhow!(refusal.cause))?;
        Ok(Self { hierarchies, device: if is_root { device_of_the_containers() } else { None } })
    }

    /// What this container uses.
    pub fn of(&self, uid: ContainerUid, leader: Option<&Process>) -> Use {
        let quota =
            self.device.as_deref().and_then(|device| quotactl_get(QuotaType::USRQUOTA, device, uid.get() as i32).ok());
        let mut used = Use {
            quota_used: quota.and_then(|quota| quota.occupied_space()),
            // In blocks of 1 KiB (QIF_DQBLKSIZE of quotactl(2)); 0 is no limit.
            quota_limit: quota
                .and_then(|quota| quota.blocks_hard_limit())
                .filter(|blocks| *blocks > 0)
                .map(|blocks| blocks * 1024),
            ..Use::default()
        };
        let processes = leader.and_then(|leader| Some((Proc::of(leader.pid).ok()?, Proc::of(leader.parent).ok()?)));
        if let Some((process, parent)) = processes {
            (used.memory, used.memory_limit) = self.memory(&process, &parent);
            used.cpu_seconds = self.cpu_seconds(&process, &parent);
        }
        used
    }

    /// Of the nearest cgroup of its own that has a limit, as its pid 1 may be in one below that; of the innermost if none has.
    fn memory(&self, process: &Proc, parent: &Proc) -> (Option<u64>, Option<u64>) {
        let Some((version, directories)) = self.hierarchies.of(process, parent, "memory") else { return (None, None) };
        let (usage, limit) = match version {
            Version::One => ("memory.usage_in_bytes", "memory.limit_in_bytes"),
            Version::Two => ("memory.current", "memory.max"),
        };
        let limited = directories.iter().find_map(|directory| {
            let limit = number(directory, limit).filter(|limit| *limit < NO_LIMIT)?;
            Some((directory, limit))
        });
        match limited {
            Some((directory, limit)) => (number(directory, usage), Some(limit)),
            None => (directories.first().and_then(|own| number(own, usage)), None),
        }
    }

    fn cpu_seconds(&self, process: &Proc, parent: &Proc) -> Option<f64> {
        match self.hierarchies.of(process, parent, "cpuacct")? {
            (Version::One, directories) => Some(number(directories.first()?, "cpuacct.usage")? as f64 / 1e9),
            (Version::Two, directories) => {
                let text = fs::read_to_string(directories.first()?.join("cpu.stat")).ok()?;
                let micros =
                    text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse::<u64>().ok())?;
                Some(micros as f64 / 1e6)
            }
        }
    }
}

/// Version 1 has no word for it: its number is 2^63, rounded down to a page.
const NO_LIMIT: u64 = 1 << 62;

/// The number in a cgroup's file; `None` for "max" as for a file that is not there.
fn number(directory: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
}

fn device_of_the_containers() -> Option<PathBuf> {
    let device = fs::metadata(CONTAINERS).ok()?.dev();
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    source(&mounts, device).map(PathBuf::from).filter(|source| source.is_absolute())
}

fn source(mounts: &str, device: u64) -> Option<String> {
    mounts.lines().filter_map(Mount::parse).find(|mount| mount.device == device).map(|mount| mount.source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_found_by_its_number() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 8:17 / /containers rw shared:1 - xfs /dev/sdb1 rw,usrquota\nodd\n";
        assert_eq!(source(mounts, nix::sys::stat::makedev(8, 17)), Some("/dev/sdb1".to_owned()));
        assert_eq!(source(mounts, nix::sys::stat::makedev(8, 2)), None);
    }
}
