//! Reads what a container uses from the files of its cgroups, for commands.
//!
//! [`cgroups`](crate::cgroups) finds the directories. What is shown or sent is decided by the
//! callers.

use crate::cgroups::{Hierarchies, Version};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// No file of a cgroup is longer, except io.stat with many devices.
const MAX_FILE: u64 = 256 << 10;

/// The path of a linked cgroup in its hierarchy. Engines give a container the same path in each
/// hierarchy.
pub fn path_of_link(hierarchies: &Hierarchies, target: &Path) -> Option<PathBuf> {
    let version_2 = hierarchies.v2_mount_point().and_then(|mount| target.strip_prefix(mount).ok());
    let path = version_2.map(Path::to_owned).or_else(|| {
        // cgroup v1 has a mount for each hierarchy there.
        Some(target.strip_prefix("/sys/fs/cgroup").ok()?.components().skip(1).collect())
    })?;
    (path.components().next().is_some()).then_some(path)
}

/// The container's own cgroup among `directories`: those of pid 1's cgroup and the ones above it in
/// one hierarchy, as [`Hierarchies::of_process`] has them.
///
/// With a link it is the outermost at or below the linked path, because pid 1 can move itself to
/// cgroups below that. Without one it is pid 1's, or the one above if an init has put itself into a
/// cgroup below its own.
pub fn own<'a>(directories: &'a [PathBuf], linked: Option<&Path>) -> Option<&'a PathBuf> {
    let is_linked = |directory: &&PathBuf| {
        linked.is_some_and(|path| directory.ancestors().any(|directory| directory.ends_with(path)))
    };
    let first = directories.first()?;
    let linked = directories.iter().rfind(is_linked);
    linked.or_else(|| directories.get(1).filter(|_| first.ends_with("init.scope"))).or(Some(first))
}

/// A file of a cgroup. The names of devices in it can be any bytes.
pub fn read(directory: &Path, file: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(directory.join(file)).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The number in a cgroup's file; `None` for "max", or if the file does not exist.
pub fn number(directory: &Path, file: &str) -> Option<u64> {
    read(directory, file)?.trim().parse().ok()
}

/// The number behind a word in a cgroup's file.
pub fn field(directory: &Path, file: &str, key: &str) -> Option<u64> {
    field_of(&read(directory, file)?, key)
}

/// The number behind a word in the text of such a file.
pub fn field_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The memory that is used, in bytes.
pub fn memory_bytes(version: Version, directory: &Path) -> Option<u64> {
    match version {
        Version::One => number(directory, "memory.usage_in_bytes"),
        Version::Two => number(directory, "memory.current"),
    }
}

/// The processor time that was used, in nanoseconds.
pub fn cpu_nanoseconds(version: Version, directory: &Path) -> Option<u64> {
    match version {
        Version::One => number(directory, "cpuacct.usage"),
        Version::Two => field(directory, "cpu.stat", "usage_usec")?.checked_mul(1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_of(directories: &[&str], linked: &str) -> Option<String> {
        let directories: Vec<_> = directories.iter().map(PathBuf::from).collect();
        let linked = Some(Path::new(linked)).filter(|path| *path != Path::new(""));
        own(&directories, linked).map(|directory| directory.display().to_string())
    }

    #[test]
    fn the_cgroup_of_a_container_is_around_that_of_its_init() {
        assert_eq!(own_of(&["/cg/30001"], "").unwrap(), "/cg/30001");
        assert_eq!(own_of(&["/cg/all/1", "/cg/all"], "").unwrap(), "/cg/all/1");
        assert_eq!(own_of(&["/cg/all/1/init.scope", "/cg/all/1", "/cg/all"], "").unwrap(), "/cg/all/1");
        assert_eq!(own_of(&["/cg/init.scope"], "").unwrap(), "/cg/init.scope", "better than none");
        assert_eq!(own_of(&[], "a"), None);
    }

    /// Otherwise it would be billed for pid 1 alone.
    #[test]
    fn a_pid_1_that_moves_itself_to_another_cgroup_takes_nothing_away() {
        let moved = ["/cg/memory/engine/web1/x/y", "/cg/memory/engine/web1/x", "/cg/memory/engine/web1"];
        assert_eq!(own_of(&moved, "engine/web1").unwrap(), moved[2]);
        // The engine has processes in the linked cgroup, or there are other containers around it.
        assert_eq!(own_of(&moved[..2], "engine/web1").unwrap(), moved[1]);
        assert_eq!(own_of(&[&moved[..], &["/cg/memory/engine"]].concat(), "engine/web1").unwrap(), moved[2]);
        // The link leads to another container.
        assert_eq!(own_of(&moved, "engine/web").unwrap(), moved[0]);
    }

    #[test]
    fn a_field_is_a_whole_word() {
        assert_eq!(field_of("rss 1\ntotal_rss 22\ntotal_cache 3\n", "total_rss"), Some(22));
        assert_eq!(field_of("anon_thp 1\nanon 2\n", "anon"), Some(2));
        assert_eq!(field_of("anon x\n", "anon"), None);
    }

    #[test]
    fn a_path_outside_every_mount_is_no_link() {
        assert_eq!(path_of_link(&Hierarchies::mounted().unwrap(), Path::new("/etc")), None);
    }
}
