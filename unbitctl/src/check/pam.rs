//! The lines of pam_unbit.so in /etc/pam.d/sshd: their control values, and what runs for container
//! users before them. See pam_unbit(8).
//!
//! Our session line is the first of its type. `success=done` does not end a stack in which an
//! earlier `required` line has failed: libpam then goes on (_pam_dispatch_aux() of its
//! pam_dispatch.c), and every later module runs as root for the container's user.

mod other_services;
pub(crate) mod stack;

use super::library;
use crate::command::{SSHD, cannot_load, library_directories};
use crate::report::{Finding, State};
use crate::rootfs::RootFs;
use crate::step::{Change, Step};
use anyhow::{Context, Result, anyhow, bail};
use join::options::Options;
use shared::settings::FIRST_UID;
use stack::{Action, Entry, Kind};
use std::cell::RefCell;
use std::io::ErrorKind;

pub const NAME: &str = "pam";
pub const FILE: &str = "/etc/pam.d/sshd";
const DIRECTORY: &str = "/etc/pam.d";
/// Where libpam looks next, see pam.conf(5).
const VENDOR_DIRECTORY: &str = "/usr/lib/pam.d";
const SERVICE: &str = "sshd";
const MODULE: &str = "pam_unbit.so";
const WHY_LINES: &str = "these lines keep container users inside their containers, and off the node";
const WHY_MODULE: &str = "without it container users are refused";

/// Our lines, as they should be. Others never meet the account line, so they log in without the
/// module as well.
const CONTROL: &str = "[success=done ignore=ignore module_unknown=ignore default=die]";
const COMMENT: &str = "# Container users, see pam_unbit(8): for them this line comes first.";
/// The comment of the session line's former place, behind pam_loginuid and pam_keyinit.
const FORMER_COMMENT: &str = "# Container users, see pam_unbit(8): for them nothing runs on the node after this line.";

pub const STEP: Step = Step { validate, preflight, ..Step::new(NAME, check, |node, _| fix(node)) };

pub fn check(node: &RootFs) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = node.read_bytes(&path(SERVICE)) {
        if error.kind() == ErrorKind::PermissionDenied {
            return vec![Finding::not_applicable(NAME, WHY_LINES, format!("{}: root is needed to see", path(SERVICE)))];
        }
        if error.kind() != ErrorKind::NotFound {
            let fix = format!("put a file there: namei -l {}", path(SERVICE));
            return vec![Finding::fail(NAME, WHY_LINES, format!("{}: {error}", path(SERVICE)), fix)];
        }
        let seen = format!("there is no {}", path(SERVICE));
        if !node.is_running() {
            return vec![Finding::not_applicable(NAME, WHY_LINES, seen)];
        }
        findings.push(Finding::fail(NAME, WHY_LINES, seen, "install openssh-server"));
    } else {
        let faults = faults_of(node);
        if faults.is_empty() {
            findings.push(Finding::ok(NAME, WHY_LINES, format!("the lines of {MODULE} are in the right places")));
        }
        let fix = fix_of(node);
        findings.extend(faults.into_iter().map(|fault| fault.finding(fix.clone())));
    }
    findings.extend(other_services::check(node));
    findings.push(module(node));
    findings
}

/// The module is where libpam looks, and can be loaded.
pub fn module(node: &RootFs) -> Finding {
    let Some(path) = module_path(node, MODULE) else {
        return Finding::not_applicable(NAME, WHY_MODULE, "there are no PAM modules");
    };
    let fix = format!("install {path}, with the package libpam-unbit or by make install");
    library::check(node, NAME, WHY_MODULE, &path, fix)
}

/// Where a module is: next to pam_permit.so, which every libpam has.
fn module_path(node: &RootFs, module: &str) -> Option<String> {
    if module.starts_with('/') {
        return Some(module.to_owned());
    }
    let directories = library_directories(node);
    let directory = directories.iter().find(|directory| node.has(&format!("{directory}/security/pam_permit.so")))?;
    Some(format!("{directory}/security/{module}"))
}

fn fix(node: &RootFs) -> Result<Vec<Change>> {
    match node.read(&path(SERVICE)) {
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            let file = node.quoted(&path(SERVICE));
            bail!(
                "write the lines of {} in UTF-8 that this shows: LC_ALL=C.UTF-8 grep -naxv '.*' {file}",
                path(SERVICE)
            );
        }
        Ok(None) if !node.is_running() => return Ok(Vec::new()),
        found => drop(found?),
    }
    let content = fixed(&reader(node))?;
    Ok(content.map(|content| Change::File { path: path(SERVICE), content, mode: 0o644 }).into_iter().collect())
}

/// What to do about faults: a command, or a sentence where none will do.
pub fn fix_of(node: &RootFs) -> String {
    fix(node).map_or_else(|reason| format!("{reason:#}"), |_| node.setup_command(NAME))
}

/// How sshd's lines let a container's user in: with these options, and with the faults that do not
/// keep it out.
pub struct Evaluation {
    pub options: Options,
    /// As the line has them.
    pub options_text: String,
    pub warnings: Vec<Finding>,
}

/// How a container's user gets in by sshd's lines, or why not.
pub fn evaluate(node: &RootFs) -> Result<Evaluation> {
    node.read_bytes(FILE).with_context(|| FILE.to_owned())?;
    let faults = faults_of(node);
    if let Some(fault) = faults.iter().find(|fault| fault.severity == Severity::Refuses) {
        bail!("{}", fault.seen);
    }
    let warnings = faults.into_iter().map(|fault| fault.finding(fix_of(node))).collect();
    let stack = stack::flatten(&reader(node), SERVICE);
    let options_text = account_line(&stack).map(|entry| entry.arguments.join(" ")).unwrap_or_default();
    Ok(Evaluation { options: options_of_the_account_line(&stack)?, options_text, warnings })
}

/// The options of our account line, which is where a login is verified; the defaults where there is
/// none, or no sshd.
pub fn options_of_a_login(node: &RootFs) -> Result<Options> {
    match node.read_bytes(FILE) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(FILE),
        _ => {}
    }
    options_of_the_account_line(&stack::flatten(&reader(node), SERVICE))
}

fn options_of_the_account_line(stack: &[Entry]) -> Result<Options> {
    account_line(stack).map_or(Ok(Options::default()), |entry| options_of(entry).map_err(|fault| anyhow!(fault.seen)))
}

/// Whether sshd's lines keep container users out of the node, or will, once they are `fixed`;
/// without sshd there is nothing to keep them out of. Without its file libpam takes `other`, which
/// has no line of ours.
pub fn keeps_out(node: &RootFs, fixed: bool) -> bool {
    let faults = || if fixed { fixed_reader(node).map(|read| faults_by(&read)) } else { Ok(faults_of(node)) };
    match node.read_bytes(&path(SERVICE)) {
        Ok(_) => faults().is_ok_and(|faults| are_minor(&faults)),
        Err(error) => error.kind() == ErrorKind::NotFound && !node.has(SSHD),
    }
}

/// Whether they will, with other files in the place of some: `instead` gives the text of a path, or
/// nothing for one that will be gone.
pub fn will_keep_out(node: &RootFs, instead: &dyn Fn(&str) -> Option<Option<String>>) -> bool {
    let read = reader(node);
    let will_read = |name: &str| instead(&path(name)).unwrap_or_else(|| read(name));
    match will_read(SERVICE) {
        Some(_) => are_minor(&faults_by(&will_read)),
        None => !node.has(SSHD),
    }
}

fn are_minor(faults: &[Fault]) -> bool {
    faults.iter().all(|fault| fault.severity == Severity::Minor)
}

/// The file of a service, named as an include names it.
fn path(name: &str) -> String {
    if name.starts_with('/') { name.to_owned() } else { format!("{DIRECTORY}/{name}") }
}

/// Reads the files of services. Bytes that are no UTF-8 are as good as any in a comment; only the
/// file that is to be written must have none.
fn reader(node: &RootFs) -> impl Fn(&str) -> Option<String> {
    |name| {
        let bytes = node.read_bytes(&path(name)).or_else(|error| match error.kind() {
            ErrorKind::NotFound if name != SERVICE => node.read_bytes(&format!("{VENDOR_DIRECTORY}/{name}")),
            _ => Err(error),
        });
        bytes.ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Like [`reader`], with the file of sshd as set-up would write it.
fn fixed_reader(node: &RootFs) -> Result<impl Fn(&str) -> Option<String>> {
    let read = reader(node);
    let fixed = fixed(&read)?;
    Ok(move |name: &str| if name == SERVICE { fixed.clone().or_else(|| read(name)) } else { read(name) })
}

/// All that is wrong with the node's stack, and with the files that it is made of.
fn faults_of(node: &RootFs) -> Vec<Fault> {
    faults_by(&reader(node))
}

fn faults_by(read: &dyn Fn(&str) -> Option<String>) -> Vec<Fault> {
    let missing = RefCell::new(Vec::new());
    let recording = |name: &str| {
        let text = read(name);
        if text.is_none() {
            missing.borrow_mut().push(Fault::not_safe(format!("{}, which is included, cannot be read", path(name))));
        }
        text
    };
    let mut faults = faults(&stack::flatten(&recording, SERVICE));
    faults.append(&mut missing.borrow_mut());
    faults
}

/// Every module that the service names can be loaded, but for those that it can do without.
fn validate(node: &RootFs) -> Result<()> {
    modules_load(node, &reader(node))
}

/// Like [`validate`], before the file is written.
fn preflight(node: &RootFs) -> Result<()> {
    if !crate::command::can_run_programs(node) {
        crate::command_line::root_or("root is needed to see whether the modules can be loaded")?;
    }
    modules_load(node, &fixed_reader(node)?)
}

fn modules_load(node: &RootFs, read: &dyn Fn(&str) -> Option<String>) -> Result<()> {
    let stack = stack::flatten(read, SERVICE);
    let mut seen = Vec::new();
    for entry in &stack {
        let optional = entry.silent || entry.control.action("module_unknown") == Action::Ignore;
        if seen.contains(&&entry.module) || (optional && !is_ours(entry)) {
            continue;
        }
        seen.push(&entry.module);
        let Some(path) = module_path(node, &entry.module) else { bail!("there are no PAM modules") };
        if !node.has(&path) {
            bail!("{}: there is no {path}", entry.place());
        }
        if let Some(complaint) = cannot_load(node, &path)? {
            bail!("{}: {path} cannot be loaded: {complaint}", entry.place());
        }
    }
    Ok(())
}

struct Fault {
    severity: Severity,
    seen: String,
}

/// How bad a fault is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Severity {
    /// Container users are refused.
    Refuses,
    /// Something is not safe, or other users are refused.
    Unsafe,
    /// It could be better.
    Minor,
}

impl Fault {
    fn refuses(seen: impl Into<String>) -> Self {
        Self { severity: Severity::Refuses, seen: seen.into() }
    }

    fn not_safe(seen: impl Into<String>) -> Self {
        Self { severity: Severity::Unsafe, seen: seen.into() }
    }

    fn minor(seen: impl Into<String>) -> Self {
        Self { severity: Severity::Minor, seen: seen.into() }
    }

    fn finding(self, fix: String) -> Finding {
        let state = if self.severity == Severity::Minor { State::Warn } else { State::Fail };
        Finding::new(NAME, state, WHY_LINES, self.seen, Some(fix))
    }
}

fn is_ours(entry: &Entry) -> bool {
    entry.name() == MODULE
}

/// All that is wrong with the whole stack.
fn faults(stack: &[Entry]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for kind in Kind::OURS {
        let chain: Vec<_> = stack.iter().filter(|entry| entry.kind == kind).collect();
        let mut at = chain.iter().enumerate().filter(|(_, entry)| is_ours(entry));
        match (at.next(), at.next()) {
            (None, _) => faults.push(Fault::refuses(format!("there is no {kind} line of {MODULE}"))),
            (Some(_), Some((_, second))) => {
                faults.push(Fault::not_safe(format!("{}: a second {kind} line of {MODULE}", second.place())));
            }
            (Some((index, ours)), None) => {
                faults.extend(line_faults(ours));
                faults.extend(chain_faults(&chain, index));
            }
        }
    }
    faults.extend(options(stack).err());
    faults
}

/// The control values: what comes of each thing that the module may answer, or of its absence.
fn line_faults(ours: &Entry) -> Vec<Fault> {
    use Action::{Bad, Die, Done, Ignore, Ok};
    let mut faults = Vec::new();
    let mut must = |answer: &str, good: &[Action], severity: Severity, otherwise: &str| {
        if !good.contains(&ours.control.action(answer)) {
            let seen = format!("{}: {} is {}, so {otherwise}", ours.place(), answer, ours.control.action(answer));
            faults.push(Fault { severity, seen });
        }
    };
    match ours.kind {
        Kind::Account => {
            must("success", &[Ok, Done], Severity::Refuses, "container users are refused");
            must("perm_denied", &[Bad, Die], Severity::Unsafe, "a refusal has no effect");
            must("module_unknown", &[Bad, Die], Severity::Unsafe, "without the module nobody refuses container users");
        }
        _ => {
            must("success", &[Done], Severity::Unsafe, "what comes after it runs for container users as well");
            for answer in ["perm_denied", "session_err", "cred_err", "auth_err", "system_err"] {
                must(answer, &[Die], Severity::Unsafe, "a refusal does not end the stack");
            }
            must("module_unknown", &[Ignore], Severity::Minor, "without the module nobody logs in");
        }
    }
    must("ignore", &[Ignore], Severity::Unsafe, "other users are refused");
    if ours.substack {
        faults.push(Fault::not_safe(format!(
            "{}: in a substack, so its control value ends only the substack",
            ours.place()
        )));
    }
    faults
}

/// What comes before our line.
fn chain_faults(chain: &[&Entry], ours: usize) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut guarded = false;
    for (index, entry) in chain.iter().enumerate().take(ours) {
        if entry.kind == Kind::Account && index + 1 == ours && entry.name() == "pam_succeed_if.so" {
            match guard(entry) {
                Ok(()) => guarded = true,
                Err(fault) => faults.push(fault),
            }
            continue;
        }
        let actions = entry.control.all();
        let between = chain.get(index + 1..ours).unwrap_or_default();
        // To a jump a substack is one line, however many it has.
        let lines = if entry.substack {
            between.len()
        } else {
            between.chunk_by(|one, next| one.substack && next.substack).count()
        };
        // A jump may lead over it.
        let is_met = !chain
            .iter()
            .take(index)
            .any(|before| before.control.all().iter().any(|action| matches!(action, Action::Jump(_))));
        if entry.name() == "pam_deny.so" && is_met && entry.control.action("auth_err") != Action::Ignore {
            faults.push(Fault::refuses(format!("{}: pam_deny.so refuses everybody before {MODULE}", entry.place())));
        }
        let over = actions.iter().any(|action| matches!(action, Action::Jump(over) if *over > lines));
        let ends = !entry.substack
            && actions
                .iter()
                .any(|action| *action == Action::Done || (*action == Action::Die && entry.kind == Kind::Auth));
        if over || ends {
            faults.push(Fault::refuses(format!(
                "{}: {} may end the stack before {MODULE}",
                entry.place(),
                entry.name()
            )));
        } else if entry.kind != Kind::Account {
            faults.push(early(entry));
        }
    }
    if let Some(line) = chain.get(ours).filter(|line| line.kind == Kind::Account && !guarded) {
        let seen = format!(
            "{}: it runs for other users as well, and without the module none of them can log in",
            line.place()
        );
        faults.push(Fault::minor(seen));
    }
    faults
}

/// A line that comes before ours, though ours is to be the first of its type.
fn early(entry: &Entry) -> Fault {
    let harm = match threat(entry) {
        Some(threat) => threat.to_owned(),
        None if entry.control.all().contains(&Action::Bad) => {
            format!("if it fails, every module after {MODULE} runs for them too, as root")
        }
        None => format!("{MODULE} must be the first {} line", entry.kind),
    };
    Fault::not_safe(format!("{}: {} runs for container users: {harm}", entry.place(), entry.name()))
}

/// The line that lets other users pass by: `[success=1 default=ignore] pam_succeed_if.so quiet uid
/// < 30000`.
fn guard(entry: &Entry) -> Result<(), Fault> {
    let condition: Vec<_> = entry
        .arguments
        .iter()
        .map(String::as_str)
        .filter(|word| !matches!(*word, "quiet" | "quiet_success" | "quiet_fail" | "debug" | "audit"))
        .collect();
    let below = match condition.as_slice() {
        ["uid", "<", number] => number.parse::<u32>().ok(),
        _ => None,
    };
    if below.is_none_or(|below| below > FIRST_UID) {
        let seen = format!(
            "{}: the account line of {MODULE} is for uid {FIRST_UID} and above, this line is not: {}",
            entry.place(),
            condition.join(" ")
        );
        return Err(Fault::refuses(seen));
    }
    if entry.control.action("success") != Action::Jump(1) || entry.control.action("auth_err") != Action::Ignore {
        return Err(Fault::refuses(format!("{}: should be [success=1 default=ignore]", entry.place())));
    }
    Ok(())
}

/// What a module would do for a container's user, on the node and with root's power.
fn threat(entry: &Entry) -> Option<&'static str> {
    if entry.kind != Kind::Session {
        return None;
    }
    Some(match entry.name() {
        "pam_systemd.so" => "it starts the tenant's own units on the node",
        "pam_systemd_home.so" | "pam_mount.so" | "pam_ecryptfs.so" | "pam_namespace.so" => {
            "it mounts on the node what the tenant asks for"
        }
        "pam_motd.so" => "it runs programs and shows users what is meant for users of the node",
        "pam_exec.so" | "pam_script.so" => "it runs programs on the node",
        "pam_mail.so" => "it looks into the tenant's directory",
        "pam_mkhomedir.so" | "pam_oddjob_mkhomedir.so" | "pam_xauth.so" => "it writes to the tenant's directory",
        "pam_env.so" if entry.arguments.iter().any(|word| word == "user_readenv=1") => {
            "it reads the tenant's .pam_environment"
        }
        "pam_cap.so" => "it gives capabilities",
        _ => return None,
    })
}

/// The words behind the module's name: good ones, and the same on each line.
fn options(stack: &[Entry]) -> Result<&[String], Fault> {
    let ours: Vec<_> = stack.iter().filter(|entry| is_ours(entry) && Kind::OURS.contains(&entry.kind)).collect();
    for entry in &ours {
        options_of(entry)?;
    }
    let Some(first) = ours.first() else { return Ok(&[]) };
    if let Some(other) = ours.iter().find(|entry| entry.arguments != first.arguments) {
        return Err(Fault::minor(format!("{}: other options than in {}", other.place(), first.place())));
    }
    Ok(&first.arguments)
}

/// Where a login is verified.
fn account_line(stack: &[Entry]) -> Option<&Entry> {
    stack.iter().find(|entry| is_ours(entry) && entry.kind == Kind::Account)
}

/// The options of a line, as the module reads them for sshd.
fn options_of(entry: &Entry) -> Result<Options, Fault> {
    match Options::parse(entry.arguments.iter().map(String::as_bytes)) {
        Err(refusal) => Err(Fault::refuses(format!("{}: {}", entry.place(), refusal.cause))),
        Ok(options) if options.join_now => Err(Fault::refuses(format!(
            "{}: join=now is not for sshd, with it container users are refused",
            entry.place()
        ))),
        Ok(options) => Ok(options),
    }
}

/// The new text of the service's file; nothing if the old one is well.
fn fixed(read: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>> {
    let Some(old) = read(SERVICE) else { bail!("there is no {DIRECTORY}/{SERVICE}: install openssh-server") };
    let stack = stack::flatten(read, SERVICE);
    if faults(&stack).is_empty() {
        return Ok(None);
    }
    let options = match options(&stack) {
        Ok([]) => String::new(),
        Ok(words) => format!(" {}", words.join(" ")),
        Err(fault) => bail!("change the options by hand, because somebody chose them: {}", fault.seen),
    };
    if let Some(entry) = stack.iter().find(|entry| is_ours(entry) && entry.file != SERVICE) {
        bail!("remove the line of {MODULE} from {DIRECTORY}/{}, then: unbitctl setup {NAME}", entry.file);
    }

    let text = without_ours(&old, &stack);
    let with = |name: &str| if name == SERVICE { Some(text.clone()) } else { read(name) };
    let stack = stack::flatten(&with, SERVICE);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut blocks = Kind::OURS.map(|kind| {
        let chain: Vec<_> = stack.iter().filter(|entry| entry.kind == kind).collect();
        let at = chain.iter().find(|entry| !may_stay_before(entry)).map_or(lines.len(), |entry| entry.top);
        (at, block(kind, &options))
    });
    // From the last on, so that the places of the others stay.
    blocks.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    for (at, block) in blocks {
        // Above the comment of the line that it precedes.
        let comment = lines.iter().take(at).rev().take_while(|line| line.starts_with('#')).count();
        let at = at - comment;
        lines.splice(at..at, block);
    }
    let new = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>();

    let with = |name: &str| if name == SERVICE { Some(new.clone()) } else { read(name) };
    match faults(&stack::flatten(&with, SERVICE)).into_iter().find(|fault| fault.severity != Severity::Minor) {
        Some(fault) => bail!("fix this by hand: {}", fault.seen),
        None if new == old => Ok(None),
        None => Ok(Some(new)),
    }
}

/// The text without our lines, the line that guards one, and our comments.
fn without_ours(text: &str, stack: &[Entry]) -> String {
    let mut gone: Vec<_> =
        stack.iter().filter(|entry| is_ours(entry)).flat_map(|entry| entry.top..=entry.bottom).collect();
    for pair in stack.iter().filter(|entry| entry.kind == Kind::Account).collect::<Vec<_>>().windows(2) {
        if let [guard, ours] = pair {
            if is_ours(ours) && guard.file == SERVICE && guard.name() == "pam_succeed_if.so" {
                gone.extend(guard.top..=guard.bottom);
            }
        }
    }
    let stay =
        text.lines().enumerate().filter(|(at, line)| !gone.contains(at) && *line != COMMENT && *line != FORMER_COMMENT);
    let mut new = String::new();
    for (at, line) in stay {
        // No hole where a block has been.
        let hole = line.is_empty() && (new.is_empty() || new.ends_with("\n\n"));
        if !(hole && gone.iter().any(|gone| gone + 1 == at)) {
            new.push_str(line);
            new.push('\n');
        }
    }
    new
}

/// Whether our line may stand behind this one, as only an account line may. Whatever jumps is
/// counted from, so nothing is put behind it.
fn may_stay_before(entry: &Entry) -> bool {
    let ends_or_jumps = |action: &Action| matches!(action, Action::Jump(_) | Action::Done);
    entry.kind == Kind::Account && entry.file == SERVICE && !entry.control.all().iter().any(ends_or_jumps)
}

/// Our lines of a kind.
fn block(kind: Kind, options: &str) -> Vec<String> {
    let mut block = vec![COMMENT.to_owned()];
    match kind {
        Kind::Account => {
            block.push(format!("account    [success=1 default=ignore] pam_succeed_if.so quiet uid < {FIRST_UID}"));
            block.push(format!("account    required     {MODULE}{options}"));
        }
        _ => block.push(format!("{:<10} {CONTROL} {MODULE}{options}", kind.to_string())),
    }
    block.push(String::new());
    block
}

#[cfg(test)]
mod tests;
