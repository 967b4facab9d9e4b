//! Prepare: the cgroups of the container's pid 1, in every mounted hierarchy, of whatever version and under any name.
//!
//! The files are opened in the monitor, on the host, and written in sshd's child, which so moves itself: the monitor stays in sshd's own
//! cgroup, where no tenant's memory limit can kill it.

use crate::leader::{Leader, Proc};
use crate::mountinfo::Mount;
use crate::refusal::{Reason, Refusal, Step};
use crate::sys::retry;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// One hierarchy's `cgroup.procs`, open for writing.
#[derive(Debug)]
pub struct Cgroup {
    /// As in /proc/PID/cgroup: "memory:/30001", or ":/30001" for version 2.
    pub name: String,
    procs: File,
}

impl Cgroup {
    /// Moves the calling process: 0 stands for the writer in both versions of cgroups(7), whatever its pid namespace.
    pub fn join(&mut self) -> Result<(), Refusal> {
        self.procs.write_all(b"0").step(Reason::Broken, format_args!("join the container's cgroup {}", self.name))
    }
}

/// Their names, as in /proc/PID/cgroup.
pub fn names(cgroups: &[Cgroup]) -> String {
    cgroups.iter().map(|cgroup| cgroup.name.as_str()).collect::<Vec<_>>().join(" ")
}

/// Opens the cgroups to join. With `own_required`, the container must be in one that neither its parent process nor we are in.
pub fn open_all(leader: &Leader, own_required: bool) -> Result<Vec<Cgroup>, Refusal> {
    let read = |process: &Proc, reason| Membership::all_of(process).step(reason, "read /proc/PID/cgroup");
    let memberships = read(&leader.proc, Reason::NotRunning)?;
    let ours = Proc::of_self().step(Reason::Broken, "open /proc/self")?;
    let mounts = Hierarchies::mounted()?.0;
    let ours = read(&ours, Reason::Broken)?;
    let parent = match leader.parent()? {
        0 => Vec::new(),
        parent => Proc::of(parent)
            .step(Reason::NotRunning, format_args!("open /proc/{parent}, the parent of its pid 1"))
            .and_then(|parent| read(&parent, Reason::NotRunning))?,
    };

    let mut cgroups = Vec::new();
    let (mut has_own, mut is_in_sight) = (false, false);
    for membership in &memberships {
        let candidates: Vec<_> = mounts.iter().filter(|mount| mount.shows(membership)).collect();
        if candidates.is_empty() {
            continue; // not mounted: nothing that anybody could have set a limit in
        }
        is_in_sight = true;
        if ours.contains(membership) {
            continue; // sshd's child is in it by birth
        }
        has_own |= membership.is_own(&parent);
        let mut procs = Err(Errno::ENOENT);
        for mount in candidates {
            procs = procs.or_else(|_| mount.open(membership));
        }
        let procs =
            procs.step(Reason::Broken, format_args!("open its cgroup {} in any mount of it", membership.name()))?;
        cgroups.push(Cgroup { name: membership.name(), procs });
    }
    if own_required && !is_in_sight {
        let cause = "none of its cgroups is in sight (not mounted, or whoever looks for them is in a cgroup namespace of its own)";
        return Err(Refusal::new(Reason::Misconfigured, cause));
    }
    if own_required && !has_own {
        return Err(Refusal::new(Reason::NotTrusted, "it has no cgroup of its own (cgroup=optional would let it in)"));
    }
    Ok(cgroups)
}

/// A line of /proc/PID/cgroup: `4:memory:/30001`, `3:name=systemd:/30001`, or `0::/30001` for version 2.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Membership {
    controllers: String,
    path: String,
}

impl Membership {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(3, ':');
        let (_hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self { controllers: controllers.to_owned(), path: path.to_owned() })
    }

    fn all_of(process: &Proc) -> std::io::Result<Vec<Self>> {
        Ok(process.read("cgroup")?.lines().filter_map(Self::parse).collect())
    }

    /// Whether it is not where the process's parent is: a container's own, and not its Emperor's.
    fn is_own(&self, parent: &[Self]) -> bool {
        self.path != "/" && !parent.contains(self)
    }

    fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|name| name == controller)
    }

    fn name(&self) -> String {
        format!("{}:{}", self.controllers, self.path)
    }
}

/// The mounted hierarchies, to find the files of a process's cgroups in.
#[derive(Debug)]
pub struct Hierarchies(Vec<Hierarchy>);

/// Which of the two versions of cgroups(7) a directory's files are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// A hierarchy per controller or some.
    One,
    /// The unified hierarchy.
    Two,
}

impl Hierarchies {
    /// As /proc/self/mountinfo has them.
    pub fn mounted() -> Result<Self, Refusal> {
        let mounts = Proc::of_self()
            .map_err(std::io::Error::from)
            .and_then(|own| own.read("mountinfo"))
            .step(Reason::Broken, "read /proc/self/mountinfo")?;
        Ok(Self(mounts.lines().filter_map(Mount::parse).filter_map(Hierarchy::of).collect()))
    }

    /// Where a controller has the process, if it is there by itself: its own cgroup, and those around it that `parent`, which started it, is
    /// not in. Of version 2 if version 1 has none, whatever controllers it has there.
    pub fn of(&self, process: &Proc, parent: &Proc, controller: &str) -> Option<(Version, Vec<PathBuf>)> {
        let (memberships, parents) = (Membership::all_of(process).ok()?, Membership::all_of(parent).ok()?);
        let own = |membership: &Membership| self.around(membership, &parents);
        let one = memberships.iter().find(|membership| membership.has(controller)).and_then(own);
        let two = || memberships.iter().find(|membership| membership.is_v2()).and_then(own);
        one.map(|directories| (Version::One, directories)).or_else(|| Some((Version::Two, two()?)))
    }

    fn around(&self, membership: &Membership, parents: &[Membership]) -> Option<Vec<PathBuf>> {
        let parent = parents.iter().find(|other| other.controllers == membership.controllers)?;
        let hierarchy = self.0.iter().find(|hierarchy| hierarchy.shows(membership))?;
        let own: Vec<_> = Path::new(&membership.path)
            .ancestors()
            .take_while(|path| !Path::new(&parent.path).starts_with(path))
            .map_while(|path| Some(Path::new(&hierarchy.mount.point).join(hierarchy.below(path.to_str()?)?)))
            .collect();
        (!own.is_empty()).then_some(own)
    }

    /// Whether a process is in a cgroup in which its parent is not, as a container has to be to be entered.
    pub fn has_own(&self, process: &Proc, parent: &Proc) -> std::io::Result<bool> {
        let parent = Membership::all_of(parent)?;
        let mut memberships = Membership::all_of(process)?.into_iter();
        Ok(memberships
            .any(|membership| membership.is_own(&parent) && self.0.iter().any(|shown| shown.shows(&membership))))
    }

    /// The controllers that are mounted as version 1.
    pub fn version_1(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|hierarchy| hierarchy.controllers.iter().flatten()).map(String::as_str)
    }

    /// Where version 2 is mounted.
    pub fn version_2(&self) -> Option<&str> {
        self.0.iter().find(|hierarchy| hierarchy.controllers.is_none()).map(|hierarchy| hierarchy.mount.point.as_str())
    }
}

/// A mount that shows a cgroup hierarchy, or a part of one.
#[derive(Debug)]
struct Hierarchy {
    mount: Mount,
    /// The controllers and name of version 1; `None` for version 2.
    controllers: Option<Vec<String>>,
}

impl Hierarchy {
    fn of(mount: Mount) -> Option<Self> {
        let controllers = match mount.filesystem.as_str() {
            "cgroup2" => None,
            "cgroup" => Some(mount.super_options.split(',').map(str::to_owned).collect()),
            _ => return None,
        };
        Some(Self { mount, controllers })
    }

    /// Whether it is the membership's hierarchy, and shows the part of it where the membership's cgroup is.
    fn shows(&self, membership: &Membership) -> bool {
        let same_hierarchy = match &self.controllers {
            None => membership.is_v2(),
            Some(options) => {
                !membership.is_v2()
                    && membership.controllers.split(',').all(|asked| options.iter().any(|has| has == asked))
            }
        };
        same_hierarchy && self.relative(membership).is_some()
    }

    /// The membership's path as seen from the mount point.
    fn relative<'a>(&self, membership: &'a Membership) -> Option<&'a str> {
        self.below(&membership.path)
    }

    fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        if path.split('/').any(|name| name == "..") {
            return None; // outside our cgroup namespace
        }
        let rest = path.strip_prefix(self.mount.root.trim_end_matches('/'))?;
        if rest.is_empty() || rest.starts_with('/') { Some(rest.trim_start_matches('/')) } else { None }
    }

    /// Opens the cgroup's `cgroup.procs`, unless something else is mounted over it (EXDEV).
    fn open(&self, membership: &Membership) -> nix::Result<File> {
        let directory = format!("{}/{}", self.mount.point, self.relative(membership).ok_or(Errno::ENOENT)?);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = retry(|| open(directory.as_str(), flags, Mode::empty()))?;
        if retry(|| fstat(&directory))?.st_dev != self.mount.device {
            return Err(Errno::EXDEV);
        }
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        retry(|| openat(&directory, "cgroup.procs", flags, Mode::empty())).map(File::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: &str = "34 30 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:10 - cgroup cgroup rw,memory";
    const CPU: &str = "35 30 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct,clone_children";
    const SYSTEMD: &str = "36 30 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd";
    const UNIFIED: &str = "37 30 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate";
    const SUBTREE: &str = "38 30 0:29 /node/a\\040b /mnt/x\\134y rw - cgroup cgroup rw,memory";
    const OTHER: &str = "39 30 8:1 / / rw - ext4 /dev/sda1 rw,memory";

    fn hierarchy(line: &str) -> Hierarchy {
        Mount::parse(line).and_then(Hierarchy::of).unwrap()
    }

    fn membership(line: &str) -> Membership {
        Membership::parse(line).unwrap()
    }

    #[test]
    fn each_line_finds_its_hierarchy_and_no_other() {
        let mounts = [MEMORY, CPU, SYSTEMD, UNIFIED].map(hierarchy);
        for (line, shown) in [
            ("9:memory:/30001", [true, false, false, false]),
            ("4:cpu,cpuacct:/30001", [false, true, false, false]),
            ("1:name=systemd:/30001", [false, false, true, false]),
            ("0::/30001", [false, false, false, true]),
            ("5:pids:/30001", [false; 4]),
            ("9:memory:/../30001", [false; 4]),
        ] {
            assert_eq!(mounts.each_ref().map(|mount| mount.shows(&membership(line))), shown, "{line}");
        }
        assert!(Mount::parse(OTHER).and_then(Hierarchy::of).is_none());
    }

    #[test]
    fn a_mount_of_a_part_shows_only_what_is_below_it() {
        let part = hierarchy(SUBTREE);
        assert_eq!((part.mount.root.as_str(), part.mount.point.as_str()), ("/node/a b", "/mnt/x\\y"));
        for (path, relative) in [
            ("/node/a b/30001", Some("30001")),
            ("/node/a b", Some("")),
            ("/node/a bc/30001", None),
            ("/node", None),
            ("/30001", None),
            ("/node/a b/../../30001", None),
        ] {
            let membership = membership(&format!("9:memory:{path}"));
            assert_eq!(part.relative(&membership), relative, "{path}");
        }
    }

    #[test]
    fn a_process_has_to_itself_what_its_parent_is_not_in() {
        let hierarchies = Hierarchies(vec![hierarchy(MEMORY), hierarchy(UNIFIED)]);
        let parents = [membership("9:memory:/system/emperor"), membership("0::/system")];
        let own = |line: &str| hierarchies.around(&membership(line), &parents).unwrap_or_default();
        let memory = "/sys/fs/cgroup/memory";
        assert_eq!(own("9:memory:/a/30001"), [format!("{memory}/a/30001"), format!("{memory}/a")].map(PathBuf::from));
        assert_eq!(own("9:memory:/system/30001"), [PathBuf::from(format!("{memory}/system/30001"))]);
        for shared in ["9:memory:/system/emperor", "9:memory:/system", "9:memory:/", "0::/system", "5:pids:/30001"] {
            assert_eq!(own(shared), [] as [PathBuf; 0], "{shared}");
        }
        assert_eq!(own("0::/30001"), [PathBuf::from("/sys/fs/cgroup/unified/30001")]);
    }

    #[test]
    fn a_path_may_hold_colons() {
        assert_eq!(membership("0::/a:b:c").path, "/a:b:c");
    }
}
