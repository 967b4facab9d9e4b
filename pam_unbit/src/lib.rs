//! pam_unbit.so: `ssh 30001@node` lands in the namespaces and cgroups of container 30001.
//!
//! [`login`] tells a login from top to bottom. Its steps, in the order in which it takes them:
//!
//! | step | module | what it answers |
//! |---|---|---|
//! | identify | [`account`] | is this a container's user, and whose? |
//! | reach, verify, prepare | [`join::attach`] | who is the container's pid 1, and what is there to join? |
//! | enter | [`join::attach`], [`nss`] | join all of it, in sshd's child, which loads no code from the container |
//!
//! What is not about PAM is in the crate [`join`]. `unsafe` is in [`hooks`] and [`pam`] (Linux-PAM's C interface), in [`setuid_guard`] (a handler for
//! fork) and in [`sys`] (what nix does not have), nowhere else.

mod account;
mod auth_info;
mod call;
mod hooks;
mod login;
mod nss;
mod pam;
mod setuid_guard;
mod sys;
