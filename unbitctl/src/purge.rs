//! Removes a tenant's directory with everything in it: symbolic links are removed and never
//! followed, mount points are kept, and no depth or number of files needs more than a few
//! descriptors.
//!
//! Each directory is opened by its name in an open directory, and must be a directory on the same
//! mount. A subdirectory that is not empty is renamed into the top directory, so that the tree is
//! never deeper than one level. If the file system cannot rename it (a subvolume of btrfs, an
//! inherited project of XFS or ext4, encryption, a full disk), the walk descends into it instead,
//! one level after the other.

use crate::sys::make_subvolume_writable;
use anyhow::{Context, Result, bail};
use join::proc::Inode;
use join::safe_path;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How many names are read at a time: a directory may have millions.
const BATCH: usize = 1024;

/// Removes the directory `name` of `parent`, which must be root's. Calls `on_removed` with the
/// number of files removed so far, and ends if that fails.
pub fn purge(parent: &Path, name: &str, on_removed: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
    let shown = parent.join(name).display().to_string();
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = nix::fcntl::open(parent, flags, Mode::empty()).with_context(|| parent.display().to_string())?;
    let name = CString::new(name)?;
    let top = match open(&parent, &name) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EXDEV) => bail!("{shown} is a mount point: umount {shown}"),
        Err(errno) => return Err(errno).with_context(|| shown.clone()),
    };
    let mut tree = Tree { top: top.as_fd(), moved: 0, removed: 0, on_removed };
    tree.empty_top().with_context(|| format!("empty {shown}"))?;
    drop(top);
    unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir).with_context(|| format!("remove {shown}"))
}

struct Tree<'a> {
    top: BorrowedFd<'a>,
    moved: u64,
    removed: u64,
    on_removed: &'a mut dyn FnMut(u64) -> Result<()>,
}

impl Tree<'_> {
    fn empty_top(&mut self) -> Result<()> {
        loop {
            let names = some_names(self.top)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                if !self.remove(self.top, &name)? {
                    self.empty(&name)?;
                }
            }
        }
    }

    /// Empties and removes a directory of the top. Non-empty subdirectories are moved to the top.
    fn empty(&mut self, name: &CStr) -> Result<()> {
        let directory = match open(self.top, name) {
            Ok(directory) => directory,
            Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EXDEV) => bail!("{}: a file system is mounted there", shown(name)),
            Err(errno) => return Err(errno).with_context(|| shown(name)),
        };
        loop {
            let names = some_names(directory.as_fd())?;
            if names.is_empty() {
                break;
            }
            for inner in names {
                if !self.remove(directory.as_fd(), &inner)? && !self.move_up(directory.as_fd(), &inner)? {
                    self.remove_in_place(directory.as_fd(), &inner)?;
                }
            }
        }
        drop(directory);
        match unlinkat(self.top, name, UnlinkatFlags::RemoveDir) {
            // A process still makes files there; the top is read again.
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY) => self.count(),
            Err(errno) => Err(errno).with_context(|| shown(name)),
        }
    }

    /// Removes a directory with all that is in it, however deep, and moves nothing: only the
    /// directory that it is in is open at a time.
    fn remove_in_place(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let mut directory = match open(parent, name) {
            Ok(directory) => directory,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno).with_context(|| shown(name)),
        };
        // On the way up, `..` must be the directory that was left on the way down.
        let mut above: Vec<(Inode, CString)> = Vec::new();
        loop {
            let names = some_names(directory.as_fd())?;
            let mut full = None;
            for inner in &names {
                if !self.remove(directory.as_fd(), inner)? {
                    full = Some(inner);
                    break;
                }
            }
            if let Some(inner) = full {
                let below = open(&directory, inner).with_context(|| shown(inner))?;
                above.push((Inode::from(fstat(&directory)?), inner.clone()));
                directory = below;
            } else if names.is_empty() {
                let Some((left, inner)) = above.pop() else { break };
                directory = open_parent(&directory).with_context(|| shown(&inner))?;
                if Inode::from(fstat(&directory)?) != left {
                    bail!("{}: another process moves directories there", shown(&inner));
                }
            }
        }
        drop(directory);
        self.remove(parent, name).map(drop)
    }

    /// Removes a file or an empty directory; false for a non-empty directory.
    fn remove(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
        let is_directory = match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) => is_directory(&status),
            Err(Errno::ENOENT) => return Ok(true),
            Err(errno) => return Err(errno).with_context(|| shown(name)),
        };
        let how = if is_directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        let done = match unlinkat(directory, name, how) {
            // A snapshot of btrfs; its own directory is the first of it that is seen.
            Err(Errno::EROFS) if make_subvolume_writable(directory).is_ok() => unlinkat(directory, name, how),
            done => done,
        };
        match done {
            Ok(()) => self.count().map(|()| true),
            Err(Errno::ENOENT) => Ok(true),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if is_directory => Ok(false),
            // Another kind of file has taken its place: it is looked at again.
            Err(Errno::EISDIR | Errno::ENOTDIR) => Ok(true),
            Err(Errno::EBUSY) => bail!("{}: a file system is mounted there", shown(name)),
            Err(errno) => Err(errno).with_context(|| shown(name)),
        }
    }

    /// Moves a directory to the top; false if the file system cannot.
    fn move_up(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
        loop {
            self.moved += 1;
            let new = CString::new(format!(".unbitctl-{}", self.moved))?;
            match renameat2(directory, name, self.top, new.as_c_str(), RenameFlags::RENAME_NOREPLACE) {
                Ok(()) | Err(Errno::ENOENT) => return Ok(true),
                Err(Errno::EEXIST) => {}
                Err(Errno::EBUSY) => bail!("{}: a file system is mounted there", shown(name)),
                // On a full disk, for one, there is no room for one more name at the top.
                Err(_) => return Ok(false),
            }
        }
    }

    fn count(&mut self) -> Result<()> {
        self.removed += 1;
        (self.on_removed)(self.removed)
    }
}

/// A real directory of this name, on the mount of the one that it is in.
fn open(parent: impl AsFd, name: &CStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH;
    openat2(parent, name, OpenHow::new().flags(flags).resolve(resolve))
}

/// The directory that this one is in, on the same mount.
fn open_parent(directory: &OwnedFd) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat2(directory, c"..", OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_XDEV))
}

fn is_directory(status: &FileStat) -> bool {
    safe_path::kind(status) == SFlag::S_IFDIR
}

/// Some of the names in a directory, as the kernel has them now.
fn some_names(directory: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(directory, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}

fn shown(name: &CStr) -> String {
    shared::escape::name(name.to_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("unbitctl-purge-{name}-{}", std::process::id()));
        fs::create_dir_all(place.join("30001")).unwrap();
        place
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let place = place("links");
        let top = place.join("30001");
        fs::create_dir_all(place.join("outside/deep")).unwrap();
        fs::write(place.join("outside/deep/file"), "kept").unwrap();
        fs::create_dir_all(top.join("a/b")).unwrap();
        symlink(place.join("outside"), top.join("link")).unwrap();
        symlink("../../../outside", top.join("a/b/link")).unwrap();
        symlink("/nowhere", top.join("broken")).unwrap();
        nix::unistd::mkfifo(&top.join("fifo"), Mode::S_IRWXU).unwrap();
        fs::create_dir(top.join(".unbitctl-1")).unwrap();
        fs::write(top.join(".unbitctl-1/file"), "a name of ours that is taken").unwrap();
        let mut last = 0;
        purge(&place, "30001", &mut |count| {
            last = count;
            Ok(())
        })
        .unwrap();
        assert!(!top.exists());
        assert_eq!(last, 8, "four that are no directories, one in a directory, three directories");
        assert_eq!(fs::read_to_string(place.join("outside/deep/file")).unwrap(), "kept");
        purge(&place, "30001", &mut |_| Ok(())).unwrap();
        symlink(place.join("outside"), place.join("30001")).unwrap();
        let error = purge(&place, "30001", &mut |_| Ok(())).unwrap_err();
        assert!(format!("{error:#}").contains("ENOTDIR") || format!("{error:#}").contains("ELOOP"), "{error:#}");
        fs::remove_dir_all(&place).unwrap();
    }

    /// 20,000 levels are a path of 40,000 bytes, and more than there are descriptors.
    #[test]
    fn no_tree_is_too_deep_and_no_directory_too_full() {
        let place = place("deep");
        let mut directory = nix::fcntl::open(&place.join("30001"), OFlag::O_PATH, Mode::empty()).unwrap();
        for _ in 0..20_000 {
            nix::sys::stat::mkdirat(&directory, "d", Mode::S_IRWXU).unwrap();
            directory = nix::fcntl::openat(&directory, "d", OFlag::O_PATH, Mode::empty()).unwrap();
        }
        for number in 0..3 * BATCH {
            fs::write(place.join(format!("30001/{number}")), "").unwrap();
        }
        purge(&place, "30001", &mut |_| Ok(())).unwrap();
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
        fs::remove_dir(&place).unwrap();
    }

    #[test]
    fn what_cannot_be_moved_is_removed_where_it_is() {
        let place = place("there");
        let top = nix::fcntl::open(&place.join("30001"), OFlag::O_PATH, Mode::empty()).unwrap();
        fs::create_dir(place.join("outside")).unwrap();
        let mut directory = top.try_clone().unwrap();
        for level in 0..3_000 {
            nix::sys::stat::mkdirat(&directory, "d", Mode::S_IRWXU).unwrap();
            directory = nix::fcntl::openat(&directory, "d", OFlag::O_PATH, Mode::empty()).unwrap();
            if level % 1_000 == 0 {
                for number in 0..BATCH + 1 {
                    nix::unistd::symlinkat(&place.join("outside"), &directory, format!("{number}").as_str()).unwrap();
                    nix::sys::stat::mkdirat(&directory, format!("d{number}").as_str(), Mode::S_IRWXU).unwrap();
                }
            }
        }
        fs::write(place.join("30001/d/d/file"), "").unwrap();
        let mut tree = Tree { top: top.as_fd(), moved: 0, removed: 0, on_removed: &mut |_| Ok(()) };
        tree.remove_in_place(top.as_fd(), c"d").unwrap();
        tree.remove_in_place(top.as_fd(), c"d").unwrap();
        assert_eq!((tree.moved, tree.removed), (0, 3_000 + 3 * 2 * (BATCH as u64 + 1) + 1));
        assert_eq!(fs::read_dir(place.join("30001")).unwrap().count(), 0);
        fs::remove_dir(place.join("outside")).unwrap();
        fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn it_ends_when_asked_and_goes_on_later() {
        let place = place("ends");
        for number in 0..10 {
            fs::write(place.join(format!("30001/{number}")), "").unwrap();
        }
        let error = purge(&place, "30001", &mut |count| if count == 5 { bail!("enough") } else { Ok(()) }).unwrap_err();
        assert!(format!("{error:#}").contains("enough"));
        assert_eq!(fs::read_dir(place.join("30001")).unwrap().count(), 5);
        purge(&place, "30001", &mut |_| Ok(())).unwrap();
        fs::remove_dir(&place).unwrap();
    }
}
