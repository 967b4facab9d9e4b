//! The file system that holds the containers: quotas of users, and a fair share of the disk.

use super::mounts;
use crate::report::Finding;
use crate::rootfs::RootFs;
use crate::sys::{self, UserQuota};
use join::mountinfo::Mount;
use nix::sys::stat::{major, minor};
use shared::settings::CONTAINERS;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const CHECK: &str = "filesystem";

pub fn check(node: &RootFs) -> Vec<Finding> {
    const WHY: &str = "one container must not fill the disk for all others";
    if !node.is_running() {
        return vec![Finding::not_applicable(CHECK, WHY, "a root directory is not mounted as it will be")];
    }
    let mounts = match mounts::own_mounts() {
        Ok(mounts) => mounts,
        Err(error) => return vec![Finding::not_applicable(CHECK, WHY, format!("/proc/self/mountinfo: {error}"))],
    };
    match mounts::mount_of(node, &mounts, CONTAINERS) {
        Ok((directory, mount)) => {
            let quota = match sys::user_quota(&directory, &mount.source) {
                Ok(quota) => judge_quota(mount, quota),
                Err(errno) => {
                    Finding::fail(CHECK, QUOTA, format!("{}: quotactl: {errno}", mount.point), quota_fix(mount))
                }
            };
            vec![quota, judge_schedulers(mount, &schedulers(mount))]
        }
        Err(error) => vec![Finding::not_applicable(CHECK, QUOTA, format!("open {CONTAINERS}: {error}"))],
    }
}

const QUOTA: &str = "without a limit for each user, one container can fill the disk of all";

fn judge_quota(mount: &Mount, quota: UserQuota) -> Finding {
    let place = format!("{} ({} on {})", mount.point, mount.filesystem, mount.source);
    match (mount.filesystem.as_str(), quota) {
        (_, UserQuota { counts: true, limits: true }) => {
            Finding::ok(CHECK, QUOTA, format!("user quota is on: {place}"))
        }
        (_, UserQuota { counts: true, .. }) => Finding::fail(
            CHECK,
            QUOTA,
            format!("user quota is counted, but limits are not enforced: {place}"),
            quota_fix(mount),
        ),
        ("zfs" | "nfs" | "nfs4" | "ceph" | "lustre" | "cifs", _) => Finding::not_applicable(
            CHECK,
            QUOTA,
            format!("the kernel does not say whether quotas are enforced on this file system: {place}"),
        ),
        _ => Finding::fail(CHECK, QUOTA, format!("user quota is off: {place}"), quota_fix(mount)),
    }
}

fn quota_fix(mount: &Mount) -> String {
    let Mount { point, source, super_options, .. } = mount;
    let has = |option: &str| super_options.split(',').any(|other| other.split('=').next() == Some(option));
    match mount.filesystem.as_str() {
        "ext4" | "ext3" if has("usrquota") || has("usrjquota") => {
            format!("quotacheck -cum {point} && quotaon -u {point}")
        }
        "ext4" | "ext3" if point == "/" => format!(
            "add usrjquota=aquota.user,jqfmt=vfsv1 to the options of {point} in /etc/fstab, then (package quota)\n\
             mount -o remount {point} && quotacheck -cum {point} && quotaon -u {point}"
        ),
        "ext4" => format!(
            "add usrquota to the options of {point} in /etc/fstab, then, with the containers stopped,\n\
             umount {point} && tune2fs -O quota -Q usrquota {source} && mount {point}"
        ),
        "xfs" if point == "/" => {
            "add rootflags=uquota to the kernel's command line and boot, xfs accepts it only at the first mount"
                .to_owned()
        }
        "xfs" => format!(
            "add uquota to the options of {point} in /etc/fstab, then, with the containers stopped,\n\
             umount {point} && mount {point}"
        ),
        _ => format!("keep {CONTAINERS} on ext4 with the option usrquota, or on xfs with uquota"),
    }
}

const SCHEDULER: &str =
    "a container that reads and writes without end slows down all others, unless the disk's scheduler is fair to them";

/// The scheduler of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Scheduler {
    current: String,
    offered: Vec<String>,
}

impl Scheduler {
    /// Reads queue/scheduler: `none [mq-deadline] bfq`. A lone `none` without brackets is a device
    /// that takes no scheduler.
    fn parse(text: &str) -> Option<Self> {
        let bare = |word: &str| word.trim_matches(['[', ']']).to_owned();
        let current = text.split_whitespace().find(|word| word.starts_with('[') && word.ends_with(']')).map(bare)?;
        Some(Self { current, offered: text.split_whitespace().map(bare).collect() })
    }

    /// bfq, and before Linux 5.0 cfq, give each process, or each cgroup, its share.
    fn is_fair(&self) -> bool {
        ["bfq", "cfq"].contains(&self.current.as_str())
    }
}

/// The schedulers of the disks below a mount, by the disk's name.
fn schedulers(mount: &Mount) -> BTreeMap<String, Scheduler> {
    let mut found = BTreeMap::new();
    // btrfs and its like have a device number that is no disk's: there the source is.
    let device = if major(mount.device) == 0 {
        fs::metadata(&mount.source).map(|disk| disk.rdev()).unwrap_or(0)
    } else {
        mount.device
    };
    if device != 0 {
        let sys = format!("/sys/dev/block/{}:{}", major(device), minor(device));
        if let Ok(sys) = fs::canonicalize(sys) {
            for disk in disks(&sys) {
                let name = disk.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let text = fs::read_to_string(disk.join("queue/scheduler")).unwrap_or_default();
                found.extend(Scheduler::parse(&text).map(|scheduler| (name, scheduler)));
            }
        }
    }
    found
}

/// The whole disks that a block device lies on: a partition's disk; those that device-mapper or md
/// put together.
fn disks(sys: &Path) -> Vec<PathBuf> {
    if sys.join("partition").exists() {
        return sys.parent().map(disks).unwrap_or_default();
    }
    let slaves: Vec<_> = fs::read_dir(sys.join("slaves"))
        .into_iter()
        .flatten()
        .filter_map(|slave| slave.ok()?.path().canonicalize().ok())
        .collect();
    if slaves.is_empty() { vec![sys.to_owned()] } else { slaves.iter().flat_map(|slave| disks(slave)).collect() }
}

fn judge_schedulers(mount: &Mount, schedulers: &BTreeMap<String, Scheduler>) -> Finding {
    if schedulers.is_empty() {
        let seen = format!(
            "no disk with an I/O scheduler is below {} ({} on {})",
            mount.point, mount.filesystem, mount.source
        );
        return Finding::not_applicable(CHECK, SCHEDULER, seen);
    }
    let names_of = |disks: &[(&String, &Scheduler)]| {
        disks.iter().map(|(disk, scheduler)| format!("{} on {disk}", scheduler.current)).collect::<Vec<_>>().join(", ")
    };
    let unfair: Vec<_> = schedulers.iter().filter(|(_, scheduler)| !scheduler.is_fair()).collect();
    if unfair.is_empty() {
        return Finding::ok(
            CHECK,
            SCHEDULER,
            format!("I/O scheduler: {}", names_of(&schedulers.iter().collect::<Vec<_>>())),
        );
    }
    let mut lines = Vec::new();
    if unfair.iter().any(|(_, scheduler)| !scheduler.offered.iter().any(|offered| offered == "bfq")) {
        lines.push("modprobe bfq && echo bfq >/etc/modules-load.d/bfq.conf".to_owned());
    }
    lines.extend(unfair.iter().map(|(disk, _)| format!("echo bfq >/sys/block/{disk}/queue/scheduler")));
    lines.push("and for every boot, /etc/udev/rules.d/60-fair-scheduler.rules:".to_owned());
    lines.extend(unfair.iter().map(|(disk, _)| {
        format!("    ACTION==\"add|change\", SUBSYSTEM==\"block\", KERNEL==\"{disk}\", ATTR{{queue/scheduler}}=\"bfq\"")
    }));
    Finding::warn(CHECK, SCHEDULER, format!("I/O scheduler: {}", names_of(&unfair)), lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::State;

    const ROOT: &str = "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard";
    const OWN: &str = "61 27 254:16 / /containers rw,relatime - ext4 /dev/vdb rw,quota,usrquota";
    const XFS: &str = "61 27 254:16 / /containers rw,relatime master:4 - xfs /dev/vdb rw,attr2,uqnoenforce";
    const JOURNALED: &str = "27 1 9:2 / / rw,noatime - ext4 /dev/md2 rw,jqfmt=vfsv1,usrjquota=aquota.user";
    const TMPFS: &str = "61 27 0:44 / /containers rw - tmpfs none rw,mode=755";
    const ZFS: &str = "61 27 0:44 / /containers rw - zfs tank/containers rw,xattr";

    fn mount(line: &str) -> Mount {
        Mount::parse(line).unwrap()
    }

    fn quota(line: &str, counts: bool, limits: bool) -> Finding {
        judge_quota(&mount(line), UserQuota { counts, limits })
    }

    #[test]
    fn quota_is_on_only_if_limits_hold() {
        for line in [ROOT, OWN, XFS, JOURNALED, TMPFS, ZFS] {
            assert_eq!(quota(line, true, true).state, State::Ok, "{line}");
            assert_eq!(quota(line, true, false).state, State::Fail, "{line}");
        }
        for line in [ROOT, OWN, XFS, JOURNALED, TMPFS] {
            assert_eq!(quota(line, false, false).state, State::Fail, "{line}");
        }
        assert_eq!(quota(ZFS, false, false).state, State::NotApplicable);
    }

    #[test]
    fn each_file_system_is_told_its_own_fix() {
        let fix = |line: &str| quota(line, false, false).fix.unwrap();
        assert!(fix(ROOT).contains("usrjquota=aquota.user,jqfmt=vfsv1 to the options of / in /etc/fstab"));
        assert_eq!(fix(JOURNALED), "quotacheck -cum / && quotaon -u /");
        assert_eq!(fix(OWN), "quotacheck -cum /containers && quotaon -u /containers");
        assert!(fix(&OWN.replace(",quota,usrquota", "")).contains("tune2fs -O quota -Q usrquota /dev/vdb"));
        assert!(fix(XFS).contains("uquota"));
        assert!(fix(TMPFS).contains("ext4"));
    }

    #[test]
    fn the_scheduler_in_brackets_is_the_one() {
        let scheduler = Scheduler::parse("none [mq-deadline] kyber bfq \n").unwrap();
        assert_eq!(scheduler.current, "mq-deadline");
        assert_eq!(scheduler.offered, ["none", "mq-deadline", "kyber", "bfq"]);
        assert!(!scheduler.is_fair());
        assert!(Scheduler::parse("noop deadline [cfq]\n").unwrap().is_fair());
        assert!(Scheduler::parse("mq-deadline none [bfq]").unwrap().is_fair());
        assert!(!Scheduler::parse("[none] mq-deadline").unwrap().is_fair());
        for odd in ["none\n", "", "[]x", "\n"] {
            assert_eq!(Scheduler::parse(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn every_disk_below_has_to_be_fair() {
        let disks = |text: &[(&str, &str)]| {
            text.iter().map(|(disk, text)| ((*disk).to_owned(), Scheduler::parse(text).unwrap())).collect()
        };
        let judge = |text: &[(&str, &str)]| judge_schedulers(&mount(JOURNALED), &disks(text));
        assert_eq!(judge(&[]).state, State::NotApplicable);
        assert_eq!(
            judge(&[("sda", "none [bfq]"), ("sdb", "none [bfq]")]).seen,
            "I/O scheduler: bfq on sda, bfq on sdb"
        );
        let finding = judge(&[("sda", "none [bfq]"), ("sdb", "[none] mq-deadline")]);
        assert_eq!((finding.state, finding.seen.as_str()), (State::Warn, "I/O scheduler: none on sdb"));
        let fix = finding.fix.unwrap();
        assert!(fix.starts_with("modprobe bfq") && fix.contains("KERNEL==\"sdb\"") && !fix.contains("sda"), "{fix}");
        assert!(!judge(&[("sdb", "[none] bfq")]).fix.unwrap().contains("modprobe"));
    }

    #[test]
    fn partitions_and_mapped_devices_lie_on_disks() {
        let sys = std::env::temp_dir().join(format!("unbitctl-sys-{}", std::process::id()));
        for directory in ["sda/sda1", "sdb/sdb1", "md0/slaves", "dm-0/slaves"] {
            fs::create_dir_all(sys.join(directory)).unwrap();
        }
        for partition in ["sda/sda1", "sdb/sdb1"] {
            fs::write(sys.join(partition).join("partition"), "1\n").unwrap();
            let name = Path::new(partition).file_name().unwrap();
            std::os::unix::fs::symlink(sys.join(partition), sys.join("md0/slaves").join(name)).unwrap();
        }
        std::os::unix::fs::symlink(sys.join("md0"), sys.join("dm-0/slaves/md0")).unwrap();
        let sys = sys.canonicalize().unwrap();
        let names = |device: &str| {
            let mut found: Vec<_> =
                disks(&sys.join(device)).iter().map(|disk| disk.file_name().unwrap().to_owned()).collect();
            found.sort();
            found
        };
        assert_eq!(names("sda/sda1"), ["sda"]);
        assert_eq!(names("sda"), ["sda"]);
        assert_eq!(names("dm-0"), ["sda", "sdb"]);
        fs::remove_dir_all(&sys).unwrap();
    }
}
