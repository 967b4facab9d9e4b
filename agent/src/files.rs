//! Files in directories of the node: read without following a symbolic link, and replaced
//! atomically, even if the machine loses power.
//!
//! A new file is written next to the old one, as `.NAME.PID.unbit-agent`, and renamed. uWSGI reads
//! no such name: its Emperors look at the end of a name.
//!
//! What is in a file is decided by the jobs.

use anyhow::{Context, Result, bail};
use join::regular_file::{self, OpenError};
use join::safe_path::{self, PathError};
use join::sys::retry;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::signal::kill;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat};
use nix::unistd::{Gid, Pid, Uid, UnlinkatFlags, fchown, fsync, geteuid, unlinkat};
use shared::escape;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Our directories have fewer names.
const MAX_NAMES: usize = 1 << 20;
/// An unfinished file that is this many seconds old will not be finished.
const UNFINISHED: u64 = 300;
/// What the name of a new file ends in until it is complete.
const SUFFIX: &str = ".unbit-agent";

/// A directory that only root and this process's user can change.
pub struct Directory {
    open: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens one. As root, every component of the path must be root's; as another user, the last
    /// one may be that user's.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = || escape::name(&path.display().to_string()).to_string();
        let error = |error: PathError| anyhow::anyhow!("{}: {error}", shown());
        let reopened = |place: &OwnedFd, name: &str| {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            retry(|| openat(place, name, flags, Mode::empty())).with_context(shown)
        };
        let open = if geteuid().is_root() {
            reopened(&safe_path::open_directory(path).map_err(error)?, ".")?
        } else {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
                bail!("{} is not a directory that can be used", shown())
            };
            let open = reopened(&safe_path::open_directory(parent).map_err(error)?, name)?;
            let status = fstat(&open)?;
            if status.st_mode & 0o002 != 0 || ![0, geteuid().as_raw()].contains(&status.st_uid) {
                bail!("{} has mode {:o} and belongs to uid {}", shown(), status.st_mode & 0o7777, status.st_uid);
            }
            open
        };
        Ok(Self { open, path: path.to_owned() })
    }

    /// The path of a file in it, for people.
    pub fn path_of(&self, name: &str) -> String {
        escape::name(&self.path.join(name).display().to_string()).to_string()
    }

    /// The names in it that are UTF-8, in order. If `sweeps`, unfinished files that no process
    /// writes any more are removed.
    pub fn names(&self, sweeps: bool) -> Result<Vec<String>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut listing =
            retry(|| Dir::openat(&self.open, ".", flags, Mode::empty())).with_context(|| self.path_of(""))?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let entry = entry.with_context(|| self.path_of(""))?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if names.len() >= MAX_NAMES {
                bail!("{} has more than {MAX_NAMES} files", self.path_of(""));
            }
            if name.starts_with('.') {
                if sweeps && self.is_abandoned(name) {
                    let _ = unlinkat(&self.open, name, UnlinkatFlags::NoRemoveDir);
                }
            } else {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether this is an unfinished file that nobody writes any more. The process in its name may
    /// have ended, and another one may have its number since.
    fn is_abandoned(&self, name: &str) -> bool {
        let Some(name_and_pid) = name.strip_suffix(SUFFIX) else { return false };
        let pid = name_and_pid.rsplit_once('.').and_then(|(_, pid)| pid.parse::<i32>().ok()).filter(|pid| *pid > 0);
        pid.is_none_or(|pid| kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH))
            || fstatat(&self.open, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|status| is_old(&status))
    }

    /// Reads a regular file and its status. `None` if it does not exist.
    pub fn read(&self, name: &str, max: u64) -> Result<Option<Content>> {
        let shown = || self.path_of(name);
        let file = match regular_file::open(&self.open, name) {
            Err(OpenError::Missing) => return Ok(None),
            Err(OpenError::Link) => bail!("{} is a symbolic link, and is left as it is", shown()),
            Err(OpenError::NotRegular) => bail!("{} is not a regular file, and is left as it is", shown()),
            Err(OpenError::Failed(errno)) => return Err(errno).with_context(shown),
            Ok(file) => file,
        };
        let status = fstat(&file).with_context(shown)?;
        let Some(bytes) = regular_file::read(file, max).with_context(shown)? else {
            bail!("{} is longer than {max} bytes, and is left as it is", shown())
        };
        Ok(Some(Content { bytes, status }))
    }

    /// Puts a whole new file in the place of an old one, whose owner and mode it keeps, or of none.
    pub fn replace(&self, name: &str, bytes: &[u8], old: Option<&Content>, mode: u32) -> Result<()> {
        // Another process can write the same file, such as `unbit-agent once` next to `run`.
        let new = format!(".{name}.{}{SUFFIX}", std::process::id());
        match unlinkat(&self.open, new.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno).with_context(|| self.path_of(&new)),
        }
        self.write(&new, bytes, old, mode)
            .and_then(|()| Ok(renameat(&self.open, new.as_str(), &self.open, name)?))
            .inspect_err(|_| {
                let _ = unlinkat(&self.open, new.as_str(), UnlinkatFlags::NoRemoveDir);
            })
            .and_then(|()| Ok(fsync(self.open.as_fd())?))
            .with_context(|| format!("write {}", self.path_of(name)))
    }

    fn write(&self, new: &str, bytes: &[u8], old: Option<&Content>, mode: u32) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.open, new, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        let mode = match old {
            Some(Content { status, .. }) => {
                if geteuid().is_root() {
                    fchown(&file, Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid)))?;
                }
                status.st_mode & 0o777
            }
            None => mode,
        };
        fchmod(&file, Mode::from_bits_truncate(mode))?;
        file.write_all(bytes)?;
        if let Some(Content { status, .. }) = old {
            let former = Duration::from_secs(u64::try_from(status.st_mtime).unwrap_or(0));
            file.set_modified(regular_file::time_after(SystemTime::UNIX_EPOCH + former))?;
        }
        Ok(fsync(file.as_fd())?)
    }

    /// Removes a file; one that is gone already is fine.
    pub fn remove(&self, name: &str) -> Result<()> {
        match unlinkat(&self.open, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno).with_context(|| format!("remove {}", self.path_of(name))),
        }
        fsync(self.open.as_fd()).with_context(|| format!("remove {}", self.path_of(name)))
    }
}

/// Whether nobody will finish a file that is unfinished.
pub fn is_old(status: &FileStat) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    u64::try_from(status.st_mtime).is_ok_and(|time| time.saturating_add(UNFINISHED) < now)
}

/// A file that was read.
pub struct Content {
    /// All of it.
    pub bytes: Vec<u8>,
    status: FileStat,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// A directory that is root's in all its steps, or nothing where the tests do not run as root.
    fn scratch(name: &str) -> Option<(PathBuf, Directory)> {
        if !geteuid().is_root() {
            println!("NOT TRIED: only root has a directory that nobody else can change");
            return None;
        }
        let path = Path::new("/run").join(format!("unbit-agent-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let directory = Directory::open(&path).unwrap();
        Some((path, directory))
    }

    #[test]
    fn a_file_is_replaced_and_keeps_its_owner_and_mode() {
        let Some((path, directory)) = scratch("replace") else { return };
        directory.replace("a.ini", b"one", None, 0o640).unwrap();
        let file = path.join("a.ini");
        assert_eq!(fs::read(&file).unwrap(), b"one");
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o640);
        std::os::unix::fs::chown(&file, Some(0), Some(33)).unwrap();
        let first = file.metadata().unwrap();
        let old = directory.read("a.ini", 3).unwrap().unwrap();
        directory.replace("a.ini", b"two", Some(&old), 0o600).unwrap();
        let second = file.metadata().unwrap();
        assert_eq!((second.mode(), second.gid()), (first.mode(), 33));
        assert_ne!(second.ino(), first.ino(), "another file has been renamed there");
        assert!(second.mtime() > first.mtime(), "the Emperor sees it");
        assert_eq!(fs::read(&file).unwrap(), b"two");
        directory.remove("a.ini").unwrap();
        directory.remove("a.ini").unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn what_is_no_regular_file_is_left_as_it_is() {
        let Some((path, directory)) = scratch("odd") else { return };
        symlink("/etc/passwd", path.join("link")).unwrap();
        fs::create_dir(path.join("directory")).unwrap();
        nix::unistd::mkfifo(&path.join("fifo"), Mode::S_IRUSR).unwrap();
        fs::write(path.join("long"), [0; 11]).unwrap();
        let cause = |name: &str| format!("{:#}", directory.read(name, 10).err().unwrap());
        assert!(cause("link").contains("is a symbolic link"), "{}", cause("link"));
        assert!(cause("directory").contains("is not a regular file"));
        assert!(cause("fifo").contains("is not a regular file"));
        assert!(cause("long").contains("is longer than 10 bytes"));
        assert!(directory.read("none", 10).unwrap().is_none());
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn what_was_left_unfinished_goes() {
        let Some((path, directory)) = scratch("sweep") else { return };
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        let [ended, running] = [child.id(), 1].map(|pid| format!(".30002.ini.{pid}.unbit-agent"));
        let old = ".30003.ini.1.unbit-agent";
        for name in ["30001.ini", ended.as_str(), ".unbit-agent", old, running.as_str(), ".keep"] {
            fs::write(path.join(name), "").unwrap();
        }
        File::options().append(true).open(path.join(old)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(directory.names(false).unwrap(), ["30001.ini"]);
        assert!(path.join(&ended).exists());
        assert_eq!(directory.names(true).unwrap(), ["30001.ini"]);
        let left =
            [ended.as_str(), ".unbit-agent", old, running.as_str(), ".keep"].map(|name| path.join(name).exists());
        assert_eq!(left, [false, false, false, true, true]);
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_change_is_refused() {
        let Some((path, _)) = scratch("others") else { return };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let open = Directory::open(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&path, Some(33), Some(33)).unwrap();
        let theirs = Directory::open(&path);
        fs::remove_dir_all(&path).unwrap();
        assert!(format!("{:#}", open.err().unwrap()).contains("root alone must be able to write there"));
        assert!(theirs.is_err(), "a directory of www-data's, for root");
    }
}
