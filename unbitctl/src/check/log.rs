//! Checks the socket of the node's system log: a container that can reach it can write lines in any
//! program's name.

use super::cgroups;
use crate::report::Finding;
use crate::rootfs::RootFs;
use join::mountinfo::{MAX_BYTES, Mount};
use shared::{ContainerUid, escape};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const CHECK: &str = "log";
const WHY: &str =
    "a program in the container can write lines into the node's log that look like lines of sshd or pam_unbit";
const FIX: &str = "give the container a /dev of its own (a tmpfs with null, zero, full, random, urandom, tty and ptmx), and do not bind \
    the node's /run into it";

/// Where programs and systemd-journald(8) have their sockets; the first is a link to one in the
/// same directory as the others.
const SOCKETS: [&str; 3] = ["/dev/log", "/run/systemd/journal/socket", "/run/systemd/journal/stdout"];

pub fn check(node: &RootFs) -> Vec<Finding> {
    vec![if !node.is_running() {
        Finding::not_applicable(CHECK, WHY, "a root directory has no log")
    } else if fs::read("/proc/1/mountinfo").is_err() {
        Finding::not_applicable(CHECK, WHY, "root is needed to see the mounts of containers")
    } else {
        inspect()
    }]
}

fn inspect() -> Finding {
    let own = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let own = String::from_utf8_lossy(&own);
    let sockets: Vec<_> = SOCKETS.iter().filter_map(|socket| Socket::find(&own, socket)).collect();
    if sockets.is_empty() {
        return Finding::not_applicable(CHECK, WHY, "there is no socket of a system log");
    }
    let (mut number, mut seen) = (0, BTreeMap::new());
    for (uid, mounts) in containers() {
        number += 1;
        if let Some(path) = sockets.iter().find_map(|socket| socket.is_seen_at(&mounts)) {
            seen.insert(uid.get(), path);
        }
    }
    judge(number, &seen)
}

fn judge(number: usize, seen: &BTreeMap<u32, PathBuf>) -> Finding {
    let Some(path) = seen.values().next() else {
        return match number {
            0 => Finding::not_applicable(CHECK, WHY, "no container runs"),
            1 => Finding::ok(CHECK, WHY, "the one container that runs does not reach the node's log"),
            many => Finding::ok(CHECK, WHY, format!("none of the {many} containers that run reaches the node's log")),
        };
    };
    let uids: Vec<_> = seen.keys().filter_map(|uid| ContainerUid::new(*uid)).collect();
    let path = escape::name(path.as_os_str().as_bytes());
    Finding::warn(CHECK, WHY, format!("can reach the node's log, by {path}: {}", cgroups::list(&uids)), FIX)
}

/// The mounts of each container that runs. No file of the container is opened: the kernel lists
/// them.
fn containers() -> impl Iterator<Item = (ContainerUid, String)> {
    cgroups::running()
        .filter_map(|container| Some((container.uid, beginning_of(container.process.open("mountinfo").ok()?.into())?)))
}

/// As much as some 25,000 mounts take. A tenant who may mount can make the whole of it larger than
/// the node's memory; and what an engine has mounted from the node comes first.
fn beginning_of(mounts: fs::File) -> Option<String> {
    let mut text = Vec::new();
    mounts.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// A socket, by its place in a file system.
struct Socket {
    device: u64,
    inside: PathBuf,
}

impl Socket {
    fn find(own_mounts: &str, socket: &str) -> Option<Self> {
        let path = fs::canonicalize(socket).ok()?;
        let device = fs::symlink_metadata(&path).ok()?.dev();
        Self::of(own_mounts, &path, device)
    }

    fn of(own_mounts: &str, path: &Path, device: u64) -> Option<Self> {
        let mounts = own_mounts.lines().filter_map(Mount::parse).filter(|mount| mount.device == device);
        let mount = mounts.filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.len())?;
        Some(Self { device, inside: Path::new(&mount.root).join(path.strip_prefix(&mount.point).ok()?) })
    }

    /// Where it is seen among other mounts. A later mount on the path hides it.
    fn is_seen_at(&self, mounts: &str) -> Option<PathBuf> {
        let mounts: Vec<_> = mounts.lines().filter_map(Mount::parse).collect();
        mounts.iter().enumerate().find_map(|(at, mount)| {
            let rest = self.inside.strip_prefix(&mount.root).ok().filter(|_| mount.device == self.device)?;
            // A socket that is itself bound leaves nothing to add, not even a slash.
            let point = PathBuf::from(&mount.point);
            let path = if rest.as_os_str().is_empty() { point } else { point.join(rest) };
            let is_hidden = mounts.iter().skip(at + 1).any(|later| path.starts_with(&later.point));
            (!is_hidden).then_some(path)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::State;
    use nix::sys::stat::makedev;

    const OWN: &str = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:5 / /dev rw - devtmpfs udev rw\n\
        24 22 0:21 / /run rw - tmpfs tmpfs rw\n25 24 0:22 / /run/lock rw - tmpfs tmpfs rw\n";

    fn seen(path: &str, device: u64, mounts: &str) -> Option<String> {
        let socket = Socket::of(OWN, Path::new(path), device).unwrap();
        socket.is_seen_at(mounts).map(|path| path.display().to_string())
    }

    #[test]
    fn a_socket_is_found_by_its_file_system() {
        let dev = |mounts: &str| seen("/dev/log", makedev(0, 5), mounts);
        const ROOT: &str = "90 80 8:1 /distros/base / rw - ext4 /dev/sda1 rw\n";
        assert_eq!(dev(ROOT), None);
        assert_eq!(
            dev(&format!("{ROOT}91 90 0:5 / /dev rw - devtmpfs udev rw\n92 91 0:6 / /dev/pts rw - devpts none rw\n"))
                .as_deref(),
            Some("/dev/log")
        );
        assert_eq!(
            dev(&format!("{ROOT}91 90 0:5 /log /srv/a\\040b rw - devtmpfs udev rw\n")).as_deref(),
            Some("/srv/a b")
        );
        assert_eq!(dev(&format!("{ROOT}91 90 0:5 /log2 /dev/log rw - devtmpfs udev rw\n")), None, "another file of it");
        assert_eq!(
            dev(&format!("{ROOT}91 90 0:5 / /dev rw - devtmpfs udev rw\n92 90 0:44 / /dev rw - tmpfs none rw\n")),
            None,
            "hidden"
        );

        let journal = |mounts: &str| seen("/run/systemd/journal/dev-log", makedev(0, 21), mounts);
        assert_eq!(
            journal(&format!("{ROOT}91 90 0:5 / /dev rw - devtmpfs udev rw\n")),
            None,
            "a symbolic link that leads nowhere"
        );
        let bound = format!("{ROOT}91 90 0:21 /systemd /run/systemd rw - tmpfs tmpfs rw\n");
        assert_eq!(journal(&bound).as_deref(), Some("/run/systemd/journal/dev-log"));
    }

    #[test]
    fn one_finding_for_all_of_them() {
        let seen: BTreeMap<_, _> = [(30001, "/dev/log".into()), (30002, "/x".into())].into();
        let finding = judge(3, &seen);
        assert_eq!(finding.state, State::Warn);
        assert_eq!(finding.seen, "can reach the node's log, by /dev/log: 30001 30002");
        let finding = judge(1, &[(30001, "/a\nok  fake".into())].into());
        assert_eq!(finding.seen, "can reach the node's log, by /a\\u{a}ok  fake: 30001");
        assert_eq!(judge(2, &BTreeMap::new()).state, State::Ok);
        assert_eq!(judge(0, &BTreeMap::new()).state, State::NotApplicable);
    }
}
