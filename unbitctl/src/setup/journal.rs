//! The journal of the last set-up, /var/lib/unbitctl/setup.json, by which it can be undone.
//!
//! A file is recorded before it is changed. The record of the previous set-up is kept until files
//! have been replaced, so that a set-up that fails does not prevent its undo.

use super::file::{self, Pending};
use crate::rootfs::RootFs;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

const FILE: &str = "/var/lib/unbitctl/setup.json";

/// A file that was replaced, or made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Replaced {
    /// Its path on the node; no part of it is a link.
    pub path: String,
    /// The name of the old one, in the same directory; `None` if there was none.
    pub kept: Option<String>,
    /// Its new content.
    pub written: String,
}

impl Replaced {
    pub fn place(&self, node: &RootFs) -> PathBuf {
        node.path(&self.path)
    }

    pub fn kept_place(&self, node: &RootFs) -> Option<PathBuf> {
        self.kept.as_ref().map(|name| self.place(node).with_file_name(name))
    }

    /// Whether both names stay inside the root directory: an image's journal may be forged.
    fn stays_in(&self, node: &RootFs) -> bool {
        let is_name = |name: &String| !name.contains('/') && !matches!(name.as_str(), "" | "." | "..");
        is_plain(node, &self.path) && self.kept.as_ref().is_none_or(is_name)
    }

    pub fn state(&self, node: &RootFs) -> Result<FileState> {
        let (place, kept) = (self.place(node), self.kept_place(node));
        let now = file::read(&place)?;
        Ok(match (&kept, now) {
            (Some(kept), _) if file::same(&place, kept) => FileState::Undone,
            (None, None) => FileState::Undone,
            // An interrupted undo has put it back without recording that, or an interrupted set-up
            // had not kept it yet.
            (Some(kept), now) if !kept.exists() => match now {
                Some(now) if now == self.written => FileState::Lost,
                _ => FileState::Undone,
            },
            (_, Some(now)) if now == self.written => FileState::Untouched,
            _ => FileState::Changed,
        })
    }

    /// Gives the old file its name again.
    pub fn put_back(&self, node: &RootFs) -> Result<()> {
        file::put_back(&self.place(node), self.kept_place(node).as_deref())
    }
}

/// Whether a path has neither `..` nor a symbolic link in it.
fn is_plain(node: &RootFs, path: &str) -> bool {
    let is_link = |above: &str| {
        let found = node.open_link(above).map(|found| File::from(found).metadata());
        matches!(found, Ok(Ok(found)) if found.is_symlink())
    };
    let path = Path::new(path);
    let is_plain = path.is_absolute() && path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    is_plain && !path.ancestors().skip(1).filter_map(Path::to_str).any(is_link)
}

/// The state of a file after a set-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileState {
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
struct JournalData {
    /// When it began; part of the names of the files that it keeps.
    begun: String,
    /// Whether it was completed; if not, the next one continues it.
    ended: bool,
    replaced: Vec<Replaced>,
    /// The directories that were made, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    made: Vec<String>,
    /// The data of the previous set-up, until this one is completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Box<JournalData>>,
}

pub struct Journal<'a> {
    node: &'a RootFs,
    data: JournalData,
    /// Whether the data is in the file.
    written: bool,
}

impl<'a> Journal<'a> {
    /// The journal of the last set-up, if there was one.
    pub fn last(node: &'a RootFs) -> Result<Option<Self>> {
        let is_damaged = || {
            let file = node.path(FILE);
            let file = file.display();
            format!(
                "{file} is damaged: move it away. The old files are in the same directories as the new ones, as NAME.unbit-DATE"
            )
        };
        let Some(text) = node.read(FILE).with_context(is_damaged)? else { return Ok(None) };
        let mut data: JournalData = serde_json::from_str(&text).with_context(is_damaged)?;
        let mut recorded =
            std::iter::successors(Some(&data), |data| data.before.as_deref()).flat_map(|data| &data.replaced);
        if let Some(replaced) = recorded.find(|replaced| !replaced.stays_in(node)) {
            bail!("{FILE} names {}, which is not a path in this root directory", replaced.path);
        }
        if let Some(path) = data.made.iter().find(|path| !is_plain(node, path)) {
            bail!("{FILE} names {path}, which is not a path in this root directory");
        }
        if data.replaced.is_empty() && data.made.is_empty() {
            // It changed nothing.
            data = data.before.take().map_or(data, |before| *before);
        }
        Ok(Some(Self { node, data, written: true }))
    }

    /// The journal of a new set-up, or of one that is continued.
    pub fn begin(node: &'a RootFs) -> Result<Self> {
        file::remove_leftover(&file::resolve_new(node, FILE)?)?;
        match Self::last(node)? {
            Some(mut journal) if !journal.data.ended => {
                journal.forget_untouched()?;
                Ok(journal)
            }
            last => {
                let begun = jiff::Timestamp::now().strftime("%Y-%m-%dT%H%M%SZ").to_string();
                let before = last.map(|journal| Box::new(journal.data));
                Ok(Self { node, data: JournalData { begun, before, ..JournalData::default() }, written: false })
            }
        }
    }

    /// Forgets the files that an interrupted set-up recorded and did not replace.
    fn forget_untouched(&mut self) -> Result<()> {
        for replaced in std::mem::take(&mut self.data.replaced) {
            if replaced.state(self.node)? == FileState::Undone {
                replaced.put_back(self.node).with_context(|| replaced.path.clone())?;
            } else {
                file::remove_leftover(&replaced.place(self.node))?;
                self.data.replaced.push(replaced);
            }
        }
        Ok(())
    }

    /// Removes the directories that were made and are empty, the last one first, and reports each.
    pub fn remove_made(&self, mut removed: impl FnMut(&str)) {
        for path in self.data.made.iter().rev() {
            if fs::remove_dir(self.node.path(path)).is_ok() {
                removed(path);
            }
        }
    }

    /// The directories that were made.
    pub fn made(&self) -> &[String] {
        &self.data.made
    }

    /// What was replaced, in this order.
    pub fn replaced(&self) -> &[Replaced] {
        &self.data.replaced
    }

    /// Records a file and keeps it, before it is replaced. If it cannot be kept, it is not
    /// recorded. Directories are recorded only if they are made.
    pub fn record(&mut self, change: &Pending) -> Result<Option<Replaced>> {
        let recorded = self.data.replaced.clone();
        let result = self.record_and_keep(change);
        if result.is_err() {
            self.data.replaced = recorded;
        }
        result
    }

    fn record_and_keep(&mut self, change: &Pending) -> Result<Option<Replaced>> {
        let (path, place, old, new) = match change {
            Pending::File { path, place, old, new, .. } => (path, place, old, new),
            Pending::Directory { path, place, .. } => {
                if !place.is_dir() && !self.data.made.contains(path) {
                    self.data.made.push(path.clone());
                    self.write()?;
                }
                return Ok(None);
            }
        };
        let kept = old.as_ref().map(|_| self.name_to_keep(place)).transpose()?;
        let replaced = match self.data.replaced.iter_mut().find(|replaced| replaced.path == *path) {
            // By the same set-up, which was interrupted after it had replaced the file.
            Some(recorded) => {
                if old.as_ref() != Some(&recorded.written) {
                    recorded.kept = kept; // somebody else's, from between
                }
                new.clone_into(&mut recorded.written);
                recorded.clone()
            }
            None => {
                let replaced = Replaced { path: path.clone(), kept, written: new.clone() };
                self.data.replaced.push(replaced.clone());
                replaced
            }
        };
        self.write()?;
        if let Some(kept) = replaced.kept_place(self.node) {
            if !kept.exists() {
                file::keep_old(place, &kept)?;
            }
        }
        Ok(Some(replaced))
    }

    /// The old file's second name, with a number if it is taken.
    fn name_to_keep(&self, place: &Path) -> Result<String> {
        let name = place.file_name().context("a file has a name")?.to_string_lossy();
        let name = format!("{name}.unbit-{}", self.data.begun);
        let numbered = (2..1000).map(|number| format!("{name}.{number}"));
        let free = std::iter::once(name.clone()).chain(numbered).find(|name| !place.with_file_name(name).exists());
        free.with_context(|| format!("{name}: there are too many of them"))
    }

    /// Removes a file from the journal: it is as it was before.
    pub fn forget(&mut self, replaced: &Replaced) -> Result<()> {
        self.data.replaced.retain(|other| other.path != replaced.path);
        self.write()
    }

    /// The set-up is completed.
    pub fn end(&mut self) -> Result<()> {
        if !self.written || self.data.ended {
            return Ok(()); // it changed nothing
        }
        if self.data.replaced.is_empty() && self.data.made.is_empty() {
            return self.remove();
        }
        self.data.ended = true;
        self.data.before = None;
        self.write()
    }

    /// Nothing of this set-up is left to undo: the previous one, if there is one, is the last one
    /// again.
    pub fn remove(&mut self) -> Result<()> {
        if let Some(before) = self.data.before.take() {
            self.data = *before;
            return self.write();
        }
        file::put_back(&file::resolve_new(self.node, FILE)?, None)
    }

    fn write(&mut self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.data)?;
        let place = file::resolve_new(self.node, FILE)?;
        if let Some(directory) = place.parent() {
            fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        file::replace(&place, &format!("{text}\n"), 0o600).with_context(|| format!("write {FILE}"))?;
        self.written = true;
        Ok(())
    }
}
