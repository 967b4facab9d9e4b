//! Changes files atomically, even if the machine loses power.
//!
//! A new file is written next to the old one, as `.NAME.unbitctl`, and renamed. A hard link under a
//! second name keeps the old file, with its owner and mode. No program reads either name: PAM and
//! sshd_config.d look for other ones.
//!
//! Which changes can be undone is in [`journal`](super::journal).

use crate::report::lines_of;
use crate::rootfs::RootFs;
use crate::step::Change;
use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, chown};
use shared::escape;
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A change that is not made yet.
pub enum Pending {
    File {
        /// Its path on the node, with links followed.
        path: String,
        place: PathBuf,
        old: Option<String>,
        new: String,
        mode: u32,
    },
    Directory {
        path: String,
        place: PathBuf,
        uid: u32,
        gid: u32,
        mode: u32,
    },
}

/// The changes that are still to be made.
pub fn pending(node: &RootFs, changes: Vec<Change>) -> Result<Vec<Pending>> {
    let mut pending = Vec::new();
    for change in changes {
        match change {
            Change::File { path, content, mode } => {
                let place = resolve_new(node, &path)?;
                let old = read(&place)?;
                if old.as_ref() != Some(&content) {
                    let path = named(node, &place);
                    pending.push(Pending::File { path, place, old, new: content, mode });
                }
            }
            Change::Directory { path, uid, gid, mode } => {
                let place = resolve_new(node, &path)?;
                match fs::symlink_metadata(&place) {
                    Ok(found) if !found.is_dir() => bail!("{path} is in the way: it is not a directory"),
                    Ok(found) if (found.uid(), found.gid(), found.mode() & 0o7777) == (uid, gid, mode) => {}
                    _ => pending.push(Pending::Directory { path, place, uid, gid, mode }),
                }
            }
        }
    }
    Ok(pending)
}

/// Resolves a path, of which the last components may not exist yet.
pub fn resolve_new(node: &RootFs, path: &str) -> Result<PathBuf> {
    match node.resolve(path) {
        Ok(place) => Ok(place),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let Some((parent, name)) = path.rsplit_once('/').filter(|(_, name)| !name.is_empty()) else {
                bail!("{path}: {error}");
            };
            // A link that leads nowhere is not followed, and not replaced.
            let place = if parent.is_empty() { node.resolve("/")? } else { resolve_new(node, parent)? }.join(name);
            match fs::symlink_metadata(&place) {
                Err(_) => Ok(place),
                Ok(_) => bail!("{path} is a symbolic link that leads nowhere"),
            }
        }
        Err(error) => Err(error).context(path.to_owned()),
    }
}

/// The path of a file as the node sees it.
fn named(node: &RootFs, place: &Path) -> String {
    let root = node.resolve("/").unwrap_or_else(|_| node.root().to_owned());
    let rest = place.strip_prefix(&root).unwrap_or(place);
    format!("/{}", rest.display())
}

/// The content of a file, if it exists.
pub fn read(place: &Path) -> Result<Option<String>> {
    match fs::read_to_string(place) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| place.display().to_string()),
    }
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, old, new, .. } => f.write_str(&difference(path, old.as_deref(), Some(new))),
            Self::Directory { path, uid, gid, mode, .. } => {
                let path = escape::name(path);
                writeln!(f, "directory {path}: owner {uid}:{gid}, mode {mode:04o}")
            }
        }
    }
}

/// A unified diff; a file that does not exist is /dev/null, as in diff(1).
pub fn difference(path: &str, old: Option<&str>, new: Option<&str>) -> String {
    let name = |side: &str, text: Option<&str>| {
        text.map_or_else(|| "/dev/null".to_owned(), |_| format!("{side}{}", escape::name(path)))
    };
    let difference = similar::TextDiff::from_lines(old.unwrap_or_default(), new.unwrap_or_default());
    lines_of(&difference.unified_diff().header(&name("a", old), &name("b", new)).to_string())
}

impl Pending {
    /// Whether the file or directory exists already.
    pub fn is_there(&self) -> bool {
        let (Self::File { place, .. } | Self::Directory { place, .. }) = self;
        place.exists()
    }

    /// Makes the change.
    pub fn make(&self) -> Result<()> {
        match self {
            Self::File { path, place, old, new, mode } => {
                if read(place)? != *old {
                    bail!("{path} has just been changed by somebody else");
                }
                if let Some(parent) = place.parent() {
                    fs::create_dir_all(parent).with_context(|| path.clone())?;
                }
                replace(place, new, *mode).with_context(|| format!("replace {path}"))
            }
            Self::Directory { path, place, uid, gid, mode } => {
                make_directory(place, *uid, *gid, *mode).with_context(|| format!("make {path}"))
            }
        }
    }
}

/// The mode is never wider than the final one. After a crash a directory may still be root's, with
/// its mode; no check covers its parents.
fn make_directory(place: &Path, uid: u32, gid: u32, mode: u32) -> Result<()> {
    if !place.is_dir() {
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::DirBuilder::new().mode(mode).create(place)?;
    }
    chown(place, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fs::set_permissions(place, Permissions::from_mode(mode))?;
    sync_directory_of(place)
}

/// Replaces a file, or makes one, atomically: a reader finds either the old or the new content.
pub fn replace(place: &Path, content: &str, mode: u32) -> Result<()> {
    remove_leftover(place)?;
    let new = temporary_path(place)?;
    if place.exists() {
        // Mode, owner, extended attributes and security context, but no content.
        let mut copy = Command::new("cp");
        copy.args(["--attributes-only", "--preserve=all", "--"]).args([place, &new]);
        if !copy.status().context("run cp")?.success() {
            bail!("cp --attributes-only failed");
        }
    }
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    if !place.exists() {
        file.set_permissions(Permissions::from_mode(mode))?; // whatever the umask
    }
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    sync_directory_of(place)?; // the second name of the old file is there before the first is gone
    fs::rename(&new, place)?;
    sync_directory_of(place)
}

/// Keeps a file under a second name.
pub fn keep_old(place: &Path, kept: &Path) -> Result<()> {
    fs::hard_link(place, kept).with_context(|| format!("keep {} as {}", place.display(), kept.display()))
}

/// Whether two names are links to the same file.
pub fn same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

/// Gives a kept file its first name again, and only that. Without a kept file, there was none, and
/// the new one is removed.
pub fn put_back(place: &Path, kept: Option<&Path>) -> Result<()> {
    match kept {
        Some(kept) if same(place, kept) => fs::remove_file(kept)?, // rename(2) would leave both
        Some(kept) if kept.exists() => fs::rename(kept, place)?,
        Some(_) => {} // it has been put back before
        None => match fs::remove_file(place) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        },
    }
    remove_leftover(place)?;
    sync_directory_of(place)
}

/// Removes the temporary file that an interrupted set-up has left.
pub fn remove_leftover(place: &Path) -> Result<()> {
    match fs::remove_file(temporary_path(place)?) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn temporary_path(place: &Path) -> Result<PathBuf> {
    let name = place.file_name().context("a file has a name")?;
    Ok(place.with_file_name(format!(".{}.unbitctl", name.to_string_lossy())))
}

fn sync_directory_of(place: &Path) -> Result<()> {
    let directory = place.parent().context("a file is in a directory")?;
    Ok(File::open(directory)?.sync_all()?)
}
