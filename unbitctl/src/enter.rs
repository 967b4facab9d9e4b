//! `unbitctl enter`: root goes into a container.

use anyhow::{Result, bail};
use std::process::ExitCode;

pub const EXAMPLES: &str = "";

#[derive(clap::Args)]
pub struct Arguments {}

pub fn run(_arguments: &Arguments) -> Result<ExitCode> {
    bail!("not yet")
}
