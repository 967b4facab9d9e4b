//! The way from the node into a container, for the PAM module and the operator's command alike.
//!
//! [`attach`] does it, in this order:
//!
//! | step | module | what it answers |
//! |---|---|---|
//! | find | [`link`] | which pid 1 is in the cgroup that root has linked to the account? |
//! | find, without a link | [`emperor_socket`] | who listens on the container's ns.socket? |
//! | verify | [`leader`], [`link_rules`], [`root_directory`] | is that the container's pid 1, and its root directory the container's? |
//! | prepare | [`namespaces`], [`user_namespace`], [`cgroups`], [`confinement`] (with [`apparmor`], [`seccomp`]) | what is there to join, and how is pid 1 bound? each opened and checked |
//! | terminals | [`terminals`] | where does sshd's monitor open the session's terminals? |
//! | enter | [`attach`], [`privileges`], [`masked_paths`], [`helper`] | join all of it in a helper process, drop all privileges, and fork |
//!
//! [`supervisor`] is the process that stays outside; [`tenant`] is for what has to be done among a tenant's files. [`sessions`] counts how
//! many there are. [`refusal`] holds every reason to say no and what people read then; [`options`] what the PAM line may say. `unsafe` is in [`sys`] alone.

mod apparmor;
pub mod attach;
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
pub mod options;
mod pid_namespaces;
pub mod privileges;
pub mod proc;
pub mod refusal;
pub mod refusal_counters;
pub mod regular_file;
mod root_directory;
mod run_directory;
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

/// What must hold for any input of the parsers here, for the fuzzer.
#[cfg(feature = "fuzz")]
#[path = "../../fuzz/properties/join.rs"]
pub mod properties;

/// A failure on demand: panics if that is what the file says.
#[cfg(feature = "test-panics")]
#[allow(clippy::panic)]
pub fn failpoint(point: &str) {
    if std::fs::read_to_string("/run/pam_unbit.panic").is_ok_and(|asked| asked == point) {
        panic!("as asked, in {point}");
    }
}

/// A failure on demand, in builds for tests; here nothing.
#[cfg(not(feature = "test-panics"))]
pub const fn failpoint(_point: &str) {}
