//! One call by libpam: its handle, flags and options, the account, and how a refusal is reported.
//!
//! What the call does is in [`login`](crate::login). Nothing here decides who may log in.

use crate::account::{self, Account, ContainerUser};
use crate::pam::{Handle, flag};
use join::options::Options;
use join::refusal::Refusal;
use shared::escape;
use std::ffi::c_int;
use std::fmt;

#[cfg(test)]
use crate::pam::fake as refusal_counters;
#[cfg(not(test))]
use join::refusal_counters;

/// One call of a hook.
pub struct Call<'a> {
    pub pam: Handle,
    pub flags: c_int,
    /// The container user, once it is identified.
    pub user: Option<ContainerUser>,
    words: Vec<&'a [u8]>,
}

impl<'a> Call<'a> {
    /// A call with the words of its PAM line.
    pub const fn new(pam: Handle, flags: c_int, words: Vec<&'a [u8]>) -> Self {
        Self { pam, flags, user: None, words }
    }

    /// The options of the PAM line.
    pub fn options(&self) -> Result<Options, Refusal> {
        Options::parse(self.words.iter().copied())
    }

    /// Logs a step, if the PAM line says `debug`.
    pub fn debug(&self, line: fmt::Arguments<'_>) {
        if self.words.contains(&b"debug".as_slice()) {
            self.pam.log(libc::LOG_DEBUG, &line.to_string());
        }
    }

    /// Identifies the account, see [`account::identify`].
    pub fn identify(&mut self) -> Result<Account, Refusal> {
        let account = account::identify(&self.pam)?;
        if let Account::Container(user) = account {
            self.user = Some(user);
        }
        Ok(account)
    }

    /// Reports a refusal: the cause to the log, the sentence to the user.
    pub fn refuse(&self, refusal: &Refusal) {
        let name = self.pam.user().map(|user| escape::word(user.to_bytes()).to_string()).unwrap_or_default();
        let user = self.user.map_or_else(|| name.clone(), |user| user.to_string());
        self.pam.log(libc::LOG_ERR, &format!("container {user} refused: {}", refusal.cause));
        if self.flags & flag::SILENT == 0 {
            self.pam.show_error(&refusal.sentence(&name));
        }
    }

    /// Counts a refusal. Must not be called inside a container, where the tenant owns /run.
    pub fn count(&self, refusal: &Refusal) {
        if let Err(failed) = refusal_counters::increment(self.user.map(|user| user.container), refusal.reason) {
            self.debug(format_args!("the refusal is not counted: {}", failed.cause));
        }
    }
}
