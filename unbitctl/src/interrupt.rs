//! Holds back the signals that ask a command to end, so that it can undo what it has begun.

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Blocks SIGINT, SIGTERM and SIGHUP, which its methods read. Programs that are executed do not
/// inherit that: std empties the mask of its children.
pub struct Interrupt(SignalFd);

impl Interrupt {
    /// Begins to hold them back.
    pub fn hold() -> Result<Self> {
        let mut held = SigSet::empty();
        held.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&held), None)?;
        Ok(Self(SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// Fails if a signal has come.
    pub fn check(&self) -> Result<()> {
        match self.0.read_signal() {
            Ok(Some(info)) => {
                let name = Signal::try_from(info.ssi_signo as i32).map_or("a signal", Signal::as_str);
                bail!("ended by {name}")
            }
            _ => Ok(()),
        }
    }

    /// Waits that long, or fails as soon as a signal comes.
    pub fn pause(&self, time: Duration) -> Result<()> {
        self.wait_for(None, time).map(drop)
    }

    /// Waits until there is something to read, or the time is over. Returns whether there is. Fails
    /// as soon as a signal comes.
    pub fn wait_for(&self, readable: Option<BorrowedFd<'_>>, time: Duration) -> Result<bool> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let mut asked = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            asked.extend(readable.map(|one| PollFd::new(one, PollFlags::POLLIN)));
            let left = end.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
            match poll(&mut asked, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => {
                    let is_ready = asked.get(1).and_then(PollFd::any).unwrap_or(false);
                    if is_ready || Instant::now() >= end {
                        self.check()?;
                        return Ok(is_ready);
                    }
                }
            }
        }
    }
}
