//! Sends descriptors over a Unix socket (SCM_RIGHTS of unix(7)), for tests that imitate an Emperor.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::{mem, ptr};

/// What uWSGI's message begins with.
pub const MAGIC: &[u8] = b"uwsgi-setns";

/// sendmsg(2) with SCM_RIGHTS; the number of bytes that the kernel took.
pub fn send(peer: &UnixStream, message: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let numbers: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let size = mem::size_of_val(&numbers[..]) as u32;
    // SAFETY: plain arithmetic.
    let (length, space) = unsafe { (libc::CMSG_LEN(size), libc::CMSG_SPACE(size)) };
    let mut control = vec![0u64; space as usize / 8 + 1];
    let mut part = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    // SAFETY: a struct of numbers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    if !numbers.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = space as _;
        // SAFETY: `control` has room for the header and for all the numbers, and is aligned for
        // both.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = length as _;
            ptr::copy_nonoverlapping(numbers.as_ptr().cast(), libc::CMSG_DATA(first), size as usize);
        }
    }
    // SAFETY: everything that the header points to lives until the call returns.
    let sent = unsafe { libc::sendmsg(peer.as_raw_fd(), &header, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
