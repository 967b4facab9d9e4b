//! Connects to a Unix socket that a tenant owns: to the inode that was checked, and until the
//! deadline at most.
//!
//! Nothing is ever read from the socket.

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

/// Connects to the socket behind a descriptor. With a full backlog connect(2) waits, for
/// SO_SNDTIMEO at most.
pub fn connect(connection: &OwnedFd, to: &OwnedFd, deadline: Deadline, name: &str) -> Result<(), Refusal> {
    let address = UnixAddr::new(format!("/proc/self/fd/{}", to.as_raw_fd()).as_str())
        .context(Reason::Broken, format_args!("name {name}"))?;
    let step = format!("connect to {name}");
    loop {
        // Try once even with no time left: on a busy machine our own work may have used it up.
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

/// The time that is left, for a socket option. Never zero, which would mean no limit (socket(7)).
fn time_left(deadline: Deadline, step: &str) -> Result<TimeVal, Refusal> {
    match deadline.left() {
        Some(left) => Ok(TimeVal::new(left.as_secs() as i64, i64::from(left.subsec_micros()).max(1))),
        None => Err(Refusal::failed(Reason::NotAnswering, step, Errno::ETIMEDOUT)),
    }
}
