//! Identify: whose login is it?

use crate::pam::Handle;
use join::refusal::{Reason, Refusal};
use shared::ContainerUid;
use shared::settings::FIRST_UID;

/// Who logs in, as far as this module is concerned.
pub enum Account {
    /// A container's user: this module decides.
    Container(ContainerUid),
    /// A uid below the containers': none of this module's business.
    Other,
    /// No such account. The rest of the stack refuses it, in its own time and words, so that nobody can tell names apart.
    Unknown,
}

/// Decides by the uid alone whether this module is responsible, and refuses a container's uid under any other name than its own.
pub fn identify(pam: &Handle) -> Result<Account, Refusal> {
    let Some(name) = pam.user() else { return Ok(Account::Unknown) };
    let Some(entry) = pam.passwd(name) else {
        return match ContainerUid::parse(name.to_bytes()) {
            Some(_) => Err(Refusal::new(
                Reason::NoContainer,
                "there is no such account (no directory of its own, or NSS lacks unbit)",
            )),
            None => Ok(Account::Unknown),
        };
    };
    if entry.uid < FIRST_UID {
        return Ok(Account::Other);
    }
    match ContainerUid::parse(name.to_bytes()) {
        Some(container) if container.get() == entry.uid && entry.gid == entry.uid => Ok(Account::Container(container)),
        _ => Err(Refusal::new(
            Reason::NoContainer,
            format!("uid {} and gid {} belong to containers but not to an account of this name", entry.uid, entry.gid),
        )),
    }
}
