//! The Emperor's files of the containers. A new file starts a container, a changed one restarts it,
//! and a removed one stops it.

use super::Node;
use crate::api::{MAX_TEXT, must_be_ini};
use crate::report::Report;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::ContainerUid;
use std::collections::{BTreeMap, BTreeSet};

const DIRECTORY: &str = "vassals";
/// Customers' keys and passwords of chat services are in these files.
const MODE: u32 = 0o600;
/// The API's own container, which is not in its list.
const API: u32 = 30_000;

/// What the API said of each container's file when that was written or compared: the time of its
/// last restart there. It is kept over restarts of this program, because a file that changes
/// restarts its container, and because an API that has one restarted changes nothing else.
const STATE: &str = "unbit-agent.json";
const STATE_MODE: u32 = 0o600;
const MAX_STATE: u64 = 16 << 20;

#[derive(Default, PartialEq, Clone, Serialize, Deserialize)]
pub struct State {
    containers: BTreeMap<u32, Value>,
}

pub fn round(node: &mut Node, report: &mut Report) -> Result<()> {
    let listed = node.api.containers()?;
    let directory = node.open(DIRECTORY)?;
    let there = directory.names(!node.is_dry_run)?;
    let before = match node.memory.state.take() {
        Some(state) => state,
        None => read_state(node)?,
    };
    let mut state = before.clone();
    for (&uid, about) in &listed {
        let name = file_of(uid);
        let is_there = there.binary_search(&name).is_ok();
        let known = state.containers.get(&uid);
        if is_there && known == Some(&about.mtime) {
            continue;
        }
        let times = known.and_then(Value::as_f64).zip(about.mtime.as_f64());
        let must_restart = is_there && times.is_some_and(|(known, changed)| changed > known);
        let path = format!("/containers/{uid}.ini");
        let done = node.api.text(&path).and_then(|text| {
            must_be_ini(&text).with_context(|| format!("GET {path}"))?;
            if must_restart {
                let old = directory.read(&name, MAX_TEXT)?;
                node.put(&directory, &name, &text, old.as_ref(), MODE, report)
            } else {
                node.write(&directory, &name, &text, MODE, report)
            }
        });
        match done {
            Ok(()) => drop(state.containers.insert(uid, about.mtime.clone())),
            Err(error) => report.problem(error),
        }
    }
    state.containers.retain(|uid, _| listed.contains_key(uid));
    let ours: Vec<_> = there.into_iter().filter(|name| is_removed_without_entry(name)).collect();
    let stay: BTreeSet<_> = listed.keys().map(|uid| file_of(*uid)).collect();
    node.remove_others(&directory, ("containers", "containers"), &ours, &stay, report);
    // If it cannot be written, the next start compares contents.
    if state != before
        && !node.is_dry_run
        && let Err(error) = write_state(node, &state)
    {
        report.problem(error);
    }
    node.memory.state = Some(state);
    node.memory.listed = Some(listed);
    Ok(())
}

/// One that is not there, or cannot be understood, is empty: then contents are compared.
fn read_state(node: &Node) -> Result<State> {
    let content = node.open("")?.read(STATE, MAX_STATE)?;
    Ok(content.and_then(|content| serde_json::from_slice(&content.bytes).ok()).unwrap_or_default())
}

fn write_state(node: &Node, state: &State) -> Result<()> {
    let directory = node.open("")?;
    let old = directory.read(STATE, MAX_STATE)?;
    directory.replace(STATE, &serde_json::to_vec(state)?, old.as_ref(), STATE_MODE)
}

pub fn file_of(uid: u32) -> String {
    format!("{uid}.ini")
}

/// The files that uwsgi.it's configurator removes when the API does not list them: numbers that
/// begin with 3, but not the API's own. Others are an operator's.
pub fn is_removed_without_entry(name: &str) -> bool {
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
