//! Looks at every process that is born in the pid namespace of a container, as the container's root
//! with CAP_SYS_PTRACE.
//!
//!     onlooker spin UID FILE COMMAND...   looks again and again, through /proc
//!     onlooker seize UID FILE COMMAND...  stops each process at birth, fork and exec, ptrace(2)
//!     onlooker grab UID FILE COMMAND...   tries in every way to get hold of each sshd
//!     onlooker grab PID                   the same once, and prints what it got
//!     onlooker inject PID NUMBER A B      makes a process do a system call with two arguments
//!
//! The first three fork. The child looks and appends lines to FILE: `born PID`; `missed PID` for a
//! process that ended before the first look; `whole PID`, or `session PID` if its parent is
//! outside, for the first look that was complete; and `wrong PID TEXT` for what no process of a
//! session may be or have. With `grab` the lines are `tried PID` and `got PID TEXT`. The parent
//! becomes the user UID and executes COMMAND.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::process::{self, Command};
use std::ptr;
use std::time::{Duration, Instant};
use unbit_tests::registers::inject;

fn main() {
    let words: Vec<_> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [way @ ("spin" | "seize" | "grab"), uid, file, program, ..] => {
            let uid = uid.parse().unwrap();
            // SAFETY: this program has one thread.
            if unsafe { libc::fork() } == 0 {
                let mut looker = Looker::new(uid, file);
                match way {
                    "spin" => looker.spin(),
                    "seize" => looker.seize(),
                    _ => looker.grab(),
                }
            }
            let error = Command::new(program).args(&words[4..]).gid(uid).uid(uid).exec();
            panic!("{program}: {error}");
        }
        ["grab", pid] => println!("{}", grab(pid.parse().unwrap()).join(", ")),
        ["inject", pid, number, a, b] => {
            let [number, a, b] = [number, a, b].map(|word| word.parse::<i64>().unwrap() as u64);
            println!("{}", inject(pid.parse().unwrap(), number, a, b).unwrap());
        }
        _ => process::exit(2),
    }
}

/// What every process of the container has, and every session must have.
struct Looker {
    uid: u32,
    file: File,
    root: (u64, u64),
    mounts: BTreeSet<String>,
    bounding_set: u64,
    network: Option<u64>,
    looked_at: BTreeMap<i32, Born>,
    next: i32,
    turns: u32,
}

struct Born {
    looks: u32,
    last: Instant,
    whole: bool,
}

/// What one look at a process found, and whether the look was complete.
#[derive(Default)]
struct Look {
    wrong: Vec<String>,
    whole: bool,
    parent_is_outside: bool,
}

const NAMESPACES: [&str; 7] = ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"];

impl Looker {
    fn new(uid: u32, file: &str) -> Self {
        let root = fs::metadata("/").unwrap();
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        Self {
            uid,
            file: OpenOptions::new().create(true).append(true).open(file).unwrap(),
            root: (root.dev(), root.ino()),
            mounts: mountinfo.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect(),
            bounding_set: mask(&status, "CapBnd"),
            network: UdpSocket::bind("127.0.0.1:0").ok().and_then(|socket| network_of(&socket)),
            looked_at: BTreeMap::new(),
            next: process::id() as i32 + 1,
            turns: 0,
        }
    }

    fn tell(&mut self, line: &str) {
        self.file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The kernel hands out numbers one after the other.
    fn newborn(&mut self) -> Vec<i32> {
        let first = self.next;
        // Now and then look further ahead: many may have come and gone while this process did not
        // run.
        self.turns = self.turns.wrapping_add(1);
        let ahead = if self.turns % 64 == 0 { 512 } else { 8 };
        let Some(last) = (first..first + ahead).rev().find(|pid| exists(*pid)) else { return Vec::new() };
        self.next = last + 1;
        let (born, missed): (Vec<_>, Vec<_>) = (first..=last).partition(|pid| exists(*pid));
        for pid in missed {
            self.tell(&format!("missed {pid}"));
        }
        for pid in &born {
            self.tell(&format!("born {pid}"));
            self.looked_at.insert(*pid, Born { looks: 0, last: Instant::now(), whole: false });
        }
        born
    }

    fn spin(&mut self) -> ! {
        loop {
            for pid in self.newborn() {
                self.look_at(pid);
            }
            // The youngest most often: what they are in their first microseconds counts.
            let now = Instant::now();
            let due = |born: &Born| born.looks < 100 || now - born.last > Duration::from_millis(20);
            let due: Vec<_> = self.looked_at.iter().filter(|(_, born)| due(born)).map(|(pid, _)| *pid).collect();
            for pid in due {
                self.look_at(pid);
                for newborn in self.newborn() {
                    self.look_at(newborn);
                }
            }
        }
    }

    fn seize(&mut self) -> ! {
        loop {
            for pid in self.newborn() {
                let options = libc::PTRACE_O_TRACEFORK
                    | libc::PTRACE_O_TRACEVFORK
                    | libc::PTRACE_O_TRACECLONE
                    | libc::PTRACE_O_TRACEEXEC;
                // SAFETY: takes numbers. It fails for the child of a traced process, which is
                // traced already.
                unsafe {
                    if libc::ptrace(libc::PTRACE_SEIZE, pid, 0usize, options as usize) == 0 {
                        libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0usize, 0usize);
                    }
                }
                self.look_at(pid);
            }
            let mut status = 0;
            // SAFETY: status is an int of ours.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
            if pid <= 0 || !libc::WIFSTOPPED(status) {
                continue;
            }
            self.look_at(pid);
            let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
            let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal);
            let (request, signal) = match event {
                libc::PTRACE_EVENT_STOP if stops => (libc::PTRACE_LISTEN, 0),
                0 => (libc::PTRACE_CONT, signal),
                _ => (libc::PTRACE_CONT, 0),
            };
            // SAFETY: numbers alone.
            unsafe { libc::ptrace(request, pid, 0usize, signal as usize) };
        }
    }

    fn grab(&mut self) -> ! {
        let mut processes = BTreeSet::new();
        loop {
            processes.extend(self.newborn());
            processes.retain(|pid| exists(*pid));
            for pid in processes.clone() {
                if is_called_sshd(pid) {
                    let got = grab(pid);
                    // What it has executed meanwhile is the user's own program.
                    if !got.is_empty() && is_called_sshd(pid) {
                        self.tell(&format!("got {pid} {}", got.join(", ")));
                    }
                    if self.looked_at.remove(&pid).is_some() {
                        self.tell(&format!("tried {pid}"));
                    }
                }
            }
        }
    }

    fn look_at(&mut self, pid: i32) {
        let Some(look) = self.look(pid) else {
            self.looked_at.remove(&pid);
            return;
        };
        let born = self.looked_at.entry(pid).or_insert(Born { looks: 0, last: Instant::now(), whole: false });
        (born.looks, born.last) = (born.looks + 1, Instant::now());
        let (nth, first_whole) = (born.looks, look.whole && !born.whole);
        born.whole |= look.whole;
        for wrong in look.wrong {
            self.tell(&format!("wrong {pid} look {nth}: {wrong}"));
        }
        if first_whole {
            self.tell(&format!("{} {pid} look {nth}", if look.parent_is_outside { "session" } else { "whole" }));
        }
    }

    /// Looks at a process once; `None` if it has ended.
    fn look(&self, pid: i32) -> Option<Look> {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
        let status = read("status")?;
        if field(&status, "State").starts_with(['Z', 'X']) {
            return None;
        }
        let mut look = Look { whole: true, parent_is_outside: field(&status, "PPid") == "0", ..Look::default() };
        let name = field(&status, "Name").to_owned();
        let mut wrong = |text: String| look.wrong.push(format!("{name} {text}"));

        let own = self.uid.to_string();
        for ids in ["Uid", "Gid", "Groups"] {
            if field(&status, ids).split_whitespace().any(|id| id != own) {
                wrong(format!("has {ids} {}", field(&status, ids).replace('\t', " ")));
            }
        }
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            if mask(&status, set) != 0 {
                wrong(format!("has {set} {:x}", mask(&status, set)));
            }
        }
        if mask(&status, "CapBnd") & !self.bounding_set != 0 {
            wrong(format!("has CapBnd {:x}, pid 1 {:x}", mask(&status, "CapBnd"), self.bounding_set));
        }

        match fs::metadata(format!("/proc/{pid}/root")) {
            Ok(root) if (root.dev(), root.ino()) != self.root => {
                let entries = fs::read_dir(format!("/proc/{pid}/root")).into_iter().flatten().flatten();
                let names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
                wrong(format!("has another root directory, with {}", names.join(" ")));
            }
            Ok(_) => {}
            Err(_) => look.whole = false,
        }
        // A working directory is a way out as well: CVE-2024-21626.
        match mount_of_working_directory(pid) {
            Some(mount) if !self.mounts.contains(&mount) => {
                wrong("has a working directory on a mount of the node's".to_owned())
            }
            Some(_) => {}
            None => look.whole = false,
        }
        for kind in NAMESPACES {
            let [its, ours] = [pid, 1].map(|pid| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok());
            look.whole &= its.is_some();
            if its.is_some() && its != ours {
                wrong(format!("is in {its:?}, not in {ours:?}"));
            }
        }
        match (read("cgroup"), fs::read_to_string("/proc/1/cgroup").ok()) {
            // A process that is ending appears in the root of every hierarchy of cgroup v1.
            (Some(its), Some(ours)) if its != ours && !is_ending(pid) => {
                let other: Vec<_> = its.lines().filter(|line| !ours.lines().any(|own| own == *line)).collect();
                wrong(format!("is in other cgroups: {}", other.join(" ")));
            }
            (Some(_), _) => {}
            _ => look.whole = false,
        }
        // The program is the node's file, and the container's user must not reach it through /proc.
        // Root owns the files in /proc of a process that is not dumpable, except the directory
        // itself.
        let is_dumpable = || fs::metadata(format!("/proc/{pid}/status")).is_ok_and(|file| file.uid() != 0);
        if is_sshd(pid) && is_dumpable() && is_sshd(pid) {
            wrong("runs sshd and is dumpable".to_owned());
        }
        match self.descriptors(pid) {
            Ok(found) => found.into_iter().for_each(|found| wrong(format!("holds {found}"))),
            Err(_) => look.whole = false,
        }
        Some(look)
    }

    /// The descriptors that must not be open.
    fn descriptors(&self, pid: i32) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let number = entry?.file_name().to_string_lossy().into_owned();
            let link = format!("/proc/{pid}/fd/{number}");
            // It may have been closed meanwhile.
            let Ok(open) = fs::read_link(&link) else { continue };
            let open = open.to_string_lossy().into_owned();
            let bad = if open.starts_with("pipe:[") {
                None
            } else if open.starts_with("socket:[") {
                self.socket(pid, number.parse().unwrap())
            } else if open.starts_with(['/', '(']) {
                let Ok(file) = fs::metadata(&link) else { continue };
                let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
                let mount = field(&info, "mnt_id");
                let elsewhere = !mount.is_empty() && !self.mounts.contains(mount);
                (!is_harmless_device(&file) && elsewhere)
                    .then(|| format!("a file on a mount of the node's (mode {:o})", file.mode()))
            } else {
                Some("something that no session needs".to_owned())
            };
            // It may have been closed, and its number used again, meanwhile.
            let is_the_same = |_: &String| fs::read_link(&link).is_ok_and(|again| again.to_string_lossy() == open);
            if let Some(bad) = bad.filter(is_the_same) {
                found.push(format!("{open}: {bad}"));
            }
        }
        Ok(found)
    }

    /// From the node's network namespace a session may have its connection to the client and socket
    /// pairs with the monitor.
    fn socket(&self, pid: i32, number: i32) -> Option<String> {
        let own = self.network?;
        // SAFETY: numbers alone; what comes back is ours.
        let socket = unsafe {
            let process = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
            if process < 0 {
                return None;
            }
            let process = OwnedFd::from_raw_fd(process);
            let socket = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) as i32;
            if socket < 0 {
                return None;
            }
            OwnedFd::from_raw_fd(socket)
        };
        let option = |name| option::<i32>(&socket, name).unwrap_or(-1);
        if network_of(&socket)? == own {
            return None;
        }
        let (domain, kind) = (option(libc::SO_DOMAIN), option(libc::SO_TYPE));
        let listens = option(libc::SO_ACCEPTCONN) != 0;
        let is_client = [libc::AF_INET, libc::AF_INET6].contains(&domain) && kind == libc::SOCK_STREAM;
        let is_pair = domain == libc::AF_UNIX && kind == libc::SOCK_STREAM && !has_name(&socket);
        (listens || !(is_client || is_pair))
            .then(|| format!("a socket of the node's network: domain {domain}, type {kind}, listens: {listens}"))
    }
}

/// What root inside gets of a process that runs sshd, and goes on to run it.
fn grab(pid: i32) -> Vec<String> {
    let mut got = Vec::new();
    let mut tried = |what: &str, success: bool| {
        if success && is_called_sshd(pid) {
            got.push(what.to_owned());
        }
    };
    let file = |name: &str| format!("/proc/{pid}/{name}");
    tried("its memory", OpenOptions::new().read(true).write(true).open(file("mem")).is_ok());
    tried("its program", File::open(file("exe")).is_ok());
    tried("its root directory", fs::read_dir(file("root")).is_ok());
    tried("its descriptors", fs::read_dir(file("fd")).is_ok());
    tried("its environment", fs::read(file("environ")).is_ok());
    // SAFETY: numbers alone; what pidfd_getfd makes is closed.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        if process >= 0 {
            let process = OwnedFd::from_raw_fd(process);
            for number in 0..16 {
                let descriptor = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) as i32;
                tried("a descriptor", descriptor >= 0);
                if descriptor >= 0 {
                    libc::close(descriptor);
                }
            }
        }
        let traced = libc::ptrace(libc::PTRACE_SEIZE, pid, 0usize, 0usize) == 0;
        tried("control", traced);
        if traced {
            libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0usize, 0usize);
            libc::waitpid(pid, ptr::null_mut(), libc::__WALL);
            libc::ptrace(libc::PTRACE_DETACH, pid, 0usize, 0usize);
        }
    }
    got
}

/// By its number in mountinfo.
fn mount_of_working_directory(pid: i32) -> Option<String> {
    let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(format!("/proc/{pid}/cwd")).ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", place.as_raw_fd())).ok()?;
    Some(field(&info, "mnt_id").to_owned())
}

/// By its name, which everybody may read.
fn is_called_sshd(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("sshd"))
}

fn is_sshd(pid: i32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe"));
    program.is_ok_and(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sshd")))
}

fn exists(pid: i32) -> bool {
    // SAFETY: no signal is sent.
    unsafe { libc::kill(pid, 0) == 0 }
}

/// PF_EXITING of the flags in proc_pid_stat(5).
fn is_ending(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & 4 != 0)
}

/// null, zero, full, random, urandom, tty, ptmx and the terminals, which lead nowhere.
fn is_harmless_device(file: &fs::Metadata) -> bool {
    let number = (libc::major(file.rdev()), libc::minor(file.rdev()));
    file.file_type().is_char_device() && matches!(number, (1, 3 | 5 | 7 | 8 | 9) | (5, 0 | 2) | (136..=143, _))
}

/// SO_NETNS_COOKIE of socket(7), from Linux 5.14 on.
fn network_of(socket: &impl AsRawFd) -> Option<u64> {
    option(socket, 71)
}

fn option<T: Default>(socket: &impl AsRawFd, name: i32) -> Option<T> {
    let (mut value, mut length) = (T::default(), mem::size_of::<T>() as u32);
    // SAFETY: the value is as long as said.
    let answer = unsafe {
        let value = ptr::from_mut(&mut value).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, value, &mut length)
    };
    (answer == 0).then_some(value)
}

/// Whether a unix socket or its peer has an address. Those of a pair have none.
fn has_name(socket: &impl AsRawFd) -> bool {
    [libc::getsockname, libc::getpeername].iter().any(|ask| {
        // SAFETY: all zeroes is an address, and it is as long as said.
        unsafe {
            let mut address: libc::sockaddr_un = mem::zeroed();
            let mut length = mem::size_of_val(&address) as u32;
            ask(socket.as_raw_fd(), ptr::from_mut(&mut address).cast(), &mut length) == 0 && length > 2
        }
    })
}

fn field<'a>(status: &'a str, key: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap_or_default().trim()
}

fn mask(status: &str, key: &str) -> u64 {
    u64::from_str_radix(field(status, key), 16).unwrap()
}
