//! What a login to a container costs, on a node, next to an ordinary user's: `make bench-login
//! [AGAINST=other.so]`.
//!
//! Ratios of medians: those that are compared take turns. The time is the whole of `ssh USER@node`,
//! as its user waits for it. The system calls are those that sshd makes for the one connection,
//! from accept to the start of the user's shell and after its end.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use unbit_tests::linked::{Engine, Link};
use unbit_tests::{Log, eventually, pgrep, sh, ssh};

const ROUNDS: usize = 40;
const TRACED_ROUNDS: usize = 3;
const PAM: &str = "/etc/pam.d/sshd";

struct Case {
    name: &'static str,
    user: &'static str,
    host: &'static str,
    pam: String,
    /// Where root's link leads, if there is to be one.
    cgroup: Option<String>,
    times: Vec<Duration>,
    calls: Vec<usize>,
}

impl Case {
    fn new(name: &'static str, user: &'static str, host: &'static str, pam: String) -> Self {
        Self { name, user, host, pam, cgroup: None, times: Vec::new(), calls: Vec::new() }
    }

    fn linked_to(self, cgroup: String) -> Self {
        Self { cgroup: Some(cgroup), ..self }
    }

    fn login(&self) -> Duration {
        fs::write(PAM, &self.pam).unwrap();
        let _link = self.cgroup.as_ref().map(|cgroup| Link::to(30001, cgroup));
        let started = Instant::now();
        let done = ssh(self.user, "echo $HOSTNAME");
        let took = started.elapsed();
        assert_eq!(done.ok(), self.host, "{}", self.name);
        self.is_over();
        took
    }

    /// Its monitor goes on for a moment after the client; the next login shall not have to share
    /// with it.
    fn is_over(&self) {
        eventually("its end", || pgrep(r"^sshd(-session)?: \S+ \[(priv|postauth)\]").is_none().then_some(()));
    }

    fn traced_login(&self) -> usize {
        const TRACE: &str = "/tmp/bench-login.trace";
        let sshd = sh("cat /run/sshd.pid").ok();
        let mut strace = Command::new("strace")
            .args(["-f", "-qq", "-e", "signal=none", "-o", TRACE, "-p", &sshd])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        eventually("strace", || {
            (sh(format!("grep TracerPid: /proc/{sshd}/status")).out != "TracerPid:\t0\n").then_some(())
        });
        self.login();
        sh(format!("kill -INT {}", strace.id())).ok();
        strace.wait().unwrap();
        let calls = calls_until_the_shell(&fs::read_to_string(TRACE).unwrap(), &sshd);
        fs::remove_file(TRACE).unwrap();
        calls
    }
}

/// Counts in what `strace -f` writes: the number of a process, padded, and its call. Not the
/// listener's own.
fn calls_until_the_shell(trace: &str, listener: &str) -> usize {
    let mut users = vec![listener];
    let mut calls = 0;
    for line in trace.lines() {
        let (pid, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        if users.contains(&pid) || call.contains(" resumed>") {
            continue;
        }
        calls += 1;
        if call.starts_with("execve(\"/bin/bash\"") {
            users.push(pid);
        }
    }
    assert!(users.len() > 1, "the witness: no shell in {trace}");
    calls
}

fn median<T: Ord + Copy>(figures: &[T]) -> T {
    let mut figures = figures.to_vec();
    figures.sort();
    figures[figures.len() / 2]
}

fn main() {
    let ours = fs::read_to_string(PAM).unwrap();
    let linked = Engine::new("web1").start();
    let mut cases = vec![
        Case::new("alice", "alice", "node", ours.clone()),
        Case::new("30001, by socket", "30001", "c30001", ours.clone()),
        Case::new("30001, by link", "30001", "web1", ours.clone()).linked_to(linked.group()),
    ];
    if let Some(against) = std::env::args().nth(1) {
        let theirs = |line: &str| match line.contains("pam_unbit.so") {
            true if line.starts_with("session") => format!("session required {against}\n"),
            true => String::new(),
            false if line.contains("pam_succeed_if.so quiet uid < 30000") => String::new(), // it would skip a line of others
            false => format!("{line}\n"),
        };
        cases.push(Case::new("30001, AGAINST", "30001", "c30001", ours.lines().map(theirs).collect()));
    }
    for round in 0..=ROUNDS {
        for case in &mut cases {
            let took = case.login();
            if round > 0 {
                case.times.push(took); // the first fills the caches
            }
        }
    }
    for _ in 0..TRACED_ROUNDS {
        for case in &mut cases {
            let calls = case.traced_login();
            case.calls.push(calls);
        }
    }

    let alice = (median(&cases[0].times).as_secs_f64(), median(&cases[0].calls) as f64);
    println!("{:20} {:>10} {:>8} {:>14} {:>8}", "login of", "ms", "ratio", "system calls", "ratio");
    for case in &cases {
        let (time, calls) = (median(&case.times).as_secs_f64(), median(&case.calls));
        println!(
            "{:20} {:10.1} {:8.2} {calls:14} {:8.2}",
            case.name,
            time * 1e3,
            time / alice.0,
            calls as f64 / alice.1
        );
    }
    println!("medians of {ROUNDS} logins each, in turns; system calls of sshd's processes, not of the shell");

    fs::write(PAM, &ours).unwrap();
    let small = verified_in(&linked.group());
    let _large = LargeNode::make();
    let large = verified_in(&linked.group());
    println!(
        "\nverified in ms, of that many logins each; with {MOUNTS} mounts, {PROCESSES} processes and {CONTAINERS} containers more"
    );
    println!("{:20} {:>10} {:>10} {:>8}", "", "small", "large", "ratio");
    for (name, small, large) in [("by socket", small.0, large.0), ("by link", small.1, large.1)] {
        println!("{name:20} {small:10.2} {large:10.2} {:8.2}", large / small);
    }
}

/// What the module says of a login by socket, and of one by a link to this cgroup, in milliseconds.
/// They take turns.
fn verified_in(cgroup: &str) -> (f64, f64) {
    let log = Log::from_now();
    for _ in 0..ROUNDS {
        ssh("30001", "true").ok();
        let _link = Link::to(30001, cgroup);
        ssh("30001", "true").ok();
    }
    let times = eventually("a line for each login", || {
        let lines = log.lines("; verified in ");
        let times =
            lines.iter().filter_map(|line| line.rsplit_once("; verified in ")?.1.strip_suffix(" ms")?.parse().ok());
        Some(times.collect::<Vec<f64>>()).filter(|times| times.len() == 2 * ROUNDS)
    });
    let median = |first: usize| {
        let mut times: Vec<_> = times.iter().skip(first).step_by(2).copied().collect();
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    };
    (median(0), median(1))
}

const MOUNTS: usize = 5_000;
const PROCESSES: usize = 20_000;
const CONTAINERS: u32 = 10_000;

/// The node with many more of everything, until this is dropped. The mounts and directories go with
/// the node.
struct LargeNode(Vec<libc::pid_t>);

impl LargeNode {
    fn make() -> Self {
        let name = |path: String| std::ffi::CString::new(path).unwrap();
        for n in 0..MOUNTS {
            let (from, to) = (name("/mnt".to_owned()), name(format!("/opt/mounts/{n}")));
            fs::create_dir_all(to.to_str().unwrap()).unwrap();
            // SAFETY: strings that outlive the call.
            let done =
                unsafe { libc::mount(from.as_ptr(), to.as_ptr(), std::ptr::null(), libc::MS_BIND, std::ptr::null()) };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        }
        for uid in 40_000..40_000 + CONTAINERS {
            let home = format!("/containers/{uid}");
            fs::create_dir(&home).unwrap();
            std::os::unix::fs::chown(&home, Some(uid), Some(uid)).unwrap();
        }
        let mut made = Self(Vec::new());
        for _ in 0..PROCESSES {
            // SAFETY: this program has one thread; the child makes system calls alone.
            match unsafe { libc::fork() } {
                -1 => panic!("process {}: {}", made.0.len(), std::io::Error::last_os_error()),
                0 => loop {
                    // SAFETY: takes nothing.
                    unsafe { libc::pause() };
                },
                pid => made.0.push(pid),
            }
        }
        made
    }
}

impl Drop for LargeNode {
    fn drop(&mut self) {
        for pid in &self.0 {
            // SAFETY: numbers; each is a child of ours that has not been waited for.
            unsafe {
                libc::kill(*pid, libc::SIGKILL);
                libc::waitpid(*pid, std::ptr::null_mut(), 0);
            }
        }
    }
}
