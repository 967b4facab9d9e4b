//! The system calls that nix does not have, or has only as unsafe.
#![allow(unsafe_code)]

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::Mode;
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

/// Leaves nothing in the bounding set but what is in this mask of bits (PR_CAPBSET_DROP of prctl(2)). What is not there needs no power to go.
pub fn bound_capabilities(kept: u64) -> nix::Result<()> {
    for capability in (0..u64::BITS).filter(|capability| kept & (1 << capability) == 0) {
        // SAFETY: takes numbers and touches no memory of ours.
        let about = |operation| retry(|| Errno::result(unsafe { libc::prctl(operation, capability, 0, 0, 0) }));
        match about(libc::PR_CAPBSET_READ) {
            Err(Errno::EINVAL) => break, // the kernel has no more of them
            Ok(0) => {}
            Ok(_) => drop(about(libc::PR_CAPBSET_DROP)?),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
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

/// Sets back a signal to what it does by default; what it did before, for [`restore_signal`].
pub fn default_signal(signal: Signal) -> nix::Result<SigAction> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default is no handler of ours.
    retry(|| unsafe { sigaction(signal, &default) })
}

/// Gives a signal back to the application.
pub fn restore_signal(signal: Signal, action: &SigAction) -> nix::Result<()> {
    // SAFETY: the application's own handler, as it was.
    retry(|| unsafe { sigaction(signal, action) }).map(drop)
}

/// Marks every descriptor but the standard ones close-on-exec.
pub fn close_on_exec() -> nix::Result<()> {
    // SAFETY: takes three numbers and touches no memory of ours.
    let range = || unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    match retry(|| Errno::result(range())) {
        Err(Errno::ENOSYS | Errno::EINVAL) => close_on_exec_before_linux_5_11(),
        other => other.map(drop),
    }
}

fn close_on_exec_before_linux_5_11() -> nix::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut open = retry(|| Dir::open("/proc/self/fd", flags, Mode::empty()))?;
    for entry in open.iter().filter(|entry| *entry != Err(Errno::EINTR)) {
        let number: Option<i32> = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
        if let Some(number @ 3..) = number {
            // SAFETY: takes numbers; a descriptor is marked, not closed.
            match retry(|| Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })) {
                Err(Errno::EBADF) => {} // another thread has closed it since
                other => drop(other?),
            }
        }
    }
    Ok(())
}

/// What one recvmsg(2) brought.
pub struct Received {
    /// The data.
    pub bytes: Vec<u8>,
    /// What SCM_RIGHTS brought, close-on-exec.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_stays_open_for_us_alone() {
        for mark in [close_on_exec, close_on_exec_before_linux_5_11] {
            let (ours, _other) = nix::unistd::pipe().unwrap();
            let flags = || nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags(), 0);
            mark().unwrap();
            assert_eq!(flags(), libc::FD_CLOEXEC);
        }
    }
}
