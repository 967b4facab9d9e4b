//! One limit of time for everything in a login that can wait on the container.
//!
//! It waits for nothing itself.

use crate::sys::retry;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// A point in time.
#[derive(Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The end of a time that begins now.
    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now() + timeout)
    }

    /// The time that is left; `None` when it is over.
    pub fn left(self) -> Option<Duration> {
        self.0.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Waits until there is something to read; false if the time is over before.
    pub fn wait_for(self, descriptor: &impl AsFd) -> nix::Result<bool> {
        loop {
            let Some(left) = self.left() else { return Ok(false) };
            let mut one = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
            // Milliseconds, of which a part counts as one.
            let left = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
            if retry(|| poll(&mut one, left))? > 0 {
                return Ok(true);
            }
        }
    }
}
