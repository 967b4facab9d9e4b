//! Connecting to a unix socket that somebody else owns: by the inode that was checked, and not for longer than the deadline.
//!
//! Nothing is read from the socket, here or elsewhere.

use crate::deadline::Deadline;
use crate::refusal::{Context, Reason, Refusal};
use crate::sys::retry;
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use std::os::fd::{AsRawFd, OwnedFd};

/// A stream socket that is not connected yet.
pub fn new() -> Result<OwnedFd, Refusal> {
    retry(|| socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None))
        .context(Reason::Broken, "make a socket")
}

/// Connects to the socket behind a descriptor. A full backlog makes connect(2) wait, for as long as SO_SNDTIMEO allows.
pub fn connect(connection: &OwnedFd, to: &OwnedFd, deadline: Deadline, name: &str) -> Result<(), Refusal> {
    let address = UnixAddr::new(format!("/proc/self/fd/{}", to.as_raw_fd()).as_str())
        .context(Reason::Broken, format_args!("name {name}"))?;
    let step = format!("connect to {name}");
    loop {
        // With no time left it is tried all the same, without waiting: on a busy machine the time may have gone by in our own work.
        let left = time_left(deadline, &step);
        let timeout = left.as_ref().copied().unwrap_or(TimeVal::new(0, 1));
        retry(|| socket::setsockopt(connection, sockopt::SendTimeout, &timeout))
            .context(Reason::Broken, "limit the time to connect")?;
        match socket::connect(connection.as_raw_fd(), &address) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR | Errno::EAGAIN) => drop(left?),
            Err(errno @ Errno::ECONNREFUSED) => return Err(Refusal::failed(Reason::NotRunning, step, errno)),
            Err(errno) => return Err(Refusal::failed(Reason::NotTrusted, step, errno)),
        }
    }
}

/// What is left of the time, as a socket option takes it. Never zero, for that would mean to wait for ever.
fn time_left(deadline: Deadline, step: &str) -> Result<TimeVal, Refusal> {
    match deadline.left() {
        Some(left) => Ok(TimeVal::new(left.as_secs() as i64, i64::from(left.subsec_micros()).max(1))),
        None => Err(Refusal::failed(Reason::NotAnswering, step, Errno::ETIMEDOUT)),
    }
}
