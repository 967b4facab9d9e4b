//! pam_unbit.so: `ssh 30001@node` opens a session in the namespaces and cgroups of container 30001.
//!
//! [`login`] has the steps of a login, in order:
//!
//! | step | module | question |
//! |---|---|---|
//! | identify | [`account`] | is this a container user, and of which container? |
//! | reach, verify, prepare | [`join::attach`] | who is the container's pid 1, and what is there to join? |
//! | enter | [`join::attach`], [`nss`] | how does sshd's child join all of it, and load no code from the container? |
//! | keep | [`setuid_guard`] | how can sshd's child not become the user outside? |
//!
//! [`call`] is one call by libpam, and [`auth_info`] describes the client and its key.
//!
//! Everything that does not concern PAM is in the crate [`join`]. All `unsafe` code is in [`hooks`]
//! and [`pam`] (Linux-PAM's C interface), [`setuid_guard`] (fork handlers) and [`sys`] (what nix
//! lacks).

mod account;
mod auth_info;
mod call;
mod hooks;
mod login;
mod nss;
mod pam;
mod setuid_guard;
mod sys;
