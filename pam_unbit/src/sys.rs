//! The system calls and C library functions that nix does not have.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sched::CloneFlags;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Makes a call again when a signal interrupts it. Nobody who logs in asked for that signal.
pub fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// pidfd_open(2).
pub fn pidfd_open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: takes two numbers and touches no memory of ours.
    let descriptor = retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }))?;
    // SAFETY: the call has just made this descriptor, close-on-exec, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

mod ioctls {
    nix::ioctl_none_bad!(get_userns, nix::request_code_none!(0xb7, 0x1));
    nix::ioctl_none_bad!(get_nstype, nix::request_code_none!(0xb7, 0x3));
}

/// NS_GET_NSTYPE of ioctl_nsfs(2). Only for a descriptor on nsfs.
pub fn namespace_type(namespace: &OwnedFd) -> nix::Result<CloneFlags> {
    // SAFETY: the request takes no argument; the descriptor is open.
    retry(|| unsafe { ioctls::get_nstype(namespace.as_raw_fd()) }).map(CloneFlags::from_bits_retain)
}

/// NS_GET_USERNS of ioctl_nsfs(2): the user namespace that owns this one. Only for a descriptor on nsfs.
pub fn namespace_owner(namespace: &OwnedFd) -> nix::Result<OwnedFd> {
    // SAFETY: as above.
    let descriptor = retry(|| unsafe { ioctls::get_userns(namespace.as_raw_fd()) })?;
    // SAFETY: the request has just made this descriptor, close-on-exec, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Connects this process to the system log now, so that a line written after the mount namespace has changed goes to the host's log and not to
/// whatever the tenant calls /dev/log. The lines carry the program's own name, as they do by default.
pub fn open_log() {
    // SAFETY: no identification is passed, so none has to outlive its use by syslog(3).
    unsafe { libc::openlog(std::ptr::null(), libc::LOG_PID | libc::LOG_NDELAY, libc::LOG_AUTHPRIV) };
}

/// Closes the connection of [`open_log`].
pub fn close_log() {
    // SAFETY: takes nothing.
    unsafe { libc::closelog() };
}

/// syslog(3) at LOG_CRIT, for where there is no PAM handle.
pub fn log_critical(text: &CStr) {
    // SAFETY: a constant format that takes one string, and that string.
    unsafe { libc::syslog(libc::LOG_AUTHPRIV | libc::LOG_CRIT, c"%s".as_ptr(), text.as_ptr()) };
}

/// Ends this process on the spot, with nothing of the application's run on the way.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes a number and does not return.
    unsafe { libc::_exit(status) }
}

/// fork(2), for a PAM application: the child goes on as the application.
pub fn fork() -> nix::Result<nix::unistd::ForkResult> {
    // SAFETY: PAM applications are single-threaded where they open a session (they fork there themselves), so the child finds no lock
    // that another thread holds.
    unsafe { nix::unistd::fork() }
}

unsafe extern "C" {
    fn __nss_configure_lookup(database: *const std::ffi::c_char, services: *const std::ffi::c_char) -> i32;
}

/// glibc's own way (`nss/nsswitch.c`, GLIBC_2.2.5) to set a line of nsswitch.conf for this process and for good.
pub fn configure_nss(database: &CStr, services: &CStr) -> nix::Result<()> {
    // SAFETY: two strings, which glibc copies.
    retry(|| Errno::result(unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) })).map(drop)
}

/// Sets back a signal to what it does by default.
pub fn default_signal(signal: nix::sys::signal::Signal) {
    use nix::sys::signal::{SigHandler, signal as set};
    // SAFETY: the default is no handler of ours.
    let _ = unsafe { set(signal, SigHandler::SigDfl) };
}

/// Loads a library for as long as the process lives; false if it cannot be.
pub fn load(library: &CStr) -> bool {
    // ld.so does not repeat what a signal interrupts.
    (0..3).any(|_| {
        // SAFETY: glibc's own libraries and ours, whose start runs no code that could disturb the process.
        !unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW) }.is_null()
    })
}

/// The version of the glibc that runs.
pub fn glibc_version() -> (u32, u32) {
    // SAFETY: glibc returns a constant string.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) }.to_string_lossy();
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What one recvmsg(2) brought.
pub struct Received {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
    /// False if the kernel had to leave descriptors out.
    pub is_whole: bool,
}

/// As many descriptors as the kernel lets anybody send in one message (SCM_MAX_FD of include/net/scm.h).
const DESCRIPTORS: usize = 253;

/// recvmsg(2) with SCM_RIGHTS: at most `N` bytes, and all the descriptors there are, close-on-exec.
pub fn receive_descriptors<const N: usize>(socket: &OwnedFd) -> nix::Result<Received> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut bytes = [0; N];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; DESCRIPTORS]);
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    let is_whole = !message.flags.contains(MsgFlags::MSG_CTRUNC);
    // Truncated for want of a free descriptor: nix does not tell of those that did fit. The process ends with the refusal, and they with it.
    if is_whole {
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just installed them for us, and nobody else knows of them.
                descriptors.extend(received.into_iter().map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }));
            }
        }
    }
    let length = message.bytes;
    Ok(Received { bytes: bytes.iter().copied().take(length).collect(), descriptors, is_whole })
}
