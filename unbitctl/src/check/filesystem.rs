//! The file system that holds the containers: quotas of users, mounts that stay where they are made, and a fair share of the disk.

use crate::containers::{Vassal, vassals};
use crate::node::Node;
use crate::report::{Finding, State};
use crate::sys::{self, UserQuota};
use join::mountinfo::Mount;
use nix::sys::stat::{major, minor};
use shared::settings::CONTAINERS;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const CHECK: &str = "filesystem";

pub fn check(node: &Node) -> Vec<Finding> {
    let why = "one container must not take the disk, or its mounts, from the others";
    if !node.is_running() {
        return vec![Finding::not_applicable(CHECK, why, "a root directory is not mounted as it will be")];
    }
    let mounts = match fs::read_to_string("/proc/self/mountinfo") {
        Ok(text) => text.lines().filter_map(Mount::parse).collect::<Vec<_>>(),
        Err(error) => return vec![Finding::fail(CHECK, why, format!("/proc/self/mountinfo: {error}"), "mount /proc")],
    };
    let mut findings = Vec::new();
    match at(node, &mounts, CONTAINERS) {
        Ok((folder, mount)) => {
            findings.push(match sys::user_quota(&folder, &mount.source) {
                Ok(quota) => judge_quota(mount, quota),
                Err(errno) => {
                    Finding::fail(CHECK, QUOTA, format!("{}: quotactl: {errno}", mount.point), quota_mend(mount))
                }
            });
            findings.push(judge_schedulers(mount, &schedulers(mount)));
        }
        Err(error) => findings.push(Finding::not_applicable(CHECK, QUOTA, format!("open {CONTAINERS}: {error}"))),
    }
    let held: Vec<_> = HELD.iter().filter_map(|path| at(node, &mounts, path).ok().map(|(_, mount)| mount)).collect();
    findings.push(judge_started(node, judge_propagation(&held)));
    findings
}

/// What the start of a container mounts from or to.
const HELD: [&str; 4] = ["/", "/ns", "/distros", CONTAINERS];

/// Containers start whatever the node's mounts are, from an Emperor with a mount namespace of its own (PrivateMounts= of systemd.exec(5)) and
/// where they make their mounts private themselves. Those of other engines do.
fn judge_started(node: &Node, of_node: Finding) -> Finding {
    if of_node.state == State::Ok {
        return of_node;
    }
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let Some(own) = namespace(1) else { return of_node };
    let emperors = super::cgroups::emperors();
    if emperors.is_empty() && has_private_unit(node) {
        return Finding::ok(CHECK, PROPAGATION, "the Emperor's unit gives it mounts of its own");
    }
    if emperors.is_empty() || emperors.iter().any(|pid| namespace(*pid).is_none_or(|its| its == own)) {
        return judge_vassals(of_node, &vassals(node));
    }
    let findings =
        emperors.iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()).map(|text| {
            let mounts: Vec<_> = text.lines().filter_map(Mount::parse).collect();
            judge_propagation(&HELD.iter().filter_map(|path| holding(&mounts, path)).collect::<Vec<_>>())
        });
    findings.into_iter().find(|finding| finding.state != State::Ok).unwrap_or_else(|| {
        Finding::ok(CHECK, PROPAGATION, "containers are started in a mount namespace whose mounts stay there")
    })
}

/// Whether a unit of the operator's that starts uWSGI has mounts of its own.
fn has_private_unit(node: &Node) -> bool {
    const UNITS: &str = "/etc/systemd/system";
    let entries = node.resolve(UNITS).and_then(fs::read_dir).into_iter().flatten().flatten();
    let units =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.ends_with(".service"));
    units.filter_map(|name| node.read(&format!("{UNITS}/{name}")).ok()?).any(|text| {
        let mut lines = text.lines().map(str::trim);
        let is_emperors = text.lines().any(|line| line.trim().starts_with("ExecStart=") && line.contains("uwsgi"));
        is_emperors && lines.any(|line| matches!(line, "PrivateMounts=yes" | "PrivateMounts=true" | "MountFlags=slave"))
    })
}

fn judge_vassals(of_node: Finding, vassals: &[Vassal]) -> Finding {
    if vassals.is_empty() {
        let seen = format!(
            "{}, which is nothing to other engines; no Emperor runs, and none has a container to start",
            of_node.seen
        );
        return Finding::not_applicable(CHECK, PROPAGATION, seen);
    }
    let lacking: Vec<_> = vassals.iter().filter(|vassal| !makes_mounts_private(&vassal.text)).collect();
    match lacking.as_slice() {
        [] => {
            let seen = format!("{}, and each container makes its own private before it mounts anything", of_node.seen);
            Finding::ok(CHECK, PROPAGATION, seen)
        }
        [first, more @ ..] => of_node.with_seen(|seen| {
            let others = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
            format!("{seen}, and no hook of {}{others} makes it private: mount:none none / rec,private", first.path)
        }),
    }
}

/// `hook-asap = mount:none none / rec,private` or the like, see uWSGI's hooks.
fn makes_mounts_private(vassal: &str) -> bool {
    vassal.lines().map(str::trim).filter(|line| !line.starts_with([';', '#'])).any(|line| {
        let hook = line.split_once("mount:").map(|(_, hook)| hook.split_whitespace().collect::<Vec<_>>());
        matches!(hook.as_deref(), Some([_, _, "/", flags, ..]) if flags.split(',').any(|flag| matches!(flag, "private" | "slave")))
    })
}

/// The mount that a path is on, as the mounts' points tell it.
fn holding<'a>(mounts: &'a [Mount], path: &str) -> Option<&'a Mount> {
    mounts.iter().filter(|mount| Path::new(path).starts_with(&mount.point)).max_by_key(|mount| mount.point.len())
}

/// A folder, and the mount that it is on.
fn at<'a>(node: &Node, mounts: &'a [Mount], path: &str) -> io::Result<(OwnedFd, &'a Mount)> {
    let folder = node.open(path)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", folder.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let mount = mounts.iter().find(|mount| Some(mount.id) == id);
    mount.map(|mount| (folder, mount)).ok_or_else(|| io::Error::other("its mount is not in /proc/self/mountinfo"))
}

const QUOTA: &str = "without a limit for each user, one container can fill the disk of all";

fn judge_quota(mount: &Mount, quota: UserQuota) -> Finding {
    let place = format!("{} ({} on {})", mount.point, mount.filesystem, mount.source);
    match (mount.filesystem.as_str(), quota) {
        (_, UserQuota { counts: true, limits: true }) => {
            Finding::ok(CHECK, QUOTA, format!("user quota is on: {place}"))
        }
        (_, UserQuota { counts: true, .. }) => {
            Finding::fail(CHECK, QUOTA, format!("user quota is counted but no limit holds: {place}"), quota_mend(mount))
        }
        ("zfs" | "nfs" | "nfs4" | "ceph" | "lustre" | "cifs", _) => Finding::not_applicable(
            CHECK,
            QUOTA,
            format!("this file system has quotas that the kernel does not tell: {place}"),
        ),
        _ => Finding::fail(CHECK, QUOTA, format!("user quota is off: {place}"), quota_mend(mount)),
    }
}

fn quota_mend(mount: &Mount) -> String {
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
            "add rootflags=uquota to the kernel's command line and boot, xfs takes it at the first mount alone"
                .to_owned()
        }
        "xfs" => format!(
            "add uquota to the options of {point} in /etc/fstab, then, with the containers stopped,\n\
             umount {point} && mount {point}"
        ),
        _ => format!("keep {CONTAINERS} on ext4 with the option usrquota, or on xfs with uquota"),
    }
}

const PROPAGATION: &str =
    "pivot_root(2) refuses a shared mount, so no container starts; and what one mounts would show on the node";

fn judge_propagation(mounts: &[&Mount]) -> Finding {
    let mut shared: Vec<_> = mounts.iter().filter(|mount| is_shared(mount)).map(|mount| mount.point.as_str()).collect();
    shared.dedup();
    if shared.is_empty() {
        return Finding::ok(CHECK, PROPAGATION, "mounts stay in the mount namespace in which they are made");
    }
    let seen = match shared.as_slice() {
        [one] => format!("{one} is a shared mount"),
        many => format!("{} are shared mounts", many.join(" ")),
    };
    Finding::fail(CHECK, PROPAGATION, seen, PRIVATE)
}

fn is_shared(mount: &Mount) -> bool {
    mount.propagation.iter().any(|field| field.starts_with("shared:"))
}

const PRIVATE: &str = "\
mount --make-rprivate /
and for every boot, because systemd makes all mounts shared, /etc/systemd/system/private-mounts.service:
    [Unit]
    Description=Mounts stay in the mount namespace in which they are made
    After=local-fs.target
    Before=emperor.service
    [Service]
    Type=oneshot
    RemainAfterExit=yes
    ExecStart=/bin/mount --make-rprivate /
    [Install]
    WantedBy=multi-user.target
systemctl enable private-mounts";

const SCHEDULER: &str =
    "a container that reads and writes without end slows down all others, unless the disk's scheduler is fair to them";

/// What the queue of a disk says.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Scheduler {
    current: String,
    offered: Vec<String>,
}

impl Scheduler {
    /// Reads queue/scheduler: `none [mq-deadline] bfq`. A lone `none` without brackets is a device that takes no scheduler.
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

/// The whole disks that a block device lies on: a partition's disk; those that device-mapper or md put together.
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
    let tell = |disks: &[(&String, &Scheduler)]| {
        disks.iter().map(|(disk, scheduler)| format!("{} on {disk}", scheduler.current)).collect::<Vec<_>>().join(", ")
    };
    let unfair: Vec<_> = schedulers.iter().filter(|(_, scheduler)| !scheduler.is_fair()).collect();
    if unfair.is_empty() {
        return Finding::ok(
            CHECK,
            SCHEDULER,
            format!("I/O scheduler: {}", tell(&schedulers.iter().collect::<Vec<_>>())),
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
    Finding::warn(CHECK, SCHEDULER, format!("I/O scheduler: {}", tell(&unfair)), lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn each_file_system_is_told_its_own_mend() {
        let mend = |line: &str| quota(line, false, false).mend.unwrap();
        assert!(mend(ROOT).contains("usrjquota=aquota.user,jqfmt=vfsv1 to the options of / in /etc/fstab"));
        assert_eq!(mend(JOURNALED), "quotacheck -cum / && quotaon -u /");
        assert_eq!(mend(OWN), "quotacheck -cum /containers && quotaon -u /containers");
        assert!(mend(&OWN.replace(",quota,usrquota", "")).contains("tune2fs -O quota -Q usrquota /dev/vdb"));
        assert!(mend(XFS).contains("uquota"));
        assert!(mend(TMPFS).contains("ext4"));
    }

    #[test]
    fn a_shared_mount_fails_wherever_containers_are_made_of_it() {
        let judge = |lines: &[&str]| {
            let mounts: Vec<_> = lines.iter().map(|line| mount(line)).collect();
            judge_propagation(&mounts.iter().collect::<Vec<_>>())
        };
        assert_eq!(judge(&[JOURNALED, OWN]).state, State::Ok);
        assert_eq!(judge(&[JOURNALED, XFS]).state, State::Ok, "what comes from elsewhere is not what goes there");
        let both = judge(&[ROOT, ROOT, OWN]);
        assert_eq!((both.state, both.seen.as_str()), (State::Fail, "/ is a shared mount"));
        let other = judge(&[JOURNALED, &OWN.replace("relatime", "relatime shared:7")]);
        assert_eq!((other.state, other.seen.as_str()), (State::Fail, "/containers is a shared mount"));
    }

    #[test]
    fn a_shared_mount_matters_to_containers_that_leave_it_so() {
        let shared = || judge_propagation(&[&mount(ROOT)]);
        let vassal = |name: &str, text: &str| Vassal { path: format!("/v/{name}.ini"), text: text.into() };
        let good = vassal("30001", "[uwsgi]\nhook-pre-jail = mount:none none / rec,private\n");
        let bad = vassal(
            "30002",
            "[uwsgi]\n; mount:none none / rec,private\nhook-asap = mount:none /distros/base /ns bind\n",
        );
        assert_eq!(judge_vassals(shared(), &[]).state, State::NotApplicable);
        assert_eq!(judge_vassals(shared(), std::slice::from_ref(&good)).state, State::Ok);
        let finding = judge_vassals(shared(), &[good, bad]);
        assert_eq!(finding.state, State::Fail);
        assert_eq!(
            finding.seen,
            "/ is a shared mount, and no hook of /v/30002.ini makes it private: mount:none none / rec,private"
        );
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
        let mend = finding.mend.unwrap();
        assert!(
            mend.starts_with("modprobe bfq") && mend.contains("KERNEL==\"sdb\"") && !mend.contains("sda"),
            "{mend}"
        );
        assert!(!judge(&[("sdb", "[none] bfq")]).mend.unwrap().contains("modprobe"));
    }

    #[test]
    fn partitions_and_mapped_devices_lie_on_disks() {
        let sys = std::env::temp_dir().join(format!("unbitctl-sys-{}", std::process::id()));
        for folder in ["sda/sda1", "sdb/sdb1", "md0/slaves", "dm-0/slaves"] {
            fs::create_dir_all(sys.join(folder)).unwrap();
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
