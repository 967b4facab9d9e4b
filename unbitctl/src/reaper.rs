//! A process between the operator's command and the process inside, which it reaps. What stops the
//! operator's command does not stop it.
//!
//! The kernel lets a container's pid 1 end only when every process of its pid namespace has been
//! waited for. One whose parent is stopped (SIGSTOP, or Ctrl-Z where there is no terminal of its
//! own) would keep the container from ever starting again.

use crate::probe::{self, Probe};
use anyhow::{Context, Result};
use join::deadline::is_ready;
use join::sys::{exit_now, retry};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, setsid};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The reaper, as the operator's process sees it.
pub struct Reaper {
    socket: UnixStream,
    pid: Pid,
}

/// What came of the start.
pub enum Started {
    /// The command runs inside.
    Runs(Reaper),
    /// The command could not be started; with the exit status of unbitctl.
    Ended(ExitCode),
}

/// The messages of the reaper. A byte follows each.
const RUNS: u8 = b'r';
const ENDED: u8 = b'e';

/// Forks the reaper. It calls `leave` to close the operator's descriptors, calls `spawn` to start
/// the process inside, and waits for that.
pub fn fork(leave: impl FnOnce(), spawn: impl FnOnce() -> Result<Probe, u8>) -> Result<Started> {
    let (socket, theirs) = UnixStream::pair().context("make a socket")?;
    match join::sys::fork().context("fork")? {
        ForkResult::Parent { child } => {
            drop(theirs);
            let mut reaper = Reaper { socket, pid: child };
            Ok(match reaper.receive(None) {
                Some((RUNS, _)) => Started::Runs(reaper),
                Some((_, status)) => Started::Ended(ExitCode::from(status)),
                None => Started::Ended(ExitCode::FAILURE),
            })
        }
        ForkResult::Child => {
            drop(socket);
            // Out of the operator's job, and of the terminal's reach.
            let _ = setsid();
            leave();
            let mut socket = theirs;
            match spawn() {
                Ok(probe) => {
                    let _ = probe::redirect_stdio_to_null(); // a reader of the operator's output must not wait for the reaper
                    let _ = socket.write_all(&[RUNS, 0]);
                    let status = reap(&probe, &mut socket);
                    let _ = socket.write_all(&[ENDED, status]);
                }
                Err(status) => drop(socket.write_all(&[ENDED, status])),
            }
            exit_now(0)
        }
    }
}

/// Passes signals on to the process inside until it ends, and returns its exit status.
fn reap(probe: &Probe, socket: &mut UnixStream) -> u8 {
    let mut is_connected = true;
    loop {
        let mut asked = vec![PollFd::new(probe.pidfd(), PollFlags::POLLIN)];
        if is_connected {
            asked.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut asked, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => return 1,
            Ok(_) => {}
        }
        let ready: Vec<_> = asked.iter().map(|one| one.any().unwrap_or(true)).collect();
        if ready.first() == Some(&true) {
            // A tracer of the tenant may prevent waitpid(2) from seeing its end; then try again.
            match probe.wait(Duration::from_secs(1)) {
                Some(WaitStatus::Exited(_, status)) => return status as u8,
                Some(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as u8,
                Some(_) => return 1,
                None => continue,
            }
        }
        if ready.get(1) == Some(&true) {
            let mut signal = [0];
            match socket.read(&mut signal) {
                // It leads a session, and so a process group, of its own; and it has not been
                // waited for, so its number is its own.
                Ok(1) => drop(Signal::try_from(i32::from(signal[0])).and_then(|signal| killpg(probe.pid, signal))),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => is_connected = false,
            }
        }
    }
}

impl Reaper {
    /// Passes a signal on to the process inside, and to those of its group.
    pub fn send(&mut self, signal: Signal) {
        let _ = self.socket.write_all(&[signal as u8]);
    }

    /// The exit status, once it has ended; `None` if it has not within `limit`. A reaper that was
    /// killed knows none.
    pub fn wait(&mut self, limit: Duration) -> Option<u8> {
        let (_, status) = self.receive(Some(limit))?;
        let _ = retry(|| waitpid(self.pid, None));
        Some(status)
    }

    fn receive(&mut self, limit: Option<Duration>) -> Option<(u8, u8)> {
        let end = limit.map(|limit| Instant::now() + limit);
        if end.is_some_and(|end| !is_ready(&self.socket, end.saturating_duration_since(Instant::now()))) {
            return None;
        }
        let mut message = [0; 2];
        match self.socket.read_exact(&mut message) {
            Ok(()) => Some((message[0], message[1])),
            Err(_) => Some((ENDED, 1)),
        }
    }
}
