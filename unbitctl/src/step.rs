//! A step of a set-up: what a check finds, and what is done about it. Each topic below
//! [`check`](crate::check) that set-up can fix has one.

use crate::report::Finding;
use crate::rootfs::RootFs;
use anyhow::Result;

/// One change. Paths are named as the node names them, see
/// [`RootFs::path`](crate::rootfs::RootFs::path).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The file's whole new content. A new file gets this mode and is root's; one that is there
    /// keeps its mode and owner.
    File { path: String, content: String, mode: u32 },
    /// A directory of this owner, group and mode, made if it is not there.
    Directory { path: String, uid: u32, gid: u32, mode: u32 },
}

/// What the operator has chosen for the whole node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choices {
    /// sshd must refuse everybody's passwords.
    pub keys_only: bool,
    /// Do the steps of uwsgi.it's guide as well.
    pub guide: bool,
}

/// A step of a set-up.
pub struct Step {
    /// Its check's name.
    pub name: &'static str,
    pub check: fn(&RootFs) -> Vec<Finding>,
    /// What the guide asks for in addition.
    pub guide: fn(&RootFs) -> Vec<Finding>,
    /// The changes that would fix it; none if all is well.
    pub changes: fn(&RootFs, Choices) -> Result<Vec<Change>>,
    /// What the operator has to know before these changes are made.
    pub warning: fn(&RootFs, Choices) -> Vec<String>,
    /// The steps that must succeed before this one.
    pub needs: &'static [&'static str],
    /// Refuses if the node is not ready. The names are those of the steps that a dry run assumes.
    pub requires: fn(&RootFs, &[&str]) -> Result<()>,
    /// Whether the programs that read the files accept them.
    pub validate: fn(&RootFs) -> Result<()>,
    /// Like `validate`, before the files are written, for a dry run.
    pub preflight: fn(&RootFs) -> Result<()>,
    /// What the operator must still do on a running node.
    pub follow_up: &'static str,
}

impl Step {
    /// A step without requirements and without a follow-up.
    pub const fn new(
        name: &'static str,
        check: fn(&RootFs) -> Vec<Finding>,
        changes: fn(&RootFs, Choices) -> Result<Vec<Change>>,
    ) -> Self {
        let (needs, warning) = (&[], (|_, _| Vec::new()) as fn(&RootFs, Choices) -> Vec<String>);
        Self {
            name,
            check,
            guide: |_| Vec::new(),
            changes,
            warning,
            needs,
            requires: |_, _| Ok(()),
            validate: |_| Ok(()),
            preflight: |_| Ok(()),
            follow_up: "",
        }
    }
}
