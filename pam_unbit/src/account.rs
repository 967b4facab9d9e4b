//! Identify: whose login is it?

use crate::pam::Handle;
use join::refusal::{Reason, Refusal, Step};
use join::sys::retry;
use nix::errno::Errno;
use nix::sys::stat::stat;
use shared::ContainerUid;

/// Who logs in, as far as this module is concerned.
pub enum Account {
    /// A container's user: this module decides.
    Container(ContainerUid),
    /// An ordinary user, whatever the uid: none of this module's business.
    Other,
    /// No such account. The rest of the stack refuses it, in its own time and words, so that nobody can tell names apart.
    Unknown,
}

/// Decides by the name, the uid and the container's directory. A container's number is nobody else's: neither its name with another uid, nor its uid
/// with another name.
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
            true => Ok(Account::Container(container)),
            false => no_container(format!("the account has no directory {} of its own", path(container))),
        },
        (Some(_), _) => no_container(format!(
            "the name is a container's number, but the account has uid {} and gid {}",
            entry.uid, entry.gid
        )),
        (None, Some(container)) if exists(container)? => no_container(format!(
            "uid {} belongs to container {container} but not to an account of this name",
            entry.uid
        )),
        (None, _) => Ok(Account::Other),
    }
}

/// Whether there is such a container. Where that cannot be told, nobody is let in.
fn exists(container: ContainerUid) -> Result<bool, Refusal> {
    match retry(|| stat(container.home().as_c_str())) {
        Ok(status) => Ok(container.is_owner_of(status.st_mode, status.st_uid, status.st_gid)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(false),
        Err(errno) => Err(errno).step(Reason::Broken, format_args!("stat {}", path(container))),
    }
}

fn path(container: ContainerUid) -> String {
    container.home().as_c_str().to_string_lossy().into_owned()
}
