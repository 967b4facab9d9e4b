//! Checks the Emperor: it runs, it has started all containers that it has files of, and each of
//! them listens.

use super::cgroups::{self, list};
use super::systemd::{self, Health, Unit};
use crate::containers::{VASSALS, has_emperor, vassal_containers};
use crate::emperor;
use crate::list::processes;
use crate::report::{Finding, State};
use crate::rootfs::RootFs;
use shared::ContainerUid;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};

const CHECK: &str = "emperor";
const WHY: &str =
    "it starts the containers, and restarts those that have ended; nobody can log in to a container that does not run";
const WHY_SOCKET: &str = "a login finds the container's pid 1 as the process that listens on run/ns.socket";
const WHY_TERMINAL: &str =
    "the tenant can open it as /dev/tty, and type commands into the shell from which the Emperor was started";

/// That of examples/, and that of uwsgi.it.
const UNITS: [&str; 2] = ["containers.service", "emperor.service"];

pub fn check(node: &RootFs) -> Vec<Finding> {
    let not_applicable = |seen: &str| vec![Finding::not_applicable(CHECK, WHY, seen)];
    if !node.is_running() {
        return not_applicable("a root directory has no processes");
    }
    if !has_emperor(node) {
        return not_applicable("no Emperor starts containers here");
    }
    let files = vassal_containers(node);
    if files.is_empty() {
        return not_applicable(&format!("{VASSALS} has no vassal yet"));
    }
    if fs::read("/proc/1/status").is_err() {
        return not_applicable("root is needed to see its processes");
    }
    let leaders = cgroups::running().map(|container| (container.uid, container.pid)).collect();
    judge(
        &files,
        emperor::pids().into_iter().min(),
        &systemd::units(node, &UNITS).unwrap_or_default(),
        &leaders,
        &|pid| listens(pid),
        &|pid| processes::terminal(pid).is_some_and(|terminal| terminal != 0),
    )
}

fn judge(
    files: &[ContainerUid],
    emperor: Option<i32>,
    units: &[Unit],
    leaders: &BTreeMap<ContainerUid, i32>,
    listens: &dyn Fn(i32) -> bool,
    has_terminal: &dyn Fn(i32) -> bool,
) -> Vec<Finding> {
    // Of two units one is enough, and none is needed by an Emperor that somebody else has started.
    let is_idle = |unit: &Unit| matches!(unit.health(), Health::Stopped | Health::ConditionFailed | Health::Masked);
    let is_started = emperor.is_some() || units.iter().any(|unit| !is_idle(unit));
    let of_units = units.iter().filter(|unit| !(is_started && is_idle(unit))).take(if is_started { 2 } else { 1 });
    let mut findings: Vec<_> = of_units.filter_map(|unit| unit.finding(CHECK, WHY)).collect();
    let log = units.first().map_or_else(
        || "read its log (logto= in its file), then".to_owned(),
        |unit| format!("journalctl -u {} -n 50", unit.short()),
    );
    match emperor {
        None if findings.iter().all(|finding| finding.state != State::Fail) => {
            let seen = format!("no Emperor (a root process named uwsgi) runs, but {VASSALS} has vassals");
            findings.push(Finding::fail(CHECK, WHY, seen, emperor::by_hand()));
        }
        None => {}
        Some(_) => {
            let away: Vec<_> = files.iter().filter(|uid| !leaders.contains_key(uid)).copied().collect();
            if let Some(first) = away.first() {
                let seen = format!("has a vassal in {VASSALS} and does not run: {}", list(&away));
                findings.push(Finding::fail(CHECK, WHY, seen, format!("{log}\nunbitctl check {first}")));
            }
        }
    }
    let is_silent = |uid: &&ContainerUid| leaders.get(uid).is_some_and(|pid| !listens(*pid));
    let silent: Vec<_> = files.iter().filter(is_silent).copied().collect();
    if !silent.is_empty() {
        let seen = format!("runs, and does not listen on run/ns.socket: {}", list(&silent));
        let fix = format!("grep -n setns {VASSALS}/*: each needs setns-socket = /containers/%n/run/ns.socket");
        findings.push(Finding::fail(CHECK, WHY_SOCKET, seen, fix));
    }
    let has_one = |uid: &&ContainerUid| leaders.get(uid).is_some_and(|pid| has_terminal(*pid));
    let on_a_terminal: Vec<_> = files.iter().filter(has_one).copied().collect();
    if !on_a_terminal.is_empty() {
        let seen = format!("has the terminal from which the Emperor was started: {}", list(&on_a_terminal));
        let end = emperor.map_or_else(String::new, |pid| format!("kill -INT {pid}\n"));
        findings.push(Finding::fail(CHECK, WHY_TERMINAL, seen, format!("{end}{}", emperor::by_hand())));
    }
    if let Some(pid) = emperor.filter(|_| findings.is_empty()) {
        let seen = match files.len() {
            1 => "the one container with a vassal runs and listens".to_owned(),
            many => format!("all {many} containers with a vassal run and listen"),
        };
        findings.push(Finding::ok(CHECK, WHY, format!("the Emperor runs (pid {pid}), and {seen}")));
    }
    findings
}

/// More sockets than a container of people's has; one of a tenant's that has more takes no longer.
const SOCKETS: usize = 1 << 20;

/// Whether a socket that is bound to .../run/ns.socket listens where this process is: the kernel's
/// table says so, and no file of the tenant is opened.
fn listens(pid: i32) -> bool {
    let Ok(table) = File::open(format!("/proc/{pid}/net/unix")) else { return true };
    let mut lines = BufReader::new(table).split(b'\n').take(SOCKETS).map_while(Result::ok);
    lines.any(|line| is_listening(&String::from_utf8_lossy(&line)))
}

/// `Num RefCount Protocol Flags Type St Inode Path` of proc_pid_net(5); the flag is __SO_ACCEPTCON
/// of the kernel's linux/net.h.
fn is_listening(line: &str) -> bool {
    let words: Vec<_> = line.split_whitespace().collect();
    matches!(words.as_slice(), [_, _, _, "00010000", _, _, _, path, ..] if path.ends_with("/run/ns.socket"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: &str = "Result=success\nNRestarts=0\nId=containers.service\nLoadState=loaded\nActiveState=active\nSubState=running\n\
        UnitFileState=enabled\nActiveEnterTimestampMonotonic=1\nConditionResult=yes\n";

    fn judged(emperor: Option<i32>, units: &str, running: &[u32]) -> Vec<(State, String, String)> {
        let files: Vec<_> = [30001, 30002].into_iter().filter_map(ContainerUid::new).collect();
        let leaders = running.iter().filter_map(|uid| Some((ContainerUid::new(*uid)?, *uid as i32))).collect();
        let findings = judge(&files, emperor, &systemd::parse(units), &leaders, &|pid| pid != 30002, &|_| false);
        findings.into_iter().map(|finding| (finding.state, finding.seen, finding.fix.unwrap_or_default())).collect()
    }

    #[test]
    fn a_dead_emperor_is_told_by_its_unit_if_there_is_one() {
        let [(state, seen, fix)] = &judged(None, "", &[])[..] else { panic!() };
        assert_eq!((*state, fix.as_str()), (State::Fail, emperor::by_hand().as_str()));
        assert!(seen.starts_with("no Emperor (a root process named uwsgi) runs"), "{seen}");
        let failed =
            UNIT.replace("=active", "=failed").replace("=running", "=failed").replace("=success", "=exit-code");
        let [(_, seen, fix)] = &judged(None, &failed, &[])[..] else { panic!() };
        assert_eq!(seen, "containers.service has failed (exit-code)");
        assert_eq!(fix, "journalctl -u containers -n 50, and then: systemctl restart containers");
        let stopped = UNIT.replace("=active", "=inactive").replace("=running", "=dead");
        let [(_, seen, fix)] = &judged(None, &stopped, &[])[..] else { panic!() };
        assert_eq!(
            (seen.as_str(), fix.as_str()),
            ("containers.service does not run", "systemctl enable --now containers")
        );
        // By whom it was started does not matter, nor a second unit that is not used.
        let both = format!("{UNIT}\n{}", stopped.replace("containers.service", "emperor.service"));
        for units in [stopped.as_str(), &both] {
            let found = judged(Some(7), units, &[30001, 30002]);
            assert!(found.iter().all(|(_, seen, _)| !seen.contains(".service")), "{found:?}");
        }
        let looping = UNIT.replace("=running", "=auto-restart").replace("=active", "=activating");
        let [(_, seen, _), ..] = &judged(Some(7), &looping, &[30001])[..] else { panic!() };
        assert_eq!(seen, "containers.service has ended (success) after 0 restarts, and will be started again");
    }

    #[test]
    fn each_container_runs_and_listens() {
        let [(_, away, fix), ..] = &judged(Some(7), UNIT, &[30001])[..] else { panic!() };
        assert_eq!(away, "has a vassal in /etc/uwsgi/vassals and does not run: 30002");
        assert_eq!(fix, "journalctl -u containers -n 50\nunbitctl check 30002");
        let found = judged(Some(7), UNIT, &[30001, 30002]);
        let [(_, silent, _)] = &found[..] else { panic!("{found:?}") };
        assert_eq!(silent, "runs, and does not listen on run/ns.socket: 30002");
    }

    #[test]
    fn a_socket_of_the_kernels_table() {
        let line = |flags: &str, path: &str| format!("0000000000000000: 00000002 00000000 {flags} 0001 01 93541{path}");
        assert!(is_listening(&line("00010000", " /containers/30001/run/ns.socket")));
        assert!(is_listening(&line("00010000", " /run/ns.socket")));
        for other in [line("00000000", " /run/ns.socket"), line("00010000", " /run/ns.socket2"), line("00010000", "")] {
            assert!(!is_listening(&other), "{other}");
        }
    }
}
