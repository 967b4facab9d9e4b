//! What a container is, for the NSS module, the PAM module and the operator's command alike.
//!
//! Pure: no files, no C, no allocation, no panic. A container is a number, and everything else follows from it:
//!
//! ```
//! let container = shared::ContainerUid::parse(b"30001").unwrap();
//! assert_eq!(container.home().as_c_str(), c"/containers/30001");
//! assert!(shared::ContainerUid::parse(b"030001").is_none());
//! ```
#![cfg_attr(not(test), no_std)]

mod host;
pub mod settings;

use core::ffi::CStr;
pub use host::HostName;
use settings::{CONTAINERS, FIRST_UID};

/// The uid of a container: at least [`FIRST_UID`], at most 2^31-1, and neither 65534 (nobody) nor 65535 (16-bit -1).
///
/// It is the account's name in decimal, its uid, and its gid.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ContainerUid(u32);

impl ContainerUid {
    /// The container of this uid, unless no container may have it.
    pub const fn new(uid: u32) -> Option<Self> {
        match uid {
            65534 | 65535 => None,
            FIRST_UID..=0x7fff_ffff => Some(Self(uid)),
            _ => None,
        }
    }

    /// Reads an account name: the canonical decimal number and nothing else, so that each container has one name.
    pub fn parse(name: &[u8]) -> Option<Self> {
        if name.len() > MAX_DIGITS || name.first() == Some(&b'0') {
            return None;
        }
        let mut uid = 0u32;
        for digit in name {
            let digit = digit.wrapping_sub(b'0');
            if digit > 9 {
                return None;
            }
            uid = uid.checked_mul(10)?.checked_add(u32::from(digit))?;
        }
        Self::new(uid)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The account name: the number in decimal.
    pub fn name(self) -> Name {
        let mut name = Name { digits: [b'0'; MAX_DIGITS], start: MAX_DIGITS };
        let mut rest = self.0;
        for slot in name.digits.iter_mut().rev() {
            if rest == 0 {
                break;
            }
            *slot = b'0' + (rest % 10) as u8;
            rest /= 10;
            name.start -= 1;
        }
        name
    }

    /// The home directory: `/containers/30001`.
    pub fn home(self) -> Home {
        let mut home = Home { path: NOBODYS_HOME, end: FOLDER };
        for (slot, digit) in home.path.iter_mut().skip(FOLDER).zip(self.name().as_bytes()) {
            *slot = *digit;
            home.end += 1;
        }
        home
    }

    /// Whether what `stat` said of [`Self::home`] makes it a container: a directory owned by exactly uid:uid.
    pub const fn is_owner_of(self, mode: u32, uid: u32, gid: u32) -> bool {
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

const MAX_DIGITS: usize = 10;

/// The bytes of `/containers/`.
const FOLDER: usize = CONTAINERS.len() + 1;
const HOME_MAX: usize = FOLDER + MAX_DIGITS + 1;

/// `/containers/` with room for a number and an end mark.
#[allow(clippy::indexing_slicing)] // evaluated by the compiler
const NOBODYS_HOME: [u8; HOME_MAX] = {
    let mut path = [0; HOME_MAX];
    let mut i = 0;
    while i < CONTAINERS.len() {
        path[i] = CONTAINERS.as_bytes()[i];
        i += 1;
    }
    path[i] = b'/';
    path
};

/// An account name.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    digits: [u8; MAX_DIGITS],
    start: usize,
}

impl Name {
    /// The digits, without an end mark.
    pub fn as_bytes(&self) -> &[u8] {
        self.digits.get(self.start..).unwrap_or_default()
    }
}

/// The path of a home directory.
#[derive(Clone, Copy, Debug)]
pub struct Home {
    path: [u8; HOME_MAX],
    end: usize,
}

impl Home {
    /// The path, for a system call.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.path).unwrap_or_default()
    }

    /// The path, without an end mark.
    pub fn as_bytes(&self) -> &[u8] {
        self.path.get(..self.end).unwrap_or_default()
    }

    /// The last part of the path, which is the account name.
    pub fn name(&self) -> &[u8] {
        self.path.get(FOLDER..self.end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_number_is_a_name() {
        for (name, uid) in [("30000", 30000), ("30001", 30001), ("65533", 65533), ("2147483647", 2147483647)] {
            assert_eq!(ContainerUid::parse(name.as_bytes()).map(ContainerUid::get), Some(uid), "{name}");
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
    fn the_name_is_read_back_as_the_number() {
        for uid in (30_000..300_000).step_by(if cfg!(miri) { 997 } else { 1 }).chain([i32::MAX as u32]) {
            let Some(container) = ContainerUid::new(uid) else { continue };
            assert_eq!(container.name().as_bytes(), uid.to_string().as_bytes());
            assert_eq!(ContainerUid::parse(container.name().as_bytes()), Some(container));
        }
    }

    #[test]
    fn the_home_is_the_folder_and_the_number() {
        let longest = ContainerUid::new(i32::MAX as u32).map(|c| c.home().as_c_str().to_owned());
        assert_eq!(longest.as_deref(), Some(c"/containers/2147483647"));
        let home = ContainerUid::new(30001).map(ContainerUid::home).unwrap();
        assert_eq!((home.as_c_str(), home.as_bytes()), (c"/containers/30001", &b"/containers/30001"[..]));
        assert_eq!(home.name(), b"30001");
    }

    #[test]
    fn a_home_is_a_directory_of_the_container_alone() {
        let container = ContainerUid::parse(b"30001");
        let owns = |mode, uid, gid| container.map(|c| c.is_owner_of(mode, uid, gid));
        assert_eq!(owns(0o040_755, 30001, 30001), Some(true));
        assert_eq!(owns(0o100_755, 30001, 30001), Some(false), "a regular file");
        assert_eq!(owns(0o140_755, 30001, 30001), Some(false), "a socket has the directory's bit too");
        assert_eq!(owns(0o040_755, 0, 30001), Some(false));
        assert_eq!(owns(0o040_755, 30001, 0), Some(false));
    }
}
