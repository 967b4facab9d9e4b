//! The alarms that containers raise: each is a file in alarms/, which is sent to the API.
//!
//! Tenants make these files, so the name and the content can be any bytes. A file is opened by its
//! name, never through a symbolic link and never by a shell. The kernel says who owns it, and an
//! alarm counts for that container alone.

use super::Node;
use crate::api::Posted;
use crate::files::is_old;
use crate::report::{Action, Report};
use anyhow::{Context, Result, bail};
use join::regular_file::{self, OpenError};
use join::safe_path;
use join::sys::retry;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::Deserialize;
use shared::ContainerUid;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where they are, for people.
const NAME: &str = "alarms";
/// uWSGI writes a few hundred bytes.
const MAX_ALARM: u64 = 64 << 10;
/// What one round sends, of all containers and of each. The others wait.
const MAX_PER_ROUND: usize = 200;
const MAX_PER_OWNER: usize = 10;
/// How many containers' alarms the API may leave without a decision before the round ends.
const MAX_UNDECIDED: usize = 3;
/// How long one round reads the directory, where tenants can make files faster than it reads.
const MAX_LISTING_TIME: Duration = Duration::from_secs(5);

/// An alarm.
#[derive(Deserialize)]
pub struct Alarm {
    /// Whose it is.
    pub container: u32,
    unix: u64,
    msg: String,
}

impl Alarm {
    /// Where it is sent.
    pub fn path(&self) -> String {
        format!("/alarms/{}?unix={}", self.container, self.unix)
    }
}

/// What a file turns out to be.
enum Found {
    /// An alarm of this container's.
    Alarm(Alarm),
    /// It is removed, for this reason.
    Invalid(String),
    /// Somebody else has removed it.
    Gone,
}

pub fn round(node: &mut Node, report: &mut Report) -> Result<()> {
    let Some(directory) = open(node)? else { return Ok(()) };
    let mut sent = HashMap::new();
    let mut undecided = BTreeSet::new();
    let Listing { mut alarms, unfinished, is_whole } = list(&directory)?;
    if !is_whole {
        report.problem(format!(
            "{NAME} has so many files that not all were looked at: see who made them, and remove them"
        ));
    }
    for name in unfinished {
        remove(node, &directory, &name, report);
    }
    // Each round begins with another one, so that those of a few containers, which the API cannot
    // take, are not always before all others.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let start = now.subsec_micros() as usize % alarms.len().max(1);
    alarms.rotate_left(start);
    for name in alarms {
        if sent.values().sum::<usize>() >= MAX_PER_ROUND || undecided.len() >= MAX_UNDECIDED {
            break;
        }
        match read(&directory, &name) {
            Err(error) => report.problem(error),
            Ok(Found::Gone) => {}
            Ok(Found::Invalid(cause)) => {
                report.problem(format!("an alarm is dropped: {cause}"));
                remove(node, &directory, &name, report);
            }
            Ok(Found::Alarm(alarm)) => {
                let container = alarm.container;
                let of_it = sent.entry(container).or_insert(0);
                if *of_it < MAX_PER_OWNER && !undecided.contains(&container) {
                    *of_it += 1;
                    if !send(node, &directory, &name, alarm, report)? {
                        undecided.insert(container);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Opens the directory, in which others may make files. Root must own the path to it. `None` if it
/// does not exist.
fn open(node: &Node) -> Result<Option<OwnedFd>> {
    let path = node.directory.display();
    let parent = safe_path::open_directory(&node.directory).map_err(|error| anyhow::anyhow!("{path}: {error}"))?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match retry(|| openat(&parent, NAME, flags, Mode::empty())) {
        Err(Errno::ENOENT) => Ok(None),
        opened => opened.map(Some).with_context(|| format!("{path}/{NAME}")),
    }
}

/// The names that one round handles.
struct Listing {
    alarms: Vec<String>,
    /// Those that nobody will finish.
    unfinished: Vec<String>,
    is_whole: bool,
}

/// Lists the directory, with few names of each owner: however many files a tenant makes, those of
/// the others are among them.
fn list(directory: &OwnedFd) -> Result<Listing> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut entries = retry(|| Dir::openat(directory, ".", flags, Mode::empty())).context(NAME)?;
    let mut found = Listing { alarms: Vec::new(), unfinished: Vec::new(), is_whole: true };
    let mut of_owner = HashMap::new();
    let began = Instant::now();
    for entry in entries.iter() {
        let entry = entry.context(NAME)?;
        if began.elapsed() > MAX_LISTING_TIME {
            found.is_whole = false;
            break;
        }
        let Ok(name) = entry.file_name().to_str() else { continue };
        let kind = kind(name);
        if kind == Kind::Other {
            continue;
        }
        let Ok(status) = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        let count = of_owner.entry((status.st_uid, kind)).or_insert(0);
        let most = if status.st_uid == 0 { MAX_PER_ROUND } else { MAX_PER_OWNER };
        if *count >= most || kind == Kind::Unfinished && !is_old(&status) {
            continue;
        }
        *count += 1;
        match kind {
            Kind::Alarm => found.alarms.push(name.to_owned()),
            _ => found.unfinished.push(name.to_owned()),
        }
    }
    found.alarms.sort();
    Ok(found)
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    Alarm,
    Unfinished,
    Other,
}

/// What a name says: a UUID, or one with `.tmp`, which is an alarm that is still being written.
pub fn kind(name: &str) -> Kind {
    let is_uuid = |name: &str| {
        name.len() == 36
            && name.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            })
    };
    match name.strip_suffix(".tmp") {
        Some(name) if is_uuid(name) => Kind::Unfinished,
        None if is_uuid(name) => Kind::Alarm,
        _ => Kind::Other,
    }
}

fn read(directory: &OwnedFd, name: &str) -> Result<Found> {
    let file = match regular_file::open(directory, name) {
        Err(OpenError::Missing) => return Ok(Found::Gone),
        Err(OpenError::Link) => return Ok(Found::Invalid("it is a symbolic link".to_owned())),
        Err(OpenError::NotRegular) => return Ok(Found::Invalid("it is not a regular file".to_owned())),
        Err(OpenError::Failed(Errno::EWOULDBLOCK)) => return Ok(Found::Gone), // somebody holds a lease on it: another time
        Err(OpenError::Failed(errno)) => return Err(errno).with_context(|| format!("{NAME}/{name}")),
        Ok(file) => file,
    };
    let owner = fstat(&file).with_context(|| format!("{NAME}/{name}"))?.st_uid;
    let bytes = regular_file::read(file, MAX_ALARM).with_context(|| format!("{NAME}/{name}"))?;
    let alarm = match bytes {
        Some(bytes) => parse(&bytes, owner),
        None => Err(anyhow::anyhow!("longer than {MAX_ALARM} bytes")),
    };
    Ok(alarm.map_or_else(|cause| Found::Invalid(format!("uid {owner}: {cause:#}")), Found::Alarm))
}

/// An alarm of whoever owns the file: a container for itself, root for any.
pub fn parse(bytes: &[u8], owner: u32) -> Result<Alarm> {
    // uWSGI writes the bytes of a message as they are.
    let alarm: Alarm = serde_json::from_str(&String::from_utf8_lossy(bytes))
        .map_err(|_| anyhow::anyhow!("not the JSON of an alarm"))?;
    if ContainerUid::new(alarm.container).is_none() {
        bail!("{} is not a container's number", alarm.container);
    }
    if ![0, alarm.container].contains(&owner) {
        bail!("it speaks for container {}", alarm.container);
    }
    Ok(alarm)
}

/// Sends an alarm. Its file is removed once the API has accepted or refused the alarm. It stays for
/// the next round if the API does not answer, is broken, or refuses more than this alarm. Returns
/// whether the API has decided.
fn send(node: &mut Node, directory: &OwnedFd, name: &str, alarm: Alarm, report: &mut Report) -> Result<bool> {
    let path = alarm.path();
    if !node.is_dry_run {
        match node.api.post(&path, alarm.msg.clone().into_bytes())? {
            Posted::Created => {}
            // These are about this alarm, others about the node's certificate or the API.
            Posted::Refused(status @ (400 | 404 | 409 | 410 | 413 | 422)) => {
                report.problem(format!(
                    "POST /alarms/{}: the API refuses it ({status}), and it is dropped",
                    alarm.container
                ));
                remove(node, directory, name, report);
                return Ok(true);
            }
            Posted::Refused(status) => {
                report.problem(format!(
                    "POST /alarms/{}: the API answers {status}, and its alarms are kept",
                    alarm.container
                ));
                return Ok(false);
            }
        }
        unlink(directory, name, report);
    }
    report.change(Action::Send, path, Some(alarm.msg));
    Ok(true)
}

/// Removes what must not be there. A directory with something in it stays.
fn remove(node: &Node, directory: &OwnedFd, name: &str, report: &mut Report) {
    if node.is_dry_run || unlink(directory, name, report) {
        report.change(Action::Remove, node.directory.join(NAME).join(name).display().to_string(), None);
    }
}

/// Removes a name, or an empty directory that a tenant has made there. Returns whether it is gone.
fn unlink(directory: &OwnedFd, name: &str, report: &mut Report) -> bool {
    let removed = match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(directory, name, UnlinkatFlags::RemoveDir),
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    };
    if let Err(errno) = removed {
        report.problem(format!("remove {NAME}/{name}: {errno}"));
    }
    removed.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    #[test]
    fn a_name_is_a_uuid_and_nothing_that_a_shell_would_run() {
        assert_eq!(kind(UUID), Kind::Alarm);
        assert_eq!(kind(&format!("{UUID}.tmp")), Kind::Unfinished);
        // As long as a UUID, for Perl's open with two arguments.
        let command = format!("{:<35}|", "touch /tmp/by-root;");
        assert_eq!(command.len(), 36);
        let longer = format!("{UUID}0");
        for other in [
            command.as_str(),
            &longer,
            "../../../../../../../../../etc/passwd",
            "",
            ".",
            ".tmp",
            &UUID.replace('-', "0"),
        ] {
            assert_eq!(kind(other), Kind::Other, "{other:?}");
        }
    }

    #[test]
    fn a_container_speaks_for_itself_alone() {
        let json = br#"{"container": 30001, "unix": 1, "msg": "out of memory"}"#;
        assert!(parse(json, 30001).is_ok() && parse(json, 0).is_ok());
        for owner in [30002, 65534, 33] {
            assert!(parse(json, owner).err().unwrap().to_string().contains("speaks for container 30001"));
        }
        for bad in [
            &b""[..],
            b"{}",
            b"[]",
            b"{\"container\": 30001, \"unix\": 1}",
            br#"{"container": "30001/../../x", "unix": 1, "msg": ""}"#,
            br#"{"container": 33, "unix": 1, "msg": ""}"#,
            br#"{"container": 30001, "unix": -1, "msg": ""}"#,
            br#"{"container": 30001, "unix": "1&level=0", "msg": ""}"#,
        ] {
            assert!(parse(bad, 0).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
