//! `unbitctl remove`: stops a container that the Emperor runs, and removes what `create` made. Its
//! user's files stay, except with `--purge`.

use crate::attach;
use crate::command_line::must_be_root;
use crate::containers::{VASSALS, vassals_of};
use crate::interrupt::Interrupt;
use crate::lock::Lock;
use crate::names::{self, Account};
use crate::progress::{Done, Progress};
use crate::purge::purge;
use crate::report;
use crate::rootfs::RootFs;
use crate::sys::DiskLimit;
use crate::{leftovers, quota, stop, terminal};
use anyhow::{Context, Result, bail};
use join::link::{DIRECTORY, Link};
use join::refusal::Reason;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::Serialize;
use shared::ContainerUid;
use shared::settings::CONTAINERS;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

pub const EXAMPLES: &str = "\
Examples:
  unbitctl remove 30001             stop it; create starts it again, with its files
  unbitctl remove 30001 --purge     and remove all of its files";

#[derive(clap::Args)]
pub struct Arguments {
    /// The container: its number, or a second name that it has
    #[arg(value_name = "UID", value_parser = Account::parse)]
    account: Account,
    /// Also remove its directory with all files, and so the account
    #[arg(long)]
    purge: bool,
    /// Do not ask before a purge
    #[arg(long, requires = "purge")]
    yes: bool,
    /// Give up after this many seconds if it has not ended
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is written to standard output with --json.
#[derive(Serialize)]
struct JsonOutput<'a> {
    uid: u32,
    changed: bool,
    steps: &'a [Done],
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    must_be_root("remove")?;
    let (uid, _lock) = Lock::of_container(&arguments.account)?;
    let home = Home::find(uid)?;
    if arguments.purge {
        must_not_be_anothers(uid)?;
        home.must_be_purgeable()?;
        if home.is_there() && !arguments.yes && !is_sure(&home)? {
            bail!("nothing has been changed");
        }
    }
    let interrupt = Interrupt::hold()?;
    let mut progress = Progress::new(arguments.json);
    stop_it(uid, arguments.timeout, &interrupt, &mut progress)?;
    unlink(uid, &mut progress)?;
    if arguments.purge {
        home.purge(&interrupt, &mut progress)?;
    } else if home.is_there() {
        progress.found("directory", format!("{}: stays; --purge removes it", home.path.display()));
    }
    if !progress.has_changed() {
        progress.text(&format!("{uid}: there is nothing to remove\n"));
    }
    if arguments.json {
        let output = JsonOutput { uid: uid.get(), changed: progress.has_changed(), steps: progress.done() };
        report::print(&(serde_json::to_string_pretty(&output)? + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes its vassal and waits until it has ended.
fn stop_it(uid: ContainerUid, timeout: u64, interrupt: &Interrupt, progress: &mut Progress) -> Result<()> {
    let groups = stop::groups(uid);
    let vassals = vassals_of(uid);
    for file in &vassals {
        fs::remove_file(file).with_context(|| format!("remove {}", file.display()))?;
        progress.changed("vassal", format!("{}: removed", file.display()));
    }
    if vassals.is_empty() && is_linked(uid) {
        return Ok(()); // another engine runs and stops it
    }
    if vassals.is_empty() {
        progress.found("vassal", format!("{VASSALS} has none"));
    }
    let end = stop::wait(uid, groups, Duration::from_secs(timeout), interrupt, &mut |what| progress.now(what))?;
    match end {
        stop::End::DidNotRun => progress.found("stop", "it did not run"),
        stop::End::Stopped => progress.changed("stop", "it has ended, and its cgroups are gone"),
        stop::End::Killed => progress.changed("stop", "it did not end by itself and was killed; its cgroups are gone"),
    }
    Ok(())
}

fn is_linked(uid: ContainerUid) -> bool {
    Path::new(DIRECTORY).join(uid.to_string()).is_symlink()
}

/// Refuses to purge the directory of another engine's container that runs. One that cannot be
/// entered, for example a paused one, may still run.
fn must_not_be_anothers(uid: ContainerUid) -> Result<()> {
    let limit = join::Deadline::after(Duration::from_secs(3));
    match Link::read(uid).and_then(|link| link.map(|link| link.find_leader(limit)).transpose()) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => {
            bail!("{uid} is a container of another engine ({DIRECTORY}/{uid}), and runs: stop it there first")
        }
        Err(refusal) if refusal.reason == Reason::NotRunning => Ok(()),
        Err(refusal) => bail!(
            "{uid} is a container of another engine ({DIRECTORY}/{uid}), and may run ({}): stop it there first; \
             if it no longer exists: unbitctl detach {uid}",
            refusal.cause,
        ),
    }
}

fn unlink(uid: ContainerUid, progress: &mut Progress) -> Result<()> {
    for (what, target) in attach::unlink(uid)? {
        let target = target.map_or_else(String::new, |target| format!(" -> {}", target.display()));
        progress.changed("link", format!("{}{target}: removed", what.display()));
    }
    Ok(())
}

/// The directory of the account.
struct Home {
    uid: ContainerUid,
    path: PathBuf,
    /// Its name while it is purged, by which it is no account.
    purge_name: String,
    found: Option<fs::Metadata>,
}

impl Home {
    fn find(uid: ContainerUid) -> Result<Self> {
        let path = Path::new(CONTAINERS).join(uid.to_string());
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        Ok(Self { uid, path, purge_name: format!(".{uid}.purge"), found })
    }

    fn is_there(&self) -> bool {
        self.found.is_some() || self.purge_path().symlink_metadata().is_ok()
    }

    fn purge_path(&self) -> PathBuf {
        Path::new(CONTAINERS).join(&self.purge_name)
    }

    fn must_be_purgeable(&self) -> Result<()> {
        let (uid, shown) = (self.uid, self.path.display());
        match &self.found {
            Some(found) if found.is_symlink() => {
                bail!("{shown} is a symbolic link: remove it and what it leads to by hand")
            }
            Some(found) if !uid.owns_directory(found.mode(), found.uid(), found.gid()) => {
                bail!("{shown} belongs to {}:{}, so it is not {uid}'s", found.uid(), found.gid())
            }
            _ => Ok(()),
        }
    }

    /// Renames it first, so it is no account any more, and resumes an interrupted purge.
    fn purge(&self, interrupt: &Interrupt, progress: &mut Progress) -> Result<()> {
        let shown = self.path.display().to_string();
        let containers = Path::new(CONTAINERS);
        let mut removed = 0;
        let mut purge_directory = |name: &str, progress: &Progress| {
            purge(containers, name, &mut |count| {
                removed = count;
                if count % 1000 == 0 {
                    progress.now(format!("removing {shown}: {count} files"));
                }
                interrupt.check()
            })
            .with_context(|| {
                format!("not everything has been removed; run it again: unbitctl remove {} --purge", self.uid)
            })
        };
        let had_begun = self.purge_path().symlink_metadata().is_ok();
        purge_directory(&self.purge_name, progress)?;
        if self.found.is_some() {
            match renameat2(AT_FDCWD, &self.path, AT_FDCWD, &self.purge_path(), RenameFlags::RENAME_NOREPLACE) {
                Err(nix::errno::Errno::EBUSY) => {
                    bail!("{shown} is a mount point: umount {shown}, and remove what was mounted")
                }
                other => other.with_context(|| shown.clone())?,
            }
            purge_directory(&self.purge_name, progress)?;
        }
        // Also without a directory: an earlier purge may have failed here.
        leftovers::remove(self.uid).context("remove what the node keeps of its user")?;
        if self.found.is_some() || had_begun {
            progress.changed("directory", format!("{shown}: removed, with {removed} files"));
        }
        for name in names::names_of(self.uid) {
            let link = names::link_path(&name);
            fs::remove_file(&link).with_context(|| link.display().to_string())?;
            progress.changed("name", format!("{}: removed", link.display()));
        }
        let node = RootFs::at(None);
        if let Some(state) = quota::state(&node, self.uid).ok().filter(quota::State::is_limited) {
            state.set(self.uid, DiskLimit::default())?;
            progress.changed("disk", "the limit is removed");
        }
        Ok(())
    }
}

/// Asks the operator, on a terminal.
fn is_sure(home: &Home) -> Result<bool> {
    let shown = home.path.display();
    if !terminal::can_ask() {
        bail!("{shown} and all files in it would be removed: confirm with --yes");
    }
    let question = format!("{shown} and all files in it will be removed, for good. Type {} to go on:", home.uid);
    Ok(terminal::ask(&question)?.trim() == home.uid.to_string())
}
