//! What a mend would change, before anything is changed.

/// One change. Paths are named as the node names them, see [`Node::path`](crate::node::Node::path).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The file's whole new content. A new file gets this mode and is root's; one that is there keeps its mode and owner.
    File { path: String, content: String, mode: u32 },
    /// A directory of this owner, group and mode, made if it is not there.
    Folder { path: String, uid: u32, gid: u32, mode: u32 },
}
