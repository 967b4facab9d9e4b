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
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, fstat, fstatat, mkdirat, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, UnlinkatFlags, fsync, pipe2, setsid, unlinkat};
use shared::{ContainerUid, escape};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long the child process may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to end when it is killed.
const EXIT_TIME: Duration = Duration::from_secs(1);
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

/// Opens the account's home directory. It may be a symbolic link, which only root can make.
pub fn open_home(uid: ContainerUid) -> Result<OwnedFd, String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let home = open(uid.home().as_c_str(), flags, Mode::empty()).map_err(|errno| errno.to_string())?;
    let status = fstat(&home).map_err(|errno| errno.to_string())?;
    if !uid.owns_directory(status.st_mode, status.st_uid, status.st_gid) {
        return Err(format!("it belongs to {}:{}", status.st_uid, status.st_gid));
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

    /// Replaces `file` atomically. The new file has the name `new` until it is complete. If `file`
    /// is a symbolic link, the link is replaced and not its target.
    pub fn replace(&self, file: &str, new: &str, bytes: &[u8]) -> Result<(), String> {
        let directory = &self.open;
        let failed = |step: &str, name: &str, error: &dyn Display| format!("{step} {}/{name}: {error}", self.name);
        match unlinkat(directory, new, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed("remove", new, &errno)),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(directory, new, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut made = File::from(made.map_err(|errno| failed("make", new, &errno))?);
        let mut write = || -> io::Result<()> {
            made.write_all(bytes)?;
            fsync(made.as_fd())?;
            // Another process can write the same file, such as `unbit-agent once` next to `run`.
            if fstat(&made)?.st_ino != fstatat(directory, new, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_ino {
                return Err(io::Error::other("another process writes it as well"));
            }
            Ok(renameat(directory, new, directory, file)?)
        };
        write()
            .inspect_err(|_| {
                let _ = unlinkat(directory, new, UnlinkatFlags::NoRemoveDir);
            })
            .and_then(|()| Ok(fsync(directory.as_fd())?))
            .map_err(|error| failed("write", file, &error))
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
