//! Counts and limits the sessions of a container.
//!
//! Each session holds a record lock (F_SETLK of fcntl(2)) on one byte of
//! `/run/unbit/sessions/30001`, its slot. The kernel releases the lock when sshd's monitor ends,
//! however it ends, so nothing has to be cleaned up or can be miscounted. The file also has a
//! [`Record`](crate::session_record::Record) for each slot. Only a record of the process that holds
//! the lock counts.

use crate::refusal::{Context, Reason, Refusal};
use crate::run_directory;
use crate::session_record::{Record, SIZE};
use crate::sys::retry;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use shared::ContainerUid;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// The largest number of sessions that `sessions=` allows.
pub const MAX_SESSIONS: u32 = 1024;

/// A session's slot. It is released when the process that took it drops this or ends.
///
/// A process must not hold two slots of one container: closing a file releases all locks that the
/// process has on it (fcntl(2)).
#[derive(Debug)]
pub struct Slot {
    file: File,
    number: u32,
    /// The container that it counts for.
    pub container: ContainerUid,
}

impl Slot {
    /// Takes the first free slot below the limit.
    pub fn take(container: ContainerUid, limit: u32) -> Result<Self, Refusal> {
        let file = run_directory::open_file("sessions", &container.to_string())?;
        let counting = "count the container's sessions";
        for number in 0..limit {
            let mut lock = slot_lock(number);
            lock.l_type = libc::F_WRLCK as _;
            match retry(|| fcntl(&file, FcntlArg::F_SETLK(&lock))) {
                Ok(_) if has_room(&file, limit).context(Reason::Broken, counting)? => {
                    return Ok(Self { file: file.into(), number, container });
                }
                Ok(_) => break,
                Err(Errno::EAGAIN | Errno::EACCES) => {}
                Err(errno) => return Err(Refusal::failed(Reason::Broken, counting, errno)),
            }
        }
        let cause = format!("{limit} sessions are open (sessions={limit})");
        Err(Refusal::new(Reason::TooManySessions, cause))
    }

    /// Writes the record. Without one, the lock still shows the session.
    pub fn describe(&self, record: &Record) -> io::Result<()> {
        self.file.write_all_at(&record.to_bytes(), offset_of(self.number))
    }
}

/// Where the record of a slot begins.
fn offset_of(number: u32) -> u64 {
    u64::from(number) * SIZE as u64
}

/// Where the files are, one for each container that has had a session since boot.
pub const DIRECTORY: &str = "/run/unbit/sessions";

/// The number of open sessions; `None` if it cannot be read, as by any user but root.
pub fn count(directory: &Path, container: ContainerUid) -> Option<usize> {
    let Some(file) = open_to_read(directory, container).ok()? else { return Some(0) };
    locked_slots(&file, 0..MAX_SESSIONS.into()).ok().map(|held| held.len())
}

/// A session that is open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenSession {
    /// The process that holds its lock: sshd's monitor, or the application that entered by
    /// `join=now`.
    pub pid: i32,
    /// The record of that process; `None` until it is written.
    pub record: Option<Record>,
}

/// All sessions of a container.
pub fn open_sessions(directory: &Path, container: ContainerUid) -> io::Result<Vec<OpenSession>> {
    let Some(file) = open_to_read(directory, container)? else { return Ok(Vec::new()) };
    let open = locked_slots(&file, 0..MAX_SESSIONS.into())?.into_iter().map(|(slot, pid)| {
        let read = || {
            let mut bytes = [0; SIZE];
            file.read_exact_at(&mut bytes, offset_of(slot)).ok()?;
            Record::parse(&bytes)
        };
        // A record that reads the same twice was not being written.
        let record = read().filter(|record| Some(record) == read().as_ref());
        OpenSession { pid, record: record.filter(|record| i32::try_from(record.pid) == Ok(pid)) }
    });
    Ok(open.collect())
}

/// The containers that have had a session since boot.
pub fn containers(directory: &Path) -> io::Result<Vec<ContainerUid>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut all: Vec<_> =
        entries.filter_map(|entry| ContainerUid::parse(entry.ok()?.file_name().as_encoded_bytes())).collect();
    all.sort_by_key(|container| container.get());
    Ok(all)
}

/// A container's file, if it has had a session since boot.
fn open_to_read(directory: &Path, container: ContainerUid) -> io::Result<Option<File>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    match File::options().read(true).custom_flags(flags.bits()).open(directory.join(container.to_string())) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the limit holds with slots above it counted as well, which were taken when the limit was
/// higher.
fn has_room(file: &OwnedFd, limit: u32) -> nix::Result<bool> {
    let above = limit.into()..MAX_SESSIONS.into();
    Ok(locked_slots(file, above)?.is_empty() || locked_slots(file, 0..MAX_SESSIONS.into())?.len() < limit as usize)
}

/// The locked bytes of a range, each with the process that holds it. F_GETLK reports any one lock
/// in a range, so the bytes on both sides of it are queried again.
fn locked_slots(file: &impl AsFd, range: Range<libc::off_t>) -> nix::Result<Vec<(u32, i32)>> {
    let (mut held, mut left) = (Vec::new(), vec![range]);
    while let Some(range) = left.pop().filter(|range| !range.is_empty()) {
        if let Some((lock, pid)) = any_lock_in(file, &range)? {
            let lock = lock.start.max(range.start)..lock.end.min(range.end);
            if lock.is_empty() {
                return Err(Errno::EPROTO);
            }
            held.extend(lock.clone().filter_map(|byte| Some((u32::try_from(byte).ok()?, pid))));
            left.extend([range.start..lock.start, lock.end..range.end].into_iter().filter(|part| !part.is_empty()));
        }
    }
    Ok(held)
}

/// Any lock of another process in this range, and the pid of that process.
fn any_lock_in(file: &impl AsFd, range: &Range<libc::off_t>) -> nix::Result<Option<(Range<libc::off_t>, i32)>> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start,
        l_len: range.end - range.start,
        l_pid: 0,
    };
    retry(|| fcntl(file.as_fd(), FcntlArg::F_GETLK(&mut lock)))?;
    // A length of 0 means up to the end of the file.
    let end = if lock.l_len == 0 { libc::off_t::MAX } else { lock.l_start + lock.l_len };
    Ok((lock.l_type != libc::F_UNLCK as libc::c_short).then_some((lock.l_start..end, lock.l_pid)))
}

fn slot_lock(number: u32) -> libc::flock {
    libc::flock {
        l_type: libc::F_UNLCK as _,
        l_whence: libc::SEEK_SET as _,
        l_start: number.into(),
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    /// Another process that holds these bytes: the locks of the process that asks are not reported
    /// to it.
    struct Holder(Child);

    impl Holder {
        fn of(path: &Path, bytes: &str) -> Self {
            const SCRIPT: &str = "\
import fcntl, sys, time
file = open(sys.argv[1], 'r+b')
for byte in sys.argv[2].split():
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(byte))
print(flush=True)
time.sleep(60)";
            let mut command = Command::new("python3");
            command.args(["-c", SCRIPT]).arg(path).arg(bytes).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let read = BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
            assert_eq!(read, 1, "the locks are held");
            Self(child)
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            drop((self.0.kill(), self.0.wait()));
        }
    }

    #[test]
    fn each_locked_byte_is_a_session_whoever_holds_it() {
        let directory = std::env::temp_dir().join(format!("unbit-sessions-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("30001");
        let sessions = |uid| count(&directory, ContainerUid::new(uid).unwrap());
        assert_eq!(sessions(30001), Some(0), "no session since boot");
        std::fs::write(&path, "").unwrap();
        assert_eq!(sessions(30001), Some(0));

        let first = Holder::of(&path, "0 1 7");
        assert_eq!(sessions(30001), Some(3), "neighbours of one process are one lock");
        let pid = i32::try_from(first.0.id()).unwrap();
        let described = |slot: u32, pid: i32| {
            let record = Record { pid: pid.try_into().unwrap(), service: "sshd".into(), ..Record::default() };
            let file = File::options().write(true).open(&path).unwrap();
            // Its lock is the other process's, and closing the file here takes nothing from that.
            Slot { file, number: slot, container: ContainerUid::new(30001).unwrap() }.describe(&record).unwrap();
            record
        };
        let (mine, _other) = (described(7, pid), described(1, pid + 1));
        let mut open = open_sessions(&directory, ContainerUid::new(30001).unwrap()).unwrap();
        open.sort_by_key(|open| open.record.is_none());
        let bare = OpenSession { pid, record: None };
        assert_eq!(
            open,
            [OpenSession { pid, record: Some(mine) }, bare.clone(), bare],
            "what another process wrote is not theirs"
        );
        assert_eq!(containers(&directory).unwrap(), [ContainerUid::new(30001).unwrap()]);
        let second = Holder::of(&path, "2 6 1023");
        assert_eq!(sessions(30001), Some(6));
        let beyond = Holder::of(&path, "1024");
        assert_eq!(sessions(30001), Some(6), "that is no slot");
        assert_eq!(sessions(30000), Some(0), "nor are another container's");
        drop(first);
        assert_eq!(sessions(30001), Some(3), "a lock ends with its process, even by SIGKILL");
        drop((second, beyond));
        assert_eq!(sessions(30001), Some(0));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
