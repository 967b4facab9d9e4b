//! The keys of container users. The directory is the tenant's, so it is the tenant who writes there: see join::tenant.

use super::Node;
use crate::report::{Action, Report};
use anyhow::{Context, Result, bail};
use join::tenant;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};
use shared::ContainerUid;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

const DIRECTORY: &str = ".ssh";
const FILE: &str = "uwsgi_authorized_keys";
/// Its name until it is complete.
const NEW: &str = ".uwsgi_authorized_keys.unbit-agent";
/// More than anybody's keys.
const LONGEST: u64 = 1 << 20;

pub fn round(node: &mut Node, report: &mut Report) -> Result<()> {
    let listed = node.api.containers()?;
    for (&number, about) in &listed {
        let Some(uid) = ContainerUid::new(number) else { continue };
        if node.memory.keys.get(&number) == Some(&about.keys_changed) || !has_home(uid) {
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
            Err(error) => report.problem(format!("{error:#}")),
        }
    }
    node.memory.keys.retain(|uid, _| listed.contains_key(uid));
    Ok(())
}

/// The text as it is written: each line with an end. A text without keys would lock the tenant out, and the API lists no container that has none.
fn lines(text: &str) -> Result<Vec<u8>> {
    let text = text.trim();
    let has_key = text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    if !has_key {
        bail!("no key in the answer");
    }
    Ok(format!("{}\n", text.replace('\r', "")).into_bytes())
}

/// Whether the account's directory is there yet: the container makes it when it starts for the first time.
fn has_home(uid: ContainerUid) -> bool {
    open_home(uid).is_ok()
}

/// Writes the keys, if they are others than those there are; whether they are.
fn write(uid: ContainerUid, text: &[u8], is_dry_run: bool) -> Result<bool> {
    let work = || {
        let differs = write_as_the_user(uid, text, is_dry_run).map_err(|error| format!("{error:#}"))?;
        Ok(vec![u8::from(differs)])
    };
    let said = tenant::run_as(uid, work).map_err(anyhow::Error::msg)?;
    Ok(said == [1])
}

fn write_as_the_user(uid: ContainerUid, text: &[u8], is_dry_run: bool) -> Result<bool> {
    let home = open_home(uid)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let try_it = || openat(&home, DIRECTORY, flags, Mode::empty());
    let directory = match try_it() {
        Err(Errno::ENOENT) if is_dry_run => return Ok(true),
        Err(Errno::ENOENT) => {
            mkdirat(&home, DIRECTORY, Mode::S_IRWXU).with_context(|| format!("make {DIRECTORY}"))?;
            try_it().context(DIRECTORY)?
        }
        Err(Errno::ELOOP | Errno::ENOTDIR) => bail!("{DIRECTORY} is a link or no directory, and is left as it is"),
        opened => opened.context(DIRECTORY)?,
    };
    if read(&directory)?.as_deref() == Some(text) {
        return Ok(false);
    }
    if !is_dry_run {
        replace(&directory, text)?;
    }
    Ok(true)
}

/// The directory of the account. A link that root made in its place is followed.
fn open_home(uid: ContainerUid) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let home = open(uid.home().as_c_str(), flags, Mode::empty())?;
    let status = fstat(&home)?;
    if !uid.is_owner_of(status.st_mode, status.st_uid, status.st_gid) {
        bail!("it belongs to {}:{}", status.st_uid, status.st_gid);
    }
    Ok(home)
}

/// What is in the file, if there is one that can be compared. What is none will be replaced by one, and never followed.
fn read(directory: &OwnedFd) -> Result<Option<Vec<u8>>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = match openat(directory, FILE, flags, Mode::empty()) {
        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO | Errno::EACCES | Errno::EWOULDBLOCK) => return Ok(None),
        file => file.with_context(|| format!("{DIRECTORY}/{FILE}"))?,
    };
    if SFlag::from_bits_truncate(fstat(&file)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    File::from(file).take(LONGEST + 1).read_to_end(&mut bytes).with_context(|| format!("{DIRECTORY}/{FILE}"))?;
    Ok(Some(bytes))
}

/// Puts a whole new file in its place, atomically. It is renamed over a link, not written through it.
fn replace(directory: &OwnedFd, text: &[u8]) -> Result<()> {
    match unlinkat(directory, NEW, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno).with_context(|| format!("remove {DIRECTORY}/{NEW}")),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let new = openat(directory, NEW, flags, Mode::S_IRUSR | Mode::S_IWUSR);
    let mut new = File::from(new.with_context(|| format!("make {DIRECTORY}/{NEW}"))?);
    let written = new.write_all(text).map_err(anyhow::Error::from).and_then(|()| Ok(fsync(new.as_fd())?));
    // Another process of ours may be at the same file: `once` beside `run`.
    let is_ours =
        || Ok::<_, anyhow::Error>(fstat(&new)?.st_ino == fstatat(directory, NEW, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_ino);
    written
        .and_then(|()| if is_ours()? { Ok(()) } else { bail!("another process writes it as well") })
        .and_then(|()| Ok(renameat(directory, NEW, directory, FILE)?))
        .inspect_err(|_| {
            let _ = unlinkat(directory, NEW, UnlinkatFlags::NoRemoveDir);
        })
        .and_then(|()| Ok(fsync(directory.as_fd())?))
        .with_context(|| format!("write {DIRECTORY}/{FILE}"))
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
