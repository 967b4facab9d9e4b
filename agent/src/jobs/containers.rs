//! The Emperor's files of the containers. A new file starts a container, a changed one restarts it, and a removed one stops it.

use super::Node;
use crate::api::must_be_ini;
use crate::report::Report;
use anyhow::{Context, Result};
use shared::ContainerUid;
use std::collections::BTreeSet;

const DIRECTORY: &str = "vassals";
/// Customers' keys and passwords of chat services are in these files.
const MODE: u32 = 0o600;
/// The API's own container, which is not in its list.
const API: u32 = 30_000;

pub fn round(node: &mut Node, report: &mut Report) -> Result<()> {
    let listed = node.api.containers()?;
    let directory = node.open(DIRECTORY)?;
    let there = directory.names(!node.is_dry_run)?;
    for (&uid, about) in &listed {
        let name = file_of(uid);
        if there.binary_search(&name).is_ok() && node.memory.containers.get(&uid) == Some(&about.changed) {
            continue;
        }
        let path = format!("/containers/{uid}.ini");
        let done = node.api.text(&path).and_then(|text| {
            must_be_ini(&text).with_context(|| format!("GET {path}"))?;
            node.write(&directory, &name, &text, MODE, report)
        });
        match done {
            Ok(()) => drop(node.memory.containers.insert(uid, about.changed.clone())),
            Err(error) => report.problem(format!("{error:#}")),
        }
    }
    node.memory.containers.retain(|uid, _| listed.contains_key(uid));
    let ours: Vec<_> = there.into_iter().filter(|name| is_removed_without_entry(name)).collect();
    let stay: BTreeSet<_> = listed.keys().map(|uid| file_of(*uid)).collect();
    node.remove_others(&directory, ("containers", "containers"), &ours, &stay, report);
    Ok(())
}

fn file_of(uid: u32) -> String {
    format!("{uid}.ini")
}

/// The files that uwsgi.it's configurator removes when the API does not list them: numbers that begin with 3, but not the API's own. Others are an
/// operator's.
fn is_removed_without_entry(name: &str) -> bool {
    let uid = name.strip_suffix(".ini").and_then(|uid| ContainerUid::parse(uid.as_bytes()));
    uid.is_some_and(|uid| uid.get() != API) && name.starts_with('3')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_containers_of_the_api_go() {
        for name in ["30001.ini", "39999.ini", "300000.ini"] {
            assert!(is_removed_without_entry(name), "{name}");
        }
        for name in
            ["30000.ini", "40001.ini", "3.ini", "030001.ini", "30001.ini~", "30001.xml", "3x.ini", "30001", "web.ini"]
        {
            assert!(!is_removed_without_entry(name), "{name}");
        }
    }
}
