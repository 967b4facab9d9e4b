//! The name and the home directory of a container: `30001` and `/containers/30001`.
//!
//! Both are arrays of a fixed size, padded with zeros, which the compiler copies in registers.
//! Copying by length took a loop, which was a third of a lookup's instructions in user space.
//!
//! Nothing is looked up here.
#![allow(unsafe_code)]

use crate::ContainerUid;
use crate::settings::CONTAINERS;
use core::ffi::CStr;

/// Room for a name: at most ten digits, and zeros. [`ContainerUid::name`] builds it in a `u128`.
pub(crate) const NAME_SIZE: usize = size_of::<u128>();
/// The bytes of `/containers/`.
pub(crate) const PREFIX_LEN: usize = CONTAINERS.len() + 1;
/// Room for `/containers/` and a name.
const HOME_SIZE: usize = PREFIX_LEN + NAME_SIZE;

/// `/containers/` with room for a name.
const HOME_TEMPLATE: [u8; HOME_SIZE] = with_prefix();

/// `/containers/`, with zeros after it.
#[allow(clippy::indexing_slicing)] // evaluated by the compiler
pub(crate) const fn with_prefix<const N: usize>() -> [u8; N] {
    let mut path = [0; N];
    let mut i = 0;
    while i < CONTAINERS.len() {
        path[i] = CONTAINERS.as_bytes()[i];
        i += 1;
    }
    path[i] = b'/';
    path
}

impl ContainerUid {
    /// The account name: the number in decimal.
    #[inline]
    pub const fn name(self) -> Name {
        // Each digit is shifted in below the digits to its right, so the little-endian bytes are in
        // reading order.
        let (mut digits, mut len, mut rest) = (0u128, 0, self.get());
        while rest != 0 {
            digits = digits << 8 | (b'0' + (rest % 10) as u8) as u128;
            rest /= 10;
            len += 1;
        }
        Name { text: digits.to_le_bytes(), len }
    }

    /// The home directory: `/containers/30001`.
    #[inline]
    pub fn home(self) -> Home {
        let name = self.name();
        let mut home = Home { path: HOME_TEMPLATE, len: PREFIX_LEN + name.len };
        if let Some(last) = home.path.last_chunk_mut() {
            *last = name.text;
        }
        home
    }
}

/// An account name.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    text: [u8; NAME_SIZE],
    len: usize,
}

impl Name {
    /// The digits, without a NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}

/// The path of a home directory.
#[derive(Clone, Copy, Debug)]
pub struct Home {
    path: [u8; HOME_SIZE],
    len: usize,
}

impl Home {
    /// The path, for a system call.
    #[inline]
    pub const fn as_c_str(&self) -> &CStr {
        // Not CStr::from_ptr: strlen(3) takes about as many instructions as a bare stat(2) does
        // outside the kernel.
        // SAFETY: `home` makes the path of `len` bytes, none of them zero (settings.rs refuses such
        // a directory), and at least six zeros.
        unsafe { CStr::from_bytes_with_nul_unchecked(core::slice::from_raw_parts(self.path.as_ptr(), self.len + 1)) }
    }

    /// The path, with zeros after it.
    #[inline]
    pub const fn padded(&self) -> [u8; HOME_SIZE] {
        self.path
    }

    /// The last part of the path, which is the account name, with zeros after it.
    #[inline]
    pub fn padded_name(&self) -> [u8; NAME_SIZE] {
        self.path.last_chunk().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_read_back_as_the_number() {
        for uid in (30_000..300_000).step_by(if cfg!(miri) { 997 } else { 1 }).chain([i32::MAX as u32]) {
            let Some(container) = ContainerUid::new(uid) else { continue };
            assert_eq!(container.name().as_bytes(), uid.to_string().as_bytes());
            assert_eq!(ContainerUid::parse(container.name().as_bytes()), Some(container));
        }
    }

    #[test]
    fn the_home_is_the_directory_and_the_number() {
        let longest = ContainerUid::new(i32::MAX as u32).map(|c| c.home().as_c_str().to_owned());
        assert_eq!(longest.as_deref(), Some(c"/containers/2147483647"));
        let home = ContainerUid::new(30001).map(ContainerUid::home).unwrap();
        assert_eq!(home.as_c_str(), c"/containers/30001");
        assert_eq!(home.padded().strip_prefix(b"/containers/"), Some(&home.padded_name()[..]));
        assert_eq!(home.padded_name(), *b"30001\0\0\0\0\0\0\0\0\0\0\0");
    }
}
