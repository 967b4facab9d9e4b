//! Time limits for everything that can wait on the container, and for reading from processes
//! inside.
//!
//! How long a limit is, and what a timeout means, is decided by the caller.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// A point in time.
#[derive(Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The point in time after this timeout.
    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now() + timeout)
    }

    /// The time that is left; `None` after the deadline.
    pub fn left(self) -> Option<Duration> {
        self.0.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Waits until the descriptor is readable; false at the deadline.
    pub fn wait_for(self, descriptor: &impl AsFd) -> nix::Result<bool> {
        loop {
            let Some(left) = self.left() else { return Ok(false) };
            match poll_for(descriptor, left) {
                Ok(false) | Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}

/// Whether the descriptor becomes readable within this time. It polls at least once, even if the
/// time is zero.
pub fn is_ready(descriptor: &impl AsFd, limit: Duration) -> bool {
    let deadline = Deadline::after(limit);
    loop {
        match poll_for(descriptor, deadline.left().unwrap_or_default()) {
            Err(Errno::EINTR) => {}
            other => return other.unwrap_or(false),
        }
    }
}

/// Reads at most about `max` bytes within this time. The second value says whether the writer has
/// closed its end, or has written more.
pub fn read_within(pipe: &mut (impl Read + AsFd), limit: Duration, max: usize) -> (Vec<u8>, bool) {
    let deadline = Deadline::after(limit);
    let mut bytes = Vec::new();
    while is_ready(pipe, deadline.left().unwrap_or_default()) {
        let mut some = [0; 4096];
        match pipe.read(&mut some) {
            Ok(length) if length > 0 && bytes.len() < max => bytes.extend(some.iter().take(length)),
            _ => return (bytes, true),
        }
    }
    (bytes, false)
}

fn poll_for(descriptor: &impl AsFd, left: Duration) -> nix::Result<bool> {
    let mut one = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    // Rounded up to whole milliseconds.
    let left = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
    poll(&mut one, left).map(|ready| ready > 0)
}
