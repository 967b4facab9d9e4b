//! Checks the mounts from which the Emperor starts containers: a mount that one container makes
//! must not appear elsewhere.

use super::distributions::DISTRIBUTIONS;
use crate::containers::{self, Vassal, has_emperor, vassals};
use crate::report::{Finding, State};
use crate::rootfs::RootFs;
use join::mountinfo::Mount;
use shared::settings::CONTAINERS;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

const CHECK: &str = "mounts";

pub fn check(node: &RootFs) -> Vec<Finding> {
    let mut findings = check_propagation(node);
    findings.extend(check_linked(node));
    findings
}

fn check_propagation(node: &RootFs) -> Vec<Finding> {
    if !node.is_running() {
        let seen = "a root directory is not mounted as it will be";
        return vec![Finding::not_applicable(CHECK, PROPAGATION, seen)];
    }
    if !has_emperor(node) {
        let seen = "no Emperor starts containers here, and other engines make their mounts private themselves";
        return vec![Finding::not_applicable(CHECK, PROPAGATION, seen)];
    }
    let mounts = match own_mounts() {
        Ok(mounts) => mounts,
        Err(error) => {
            let seen = format!("/proc/self/mountinfo: {error}");
            return vec![Finding::fail(CHECK, PROPAGATION, seen, "mount -t proc proc /proc")];
        }
    };
    let mounts_of_paths: Vec<_> =
        START_PATHS.iter().filter_map(|path| mount_of(node, &mounts, path).ok().map(|(_, mount)| mount)).collect();
    vec![judge_started(node, judge_propagation(&mounts_of_paths))]
}

const LINKED: &str = "root of a container can make a set-user-ID program or a device in its directory, and on the node any user could use it";

/// The Emperor's containers have no root. `None` if root has linked no container.
fn check_linked(node: &RootFs) -> Option<Finding> {
    let homes: Vec<_> = containers::linked(node).into_iter().map(|uid| format!("{CONTAINERS}/{uid}")).collect();
    let mounts = own_mounts().ok().filter(|_| node.is_running() && !homes.is_empty())?;
    let mounts_of_paths: Vec<_> =
        homes.iter().filter_map(|home| mount_of(node, &mounts, home).ok().map(|(_, mount)| mount)).collect();
    (!mounts_of_paths.is_empty()).then(|| judge_linked(&mounts_of_paths))
}

/// Judges the mounts that the directories of linked containers are on.
fn judge_linked(mounts_of_paths: &[&Mount]) -> Finding {
    let has = |mount: &Mount, option: &str| mount.options.split(',').any(|other| other == option);
    let lacking = mounts_of_paths.iter().filter(|mount| !["nosuid", "nodev"].iter().all(|option| has(mount, option)));
    let mut points: Vec<_> = lacking.map(|mount| mount.point.as_str()).collect();
    points.sort_unstable();
    points.dedup();
    let Some(first) = points.first() else {
        return Finding::ok(CHECK, LINKED, "directories of linked containers are mounted nosuid and nodev");
    };
    let seen = format!("directories of linked containers are on {}, without nosuid or nodev", points.join(", "));
    let fix = if Path::new(first).starts_with(CONTAINERS) {
        format!(
            "add nosuid,nodev to the options of {first} in /etc/fstab, then\nmount -o remount,bind,nosuid,nodev {first}"
        )
    } else {
        format!("echo '{CONTAINERS} {CONTAINERS} none bind,nosuid,nodev 0 0' >>/etc/fstab && mount {CONTAINERS}")
    };
    // Whether a container has such a root now is no answer: its pid 1 can look like less than its
    // processes are.
    Finding::fail(CHECK, LINKED, seen, fix)
}

/// The mounts of our own mount namespace.
pub fn own_mounts() -> io::Result<Vec<Mount>> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().filter_map(Mount::parse).collect())
}

/// What the start of a container mounts from or to.
const START_PATHS: [&str; 4] = ["/", "/ns", DISTRIBUTIONS, CONTAINERS];

/// Containers start whatever the node's mounts are, from an Emperor with a mount namespace of its
/// own (PrivateMounts= of systemd.exec(5)) and where they make their mounts private themselves.
/// Those of other engines do.
fn judge_started(node: &RootFs, of_node: Finding) -> Finding {
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
            judge_propagation(&START_PATHS.iter().filter_map(|path| mount_by_point(&mounts, path)).collect::<Vec<_>>())
        });
    findings.into_iter().find(|finding| finding.state != State::Ok).unwrap_or_else(|| {
        Finding::ok(CHECK, PROPAGATION, "containers are started in a mount namespace whose mounts stay there")
    })
}

/// Whether a unit of the operator's that starts uWSGI has mounts of its own.
fn has_private_unit(node: &RootFs) -> bool {
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
        let seen = format!("{}; no Emperor runs, and none has a container to start", of_node.seen);
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

/// The mount that a path is on, by the mount points alone.
fn mount_by_point<'a>(mounts: &'a [Mount], path: &str) -> Option<&'a Mount> {
    mounts.iter().filter(|mount| Path::new(path).starts_with(&mount.point)).max_by_key(|mount| mount.point.len())
}

/// A directory, and the mount that it is on.
pub fn mount_of<'a>(node: &RootFs, mounts: &'a [Mount], path: &str) -> io::Result<(OwnedFd, &'a Mount)> {
    let directory = node.open(path)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", directory.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let mount = mounts.iter().find(|mount| Some(mount.id) == id);
    mount.map(|mount| (directory, mount)).ok_or_else(|| io::Error::other("its mount is not in /proc/self/mountinfo"))
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

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard";
    const OWN: &str = "61 27 254:16 / /containers rw,relatime - ext4 /dev/vdb rw,quota,usrquota";
    const SLAVE: &str = "61 27 254:16 / /containers rw,relatime master:4 - xfs /dev/vdb rw,attr2,uqnoenforce";
    const PRIVATE_ROOT: &str = "27 1 9:2 / / rw,noatime - ext4 /dev/md2 rw,jqfmt=vfsv1,usrjquota=aquota.user";

    fn mount(line: &str) -> Mount {
        Mount::parse(line).unwrap()
    }

    #[test]
    fn a_shared_mount_fails_wherever_containers_are_made_of_it() {
        let judge = |lines: &[&str]| {
            let mounts: Vec<_> = lines.iter().map(|line| mount(line)).collect();
            judge_propagation(&mounts.iter().collect::<Vec<_>>())
        };
        assert_eq!(judge(&[PRIVATE_ROOT, OWN]).state, State::Ok);
        assert_eq!(judge(&[PRIVATE_ROOT, SLAVE]).state, State::Ok, "what comes from elsewhere is not what goes there");
        let both = judge(&[ROOT, ROOT, OWN]);
        assert_eq!((both.state, both.seen.as_str()), (State::Fail, "/ is a shared mount"));
        let other = judge(&[PRIVATE_ROOT, &OWN.replace("relatime", "relatime shared:7")]);
        assert_eq!((other.state, other.seen.as_str()), (State::Fail, "/containers is a shared mount"));
    }

    #[test]
    fn powers_of_files_matter_where_containers_are_linked() {
        let judge = |lines: &[&str]| {
            let mounts: Vec<_> = lines.iter().map(|line| mount(line)).collect();
            judge_linked(&mounts.iter().collect::<Vec<_>>())
        };
        let safe = OWN.replace("relatime", "nosuid,nodev,relatime");
        assert_eq!(judge(&[&safe, &safe]).state, State::Ok);
        let root = judge(&[ROOT, ROOT]);
        assert_eq!((root.state, root.seen.contains(" are on /, without ")), (State::Fail, true));
        assert!(root.fix.unwrap().contains("/containers /containers none bind,nosuid,nodev"));
        for half in [OWN, &OWN.replace("relatime", "nosuid"), &OWN.replace("relatime", "nodev")] {
            let half = judge(&[&safe, half]);
            assert_eq!(half.state, State::Fail);
            assert!(half.fix.unwrap().ends_with("mount -o remount,bind,nosuid,nodev /containers"));
        }
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
}
