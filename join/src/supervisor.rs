//! The process that stays outside and waits for one that is inside: it passes signals on, and ends as that one ends, so that whoever started it sees
//! no difference.
//!
//! It never stops itself, and always reaps: a container cannot end before each of its processes has been waited for, and one of them is this
//! process's child.

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

/// The application's signals, held from before a fork until each side of it knows what to do with them.
pub struct Signals {
    before: SigSet,
    of_children: SigAction,
}

impl Signals {
    /// Holds all of them. Where SIGCHLD is ignored nobody learns how a child ended, so it is set back, too.
    pub fn hold() -> Result<Self, Refusal> {
        let of_children = sys::default_signal(Signal::SIGCHLD).context(Reason::Broken, "watch for the child's end")?;
        let mut before = SigSet::empty();
        // Not nix's thread_swap_mask, which takes the errno that pthread_sigmask(3) returns for a success.
        let blocked = retry(|| sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before)));
        if blocked.is_err() {
            let _ = sys::restore_signal(Signal::SIGCHLD, &of_children);
        }
        blocked.context(Reason::Broken, "block signals")?;
        Ok(Self { before, of_children })
    }

    /// To read them by. Made by the process that reads: no child has it.
    fn descriptor() -> Result<SignalFd, Refusal> {
        retry(|| SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC)).context(Reason::Broken, "read signals")
    }

    /// Gives the application its signals back.
    pub fn release(&self) -> Result<(), Refusal> {
        sys::restore_signal(Signal::SIGCHLD, &self.of_children)
            .and_then(|()| retry(|| sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None)))
            .context(Reason::Broken, "give the application its signals back")
    }
}

/// For sshd: the process that forked the session's, and is now left over, outside. It becomes the container's user, keeps nothing that it has
/// open, and ends with sshd's monitor, its parent, if that ends first.
/// `ids` are those of the container's user on the node, by which it may signal the session.
pub fn supervise_session(container: ContainerUid, ids: Ids, child: Pid, signals: &Signals, monitor: Pid) -> Refusal {
    match Signals::descriptor().and_then(|to_read| drop_privileges(container, ids, to_read)) {
        // The monitor of a short session does not wait for us: then there is nothing to supervise any more.
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

/// In the process inside: ends with its supervisor, which is the only one that could end it.
pub fn die_with_supervisor() {
    // It fails for a number that is no signal, and for nothing else.
    let _ = retry(|| set_pdeathsig(Signal::SIGKILL));
}

/// The ids last: as the container's user this process has nothing any more.
fn drop_privileges(container: ContainerUid, ids: Ids, kept: SignalFd) -> Result<SignalFd, Refusal> {
    // No more than a name; an operator can do without.
    let _ = sys::set_supervisor_title(container.get());
    // Out of the session's process group, which a process inside can signal as a whole: kill(0, SIGSTOP).
    retry(|| setpgid(Pid::from_raw(0), Pid::from_raw(0)))
        .context(Reason::Broken, "put the supervisor into a group of its own")?;
    sys::bound_capabilities(0).context(Reason::Broken, "drop the supervisor's capabilities")?;
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        sys::change_capabilities(|| caps::clear(None, set))
            .context(Reason::Broken, "drop the supervisor's capabilities")?;
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

/// For `join=now`: forks twice. The grandchild goes on as the application. The outer error: nothing was forked,
/// and this is the original process. The inner error: the grandchild failed, and must not return to the application, which would go on as
/// root on the node.
///
/// Two processes wait: the original one stops when the application is stopped, so that a shell's job control sees it; the one between never
/// stops, so that it can always wait for the application. `before_the_second` is done in the one between.
pub fn go_on_in_a_child(
    before_the_second: impl FnOnce() -> Result<(), Refusal>,
) -> Result<Result<(), Refusal>, Refusal> {
    let signals = Signals::hold()?;
    let front = getpid();
    match fork_to_supervise() {
        Ok(Side::Parent(child, to_read)) => supervise(child, &signals, &to_read, None),
        Ok(Side::Child) => {}
        Err(refusal) => {
            let _ = signals.release();
            return Err(refusal);
        }
    }
    match before_the_second().and_then(|()| fork_to_supervise()) {
        Ok(Side::Parent(child, to_read)) => supervise(child, &signals, &to_read, Some(front)),
        Ok(Side::Child) => Ok(signals.release()),
        Err(refusal) => Ok(Err(refusal)),
    }
}

enum Side {
    Parent(Pid, SignalFd),
    Child,
}

/// What the parent needs it has before it has a child, so that it cannot fail to supervise.
fn fork_to_supervise() -> Result<Side, Refusal> {
    let to_read = Signals::descriptor()?;
    Ok(match retry(sys::fork).context(Reason::Broken, "fork")? {
        ForkResult::Parent { child } => Side::Parent(child, to_read),
        ForkResult::Child => Side::Child,
    })
}

/// The rest of this process's life: until the child ends, and then the same end. `front` is stopped when the child stops.
fn supervise(child: Pid, signals: &Signals, to_read: &SignalFd, front: Option<Pid>) -> ! {
    let mut flags = WaitPidFlag::WNOHANG;
    flags.set(WaitPidFlag::WUNTRACED, front.is_some());
    loop {
        match waitpid(child, Some(flags)) {
            Ok(WaitStatus::Exited(_, status)) => sys::exit_now(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => end_by(signal, &signals.before),
            // When that one is continued, so are we, and by us the child.
            Ok(WaitStatus::Stopped(..)) => drop(front.map(|front| kill(front, Signal::SIGSTOP))),
            Err(Errno::EINTR) => continue, // the signal that tells of the child may have been read already
            Err(_) => sys::exit_now(255),
            _ => {}
        }
        let Ok(Some(received)) = to_read.read_signal() else { continue };
        // A terminal's signals come from the kernel and reach the child too, for it is in our process group; but that the line has hung up
        // only the session's first process is told.
        let sent_by_a_process = received.ssi_code <= 0;
        match Signal::try_from(received.ssi_signo as i32) {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(signal) if sent_by_a_process || signal == Signal::SIGHUP => drop(kill(child, signal)),
            Ok(_) => {}
        }
    }
}

/// Ends by the signal that ended the child, without a second core file.
fn end_by(signal: Signal, before: &SigSet) -> ! {
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = sys::default_signal(signal);
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(before), None);
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), None);
    let _ = raise(signal);
    sys::exit_now(128 + signal as i32)
}
