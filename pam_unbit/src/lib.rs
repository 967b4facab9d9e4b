//! pam_unbit.so: `ssh 30001@node` lands in the namespaces and cgroups of container 30001.
//!
//! [`login`] tells a login from top to bottom. Its steps, in the order in which it takes them:
//!
//! | step | module | what it answers |
//! |---|---|---|
//! | identify | [`account`] | is this a container's user, and whose? |
//! | reach | [`door`], [`emperor`] | who listens on the container's ns.socket? |
//! | verify | [`leader`] | is that the container's pid 1? |
//! | prepare | [`namespaces`], [`cgroups`] | what is there to join? each one opened and checked |
//! | enter | [`visit`], [`nss`] | join all of it, in sshd's child, and load no code of the tenant's on the way |
//!
//! [`escort`] is for services other than sshd, which enter by `join=now`.
//!
//! [`refusal`] holds every reason to say no and what people read then; [`options`] what the PAM line may say. `unsafe` is in
//! [`hooks`] and [`pam`] (Linux-PAM's C interface), in [`lock`] (a handler for fork) and in [`sys`] (what nix does not have), nowhere else.

mod account;
mod cgroups;
mod deadline;
mod door;
mod emperor;
mod escort;
mod hooks;
mod leader;
mod lock;
mod login;
mod namespaces;
mod nss;
mod options;
mod pam;
mod refusal;
mod sys;
mod unix_socket;
mod visit;

/// A defect on demand: panics if that is what the file says.
#[cfg(feature = "test-panics")]
#[allow(clippy::panic)]
fn defect(point: &str) {
    if std::fs::read_to_string("/run/pam_unbit.panic").is_ok_and(|asked| asked == point) {
        panic!("as asked, in {point}");
    }
}

#[cfg(not(feature = "test-panics"))]
const fn defect(_point: &str) {}
