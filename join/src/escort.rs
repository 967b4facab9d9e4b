//! What `join=now` takes beyond the join itself: a process that stays outside.
//!
//! The application (su, login, cron) forks: its child goes on as the application, inside; the parent stays on the host, passes signals on, and ends
//! as the child ends, so that whoever started the application sees no difference.

use crate::refusal::{Reason, Refusal, Step};
use crate::sys::{self, retry};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigAction, SigSet, SigmaskHow, Signal, kill, raise};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

/// Forks. Returns in the child only, or where there is none, with an error; the parent waits for it. What is inside is the child's own
/// outcome, with which it must not return to the application: that would go on as root, on the host.
pub fn go_on_in_a_child() -> Result<Result<(), Refusal>, Refusal> {
    // Where SIGCHLD is ignored, nobody learns how a child ended, nor when.
    let of_children = sys::default_signal(Signal::SIGCHLD).step(Reason::Broken, "hear of the child's end")?;
    let outcome = fork_an_escorted_child(&of_children);
    if outcome.is_err() {
        let _ = sys::restore_signal(Signal::SIGCHLD, &of_children);
    }
    outcome
}

fn fork_an_escorted_child(of_children: &SigAction) -> Result<Result<(), Refusal>, Refusal> {
    let all = SigSet::all();
    let before = retry(|| all.thread_swap_mask(SigmaskHow::SIG_SETMASK)).step(Reason::Broken, "block signals")?;
    let signals = retry(|| SignalFd::new(&all));
    let forked = signals.and_then(|signals| retry(sys::fork).map(|forked| (signals, forked)));
    match forked {
        Ok((signals, ForkResult::Parent { child })) => escort(child, &signals, &before),
        Ok((signals, ForkResult::Child)) => {
            drop(signals);
            let restored = sys::restore_signal(Signal::SIGCHLD, of_children)
                .and_then(|()| retry(|| before.thread_set_mask()))
                .step(Reason::Broken, "give the application its signals back");
            Ok(restored)
        }
        Err(errno) => {
            let _ = before.thread_set_mask();
            Err(errno).step(Reason::Broken, "fork")
        }
    }
}

/// The parent's life: until the child ends, and then the same end.
fn escort(child: Pid, signals: &SignalFd, before: &SigSet) -> ! {
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(_, status)) => sys::exit_now(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => end_by(signal, before),
            // A shell's job control stops the whole group, and asks its first process.
            Ok(WaitStatus::Stopped(..)) => {
                let _ = raise(Signal::SIGSTOP);
                let _ = kill(child, Signal::SIGCONT);
            }
            Err(Errno::EINTR) => continue, // the signal that tells of the child may have been read already
            Err(_) => sys::exit_now(255),
            _ => {}
        }
        let Ok(Some(received)) = signals.read_signal() else { continue };
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
    let _ = before.thread_set_mask();
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = only.thread_unblock();
    let _ = raise(signal);
    sys::exit_now(128 + signal as i32)
}
