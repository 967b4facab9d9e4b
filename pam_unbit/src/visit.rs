//! Enter: everything that a session needs of a container, first opened and checked, then joined.

use crate::cgroups::{self, Cgroup};
use crate::deadline::Deadline;
use crate::emperor::Emperor;
use crate::leader::{Leader, Proc};
use crate::namespaces::{self, Kind, Namespace};
use crate::options::Options;
use crate::refusal::{Reason, Refusal, Step};
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setresgid, setresuid};
use shared::ContainerUid;
use std::os::fd::OwnedFd;

/// A container that has been verified, and the descriptors to enter it by. Nothing is joined yet.
#[derive(Debug)]
pub struct Visit {
    container: ContainerUid,
    leader: Leader,
    namespaces: Vec<Namespace>,
    cgroups: Vec<Cgroup>,
    our_pids: OwnedFd,
}

impl Visit {
    /// Meets the container's pid 1 and opens all there is to join. Changes nothing, so it serves as a dry run too.
    pub fn prepare(container: ContainerUid, options: &Options) -> Result<Self, Refusal> {
        let emperor = Emperor::reach(container, Deadline::after(options.timeout))?;
        let leader = Leader::verify(emperor.pidfd()?, container)?;
        let namespaces = namespaces::open(&leader, &options.namespaces)?;
        let cgroups = cgroups::open_all(&leader, options.cgroup_required)?;
        leader.check(container)?; // what was opened was the container's all the time
        emperor.leave();

        let our_pids = open("/proc/self/ns/pid", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .step(Reason::Broken, "open our own pid namespace")?;
        Ok(Self { container, leader, namespaces, cgroups, our_pids })
    }

    /// In the monitor: the next process that it forks is born in the container's pid namespace. The monitor itself stays where it is.
    pub fn bind_next_child(&self) -> Result<(), Refusal> {
        self.leader.check(self.container)?;
        self.pid_namespace()?.join()
    }

    /// In the monitor: takes [`Self::bind_next_child`] back.
    pub fn release_children(&self) {
        // A failure changes nothing any more: the session is over and the monitor is about to end.
        let _ = setns(&self.our_pids, CloneFlags::CLONE_NEWPID);
    }

    /// Whether the calling process was born in the container's pid namespace.
    pub fn has_born_us(&self) -> Result<bool, Refusal> {
        let ours = Proc::of_self()
            .and_then(|own| own.namespace("pid"))
            .step(Reason::Broken, "look at our own pid namespace")?;
        Ok(ours == self.pid_namespace()?.inode)
    }

    /// In sshd's child: joins all of it, and leaves root's power behind in the same breath. What follows, in sshd or in a PAM module, runs as the
    /// container's user, so that no path of the tenant's is ever looked up by root.
    pub fn enter(mut self) -> Result<(), Refusal> {
        for cgroup in &mut self.cgroups {
            cgroup.join()?;
        }
        crate::defect("enter");
        for namespace in self.namespaces.iter().filter(|namespace| namespace.kind != PID) {
            namespace.join()?;
        }
        // The mount namespace of a container that has ended can still be joined, by its descriptor.
        if !self.leader.is_alive() {
            return Err(Refusal::new(Reason::NotRunning, "its pid 1 ended while the session entered"));
        }
        let container = self.container;
        drop(self);
        let (uid, gid) = (Uid::from_raw(container.get()), Gid::from_raw(container.get()));
        setresgid(gid, gid, gid).step(Reason::Broken, "become the container's group")?;
        setresuid(uid, uid, uid).step(Reason::Broken, "become the container's user")
    }

    fn pid_namespace(&self) -> Result<&Namespace, Refusal> {
        self.namespaces
            .iter()
            .find(|namespace| namespace.kind == PID)
            .ok_or_else(|| Refusal::new(Reason::NotTrusted, "it has no pid namespace of its own"))
    }
}

const PID: Kind = Kind::ALL[0];
const _: () = assert!(matches!(PID.name.as_bytes(), b"pid"));

impl std::fmt::Display for Visit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let namespaces: Vec<_> = self.namespaces.iter().map(|namespace| namespace.kind.name).collect();
        let cgroups: Vec<_> = self.cgroups.iter().map(|cgroup| cgroup.name.as_str()).collect();
        write!(f, "namespaces {} of pid {}, cgroups {}", namespaces.join(","), self.leader.pid, cgroups.join(" "))
    }
}
