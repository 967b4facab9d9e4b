//! `unbitctl check`: checks a node, and changes nothing. A file that can fix what it finds has a
//! [`Step`](crate::step::Step), which [`setup`](crate::setup) runs.

pub(crate) mod accounts;
mod cgroups;
pub(crate) mod container;
pub mod directories;
pub mod distributions;
mod emperor;
mod filesystem;
mod ids;
mod keyfiles;
pub(crate) mod library;
mod limits;
mod log;
pub mod mail;
mod metrics;
mod mounts;
pub mod nscd;
pub mod nsswitch;
pub mod pam;
mod ports;
mod second_names;
mod secrets;
mod server;
mod sockets;
pub mod sshd;
mod sshd_unit;
pub(crate) mod subids;
mod systemd;
mod time;
mod uwsgi_stats;
pub(crate) mod vassals;

use crate::names::Account;
use crate::report::{self, Finding, Format, GUIDE, Profile};
use crate::rootfs::RootFs;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

pub const EXAMPLES: &str = "\
Examples:
  unbitctl check                    can container users log in, and only where they belong?
  unbitctl check --guide uwsgi.it   and are the steps of uwsgi.it's guide for a node done?
  unbitctl check 30001              why can't 30001 log in?
  unbitctl check --root /distros/precise --json";

#[derive(clap::Args)]
pub struct Arguments {
    /// Check a login to this container (a number or a second name) instead of the node
    #[arg(value_name = "UID", value_parser = Account::parse)]
    account: Option<Account>,
    /// Check this root directory instead of the running node
    #[arg(long, value_name = "DIR", conflicts_with = "account")]
    root: Option<PathBuf>,
    /// Check the steps of this guide as well
    #[arg(long, value_name = "GUIDE", value_parser = [GUIDE], conflicts_with = "account")]
    guide: Option<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "openmetrics")]
    json: bool,
    /// Print metrics for the textfile collector of Prometheus' node_exporter; the exit status is
    /// then 0
    #[arg(long)]
    openmetrics: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let findings = match &arguments.account {
        Some(account) => container::check(account)?,
        None => {
            let node = RootFs::named(arguments.root.as_deref())?;
            self::node(&node, arguments.guide.is_some())
        }
    };
    if arguments.openmetrics {
        let container = arguments.account.as_ref().map(Account::uid).transpose()?;
        report::print(&metrics::text(&findings, container))?;
        return Ok(ExitCode::SUCCESS);
    }
    report::show(&findings, Format::new(arguments.json))
}

/// The verdict of `check UID`.
pub fn container(account: &Account) -> Result<Vec<Finding>> {
    container::check(account)
}

/// isspace(3), by which glibc and libpam separate words.
const fn is_space(letter: char) -> bool {
    letter.is_ascii_whitespace() || letter == '\x0b'
}

/// A check of a node.
type Check = fn(&RootFs) -> Vec<Finding>;

/// All of them, in the order in which a node is set up: first what a login needs, then the steps of
/// the guide.
const CHECKS: &[(Profile, Check)] = &[
    (Profile::Login, directories::check),
    (Profile::Login, mounts::check),
    (Profile::Login, cgroups::check),
    (Profile::Login, pam::check),
    (Profile::Login, sshd::check),
    (Profile::Login, sshd_unit::check),
    (Profile::Login, nsswitch::check),
    (Profile::Login, nscd::check),
    (Profile::Login, distributions::check),
    (Profile::Login, emperor::check),
    (Profile::Login, vassals::check),
    (Profile::Login, accounts::check),
    (Profile::Login, second_names::check),
    (Profile::Login, subids::check),
    (Profile::Login, mail::check),
    (Profile::Login, log::check),
    (Profile::Login, limits::check),
    (Profile::Guide, filesystem::check),
    (Profile::Guide, cgroups::check_layout),
    (Profile::Guide, time::check),
    (Profile::Guide, directories::check_guide),
    (Profile::Guide, sshd::check_guide),
    (Profile::Guide, distributions::check_guide),
    (Profile::Guide, uwsgi_stats::check),
    (Profile::Guide, secrets::check),
    (Profile::Guide, ports::check),
    (Profile::Guide, subids::check_guide),
    (Profile::Guide, keyfiles::check),
];

fn node(node: &RootFs, guide: bool) -> Vec<Finding> {
    if distributions::is_distribution(node) {
        return [nsswitch::check(node), distributions::check_distribution(node)].concat();
    }
    let asked = CHECKS.iter().filter(|(profile, _)| guide || *profile == Profile::Login);
    asked.flat_map(|(profile, check)| check(node).into_iter().map(|finding| finding.with_profile(*profile))).collect()
}
