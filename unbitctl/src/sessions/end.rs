//! Ends one session, as if its connection was lost: the monitor and its processes end, and the
//! processes of its channels get SIGHUP.
//!
//! Processes that a user has left in the background (nohup(1), setsid(1), tmux(1)) belong to the
//! container and continue.

use super::list::{self, Id, Session};
use crate::interrupt::Interrupt;
use crate::list::processes::{Process, Processes, parent};
use crate::sys::pidfd_send_signal;
use anyhow::{Context, Result, bail};
use join::deadline::is_ready;
use nix::sys::signal::Signal;
use serde::Serialize;
use shared::ContainerUid;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long sshd may take to end. A frozen container can prevent that.
const GRACE: Duration = Duration::from_secs(5);
const AFTER_A_KILL: Duration = Duration::from_secs(5);

/// How it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum End {
    Ended,
    /// It did not end by itself.
    Killed,
}

/// A session that is over.
#[derive(Serialize)]
pub struct Ended {
    #[serde(flatten)]
    session: Session,
    end: End,
}

impl Ended {
    /// For people.
    pub fn sentence(&self) -> String {
        let Session { id, uid, .. } = &self.session;
        let from = self.session.from().map(|from| format!(" from {from}")).unwrap_or_default();
        let how = match self.end {
            End::Ended => "has ended",
            End::Killed => "did not end within 5 s and was killed",
        };
        format!("{id}: the session of {uid}{from} {how}\n")
    }
}

/// Ends a session. If a container is given, it must be a session of that container.
pub fn end(container: Option<ContainerUid>, id: Id) -> Result<Ended> {
    // The process is pinned before the session is read: while it lives, its pid is not reused.
    let pinned = join::sys::pidfd_open(id.pid);
    let session = list::sessions(container)?.into_iter().find(|session| session.id == id);
    let processes = session.as_ref().map(SessionProcesses::of).transpose()?;
    let lives = pinned.as_ref().is_ok_and(|pinned| !is_ready(pinned, Duration::ZERO));
    let (Ok(pinned), Some(session), Some(processes), true) = (pinned, session, processes, lives) else {
        let of = container.map(|container| format!(" of {container}")).unwrap_or_default();
        bail!("no open session{of} has the ID {id}; unbitctl sessions shows those that are open");
    };
    let interrupt = Interrupt::hold()?;
    let mut end = End::Ended;
    signal(&pinned, Signal::SIGTERM)?;
    if !interrupt.wait_for(Some(pinned.as_fd()), GRACE)? {
        end = End::Killed;
        signal(&pinned, Signal::SIGKILL)?;
        processes.kill()?;
        if !interrupt.wait_for(Some(pinned.as_fd()), AFTER_A_KILL)? {
            bail!("{id} has not ended within {} s after SIGKILL: is a file system hung?", AFTER_A_KILL.as_secs());
        }
    }
    processes.hang_up()?;
    Ok(Ended { session, end })
}

fn signal(process: &OwnedFd, signal: Signal) -> Result<()> {
    match pidfd_send_signal(process, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("send {signal}")),
    }
}

/// The processes of a session.
struct SessionProcesses {
    /// Those below the monitor up to the channels, which end with it: sshd's own, or the
    /// application that has entered.
    monitor_children: Vec<OwnedFd>,
    /// The first process of each channel: sshd gives each a session of processes (setsid(2)) of its
    /// own.
    channel_leaders: Vec<ChannelLeader>,
}

/// The leader of the session of processes, setsid(2), that a channel has.
struct ChannelLeader {
    session: i32,
    uids: Vec<u32>,
}

impl SessionProcesses {
    /// Without the descendants of a channel's first process: those in sessions of their own are
    /// background processes.
    fn of(session: &Session) -> Result<Self> {
        let processes = Processes::read()?;
        let (mut monitor_children, mut channel_leaders, mut left) = (Vec::new(), Vec::new(), vec![session.pid]);
        while let Some(pid) = left.pop() {
            for child in processes.children(pid) {
                if child.session() == Some(child.pid) {
                    channel_leaders.push(ChannelLeader { session: child.pid, uids: child.uids.clone() });
                } else if let Ok(pinned) = join::sys::pidfd_open(child.pid) {
                    // Its parent is read again after it is pinned.
                    monitor_children.extend((parent(child.pid) == Some(pid)).then_some(pinned));
                    left.push(child.pid);
                }
            }
        }
        Ok(Self { monitor_children, channel_leaders })
    }

    /// Kills the children of a monitor that was killed.
    fn kill(&self) -> Result<()> {
        self.monitor_children.iter().try_for_each(|process| signal(process, Signal::SIGKILL))
    }

    /// Sends SIGHUP to the channels. The kernel does it for a channel with a terminal only.
    fn hang_up(&self) -> Result<()> {
        if self.channel_leaders.is_empty() {
            return Ok(());
        }
        let is_of_a_channel = |process: &Process| {
            let session = process.session();
            self.channel_leaders.iter().any(|leader| Some(leader.session) == session && leader.uids == process.uids)
        };
        for process in Processes::read()?.all() {
            // Pinned before its session is read.
            let Ok(pinned) = join::sys::pidfd_open(process.pid) else { continue };
            if is_of_a_channel(process) {
                signal(&pinned, Signal::SIGHUP)?;
                signal(&pinned, Signal::SIGCONT)?;
            }
        }
        Ok(())
    }
}
