//! Checks cgroups: each container's memory can be limited, and is.

use crate::containers::VASSALS;
use crate::list::resources::NO_LIMIT;
use crate::report::Finding;
use crate::rootfs::RootFs;
use crate::shell;
use join::cgroups::{Hierarchies, Version};
use join::proc::Proc;
use join::running;
use shared::ContainerUid;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

const CHECK: &str = "cgroups";
const LAYOUT: &str = "a container's limits on memory and processor time are set in its cgroup";
const OWN: &str =
    "logins to a container without a cgroup of its own are refused, because no limit would hold for its sessions";
const LIMIT: &str = "a container without a limit can take the memory of all others";
const PIDS: &str =
    "a container without a limit can take every process number of the node: then nobody can log in, not even root";

/// As many containers as one line names.
const NAMED: usize = 10;

pub fn check(node: &RootFs) -> Vec<Finding> {
    let hierarchies = match hierarchies(node) {
        Ok(hierarchies) => hierarchies,
        Err(finding) => return vec![finding],
    };
    if hierarchies.v1_controllers().next().is_none() && hierarchies.v2_mount_point().is_none() {
        return vec![Finding::fail(CHECK, OWN, NONE, MOUNT)];
    }
    let containers = containers(&hierarchies);
    if !containers.is_empty() {
        judge_containers(&containers, &|file| fs::read_to_string(file).ok())
    } else if fs::read("/proc/1/status").is_ok() {
        vec![Finding::not_applicable(CHECK, OWN, "no container of an Emperor runs")]
    } else {
        vec![Finding::not_applicable(CHECK, OWN, "root is needed to see the processes of containers")]
    }
}

/// Which version is mounted, and whether it has the controllers that the guide's limits need.
pub fn check_layout(node: &RootFs) -> Vec<Finding> {
    let hierarchies = match hierarchies(node) {
        Ok(hierarchies) => hierarchies,
        Err(finding) => return vec![finding],
    };
    let version_1: Vec<_> = hierarchies.v1_controllers().collect();
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    vec![judge_layout(&version_1, hierarchies.v2_mount_point(), &read)]
}

fn hierarchies(node: &RootFs) -> Result<Hierarchies, Finding> {
    if !node.is_running() {
        return Err(Finding::not_applicable(CHECK, LAYOUT, "a root directory has no cgroups"));
    }
    Hierarchies::mounted().map_err(|refusal| Finding::fail(CHECK, LAYOUT, refusal.cause, "mount -t proc proc /proc"))
}

const NONE: &str = "no cgroups are mounted";
const MOUNT: &str = "mount -t cgroup2 none /sys/fs/cgroup";

fn judge_layout(version_1: &[&str], version_2: Option<&str>, read: &dyn Fn(&str) -> String) -> Finding {
    let layout = match (version_1, version_2) {
        ([], None) => return Finding::fail(CHECK, LAYOUT, NONE, MOUNT),
        ([], Some(_)) => "cgroup v2",
        (_, None) => "cgroup v1",
        (_, Some(_)) => "cgroup v1 and v2 (hybrid)",
    };
    let has_word = |text: &str, word: &str| text.split_whitespace().any(|other| other == word);
    let (mut faults, mut fixes) = (Vec::new(), Vec::new());
    for controller in ["memory", "cpu"] {
        if version_1.contains(&controller) {
            continue;
        }
        match version_2 {
            Some(top) if has_word(&read(&format!("{top}/cgroup.controllers")), controller) => {
                let handed_down = format!("{top}/cgroup.subtree_control");
                if !has_word(&read(&handed_down), controller) {
                    faults.push(format!("{controller} is not enabled for containers"));
                    fixes.push(format!("echo +{controller} >{handed_down}"));
                }
            }
            _ => {
                faults.push(format!("there is no controller {controller}"));
                fixes.push(match (controller, version_1) {
                    // Debian's kernels of old came with it turned off.
                    ("memory", _) if !offers(read, "memory") => {
                        "boot with cgroup_enable=memory on the kernel's command line".to_owned()
                    }
                    (_, []) => {
                        "boot with cgroup_no_v1=all on the kernel's command line, so that cgroup v2 has it".to_owned()
                    }
                    _ => format!("mount -t cgroup -o {controller} none DIRECTORY"),
                });
            }
        }
    }
    if faults.is_empty() {
        Finding::ok(CHECK, LAYOUT, format!("{layout}, with memory and cpu"))
    } else {
        Finding::fail(CHECK, LAYOUT, format!("{layout}, but {}", faults.join(", and ")), fixes.join("\n"))
    }
}

/// Whether the kernel has a controller, mounted or not: the last field of /proc/cgroups.
fn offers(read: &dyn Fn(&str) -> String, controller: &str) -> bool {
    read("/proc/cgroups").lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.next() == Some(controller) && fields.last() == Some("1")
    })
}

/// A container that runs.
#[derive(Clone, Debug)]
struct Running {
    /// Whether it is in a cgroup in which its Emperor is not.
    has_own: bool,
    /// Where its memory is counted: its cgroup, and those around it that its Emperor is not in.
    memory: Option<(Version, Vec<PathBuf>)>,
    /// Where its processes are counted, the same way.
    pids: Option<(Version, Vec<PathBuf>)>,
}

/// Reads only /proc, so no container can make this wait.
fn containers(hierarchies: &Hierarchies) -> BTreeMap<ContainerUid, Running> {
    running()
        .filter_map(|container| {
            let (process, parent) = (container.process, Proc::of(container.parent).ok()?);
            let running = Running {
                has_own: hierarchies.has_own(&process, &parent).ok()?,
                memory: hierarchies.for_controller(&process, &parent, "memory"),
                pids: hierarchies.for_controller(&process, &parent, "pids"),
            };
            Some((container.uid, running))
        })
        .collect()
}

/// The processes that have started the containers that run.
pub(super) fn emperors() -> BTreeSet<i32> {
    running().map(|container| container.parent).collect()
}

/// The containers that run; none if /proc cannot be read.
pub(super) fn running() -> impl Iterator<Item = running::Running> {
    running::containers().into_iter().flatten()
}

fn judge_containers(
    containers: &BTreeMap<ContainerUid, Running>,
    read: &dyn Fn(&Path) -> Option<String>,
) -> Vec<Finding> {
    let memory = Limits::of(
        containers,
        read,
        |container| &container.memory,
        |version| match version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        },
    );
    let pids = Limits::of(containers, read, |container| &container.pids, |_| "pids.max");
    let homeless: Vec<_> = containers.iter().filter(|(_, container)| !container.has_own).map(|(uid, _)| *uid).collect();
    let mut findings = Vec::new();
    if !homeless.is_empty() {
        let fix = "make sure that its vassal in /etc/uwsgi/vassals makes a cgroup and puts the container there: cgroup = for cgroup v1, a hook for cgroup v2";
        findings.push(Finding::fail(CHECK, OWN, format!("no cgroup of its own: {}", list(&homeless)), fix));
    }
    findings.extend(memory.finding(LIMIT, "memory", "BYTES"));
    findings.extend(pids.finding(PIDS, "processes", "1000"));
    if findings.is_empty() {
        let seen = match containers.len() {
            1 => {
                "the one container that runs is in a cgroup of its own, with limits on memory and processes".to_owned()
            }
            many => format!(
                "all {many} containers that run are in cgroups of their own, with limits on memory and processes"
            ),
        };
        findings.push(Finding::ok(CHECK, OWN, seen));
    }
    findings
}

/// The containers that have no limit of a kind for themselves.
struct Limits {
    none: Vec<ContainerUid>,
    /// Those of them that are counted with others, or not at all.
    shared: Vec<ContainerUid>,
    /// Where the first one's limit would be set.
    file: Option<PathBuf>,
}

impl Limits {
    fn of<'a>(
        containers: &'a BTreeMap<ContainerUid, Running>,
        read: &dyn Fn(&Path) -> Option<String>,
        counted: impl Fn(&'a Running) -> &'a Option<(Version, Vec<PathBuf>)>,
        name: impl Fn(Version) -> &'static str,
    ) -> Self {
        // A limit further up counts as long as the container has that cgroup for itself.
        let mut members: HashMap<&Path, usize> = HashMap::new();
        for container in containers.values() {
            for directory in counted(container).iter().flat_map(|(_, directories)| directories) {
                *members.entry(directory).or_default() += 1;
            }
        }
        let mut limits = Self { none: Vec::new(), shared: Vec::new(), file: None };
        for (uid, container) in containers.iter().filter(|(_, container)| container.has_own) {
            let (name, directories) = match counted(container) {
                Some((version, directories)) => (name(*version), directories.as_slice()),
                None => ("", [].as_slice()),
            };
            let own = directories.iter().take_while(|directory| members.get(directory.as_path()) == Some(&1));
            let files: Vec<_> = own.map(|directory| directory.join(name)).collect();
            if !files.iter().filter_map(|file| read(file)).any(|text| is_limit(&text)) {
                limits.none.push(*uid);
                match files.into_iter().find(|file| read(file).is_some()) {
                    Some(file) => limits.file = limits.file.or(Some(file)),
                    None => limits.shared.push(*uid),
                }
            }
        }
        limits
    }

    fn finding(self, why: &'static str, of_what: &str, limit: &str) -> Option<Finding> {
        if self.none.is_empty() {
            return None;
        }
        let mut seen = format!("no limit on {of_what}: {}", list(&self.none));
        if !self.shared.is_empty() {
            seen.push_str(&format!("; counted together with others: {}", list(&self.shared)));
        }
        let fix = match self.file {
            Some(file) => format!(
                "echo {limit} >{}\nand at each start by a hook in its vassal in {VASSALS}: hook-asap = write:{0} {limit}",
                shell::quoted(&file.to_string_lossy())
            ),
            None => format!(
                "give it a cgroup of its own that has the controller {}, and set the limit there",
                if of_what == "memory" { "memory" } else { "pids" }
            ),
        };
        Some(Finding::warn(CHECK, why, seen, fix))
    }
}

/// cgroup v2 says `max`, cgroup v1 a number beyond all memory.
pub(super) fn is_limit(text: &str) -> bool {
    text.trim().parse().is_ok_and(|bytes: u64| bytes < NO_LIMIT)
}

pub(super) fn list(uids: &[ContainerUid]) -> String {
    let named: Vec<_> = uids.iter().take(NAMED).map(ToString::to_string).collect();
    match uids.len() - named.len() {
        0 => named.join(" "),
        more => format!("{} and {more} more", named.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::State;

    fn layout(
        version_1: &[&str],
        version_2: Option<&str>,
        offered: &str,
        handed_down: &str,
    ) -> (State, String, String) {
        let read = |file: &str| match file {
            "/cg/cgroup.controllers" => offered.to_owned(),
            "/cg/cgroup.subtree_control" => handed_down.to_owned(),
            "/proc/cgroups" => {
                "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t4\t9\t1\nmemory\t0\t1\t0\n".to_owned()
            }
            other => panic!("{other}"),
        };
        let finding = judge_layout(version_1, version_2, &read);
        (finding.state, finding.seen, finding.fix.unwrap_or_default())
    }

    #[test]
    fn both_controllers_are_needed_in_either_version() {
        for (version_1, version_2, name) in [
            (&["rw", "memory", "cpu", "cpuacct"][..], None, "cgroup v1, with memory and cpu"),
            (&[], Some("/cg"), "cgroup v2, with memory and cpu"),
            (&["cpu"], Some("/cg"), "cgroup v1 and v2 (hybrid), with memory and cpu"),
        ] {
            let (state, seen, _) = layout(version_1, version_2, "cpuset cpu io memory\n", "cpu memory\n");
            assert_eq!((state, seen.as_str()), (State::Ok, name));
        }
        let (state, seen, fix) = layout(&[], Some("/cg"), "cpu memory", "cpu");
        assert_eq!((state, seen.as_str()), (State::Fail, "cgroup v2, but memory is not enabled for containers"));
        assert_eq!(fix, "echo +memory >/cg/cgroup.subtree_control");
        let (state, seen, fix) = layout(&["cpu", "cpuacct"], None, "", "");
        assert_eq!((state, seen.as_str()), (State::Fail, "cgroup v1, but there is no controller memory"));
        assert!(fix.contains("cgroup_enable=memory"), "{fix}");
        let (state, _, fix) = layout(&["memory", "cpuset"], Some("/cg"), "cpuset", "");
        assert_eq!((state, fix.as_str()), (State::Fail, "mount -t cgroup -o cpu none DIRECTORY"));
        assert!(layout(&[], Some("/cg"), "", "").2.ends_with("so that cgroup v2 has it"));
        assert_eq!(layout(&[], None, "", "").0, State::Fail);
    }

    fn container(has_own: bool, path: &str) -> Running {
        let around = Path::new(path).ancestors().filter(|path| *path != Path::new(""));
        let memory = (Version::Two, around.map(|path| Path::new("/cg").join(path)).collect());
        Running { has_own, memory: has_own.then(|| memory.clone()), pids: has_own.then_some(memory) }
    }

    /// No container has a limit on processes; those findings are tested elsewhere.
    fn judged(containers: &[(u32, Running)], limits: &[(&str, &str)]) -> Vec<(State, String)> {
        judged_of("memory.max", containers, limits)
    }

    fn judged_of(name: &str, containers: &[(u32, Running)], limits: &[(&str, &str)]) -> Vec<(State, String)> {
        let containers = containers.iter().map(|(uid, running)| {
            let running = running.clone();
            (ContainerUid::new(*uid).unwrap(), running)
        });
        let read = |file: &Path| {
            if !file.ends_with(name) {
                return Some("1000\n".to_owned());
            }
            let directory = file.parent().unwrap().to_str().unwrap();
            let set = limits.iter().find(|(limited, _)| *limited == directory).map_or("max", |(_, limit)| limit);
            Some(format!("{set}\n"))
        };
        judge_containers(&containers.collect(), &read)
            .into_iter()
            .map(|finding| (finding.state, finding.seen))
            .collect()
    }

    #[test]
    fn each_container_needs_a_limit_of_its_own() {
        let both = [(30000, container(true, "30000")), (30001, container(true, "30001"))];
        assert_eq!(judged(&both, &[("/cg/30000", "1000"), ("/cg/30001", "1000")])[0].0, State::Ok);
        assert_eq!(judged(&both, &[("/cg/30001", "1000")]), [(State::Warn, "no limit on memory: 30000".to_owned())]);
        assert_eq!(judged(&both, &[("/cg/30000", "9223372036854771712"), ("/cg/30001", "1")])[0].0, State::Warn);
    }

    #[test]
    fn each_container_needs_a_limit_of_processes() {
        let apart = [(30000, container(true, "30000")), (30001, container(true, "30001"))];
        let of = |containers: &[(u32, Running)], limits: &[(&str, &str)]| {
            let found = judged_of("pids.max", containers, limits);
            found.into_iter().filter(|(_, seen)| !seen.starts_with("no limit on memory")).collect::<Vec<_>>()
        };
        let warn = |seen: &str| [(State::Warn, seen.to_owned())];
        assert_eq!(of(&apart, &[("/cg/30000", "1000"), ("/cg/30001", "1000")])[0].0, State::Ok);
        assert_eq!(of(&apart, &[("/cg/30000", "1000")]), warn("no limit on processes: 30001"));
        // A cgroup of all of them is nobody's own, and its limit nobody's.
        let one_group = [(30000, container(true, "all")), (30001, container(true, "all"))];
        let seen = "no limit on processes: 30000 30001; counted together with others: 30000 30001";
        assert_eq!(of(&one_group, &[("/cg/all", "1000")]), warn(seen));
        let mut without = container(true, "30001");
        without.pids = None;
        assert_eq!(
            of(&[(30001, without)], &[]),
            warn("no limit on processes: 30001; counted together with others: 30001")
        );
    }

    #[test]
    fn a_limit_above_counts_if_nobody_else_is_under_it() {
        let limit = [("/cg/a", "1000")];
        assert_eq!(judged(&[(30001, container(true, "a/app"))], &limit)[0].0, State::Ok);
        let both = [(30000, container(true, "a/30000")), (30001, container(true, "a/30001"))];
        assert_eq!(judged(&both, &limit), [(State::Warn, "no limit on memory: 30000 30001".to_owned())]);
    }

    #[test]
    fn a_container_in_its_emperors_cgroup_cannot_be_entered() {
        let found =
            judged(&[(30001, container(false, "system")), (30002, container(true, "30002"))], &[("/cg/30002", "1")]);
        assert_eq!(found, [(State::Fail, "no cgroup of its own: 30001".to_owned())]);
    }

    #[test]
    fn many_are_counted() {
        let many: Vec<_> = (30000..30013).filter_map(ContainerUid::new).collect();
        assert!(list(&many).ends_with("30009 and 3 more"), "{}", list(&many));
    }
}
