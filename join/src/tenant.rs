//! Reads and writes a tenant's files.
//!
//! The tenant owns its home directory, and anything can be in it. So no root process opens a path
//! below it. A child process does, which runs as the tenant without other groups or capabilities,
//! and is killed if it takes too long.
//!
//! What is read or written is decided by the callers.

use crate::deadline::{Incomplete, is_ready, read_within};
use crate::privileges;
use crate::refusal::Refusal;
use crate::sys::{become_user, close_all_but, exit_now, fork, pidfd_open, retry};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, fstat, fstatat, mkdirat, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, UnlinkatFlags, fsync, getpid, pipe2, setsid, unlinkat};
use shared::{ContainerUid, escape};
use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the child process may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to end when it is killed.
const EXIT_TIME: Duration = Duration::from_secs(1);
/// An unfinished file that is this many seconds old will not be finished.
const UNFINISHED: u64 = 300;
/// The longest answer, in bytes, of which the first is [`DONE`] or [`FAILED`].
const MAX_OUTPUT: usize = 2 << 20;

const DONE: u8 = b'd';
const FAILED: u8 = b'f';

/// Runs `work` in a child process as the container's user, with no group and no capability, and
/// returns its result. The calling process must be root and have one thread.
pub fn run_as(uid: ContainerUid, work: impl FnOnce() -> Result<Vec<u8>, String>) -> Result<Vec<u8>, String> {
    run_within(uid, TIMEOUT, work)
}

fn run_within(
    uid: ContainerUid,
    limit: Duration,
    work: impl FnOnce() -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, String> {
    let home = uid.home();
    let home = home.as_c_str().to_string_lossy();
    let failed = |step: &str, errno: Errno| format!("{home}: {step}: {errno}");
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("make a pipe", errno))?;
    let ForkResult::Parent { child } = fork().map_err(|errno| failed("fork", errno))? else {
        drop(reader);
        let (kind, text) = match become_tenant(uid, &writer).and_then(|()| work()) {
            Ok(text) => (DONE, text),
            Err(text) => (FAILED, text.into_bytes()),
        };
        let mut pipe = File::from(writer);
        let _ = pipe.write_all(&[kind]).and_then(|()| pipe.write_all(&text));
        exit_now(0)
    };
    drop(writer);
    let text = read_within(&mut File::from(reader), limit, MAX_OUTPUT);
    end(child);
    let text = text.map_err(|incomplete| match incomplete {
        Incomplete::TimedOut(_) => format!("{home}: its file system does not answer within {} s", limit.as_secs()),
        Incomplete::TooLong => format!("{home}: the process that works there writes more than {MAX_OUTPUT} bytes"),
        Incomplete::Failed(error) => format!("{home}: read what the process that works there writes: {error}"),
    })?;
    match text.split_first() {
        Some((&DONE, text)) => Ok(text.to_vec()),
        Some((&FAILED, text)) => Err(format!("{home}: {}", escape::line(&String::from_utf8_lossy(text)))),
        _ => Err(format!("{home}: the process that works there was killed")),
    }
}

/// Kills the child and reaps it. A file system can hold it up even then, for good: so this waits no
/// longer than [`EXIT_TIME`], and a later call reaps it.
fn end(child: Pid) {
    static KILLED: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
    let _ = kill(child, Signal::SIGKILL);
    let _ = pidfd_open(child.as_raw()).map(|pidfd| is_ready(&pidfd, EXIT_TIME));
    let mut killed = KILLED.lock().unwrap_or_else(PoisonError::into_inner);
    killed.push(child);
    killed.retain(|child| matches!(retry(|| waitpid(*child, Some(WaitPidFlag::WNOHANG))), Ok(WaitStatus::StillAlive)));
}

fn become_tenant(uid: ContainerUid, kept: &OwnedFd) -> Result<(), String> {
    let refused = |refusal: Refusal| refusal.cause;
    let failed = |errno: Errno| errno.to_string();
    setsid().map_err(failed)?;
    close_all_but(kept).map_err(failed)?;
    umask(Mode::from_bits_truncate(0o077));
    privileges::leave_groups().map_err(refused)?;
    become_user(uid.get(), uid.get()).map_err(failed)?;
    privileges::drop_all(uid, &[]).map_err(refused)?;
    set_pdeathsig(Signal::SIGKILL).map_err(failed) // last, because a change of uid clears it
}

/// Why an account's home directory cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HomeError {
    /// It cannot be opened.
    Open(Errno),
    /// It was opened, and its owner cannot be read.
    Stat(Errno),
    /// It is not the account's.
    NotOwned {
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

impl Display for HomeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(errno) | Self::Stat(errno) => write!(f, "{errno}"),
            Self::NotOwned { uid, gid } => write!(f, "it belongs to {uid}:{gid}"),
        }
    }
}

impl From<HomeError> for String {
    fn from(error: HomeError) -> Self {
        error.to_string()
    }
}

/// Opens the account's home directory. It may be a symbolic link, which only root can make; its
/// target is checked.
pub fn open_home(uid: ContainerUid) -> Result<OwnedFd, HomeError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let home = retry(|| open(uid.home().as_c_str(), flags, Mode::empty())).map_err(HomeError::Open)?;
    let status = retry(|| fstat(&home)).map_err(HomeError::Stat)?;
    if !uid.owns_directory(status.st_mode, status.st_uid, status.st_gid) {
        return Err(HomeError::NotOwned { uid: status.st_uid, gid: status.st_gid });
    }
    Ok(home)
}

/// A directory in the account's home, for the process of [`run_as`].
pub struct Directory {
    open: OwnedFd,
    name: &'static str,
}

impl Directory {
    /// Opens one; `None` if it does not exist. No symbolic link is followed.
    pub fn open(home: &OwnedFd, name: &'static str) -> Result<Option<Self>, String> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(home, name, flags, Mode::empty()) {
            Ok(open) => Ok(Some(Self { open, name })),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                Err(format!("{name} is a symbolic link or no directory, and is left as it is"))
            }
            Err(errno) => Err(format!("{name}: {errno}")),
        }
    }

    /// Makes one with mode 0700.
    pub fn make(home: &OwnedFd, name: &'static str) -> Result<Self, String> {
        mkdirat(home, name, Mode::S_IRWXU).map_err(|errno| format!("make {name}: {errno}"))?;
        Self::open(home, name)?.ok_or_else(|| format!("{name}: {}", Errno::ENOENT))
    }

    /// Replaces `file` atomically. Until it is complete, the new file has the name `.FILE.PID`
    /// and this suffix, because another process can write the same file, such as `unbit-agent
    /// once` next to `run`. If `file` is a symbolic link, the link is replaced and not its target.
    pub fn replace(&self, file: &str, suffix: &str, bytes: &[u8]) -> Result<(), String> {
        let directory = &self.open;
        let failed = |step: &str, name: &str, error: &dyn Display| format!("{step} {}/{name}: {error}", self.name);
        self.sweep(file, suffix).map_err(|errno| failed("look for unfinished files next to", file, &errno))?;
        let new = format!(".{file}.{}{suffix}", getpid());
        let new = new.as_str();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(directory, new, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut made = File::from(made.map_err(|errno| failed("make", new, &errno))?);
        let mut write = || -> io::Result<()> {
            made.write_all(bytes)?;
            fsync(made.as_fd())?;
            Ok(renameat(directory, new, directory, file)?)
        };
        write()
            .inspect_err(|_| {
                let _ = unlinkat(directory, new, UnlinkatFlags::NoRemoveDir);
            })
            .and_then(|()| Ok(fsync(directory.as_fd())?))
            .map_err(|error| failed("write", file, &error))
    }

    /// Removes what [`Directory::replace`] has left unfinished in processes that were killed.
    fn sweep(&self, file: &str, suffix: &str) -> nix::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let prefix = format!(".{file}");
        let mut listing = retry(|| Dir::openat(&self.open, ".", flags, Mode::empty()))?;
        for entry in listing.iter().filter(|entry| *entry != Err(Errno::EINTR)) {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let writer = name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(suffix));
            if writer.is_some_and(|writer| self.is_abandoned(name, writer)) {
                let _ = unlinkat(&self.open, name, UnlinkatFlags::NoRemoveDir);
            }
        }
        Ok(())
    }

    /// Whether nobody will finish a file. `writer` is `.PID`, and another process can have that pid
    /// by now. It is empty in the names of earlier versions.
    fn is_abandoned(&self, name: &str, writer: &str) -> bool {
        let Some(pid) = writer.strip_prefix('.').and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 0) else {
            return writer.is_empty();
        };
        let pid = Pid::from_raw(pid);
        let is_old = || {
            let written = fstatat(&self.open, name, AtFlags::AT_SYMLINK_NOFOLLOW).map(|status| status.st_mtime);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            written.is_ok_and(|time| u64::try_from(time).is_ok_and(|time| time.saturating_add(UNFINISHED) < now))
        };
        pid == getpid() || kill(pid, None) == Err(Errno::ESRCH) || is_old()
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.open.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{Id, waitid};
    use nix::unistd::{geteuid, pause};

    /// A directory of a test, and what [`Directory::open`] makes of it.
    fn scratch(name: &str) -> (std::path::PathBuf, Directory) {
        let path = std::env::temp_dir().join(format!("unbit-tenant-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("keys")).unwrap();
        let home = OwnedFd::from(File::open(&path).unwrap());
        (path, Directory::open(&home, "keys").unwrap().unwrap())
    }

    #[test]
    fn two_processes_that_write_the_same_file_do_not_disturb_each_other() {
        let (path, directory) = scratch("two");
        let texts = [vec![b'a'; 100_000], vec![b'b'; 200_000]];
        let mut children: Vec<_> = texts
            .iter()
            .map(|text| match fork().unwrap() {
                ForkResult::Parent { child } => child,
                ForkResult::Child => {
                    let failed = (0..50).find_map(|_| directory.replace("list", ".test", text).err());
                    exit_now(failed.map_or(0, |error| {
                        let _ = std::fs::write(path.join("error"), error);
                        1
                    }))
                }
            })
            .collect();
        while !children.is_empty() {
            children.retain(|child| waitpid(*child, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive));
            if let Ok(text) = std::fs::read(path.join("keys/list")) {
                assert!(texts.contains(&text), "it has {} bytes", text.len());
            }
        }
        assert_eq!(std::fs::read_to_string(path.join("error")).unwrap_or_default(), "");
        let left: Vec<_> =
            std::fs::read_dir(path.join("keys")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["list"]);
        std::fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn what_killed_processes_have_left_is_removed() {
        let (path, directory) = scratch("left");
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let ended = format!(".list.{}.test", ended.id());
        let own = format!(".list.{}.test", getpid());
        let goes = [".list.test", ".list.1.test", &ended, &own];
        let stays = [".list.1.other", ".list.x.test", ".listed.test", ".other.1.test", "list.test"];
        for name in goes.iter().chain(&stays) {
            std::fs::write(path.join("keys").join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("/nowhere", path.join("keys/.list.2147483647.test")).unwrap();
        let old = File::options().write(true).open(path.join("keys/.list.1.test")).unwrap();
        old.set_modified(UNIX_EPOCH).unwrap();
        directory.replace("list", ".test", b"text").unwrap();
        let mut left: Vec<_> = std::fs::read_dir(path.join("keys"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let mut expected = [&stays[..], &["list"]].concat();
        left.sort();
        expected.sort_unstable();
        assert_eq!(left, expected);
        assert_eq!(std::fs::read(path.join("keys/list")).unwrap(), b"text");
        std::fs::remove_dir_all(&path).unwrap();
    }

    /// The children of this test's thread.
    fn children() -> Vec<Pid> {
        let text = std::fs::read_to_string("/proc/thread-self/children").unwrap();
        text.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }

    #[test]
    fn a_child_that_is_too_late_or_writes_too_much_is_refused_and_reaped() {
        if !geteuid().is_root() {
            return eprintln!("NOT TRIED: a child as a container's user (only root can become that)");
        }
        let uid = ContainerUid::new(30001).unwrap();
        let waits = || loop {
            pause();
        };
        let refused = run_within(uid, Duration::ZERO, waits);
        assert!(refused.as_ref().is_err_and(|error| error.contains("does not answer")), "{refused:?}");
        for child in children() {
            // It needs longer to end than this call has waited: the next one reaps it.
            waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        }
        let refused = run_within(uid, TIMEOUT, || Ok(vec![0; MAX_OUTPUT]));
        assert!(refused.as_ref().is_err_and(|error| error.contains("writes more than")), "{:?}", refused.map(|_| ()));
        let longest = run_within(uid, TIMEOUT, || Ok(vec![0; MAX_OUTPUT - 1]));
        assert_eq!(longest, Ok(vec![0; MAX_OUTPUT - 1]));
        assert_eq!(children(), [], "each child is reaped");
    }
}
