//! What a container uses: of its cgroups, and of its quota.

use super::processes::Process;
use crate::engine;
use anyhow::Result;
use join::cgroups::{Hierarchies, Version};
use join::leader::Proc;
use join::mountinfo::Mount;
use nix::sys::quota::{QuotaType, quotactl_get};
use serde::Serialize;
use shared::ContainerUid;
use shared::settings::CONTAINERS;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// `None`: there is no such cgroup, limit or quota, or it is not for us to see.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize)]
pub struct Use {
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

/// The names of a controller's files, in version 1 and 2.
struct Names {
    controller: &'static str,
    used: [&'static str; 2],
    limit: [&'static str; 2],
}

const MEMORY: Names = Names {
    controller: "memory",
    used: ["memory.usage_in_bytes", "memory.current"],
    limit: ["memory.limit_in_bytes", "memory.max"],
};

const TASKS: Names =
    Names { controller: "pids", used: ["pids.current", "pids.current"], limit: ["pids.max", "pids.max"] };

/// Where to look.
pub struct Resources {
    hierarchies: Hierarchies,
    /// How many containers there are below a cgroup.
    members: HashMap<PathBuf, usize>,
    /// The device that holds the containers, if it is one with quotas that we may read.
    device: Option<PathBuf>,
}

impl Resources {
    /// Finds the cgroups and the device.
    pub fn new(is_root: bool) -> Result<Self> {
        let hierarchies = Hierarchies::mounted().map_err(|refusal| anyhow::anyhow!(refusal.cause))?;
        Ok(Self {
            hierarchies,
            members: HashMap::new(),
            device: if is_root { device_of_the_containers() } else { None },
        })
    }

    /// Sees which cgroups containers have to themselves, by the pid 1 of each.
    pub fn look<'a>(&mut self, leaders: impl Iterator<Item = &'a Process>) {
        self.members.clear();
        for (process, parent) in leaders.filter_map(both) {
            let groups = ["memory", "cpuacct", "pids"]
                .into_iter()
                .filter_map(|name| self.hierarchies.of(&process, &parent, name));
            let mut directories: Vec<_> = groups.flat_map(|(_, directories)| directories).collect();
            directories.sort();
            directories.dedup();
            directories.into_iter().for_each(|directory| *self.members.entry(directory).or_default() += 1);
        }
    }

    /// The cgroup that root's link leads to, in whichever hierarchy. Without one, the outermost cgroup in which no other container is: pid 1 of
    /// many engines is in one below that (init.scope).
    fn own<'a>(&self, directories: &'a [PathBuf], linked: Option<&Path>) -> Option<&'a PathBuf> {
        if let Some(directory) =
            directories.iter().find(|directory| linked.is_some_and(|path| directory.ends_with(path)))
        {
            return Some(directory);
        }
        let own =
            directories.iter().take_while(|directory| self.members.get(*directory).is_none_or(|count| *count < 2));
        own.last().or(directories.first())
    }

    /// What this container uses.
    pub fn of(&self, uid: ContainerUid, leader: Option<&Process>) -> Use {
        let quota =
            self.device.as_deref().and_then(|device| quotactl_get(QuotaType::USRQUOTA, device, uid.get() as i32).ok());
        let mut used = Use {
            quota_used_bytes: quota.and_then(|quota| quota.occupied_space()),
            // In blocks of 1 KiB (QIF_DQBLKSIZE of quotactl(2)); 0 is no limit.
            quota_limit_bytes: quota
                .and_then(|quota| quota.blocks_hard_limit())
                .filter(|blocks| *blocks > 0)
                .map(|blocks| blocks * 1024),
            ..Use::default()
        };
        if let Some((process, parent)) = leader.and_then(both) {
            let linked = engine::link_of(uid).and_then(|target| self.below_its_mount(&target));
            let linked = linked.as_deref();
            (used.memory_bytes, used.memory_limit_bytes) = self.used_of(&MEMORY, &process, &parent, linked);
            (used.tasks, used.tasks_limit) = self.used_of(&TASKS, &process, &parent, linked);
            (used.memory_peak_bytes, used.oom_kills) = self.memory(&process, &parent, linked).unwrap_or_default();
            used.cpu_seconds = self.cpu_seconds(&process, &parent, linked);
        }
        used
    }

    /// The path of a cgroup in its hierarchy; engines give it the same one in each.
    fn below_its_mount(&self, directory: &Path) -> Option<PathBuf> {
        let version_2 = self.hierarchies.version_2().and_then(|mount| directory.strip_prefix(mount).ok());
        let path = version_2.map(Path::to_owned).or_else(|| {
            // Version 1 has a mount for each hierarchy there.
            Some(directory.strip_prefix("/sys/fs/cgroup").ok()?.components().skip(1).collect())
        })?;
        (path.components().next().is_some()).then_some(path)
    }

    /// Of the nearest cgroup that has a limit, as its pid 1 may be in one below that; of the outermost of its own if none has.
    fn used_of(
        &self,
        names: &Names,
        process: &Proc,
        parent: &Proc,
        linked: Option<&Path>,
    ) -> (Option<u64>, Option<u64>) {
        let Some((version, directories)) = self.hierarchies.of(process, parent, names.controller) else {
            return (None, None);
        };
        let ([one, two], [limit_one, limit_two]) = (names.used, names.limit);
        let (used, limit) = match version {
            Version::One => (one, limit_one),
            Version::Two => (two, limit_two),
        };
        let limited = directories.iter().find_map(|directory| {
            let limit = number(directory, limit).filter(|limit| *limit < NO_LIMIT)?;
            Some((directory, limit))
        });
        match limited {
            Some((directory, limit)) => (number(directory, used), Some(limit)),
            None => (self.own(&directories, linked).and_then(|own| number(own, used)), None),
        }
    }

    /// The peak, and how often memory was short: of the outermost of its own cgroups. Those of version 1 do not count for the ones below.
    fn memory(&self, process: &Proc, parent: &Proc, linked: Option<&Path>) -> Option<(Option<u64>, Option<u64>)> {
        let (version, directories) = self.hierarchies.of(process, parent, MEMORY.controller)?;
        let own = self.own(&directories, linked)?;
        Some(match version {
            Version::One => {
                let until_own = directories.iter().take_while(|directory| *directory != own).chain([own]);
                let kills: Vec<_> =
                    until_own.filter_map(|directory| field(directory, "memory.oom_control", "oom_kill")).collect();
                let kills = (!kills.is_empty()).then(|| kills.iter().sum());
                (number(own, "memory.max_usage_in_bytes"), kills)
            }
            Version::Two => (number(own, "memory.peak"), field(own, "memory.events", "oom_kill")),
        })
    }

    fn cpu_seconds(&self, process: &Proc, parent: &Proc, linked: Option<&Path>) -> Option<f64> {
        match self.hierarchies.of(process, parent, "cpuacct")? {
            (Version::One, directories) => Some(number(self.own(&directories, linked)?, "cpuacct.usage")? as f64 / 1e9),
            (Version::Two, directories) => {
                Some(field(self.own(&directories, linked)?, "cpu.stat", "usage_usec")? as f64 / 1e6)
            }
        }
    }
}

/// A container's pid 1 and its parent.
fn both(leader: &Process) -> Option<(Proc, Proc)> {
    Some((Proc::of(leader.pid).ok()?, Proc::of(leader.parent).ok()?))
}

/// Version 1 has no word for it: its number is 2^63, rounded down to a page.
const NO_LIMIT: u64 = 1 << 62;

/// The number in a cgroup's file; `None` for "max" as for a file that is not there.
fn number(directory: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
}

/// The number behind a word in a cgroup's file.
fn field(directory: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(directory.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
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
    fn the_outermost_cgroup_of_its_own() {
        let path = |text: &str| PathBuf::from(text);
        let members = HashMap::from([(path("/cg/all"), 2), (path("/cg/all/1"), 1), (path("/cg/all/1/init.scope"), 1)]);
        let resources = Resources { hierarchies: Hierarchies::mounted().unwrap(), members, device: None };
        let directories = ["/cg/all/1/init.scope", "/cg/all/1", "/cg/all"].map(PathBuf::from);
        assert_eq!(resources.own(&directories, None), Some(&path("/cg/all/1")));
        assert_eq!(resources.own(&directories[2..], None), Some(&path("/cg/all")), "better than none");
        // A slice of systemd's has services in it that are no containers.
        let unit = ["/cg/system.slice/web1.service/init", "/cg/system.slice/web1.service", "/cg/system.slice"];
        let linked = Some(Path::new("system.slice/web1.service"));
        assert_eq!(resources.own(&unit.map(PathBuf::from), linked), Some(&path("/cg/system.slice/web1.service")));
        assert_eq!(resources.own(&directories, linked), Some(&path("/cg/all/1")), "the link leads elsewhere");
        assert_eq!(resources.below_its_mount(Path::new("/etc")), None);
    }

    #[test]
    fn the_device_is_found_by_its_number() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 8:17 / /containers rw shared:1 - xfs /dev/sdb1 rw,usrquota\nodd\n";
        assert_eq!(source(mounts, nix::sys::stat::makedev(8, 17)), Some("/dev/sdb1".to_owned()));
        assert_eq!(source(mounts, nix::sys::stat::makedev(8, 2)), None);
    }
}
