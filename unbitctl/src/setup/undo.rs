//! `unbitctl setup --undo`: what the last set-up replaced is put back, and the directories that it
//! made go if they are empty.

use super::file::{self, difference, read};
use super::journal::{FileState, Journal, Replaced};
use crate::check::{nsswitch, pam, sshd};
use crate::command_line::{print_lossy, warn_line};
use crate::lock::Lock;
use crate::rootfs::RootFs;
use anyhow::{Context, Result};
use shared::escape;
use std::process::ExitCode;

pub fn run(node: &RootFs, dry_run: bool, force: bool) -> Result<ExitCode> {
    let _lock = if dry_run { None } else { Some(Lock::of_setup(node)?) };
    let Some(mut journal) = Journal::last(node)? else {
        print_lossy!("nothing to undo\n");
        return Ok(ExitCode::SUCCESS);
    };
    // In the opposite order, for the same reason: no account without PAM's lines.
    let replaced: Vec<_> = journal.replaced().iter().rev().cloned().collect();
    if replaced.is_empty() && journal.made().is_empty() {
        print_lossy!("nothing to undo\n");
    }

    let mut obstacle = false;
    for file in &replaced {
        match file.state(node)? {
            FileState::Lost => {
                let kept = file.kept.as_deref().unwrap_or_default();
                warn_line(format_args!("{} cannot be put back: {kept} is gone", file.path));
                obstacle = true;
            }
            FileState::Changed if !force => {
                let now = read(&file.place(node))?;
                print_lossy!("{}", difference(&file.path, Some(&file.written), now.as_deref()));
                warn_line(format_args!(
                    "{} has been changed since, as shown; --force puts the old one back all the same",
                    file.path
                ));
                obstacle = true;
            }
            _ => {}
        }
    }
    if !force && node.is_running() && leaves_accounts(node, &replaced)? {
        warn_line(
            "container users would get a session on the node: remove unbit from /etc/nsswitch.conf first, or give --force",
        );
        obstacle = true;
    }
    if obstacle {
        warn_line("nothing is undone");
        return Ok(ExitCode::FAILURE);
    }

    for file in &replaced {
        let old = file.kept_place(node).map(|kept| read(&kept)).transpose()?.flatten();
        if !matches!(file.state(node)?, FileState::Undone) {
            print_lossy!("{}", difference(&file.path, read(&file.place(node))?.as_deref(), old.as_deref()));
        }
        if !dry_run {
            file.put_back(node).with_context(|| format!("put back {}", file.path))?;
            journal.forget(file)?;
            let what = if file.kept.is_some() { "as it was before" } else { "removed" };
            print_lossy!("{}: {what}\n", escape::name(&file.path));
        }
    }
    if !dry_run {
        journal.remove_made(|path| print_lossy!("{}: removed\n", escape::name(path)));
        journal.remove()?;
        if Journal::last(node)?.is_some() {
            print_lossy!("The set-up before that one can be undone as well: {}\n", node.setup_command("--undo"));
        }
        if node.is_running() && replaced.iter().any(|file| file.path.starts_with("/etc/ssh/")) {
            print_lossy!("to make sshd read its files again: systemctl reload ssh\n");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether container users would get a session on the node, once these files are put back: the
/// accounts are there, and PAM or sshd does not keep them out.
fn leaves_accounts(node: &RootFs, replaced: &[Replaced]) -> Result<bool> {
    let after = |path: &str| -> Option<Option<String>> {
        let place = file::resolve_new(node, path).ok()?;
        let file = replaced.iter().find(|file| file.place(node) == place)?;
        Some(file.kept_place(node).and_then(|kept| read(&kept).ok().flatten()))
    };
    let nsswitch = match after(nsswitch::FILE) {
        Some(text) => text,
        None => read(&file::resolve_new(node, nsswitch::FILE)?)?,
    };
    if !nsswitch::names_accounts(&nsswitch.unwrap_or_default()) {
        return Ok(false);
    }
    let instead: Vec<_> = replaced.iter().map(|file| (file.place(node), file.kept_place(node))).collect();
    // An sshd that does not read its old files lets nobody in, and is not what they were for.
    Ok(!pam::will_keep_out(node, &after) || !sshd::will_use_pam(node, &instead).unwrap_or(false))
}
