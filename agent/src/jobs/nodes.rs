//! The lists of nodes and of the legion's nodes, and the firewall that is made of them.

use super::Node;
use crate::api::Nodes;
use crate::command;
use crate::removal_limit;
use crate::report::{Action, Report};
use anyhow::{Context, Result, bail};
use shared::escape;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Each file and where the API has it.
const LISTS: [(&str, &str); 2] = [("legion_nodes", "/legion/nodes/"), ("nodes", "/nodes/")];
/// Anybody may know them, and some services read them without root.
const MODE: u32 = 0o644;
const UNBITCTL: &str = "/usr/sbin/unbitctl";

pub fn round(node: &mut Node, report: &mut Report) -> Result<()> {
    for (name, path) in LISTS {
        if let Err(error) = update(node, name, path, report) {
            report.problem(error);
        }
    }
    let has_changed = !report.changes.is_empty();
    if node.is_dry_run {
        if has_changed {
            report.change(Action::Load, "table inet unbit, if it is loaded (unbitctl firewall --reload)", None);
        }
        return Ok(());
    }
    if has_changed || !node.memory.is_firewall_loaded {
        // Without an argument from the API: the lists are in files, where every line of them is
        // checked again.
        node.memory.is_firewall_loaded = false;
        let output = command::run(UNBITCTL, &["firewall", "--reload"], "")?;
        node.memory.is_firewall_loaded = true;
        // Nothing is loaded, and printed, on a node whose operator has not loaded the table before.
        let output = output.trim();
        if has_changed && !output.is_empty() {
            report.change(Action::Load, "table inet unbit", Some(output.to_owned()));
        }
    }
    Ok(())
}

fn update(node: &mut Node, name: &str, path: &str, report: &mut Report) -> Result<()> {
    let response: Nodes = node.api.json(path)?;
    let addresses = addresses(&response.nodes).with_context(|| format!("GET {path}"))?;
    let directory = node.open("")?;
    directory.names(!node.is_dry_run)?; // what was left unfinished goes
    let old = directory.read(name, crate::api::MAX_TEXT)?;
    let text = old.as_ref().map(|old| String::from_utf8_lossy(&old.bytes).into_owned());
    let before = text.as_deref().map(listed);
    if before.as_ref() == Some(&addresses) {
        return Ok(());
    }
    let before = before.unwrap_or_default();
    let going = before.difference(&addresses).count();
    if removal_limit::blocks(going, before.len(), node.may_remove) {
        bail!("{}: {}", directory.path_of(name), removal_limit::message(going, before.len(), "addresses", "nodes"));
    }
    if !node.is_dry_run {
        let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
        directory.replace(name, text.as_bytes(), old.as_ref(), MODE)?;
    }
    report.change(Action::Write, directory.path_of(name), None);
    Ok(())
}

/// The API's addresses, each once. An entry that is not an address makes the whole list wrong.
pub fn addresses(list: &[String]) -> Result<BTreeSet<IpAddr>> {
    let address =
        |text: &String| text.parse().with_context(|| format!("{} is not an IP address", escape::quoted(text)));
    list.iter().map(address).collect()
}

/// The addresses in a file. Other lines are lost when it is written.
pub fn listed(text: &str) -> BTreeSet<IpAddr> {
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_address() {
        let list = |texts: &[&str]| addresses(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(list(&["192.0.2.2", "2001:db8::1", "192.0.2.2"]).unwrap().len(), 2);
        for bad in
            ["", "node7.example", "192.0.2.0/24", "192.0.2.1; reboot", "192.0.2.1\n192.0.2.2", " 192.0.2.1", "$(id)"]
        {
            assert!(list(&["192.0.2.2", bad]).is_err(), "{bad:?}");
        }
        assert_eq!(listed("192.0.2.9\n# x\n192.0.2.2\n").len(), 2);
    }
}
