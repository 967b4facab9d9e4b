//! Reach, for containers of other engines: a door of root's own, `/run/unbit/<uid>/ns.socket`, looked at before the tenant's.
//!
//! Whoever listens there is root on the node, and so is everyone who can have put the socket there. Only here is a message read, uWSGI's own: the
//! word `uwsgi-setns`, a native int, and that many descriptors. They are checked like any others.

use crate::deadline::Deadline;
use crate::refusal::{Reason, Refusal, Step};
use crate::sys::{self, retry};
use crate::unix_socket;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::socket::{self, sockopt};
use nix::sys::stat::{Mode, SFlag, fstat};
use shared::ContainerUid;
use std::os::fd::OwnedFd;

/// As the directories are named, from /run on.
const UNBIT: &str = "unbit";

const MAGIC: &[u8] = b"uwsgi-setns";
const MESSAGE: usize = MAGIC.len() + size_of::<i32>();

/// A connection to whoever keeps the door. It is root.
pub struct Door {
    connection: OwnedFd,
    deadline: Deadline,
}

impl Door {
    /// Walks to the door and connects; `None` if this container has none. Once its directory is there, whatever is amiss refuses: the tenant's
    /// own socket is no way around it.
    pub fn reach(container: ContainerUid, deadline: Deadline) -> Result<Option<Self>, Refusal> {
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let run = retry(|| open("/run", directory, Mode::empty())).step(Reason::Broken, "open /run")?;
        let container = container.to_string();
        let Some(unbit) = enter(&run, UNBIT)? else { return Ok(None) };
        let Some(door) = enter(&unbit, &container)? else { return Ok(None) };
        for directory in [&run, &unbit, &door] {
            must_be_roots(directory, SFlag::S_IFDIR)?;
        }
        let socket =
            retry(|| openat(&door, "ns.socket", OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()))
                .step(Reason::NotRunning, format_args!("open /run/unbit/{container}/ns.socket"))?;
        must_be_roots(&socket, SFlag::S_IFSOCK)?;

        let connection = unix_socket::new()?;
        unix_socket::connect(&connection, &socket, deadline, "the door's ns.socket")?;
        let peer = retry(|| socket::getsockopt(&connection, sockopt::PeerCredentials))
            .step(Reason::Broken, "ask who keeps the door (SO_PEERCRED)")?;
        if peer.uid() != 0 {
            return Err(Refusal::new(
                Reason::NotTrusted,
                format!("the door is kept by uid {}, not by root", peer.uid()),
            ));
        }
        Ok(Some(Self { connection, deadline }))
    }

    /// Receives the descriptors.
    pub fn receive(self) -> Result<Vec<OwnedFd>, Refusal> {
        let step = "receive from the door";
        let message = loop {
            let left = unix_socket::time_left(self.deadline, step)?;
            retry(|| socket::setsockopt(&self.connection, sockopt::ReceiveTimeout, &left))
                .step(Reason::Broken, "limit the time to receive")?;
            // One more than there may be, to see that there is no more.
            match sys::receive_descriptors::<{ MESSAGE + 1 }>(&self.connection) {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                other => break other.step(Reason::Broken, step)?,
            }
        };
        check(&message.bytes, message.descriptors.len(), message.is_whole)
            .map_err(|what| Refusal::new(Reason::NotTrusted, format!("the door's message {what}")))?;
        Ok(message.descriptors)
    }
}

/// The next directory on the way, if there is one.
fn enter(parent: &OwnedFd, name: &str) -> Result<Option<OwnedFd>, Refusal> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match retry(|| openat(parent, name, flags, Mode::empty())) {
        Err(Errno::ENOENT) => Ok(None),
        other => other.map(Some).step(Reason::NotTrusted, format_args!("open the door's directory {name}")),
    }
}

/// Of root's, of the right kind, and nobody else may write there. (To a socket others may: that is to connect to it.)
fn must_be_roots(file: &OwnedFd, kind: SFlag) -> Result<(), Refusal> {
    let status = retry(|| fstat(file)).step(Reason::Broken, "fstat on the way to the door")?;
    let is_kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == kind;
    let others_write = kind == SFlag::S_IFDIR && status.st_mode & 0o022 != 0;
    if status.st_uid != 0 || !is_kind || others_write {
        return Err(Refusal::new(
            Reason::NotTrusted,
            format!(
                "on the way to the door: mode {:o} of uid {} where root's own is needed",
                status.st_mode, status.st_uid
            ),
        ));
    }
    Ok(())
}

/// The whole of the protocol: the word, the count, that many descriptors, and nothing else.
fn check(bytes: &[u8], descriptors: usize, is_whole: bool) -> Result<(), String> {
    if !is_whole {
        return Err("brings more descriptors than this process may open".to_owned());
    }
    let Some(count) = bytes.strip_prefix(MAGIC) else { return Err("is not uwsgi-setns".to_owned()) };
    let Ok(count) = count.try_into().map(i32::from_ne_bytes) else {
        return Err(format!("is {} bytes where {MESSAGE} are due", bytes.len()));
    };
    match usize::try_from(count) {
        Ok(count @ 1..=64) if count == descriptors => Ok(()),
        _ => Err(format!("counts {count} descriptors and brings {descriptors}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(count: i32) -> Vec<u8> {
        [MAGIC, &count.to_ne_bytes()].concat()
    }

    #[test]
    fn uwsgis_message_is_understood() {
        for count in 1..=64 {
            assert_eq!(check(&message(count), count as usize, true), Ok(()));
        }
    }

    #[test]
    fn no_other_message_is() {
        assert!(check(&message(7), 7, false).is_err());
        for (count, brought) in [(7, 6), (6, 7), (0, 0), (-1, 0), (i32::MIN, 0), (i32::MAX, 64), (256 + 7, 7), (65, 65)]
        {
            assert!(check(&message(count), brought, true).is_err(), "{count} {brought}");
        }
        let whole = message(7);
        for length in 0..whole.len() {
            assert!(check(&whole[..length], 7, true).is_err(), "short: {length}");
        }
        assert!(check(&[whole.as_slice(), b"\0"].concat(), 7, true).is_err(), "long");
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut other = whole.clone();
                other[at] ^= 1 << bit;
                assert!(check(&other, 7, true).is_err(), "bit {bit} of byte {at}");
            }
        }
    }
}
