//! Prepare: the cgroups of the container's pid 1, in every mounted hierarchy, of either version.
//!
//! The files are opened in the monitor, on the node; the process that enters moves itself. The
//! monitor stays in sshd's own cgroup, where no tenant's memory limit can kill it.
//!
//! How a process joins decides what a login costs. A write to cgroup.procs takes
//! cgroup_threadgroup_rwsem and waits for all processors (8 ms). A thread that moves itself by
//! `tasks` (cgroup v1, Linux 5.5) and a process that clone3(2) creates in its cgroup (cgroup v2) do
//! not wait.
//!
//! This file does not look for pid 1.

use crate::mountinfo::Mount;
use crate::proc::{self, Proc};
use crate::refusal::{Context, Reason, Refusal};
use crate::sys::retry;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use shared::escape;
use std::cell::OnceCell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A cgroup of the container, open to be joined.
#[derive(Debug)]
pub struct Cgroup {
    /// As in /proc/PID/cgroup: "memory:/30001", or ":/30001" for cgroup v2.
    pub name: String,
    version: Version,
    directory: OwnedFd,
    /// `tasks` or `cgroup.procs`, open for writing.
    procs_file: File,
}

impl Cgroup {
    fn open(membership: &Membership, directory: OwnedFd) -> nix::Result<Self> {
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = |name| retry(|| openat(&directory, name, flags, Mode::empty())).map(File::from);
        let version = membership.version();
        let procs_file = match version {
            Version::One => file("tasks").or_else(|_| file("cgroup.procs"))?,
            Version::Two => file("cgroup.procs")?,
        };
        Ok(Self { name: membership.name(), version, directory, procs_file })
    }

    /// The directory, for a clone3(2) into the cgroup; `None` for cgroup v1.
    pub fn v2_directory(&self) -> Option<&OwnedFd> {
        (self.version == Version::Two).then_some(&self.directory)
    }

    /// Whether the process that joins must be root. cgroup v1 checks the process that opened the
    /// file instead.
    pub fn needs_root(&self) -> bool {
        self.version == Version::Two
    }

    /// Moves the calling process, which has one thread. In both versions of cgroups(7), 0 stands
    /// for the writer in any pid namespace.
    pub fn join(&mut self) -> Result<(), Refusal> {
        self.procs_file
            .write_all(b"0")
            .context(Reason::Broken, format_args!("join the container's cgroup {}", self.name))
    }

    /// Whether it is in this membership's hierarchy.
    fn is_in_hierarchy_of(&self, membership: &Membership) -> bool {
        self.name.split_once(':').is_some_and(|(controllers, _)| controllers == membership.controllers)
    }
}

/// Whether a cgroup is frozen, or, in cgroup v1, is being frozen.
fn is_frozen(directory: &OwnedFd, version: Version) -> std::io::Result<bool> {
    let file = match version {
        Version::One => "freezer.state",
        Version::Two => "cgroup.events",
    };
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut text = String::new();
    match retry(|| openat(directory, file, flags, Mode::empty())) {
        // A hierarchy without the freezer, the root cgroup of v2, or a kernel before 5.2:
        // none of them can be frozen.
        Err(Errno::ENOENT) => return Ok(false),
        opened => File::from(opened?).read_to_string(&mut text)?,
    };
    Ok(parse_frozen(&text, version))
}

pub(crate) fn parse_frozen(text: &str, version: Version) -> bool {
    let word = match version {
        Version::One => "F", // FREEZING or FROZEN, and not THAWED
        Version::Two => "frozen 1",
    };
    text.lines().any(|line| line.starts_with(word))
}

/// Refuses a process that is in a frozen cgroup of any hierarchy.
pub fn must_not_be_frozen(process: &Proc) -> Result<(), Refusal> {
    let has_freezer = |membership: &Membership| membership.is_v2() || membership.has("freezer");
    each_of(process, has_freezer, |membership, directory| {
        refuse_frozen(directory, membership.version(), &membership.name())
    })
}

fn refuse_frozen(directory: &OwnedFd, version: Version, name: &str) -> Result<(), Refusal> {
    let step = format_args!("ask whether its cgroup {name} is frozen");
    match is_frozen(directory, version).context(Reason::NotRunning, step)? {
        true => Err(Refusal::new(Reason::Paused, format!("its cgroup {name} is frozen"))),
        false => Ok(()),
    }
}

/// Whether a predicate holds for the directory of any of the process's cgroups of this version. The
/// other version is not looked for, because to find that a hierarchy is not mounted takes as long
/// as the node has mounts.
pub fn any_of(
    process: &Proc,
    version: Version,
    holds: impl Fn(&OwnedFd) -> nix::Result<bool>,
) -> Result<bool, Refusal> {
    let mut any = false;
    let look = |membership: &Membership, directory: &OwnedFd| {
        any |= holds(directory).context(Reason::Broken, format_args!("look at the cgroup {}", membership.name()))?;
        Ok(())
    };
    each_of(process, |membership| membership.version() == version, look)?;
    Ok(any)
}

/// Calls `found` with the directory of each of a process's cgroups that is asked for and mounted.
fn each_of(
    process: &Proc,
    is_asked_for: impl Fn(&Membership) -> bool,
    mut found: impl FnMut(&Membership, &OwnedFd) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let memberships = Membership::all_of(process).context(Reason::NotRunning, "read /proc/PID/cgroup")?;
    let ours = Proc::of_self().map_err(std::io::Error::from).and_then(|own| Membership::all_of(&own));
    let ours = ours.context(Reason::Broken, "read /proc/self/cgroup")?;
    let mounts = Mounts::default();
    for membership in memberships.iter().filter(|membership| is_asked_for(membership)) {
        if let Some(directory) = mounts.find(membership, &ours)? {
            found(membership, &directory)?;
        }
    }
    Ok(())
}

/// Their names, as in /proc/PID/cgroup.
pub fn names(cgroups: &[Cgroup]) -> String {
    cgroups.iter().map(|cgroup| cgroup.name.as_str()).collect::<Vec<_>>().join(" ")
}

/// Opens the cgroups of `pid_1` that this process is not in. With `own_required`, its parent (0:
/// not in our pid namespace) must not be in one of them.
pub fn open_all(pid_1: &Proc, parent: i32, own_required: bool) -> Result<Vec<Cgroup>, Refusal> {
    let read = |process: &Proc, reason| Membership::all_of(process).context(reason, "read /proc/PID/cgroup");
    let memberships = read(pid_1, Reason::NotRunning)?;
    let ours = Proc::of_self().context(Reason::Broken, "open /proc/self")?;
    let ours = read(&ours, Reason::Broken)?;
    let parent = match parent {
        0 => Vec::new(),
        parent => Proc::of(parent)
            .context(Reason::NotRunning, format_args!("open /proc/{parent}, the parent of its pid 1"))
            .and_then(|parent| read(&parent, Reason::NotRunning))?,
    };

    let mounts = Mounts::default();
    let mut cgroups = Vec::new();
    let mut has_own = false;
    // sshd's child inherits the cgroups that this process is in.
    for membership in memberships.iter().filter(|membership| !ours.contains(membership)) {
        if let Some(directory) = mounts.find(membership, &ours)? {
            has_own |= membership.is_own(&parent);
            let step = format!("open its cgroup {}", membership.name());
            cgroups.push(match Cgroup::open(membership, directory) {
                Err(errno @ Errno::EROFS) => {
                    let step = format!("{step} (does the service of this process have ProtectControlGroups=?)");
                    return Err(Refusal::failed(Reason::Misconfigured, step, errno));
                }
                opened => opened.context(Reason::Broken, step)?,
            });
        }
    }
    if own_required && cgroups.is_empty() && !mounts.show_any(&memberships)? {
        let cause = "none of its cgroups can be found (they are not mounted, or this process is in a cgroup namespace of its own)";
        return Err(Refusal::new(Reason::Misconfigured, cause));
    }
    if own_required && !has_own {
        return Err(Refusal::new(Reason::NotTrusted, "it has no cgroup of its own (cgroup=optional would allow that)"));
    }
    cgroups.iter().try_for_each(|cgroup| refuse_frozen(&cgroup.directory, cgroup.version, &cgroup.name))?;
    Ok(cgroups)
}

/// Checks after the join that this process is in the same cgroups as pid 1. `pid_1_cgroups` is its
/// open file `cgroup`. Both files are read now, because the cgroup namespace that was joined
/// changes every path in them.
pub fn must_be_joined(cgroups: &[Cgroup], own: &Proc, pid_1_cgroups: OwnedFd) -> Result<(), Refusal> {
    let ours = Membership::all_of(own).context(Reason::Broken, "read /proc/self/cgroup")?;
    let pid_1_cgroups = Membership::read(pid_1_cgroups).context(Reason::NotRunning, "read /proc/PID/cgroup")?;
    let is_missed = |cgroup: &&Cgroup| {
        let here = ours.iter().find(|membership| cgroup.is_in_hierarchy_of(membership));
        here.is_none_or(|here| !pid_1_cgroups.contains(here))
    };
    match cgroups.iter().find(is_missed) {
        Some(missed) => Err(Refusal::new(
            Reason::Broken,
            format!("the cgroup that was joined is not {} (is another one mounted in its place?)", missed.name),
        )),
        None => Ok(()),
    }
}

/// Where cgroups are mounted: below /sys/fs/cgroup on nearly every node. Only if they are not there
/// is mountinfo read, which grows with the containers.
#[derive(Default)]
struct Mounts(OnceCell<Vec<HierarchyMount>>);

impl Mounts {
    /// The directory of a cgroup; `None` if its hierarchy is not mounted, so that nobody can have
    /// set a limit in it.
    fn find(&self, membership: &Membership, ours: &[Membership]) -> Result<Option<OwnedFd>, Refusal> {
        if let Some(directory) = in_systemds_mount(membership, ours) {
            return Ok(Some(directory));
        }
        let candidates: Vec<_> = self.read()?.iter().filter(|mount| mount.shows(membership)).collect();
        if candidates.is_empty() {
            return Ok(None);
        }
        let mut directory = Err(Errno::ENOENT);
        for mount in candidates {
            directory = directory.or_else(|_| mount.open(membership));
        }
        let step = format!("open its cgroup {} in any mount of it", membership.name());
        directory.map(Some).context(Reason::Broken, step)
    }

    fn show_any(&self, memberships: &[Membership]) -> Result<bool, Refusal> {
        let mounts = self.read()?;
        Ok(memberships.iter().any(|membership| mounts.iter().any(|mount| mount.shows(membership))))
    }

    fn read(&self) -> Result<&[HierarchyMount], Refusal> {
        if self.0.get().is_none() {
            // It cannot fail: this process has one thread.
            let _ = self.0.set(Hierarchies::mounted()?.0);
        }
        Ok(self.0.get().map_or(&[], Vec::as_slice))
    }
}

/// The cgroup's directory in the place where systemd mounts the hierarchy. If our own cgroup is
/// below that place as well, the mount shows the root of the hierarchy. [`must_be_joined`] checks
/// the result.
fn in_systemds_mount(membership: &Membership, ours: &[Membership]) -> Option<OwnedFd> {
    const CGROUP: &str = "/sys/fs/cgroup";
    let own = ours.iter().find(|own| own.controllers == membership.controllers)?;
    let (filesystem, places) = match membership.is_v2() {
        true => (libc::CGROUP2_SUPER_MAGIC, [CGROUP.to_owned(), format!("{CGROUP}/unified")]),
        false => {
            let name = membership.controllers.strip_prefix("name=").unwrap_or(&membership.controllers);
            (libc::CGROUP_SUPER_MAGIC, [format!("{CGROUP}/{name}"), CGROUP.to_owned()])
        }
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let below = |place: &str, path: &str| {
        let path = format!("{place}{path}");
        let is_plain = path.split('/').all(|name| name != "..");
        is_plain.then(|| retry(|| open(path.as_str(), flags, Mode::empty())).ok()).flatten()
    };
    let is_it = |directory: &OwnedFd| {
        retry(|| fstatfs(directory)).is_ok_and(|status| status.filesystem_type() == FsType(filesystem as _))
    };
    places
        .iter()
        .filter(|place| below(place, &own.path).is_some_and(|own| is_it(&own)))
        .find_map(|place| below(place, &membership.path).filter(is_it))
}

/// The pids in the text of a cgroup.procs. 0 stands for a process outside our pid namespace, and is
/// left out.
pub fn pids_in(text: &str) -> impl Iterator<Item = i32> {
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0)
}

/// The version of a cgroup's directory.
pub fn version_of(directory: &OwnedFd) -> nix::Result<Version> {
    let filesystem = retry(|| fstatfs(directory))?.filesystem_type();
    Ok(if filesystem == FsType(libc::CGROUP2_SUPER_MAGIC as _) { Version::Two } else { Version::One })
}

/// A line of /proc/PID/cgroup: `4:memory:/30001`, `3:name=systemd:/30001`, or `0::/30001` for
/// cgroup v2.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Membership {
    pub(crate) controllers: String,
    pub(crate) path: String,
}

impl Membership {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(3, ':');
        let (_hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self { controllers: controllers.to_owned(), path: path.to_owned() })
    }

    fn all_of(process: &Proc) -> std::io::Result<Vec<Self>> {
        Self::read(process.open("cgroup")?)
    }

    fn read(file: OwnedFd) -> std::io::Result<Vec<Self>> {
        Ok(Self::all_in(&proc::read_whole(file)?))
    }

    /// Not by lines(), which strips a carriage return: a cgroup's name can end in one.
    pub(crate) fn all_in(text: &str) -> Vec<Self> {
        text.split('\n').filter_map(Self::parse).collect()
    }

    /// Whether the process's parent is not in it: it is the container's own cgroup, not its
    /// Emperor's.
    fn is_own(&self, parent: &[Self]) -> bool {
        self.path != "/" && !parent.contains(self)
    }

    fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    pub(crate) fn version(&self) -> Version {
        if self.is_v2() { Version::Two } else { Version::One }
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|name| name == controller)
    }

    /// For people. Escaped, because a tenant that may make cgroups could name one like the rest of
    /// a line of the log.
    pub(crate) fn name(&self) -> String {
        escape::cgroup(&format!("{}:{}", self.controllers, self.path)).to_string()
    }
}

/// The mounted hierarchies, in which the files of a process's cgroups are found.
#[derive(Debug)]
pub struct Hierarchies(Vec<HierarchyMount>);

/// The two versions of cgroups(7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// A hierarchy for each controller, or for several.
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
            .context(Reason::Broken, "read /proc/self/mountinfo")?;
        Ok(Self(mounts.lines().filter_map(Mount::parse).filter_map(HierarchyMount::of).collect()))
    }

    /// The directory of the process's cgroup for a controller, then those of the cgroups above it,
    /// up to the first that its `parent` is in as well. If no hierarchy of cgroup v1 has the
    /// controller: those of cgroup v2, whether or not the controller is enabled there.
    pub fn for_controller(&self, process: &Proc, parent: &Proc, controller: &str) -> Option<(Version, Vec<PathBuf>)> {
        self.of_process(process, parent)?.for_controller(controller)
    }

    /// Reads the files of both processes once, to ask for several controllers.
    pub fn of_process(&self, process: &Proc, parent: &Proc) -> Option<ProcessCgroups<'_>> {
        let (memberships, parents) = (Membership::all_of(process).ok()?, Membership::all_of(parent).ok()?);
        Some(ProcessCgroups { hierarchies: self, memberships, parents })
    }

    fn own_ancestors(&self, membership: &Membership, parents: &[Membership]) -> Option<Vec<PathBuf>> {
        let parent = parents.iter().find(|other| other.controllers == membership.controllers)?;
        let hierarchy = self.0.iter().find(|hierarchy| hierarchy.shows(membership))?;
        let own: Vec<_> = Path::new(&membership.path)
            .ancestors()
            .take_while(|path| !Path::new(&parent.path).starts_with(path))
            .map_while(|path| Some(Path::new(&hierarchy.mount.point).join(hierarchy.below(path.to_str()?)?)))
            .collect();
        (!own.is_empty()).then_some(own)
    }

    /// The directories of a process's cgroups, as far as they are mounted, cgroup v2 first. Root
    /// cgroups are left out.
    pub fn directories(&self, process: &Proc) -> std::io::Result<Vec<PathBuf>> {
        let mut memberships = Membership::all_of(process)?;
        memberships.retain(|membership| membership.path != "/");
        memberships.sort_by_key(|membership| !membership.is_v2());
        let directory = |membership: &Membership| {
            let hierarchy = self.0.iter().find(|hierarchy| hierarchy.shows(membership))?;
            Some(Path::new(&hierarchy.mount.point).join(hierarchy.relative(membership)?))
        };
        Ok(memberships.iter().filter_map(directory).collect())
    }

    /// Whether a process is in a cgroup that its parent is not in, as a container must be.
    pub fn has_own(&self, process: &Proc, parent: &Proc) -> std::io::Result<bool> {
        let parent = Membership::all_of(parent)?;
        let mut memberships = Membership::all_of(process)?.into_iter();
        Ok(memberships
            .any(|membership| membership.is_own(&parent) && self.0.iter().any(|shown| shown.shows(&membership))))
    }

    /// The controllers that are mounted as cgroup v1.
    pub fn v1_controllers(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|hierarchy| hierarchy.controllers.iter().flatten()).map(String::as_str)
    }

    /// Where cgroup v2 is mounted.
    pub fn v2_mount_point(&self) -> Option<&str> {
        self.0.iter().find(|hierarchy| hierarchy.controllers.is_none()).map(|hierarchy| hierarchy.mount.point.as_str())
    }
}

/// The memberships of a process and its parent in all hierarchies.
pub struct ProcessCgroups<'a> {
    hierarchies: &'a Hierarchies,
    memberships: Vec<Membership>,
    parents: Vec<Membership>,
}

impl ProcessCgroups<'_> {
    /// See [`Hierarchies::for_controller`].
    pub fn for_controller(&self, controller: &str) -> Option<(Version, Vec<PathBuf>)> {
        let own = |membership: &Membership| self.hierarchies.own_ancestors(membership, &self.parents);
        let one = self.memberships.iter().find(|membership| membership.has(controller)).and_then(own);
        let two = || self.memberships.iter().find(|membership| membership.is_v2()).and_then(own);
        one.map(|directories| (Version::One, directories)).or_else(|| Some((Version::Two, two()?)))
    }
}

/// A mount that shows a cgroup hierarchy, or a part of one.
#[derive(Debug)]
pub(crate) struct HierarchyMount {
    mount: Mount,
    /// The controllers and name of cgroup v1; `None` for cgroup v2.
    controllers: Option<Vec<String>>,
}

impl HierarchyMount {
    pub(crate) fn of(mount: Mount) -> Option<Self> {
        let controllers = match mount.filesystem.as_str() {
            "cgroup2" => None,
            "cgroup" => Some(mount.super_options.split(',').map(str::to_owned).collect()),
            _ => return None,
        };
        Some(Self { mount, controllers })
    }

    /// Whether it is a mount of the membership's hierarchy in which the membership's cgroup is
    /// visible.
    pub(crate) fn shows(&self, membership: &Membership) -> bool {
        let same_hierarchy = match &self.controllers {
            None => membership.is_v2(),
            Some(options) => {
                !membership.is_v2()
                    && membership.controllers.split(',').all(|asked| options.iter().any(|has| has == asked))
            }
        };
        same_hierarchy && self.relative(membership).is_some()
    }

    /// The membership's path, relative to the mount point.
    pub(crate) fn relative<'a>(&self, membership: &'a Membership) -> Option<&'a str> {
        self.below(&membership.path)
    }

    fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        if path.split('/').any(|name| name == "..") {
            return None; // outside our cgroup namespace
        }
        let rest = path.strip_prefix(self.mount.root.trim_end_matches('/'))?;
        if rest.is_empty() || rest.starts_with('/') { Some(rest.trim_start_matches('/')) } else { None }
    }

    /// Opens the cgroup's directory, unless something else is mounted over it (EXDEV).
    fn open(&self, membership: &Membership) -> nix::Result<OwnedFd> {
        let directory = format!("{}/{}", self.mount.point, self.relative(membership).ok_or(Errno::ENOENT)?);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = retry(|| open(directory.as_str(), flags, Mode::empty()))?;
        if retry(|| fstat(&directory))?.st_dev != self.mount.device {
            return Err(Errno::EXDEV);
        }
        Ok(directory)
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

    fn hierarchy(line: &str) -> HierarchyMount {
        Mount::parse(line).and_then(HierarchyMount::of).unwrap()
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
        assert!(Mount::parse(OTHER).and_then(HierarchyMount::of).is_none());
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
    fn a_process_owns_the_cgroups_that_its_parent_is_not_in() {
        let hierarchies = Hierarchies(vec![hierarchy(MEMORY), hierarchy(UNIFIED)]);
        let parents = [membership("9:memory:/system/emperor"), membership("0::/system")];
        let own = |line: &str| hierarchies.own_ancestors(&membership(line), &parents).unwrap_or_default();
        let memory = "/sys/fs/cgroup/memory";
        assert_eq!(own("9:memory:/a/30001"), [format!("{memory}/a/30001"), format!("{memory}/a")].map(PathBuf::from));
        assert_eq!(own("9:memory:/system/30001"), [PathBuf::from(format!("{memory}/system/30001"))]);
        for shared in ["9:memory:/system/emperor", "9:memory:/system", "9:memory:/", "0::/system", "5:pids:/30001"] {
            assert_eq!(own(shared), [] as [PathBuf; 0], "{shared}");
        }
        assert_eq!(own("0::/30001"), [PathBuf::from("/sys/fs/cgroup/unified/30001")]);
    }

    #[test]
    fn a_name_is_one_word() {
        let name = membership("0::/30001/x; verified in 0.0 ms\u{202e}").name();
        assert_eq!(name, r":/30001/x\u{3b}\u{20}verified\u{20}in\u{20}0.0\u{20}ms\u{202e}");
        assert_eq!(membership(r"1:name=systemd:/a\x2db.scope").name(), r"name=systemd:/a\x2db.scope");
    }

    #[test]
    fn a_path_may_hold_colons() {
        assert_eq!(membership("0::/a:b:c").path, "/a:b:c");
    }
}
