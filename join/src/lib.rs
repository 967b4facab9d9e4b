//! The way from the host into a container, for the PAM module and the operator's command alike.
//!
//! [`visit`] goes it, in this order:
//!
//! | step | module | what it answers |
//! |---|---|---|
//! | reach | [`door`], [`emperor`] | who listens on the container's ns.socket? |
//! | verify | [`leader`] | is that the container's pid 1? |
//! | prepare | [`namespaces`], [`cgroups`] | what is there to join? each one opened and checked |
//! | enter | [`visit`] | join all of it, the mount namespace last, and leave root's power behind |
//!
//! [`escort`] is the process that stays outside where an application enters by itself. [`refusal`] holds every reason to say no and what
//! people read then; [`options`] what the PAM line may say. `unsafe` is in [`sys`] alone.

pub mod cgroups;
mod deadline;
pub mod door;
pub mod emperor;
pub mod escort;
pub mod leader;
pub mod mountinfo;
pub mod namespaces;
pub mod options;
pub mod refusal;
pub mod sys;
mod unix_socket;
pub mod visit;

pub use deadline::Deadline;

/// A defect on demand: panics if that is what the file says.
#[cfg(feature = "test-panics")]
#[allow(clippy::panic)]
pub fn defect(point: &str) {
    if std::fs::read_to_string("/run/pam_unbit.panic").is_ok_and(|asked| asked == point) {
        panic!("as asked, in {point}");
    }
}

/// A defect on demand, in builds for tests; here nothing.
#[cfg(not(feature = "test-panics"))]
pub const fn defect(_point: &str) {}
