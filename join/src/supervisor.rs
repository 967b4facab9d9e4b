//! The process that stays outside and waits for its child inside: it forwards signals, and exits as
//! the child exits, so its own parent sees no difference.
//!
//! It never stops itself, and always reaps its child: a container cannot end before each of its
//! processes has been waited for.
//!
//! Nothing here enters a container.

use crate::refusal::{Context, Reason, Refusal};
use crate::sys::{self, retry};
use crate::user_namespace::Ids;
use caps::CapSet;
use nix::errno::Errno;
use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigAction, SigSet, SigmaskHow, Signal, kill, raise, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, getpid, getppid, setpgid};
use shared::ContainerUid;
use std::os::fd::AsFd;

/// Blocks the application's signals from before a fork until both processes can handle them.
pub struct Signals {
    before: SigSet,
    sigchld_action: SigAction,
}

impl Signals {
    /// Blocks all of them, and sets SIGCHLD to its default: if it is ignored, the exit status of a
    /// child is lost.
    pub fn hold() -> Result<Self, Refusal> {
        let sigchld_action =
            sys::reset_signal_action(Signal::SIGCHLD).context(Reason::Broken, "watch for the child's end")?;
        let mut before = SigSet::empty();
        // Not nix's thread_swap_mask, which takes the errno that pthread_sigmask(3) returns for a
        // success.
        let blocked = retry(|| sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before)));
        if blocked.is_err() {
            let _ = sys::restore_signal_action(Signal::SIGCHLD, &sigchld_action);
        }
        blocked.context(Reason::Broken, "block signals")?;
        Ok(Self { before, sigchld_action })
    }

    /// A signalfd. The process that reads it makes it, so no child inherits it.
    fn descriptor() -> Result<SignalFd, Refusal> {
        retry(|| SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC)).context(Reason::Broken, "read signals")
    }

    /// Restores the application's signals.
    pub fn release(&self) -> Result<(), Refusal> {
        sys::restore_signal_action(Signal::SIGCHLD, &self.sigchld_action)
            .and_then(|()| retry(|| sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None)))
            .context(Reason::Broken, "give the application its signals back")
    }
}

/// Turns sshd's child, which forked the session's process and stays outside, into the supervisor.
/// It becomes the container's user, closes all descriptors, and is killed if sshd's monitor, its
/// parent, ends first.
///
/// `ids` are those of the container's user on the node, which let it signal the session.
pub fn supervise_session(container: ContainerUid, ids: Ids, child: Pid, signals: &Signals, monitor: Pid) -> Refusal {
    match Signals::descriptor().and_then(|to_read| drop_privileges(container, ids, to_read)) {
        // The monitor has ended, so there is no session to supervise.
        Ok(_) if getppid() != monitor => {
            let _ = kill(child, Signal::SIGKILL);
            sys::exit_now(255)
        }
        Ok(to_read) => supervise(child, signals, &to_read, None),
        Err(refusal) => {
            let _ = kill(child, Signal::SIGKILL);
            refusal
        }
    }
}

/// Has the kernel kill the process inside when its supervisor ends, because nobody else would.
pub fn die_with_supervisor() {
    // It fails only for an invalid signal.
    let _ = retry(|| set_pdeathsig(Signal::SIGKILL));
}

/// Changes the ids last, because the container's user could not do the other steps.
fn drop_privileges(container: ContainerUid, ids: Ids, kept: SignalFd) -> Result<SignalFd, Refusal> {
    // An operator can do without the title.
    let _ = sys::set_supervisor_title(container.get());
    // Out of the session's process group, which a process inside can signal as a whole: kill(0,
    // SIGSTOP).
    retry(|| setpgid(Pid::from_raw(0), Pid::from_raw(0)))
        .context(Reason::Broken, "put the supervisor into a process group of its own")?;
    sys::limit_bounding_set(0).context(Reason::Broken, "drop the supervisor's capabilities")?;
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        sys::with_errno(|| caps::clear(None, set)).context(Reason::Broken, "drop the supervisor's capabilities")?;
    }
    retry(set_no_new_privs).context(Reason::Broken, "set no_new_privs for the supervisor")?;
    sys::close_all_but(kept.as_fd()).context(Reason::Broken, "close what the supervisor has open")?;
    sys::set_groups(&[ids.gid])
        .and_then(|()| sys::become_user(ids.uid, ids.gid))
        .context(Reason::Broken, "make the supervisor the container's user")?;
    sys::clear_capabilities().context(Reason::Broken, "drop the supervisor's capabilities")?;
    // A change of ids takes both back, prctl(2).
    sys::set_not_dumpable().context(Reason::Broken, "make the supervisor not dumpable")?;
    retry(|| set_pdeathsig(Signal::SIGKILL)).context(Reason::Broken, "make the supervisor end with sshd's monitor")?;
    Ok(kept)
}

/// For `join=now`: forks twice, and returns in the grandchild, which goes on as the application.
/// The process in the middle calls `before_second_fork`, never stops, and reaps the application;
/// the first one stops with the application, for a shell's job control.
///
/// Outer error: nothing was forked. Inner error: returned in a child, which must exit, because the
/// application would go on as root on the node.
pub fn continue_in_grandchild(
    before_second_fork: impl FnOnce() -> Result<(), Refusal>,
) -> Result<Result<(), Refusal>, Refusal> {
    let signals = Signals::hold()?;
    let job = getpid();
    match fork_to_supervise() {
        Ok(Side::Parent(child, to_read)) => supervise(child, &signals, &to_read, None),
        Ok(Side::Child) => {}
        Err(refusal) => {
            let _ = signals.release();
            return Err(refusal);
        }
    }
    match before_second_fork().and_then(|()| fork_to_supervise()) {
        Ok(Side::Parent(child, to_read)) => supervise(child, &signals, &to_read, Some(job)),
        Ok(Side::Child) => Ok(signals.release()),
        Err(refusal) => Ok(Err(refusal)),
    }
}

enum Side {
    Parent(Pid, SignalFd),
    Child,
}

/// The parent opens what it needs before it forks, so that it cannot fail to supervise the child.
fn fork_to_supervise() -> Result<Side, Refusal> {
    let to_read = Signals::descriptor()?;
    Ok(match retry(sys::fork).context(Reason::Broken, "fork")? {
        ForkResult::Parent { child } => Side::Parent(child, to_read),
        ForkResult::Child => Side::Child,
    })
}

/// Waits until the child ends, and exits in the same way. `job` is stopped when the child stops.
fn supervise(child: Pid, signals: &Signals, to_read: &SignalFd, job: Option<Pid>) -> ! {
    let mut flags = WaitPidFlag::WNOHANG;
    flags.set(WaitPidFlag::WUNTRACED, job.is_some());
    loop {
        match waitpid(child, Some(flags)) {
            Ok(WaitStatus::Exited(_, status)) => sys::exit_now(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => end_by(signal, &signals.before),
            // When `job` is continued, it continues this process, which continues the child.
            Ok(WaitStatus::Stopped(..)) => drop(job.map(|job| kill(job, Signal::SIGSTOP))),
            Err(Errno::EINTR) => continue, // the SIGCHLD may have been read already
            Err(_) => sys::exit_now(255),
            _ => {}
        }
        let Ok(Some(received)) = to_read.read_signal() else { continue };
        // With `join=now` the child is in our process group, so a terminal's signals, which come
        // from the kernel, reach it as well. Only the SIGHUP of a lost connection is sent to the
        // session leader alone.
        let sent_by_a_process = received.ssi_code <= 0;
        match Signal::try_from(received.ssi_signo as i32) {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(signal) if sent_by_a_process || signal == Signal::SIGHUP => drop(kill(child, signal)),
            Ok(_) => {}
        }
    }
}

/// Ends by the signal that ended the child, without a core file.
fn end_by(signal: Signal, before: &SigSet) -> ! {
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = sys::reset_signal_action(signal);
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(before), None);
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), None);
    let _ = raise(signal);
    sys::exit_now(128 + signal as i32)
}
