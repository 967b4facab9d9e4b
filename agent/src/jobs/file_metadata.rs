//! Sends the content of some files of the node to the API, which asks for them by name. The
//! operator decides which names are allowed; no other file is read.
//!
//! The process that reads is an unprivileged user, so the kernel denies all other files as well.

use super::Node;
use crate::api::Posted;
use crate::report::{Action, Report};
use anyhow::{Context, Result, bail};
use join::regular_file;
use serde_json::json;
use shared::escape;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

const PATH: &str = "/serverfilemetadata/";
/// None of the files below is longer.
const MAX_FILE: u64 = 64 << 10;
/// What anybody on the node may read and no secret is in.
pub const ALLOWED: [&str; 8] = [
    "/etc/debian_version",
    "/etc/hostname",
    "/etc/os-release",
    "/proc/cpuinfo",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/uptime",
    "/proc/version",
];

pub fn round(node: &mut Node, report: &mut Report) -> Result<()> {
    let names: Vec<String> = node.api.list(PATH)?;
    for name in names {
        let is_allowed = ALLOWED.contains(&name.as_str()) || node.allowed_files.contains(&name);
        let done = if is_allowed {
            read(&name).and_then(|value| send(node, &name, value, report))
        } else {
            Err(anyhow::anyhow!("the API asks for {}, which --allow-file does not name", escape::quoted(&name)))
        };
        if let Err(error) = done {
            report.problem(error);
        }
    }
    Ok(())
}

fn read(name: &str) -> Result<String> {
    let shown = || escape::name(name).to_string();
    let file = OpenOptions::new().read(true).custom_flags(open_flags()).open(name).with_context(shown)?;
    if !file.metadata().with_context(shown)?.is_file() {
        bail!("{} is not a regular file", shown());
    }
    let Some(bytes) = regular_file::read(file, MAX_FILE).with_context(shown)? else {
        bail!("{} is longer than {MAX_FILE} bytes", shown())
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// With these, opening a FIFO or a terminal does not wait.
fn open_flags() -> i32 {
    use nix::fcntl::OFlag;
    (OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).bits()
}

fn send(node: &mut Node, name: &str, value: String, report: &mut Report) -> Result<()> {
    if !node.is_dry_run {
        let body = json!({"file": name, "value": value}).to_string().into_bytes();
        if let Posted::Refused(status) = node.api.post(PATH, body)? {
            bail!("POST {PATH} of {name}: the API answers {status}");
        }
    }
    report.change(Action::Send, PATH, Some(format!("{name}, {} bytes", value.len())));
    Ok(())
}
