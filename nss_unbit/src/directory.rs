//! Reads the directory of the containers, getdents64(2).
//!
//! The process does not know of this descriptor. A daemon that closes "all" descriptors may have
//! closed it and opened another file with the same number, so each call checks that the descriptor
//! is still this directory before it reads or closes it. If the process has opened this directory
//! again, with the same number, the two cannot be told apart.
//!
//! Which entries are containers is decided in [`enumeration`](crate::enumeration).
#![allow(unsafe_code)]

use core::ffi::{CStr, c_int, c_long};
use core::mem::MaybeUninit;
use linux_raw_sys::general::{__NR_getdents64, __NR_openat, AT_FDCWD};
use rustix::fd::BorrowedFd;
use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    fd: c_int,
    identity: (u64, u64),
}

/// Opens a directory, to be read from this offset on: 0, or what an [`Entry`] gave.
pub fn open(path: &CStr, offset: u64) -> Result<Directory, c_int> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // SAFETY: the kernel reads the path and writes nothing.
    let fd = unsafe { call(__NR_openat, AT_FDCWD, path.as_ptr() as usize, flags.bits() as usize) }? as c_int;
    let found = borrow(fd).and_then(|fd| rustix::fs::seek(fd, SeekFrom::Start(offset)).and(rustix::fs::fstat(fd)));
    match found {
        Ok(found) => Ok(Directory { fd, identity: (found.st_dev, found.st_ino) }),
        Err(errno) => {
            // SAFETY: it was opened above.
            unsafe { rustix::io::close(fd) };
            Err(errno.raw_os_error())
        }
    }
}

impl Directory {
    /// Whether the descriptor is still this directory.
    pub fn is_ours(&self) -> bool {
        let found = borrow(self.fd).and_then(rustix::fs::fstat);
        found.is_ok_and(|found| self.identity == (found.st_dev, found.st_ino))
    }

    /// Closes the descriptor, if it is still this directory.
    pub fn close(self) {
        if self.is_ours() {
            // SAFETY: it is the one that `open` made.
            unsafe { rustix::io::close(self.fd) };
        }
    }

    /// Reads as many entries as fit into `buffer`; none at the end.
    pub fn read<'buffer>(&self, buffer: &'buffer mut [MaybeUninit<u8>]) -> Result<Entries<'buffer>, c_int> {
        // SAFETY: the kernel writes to the buffer, and says how much: at most the length that it
        // was given.
        unsafe {
            let filled = call(__NR_getdents64, self.fd, buffer.as_mut_ptr() as usize, buffer.len())?;
            Ok(Entries { bytes: core::slice::from_raw_parts(buffer.as_ptr().cast(), filled) })
        }
    }
}

/// Borrows any number as a descriptor: for one that is not open the kernel returns EBADF.
fn borrow<'any>(fd: c_int) -> Result<BorrowedFd<'any>, Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: it is only passed to system calls that read its state.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A raw system call: rustix's function for it could panic, and glibc's (getdents64) exists only
/// since 2.30. Repeated after EINTR: glibc would end the enumeration at a failure.
///
/// # Safety
/// That of the system call.
unsafe fn call(number: u32, first: c_int, second: usize, third: usize) -> Result<usize, c_int> {
    #[link(name = "c")]
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
        safe fn __errno_location() -> *const c_int;
    }
    // SAFETY: the caller's guarantees; the address of this thread's errno is always good.
    unsafe {
        loop {
            match usize::try_from(syscall(c_long::from(number), first, second, third, 0)) {
                Err(_) if __errno_location().read() == Errno::INTR.raw_os_error() => {}
                result => return result.map_err(|_| __errno_location().read()),
            }
        }
    }
}

/// The entries that one read gave: `struct linux_dirent64`, see getdents(2).
#[derive(Debug)]
pub struct Entries<'buffer> {
    bytes: &'buffer [u8],
}

/// An entry of a directory.
#[derive(Debug)]
pub struct Entry<'buffer> {
    /// The offset at which to go on after it.
    pub offset: u64,
    /// Whether it may be a directory, or a symlink to one.
    pub may_be_directory: bool,
    /// Its name.
    pub name: &'buffer [u8],
}

impl<'buffer> Iterator for Entries<'buffer> {
    type Item = Entry<'buffer>;

    fn next(&mut self) -> Option<Entry<'buffer>> {
        const DT_UNKNOWN: u8 = 0;
        const DT_DIR: u8 = 4;
        const DT_LNK: u8 = 10;
        const NAME_AT: usize = 19; // after the inode, the offset, the length of the entry, and the kind

        let (header, _) = self.bytes.split_first_chunk::<NAME_AT>()?;
        let [_, _, _, _, _, _, _, _, offset @ .., low, high, kind] = header;
        let (entry, rest) = self.bytes.split_at_checked(usize::from(u16::from_ne_bytes([*low, *high])))?;
        self.bytes = rest;
        Some(Entry {
            offset: u64::from_ne_bytes(*offset),
            may_be_directory: matches!(*kind, DT_DIR | DT_LNK | DT_UNKNOWN),
            name: entry.get(NAME_AT..)?.split(|byte| *byte == 0).next()?,
        })
    }
}
