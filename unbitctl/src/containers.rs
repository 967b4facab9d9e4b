//! The containers that a node has.

use crate::node::Node;
use shared::ContainerUid;
use shared::settings::CONTAINERS;
use std::os::unix::fs::MetadataExt;

/// A container of the node's, any of them.
pub fn some_container(node: &Node) -> Option<ContainerUid> {
    let folder = node.resolve(CONTAINERS).ok()?;
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let container = ContainerUid::parse(entry.file_name().as_encoded_bytes())?;
        let metadata = entry.path().metadata().ok()?;
        container.is_owner_of(metadata.mode(), metadata.uid(), metadata.gid()).then_some(container)
    })
}
