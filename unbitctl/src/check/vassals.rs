//! Checks the files from which the Emperor starts containers: does one let its tenant become root,
//! or prevent the container from starting?
//!
//! uWSGI is root until it takes the container's uid, and the tenant owns everything below
//! /containers/UID. So until then uWSGI must open no path there, and run no program once that
//! directory is mounted (see the head of examples/container.ini).

mod plugins;
pub(crate) mod start;

use super::cgroups::list;
use crate::containers::{VASSALS, Vassal, has_emperor, vassals};
use crate::report::{Finding, State};
use crate::rootfs::{RootFs, others_can_write};
use start::{Fault, Kind};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

const CHECK: &str = "vassals";
const WHY: &str = "root does what these files say, whoever wrote them and wherever a tenant's symbolic links lead";
const WHY_PLUGINS: &str =
    "without a plugin its options are unknown, and with strict = true the container does not start";
/// The one to compare with.
const EXAMPLE: &str = "/usr/share/doc/unbit/examples/container.ini";

pub fn check(node: &RootFs) -> Vec<Finding> {
    if !has_emperor(node) {
        return vec![Finding::not_applicable(CHECK, WHY, "no Emperor starts containers here")];
    }
    let files = vassals(node);
    if files.is_empty() {
        let seen = match node.open_file(VASSALS).err().map(|error| error.kind()) {
            Some(std::io::ErrorKind::PermissionDenied) => format!("{VASSALS}: root is needed to see"),
            _ => format!("{VASSALS} has no file that can be read"),
        };
        return vec![Finding::not_applicable(CHECK, WHY, seen)];
    }
    let mut findings = judge_writers(node, &files);
    findings.extend(judge_starts(node, &files));
    findings.extend(plugins::check(node, &files));
    if findings.is_empty() {
        let seen = match files.len() {
            1 => "the one file that there is gives its tenant no power over the node".to_owned(),
            many => format!("none of {many} files gives its tenant power over the node"),
        };
        findings.push(Finding::ok(CHECK, WHY, seen));
    }
    findings
}

/// Whoever writes there has root do what they like.
fn judge_writers(node: &RootFs, files: &[Vassal]) -> Vec<Finding> {
    let paths = std::iter::once(VASSALS).chain(files.iter().map(|file| file.path.as_str()));
    let open = paths.filter_map(|path| {
        let status = File::from(node.open(path).ok()?).metadata().ok()?;
        let (uid, mode) = (status.uid(), status.mode() & 0o7777);
        (uid != 0 || others_can_write(&status)).then(|| {
            let real = node.quoted(path);
            let fix = format!("chown root:root {real} && chmod go-w {real}, after you have checked what is in it");
            Finding::fail(CHECK, WHY, format!("{path} is owned by uid {uid}, mode {mode:04o}"), fix)
        })
    });
    open.collect()
}

/// One finding for each kind of fault: files that a template has written all have the same ones.
fn judge_starts(node: &RootFs, files: &[Vassal]) -> Vec<Finding> {
    let mut by_kind: BTreeMap<Kind, Vec<(&Vassal, Vec<Fault>)>> = BTreeMap::new();
    for file in files {
        let mut kinds: BTreeMap<Kind, Vec<Fault>> = BTreeMap::new();
        for fault in start::faults(&file.path, &|path| node.read(path).ok().flatten(), &file.text) {
            kinds.entry(fault.kind).or_default().push(fault);
        }
        kinds.into_iter().for_each(|(kind, faults)| by_kind.entry(kind).or_default().push((file, faults)));
    }
    by_kind.into_iter().filter_map(|(kind, files)| finding(node, kind, &files)).collect()
}

fn finding(node: &RootFs, kind: Kind, files: &[(&Vassal, Vec<Fault>)]) -> Option<Finding> {
    let [(file, faults), others @ ..] = files else { return None };
    let first = faults.first()?;
    let mut seen = format!("{} line {}: {}", first.file, first.line, first.text);
    let mut more = Vec::new();
    if faults.len() > 1 {
        more.push(format!("{} more such lines", faults.len() - 1));
    }
    if !others.is_empty() {
        more.push(format!("{} more such files", others.len()));
    }
    if !more.is_empty() {
        seen.push_str(&format!(" ({})", more.join(", ")));
    }
    let real = node.quoted(&first.file);
    let compare = format!("diff {EXAMPLE} {}", node.quoted(&file.path));
    let (state, why, fix) = match kind {
        Kind::Log => (
            State::Fail,
            "root opens this log, and the tenant can put a symbolic link there that leads elsewhere, such as to root's authorized_keys",
            format!("sed -i 's/^ *{} *=/logto2 =/' {real}", first.option),
        ),
        Kind::Path => (
            State::Fail,
            "root follows the tenant's symbolic links there, to any file of the node",
            format!("let the container's user do it, hook-as-user = exec:/bin/mkdir and the like: {compare}"),
        ),
        Kind::Mount => (
            State::Fail,
            "root follows the tenant's symbolic links there, and what they lead to appears in the container, or is covered",
            format!("mount nothing from or to a place below the tenant's directory; use a tmpfs instead: {compare}"),
        ),
        Kind::Program => (
            State::Fail,
            "root runs the tenant's program in its place, or one with the tenant's libraries or configuration",
            format!("run programs before the tenant's directory is mounted, in hook-asap or hook-pre-jail: {compare}"),
        ),
        Kind::Include => (
            State::Fail,
            "root reads options, hooks among them, that the tenant has written",
            format!("remove that line: sed -i '{}d' {real}", first.line),
        ),
        Kind::Plugin => (
            State::Fail,
            "root loads this plugin before the container starts, and the tenant can put any code there",
            format!(
                "move the plugin to a directory that root owns, and change that line: line {} of {real}",
                first.line
            ),
        ),
        Kind::Devices => (
            State::Warn,
            "one container can take every terminal of the node, and shares /dev/shm with the others",
            format!("give the container a /dev and a devpts of its own: {compare}"),
        ),
        Kind::Nosuid => (
            State::Warn,
            "mount(2) ignores other flags together with bind, so set-user-ID programs work there",
            format!("add a line for each after it, mount:none none TARGET bind,remount,nosuid: {compare}"),
        ),
    };
    Some(Finding::new(CHECK, state, why, seen, Some(fix)))
}
