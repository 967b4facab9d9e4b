//! Verify: rules 2 to 6 of [`link`](crate::link), for a pid 1 that was found by root's link.
//! [`Leader`](crate::leader::Leader) has the rules for every pid 1.
//!
//! All of them are checked again after everything has been opened. Nothing here searches or joins.

use crate::cgroups;
use crate::deadline::Deadline;
use crate::mountinfo;
use crate::proc::{Inode, Proc, Status};
use crate::refusal::{Context, Reason, Refusal};
use crate::subtree::Subtree;
use crate::sys;
use crate::tracers::{self, Search};
use nix::errno::Errno;
use std::fs::File;

/// What a link determines about its container.
#[derive(Debug)]
pub struct LinkRules {
    /// The cgroup.
    pub subtree: Subtree,
    /// The one pid namespace in the cgroup that is a direct child of ours.
    pub pid_namespace: Inode,
    /// Whether our user namespace owns that, so that processes in it can have capabilities on the
    /// node.
    pub our_user_namespace_owns_it: bool,
    /// Whether root trusts root inside.
    pub root_is_trusted: bool,
}

impl LinkRules {
    /// Checks the pid 1, whose `status` is given.
    ///
    /// If the pid namespace belongs to a user namespace of the container, its processes have no
    /// capabilities on the node; [`user_namespace`](crate::user_namespace) checks this.
    pub fn check(&self, process: &Proc, status: &str, has_own_user_namespace: bool) -> Result<(), Refusal> {
        let refuse = |reason: Reason, cause: &str| Err(Refusal::new(reason, cause));
        // systemd has not finished: it still drops capabilities and executes the unit's program.
        let or_starting = |reason| if is_systemds_child(status) { Reason::Starting } else { reason };
        let its = |name: &str| {
            process.namespace(name).context(Reason::NotRunning, format_args!("look at its {name} namespace"))
        };
        // Rule 2: it is in the pid namespace and in the cgroups that were found.
        if its("pid")? != self.pid_namespace {
            return refuse(Reason::NotTrusted, "its pid 1 is in another pid namespace by now");
        }
        if !self.subtree.holds(process)? {
            return refuse(Reason::NotTrusted, "its pid 1 is not in the cgroup that the link leads to, nor below it");
        }
        // Rule 3: until it executes the container's program, pid 1 is the engine, with root's
        // privileges and the node's root directory.
        if !runs_its_own_program(process)? {
            return refuse(Reason::Starting, "its pid 1 runs a program that is not on a mount of its own yet");
        }
        // Rule 4: root in our cgroup namespace can move itself to the cgroup of another account,
        // and become its pid 1.
        if self.our_user_namespace_owns_it
            && has_our_cgroup_namespace(process)?
            && (has_own_user_namespace || can_be_root(status)?)
        {
            let cause = "it has no cgroup namespace of its own, and can be root";
            return refuse(or_starting(Reason::NotTrusted), cause);
        }
        // Rule 5.
        cgroups::must_not_be_frozen(process)?;
        // Rule 6: such a root process reaches the node's sshd through /proc/PID/exe of a session.
        if !self.root_is_trusted && self.our_user_namespace_owns_it {
            // Children that it forked before it entered that namespace can have more.
            if has_own_user_namespace {
                let cause = "its pid 1 is in a user namespace of its own, but its pid namespace belongs to the node's: other processes \
                    there can have CAP_SYS_PTRACE, and /etc/unbit/UID.root-is-trusted does not exist";
                return refuse(Reason::RootTooPowerful, cause);
            }
            if tracers::can_trace(status)? {
                let cause = "its root can have CAP_SYS_PTRACE in the node's user namespace, and /etc/unbit/UID.root-is-trusted does not exist";
                return refuse(or_starting(Reason::RootTooPowerful), cause);
            }
        }
        Ok(())
    }

    /// Rule 6 for all other processes: pid 1 may have dropped the capability after it forked a
    /// child that keeps it.
    pub fn must_have_no_tracer(&self, search: Search, deadline: Deadline) -> Result<(), Refusal> {
        if !self.our_user_namespace_owns_it {
            return Ok(());
        }
        let Some(pid) = search.find(&self.subtree, deadline)? else { return Ok(()) };
        let cause = format!(
            "its process {pid} can have CAP_SYS_PTRACE in the node's user namespace, though its pid 1 cannot, and \
             /etc/unbit/UID.root-is-trusted does not exist"
        );
        Err(Refusal::new(Reason::RootTooPowerful, cause))
    }
}

/// Whether the process's program is on a mount of its own mount namespace.
fn runs_its_own_program(process: &Proc) -> Result<bool, Refusal> {
    let program = match process.open_path("exe") {
        Err(errno @ (Errno::ENOENT | Errno::ESRCH)) => {
            return Err(Refusal::failed(Reason::NotRunning, "look at the program of its pid 1", errno));
        }
        program => program.context(Reason::Broken, "look at the program of its pid 1")?,
    };
    let mount = sys::mount_id(&program).context(Reason::Broken, "look at the mount of its pid 1's program")?;
    // Most often it is on the mount of the root directory, which is in the process's own mount
    // namespace.
    let root = process.open_directory("root").context(Reason::NotRunning, "open the root directory of its pid 1")?;
    if sys::mount_id(&root).context(Reason::Broken, "look at the mount of its pid 1's root directory")? == mount {
        return Ok(true);
    }
    let mounts = process.open("mountinfo").context(Reason::NotRunning, "open the mounts of its pid 1")?;
    match mountinfo::lists(File::from(mounts), mount).context(Reason::NotRunning, "read the mounts of its pid 1")? {
        Some(is_its_own) => Ok(is_its_own),
        None => Err(Refusal::new(Reason::NotTrusted, "its pid 1 has more mounts than are read")),
    }
}

fn has_our_cgroup_namespace(process: &Proc) -> Result<bool, Refusal> {
    match Proc::own_namespace("cgroup") {
        Err(Errno::ENOENT) => Ok(true), // this kernel has no such namespaces
        ours => {
            let ours = ours.context(Reason::Broken, "look at our cgroup namespace")?;
            Ok(process.namespace("cgroup").context(Reason::NotRunning, "look at its cgroup namespace")? == ours)
        }
    }
}

/// Whether systemd has not yet executed the program of a unit: until then it puts the process's
/// name in parentheses (systemd.exec(5) does not document it; src/core/exec-invoke.c does it). Only
/// the sentence for the user depends on it.
fn is_systemds_child(status: &str) -> bool {
    Status::new(status).field("Name").is_some_and(|name| name.starts_with('(') && name.ends_with(')'))
}

/// Whether a process, or what it starts, can be root: now, by a capability, or by a set-user-ID
/// program.
fn can_be_root(status: &str) -> Result<bool, Refusal> {
    let status = Status::new(status);
    let can_be_root = || -> Result<bool, String> {
        let (uids, permitted) = (status.numbers("Uid")?, status.capabilities("CapPrm")?);
        Ok(uids.contains(&0) || permitted != 0 || status.numbers("NoNewPrivs")? == [0])
    };
    can_be_root().map_err(|cause| Refusal::new(Reason::Broken, format!("its pid 1: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uids: &str, permitted: &str, no_new_privs: u8) -> String {
        format!("Uid:\t{uids}\nCapPrm:\t{permitted}\nNoNewPrivs:\t{no_new_privs}\n")
    }

    #[test]
    fn who_can_never_be_root() {
        assert!(!can_be_root(&status("30001\t30001\t30001\t30001", "0000000000000000", 1)).unwrap());
        for (uids, permitted, no_new_privs) in [
            ("0\t0\t0\t0", "0000000000000000", 1),
            ("30001\t30001\t0\t30001", "0000000000000000", 1),
            ("30001\t30001\t30001\t30001", "0000000000000080", 1),
            ("30001\t30001\t30001\t30001", "0000000000000000", 0),
        ] {
            assert!(can_be_root(&status(uids, permitted, no_new_privs)).unwrap(), "{uids} {permitted} {no_new_privs}");
        }
        assert!(can_be_root("").is_err());
    }

    #[test]
    fn what_systemd_has_not_started_yet() {
        assert!(is_systemds_child("Name:\t(sleep)\nUmask:\t0022\n"));
        for name in ["sleep", "(sleep", "sleep)", ""] {
            assert!(!is_systemds_child(&format!("Name:\t{name}\nUid:\t(0)\n")), "{name}");
        }
    }

    #[test]
    fn this_program_has_been_executed_from_a_mount_of_its_own() {
        assert!(runs_its_own_program(&Proc::of_self().unwrap()).unwrap());
    }
}
