//! Work among a tenant's files.
//!
//! The directory is the tenant's, and anything may be in it. So no root process opens a path below it. The one that does is the tenant, has no
//! other group and no capability, and is ended if it takes too long.

use crate::deadline::read_within;
use crate::power;
use crate::refusal::Refusal;
use crate::sys::{become_user, close_all_but, exit_now, fork, retry};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, pipe2, setsid};
use shared::{ContainerUid, escape};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// For the process that works there.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest answer, in bytes.
const LONGEST: usize = 2 << 20;

/// What its answer begins with.
const DONE: u8 = b'd';
const FAILED: u8 = b'f';

/// Does something in a process that is the container's user on the node, with no group and no power; and gives back what it says. For a
/// process that has one thread, as root.
pub fn run_as(uid: ContainerUid, work: impl FnOnce() -> Result<Vec<u8>, String>) -> Result<Vec<u8>, String> {
    let home = uid.home();
    let home = home.as_c_str().to_string_lossy();
    let failed = |step: &str, errno: Errno| format!("{home}: {step}: {errno}");
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("make a pipe", errno))?;
    let ForkResult::Parent { child } = fork().map_err(|errno| failed("fork", errno))? else {
        drop(reader);
        let (kind, text) = match become_it(uid, &writer).and_then(|()| work()) {
            Ok(text) => (DONE, text),
            Err(text) => (FAILED, text.into_bytes()),
        };
        let mut pipe = File::from(writer);
        let _ = pipe.write_all(&[kind]).and_then(|()| pipe.write_all(&text));
        exit_now(0)
    };
    drop(writer);
    let (text, is_whole) = read_within(&mut File::from(reader), LIMIT, LONGEST);
    let _ = kill(child, Signal::SIGKILL);
    if !is_whole {
        return Err(format!("{home}: its file system does not answer within {} s", LIMIT.as_secs()));
    }
    retry(|| waitpid(child, None)).map_err(|errno| failed("wait for the process that works there", errno))?;
    match text.split_first() {
        Some((&DONE, text)) => Ok(text.to_vec()),
        Some((&FAILED, text)) => Err(format!("{home}: {}", escape::line(&String::from_utf8_lossy(text)))),
        _ => Err(format!("{home}: the process that works there was killed")),
    }
}

fn become_it(uid: ContainerUid, kept: &OwnedFd) -> Result<(), String> {
    let refused = |refusal: Refusal| refusal.cause;
    let failed = |errno: Errno| errno.to_string();
    setsid().map_err(failed)?;
    close_all_but(kept).map_err(failed)?;
    umask(Mode::from_bits_truncate(0o077));
    power::leave_groups().map_err(refused)?;
    become_user(uid.get(), uid.get()).map_err(failed)?;
    power::give_up_all(uid, &[]).map_err(refused)?;
    set_pdeathsig(Signal::SIGKILL).map_err(failed) // now, because another uid takes it back
}
