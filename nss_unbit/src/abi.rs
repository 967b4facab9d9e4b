//! What glibc and this module pass to each other: the structs of its headers and the codes of its
//! NSS interface.
//!
//! They are defined here instead of taken from a crate, because they are few and part of glibc's
//! stable ABI.
//!
//! No lookup is in this file.

use core::ffi::{c_char, c_int, c_long, c_ulong};
use rustix::io::Errno;

/// `enum nss_status` (nss.h).
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Ask again; with ERANGE, with a larger buffer.
    TryAgain = -2,
    /// This service cannot tell.
    Unavailable = -1,
    /// This service knows that there is none.
    NotFound = 0,
    /// The record is filled in.
    Success = 1,
}

/// Why there is no record, in glibc's codes. Eight bytes, so that a `Result` with a pointer is
/// returned in two registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    pub status: Status,
    errno: u16,
    /// For hosts alone. `Internal` ("see errno") makes glibc grow the buffer. With any other
    /// value glibc ends the whole getaddrinfo (nss/getaddrinfo.c).
    host_error: HostError,
}

impl Failure {
    /// There is no such container.
    pub const ABSENT: Self = Self::new(Status::NotFound, Errno::NOENT, HostError::HostNotFound);
    /// The host name is a container's, but it has no address of the family asked for.
    pub const NO_ADDRESS: Self = Self::new(Status::NotFound, Errno::NOENT, HostError::NoData);
    /// The caller's buffer is too small for the record. Only this pair makes glibc grow it
    /// (nss/getXXbyYY_r.c).
    pub const BUFFER_TOO_SMALL: Self = Self::new(Status::TryAgain, Errno::RANGE, HostError::Internal);

    /// The system could not say whether there is such a container, and gave this errno.
    pub const fn unavailable(errno: c_int) -> Self {
        Self { status: Status::Unavailable, errno: errno as u16, host_error: HostError::NoRecovery }
    }

    const fn new(status: Status, errno: Errno, host_error: HostError) -> Self {
        Self { status, errno: errno.raw_os_error() as u16, host_error }
    }

    /// The `errno`.
    pub const fn errno(self) -> c_int {
        self.errno as c_int
    }

    /// The `h_errno`.
    pub const fn h_errno(self) -> c_int {
        self.host_error as c_int
    }
}

/// The values of `h_errno` (netdb.h).
#[repr(i8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostError {
    /// `NETDB_INTERNAL`.
    Internal = -1,
    /// `NETDB_SUCCESS`.
    Success = 0,
    /// `HOST_NOT_FOUND`.
    HostNotFound = 1,
    /// `NO_RECOVERY`.
    NoRecovery = 3,
    /// `NO_DATA`.
    NoData = 4,
}

/// `AF_INET` (bits/socket.h).
pub const AF_INET: c_int = 2;
/// `AF_INET6` (bits/socket.h).
pub const AF_INET6: c_int = 10;

/// `struct passwd` (pwd.h).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Passwd {
    pub pw_name: *mut c_char,
    pub pw_passwd: *mut c_char,
    pub pw_uid: u32,
    pub pw_gid: u32,
    pub pw_gecos: *mut c_char,
    pub pw_dir: *mut c_char,
    pub pw_shell: *mut c_char,
}

/// `struct group` (grp.h).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub gr_name: *mut c_char,
    pub gr_passwd: *mut c_char,
    pub gr_gid: u32,
    pub gr_mem: *mut *mut c_char,
}

/// `struct spwd` (shadow.h).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Shadow {
    pub sp_namp: *mut c_char,
    pub sp_pwdp: *mut c_char,
    pub sp_lstchg: c_long,
    pub sp_min: c_long,
    pub sp_max: c_long,
    pub sp_warn: c_long,
    pub sp_inact: c_long,
    pub sp_expire: c_long,
    pub sp_flag: c_ulong,
}

/// `struct hostent` (netdb.h).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Hostent {
    pub h_name: *mut c_char,
    pub h_aliases: *mut *mut c_char,
    pub h_addrtype: c_int,
    pub h_length: c_int,
    pub h_addr_list: *mut *mut c_char,
}

/// `struct gaih_addrtuple` (nss.h).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AddrTuple {
    pub next: *mut AddrTuple,
    pub name: *mut c_char,
    pub family: c_int,
    /// In network byte order; an IPv4 address takes the first four bytes.
    pub addr: [[u8; 4]; 4],
    pub scopeid: u32,
}
