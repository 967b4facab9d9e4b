//! The C library's functions that nix does not have.
//!
//! Each is one call; when it is made is decided in [`login`](crate::login).
#![allow(unsafe_code)]

use join::sys::retry;
use nix::errno::Errno;
use std::ffi::CStr;

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

unsafe extern "C" {
    fn __nss_configure_lookup(database: *const std::ffi::c_char, services: *const std::ffi::c_char) -> i32;
}

/// glibc's own way (`nss/nsswitch.c`, GLIBC_2.2.5) to set a line of nsswitch.conf for this process and for good.
pub fn configure_nss(database: &CStr, services: &CStr) -> nix::Result<()> {
    // SAFETY: two strings, which glibc copies.
    retry(|| Errno::result(unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) })).map(drop)
}

/// Loads a library for as long as the process lives; false if it cannot be.
pub fn load(library: &CStr) -> bool {
    // ld.so does not repeat what a signal interrupts.
    (0..3).any(|_| {
        // SAFETY: glibc's own libraries and ours, whose start runs no code that could disturb the process.
        !unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW) }.is_null()
    })
}

/// Gives up the locale. With one, glibc reads catalogues of messages (strsignal(3), gettext(3)) and loads converters between charsets
/// (gconv) when they are needed, from the file system that it is in by then. In the "C" locale it does neither.
pub fn give_up_locale() {
    // SAFETY: two constants. PAM applications are single-threaded where a session begins.
    unsafe { libc::setlocale(libc::LC_ALL, c"C".as_ptr()) };
}

const LOGINUID: &str = "/proc/self/loginuid";

/// Whether the kernel's audit log has a number already for what this process does, loginuid of proc(5).
pub fn has_loginuid() -> bool {
    std::fs::read_to_string(LOGINUID).is_ok_and(|text| text.trim() != u32::MAX.to_string())
}

/// Writes who has logged in for the kernel's audit log (pam_loginuid(8)). A kernel without audit has no such file; where an earlier module has
/// written the number already, some kernels take no other.
pub fn set_loginuid(uid: u32) -> std::io::Result<()> {
    let is_set = || std::fs::read_to_string(LOGINUID).is_ok_and(|text| text.trim() == uid.to_string());
    match std::fs::write(LOGINUID, uid.to_string()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound || is_set() => Ok(()),
        written => written,
    }
}

/// Ends the connections of this process at once, also for other processes that hold them and cannot close them (shutdown(2)).
/// Not the standard descriptors: sshd has none of its connections there, and standard error can be the log of every sshd (`sshd -e`).
pub fn end_connections() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|number| *number > 2) {
        // SAFETY: takes numbers; what is no socket stays as it is.
        unsafe { libc::shutdown(number, libc::SHUT_RDWR) };
    }
}

/// Of keyctl(2), linux/keyctl.h.
const SESSION_KEYRING: i32 = -3;

fn keyctl(operation: i32, argument: i64, uid: u32, gid: u32) -> nix::Result<()> {
    // SAFETY: these operations take numbers, or a name that is null.
    match retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, operation, argument, uid, gid, 0) })) {
        // A kernel without keys, or a filter that forbids them to everybody: there is nothing to leave.
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Leaves the keyring of the session that sshd was started in for a new one, and gives that to the user (pam_keyinit(8)).
pub fn begin_session_keyring(uid: u32) -> nix::Result<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    const CHOWN: i32 = 4;
    keyctl(JOIN_SESSION_KEYRING, 0, 0, 0)?;
    match keyctl(CHOWN, SESSION_KEYRING.into(), uid, uid) {
        // The user has as many keys as it may. Whoever is this number in another container can see to that, so it refuses nobody.
        Err(Errno::EDQUOT) => revoke_session_keyring(),
        given => given,
    }
}

/// Ends the use of that keyring, by whoever still has it.
pub fn revoke_session_keyring() -> nix::Result<()> {
    const REVOKE: i32 = 3;
    keyctl(REVOKE, SESSION_KEYRING.into(), 0, 0)
}

/// The version of the glibc that runs.
pub fn glibc_version() -> (u32, u32) {
    // SAFETY: glibc returns a constant string.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) }.to_string_lossy();
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
