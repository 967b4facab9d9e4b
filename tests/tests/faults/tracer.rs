//! Runs sshd or su for one login as its tracer (ptrace(2)), sees every system call that
//! pam_unbit.so makes in it, and may answer any of them in the kernel's place. Breakpoints on the
//! module's hooks and on where they return tell its calls from all others.
//!
//! It watches, at every call of every process of the login, for what must never be: a process of
//! the container's on the host, one with power inside the container (more than `join=now` leaves to
//! su), a path below the tenant's directory that root looks up, a descriptor that the module leaves
//! open across an exec, an application that was refused and whose children would be born in the
//! container.

use libc::{c_long, pid_t};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};
use unbit_tests::registers::{BREAKPOINT, Code, Registers};
use unbit_tests::{Done, leader, run, sh};

/// A system call of the module's.
#[derive(Clone, Debug)]
pub struct Call {
    /// The hook that makes it, see the module's `login.rs`; or, between two of them, its handler of
    /// fork(3).
    pub step: &'static str,
    number: c_long,
    pub arguments: [u64; 6],
    /// The how manieth of this name about this object in this step, from 1 on.
    pub nth: usize,
    /// What it is about: a path, what a descriptor is open on, a number. The container's number is
    /// written as UID, that of its pid 1 as PID1, other pids and the like as N.
    pub object: String,
    /// What the caller got: a negative errno if it failed.
    pub result: i64,
    /// Whether it was we who answered.
    pub answered: bool,
}

impl Call {
    pub fn name(&self) -> &'static str {
        known(self.number).map_or("?", |(_, name, _)| name)
    }

    /// Whether it is the same call, in another login.
    pub fn is(&self, other: &Self) -> bool {
        (self.step, self.number, &self.object, self.nth) == (other.step, other.number, &other.object, other.nth)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} #{}", self.step, self.name(), self.object, self.nth)
    }
}

/// How to describe a call.
#[derive(Clone, Copy)]
enum Object {
    /// The path in argument 0: calls that amd64 alone has.
    #[cfg(target_arch = "x86_64")]
    Path,
    /// The path in argument 1.
    PathInSecond,
    /// The path in argument 1, relative to the descriptor in argument 0.
    PathAt,
    /// What the descriptor in argument 0 is open on; for some, with a number that tells one request
    /// from another.
    Open,
    OpenAnd(usize),
    /// The request in argument 0.
    Request,
    /// Nothing, or nothing that can fail.
    Nothing,
}

type Known = (c_long, &'static str, Object);

/// The calls that the module makes. Any other shows as "?", and the test then asks for a line here.
const KNOWN: &[Known] = &[
    (libc::SYS_openat, "openat", Object::PathAt),
    (libc::SYS_openat2, "openat2", Object::PathAt),
    (libc::SYS_newfstatat, "newfstatat", Object::PathAt),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_stat, "stat", Object::Path), // by glibc before 2.33
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lstat, "lstat", Object::Path),
    (libc::SYS_statx, "statx", Object::PathAt),
    (libc::SYS_readlinkat, "readlinkat", Object::PathAt),
    (libc::SYS_fstat, "fstat", Object::Open),
    (libc::SYS_fstatfs, "fstatfs", Object::Open),
    (libc::SYS_read, "read", Object::Open),
    (libc::SYS_write, "write", Object::Open),
    (libc::SYS_pwrite64, "pwrite64", Object::Open),
    (libc::SYS_fallocate, "fallocate", Object::Open),
    (libc::SYS_lseek, "lseek", Object::Open),
    (libc::SYS_close, "close", Object::Open),
    (libc::SYS_ioctl, "ioctl", Object::OpenAnd(1)),
    (libc::SYS_setns, "setns", Object::Open),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, "poll", Object::Nothing),
    (libc::SYS_ppoll, "ppoll", Object::Nothing), // poll(3) of newer architectures
    (libc::SYS_socket, "socket", Object::Nothing),
    (libc::SYS_shutdown, "shutdown", Object::Open),
    (libc::SYS_connect, "connect", Object::Open),
    (libc::SYS_setsockopt, "setsockopt", Object::OpenAnd(2)),
    (libc::SYS_getsockopt, "getsockopt", Object::OpenAnd(2)),
    (libc::SYS_sendto, "sendto", Object::Open),
    (libc::SYS_pidfd_open, "pidfd_open", Object::Nothing),
    (libc::SYS_setresuid, "setresuid", Object::Nothing),
    (libc::SYS_capget, "capget", Object::Nothing),
    (libc::SYS_capset, "capset", Object::Nothing),
    (libc::SYS_setresgid, "setresgid", Object::Nothing),
    (libc::SYS_mmap, "mmap", Object::Nothing),
    (libc::SYS_brk, "brk", Object::Nothing),
    (libc::SYS_munmap, "munmap", Object::Nothing),
    (libc::SYS_mprotect, "mprotect", Object::Nothing),
    (libc::SYS_recvmsg, "recvmsg", Object::Open),
    (libc::SYS_getdents64, "getdents64", Object::Open),
    (libc::SYS_rt_sigprocmask, "rt_sigprocmask", Object::Nothing),
    (libc::SYS_rt_sigaction, "rt_sigaction", Object::Nothing),
    (libc::SYS_fcntl, "fcntl", Object::Open),
    (libc::SYS_close_range, "close_range", Object::Nothing),
    (libc::SYS_signalfd4, "signalfd4", Object::Nothing),
    (libc::SYS_clone, "clone", Object::Nothing),
    (libc::SYS_set_robust_list, "set_robust_list", Object::Nothing),
    (libc::SYS_wait4, "wait4", Object::Nothing),
    (libc::SYS_setgroups, "setgroups", Object::Nothing),
    (libc::SYS_setfsgid, "setfsgid", Object::Nothing),
    (libc::SYS_setfsuid, "setfsuid", Object::Nothing),
    (libc::SYS_prctl, "prctl", Object::Request),
    (libc::SYS_getrandom, "getrandom", Object::Nothing),
    (libc::SYS_keyctl, "keyctl", Object::Request),
    (libc::SYS_getpid, "getpid", Object::Nothing),
    (libc::SYS_getppid, "getppid", Object::Nothing),
    (libc::SYS_getuid, "getuid", Object::Nothing),
    (libc::SYS_getgid, "getgid", Object::Nothing),
    (libc::SYS_getgroups, "getgroups", Object::Nothing),
    (libc::SYS_setpgid, "setpgid", Object::Nothing),
    (libc::SYS_clone3, "clone3", Object::Nothing),
    (libc::SYS_madvise, "madvise", Object::Nothing),
    (libc::SYS_kill, "kill", Object::Nothing),
    (libc::SYS_mkdirat, "mkdirat", Object::PathAt),
    (libc::SYS_prlimit64, "prlimit64", Object::Nothing),
    (libc::SYS_getpriority, "getpriority", Object::Nothing),
    (libc::SYS_setpriority, "setpriority", Object::Nothing),
    (libc::SYS_ioprio_get, "ioprio_get", Object::Nothing),
    (libc::SYS_ioprio_set, "ioprio_set", Object::Nothing),
    (libc::SYS_sched_getattr, "sched_getattr", Object::Nothing),
    (libc::SYS_sched_setattr, "sched_setattr", Object::Nothing),
    (libc::SYS_sched_getaffinity, "sched_getaffinity", Object::Nothing),
    (libc::SYS_sched_setaffinity, "sched_setaffinity", Object::Nothing),
    (libc::SYS_exit_group, "exit_group", Object::Nothing),
    (libc::SYS_unshare, "unshare", Object::Nothing),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir", Object::Path),
    (libc::SYS_symlinkat, "symlinkat", Object::Nothing),
    (libc::SYS_mount, "mount", Object::PathInSecond),
    (libc::SYS_open_tree, "open_tree", Object::PathAt),
    (libc::SYS_move_mount, "move_mount", Object::PathAt),
    (libc::SYS_socketpair, "socketpair", Object::Nothing),
    (libc::SYS_sendmsg, "sendmsg", Object::Open),
];

/// What the module's handlers of fork(3) call, see its `setuid_guard.rs`, and nobody else in sshd.
/// (It closes descriptors too, as sshd does.)
const IN_FORK: [c_long; 2] = [libc::SYS_capget, libc::SYS_capset];

fn known(number: c_long) -> Option<&'static Known> {
    KNOWN.iter().find(|(known, ..)| *known == number)
}

/// One login, as it went.
pub struct Login {
    pub client: Done,
    pub calls: Vec<Call>,
    /// What must never be, and was.
    pub wrong: Vec<String>,
}

/// Which application lets people in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Sshd,
    /// With `join=now`.
    Su,
}

/// Logs in as a container's user, by a server of its own. `answer` is asked before each call of the
/// module's: an errno is the answer, else the kernel's is.
pub fn login(way: Way, uid: u32, command: &str, answer: impl Fn(&Call) -> Option<i32>) -> Login {
    let mut tracer = Tracer {
        uid,
        way,
        pid_1: leader(uid),
        mounts: namespace(leader(uid), "mnt").unwrap(),
        host_pids: namespace("self", "pid").unwrap(),
        calls: Vec::new(),
        wrong: Vec::new(),
    };
    let client = match way {
        Way::Sshd => tracer.sshd(command, &answer),
        Way::Su => tracer.su(command, &answer),
    };
    Login { client, calls: tracer.calls, wrong: tracer.wrong }
}

/// By their pids.
type Tracees = Mutex<BTreeMap<pid_t, Tracee>>;

/// Waits for the end of all, for as long as `patience` lasts. What is still there then would stay:
/// it is ended, and named.
fn await_the_end(tracees: &Tracees, patience: Duration) -> Option<String> {
    let started = Instant::now();
    while started.elapsed() < patience {
        if tracees.lock().unwrap().is_empty() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let left: Vec<_> = tracees.lock().unwrap().keys().copied().collect();
    let names = left.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default());
    let names: Vec<_> = names.collect();
    for pid in left {
        // SAFETY: takes two numbers; a tracee's number is its own until the tracer has seen its
        // end.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    Some(format!("left behind: {names:?}"))
}

/// Starts a program whose tracer this thread is. It stops before its first instruction.
#[allow(clippy::zombie_processes)] // `wait` sees to it, as to all tracees
fn start(mut program: Command, tracees: &Tracees) -> (Option<ChildStdout>, Option<ChildStderr>) {
    // SAFETY: ptrace(2) is a bare system call, as is wanted between fork and exec.
    unsafe { program.pre_exec(|| check(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0))) };
    let mut child = program.spawn().unwrap(); // our copies of what it has open end with `program`
    tracees.lock().unwrap().insert(child.id() as pid_t, Tracee { is_monitor: true, ..Tracee::default() });
    (child.stdout.take(), child.stderr.take())
}

struct Tracer {
    uid: u32,
    way: Way,
    /// The container's, as the host counts.
    pid_1: String,
    /// The container's mount namespace.
    mounts: String,
    host_pids: String,
    calls: Vec<Call>,
    wrong: Vec<String>,
}

/// What is known of a process.
#[derive(Clone, Default)]
struct Tracee {
    /// Whether it is the one that was started: sshd's monitor, su.
    is_monitor: bool,
    /// What it became when a hook forked.
    role: Role,
    /// Where the module begins in its memory. Each hook has a breakpoint from then on.
    module: Option<u64>,
    /// The module's file has been opened, so it may be mapped by now.
    module_opened: bool,
    /// The hook that runs.
    hook: Option<Running>,
    in_call: bool,
    /// Of a call of the module's that is under way: its number in `calls`, and the answer.
    pending: Option<(usize, Option<i32>)>,
}

/// The processes that a hook forks, and what is left of the one that does.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Role {
    #[default]
    Application,
    /// It has forked, and waits for the end of the other.
    Supervisor,
    /// sshd's monitor forked it to look at the container's terminals.
    Terminals,
    /// It was forked, and forks again.
    Helper,
    /// It has forked again. For sshd it ends; for `join=now` it waits as well.
    HelperThatHasForked,
    /// It was forked by the helper, and goes on as the application.
    Inside,
}

impl Role {
    /// Of a process that forks in a hook, and of its child.
    fn of_parent_and_child(self) -> (Self, Self) {
        match self {
            Self::Application => (Self::Supervisor, Self::Helper),
            Self::Helper => (Self::HelperThatHasForked, Self::Inside),
            other => (other, other),
        }
    }
}

#[derive(Clone, Copy)]
struct Running {
    hook: &'static Hook,
    /// Where it returns to, and the code that the breakpoint there hides.
    back: (u64, Code),
}

/// A function of the module that libpam calls.
struct Hook {
    symbol: &'static CStr,
    in_monitor: &'static str,
    in_child: &'static str,
}

static HOOKS: [Hook; 4] = [
    Hook { symbol: c"pam_sm_acct_mgmt", in_monitor: "acct_mgmt", in_child: "?" },
    Hook { symbol: c"pam_sm_setcred", in_monitor: "setcred", in_child: "setcred(child)" },
    Hook { symbol: c"pam_sm_open_session", in_monitor: "open_session", in_child: "open_session(child)" },
    Hook { symbol: c"pam_sm_close_session", in_monitor: "close_session", in_child: "close_session(child)" },
];

impl Tracer {
    fn sshd(&mut self, command: &str, answer: &dyn Fn(&Call) -> Option<i32>) -> Done {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (uid, tracees) = (self.uid, Tracees::default());
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let client = run("ssh", &[&format!("-p{port}"), &format!("{uid}@localhost"), command], b"");
                (client, await_the_end(&tracees, Duration::from_secs(5)))
            });
            let (connection, _) = listener.accept().unwrap();
            let connection = OwnedFd::from(connection);
            let mut sshd = Command::new("/usr/sbin/sshd");
            sshd.args(["-i", "-f", "/etc/ssh/sshd_config"]).stderr(Stdio::null());
            sshd.stdin(connection.try_clone().unwrap()).stdout(connection);
            start(sshd, &tracees);
            self.trace(&tracees, answer);
            let answered = || self.calls.iter().filter(|call| call.answered).collect::<Vec<_>>();
            let (client, left) = client.join().unwrap_or_else(|_| panic!("no end after {:?}", answered()));
            self.wrong.extend(left);
            client
        })
    }

    fn su(&mut self, command: &str, answer: &dyn Fn(&Call) -> Option<i32>) -> Done {
        let mut su = Command::new("su");
        su.args([&self.uid.to_string(), "-c", command]);
        su.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let tracees = Tracees::default();
        let (out, err) = start(su, &tracees);
        std::thread::scope(|scope| {
            let out = scope.spawn(|| std::io::read_to_string(out.unwrap()).unwrap());
            let err = scope.spawn(|| std::io::read_to_string(err.unwrap()).unwrap());
            let end = scope.spawn(|| await_the_end(&tracees, Duration::from_secs(20)));
            let status = self.trace(&tracees, answer);
            self.wrong.extend(end.join().unwrap());
            Done { status, out: out.join().unwrap(), err: err.join().unwrap() }
        })
    }

    /// Until the last tracee has ended. The exit status of the first is given back.
    fn trace(&mut self, tracees: &Tracees, answer: &dyn Fn(&Call) -> Option<i32>) -> Option<i32> {
        let first = *tracees.lock().unwrap().keys().next().unwrap();
        let mut exit_status = None;
        let mut configured = false;
        // Children whose first stop was seen before their parent's word of them.
        let mut early = BTreeSet::new();
        // The thread may have other children, which go on.
        while !(tracees.lock().unwrap().is_empty() && early.is_empty()) {
            let Some((pid, status)) = wait() else { break };
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                if pid == first && libc::WIFEXITED(status) {
                    exit_status = Some(libc::WEXITSTATUS(status));
                }
                tracees.lock().unwrap().remove(&pid);
                continue;
            }
            let Some(mut tracee) = tracees.lock().unwrap().get(&pid).cloned() else {
                early.insert(pid);
                continue;
            };
            let mut signal = libc::WSTOPSIG(status);
            match (signal, status >> 16) {
                (libc::SIGTRAP, 0) if !configured => {
                    configured = true;
                    let options = libc::PTRACE_O_TRACESYSGOOD
                        | libc::PTRACE_O_TRACEFORK
                        | libc::PTRACE_O_TRACEVFORK
                        | libc::PTRACE_O_TRACECLONE
                        | libc::PTRACE_O_TRACEEXEC
                        | libc::PTRACE_O_EXITKILL;
                    ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options as u64);
                    signal = 0;
                }
                (_, libc::PTRACE_EVENT_EXEC) => {
                    tracee = Tracee { in_call: true, is_monitor: tracee.is_monitor, ..Tracee::default() };
                    self.check_descriptors(pid);
                    signal = 0;
                }
                (_, event) if event != 0 => {
                    let mut child: u64 = 0;
                    ptrace(libc::PTRACE_GETEVENTMSG, pid, 0, &raw mut child as u64);
                    let mut inherited = Tracee { is_monitor: false, in_call: false, pending: None, ..tracee.clone() };
                    if tracee.hook.is_some() && tracee.is_monitor && self.way == Way::Sshd {
                        inherited.role = Role::Terminals;
                    } else if tracee.hook.is_some() {
                        (tracee.role, inherited.role) = tracee.role.of_parent_and_child();
                    }
                    let child = child as pid_t;
                    tracees.lock().unwrap().insert(child, inherited);
                    if early.remove(&child) {
                        ptrace(libc::PTRACE_SYSCALL, child, 0, 0);
                    }
                    signal = 0;
                }
                (SYSCALL_STOP, _) => {
                    self.call(pid, &mut tracee, answer);
                    signal = 0;
                }
                (libc::SIGTRAP, 0) if self.breakpoint(pid, &mut tracee) => signal = 0,
                (libc::SIGSTOP, _) => signal = 0, // a new tracee's first stop; nothing here stops by itself
                _ => {}
            }
            tracees.lock().unwrap().insert(pid, tracee);
            ptrace(libc::PTRACE_SYSCALL, pid, 0, signal as u64);
        }
        exit_status
    }

    /// A process enters a system call, or leaves it.
    fn call(&mut self, pid: pid_t, tracee: &mut Tracee, answer: &dyn Fn(&Call) -> Option<i32>) {
        tracee.in_call = !tracee.in_call;
        let Some(mut registers) = unless_gone(Registers::of(pid)) else { return };
        if !tracee.in_call {
            if let Some((call, errno)) = tracee.pending.take() {
                if let Some(errno) = errno {
                    registers.set_result(-i64::from(errno));
                    unless_gone(registers.write(pid));
                }
                self.calls[call].result = registers.result();
            }
            return;
        }
        let (number, arguments) = (registers.call(), registers.arguments());
        let Some(memory) = memory_of(pid) else { return };
        if number == libc::SYS_openat && text_at(&memory, arguments[1]).ends_with("/pam_unbit.so") {
            tracee.module_opened = true;
        }
        if tracee.module_opened && tracee.module.is_none() {
            tracee.module = module_in(pid);
            if let Some(module) = tracee.module {
                for hook in &HOOKS {
                    set_code(&memory, module + hook.offset(), BREAKPOINT);
                }
            }
        }
        let between = self.way == Way::Sshd && tracee.module.is_some() && IN_FORK.contains(&number);
        let step = match (tracee.hook, tracee.is_monitor, tracee.role) {
            (Some(_), _, Role::Supervisor) => "supervisor",
            (Some(_), _, Role::Terminals) => "terminals",
            (Some(_), _, Role::Helper) => "helper",
            (Some(_), _, Role::HelperThatHasForked) => "helper(forked)",
            (Some(_), _, Role::Inside) => "inside",
            (Some(running), true, Role::Application) => running.hook.in_monitor,
            (Some(running), false, Role::Application) => running.hook.in_child,
            (None, true, _) if between => "fork",
            (None, false, _) if between => "fork(child)",
            (None, ..) => {
                self.check_between(pid);
                return;
            }
        };
        let (object, path) = describe(pid, &memory, number, &arguments, self.uid, &self.pid_1);
        let before = self.calls.iter().filter(|call| (call.step, call.number, &call.object) == (step, number, &object));
        let nth = before.count() + 1;
        let mut call = Call { step, number, arguments, nth, object, result: 0, answered: false };
        let is_inside =
            || namespace(pid, "mnt").is_some_and(|now| now == self.mounts) && !is_unprivileged(pid, self.uid);
        // What terminals.rs looks up is not the tenant's.
        let is_allowed = step == "terminals" && ["/dev", "/dev/pts"].contains(&call.object.as_str());
        if path && !is_allowed && is_inside() {
            self.wrong.push(format!("root looks up a path of the tenant's: {call}"));
        }
        let errno = answer(&call);
        call.answered = errno.is_some();
        // close(2) lets go of the descriptor even when it fails.
        if errno.is_some() && number != libc::SYS_close {
            unless_gone(registers.skip_call(pid));
        }
        tracee.pending = Some((self.calls.len(), errno));
        self.calls.push(call);
    }

    /// A hook begins or returns. False if the process has trapped for a reason of its own.
    fn breakpoint(&mut self, pid: pid_t, tracee: &mut Tracee) -> bool {
        let Some(module) = tracee.module else { return false };
        let Some(mut registers) = unless_gone(Registers::of(pid)) else { return false };
        let here = registers.here();
        let Some(memory) = memory_of(pid) else { return false };
        if let Some(Running { hook, back: (_, hidden) }) = tracee.hook.take_if(|running| running.back.0 == here) {
            set_code(&memory, here, hidden);
            set_code(&memory, module + hook.offset(), BREAKPOINT);
            self.check_between(pid);
            if self.way == Way::Su && hook.in_monitor == "open_session" && tracee.is_monitor {
                self.check_refused(pid, registers.result() as i32);
            }
        } else if let Some(hook) = HOOKS.iter().find(|hook| module + hook.offset() == here) {
            set_code(&memory, here, hook.first_code());
            let Ok(back) = registers.return_address(&memory) else { return true };
            tracee.hook = Some(Running { hook, back: (back, set_code(&memory, back, BREAKPOINT)) });
        } else {
            return false;
        }
        registers.go_on_at(here);
        unless_gone(registers.write(pid));
        true
    }

    /// Wherever sshd is when the module is not at work.
    fn check_between(&mut self, pid: pid_t) {
        let Some(mounts) = namespace(pid, "mnt") else { return };
        let wrong = match (mounts != self.mounts, is_unprivileged(pid, self.uid)) {
            (true, true) => "a process of the container's on the host",
            (false, false) if self.way == Way::Su && is_bounded(pid, self.uid) => return,
            (false, false) => "a process with power in the container",
            (true, false) | (false, true) => return,
        };
        let wrong = format!("{wrong}: {}", fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim());
        if !self.wrong.contains(&wrong) {
            self.wrong.push(wrong);
        }
    }

    /// open_session of `join=now` returns in the application itself only when it refuses.
    fn check_refused(&mut self, pid: pid_t, answer: i32) {
        let children = namespace(pid, "pid_for_children");
        if answer == 0 || children.is_some_and(|children| children != self.host_pids) {
            self.wrong.push(format!("open_session ends with {answer}, and su's next child would be the container's"));
        }
    }

    /// After an exec.
    fn check_descriptors(&mut self, pid: pid_t) {
        for open in unbit_tests::descriptors(&pid.to_string()) {
            if [":[", "pidfd", "cgroup", "/proc"].iter().any(|part| open.contains(part))
                && !["socket:[", "pipe:["].iter().any(|part| open.starts_with(part))
            {
                self.wrong.push(format!("{open} is open after an exec"));
            }
        }
    }
}

/// What /proc/PID/status says; nothing when the process is gone.
struct Status(String);

impl Status {
    fn of(pid: pid_t) -> Self {
        Self(fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default())
    }

    fn line(&self, key: &str) -> &str {
        self.0.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim()
    }

    /// What is in any of these sets of capabilities.
    fn capabilities(&self, sets: &[&str]) -> u64 {
        sets.iter().map(|set| u64::from_str_radix(self.line(set), 16).unwrap_or(u64::MAX)).fold(0, |all, set| all | set)
    }
}

/// Whether every uid of a process is the container's, and it has no capability.
fn is_unprivileged(pid: pid_t, uid: u32) -> bool {
    let status = Status::of(pid);
    status.line("Uid:") == vec![uid.to_string(); 4].join("\t") && status.capabilities(&["CapPrm:", "CapEff:"]) == 0
}

/// Whether a process reaches files as the container's user, in its group alone, and has and can get
/// no capability but those of `join=now`: CHOWN, FOWNER, KILL, SETGID, SETUID, AUDIT_WRITE.
fn is_bounded(pid: pid_t, uid: u32) -> bool {
    const KEPT: u64 = 0x2000_00e9;
    let status = Status::of(pid);
    ["Uid:", "Gid:"].iter().all(|key| status.line(key).ends_with(&format!("\t{uid}")))
        && status.line("Groups:") == uid.to_string()
        && status.capabilities(&["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"]) & !KEPT == 0
}

/// `None` when the process is gone.
fn namespace(pid: impl fmt::Display, kind: &str) -> Option<String> {
    Some(fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?.to_string_lossy().into_owned())
}

/// What a call is about, and whether it looks up a path.
fn describe(pid: pid_t, memory: &File, number: c_long, arguments: &[u64; 6], uid: u32, pid_1: &str) -> (String, bool) {
    let uid = uid.to_string();
    let open = || {
        let link = fs::read_link(format!("/proc/{pid}/fd/{}", arguments[0] as i32));
        link.map(|link| link.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let (object, path) = match known(number).map_or(Object::Nothing, |(_, _, object)| *object) {
        #[cfg(target_arch = "x86_64")]
        Object::Path => (text_at(memory, arguments[0]), true),
        Object::PathInSecond => (text_at(memory, arguments[1]), true),
        Object::PathAt => match text_at(memory, arguments[1]) {
            empty if empty.is_empty() => (open(), false),
            // The root directory itself is there without being looked up.
            absolute if absolute.starts_with('/') => (absolute.clone(), absolute != "/"),
            relative => (format!("{}/{relative}", open()), true),
        },
        Object::Open => (open(), number == libc::SYS_connect),
        Object::OpenAnd(argument) => (format!("{} {:#x}", open(), arguments[argument]), false),
        Object::Request => (format!("request-{}", arguments[0]), false),
        Object::Nothing => (String::new(), false),
    };
    let object = object.split_inclusive(['/', '[', ']', ' ']).map(|word| {
        let end = word.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(word.len());
        let (number, rest) = word.split_at(end);
        let known = [("", ""), (uid.as_str(), "UID"), (pid_1, "PID1")].into_iter().find(|(known, _)| *known == number);
        format!("{}{rest}", known.map_or("N", |(_, name)| name))
    });
    (object.collect(), path)
}

impl Hook {
    /// The hook in our own memory, where the module is loaded only to be looked at.
    fn here(&self) -> (*const u8, u64) {
        // SAFETY: the module's file has no constructors; it stays loaded.
        let module = unsafe { libc::dlopen(module_file().as_ptr(), libc::RTLD_NOW) };
        assert!(!module.is_null(), "{:?} cannot be loaded", module_file());
        // SAFETY: the module is loaded and the name is a C string; dladdr writes what it finds.
        unsafe {
            let hook = libc::dlsym(module, self.symbol.as_ptr());
            let mut found: libc::Dl_info = std::mem::zeroed();
            assert_ne!(libc::dladdr(hook, &raw mut found), 0, "{:?} is not there", self.symbol);
            (hook.cast(), found.dli_fbase as u64)
        }
    }

    /// Its distance from where the module begins.
    fn offset(&self) -> u64 {
        let (hook, module) = self.here();
        hook as u64 - module
    }

    fn first_code(&self) -> Code {
        // SAFETY: code that is loaded, and a function is not shorter than a breakpoint.
        unsafe { *self.here().0.cast() }
    }
}

/// The module that is installed.
fn module_file() -> &'static CStr {
    static FILE: OnceLock<CString> = OnceLock::new();
    FILE.get_or_init(|| CString::new(sh("echo /usr/lib/*/security/pam_unbit.so").ok()).unwrap())
}

/// Where the module begins in a process, if all of it is there.
fn module_in(pid: pid_t) -> Option<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut lines = maps.lines().filter(|line| line.ends_with("/pam_unbit.so"));
    let begin = u64::from_str_radix(lines.next()?.split('-').next()?, 16).ok()?;
    lines.any(|line| line.contains(" r-xp ")).then_some(begin)
}

/// `None` when the process has been killed: the supervisor kills the helper, and the kernel who is
/// inside.
fn memory_of(pid: pid_t) -> Option<File> {
    match File::options().read(true).write(true).open(format!("/proc/{pid}/mem")) {
        Err(error) if [libc::ESRCH, libc::ENOENT, libc::EACCES].contains(&error.raw_os_error().unwrap()) => None,
        opened => Some(opened.unwrap()),
    }
}

/// Gives back the code that was there.
fn set_code(memory: &File, address: u64, code: Code) -> Code {
    let mut before = code;
    // Of one that has been killed meanwhile nothing can be read or written, and nothing runs any
    // more.
    let _ = memory.read_exact_at(&mut before, address).and_then(|()| memory.write_all_at(&code, address));
    before
}

fn text_at(memory: &File, address: u64) -> String {
    let mut text = vec![0; 256];
    let length = memory.read_at(&mut text, address).unwrap_or(0);
    text.truncate(length);
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&text[..end]).into_owned()
}

const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

fn check(result: c_long) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Of this thread's tracees, the next that has something to tell. `None` when all have ended.
fn wait() -> Option<(pid_t, i32)> {
    let mut status = 0;
    // SAFETY: writes one number.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    (pid > 0).then_some((pid, status))
}

/// A tracee may be killed at any moment; its end is the next thing that `wait` tells then.
fn unless_gone<T>(result: std::io::Result<T>) -> Option<T> {
    let gone = |error: &std::io::Error| error.raw_os_error() == Some(libc::ESRCH);
    assert!(result.as_ref().err().is_none_or(gone), "{:?}", result.err());
    result.ok()
}

fn ptrace(request: libc::c_uint, pid: pid_t, address: u64, data: u64) {
    // SAFETY: `data` is a number, or a pointer to what the request writes or reads.
    unless_gone(check(unsafe { libc::ptrace(request, pid, address, data) }));
}
