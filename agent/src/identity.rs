//! Which user a process becomes when it drops its privileges, and the check that none is left.
//!
//! When that happens is decided by the callers.

use anyhow::{Context, Result, bail};
use join::sys::{become_user, clear_capabilities, set_groups, set_not_dumpable, try_to_become_root};
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{User, getegid, geteuid};
use shared::{ContainerUid, escape};

/// The user of the process that talks to the API, and of the collector. The package makes it.
pub const OWN_USER: &str = "_unbit-agent";
/// The user of uwsgi.it's routers.
pub const ROUTERS_USER: &str = "www-data";

/// A user of the node's, and its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    uid: u32,
    gid: u32,
}

impl Identity {
    /// Looks up a user of the system. Root and containers have no business here.
    pub fn of(name: &str) -> Result<Self> {
        let shown = escape::name(name);
        let user = User::from_name(name).with_context(|| format!("look up the user {shown}"))?;
        let Some(user) = user else {
            bail!("there is no user {shown}: systemd-sysusers makes {OWN_USER} (package unbit-agent)")
        };
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        if uid == 0 || gid == 0 || ContainerUid::new(uid).is_some() || ContainerUid::new(gid).is_some() {
            bail!("the user {shown} is root, in root's group, or a container's");
        }
        Ok(Self { uid, gid })
    }

    /// That of this process, which has nothing to give up.
    pub fn own() -> Self {
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }

    /// The numbers of user and group.
    pub const fn ids(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// Becomes it for good: with no other group, no capability, and nothing that a program could
    /// give back.
    pub fn assume(&self) -> Result<()> {
        if geteuid().is_root() {
            set_groups(&[self.gid]).context("drop root's groups")?;
            become_user(self.uid, self.gid).context("become another user")?;
        }
        clear_capabilities().context("give up capabilities")?;
        set_no_new_privs().context("set no_new_privs")?;
        set_not_dumpable().context("become not dumpable")?;
        if geteuid().as_raw() != self.uid || getegid().as_raw() != self.gid || try_to_become_root() {
            bail!("privileges are left");
        }
        Ok(())
    }
}
