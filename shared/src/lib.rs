//! What a container is, for the NSS module, the PAM module and the operator's command alike.
//!
//! No files, no C, no allocation, no panic. A container is a number, from which its name, home and
//! address follow:
//!
//! ```
//! let container = shared::ContainerUid::parse(b"30001").unwrap();
//! assert_eq!(container.home().as_c_str(), c"/containers/30001");
//! assert!(shared::ContainerUid::parse(b"030001").is_none());
//! ```
#![cfg_attr(not(test), no_std)]

pub mod escape;
mod home;
mod host;
mod second_name;
pub mod settings;

use core::str::FromStr;
pub use home::{Home, Name};
pub use second_name::{LINK_TEXT_SIZE, SecondName};
use settings::FIRST_UID;

/// Reads a number of digits alone: std accepts a sign as well.
pub fn decimal<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The uid of a container: at least [`FIRST_UID`], at most 2^31-1, and neither 65534 (nobody) nor
/// 65535 (16-bit -1).
///
/// It is the account's name in decimal, its uid, and its gid.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ContainerUid(u32);

impl ContainerUid {
    /// The container of this uid, unless no container may have it.
    pub const fn new(uid: u32) -> Option<Self> {
        match uid {
            65534 | 65535 => None,
            FIRST_UID..=MAX_UID => Some(Self(uid)),
            _ => None,
        }
    }

    /// Reads an account name: the canonical decimal number and nothing else. For other names see
    /// [`SecondName`].
    pub fn parse(name: &[u8]) -> Option<Self> {
        Self::from_bytes(name.iter().copied())
    }

    /// Like [`Self::parse`], byte by byte: no byte is read after the first one that shows that the
    /// name is no container's.
    #[inline]
    pub fn from_bytes(name: impl Iterator<Item = u8>) -> Option<Self> {
        let mut uid = 0u64;
        for byte in name {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return None;
            }
            uid = uid * 10 + u64::from(digit);
            if uid == 0 || uid > MAX_UID as u64 {
                return None; // a leading zero, or too large; checked at each digit, so u64 cannot overflow
            }
        }
        Self::new(uid as u32)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether stat(2) of [`Self::home`] showed a directory owned by exactly uid:uid.
    pub const fn owns_directory(self, mode: u32, uid: u32, gid: u32) -> bool {
        const S_IFMT: u32 = 0o170_000;
        const S_IFDIR: u32 = 0o040_000;
        mode & S_IFMT == S_IFDIR && uid == self.0 && gid == self.0
    }
}

impl core::fmt::Display for ContainerUid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}

/// The largest uid that every program can hold.
const MAX_UID: u32 = 0x7fff_ffff;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_number_is_a_name() {
        for (name, uid) in [("30000", 30000), ("30001", 30001), ("65533", 65533), ("2147483647", 2147483647)] {
            let container = ContainerUid::parse(name.as_bytes()).unwrap();
            assert_eq!((container.get(), container.to_string().as_str()), (uid, name));
        }
        for name in [
            "",
            "0",
            "1",
            "29999",
            "030001",
            "+30001",
            "-30001",
            " 30001",
            "30001 ",
            "30001/",
            "30001\n",
            "30001a",
            "3e4",
            "30001/../30000",
            "65534",
            "65535",
            "2147483648",
            "4294997297",
            "18446744073709581617",
            "root",
            "٣٠٠٠١",
            "99999999999",
            "/",
            ":",
            "3000/",
            "3000:",
        ] {
            assert_eq!(ContainerUid::parse(name.as_bytes()), None, "{name:?}");
        }
    }

    #[test]
    fn a_home_is_a_directory_of_the_container_alone() {
        let container = ContainerUid::parse(b"30001");
        let owns = |mode, uid, gid| container.map(|c| c.owns_directory(mode, uid, gid));
        assert_eq!(owns(0o040_755, 30001, 30001), Some(true));
        assert_eq!(owns(0o100_755, 30001, 30001), Some(false), "a regular file");
        assert_eq!(owns(0o140_755, 30001, 30001), Some(false), "a socket has the directory's bit too");
        assert_eq!(owns(0o040_755, 0, 30001), Some(false));
        assert_eq!(owns(0o040_755, 30001, 0), Some(false));
    }
}
