//! What a round of the agent's metrics costs with many containers, on a node: `make bench-agent
//! [CONTAINERS=10000]`.
//!
//! A container is here a process that is pid 1 of a pid namespace, a container's user, and in a
//! cgroup of its own of each hierarchy of cgroup v1 that the node has for processor time, memory
//! and I/O, or of cgroup v2. The API is the tests' stand-in, on the same machine.

use std::ffi::c_long;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use unbit_tests::agent::{Node, list};
use unbit_tests::api::Answer;
use unbit_tests::{sh, status_field};

/// The first of them.
const FIRST: u32 = 40_001;
/// In every hierarchy.
const GROUP: &str = "bench-agent";

fn main() {
    let most: u32 = std::env::args().nth(1).map_or(10_000, |count| count.parse().unwrap());
    // The agent counts containers that an Emperor has started.
    fs::write("/proc/self/comm", "uwsgi").unwrap();
    let places = hierarchies();
    let mut containers = Containers { pids: Vec::new(), places };
    let node = Node::new("bench");
    node.api.answers("/serverfilemetadata/", [Answer::ok("[]")]);
    println!("| containers | find | read | send | whole round | of it, on a processor | values | memory |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for count in [most / 100, most / 10, most] {
        containers.grow(count);
        let uids: Vec<u32> = (FIRST..FIRST + count).collect();
        // Of a container that the API does not list nothing is read.
        node.api.says("/containers/", &list(&[]));
        let found = dry_round(&node);
        node.api.says("/containers/", &list(&uids));
        let read = dry_round(&node);
        let Round { time, processor, values, memory } = round(&node);
        let [find, read, send] =
            [found, read.saturating_sub(found), time.saturating_sub(read)].map(|time| time.as_secs_f64());
        println!(
            "| {count} | {find:.2} s | {read:.2} s | {send:.2} s | {:.2} s | {processor:.2} s | {values} | {memory} kB |",
            time.as_secs_f64()
        );
        rows.push((time.as_secs_f64(), processor, memory as f64));
    }
    if let [.., less, more] = rows.as_slice() {
        println!(
            "{most} containers compared with {}: {:.1} times the time, {:.1} times the processor time, {:.2} times the memory",
            most / 10,
            more.0 / less.0,
            more.1 / less.1,
            more.2 / less.2
        );
    }
}

/// How long a round takes that sends nothing.
fn dry_round(node: &Node) -> Duration {
    let began = Instant::now();
    node.agent("once metrics --dry-run").ok();
    began.elapsed()
}

/// A round that sends.
struct Round {
    /// From the start of the program.
    time: Duration,
    /// Seconds, of all its processes.
    processor: f64,
    values: usize,
    /// The sum of the most that each of its processes had, in kB.
    memory: u64,
}

/// The first round of the daemon, whose processes are still there when it is over.
fn round(node: &Node) -> Round {
    node.api.asked();
    let began = Instant::now();
    let (daemon, log) = node.run("run collector --interval 86400");
    let (mut values, mut is_over) = (0, false);
    while !is_over {
        assert!(began.elapsed() < Duration::from_secs(300), "the round does not end");
        std::thread::sleep(Duration::from_millis(5));
        for asked in node.api.asked() {
            values += usize::from(asked.method == "POST");
            is_over |= asked.path == "/serverfilemetadata/"; // the next job
        }
    }
    let time = began.elapsed();
    let said = fs::read_to_string(log).unwrap();
    assert!(said.is_empty(), "{said}");
    let main = daemon.0.id().to_string();
    let children = sh(format!("pgrep -P {main}")).ok();
    let (mut memory, mut ticks) = (0, 0);
    for pid in std::iter::once(main.as_str()).chain(children.lines()) {
        let most = status_field(pid, "VmHWM").unwrap();
        memory += most.trim_end_matches(" kB").parse::<u64>().unwrap();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let times = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2); // utime and stime
        ticks += times.map(|time| time.parse::<u64>().unwrap()).sum::<u64>();
    }
    Round { time, processor: ticks as f64 / 100.0, values, memory }
}

/// Where groups can be made, once for each hierarchy.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = sh("findmnt -rno TARGET,FSTYPE,FS-OPTIONS -t cgroup,cgroup2").ok();
    let is_wanted = |line: &&str| {
        line.contains(" cgroup2 ")
            || ["cpuacct", "memory", "blkio"].iter().any(|name| line.split([',', ' ']).any(|word| word == *name))
    };
    let places =
        mounts.lines().filter(is_wanted).filter_map(|line| Some(PathBuf::from(line.split(' ').next()?).join(GROUP)));
    places.filter(|place| fs::create_dir(place).is_ok()).collect()
}

/// Processes that do nothing, each in its own groups.
struct Containers {
    pids: Vec<i32>,
    places: Vec<PathBuf>,
}

impl Containers {
    fn grow(&mut self, count: u32) {
        for uid in (FIRST..FIRST + count).skip(self.pids.len()) {
            let flags = c_long::from(libc::CLONE_NEWPID | libc::SIGCHLD);
            // SAFETY: no stack and no memory is shared, so it is fork(2); the child makes system
            // calls and nothing else.
            let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } as i32;
            assert!(pid >= 0, "clone: {}", std::io::Error::last_os_error());
            if pid == 0 {
                // SAFETY: takes numbers. If it fails, nobody counts this process.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::syscall(libc::SYS_setresgid, uid, uid, uid);
                    libc::syscall(libc::SYS_setresuid, uid, uid, uid);
                    loop {
                        libc::pause();
                    }
                }
            }
            for place in &self.places {
                let group = place.join(uid.to_string());
                fs::create_dir(&group).unwrap();
                fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
            }
            self.pids.push(pid);
        }
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        for pid in &self.pids {
            // SAFETY: takes numbers; each is a child of ours that nobody has waited for.
            unsafe {
                libc::kill(*pid, libc::SIGKILL);
                libc::waitpid(*pid, std::ptr::null_mut(), 0);
            }
        }
        for place in &self.places {
            for group in fs::read_dir(place).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(group.path());
            }
            let _ = fs::remove_dir(place);
        }
    }
}
