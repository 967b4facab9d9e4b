//! The file system that a command works on: this node's, or a root directory's (`--root`), such as a distribution or an image.

use std::path::{Path, PathBuf};

/// Where a node's files are.
#[derive(Clone, Debug)]
pub struct Node {
    root: PathBuf,
}

impl Node {
    /// The node whose files are below `root`; without one, the node that runs.
    pub fn at(root: Option<&Path>) -> Self {
        Self { root: root.unwrap_or(Path::new("/")).to_owned() }
    }

    /// Whether it is the one that runs: a root directory has no kernel, no sshd and no containers to ask.
    pub fn is_running(&self) -> bool {
        self.root == Path::new("/")
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a file of the node is, named as the node names it.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }
}
