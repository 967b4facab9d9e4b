//! `unbitctl check`: looks, and changes nothing. Beside what a check finds stands what [`setup`](crate::setup) does about it, its [`Step`](crate::step::Step).

mod accounts;
mod cgroups;
mod container;
pub mod distributions;
mod filesystem;
pub mod folders;
mod keyfiles;
mod library;
mod limits;
mod linked;
mod log;
mod mail;
pub mod nscd;
pub mod nsswitch;
pub mod pam;
mod ports;
mod server;
mod service;
pub mod sshd;
mod subids;
mod time;

use crate::node::Node;
use crate::report::{self, Finding, Format};
use anyhow::Result;
use shared::ContainerUid;
use std::path::PathBuf;
use std::process::ExitCode;

pub const EXAMPLES: &str = "\
Examples:
  unbitctl check                    is this node set up?
  unbitctl check 30001              why can't 30001 log in?
  unbitctl check --root /distros/precise --json";

#[derive(clap::Args)]
pub struct Arguments {
    /// The container whose way in is to be checked; without it, the node
    #[arg(value_parser = crate::command_line::container)]
    uid: Option<ContainerUid>,
    /// Check this root directory instead of the running node
    #[arg(long, value_name = "DIR", conflicts_with = "uid")]
    root: Option<PathBuf>,
    /// JSON for machines
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let findings = match arguments.uid {
        Some(uid) => container::check(uid)?,
        None => {
            let node = Node::named(arguments.root.as_deref())?;
            self::node(&node)
        }
    };
    report::show(&findings, Format::new(arguments.json))
}

/// The verdict of `check UID`.
pub fn container(uid: ContainerUid) -> Result<Vec<Finding>> {
    container::check(uid)
}

/// Every check of a node, in the order in which a node is set up.
const CHECKS: &[fn(&Node) -> Vec<Finding>] = &[
    filesystem::check,
    cgroups::check,
    time::check,
    folders::check,
    pam::check,
    sshd::check,
    service::check,
    nsswitch::check,
    nscd::check,
    distributions::check,
    ports::check,
    accounts::check,
    subids::check,
    mail::check,
    keyfiles::check,
    log::check,
    limits::check,
];

fn node(node: &Node) -> Vec<Finding> {
    if distributions::is_one(node) {
        return [nsswitch::check(node), distributions::check_one(node)].concat();
    }
    linked::without_the_emperors(node, CHECKS.iter().flat_map(|check| check(node)).collect())
}
