//! `unbitctl list`: the containers of this node, one a line.

use anyhow::{Result, bail};
use std::process::ExitCode;

pub const EXAMPLES: &str = "";

#[derive(clap::Args)]
pub struct Arguments {}

pub fn run(_arguments: &Arguments) -> Result<ExitCode> {
    bail!("not yet")
}
