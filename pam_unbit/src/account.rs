//! Identify: is this a container user, and of which container?
//!
//! This file knows names, uids and directories, and nothing about the processes of a container.

use crate::pam::Handle;
use join::proc::Proc;
use join::refusal::{Context, Reason, Refusal};
use join::safe_path::must_belong_to_root;
use join::sys::retry;
use nix::errno::Errno;
use nix::fcntl::readlink;
use nix::sys::stat::{lstat, stat};
use shared::settings::{CONTAINERS, CONTAINERS_PATH};
use shared::{ContainerUid, SecondName};
use std::os::unix::ffi::OsStrExt;
use std::time::SystemTime;
use std::{fmt, fs, io};

/// The account that logs in.
pub enum Account {
    /// A container's user: this module decides.
    Container(ContainerUser),
    /// An ordinary user, whatever the uid: this module ignores the login.
    Other,
    /// No such account. The rest of the stack refuses it like any other, so that nobody can find
    /// out which containers exist.
    Unknown,
}

/// A container user, by the name that was used to log in. The log shows it as `30001` or `30001
/// (web1)`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ContainerUser {
    pub container: ContainerUid,
    second_name: Option<SecondName>,
}

impl fmt::Display for ContainerUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.second_name {
            None => self.container.fmt(f),
            Some(name) => write!(f, "{} ({name})", self.container),
        }
    }
}

/// Decides by the name, the uid and the container's directory. An account that has a container's
/// number as its name and another uid is refused, and so is one that has its uid and another name,
/// unless root has made that a second name.
pub fn identify(pam: &Handle) -> Result<Account, Refusal> {
    let Some(name) = pam.user() else { return Ok(Account::Unknown) };
    let named = ContainerUid::parse(name.to_bytes());
    let no_container = |cause: String| Err(Refusal::new(Reason::NoContainer, cause));
    let Some(entry) = pam.passwd(name) else {
        return match named {
            Some(_) => {
                no_container("there is no such account (no directory of its own, or NSS lacks unbit)".to_owned())
            }
            None => Ok(Account::Unknown),
        };
    };
    match (named, ContainerUid::new(entry.uid)) {
        (Some(named), Some(container)) if named == container && entry.gid == entry.uid => match exists(container)? {
            true => Ok(Account::Container(ContainerUser { container, second_name: None })),
            false => no_container(format!("the account has no directory {} of its own", path(container))),
        },
        (Some(_), _) => no_container(format!(
            "the name is a container's number, but the account has uid {} and gid {}",
            entry.uid, entry.gid
        )),
        (None, Some(container)) if exists(container)? => match SecondName::parse(name.to_bytes()) {
            Some(name) if entry.gid == entry.uid && is_linked(&name, container)? => {
                Ok(Account::Container(ContainerUser { container, second_name: Some(name) }))
            }
            _ => no_container(format!(
                "uid {} belongs to container {container} but not to an account of this name",
                entry.uid
            )),
        },
        (None, _) => Ok(Account::Other),
    }
}

/// Whether there is such a container. If stat(2) fails, the login is refused.
fn exists(container: ContainerUid) -> Result<bool, Refusal> {
    #[cfg(test)]
    if crate::pam::fake::has_directory(container) {
        return Ok(true);
    }
    match retry(|| stat(container.home().as_c_str())) {
        Ok(status) => Ok(container.owns_directory(status.st_mode, status.st_uid, status.st_gid)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(false),
        Err(errno) => Err(errno).context(Reason::Broken, format_args!("stat {}", path(container))),
    }
}

/// Refuses a login that began before the account's directory was made. Its key can be in a file of
/// an earlier user of the number, which sshd had opened before that user was removed.
pub fn must_be_older_than_this_login(container: ContainerUid) -> Result<(), Refusal> {
    #[cfg(test)]
    if crate::pam::fake::has_directory(container) {
        return Ok(());
    }
    let directory = path(container);
    let metadata = || fs::metadata(&directory).map_err(|error| Errno::try_from(error).unwrap_or(Errno::UnknownErrno));
    let status = retry(metadata).context(Reason::Broken, format_args!("stat {directory}"))?;
    let Ok(made) = status.created() else { return Ok(()) }; // its file system does not know
    let age = Proc::of_self().map_err(io::Error::from).and_then(|process| process.age());
    let age = age.context(Reason::Broken, "read when this process began")?;
    // With a clock that was set back since, it seems to be made later than now, and nothing is
    // known.
    match SystemTime::now().duration_since(made) {
        Ok(elapsed) if elapsed < age => Err(Refusal::new(
            Reason::NoContainer,
            format!(
                "{directory} was made {:.1} s ago, and this login began {:.1} s ago: its key may be that of an earlier user of the number",
                elapsed.as_secs_f64(),
                age.as_secs_f64()
            ),
        )),
        _ => Ok(()),
    }
}

/// Whether root has made this a second name of the container. Only root may be able to make links
/// there.
fn is_linked(name: &SecondName, container: ContainerUid) -> Result<bool, Refusal> {
    let link = name.link_path().to_string_lossy();
    match retry(|| readlink(name.link_path())) {
        Ok(text) if SecondName::target_of(text.as_bytes()) == Some(container) => {}
        Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EINVAL) => return Ok(false),
        Err(errno) => return Err(errno).context(Reason::Broken, format_args!("readlink {link}")),
    }
    let status = retry(|| lstat(name.link_path())).context(Reason::Broken, format_args!("lstat {link}"))?;
    let directory = retry(|| stat(CONTAINERS_PATH)).context(Reason::Broken, format_args!("stat {CONTAINERS}"))?;
    let misconfigured =
        |cause| Refusal::new(Reason::Misconfigured, format!("{link} is a symbolic link to {container}, but {cause}"));
    if status.st_uid != 0 {
        return Err(misconfigured(format!("it belongs to uid {}, not to root", status.st_uid)));
    }
    must_belong_to_root(&directory).map_err(|seen| misconfigured(format!("{CONTAINERS} {seen}")))?;
    Ok(true)
}

fn path(container: ContainerUid) -> String {
    container.home().as_c_str().to_string_lossy().into_owned()
}
