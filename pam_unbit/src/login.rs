//! A login, told from top to bottom.
//!
//! sshd calls these hooks in this order (OpenSSH `auth2.c`, `sshd.c` or `sshd-session.c`, `session.c`, `platform.c`):
//!
//! 1. [`acct_mgmt`], in the monitor, when the key is accepted: the whole verification, and what it opened is kept.
//! 2. [`setcred`], in the monitor: notes that the auth line is there.
//! 3. [`open_session`], in the monitor: binds its next child to the container's pid namespace.
//! 4. [`setcred`] again, in that child, as root, just before sshd gives up root for good: enters the container.
//! 5. [`close_session`], in the monitor.
//!
//! The monitor, which stays root, enters nothing. The child enters and is root no more. Whatever is missing or out of order refuses.

use crate::account::{Account, identify};
use crate::hooks::Call;
use crate::pam::flag;
use crate::refusal::{Reason, Refusal};
use crate::sys;
use crate::visit::Visit;
use shared::ContainerUid;
use std::cell::RefCell;
use std::process;
use std::time::{Duration, Instant};

/// What a hook says when it does not refuse.
pub enum Verdict {
    Success,
    /// Not a container's user: the rest of the stack decides.
    Ignore,
}

/// What one hook leaves for the next, kept by libpam; sshd's child inherits a copy.
struct Login {
    container: ContainerUid,
    monitor: u32,
    verified: Option<Visit>,
    verified_in: Duration,
    auth_line_seen: bool,
    session_open: bool,
}

impl Login {
    fn of(container: ContainerUid) -> Self {
        Self {
            container,
            monitor: process::id(),
            verified: None,
            verified_in: Duration::ZERO,
            auth_line_seen: false,
            session_open: false,
        }
    }

    fn is_in_monitor(&self) -> bool {
        self.monitor == process::id()
    }
}

/// Container users have no password, and no password module may run for them as root: keys only.
pub fn authenticate(call: &Call) -> Result<Verdict, Refusal> {
    match identify(&call.pam)? {
        Account::Container(_) => {
            Err(Refusal::new(Reason::KeysOnly, "a password was offered; container users log in with keys"))
        }
        Account::Other | Account::Unknown => Ok(Verdict::Ignore),
    }
}

/// Verifies the container. A refusal here reaches the client before it is let in, whatever it came for: a shell, sftp, or -N.
pub fn acct_mgmt(call: &Call) -> Result<Verdict, Refusal> {
    let Account::Container(container) = identify(&call.pam)? else { return Ok(Verdict::Ignore) };
    let started = Instant::now();
    let options = call.options()?;
    must_be_sshd(call)?;

    let visit = Visit::prepare(container, &options)?;
    call.debug(&format!("container {container}: verified; {visit}"));

    let login = Login { verified: Some(visit), verified_in: started.elapsed(), ..Login::of(container) };
    remember(call, login)?;
    Ok(Verdict::Success)
}

/// Called twice: in the monitor, before the session, and in the child that becomes the user's. There it enters the container or ends the
/// process, because sshd does no more than log an error that it returns after a login by key.
pub fn setcred(call: &Call) -> Result<Verdict, Refusal> {
    if call.flags & flag::DELETE_CRED != 0 {
        return Ok(if recall(call).is_some() { Verdict::Success } else { Verdict::Ignore });
    }
    match establish_credentials(call) {
        Err(refusal) if is_sshd(call) => {
            call.refuse(&refusal);
            sys::exit_now()
        }
        other => other,
    }
}

fn establish_credentials(call: &Call) -> Result<Verdict, Refusal> {
    let Some(login) = recall(call) else {
        let Account::Container(container) = identify(&call.pam)? else { return Ok(Verdict::Ignore) };
        must_be_sshd(call)?;
        remember(call, Login { auth_line_seen: true, ..Login::of(container) })?;
        return Ok(Verdict::Success);
    };
    let mut login = login.borrow_mut();

    if !login.session_open {
        if !login.is_in_monitor() {
            return Err(Refusal::new(
                Reason::Misconfigured,
                "no session was opened: is the session line of pam_unbit.so missing?",
            ));
        }
        login.auth_line_seen = true;
        return Ok(Verdict::Success);
    }

    let monitor = login.monitor;
    let Some(visit) = login.verified.take() else {
        return Err(Refusal::new(
            Reason::Misconfigured,
            "credentials were asked for once more, after the session had entered",
        ));
    };
    if !visit.has_born_us()? {
        return Err(Refusal::new(
            Reason::Misconfigured,
            format!(
                "credentials were asked for in a process that the monitor {monitor} did not fork into the container"
            ),
        ));
    }
    sys::open_log();
    visit.enter()?;
    sys::close_log();
    Ok(Verdict::Success)
}

/// Opens the session: from here on the monitor's next child belongs to the container. Nothing can fail after that.
pub fn open_session(call: &Call) -> Result<Verdict, Refusal> {
    let Account::Container(container) = identify(&call.pam)? else { return Ok(Verdict::Ignore) };
    let started = Instant::now();
    call.options()?;
    must_be_sshd(call)?;

    let missing = |line| {
        Refusal::new(Reason::Misconfigured, format!("is the {line} line of pam_unbit.so missing? It was not called"))
    };
    let login = recall(call).ok_or_else(|| missing("account"))?;
    let mut login = login.borrow_mut();
    if !login.auth_line_seen {
        return Err(missing("auth"));
    }
    if login.container != container || !login.is_in_monitor() {
        return Err(Refusal::new(
            Reason::Misconfigured,
            "the session is another user's or process's than the one that was verified",
        ));
    }
    let visit = login.verified.as_ref().ok_or_else(|| missing("account"))?;
    visit.bind_next_child()?;

    let milliseconds = (login.verified_in + started.elapsed()).as_secs_f64() * 1e3;
    call.pam.log(
        libc::LOG_INFO,
        &format!("container {container}: session opens in {visit}; verified in {milliseconds:.1} ms"),
    );
    login.session_open = true;
    Ok(Verdict::Success)
}

/// Lets go of everything.
pub fn close_session(call: &Call) -> Result<Verdict, Refusal> {
    let Some(login) = recall(call) else { return Ok(Verdict::Ignore) };
    let mut login = login.borrow_mut();
    if let Some(visit) = login.verified.take() {
        visit.release_children();
    }
    call.debug(&format!("container {}: session closed", login.container));
    Ok(Verdict::Success)
}

/// Other services never call setcred in a child, so that their session would stay on the host.
fn must_be_sshd(call: &Call) -> Result<(), Refusal> {
    if is_sshd(call) {
        return Ok(());
    }
    let service = call.pam.service().map(|service| service.to_string_lossy().into_owned()).unwrap_or_default();
    Err(Refusal::new(Reason::Misconfigured, format!("the service {service} cannot enter containers, only sshd can")))
}

fn is_sshd(call: &Call) -> bool {
    call.pam.service() == Some(c"sshd")
}

fn remember(call: &Call, login: Login) -> Result<(), Refusal> {
    if call.pam.remember(RefCell::new(login)) {
        Ok(())
    } else {
        Err(Refusal::new(Reason::Broken, "pam_set_data failed"))
    }
}

fn recall<'a>(call: &'a Call) -> Option<&'a RefCell<Login>> {
    call.pam.recall()
}
