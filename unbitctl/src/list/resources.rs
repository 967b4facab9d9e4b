//! Reads what a container uses, from its cgroups and its quota.

use super::processes::Process;
use crate::quota::Disk;
use crate::rootfs::RootFs;
use anyhow::Result;
use join::cgroup_usage::{self, field, number};
use join::cgroups::{Hierarchies, Version};
use join::proc::Proc;
use serde::Serialize;
use shared::ContainerUid;
use std::path::{Path, PathBuf};

/// `None`: there is no such cgroup, limit or quota, or it is not for us to see.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize)]
pub struct Usage {
    pub memory_bytes: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    /// The most that it ever was.
    pub memory_peak_bytes: Option<u64>,
    /// Processes that the kernel has killed because memory was short.
    pub oom_kills: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    pub tasks_limit: Option<u64>,
    pub cpu_seconds: Option<f64>,
    pub quota_used_bytes: Option<u64>,
    pub quota_limit_bytes: Option<u64>,
}

/// The files of a controller with the usage and the limit.
struct Files {
    version_1: [&'static str; 2],
    version_2: [&'static str; 2],
}

const MEMORY: Files = Files {
    version_1: ["memory.usage_in_bytes", "memory.limit_in_bytes"],
    version_2: ["memory.current", "memory.max"],
};
const TASKS: Files = Files { version_1: ["pids.current", "pids.max"], version_2: ["pids.current", "pids.max"] };

/// Where to look.
pub struct Resources {
    hierarchies: Hierarchies,
    /// Where their quotas are, if we may read them.
    disk: Option<Disk>,
}

impl Resources {
    /// Finds the cgroups and the file system.
    pub fn new(is_root: bool) -> Result<Self> {
        let hierarchies = Hierarchies::mounted()?;
        Ok(Self { hierarchies, disk: if is_root { Disk::open(&RootFs::at(None)).ok() } else { None } })
    }

    /// What this container uses.
    pub fn usage(&self, uid: ContainerUid, leader: Option<&Process>, link: Option<&Path>) -> Usage {
        let quota = self.disk.as_ref().and_then(|disk| disk.quota(uid).ok());
        let mut used = Usage {
            quota_used_bytes: quota.map(|quota| quota.used_bytes),
            // 0 is no limit.
            quota_limit_bytes: quota.map(|quota| quota.limit.bytes).filter(|bytes| *bytes > 0),
            ..Usage::default()
        };
        let Some((process, parent)) = leader.and_then(with_parent) else { return used };
        let Some(cgroups) = self.hierarchies.of_process(&process, &parent) else { return used };
        let linked = link.and_then(|target| cgroup_usage::path_of_link(&self.hierarchies, target));
        let groups = |controller| {
            let (version, directories) = cgroups.for_controller(controller)?;
            let own = cgroup_usage::own(&directories, linked.as_deref())?.clone();
            Some(Groups { version, directories, own })
        };
        if let Some(groups) = groups("memory") {
            (used.memory_bytes, used.memory_limit_bytes) = groups.used_of(&MEMORY);
            (used.memory_peak_bytes, used.oom_kills) = groups.peak_and_oom_kills();
        }
        if let Some(groups) = groups("pids") {
            (used.tasks, used.tasks_limit) = groups.used_of(&TASKS);
        }
        let cpu = groups("cpuacct").and_then(|groups| cgroup_usage::cpu_nanoseconds(groups.version, &groups.own));
        used.cpu_seconds = cpu.map(|nanoseconds| nanoseconds as f64 / 1e9);
        used
    }
}

/// The cgroups around a container's pid 1 in one hierarchy, its own first.
struct Groups {
    version: Version,
    directories: Vec<PathBuf>,
    /// The outermost that is the container's.
    own: PathBuf,
}

impl Groups {
    /// Usage and limit of the nearest cgroup with a limit, because pid 1 may be in a sub-cgroup of
    /// it. Without any limit, the usage of the container's outermost cgroup.
    fn used_of(&self, files: &Files) -> (Option<u64>, Option<u64>) {
        let [used, limit] = match self.version {
            Version::One => files.version_1,
            Version::Two => files.version_2,
        };
        let limited = self.directories.iter().find_map(|directory| {
            let limit = number(directory, limit).filter(|limit| *limit < NO_LIMIT)?;
            Some((directory, limit))
        });
        match limited {
            Some((directory, limit)) => (number(directory, used), Some(limit)),
            None => (number(&self.own, used), None),
        }
    }

    /// The peak, and how often memory was short: of the outermost of its own cgroups. Those of
    /// cgroup v1 do not count for the ones below.
    fn peak_and_oom_kills(&self) -> (Option<u64>, Option<u64>) {
        let own = &self.own;
        match self.version {
            Version::One => {
                let until_own = self.directories.iter().take_while(|directory| *directory != own).chain([own]);
                let kills: Vec<_> =
                    until_own.filter_map(|directory| field(directory, "memory.oom_control", "oom_kill")).collect();
                let kills = (!kills.is_empty()).then(|| kills.iter().sum());
                (number(own, "memory.max_usage_in_bytes"), kills)
            }
            Version::Two => (number(own, "memory.peak"), field(own, "memory.events", "oom_kill")),
        }
    }
}

/// A container's pid 1 and its parent.
fn with_parent(leader: &Process) -> Option<(Proc, Proc)> {
    Some((Proc::of(leader.pid).ok()?, Proc::of(leader.parent).ok()?))
}

/// cgroup v1 has no word for it: its number is 2^63, rounded down to a page.
pub const NO_LIMIT: u64 = 1 << 62;
