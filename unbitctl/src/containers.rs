//! Lists the containers of a node, and the files from which its Emperor starts them.

use crate::rootfs::RootFs;
use join::link;
use shared::ContainerUid;
use shared::settings::CONTAINERS;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything in the directory of the containers that is named as one, by number.
pub fn all(node: &RootFs) -> io::Result<Vec<ContainerUid>> {
    named_in(node, CONTAINERS)
}

/// What is named as a container in a directory, by number.
fn named_in(node: &RootFs, directory: &str) -> io::Result<Vec<ContainerUid>> {
    let entries = node.resolve(directory).and_then(std::fs::read_dir)?;
    let mut named: Vec<_> =
        entries.filter_map(|entry| ContainerUid::parse(entry.ok()?.file_name().as_encoded_bytes())).collect();
    named.sort_by_key(|container| container.get());
    Ok(named)
}

/// Where a file is a container.
pub const VASSALS: &str = "/etc/uwsgi/vassals";

/// The formats of uWSGI's files, by how their names end.
const FORMATS: [&str; 6] = ["ini", "xml", "yml", "yaml", "json", "js"];

/// A vassal: a file that the Emperor reads.
pub struct Vassal {
    pub path: String,
    pub text: String,
}

/// The names of all of them, in order.
fn vassal_files(node: &RootFs) -> Vec<String> {
    let entries = node.resolve(VASSALS).and_then(std::fs::read_dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.rsplit_once('.').is_some_and(|(_, format)| FORMATS.contains(&format)));
    names.sort();
    names
}

/// The containers that have one.
pub fn vassal_containers(node: &RootFs) -> Vec<ContainerUid> {
    let uid = |name: &String| ContainerUid::parse(name.rsplit_once('.')?.0.as_bytes());
    vassal_files(node).iter().filter_map(uid).collect()
}

/// All of them, by name.
pub fn vassals(node: &RootFs) -> Vec<Vassal> {
    let vassal = |file: &String| {
        let path = format!("{VASSALS}/{file}");
        let text = String::from_utf8_lossy(&node.read_bytes(&path).ok()?).into_owned();
        Some(Vassal { path, text })
    };
    vassal_files(node).iter().filter_map(vassal).collect()
}

/// The unit of examples/ that starts the Emperor.
pub const UNIT: &str = "/etc/systemd/system/containers.service";

/// Whether an Emperor starts containers here: it has a vassal, or a unit. A node of linked
/// containers has neither, nor has a bare Debian.
pub fn has_emperor(node: &RootFs) -> bool {
    node.has(UNIT) || !vassal_files(node).is_empty()
}

/// Whether the Emperor has a file to start this container from.
pub fn has_vassal(container: ContainerUid) -> bool {
    !vassals_of(container).is_empty()
}

/// The files that the Emperor has to start this container from.
pub fn vassals_of(container: ContainerUid) -> Vec<PathBuf> {
    let path = |format: &&str| Path::new(VASSALS).join(format!("{container}.{format}"));
    FORMATS.iter().map(path).filter(|path| path.symlink_metadata().is_ok()).collect()
}

/// The containers of other engines, which have a link.
pub fn linked(node: &RootFs) -> Vec<ContainerUid> {
    named_in(node, link::DIRECTORY).unwrap_or_default()
}

/// A container of the node's, any of them.
pub fn some_container(node: &RootFs) -> Option<ContainerUid> {
    let directory = node.resolve(CONTAINERS).ok()?;
    std::fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let container = ContainerUid::parse(entry.file_name().as_encoded_bytes())?;
        let metadata = entry.path().metadata().ok()?;
        container.owns_directory(metadata.mode(), metadata.uid(), metadata.gid()).then_some(container)
    })
}
