//! Enters a container from the node, for the PAM module and the operator's command alike.
//!
//! [`attach`] takes these steps, in this order:
//!
//! | step | module | question |
//! |---|---|---|
//! | find | [`link`] | which pid 1 is in the linked cgroup? |
//! | find, without a link | [`emperor_socket`] | who listens on the container's ns.socket? |
//! | verify | [`leader`], [`link_rules`], [`tracers`] | is that the container's pid 1? |
//! | verify | [`root_directory`] | does a join end in its root directory? |
//! | prepare | [`namespaces`], [`user_namespace`], [`cgroups`] | what is there to join? |
//! | prepare | [`confinement`], [`apparmor`], [`seccomp`] | how is pid 1 confined? |
//! | terminals | [`terminals`] | where does sshd's monitor open terminals? |
//! | enter | [`attach`], [`helper`], [`privileges`], [`masked_paths`] | join, drop privileges, fork |
//!
//! [`supervisor`] is the process that stays outside. [`tenant`] works on a tenant's files.
//! [`running`] finds all containers and [`cgroup_usage`] what they use, for commands. [`sessions`]
//! counts sessions and [`refusal_counters`] refusals. [`refusal`] has every reason to refuse, with
//! the sentence that the user reads. [`options`] parses the PAM line. [`safe_path`], [`subtree`]
//! and [`pid_namespaces`] serve [`link`]; [`unix_socket`] serves [`emperor_socket`];
//! [`session_record`] and [`run_directory`] serve [`sessions`]; [`proc`], [`mountinfo`],
//! [`regular_file`], [`deadline`] and [`openmetrics`] serve all. All `unsafe` code is in [`sys`].

mod apparmor;
pub mod attach;
pub mod cgroup_usage;
pub mod cgroups;
pub mod confinement;
pub mod deadline;
pub mod emperor_socket;
mod helper;
pub mod leader;
pub mod link;
mod link_rules;
mod masked_paths;
pub mod mountinfo;
pub mod namespaces;
pub mod openmetrics;
pub mod options;
mod pid_namespaces;
pub mod privileges;
pub mod proc;
pub mod refusal;
pub mod refusal_counters;
pub mod regular_file;
mod root_directory;
mod run_directory;
pub mod running;
pub mod safe_path;
mod seccomp;
pub mod session_record;
pub mod sessions;
mod subtree;
pub mod supervisor;
pub mod sys;
pub mod tenant;
pub mod terminals;
mod tracers;
mod unix_socket;
pub mod user_namespace;

pub use deadline::Deadline;

/// The properties that the fuzzer checks. They are inside the crate because its parsers are
/// private.
#[cfg(feature = "fuzz")]
#[path = "../../fuzz/properties/join.rs"]
pub mod properties;

/// Panics if a test has written the name of this point to a file.
#[cfg(feature = "test-panics")]
#[allow(clippy::panic)]
pub fn failpoint(point: &str) {
    if std::fs::read_to_string("/run/pam_unbit.panic").is_ok_and(|asked| asked == point) {
        panic!("as asked, in {point}");
    }
}

/// Does nothing: only builds for tests can fail on demand.
#[cfg(not(feature = "test-panics"))]
pub const fn failpoint(_point: &str) {}
