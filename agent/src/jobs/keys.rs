//! The SSH keys of container users. The tenant owns the directory, so a process writes there as the
//! tenant: see join::tenant.

use super::Node;
use crate::report::{Action, Report};
use anyhow::{Context, Result, bail};
use join::regular_file::{self, OpenError};
use join::tenant::{self, Directory};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use shared::ContainerUid;
use std::os::fd::OwnedFd;

const DIRECTORY: &str = ".ssh";
const FILE: &str = "uwsgi_authorized_keys";
/// What its name ends in until it is complete.
const SUFFIX: &str = ".unbit-agent";
/// More than anybody's keys.
const MAX_FILE: u64 = 1 << 20;

pub fn round(node: &mut Node, report: &mut Report) -> Result<()> {
    let listed = match node.memory.listed.take() {
        Some(listed) => listed,
        None => node.api.containers()?,
    };
    for (&number, about) in &listed {
        let Some(uid) = ContainerUid::new(number) else { continue };
        // The container makes its account's directory when it starts for the first time.
        let Ok(home) = tenant::open_home(uid) else { continue };
        // An account that was made anew has no keys yet.
        if node.memory.keys.get(&number) == Some(&about.keys_changed) && has_file(&home) {
            continue;
        }
        let path = format!("/ssh_keys/{uid}");
        let done = node.api.text(&path).and_then(|text| {
            let text = lines(&text).with_context(|| format!("GET {path}"))?;
            if write(uid, &text, node.is_dry_run)? {
                report.change(
                    Action::Write,
                    format!("{}/{DIRECTORY}/{FILE}", uid.home().as_c_str().to_string_lossy()),
                    None,
                );
            }
            Ok(())
        });
        match done {
            Ok(()) => drop(node.memory.keys.insert(number, about.keys_changed.clone())),
            Err(error) => report.problem(error),
        }
    }
    node.memory.keys.retain(|uid, _| listed.contains_key(uid));
    Ok(())
}

/// The text as it is written: each line with an end. A text without keys would lock the tenant out,
/// and the API lists no container that has none.
pub fn lines(text: &str) -> Result<Vec<u8>> {
    let text = text.trim();
    let has_key = text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    if !has_key {
        bail!("no key in the answer");
    }
    Ok(format!("{}\n", text.replace('\r', "")).into_bytes())
}

/// Whether anything has the file's name. This opens none of the tenant's files, and looks into no
/// file system that is mounted there.
fn has_file(home: &OwnedFd) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH;
    let path = format!("{DIRECTORY}/{FILE}");
    openat2(home, path.as_str(), OpenHow::new().flags(flags).resolve(resolve)).is_ok()
}

/// Writes the keys if they differ from those in the file. Returns whether they do.
fn write(uid: ContainerUid, text: &[u8], is_dry_run: bool) -> Result<bool> {
    let work = || Ok(vec![u8::from(write_as_the_user(uid, text, is_dry_run)?)]);
    let result = tenant::run_as(uid, work).map_err(anyhow::Error::msg)?;
    Ok(result == [1])
}

fn write_as_the_user(uid: ContainerUid, text: &[u8], is_dry_run: bool) -> Result<bool, String> {
    let home = tenant::open_home(uid)?;
    let directory = match Directory::open(&home, DIRECTORY)? {
        None if is_dry_run => return Ok(true),
        None => Directory::make(&home, DIRECTORY)?,
        Some(directory) => directory,
    };
    if read(&directory)?.as_deref() == Some(text) {
        return Ok(false);
    }
    if !is_dry_run {
        directory.replace(FILE, SUFFIX, text)?;
    }
    Ok(true)
}

/// What is in the file, if there is one that can be compared. Anything that is not a regular file
/// is replaced, and never followed.
fn read(directory: &Directory) -> Result<Option<Vec<u8>>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{DIRECTORY}/{FILE}: {error}");
    match regular_file::open(directory, FILE) {
        Ok(file) => regular_file::read(file, MAX_FILE).map_err(|error| failed(&error)),
        Err(
            OpenError::Missing
            | OpenError::Link
            | OpenError::NotRegular
            | OpenError::Failed(Errno::EACCES | Errno::EWOULDBLOCK),
        ) => Ok(None),
        Err(OpenError::Failed(errno)) => Err(failed(&errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_keys_locks_nobody_out() {
        for bad in ["", "\n\n", "# none\n", "  \t\r\n"] {
            assert!(lines(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            lines("ssh-ed25519 AAAA a\r\n\r\nssh-rsa AAAA b").unwrap(),
            b"ssh-ed25519 AAAA a\n\nssh-rsa AAAA b\n"
        );
    }
}
