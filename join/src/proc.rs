//! Reads a process's directory in /proc: files, namespaces, fields of its status.
//!
//! The directory is held open, because a process can end and its pid be reused at any moment.
//! Nothing is decided here, but in [`leader`](crate::leader) and [`link_rules`](crate::link_rules).

use crate::sys::{names_in, retry};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use shared::ContainerUid;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::time::Duration;

/// The identity of a file or a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    /// Whether both are on one file system.
    pub const fn is_on_the_device_of(self, other: Self) -> bool {
        self.device == other.device
    }
}

impl From<FileStat> for Inode {
    fn from(status: FileStat) -> Self {
        Self { device: status.st_dev, number: status.st_ino }
    }
}

/// The pids of all processes, in the pid namespace of /proc.
pub fn pids() -> io::Result<impl Iterator<Item = i32>> {
    Ok(std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// A process's directory in /proc. Once the process has ended, every lookup in it fails with ESRCH.
#[derive(Debug)]
pub struct Proc(OwnedFd);

impl Proc {
    /// The process with this pid, in the pid namespace of /proc.
    pub fn of(pid: i32) -> nix::Result<Self> {
        Self::at(&format!("/proc/{pid}"))
    }

    /// The calling process.
    pub fn of_self() -> nix::Result<Self> {
        Self::at("/proc/self")
    }

    /// A namespace of the calling process.
    pub fn own_namespace(name: &str) -> nix::Result<Inode> {
        Self::of_self()?.namespace(name)
    }

    /// Tells this process from later ones with the same pid: the kernel numbers the inodes of these
    /// directories with a counter (`proc_pid_make_inode()` in fs/proc/base.c).
    pub(crate) fn identity(&self) -> nix::Result<Inode> {
        retry(|| fstat(&self.0)).map(Inode::from)
    }

    /// [`Proc::identity`] for one of the directories in it: `task/TID`.
    pub(crate) fn identity_of(&self, directory: &str) -> nix::Result<Inode> {
        retry(|| fstatat(&self.0, directory, AtFlags::AT_SYMLINK_NOFOLLOW)).map(Inode::from)
    }

    fn at(path: &str) -> nix::Result<Self> {
        retry(|| open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())).map(Self)
    }

    /// Opens one of its files for reading.
    pub fn open(&self, name: &str) -> nix::Result<OwnedFd> {
        self.at_name(name, OFlag::O_RDONLY)
    }

    /// Opens one of its files for writing.
    pub fn open_to_write(&self, name: &str) -> nix::Result<OwnedFd> {
        self.at_name(name, OFlag::O_WRONLY)
    }

    /// Opens the target of one of its links with O_PATH.
    pub fn open_path(&self, name: &str) -> nix::Result<OwnedFd> {
        self.at_name(name, OFlag::O_PATH)
    }

    /// Opens one of its directories, or the directory that one of its links leads to, with O_PATH.
    pub fn open_directory(&self, name: &str) -> nix::Result<OwnedFd> {
        self.at_name(name, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    fn at_name(&self, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        retry(|| openat(&self.0, name, flags | OFlag::O_CLOEXEC, Mode::empty())).map_err(|errno| self.real_errno(errno))
    }

    /// If a process ends while one of its links is followed, Linux returns EACCES
    /// (proc_ns_get_link() and proc_pid_get_link()), as for a link that may not be followed. Only
    /// in the second case does the process still exist.
    fn real_errno(&self, errno: Errno) -> Errno {
        match errno {
            Errno::EACCES => retry(|| fstatat(&self.0, "status", AtFlags::empty())).err().unwrap_or(errno),
            errno => errno,
        }
    }

    /// Reads one of its files whole. Names in it may be any bytes; what is not UTF-8 becomes a name
    /// that no file has.
    pub fn read(&self, name: &str) -> std::io::Result<String> {
        read_whole(self.open(name)?)
    }

    /// How long ago the process began, rounded up to a tick of the kernel's.
    pub fn age(&self) -> io::Result<Duration> {
        let unreadable = || io::Error::other("stat has no start of the process");
        let ticks: u64 = stat_field(&self.read("stat")?, START).ok_or_else(unreadable)?;
        let a_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok());
        let began = ticks.saturating_mul(1000).checked_div(a_second.unwrap_or(0)).ok_or_else(unreadable)?;
        Ok(Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?).saturating_sub(Duration::from_millis(began)))
    }

    /// The namespace behind one of its links in `ns/`.
    pub fn namespace(&self, name: &str) -> nix::Result<Inode> {
        self.at_namespace("", name)
    }

    /// The names in one of its directories.
    pub(crate) fn names(&self, directory: &str) -> nix::Result<Vec<String>> {
        names_in(&self.0, directory)
    }

    /// [`Proc::namespace`] for one of its threads: `task/PID/`.
    pub(crate) fn at_namespace(&self, thread: &str, name: &str) -> nix::Result<Inode> {
        let link = format!("{thread}ns/{name}");
        let status = retry(|| fstatat(&self.0, link.as_str(), AtFlags::empty()));
        status.map(Inode::from).map_err(|errno| self.real_errno(errno))
    }
}

/// Reads an open file of /proc whole, see [`Proc::read`].
pub fn read_whole(file: OwnedFd) -> std::io::Result<String> {
    let mut text = Vec::with_capacity(4096); // /proc reports no size, and std would begin with 32 bytes
    File::from(file).read_to_end(&mut text)?;
    Ok(text_of(&text))
}

/// Replaces invalid UTF-8 by NUL, which no file name has. A tenant could give a name with U+FFFD to
/// another directory.
pub(crate) fn text_of(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            text.push('\0');
        }
    }
    text
}

/// The text of a process's status, proc_pid_status(5).
#[derive(Clone, Copy)]
pub struct Status<'a>(&'a str);

impl<'a> Status<'a> {
    /// The status with this text.
    pub const fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// The value of a field.
    pub fn field(self, key: &str) -> Option<&'a str> {
        self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
    }

    /// The numbers in a field.
    pub fn numbers(self, key: &str) -> Result<Vec<u32>, String> {
        self.field(key)
            .and_then(|field| field.split_whitespace().map(|number| number.parse().ok()).collect())
            .ok_or_else(|| format!("its status has no readable {key}"))
    }

    /// A set of capabilities, as a mask of bits.
    pub fn capabilities(self, key: &str) -> Result<u64, String> {
        let set = self.field(key).and_then(|set| u64::from_str_radix(set, 16).ok());
        set.ok_or_else(|| format!("its status has no readable {key}"))
    }

    /// Its parent in this pid namespace; 0 if that is in another one.
    pub fn parent(self) -> Option<i32> {
        i32::try_from(*self.numbers("PPid").ok()?.first()?).ok()
    }

    /// Its real, effective, saved and file system uid.
    pub fn uids(self) -> Option<Vec<u32>> {
        self.numbers("Uid").ok()
    }

    /// Its pids, from this pid namespace to its own.
    pub fn nspid(self) -> Option<Vec<u32>> {
        self.numbers("NSpid").ok()
    }

    /// Whether it is a zombie, or its state is not known.
    pub fn has_ended(self) -> bool {
        self.field("State").is_none_or(|state| state.starts_with(['Z', 'X']))
    }

    /// The uid of a pid 1, if its pid namespace is a direct child of this one, it has one uid only,
    /// and it has not ended.
    pub fn uid_if_pid_1(self) -> Option<u32> {
        match (self.nspid()?.as_slice(), self.uids()?.as_slice()) {
            ([_, 1], [uid, others @ ..]) if others.iter().all(|other| other == uid) && !self.has_ended() => Some(*uid),
            _ => None,
        }
    }

    /// Whether it can be an Emperor: root's uWSGI, in no container.
    pub fn is_emperor(self) -> bool {
        self.field("Name").is_some_and(|name| name.starts_with("uwsgi"))
            && self.uids().is_some_and(|uids| uids.first() == Some(&0))
            && self.nspid().is_some_and(|pids| pids.len() == 1)
            && !self.has_ended()
    }

    /// The container whose pid 1 it is, and its parent, which has started the container.
    pub fn container_pid_1(self) -> Option<(ContainerUid, i32)> {
        Some((ContainerUid::new(self.uid_if_pid_1()?)?, self.parent()?))
    }
}

/// The field of /proc/PID/stat that says when the process began, in clock ticks since boot.
pub const START: usize = 22;

/// A field of /proc/PID/stat behind the second, counted from one, see proc_pid_stat(5). The second
/// is a name in parentheses, which may hold anything.
pub fn stat_field<T: FromStr>(stat: &str, field: usize) -> Option<T> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

/// `None` if the result says that the process has ended.
pub fn unless_ended<T>(result: nix::Result<T>) -> nix::Result<Option<T>> {
    match result {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_containers_pid_1_has_one_uid_and_is_1_in_a_direct_child() {
        let status = |state: &str, nspid: &str, uid: &str| {
            format!("Name:\tx\nState:\t{state}\nPPid:\t7\nUid:\t{uid}\nNSpid:\t{nspid}\n")
        };
        let own = "30001\t30001\t30001\t30001";
        let good = status("S (sleeping)", "42\t1", own);
        assert_eq!(Status::new(&good).container_pid_1(), Some((ContainerUid::new(30001).unwrap(), 7)));
        assert_eq!(Status::new(&good.replace("State:\tS", "Xtate:\tS")).container_pid_1(), None);
        for (state, nspid, uid) in [
            ("Z (zombie)", "42\t1", own),
            ("S", "42", own),
            ("S", "42\t2", own),
            ("S", "42\t9\t1", own),
            ("S", "42\t1", "0\t0\t0\t0"),
            ("S", "42\t1", "33\t33\t33\t33"),
            ("S", "42\t1", "30001\t0\t30001\t30001"),
        ] {
            assert_eq!(Status::new(&status(state, nspid, uid)).container_pid_1(), None, "{state} {nspid} {uid}");
        }
        let roots = status("S", "42\t1", "0\t0\t0\t0");
        assert_eq!(Status::new(&roots).uid_if_pid_1(), Some(0));
    }

    #[test]
    fn a_process_is_as_old_as_the_time_since_it_was_started() {
        let before = std::time::Instant::now();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let age = Proc::of(i32::try_from(child.id()).unwrap()).unwrap().age().unwrap();
        assert!(age <= before.elapsed() + Duration::from_millis(10), "{age:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(Proc::of_self().unwrap().age().unwrap() > age);
    }

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 99";
        assert_eq!(stat_field(stat, START), Some(4711));
        assert_eq!(stat_field("7 (a) b (c) S 1 7 6 0 -1", 6), Some(6));
        assert_eq!(stat_field("7 (a) b (c) S 1 7 7 34816 -1", 7), Some(34816));
        assert_eq!(stat_field("7 (uwsgi) S 1 7 7 0 -1", 7), Some(0));
        assert_eq!(stat_field::<i32>("7 (x", 7), None);
        assert_eq!(stat_field::<u64>("7 (x", START), None);
    }

    /// Without [`Proc::real_errno`], one look in ten ended with EACCES.
    #[test]
    fn a_process_that_ends_while_it_is_looked_at_has_ended() {
        type Look = fn(&Proc) -> nix::Result<()>;
        let looks: [Look; 3] = [
            |process| process.namespace("user").map(drop),
            |process| process.open("ns/pid").map(drop),
            |process| process.open_path("exe").map(drop),
        ];
        for look in looks {
            for _ in 0..100 {
                let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
                let process = Proc::of(i32::try_from(child.id()).unwrap()).unwrap();
                std::thread::scope(|scope| {
                    scope.spawn(|| child.wait().unwrap());
                    let end = loop {
                        match look(&process) {
                            Ok(()) => {}
                            Err(errno) => break errno,
                        }
                    };
                    assert!(matches!(end, Errno::ENOENT | Errno::ESRCH), "{end}");
                });
            }
        }
    }
}
