//! What `create` has made so far, and how each part of it is undone.

use super::replace;
use crate::command_line::warn_line;
use crate::emperor::Service;
use crate::interrupt::Interrupt;
use crate::keys::{self, Added};
use crate::purge::purge;
use crate::quota;
use crate::stop;
use anyhow::{Context, Result};
use shared::ContainerUid;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A change that can be undone.
pub enum Step {
    /// The directory that is the account.
    Directory(PathBuf),
    Keys(Added),
    /// As it was found.
    Quota(quota::State),
    /// A vassal, with its former content.
    Vassal(PathBuf, Option<String>),
    Service(Service),
}

/// The changes, in the order in which they were made.
pub struct Undo {
    uid: ContainerUid,
    steps: Vec<Step>,
}

/// How long the container may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

impl Undo {
    pub const fn new(uid: ContainerUid) -> Self {
        Self { uid, steps: Vec::new() }
    }

    pub fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Undoes all changes, last first, and describes the result. A failure is printed; the rest is
    /// still undone.
    pub fn run(self) -> String {
        let uid = self.uid;
        let (mut undone, mut is_all) = (Vec::new(), true);
        for step in self.steps.into_iter().rev() {
            match undo(uid, &step) {
                Ok(what) => undone.push(what),
                Err(error) => {
                    is_all = false;
                    warn_line(format_args!("this could not be undone: {error:#}"));
                }
            }
        }
        match (undone.is_empty(), is_all) {
            (true, true) => "nothing has been changed".to_owned(),
            (true, false) => "nothing could be undone".to_owned(),
            (false, true) => undone.join(", "),
            (false, false) => format!("{}, and the rest could not be undone", undone.join(", ")),
        }
    }
}

fn undo(uid: ContainerUid, step: &Step) -> Result<String> {
    Ok(match step {
        Step::Directory(home) => {
            let (parent, name) = (home.parent().unwrap_or(Path::new("/")), home.file_name().unwrap_or_default());
            purge(parent, &name.to_string_lossy(), &mut |_| Ok(()))?;
            format!("{} is removed again", home.display())
        }
        Step::Keys(added) => {
            keys::take_back(uid, added)?;
            "the keys are taken out again".to_owned()
        }
        Step::Quota(before) => {
            before.set(uid, before.limit())?;
            "the limit on the disk is as before".to_owned()
        }
        Step::Vassal(file, None) => {
            let groups = stop::groups(uid);
            fs::remove_file(file).with_context(|| file.display().to_string())?;
            // The signal that ended `create` has been read; another one ends this wait.
            stop::wait(uid, groups, STOP_TIMEOUT, &Interrupt::hold()?, &mut |_| {})?;
            format!("{} is removed again", file.display())
        }
        Step::Vassal(file, Some(before)) => {
            replace(file, before)?;
            format!("{} is as before", file.display())
        }
        Step::Service(service) => {
            service.undo()?;
            "containers.service is as before".to_owned()
        }
    })
}
