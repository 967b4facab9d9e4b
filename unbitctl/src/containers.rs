//! The containers that a node has, and the files from which its Emperor starts them.

use crate::node::Node;
use shared::ContainerUid;
use shared::settings::CONTAINERS;
use std::os::unix::fs::MetadataExt;

/// Where a file is a container.
pub const VASSALS: &str = "/etc/uwsgi/vassals";

/// The formats of uWSGI's files, by how their names end.
const FORMATS: [&str; 6] = ["ini", "xml", "yml", "yaml", "json", "js"];

/// A file of the Emperor's.
pub struct Vassal {
    pub path: String,
    pub text: String,
}

/// All of them, by name.
pub fn vassals(node: &Node) -> Vec<Vassal> {
    let entries = node.resolve(VASSALS).and_then(std::fs::read_dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let vassal = |file: &String| {
        file.rsplit_once('.').filter(|(_, format)| FORMATS.contains(format))?;
        let path = format!("{VASSALS}/{file}");
        let text = String::from_utf8_lossy(&node.read_bytes(&path).ok()?).into_owned();
        Some(Vassal { path, text })
    };
    names.iter().filter_map(vassal).collect()
}

/// Whether the Emperor has a file to start this container from.
pub fn has_vassal(container: ContainerUid) -> bool {
    let path = |format: &&str| format!("{VASSALS}/{container}.{format}");
    FORMATS.iter().any(|format| std::fs::symlink_metadata(path(format)).is_ok())
}

/// A container of the node's, any of them.
pub fn some_container(node: &Node) -> Option<ContainerUid> {
    let folder = node.resolve(CONTAINERS).ok()?;
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let container = ContainerUid::parse(entry.file_name().as_encoded_bytes())?;
        let metadata = entry.path().metadata().ok()?;
        container.is_owner_of(metadata.mode(), metadata.uid(), metadata.gid()).then_some(container)
    })
}
