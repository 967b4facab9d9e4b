//! Prepare: the user namespace of a linked container, and the session's ids there and on the node.
//!
//! Inside, a session has the uid and gid 30001. The maps of the namespace (user_namespaces(7)) say
//! which ids these are on the node. No account of the node may have those ids, because the session
//! could signal its processes and access its files.
//!
//! The session's other namespaces are in [`namespaces`](crate::namespaces).

use crate::namespaces;
use crate::proc::{Inode, Proc};
use crate::refusal::{Context, Reason, Refusal};
use crate::sys::{self, retry};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use nix::unistd::{Gid, Group, Uid, User};
use shared::ContainerUid;
use shared::settings::FIRST_UID;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

/// A session's ids on the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ids {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Ids {
    /// In the node's user namespace they are the container's number.
    pub const fn of(container: ContainerUid) -> Self {
        Self { uid: container.get(), gid: container.get() }
    }
}

/// The container's own user namespace.
#[derive(Debug)]
pub struct UserNamespace {
    /// Which one it is.
    pub inode: Inode,
    /// What the container's user is on the node.
    pub ids: Ids,
    descriptor: OwnedFd,
}

impl UserNamespace {
    /// pid 1's user namespace; `None` if it is ours.
    pub fn of(pid_1: &Proc, container: ContainerUid) -> Result<Option<Self>, Refusal> {
        let ours = own()?;
        let descriptor = pid_1.open("ns/user").context(Reason::NotRunning, "open the container's user namespace")?;
        let inode = namespaces::check_kind(&descriptor, "user", CloneFlags::CLONE_NEWUSER)?;
        if inode == ours {
            return Ok(None);
        }
        must_be_child(&descriptor, ours)?;
        let map = |kind: IdKind| {
            let file = kind.file();
            let text = pid_1.read(file).context(Reason::NotRunning, format_args!("read its {file}"))?;
            kind.check(&text, container)
        };
        let ids = Ids { uid: map(IdKind::Uids)?, gid: map(IdKind::Gids)? };
        let found = Self { inode, ids, descriptor };
        Self::must_be_that_of(Some(&found), pid_1)?; // so the maps were those of this namespace
        Ok(Some(found))
    }

    /// Refuses a pid 1 that is not in `users`, or not in our user namespace if that is `None`.
    pub fn must_be_that_of(users: Option<&Self>, pid_1: &Proc) -> Result<(), Refusal> {
        let now = pid_1.namespace("user").context(Reason::NotRunning, "look at the container's user namespace")?;
        if now == users.map_or_else(own, |users| Ok(users.inode))? {
            return Ok(());
        }
        Err(Refusal::new(Reason::NotTrusted, "its pid 1 has changed its user namespace since it was verified"))
    }

    /// Joins it by its descriptor, setns(2). The process gets all capabilities there, and loses
    /// those that it has on the node.
    pub fn join(&self) -> Result<(), Refusal> {
        retry(|| setns(&self.descriptor, CloneFlags::CLONE_NEWUSER))
            .context(Reason::Broken, "join the container's user namespace")
    }
}

/// The user namespace that this process is in.
pub fn own() -> Result<Inode, Refusal> {
    Proc::own_namespace("user").context(Reason::Broken, "look at our user namespace")
}

/// Refuses a user namespace that is not a direct child of ours.
pub fn must_be_child(descriptor: &OwnedFd, ours: Inode) -> Result<(), Refusal> {
    let is_child = match sys::namespace_parent(descriptor) {
        Err(Errno::EPERM) => false, // it is not below ours
        parent => {
            let parent = parent.and_then(|parent| retry(|| fstat(&parent)));
            Inode::from(parent.context(Reason::Broken, "get the parent of a user namespace (NS_GET_PARENT)")?) == ours
        }
    };
    if is_child {
        return Ok(());
    }
    Err(Refusal::new(Reason::NotTrusted, "its user namespace is not a direct child of the node's user namespace"))
}

/// The two maps of a user namespace.
#[derive(Clone, Copy)]
enum IdKind {
    Uids,
    Gids,
}

impl IdKind {
    const fn file(self) -> &'static str {
        match self {
            Self::Uids => "uid_map",
            Self::Gids => "gid_map",
        }
    }

    /// The container's id on the node, or why no session may have it.
    fn check(self, map: &str, container: ContainerUid) -> Result<u32, Refusal> {
        let refuse = |what: String| {
            let map = map.split_whitespace().collect::<Vec<_>>().join(" ");
            Err(Refusal::new(Reason::BadIdMap, format!("{what} ({}: {map})", self.file())))
        };
        let Some(id) = mapped(map, container.get()) else {
            return refuse(format!("{container} is not mapped in its user namespace"));
        };
        if id < FIRST_UID {
            return refuse(format!("{container} is {id} on the node, which is below the first container's number"));
        }
        let of_root = mapped(map, 0).map(|id| (0, id));
        for (inside, id) in [(container.get(), id)].into_iter().chain(of_root) {
            if let Some(account) = self.account(id, inside)? {
                return refuse(format!(
                    "{inside} in its user namespace is {id} on the node, which is the account {account}"
                ));
            }
        }
        Ok(id)
    }

    /// The account that has this id on the node. It is not one if systemd-machined has made it up
    /// for a container's id.
    fn account(self, id: u32, inside: u32) -> Result<Option<String>, Refusal> {
        let name = match self {
            Self::Uids => retry(|| User::from_uid(Uid::from_raw(id))).map(|user| user.map(|user| user.name)),
            Self::Gids => retry(|| Group::from_gid(Gid::from_raw(id))).map(|group| group.map(|group| group.name)),
        };
        let name = name.context(Reason::Broken, format_args!("look up whose id {id} is"))?;
        Ok(name.filter(|name| !self.is_made_up(name, inside)))
    }

    /// Whether it is the name of systemd-machined for this id inside a container: vu-MACHINE-ID or
    /// vg-MACHINE-ID, as in systemd's nss-mymachines.c and machined-varlink.c.
    fn is_made_up(self, name: &str, inside: u32) -> bool {
        let prefix = match self {
            Self::Uids => "vu-",
            Self::Gids => "vg-",
        };
        let parts = name.strip_prefix(prefix).and_then(|rest| rest.rsplit_once('-'));
        parts.is_some_and(|(machine, id)| !machine.is_empty() && id == inside.to_string())
    }
}

/// The id outside for an id inside: each line of a map has the first id inside, the first id
/// outside, and their number. 2^32-1 is no id: setresuid(2) takes it as "unchanged".
pub(crate) fn mapped(map: &str, inside: u32) -> Option<u32> {
    lines(map).find_map(|[first, outside, count]| {
        let offset = inside.checked_sub(first)?;
        (offset < count).then(|| outside.checked_add(offset).filter(|id| *id != u32::MAX))?
    })
}

/// All ids outside.
pub fn mapped_ranges(map: &str) -> Vec<RangeInclusive<u32>> {
    let ranges = lines(map).filter(|[_, _, count]| *count > 0);
    ranges.map(|[_, outside, count]| outside..=outside.saturating_add(count - 1)).collect()
}

/// Each has the first id inside, the first outside, and their number.
fn lines(map: &str) -> impl Iterator<Item = [u32; 3]> {
    map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        Some([numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_read_line_by_line() {
        let map =
            "         0    1000000      30001\n     30001    2000000          1\n     30002    1030002      35534\n";
        assert_eq!(mapped(map, 0), Some(1_000_000));
        assert_eq!(mapped(map, 30000), Some(1_030_000));
        assert_eq!(mapped(map, 30001), Some(2_000_000));
        assert_eq!(mapped(map, 65535), Some(1_065_535));
        assert_eq!(mapped(map, 65536), None);
        assert_eq!(mapped("0 4294967295 4294967295\n", 1), None, "beyond all ids");
        assert_eq!(mapped("30001 4294967295 1\n", 30001), None, "-1");
        assert_eq!(mapped("", 0), None);
        assert_eq!(mapped("0 x 1\n", 0), None);
        assert_eq!(mapped_ranges(map), [1_000_000..=1_030_000, 2_000_000..=2_000_000, 1_030_002..=1_065_535]);
        assert_eq!(mapped_ranges("0 x 1\n0 5 0\n1 4294967295 7\n"), [u32::MAX..=u32::MAX]);
    }

    #[test]
    fn only_the_names_of_machined_for_this_id_are_no_accounts() {
        for name in ["vu-web1-30001", "vu-a-b-30001"] {
            assert!(IdKind::Uids.is_made_up(name, 30001), "{name}");
        }
        assert!(IdKind::Gids.is_made_up("vg-web1-0", 0));
        for name in
            ["vu-smith", "vu--30001", "vu-30001", "vu-web1-30002", "vu-web1-030001", "vg-web1-30001", "web1-30001"]
        {
            assert!(!IdKind::Uids.is_made_up(name, 30001), "{name}");
        }
        assert!(!IdKind::Gids.is_made_up("vu-web1-0", 0));
    }

    #[test]
    fn ids_that_no_session_may_have() {
        let container = ContainerUid::new(30001).unwrap();
        let judge = |map: &str| IdKind::Uids.check(map, container).map_err(|refusal| refusal.cause);
        assert_eq!(judge("0 1000000 65536\n"), Ok(1_030_001));
        for (map, cause) in [
            ("0 1000000 30001\n", "30001 is not mapped in its user namespace (uid_map: 0 1000000 30001)"),
            ("0 1000000 1\n30001 0 1\n", "30001 is 0 on the node"),
            ("0 1000000 1\n30001 33 1\n", "30001 is 33 on the node"),
            ("0 0 1\n30001 1030001 1\n", "0 in its user namespace is 0 on the node, which is the account root"),
        ] {
            assert!(judge(map).is_err_and(|told| told.contains(cause)), "{map}: {:?}", judge(map));
        }
    }
}
