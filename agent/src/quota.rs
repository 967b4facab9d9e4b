//! Reads the disk quotas of containers, quotactl(2).
//!
//! The kernel requires CAP_SYS_ADMIN for that, which is nearly root. So a process of its own does
//! only this: it reads container numbers and answers with numbers. The collector, which reads the
//! routers' and the API's answers, has no capability.

use crate::identity::Identity;
use anyhow::{Context, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};
use join::mountinfo::device_of;
use join::sys::{become_user, close_all_but, exit_now, fork, limit_bounding_set, set_groups, with_errno};
use nix::sys::prctl::{set_keepcaps, set_no_new_privs, set_pdeathsig};
use nix::sys::quota::{QuotaType, quotactl_get};
use nix::sys::signal::Signal;
use nix::unistd::ForkResult;
use shared::ContainerUid;
use shared::settings::CONTAINERS;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// What is answered where there is no number.
const NONE: u64 = u64::MAX;
/// How long the process may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The process, as the collector sees it. It ends with the socket.
pub struct Quotas {
    socket: UnixStream,
    /// The number of the last question.
    asked: u32,
    /// Why the process is not asked again in this round. A frozen file system holds it up for each
    /// container, and a round must not take the time limit for each.
    failure: Option<String>,
}

impl Quotas {
    /// Forks it, from root. Nothing if the containers are on no device that could have quotas.
    pub fn start(identity: &Identity) -> Result<Option<Self>> {
        let Some(device) = device_of(CONTAINERS).ok().flatten() else { return Ok(None) };
        let (ours, theirs) = UnixStream::pair().context("make a socket")?;
        let ForkResult::Parent { .. } = fork().context("fork")? else {
            drop(ours);
            if assume(identity, &theirs).is_ok() {
                let _ = serve(&theirs, Path::new(&device));
            }
            exit_now(0)
        };
        ours.set_read_timeout(Some(TIMEOUT))?;
        ours.set_write_timeout(Some(TIMEOUT))?;
        Ok(Some(Self { socket: ours, asked: 0, failure: None }))
    }

    /// The bytes that a container has on its disk. `None` if there is no quota, or if the process
    /// has failed to answer in this round.
    pub fn used_bytes(&mut self, uid: ContainerUid) -> Option<u64> {
        if self.failure.is_some() {
            return None;
        }
        match self.ask(uid) {
            Ok(bytes) => Some(bytes).filter(|bytes| *bytes != NONE),
            Err(error) => {
                self.failure = Some(match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        format!("the process that reads quotas did not answer within {} s", TIMEOUT.as_secs())
                    }
                    _ => format!("the process that reads quotas has ended; restart the collector ({error})"),
                });
                None
            }
        }
    }

    /// Ends a round: the next one asks again. Returns why this one did not get every answer.
    pub fn end_round(&mut self) -> Option<String> {
        self.failure.take()
    }

    fn ask(&mut self, uid: ContainerUid) -> io::Result<u64> {
        self.asked = self.asked.wrapping_add(1);
        self.socket.write_all(&[self.asked.to_be_bytes(), uid.get().to_be_bytes()].concat())?;
        loop {
            let (mut number, mut bytes) = ([0; 4], [0; 8]);
            self.socket.read_exact(&mut number)?;
            self.socket.read_exact(&mut bytes)?;
            // An answer that came too late is another question's.
            if u32::from_be_bytes(number) == self.asked {
                return Ok(u64::from_be_bytes(bytes));
            }
        }
    }
}

/// Becomes the user, and keeps only CAP_SYS_ADMIN.
fn assume(identity: &Identity, socket: &UnixStream) -> Result<()> {
    close_all_but(socket)?;
    let (uid, gid) = identity.ids();
    let kept: CapsHashSet = [Capability::CAP_SYS_ADMIN].into_iter().collect();
    // The bounding set can only be changed with CAP_SETPCAP, which the unit does not give;
    // no_new_privs makes it mean nothing.
    let _ = limit_bounding_set(Capability::CAP_SYS_ADMIN.bitmask());
    set_keepcaps(true)?;
    set_groups(&[gid])?;
    become_user(uid, gid)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        with_errno(|| caps::set(None, set, &kept))?;
    }
    if join::sys::try_to_become_root() {
        bail!("privileges are left");
    }
    set_no_new_privs()?;
    join::sys::set_not_dumpable()?;
    Ok(set_pdeathsig(Signal::SIGKILL)?)
}

fn serve(mut socket: &UnixStream, device: &Path) -> io::Result<()> {
    loop {
        let (mut number, mut uid) = ([0; 4], [0; 4]);
        socket.read_exact(&mut number)?;
        socket.read_exact(&mut uid)?;
        let uid = ContainerUid::new(u32::from_be_bytes(uid));
        let quota = uid.and_then(|uid| quotactl_get(QuotaType::USRQUOTA, device, uid.get() as i32).ok());
        let bytes = quota.and_then(|quota| quota.occupied_space()).unwrap_or(NONE);
        socket.write_all(&[&number[..], &bytes.to_be_bytes()].concat())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(number: u32) -> ContainerUid {
        ContainerUid::new(number).unwrap()
    }

    fn quotas_and_other_end() -> (Quotas, UnixStream) {
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        (Quotas { socket, asked: 0, failure: None }, theirs)
    }

    #[test]
    fn a_process_that_hangs_is_asked_once_in_a_round() {
        let (mut quotas, theirs) = quotas_and_other_end();
        theirs.set_nonblocking(true).unwrap();
        let questions = || {
            let mut bytes = Vec::new();
            let _ = (&theirs).read_to_end(&mut bytes);
            bytes.len() / 8
        };
        for _ in 0..2 {
            (30001..30010).for_each(|number| assert_eq!(quotas.used_bytes(uid(number)), None));
            assert_eq!(questions(), 1);
            assert!(quotas.end_round().is_some_and(|reason| reason.contains("did not answer within")));
        }
        assert_eq!(quotas.end_round(), None);
    }

    #[test]
    fn a_process_that_has_ended_is_reported() {
        let (mut quotas, theirs) = quotas_and_other_end();
        drop(theirs);
        assert_eq!(quotas.used_bytes(uid(30001)), None);
        assert!(quotas.end_round().is_some_and(|reason| reason.contains("has ended")));
    }

    #[test]
    fn a_late_answer_is_not_taken_for_the_next_ones() {
        let (mut quotas, mut theirs) = quotas_and_other_end();
        assert_eq!(quotas.used_bytes(uid(30001)), None, "the kernel takes its time");
        assert!(quotas.end_round().is_some());
        let mut question = [0; 8];
        theirs.read_exact(&mut question).unwrap();
        let mut answer = |question: [u8; 8], bytes: u64| {
            theirs.write_all(&[&question[..4], &bytes.to_be_bytes()].concat()).unwrap();
        };
        answer(question, 1);
        answer([0, 0, 0, 2, 0, 0, 0, 0], 2);
        assert_eq!(quotas.used_bytes(uid(30002)), Some(2));
    }

    #[test]
    fn an_answer_has_its_questions_number() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let question = [0, 0, 0, 7, 0, 0, 0x75, 0x31];
        ours.write_all(&question).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(serve(&theirs, Path::new("/nonexistent")).is_err(), "the other end is closed");
        drop(theirs);
        let mut answer = Vec::new();
        ours.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, [&question[..4], &NONE.to_be_bytes()].concat());
    }
}
