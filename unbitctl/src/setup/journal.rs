//! The journal of the last set-up, /var/lib/unbitctl/setup.json, by which it can be undone.
//!
//! A file is recorded before it is changed. The record of the previous set-up is kept until files
//! have been replaced, so that a set-up that fails does not prevent its undo.

use super::file::{self, Pending};
use crate::rootfs::RootFs;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

/// What is locked; nobody else locks it.
const LOCK: &str = "/etc";
const FILE: &str = "/var/lib/unbitctl/setup.json";

/// One set-up at a time.
pub struct Lock(#[expect(dead_code, reason = "held, until it is dropped")] Flock<File>);

impl Lock {
    pub fn take(node: &RootFs) -> Result<Self> {
        let directory = node.resolve(LOCK).and_then(File::open).context(LOCK)?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!("another unbitctl setup is running"),
            Err((_, errno)) => Err(errno).context("lock"),
        }
    }
}

/// A file that was replaced, or made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Replaced {
    /// Where it is, as the node names it; no part of it is a link.
    pub path: String,
    /// The name of the old one, beside it; nothing if there was none.
    pub kept: Option<String>,
    /// What it was replaced by.
    pub written: String,
}

impl Replaced {
    pub fn place(&self, node: &RootFs) -> PathBuf {
        node.path(&self.path)
    }

    pub fn kept_place(&self, node: &RootFs) -> Option<PathBuf> {
        self.kept.as_ref().map(|name| self.place(node).with_file_name(name))
    }

    /// Whether both names are in a directory of the node's, without a link on the way: in a root
    /// directory the notes may be anybody's.
    fn stays_in(&self, node: &RootFs) -> bool {
        let is_name = |name: &String| !name.contains('/') && !matches!(name.as_str(), "" | "." | "..");
        is_plain(node, &self.path) && self.kept.as_ref().is_none_or(is_name)
    }

    pub fn since(&self, node: &RootFs) -> Result<Since> {
        let (place, kept) = (self.place(node), self.kept_place(node));
        let now = file::read(&place)?;
        Ok(match (&kept, now) {
            (Some(kept), _) if file::same(&place, kept) => Since::Undone,
            (None, None) => Since::Undone,
            // An undo that was cut short has put it back already, and not noted that; or a set-up
            // was, before it kept it.
            (Some(kept), now) if !kept.exists() => match now {
                Some(now) if now == self.written => Since::Lost,
                _ => Since::Undone,
            },
            (_, Some(now)) if now == self.written => Since::Untouched,
            _ => Since::Changed,
        })
    }

    /// The old file has its name again.
    pub fn put_back(&self, node: &RootFs) -> Result<()> {
        file::put_back(&self.place(node), self.kept_place(node).as_deref())
    }
}

/// Whether a path is one of the node's, without a link on the way.
fn is_plain(node: &RootFs, path: &str) -> bool {
    let is_link = |above: &str| {
        let found = node.open_link(above).map(|found| File::from(found).metadata());
        matches!(found, Ok(Ok(found)) if found.is_symlink())
    };
    let path = Path::new(path);
    let is_plain = path.is_absolute() && path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    is_plain && !path.ancestors().skip(1).filter_map(Path::to_str).any(is_link)
}

/// What has become of a file since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Since {
    /// It is as it was before the set-up.
    Undone,
    /// It is as the set-up left it.
    Untouched,
    /// Somebody has changed it.
    Changed,
    /// The old one is gone.
    Lost,
}

#[derive(Default, Serialize, Deserialize)]
struct Notes {
    /// When it began; part of the names of what it keeps.
    begun: String,
    /// Whether it came to its end; if not, the next one goes on with it.
    ended: bool,
    replaced: Vec<Replaced>,
    /// The directories that were made, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    made: Vec<String>,
    /// Those of the set-up before, until this one has come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Box<Notes>>,
}

pub struct Journal<'a> {
    node: &'a RootFs,
    notes: Notes,
    /// Whether they are in the file.
    written: bool,
}

impl<'a> Journal<'a> {
    /// Of the last set-up, if there was one.
    pub fn last(node: &'a RootFs) -> Result<Option<Self>> {
        let is_damaged = || {
            let file = node.path(FILE);
            let file = file.display();
            format!(
                "{file} is damaged: move it away. The old files are in the same directories as the new ones, as NAME.unbit-DATE"
            )
        };
        let Some(text) = node.read(FILE).with_context(is_damaged)? else { return Ok(None) };
        let mut notes: Notes = serde_json::from_str(&text).with_context(is_damaged)?;
        let mut noted =
            std::iter::successors(Some(&notes), |notes| notes.before.as_deref()).flat_map(|notes| &notes.replaced);
        if let Some(replaced) = noted.find(|replaced| !replaced.stays_in(node)) {
            bail!("{FILE} names {}, which is not a path in this root directory", replaced.path);
        }
        if let Some(path) = notes.made.iter().find(|path| !is_plain(node, path)) {
            bail!("{FILE} names {path}, which is not a path in this root directory");
        }
        if notes.replaced.is_empty() && notes.made.is_empty() {
            // It came to nothing.
            notes = notes.before.take().map_or(notes, |before| *before);
        }
        Ok(Some(Self { node, notes, written: true }))
    }

    /// For a new set-up, or one that goes on.
    pub fn begin(node: &'a RootFs) -> Result<Self> {
        file::sweep(&file::place(node, FILE)?)?;
        match Self::last(node)? {
            Some(mut journal) if !journal.notes.ended => {
                journal.forget_untouched()?;
                Ok(journal)
            }
            last => {
                let begun = jiff::Timestamp::now().strftime("%Y-%m-%dT%H%M%SZ").to_string();
                let before = last.map(|journal| Box::new(journal.notes));
                Ok(Self { node, notes: Notes { begun, before, ..Notes::default() }, written: false })
            }
        }
    }

    /// What was noted by a set-up that was cut short before it replaced it.
    fn forget_untouched(&mut self) -> Result<()> {
        for replaced in std::mem::take(&mut self.notes.replaced) {
            if replaced.since(self.node)? == Since::Undone {
                replaced.put_back(self.node).with_context(|| replaced.path.clone())?;
            } else {
                file::sweep(&replaced.place(self.node))?;
                self.notes.replaced.push(replaced);
            }
        }
        Ok(())
    }

    /// Removes the directories that were made and are empty, the last one first; and says which.
    pub fn remove_made(&self, mut removed: impl FnMut(&str)) {
        for path in self.notes.made.iter().rev() {
            if fs::remove_dir(self.node.path(path)).is_ok() {
                removed(path);
            }
        }
    }

    /// The directories that were made.
    pub fn made(&self) -> &[String] {
        &self.notes.made
    }

    /// What was replaced, in this order.
    pub fn replaced(&self) -> &[Replaced] {
        &self.notes.replaced
    }

    /// Notes a file and keeps it, before it is replaced; if that cannot be, it is not noted. Of
    /// directories those are that are made.
    pub fn note(&mut self, change: &Pending) -> Result<Option<Replaced>> {
        let noted = self.notes.replaced.clone();
        let result = self.note_and_keep(change);
        if result.is_err() {
            self.notes.replaced = noted;
        }
        result
    }

    fn note_and_keep(&mut self, change: &Pending) -> Result<Option<Replaced>> {
        let (path, place, old, new) = match change {
            Pending::File { path, place, old, new, .. } => (path, place, old, new),
            Pending::Directory { path, place, .. } => {
                if !place.is_dir() && !self.notes.made.contains(path) {
                    self.notes.made.push(path.clone());
                    self.write()?;
                }
                return Ok(None);
            }
        };
        let kept = old.as_ref().map(|_| self.name_to_keep(place)).transpose()?;
        let replaced = match self.notes.replaced.iter_mut().find(|replaced| replaced.path == *path) {
            // By the same set-up, which was cut short after it had replaced the file.
            Some(noted) => {
                if old.as_ref() != Some(&noted.written) {
                    noted.kept = kept; // somebody else's, from between
                }
                new.clone_into(&mut noted.written);
                noted.clone()
            }
            None => {
                let replaced = Replaced { path: path.clone(), kept, written: new.clone() };
                self.notes.replaced.push(replaced.clone());
                replaced
            }
        };
        self.write()?;
        if let Some(kept) = replaced.kept_place(self.node) {
            if !kept.exists() {
                file::keep(place, &kept)?;
            }
        }
        Ok(Some(replaced))
    }

    /// The old file's second name, with a number if it is taken.
    fn name_to_keep(&self, place: &Path) -> Result<String> {
        let name = place.file_name().context("a file has a name")?.to_string_lossy();
        let name = format!("{name}.unbit-{}", self.notes.begun);
        let numbered = (2..1000).map(|number| format!("{name}.{number}"));
        let free = std::iter::once(name.clone()).chain(numbered).find(|name| !place.with_file_name(name).exists());
        free.with_context(|| format!("{name}: there are too many of them"))
    }

    /// It is as it was before.
    pub fn forget(&mut self, replaced: &Replaced) -> Result<()> {
        self.notes.replaced.retain(|other| other.path != replaced.path);
        self.write()
    }

    /// The set-up has come to its end.
    pub fn end(&mut self) -> Result<()> {
        if !self.written || self.notes.ended {
            return Ok(()); // it changed nothing
        }
        if self.notes.replaced.is_empty() && self.notes.made.is_empty() {
            return self.remove();
        }
        self.notes.ended = true;
        self.notes.before = None;
        self.write()
    }

    /// There is nothing of this set-up to undo any more: the one before is the last one again, if
    /// there is one.
    pub fn remove(&mut self) -> Result<()> {
        if let Some(before) = self.notes.before.take() {
            self.notes = *before;
            return self.write();
        }
        file::put_back(&file::place(self.node, FILE)?, None)
    }

    fn write(&mut self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.notes)?;
        let place = file::place(self.node, FILE)?;
        if let Some(directory) = place.parent() {
            fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        file::replace(&place, &format!("{text}\n"), 0o600).with_context(|| format!("write {FILE}"))?;
        self.written = true;
        Ok(())
    }
}
