//! SSH public keys of a container user: read from the operator, checked by ssh-keygen(1), and
//! written as the container user.
//!
//! The tenant owns the directory, and anything can be in it. So no root process opens a path below
//! it. A child process does, see [`join::tenant`].

use crate::command;
use anyhow::{Context, Result, bail};
use join::regular_file::{self, OpenError};
use join::tenant::{self, Directory};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};
use shared::ContainerUid;
use std::fs::File;
use std::io::{Read, stdin};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where sshd looks, and the file that is written there.
const DIRECTORY: &str = ".ssh";
const FILE: &str = "authorized_keys";
/// What its name ends in until it is complete.
const SUFFIX: &str = ".unbitctl";

/// More than anybody's keys.
pub(crate) const MAX_KEY_FILE: u64 = 1 << 20;

/// One public key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Key {
    /// The line of authorized_keys(5), options and comment included.
    line: String,
    /// Its bits, fingerprint, comment and type, as ssh-keygen shows them.
    pub shown: String,
}

impl Key {
    /// Whether it is one of these lines.
    pub fn is_in(&self, lines: &[String]) -> bool {
        lines.contains(&self.line)
    }
}

/// Reads the keys of these files.
pub fn read_all(files: &[PathBuf]) -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    for file in files {
        keys.extend(read(file)?);
        if keys.iter().map(|key| key.line.len() as u64).sum::<u64>() > MAX_KEY_FILE {
            bail!("the keys have more than {MAX_KEY_FILE} bytes together");
        }
    }
    Ok(keys)
}

/// Reads the keys of a file, or of standard input for `-`. A line that is not a key is refused.
fn read(file: &Path) -> Result<Vec<Key>> {
    let name = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(stdin())
    } else {
        Box::new(File::open(file).with_context(|| name.clone())?)
    };
    let Some(bytes) = regular_file::read(source, MAX_KEY_FILE).with_context(|| name.clone())? else {
        bail!("{name} is too long for an authorized_keys file")
    };
    let text =
        String::from_utf8(bytes).ok().with_context(|| format!("{name} is not text, so it is not a public key"))?;
    if text.contains("PRIVATE KEY-----") {
        bail!("{name} is a private key, which never leaves its owner: the public one is in the file with .pub");
    }
    let lines = text.lines().map(str::trim).enumerate();
    let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let keys = keys.map(|(at, line)| check(line).with_context(|| format!("{name}, line {}", at + 1)));
    let keys = keys.collect::<Result<Vec<_>>>()?;
    if keys.is_empty() {
        bail!("{name} contains no public key");
    }
    Ok(keys)
}

/// Asks ssh-keygen whether sshd could read this line.
fn check(line: &str) -> Result<Key> {
    if let Some(odd) = line.chars().find(|letter| letter.is_control() && *letter != '\t') {
        bail!("the character {} is in it", odd.escape_unicode());
    }
    if identity(line).is_some_and(|(kind, _)| kind.contains("-cert-v01@")) {
        bail!("it is a certificate: sshd takes those by TrustedUserCAKeys or cert-authority, not from a user's file");
    }
    let answer = command::run_with_input("ssh-keygen", &["-l", "-f", "-"], &format!("{line}\n"))
        .context("ssh-keygen (package openssh-client)")?;
    let shown = answer.out.trim().to_owned();
    match identity(line) {
        Some(_) if answer.succeeded() && shown.lines().count() == 1 => Ok(Key { line: line.to_owned(), shown }),
        _ => bail!("it is not a public key: ssh-keygen -l does not know it"),
    }
}

/// Whether a word begins as all types of keys do (ssh -Q key).
pub(crate) fn is_type(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-"].iter().any(|begin| word.starts_with(begin))
}

/// The type and the base64 of a line, which identify a key; options come before them and a comment
/// behind.
pub(crate) fn identity(line: &str) -> Option<(&str, &str)> {
    let words = line.split_whitespace();
    words.clone().zip(words.skip(1)).find(|(kind, blob)| is_type(kind) && blob.starts_with("AAAA"))
}

/// What the container's user has done to its authorized_keys.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Added {
    /// Which of the keys were not there.
    pub lines: Vec<String>,
    made_directory: bool,
    made_file: bool,
}

/// Adds those of the keys that are not there, as the container's user.
pub fn add(uid: ContainerUid, keys: &[Key]) -> Result<Added> {
    as_the_user(uid, || {
        let home = open_home(uid)?;
        let (directory, made_directory) = open_directory(&home)?;
        let result = add_to(&directory, keys);
        if made_directory && result.is_err() {
            let _ = unlinkat(&home, DIRECTORY, UnlinkatFlags::RemoveDir);
        }
        result.map(|added| Added { made_directory, ..added })
    })
}

fn add_to(directory: &Directory, keys: &[Key]) -> Result<Added> {
    let old = read_file(directory)?;
    let text = old.clone().unwrap_or_default();
    let has = |key: &Key| {
        let known = String::from_utf8_lossy(&text);
        let mut lines = known.lines().filter(|line| !line.trim_start().starts_with('#'));
        lines.any(|line| identity(line).is_some() && identity(line) == identity(&key.line))
    };
    let mut lines: Vec<String> = Vec::new();
    for key in keys.iter().filter(|key| !has(key)) {
        if !lines.contains(&key.line) {
            lines.push(key.line.clone());
        }
    }
    if lines.is_empty() {
        return Ok(Added::default());
    }
    let mut new = text;
    if new.last().is_some_and(|byte| *byte != b'\n') {
        new.push(b'\n');
    }
    lines.iter().for_each(|line| new.extend(format!("{line}\n").bytes()));
    write_file(directory, &new)?;
    Ok(Added { lines, made_file: old.is_none(), made_directory: false })
}

/// Takes the lines out again that were added, and removes what was made for them.
pub fn take_back(uid: ContainerUid, added: &Added) -> Result<()> {
    as_the_user(uid, || {
        let home = open_home(uid)?;
        let (directory, _) = open_directory(&home)?;
        let text = read_file(&directory)?.unwrap_or_default();
        let is_ours = |line: &[u8]| added.lines.iter().any(|other| other.as_bytes() == line.trim_ascii());
        let kept: Vec<_> = text.split_inclusive(|byte| *byte == b'\n').filter(|line| !is_ours(line)).collect();
        if added.made_file && kept.is_empty() {
            unlinkat(&directory, FILE, UnlinkatFlags::NoRemoveDir).context(FILE)?;
        } else {
            write_file(&directory, &kept.concat())?;
        }
        if added.made_directory {
            let _ = unlinkat(&home, DIRECTORY, UnlinkatFlags::RemoveDir); // unless there is more in it by now
        }
        Ok(())
    })
}

/// Whether there is anything in one of the files that sshd reads by default.
pub fn any(uid: ContainerUid) -> Result<bool> {
    as_the_user(uid, || {
        let home = open_home(uid)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(directory) = openat(&home, DIRECTORY, flags, Mode::empty()) else { return Ok(false) };
        let has = |name: &str| {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let found = openat(&directory, name, flags, Mode::empty()).and_then(fstat);
            found.is_ok_and(|status| status.st_size > 0)
        };
        Ok([FILE, "uwsgi_authorized_keys"].into_iter().any(has))
    })
}

/// What is in authorized_keys, if there is one. Nothing but a regular file is read.
fn read_file(directory: &Directory) -> Result<Option<Vec<u8>>> {
    let name = format!("{DIRECTORY}/{FILE}");
    let file = match regular_file::open(directory, FILE) {
        Err(OpenError::Missing) => return Ok(None),
        Err(OpenError::Link) => bail!("{name} is a symbolic link, and is left as it is"),
        Err(OpenError::NotRegular) => bail!("{name} is not a regular file, and is left as it is"),
        Err(OpenError::Failed(errno)) => return Err(errno).context(name),
        Ok(file) => file,
    };
    match regular_file::read(file, MAX_KEY_FILE).with_context(|| name.clone())? {
        Some(bytes) => Ok(Some(bytes)),
        None => bail!("{name} is too long for an authorized_keys file, and is left as it is"),
    }
}

fn write_file(directory: &Directory, bytes: &[u8]) -> Result<()> {
    directory.replace(FILE, SUFFIX, bytes).map_err(anyhow::Error::msg)
}

fn open_home(uid: ContainerUid) -> Result<OwnedFd> {
    tenant::open_home(uid).map_err(anyhow::Error::msg)
}

/// The directory of keys, and whether it was made.
fn open_directory(home: &OwnedFd) -> Result<(Directory, bool)> {
    match Directory::open(home, DIRECTORY).map_err(anyhow::Error::msg)? {
        Some(directory) => Ok((directory, false)),
        None => Ok((Directory::make(home, DIRECTORY).map_err(anyhow::Error::msg)?, true)),
    }
}

/// Runs `work` in a process that is the container's user, without groups or capabilities, and
/// returns its result.
pub fn as_the_user<T: Serialize + for<'a> Deserialize<'a>>(
    uid: ContainerUid,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let in_json = || {
        let said = work().map_err(|error| format!("{error:#}"))?;
        serde_json::to_vec(&said).map_err(|error| error.to_string())
    };
    let said = tenant::run_as(uid, in_json).map_err(anyhow::Error::msg)?;
    serde_json::from_slice(&said).context("the answer of the process that works there")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4Zu4cnLJAy0BNJDrKZLHPCDRIDRpBKGLFTcYIxKuyn ada@home";

    fn read_text(name: &str, text: &[u8]) -> Result<Vec<Key>> {
        let file = std::env::temp_dir().join(format!("unbitctl-key-{name}-{}", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let keys = read(&file);
        std::fs::remove_file(&file).unwrap();
        keys
    }

    #[test]
    fn a_key_is_what_ssh_keygen_knows() {
        let text = format!("# ada's\n\n  {ED25519}\r\nno-pty,command=\"a \\\" ssh-x\" {ED25519}\n");
        let keys = read_text("good", text.as_bytes()).unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[0].line, ED25519);
        assert!(keys[0].shown.starts_with("256 SHA256:") && keys[0].shown.ends_with("ada@home (ED25519)"), "{keys:?}");
        assert_eq!(keys[0].shown, keys[1].shown);
    }

    #[test]
    fn whatever_else_is_refused_and_named() {
        let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n";
        for (name, text, cause) in [
            ("empty", "", "contains no public key"),
            ("comment", "# only this\n", "contains no public key"),
            ("private", key, "is a private key"),
            ("words", "hello\n", "line 1: it is not a public key"),
            ("short", &format!("{ED25519}\nssh-ed25519 AAAAC3Nz x\n"), "line 2: it is not a public key"),
            ("control", &ED25519.replace(" ada", " \u{1b}[2Jada"), "the character \\u{1b}"),
            ("certificate", "ssh-ed25519-cert-v01@openssh.com AAAA x", "it is a certificate"),
        ] {
            let error = format!("{:#}", read_text(name, text.as_bytes()).unwrap_err());
            assert!(error.contains(cause), "{name}: {error}");
        }
        assert!(format!("{:#}", read_text("bytes", b"\xff\xfe").unwrap_err()).contains("is not text"));
        assert!(format!("{:#}", read(Path::new("/is/not/there")).unwrap_err()).contains("/is/not/there"));
    }

    #[test]
    fn two_lines_are_one_key_if_type_and_base64_are_the_same() {
        assert_eq!(
            identity(ED25519),
            identity(&format!("no-pty,from=\"a b\" {} other", ED25519.replace(" ada@home", "")))
        );
        assert_eq!(identity("ssh-ed25519"), None);
        assert_eq!(identity("command=\"ssh-x\" nothing"), None);
    }
}
