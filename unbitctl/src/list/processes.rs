//! The processes of the node, seen once.

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use std::collections::HashMap;
use std::fs;

/// A process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    uids: Vec<u32>,
    /// Its numbers, from this pid namespace to its own.
    numbers: Vec<i32>,
}

/// All of them.
pub struct Processes {
    by_pid: HashMap<i32, Process>,
    first: HashMap<u32, i32>,
    sessions: HashMap<u32, usize>,
    /// When the machine started, in seconds since 1970.
    boot: u64,
    ticks: u64,
}

impl Processes {
    /// Looks once at each.
    pub fn look() -> Result<Self> {
        let entries = fs::read_dir("/proc").context("read /proc")?;
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let all = pids.filter_map(|pid: i32| Process::parse(pid, &read(pid, "status")?));
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0);
        let ticks = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
        Ok(Self::new(all.collect(), boot, ticks))
    }

    fn new(all: Vec<Process>, boot: u64, ticks: u64) -> Self {
        let by_pid: HashMap<i32, Process> = all.into_iter().map(|process| (process.pid, process)).collect();
        let (mut first, mut sessions) = (HashMap::new(), HashMap::new());
        for process in by_pid.values() {
            let Some(uid) = process.uids.first() else { continue };
            let is_outside = |pid| by_pid.get(&pid).is_some_and(|parent: &Process| parent.numbers.len() == 1);
            match process.numbers.as_slice() {
                [pid, 1] if process.uids.iter().all(|other| other == uid) => drop(first.insert(*uid, *pid)),
                [_, inside] if *inside != 1 && is_outside(process.parent) => *sessions.entry(*uid).or_insert(0) += 1,
                _ => {}
            }
        }
        Self { by_pid, first, sessions, boot, ticks }
    }

    /// The process of this number.
    pub fn get(&self, pid: i32) -> Option<&Process> {
        self.by_pid.get(&pid)
    }

    /// The pid 1 of a pid namespace right below ours that is this user's.
    pub fn first_of(&self, uid: u32) -> Option<&Process> {
        self.first.get(&uid).and_then(|pid| self.get(*pid))
    }

    /// How many processes of this user's are in such a pid namespace and have a parent out here. No tenant can make one.
    pub fn sessions_of(&self, uid: u32) -> usize {
        self.sessions.get(&uid).copied().unwrap_or(0)
    }

    /// The time, in seconds since 1970, of a number of ticks after the machine's start.
    pub const fn time_of(&self, ticks: u64) -> u64 {
        self.boot + ticks / self.ticks
    }
}

impl Process {
    /// Reads /proc/PID/status, see proc_pid_status(5). What has ended is none.
    fn parse(pid: i32, status: &str) -> Option<Self> {
        let field =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
        if field("State")?.starts_with(['Z', 'X']) {
            return None;
        }
        let numbers =
            |key| field(key)?.split_whitespace().map(|number| number.parse().ok()).collect::<Option<Vec<i64>>>();
        Some(Self {
            pid,
            parent: i32::try_from(*numbers("PPid")?.first()?).ok()?,
            uids: numbers("Uid")?.into_iter().map(|uid| u32::try_from(uid).ok()).collect::<Option<_>>()?,
            numbers: numbers("NSpid")?.into_iter().map(|pid| i32::try_from(pid).ok()).collect::<Option<_>>()?,
        })
    }

    /// When it started, in ticks after the machine. With its number that tells it from every other process.
    pub fn started(&self) -> Option<u64> {
        start_of(&read(self.pid, "stat")?)
    }
}

/// A file of a process. The process's name is in it, which it can set to any bytes, prctl(2).
fn read(pid: i32, file: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The 22nd field of /proc/PID/stat. The second is a name in parentheses, which may hold anything.
fn start_of(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, uid: u32, numbers: &[i32]) -> Process {
        let numbers = numbers.iter().map(i32::to_string).collect::<Vec<_>>().join("\t");
        let status = format!(
            "Name:\tNSpid:\t1\nState:\tS (sleeping)\nPPid:\t{parent}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nNSpid:\t{numbers}\n"
        );
        Process::parse(pid, &status).unwrap()
    }

    #[test]
    fn sessions_are_those_that_came_from_outside() {
        let all = vec![
            process(1, 0, 0, &[1]),
            process(10, 1, 0, &[10]),             // the Emperor
            process(11, 10, 30001, &[11, 1]),     // a container's pid 1
            process(20, 1, 0, &[20]),             // sshd's monitor
            process(21, 20, 30001, &[21, 7]),     // its child inside
            process(22, 21, 30001, &[22, 8]),     // the shell
            process(23, 11, 30001, &[23, 9]),     // an orphan
            process(24, 22, 30001, &[24, 10, 1]), // a namespace of the tenant's own
            process(30, 20, 30000, &[30, 5]),     // another's
            process(31, 999, 30001, &[31, 11]),   // its parent was not seen
        ];
        let processes = Processes::new(all, 1000, 100);
        assert_eq!(processes.first_of(30001).map(|process| process.pid), Some(11));
        assert_eq!(processes.first_of(30000), None);
        assert_eq!((processes.sessions_of(30001), processes.sessions_of(30000), processes.sessions_of(0)), (1, 1, 0));
        assert_eq!(processes.time_of(250), 1002);
    }

    #[test]
    fn a_name_may_hold_anything() {
        assert_eq!(start_of("7 (a) b (c) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 99"), Some(4711));
        assert_eq!(start_of("7 (x"), None);
        assert!(Process::parse(7, "State:\tZ (zombie)\nPPid:\t1\nUid:\t0\t0\t0\t0\nNSpid:\t7\n").is_none());
    }
}
