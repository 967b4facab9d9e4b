//! One limit of time for everything in a login that can wait on the container.

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
}
