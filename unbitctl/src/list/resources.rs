//! Reads what a container uses, from its cgroups and its quota.

use super::processes::Process;
use crate::quota::Disk;
use crate::rootfs::RootFs;
use anyhow::Result;
use join::cgroups::{Hierarchies, Version};
use join::proc::Proc;
use serde::Serialize;
use shared::ContainerUid;
use std::collections::HashMap;
use std::fs;
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
    /// How many containers there are below a cgroup.
    members: HashMap<PathBuf, usize>,
    /// Where their quotas are, if we may read them.
    disk: Option<Disk>,
}

impl Resources {
    /// Finds the cgroups and the file system.
    pub fn new(is_root: bool) -> Result<Self> {
        let hierarchies = Hierarchies::mounted().map_err(|refusal| anyhow::anyhow!(refusal.cause))?;
        Ok(Self {
            hierarchies,
            members: HashMap::new(),
            disk: if is_root { Disk::open(&RootFs::at(None)).ok() } else { None },
        })
    }

    /// Sees which cgroups containers have to themselves, by the pid 1 of each.
    pub fn count_members<'a>(&mut self, leaders: impl Iterator<Item = &'a Process>) {
        self.members.clear();
        for (process, parent) in leaders.filter_map(with_parent) {
            let groups = ["memory", "cpuacct", "pids"]
                .into_iter()
                .filter_map(|name| self.hierarchies.of(&process, &parent, name));
            let mut directories: Vec<_> = groups.flat_map(|(_, directories)| directories).collect();
            directories.sort();
            directories.dedup();
            directories.into_iter().for_each(|directory| *self.members.entry(directory).or_default() += 1);
        }
    }

    /// The cgroup that root's link leads to, in whichever hierarchy. Without one, the outermost
    /// cgroup in which no other container is: pid 1 of many engines is in one below that
    /// (init.scope).
    fn own<'a>(&self, directories: &'a [PathBuf], linked: Option<&Path>) -> Option<&'a PathBuf> {
        let is_linked = |directory: &&PathBuf| linked.is_some_and(|path| directory.ends_with(path));
        let is_its_own = |directory: &&PathBuf| self.members.get(*directory).is_none_or(|count| *count < 2);
        let linked = directories.iter().find(is_linked);
        linked.or_else(|| directories.iter().take_while(is_its_own).last()).or(directories.first())
    }

    /// Those of one controller.
    fn groups(&self, (process, parent): &(Proc, Proc), controller: &str, linked: Option<&Path>) -> Option<Groups> {
        let (version, directories) = self.hierarchies.of(process, parent, controller)?;
        let own = self.own(&directories, linked)?.clone();
        Some(Groups { version, directories, own })
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
        let Some(leader) = leader.and_then(with_parent) else { return used };
        let linked = link.and_then(|target| self.below_its_mount(target));
        let groups = |controller| self.groups(&leader, controller, linked.as_deref());
        if let Some(groups) = groups("memory") {
            (used.memory_bytes, used.memory_limit_bytes) = groups.used_of(&MEMORY);
            (used.memory_peak_bytes, used.oom_kills) = groups.peak_and_oom_kills();
        }
        if let Some(groups) = groups("pids") {
            (used.tasks, used.tasks_limit) = groups.used_of(&TASKS);
        }
        used.cpu_seconds = groups("cpuacct").and_then(|groups| groups.cpu_seconds());
        used
    }

    /// The path of a cgroup in its hierarchy; engines give it the same one in each.
    fn below_its_mount(&self, directory: &Path) -> Option<PathBuf> {
        let version_2 = self.hierarchies.version_2().and_then(|mount| directory.strip_prefix(mount).ok());
        let path = version_2.map(Path::to_owned).or_else(|| {
            // cgroup v1 has a mount for each hierarchy there.
            Some(directory.strip_prefix("/sys/fs/cgroup").ok()?.components().skip(1).collect())
        })?;
        (path.components().next().is_some()).then_some(path)
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

    fn cpu_seconds(&self) -> Option<f64> {
        match self.version {
            Version::One => Some(number(&self.own, "cpuacct.usage")? as f64 / 1e9),
            Version::Two => Some(field(&self.own, "cpu.stat", "usage_usec")? as f64 / 1e6),
        }
    }
}

/// A container's pid 1 and its parent.
fn with_parent(leader: &Process) -> Option<(Proc, Proc)> {
    Some((Proc::of(leader.pid).ok()?, Proc::of(leader.parent).ok()?))
}

/// cgroup v1 has no word for it: its number is 2^63, rounded down to a page.
pub const NO_LIMIT: u64 = 1 << 62;

/// The number in a cgroup's file; `None` for "max" as for a file that is not there.
fn number(directory: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
}

/// The number behind a word in a cgroup's file.
fn field(directory: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(directory.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_cgroup_of_its_own() {
        let path = |text: &str| PathBuf::from(text);
        let members = HashMap::from([(path("/cg/all"), 2), (path("/cg/all/1"), 1), (path("/cg/all/1/init.scope"), 1)]);
        let resources = Resources { hierarchies: Hierarchies::mounted().unwrap(), members, disk: None };
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
}
