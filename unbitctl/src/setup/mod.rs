//! `unbitctl setup`: mends what check finds.

pub mod change;

use crate::node::Node;
use anyhow::{Result, bail};
use change::Change;
use std::process::ExitCode;

pub const EXAMPLES: &str = "";

#[derive(clap::Args)]
pub struct Arguments {}

pub fn run(_arguments: &Arguments) -> Result<ExitCode> {
    bail!("not yet")
}

/// The steps of a set-up, in their order: the check's name, and what would mend it (nothing, if all is well).
const STEPS: &[(&str, fn(&Node) -> Result<Vec<Change>>)] = &[
    ("nscd", crate::check::nscd::mend),
    ("folders", crate::check::folders::mend),
    ("distributions", crate::check::distributions::mend),
];
