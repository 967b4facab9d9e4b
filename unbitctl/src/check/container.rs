//! `unbitctl check UID`: a container's way from the account to the joined namespaces, gone without logging in.
//!
//! The steps are those of a login by ssh, in its order. From `reach` on they are the code that pam_unbit.so runs (the crate [`join`]), up to a
//! process of ours that enters the container and runs its shell.

use super::sshd::{self, Says};
use super::{pam, service};
use crate::inside::{self, Words};
use crate::node::Node;
use crate::report::{Finding, State};
use anyhow::Result;
use join::attach::{Attachment, Who};
use join::options::Options;
use join::refusal::{Reason, Refusal};
use nix::fcntl::OFlag;
use nix::sys::wait::WaitStatus;
use nix::unistd::{Gid, Uid, User, chdir, getgroups, setfsgid, setfsuid, setgroups};
use shared::ContainerUid;
use std::ffi::CString;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The steps of a login, and why each matters.
const STEPS: [(&str, &str); 11] = [
    ("account", "sshd lets in only whom glibc knows, with a shell that the node has"),
    ("sshd", "it decides whom it lets in before a container is asked"),
    ("pam", "without its three lines in /etc/pam.d/sshd pam_unbit.so lets no container's user in"),
    ("keys", "container users log in with keys and nothing else"),
    ("reach", "the container is found by who listens on its ns.socket"),
    ("verify", "a session follows the container's own pid 1 and nobody else"),
    ("namespaces", "a session never stays in the node's mount and pid namespaces"),
    ("cgroups", "a session without the container's cgroup escapes its limits"),
    ("join", "the session has to get in, and to be nobody but the container's user there"),
    ("home", "a session begins in the home directory"),
    ("shell", "a session is a shell, of the container's distribution"),
];

/// The step of this name, for a finding.
fn step(name: &str) -> (&'static str, &'static str) {
    STEPS.into_iter().find(|(step, _)| *step == name).unwrap_or(("container", ""))
}

fn ok(name: &str, seen: impl Into<String>) -> Finding {
    let (check, why) = step(name);
    Finding::ok(check, why, seen)
}

fn warn(name: &str, seen: impl Into<String>, mend: impl Into<String>) -> Finding {
    let (check, why) = step(name);
    Finding::warn(check, why, seen, mend)
}

fn fail(name: &str, seen: impl Into<String>, mend: impl Into<String>) -> Finding {
    let (check, why) = step(name);
    Finding::fail(check, why, seen, mend)
}

/// Goes the way until it ends.
pub fn check(container: ContainerUid) -> Result<Vec<Finding>> {
    crate::command_line::must_be_root("check UID")?;
    join::sys::close_on_exec()?;
    let mut findings = Vec::new();
    if let Err(end) = go(container, &mut findings) {
        let next = STEPS.into_iter().skip_while(|(name, _)| *name != end.check).nth(1);
        findings.push(end);
        findings.extend(next.map(|(check, why)| {
            Finding::not_applicable(check, why, "not tried, nor what follows: a login does not come this far")
        }));
    }
    Ok(findings)
}

fn go(container: ContainerUid, findings: &mut Vec<Finding>) -> Result<(), Finding> {
    findings.extend(account(container)?);
    let node = Node::at(None);
    let says = sshd(&node, container)?;
    if !says.listens() {
        let seen = format!("no sshd runs, and nobody listens on {}", says.of("ListenAddress"));
        findings.push(fail("sshd", seen, "systemctl start ssh; its log tells why it ended"));
    }
    // This process is not restricted as ssh.service is, so the steps below would all succeed.
    findings.extend(
        service::check(&node)
            .into_iter()
            .filter(|finding| finding.state == State::Fail)
            .map(|finding| fail("sshd", finding.seen, finding.mend.unwrap_or_default())),
    );
    findings.push(match says.forced_command() {
        None => ok("sshd", "it asks PAM, and lets this user in who has a key"),
        Some(command) => warn(
            "sshd",
            format!("ForceCommand {command}: that runs in the container, whatever the client asks for"),
            "if that is not meant for containers' users: ForceCommand none in a Match for them",
        ),
    });
    let options = pam(&node, findings)?;
    findings.push(keys(container, &says)?);
    let attachment = prepare(container, &options, findings)?;
    join(container, attachment, &options, findings)
}

/// Who glibc says that it is, and whether that is a container's user.
///
/// An account of the number's name must be the container's, with its uid and gid; else its logins are refused. An account of another name is refused if
/// there is a container of its uid, and an ordinary one if there is none.
fn account(container: ContainerUid) -> Result<Vec<Finding>, Finding> {
    let home = home(container);
    let told = |error: &dyn std::fmt::Display| {
        fail(
            "account",
            format!("{home}: {error}"),
            "see what is wrong with that file system; until then logins are refused",
        )
    };
    match std::fs::metadata(&home) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(no_directory(container, &home)),
        Err(error) => return Err(told(&error)),
        Ok(status) if !container.is_owner_of(status.mode(), status.uid(), status.gid()) => {
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
    let by_name = User::from_name(&name).map_err(|errno| told(&errno))?;
    let Some(user) = by_name else {
        return Err(fail(
            "account",
            "glibc knows no such account, though its directory is there: NSS lacks unbit",
            "unbitctl setup nsswitch",
        ));
    };
    if !is_the_containers(&user, container) {
        return Err(fail("account", not_the_containers(&user), take_out(&name)));
    }
    let mut findings = Vec::new();
    let by_uid = User::from_uid(user.uid).map_err(|errno| told(&errno))?;
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
    let shell = user.shell.display().to_string();
    if !std::fs::metadata(&user.shell).is_ok_and(|shell| shell.is_file() && shell.permissions().mode() & 0o111 != 0) {
        return Err(fail(
            "account",
            format!("its shell {shell} is no program on this node, and sshd refuses an account without one"),
            format!("install {shell} on the node"),
        ));
    }
    if Path::new("/etc/nologin").exists() || Path::new("/run/nologin").exists() {
        return Err(fail("account", "/etc/nologin or /run/nologin is there: only root may log in", "remove that file"));
    }
    let seen = format!("{name} is uid and gid {name}, at home in {}, with the shell {shell}", user.dir.display());
    findings.insert(0, ok("account", seen));
    Ok(findings)
}

/// There is no container of this number. An account there may be all the same.
fn no_directory(container: ContainerUid, home: &str) -> Finding {
    let (name, uid) = (container.to_string(), Uid::from_raw(container.get()));
    let seen = format!("there is no directory {home}");
    let absent = "the container is not on this node, or has not been made yet";
    // That glibc has no answer changes nothing of the first.
    match (User::from_name(&name).ok().flatten(), User::from_uid(uid).ok().flatten()) {
        (Some(user), _) if !is_the_containers(&user, container) => {
            let seen = format!("{seen}, and {}", not_the_containers(&user));
            fail("account", seen, take_out(&name))
        }
        (Some(_), _) => {
            let seen = format!("{seen}, though there is an account {name}: its logins are refused");
            fail("account", seen, format!("{absent}; if it is not to be, {}", take_out(&name)))
        }
        (None, Some(user)) => {
            let seen = format!(
                "{seen}, so {name} is no container; the uid is that of {}, an ordinary account, which logs in to this node",
                user.name
            );
            let mend = format!(
                "nothing, unless there should be a container {name}: that needs a number that is no account's uid"
            );
            fail("account", seen, mend)
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
    format!("take the line of {name} out of /etc/passwd, or whatever else comes before unbit in /etc/nsswitch.conf")
}

/// What sshd goes by for this user, and whom it lets in at all.
fn sshd(node: &Node, container: ContainerUid) -> Result<Says, Finding> {
    let says = sshd::ask(node, container.get())
        .map_err(|error| fail("sshd", format!("{error:#}"), "mend what it complains of, then: sshd -t"))?;
    if !says.asks_pam() {
        return Err(fail("sshd", "it does not ask PAM, or not by the name sshd", "unbitctl setup sshd"));
    }
    match sshd::obstacles(&says, container.get()).into_iter().next() {
        Some(obstacle) => Err(obstacle),
        None => Ok(says),
    }
}

/// The lines of PAM, and on which terms they let a session in.
fn pam(node: &Node, findings: &mut Vec<Finding>) -> Result<Options, Finding> {
    let let_in = pam::let_in(node).map_err(|error| fail("pam", format!("{error:#}"), pam::mend_of(node)))?;
    let module = pam::module(node);
    if module.state == State::Fail {
        return Err(module);
    }
    let terms = if let_in.words.is_empty() { "no options" } else { &let_in.words };
    findings.push(ok("pam", format!("{} lets containers' users in: {terms}", pam::FILE)));
    findings.extend(let_in.doubts);
    Ok(let_in.options)
}

/// Whether sshd would take a key of the user's.
fn keys(container: ContainerUid, says: &Says) -> Result<Finding, Finding> {
    if says.of("PubkeyAuthentication") == "no" {
        return Err(fail("keys", "sshd takes no keys: PubkeyAuthentication no", "unbitctl setup sshd"));
    }
    let home = home(container);
    let is_strict = says.of("StrictModes") != "no";
    let files = says.of("AuthorizedKeysFile");
    let (mut good, mut bad, mut doubts) = (Vec::new(), Vec::new(), Vec::new());
    let _user = AsTheUser::become_it(container).map_err(|errno| {
        fail("keys", format!("leave root's groups: {errno}"), "run it as root, with all of root's capabilities")
    })?;
    for file in files.split_whitespace().filter(|file| *file != "none").map(|file| expand(file, container)) {
        match look_at_keys(container, &file, is_strict, &mut doubts) {
            Ok(true) => good.push(file),
            Ok(false) => {}
            Err(what) => bad.push(what),
        }
    }
    let mend = "as the user: chmod go-w ~ ~/.ssh ~/.ssh/*authorized_keys";
    if let (false, Some(doubt)) = (good.is_empty(), doubts.first().or(bad.first())) {
        return Ok(warn("keys", format!("there are keys in {}, but: {doubt}", good.join(" and ")), mend));
    }
    if !good.is_empty() {
        return Ok(ok("keys", format!("there are keys in {}", good.join(" and "))));
    }
    let elsewhere = |name: &str| says.names(name) && !is_userdbctl(&says.of(name));
    if let Some(name) = ["AuthorizedKeysCommand", "TrustedUserCAKeys"].into_iter().find(|name| elsewhere(name)) {
        return Ok(warn(
            "keys",
            format!("no file of keys that sshd reads ({files}); whether {name} has one is not checked"),
            "log in with a key that is known there",
        ));
    }
    if bad.is_empty() {
        return Err(fail(
            "keys",
            format!("there is no file of keys: sshd reads {files} in {home}"),
            format!("put a public key of the user's into {home}/.ssh/uwsgi_authorized_keys"),
        ));
    }
    Err(fail("keys", format!("no file of keys that sshd reads: {}", bad.join("; ")), mend))
}

/// Debian 13's default (20-systemd-userdb.conf). systemd has no record for a user whose name is a number, see its User/Group Name Syntax.
fn is_userdbctl(command: &str) -> bool {
    command.starts_with("/usr/bin/userdbctl ssh-authorized-keys ")
}

/// The tokens of AuthorizedKeysFile, sshd_config(5).
fn expand(file: &str, container: ContainerUid) -> String {
    let (name, home) = (container.to_string(), home(container));
    let mut text = String::new();
    let mut characters = file.chars();
    while let Some(character) = characters.next() {
        match (character, character == '%').1.then(|| characters.next()).flatten() {
            None => text.push(character),
            Some('u' | 'U') => text.push_str(&name),
            Some('h') => text.push_str(&home),
            Some(other) => text.push(other),
        }
    }
    text
}

/// As long as it lives, files are reached with the rights of a container's user, as sshd reaches its keys.
struct AsTheUser {
    groups: Vec<Gid>,
}

impl AsTheUser {
    fn become_it(container: ContainerUid) -> nix::Result<Self> {
        let before = Self { groups: getgroups()? };
        setgroups(&[Gid::from_raw(container.get())])?;
        setfsgid(Gid::from_raw(container.get()));
        setfsuid(Uid::from_raw(container.get()));
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

/// Whether this file holds keys that sshd would read. It is the tenant's, and may be anything: only a regular file is opened, and
/// what is in it is not shown.
fn look_at_keys(
    container: ContainerUid,
    file: &str,
    is_strict: bool,
    doubts: &mut Vec<String>,
) -> Result<bool, String> {
    let failed = |error: std::io::Error| format!("{file}: {error}");
    let home = home(container);
    // Links are followed first, and then every folder is looked at, up to the home directory or else to the root: safe_path() of OpenSSH's misc.c.
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
    if !real.symlink_metadata().map_err(failed)?.is_file() {
        return Err(format!("{} is not a regular file", real.display()));
    }
    let mut text = Vec::new();
    // What is in its place by now must not keep us waiting.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = File::options().read(true).custom_flags(flags.bits()).open(&real).map_err(failed)?;
    opened.take(LONGEST).read_to_end(&mut text).map_err(failed)?;
    if !text.is_empty() && !has_key(&text) {
        return Err(format!("{} holds no key", real.display()));
    }
    Ok(!text.is_empty())
}

/// More than anybody's keys.
const LONGEST: u64 = 1 << 20;

/// Whether there is a line with a key, by the names with which all types of keys begin (ssh -Q key).
fn has_key(text: &[u8]) -> bool {
    String::from_utf8_lossy(text).lines().filter(|line| !line.trim_start().starts_with('#')).any(|line| {
        line.split_whitespace().any(|word| ["ssh-", "ecdsa-", "sk-"].iter().any(|begin| word.starts_with(begin)))
    })
}

/// StrictModes of sshd: root's or the user's, and nobody else writes there. A group that is the user alone may, in Debian's and Ubuntu's sshd.
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
    let (path, mode) = (path.display(), status.mode() & 0o7777);
    let seen = format!("mode {mode:o} of {}:{}", status.uid(), status.gid());
    if is_owned && status.mode() & 0o002 == 0 && status.gid() == container.get() {
        doubts.push(format!("{what} {path}: {seen}; Debian's sshd lets that pass, others do not"));
        return Ok(());
    }
    Err(format!("bad ownership or modes for {what} {path}: {seen}"))
}

/// The whole verification, in the module's own code.
fn prepare(container: ContainerUid, options: &Options, findings: &mut Vec<Finding>) -> Result<Attachment, Finding> {
    const TOLD: [&str; 4] = ["reach", "verify", "namespaces", "cgroups"];
    let mut told = 0;
    let mut tell = |name: &str, seen: std::fmt::Arguments<'_>| {
        told += 1;
        findings.push(ok(name, seen.to_string()));
    };
    let attachment = Attachment::prepare(container, options, &mut tell);
    // After the last step the first one that can change is looked at again.
    let ends_at = TOLD.get(told).copied().unwrap_or("verify");
    attachment.map_err(|refusal| refused(container, ends_at, &refusal))
}

/// A login ends here, with these words in the log and for the user.
fn refused(container: ContainerUid, name: &str, refusal: &Refusal) -> Finding {
    let seen = format!("{}; the user reads: {}", refusal.cause, refusal.sentence(&container.to_string()));
    fail(name, seen, mend(container, name, refusal))
}

fn mend(container: ContainerUid, name: &str, refusal: &Refusal) -> String {
    let restart = format!("touch --no-dereference /etc/uwsgi/vassals/{container}.ini");
    if Path::new(&format!("/run/unbit/{container}")).exists()
        && refusal.reason != Reason::Misconfigured
        && name != "cgroups"
    {
        return format!(
            "root keeps a door to this container: mend what listens on /run/unbit/{container}/ns.socket, or rm -r /run/unbit/{container}"
        );
    }
    match (name, refusal.reason) {
        (_, Reason::NotRunning) => format!(
            "start the container: the node's Emperor has to run, and /etc/uwsgi/vassals/{container}.ini to be there; the Emperor's log tells why it ended"
        ),
        (_, Reason::Paused) => {
            "thaw it: write THAWED to freezer.state (cgroup v1), or 0 to cgroup.freeze (v2), of the cgroup that is named".to_owned()
        }
        (_, Reason::NotAnswering) => format!("its pid 1 takes no connections: restart the container with\n{restart}"),
        (_, Reason::NoContainer) => format!("chown {container}:{container} {}", home(container)),
        ("reach", Reason::NotTrusted) => format!(
            "remove what is in the socket's place, as the container's user, and restart the container:\n\
             setpriv --reuid {container} --regid {container} --clear-groups rm -rf {}/run/ns.socket\n{restart}",
            home(container)
        ),
        ("verify", _) => format!(
            "somebody else than the container's pid 1 listens: end that process, and restart the container with\n{restart}"
        ),
        ("namespaces", _) => {
            "start the container with namespaces of its own: emperor-use-clone = fs,pid,ipc,uts,net".to_owned()
        }
        ("cgroups", Reason::Misconfigured) => "unbitctl check tells which cgroups are mounted".to_owned(),
        ("cgroups", Reason::NotTrusted) => format!(
            "put the container into a cgroup of its own, in its vassal /etc/uwsgi/vassals/{container}.ini; or let it in without one: cgroup=optional in {}",
            pam::FILE
        ),
        _ => "a system call failed that should not: the kernel's log (dmesg) may tell more".to_owned(),
    }
}

/// The join itself: a process of ours enters as sshd's child does, and runs the shell there.
fn join(
    container: ContainerUid,
    attachment: Attachment,
    options: &Options,
    findings: &mut Vec<Finding>,
) -> Result<(), Finding> {
    let limit = options.timeout;
    let before = || inside::forget_the_operator(container).and_then(|()| inside::silence());
    let mut inside = inside::send(attachment, Who::User, limit, before, |words| life(container, words))
        .map_err(|refusal| refused(container, "join", &refusal))?;
    let heard = inside.listen(limit);
    let hung = heard.is_none();
    let mut has_joined = false;
    for (word, about) in heard.unwrap_or_default() {
        match word.as_str() {
            "joined" => {
                has_joined = true;
                findings.push(ok("join", format!("a process has entered, and is {container} there")));
            }
            "home" if about.is_empty() => findings.push(ok("home", format!("{} is there", home(container)))),
            "home" => findings.push(warn(
                "home",
                format!("{}: {about}; sshd says so and goes on in /", home(container)),
                format!("mount {} in the container, in its vassal", home(container)),
            )),
            "shell" => {
                let shell = shared::settings::SHELL;
                let mend = format!(
                    "see that {shell} is in the container's distribution, with all that it needs (below /distros), and mounted without noexec"
                );
                return Err(fail("shell", format!("run {shell}: {about}"), mend));
            }
            _ => {
                let refusal = Refusal::new(Reason::Broken, about);
                return Err(fail("join", refusal.cause.clone(), mend(container, "join", &refusal)));
            }
        }
    }
    if hung {
        return Err(too_long(&inside, "join", limit));
    }
    if !has_joined {
        return Err(fail(
            "join",
            "the process that entered was ended from outside",
            "see the kernel's log (dmesg): was its cgroup out of memory?",
        ));
    }
    let shell = shared::settings::SHELL;
    match inside.wait(limit) {
        Some(WaitStatus::Exited(_, 0)) => findings.push(ok("shell", format!("{shell} runs"))),
        Some(end) => {
            return Err(fail(
                "shell",
                format!("{shell} -c 'exit 0' ends with {end:?}"),
                "see what is wrong with the shell in the container's distribution",
            ));
        }
        None => return Err(too_long(&inside, "shell", limit)),
    }
    Ok(())
}

fn too_long(inside: &inside::Inside, name: &str, limit: std::time::Duration) -> Finding {
    let end = if inside.kill() { "ended".to_owned() } else { format!("it cannot be ended now: pid {}", inside.pid) };
    fail(
        name,
        format!("the process that enters has not come through within {} s; {end}", limit.as_secs()),
        "is a cgroup of the container's frozen (freezer.state, cgroup.freeze), a file system of it hung, or does a process of the tenant's trace it?",
    )
}

fn life(container: ContainerUid, words: &mut Words) {
    words.say("joined", "");
    match chdir(container.home().as_c_str()) {
        Ok(()) => words.say("home", ""),
        Err(errno) => words.say("home", errno.desc()),
    }
    let shell = CString::new(shared::settings::SHELL).unwrap_or_default();
    let errno = inside::exec(&[&shell], &[shell.as_c_str(), c"-c", c"exit 0"], &[] as &[&std::ffi::CStr]);
    words.say("shell", errno.desc());
}

fn home(container: ContainerUid) -> String {
    container.home().as_c_str().to_string_lossy().into_owned()
}
