//! Privileges: the ids, groups and capabilities that it takes to enter, and how a process drops
//! them.
//!
//! What the session takes over from pid 1 is in [`confinement`](crate::confinement).

use crate::refusal::{Context, Reason, Refusal};
use crate::sys::{self, retry};
use crate::user_namespace::Ids;
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, getgid, getuid, setfsgid, setfsuid, setgroups, setresgid};
use shared::ContainerUid;

/// Needed to open the namespaces of another user's process, to join them, to become the container's
/// user, and to empty the bounding set.
pub const NEEDED: [Capability; 6] = [
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
];

/// Checked first: a later failure for lack of a capability would look like a container that has
/// ended.
pub fn must_suffice_to_enter() -> Result<(), Refusal> {
    let has = sys::with_errno(|| caps::read(None, CapSet::Effective));
    let has = has.context(Reason::Broken, "read our own capabilities")?;
    let lacking: Vec<_> = NEEDED.iter().filter(|needed| !has.contains(needed)).map(Capability::to_string).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let cause = format!("this process lacks {} (does its service have CapabilityBoundingSet=?)", lacking.join(" "));
    Err(Refusal::new(Reason::Misconfigured, cause))
}

/// Drops every supplementary group. In a user namespace with `setgroups deny` that is impossible.
pub fn leave_groups() -> Result<(), Refusal> {
    sys::set_groups(&[]).context(Reason::Broken, "drop root's groups")
}

/// In the node's user namespace: becomes the container's user, with no group but its own.
pub fn become_user(container: ContainerUid) -> Result<(), Refusal> {
    let Ids { uid, gid } = Ids::of(container);
    sys::set_groups(&[gid])
        .and_then(|()| sys::become_user(uid, gid))
        .context(Reason::Broken, "become the container's user")
}

/// In the container's user namespace: becomes its user. This drops no capability, because the
/// node's uid 0 is not root there.
pub fn become_user_inside(container: ContainerUid) -> Result<(), Refusal> {
    let Ids { uid, gid } = Ids::of(container);
    sys::become_user(uid, gid).context(Reason::Broken, "become the container's user in its user namespace")
}

/// Drops every capability, and verifies that no capability, no id but the container's, no other
/// group, and no way to become root is left.
pub fn drop_all(container: ContainerUid, groups: &[u32]) -> Result<(), Refusal> {
    sys::clear_capabilities().context(Reason::Broken, "give up every capability")?;
    let has = |set| sys::with_errno(|| caps::read(None, set));
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient] {
        if !has(set).context(Reason::Broken, "check that no capability is left")?.is_empty() {
            return Err(Refusal::new(Reason::Broken, format!("{set:?} capabilities are left")));
        }
    }
    let Ids { uid, gid } = Ids::of(container);
    let left = retry(sys::groups).context(Reason::Broken, "check that no group is left")?;
    let has_other_groups = left != groups;
    if getuid().as_raw() != uid || getgid().as_raw() != gid || has_other_groups || sys::try_to_become_root() {
        return Err(Refusal::new(Reason::Broken, "an id of the node is left"));
    }
    Ok(())
}

/// Stays root, with what an administrator needs and the bounding set allows.
pub fn stay_root(bounding_set: u64) -> Result<(), Refusal> {
    let may_keep = |kept: &Capability| bounding_set & kept.bitmask() != 0;
    let kept: Vec<_> = KEPT_BY_ROOT.into_iter().filter(may_keep).collect();
    let root = Gid::from_raw(0);
    retry(|| setgroups(&[root])).context(Reason::Broken, "drop root's groups")?;
    retry(|| setresgid(root, root, root)).context(Reason::Broken, "stay in root's group")?;
    keep_capabilities(&kept).context(Reason::Broken, "drop capabilities")
}

/// Has this thread access files with the rights of a container's user. The caller sets the groups.
pub fn access_files_as(container: ContainerUid) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(container.get()), Gid::from_raw(container.get()));
    // setfsuid(2) reports no error; a call with an invalid id returns the id in effect.
    setfsgid(gid);
    setfsuid(uid);
    if setfsgid(Gid::from_raw(u32::MAX)) != gid || setfsuid(Uid::from_raw(u32::MAX)) != uid {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// For `join=now`, whose application becomes the user itself: keeps the capabilities for that, and
/// accesses files as the user from here on.
pub fn keep_for_join_now(container: ContainerUid) -> Result<(), Refusal> {
    retry(|| setgroups(&[Gid::from_raw(container.get())])).context(Reason::Broken, "drop root's groups")?;
    access_files_as(container).context(Reason::Broken, "access files as the container's user (setfsuid)")?;
    keep_capabilities(&KEPT_FOR_JOIN_NOW).context(Reason::Broken, "drop capabilities")
}

/// What login(1), su(1) and cron(8) need to hand over a terminal, become the user, signal it, and
/// write to the audit log.
const KEPT_FOR_JOIN_NOW: [Capability; 6] = [
    Capability::CAP_CHOWN,
    Capability::CAP_FOWNER,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_AUDIT_WRITE,
];

/// What root needs inside a container to manage its files, processes and network. Root cannot
/// mount, make device nodes, load modules, or open the node's files by handle
/// (CAP_DAC_READ_SEARCH). This is not a security boundary: /proc/sys and existing device nodes
/// check only for uid 0.
const KEPT_BY_ROOT: [Capability; 11] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_PTRACE,
];

/// One change at a time, so that a call that a signal interrupts can be repeated while the process
/// still has the capability for it.
fn keep_capabilities(kept: &[Capability]) -> nix::Result<()> {
    let kept: CapsHashSet = kept.iter().copied().collect();
    sys::limit_bounding_set(kept.iter().fold(0, |mask, capability| mask | capability.bitmask()))?;
    sys::with_errno(|| caps::clear(None, CapSet::Ambient))?;
    // A service manager may have dropped some of them already.
    let kept: CapsHashSet =
        sys::with_errno(|| caps::read(None, CapSet::Permitted))?.intersection(&kept).copied().collect();
    sys::with_errno(|| caps::set(None, CapSet::Effective, &kept))?;
    sys::with_errno(|| caps::set(None, CapSet::Permitted, &kept))
}
