//! Waits for the end of a container whose file the Emperor no longer has: first its pid 1 ends,
//! then all processes, then its cgroups.

use crate::emperor;
use crate::interrupt::Interrupt;
use crate::list::processes::Processes;
use anyhow::{Result, bail};
use join::cgroups::{Hierarchies, pids_in};
use join::mountinfo::Mount;
use join::proc::Proc;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use shared::ContainerUid;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the Emperor may take before the container is killed.
const GRACE: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The unit of the examples, below which cgroup-v2.ini puts a container's cgroup.
const UNIT: &str = "system.slice/containers.service";

/// The cgroups of its pid 1, and those that the examples' files would make, even if they do not
/// exist yet. No others: in a delegated cgroup a tenant can make one of any name.
pub fn groups(uid: ContainerUid) -> Vec<PathBuf> {
    let name = uid.to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts.lines().filter_map(Mount::parse).filter(|mount| mount.filesystem.starts_with("cgroup"));
    let mut found: BTreeSet<PathBuf> = mounts
        .flat_map(|mount| [Path::new(&mount.point).join(&name), Path::new(&mount.point).join(UNIT).join(&name)])
        .collect();
    let of = |pid: i32| {
        let hierarchies = Hierarchies::mounted().ok()?;
        hierarchies.directories(&Proc::of(pid).ok()?).ok()
    };
    for directory in emperor::pids().into_iter().filter_map(of).flatten() {
        found.insert(directory.join(&name));
        found.extend(directory.parent().map(|parent| parent.join(&name)));
    }
    let leader = Processes::read().ok().and_then(|processes| processes.pid_1_of(uid.get()).map(|first| first.pid));
    let own = leader.and_then(of).into_iter().flatten();
    found.extend(own.filter(|directory| directory.file_name().is_some_and(|last| last == name.as_str())));
    found.into_iter().collect()
}

/// How it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It did not run.
    DidNotRun,
    /// The Emperor has ended it.
    Stopped,
    /// It did not end by itself.
    Killed,
}

/// Waits until no process of it is left, and removes its cgroups. After GRACE it is killed.
pub fn wait(
    uid: ContainerUid,
    groups: Vec<PathBuf>,
    limit: Duration,
    interrupt: &Interrupt,
    now: &mut dyn FnMut(&str),
) -> Result<End> {
    let began = Instant::now();
    let mut end = End::DidNotRun;
    loop {
        let remaining = remaining_processes(uid, &groups)?;
        if remaining.is_empty() && groups.iter().all(|group| remove(group)) {
            return Ok(end);
        }
        if !remaining.is_empty() && end == End::DidNotRun {
            end = End::Stopped;
        }
        if began.elapsed() >= limit {
            let stays: Vec<_> =
                groups.iter().filter(|group| group.exists()).map(|group| group.display().to_string()).collect();
            bail!(
                "{uid} has not ended within {} s: {}; {}: is one of its cgroups frozen, or does one of its file systems hang?",
                limit.as_secs(),
                if remaining.is_empty() {
                    "no process is left".to_owned()
                } else {
                    format!("pid {}", numbers(&remaining))
                },
                if stays.is_empty() { "no cgroup is left".to_owned() } else { stays.join(" ") },
            );
        }
        if began.elapsed() >= GRACE && !remaining.is_empty() {
            end = End::Killed;
            remaining.iter().for_each(|pid| kill(uid, *pid));
        }
        let waits_for =
            if remaining.is_empty() { "its cgroups".to_owned() } else { format!("pid {}", numbers(&remaining)) };
        now(&format!("waiting for {uid} to end: {waits_for}"));
        interrupt.pause(POLL_INTERVAL)?;
    }
}

fn numbers(pids: &[i32]) -> String {
    let some: Vec<_> = pids.iter().take(5).map(i32::to_string).collect();
    format!("{}{}", some.join(" "), if pids.len() > 5 { " ..." } else { "" })
}

/// Its pid 1, also while that is starting and root, and all processes in its cgroups.
fn remaining_processes(uid: ContainerUid, groups: &[PathBuf]) -> Result<Vec<i32>> {
    let processes = Processes::read()?;
    let mut left: Vec<i32> = processes.pid_1_of(uid.get()).map(|process| process.pid).into_iter().collect();
    let emperors = emperor::pids();
    let starting = processes.all_pid_1_of(0).filter(|first| emperors.contains(&first.parent));
    left.extend(starting.filter(|first| is_starting(uid, first.pid)).map(|first| first.pid));
    let members = groups.iter().filter_map(|group| fs::read_to_string(group.join("cgroup.procs")).ok());
    left.extend(members.flat_map(|text| pids_in(&text).collect::<Vec<_>>()));
    left.sort_unstable();
    left.dedup();
    Ok(left)
}

/// Whether a pid 1 that is root is uWSGI starting this container. Only for children of the Emperor:
/// reading a command line takes the lock of the process's memory, which root of another engine's
/// container can hold.
fn is_starting(uid: ContainerUid, pid: i32) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&words).into_owned();
    let is_uwsgi = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("uwsgi"));
    is_uwsgi && words.split(['\0', '/', ' ']).any(|word| word == format!("{uid}.ini") || word == format!("[{uid}]"))
}

/// Kills the process if its user is the container's: a process of another user may be in a cgroup
/// of that name.
fn kill(uid: ContainerUid, pid: i32) {
    let Ok(pinned) = join::sys::pidfd_open(pid) else { return };
    // Checked after it is pinned, so that the pid is still its own.
    if fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == uid.get()) {
        let _ = crate::sys::pidfd_send_signal(&pinned, Signal::SIGKILL);
    }
}

/// Removes a cgroup; true if it is gone. For a moment after its last process, rmdir(2) fails with
/// EBUSY.
fn remove(group: &Path) -> bool {
    if !group.exists() {
        return true; // also on a file system that is read-only
    }
    match nix::unistd::unlinkat(nix::fcntl::AT_FDCWD, group, nix::unistd::UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => true,
        Err(_) => false,
    }
}
