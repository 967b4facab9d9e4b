//! Tests of the exported functions, called as glibc calls them, on a file system of their own.
//! tests/tests/nss_proof.rs has the real one.
//!
//! They are a program made of the library's modules, not the library with `cfg(test)`: older
//! versions of Cargo would link that with the arguments of the library, without start-up files.
#![allow(unsafe_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod abi;
mod buffer;
mod directory;
mod enumeration;
mod exports;
mod group;
mod hosts;
mod lookup;
mod passwd;
mod shadow;

use crate::abi::{AF_INET, AF_INET6, AddrTuple, Failure, Group, HostError, Hostent, Passwd, Shadow, Status};
use crate::directory::Directory;
use crate::enumeration::Enumeration;
use crate::exports::*;
use crate::lookup::Account;
use core::ffi::{CStr, c_char, c_int};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use rustix::fs::Stat;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::FromRawFd;
use std::ptr::{null, null_mut};

// The file system

#[derive(Clone, Copy)]
struct Inode {
    mode: u32,
    uid: u32,
    gid: u32,
}

thread_local! {
    static FILES: RefCell<HashMap<CString, Result<Inode, Errno>>> = RefCell::new(HashMap::new());
    static ENUMERATED: RefCell<CString> = RefCell::new(c"/nonexistent".to_owned());
    static LINKS: RefCell<HashMap<CString, Result<&'static str, Errno>>> = RefCell::new(HashMap::new());
    static STATS: Cell<usize> = const { Cell::new(0) };
    static READLINKS: Cell<usize> = const { Cell::new(0) };
}

/// Replaces the system call: what a test has [`put`] there.
pub fn stat(path: &CStr) -> Result<Stat, Errno> {
    STATS.set(STATS.get() + 1);
    let inode = FILES.with_borrow(|files| files.get(path).copied()).unwrap_or(Err(Errno::NOENT))?;
    // SAFETY: the kernel's struct is all integers.
    let mut found: Stat = unsafe { MaybeUninit::zeroed().assume_init() };
    (found.st_mode, found.st_uid, found.st_gid) = (inode.mode, inode.uid, inode.gid);
    Ok(found)
}

/// Replaces the system call: what a test has [`link`]ed.
pub fn readlink(path: &CStr, text: &mut [u8]) -> Result<usize, Errno> {
    READLINKS.set(READLINKS.get() + 1);
    let target = LINKS.with_borrow(|links| links.get(path).copied()).unwrap_or(Err(Errno::NOENT))?;
    let length = target.len().min(text.len()); // readlink(2) cuts
    text[..length].copy_from_slice(&target.as_bytes()[..length]);
    Ok(length)
}

/// Replaces /containers: the directory in [`ENUMERATED`].
pub fn open(_: &CStr, offset: u64) -> Result<Directory, c_int> {
    crate::directory::open(&ENUMERATED.with_borrow(Clone::clone), offset)
}

fn put(path: &CStr, found: Result<Inode, Errno>) {
    FILES.with_borrow_mut(|files| files.insert(path.to_owned(), found));
}

fn link(path: &CStr, target: Result<&'static str, Errno>) {
    LINKS.with_borrow_mut(|links| links.insert(path.to_owned(), target));
}

/// The system calls since the last look: stat, and readlink.
fn system_calls() -> (usize, usize) {
    (STATS.replace(0), READLINKS.replace(0))
}

/// A node with one container that has a second name.
fn web1_is_30001() {
    container_30001();
    link(c"/containers/web1", Ok("30001"));
}

/// A node with one container.
fn container_30001() {
    put(c"/containers", directory(0, 0));
    put(c"/containers/30001", directory(30001, 30001));
}

fn directory(uid: u32, gid: u32) -> Result<Inode, Errno> {
    Ok(Inode { mode: 0o040_755, uid, gid })
}

// The calls

const STALE: c_int = 0x5a5a;

/// What a call came to.
#[derive(Debug)]
struct Answer {
    status: Status,
    errno: c_int,
    h_errno: c_int,
    /// Each string, and where it is.
    strings: Vec<(*const c_char, String)>,
    /// Where each array or address is, its bytes, and its alignment.
    arrays: Vec<(usize, usize, usize)>,
}

impl Answer {
    fn texts(&self) -> Vec<&str> {
        self.strings.iter().map(|(_, text)| text.as_str()).collect()
    }
}

/// A function to be called with a buffer.
type Call<'a> = &'a dyn Fn(*mut c_char, usize) -> Answer;

fn account<R: Copy>(
    call: impl FnOnce(*mut R, *mut c_int) -> Status,
    strings: impl FnOnce(&R) -> Vec<*mut c_char>,
    arrays: impl FnOnce(&R) -> Vec<*mut *mut c_char>,
) -> Answer {
    let mut record = MaybeUninit::<R>::uninit();
    let mut errno = STALE;
    let status = call(record.as_mut_ptr(), &mut errno);
    let mut answer = Answer { status, errno, h_errno: STALE, strings: vec![], arrays: vec![] };
    if status == Status::Success {
        // SAFETY: a success has filled it in, with strings that end.
        unsafe {
            let record = record.assume_init();
            answer.strings = strings(&record).into_iter().map(|at| (at.cast_const(), text(at))).collect();
            for array in arrays(&record) {
                assert!((*array).is_null(), "no members");
                answer.arrays.push((array as usize, 8, 8));
            }
        }
    }
    answer
}

unsafe fn text(at: *const c_char) -> String {
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(at) }.to_str().unwrap().to_owned()
}

fn pw_strings(p: &Passwd) -> Vec<*mut c_char> {
    assert_eq!((p.pw_uid, p.pw_gid), (30001, 30001));
    vec![p.pw_name, p.pw_passwd, p.pw_gecos, p.pw_dir, p.pw_shell]
}

fn gr_strings(g: &Group) -> Vec<*mut c_char> {
    assert_eq!(g.gr_gid, 30001);
    vec![g.gr_name, g.gr_passwd]
}

fn sp_strings(s: &Shadow) -> Vec<*mut c_char> {
    assert_eq!([s.sp_lstchg, s.sp_min, s.sp_max, s.sp_warn, s.sp_inact, s.sp_expire], [-1; 6]);
    assert_eq!(s.sp_flag, u64::MAX);
    vec![s.sp_namp, s.sp_pwdp]
}

fn getpwnam(name: &CStr, buffer: *mut c_char, length: usize) -> Answer {
    // SAFETY: the pointers are good for the call, here and below.
    account(|r, e| unsafe { _nss_unbit_getpwnam_r(name.as_ptr(), r, buffer, length, e) }, pw_strings, |_| vec![])
}

fn getpwuid(uid: u32, buffer: *mut c_char, length: usize) -> Answer {
    // SAFETY: as above.
    account(|r, e| unsafe { _nss_unbit_getpwuid_r(uid, r, buffer, length, e) }, pw_strings, |_| vec![])
}

fn getgrnam(name: &CStr, buffer: *mut c_char, length: usize) -> Answer {
    // SAFETY: as above.
    account(
        |r, e| unsafe { _nss_unbit_getgrnam_r(name.as_ptr(), r, buffer, length, e) },
        gr_strings,
        |g| vec![g.gr_mem],
    )
}

fn getgrgid(gid: u32, buffer: *mut c_char, length: usize) -> Answer {
    // SAFETY: as above.
    account(|r, e| unsafe { _nss_unbit_getgrgid_r(gid, r, buffer, length, e) }, gr_strings, |g| vec![g.gr_mem])
}

fn getspnam(name: &CStr, buffer: *mut c_char, length: usize) -> Answer {
    // SAFETY: as above.
    account(|r, e| unsafe { _nss_unbit_getspnam_r(name.as_ptr(), r, buffer, length, e) }, sp_strings, |_| vec![])
}

fn host(call: impl FnOnce(*mut Hostent, *mut c_int, *mut c_int) -> Status) -> Answer {
    let mut record = MaybeUninit::<Hostent>::uninit();
    let (mut errno, mut h_errno) = (STALE, STALE);
    let status = call(record.as_mut_ptr(), &mut errno, &mut h_errno);
    // SAFETY: every host function says its h_errno; a success has filled the record in.
    unsafe {
        let mut answer = Answer { status, errno, h_errno, strings: vec![], arrays: vec![] };
        if status == Status::Success {
            let record = record.assume_init();
            assert_eq!((record.h_addrtype, record.h_length), (AF_INET, 4));
            answer.strings.push((record.h_name, text(record.h_name)));
            assert!((*record.h_aliases).is_null());
            let address = *record.h_addr_list;
            assert_eq!(*address.cast::<[u8; 4]>(), [10, 0, 0, 3]);
            assert!((*record.h_addr_list.add(1)).is_null());
            answer.arrays = vec![
                (record.h_aliases as usize, 8, 8),
                (record.h_addr_list as usize, 16, 8),
                (address as usize, 4, 4), // programs read it as a struct in_addr
            ];
        }
        answer
    }
}

fn gethostbyname(name: &CStr, buffer: *mut c_char, length: usize) -> Answer {
    // SAFETY: as above.
    host(|r, e, h| unsafe { _nss_unbit_gethostbyname_r(name.as_ptr(), r, buffer, length, e, h) })
}

fn gethostbyname2(name: &CStr, family: c_int, buffer: *mut c_char, length: usize) -> Answer {
    // SAFETY: as above.
    host(|r, e, h| unsafe { _nss_unbit_gethostbyname2_r(name.as_ptr(), family, r, buffer, length, e, h) })
}

fn gethostbyname3(name: &CStr, buffer: *mut c_char, length: usize) -> Answer {
    let mut canon = null_mut();
    let answer = host(|r, e, h| {
        // SAFETY: as above.
        unsafe {
            let name = name.as_ptr();
            _nss_unbit_gethostbyname3_r(name, AF_INET, r, buffer, length, e, h, null_mut(), &mut canon)
        }
    });
    assert_eq!(canon.cast_const(), answer.strings.first().map_or(null(), |(at, _)| *at));
    answer
}

fn gethostbyname4(name: &CStr, in_place: bool, buffer: *mut c_char, length: usize) -> Answer {
    let mut first = MaybeUninit::<AddrTuple>::uninit();
    let place = first.as_mut_ptr();
    let mut list = if in_place { place } else { null_mut() };
    let (mut errno, mut h_errno) = (STALE, STALE);
    // SAFETY: as above.
    unsafe {
        let status =
            _nss_unbit_gethostbyname4_r(name.as_ptr(), &mut list, buffer, length, &mut errno, &mut h_errno, null_mut());
        let mut answer = Answer { status, errno, h_errno, strings: vec![], arrays: vec![] };
        assert_eq!(list == place, in_place);
        if status == Status::Success {
            let tuple = *list;
            assert!(tuple.next.is_null());
            assert_eq!((tuple.family, tuple.scopeid), (AF_INET, 0));
            assert_eq!(tuple.addr, [[10, 0, 0, 3], [0; 4], [0; 4], [0; 4]]);
            answer.strings.push((tuple.name, text(tuple.name)));
            if !in_place {
                answer.arrays.push((list as usize, size_of::<AddrTuple>(), 8));
            }
        }
        answer
    }
}

fn gethostbyaddr(address: &[u8], family: c_int, buffer: *mut c_char, length: usize) -> Answer {
    host(|r, e, h| {
        // SAFETY: as above.
        unsafe {
            let (at, size) = (address.as_ptr().cast(), address.len() as u32);
            _nss_unbit_gethostbyaddr_r(at, size, family, r, buffer, length, e, h)
        }
    })
}

/// Calls with a buffer that is large enough for all.
fn roomy<A>(call: impl FnOnce(*mut c_char, usize) -> A) -> A {
    let mut buffer = [0u8; 512];
    call(buffer.as_mut_ptr().cast(), buffer.len())
}

/// Every function, with a name, and whether it answers for hosts.
fn every_function(check: impl Fn(&str, bool, Call)) {
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 3];
    check("getpwnam_r", false, &|b, l| getpwnam(c"30001", b, l));
    link(c"/containers/web1", Ok("30001"));
    check("getpwnam_r of web1", false, &|b, l| getpwnam(c"web1", b, l));
    check("getspnam_r of web1", false, &|b, l| getspnam(c"web1", b, l));
    check("getpwuid_r", false, &|b, l| getpwuid(30001, b, l));
    check("getgrnam_r", false, &|b, l| getgrnam(c"30001", b, l));
    check("getgrgid_r", false, &|b, l| getgrgid(30001, b, l));
    check("getspnam_r", false, &|b, l| getspnam(c"30001", b, l));
    check("gethostbyname_r", true, &|b, l| gethostbyname(c"30001.local", b, l));
    check("gethostbyname2_r", true, &|b, l| gethostbyname2(c"30001.LOCAL.", AF_INET, b, l));
    check("gethostbyname3_r", true, &|b, l| gethostbyname3(c"30001.local", b, l));
    check("gethostbyname4_r", true, &|b, l| gethostbyname4(c"30001.local", false, b, l));
    check("gethostbyname4_r in place", true, &|b, l| gethostbyname4(c"30001.local", true, b, l));
    check("gethostbyaddr_r", true, &|b, l| gethostbyaddr(&[10, 0, 0, 3], AF_INET, b, l));
    check("gethostbyaddr_r mapped", true, &|b, l| gethostbyaddr(&mapped, AF_INET6, b, l));
}

/// The functions that take an account's name.
type Named = (&'static str, fn(&CStr, *mut c_char, usize) -> Answer);
const BY_NAME: [Named; 2] = [("getpwnam_r", getpwnam), ("getspnam_r", getspnam)];

// The tests

#[test]
fn the_structs_are_those_of_the_headers() {
    use std::mem::offset_of;
    assert_eq!(size_of::<Passwd>(), size_of::<libc::passwd>());
    assert_eq!(offset_of!(Passwd, pw_gecos), offset_of!(libc::passwd, pw_gecos));
    assert_eq!(offset_of!(Passwd, pw_shell), offset_of!(libc::passwd, pw_shell));
    assert_eq!(size_of::<Group>(), size_of::<libc::group>());
    assert_eq!(offset_of!(Group, gr_mem), offset_of!(libc::group, gr_mem));
    assert_eq!(size_of::<Shadow>(), size_of::<libc::spwd>());
    assert_eq!(offset_of!(Shadow, sp_flag), offset_of!(libc::spwd, sp_flag));
    assert_eq!(size_of::<Hostent>(), size_of::<libc::hostent>());
    assert_eq!(offset_of!(Hostent, h_addr_list), offset_of!(libc::hostent, h_addr_list));
    #[cfg(target_pointer_width = "64")]
    assert_eq!((size_of::<AddrTuple>(), align_of::<AddrTuple>()), (40, 8));
}

#[test]
fn records() {
    container_30001();
    let passwd = ["30001", "x", "30001", "/containers/30001", "/bin/bash"];
    assert_eq!(roomy(|b, l| getpwnam(c"30001", b, l)).texts(), passwd);
    assert_eq!(roomy(|b, l| getpwuid(30001, b, l)).texts(), passwd);
    assert_eq!(roomy(|b, l| getgrnam(c"30001", b, l)).texts(), ["30001", "x"]);
    assert_eq!(roomy(|b, l| getgrgid(30001, b, l)).texts(), ["30001", "x"]);
    assert_eq!(roomy(|b, l| getspnam(c"30001", b, l)).texts(), ["30001", "!"]);
    every_function(|name, host, call| {
        let answer = roomy(call);
        assert_eq!(answer.status, Status::Success, "{name}");
        assert_eq!(answer.errno, STALE, "{name}: a success leaves errno alone");
        if host {
            assert_eq!(answer.h_errno, 0, "{name}");
            assert_eq!(answer.texts(), ["30001.local"], "{name}");
        }
    });
}

#[test]
fn every_length_at_every_misalignment_is_all_or_nothing() {
    const MAX_BUFFER: usize = 512;
    const STEP: usize = if cfg!(miri) { 128 } else { 1 };
    const AROUND: usize = 64;
    container_30001();
    every_function(|name, host, call| {
        for misalignment in 0..8 {
            let mut enough = false;
            for length in (0..=MAX_BUFFER).step_by(STEP) {
                let mut memory = [0x5au8; AROUND + 8 + MAX_BUFFER + AROUND];
                let base = memory.as_mut_ptr();
                let start = AROUND + base.wrapping_add(AROUND).align_offset(8) + misalignment;
                let at = base.wrapping_add(start);
                let answer = call(at.cast(), length);
                let case = format!("{name}, {length} bytes at {misalignment}");

                let canaries = memory.iter().take(start).chain(memory.iter().skip(start + length));
                assert!(canaries.copied().all(|byte| byte == 0x5a), "{case}: wrote outside");
                if answer.status == Status::Success {
                    enough = true;
                    let inside = |from: usize, size: usize| {
                        let from = from.checked_sub(at as usize);
                        from.is_some_and(|from| from + size <= length)
                    };
                    for (string, text) in &answer.strings {
                        assert!(inside(*string as usize, text.len() + 1), "{case}: {text}");
                    }
                    for (array, size, align) in &answer.arrays {
                        assert!(inside(*array, *size), "{case}: an array outside");
                        assert_eq!(array % align, 0, "{case}: an array askew");
                    }
                    // Nothing overlaps: each byte belongs to one string or array.
                    let sizes = answer.strings.iter().map(|(at, text)| (*at as usize, text.len() + 1));
                    let mut parts: Vec<_> = sizes.chain(answer.arrays.iter().map(|(a, s, _)| (*a, *s))).collect();
                    parts.sort_unstable();
                    assert!(parts.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "{case}: {parts:?}");
                } else {
                    assert!(!enough, "{case}: what was enough is no longer");
                    assert_eq!((answer.status, answer.errno), (Status::TryAgain, libc::ERANGE), "{case}");
                    assert!(!host || answer.h_errno == HostError::Internal as c_int, "{case}: {}", answer.h_errno);
                }
            }
            assert!(enough, "{name}: {MAX_BUFFER} bytes are not enough");
        }
    });
}

#[test]
fn a_null_buffer_of_no_length_is_too_small() {
    container_30001();
    every_function(|name, _, call| {
        let answer = call(null_mut(), 0);
        assert_eq!((answer.status, answer.errno), (Status::TryAgain, libc::ERANGE), "{name}");
    });
}

#[test]
fn what_is_not_a_container_is_absent() {
    container_30001();
    for found in [
        Err(Errno::NOENT),
        Err(Errno::NOTDIR),
        directory(0, 0),
        directory(30001, 0),
        directory(0, 30001),
        directory(30000, 30000),
        Ok(Inode { mode: 0o100_644, uid: 30001, gid: 30001 }),
        Ok(Inode { mode: 0o140_755, uid: 30001, gid: 30001 }),
    ] {
        put(c"/containers/30001", found);
        every_function(|name, host, call| {
            if name.starts_with("gethostbyname") {
                return; // by arithmetic
            }
            let answer = call(null_mut(), 0); // and that before any word about the buffer
            assert_eq!((answer.status, answer.errno), (Status::NotFound, libc::ENOENT), "{name}");
            assert!(!host || answer.h_errno == HostError::HostNotFound as c_int, "{name}");
        });
    }
}

#[test]
fn a_failed_stat_is_unavailable_not_absent() {
    for errno in [Errno::ACCESS, Errno::IO, Errno::LOOP, Errno::MFILE, Errno::NOMEM, Errno::STALE] {
        put(c"/containers/30001", Err(errno));
        every_function(|name, host, call| {
            if name.starts_with("gethostbyname") {
                return;
            }
            let answer = roomy(call);
            assert_eq!((answer.status, answer.errno), (Status::Unavailable, errno.raw_os_error()), "{name}");
            assert!(!host || answer.h_errno == HostError::NoRecovery as c_int, "{name}");
        });
    }
}

#[test]
fn a_missing_directory_is_unavailable_not_absent() {
    every_function(|name, _, call| {
        if name.starts_with("gethostbyname") {
            return;
        }
        let answer = roomy(call);
        assert_eq!((answer.status, answer.errno), (Status::Unavailable, libc::ENOENT), "{name}");
    });
}

#[test]
fn other_names_cost_no_system_call() {
    container_30001();
    let long = CString::new(vec![b'3'; 100_000]).unwrap();
    for name in [c"Root", c"", c"30001/", c"030001", c"29999", c"30001 ", c"65534", c"4294997297", long.as_c_str()] {
        for answer in [
            roomy(|b, l| getpwnam(name, b, l)),
            roomy(|b, l| getgrnam(name, b, l)),
            roomy(|b, l| getspnam(name, b, l)),
            roomy(|b, l| gethostbyname(name, b, l)),
        ] {
            assert_eq!((answer.status, answer.errno), (Status::NotFound, libc::ENOENT), "{name:?}");
        }
    }
    for id in [0, 1000, 29999, 65534, 65535, 0x8000_0000, u32::MAX] {
        for answer in [roomy(|b, l| getpwuid(id, b, l)), roomy(|b, l| getgrgid(id, b, l))] {
            assert_eq!((answer.status, answer.errno), (Status::NotFound, libc::ENOENT), "{id}");
        }
    }
    assert_eq!(system_calls(), (0, 0));
}

// Second names

#[test]
fn a_second_name_is_the_same_account_and_costs_one_readlink_and_one_stat() {
    web1_is_30001();
    let answer = roomy(|b, l| getpwnam(c"web1", b, l));
    assert_eq!(system_calls(), (1, 1));
    assert_eq!((answer.status, answer.errno), (Status::Success, STALE));
    assert_eq!(answer.texts(), ["web1", "x", "30001", "/containers/30001", "/bin/bash"]);
    assert_eq!(roomy(|b, l| getspnam(c"web1", b, l)).texts(), ["web1", "!"]);
    assert_eq!(system_calls(), (1, 1));
    assert_eq!(roomy(|b, l| getpwnam(c"30001", b, l)).texts()[0], "30001", "it keeps its own name");
    assert_eq!(roomy(|b, l| getpwuid(30001, b, l)).texts()[0], "30001");
    assert_eq!(system_calls(), (2, 0), "a number is no link");
    let answer = roomy(|b, l| getgrnam(c"web1", b, l));
    assert_eq!((answer.status, answer.errno), (Status::NotFound, libc::ENOENT), "a group has one name");
    let answer = roomy(|b, l| gethostbyname(c"web1.local", b, l));
    assert_eq!((answer.status, answer.errno), (Status::NotFound, libc::ENOENT), "and a host too");
    assert_eq!(system_calls(), (0, 0));
}

#[test]
fn a_name_in_no_database_costs_one_readlink() {
    web1_is_30001();
    put(c"/containers", Err(Errno::IO)); // nobody looks
    let longest = CString::new("a".repeat(32)).unwrap();
    for name in [c"root", c"nobody", c"_apt", c"web2", longest.as_c_str()] {
        for (function, call) in BY_NAME {
            let answer = call(name, null_mut(), 0);
            assert_eq!((answer.status, answer.errno), (Status::NotFound, libc::ENOENT), "{function} {name:?}");
            assert_eq!(system_calls(), (0, 1), "{function} {name:?}");
        }
    }
    let too_long = CString::new("a".repeat(33)).unwrap();
    for name in [c"Web1", c"web.1", c"../web1", c"-web1", c"web1$", c"1web", c"w\xc3\xa9b", too_long.as_c_str()] {
        link(&CString::new([b"/containers/", name.to_bytes()].concat()).unwrap(), Ok("30001"));
        for (function, call) in BY_NAME {
            assert_eq!(call(name, null_mut(), 0).status, Status::NotFound, "{function} {name:?}");
            assert_eq!(system_calls(), (0, 0), "{function} {name:?}");
        }
    }
}

#[test]
fn what_is_not_a_link_to_a_container_that_is_here_is_absent() {
    web1_is_30001();
    let targets = [
        "",
        "030001",
        "30001/",
        "./30001",
        "/containers/30001",
        "web2",
        "root",
        "0",
        "29999",
        "65534",
        "30001\n",
        "3000100000000000000",
    ];
    let errors = [Errno::NOENT, Errno::NOTDIR, Errno::INVAL];
    for target in targets.map(Ok).into_iter().chain(errors.map(Err)).chain([Ok("30002")]) {
        link(c"/containers/web1", target);
        for (function, call) in BY_NAME {
            let answer = call(c"web1", null_mut(), 0); // and that before any word about the buffer
            assert_eq!((answer.status, answer.errno), (Status::NotFound, libc::ENOENT), "{function} {target:?}");
        }
    }
    link(c"/containers/web1", Ok("30001"));
    for found in [directory(0, 0), directory(30001, 0), directory(30002, 30002), Err(Errno::NOENT)] {
        put(c"/containers/30001", found);
        for (function, call) in BY_NAME {
            let answer = roomy(|b, l| call(c"web1", b, l));
            assert_eq!((answer.status, answer.errno), (Status::NotFound, libc::ENOENT), "{function}");
        }
    }
}

#[test]
fn a_failed_readlink_is_unavailable_not_absent() {
    web1_is_30001();
    for errno in [
        Errno::ACCESS,
        Errno::IO,
        Errno::LOOP,
        Errno::NOMEM,
        Errno::STALE,
        Errno::NAMETOOLONG,
        Errno::PERM,
        Errno::NOSYS,
    ] {
        link(c"/containers/web1", Err(errno));
        for (function, call) in BY_NAME {
            let answer = roomy(|b, l| call(c"web1", b, l));
            assert_eq!((answer.status, answer.errno), (Status::Unavailable, errno.raw_os_error()), "{function}");
        }
    }
    link(c"/containers/web1", Ok("30001"));
    put(c"/containers/30001", Err(Errno::IO));
    for (function, call) in BY_NAME {
        let answer = roomy(|b, l| call(c"web1", b, l));
        assert_eq!((answer.status, answer.errno), (Status::Unavailable, libc::EIO), "{function}");
    }
}

#[test]
fn hosts_need_no_container_forward_and_have_no_ipv6() {
    let answer = roomy(|b, l| gethostbyname2(c"30001.local", AF_INET, b, l));
    assert_eq!(answer.status, Status::Success, "the network spans nodes");
    for family in [AF_INET6, 0, 1, -1] {
        let answer = roomy(|b, l| gethostbyname2(c"30001.local", family, b, l));
        assert_eq!((answer.status, answer.h_errno), (Status::NotFound, HostError::NoData as c_int), "{family}");
    }
    for name in [c"16807213.local", c"2147483647.local", c"65534.local", c"30001.lan", c"localhost"] {
        let answer = roomy(|b, l| gethostbyname2(name, AF_INET, b, l));
        assert_eq!((answer.status, answer.h_errno), (Status::NotFound, HostError::HostNotFound as c_int), "{name:?}");
    }
    assert_eq!(STATS.get(), 0);
}

#[test]
fn addresses_that_are_no_containers_have_no_name() {
    container_30001();
    let strange: [(&[u8], c_int); 8] = [
        (&[10, 0, 0, 1], AF_INET),
        (&[10, 0, 0, 4], AF_INET), // 30002 is not here
        (&[11, 0, 0, 3], AF_INET),
        (&[10, 0, 0], AF_INET),
        (&[10, 0, 0, 3, 0], AF_INET),
        (&[10, 0, 0, 3], AF_INET6),
        (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 3], AF_INET6), // not mapped
        (&[10, 0, 0, 3], 1),
    ];
    for (address, family) in strange {
        let answer = roomy(|b, l| gethostbyaddr(address, family, b, l));
        assert_eq!((answer.status, answer.errno), (Status::NotFound, libc::ENOENT), "{address:?} {family}");
        assert_eq!(answer.h_errno, HostError::HostNotFound as c_int);
    }
}

// initgroups_dyn

#[test]
fn no_account_gets_a_group_by_its_name_and_no_system_call_is_made() {
    container_30001();
    put(c"/containers/30002", Err(Errno::IO));
    for (name, primary) in
        [(c"30001", 30001), (c"30001", 100), (c"30001", u32::MAX), (c"30002", 30002), (c"30003", 0), (c"root", 0)]
    {
        // A list of malloc's with room for one more, as glibc hands it in.
        let mut groups = [primary, 7];
        let (mut start, mut size, mut list, mut errno) = (1, 2, groups.as_mut_ptr(), STALE);
        // SAFETY: the pointers are good for the call.
        let status = unsafe {
            _nss_unbit_initgroups_dyn(name.as_ptr(), primary, &mut start, &mut size, &mut list, -1, &mut errno)
        };
        assert_eq!((status, errno), (Status::NotFound, libc::ENOENT), "{name:?} {primary}");
        assert_eq!(
            (start, size, list.cast_const(), groups),
            (1, 2, groups.as_ptr(), [primary, 7]),
            "{name:?} {primary}"
        );
    }
    assert_eq!(STATS.get(), 0);
}

// Enumeration

/// A directory with these containers, all of them present unless told otherwise, and things that
/// are none.
struct Containers(std::path::PathBuf);

impl Containers {
    fn new(uids: impl IntoIterator<Item = u32>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("unbit-enumeration-{}-{count}", std::process::id()));
        let containers = Self(path);
        for uid in uids {
            std::fs::create_dir_all(containers.0.join(uid.to_string())).unwrap();
            put(&CString::new(format!("/containers/{uid}")).unwrap(), directory(uid, uid));
        }
        for other in ["lost+found", "030005", "29999", "30001.old", "a"] {
            std::fs::create_dir_all(containers.0.join(other)).unwrap();
        }
        std::fs::write(containers.0.join("31999"), "no directory").unwrap();
        put(c"/containers/31999", directory(31999, 31999)); // so that only the entry's type can tell
        put(c"/containers", directory(0, 0));
        ENUMERATED.set(CString::new(containers.0.to_str().unwrap()).unwrap());
        containers
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn next(walk: &Enumeration) -> Result<u32, Failure> {
    walk.next(|account| Ok(account.container.get()))
}

fn rest(walk: &Enumeration) -> Vec<u32> {
    std::iter::from_fn(|| next(walk).ok()).collect()
}

fn sorted(mut uids: Vec<u32>) -> Vec<u32> {
    uids.sort_unstable();
    uids
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn every_container_once_and_then_the_end() {
    for count in [0, 1, 41, 42, 43, 1000] {
        let _containers = Containers::new(30000..30000 + count);
        let walk = Enumeration::new();
        assert_eq!(sorted(rest(&walk)), Vec::from_iter(30000..30000 + count));
        assert_eq!(next(&walk), Err(Failure::ABSENT), "the end stays the end");
        walk.rewind();
        assert_eq!(rest(&walk).len(), count as usize);
    }
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn enumeration_skips_directories_that_are_no_containers() {
    let _containers = Containers::new(30000..30200);
    put(c"/containers/30007", Err(Errno::IO));
    put(c"/containers/30008", directory(0, 0));
    put(c"/containers/30009", Err(Errno::NOENT));
    let walk = Enumeration::new();
    let found = sorted(rest(&walk));
    assert_eq!(found.len(), 197);
    assert!(found.iter().all(|uid| !(30007..30010).contains(uid)));
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn a_small_buffer_loses_no_entry() {
    let _containers = Containers::new(30000..30100);
    let walk = Enumeration::new();
    let mut found = vec![];
    loop {
        for _ in 0..3 {
            match walk.next::<u32>(|_| Err(Failure::BUFFER_TOO_SMALL)) {
                Err(Failure::BUFFER_TOO_SMALL) => {}
                end => {
                    assert_eq!(end, Err(Failure::ABSENT));
                    assert_eq!(sorted(found), Vec::from_iter(30000..30100));
                    return;
                }
            }
        }
        found.push(next(&walk).unwrap());
    }
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn a_directory_that_cannot_be_opened_is_unavailable() {
    ENUMERATED.set(c"/nonexistent".to_owned());
    assert_eq!(next(&Enumeration::new()), Err(Failure::unavailable(libc::ENOENT)));
    ENUMERATED.set(c"/proc/self/exe".to_owned());
    assert_eq!(next(&Enumeration::new()), Err(Failure::unavailable(libc::ENOTDIR)));
}

/// The descriptors of this process that are a directory.
fn descriptors_of(directory: &std::path::Path) -> Vec<c_int> {
    let mut descriptors = vec![];
    for descriptor in std::fs::read_dir("/proc/self/fd").unwrap() {
        let descriptor = descriptor.unwrap().path();
        if std::fs::read_link(&descriptor).is_ok_and(|target| target == directory) {
            descriptors.push(descriptor.file_name().unwrap().to_str().unwrap().parse().unwrap());
        }
    }
    descriptors
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn a_walk_leaves_its_descriptor_to_no_program_and_closes_it() {
    let containers = Containers::new(30000..30300);
    let walk = Enumeration::new();
    next(&walk).unwrap();
    let descriptors = descriptors_of(&containers.0);
    assert_eq!(descriptors.len(), 1, "{descriptors:?}");
    // SAFETY: a question about a number.
    assert_eq!(unsafe { libc::fcntl(descriptors[0], libc::F_GETFD) }, libc::FD_CLOEXEC);
    rest(&walk);
    walk.rewind();
    assert_eq!(descriptors_of(&containers.0), [0; 0]);
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn a_walk_goes_on_where_it_was_when_its_descriptor_is_taken_away() {
    let _containers = Containers::new(30000..30300);
    let walk = Enumeration::new();
    let mut found = Vec::from_iter((0..100).map(|_| next(&walk).unwrap()));
    let ours = descriptors_of(&_containers.0)[0];
    // SAFETY: the descriptors are this test's.
    let innocent = unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
        assert_eq!(libc::dup2(null, ours), ours);
        libc::close(null);
        ours
    };
    found.extend(rest(&walk));
    assert_eq!(sorted(found), Vec::from_iter(30000..30300));
    let target = std::fs::read_link(format!("/proc/self/fd/{innocent}")).unwrap();
    assert_eq!(target.to_str(), Some("/dev/null"), "somebody else's descriptor was closed");
    // SAFETY: as above.
    unsafe { libc::close(innocent) };
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn a_child_goes_on_where_its_parent_was_and_neither_disturbs_the_other() {
    let _containers = Containers::new(30000..31000);
    let walk = Enumeration::new();
    let begun = Vec::from_iter((0..500).map(|_| next(&walk).unwrap()));
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are ours from then on.
    let [mut reader, mut writer] = unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        ends.map(|fd| std::fs::File::from_raw_fd(fd))
    };
    // SAFETY: the child makes no use of other threads' locks but malloc's, which glibc puts right.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let rest = Vec::from_iter(rest(&walk).into_iter().flat_map(u32::to_ne_bytes));
        let done = std::io::Write::write_all(&mut writer, &rest).is_ok();
        // SAFETY: the end of the child.
        unsafe { libc::_exit(if done { 0 } else { 1 }) };
    }
    drop(writer);
    let mut bytes = vec![];
    std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
    let of_child = Vec::from_iter(bytes.chunks(4).map(|uid| u32::from_ne_bytes(uid.try_into().unwrap())));
    let of_parent = rest(&walk);
    // SAFETY: our child.
    assert_eq!(unsafe { libc::waitpid(child, null_mut(), 0) }, child);
    assert_eq!(of_child, of_parent);
    assert_eq!(sorted([begun, of_parent].concat()), Vec::from_iter(30000..31000));
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn a_child_of_a_process_with_a_thread_inside_is_not_kept_waiting() {
    let _containers = Containers::new(30000..30010);
    let walk = Enumeration::new();
    next(&walk).unwrap();
    // A thread that is inside for good is, for the child, one that never comes out again.
    let child = walk.next(|_| {
        // SAFETY: as above.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: the end of the child, by a signal if it hangs.
            unsafe {
                libc::alarm(10);
                libc::_exit(rest(&walk).len() as c_int);
            }
        }
        Ok(child)
    });
    let mut status = 0;
    // SAFETY: our child.
    unsafe { libc::waitpid(child.unwrap(), &mut status, 0) };
    assert!(libc::WIFEXITED(status), "it hung: {status:x}");
    assert_eq!(libc::WEXITSTATUS(status), 9);
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn threads_take_turns_in_a_walk() {
    let containers = Containers::new(30000..31000);
    let walk = Enumeration::new();
    let inside = AtomicBool::new(false);
    let files = FILES.with_borrow(Clone::clone);
    let found = std::thread::scope(|scope| {
        let ask = || {
            FILES.set(files.clone());
            ENUMERATED.set(CString::new(containers.0.to_str().unwrap()).unwrap());
            let alone = |account: &Account| {
                assert!(!inside.swap(true, Ordering::Relaxed), "two threads inside");
                std::thread::yield_now();
                inside.store(false, Ordering::Relaxed);
                Ok(account.container.get())
            };
            std::iter::from_fn(|| walk.next(alone).ok()).collect::<Vec<_>>()
        };
        let threads = Vec::from_iter((0..16).map(|_| scope.spawn(ask)));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(sorted(found), Vec::from_iter(30000..31000));
}
