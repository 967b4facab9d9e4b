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
//! The monitor, which stays root, enters nothing. The child enters and is root no more; until then it cannot become anybody, see [`lock`].
//! Whatever is missing or out of order refuses.

use crate::account::{Account, identify};
use crate::hooks::Call;
use crate::lock;
use crate::nss;
use crate::pam::flag;
use crate::record;
use crate::sys;
use join::escort;
use join::options::Options;
use join::refusal::{Reason, Refusal, Step};
use join::sys::exit_now;
use join::visit::Visit;
use shared::ContainerUid;
use std::cell::RefCell;
use std::fmt;
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
    session: Session,
    /// Since when sshd's session is open.
    opened: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Session {
    NotYet,
    Refused,
    /// The monitor's next child enters.
    Open,
    /// `join=now`: this process has entered.
    Entered,
}

impl Login {
    fn of(container: ContainerUid) -> Self {
        Self {
            container,
            monitor: process::id(),
            verified: None,
            verified_in: Duration::ZERO,
            auth_line_seen: false,
            session: Session::NotYet,
            opened: None,
        }
    }

    fn is_in_monitor(&self) -> bool {
        self.monitor == process::id()
    }
}

/// Container users have no password, and no password module may run for them as root: keys only.
pub fn authenticate(call: &mut Call) -> Result<Verdict, Refusal> {
    let refusal = match identify(&call.pam) {
        Ok(Account::Other | Account::Unknown) => return Ok(Verdict::Ignore),
        Ok(Account::Container(_)) => "a password was offered; container users log in with keys".to_owned(),
        Err(refusal) => refusal.cause,
    };
    // The same words whether the container exists or not: without a key nobody learns which do.
    Err(Refusal::new(Reason::KeysOnly, refusal))
}

/// Verifies the container. A refusal here reaches the client before it is let in, whatever it came for: a shell, sftp, or -N.
pub fn acct_mgmt(call: &mut Call) -> Result<Verdict, Refusal> {
    let Account::Container(container) = identify(&call.pam)? else { return Ok(Verdict::Ignore) };
    let started = Instant::now();
    let options = options_for_the_service(call)?;

    let visit = prepare(call, container, &options)?;

    let login = Login { verified: Some(visit), verified_in: started.elapsed(), ..Login::of(container) };
    remember(call, login)?;
    Ok(Verdict::Success)
}

fn prepare(call: &Call, container: ContainerUid, options: &Options) -> Result<Visit, Refusal> {
    let mut tell =
        |step: &str, seen: fmt::Arguments<'_>| call.debug(format_args!("container {container}: {step}: {seen}"));
    Visit::prepare(container, options, &mut tell)
}

/// Called twice: in the monitor, before the session, and in the child that becomes the user's. There it enters the container or ends the
/// process, because sshd does no more than log an error that it returns after a login by key.
pub fn setcred(call: &mut Call) -> Result<Verdict, Refusal> {
    if call.flags & flag::DELETE_CRED != 0 {
        return Ok(if recall(call).is_some() { Verdict::Success } else { Verdict::Ignore });
    }
    match establish_credentials(call) {
        Err(refusal) if is_sshd(call) => {
            call.refuse(&refusal);
            exit_now(255)
        }
        other => other,
    }
}

fn establish_credentials(call: &mut Call) -> Result<Verdict, Refusal> {
    let Some(login) = recall(call) else {
        let Account::Container(container) = identify(&call.pam)? else { return Ok(Verdict::Ignore) };
        options_for_the_service(call)?;
        remember(call, Login { auth_line_seen: true, ..Login::of(container) })?;
        return Ok(Verdict::Success);
    };
    let mut login = login.borrow_mut();

    match login.session {
        Session::Entered => return Ok(Verdict::Success),
        Session::Open => {}
        // It is written down already. sshd forks its child all the same.
        Session::Refused if !login.is_in_monitor() => exit_now(255),
        Session::NotYet if !login.is_in_monitor() => {
            return Err(Refusal::new(
                Reason::Misconfigured,
                "no session was opened: is the session line of pam_unbit.so missing?",
            ));
        }
        Session::NotYet | Session::Refused => {
            options_for_the_service(call)?; // those of the auth line
            login.auth_line_seen = true;
            return Ok(Verdict::Success);
        }
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
                "credentials were asked for in a process that the monitor {monitor} did not fork into the container; does a module behind pam_unbit.so fork?"
            ),
        ));
    }
    nss::pin()?;
    sys::open_log();
    sys::give_up_locale();
    lock::open()?;
    visit.enter()?;
    sys::close_log();
    Ok(Verdict::Success)
}

/// Opens the session: from here on the monitor's next child belongs to the container. Nothing can fail after that.
pub fn open_session(call: &mut Call) -> Result<Verdict, Refusal> {
    let verdict = bind_session(call);
    if let (Err(_), Some(login)) = (&verdict, recall(call)) {
        login.borrow_mut().session = Session::Refused;
    }
    verdict
}

fn bind_session(call: &mut Call) -> Result<Verdict, Refusal> {
    let Account::Container(container) = identify(&call.pam)? else { return Ok(Verdict::Ignore) };
    let started = Instant::now();
    let options = options_for_the_service(call)?;
    if options.join_now {
        return join_now(call, container, &options, started);
    }

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
    begin_kernel_session(container)?;
    lock::close(visit)?;

    call.pam.log(libc::LOG_INFO, &opened(call, container, visit, login.verified_in + started.elapsed()));
    login.session = Session::Open;
    login.opened = Some(Instant::now());
    Ok(Verdict::Success)
}

/// Lets go of everything.
pub fn close_session(call: &mut Call) -> Result<Verdict, Refusal> {
    let Some(login) = recall(call) else { return Ok(Verdict::Ignore) };
    let mut login = login.borrow_mut();
    lock::forget();
    if let Some(visit) = login.verified.take() {
        visit.release_children();
    }
    if let Some(opened) = login.opened.take() {
        sys::revoke_session_keyring();
        let line =
            format!("container {}: session closed after {:.1} s", login.container, opened.elapsed().as_secs_f64());
        call.pam.log(libc::LOG_INFO, &line);
    }
    Ok(Verdict::Success)
}

/// `join=now`: for an application that calls no hook in the child that becomes the user's, so that it has to enter itself. Returns in a child that
/// goes on as the application; see [`escort`].
fn join_now(call: &mut Call, container: ContainerUid, options: &Options, started: Instant) -> Result<Verdict, Refusal> {
    let before = recall(call).and_then(|login| {
        let mut login = login.borrow_mut();
        Some((login.verified.take()?, login.verified_in))
    });
    let (visit, verified_in) = match before {
        Some(before) => before,
        None => (prepare(call, container, options)?, Duration::ZERO),
    };
    remember(call, Login { session: Session::Entered, ..Login::of(container) })?;
    begin_kernel_session(container)?;
    call.pam.log(libc::LOG_INFO, &opened(call, container, &visit, verified_in + started.elapsed()));
    visit.bind_next_child()?;
    let in_the_child = escort::go_on_in_a_child().inspect_err(|_| visit.release_children())?;

    sys::open_log();
    sys::give_up_locale();
    let entered = in_the_child
        .and_then(|()| nss::pin_alone(container))
        .and_then(|()| visit.enter_before_the_application_drops_root());
    if let Err(refusal) = entered {
        call.refuse(&refusal);
        exit_now(255);
    }
    sys::close_log();
    Ok(Verdict::Success)
}

/// Which service may enter in which way. sshd's child enters by its second setcred. Other services never call that, so their session would
/// stay on the host; they enter at once, and only if the PAM line says so.
fn options_for_the_service(call: &Call) -> Result<Options, Refusal> {
    let options = call.options()?;
    match (is_sshd(call), options.join_now) {
        (true, false) | (false, true) => Ok(options),
        (true, true) => Err(Refusal::new(
            Reason::Misconfigured,
            "join=now would take sshd's monitor into the container; sshd does without",
        )),
        (false, false) => {
            let service = call.pam.service().map(|service| service.to_string_lossy().into_owned()).unwrap_or_default();
            Err(Refusal::new(
                Reason::Misconfigured,
                format!("the service {service} cannot enter containers without join=now"),
            ))
        }
    }
}

/// What pam_loginuid and pam_keyinit do for everybody else. No module but this one runs for container users.
fn begin_kernel_session(container: ContainerUid) -> Result<(), Refusal> {
    sys::set_loginuid(container.get()).step(Reason::Broken, "write /proc/self/loginuid")?;
    sys::begin_session_keyring(container.get()).step(Reason::Broken, "join a new session keyring")
}

/// The line that a login leaves in the log when its session opens.
fn opened(call: &Call, container: ContainerUid, visit: &Visit, took: Duration) -> String {
    let origin = record::origin(call.pam.remote_host(), call.pam.environment(c"SSH_AUTH_INFO_0"));
    let took = took.as_secs_f64() * 1e3;
    format!("container {container}: session opened{origin}; {visit}; verified in {took:.1} ms")
}

fn is_sshd(call: &Call) -> bool {
    call.pam.service() == Some(c"sshd")
}

fn remember(call: &mut Call, login: Login) -> Result<(), Refusal> {
    if call.pam.remember(RefCell::new(login)) {
        Ok(())
    } else {
        Err(Refusal::new(Reason::Broken, "pam_set_data failed"))
    }
}

fn recall<'a>(call: &'a Call) -> Option<&'a RefCell<Login>> {
    call.pam.recall()
}
