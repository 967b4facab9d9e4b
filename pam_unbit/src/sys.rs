//! Functions of the C library that nix lacks.
//!
//! When they are called is decided in [`login`](crate::login) and [`nss`](crate::nss).
#![allow(unsafe_code)]

use join::sys::retry;
use nix::errno::Errno;
use std::ffi::CStr;

/// Connects this process to the system log now, so that later lines go to the node's log, and not
/// to the tenant's /dev/log in the container's mount namespace. The lines have the program's own
/// name, as by default.
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

unsafe extern "C" {
    fn __nss_configure_lookup(database: *const std::ffi::c_char, services: *const std::ffi::c_char) -> i32;
}

/// Sets a line of nsswitch.conf(5) for the rest of this process, by a function of glibc
/// (`nss/nsswitch.c`, GLIBC_2.2.5).
pub fn configure_nss(database: &CStr, services: &CStr) -> nix::Result<()> {
    // SAFETY: two strings, which glibc copies.
    retry(|| Errno::result(unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) })).map(drop)
}

/// Loads a library for as long as the process lives; false if it cannot be.
pub fn load(library: &CStr) -> bool {
    // ld.so does not repeat a call that a signal interrupts.
    (0..3).any(|_| {
        // SAFETY: glibc's own libraries and ours, whose start runs no code that could disturb the
        // process.
        !unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW) }.is_null()
    })
}

/// Sets the "C" locale. In any other, glibc reads message catalogues (strsignal(3), gettext(3)) and
/// loads character set converters (gconv) when it needs them, from the container's file system.
pub fn set_c_locale() {
    // SAFETY: two constants. PAM applications are single-threaded where a session begins.
    unsafe { libc::setlocale(libc::LC_ALL, c"C".as_ptr()) };
}

const LOGINUID: &str = "/proc/self/loginuid";

/// Whether this process has a loginuid for the kernel's audit log, proc(5).
pub fn has_loginuid() -> bool {
    std::fs::read_to_string(LOGINUID).is_ok_and(|text| text.trim() != u32::MAX.to_string())
}

/// Sets the loginuid for the kernel's audit log, as pam_loginuid(8). A kernel without audit has no
/// such file. If an earlier module has set the same loginuid, some kernels refuse to set it again.
pub fn set_loginuid(uid: u32) -> std::io::Result<()> {
    let is_set = || std::fs::read_to_string(LOGINUID).is_ok_and(|text| text.trim() == uid.to_string());
    match std::fs::write(LOGINUID, uid.to_string()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound || is_set() => Ok(()),
        written => written,
    }
}

/// Shuts down all sockets of this process, for other processes that have them open as well
/// (shutdown(2)). The standard descriptors are left: none of them is a connection of sshd, and
/// standard error can be the log of every sshd (`sshd -e`).
pub fn end_connections() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|number| *number > 2) {
        // SAFETY: takes numbers; what is no socket stays as it is.
        unsafe { libc::shutdown(number, libc::SHUT_RDWR) };
    }
}

/// The version of the glibc that runs.
pub fn glibc_version() -> (u32, u32) {
    // SAFETY: glibc returns a constant string.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) }.to_string_lossy();
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
