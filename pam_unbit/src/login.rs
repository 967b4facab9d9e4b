//! A login from top to bottom. How a container is found, verified and entered is in the crate
//! [`join`].
//!
//! sshd calls these hooks in this order (OpenSSH `auth2.c`, `sshd.c` or `sshd-session.c`,
//! `session.c`, `platform.c`):
//!
//! 1. [`acct_mgmt`], in the monitor, when the key is accepted: the whole verification, and what it
//!    opened is kept.
//! 2. [`setcred`], in the monitor: notes that the auth line is there.
//! 3. [`open_session`], in the monitor: takes the container's terminals, and hands what was opened
//!    to its next child.
//! 4. [`setcred`] again, in that child, as root, just before sshd gives up root for good: forks
//!    into the container. The process inside goes on as sshd's child; the one that forked stays
//!    outside as its [`supervisor`].
//! 5. [`close_session`], in the monitor.
//!
//! The monitor, which stays root, joins no namespace of the container; it gets a mount namespace of
//! its own, see [`join::terminals`]. A helper drops the node's ids, capabilities and descriptors
//! before it forks into the container, see [`join::attach`]. Until then sshd's child cannot change
//! its uid, see [`setuid_guard`]. If a hook is not called, or in another order, the login is
//! refused.

use crate::account::{self, Account, ContainerUser};
use crate::auth_info;
use crate::call::Call;
use crate::nss;
use crate::pam::flag;
use crate::setuid_guard;
use crate::sys;
use join::Deadline;
use join::attach::{Attachment, Forked, Who};
use join::options::Options;
use join::refusal::{Context, Reason, Refusal};
use join::session_record::{self, Record};
use join::sessions::Slot;
use join::supervisor::{self, Signals};
use join::sys::{exit_now, give_session_keyring, new_session_keyring, revoke_session_keyring};
use nix::errno::Errno;
use nix::unistd::{Pid, getppid};
use shared::{ContainerUid, escape};
use std::cell::RefCell;
use std::ffi::CStr;
use std::fmt;
use std::process;
use std::time::{Duration, Instant};

/// The result of a hook that does not refuse.
pub enum Verdict {
    Success,
    /// Not a container's user: the rest of the stack decides.
    Ignore,
}

/// What one hook keeps for the next, by pam_set_data(3). sshd's child inherits a copy.
struct Login {
    user: ContainerUser,
    monitor: u32,
    verified: Option<Attachment>,
    /// The session's slot among those of the container.
    slot: Option<Slot>,
    verified_in: Duration,
    auth_line_seen: bool,
    session: Session,
    /// When sshd's session was opened.
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
    fn of(user: ContainerUser) -> Self {
        Self {
            user,
            monitor: process::id(),
            verified: None,
            slot: None,
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

/// Refuses a container user: they log in with keys, and no password module may run for them as
/// root.
pub fn authenticate(call: &mut Call) -> Result<Verdict, Refusal> {
    let refusal = match call.identify() {
        Ok(Account::Other | Account::Unknown) => return Ok(Verdict::Ignore),
        Ok(Account::Container(_)) => "a password was offered; container users log in with keys".to_owned(),
        Err(refusal) => refusal.cause,
    };
    // The same words whether the container exists or not: without a key nobody learns which do.
    Err(Refusal::new(Reason::KeysOnly, refusal))
}

/// Verifies the container. A refusal in this phase reaches the client before sshd accepts it, for a
/// shell, sftp and -N alike.
pub fn acct_mgmt(call: &mut Call) -> Result<Verdict, Refusal> {
    let Account::Container(user) = call.identify()? else { return Ok(Verdict::Ignore) };
    let started = Instant::now();
    let options = options_for_the_service(call)?;

    let attachment = prepare(call, user, &options)?;
    // Afterwards, so that what has been opened is no later user's either. In other services no key
    // is read, and the process of login(1) is as old as its terminal's getty.
    if is_sshd(call) {
        account::must_be_older_than_this_login(user.container)?;
    }
    let slot = take_slot(call, user.container, &options)?;

    let login =
        Login { verified: Some(attachment), slot: Some(slot), verified_in: started.elapsed(), ..Login::of(user) };
    set_data(call, login)?;
    Ok(Verdict::Success)
}

/// Keeps the slot of an earlier call of this transaction: taking a second one would release its
/// lock, see [`Slot`].
fn take_slot(call: &Call, container: ContainerUid, options: &Options) -> Result<Slot, Refusal> {
    match get_data(call).and_then(|login| login.borrow_mut().slot.take()) {
        Some(slot) if slot.container == container => Ok(slot),
        _ => Slot::take(container, options.sessions),
    }
}

fn prepare(call: &Call, user: ContainerUser, options: &Options) -> Result<Attachment, Refusal> {
    let mut on_step =
        |step: &str, seen: fmt::Arguments<'_>| call.debug(format_args!("container {user}: {step}: {seen}"));
    Attachment::prepare(user.container, options, &mut on_step)
}

/// Called twice: in the monitor, before the session, and in the child that becomes the user. The
/// second call enters the container or exits, because sshd only logs an error of it after a login
/// by key.
pub fn setcred(call: &mut Call) -> Result<Verdict, Refusal> {
    if call.flags & flag::DELETE_CRED != 0 {
        return Ok(if get_data(call).is_some() { Verdict::Success } else { Verdict::Ignore });
    }
    match establish_credentials(call) {
        Err(refusal) if is_sshd(call) => {
            call.refuse(&refusal);
            call.count(&refusal);
            if get_data(call).is_some_and(|login| !login.borrow().is_in_monitor()) {
                // A helper stopped by a frozen cgroup has these sockets open too, so closing them
                // here would not end the connection.
                sys::end_connections();
            }
            exit_now(255)
        }
        other => other,
    }
}

fn establish_credentials(call: &mut Call) -> Result<Verdict, Refusal> {
    let Some(user) = get_data(call).map(|login| login.borrow().user) else {
        let Account::Container(user) = call.identify()? else { return Ok(Verdict::Ignore) };
        options_for_the_service(call)?;
        set_data(call, Login { auth_line_seen: true, ..Login::of(user) })?;
        return Ok(Verdict::Success);
    };
    call.user = Some(user);
    let login = get_data(call).ok_or_else(|| Refusal::new(Reason::Broken, "pam_get_data lost the login"))?;
    let mut login = login.borrow_mut();

    match login.session {
        Session::Entered => return Ok(Verdict::Success),
        Session::Open => {}
        // The refusal was reported already. sshd forks its child nevertheless.
        Session::Refused if !login.is_in_monitor() => exit_now(255),
        Session::NotYet if !login.is_in_monitor() => {
            return Err(Refusal::new(
                Reason::Misconfigured,
                "no session was opened: is the session line of pam_unbit.so missing?",
            ));
        }
        Session::NotYet | Session::Refused => {
            options_for_the_service(call)?; // the options of the auth line
            login.auth_line_seen = true;
            return Ok(Verdict::Success);
        }
    }

    let (container, monitor) = (user.container, Pid::from_raw(login.monitor as i32));
    drop(login.slot.take()); // the lock is the monitor's, and the descriptor must not be open inside
    drop(login);
    let options = options_for_the_service(call)?;
    let misconfigured = |cause| Refusal::new(Reason::Misconfigured, cause);
    let attachment = setuid_guard::disarm()?
        .ok_or_else(|| misconfigured("pam_setcred was called again after the session had entered".to_owned()))?;
    if getppid() != monitor {
        return Err(misconfigured(format!(
            "pam_setcred was called in a process that is not a child of the monitor {monitor}; does a module after pam_unbit.so fork?"
        )));
    }
    enter(attachment, container, monitor, &options)?;
    Ok(Verdict::Success)
}

/// Returns `Ok` in the process inside, and an error outside.
fn enter(attachment: Attachment, container: ContainerUid, monitor: Pid, options: &Options) -> Result<(), Refusal> {
    nss::pin_loaded()?;
    sys::open_log();
    sys::set_c_locale();
    let signals = Signals::hold()?;
    let deadline = Deadline::after(options.timeout);
    let ids = attachment.ids();
    let finish = || signals.release().inspect(|()| sys::close_log());
    match attachment.fork_into(Who::User, deadline, || Ok(()), finish)? {
        Forked::Inside => {
            supervisor::die_with_supervisor();
            Ok(())
        }
        Forked::Outside(child) => Err(supervisor::supervise_session(container, ids, child, &signals, monitor)),
    }
}

/// Arms the guard: the monitor's next child must enter the container. That can still fail, in
/// [`setcred`].
pub fn open_session(call: &mut Call) -> Result<Verdict, Refusal> {
    let verdict = prepare_session(call);
    if verdict.is_err() {
        if let Some(login) = get_data(call) {
            login.borrow_mut().session = Session::Refused;
        }
        // libpam ignores this error if the line is not `required`, and begins a session on the
        // node.
        if setuid_guard::arm(None).is_err() {
            exit_now(255);
        }
    }
    verdict
}

fn prepare_session(call: &mut Call) -> Result<Verdict, Refusal> {
    let user = match (call.identify()?, get_data(call)) {
        (Account::Container(user), _) => user,
        (Account::Other | Account::Unknown, None) => return Ok(Verdict::Ignore),
        // Its second name was removed since. That must not become a session on the node.
        (Account::Other | Account::Unknown, Some(login)) => return Err(wrong_user_or_process(login.borrow().user)),
    };
    let started = Instant::now();
    let options = options_for_the_service(call)?;
    if options.join_now {
        return join_now(call, user, &options, started);
    }

    let missing = |line| {
        Refusal::new(Reason::Misconfigured, format!("is the {line} line of pam_unbit.so missing? It was not called"))
    };
    let login = get_data(call).ok_or_else(|| missing("account"))?;
    let mut login = login.borrow_mut();
    if !login.auth_line_seen {
        return Err(missing("auth"));
    }
    if login.user != user || !login.is_in_monitor() {
        return Err(wrong_user_or_process(login.user));
    }
    let attachment = login.verified.take().ok_or_else(|| missing("account"))?;
    let terminals = attachment.take_terminals(Deadline::after(options.timeout))?;
    call.debug(format_args!("container {user}: terminals: {terminals}"));
    set_loginuid_and_keyring(user.container, &options)?;
    let line = opened_line(call, user, &attachment, login.verified_in + started.elapsed());
    setuid_guard::arm(Some(attachment))?;

    call.pam.log(libc::LOG_INFO, &line);
    login.slot.iter().for_each(|slot| write_record(call, user, slot));
    login.session = Session::Open;
    login.opened = Some(Instant::now());
    Ok(Verdict::Success)
}

fn wrong_user_or_process(verified: ContainerUser) -> Refusal {
    Refusal::new(
        Reason::Misconfigured,
        format!("the session does not belong to the user and process that were verified, for container {verified}"),
    )
}

/// Closes and releases everything, and logs the end of the session.
pub fn close_session(call: &mut Call) -> Result<Verdict, Refusal> {
    let Some(login) = get_data(call) else { return Ok(Verdict::Ignore) };
    let mut login = login.borrow_mut();
    setuid_guard::release();
    drop((login.verified.take(), login.slot.take()));
    if let Some(opened) = login.opened.take() {
        let _ = revoke_session_keyring(); // otherwise it stays until its last process ends
        let line = format!("container {}: session closed after {:.1} s", login.user, opened.elapsed().as_secs_f64());
        call.pam.log(libc::LOG_INFO, &line);
    }
    Ok(Verdict::Success)
}

/// `join=now`: for an application that calls no hook in the child that becomes the user, so that
/// the application itself must enter. Returns in a child, which goes on as the application; see
/// [`supervisor`].
fn join_now(call: &mut Call, user: ContainerUser, options: &Options, started: Instant) -> Result<Verdict, Refusal> {
    let container = user.container;
    if let Some(login) = get_data(call).filter(|login| login.borrow().user != user) {
        return Err(wrong_user_or_process(login.borrow().user));
    }
    let slot = take_slot(call, container, options)?;
    let before = get_data(call).and_then(|login| {
        let mut login = login.borrow_mut();
        Some((login.verified.take()?, login.verified_in))
    });
    let (attachment, verified_in) = match before {
        Some(before) => before,
        None => (prepare(call, user, options)?, Duration::ZERO),
    };
    attachment.must_be_safe_for_root(Deadline::after(options.timeout))?;
    write_record(call, user, &slot);
    set_data(call, Login { session: Session::Entered, slot: Some(slot), ..Login::of(user) })?;
    set_loginuid_and_keyring(container, options)?;
    call.pam.log(libc::LOG_INFO, &opened_line(call, user, &attachment, verified_in + started.elapsed()));
    let in_the_child = supervisor::continue_in_grandchild(|| attachment.bind_next_child())?;

    // The lock is that of the processes outside, and its descriptor must not be open inside.
    drop(get_data(call).and_then(|login| login.borrow_mut().slot.take()));
    sys::open_log();
    sys::set_c_locale();
    let entered = in_the_child
        .and_then(|()| nss::pin_unbit_only(container))
        .and_then(|()| attachment.enter_before_the_application_drops_root());
    if let Err(refusal) = entered {
        call.refuse(&refusal);
        exit_now(255);
    }
    sys::close_log();
    Ok(Verdict::Success)
}

/// Refuses options that do not fit the service. sshd's child enters in its second setcred. Other
/// services never call that, so they must enter at once, with `join=now`, or their session would be
/// on the node.
fn options_for_the_service(call: &Call) -> Result<Options, Refusal> {
    let options = call.options()?;
    match (is_sshd(call), options.join_now) {
        (true, false) | (false, true) => Ok(options),
        (true, true) => Err(Refusal::new(
            Reason::Misconfigured,
            "join=now would take sshd's monitor into the container; remove it from sshd's lines",
        )),
        (false, false) => {
            let service =
                call.pam.service().map(|service| escape::word(service.to_bytes()).to_string()).unwrap_or_default();
            Err(Refusal::new(
                Reason::Misconfigured,
                format!("the service {service} cannot enter containers without join=now"),
            ))
        }
    }
}

/// Does what pam_loginuid and pam_keyinit do for other users, because no other module runs for
/// container users. With `join=now` an existing loginuid stays: it is the operator's, who uses su.
fn set_loginuid_and_keyring(container: ContainerUid, options: &Options) -> Result<(), Refusal> {
    if !(options.join_now && sys::has_loginuid()) {
        sys::set_loginuid(container.get()).context(Reason::Broken, "write /proc/self/loginuid")?;
    }
    begin_session_keyring(container.get()).context(Reason::Broken, "join a new session keyring")
}

/// Joins a new session keyring, and makes the user its owner, as pam_keyinit(8).
fn begin_session_keyring(uid: u32) -> nix::Result<()> {
    new_session_keyring()?;
    match give_session_keyring(uid) {
        // A process with this uid in another container could use up the user's quota of keys, so
        // the login is not refused.
        Err(Errno::EDQUOT) => revoke_session_keyring(),
        given => given,
    }
}

/// The line for the log when a session opens.
fn opened_line(call: &Call, user: ContainerUser, attachment: &Attachment, took: Duration) -> String {
    let origin =
        auth_info::origin(call.pam.remote_host(), &auth_info::accepted_methods(call.pam.environment(AUTH_INFO)));
    let took = took.as_secs_f64() * 1e3;
    format!("container {user}: session opened{origin}; {attachment}; verified in {took:.1} ms")
}

/// The methods and keys that sshd has accepted, in the PAM environment.
const AUTH_INFO: &CStr = c"SSH_AUTH_INFO_0";

/// Writes the session's record for `unbitctl sessions`. If that fails, the login goes on.
fn write_record(call: &Call, user: ContainerUser, slot: &Slot) {
    let text = |text: Option<&CStr>| text.map(|text| escape::word(text.to_bytes()).to_string()).unwrap_or_default();
    let (address, port) = auth_info::client(call.pam.environment(c"SSH_CONNECTION"))
        .unwrap_or_else(|| (text(call.pam.remote_host()), String::new()));
    let record = Record {
        pid: process::id(),
        opened: session_record::now(),
        service: text(call.pam.service()),
        address,
        port,
        terminal: text(call.pam.terminal()),
        key: auth_info::accepted_methods(call.pam.environment(AUTH_INFO)),
    };
    if let Err(error) = slot.describe(&record) {
        let line = format!("container {user}: unbitctl sessions cannot show whose session this is: {error}");
        call.pam.log(libc::LOG_WARNING, &line);
    }
}

fn is_sshd(call: &Call) -> bool {
    call.pam.service() == Some(c"sshd")
}

/// Whether this process has entered a container, by `join=now`.
pub fn is_inside(call: &Call) -> bool {
    get_data(call).is_some_and(|login| login.borrow().session == Session::Entered)
}

fn set_data(call: &mut Call, login: Login) -> Result<(), Refusal> {
    if call.pam.set_data(RefCell::new(login)) {
        Ok(())
    } else {
        Err(Refusal::new(Reason::Broken, "pam_set_data failed"))
    }
}

fn get_data<'a>(call: &'a Call) -> Option<&'a RefCell<Login>> {
    call.pam.get_data()
}
