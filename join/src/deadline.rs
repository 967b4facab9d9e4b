//! Time limits for everything that can wait on the container, and for reading from processes
//! inside.
//!
//! How long a limit is, and what a timeout means, is decided by the caller.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read};
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

/// Waits until the descriptor is readable, for this time at most, and returns whether it is. Unlike
/// [`Deadline::wait_for`] it polls at least once, even if the time is zero.
pub fn is_ready(descriptor: &impl AsFd, limit: Duration) -> bool {
    let deadline = Deadline::after(limit);
    loop {
        match poll_for(descriptor, deadline.left().unwrap_or_default()) {
            Err(Errno::EINTR) => {}
            other => return other.unwrap_or(false),
        }
    }
}

/// Why [`read_within`] has not read everything.
#[derive(Debug)]
pub enum Incomplete {
    /// The writer has not closed its end in time. These bytes came.
    TimedOut(Vec<u8>),
    /// The writer has written more than the caller accepts.
    TooLong,
    /// The pipe could not be read.
    Failed(io::Error),
}

/// Reads until the writer closes its end, but for no longer than this time, and no more than `max`
/// bytes.
pub fn read_within(pipe: &mut (impl Read + AsFd), limit: Duration, max: usize) -> Result<Vec<u8>, Incomplete> {
    let deadline = Deadline::after(limit);
    let mut bytes = Vec::new();
    while is_ready(pipe, deadline.left().unwrap_or_default()) {
        let mut some = [0; 4096];
        match pipe.read(&mut some) {
            Ok(0) => return Ok(bytes),
            Ok(length) if bytes.len() + length > max => return Err(Incomplete::TooLong),
            Ok(length) => bytes.extend(some.iter().take(length)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Incomplete::Failed(error)),
        }
    }
    Err(Incomplete::TimedOut(bytes))
}

fn poll_for(descriptor: &impl AsFd, left: Duration) -> nix::Result<bool> {
    let mut one = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    // Rounded up to whole milliseconds.
    let left = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
    poll(&mut one, left).map(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn an_answer_is_read_to_its_end_or_is_incomplete() {
        for (length, max) in [(0, 10), (10, 10), (5000, 5000)] {
            let (reader, writer) = nix::unistd::pipe().unwrap();
            File::from(writer).write_all(&vec![b'x'; length]).unwrap();
            assert_eq!(read_within(&mut File::from(reader), LONG, max).unwrap(), vec![b'x'; length]);
        }
        for (length, max) in [(1, 0), (11, 10), (5001, 5000)] {
            let (reader, writer) = nix::unistd::pipe().unwrap();
            File::from(writer).write_all(&vec![b'x'; length]).unwrap();
            let read = read_within(&mut File::from(reader), LONG, max);
            assert!(matches!(read, Err(Incomplete::TooLong)), "{length} of {max}: {read:?}");
        }
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut writer = File::from(writer);
        writer.write_all(b"half").unwrap();
        let read = read_within(&mut File::from(reader), Duration::ZERO, 10);
        assert!(matches!(&read, Err(Incomplete::TimedOut(text)) if text == b"half"), "{read:?}");
    }
}
