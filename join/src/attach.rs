//! Attaches to a container: opens and checks everything that a session joins, then joins it.
//!
//! [`Attachment::fork_into`] starts a session. A helper process, which nobody in the container can
//! see, joins everything, drops all privileges, and only then forks. So the first process of the
//! session in the container's pid namespace is created as the container's user.
//!
//! How pid 1 is found, and what it must be, is not in this file: see [`link`](crate::link),
//! [`emperor_socket`](crate::emperor_socket) and [`leader`](crate::leader).

use crate::apparmor::LabelTransition;
use crate::cgroups::{self, Cgroup};
use crate::confinement::Confinement;
use crate::deadline::Deadline;
use crate::emperor_socket::EmperorSocket;
use crate::helper::{self, Report, die_with_parent};
use crate::leader::Leader;
use crate::link::Link;
use crate::masked_paths;
use crate::namespaces::{self, Kind, Namespace};
use crate::options::Options;
use crate::privileges;
use crate::proc::Proc;
use crate::refusal::{Context, Reason, Refusal};
use crate::root_directory::RootDirectory;
use crate::sys::{self, Cloned};
use crate::tracers::Search;
use crate::user_namespace::{self, Ids, UserNamespace};
use caps::Capability;
use nix::errno::Errno;
use nix::unistd::{Pid, getpid};
use shared::ContainerUid;
use std::{fmt, iter};

/// A verified container, with the descriptors of everything to join. Nothing is joined yet.
#[derive(Debug)]
pub struct Attachment {
    container: ContainerUid,
    leader: Leader,
    user_namespace: Option<UserNamespace>,
    namespaces: Vec<Namespace>,
    cgroups: Vec<Cgroup>,
    root: RootDirectory,
    confinement: Confinement,
}

/// The user that a process becomes inside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The container's user, without any capability.
    User,
    /// Root, with the capabilities that an administrator needs there (see [`privileges`]).
    Root,
}

/// Where [`Attachment::fork_into`] returns.
pub enum Forked {
    /// In the caller, outside. The process inside is its child.
    Outside(Pid),
    /// In the process inside.
    Inside,
}

impl Attachment {
    /// Finds and verifies the container's pid 1, and opens everything to join. It changes nothing,
    /// so it is a dry run as well. `on_step` is called after each step with its name and result.
    pub fn prepare(
        container: ContainerUid,
        options: &Options,
        on_step: &mut dyn FnMut(&str, fmt::Arguments<'_>),
    ) -> Result<Self, Refusal> {
        Self::prepare_by(Link::read(container)?, container, options, on_step)
    }

    /// Like [`Self::prepare`], by a link that need not exist yet, or by the container's socket.
    pub fn prepare_by(
        link: Option<Link>,
        container: ContainerUid,
        options: &Options,
        on_step: &mut dyn FnMut(&str, fmt::Arguments<'_>),
    ) -> Result<Self, Refusal> {
        let deadline = Deadline::after(options.timeout);
        privileges::must_suffice_to_enter()?;
        let leader = match link {
            Some(link) => {
                on_step("reach", format_args!("root's link leads to {}", link.target().display()));
                let leader = link.find_leader(deadline)?;
                on_step("verify", format_args!("its pid 1 is process {} on this node", leader.pid));
                leader
            }
            None => {
                let emperor = EmperorSocket::connect(container, deadline)?;
                on_step("reach", format_args!("a process listens on run/ns.socket"));
                let leader = Leader::by_socket(emperor.pidfd()?, container)?;
                on_step("verify", format_args!("it is pid 1 of the container, process {} on this node", leader.pid));
                leader
            }
        };
        let user_namespace = UserNamespace::of(&leader.proc, container)?;
        let owners: Vec<_> =
            iter::once(user_namespace::own()?).chain(user_namespace.as_ref().map(|own| own.inode)).collect();
        let namespaces = namespaces::open(&leader.proc, &owners, &options.namespaces)?;
        on_step("namespaces", format_args!("{}", namespaces::names(&namespaces)));
        let root = RootDirectory::of(&leader)?;
        // A cgroup that root has linked is the container's own in any case.
        let own_cgroup_required = options.cgroup_required && !leader.is_linked();
        let cgroups = cgroups::open_all(&leader.proc, leader.parent()?, own_cgroup_required)?;
        on_step("cgroups", format_args!("{}", cgroups::names(&cgroups)));
        // Before the final user namespace check: in a new user namespace pid 1 would show a full
        // bounding set.
        let confinement = Confinement::of(&leader.proc, leader.pid)?;
        let attachment = Self { container, leader, user_namespace, namespaces, cgroups, root, confinement };
        attachment.recheck_leader()?; // so everything that was opened belonged to it
        Ok(attachment)
    }

    /// The container's pid 1.
    pub const fn leader(&self) -> &Leader {
        &self.leader
    }

    /// The ids of the container's user on the node.
    pub fn ids(&self) -> Ids {
        self.user_namespace.as_ref().map_or(Ids::of(self.container), |own| own.ids)
    }

    /// The namespaces to join.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// Whether it has a user namespace of its own.
    pub(crate) const fn has_user_namespace(&self) -> bool {
        self.user_namespace.is_some()
    }

    /// The bounding set of its pid 1.
    pub(crate) const fn bounding_set(&self) -> u64 {
        self.confinement.bounding_set
    }

    /// For a helper that looks at the container's files.
    pub(crate) fn join_mount_namespace(&self) -> Result<(), Refusal> {
        find(&self.namespaces, MOUNT)?.join()?;
        self.root.must_be_here()
    }

    /// Forks a process into the container. The calling process must have one thread.
    ///
    /// A helper, cloned into the container's v2 cgroup, calls `before`, joins the rest,
    /// calls `finish` and clones the process inside as the caller's child (CLONE_PARENT). The
    /// caller kills the helper at the deadline. No step is left for the process inside, which could
    /// not report a failure.
    pub fn fork_into(
        mut self,
        who: Who,
        deadline: Deadline,
        before: impl FnOnce() -> Result<(), Refusal>,
        finish: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<Forked, Refusal> {
        if who == Who::Root && self.user_namespace.is_some() {
            let cause = "it has a user namespace of its own, so use the engine's own command to enter it as root";
            return Err(Refusal::new(Reason::Misconfigured, cause));
        }
        let report = Report::new()?;
        let caller = getpid();
        let v2_directory = self.cgroups.iter().find_map(Cgroup::v2_directory);
        let (cloned, cloned_into_cgroup) = sys::clone_into(v2_directory).context(
            Reason::Broken,
            "fork a helper into its cgroup (EAGAIN: pids.max, or another limit on the number of processes, is reached)",
        )?;
        match cloned {
            Cloned::Parent(helper) => {
                drop(self);
                helper::wait_for_child(helper, deadline, &report).map(Forked::Outside)
            }
            Cloned::Child => {
                let joined = die_with_parent(caller).and_then(|()| before());
                let joined = joined.and_then(|()| self.join_and_become(who, cloned_into_cgroup));
                let forked = joined.and_then(|()| {
                    die_with_parent(caller)?; // a change of ids cleared it, prctl(2)
                    report.keep_from_children()?;
                    finish()?;
                    self.confinement.apply_soft_limits()?;
                    drop(self);
                    sys::clone_sibling(report.child()).context(
                        Reason::Broken,
                        "fork the session's process (EAGAIN: pids.max, or another limit on the number of processes, is reached)",
                    )
                });
                match forked {
                    Ok(Cloned::Parent(_)) => sys::exit_now(0),
                    Ok(Cloned::Child) => Ok(Forked::Inside),
                    Err(refusal) => {
                        report.refuse(&refusal);
                        sys::exit_now(255)
                    }
                }
            }
        }
    }

    /// In the helper: joins everything, takes over pid 1's confinement, and drops the privileges
    /// that `who` must not have.
    fn join_and_become(&mut self, who: Who, cloned_into_cgroup: bool) -> Result<(), Refusal> {
        // First, so that no core file has the caller's memory, whatever RLIMIT_CORE is taken over
        // from pid 1.
        sys::set_not_dumpable().context(Reason::Broken, "make the helper not dumpable")?;
        self.recheck_confinement()?;
        let own = Proc::of_self().context(Reason::Broken, "open /proc/self")?;
        // While still root: with hidepid=2 the container's user cannot read it.
        let pid_1_cgroups = self.leader.proc.open("cgroup").context(Reason::NotRunning, "open /proc/PID/cgroup")?;
        let label = self.confinement.apparmor_label(&self.leader.proc)?;
        for cgroup in self.cgroups.iter_mut().filter(|cgroup| cgroup.needs_root() && !cloned_into_cgroup) {
            cgroup.join()?;
        }
        self.confinement.apply_as_root()?;
        match &self.user_namespace {
            None => self.join_namespaces(&own, label.as_ref())?,
            Some(user_namespace) => {
                privileges::leave_groups()?;
                self.join_namespaces(&own, label.as_ref())?;
                user_namespace.join()?;
                privileges::become_user_inside(self.container)?;
                match sys::new_session_keyring() {
                    // A process with the same uid in another container can use up the quota of
                    // keys. Then revoke the caller's keyring instead.
                    Err(Errno::EDQUOT) => sys::revoke_session_keyring(),
                    joined => joined,
                }
                .context(Reason::Broken, "join a new session keyring")?;
            }
        }
        self.root.must_be_here()?;
        if who == Who::Root {
            masked_paths::mask_the_tenants()?;
        }
        self.confinement.apply_restrictions()?; // after the user namespace, where the bounding set is full again
        match (who, &self.user_namespace) {
            (Who::User, None) => {
                privileges::become_user(self.container)?;
                privileges::drop_all(self.container, &[self.container.get()])?;
            }
            (Who::User, Some(_)) => privileges::drop_all(self.container, &[])?,
            (Who::Root, _) => privileges::stay_root(self.confinement.bounding_set)?,
        }
        // A frozen v1 cgroup stops a process that joins it, even for SIGKILL. That
        // process must not be root.
        for cgroup in self.cgroups.iter_mut().filter(|cgroup| !cgroup.needs_root()) {
            cgroup.join()?;
        }
        cgroups::must_be_joined(&self.cgroups, &own, pid_1_cgroups)?;
        self.confinement.apply_affinity()?;
        label.map_or(Ok(()), |label| label.apply(&own))?;
        sys::set_not_dumpable().context(Reason::Broken, "make the session's process not dumpable")?;
        self.must_be_alive()
    }

    /// Refuses a pid 1 that is not what was verified, or not in the user namespace that was opened.
    fn recheck_leader(&self) -> Result<(), Refusal> {
        self.leader.check()?;
        UserNamespace::must_be_that_of(self.user_namespace.as_ref(), &self.leader.proc)
    }

    /// Refuses a pid 1 whose confinement, unlike open descriptors, has changed since it was read.
    fn recheck_confinement(&self) -> Result<(), Refusal> {
        let now = Confinement::of(&self.leader.proc, self.leader.pid)?;
        self.recheck_leader()?; // in a new user namespace it would seem unconfined
        if now == self.confinement {
            return Ok(());
        }
        Err(Refusal::new(Reason::NotTrusted, "the confinement of its pid 1 has changed since it was verified"))
    }

    /// For `join=now`, whose application is root inside for some time. `root-is-trusted` is for
    /// sshd's sessions, and has no effect here.
    pub fn must_be_safe_for_root(&self, deadline: Deadline) -> Result<(), Refusal> {
        if self.user_namespace.is_some() {
            let cause = "it has a user namespace of its own, which an application does not enter by join=now";
            return Err(Refusal::new(Reason::Misconfigured, cause));
        }
        if !self.leader.is_linked() || self.confinement.bounding_set & Capability::CAP_SYS_PTRACE.bitmask() == 0 {
            return self.leader.must_have_no_tracer(Search::new()?, deadline);
        }
        let cause = "its root can have CAP_SYS_PTRACE in the node's user namespace, and could trace an application that enters by join=now";
        Err(Refusal::new(Reason::RootTooPowerful, cause))
    }

    /// For `join=now`: puts the next child of this process into the container's pid namespace.
    pub fn bind_next_child(&self) -> Result<(), Refusal> {
        self.recheck_confinement()?; // afterwards it cannot be checked: pid 1 has another number inside
        find(&self.namespaces, PID)?.join()
    }

    /// For `join=now`, in the application, which drops root itself later: joins everything, and
    /// keeps only the capabilities needed for that. From here on it accesses files as the
    /// container's user.
    pub fn enter_before_the_application_drops_root(mut self) -> Result<(), Refusal> {
        // A directory of the node that the application has open would lead the user's shell out of
        // the container.
        sys::set_all_close_on_exec()
            .context(Reason::Broken, "keep the application's descriptors from the user's programs")?;
        let own = Proc::of_self().context(Reason::Broken, "open /proc/self")?;
        let label = self.confinement.apparmor_label(&self.leader.proc)?;
        for cgroup in &mut self.cgroups {
            cgroup.join()?;
        }
        self.confinement.apply_as_root()?;
        self.confinement.apply_affinity()?;
        self.join_namespaces(&own, label.as_ref())?;
        self.confinement.apply_restrictions()?;
        privileges::keep_for_join_now(self.container)?;
        // With fs.suid_dumpable=1 a change of ids leaves it dumpable.
        sys::set_not_dumpable().context(Reason::Broken, "make the application not dumpable")?;
        self.root.must_be_here()?;
        label.map_or(Ok(()), |label| label.apply(&own))?;
        self.confinement.apply_soft_limits()?;
        self.must_be_alive()
    }

    /// Joins the mount namespace last, so that all other steps see the node's files. `process` is
    /// our own directory in the node's /proc.
    fn join_namespaces(&self, process: &Proc, label: Option<&LabelTransition<'_>>) -> Result<(), Refusal> {
        crate::failpoint("enter");
        let own = Proc::own_namespace("pid_for_children");
        let own = own.context(Reason::Broken, "look at our own pid namespace")?;
        for namespace in &self.namespaces {
            // With `join=now` the parent has joined the pid namespace already.
            if namespace.kind != PID || namespace.inode != own {
                namespace.join()?;
            }
        }
        // Before the user namespace, in which this process is not the node's root any more.
        label.map_or(Ok(()), |label| label.apply_as_root(process))
    }

    /// The last check, when no step is left that needs root: by its descriptor, the mount namespace
    /// of a container that has ended can still be joined.
    fn must_be_alive(&self) -> Result<(), Refusal> {
        if self.leader.is_alive()? {
            return Ok(());
        }
        Err(Refusal::new(Reason::NotRunning, "its pid 1 ended while the session entered"))
    }
}

fn find(namespaces: &[Namespace], kind: Kind) -> Result<&Namespace, Refusal> {
    namespaces
        .iter()
        .find(|namespace| namespace.kind == kind)
        .ok_or_else(|| Refusal::new(Reason::NotTrusted, format!("it has no {} namespace of its own", kind.name)))
}

const PID: Kind = Kind::ALL[0];
const MOUNT: Kind = Kind::ALL[6];
const _: () = assert!(matches!((PID.name.as_bytes(), MOUNT.name.as_bytes()), (b"pid", b"mnt")));

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespaces, cgroups) = (namespaces::names(&self.namespaces), cgroups::names(&self.cgroups));
        write!(f, "namespaces {namespaces} of pid {}, cgroups {cgroups}", self.leader.pid)
    }
}
