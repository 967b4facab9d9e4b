//! Debian packages that a set-up needs: named to the operator, and installed only if the operator
//! asks for it.

use crate::command_line::print_lossy;
use crate::terminal;
use anyhow::{Context, Result, bail};
use std::io::{Write, stdout};
use std::path::Path;
use std::process::{Command, Stdio};

/// A program, and the package that has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Package {
    pub program: &'static str,
    pub name: &'static str,
}

/// Refuses if one of these programs is missing, unless it may be installed: by --install, or by the
/// answer to a question on a terminal.
pub fn need(packages: &[Package], install: bool, dry_run: bool) -> Result<()> {
    let missing: Vec<_> =
        packages.iter().filter(|package| !Path::new(package.program).exists()).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if dry_run {
        print_lossy!("packages that are missing: {names}\n");
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("these have to be installed first, by their names in Debian: {names}");
    }
    if !install && !is_agreed(&names) {
        bail!("packages are missing: apt-get install {names}, or give --install");
    }
    print_lossy!("apt-get install {names}\n");
    let _ = stdout().flush();
    let mut command = Command::new("apt-get");
    command.args(["-qy", "install", "--no-install-recommends"]).args(&missing).stdin(Stdio::null());
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
    let status = command.status().context("run apt-get")?;
    if !status.success() {
        bail!("apt-get install {names}: {status} (apt-get update first, if its lists are old)");
    }
    Ok(())
}

fn is_agreed(names: &str) -> bool {
    let question = format!("These packages are missing: {names}. Install them with apt-get? [Y/n]");
    let is_yes = |answer: String| !answer.is_empty() && matches!(answer.trim(), "" | "y" | "Y" | "yes");
    terminal::can_ask() && terminal::ask(&question).is_ok_and(is_yes)
}
