//! Reads the processes of the node from /proc, once.

use anyhow::{Context, Result};
use join::proc::{self, START, Status, stat_field};
use nix::unistd::{SysconfVar, sysconf};
use std::collections::HashMap;
use std::fs;

/// A process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub uids: Vec<u32>,
    /// The uid whose pid 1 it is, if its pid namespace is a direct child of ours.
    pid_1_of: Option<u32>,
}

/// All of them.
pub struct Processes {
    by_pid: HashMap<i32, Process>,
    pid_1: HashMap<u32, i32>,
    clock: Clock,
}

/// Converts start times of processes.
#[derive(Clone, Copy)]
pub struct Clock {
    /// When the machine started, in seconds since 1970.
    boot: u64,
    /// In a second.
    ticks: u64,
}

impl Clock {
    /// That of this machine.
    pub fn new() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0);
        let ticks = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
        Ok(Self { boot, ticks })
    }

    /// The time, in seconds since 1970, of a number of milliseconds since boot.
    pub const fn time_of(self, milliseconds: u64) -> u64 {
        self.boot + milliseconds / 1000
    }

    /// Clock ticks in milliseconds.
    pub const fn milliseconds(self, ticks: u64) -> u64 {
        ticks.saturating_mul(1000) / self.ticks
    }
}

impl Processes {
    /// Reads each once.
    pub fn read() -> Result<Self> {
        let pids = proc::pids().context("read /proc")?;
        let all = pids.filter_map(|pid| Process::parse(pid, &read(pid, "status")?));
        Ok(Self::new(all.collect(), Clock::new()?))
    }

    fn new(all: Vec<Process>, clock: Clock) -> Self {
        let by_pid: HashMap<i32, Process> = all.into_iter().map(|process| (process.pid, process)).collect();
        let pid_1 = by_pid.values().filter_map(|process| Some((process.pid_1_of?, process.pid)));
        Self { pid_1: pid_1.collect(), by_pid, clock }
    }

    /// The process of this number.
    pub fn get(&self, pid: i32) -> Option<&Process> {
        self.by_pid.get(&pid)
    }

    /// The pid 1 of this user in a pid namespace that is a direct child of ours.
    pub fn pid_1_of(&self, uid: u32) -> Option<&Process> {
        self.pid_1.get(&uid).and_then(|pid| self.get(*pid))
    }

    /// Every such pid 1 of this user. Root has one in each container that is starting, and in many
    /// containers of other engines.
    pub fn all_pid_1_of(&self, uid: u32) -> impl Iterator<Item = &Process> {
        self.all().filter(move |process| process.pid_1_of == Some(uid))
    }

    /// The time, in seconds since 1970, of a number of clock ticks since boot.
    pub const fn time_of(&self, ticks: u64) -> u64 {
        self.clock.time_of(self.clock.milliseconds(ticks))
    }

    /// The processes that this one has started.
    pub fn children(&self, pid: i32) -> impl Iterator<Item = &Process> {
        self.by_pid.values().filter(move |process| process.parent == pid)
    }

    /// Every one.
    pub fn all(&self) -> impl Iterator<Item = &Process> {
        self.by_pid.values()
    }
}

impl Process {
    /// Reads /proc/PID/status, see proc_pid_status(5). `None` for a process that has ended.
    pub(crate) fn parse(pid: i32, status: &str) -> Option<Self> {
        let status = Status::new(status);
        let (parent, uids) = (status.parent()?, status.uids()?);
        (!status.has_ended()).then(|| Self { pid, parent, uids, pid_1_of: status.uid_if_pid_1() })
    }

    /// When it started, in clock ticks since boot. The pid and this identify a process.
    pub fn started(&self) -> Option<u64> {
        started(self.pid)
    }

    /// The session of processes that it is in, setsid(2), by the number of the one that made it.
    pub fn session(&self) -> Option<i32> {
        stat_field(&read(self.pid, "stat")?, 6)
    }
}

/// When the process of this number started.
pub fn started(pid: i32) -> Option<u64> {
    stat_field(&read(pid, "stat")?, START)
}

/// The parent that it has now.
pub fn parent(pid: i32) -> Option<i32> {
    stat_field(&read(pid, "stat")?, 4)
}

/// The controlling terminal that it has: 0 is none, tty_nr of proc_pid_stat(5).
pub fn terminal(pid: i32) -> Option<i32> {
    stat_field(&read(pid, "stat")?, 7)
}

/// A file of a process. The process's name is in it, which it can set to any bytes, prctl(2).
fn read(pid: i32, file: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
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
    fn a_container_is_found_by_its_pid_1() {
        let all = vec![
            process(1, 0, 0, &[1]),
            process(10, 1, 0, &[10]),             // the Emperor
            process(11, 10, 30001, &[11, 1]),     // a container's pid 1
            process(21, 20, 30001, &[21, 7]),     // a session
            process(24, 22, 30001, &[24, 10, 1]), // a namespace of the tenant's own
            process(30, 20, 30000, &[30, 5]),     // another's
            process(31, 10, 0, &[31, 1]),         // containers that start
            process(32, 10, 0, &[32, 1]),
        ];
        let processes = Processes::new(all, Clock { boot: 1000, ticks: 100 });
        assert_eq!(processes.pid_1_of(30001).map(|process| process.pid), Some(11));
        assert_eq!(processes.pid_1_of(30000), None);
        let mut starting: Vec<_> = processes.all_pid_1_of(0).map(|process| process.pid).collect();
        starting.sort_unstable();
        assert_eq!(starting, [31, 32]);
        assert_eq!(processes.time_of(250), 1002);
    }

    /// prctl(2) takes any bytes but NUL.
    #[test]
    fn a_process_is_seen_whatever_its_name() {
        let seen = std::thread::spawn(|| {
            nix::sys::prctl::set_name(c"\xff(\x01)").unwrap();
            let thread = nix::unistd::gettid().as_raw();
            Process::parse(thread, &read(thread, "status")?)
        });
        assert!(seen.join().unwrap().is_some());
    }

    #[test]
    fn a_zombie_is_no_process() {
        assert!(Process::parse(7, "State:\tZ (zombie)\nPPid:\t1\nUid:\t0\t0\t0\t0\nNSpid:\t7\n").is_none());
    }
}
