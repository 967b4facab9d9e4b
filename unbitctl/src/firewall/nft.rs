//! Runs nft(8), which loads and shows tables.

use crate::command;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const NFT: &str = "/usr/sbin/nft";

/// nft is not installed.
#[derive(Debug)]
pub struct Missing;

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{NFT} is not installed; apt install nftables")
    }
}

impl std::error::Error for Missing {}

/// Loads a ruleset: all of it or nothing, as nft does with a file.
pub fn load(ruleset: &str) -> Result<()> {
    run(NFT, &["-f", "-"], ruleset).map(drop)
}

/// Deletes our table, if there is one.
pub fn remove() -> Result<()> {
    load("table inet unbit\ndelete table inet unbit\n")
}

/// Our table as it is loaded.
pub fn loaded() -> Result<Option<Table>> {
    let tables: Value = serde_json::from_str(&run(NFT, &["-j", "list", "tables"], "")?)?;
    let ours = |entry: &Value| {
        entry.pointer("/table/family") == Some(&"inet".into()) && entry.pointer("/table/name") == Some(&"unbit".into())
    };
    if !entries(&tables).iter().any(ours) {
        return Ok(None);
    }
    Table::parse(&run(NFT, &["-j", "-s", "list", "table", "inet", "unbit"], "")?).map(Some)
}

/// The table that a ruleset of ours becomes: it is loaded into a temporary network namespace.
pub fn made_of(ruleset: &str) -> Result<Table> {
    let script = format!("{NFT} -f - && {NFT} -j -s list table inet unbit");
    Table::parse(&run("/usr/bin/unshare", &["--net", "--", "/bin/sh", "-c", &script], ruleset)?)
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    if !Path::new(NFT).exists() {
        return Err(Missing.into());
    }
    let done = command::run_with_input(program, arguments, input)?;
    if !done.succeeded() {
        bail!("{program} failed: {}", done.error_summary());
    }
    Ok(done.out)
}

/// A table, apart from what differs each time it is loaded.
#[derive(PartialEq, Eq, Debug)]
pub struct Table {
    sets: BTreeMap<String, BTreeSet<String>>,
    rest: Vec<Value>,
    comments: Vec<String>,
}

impl Table {
    pub(crate) fn parse(json: &str) -> Result<Self> {
        let listing: Value = serde_json::from_str(json).context("the answer of nft")?;
        let mut table = Self { sets: BTreeMap::new(), rest: Vec::new(), comments: Vec::new() };
        for entry in entries(&listing) {
            let mut entry = entry.clone();
            if entry.get("metainfo").is_some() {
                continue;
            }
            entry.as_object_mut().into_iter().flat_map(|kinds| kinds.values_mut()).for_each(without_handle);
            if let Some(set) = entry.get_mut("set").and_then(Value::as_object_mut) {
                let name = set.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
                let elements = set.remove("elem");
                let elements = elements.iter().filter_map(Value::as_array).flatten().map(element).collect();
                table.sets.insert(name, elements);
            }
            if entry.pointer("/rule/chain") == Some(&"arguments".into()) {
                match (table.comments.last_mut(), entry.pointer("/rule/comment").and_then(Value::as_str)) {
                    (_, None) => {}
                    // The rest of a long argument.
                    (Some(argument), Some(comment)) if !comment.starts_with("--") => argument.push_str(comment),
                    (_, Some(comment)) => table.comments.push(comment.to_owned()),
                }
            }
            table.rest.push(entry);
        }
        Ok(table)
    }

    /// The arguments from which it was made.
    pub fn arguments(&self) -> &[String] {
        &self.comments
    }

    /// How it differs from what it should be, for people; nothing if it does not.
    pub fn differences(&self, should: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let none = BTreeSet::new();
        for (name, elements) in &should.sets {
            let held = self.sets.get(name).unwrap_or(&none);
            let name = name.replace('_', " ");
            differences.extend(list(&format!("{name} lacks"), elements.difference(held)));
            differences.extend(list(&format!("{name} has"), held.difference(elements)));
        }
        if self.rest != should.rest {
            differences.push("its rules differ".to_owned());
        }
        differences
    }
}

fn list<'a>(what: &str, elements: impl Iterator<Item = &'a String>) -> Option<String> {
    let elements: Vec<_> = elements.map(String::as_str).collect();
    match elements.as_slice() {
        [] => None,
        [first, second, third, _, ..] => {
            Some(format!("{what} {first}, {second}, {third} and {} more", elements.len().saturating_sub(3)))
        }
        few => Some(format!("{what} {}", few.join(", "))),
    }
}

fn entries(listing: &Value) -> &[Value] {
    listing.get("nftables").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn element(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn without_handle(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        object.remove("handle");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(handle: u32, nodes: &str, verdict: &str) -> Table {
        let json = format!(
            r#"{{"nftables": [{{"metainfo": {{"version": "1"}}}},
                {{"table": {{"family": "inet", "name": "unbit", "handle": {handle}}}}},
                {{"set": {{"name": "nodes_ipv4", "handle": {handle}, "elem": [{nodes}]}}}},
                {{"rule": {{"chain": "input", "handle": {handle}, "expr": [{{"{verdict}": null}}]}}}},
                {{"rule": {{"chain": "arguments", "handle": {handle}, "comment": "--nodes=/nodes", "expr": [{{"return": null}}]}}}}]}}"#
        );
        Table::parse(&json).unwrap()
    }

    #[test]
    fn a_long_argument_is_in_several_comments() {
        let rule = |comment: &str| format!(r#"{{"rule": {{"chain": "arguments", "comment": "{comment}"}}}}"#);
        let rules = ["--nodes=/nodes", "--containers-reach=tcp/53,ud", "p/53,tcp/80", "80"].map(rule).join(",");
        let table = Table::parse(&format!(r#"{{"nftables": [{rules}]}}"#)).unwrap();
        assert_eq!(table.arguments(), ["--nodes=/nodes", "--containers-reach=tcp/53,udp/53,tcp/8080"]);
    }

    #[test]
    fn what_differs() {
        let should = table(1, r#""192.0.2.1", "192.0.2.2""#, "drop");
        assert_eq!(should.arguments(), ["--nodes=/nodes"]);
        assert_eq!(table(7, r#""192.0.2.2", "192.0.2.1""#, "drop").differences(&should), [""; 0]);
        assert_eq!(table(7, r#""192.0.2.2", "192.0.2.1""#, "accept").differences(&should), ["its rules differ"]);
        assert_eq!(
            table(7, r#""192.0.2.2", "192.0.2.3""#, "drop").differences(&should),
            ["nodes ipv4 lacks 192.0.2.1", "nodes ipv4 has 192.0.2.3"]
        );
        let none = table(7, "", "drop");
        assert_eq!(none.differences(&should), ["nodes ipv4 lacks 192.0.2.1, 192.0.2.2"]);
        let many = table(7, r#""1", "2", "3", "4", "5""#, "drop");
        assert_eq!(many.differences(&none), ["nodes ipv4 has 1, 2, 3 and 2 more"]);
    }
}
