//! Enter: everything that a session needs of a container, first opened and checked, then joined.

use crate::cgroups::{self, Cgroup};
use crate::deadline::Deadline;
use crate::door::Door;
use crate::emperor::Emperor;
use crate::leader::{Bounds, Leader, Proc};
use crate::namespaces::{self, Kind, Namespace};
use crate::options::Options;
use crate::refusal::{Reason, Refusal, Step};
use crate::sys::{self, retry};
use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid, setgroups, setresgid, setresuid};
use shared::ContainerUid;
use std::fmt;
use std::os::fd::OwnedFd;

/// A container that has been verified, and the descriptors to enter it by. Nothing is joined yet.
#[derive(Debug)]
pub struct Visit {
    container: ContainerUid,
    leader: Leader,
    namespaces: Vec<Namespace>,
    cgroups: Vec<Cgroup>,
    our_pids: OwnedFd,
    bounds: Bounds,
}

impl Visit {
    /// Meets the container's pid 1 and opens all there is to join. Changes nothing, so it serves as a dry run too. `tell` hears of each step that
    /// is done, and what was seen.
    pub fn prepare(
        container: ContainerUid,
        options: &Options,
        tell: &mut dyn FnMut(&str, fmt::Arguments<'_>),
    ) -> Result<Self, Refusal> {
        let deadline = Deadline::after(options.timeout);
        let (leader, namespaces) = match Door::reach(container, deadline)? {
            Some(door) => {
                tell("reach", format_args!("root keeps a door"));
                let namespaces = namespaces::sort(door.receive()?, &options.namespaces)?;
                let leader = Leader::of_pid_namespace(pid_namespace(&namespaces)?.inode)?;
                tell("verify", format_args!("its pid 1 is {} here", leader.pid));
                (leader, namespaces)
            }
            None => {
                let emperor = Emperor::reach(container, deadline)?;
                tell("reach", format_args!("somebody listens on run/ns.socket"));
                let leader = Leader::verify(emperor.pidfd()?, container)?;
                tell("verify", format_args!("that is its pid 1, {} here", leader.pid));
                let namespaces = namespaces::open(&leader, &options.namespaces)?;
                (leader, namespaces)
            }
        };
        tell("namespaces", format_args!("{}", namespaces::names(&namespaces)));
        let cgroups = cgroups::open_all(&leader, options.cgroup_required)?;
        tell("cgroups", format_args!("{}", cgroups::names(&cgroups)));
        // Before the last look at its user namespace: in one of its own pid 1 would look unbound.
        let bounds = leader.bounds()?;
        leader.check()?; // what was opened was the container's all the time

        Ok(Self { container, leader, namespaces, cgroups, our_pids: our_pids()?, bounds })
    }

    /// The container's pid 1.
    pub const fn leader(&self) -> &Leader {
        &self.leader
    }

    /// What there is to join.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// In the monitor: the next process that it forks is born in the container's pid namespace. The monitor itself stays where it is.
    pub fn bind_next_child(&self) -> Result<(), Refusal> {
        self.leader.check()?;
        pid_namespace(&self.namespaces)?.join()
    }

    /// In the monitor: takes [`Self::bind_next_child`] back.
    pub fn release_children(&self) {
        // A failure changes nothing any more: the session is over and the monitor is about to end.
        let _ = retry(|| setns(&self.our_pids, CloneFlags::CLONE_NEWPID));
    }

    /// Whether the calling process was born in the container's pid namespace.
    pub fn has_born_us(&self) -> Result<bool, Refusal> {
        let ours = Proc::of_self()
            .and_then(|own| own.namespace("pid"))
            .step(Reason::Broken, "look at our own pid namespace")?;
        Ok(ours == pid_namespace(&self.namespaces)?.inode)
    }

    /// In sshd's child: joins all of it, and leaves root's power behind in the same breath. What follows, in sshd or in a PAM module, runs as the
    /// container's user, so that no path of the tenant's is ever looked up by root.
    pub fn enter(mut self) -> Result<(), Refusal> {
        let (uid, gid) = self.join()?;
        retry(|| setgroups(&[gid])).step(Reason::Broken, "leave the node's groups")?;
        retry(|| setresgid(gid, gid, gid)).step(Reason::Broken, "become the container's group")?;
        retry(|| setresuid(uid, uid, uid)).step(Reason::Broken, "become the container's user")?;
        self.must_be_alive()
    }

    /// In an application that has yet to give up root by itself: joins all of it, and keeps no more power than that takes. Its files it
    /// reaches as the container's user from here on.
    pub fn enter_before_the_application_drops_root(mut self) -> Result<(), Refusal> {
        // A directory of the host's that the application has open would be a way out for the user's shell.
        sys::close_on_exec().step(Reason::Broken, "keep the application's descriptors from the user's programs")?;
        let (uid, gid) = self.join()?;
        retry(|| setgroups(&[gid])).step(Reason::Broken, "leave root's groups")?;
        // setfsuid(2) does not tell a failure; asking with an invalid id tells what holds.
        setfsgid(gid);
        setfsuid(uid);
        if setfsgid(Gid::from_raw(u32::MAX)) != gid || setfsuid(Uid::from_raw(u32::MAX)) != uid {
            return Err(Refusal::new(Reason::Broken, "reach files as the container's user: setfsuid had no effect"));
        }
        keep_capabilities(&KEPT).step(Reason::Broken, "drop capabilities")?;
        self.must_be_alive()
    }

    /// For an operator who stays root inside: joins all of it, and keeps what an administrator needs there. Unlike the
    /// other two this one leaves root in the tenant's file system: what it runs there must be trusted.
    pub fn enter_as_root(mut self) -> Result<(), Refusal> {
        let may_keep = |kept: &Capability| self.bounds.capabilities & kept.bitmask() != 0;
        let kept: Vec<_> = KEPT_BY_ROOT.into_iter().filter(may_keep).collect();
        self.join()?;
        let root = (Uid::from_raw(0), Gid::from_raw(0));
        retry(|| setgroups(&[root.1])).step(Reason::Broken, "leave root's groups")?;
        retry(|| setresgid(root.1, root.1, root.1)).step(Reason::Broken, "stay in root's group")?;
        keep_capabilities(&kept).step(Reason::Broken, "drop capabilities")?;
        self.must_be_alive()
    }

    /// Joins the cgroups and the namespaces, the mount namespace last, and is bound as its pid 1 is from then on.
    fn join(&mut self) -> Result<(Uid, Gid), Refusal> {
        for cgroup in &mut self.cgroups {
            cgroup.join()?;
        }
        crate::defect("enter");
        for namespace in self.namespaces.iter().filter(|namespace| namespace.kind != PID) {
            namespace.join()?;
        }
        stay_within(self.bounds)?;
        Ok((Uid::from_raw(self.container.get()), Gid::from_raw(self.container.get())))
    }

    /// Asked last of all, and when nothing is left to do as root: the mount namespace of a container that has ended can still be joined, by its
    /// descriptor.
    fn must_be_alive(&self) -> Result<(), Refusal> {
        if self.leader.is_alive()? {
            return Ok(());
        }
        Err(Refusal::new(Reason::NotRunning, "its pid 1 ended while the session entered"))
    }
}

/// The pid namespace of the calling process, by which [`Visit::bind_next_child`] can be taken back.
pub fn our_pids() -> Result<OwnedFd, Refusal> {
    retry(|| open("/proc/self/ns/pid", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()))
        .step(Reason::Broken, "open our own pid namespace")
}

fn pid_namespace(namespaces: &[Namespace]) -> Result<&Namespace, Refusal> {
    namespaces
        .iter()
        .find(|namespace| namespace.kind == PID)
        .ok_or_else(|| Refusal::new(Reason::NotTrusted, "it has no pid namespace of its own"))
}

/// What login(1), su(1) and cron(8) need to hand over a terminal, become the user, signal it, and write to the audit log.
const KEPT: [Capability; 6] = [
    Capability::CAP_CHOWN,
    Capability::CAP_FOWNER,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_AUDIT_WRITE,
];

/// What root needs inside a container to look after its files, processes and network. Not among them is to mount, to make device nodes, to load
/// modules, or to open files by handle (CAP_DAC_READ_SEARCH), which finds those of the host. That is no wall: /proc/sys and the device nodes that
/// are there ask for the uid 0 alone.
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

/// Whoever enters is bound as the container's pid 1 is: a set-user-ID program of the container's gives a session no capability that pid 1 could not have,
/// and none at all if pid 1 can gain none.
fn stay_within(bounds: Bounds) -> Result<(), Refusal> {
    sys::bound_capabilities(bounds.capabilities)
        .step(Reason::Broken, "leave capabilities that its pid 1 cannot have (CAP_SETPCAP is needed)")?;
    // Through an exec as root these would come back.
    change(|| caps::clear(None, CapSet::Inheritable)).step(Reason::Broken, "leave inheritable capabilities")?;
    if bounds.no_new_privs {
        retry(set_no_new_privs).step(Reason::Broken, "gain no new privileges, like its pid 1")?;
    }
    Ok(())
}

/// Each change by itself, so that an interrupted one is made again while the capability to make it is still there.
fn keep_capabilities(kept: &[Capability]) -> nix::Result<()> {
    let kept: CapsHashSet = kept.iter().copied().collect();
    sys::bound_capabilities(kept.iter().fold(0, |mask, capability| mask | capability.bitmask()))?;
    change(|| caps::clear(None, CapSet::Ambient))?;
    // From what there is, which may be less: a service manager may have taken some away.
    let kept: CapsHashSet = change(|| caps::read(None, CapSet::Permitted))?.intersection(&kept).copied().collect();
    change(|| caps::set(None, CapSet::Effective, &kept))?;
    change(|| caps::set(None, CapSet::Permitted, &kept))
}

fn change<T>(call: impl Fn() -> Result<T, CapsError>) -> nix::Result<T> {
    retry(|| call().map_err(|_| Errno::last()))
}

const PID: Kind = Kind::ALL[0];
const _: () = assert!(matches!(PID.name.as_bytes(), b"pid"));

impl fmt::Display for Visit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespaces, cgroups) = (namespaces::names(&self.namespaces), cgroups::names(&self.cgroups));
        write!(f, "namespaces {namespaces} of pid {}, cgroups {cgroups}", self.leader.pid)
    }
}
