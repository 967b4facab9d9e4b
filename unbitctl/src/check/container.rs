//! `unbitctl check UID`: takes the steps of a login by ssh, in their order, without logging in.
//!
//! From `keys` on, a child process takes them in sshd's sandbox ([`server`]). From `reach` on they
//! are the code that pam_unbit.so runs (the crate [`join`]), up to a process that enters the
//! container and runs its shell.
//!
//! Checks of the whole node are in the other files of this directory.

use super::ids;
use super::pam;
use super::server::{self, Answering, Sandbox};
use super::sshd::{self, EffectiveConfig};
use crate::containers::{self, has_vassal};
use crate::engine;
use crate::keys::{MAX_KEY_FILE, is_type};
use crate::names::{self, Account};
use crate::probe::{self, Messages};
use crate::report::{Finding, State};
use crate::rootfs::RootFs;
use crate::shell::quoted;
use anyhow::Result;
use join::Deadline;
use join::attach::{Attachment, Who};
use join::deadline::{Incomplete, read_within};
use join::link;
use join::options::Options;
use join::refusal::{Reason, Refusal};
use join::sys::{exit_now, retry};
use join::user_namespace::Ids;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, User, chdir, getgroups, pipe2, setfsgid, setfsuid, setgroups};
use shared::{ContainerUid, SecondName, escape};
use std::ffi::CString;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The steps of a login, and why each matters.
const STEPS: [(&str, &str); 12] = [
    ("account", "sshd accepts only users that glibc knows and whose shell exists on the node"),
    ("sshd", "sshd accepts or refuses a user before it asks pam_unbit"),
    ("pam", "pam_unbit.so refuses container users unless /etc/pam.d/sshd has its three lines"),
    ("keys", "container users log in with keys: pam_unbit refuses their passwords"),
    ("reach", "the container is found by the link /etc/unbit/UID, or by the process that listens on its ns.socket"),
    ("verify", "a session joins the namespaces of the container's own pid 1 and of no other process"),
    ("namespaces", "a session never stays in the node's mount and pid namespaces"),
    ("cgroups", "a session outside the container's cgroups would escape its limits"),
    ("terminals", "a terminal that a tenant keeps open must not be one of the node's terminals"),
    ("join", "the session must get in, and run there as the container's user"),
    ("home", "a session begins in the home directory"),
    ("shell", "a session runs a shell, which the container must have"),
];

/// The step of this name, for a finding.
fn step(name: &str) -> (&'static str, &'static str) {
    STEPS.into_iter().find(|(step, _)| *step == name).unwrap_or(("container", ""))
}

fn ok(name: &str, seen: impl Into<String>) -> Finding {
    let (check, why) = step(name);
    Finding::ok(check, why, seen)
}

fn warn(name: &str, seen: impl Into<String>, fix: impl Into<String>) -> Finding {
    let (check, why) = step(name);
    Finding::warn(check, why, seen, fix)
}

fn fail(name: &str, seen: impl Into<String>, fix: impl Into<String>) -> Finding {
    let (check, why) = step(name);
    Finding::fail(check, why, seen, fix)
}

/// Runs the steps until one fails.
pub fn check(account: &Account) -> Result<Vec<Finding>> {
    crate::command_line::must_be_root("check UID")?;
    join::sys::set_all_close_on_exec()?;
    let mut findings = Vec::new();
    if let Err(end) = run_steps(account, &mut findings) {
        let next = STEPS.into_iter().skip_while(|(name, _)| *name != end.check).nth(1);
        findings.push(end);
        findings.extend(next.map(|(check, why)| {
            Finding::not_applicable(check, why, "not tried, like all later steps: a login ends before them")
        }));
    }
    Ok(findings)
}

fn run_steps(login: &Account, findings: &mut Vec<Finding>) -> Result<(), Finding> {
    let container = match login {
        Account::Number(container) => *container,
        Account::Name(name) => names::container_of(name).map_err(|error| {
            let fix = format!("give it to a container: unbitctl attach UID --name {name}");
            fail("account", format!("{error:#}"), fix)
        })?,
    };
    findings.extend(account(container)?);
    if let Account::Name(name) = login {
        findings.push(second_name(name, container)?);
    }
    let node = RootFs::at(None);
    let config = sshd(&node, login, container)?;
    let Some(server) = server::find(&config.addresses()) else {
        let seen = format!("no sshd runs, and nothing listens on {}", config.value("ListenAddress"));
        return Err(fail("sshd", seen, "systemctl start ssh; its log says why it ended"));
    };
    let answering = server.answer().map_err(|error| {
        fail("sshd", format!("{error:#}"), "ssh.socket starts an sshd for each connection: journalctl -u 'ssh@*'")
    })?;
    findings.push(match config.forced_command() {
        None => ok("sshd", "sshd uses PAM and accepts this user's keys"),
        Some(command) => warn(
            "sshd",
            format!("ForceCommand {command}: that runs in the container, whatever the client asks for"),
            "if container users should not have it: ForceCommand none in a Match block for them",
        ),
    });
    let options = pam(&node, findings)?;
    in_sshds_sandbox(login, container, &config, &options, answering.as_ref(), findings)
}

/// Runs the remaining steps in a process with the restrictions of sshd. A seccomp filter of sshd
/// may kill it.
fn in_sshds_sandbox(
    login: &Account,
    container: ContainerUid,
    config: &EffectiveConfig,
    options: &Options,
    answering: Option<&Answering>,
    findings: &mut Vec<Finding>,
) -> Result<(), Finding> {
    let broken = |error: nix::Error| {
        fail("sshd", format!("fork a process: {error}"), "unbitctl list, dmesg: is the node out of memory?")
    };
    let sandbox = answering.map(|sshd| Sandbox::of(sshd.pid)).transpose();
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(broken)?;
    let ForkResult::Parent { child } = join::sys::fork().map_err(broken)? else {
        drop(reader);
        let _ = set_pdeathsig(Signal::SIGKILL);
        let mut writer = FindingWriter { sink: File::from(writer) };
        let taken =
            sandbox.and_then(|sandbox| sandbox.map(|sandbox| sandbox.enter().map(|()| sandbox.limits())).transpose());
        let (limits, end) = match taken {
            Ok(limits) => (limits.flatten(), run_in_sandbox(login, container, config, options, &mut writer)),
            Err(error) => {
                let seen = format!("the next steps are tried with more rights than sshd has: {error:#}");
                writer.push(warn("sshd", seen, "run it as root on the node, with all capabilities"));
                (None, run_in_sandbox(login, container, config, options, &mut writer))
            }
        };
        if let Err(end) = end {
            writer.push(match limits {
                Some(limits) => {
                    end.with_more_to_do(&format!("sshd runs {limits}: see the unit that starts it, systemctl cat ssh"))
                }
                None => end,
            });
        }
        exit_now(0)
    };
    drop(writer);
    let limit = options.timeout * 4 + Duration::from_secs(10);
    let (received, is_complete) = read_findings(reader, limit);
    if !is_complete {
        let _ = kill(child, Signal::SIGKILL);
    }
    let end = if is_complete { waitpid(child, None) } else { waitpid(child, Some(WaitPidFlag::WNOHANG)) };
    findings.extend(received);
    let last = findings.last().map_or("sshd", |finding| finding.check);
    let next = STEPS.iter().skip_while(|(name, _)| *name != last).nth(1).map_or(last, |(name, _)| *name);
    match end {
        _ if !is_complete => {
            let seen = format!("a test process with sshd's limits did not finish within {} s", limit.as_secs());
            Err(fail(next, seen, "is sshd's cgroup frozen, or does the file system of the containers hang?"))
        }
        Ok(WaitStatus::Signaled(_, signal, _)) => {
            let seen = format!("a test process with sshd's limits was killed by {signal}");
            let fix = "SIGSYS is a seccomp filter: remove SystemCallFilter= and the like from ssh.service (systemctl edit ssh)";
            Err(fail(next, seen, fix))
        }
        _ if findings.last().is_some_and(|finding| finding.state == State::Fail) => match findings.pop() {
            Some(end) => Err(end),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn run_in_sandbox(
    login: &Account,
    container: ContainerUid,
    config: &EffectiveConfig,
    options: &Options,
    writer: &mut FindingWriter,
) -> Result<(), Finding> {
    account(container)?; // again, because in sshd's sandbox the answer can differ
    let keys = keys(login, container, config)?;
    writer.push(keys);
    let attachment = prepare(login, container, options, writer)?;
    join(login, container, attachment, options, writer)
}

/// Writes findings to the process that shows them, a line each: step, state, what was seen, what to
/// do.
struct FindingWriter {
    sink: File,
}

const NEWLINE_ESCAPE: &str = "\x1e";

impl FindingWriter {
    fn push(&mut self, finding: Finding) {
        let state = finding.state as u8;
        let fix = finding.fix.unwrap_or_default().replace('\n', NEWLINE_ESCAPE);
        let line = format!("{}\t{state}\t{}\t{fix}\n", finding.check, finding.seen);
        let _ = self.sink.write_all(line.as_bytes()); // an error means that nobody reads them
    }
}

fn parse_finding(line: &str) -> Option<Finding> {
    let mut fields = line.splitn(4, '\t');
    let (check, why) = step(fields.next()?);
    let number: u8 = fields.next()?.parse().ok()?;
    let state =
        [State::Ok, State::Warn, State::Fail, State::NotApplicable].into_iter().find(|state| *state as u8 == number)?;
    let (seen, fix) = (fields.next()?, fields.next()?.replace(NEWLINE_ESCAPE, "\n"));
    Some(Finding::new(check, state, why, seen, Some(fix).filter(|fix| !fix.is_empty())))
}

/// The findings that arrive within this time, and whether they are complete.
fn read_findings(pipe: OwnedFd, limit: Duration) -> (Vec<Finding>, bool) {
    let (text, is_complete) = match read_within(&mut File::from(pipe), limit, usize::MAX) {
        Ok(text) => (text, true),
        Err(Incomplete::TimedOut(text)) => (text, false),
        Err(Incomplete::TooLong | Incomplete::Failed(_)) => (Vec::new(), false),
    };
    (String::from_utf8_lossy(&text).lines().filter_map(parse_finding).collect(), is_complete)
}

/// Checks that glibc knows the account, and that it is the container's.
///
/// An account of the number's name must be the container's, with its uid and gid; else its logins
/// are refused. An account of another name is refused if there is a container of its uid, and an
/// ordinary one if there is none.
fn account(container: ContainerUid) -> Result<Vec<Finding>, Finding> {
    let home = home(container);
    let failed = |error: &dyn std::fmt::Display| {
        fail("account", format!("{home}: {error}"), "repair that file system; until then logins are refused")
    };
    match std::fs::metadata(&home) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(no_directory(container, &home)),
        Err(error) => return Err(failed(&error)),
        Ok(status) if !container.owns_directory(status.mode(), status.uid(), status.gid()) => {
            let what = if status.is_dir() { "belongs to" } else { "is not a directory, and belongs to" };
            let seen = format!("{home} {what} {}:{}", status.uid(), status.gid());
            let chown = format!("chown {container}:{container} {home}");
            // chown(1) takes the number for the name, which is another's then.
            return Err(match User::from_name(&container.to_string()).ok().flatten() {
                Some(user) if !is_the_containers(&user, container) => fail(
                    "account",
                    format!("{seen}, and {}", not_the_containers(&user)),
                    format!("{}, then: {chown}", take_out(&user.name)),
                ),
                _ => fail("account", seen, chown),
            });
        }
        Ok(_) => {}
    }
    let name = container.to_string();
    let by_name = User::from_name(&name).map_err(|errno| failed(&errno))?;
    let Some(user) = by_name else {
        return Err(fail(
            "account",
            "glibc does not know this account, although its directory exists: nsswitch.conf lacks unbit",
            "unbitctl setup nsswitch",
        ));
    };
    if !is_the_containers(&user, container) {
        return Err(fail("account", not_the_containers(&user), take_out(&name)));
    }
    let mut findings = Vec::new();
    let by_uid = User::from_uid(user.uid).map_err(|errno| failed(&errno))?;
    if by_uid.as_ref().is_none_or(|user| user.name != name) {
        let other = by_uid.map_or("nobody".to_owned(), |user| user.name);
        findings.push(warn(
            "account",
            format!(
                "the account {other} has the uid {name} as well: logins of {other} are refused, and the container's files are shown as {other}'s"
            ),
            format!("give {other} another uid, or the container another number"),
        ));
    }
    let shell = shown(&user.shell);
    if !std::fs::metadata(&user.shell).is_ok_and(|shell| shell.is_file() && shell.permissions().mode() & 0o111 != 0) {
        return Err(fail(
            "account",
            format!("its shell {shell} is not a program on this node, and sshd refuses such an account"),
            format!("install {shell} on the node"),
        ));
    }
    if let Some(file) = ["/etc/nologin", "/run/nologin"].into_iter().find(|file| Path::new(file).exists()) {
        return Err(fail("account", format!("{file} is there: only root may log in"), format!("rm {file}")));
    }
    let seen = format!("{name} is uid and gid {name}, home {}, shell {shell}", shown(&user.dir));
    findings.insert(0, ok("account", seen));
    Ok(findings)
}

/// Whether a second name's login is the container's: as pam_unbit.so asks, and as glibc answers.
fn second_name(name: &SecondName, container: ContainerUid) -> Result<Finding, Finding> {
    let link = names::link_path(name);
    let link = link.display();
    names::containers_must_belong_to_root()
        .map_err(|error| fail("account", format!("{error:#}"), "unbitctl setup directories"))?;
    match std::fs::symlink_metadata(names::link_path(name)) {
        Ok(status) if status.uid() == 0 => {}
        Ok(status) => {
            let seen = format!("{link} belongs to uid {}: logins by this name are refused", status.uid());
            return Err(fail(
                "account",
                seen,
                format!("if {name} is to be a name of {container}: chown -h root:root {link}"),
            ));
        }
        Err(error) => {
            let fix = format!("make the second name again: unbitctl attach {container} --name {name}");
            return Err(fail("account", format!("{link}: {error}"), fix));
        }
    }
    let user =
        User::from_name(name.as_str()).map_err(|errno| fail("account", format!("{name}: {errno}"), "getent passwd"))?;
    match user {
        Some(user) if is_the_containers(&user, container) => {
            Ok(ok("account", format!("{name} is a second name of {container}, by the symbolic link {link}")))
        }
        Some(user) => Err(fail(
            "account",
            format!(
                "the account {name} is uid {} and gid {}, not {container}'s: it comes before the symbolic link {link}, and logs in to this node",
                user.uid, user.gid
            ),
            format!("give the container another name, or the account: usermod --login ANOTHER_NAME {name}"),
        )),
        None => Err(fail(
            "account",
            format!(
                "glibc knows no account {name}, though {link} leads to {container}: libnss_unbit.so.2 is older than this unbitctl"
            ),
            "install the libnss_unbit.so.2 of this version",
        )),
    }
}

/// There is no container of this number. An account there may be all the same.
fn no_directory(container: ContainerUid, home: &str) -> Finding {
    let (name, uid) = (container.to_string(), Uid::from_raw(container.get()));
    let seen = format!("there is no directory {home}");
    let absent = format!(
        "if it should be here, make it: `unbitctl create {name} --key FILE`, or `unbitctl attach {name} --create-home` with a container of another engine"
    );
    // If these look-ups fail, only the missing directory is reported.
    match (User::from_name(&name).ok().flatten(), User::from_uid(uid).ok().flatten()) {
        (Some(user), _) if !is_the_containers(&user, container) => {
            let seen = format!("{seen}, and {}", not_the_containers(&user));
            fail("account", seen, take_out(&name))
        }
        (Some(_), _) => {
            let seen = format!("{seen}, though there is an account {name}: its logins are refused");
            fail("account", seen, format!("{absent}; if there should be no container {name}, {}", take_out(&name)))
        }
        (None, Some(user)) => {
            let seen = format!(
                "{seen}, so {name} is not a container; the uid is that of {}, an ordinary account, which logs in to this node",
                user.name
            );
            let fix = format!(
                "nothing, unless there should be a container {name}: that needs a number that is not the uid of an account"
            );
            fail("account", seen, fix)
        }
        (None, None) => fail("account", seen, absent),
    }
}

fn is_the_containers(user: &User, container: ContainerUid) -> bool {
    (user.uid.as_raw(), user.gid.as_raw()) == (container.get(), container.get())
}

/// An account of a container's name that is not the container's.
fn not_the_containers(user: &User) -> String {
    let (name, uid, gid) = (&user.name, user.uid, user.gid);
    format!(
        "the account {name} is uid {uid} and gid {gid}, not uid and gid {name}, so it is not a container's: its logins are refused"
    )
}

fn take_out(name: &str) -> String {
    format!(
        "remove the line of {name} from /etc/passwd, or from whatever else comes before unbit in /etc/nsswitch.conf"
    )
}

/// sshd's effective configuration for this user; fails if sshd would refuse the user.
fn sshd(node: &RootFs, login: &Account, container: ContainerUid) -> Result<EffectiveConfig, Finding> {
    let config = sshd::effective_config(node, &login.to_string())
        .map_err(|error| fail("sshd", format!("{error:#}"), "fix what it complains of, then: sshd -t"))?;
    if !config.asks_pam() {
        return Err(fail(
            "sshd",
            "sshd does not use PAM, or uses it under another name than sshd",
            "unbitctl setup sshd",
        ));
    }
    match sshd::obstacles(&config, &login.to_string(), &container.to_string()).into_iter().next() {
        Some(obstacle) => Err(obstacle),
        None => Ok(config),
    }
}

/// The lines of PAM, and with which options they accept a session.
fn pam(node: &RootFs, findings: &mut Vec<Finding>) -> Result<Options, Finding> {
    let pam = pam::evaluate(node).map_err(|error| fail("pam", format!("{error:#}"), pam::fix_of(node)))?;
    let module = pam::module(node);
    if module.state == State::Fail {
        return Err(module);
    }
    let options = if pam.options_text.is_empty() { "no options" } else { &pam.options_text };
    findings.push(ok("pam", format!("{} accepts container users: {options}", pam::FILE)));
    findings.extend(pam.warnings);
    Ok(pam.options)
}

/// Whether sshd would accept a key of the user.
fn keys(login: &Account, container: ContainerUid, config: &EffectiveConfig) -> Result<Finding, Finding> {
    if config.value("PubkeyAuthentication") == "no" {
        return Err(fail("keys", "sshd accepts no keys: PubkeyAuthentication no", "unbitctl setup sshd"));
    }
    let home = home(container);
    let is_strict = config.value("StrictModes") != "no";
    let files = config.value("AuthorizedKeysFile");
    let (mut good, mut bad, mut doubts) = (Vec::new(), Vec::new(), Vec::new());
    let _user = AsTheUser::enter(container).map_err(|errno| {
        fail("keys", format!("drop root's groups: {errno}"), "run it as root, with all of root's capabilities")
    })?;
    for file in files.split_whitespace().filter(|file| *file != "none").map(|file| expand(file, login, container)) {
        match check_key_file(container, &file, is_strict, &mut doubts) {
            Ok(true) => good.push(file),
            Ok(false) => {}
            Err(what) => bad.push(what),
        }
    }
    let fix = as_the_user(
        container,
        &format!("cd {home} && chmod go-w . .ssh .ssh/authorized_keys .ssh/uwsgi_authorized_keys"),
    );
    if let (false, Some(doubt)) = (good.is_empty(), doubts.first().or(bad.first())) {
        return Ok(warn("keys", format!("there are keys in {}, but: {doubt}", good.join(" and ")), fix));
    }
    if !good.is_empty() {
        return Ok(ok("keys", format!("there are keys in {}", good.join(" and "))));
    }
    let elsewhere = |name: &str| config.names(name) && !is_userdbctl(&config.value(name));
    if let Some(name) = ["AuthorizedKeysCommand", "TrustedUserCAKeys"].into_iter().find(|name| elsewhere(name)) {
        return Ok(warn(
            "keys",
            format!("sshd reads no key in {files}; whether {name} accepts one is not checked"),
            "try a login with a key that it knows",
        ));
    }
    if bad.is_empty() {
        return Err(fail(
            "keys",
            format!("there is no authorized_keys file: sshd reads {files} in {home}"),
            if has_vassal(container) { format!("unbitctl create {container} --key FILE") } else { add_key(container) },
        ));
    }
    Err(fail("keys", format!("no authorized_keys file that sshd reads: {}", bad.join("; ")), fix))
}

/// The command that does something in the tenant's directory as the tenant: root would follow
/// whatever links are there.
fn as_the_user(container: ContainerUid, script: &str) -> String {
    format!("setpriv --reuid {container} --regid {container} --clear-groups sh -c {}", quoted(script))
}

/// The command that adds a public key.
fn add_key(container: ContainerUid) -> String {
    let script = format!("cd {} && umask 077 && mkdir -p .ssh && cat >>.ssh/authorized_keys", home(container));
    format!("{} <KEY.pub", as_the_user(container, &script))
}

/// Debian 13's default (20-systemd-userdb.conf). systemd has no record for a user whose name is a
/// number, see its User/Group Name Syntax.
fn is_userdbctl(command: &str) -> bool {
    command.starts_with("/usr/bin/userdbctl ssh-authorized-keys ")
}

/// The tokens of AuthorizedKeysFile, sshd_config(5).
fn expand(file: &str, login: &Account, container: ContainerUid) -> String {
    let (name, uid, home) = (login.to_string(), container.to_string(), home(container));
    let mut text = String::new();
    let mut characters = file.chars();
    while let Some(character) = characters.next() {
        match (character == '%').then(|| characters.next()).flatten() {
            None => text.push(character),
            Some('u') => text.push_str(&name),
            Some('U') => text.push_str(&uid),
            Some('h') => text.push_str(&home),
            Some(other) => text.push(other),
        }
    }
    text
}

/// Until it is dropped, files are opened with the rights of a container user, as sshd opens the
/// files of keys.
struct AsTheUser {
    groups: Vec<Gid>,
}

impl AsTheUser {
    fn enter(container: ContainerUid) -> nix::Result<Self> {
        let before = Self { groups: getgroups()? };
        setgroups(&[Gid::from_raw(container.get())])?;
        join::privileges::access_files_as(container)?;
        Ok(before)
    }
}

impl Drop for AsTheUser {
    fn drop(&mut self) {
        setfsuid(Uid::from_raw(0));
        setfsgid(Gid::from_raw(0));
        // What follows leaves root's groups in any case.
        let _ = setgroups(&self.groups);
    }
}

/// Whether this file holds keys that sshd would read. It is the tenant's, and may be anything: only
/// a regular file is opened, and what is in it is not shown.
fn check_key_file(
    container: ContainerUid,
    file: &str,
    is_strict: bool,
    doubts: &mut Vec<String>,
) -> Result<bool, String> {
    let home = home(container);
    let failed = |error: std::io::Error| {
        let leads = link_in(&Path::new(&home).join(file)).unwrap_or_default();
        format!("{}: {error}{leads}", escape::name(file))
    };
    // Links are followed first, and then every directory is looked at, up to the home directory or
    // else to the root: safe_path() of OpenSSH's misc.c.
    let real = match Path::new(&home).join(file).canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        other => other.map_err(failed)?,
    };
    let home = Path::new(&home).canonicalize().map_err(failed)?;
    for path in real.ancestors() {
        check_modes(container, path, &path.symlink_metadata().map_err(failed)?, is_strict, doubts)?;
        if path == home {
            break;
        }
    }
    // The tenant may have put something else there since. So what is looked at is pinned, and that
    // is what is read.
    let pinned = File::options().read(true).custom_flags((OFlag::O_PATH | OFlag::O_NOFOLLOW).bits()).open(&real);
    let pinned = pinned.map_err(failed)?;
    if !pinned.metadata().map_err(failed)?.is_file() {
        return Err(format!("{} is not a regular file", shown(&real)));
    }
    let mut text = Vec::new();
    let flags = OFlag::O_NONBLOCK.bits(); // a lease (fcntl(2)) of the tenant's would keep us waiting
    let opened = File::options().read(true).custom_flags(flags).open(format!("/proc/self/fd/{}", pinned.as_raw_fd()));
    let opened = opened.map_err(failed)?;
    opened.take(MAX_KEY_FILE).read_to_end(&mut text).map_err(failed)?;
    if !text.is_empty() && !has_key(&text) {
        return Err(format!("{} holds no key", shown(&real)));
    }
    Ok(!text.is_empty())
}

/// The first symbolic link in a path, and where it leads.
fn link_in(path: &Path) -> Option<String> {
    let parts: Vec<_> = path.ancestors().collect();
    let link = parts.into_iter().rev().find(|part| part.is_symlink())?;
    let to = shown(&link.read_link().ok()?);
    let link = if link == path { "it".to_owned() } else { shown(link) };
    Some(format!("; {link} is a symbolic link to {to}"))
}

/// Whether there is a line with a key.
pub(crate) fn has_key(text: &[u8]) -> bool {
    String::from_utf8_lossy(text)
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .any(|line| line.split_whitespace().any(is_type))
}

/// StrictModes of sshd: root or the user must own the file, and nobody else may write to it.
/// Debian's and Ubuntu's sshd accept that its group may, if the user is the group's only member.
fn check_modes(
    container: ContainerUid,
    path: &Path,
    status: &Metadata,
    is_strict: bool,
    doubts: &mut Vec<String>,
) -> Result<(), String> {
    let is_owned = status.uid() == container.get() || status.uid() == 0;
    if !is_strict || is_owned && status.mode() & 0o022 == 0 {
        return Ok(());
    }
    let what = if status.is_dir() { "directory" } else { "file" };
    let (path, mode) = (shown(path), status.mode() & 0o7777);
    let seen = format!("mode {mode:o} of {}:{}", status.uid(), status.gid());
    if is_owned && status.mode() & 0o002 == 0 && status.gid() == container.get() {
        doubts.push(format!("{what} {path}: {seen}; Debian's sshd accepts that, others do not"));
        return Ok(());
    }
    Err(format!("bad ownership or modes for {what} {path}: {seen}"))
}

/// Verifies the container with the code of the module.
fn prepare(
    login: &Account,
    container: ContainerUid,
    options: &Options,
    findings: &mut FindingWriter,
) -> Result<Attachment, Finding> {
    const REPORTED: [&str; 4] = ["reach", "verify", "namespaces", "cgroups"];
    let mut reported = 0;
    let mut report = |name: &str, seen: std::fmt::Arguments<'_>| {
        reported += 1;
        findings.push(ok(name, seen.to_string()));
    };
    let attachment = Attachment::prepare(container, options, &mut report);
    // A refusal after the last step comes from the second verification.
    let ends_at = REPORTED.get(reported).copied().unwrap_or("verify");
    let attachment = attachment.map_err(|refusal| refused(login, container, ends_at, &refusal))?;
    if attachment.ids() != Ids::of(container) {
        let read_map = |map: &str| attachment.leader().proc.read(map).unwrap_or_default();
        let read = |file: &str| {
            std::fs::read(file).map_or_else(|_| String::new(), |text| String::from_utf8_lossy(&text).into_owned())
        };
        let overlaps =
            ids::overlaps(container, &containers::all(&RootFs::at(None)).unwrap_or_default(), &read_map, &read);
        overlaps.into_iter().for_each(|overlap| findings.push(warn("namespaces", overlap.seen, overlap.fix)));
    }
    Ok(attachment)
}

/// The finding of a refusal: a login would end with these messages.
fn refused(login: &Account, container: ContainerUid, name: &str, refusal: &Refusal) -> Finding {
    let seen = format!("{}; the user reads: {}", refusal.cause, refusal.sentence(&login.to_string()));
    fail(name, seen, fix(container, name, refusal))
}

fn fix(container: ContainerUid, name: &str, refusal: &Refusal) -> String {
    let restart = format!("touch --no-dereference /etc/uwsgi/vassals/{container}.ini");
    if let Some(fix) = fix_link(container, refusal.reason) {
        return fix;
    }
    match (name, refusal.reason) {
        (_, Reason::NotRunning) if !has_vassal(container) && !Path::new(&format!("/etc/unbit/{container}")).is_symlink() => format!(
            "nothing starts this container: there is neither a vassal /etc/uwsgi/vassals/{container}.ini nor a link /etc/unbit/{container}. If it is gone for good, what is left is {}",
            home(container)
        ),
        (_, Reason::NotRunning) => format!(
            "start the container: the Emperor must run and start /etc/uwsgi/vassals/{container}.ini; the Emperor's log says why it ended"
        ),
        _ if refusal.cause.contains("EAGAIN") => format!(
            "its limit on the number of processes is reached: end some (ps -fu {container}), or raise pids.max of its cgroup"
        ),
        _ if ["CapabilityBoundingSet=", "RestrictNamespaces=", "SystemCallFilter="]
            .iter()
            .any(|setting| refusal.cause.contains(setting)) =>
        {
            "give sshd what it lacks: systemctl edit ssh (or ssh@.service, with ssh.socket)".to_owned()
        }
        (_, Reason::Paused) => {
            "thaw it: write THAWED to freezer.state (cgroup v1), or 0 to cgroup.freeze (v2), of the cgroup that is named".to_owned()
        }
        (_, Reason::NotAnswering) => format!("its pid 1 accepts no connections: restart the container with\n{restart}"),
        (_, Reason::NoContainer) => format!("chown {container}:{container} {}", home(container)),
        ("reach", Reason::NotTrusted) => format!(
            "remove what is in the socket's place, as the container's user, and restart the container:\n\
             setpriv --reuid {container} --regid {container} --clear-groups rm -rf {}/run/ns.socket\n{restart}",
            home(container)
        ),
        ("verify", _) => format!(
            "another process than the container's pid 1 listens: end that process, and restart the container with\n{restart}"
        ),
        ("namespaces", _) => {
            "start the container with namespaces of its own: emperor-use-clone = fs,pid,ipc,uts,net".to_owned()
        }
        ("cgroups", Reason::Misconfigured) => "unbitctl check shows which cgroups are mounted".to_owned(),
        ("cgroups", Reason::NotTrusted) => format!(
            "put the container into a cgroup of its own, in its vassal /etc/uwsgi/vassals/{container}.ini; or allow it without one: cgroup=optional in {}",
            pam::FILE
        ),
        _ => "a system call failed unexpectedly: the kernel's log (dmesg) may say more".to_owned(),
    }
}

/// What to do about a container that root has linked to its cgroup.
fn fix_link(container: ContainerUid, reason: Reason) -> Option<String> {
    let link = format!("{}/{container}", link::DIRECTORY);
    Path::new(&link).symlink_metadata().ok()?;
    let to_its_cgroup = format!("unbitctl attach {container} --machine NAME (other engines: unbitctl attach --help)");
    match reason {
        Reason::NotRunning => Some(match link::target_of(container).as_deref().and_then(engine::renamed_by_lxc) {
            Some(group) => format!(
                "LXC runs it in {}, because the cgroup that {link} leads to was left from an earlier start: stop the container, remove that cgroup \
                 (rmdir), and start it; lxc.cgroup.dir keeps this from happening again",
                group.display()
            ),
            None => format!(
                "start the container with its engine; if it runs, {link} leads to another cgroup: {to_its_cgroup}"
            ),
        }),
        Reason::Starting => Some("try again once the container has started".to_owned()),
        Reason::BadLink | Reason::NoPidNamespace | Reason::SeveralContainers => Some(to_its_cgroup),
        Reason::TooManyCgroups => Some("remove cgroups that nobody uses, as root in the container".to_owned()),
        Reason::BadIdMap => Some(format!(
            "start the container with a user namespace that maps {container} to an id that nobody else has"
        )),
        Reason::RootTooPowerful => Some(format!(
            "start the container without CAP_SYS_PTRACE or with a user namespace of its own; or, if you trust its root as you trust the node's: touch {link}{}",
            link::ROOT_IS_TRUSTED_SUFFIX
        )),
        Reason::NotTrusted => {
            Some(format!("see pam_unbit(8), FILES, for the rules that a container with the link {link} must keep"))
        }
        _ => None,
    }
}

/// The join itself: a process of ours enters as sshd's child does, and runs the shell there.
fn join(
    login: &Account,
    container: ContainerUid,
    attachment: Attachment,
    options: &Options,
    findings: &mut FindingWriter,
) -> Result<(), Finding> {
    let limit = options.timeout;
    let terminals = attachment
        .try_terminals(Deadline::after(limit))
        .map_err(|refusal| refused(login, container, "terminals", &refusal))?;
    findings.push(ok("terminals", format!("sshd opens terminals {terminals}")));
    let before = || probe::detach_from_operator(container).and_then(|()| probe::redirect_stdio_to_null());
    let mut probe = probe::spawn(attachment, Who::User, limit, before, |messages| run_inside(container, messages))
        .map_err(|refusal| refused(login, container, "join", &refusal))?;
    let messages = probe.messages(limit);
    let hung = messages.is_none();
    let (mut has_joined, mut has_shell) = (false, false);
    for (word, about) in messages.unwrap_or_default() {
        match word.as_str() {
            "joined" => {
                has_joined = true;
                findings.push(ok("join", format!("a process has entered, and is {container} there")));
            }
            "home" if about.is_empty() => findings.push(ok("home", format!("{} is there", home(container)))),
            "home" => findings.push(warn(
                "home",
                format!("{}: {about}; sshd reports it and goes on in /", home(container)),
                format!("mount {} in the container, in its vassal", home(container)),
            )),
            "ended" if about == "0" => {
                has_shell = true;
                findings.push(ok("shell", format!("{} runs", shared::settings::SHELL)));
            }
            "ended" => {
                let shell = shared::settings::SHELL;
                return Err(fail(
                    "shell",
                    format!("{shell} -c 'exit 0' ends with {about}"),
                    "repair the shell in the container's distribution",
                ));
            }
            "fork" => {
                let refusal = Refusal::new(Reason::Broken, format!("fork the shell: {about}"));
                return Err(fail("shell", refusal.cause.clone(), fix(container, "shell", &refusal)));
            }
            "shell" => {
                let shell = shared::settings::SHELL;
                let fix = format!(
                    "the container's distribution (below /distros) must have {shell} and its libraries, on a mount without noexec"
                );
                return Err(fail("shell", format!("run {shell}: {about}"), fix));
            }
            _ => {
                let refusal = Refusal::new(Reason::Broken, about);
                return Err(fail("join", refusal.cause.clone(), fix(container, "join", &refusal)));
            }
        }
    }
    if hung {
        return Err(too_long(&probe, if has_joined { "shell" } else { "join" }, limit));
    }
    if !has_joined {
        return Err(fail(
            "join",
            "the process that entered was killed from outside",
            "see the kernel's log (dmesg): was its cgroup out of memory?",
        ));
    }
    if probe.wait(limit).is_none() {
        return Err(too_long(&probe, "shell", limit));
    }
    if !has_shell {
        return Err(fail(
            "shell",
            "the process that runs the shell was killed from outside",
            "see the kernel's log (dmesg): was its cgroup out of memory?",
        ));
    }
    Ok(())
}

fn too_long(probe: &probe::Probe, name: &str, limit: std::time::Duration) -> Finding {
    let end = if probe.kill() { "ended".to_owned() } else { format!("it cannot be ended now: pid {}", probe.pid) };
    fail(
        name,
        format!("the process that enters did not finish within {} s; {end}", limit.as_secs()),
        "is a cgroup of the container frozen (freezer.state, cgroup.freeze), does one of its file systems hang, or does a process of the tenant trace it?",
    )
}

fn run_inside(container: ContainerUid, messages: &mut Messages) {
    messages.send("joined", "");
    match chdir(container.home().as_c_str()) {
        Ok(()) => messages.send("home", ""),
        Err(errno) => messages.send("home", errno.desc()),
    }
    // sshd's process stays next to its shell, so two processes must be allowed. The helper that
    // joined may still be counted.
    let end = Instant::now() + Duration::from_secs(1);
    let fork = || loop {
        match join::sys::fork() {
            Err(Errno::EAGAIN) if Instant::now() < end => sleep(Duration::from_millis(10)),
            other => return other,
        }
    };
    let child = match fork() {
        Ok(ForkResult::Parent { child }) => child,
        Ok(ForkResult::Child) => {
            let shell = CString::new(shared::settings::SHELL).unwrap_or_default();
            let _ = set_pdeathsig(Signal::SIGKILL);
            let errno = probe::exec(&[&shell], &[shell.as_c_str(), c"-c", c"exit 0"], &[] as &[&std::ffi::CStr]);
            messages.send("shell", errno.desc());
            exit_now(127)
        }
        Err(errno) => return messages.send("fork", format!("{errno:?} ({})", errno.desc())),
    };
    match retry(|| waitpid(child, None)) {
        Ok(WaitStatus::Exited(_, status)) => messages.send("ended", status),
        Ok(WaitStatus::Signaled(_, signal, _)) => messages.send("ended", signal),
        Ok(other) => messages.send("ended", format!("{other:?}")),
        Err(errno) => messages.send("ended", errno.desc()),
    }
}

/// A path that a tenant or an account names.
fn shown(path: &Path) -> String {
    escape::name(path.as_os_str().as_bytes()).to_string()
}

fn home(container: ContainerUid) -> String {
    container.home().as_c_str().to_string_lossy().into_owned()
}
