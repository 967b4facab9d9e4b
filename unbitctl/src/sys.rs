//! The system calls that nix does not have, or has only as unsafe.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::pty::Winsize;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// Sees to it that no descriptor but the standard three outlives an exec, whoever left it to us.
pub fn close_all_on_exec() -> std::io::Result<()> {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > libc::STDERR_FILENO)
        .collect();
    for descriptor in open {
        // SAFETY: F_SETFD takes a number, and changes nothing else about a descriptor. The one that listed them is closed by now: EBADF.
        match Errno::result(unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) }) {
            Ok(_) | Err(Errno::EBADF) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Leaves the keyring of the session that the operator logged in with: keyctl(2), KEYCTL_JOIN_SESSION_KEYRING.
pub fn new_session_keyring() -> nix::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: no name is passed, so the kernel reads no memory of ours.
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>(), 0, 0, 0) };
    match Errno::result(joined) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()), // a kernel without keys
        Err(errno) => Err(errno),
    }
}

mod ioctls {
    nix::ioctl_read_bad!(get_size, libc::TIOCGWINSZ, libc::winsize);
    nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, libc::winsize);
    nix::ioctl_write_int_bad!(set_controlling, libc::TIOCSCTTY);
}

/// The size of a terminal's window.
pub fn window_size(terminal: impl AsFd) -> nix::Result<Winsize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes the one struct that it is given; the descriptor is open.
    unsafe { ioctls::get_size(terminal.as_fd().as_raw_fd(), &raw mut size) }?;
    Ok(size)
}

/// Tells a terminal the size of its window; who runs in it hears of it by SIGWINCH.
pub fn set_window_size(terminal: impl AsFd, size: Winsize) -> nix::Result<()> {
    // SAFETY: the request reads the one struct that it is given; the descriptor is open.
    unsafe { ioctls::set_size(terminal.as_fd().as_raw_fd(), &raw const size) }.map(drop)
}

/// Makes a terminal the controlling one of the session that the calling process leads.
pub fn set_controlling_terminal(terminal: impl AsFd) -> nix::Result<()> {
    // SAFETY: the request takes a number, 0 for "if it is nobody else's"; the descriptor is open.
    unsafe { ioctls::set_controlling(terminal.as_fd().as_raw_fd(), 0) }.map(drop)
}
