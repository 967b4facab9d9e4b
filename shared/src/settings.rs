//! What an operator may set when building; the defaults are those of the C modules nss-unbit and
//! pam-unbit.
//!
//! They cannot be set at run time: the NSS module runs inside set-user-ID programs, which can trust
//! neither a file nor the environment.

#![allow(clippy::indexing_slicing, clippy::panic)] // evaluated at compile time, where a panic is a build error

use core::ffi::CStr;

/// The directory that holds one directory per container. `UNBIT_CONTAINERS`.
pub const CONTAINERS: &str = match option_env!("UNBIT_CONTAINERS") {
    Some(directory) => directory,
    None => "/containers",
};

/// [`CONTAINERS`], for a system call.
pub const CONTAINERS_PATH: &CStr = match CStr::from_bytes_with_nul(&padded::<{ CONTAINERS.len() + 1 }>(CONTAINERS)) {
    Ok(path) => path,
    Err(_) => panic!("UNBIT_CONTAINERS: no NUL"),
};

/// The first uid of a container. Every uid from here on is a container's or nobody's.
/// `UNBIT_FIRST_UID`.
pub const FIRST_UID: u32 = match option_env!("UNBIT_FIRST_UID") {
    Some(text) => decimal(text.as_bytes()),
    None => 30_000,
};

/// The shell of every container account. `UNBIT_SHELL`.
pub const SHELL: &str = match option_env!("UNBIT_SHELL") {
    Some(shell) => shell,
    None => "/bin/bash",
};

/// [`SHELL`], as an array.
pub const SHELL_BYTES: [u8; SHELL.len()] = padded(SHELL);

/// The network of the containers, in host byte order: the first container has this address plus 2.
/// `UNBIT_ADDRESS_BASE`.
pub const ADDRESS_BASE: u32 = match option_env!("UNBIT_ADDRESS_BASE") {
    Some(text) => dotted_quad(text.as_bytes()),
    None => 0x0a00_0000,
};

const _: () = {
    let directory = CONTAINERS.as_bytes();
    assert!(!directory.is_empty() && directory.len() <= 100, "UNBIT_CONTAINERS: 1 to 100 bytes");
    assert!(directory[0] == b'/', "UNBIT_CONTAINERS: an absolute path");
    assert!(directory[directory.len() - 1] != b'/', "UNBIT_CONTAINERS: no slash at the end");
    assert!(fits_a_passwd_field(directory), "UNBIT_CONTAINERS: no colon, newline or NUL");
    assert!(FIRST_UID >= 1000, "UNBIT_FIRST_UID: below 1000 are the system's own accounts");
    assert!(FIRST_UID < i32::MAX as u32, "UNBIT_FIRST_UID: at most 2147483646");
    assert!(SHELL.as_bytes()[0] == b'/', "UNBIT_SHELL: an absolute path");
    assert!(fits_a_passwd_field(SHELL.as_bytes()), "UNBIT_SHELL: no colon, newline or NUL");
    assert!(ADDRESS_BASE & 0xff == 0, "UNBIT_ADDRESS_BASE: a network that ends in .0");
};

const fn fits_a_passwd_field(text: &[u8]) -> bool {
    let mut i = 0;
    while i < text.len() {
        if matches!(text[i], b':' | b'\n' | 0) {
            return false;
        }
        i += 1;
    }
    true
}

const fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut path = [0; N];
    let mut i = 0;
    while i < text.len() {
        path[i] = text.as_bytes()[i];
        i += 1;
    }
    path
}

const fn decimal(text: &[u8]) -> u32 {
    assert!(!text.is_empty() && text.len() <= 10, "a build-time number: 1 to 10 digits");
    let mut value = 0u64;
    let mut i = 0;
    while i < text.len() {
        assert!(text[i].is_ascii_digit(), "a build-time number: digits only");
        value = value * 10 + (text[i] - b'0') as u64;
        i += 1;
    }
    assert!(value <= u32::MAX as u64, "a build-time number: at most 4294967295");
    value as u32
}

const fn dotted_quad(text: &[u8]) -> u32 {
    let (mut address, mut octet, mut digits, mut dots) = (0u32, 0u32, 0, 0);
    let mut i = 0;
    while i < text.len() {
        if text[i] == b'.' {
            assert!(digits > 0, "UNBIT_ADDRESS_BASE: four numbers with dots between them");
            address = address << 8 | octet;
            (octet, digits, dots) = (0, 0, dots + 1);
        } else {
            assert!(text[i].is_ascii_digit(), "UNBIT_ADDRESS_BASE: digits and dots only");
            octet = octet * 10 + (text[i] - b'0') as u32;
            digits += 1;
            assert!(octet <= 255, "UNBIT_ADDRESS_BASE: each number at most 255");
        }
        i += 1;
    }
    assert!(digits > 0 && dots == 3, "UNBIT_ADDRESS_BASE: four numbers with dots between them");
    address << 8 | octet
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn numbers() {
        for (text, number) in [("0", 0), ("7", 7), ("30000", 30_000), ("0042", 42), ("4294967295", u32::MAX)] {
            assert_eq!(decimal(text.as_bytes()), number, "{text}");
        }
        for text in ["", "4294967296", "99999999999", "00000000001", "-1", "3e4", "1/", "1:"] {
            assert!(catch_unwind(|| decimal(text.as_bytes())).is_err(), "{text}");
        }
    }

    #[test]
    fn networks() {
        for (text, network) in [("10.0.0.0", 0x0a00_0000), ("172.16.254.0", 0xac10_fe00), ("255.255.255.255", u32::MAX)]
        {
            assert_eq!(dotted_quad(text.as_bytes()), network, "{text}");
        }
        for text in
            ["", "10", "10.0.0", "10.0.0.", ".0.0.0", "10..0.0", "10.0.0.0.0", "10.0.256.0", "10.0.0.x", "10.0.0.0/8"]
        {
            assert!(catch_unwind(|| dotted_quad(text.as_bytes())).is_err(), "{text}");
        }
    }

    #[test]
    fn texts() {
        assert_eq!(&padded::<6>("/bin"), b"/bin\0\0");
        assert!(fits_a_passwd_field(b"/bin/bash") && fits_a_passwd_field(b""));
        for text in ["/a:b", ":", "/a\nb", "/a\0", "\0"] {
            assert!(!fits_a_passwd_field(text.as_bytes()), "{text:?}");
        }
    }
}
