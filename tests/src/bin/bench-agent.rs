//! What a round of the agent's metrics costs with many containers, on a node: `make bench-agent [CONTAINERS=10000]`.
//!
//! A container is here a process that is pid 1 of a pid namespace, a container's user, and in a cgroup of its own of each hierarchy of version 1 that
//! the node has for processor time, memory and I/O, or of version 2. The API is the tests' stand-in, on the same machine.

use std::ffi::c_long;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use unbit_tests::agent::{Node, list};
use unbit_tests::api::Answer;
use unbit_tests::sh;

/// The first of them.
const FIRST: u32 = 40_001;
/// In every hierarchy.
const GROUP: &str = "bench-agent";

fn main() {
    let most: u32 = std::env::args().nth(1).map_or(10_000, |count| count.parse().unwrap());
    let places = hierarchies();
    let mut containers = Containers { pids: Vec::new(), places };
    let node = Node::new("bench");
    node.api.answers("/serverfilemetadata/", [Answer::ok("[]")]);
    println!(
        "| containers | found and read | of it, on a processor | sent as well | on a processor | values | memory |"
    );
    println!("|---|---|---|---|---|---|---|");
    for count in [most / 100, most / 10, most] {
        containers.grow(count);
        let uids: Vec<u32> = (FIRST..FIRST + count).collect();
        node.api.says("/containers/", &list(&uids));
        let (read, cost) = agent(&node, &["--dry-run"]);
        node.api.asked();
        let (sent, with_sending) = agent(&node, &[]);
        let values = node.api.asked().iter().filter(|asked| asked.method == "POST").count();
        println!(
            "| {count} | {:.2} s | {:.2} s | {:.2} s | {:.2} s | {values} | {} kB |",
            read.as_secs_f64(),
            cost.processor,
            sent.as_secs_f64(),
            with_sending.processor,
            with_sending.memory
        );
    }
}

/// What a process and the children that it has waited for have used.
struct Cost {
    /// Seconds.
    processor: f64,
    /// The most that one of them had, in kB.
    memory: i64,
}

/// How long one round takes, and what it costs.
fn agent(node: &Node, options: &[&str]) -> (Duration, Cost) {
    let began = Instant::now();
    let mut command = Command::new("unbit-agent");
    command.args(["once", "metrics", "--directory"]).arg(&node.directory).args(options).stdout(Stdio::null());
    let child = command.spawn().unwrap();
    let cost = wait(child);
    (began.elapsed(), cost)
}

/// Waits for a process that must succeed.
fn wait(child: Child) -> Cost {
    let (mut status, pid) = (0, child.id() as i32);
    // SAFETY: all zeros is a value of this plain C struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both are written and live through the call; nobody else waits for this child.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    assert!(waited == pid && status == 0, "unbit-agent ended with {status:#x}");
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Cost { processor: seconds(usage.ru_utime) + seconds(usage.ru_stime), memory: usage.ru_maxrss }
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
            // SAFETY: no stack and no memory is shared, so it is fork(2); the child makes system calls and nothing else.
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
