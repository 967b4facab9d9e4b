//! System calls that nix lacks, or has only as unsafe functions. Decisions and messages belong to
//! the callers.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::pty::Winsize;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

mod ioctls {
    nix::ioctl_read_bad!(get_size, libc::TIOCGWINSZ, libc::winsize);
    nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, libc::winsize);
    nix::ioctl_write_int_bad!(set_controlling, libc::TIOCSCTTY);
    // BTRFS_IOC_SUBVOL_SETFLAGS of linux/btrfs.h.
    nix::ioctl_write_ptr!(set_subvolume_flags, 0x94, 26, u64);
}

/// The size of a terminal's window.
pub fn window_size(terminal: impl AsFd) -> nix::Result<Winsize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes the one struct that it is given; the descriptor is open.
    unsafe { ioctls::get_size(terminal.as_fd().as_raw_fd(), &raw mut size) }?;
    Ok(size)
}

/// Sets the size of a terminal; its foreground processes get SIGWINCH.
pub fn set_window_size(terminal: impl AsFd, size: Winsize) -> nix::Result<()> {
    // SAFETY: the request reads the one struct that it is given; the descriptor is open.
    unsafe { ioctls::set_size(terminal.as_fd().as_raw_fd(), &raw const size) }.map(drop)
}

/// Makes a terminal the controlling one of the session that the calling process leads.
pub fn set_controlling_terminal(terminal: impl AsFd) -> nix::Result<()> {
    // SAFETY: the request takes a number, 0 for "if it is nobody else's"; the descriptor is open.
    unsafe { ioctls::set_controlling(terminal.as_fd().as_raw_fd(), 0) }.map(drop)
}

/// Makes a subvolume of btrfs writable that is read-only, by its directory.
pub fn make_subvolume_writable(directory: impl AsFd) -> nix::Result<()> {
    let none = 0;
    // SAFETY: the request reads the one number that it is given; the descriptor is open.
    unsafe { ioctls::set_subvolume_flags(directory.as_fd().as_raw_fd(), &raw const none) }.map(drop)
}

/// Whether the kernel takes its clock to be synchronised, adjtimex(2).
pub fn is_clock_synchronised() -> nix::Result<bool> {
    // SAFETY: all zeros is a value of this plain C struct, and asks for no change.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives through the call.
    let state = Errno::result(unsafe { libc::adjtimex(&raw mut clock) })?;
    Ok(state != libc::TIME_ERROR && clock.status & libc::STA_UNSYNC == 0)
}

/// Whether a file system has user quotas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserQuota {
    /// It counts the disk space of each user.
    pub counts: bool,
    /// It enforces the limits.
    pub limits: bool,
}

/// `struct fs_quota_stat` of linux/dqblk_xfs.h; of it only the flags are read.
#[repr(C)]
#[derive(Default)]
struct QuotaStat {
    version: i8,
    flags: u16,
    rest: [u64; 9],
}

/// `QCMD(Q_XGETQSTAT, USRQUOTA)`. Every file system with quotas answers it, not only xfs, and to
/// everybody.
const GET_STATE: libc::c_int = (('X' as libc::c_int) << 8 | 5) << 8;

/// The user quota of the file system that this file is on, quotactl_fd(2), or quotactl(2) with its
/// device before Linux 5.14.
pub fn user_quota(file: &OwnedFd, device: &str) -> nix::Result<UserQuota> {
    let mut stat = QuotaStat::default();
    let target: *mut QuotaStat = &raw mut stat;
    // SAFETY: an open descriptor, numbers, and a struct that the kernel's fits into.
    let asked = unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), GET_STATE, 0, target) };
    let asked = match Errno::result(asked) {
        // No such call, or no quota: the older call tells one from the other.
        Err(Errno::ENOSYS) => {
            let device = CString::new(device).map_err(|_| Errno::EINVAL)?;
            // SAFETY: a string and a struct that live through the call.
            Errno::result(unsafe { libc::quotactl(GET_STATE, device.as_ptr(), 0, target.cast()) }).map(drop)
        }
        other => other.map(drop),
    };
    match asked {
        Ok(()) => Ok(UserQuota { counts: stat.flags & 1 != 0, limits: stat.flags & 2 != 0 }),
        // ENOSYS: none is on, or the file system has no such thing; ENOTBLK, ENOENT, ENODEV: it has
        // no device that could have one.
        Err(Errno::ENOSYS | Errno::ENOTBLK | Errno::ENOENT | Errno::ENODEV | Errno::ESRCH) => {
            Ok(UserQuota { counts: false, limits: false })
        }
        Err(errno) => Err(errno),
    }
}

/// A program of seccomp(2).
pub type Filter = Vec<libc::sock_filter>;

/// The filters of another process, the youngest first: ptrace(2), PTRACE_SECCOMP_GET_FILTER. It is
/// stopped for that, for a moment, and notices nothing.
pub fn seccomp_filters(pid: i32) -> nix::Result<Vec<Filter>> {
    use nix::sys::ptrace;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let process = nix::unistd::Pid::from_raw(pid);
    ptrace::seize(process, ptrace::Options::empty())?;
    let mut filters = Ok(Vec::new());
    let stopped = ptrace::interrupt(process).and_then(|()| waitpid(process, Some(WaitPidFlag::__WALL)));
    if stopped.is_ok() {
        for index in 0.. {
            match seccomp_filter(pid, index) {
                Ok(filter) => filters.iter_mut().for_each(|all: &mut Vec<Filter>| all.push(filter.clone())),
                Err(Errno::ENOENT) => break,
                Err(errno) => {
                    filters = Err(errno);
                    break;
                }
            }
        }
    }
    // A signal that arrived before the interruption is delivered only if it is passed on here.
    let signal = match stopped {
        Ok(WaitStatus::Stopped(_, signal)) => Some(signal),
        _ => None,
    };
    ptrace::detach(process, signal)?;
    stopped.and(filters)
}

fn seccomp_filter(pid: i32, index: usize) -> nix::Result<Filter> {
    const GET_FILTER: libc::c_uint = 0x420c;
    let none = std::ptr::null_mut::<libc::sock_filter>();
    // SAFETY: without a place for it the kernel tells the filter's length alone.
    let length = Errno::result(unsafe { libc::ptrace(GET_FILTER as _, pid, index, none) })?;
    let mut filter = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; length as usize];
    // SAFETY: there is room for that many instructions, and the process is stopped: it cannot have
    // another filter by now.
    Errno::result(unsafe { libc::ptrace(GET_FILTER as _, pid, index, filter.as_mut_ptr()) })?;
    Ok(filter)
}

/// Installs a filter in this process, for good.
pub fn install_seccomp_filter(filter: &Filter) -> nix::Result<()> {
    let length = filter.len().try_into().map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel reads the program and its instructions, which live through the call.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }).map(drop)
}

/// A file without a name on a tmpfs that is mounted nowhere: fsopen(2), fsmount(2), O_TMPFILE.
pub fn file_in_memory() -> nix::Result<OwnedFd> {
    const CLOEXEC: libc::c_uint = 1; // FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC of linux/mount.h
    const CREATE: libc::c_uint = 6; // FSCONFIG_CMD_CREATE
    let nothing = std::ptr::null::<libc::c_char>();
    // SAFETY: a constant string and a number.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), CLOEXEC) };
    let context = owned(context)?;
    // SAFETY: an open descriptor; the command reads no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, nothing, nothing, 0) })?;
    // SAFETY: an open descriptor and numbers.
    let mount = owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, 0) })?;
    use nix::{
        fcntl::{OFlag, openat},
        sys::stat::Mode,
    };
    openat(&mount, ".", OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::from_bits_truncate(0o700))
}

fn owned(descriptor: libc::c_long) -> nix::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let descriptor = Errno::result(descriptor)? as libc::c_int;
    // SAFETY: the kernel has just given it to us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `QCMD(command, USRQUOTA)` of a user, quotactl_fd(2), or quotactl(2) with the device before Linux
/// 5.14.
fn quotactl(command: libc::c_int, file: &OwnedFd, device: &str, uid: u32, block: &mut libc::dqblk) -> nix::Result<()> {
    let command = command << 8;
    let target: *mut libc::dqblk = block;
    // SAFETY: an open descriptor, numbers, and the struct that these commands read or write.
    let asked = unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, uid, target) };
    match Errno::result(asked) {
        Err(Errno::ENOSYS) => {
            let device = CString::new(device).map_err(|_| Errno::EINVAL)?;
            // SAFETY: a string and a struct that live through the call.
            Errno::result(unsafe { libc::quotactl(command, device.as_ptr(), uid as libc::c_int, target.cast()) })
                .map(drop)
        }
        other => other.map(drop),
    }
}

/// The blocks of these limits, QIF_DQBLKSIZE.
const QUOTA_BLOCK: u64 = 1024;

/// What a user may have at most on a file system; 0 is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DiskLimit {
    pub bytes: u64,
    pub files: u64,
}

/// What a user has on a file system, and its limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DiskQuota {
    pub used_bytes: u64,
    pub limit: DiskLimit,
}

/// The quota of this user. ENOENT: nothing is known of it, as on xfs before its first file.
pub fn disk_quota(file: &OwnedFd, device: &str, uid: u32) -> nix::Result<DiskQuota> {
    // SAFETY: all zeros is a value of this plain C struct.
    let mut block: libc::dqblk = unsafe { std::mem::zeroed() };
    quotactl(libc::Q_GETQUOTA, file, device, uid, &mut block)?;
    let limit = DiskLimit { bytes: block.dqb_bhardlimit.saturating_mul(QUOTA_BLOCK), files: block.dqb_ihardlimit };
    Ok(DiskQuota { used_bytes: block.dqb_curspace, limit })
}

/// The limit that the kernel has after it was set to this many bytes.
pub const fn round_up_to_quota_block(bytes: u64) -> u64 {
    bytes.div_ceil(QUOTA_BLOCK).saturating_mul(QUOTA_BLOCK)
}

/// Sets both, and no soft limit.
pub fn set_disk_limit(file: &OwnedFd, device: &str, uid: u32, limit: DiskLimit) -> nix::Result<()> {
    const QIF_BLIMITS: u32 = 1;
    const QIF_ILIMITS: u32 = 4;
    // SAFETY: all zeros is a value of this plain C struct.
    let mut block: libc::dqblk = unsafe { std::mem::zeroed() };
    block.dqb_bhardlimit = limit.bytes.div_ceil(QUOTA_BLOCK);
    block.dqb_ihardlimit = limit.files;
    block.dqb_valid = QIF_BLIMITS | QIF_ILIMITS;
    quotactl(libc::Q_SETQUOTA, file, device, uid, &mut block)
}

/// Sends a signal to the process behind a pidfd, pidfd_send_signal(2).
pub fn pidfd_send_signal(process: &OwnedFd, signal: nix::sys::signal::Signal) -> nix::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: an open descriptor, numbers, and no memory of ours.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal as libc::c_int, no_info, 0) };
    Errno::result(sent).map(drop)
}

/// keyctl(2), for the operations that take numbers.
fn keyctl(operation: libc::c_int, keyring: i64, other: i64) -> nix::Result<i64> {
    // SAFETY: these operations take numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, operation, keyring, other, 0, 0) })
}

const CLEAR: libc::c_int = 7; // linux/keyctl.h, as are the others
const INVALIDATE: libc::c_int = 21;
const USER: i64 = -4;
const USER_SESSION: i64 = -5;

/// How long the kernel may take to collect keys that have ended, and how often to look.
pub const COLLECTION_TIMEOUT: Duration = Duration::from_secs(5);
pub const COLLECTION_INTERVAL: Duration = Duration::from_millis(10);

/// Clears the caller's user and user session keyrings (user-keyring(7)). False if the user has
/// removed the permissions to do so; then nobody, root included, can use or clear them.
pub fn clear_user_keyrings() -> nix::Result<bool> {
    const LINK: libc::c_int = 8;
    let (mut is_all, mut collection) = (true, None);
    // The kernel takes an ended keyring out of its list a moment later. Until then it finds that
    // one, and says that it is no longer a key.
    let mut once_collected = |operation: libc::c_int, keyring: i64, other: i64| loop {
        match keyctl(operation, keyring, other) {
            Err(Errno::EKEYREVOKED | Errno::ENOKEY) if collection.is_some_and(|end| Instant::now() < end) => {
                sleep(COLLECTION_INTERVAL);
            }
            // Without the right to write. Who may search there may end it; the kernel makes another
            // one then.
            Err(Errno::EACCES) if operation == CLEAR => {
                let ended = keyctl(INVALIDATE, keyring, 0);
                collection = ended.ok().map(|_| Instant::now() + COLLECTION_TIMEOUT).or(collection);
                break ended;
            }
            done => break done,
        }
    };
    for keyring in [USER, USER_SESSION] {
        match once_collected(CLEAR, keyring, 0) {
            // A kernel without keys, or a filter that forbids them; or it is not there, and the
            // user's keys are too many to make it.
            Ok(_) | Err(Errno::ENOSYS | Errno::EPERM | Errno::EDQUOT) => {}
            Err(Errno::EACCES | Errno::ENOKEY | Errno::EKEYREVOKED | Errno::EKEYEXPIRED) => is_all = false,
            Err(errno) => return Err(errno),
        }
    }
    // The kernel links the user keyring into the session keyring; both work without the link.
    let _ = once_collected(LINK, USER, USER_SESSION);
    Ok(is_all)
}

/// The numbers of the caller's user and user session keyrings, without those that it may not
/// search.
pub fn user_keyrings() -> Vec<i64> {
    const GET_KEYRING_ID: libc::c_int = 0;
    [USER, USER_SESSION].into_iter().filter_map(|keyring| keyctl(GET_KEYRING_ID, keyring, 0).ok()).collect()
}

/// The user whose key this is, if the caller may view it.
pub fn key_owner(key: i64) -> Option<u32> {
    const DESCRIBE: libc::c_int = 6;
    // A page for the part that the owner has chosen, and the kernel's own part.
    let mut description = [0_u8; 4096 + 128];
    let (address, size) = (description.as_mut_ptr(), description.len());
    // SAFETY: the kernel writes at most `size` bytes.
    let length = Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, DESCRIBE, key, address, size, 0) }).ok()?;
    let description = description.get(..usize::try_from(length).ok()?)?;
    // type;uid;gid;permissions;name
    std::str::from_utf8(description.split(|&byte| byte == b';').nth(1)?).ok()?.parse().ok()
}

/// Invalidates a key, so that it is gone wherever it is linked. A caller that may not search it
/// grants itself that permission first. If neither is allowed, revokes the key. Errors are ignored.
pub fn end_key(key: i64) {
    const REVOKE: libc::c_int = 3;
    const SETPERM: libc::c_int = 5;
    const ALL_BY_POSSESSOR_AND_OWNER: i64 = 0x3f3f_0000;
    let end = || keyctl(INVALIDATE, key, 0);
    let _ = end()
        .or_else(|_| keyctl(SETPERM, key, ALL_BY_POSSESSOR_AND_OWNER).and_then(|_| end()))
        .or_else(|_| keyctl(REVOKE, key, 0));
}

/// Clears a user's persistent keyring (persistent-keyring(7)), as root: the user's quota of keys
/// may be used up. The keyring's number, if the kernel keeps one.
pub fn clear_persistent_keyring(uid: u32) -> nix::Result<Option<i64>> {
    const GET_PERSISTENT: libc::c_int = 22;
    const PROCESS: i64 = -2;
    match keyctl(GET_PERSISTENT, uid.into(), PROCESS) {
        // The kernel keeps none, or no keys at all; or a filter forbids them.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM) => Ok(None),
        Err(errno) => Err(errno),
        Ok(persistent) => keyctl(CLEAR, persistent, 0).map(|_| Some(persistent)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    /// The process answers each signal with a byte, and only then is sent the next one.
    #[test]
    fn a_process_whose_filters_are_read_gets_every_signal() {
        let (mut answers, out) = UnixStream::pair().unwrap();
        answers.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let script = "trap echo HUP; echo; while :; do :; done";
        let mut process = Command::new("sh").args(["-c", script]).stdout(OwnedFd::from(out)).spawn().unwrap();
        let pid = process.id() as i32;
        answers.read_exact(&mut [0]).unwrap();
        let answered = Arc::new(AtomicUsize::new(0));
        let signals = std::thread::spawn({
            let answered = Arc::clone(&answered);
            move || {
                (1..=1000).find(|number| {
                    kill(Pid::from_raw(pid), Signal::SIGHUP).unwrap();
                    let is_lost = answers.read_exact(&mut [0]).is_err();
                    answered.store(*number, Ordering::Relaxed);
                    is_lost
                })
            }
        });
        let mut last = (0, Instant::now());
        while !signals.is_finished() {
            let _ = seccomp_filters(pid); // as an ordinary user it fails, after it has stopped the process
            let now = answered.load(Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            } else if last.1.elapsed() > Duration::from_secs(1) {
                // On a busy machine it is stopped again before it has run at all.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(signals.join().unwrap(), None, "this signal did not arrive");
    }
}
