//! A second name of a container: `web1`, by the symbolic link `/containers/web1 -> 30001`.
//!
//! This file parses names and link texts. It reads no link.
#![allow(unsafe_code)]

use crate::ContainerUid;
use crate::home::{PREFIX_LEN, with_prefix};
use core::ffi::CStr;
use core::fmt;

/// The longest name, as with useradd(8).
const MAX_LEN: usize = 32;
/// Room for `/containers/`, a name, and a NUL.
const LINK_PATH_SIZE: usize = PREFIX_LEN + MAX_LEN + 1;
/// `/containers/` with room for a name.
const LINK_TEMPLATE: [u8; LINK_PATH_SIZE] = with_prefix();
/// The size of the buffer for readlink(2): more than the ten digits of the largest number, so a
/// longer text is not taken for a number.
pub const LINK_TEXT_SIZE: usize = 16;

/// A name that can be a container's second one: a lower case letter or `_`, then lower case
/// letters, digits, `_` and `-`; at most 32 characters. useradd(8) accepts each of them, and none
/// is a number or a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondName {
    /// The path of the link, with zeros after it.
    link: [u8; LINK_PATH_SIZE],
    len: usize,
}

impl SecondName {
    /// Reads a name.
    pub fn parse(name: &[u8]) -> Option<Self> {
        Self::from_bytes(name.iter().copied())
    }

    /// Like [`Self::parse`], byte by byte: no byte is read after the first one that no second name
    /// has.
    #[inline]
    pub fn from_bytes(mut name: impl Iterator<Item = u8>) -> Option<Self> {
        let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        let first = name.next().filter(|byte| is_letter(*byte))?;
        let (mut link, mut len) = (LINK_TEMPLATE, PREFIX_LEN);
        *link.get_mut(len)? = first;
        len += 1;
        for byte in name {
            if len == LINK_PATH_SIZE - 1 || !(is_letter(byte) || byte.is_ascii_digit() || byte == b'-') {
                return None;
            }
            *link.get_mut(len)? = byte;
            len += 1;
        }
        Some(Self { link, len })
    }

    /// The path of the link, for a system call.
    #[inline]
    pub const fn link_path(&self) -> &CStr {
        // Not CStr::from_ptr: strlen(3) would cost as much as the rest of a lookup.
        // SAFETY: `read` makes the path of `len` bytes, none of them zero (settings.rs refuses such
        // a directory), and at least one zero.
        unsafe { CStr::from_bytes_with_nul_unchecked(core::slice::from_raw_parts(self.link.as_ptr(), self.len + 1)) }
    }

    /// The container that a link with this text leads to. The text must be its number and nothing
    /// else.
    pub fn target_of(text: &[u8]) -> Option<ContainerUid> {
        ContainerUid::parse(text)
    }

    /// The name, with zeros after it.
    pub fn padded(&self) -> [u8; MAX_LEN] {
        let name = self.link.get(PREFIX_LEN..).and_then(|name| name.first_chunk());
        name.copied().unwrap_or_default()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        self.link_path().to_str().ok().and_then(|link| link.get(PREFIX_LEN..)).unwrap_or_default()
    }
}

impl fmt::Display for SecondName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_useradd_takes() {
        let longest = "a".repeat(32);
        for name in ["a", "_", "web1", "web-1", "web_1", "_apt", "a-", "x30001", longest.as_str()] {
            let read = SecondName::parse(name.as_bytes()).unwrap();
            assert_eq!(read.as_str(), name);
            assert_eq!(read.link_path().to_str(), Ok(format!("/containers/{name}").as_str()));
            assert_eq!(read.padded().iter().filter(|byte| **byte != 0).count(), name.len());
            assert_eq!(format!("{read:>34}"), format!("{name:>34}"));
        }
        let long = "a".repeat(33);
        for name in [
            "",
            "1",
            "30001",
            "030001",
            "1web",
            "-web",
            "-",
            "Web",
            "weB",
            "web.1",
            ".",
            "..",
            "web/1",
            "/web",
            "web ",
            " web",
            "web\n",
            "web$",
            "web\0",
            "web:",
            "web+",
            "w\u{e9}b",
            "\u{e9}",
            "w@b",
            "`",
            "{",
            "a`",
            "a{",
            "a/",
            "a:",
            "lost+found",
            long.as_str(),
        ] {
            assert_eq!(SecondName::parse(name.as_bytes()), None, "{name:?}");
        }
    }

    #[test]
    fn a_link_is_a_number_and_nothing_else() {
        let target_of = |text: &str| SecondName::target_of(text.as_bytes()).map(ContainerUid::get);
        assert_eq!(target_of("30001"), Some(30001));
        assert_eq!(target_of("2147483647"), Some(2_147_483_647));
        for text in [
            "",
            "030001",
            "30001/",
            "./30001",
            "/containers/30001",
            "65534",
            "29999",
            "web1",
            "30001\n",
            "2147483648",
            "3000100000000000",
        ] {
            assert_eq!(target_of(text), None, "{text:?}");
        }
        assert!("2147483647".len() < LINK_TEXT_SIZE);
    }
}
