//! Opens a path that nobody but root can change, as OpenSSH's safe_path() and sudo's secure_path.c
//! check one.
//!
//! Each component is opened by itself. None may be a directory or a symbolic link that belongs to
//! another user, nor a directory that others may write to. Below the mount point of a cgroup
//! hierarchy the owner does not matter: an engine gives a container's cgroup to the container's
//! root.

use crate::sys::retry;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

/// The kernel follows as many symbolic links in one path (path_resolution(7)).
const MAX_SYMLINKS: usize = 40;

const OPEN_COMPONENT: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Why a path was not opened. The text names the component.
#[derive(Debug)]
pub enum PathError {
    /// A component does not exist. The second value says whether the directory before it is a
    /// cgroup.
    Missing(String, bool),
    /// Another user can change a component, or it is not a directory.
    Refused(String),
    /// A system call failed.
    Failed(String, Errno),
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name, _) => write!(f, "there is no {name}"),
            Self::Refused(cause) => f.write_str(cause),
            Self::Failed(name, errno) => write!(f, "{name}: {errno}"),
        }
    }
}

/// Opens the directory at the end of an absolute path.
pub fn open_directory(path: &Path) -> Result<OwnedFd, PathError> {
    let mut here = open_root()?;
    let mut left = components(path);
    let mut links = 0;
    while let Some(name) = left.pop() {
        let failed = |errno| PathError::Failed(name_of(&name), errno);
        if name == "/" {
            here = open_root()?;
            continue;
        }
        let next = match retry(|| openat(&here, name.as_os_str(), OPEN_COMPONENT, Mode::empty())) {
            Err(Errno::ENOENT) => return Err(PathError::Missing(name_of(&name), is_cgroup(&here).map_err(failed)?)),
            next => next.map_err(failed)?,
        };
        let status = retry(|| fstat(&next)).map_err(failed)?;
        match kind(&status) {
            SFlag::S_IFLNK => {
                links += 1;
                let name = name_of(&name);
                if status.st_uid != 0 {
                    let cause = format!("{name} is a symbolic link that belongs to uid {}", status.st_uid);
                    return Err(PathError::Refused(cause));
                }
                if links > MAX_SYMLINKS {
                    return Err(PathError::Refused(format!("{name}: more than {MAX_SYMLINKS} symbolic links")));
                }
                let text = retry(|| readlinkat(&next, "")).map_err(failed)?;
                left.extend(components(Path::new(&text)));
            }
            SFlag::S_IFDIR => {
                if !is_cgroup(&next).map_err(failed)? {
                    must_belong_to_root(&status)
                        .map_err(|seen| PathError::Refused(format!("{} {seen}", name_of(&name))))?;
                }
                here = next;
            }
            _ => return Err(PathError::Refused(format!("{} is not a directory", name_of(&name)))),
        }
    }
    Ok(here)
}

/// Refuses a file or directory that root does not own, or that others may write to. The error says
/// what it is instead.
pub fn must_belong_to_root(status: &FileStat) -> Result<(), String> {
    if status.st_uid == 0 && status.st_mode & 0o022 == 0 {
        return Ok(());
    }
    Err(format!(
        "has mode {:o} and belongs to uid {}, and root alone must be able to write there",
        status.st_mode, status.st_uid
    ))
}

/// The type of a file.
pub fn kind(status: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT
}

/// Whether a directory is on a file system of cgroups, of either version.
pub fn is_cgroup(directory: &OwnedFd) -> nix::Result<bool> {
    let kinds = [libc::CGROUP_SUPER_MAGIC, libc::CGROUP2_SUPER_MAGIC].map(|magic| FsType(magic as _));
    Ok(kinds.contains(&retry(|| fstatfs(directory))?.filesystem_type()))
}

fn open_root() -> Result<OwnedFd, PathError> {
    retry(|| open("/", OPEN_COMPONENT | OFlag::O_DIRECTORY, Mode::empty()))
        .map_err(|errno| PathError::Failed("/".to_owned(), errno))
}

/// The components of a path, the first one last.
fn components(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| component.as_os_str().to_owned();
    path.components().rev().filter(|component| *component != Component::CurDir).map(name).collect()
}

/// Quotes a name for a message.
fn name_of(name: &OsStr) -> String {
    format!("{name:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn the_first_step_is_taken_first() {
        assert_eq!(components(Path::new("/a/./b/../c/")), ["c", "..", "b", "a", "/"].map(OsString::from));
        assert_eq!(components(Path::new("../x")), ["x", ".."].map(OsString::from));
    }

    #[test]
    fn others_must_not_be_able_to_change_a_step() {
        // Root owns /tmp, and every user may write there.
        let wrong = |path: &Path| match open_directory(path) {
            Err(PathError::Refused(text)) => text,
            other => panic!("{path:?}: {other:?}"),
        };
        assert!(wrong(Path::new("/tmp")).contains("root alone"));
        assert!(wrong(Path::new("/etc/passwd")).contains("not a directory"));
        assert!(
            matches!(open_directory(Path::new("/etc/no/such")), Err(PathError::Missing(name, false)) if name == "\"no\"")
        );
        open_directory(Path::new("/etc/../usr/./share")).unwrap();
        if !nix::unistd::getuid().is_root() {
            return;
        }
        let directory = Path::new("/run").join(format!("unbit-safe-path-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        symlink("loop", directory.join("loop")).unwrap();
        symlink("/etc", directory.join("etc")).unwrap();
        symlink("/etc", directory.join("theirs")).unwrap();
        std::os::unix::fs::lchown(directory.join("theirs"), Some(30001), None).unwrap();
        let results = ["loop", "etc", "theirs"].map(|name| open_directory(&directory.join(name)));
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o775)).unwrap();
        let writable = open_directory(&directory);
        fs::remove_dir_all(&directory).unwrap();
        let [endless, etc, theirs] = results;
        assert!(matches!(&endless, Err(PathError::Refused(text)) if text.contains("more than 40")), "{endless:?}");
        assert!(etc.is_ok(), "{etc:?}");
        assert!(matches!(theirs, Err(PathError::Refused(text)) if text.contains("to uid 30001")));
        assert!(matches!(writable, Err(PathError::Refused(text)) if text.contains("mode 40775")));
    }
}
