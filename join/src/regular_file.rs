//! Opens a regular file in a directory that others can change: never through a symbolic link, and
//! never waiting (O_NONBLOCK).
//!
//! The caller decides what to do about anything else that has the name.

use crate::safe_path;
use crate::sys::retry;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

/// Why a file was not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// Nothing has this name.
    Missing,
    /// A symbolic link.
    Link,
    /// A directory, a FIFO, a device or a socket.
    NotRegular,
    /// openat(2) or fstat(2) failed.
    Failed(Errno),
}

/// Opens a regular file for reading.
pub fn open(directory: impl AsFd, name: &str) -> Result<File, OpenError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = match retry(|| openat(&directory, name, flags, Mode::empty())) {
        Err(Errno::ENOENT) => return Err(OpenError::Missing),
        Err(Errno::ELOOP) => return Err(OpenError::Link),
        Err(Errno::ENXIO | Errno::ENODEV) => return Err(OpenError::NotRegular), // a socket, a device without a driver
        file => file.map_err(OpenError::Failed)?,
    };
    let status = fstat(&file).map_err(OpenError::Failed)?;
    if safe_path::kind(&status) != SFlag::S_IFREG {
        return Err(OpenError::NotRegular);
    }
    Ok(File::from(file))
}

/// All of a file, if it has no more bytes than this.
pub fn read(file: impl Read, max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= max))
}

/// The time of modification for a file that takes the place of one with this time. uWSGI's Emperor
/// compares whole seconds, so it would not see a second change within one.
pub fn time_after(former: SystemTime) -> SystemTime {
    let now = SystemTime::now();
    former.checked_add(Duration::from_secs(1)).map_or(now, |next| next.max(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::mkfifo;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let place = std::env::temp_dir().join(format!("unbit-regular-{}", std::process::id()));
        fs::create_dir(&place).unwrap();
        fs::write(place.join("file"), "text").unwrap();
        symlink("file", place.join("link")).unwrap();
        mkfifo(&place.join("fifo"), Mode::S_IRUSR).unwrap();
        fs::create_dir(place.join("directory")).unwrap();
        let _socket = UnixListener::bind(place.join("socket")).unwrap();
        let directory = File::open(&place).unwrap();
        let error = |name: &str| open(&directory, name).err();
        assert_eq!(error("none"), Some(OpenError::Missing));
        assert_eq!(error("link"), Some(OpenError::Link));
        for name in ["fifo", "directory", "socket"] {
            assert_eq!(error(name), Some(OpenError::NotRegular), "{name}");
        }
        assert_eq!(read(open(&directory, "file").unwrap(), 4).unwrap().as_deref(), Some(&b"text"[..]));
        assert_eq!(read(open(&directory, "file").unwrap(), 3).unwrap(), None);
        fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn a_second_change_within_a_second_has_another_time() {
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let now = SystemTime::now();
        assert!(seconds(time_after(now)) > seconds(now));
        let future = now + Duration::from_secs(1000);
        assert!(seconds(time_after(future)) > seconds(future));
        assert!(time_after(SystemTime::UNIX_EPOCH) >= now);
    }
}
