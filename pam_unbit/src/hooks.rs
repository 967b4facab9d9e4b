//! The functions that libpam calls, see pam(3) and pam_modules(3). Each calls the function of the
//! same name in [`login`](crate::login), and turns the result into a return value, a line of the
//! log and a sentence for the user.
//!
//! No step of a login is in this file.
#![allow(unsafe_code)]

use crate::call::Call;
use crate::login::{self, Verdict};
use crate::pam::{Handle, RawHandle, code, printable};
use crate::sys;
use join::refusal::Refusal;
use join::sys::exit_now;
use std::ffi::{CStr, c_char, c_int};
use std::sync::Once;

fn run(
    name: &str,
    handle: *mut RawHandle,
    flags: c_int,
    argc: c_int,
    argv: *const *const c_char,
    hook: fn(&mut Call) -> Result<Verdict, Refusal>,
    refused: c_int,
) -> c_int {
    if cfg!(not(test)) {
        end_the_process_on_a_panic();
    }
    // SAFETY: libpam passes the handle of this transaction, which outlives the call.
    let Some(pam) = (unsafe { Handle::new(handle) }) else { return code::ABORT };
    let words = (0..usize::try_from(argc).unwrap_or(0))
        // SAFETY: libpam passes argc strings in argv, which outlive the call.
        .map(|i| unsafe { CStr::from_ptr(*argv.add(i)) }.to_bytes())
        .collect();
    let mut call = Call::new(pam, flags, words);
    join::failpoint(name);
    match hook(&mut call) {
        Ok(Verdict::Success) => code::SUCCESS,
        Ok(Verdict::Ignore) => code::IGNORE,
        Err(refusal) => {
            call.refuse(&refusal);
            if !login::is_inside(&call) {
                call.count(&refusal);
            }
            refused
        }
    }
}

/// A panic must not become a session that is on the node, or half inside the container. So the
/// process exits, with a line in the log and without a core file, because it holds keys. If memory
/// runs out, Rust aborts instead.
fn end_the_process_on_a_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            sys::log_critical(&printable(&format!("pam_unbit: internal error, login refused: {panic}")));
            exit_now(255);
        }));
    });
}

macro_rules! hook {
    ($name:ident, $hook:ident, $refused:expr) => {
        /// Called by libpam.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(
            handle: *mut RawHandle,
            flags: c_int,
            argc: c_int,
            argv: *const *const c_char,
        ) -> c_int {
            run(stringify!($hook), handle, flags, argc, argv, login::$hook, $refused)
        }
    };
}

hook!(pam_sm_authenticate, authenticate, code::PERM_DENIED);
hook!(pam_sm_setcred, setcred, code::CRED_ERR);
hook!(pam_sm_acct_mgmt, acct_mgmt, code::PERM_DENIED);
hook!(pam_sm_open_session, open_session, code::SESSION_ERR);
hook!(pam_sm_close_session, close_session, code::SESSION_ERR);

#[cfg(test)]
mod tests;
