//! Copies bytes between the operator and a session, in all directions at once, until the session
//! ends.
//!
//! The session gets no descriptor of the operator's: a directory on its standard input would lead
//! out of the container, it could read a terminal, and set O_NONBLOCK on a file that others share.
//!
//! Terminal settings are in [`terminal`](crate::terminal).

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes from one descriptor to another.
pub struct Stream<'a> {
    from: Option<End<'a>>,
    to: Option<End<'a>>,
    buffer: Vec<u8>,
    /// Read since the session's end.
    since_end: usize,
}

/// Where bytes come from or go.
pub enum End<'a> {
    /// Only ours: closed when it is no longer needed, so that the process at the other end sees it.
    Own(OwnedFd),
    /// Shared with other processes, and never closed.
    Shared(BorrowedFd<'a>),
}

impl AsFd for End<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(descriptor) => descriptor.as_fd(),
            Self::Shared(descriptor) => *descriptor,
        }
    }
}

/// What poll(2) promises to take of a pipe that is ready: PIPE_BUF.
const CHUNK: usize = 4096;

/// The most that a pipe can hold of what a process wrote before it ended
/// (/proc/sys/fs/pipe-max-size).
const MAX_AFTER_EXIT: usize = 1 << 20;

/// Why [`forward`] has returned.
pub enum Event {
    /// There is a signal to read.
    Signal,
    /// The session has ended, and everything is copied.
    Done,
}

impl<'a> Stream<'a> {
    /// From here to there.
    pub const fn new(from: End<'a>, to: End<'a>) -> Self {
        Self { from: Some(from), to: Some(to), buffer: Vec::new(), since_end: 0 }
    }

    fn wants_to_read(&self) -> Option<BorrowedFd<'_>> {
        let wanted = self.buffer.is_empty() && self.to.is_some() && self.since_end < MAX_AFTER_EXIT;
        self.from.as_ref().filter(|_| wanted).map(End::as_fd)
    }

    fn wants_to_write(&self) -> Option<BorrowedFd<'_>> {
        self.to.as_ref().filter(|_| !self.buffer.is_empty()).map(End::as_fd)
    }

    fn read(&mut self, has_ended: bool) {
        let Some(from) = &self.from else { return };
        let mut some = [0; CHUNK];
        match read(from, &mut some) {
            Ok(0) => self.end_of_input(),
            Ok(length) => {
                self.buffer.extend(some.iter().take(length));
                self.since_end += if has_ended { length } else { 0 };
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.end_of_input(), // EIO: nobody has the other end of the terminal any more
        }
    }

    fn end_of_input(&mut self) {
        self.from = None;
        if matches!(self.to, Some(End::Own(_))) {
            self.to = None;
        }
    }

    fn write(&mut self) {
        let Some(to) = &self.to else { return };
        match write(to, &self.buffer) {
            Ok(length) => drop(self.buffer.drain(..length.min(self.buffer.len()))),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => *self = Self { from: None, to: None, buffer: Vec::new(), since_end: 0 }, // EPIPE: nobody reads
        }
    }

    #[cfg(test)]
    const fn has_ended(&self) -> bool {
        self.from.is_none()
    }
}

/// Sets O_NONBLOCK.
pub fn set_nonblocking(descriptor: &impl AsFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(descriptor, FcntlArg::F_GETFL)?);
    fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// Copies bytes until a signal arrives. Once the session has ended, copies only what it left in the
/// pipes.
pub fn forward(streams: &mut [Stream<'_>], signals: &impl AsFd, has_ended: bool) -> nix::Result<Event> {
    loop {
        let mut asked = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let mut places = Vec::new();
        for (at, stream) in streams.iter().enumerate() {
            let descriptor = match (stream.wants_to_write(), stream.wants_to_read()) {
                (Some(to), _) => PollFd::new(to, PollFlags::POLLOUT),
                (None, Some(from)) => PollFd::new(from, PollFlags::POLLIN),
                (None, None) => continue,
            };
            asked.push(descriptor);
            places.push(at);
        }
        let waits_for_a_reader = streams.iter().any(|stream| stream.wants_to_write().is_some());
        let limit = if has_ended && !waits_for_a_reader { PollTimeout::ZERO } else { PollTimeout::NONE };
        match poll(&mut asked, limit) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let ready: Vec<bool> = asked.iter().map(|one| one.any().unwrap_or(true)).collect();
        if ready.first() == Some(&true) {
            return Ok(Event::Signal);
        }
        if has_ended && !ready.contains(&true) {
            return Ok(Event::Done);
        }
        for (at, _) in places.into_iter().zip(ready.into_iter().skip(1)).filter(|(_, ready)| *ready) {
            let Some(stream) = streams.get_mut(at) else { continue };
            if stream.wants_to_write().is_some() { stream.write() } else { stream.read(has_ended) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::pipe;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn every_byte_comes_through_and_then_the_end() {
        let (from, mut source) = pipe().map(|(from, source)| (from, File::from(source))).unwrap();
        let (mut sink, to) = pipe().map(|(sink, to)| (File::from(sink), to)).unwrap();
        let (signals, _silent) = pipe().unwrap();
        let data: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let sent = data.clone();
        let writer = std::thread::spawn(move || source.write_all(&sent).unwrap());
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            sink.read_to_end(&mut got).unwrap();
            got
        });
        let mut streams = [Stream::new(End::Own(from), End::Own(to))];
        while !streams[0].has_ended() || !streams[0].buffer.is_empty() {
            assert!(matches!(forward(&mut streams, &signals, true), Ok(Event::Done)));
        }
        writer.join().unwrap();
        drop(streams);
        assert!(reader.join().unwrap() == data);
    }

    #[test]
    fn nobody_who_reads_ends_a_stream() {
        let (from, mut source) = pipe().map(|(from, source)| (from, File::from(source))).unwrap();
        let (sink, to) = pipe().unwrap();
        let (signals, _silent) = pipe().unwrap();
        drop(sink);
        source.write_all(b"x").unwrap();
        let mut streams = [Stream::new(End::Own(from), End::Own(to))];
        assert!(matches!(forward(&mut streams, &signals, true), Ok(Event::Done)));
        assert!(streams[0].has_ended() && streams[0].to.is_none());
    }
}
