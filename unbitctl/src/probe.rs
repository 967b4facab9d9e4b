//! A process of ours that enters a container. Its parent reads its results from a pipe, and never
//! waits for it without a limit.
//!
//! It is forked into the container's pid namespace, and enters as sshd's child does. If the tenant
//! holds it up (by a frozen cgroup, or a file system that does not respond), nothing else waits.
//!
//! How it enters is in [`join::attach`].

use caps::CapSet;
use join::Deadline;
use join::attach::{Attachment, Forked, Who};
use join::deadline::{is_ready, read_within};
use join::refusal::{Context, Reason, Refusal};
use join::sys::{exit_now, pidfd_open, reset_signal_action, retry, with_errno};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, dup2_stderr, dup2_stdin, dup2_stdout, execve, pipe2, setgroups, setsid};
use shared::{ContainerUid, escape};
use std::cell::Cell;
use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The process.
pub struct Probe {
    /// Its pid on the node. It is a child of ours, so the pid stays its own until it is waited for.
    pub pid: Pid,
    pidfd: OwnedFd,
    messages: File,
}

/// The pipe to the parent, one message a line. It is closed by an exec.
pub struct Messages(File);

impl Messages {
    /// Sends a line: a word that the parent knows, and details.
    pub fn send(&mut self, word: &str, about: impl std::fmt::Display) {
        // An error means that nobody reads any more.
        let _ = self.0.write_all(format!("{word} {}\n", escape::line(&about.to_string())).as_bytes());
    }
}

/// More bytes than the messages of one process ever have.
const MAX_MESSAGES: usize = 4096;

/// Forks a process into the container, which does `inside` there; `before` is done on the way,
/// before anything is joined. Only for a program of one thread.
pub fn spawn(
    attachment: Attachment,
    who: Who,
    limit: Duration,
    before: impl FnOnce() -> Result<(), Refusal>,
    inside: impl FnOnce(&mut Messages),
) -> Result<Probe, Refusal> {
    let (reader, writer) = retry(|| pipe2(OFlag::O_CLOEXEC)).context(Reason::Broken, "make a pipe")?;
    let reader = Cell::new(Some(reader));
    let finish = || {
        drop(reader.take());
        Ok(())
    };
    let forked = attachment.fork_into(who, Deadline::after(limit), before, finish)?;
    let (Forked::Outside(pid), Some(reader)) = (forked, reader.take()) else {
        inside(&mut Messages(File::from(writer)));
        exit_now(0)
    };
    let pidfd = pidfd_open(pid.as_raw()).context(Reason::Broken, "pidfd_open of our own child")?;
    Ok(Probe { pid, pidfd, messages: File::from(reader) })
}

impl Probe {
    /// All of its messages, once it has ended or has executed another program. `None` if that takes
    /// longer than `limit`, or if they are longer than [`MAX_MESSAGES`].
    pub fn messages(&mut self, limit: Duration) -> Option<Vec<(String, String)>> {
        let text = read_within(&mut self.messages, limit, MAX_MESSAGES).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        Some(
            text.lines()
                .filter_map(|line| line.split_once(' '))
                .map(|(word, about)| (word.into(), about.into()))
                .collect(),
        )
    }

    /// Becomes readable when it ends.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How it has ended. `None` if it has not within `limit`.
    pub fn wait(&self, limit: Duration) -> Option<WaitStatus> {
        let end = Instant::now() + limit;
        while is_ready(&self.pidfd, end.saturating_duration_since(Instant::now())) {
            match retry(|| waitpid(self.pid, Some(WaitPidFlag::WNOHANG))) {
                // It has ended, and a process of the tenant's that traces it has yet to let go of
                // it, ptrace(2).
                Ok(WaitStatus::StillAlive) if Instant::now() < end => sleep(Duration::from_millis(10)),
                Ok(WaitStatus::StillAlive) | Err(_) => return None,
                Ok(status) => return Some(status),
            }
        }
        None
    }

    /// Ends it. False if it cannot end now: SIGKILL waits too while a v1 cgroup is
    /// frozen, and in some system calls.
    pub fn kill(&self) -> bool {
        let _ = kill(self.pid, Signal::SIGKILL);
        self.wait(Duration::from_millis(500)).is_some()
    }
}

/// In the process, before it enters: gives up everything of the operator's session that the tenant
/// could reach.
pub fn detach_from_operator(container: ContainerUid) -> Result<(), Refusal> {
    // A session of its own: /dev/tty is the operator's terminal until then.
    setsid().context(Reason::Broken, "begin a session")?;
    join::sys::new_session_keyring().context(Reason::Broken, "join a session keyring other than the operator's")?;
    // Rust ignores it, and what is ignored stays so through an exec.
    reset_signal_action(Signal::SIGPIPE).context(Reason::Broken, "set back SIGPIPE")?;
    umask(Mode::from_bits_truncate(0o022));
    let none = with_errno(|| caps::clear(None, CapSet::Inheritable));
    none.context(Reason::Broken, "drop inheritable capabilities")?;
    retry(|| setgroups(&[Gid::from_raw(container.get())])).context(Reason::Broken, "drop root's groups")
}

/// In the process: redirects stdin, stdout and stderr to /dev/null.
pub fn redirect_stdio_to_null() -> Result<(), Refusal> {
    let null =
        open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).context(Reason::Broken, "open /dev/null")?;
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))
        .context(Reason::Broken, "dup2")
}

/// In the process: executes the first of these programs that can be run, as execvp(3) tries them.
/// Returns the error if none can.
pub fn exec(programs: &[&CStr], arguments: &[&CStr], environment: &[impl AsRef<CStr>]) -> Errno {
    let mut error = Errno::ENOENT;
    for program in programs {
        match execve(program, arguments, environment) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno @ Errno::EACCES) => error = errno, // another one may be better
            Err(errno) => return errno,
        }
    }
    error
}
