//! `unbitctl setup emperor`: what a node needs to run containers under uWSGI's Emperor, from the
//! files of examples/, and what lets their users in.
//!
//! A file that is there stays as it is: an operator may have another Emperor, or other limits.

use super::distribution;
use crate::check::distributions::DISTRIBUTIONS;
use crate::check::{nscd, nsswitch, pam, sshd};
use crate::command_line::{must_be_root, print_lossy};
use crate::containers::{self, VASSALS};
use crate::emperor::{Service, has_systemd};
use crate::packages::{self, Package};
use crate::report::{Finding, State};
use crate::rootfs::RootFs;
use crate::step::{Change, Choices, Step};
use anyhow::Result;
use shared::settings::CONTAINERS;
use std::process::ExitCode;

pub const EXAMPLES: &str = "\
Examples:
  unbitctl setup emperor --dry-run
  unbitctl setup emperor --install --distribution base   from a bare Debian to the first `unbitctl create`";

#[derive(clap::Args)]
pub struct Arguments {
    /// Make this distribution too, as `setup distribution NAME` does
    #[arg(long, value_name = "NAME", value_parser = crate::create::distribution)]
    distribution: Option<String>,
    /// Install the packages that are missing, with apt-get
    #[arg(long)]
    install: bool,
    /// Configure sshd to refuse all passwords: users then need keys
    #[arg(long)]
    keys_only: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

const NAME: &str = "emperor";
const WHY: &str = "it starts each container, and starts it again";

const STEP: Step = Step { needs: &["nsswitch"], ..Step::new(NAME, check, fix) };

/// Before it, what a login needs: accounts that sshd knows and PAM does not would get a session on
/// the node.
const STEPS: [&Step; 5] = [&pam::STEP, &sshd::STEP, &nsswitch::STEP, &nscd::STEP, &STEP];

const PACKAGES: [Package; 3] = [
    Package { program: "/usr/sbin/sshd", name: "openssh-server" },
    Package { program: "/usr/bin/uwsgi", name: "uwsgi-core" },
    Package { program: "/usr/sbin/ip", name: "iproute2" },
];

/// Of root's, and nobody else's to write in.
const DIRECTORIES: [&str; 4] = [CONTAINERS, DISTRIBUTIONS, "/ns", VASSALS];

struct Example {
    path: &'static str,
    text: &'static str,
}

const EXAMPLE_FILES: [Example; 3] = [
    Example { path: "/etc/uwsgi/containers.ini", text: include_str!("../../../examples/containers.ini") },
    Example { path: containers::UNIT, text: include_str!("../../../examples/containers.service") },
    Example { path: "/etc/sysctl.d/60-unbit.conf", text: include_str!("../../../examples/sysctl.d-unbit.conf") },
];

const CGROUP_INI: &str = "/etc/uwsgi/cgroup.ini";
const CGROUP_V1: &str = include_str!("../../../examples/cgroup-v1.ini");
const CGROUP_V2: &str = include_str!("../../../examples/cgroup-v2.ini");

/// Those, and the one for the version of cgroups that this node has.
fn examples() -> Vec<Example> {
    let is_version_2 = std::fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false);
    let cgroup = Example { path: CGROUP_INI, text: if is_version_2 { CGROUP_V2 } else { CGROUP_V1 } };
    std::iter::once(cgroup).chain(EXAMPLE_FILES).collect()
}

fn check(node: &RootFs) -> Vec<Finding> {
    let (mut missing, mut other) = (Vec::new(), Vec::new());
    for Example { path, text } in examples() {
        match node.read(path) {
            Ok(None) => missing.push(path),
            Ok(Some(found)) if found != text => other.push(path),
            _ => {}
        }
    }
    let mut findings = Vec::new();
    if !missing.is_empty() {
        findings.push(Finding::fail(NAME, WHY, format!("missing: {}", missing.join(" ")), "unbitctl setup emperor"));
    }
    if !other.is_empty() {
        let seen = format!("not as in the examples, and left as they are: {}", other.join(" "));
        findings.push(Finding::warn(NAME, WHY, seen, "see whether that is meant: /usr/share/doc/unbit/examples"));
    }
    findings
}

fn fix(node: &RootFs, _: Choices) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for path in DIRECTORIES.into_iter().filter(|path| node.open_link(path).is_err()) {
        let parent = std::path::Path::new(path).parent().and_then(std::path::Path::to_str).unwrap_or("/");
        if node.open_link(parent).is_err() {
            changes.push(Change::Directory { path: parent.to_owned(), uid: 0, gid: 0, mode: 0o755 });
        }
        changes.push(Change::Directory { path: path.to_owned(), uid: 0, gid: 0, mode: 0o755 });
    }
    for Example { path, text } in examples().into_iter().filter(|example| node.open_link(example.path).is_err()) {
        changes.push(Change::File { path: path.to_owned(), content: text.to_owned(), mode: 0o644 });
    }
    Ok(changes)
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !arguments.dry_run {
        must_be_root("setup emperor")?;
    }
    let node = RootFs::at(None);
    packages::need(&PACKAGES, arguments.install, arguments.dry_run)?;
    let keys_only = arguments.keys_only || super::ask_keys_only(&node, &STEPS, arguments.dry_run);
    let code = super::run_steps(&node, &STEPS, Choices { keys_only, guide: false }, arguments.dry_run)?;
    let is_complete = !check(&node).iter().any(|finding| finding.state == State::Fail);
    if arguments.dry_run || !is_complete {
        return Ok(code);
    }
    if has_systemd(&node) {
        print_lossy!("{}\n", Service::enable()?.description());
    }
    let Some(name) = &arguments.distribution else { return Ok(code) };
    let made = distribution::make(name, arguments.install)?;
    Ok(if code == ExitCode::SUCCESS { made } else { code })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_starts_the_file_that_is_made() {
        let [containers, service, _] = &EXAMPLE_FILES;
        assert!(service.text.contains(&format!("--ini {}", containers.path)));
        assert!(service.text.contains("ConditionDirectoryNotEmpty=/etc/uwsgi/vassals"));
        assert!(crate::vassal::TEMPLATE.contains(CGROUP_INI));
    }
}
