//! The functions that glibc looks up by name, `_nss_<service>_<function>`, and nothing else that is
//! visible outside.
//!
//! Their signatures are those of nss.h. The caller guarantees the same about the pointers of all of
//! them:
//! - a name is a string that ends in NUL;
//! - `result`, `errnop` and `h_errnop` can be written to, and nobody else uses them until the
//!   function returns;
//! - the `length` bytes at `buffer` can be written to, and nobody else uses them until the function
//!   returns;
//! - `ttlp` and `canonp` are like `result`, or NULL.
//!
//! Each function only translates: from C's arguments to a lookup, and from its outcome to glibc's
//! codes.
#![allow(unsafe_code)]

use crate::abi::{AF_INET, AddrTuple, Failure, Group, HostError, Hostent, Passwd, Shadow, Status};
use crate::buffer::Buffer;
use crate::enumeration::{self, Enumeration};
use crate::lookup::Account;
use crate::{group, hosts, lookup, passwd, shadow};
use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::net::Ipv4Addr;
use shared::{ContainerUid, SecondName};

// passwd

/// The account of this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_getpwnam_r(
    name: *const c_char,
    result: *mut Passwd,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe { reply_by_name(name, passwd::record, passwd::rename, result, buffer, length, errnop) }
}

/// The account of this uid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_getpwuid_r(
    uid: u32,
    result: *mut Passwd,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe { reply_account(ContainerUid::new(uid), passwd::record, result, buffer, length, errnop) }
}

/// setpwent(3): the next call returns the first entry again.
#[unsafe(no_mangle)]
pub extern "C" fn _nss_unbit_setpwent(_stay_open: c_int) -> Status {
    enumeration::PASSWD.rewind();
    Status::Success
}

/// getpwent_r(3): the next entry.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_getpwent_r(
    result: *mut Passwd,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe { reply_next(&enumeration::PASSWD, passwd::record, result, buffer, length, errnop) }
}

/// endpwent(3).
#[unsafe(no_mangle)]
pub extern "C" fn _nss_unbit_endpwent() -> Status {
    enumeration::PASSWD.rewind();
    Status::Success
}

// group

/// The group of this name, which is the number alone: a second name is an account's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_getgrnam_r(
    name: *const c_char,
    result: *mut Group,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe {
        reply_account(ContainerUid::from_bytes(bytes_until_nul(name)), group::record, result, buffer, length, errnop)
    }
}

/// The group of this gid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_getgrgid_r(
    gid: u32,
    result: *mut Group,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe { reply_account(ContainerUid::new(gid), group::record, result, buffer, length, errnop) }
}

/// setgrent(3): the next call returns the first entry again.
#[unsafe(no_mangle)]
pub extern "C" fn _nss_unbit_setgrent(_stay_open: c_int) -> Status {
    enumeration::GROUP.rewind();
    Status::Success
}

/// getgrent_r(3): the next entry.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_getgrent_r(
    result: *mut Group,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe { reply_next(&enumeration::GROUP, group::record, result, buffer, length, errnop) }
}

/// endgrent(3).
#[unsafe(no_mangle)]
pub extern "C" fn _nss_unbit_endgrent() -> Status {
    enumeration::GROUP.rewind();
    Status::Success
}

/// The groups of an account besides its primary one, which the caller has: a container's account
/// has none.
///
/// Nothing is added by name: an ordinary account may be called 30001 too (`useradd --badname`), and
/// must not get the group of that container. Without this function glibc would walk /containers at
/// each login (nss/initgroups.c, `compat_call`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_initgroups_dyn(
    _name: *const c_char,
    _primary: u32,
    _start: *mut c_long,
    _size: *mut c_long,
    _list: *mut *mut u32,
    _limit: c_long,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe { reply(Err(Failure::ABSENT), &mut (), errnop) }
}

// shadow

/// The password record of the account of this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_getspnam_r(
    name: *const c_char,
    result: *mut Shadow,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe { reply_by_name(name, shadow::record, shadow::rename, result, buffer, length, errnop) }
}

/// setspent(3): the next call returns the first entry again.
#[unsafe(no_mangle)]
pub extern "C" fn _nss_unbit_setspent(_stay_open: c_int) -> Status {
    enumeration::SHADOW.rewind();
    Status::Success
}

/// getspent_r(3): the next entry.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_getspent_r(
    result: *mut Shadow,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe { reply_next(&enumeration::SHADOW, shadow::record, result, buffer, length, errnop) }
}

/// endspent(3).
#[unsafe(no_mangle)]
pub extern "C" fn _nss_unbit_endspent() -> Status {
    enumeration::SHADOW.rewind();
    Status::Success
}

// hosts

/// The IPv4 address of this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_gethostbyname_r(
    name: *const c_char,
    result: *mut Hostent,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
    h_errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe { _nss_unbit_gethostbyname2_r(name, AF_INET, result, buffer, length, errnop, h_errnop) }
}

/// The address of this name in this family.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_gethostbyname2_r(
    name: *const c_char,
    family: c_int,
    result: *mut Hostent,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
    h_errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe { reply_host(hosts::by_name(bytes(name), family), result, buffer, length, errnop, h_errnop) }
}

/// Like gethostbyname2_r, with the canonical name. No time to live is written, because an address
/// does not change.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_gethostbyname3_r(
    name: *const c_char,
    family: c_int,
    result: *mut Hostent,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
    h_errnop: *mut c_int,
    _ttlp: *mut i32,
    canonp: *mut *mut c_char,
) -> Status {
    // SAFETY: the guarantees above; after a success, `result` has been written.
    unsafe {
        let status = reply_host(hosts::by_name(bytes(name), family), result, buffer, length, errnop, h_errnop);
        if status == Status::Success && !canonp.is_null() {
            canonp.write((*result).h_name);
        }
        status
    }
}

/// The one address of this name. The caller passes the first tuple of the list, or NULL to get it
/// in the buffer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_gethostbyname4_r(
    name: *const c_char,
    list: *mut *mut AddrTuple,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
    h_errnop: *mut c_int,
    _ttlp: *mut i32,
) -> Status {
    // SAFETY: the guarantees above; `list` is like `result`, and so is what it points to.
    unsafe {
        let mut buffer = Buffer::new(buffer, length);
        let filled = hosts::by_name(bytes(name), AF_INET).and_then(|found| {
            let tuple = hosts::tuple(found, &mut buffer)?;
            match list.read() {
                first if first.is_null() => list.write(buffer.value(tuple)?),
                first => first.write(tuple),
            }
            Ok(())
        });
        reply_with_h_errno(filled, &mut (), errnop, h_errnop)
    }
}

/// The name of this address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_gethostbyaddr_r(
    address: *const c_void,
    address_length: u32,
    family: c_int,
    result: *mut Hostent,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
    h_errnop: *mut c_int,
) -> Status {
    // SAFETY: the guarantees above; `address_length` bytes can be read at `address`.
    unsafe {
        let address = core::slice::from_raw_parts(address.cast(), address_length as usize);
        reply_host(hosts::by_address(address, family), result, buffer, length, errnop, h_errnop)
    }
}

/// gethostbyaddr_r with a time to live, which is not written (see [`_nss_unbit_gethostbyname3_r`]).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_unbit_gethostbyaddr2_r(
    address: *const c_void,
    address_length: u32,
    family: c_int,
    result: *mut Hostent,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
    h_errnop: *mut c_int,
    _ttlp: *mut i32,
) -> Status {
    // SAFETY: the guarantees above.
    unsafe { _nss_unbit_gethostbyaddr_r(address, address_length, family, result, buffer, length, errnop, h_errnop) }
}

// What they share

/// Answers for the name of an account: its number, or a second name.
///
/// # Safety
/// The guarantees above.
#[inline(always)]
unsafe fn reply_by_name<R>(
    name: *const c_char,
    record: impl FnOnce(&Account, &mut Buffer) -> Result<R, Failure>,
    rename: impl FnOnce(&mut R, *mut c_char),
    result: *mut R,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the caller's guarantees.
    unsafe {
        match ContainerUid::from_bytes(bytes_until_nul(name)) {
            Some(container) => reply_account(Some(container), record, result, buffer, length, errnop),
            None => reply_by_second_name(name, record, rename, result, buffer, length, errnop),
        }
    }
}

/// Answers for a second name. A function of its own, so that the lookup of a number does not pay
/// for it.
///
/// # Safety
/// The guarantees above.
#[inline(never)]
unsafe fn reply_by_second_name<R>(
    name: *const c_char,
    record: impl FnOnce(&Account, &mut Buffer) -> Result<R, Failure>,
    rename: impl FnOnce(&mut R, *mut c_char),
    result: *mut R,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the caller's guarantees.
    unsafe {
        let mut buffer = Buffer::new(buffer, length);
        let name = SecondName::from_bytes(bytes_until_nul(name)).ok_or(Failure::ABSENT);
        let filled = name.and_then(|name| {
            let mut record = record(&lookup::by_second_name(&name)?, &mut buffer)?;
            rename(&mut record, buffer.string(name.padded())?);
            Ok(record)
        });
        reply(filled, result, errnop)
    }
}

/// Answers for passwd, group and shadow: the record of a container that is here, or why there is
/// none.
///
/// # Safety
/// The guarantees above.
unsafe fn reply_account<R>(
    container: Option<ContainerUid>,
    record: impl FnOnce(&Account, &mut Buffer) -> Result<R, Failure>,
    result: *mut R,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the caller's guarantees.
    unsafe {
        let mut buffer = Buffer::new(buffer, length);
        let account = container.ok_or(Failure::ABSENT).and_then(lookup::by_uid);
        reply(account.and_then(|account| record(&account, &mut buffer)), result, errnop)
    }
}

/// Answers for an enumeration: the record of the next container, or why there is none.
///
/// # Safety
/// The guarantees above.
unsafe fn reply_next<R>(
    containers: &Enumeration,
    record: impl FnOnce(&Account, &mut Buffer) -> Result<R, Failure>,
    result: *mut R,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: the caller's guarantees.
    unsafe {
        let mut buffer = Buffer::new(buffer, length);
        reply(containers.next(|account| record(account, &mut buffer)), result, errnop)
    }
}

/// Answers for hosts: the record of a container's name or address, or why there is none.
///
/// # Safety
/// The guarantees above.
unsafe fn reply_host(
    found: Result<(ContainerUid, Ipv4Addr), Failure>,
    result: *mut Hostent,
    buffer: *mut c_char,
    length: usize,
    errnop: *mut c_int,
    h_errnop: *mut c_int,
) -> Status {
    // SAFETY: the caller's guarantees.
    unsafe {
        let mut buffer = Buffer::new(buffer, length);
        let record = found.and_then(|found| hosts::record(found, &mut buffer));
        reply_with_h_errno(record, result, errnop, h_errnop)
    }
}

/// Writes the record to `result`, or the reason why there is none to `errnop`.
///
/// # Safety
/// The guarantees above.
unsafe fn reply<R>(record: Result<R, Failure>, result: *mut R, errnop: *mut c_int) -> Status {
    let mut h_errno = 0; // not used for accounts
    // SAFETY: the caller's guarantees.
    unsafe { reply_with_h_errno(record, result, errnop, &mut h_errno) }
}

/// Like [`reply`], with h_errno.
///
/// # Safety
/// The guarantees above.
unsafe fn reply_with_h_errno<R>(
    record: Result<R, Failure>,
    result: *mut R,
    errnop: *mut c_int,
    h_errnop: *mut c_int,
) -> Status {
    // SAFETY: the caller's guarantees.
    unsafe {
        match record {
            Ok(record) => {
                result.write(record);
                h_errnop.write(HostError::Success as c_int);
                Status::Success
            }
            Err(failure) => {
                errnop.write(failure.errno());
                h_errnop.write(failure.h_errno());
                failure.status
            }
        }
    }
}

/// The bytes of a name.
///
/// # Safety
/// `name` is a C string, and stays so while the bytes are in use.
unsafe fn bytes<'name>(name: *const c_char) -> &'name [u8] {
    // SAFETY: the caller's guarantees.
    unsafe { CStr::from_ptr(name) }.to_bytes()
}

/// The bytes of a name one by one. Most names that glibc asks for begin with a letter, so strlen(3)
/// would be wasted on them.
///
/// # Safety
/// `name` is a C string, and stays so while the iterator is in use.
unsafe fn bytes_until_nul(name: *const c_char) -> impl Iterator<Item = u8> {
    let mut rest = name.cast::<u8>();
    core::iter::from_fn(move || {
        // SAFETY: the caller's guarantees; the NUL is the last byte that is read, because `rest`
        // stays there.
        unsafe {
            let character = rest.read();
            (character != 0).then(|| {
                rest = rest.add(1);
                character
            })
        }
    })
}
