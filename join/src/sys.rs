//! System calls that nix lacks, or has only as unsafe functions.
//!
//! Each function makes one call safe to use. Decisions, messages and refusals belong to the
//! callers.
#![allow(unsafe_code)]

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::CloneFlags;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use std::ffi::{c_int, c_long};
use std::io::{IoSlice, IoSliceMut};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};

/// Repeats a call that a signal interrupts (EINTR).
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
    nix::ioctl_none_bad!(get_parent, nix::request_code_none!(0xb7, 0x2));
    nix::ioctl_none_bad!(get_nstype, nix::request_code_none!(0xb7, 0x3));
    nix::ioctl_write_int_bad!(get_pid, nix::request_code_read!(0xb7, 0x6, size_of::<std::ffi::c_int>()));
}

/// NS_GET_NSTYPE of ioctl_nsfs(2). Only for a descriptor on nsfs.
pub fn namespace_type(namespace: &OwnedFd) -> nix::Result<CloneFlags> {
    // SAFETY: the request takes no argument; the descriptor is open.
    retry(|| unsafe { ioctls::get_nstype(namespace.as_raw_fd()) }).map(CloneFlags::from_bits_retain)
}

/// NS_GET_USERNS of ioctl_nsfs(2): the user namespace that owns this one. Only for a descriptor on
/// nsfs.
pub fn namespace_owner(namespace: &OwnedFd) -> nix::Result<OwnedFd> {
    // SAFETY: as above.
    let descriptor = retry(|| unsafe { ioctls::get_userns(namespace.as_raw_fd()) })?;
    // SAFETY: the request has just made this descriptor, close-on-exec, and nobody else knows of
    // it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// NS_GET_PARENT of ioctl_nsfs(2): the pid or user namespace around this one. Only for a descriptor
/// on nsfs.
pub fn namespace_parent(namespace: &OwnedFd) -> nix::Result<OwnedFd> {
    // SAFETY: as above.
    let descriptor = retry(|| unsafe { ioctls::get_parent(namespace.as_raw_fd()) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// NS_GET_PID_FROM_PIDNS of linux/nsfs.h (Linux 6.11; ENOTTY before): the pid, in our pid
/// namespace, of the process with this pid in another. Only for a descriptor on nsfs.
pub fn pid_from_pidns(namespace: &OwnedFd, pid: i32) -> nix::Result<i32> {
    // SAFETY: the request takes a number.
    retry(|| unsafe { ioctls::get_pid(namespace.as_raw_fd(), pid) })
}

/// Drops every capability from the bounding set that is not in this mask of bits (PR_CAPBSET_DROP
/// of prctl(2)). Dropping a capability that is already absent needs no CAP_SETPCAP.
pub fn limit_bounding_set(kept: u64) -> nix::Result<()> {
    for capability in (0..u64::BITS).filter(|capability| kept & (1 << capability) == 0) {
        // SAFETY: takes numbers and touches no memory of ours.
        let prctl = |operation| retry(|| Errno::result(unsafe { libc::prctl(operation, capability, 0, 0, 0) }));
        match prctl(libc::PR_CAPBSET_READ) {
            Err(Errno::EINVAL) => break, // the kernel has no more of them
            Ok(0) => {}
            Ok(_) => drop(prctl(libc::PR_CAPBSET_DROP)?),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Calls a function of the crate caps, whose error lacks the errno of the system call.
pub fn with_errno<T>(call: impl Fn() -> Result<T, caps::errors::CapsError>) -> nix::Result<T> {
    retry(|| call().map_err(|_| Errno::last()))
}

/// Drops every capability of this process.
pub fn clear_capabilities() -> nix::Result<()> {
    use caps::CapSet;
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        with_errno(|| caps::clear(None, set))?;
    }
    Ok(())
}

/// Sets the supplementary groups. A raw call, for this thread alone: after [`clone_into`] glibc can
/// still know threads that only the parent has, and would wait for them.
pub fn set_groups(groups: &[u32]) -> nix::Result<()> {
    // SAFETY: reads as many groups as there are.
    retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })).map(drop)
}

/// Sets all uids and gids. Raw calls, see [`set_groups`].
pub fn become_user(uid: u32, gid: u32) -> nix::Result<()> {
    // SAFETY: takes numbers.
    retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }))?;
    // SAFETY: as above.
    retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })).map(drop)
}

/// linux/keyctl.h
const SESSION_KEYRING: c_int = -3;

/// keyctl(2), of the operations that take numbers. It is no error if the kernel has no keys, or if
/// a seccomp filter denies them (EPERM): then there is no keyring to leave.
fn keyctl(operation: c_int, arguments: [c_long; 3]) -> nix::Result<()> {
    let [first, second, third] = arguments;
    // SAFETY: the callers pass numbers, and a null pointer as a name.
    match retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, operation, first, second, third, 0) })) {
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Joins a new session keyring.
pub fn new_session_keyring() -> nix::Result<()> {
    const JOIN_SESSION_KEYRING: c_int = 1;
    const NO_NAME: c_long = 0;
    keyctl(JOIN_SESSION_KEYRING, [NO_NAME, 0, 0])
}

/// Makes a user the owner of this process's session keyring. EDQUOT: the user's quota of keys is
/// used up.
pub fn give_session_keyring(uid: u32) -> nix::Result<()> {
    const CHOWN: c_int = 4;
    keyctl(CHOWN, [SESSION_KEYRING.into(), uid.into(), uid.into()])
}

/// Revokes the session keyring of this process, for every process that has it.
pub fn revoke_session_keyring() -> nix::Result<()> {
    const REVOKE: c_int = 3;
    keyctl(REVOKE, [SESSION_KEYRING.into(), 0, 0])
}

/// Tries to become root again. True if this process is root now.
pub fn try_to_become_root() -> bool {
    // SAFETY: takes numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }).is_ok()
}

/// Ends this process at once, without running the application's exit handlers.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes a number and does not return.
    unsafe { libc::_exit(status) }
}

/// fork(2), for a PAM application: the child goes on as the application.
pub fn fork() -> nix::Result<nix::unistd::ForkResult> {
    // SAFETY: PAM applications are single-threaded where they open a session (they fork there
    // themselves), so the child finds no lock that another thread holds.
    unsafe { nix::unistd::fork() }
}

/// From linux/sched.h. clone(2) has no room for it in its 32 bits of flags.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Which process returns from [`clone_into`] or [`clone_sibling`].
pub enum Cloned {
    /// In the process that called.
    Parent(Pid),
    /// In the new one.
    Child,
}

/// fork(2) into a v2 cgroup, given by its directory (clone3(2), Linux 5.7). An ordinary
/// fork if there is none, or the kernel cannot do that. The second value says whether the new
/// process was created in the cgroup.
///
/// glibc's fork handlers do not run. They are for locks of other threads, which a PAM application
/// does not have when it opens a session.
pub fn clone_into(cgroup: Option<&OwnedFd>) -> nix::Result<(Cloned, bool)> {
    if let Some(cgroup) = cgroup {
        // SAFETY: all zeros asks for nothing.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = CLONE_INTO_CGROUP;
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
        let size = size_of::<libc::clone_args>();
        // SAFETY: the kernel reads the arguments. It shares no memory with the new process, which
        // goes on from here with a copy.
        let pid = retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) }));
        if let Ok(pid) = pid {
            return Ok((cloned(pid), true));
        }
    }
    let pid = retry(|| {
        // SAFETY: no stack and no memory is shared, so it is fork(2).
        Errno::result(unsafe { libc::syscall(libc::SYS_clone, c_long::from(libc::SIGCHLD), NONE, NONE, NONE, NONE) })
    })?;
    Ok((cloned(pid), false))
}

/// fork(2), but the new process is a child of this process's parent (CLONE_PARENT of clone(2)). Its
/// pid is written to `pid`, for the parent.
pub fn clone_sibling(pid: &AtomicI32) -> nix::Result<Cloned> {
    let flags = c_long::from(libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::SIGCHLD);
    // SAFETY: as above; the kernel writes the number of the new process, in this process's memory.
    let pid =
        retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, NONE, pid.as_ptr(), NONE, NONE) }))?;
    Ok(cloned(pid))
}

/// An unused argument of a raw call.
const NONE: c_long = 0;

fn cloned(pid: c_long) -> Cloned {
    if pid == 0 { Cloned::Child } else { Cloned::Parent(Pid::from_raw(pid as i32)) }
}

/// Memory that this process shares with the children that it clones later. It is never unmapped.
#[derive(Clone, Copy)]
pub struct Shared(&'static SharedMemory);

/// Its content, which is zeroed at first.
pub struct SharedMemory {
    /// A pid.
    pub pid: AtomicI32,
    /// The reason of a refusal plus 1, or the result of a helper that succeeded.
    pub code: AtomicI32,
    /// A text, padded with zeros.
    pub text: [AtomicU8; 1000],
}

impl Shared {
    /// Maps it.
    pub fn new() -> nix::Result<Self> {
        const SIZE: usize = size_of::<SharedMemory>();
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, where the kernel likes, of whole pages.
        let memory = retry(|| match unsafe { libc::mmap(null_mut(), SIZE, protection, flags, -1, 0) } {
            libc::MAP_FAILED => Err(Errno::last()),
            memory => Ok(memory),
        })?;
        // SAFETY: the mapping is large enough, aligned, there for good, and of zeros, which are
        // values of all these atomic numbers.
        Ok(Self(unsafe { &*memory.cast::<SharedMemory>() }))
    }

    /// Keeps it from children that this process clones later (MADV_DONTFORK).
    pub fn keep_from_children(self) -> nix::Result<()> {
        let address = std::ptr::from_ref(self.0).cast_mut().cast();
        // SAFETY: our own mapping, which stays as it is in this process.
        let advise = || unsafe { libc::madvise(address, size_of::<SharedMemory>(), libc::MADV_DONTFORK) };
        retry(|| Errno::result(advise())).map(drop)
    }
}

impl std::ops::Deref for Shared {
    type Target = SharedMemory;
    fn deref(&self) -> &SharedMemory {
        self.0
    }
}

/// Keeps processes of the same user from tracing this one and from its files in /proc
/// (PR_SET_DUMPABLE of prctl(2)).
pub fn set_not_dumpable() -> nix::Result<()> {
    retry(|| nix::sys::prctl::set_dumpable(false))
}

/// seccomp(2) with SECCOMP_SET_MODE_FILTER.
pub fn filter_system_calls(program: &[libc::sock_filter]) -> nix::Result<()> {
    let len = program.len().try_into().map_err(|_| Errno::E2BIG)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let (operation, flags) = (libc::SECCOMP_SET_MODE_FILTER, 0);
    // SAFETY: the kernel reads the program, which is as long as said.
    let filter = || unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    retry(|| Errno::result(filter())).map(drop)
}

/// How a thread is scheduled, sched_setattr(2): `struct sched_attr` in its first version.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scheduling {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

impl Scheduling {
    const NORMAL: Self = Self {
        size: size_of::<Self>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice: 0,
        priority: 0,
        runtime: 0,
        deadline: 0,
        period: 0,
    };

    /// The scheduling of a process; 0 is this process.
    pub fn of(pid: i32) -> nix::Result<Self> {
        let mut found = Self::NORMAL;
        let size = size_of::<Self>();
        // SAFETY: the kernel writes at most `size` bytes.
        retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_sched_getattr, pid, &raw mut found, size, 0) }))?;
        // The size says how much the kernel knows, and is no property of the process.
        Ok(Self { size: size as u32, nice: nice(pid)?, ..found })
    }

    /// What a child inherits: no priority with SCHED_RESET_ON_FORK, and never SCHED_DEADLINE.
    pub fn inherited_by_child(self) -> Self {
        const RESET_ON_FORK: u64 = 1;
        let policy = self.policy as c_int;
        let is_real_time = [libc::SCHED_FIFO, libc::SCHED_RR, libc::SCHED_DEADLINE].contains(&policy);
        match (self.flags & RESET_ON_FORK != 0, is_real_time) {
            (true, true) => Self::NORMAL,
            (true, false) => Self { flags: self.flags & !RESET_ON_FORK, nice: self.nice.max(0), ..self },
            (false, _) if policy == libc::SCHED_DEADLINE => Self::NORMAL,
            (false, _) => self,
        }
    }

    /// Applies it to this process.
    pub fn apply(&self) -> nix::Result<()> {
        // SAFETY: the kernel reads the struct, whose size is in it.
        retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *self, 0) }))?;
        if nice(0) == Ok(self.nice) { Ok(()) } else { set_nice(self.nice) }
    }

    /// This scheduling, but with another nice value.
    pub fn with_nice(self, nice: i32) -> Self {
        Self { nice, ..self }
    }

    /// The nice value.
    pub fn nice(&self) -> i32 {
        self.nice
    }
}

/// The nice value of a process; 0 is this process. sched_getattr(2) reports it for some policies
/// only.
pub fn nice(pid: i32) -> nix::Result<i32> {
    // SAFETY: takes numbers. The bare call counts from 40 down to 1, so that it is never negative.
    retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, pid) }))
        .map(|value| 20 - value as i32)
}

/// Sets the nice value of this process.
pub fn set_nice(value: i32) -> nix::Result<()> {
    // SAFETY: takes numbers.
    retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, value) })).map(drop)
}

/// The I/O priority of a process, ioprio_get(2); 0 is this process.
pub fn io_priority(pid: i32) -> nix::Result<i32> {
    const WHO_PROCESS: c_int = 1;
    // SAFETY: takes numbers.
    retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, pid) })).map(|value| value as i32)
}

/// Sets the I/O priority of this process.
pub fn set_io_priority(value: i32) -> nix::Result<()> {
    const WHO_PROCESS: c_int = 1;
    // SAFETY: takes numbers.
    retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) })).map(drop)
}

/// The CPUs that a process may run on, sched_setaffinity(2). Room for 8192 of them, as many as the
/// kernel can be built for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuSet(Vec<u8>);

impl CpuSet {
    /// The CPUs of a process; 0 is this process.
    pub fn of(pid: i32) -> nix::Result<Self> {
        let mut mask = vec![0; 1024];
        let room = mask.len();
        let length = retry(|| {
            // SAFETY: the kernel writes at most `room` bytes, and says how many.
            Errno::result(unsafe { libc::syscall(libc::SYS_sched_getaffinity, pid, room, mask.as_mut_ptr()) })
        })?;
        mask.truncate(length as usize);
        Ok(Self(mask))
    }

    /// Applies it to this process.
    pub fn apply(&self) -> nix::Result<()> {
        // SAFETY: the kernel reads as many bytes as there are.
        let set = || unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, self.0.len(), self.0.as_ptr()) };
        retry(|| Errno::result(set())).map(drop)
    }
}

/// What identifies a file and the mount that it was opened on, statx(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileId {
    /// The file system's device number, as fstat(2) has it.
    pub device: u64,
    /// The number of the inode.
    pub inode: u64,
    /// The number of the mount; 0 before Linux 5.8, which does not say.
    pub mount: u64,
}

/// Identifies an open file. With AT_STATX_DONT_SYNC, because the server of a network or FUSE file
/// system may never answer.
pub fn file_id(file: &OwnedFd) -> nix::Result<FileId> {
    const FLAGS: c_int = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    const STATX_INO: u32 = 0x100; // linux/stat.h, as the offsets of the fields
    const STATX_MNT_ID: u32 = 0x1000;
    let mut status = [0u8; 256];
    let (file, path, asked) = (file.as_raw_fd(), c"".as_ptr(), STATX_INO | STATX_MNT_ID);
    // SAFETY: an empty path; the kernel writes one struct statx, which has 256 bytes.
    let mut statx = || unsafe { libc::syscall(libc::SYS_statx, file, path, FLAGS, asked, status.as_mut_ptr()) };
    retry(|| Errno::result(statx()))?;
    let number = |at| status.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    let half = |at| status.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    let (mask, inode, major, minor, mount) = (half(0), number(0x20), half(0x88), half(0x8c), number(0x90));
    let device = nix::sys::stat::makedev(major.into(), minor.into());
    Ok(FileId { device, inode, mount: if mask & STATX_MNT_ID == 0 { 0 } else { mount } })
}

/// The number of the mount that a file was opened on: statx(2) from Linux 5.8 on, before that the
/// descriptor's fdinfo (proc_pid_fdinfo(5)).
pub fn mount_id(file: &OwnedFd) -> nix::Result<u64> {
    let id = file_id(file)?;
    if id.mount != 0 {
        return Ok(id.mount);
    }
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).map_err(|_| Errno::last())?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    mount.and_then(|mount| mount.trim().parse().ok()).ok_or(Errno::ENODATA)
}

/// getgroups(2). nix would ask sysconf(3) how many there can be, for which glibc opens a file below
/// /proc: a file of the container's, once that is joined.
pub fn groups() -> nix::Result<Vec<u32>> {
    // SAFETY: with no room the kernel writes nothing.
    let count = Errno::result(unsafe { libc::getgroups(0, null_mut()) })?;
    let mut groups = vec![0; usize::try_from(count).unwrap_or_default()];
    // SAFETY: there is room for so many. Nobody else changes them: this process has one thread.
    let count = Errno::result(unsafe { libc::getgroups(count, groups.as_mut_ptr()) })?;
    groups.truncate(usize::try_from(count).unwrap_or_default());
    Ok(groups)
}

/// Opens a directory with O_PATH from the kernel's cache alone (RESOLVE_CACHED), because a network
/// or FUSE file system may never answer. No link is followed. EAGAIN: it is not in the cache.
/// EINVAL: before Linux 5.12.
pub fn open_cached(directory: BorrowedFd<'_>, path: &str) -> nix::Result<OwnedFd> {
    const MAX_TRIES: usize = 16; // EAGAIN also means that something was mounted or renamed elsewhere meanwhile
    const RESOLVE_CACHED: u64 = 0x20; // linux/openat2.h
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::from_bits_retain(RESOLVE_CACHED));
    let open = || retry(|| openat2(directory, path, how));
    let first = (1..MAX_TRIES).map(|_| open()).find(|opened| !matches!(opened, Err(Errno::EAGAIN)));
    first.unwrap_or_else(open) // the last try keeps its error
}

/// A copy of the mount that a path descriptor is on, attached nowhere yet: open_tree(2), Linux 5.2.
pub fn clone_mount(directory: &OwnedFd) -> nix::Result<OwnedFd> {
    const OPEN_TREE_CLONE: c_int = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH;
    let (directory, path) = (directory.as_raw_fd(), c"".as_ptr());
    // SAFETY: an empty path.
    let mount = retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_open_tree, directory, path, flags) }))?;
    // SAFETY: the call has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(mount as i32) })
}

/// Attaches a mount of [`clone_mount`] at this path: move_mount(2), Linux 5.2.
pub fn move_mount(mount: &OwnedFd, path: &str) -> nix::Result<()> {
    const FROM_EMPTY_PATH: c_int = 4;
    let path = std::ffi::CString::new(path).map_err(|_| Errno::EINVAL)?;
    let (mount, from, place) = (mount.as_raw_fd(), c"".as_ptr(), path.as_ptr());
    // SAFETY: an empty path, and one that lives until the call returns.
    let attach = || unsafe { libc::syscall(libc::SYS_move_mount, mount, from, libc::AT_FDCWD, place, FROM_EMPTY_PATH) };
    retry(|| Errno::result(attach())).map(drop)
}

/// Sends a descriptor over a Unix socket, unix(7).
pub fn send_descriptor(socket: &OwnedFd, sent: &OwnedFd) -> nix::Result<()> {
    let descriptors = [sent.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    retry(|| sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[0])], &control, MsgFlags::MSG_NOSIGNAL, None)).map(drop)
}

/// The one that [`send_descriptor`] has sent, if any. Does not wait.
pub fn receive_descriptor(socket: &OwnedFd) -> nix::Result<Option<OwnedFd>> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let (mut byte, mut space) = ([0], nix::cmsg_space!(c_int));
    let received = retry(|| {
        let mut data = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), flags)?;
        let mut rights = message.cmsgs()?.filter_map(|message| match message {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        Ok(rights.next())
    });
    match received {
        Err(Errno::EAGAIN) => Ok(None),
        // SAFETY: the call has just made this descriptor, close-on-exec, and nobody else knows of
        // it.
        other => other.map(|descriptor| descriptor.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })),
    }
}

/// Overwrites sshd's command line, so that ps(1) shows what this process is.
pub fn set_supervisor_title(uid: u32) -> nix::Result<()> {
    let title = format!("pam_unbit: {uid} [supervisor]");
    let name = std::ffi::CString::new(title.as_str()).map_err(|_| Errno::EINVAL)?;
    nix::sys::prctl::set_name(&name)?;
    let stat = std::fs::read_to_string("/proc/self/stat").map_err(|_| Errno::last())?;
    // proc_pid_stat(5): arg_start and arg_end are fields 48 and 49, and the third follows the name
    // in parentheses.
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(45);
    let mut address = || fields.next().and_then(|field| field.parse::<usize>().ok()).filter(|address| *address > 0);
    let (Some(start), Some(end)) = (address(), address()) else { return Err(Errno::ENODATA) };
    for (place, byte) in (start..end).zip(title.bytes().chain(std::iter::repeat(0))) {
        // SAFETY: the kernel put the arguments there, in memory that a process may write
        // (execve(2)); the last byte stays 0.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(place).write(if place + 1 == end { 0 } else { byte }) };
    }
    Ok(())
}

/// Closes every descriptor but one.
pub fn close_all_but(kept: impl AsFd) -> nix::Result<()> {
    let kept = kept.as_fd().as_raw_fd();
    let close = |first: c_int, last: c_int| {
        if first > last {
            return Ok(0); // the kernel reads -1 as its highest number
        }
        // SAFETY: takes numbers. Whoever owns one of these descriptors never runs again in this
        // process.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
    };
    let closed = retry(|| close(0, kept - 1)).and_then(|_| retry(|| close(kept + 1, c_int::MAX)));
    match closed {
        Err(Errno::ENOSYS) => close_all_before_linux_5_9(kept),
        other => other.map(drop),
    }
}

/// The names in a directory, without `.` and `..`. An absolute path needs no `place`.
pub(crate) fn names_in(place: impl AsFd, path: &str) -> nix::Result<Vec<String>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut directory = retry(|| Dir::openat(place.as_fd(), path, flags, Mode::empty()))?;
    let mut names = Vec::new();
    for entry in directory.iter().filter(|entry| *entry != Err(Errno::EINTR)) {
        names.extend(entry?.file_name().to_str().ok().filter(|name| ![".", ".."].contains(name)).map(str::to_owned));
    }
    Ok(names)
}

/// The numbers of this process's descriptors, and of one that is closed by now.
fn descriptors() -> nix::Result<impl Iterator<Item = c_int>> {
    Ok(names_in(AT_FDCWD, "/proc/self/fd")?.into_iter().filter_map(|name| name.parse().ok()))
}

fn close_all_before_linux_5_9(kept: c_int) -> nix::Result<()> {
    for number in descriptors()?.filter(|number| *number != kept) {
        // SAFETY: as above.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Sets a signal to its default action, and returns the old one for [`restore_signal_action`].
pub fn reset_signal_action(signal: Signal) -> nix::Result<SigAction> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default is no handler of ours.
    retry(|| unsafe { sigaction(signal, &default) })
}

/// Restores the application's signal action.
pub fn restore_signal_action(signal: Signal, action: &SigAction) -> nix::Result<()> {
    // SAFETY: the application's own handler, as it was.
    retry(|| unsafe { sigaction(signal, action) }).map(drop)
}

/// Marks every descriptor but the standard ones close-on-exec.
pub fn set_all_close_on_exec() -> nix::Result<()> {
    // SAFETY: takes three numbers and touches no memory of ours.
    let range = || unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    match retry(|| Errno::result(range())) {
        Err(Errno::ENOSYS | Errno::EINVAL) => set_all_close_on_exec_before_linux_5_11(),
        other => other.map(drop),
    }
}

fn set_all_close_on_exec_before_linux_5_11() -> nix::Result<()> {
    for number in descriptors()?.filter(|number| *number >= 3) {
        // SAFETY: takes numbers; a descriptor is marked, not closed.
        match retry(|| Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })) {
            Err(Errno::EBADF) => {} // it has been closed since
            other => drop(other?),
        }
    }
    Ok(())
}

/// Atomically increments the counter number `index` in a file of at least `size` bytes.
pub fn increment_counter(file: &OwnedFd, size: usize, index: usize) -> nix::Result<()> {
    const NUMBER: usize = size_of::<AtomicU64>();
    if index.checked_add(1).and_then(|end| end.checked_mul(NUMBER)).is_none_or(|end| end > size) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: a new mapping of an open file; the kernel chooses where.
    let page = unsafe {
        libc::mmap(null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    if page == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: a mapping begins with a page, and the counter is within it, see above. Every process
    // that writes there does it by this function.
    unsafe { AtomicU64::from_ptr(page.cast::<u64>().add(index)) }.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the mapping from above, to which nothing refers any more.
    Errno::result(unsafe { libc::munmap(page, size) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_on_exec_marks_every_descriptor() {
        for mark in [set_all_close_on_exec, set_all_close_on_exec_before_linux_5_11] {
            let (ours, _other) = nix::unistd::pipe().unwrap();
            let flags = || nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags(), 0);
            mark().unwrap();
            assert_eq!(flags(), libc::FD_CLOEXEC);
        }
    }

    /// A child with this pid, clone3(2), which waits to be killed.
    fn fork_with_pid(pid: i32) -> nix::Result<Pid> {
        // SAFETY: all zeros asks for nothing.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.set_tid = (&raw const pid).expose_provenance() as u64;
        arguments.set_tid_size = 1;
        let size = size_of::<libc::clone_args>();
        // SAFETY: the kernel reads the arguments, and shares no memory with the child.
        match Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) })? {
            0 => loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            },
            pid => Ok(Pid::from_raw(pid as i32)),
        }
    }

    #[test]
    fn a_process_is_told_from_an_earlier_one_with_its_pid() {
        let identity = |pid: Pid| crate::proc::Proc::of(pid.as_raw()).unwrap().identity().unwrap();
        let end = |pid: Pid| {
            nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
            nix::sys::wait::waitpid(pid, None).unwrap();
        };
        loop {
            // SAFETY: the child ends.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
                exit_now(0);
            }
            let first = [identity(Pid::from_raw(pid)), identity(Pid::from_raw(pid))];
            end(Pid::from_raw(pid));
            match fork_with_pid(pid) {
                Ok(second) => {
                    let later = identity(second);
                    end(second);
                    assert_eq!(second.as_raw(), pid);
                    assert_eq!(first[0], first[1]);
                    return assert_ne!(later, first[0]);
                }
                Err(Errno::EEXIST) => {} // another test's child has got it
                Err(errno) => return eprintln!("NOT TRIED: a process with a chosen pid: {errno}"),
            }
        }
    }

    /// In a child, because it closes the other tests' descriptors as well.
    #[test]
    fn close_all_but_keeps_one_and_closes_the_others() {
        // SAFETY: takes numbers.
        let is_open = |number| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
        let outcome = |kept: c_int, close: fn(c_int) -> nix::Result<()>| {
            for number in [0, 1, 2, 3, 7] {
                // SAFETY: takes numbers.
                unsafe { libc::dup2(2, number) };
            }
            match close(kept) {
                Err(errno) => 100 + errno as i32,
                Ok(()) => i32::from((0..=7).any(|number| is_open(number) != (number == kept))),
            }
        };
        // SAFETY: the descriptor is open until the child ends, and this call closes none of Rust's.
        let by_range: fn(c_int) -> nix::Result<()> = |kept| close_all_but(unsafe { BorrowedFd::borrow_raw(kept) });
        for (close, name) in [(by_range, "close_range(2)"), (close_all_before_linux_5_9, "/proc/self/fd")] {
            for kept in [0, 1, 3, 7] {
                // SAFETY: the child makes system calls, and allocates for /proc/self/fd alone.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    exit_now(outcome(kept, close));
                }
                let status = nix::sys::wait::waitpid(Pid::from_raw(pid), None).unwrap();
                assert!(
                    matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)),
                    "{name}, {kept} is kept: {status:?}"
                );
            }
        }
    }

    /// Whether its numbers and registers are those of this architecture. A call that fails with
    /// EBADF or EINVAL came through.
    #[test]
    fn the_kernel_accepts_the_session_filter() {
        const NOT_TRIED: i32 = 77;
        let outcome = || {
            // SAFETY: takes numbers.
            if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
                return 1;
            }
            match crate::seccomp::apply() {
                // qemu-user.
                Err(Errno::EINVAL | Errno::ENOSYS) => return NOT_TRIED,
                Err(_) => return 2,
                Ok(()) => {}
            }
            // SAFETY: no address is valid, and no descriptor, so that nothing comes of any of them.
            let errno = |number| Errno::result(unsafe { libc::syscall(number, -1, -1, -1, -1, -1, -1) }).err();
            let expected = [
                (libc::SYS_keyctl, Errno::EPERM),
                (libc::SYS_process_vm_readv, Errno::EPERM),
                (libc::SYS_umount2, Errno::EPERM),
                (libc::SYS_clone, Errno::EPERM),
                (libc::SYS_socket, Errno::EINVAL),
                (libc::SYS_clone3, Errno::ENOSYS),
                (libc::SYS_write, Errno::EBADF),
                (libc::SYS_setns, Errno::EPERM),
                (libc::SYS_dup3, Errno::EINVAL),
            ];
            let wrong = expected.iter().position(|(number, error)| errno(*number) != Some(*error));
            wrong.map_or(0, |wrong| 10 + wrong as i32)
        };
        // SAFETY: the child makes system calls alone.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(outcome()) };
        }
        let status = nix::sys::wait::waitpid(Pid::from_raw(pid), None).unwrap();
        if matches!(status, nix::sys::wait::WaitStatus::Exited(_, NOT_TRIED)) {
            return eprintln!("NOT TRIED: the filter of system calls (there is no seccomp(2) here, as in qemu-user)");
        }
        assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)), "{status:?}");
    }
}
