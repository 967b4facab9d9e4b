//! How many sessions of ssh a container has: the slots that sshd's monitors hold, each a record lock on one byte of a file of root's.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The directory of these files, one for each container that has had a session since boot.
pub const SLOTS: &str = "/run/unbit/sessions";

/// The largest number that pam_unbit's option `sessions=` takes.
const MOST: libc::off_t = 1024;

/// The number of slots that are held. `None` if only root can see it.
pub fn count(directory: &Path, uid: u32) -> Option<usize> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    match File::options().read(true).custom_flags(flags.bits()).open(directory.join(uid.to_string())) {
        Ok(file) => held(&file, 0..MOST).ok(),
        Err(error) if error.kind() == ErrorKind::NotFound => Some(0),
        Err(_) => None,
    }
}

/// Counts the locked bytes of a range. fcntl(2) reports one lock of the range, in no particular order, so the bytes on either side are
/// asked about too.
fn held(file: &File, range: Range<libc::off_t>) -> nix::Result<usize> {
    let (mut count, mut left) = (0, vec![range]);
    while let Some(range) = left.pop().filter(|range| !range.is_empty()) {
        if let Some(lock) = lock_in(file, &range)? {
            let lock = lock.start.max(range.start)..lock.end.min(range.end);
            if lock.is_empty() {
                return Err(Errno::EPROTO);
            }
            count += usize::try_from(lock.end - lock.start).unwrap_or(0);
            left.extend([range.start..lock.start, lock.end..range.end].into_iter().filter(|part| !part.is_empty()));
        }
    }
    Ok(count)
}

/// A lock of another process in this range.
fn lock_in(file: &File, range: &Range<libc::off_t>) -> nix::Result<Option<Range<libc::off_t>>> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start,
        l_len: range.end - range.start,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_GETLK(&mut lock))?;
    // A length of 0 reaches to the end of the file, wherever that will be.
    let end = if lock.l_len == 0 { libc::off_t::MAX } else { lock.l_start + lock.l_len };
    Ok((lock.l_type != libc::F_UNLCK as libc::c_short).then_some(lock.l_start..end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    /// Another process that holds these bytes: the locks of the process that asks are not reported to it.
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
        let directory = std::env::temp_dir().join(format!("unbitctl-sessions-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("30001");
        assert_eq!(count(&directory, 30001), Some(0), "no session since boot");
        std::fs::write(&path, "").unwrap();
        assert_eq!(count(&directory, 30001), Some(0));

        let first = Holder::of(&path, "0 1 7");
        assert_eq!(count(&directory, 30001), Some(3), "neighbours of one process are one lock");
        let second = Holder::of(&path, "2 6 1023");
        assert_eq!(count(&directory, 30001), Some(6));
        let beyond = Holder::of(&path, "1024");
        assert_eq!(count(&directory, 30001), Some(6), "that is no slot");
        assert_eq!(count(&directory, 30000), Some(0), "nor are another container's");
        drop(first);
        assert_eq!(count(&directory, 30001), Some(3), "a lock ends with its process, even by SIGKILL");
        drop((second, beyond));
        assert_eq!(count(&directory, 30001), Some(0));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
