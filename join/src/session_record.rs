//! The record of a session, which sshd's monitor writes to its slot in `/run/unbit/sessions/30001`,
//! for root to read.
//!
//! The lock on the slot says that there is a session, and whose: see [`sessions`](crate::sessions).
//! The record only describes it. It has the writer's pid, so that the record of an earlier session
//! in the same slot is not taken for this one's.

use nix::time::{ClockId, clock_gettime};
use std::str;

/// The bytes of a record. A page has a whole number of them.
pub const SIZE: usize = 1024;

/// The first line of a record: its format.
const FORMAT: &str = "unbit 1";

/// Follows a text that was truncated.
const ELLIPSIS: &str = "...";

/// One session, as PAM describes it when it opens. Each text is one line, which the writer has
/// escaped.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// The process that holds the lock.
    pub pid: u32,
    /// When the session was opened, in milliseconds since boot (CLOCK_BOOTTIME, as is a process's
    /// start in /proc).
    pub opened: u64,
    /// PAM_SERVICE.
    pub service: String,
    /// The client's address, or its name if sshd looks names up. Empty if it has none.
    pub address: String,
    /// The client's port. Empty if it is not known.
    pub port: String,
    /// PAM_TTY.
    pub terminal: String,
    /// The keys and other methods that sshd accepted.
    pub key: String,
}

/// Milliseconds since boot.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000
}

impl Record {
    /// The whole record, as it is written.
    pub fn to_bytes(&self) -> [u8; SIZE] {
        let Self { pid, opened, service, address, port, terminal, key } = self;
        let mut text = format!("{FORMAT}\n{pid}\n{opened}\n{service}\n{address}\n{port}\n{terminal}\n{key}");
        if text.len() >= SIZE {
            // Only the keys of several methods are that long.
            text.truncate((0..=SIZE - 1 - ELLIPSIS.len()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
            text.push_str(ELLIPSIS);
        }
        text.push('\n');
        let mut bytes = [0; SIZE];
        bytes.iter_mut().zip(text.bytes()).for_each(|(place, byte)| *place = byte);
        bytes
    }

    /// Reads a record; `None` unless it is complete.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = bytes.split(|byte| *byte == 0).next()?;
        let mut lines = str::from_utf8(text).ok()?.strip_suffix('\n')?.split('\n');
        if lines.next()? != FORMAT {
            return None;
        }
        let (pid, opened) = (lines.next()?.parse().ok()?, lines.next()?.parse().ok()?);
        let mut next = || lines.next().map(str::to_owned);
        let record =
            Self { pid, opened, service: next()?, address: next()?, port: next()?, terminal: next()?, key: next()? };
        lines.next().is_none().then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let record = Record {
            pid: 4711,
            opened: 123_456,
            service: "sshd".into(),
            address: "2001:db8::7".into(),
            port: "40022".into(),
            terminal: String::new(),
            key: "ssh-ed25519 SHA256:abc and password".into(),
        };
        let bytes = record.to_bytes();
        assert_eq!(Record::parse(&bytes), Some(record.clone()));
        assert_eq!(Record::parse(&bytes[..20]), None, "half of one");
        assert_eq!(Record::parse(&[0; SIZE]), None);
        assert_eq!(Record::parse(&[]), None);

        let long = Record { key: "k".repeat(2 * SIZE), ..record };
        let read = Record::parse(&long.to_bytes()).unwrap();
        assert!(read.key.ends_with("kk...") && read.key.len() > SIZE / 2, "{read:?}");
        assert_eq!(Record { key: long.key.clone(), ..read }, long);
        let letters = Record { key: "\u{e9}".repeat(SIZE), ..long };
        assert!(Record::parse(&letters.to_bytes()).is_some());
    }
}
