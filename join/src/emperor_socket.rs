//! Find, for a container of uWSGI's Emperor: which process listens on its `run/ns.socket`?
//!
//! The tenant owns that path and can put anything there. So no symbolic link is followed, and only
//! the kernel's answer to who called listen(2) is used. The peer cannot send anything: closing a
//! descriptor that a tenant has sent, even one that was never received, can hang a root process so
//! that not even SIGKILL ends it (dirty pages on a FUSE mount, a lingering TCP socket).
//!
//! Whether that process is the container's pid 1 is decided in [`leader`](crate::leader).

use crate::deadline::Deadline;
use crate::leader;
use crate::refusal::{Context, Reason, Refusal};
use crate::safe_path;
use crate::sys::retry;
use crate::tenant::{self, HomeError};
use crate::unix_socket;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::socket::{self, Shutdown, sockopt};
use nix::sys::stat::{Mode, SFlag, fstat};
use shared::ContainerUid;
use std::os::fd::{AsRawFd, OwnedFd};

/// A connection to the container's socket. The peer is not verified yet.
pub struct EmperorSocket {
    connection: OwnedFd,
}

impl EmperorSocket {
    /// Opens the path from `/containers` to the socket, and connects.
    pub fn connect(container: ContainerUid, deadline: Deadline) -> Result<Self, Refusal> {
        let home = open_home(container)?;
        let no_link = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let run = retry(|| openat(&home, "run", no_link | OFlag::O_DIRECTORY, Mode::empty()))
            .map_err(|errno| open_refusal(errno, "open its directory run"))?;
        let socket = retry(|| openat(&run, "ns.socket", no_link, Mode::empty()))
            .map_err(|errno| open_refusal(errno, "open run/ns.socket"))?;

        let status = retry(|| fstat(&socket)).context(Reason::Broken, "fstat run/ns.socket")?;
        if safe_path::kind(&status) != SFlag::S_IFSOCK {
            return Err(Refusal::new(Reason::NotTrusted, "run/ns.socket is not a socket"));
        }
        if status.st_uid != container.get() && status.st_uid != 0 {
            return Err(Refusal::new(Reason::NotTrusted, format!("run/ns.socket belongs to uid {}", status.st_uid)));
        }
        let connection = unix_socket::new()?;
        // Before connect(2), so that even the peer's first sendmsg(2) fails with EPIPE. uWSGI logs
        // that in the container's own log.
        retry(|| socket::shutdown(connection.as_raw_fd(), Shutdown::Read))
            .context(Reason::Broken, "shut down the receiving side of the connection")?;
        unix_socket::connect(&connection, &socket, deadline, "run/ns.socket")?;
        Ok(Self { connection })
    }

    /// A pidfd of the process that called `listen` on the socket.
    pub fn pidfd(&self) -> Result<OwnedFd, Refusal> {
        match retry(|| socket::getsockopt(&self.connection, sockopt::PeerPidfd)) {
            Err(Errno::ENOPROTOOPT) => self.pidfd_before_linux_6_5(),
            other => other.context(Reason::NotRunning, "ask who listens on run/ns.socket (SO_PEERPIDFD)"),
        }
    }

    /// The pid can belong to another process since listen(2). That is harmless, because any process
    /// is verified, and only the container's pid 1 passes.
    fn pidfd_before_linux_6_5(&self) -> Result<OwnedFd, Refusal> {
        let peer = retry(|| socket::getsockopt(&self.connection, sockopt::PeerCredentials))
            .context(Reason::Broken, "ask who listens on run/ns.socket (SO_PEERCRED)")?;
        leader::open_pidfd(peer.pid(), "find who listened on run/ns.socket")
    }
}

/// Opens the container's directory.
fn open_home(container: ContainerUid) -> Result<OwnedFd, Refusal> {
    tenant::open_home(container).map_err(|error| {
        let home = container.home();
        let home = home.as_c_str().to_string_lossy();
        match error {
            HomeError::Open(errno) => Refusal::failed(Reason::NoContainer, format_args!("open {home}"), errno),
            HomeError::Stat(errno) => Refusal::failed(Reason::Broken, "fstat the container's directory", errno),
            HomeError::NotOwned { uid, gid } => {
                Refusal::new(Reason::NoContainer, format!("{home} belongs to {uid}:{gid}"))
            }
        }
    })
}

fn open_refusal(errno: Errno, step: &str) -> Refusal {
    let reason = if errno == Errno::ENOENT { Reason::NotRunning } else { Reason::NotTrusted };
    Refusal::failed(reason, step, errno)
}
