//! Checks that nsswitch.conf(5) names the service `unbit`, and that glibc finds it, loads it and
//! gets answers.

use super::library::{self, NSS_MODULE};
use super::{is_space, nscd, pam, sshd};
use crate::command::{self, library_directories};
use crate::containers::some_container;
use crate::report::{Finding, State};
use crate::rootfs::RootFs;
use crate::step::{Change, Choices, Step};
use anyhow::{Context, Result, bail};
use shared::ContainerUid;
use shared::settings::{CONTAINERS, FIRST_UID};
use std::ops::Range;

const NAME: &str = "nsswitch";
pub const FILE: &str = "/etc/nsswitch.conf";
const WHY_LINES: &str = "without it no program knows the containers' accounts and names";
const WHY_MODULE: &str = "glibc skips a service if it cannot load its library";
const WHY_LOADED: &str =
    "if there are two libraries of this name, glibc uses the one that it finds first, and never the other";
const WHY_ORDER: &str = "nss-systemd asks pid 1 for each name that it does not know: 500 names of containers take 0.17 s before it, 1.1 to 1.5 s after it";
const WHY_FIRST: &str = "the service that is asked first decides which account a name is";
const WHY_MERGE: &str = "glibc merges the groups of a service only with those of the next one";
const WHY_SHADOW: &str = "if sshd ever runs without PAM, this word keeps container users from a shell on the node, because sshd then finds their accounts locked";
const WHY_ANSWER: &str = "what glibc answers is what sshd, ls and the routers see";

/// The databases that name the service.
const DATABASES: [&str; 4] = ["passwd", "group", "shadow", "hosts"];

pub const STEP: Step =
    Step { needs: &[pam::NAME, sshd::NAME], requires: accounts_may_appear, validate, ..Step::new(NAME, check, fix) };

pub fn check(node: &RootFs) -> Vec<Finding> {
    let text = match node.read(FILE) {
        Ok(text) => text.unwrap_or_default(),
        Err(error) => return vec![Finding::fail(NAME, WHY_LINES, error.to_string(), format!("make {FILE} readable"))],
    };
    let mut findings: Vec<_> = DATABASES
        .iter()
        .filter_map(|database| {
            let Fault { state, seen, why } = fault(&text, database)?;
            let seen = format!("{database}: {seen}");
            let (state, why) = severity_of(database, state, why);
            Some(Finding::new(NAME, state, why, seen, Some(node.setup_command(NAME))))
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(NAME, WHY_LINES, "unbit is in the right place in passwd, group, shadow and hosts"));
    }
    findings.push(module(node));
    findings.extend(answers(node));
    findings
}

/// Only the passwd line is needed for a login. A fault of another line is a warning, with its
/// consequence.
fn severity_of(database: &str, state: State, why: &'static str) -> (State, &'static str) {
    match (state, database) {
        (State::Fail, "group") => (State::Warn, "the containers' groups have no names"),
        (State::Fail, "shadow") => (State::Warn, WHY_SHADOW),
        (State::Fail, "hosts" | "ahostsv4") => (State::Warn, "names such as 30001.local are not known"),
        unchanged => (unchanged.0, why),
    }
}

/// The library is next to libc, where glibc looks, and can be loaded.
fn module(node: &RootFs) -> Finding {
    let Some(directory) =
        library_directories(node).into_iter().find(|directory| node.has(&format!("{directory}/libc.so.6")))
    else {
        return Finding::not_applicable(NAME, WHY_MODULE, "there is no libc.so.6");
    };
    let path = format!("{directory}/{NSS_MODULE}");
    let fix = format!("install {NSS_MODULE} in {directory}, with the package libnss-unbit or by make install");
    let of_ours = library::check(node, NAME, WHY_MODULE, &path, fix);
    if !command::can_run_programs(node) || !node.has("/usr/bin/getent") {
        return of_ours;
    }
    match library::loaded_for_nss(node) {
        Some(loaded) if !library::is_same(node, &loaded, &path) => {
            let whose = if library::is_ours(node, &loaded) { "another unbit's" } else { library::whose(&loaded) };
            let seen = format!("glibc loads {loaded}, which is {whose}, and not {path}");
            let real = node.quoted(&loaded);
            Finding::fail(
                NAME,
                WHY_LOADED,
                seen,
                format!("mv {real} {} && {}", node.quoted("/root/"), node.command_on_node("ldconfig")),
            )
        }
        _ => of_ours,
    }
}

/// Through glibc, and through nsswitch.conf: names of hosts need no container to be there, accounts
/// do.
fn answers(node: &RootFs) -> Vec<Finding> {
    if !command::can_run_programs(node) {
        return vec![Finding::not_applicable(NAME, WHY_ANSWER, "root is needed to see whether it answers")];
    }
    if !node.has("/usr/bin/getent") {
        return vec![Finding::not_applicable(NAME, WHY_ANSWER, "there is no getent to ask with")];
    }
    if nscd::hangs(node) {
        return vec![Finding::not_applicable(
            NAME,
            WHY_ANSWER,
            "nscd does not answer, and every lookup waits for it (see nscd)",
        )];
    }
    let first = ContainerUid::new(FIRST_UID);
    let address = first.and_then(ContainerUid::address).map(|address| address.to_string()).unwrap_or_default();
    let mut findings = vec![ask(node, "ahostsv4", &format!("{FIRST_UID}.local"), |line| {
        line.split_whitespace().next() == Some(&address)
    })];
    match some_container(node) {
        None if node.is_running() => findings.push(Finding::not_applicable(
            NAME,
            WHY_ANSWER,
            format!("not tried: {CONTAINERS} has no container"),
        )),
        None => {}
        Some(container) => {
            let name = container.to_string();
            let mut records =
                vec![("passwd", format!("{name}:x:{name}:{name}:")), ("group", format!("{name}:x:{name}:"))];
            if nix::unistd::geteuid().is_root() {
                records.push(("shadow", format!("{name}:!:"))); // other users may not see shadow records
            }
            for (database, record) in records {
                findings.push(ask(node, database, &name, |line| line.starts_with(&record)));
            }
        }
    }
    findings
}

fn ask(node: &RootFs, database: &str, name: &str, expected: impl Fn(&str) -> bool) -> Finding {
    let question = format!("getent {database} {name}");
    let fix = format!("{}; then, if nscd runs: nscd -i passwd; nscd -i group; nscd -i hosts", node.setup_command(NAME));
    let fail = |seen: String| {
        let (state, why) = severity_of(database, State::Fail, WHY_ANSWER);
        Finding::new(NAME, state, why, seen, Some(fix.clone()))
    };
    match command::run(node, "getent", &[database, name]) {
        Ok(answer) if answer.succeeded() && answer.out.lines().next().is_some_and(&expected) => {
            Finding::ok(NAME, WHY_ANSWER, format!("{question} answers"))
        }
        Ok(answer) if answer.succeeded() => fail(format!("{question} has another answer: {}", answer.out.trim())),
        Ok(answer) if answer.status == Some(2) => fail(format!("{question} finds nothing")),
        Ok(answer) => fail(format!("{question}: {}", answer.error_summary())),
        Err(error) => Finding::not_applicable(NAME, WHY_ANSWER, format!("{question}: {error:#}")),
    }
}

/// PAM and sshd must be ready before the accounts exist. `done` are the steps that a dry run
/// assumes.
fn accounts_may_appear(node: &RootFs, done: &[&str]) -> Result<()> {
    let is_done = |step| done.contains(&step);
    if node.is_running() && !(pam::keeps_out(node, is_done(pam::NAME)) && sshd::uses_pam(node, is_done(sshd::NAME))?) {
        bail!("sshd would give container users a session on the node; first: unbitctl setup pam sshd");
    }
    Ok(())
}

/// The new text, unless all is well. A library that crashes must not get into every process of the
/// node.
fn fix(node: &RootFs, _: Choices) -> Result<Vec<Change>> {
    let old = node.read(FILE)?;
    let text = old.clone().unwrap_or_default();
    if DATABASES.iter().all(|database| fault(&text, database).is_none()) {
        return Ok(Vec::new());
    }
    if node.has("/usr/bin/getent") {
        let answer =
            command::run(node, "getent", &["-s", "unbit", "passwd", "root"]).context("try the service unbit")?;
        if answer.status.is_none() {
            bail!("{NSS_MODULE} cannot be used, getent -s unbit passwd root: {}", answer.error_summary());
        }
    }
    let content = DATABASES.iter().fold(text, |text, database| fixed(&text, database));
    Ok(vec![Change::File { path: FILE.to_owned(), content, mode: 0o644 }])
}

/// Lookups of root and of unknown names must still work.
fn validate(node: &RootFs) -> Result<()> {
    if !node.has("/usr/bin/getent") {
        return Ok(());
    }
    let root = command::run(node, "getent", &["passwd", "root"])?;
    if !root.succeeded() {
        bail!("getent passwd root: {}", root.error_summary());
    }
    let nobody = i32::MAX.to_string();
    let unknown = command::run(node, "getent", &["passwd", &nobody])?;
    if !matches!(unknown.status, Some(0 | 2)) {
        bail!("getent passwd {nobody}: {}", unknown.error_summary());
    }
    Ok(())
}

/// Whether accounts are asked for here.
pub fn names_accounts(text: &str) -> bool {
    lines(text, "passwd").iter().any(|line| line.services.iter().any(|service| service.name == "unbit"))
}

/// A service in a line, with what follows it in brackets.
pub(crate) struct Service<'a> {
    pub(crate) name: &'a str,
    pub(crate) actions: &'a str,
    /// Where the two are in the text.
    pub(crate) name_at: Range<usize>,
    pub(crate) end: usize,
}

impl Service<'_> {
    /// Whether the search ends here when the service does not know the name. (`continue` is the
    /// default.)
    fn ends_search(&self) -> bool {
        let mut ends = false;
        for pair in self.actions.split(['[', ']', ' ', '\t']).filter(|pair| !pair.is_empty()) {
            let Some((status, action)) = pair.split_once('=') else { continue };
            let about = match status.strip_prefix('!') {
                Some(other) => !other.eq_ignore_ascii_case("notfound"),
                None => status.eq_ignore_ascii_case("notfound"),
            };
            if about {
                ends = action.eq_ignore_ascii_case("return");
            }
        }
        ends
    }

    /// Whether its groups are joined with the next one's.
    fn merges(&self) -> bool {
        self.actions.to_ascii_lowercase().contains("=merge")
    }
}

/// The line of a database: where the text behind its colon starts and ends, and its services.
pub(crate) struct Line<'a> {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) services: Vec<Service<'a>>,
}

/// The lines of a database: one, if nobody has made a mistake.
pub(crate) fn lines<'a>(text: &'a str, database: &str) -> Vec<Line<'a>> {
    let mut found = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let body = line.split('#').next().unwrap_or_default().trim_end();
        if let Some((name, list)) = body.split_once(':').filter(|(name, _)| name.trim() == database) {
            let from = start + name.len() + 1;
            found.push(Line { start: from, end: start + body.len(), services: services(list, from) });
        }
        start += line.len();
    }
    found
}

fn services(list: &str, from: usize) -> Vec<Service<'_>> {
    let mut services: Vec<Service<'_>> = Vec::new();
    let mut at = 0;
    while let Some(rest) = list.get(at..).filter(|rest| !rest.is_empty()) {
        let blank = rest.len() - rest.trim_start_matches(is_space).len();
        if blank > 0 {
            at += blank;
        } else if rest.starts_with('[') {
            let end = at + rest.find(']').map_or(rest.len(), |end| end + 1);
            if let Some(service) = services.last_mut() {
                service.actions = list.get(service.name_at.end - from..end).unwrap_or_default();
                service.end = from + end;
            }
            at = end;
        } else {
            let end = at + rest.find(|letter| is_space(letter) || letter == '[').unwrap_or(rest.len());
            let name_at = from + at..from + end;
            services.push(Service {
                name: list.get(at..end).unwrap_or_default(),
                actions: "",
                end: name_at.end,
                name_at,
            });
            at = end;
        }
    }
    services
}

/// The node's own accounts come first. (systemd has more of them, but none whose name is a number.)
fn is_local(service: &Service<'_>) -> bool {
    matches!(service.name, "files" | "compat" | "db")
}

/// Who would ask others for `.local` names: name servers, or everybody on the network.
fn asks_others(service: &Service<'_>) -> bool {
    matches!(service.name, "dns" | "resolve" | "wins") || service.name.starts_with("mdns")
}

/// What is wrong with a database.
pub(crate) struct Fault {
    pub(crate) state: State,
    pub(crate) seen: String,
    why: &'static str,
}

impl Fault {
    fn fail(seen: impl Into<String>) -> Self {
        Self { state: State::Fail, seen: seen.into(), why: WHY_LINES }
    }

    fn warn(why: &'static str, seen: impl Into<String>) -> Self {
        Self { state: State::Warn, seen: seen.into(), why }
    }
}

pub(crate) fn fault(text: &str, database: &str) -> Option<Fault> {
    let lines = lines(text, database);
    if lines.is_empty() {
        return Some(Fault::fail("there is no such line"));
    }
    lines.iter().find_map(|line| line_fault(line, database))
}

fn line_fault(line: &Line<'_>, database: &str) -> Option<Fault> {
    let Some(at) = line.services.iter().position(|service| service.name == "unbit") else {
        return Some(Fault::fail("unbit is missing"));
    };
    let (before, unbit_and_after) = line.services.split_at(at);
    let (unbit, after) = unbit_and_after.split_first()?;
    if let Some(service) = before.iter().find(|service| service.ends_search()) {
        return Some(Fault::fail(format!("{}{} ends the search before unbit", service.name, service.actions)));
    }
    if database == "hosts" {
        let other = before.iter().find(|service| asks_others(service))?;
        return Some(Fault::fail(format!("{} is asked before unbit", other.name)));
    }
    // Nobody gets to what is behind a service that ends the search.
    let reached = match unbit.ends_search() {
        true => 0,
        false => after.iter().position(Service::ends_search).map_or(after.len(), |end| end + 1),
    };
    if let Some(late) = after.iter().take(reached).find(|service| is_local(service)) {
        let seen = format!("{} comes after unbit, so containers come before the node's own accounts", late.name);
        return Some(Fault::warn(WHY_FIRST, seen));
    }
    let mut between = before.iter().rev().take_while(|service| !is_local(service));
    if between.any(|service| service.name == "systemd") {
        return Some(Fault::warn(WHY_ORDER, "systemd is asked before unbit"));
    }
    let (merging, next) = (before.last()?, after.first()?);
    (merging.merges() && !unbit.merges()).then(|| {
        let seen = format!("unbit ends the merging of {} with {}", merging.name, next.name);
        Fault::warn(WHY_MERGE, seen)
    })
}

/// The text with unbit where it belongs: right behind the node's own accounts; among hosts, right
/// behind files.
pub(crate) fn fixed(text: &str, database: &str) -> String {
    let mut text = text.to_owned();
    if lines(&text, database).is_empty() {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let others = if database == "hosts" { " dns" } else { "" };
        text.push_str(&format!("{:<15} files unbit{others}\n", format!("{database}:")));
        return text;
    }
    for index in 0..lines(&text, database).len() {
        // Each edit moves what is behind it, so the line is parsed again.
        let faulty = |line: &&Line<'_>| line_fault(line, database).is_some();
        while let Some(old) = lines(&text, database).get(index).filter(faulty).and_then(cut) {
            text.replace_range(old, "");
        }
        let new = lines(&text, database).get(index).filter(faulty).map(|line| place(line, database));
        if let Some((at, word)) = new {
            let touches = text.get(at..).is_some_and(|rest| rest.starts_with(is_of_a_name));
            text.insert_str(at, &(word + if touches { " " } else { "" }));
        }
    }
    text
}

fn is_of_a_name(letter: char) -> bool {
    !is_space(letter) && !matches!(letter, '[' | '#')
}

/// The service unbit, its actions, and the blank before them.
fn cut(line: &Line<'_>) -> Option<Range<usize>> {
    let at = line.services.iter().position(|service| service.name == "unbit")?;
    let start = match at.checked_sub(1).and_then(|before| line.services.get(before)) {
        Some(before) => before.end,
        None => before(line.services.first()?, line),
    };
    Some(start..line.services.get(at)?.end)
}

/// Where the blank before the first service is, if there is one (the colon is not one).
fn before(first: &Service<'_>, line: &Line<'_>) -> usize {
    first.name_at.start.saturating_sub(1).max(line.start)
}

/// Where unbit goes, behind the service that it follows or at the start, and what is written there.
fn place(line: &Line<'_>, database: &str) -> (usize, String) {
    let hosts = database == "hosts";
    let follows = |service: &Service<'_>| if hosts { service.name == "files" } else { is_local(service) };
    // What is behind a service that ends the search is never asked; nor must others be asked for
    // names of hosts before.
    let last = |service: &Service<'_>| service.ends_search() || hosts && asks_others(service);
    let end = line.services.iter().position(last).map_or(line.services.len(), |last| last + 1);
    let word = " unbit".to_owned();
    match line.services.iter().take(end).rposition(follows).and_then(|index| line.services.get(index..)) {
        Some([service, ..]) if service.ends_search() => (service.name_at.end, word),
        // Groups are merged from one service to the next, so unbit must hand on what it is handed.
        Some([service, _, ..]) if service.merges() => (service.end, word + service.actions),
        Some([service, ..]) => (service.end, word),
        _ => (line.services.first().map_or(line.end, |first| before(first, line)), word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(line: &str) -> Option<String> {
        let database = line.split(':').next().unwrap();
        fault(line, database).map(|fault| fault.seen)
    }

    /// The fixed line; it is well, and fixing it again changes nothing.
    fn fix_line(line: &str) -> String {
        let database = line.split(':').next().unwrap();
        let new = fixed(line, database);
        assert_eq!(fault(&new, database).map(|fault| fault.seen), None, "{new}");
        assert_eq!(fixed(&new, database), new);
        new
    }

    #[test]
    fn a_good_line_is_left_alone() {
        for line in [
            "passwd: files unbit",
            "passwd:files unbit",
            "passwd:\tcompat unbit systemd # unbit",
            "passwd: files unbit systemd ldap",
            "passwd: files ldap unbit systemd",
            "passwd: systemd files unbit",
            "passwd: files unbit [NOTFOUND=return] ldap",
            "group: files [SUCCESS=merge] unbit [SUCCESS=merge] systemd",
            "group: files [SUCCESS=merge] unbit",
            "passwd: files [UNAVAIL=return] unbit",
            "passwd: files [NOTFOUND=continue] unbit",
            "hosts: files unbit dns",
            "hosts: unbit files dns",
            "hosts: files myhostname unbit mdns4_minimal [NOTFOUND=return] dns",
            "hosts: files unbit",
            "passwd: files unbit [!SUCCESS=return] files",
        ] {
            assert_eq!(seen(line), None, "{line}");
            assert_eq!(fix_line(line), line);
        }
    }

    #[test]
    fn each_fault_is_seen_and_fixed() {
        for (line, fault, new) in [
            ("passwd: files", "unbit is missing", "passwd: files unbit"),
            ("passwd:         files systemd\n", "unbit is missing", "passwd:         files unbit systemd\n"),
            ("passwd: files # unbit", "unbit is missing", "passwd: files unbit # unbit"),
            ("passwd:", "unbit is missing", "passwd: unbit"),
            ("passwd: ldap", "unbit is missing", "passwd: unbit ldap"),
            ("passwd:ldap", "unbit is missing", "passwd: unbit ldap"),
            (
                "passwd: ldap unbit unbit files",
                "files comes after unbit, so containers come before the node's own accounts",
                "passwd: ldap files unbit",
            ),
            ("passwd: files[UNAVAIL=return]ldap", "unbit is missing", "passwd: files[UNAVAIL=return] unbit ldap"),
            (
                "shadow:unbit files",
                "files comes after unbit, so containers come before the node's own accounts",
                "shadow: files unbit",
            ),
            ("passwd: files ldap", "unbit is missing", "passwd: files unbit ldap"),
            ("passwd: files nounbit", "unbit is missing", "passwd: files unbit nounbit"),
            ("passwd: systemd", "unbit is missing", "passwd: unbit systemd"),
            (
                "passwd:\tcompat systemd unbit # unbit",
                "systemd is asked before unbit",
                "passwd:\tcompat unbit systemd # unbit",
            ),
            ("shadow: files systemd ldap unbit", "systemd is asked before unbit", "shadow: files unbit systemd ldap"),
            (
                "group: files [SUCCESS=merge] systemd",
                "unbit is missing",
                "group: files [SUCCESS=merge] unbit [SUCCESS=merge] systemd",
            ),
            (
                "group: files [SUCCESS=merge] systemd unbit",
                "systemd is asked before unbit",
                "group: files [SUCCESS=merge] unbit [SUCCESS=merge] systemd",
            ),
            (
                "group: files [SUCCESS=merge] unbit systemd",
                "unbit ends the merging of files with systemd",
                "group: files [SUCCESS=merge] unbit [SUCCESS=merge] systemd",
            ),
            (
                "group: files [success=merge] ldap",
                "unbit is missing",
                "group: files [success=merge] unbit [success=merge] ldap",
            ),
            ("group: files [SUCCESS=merge]", "unbit is missing", "group: files [SUCCESS=merge] unbit"),
            (
                "passwd: files [NOTFOUND=return] ldap unbit",
                "files [NOTFOUND=return] ends the search before unbit",
                "passwd: files unbit [NOTFOUND=return] ldap",
            ),
            (
                "passwd: files [!UNAVAIL=return] systemd",
                "unbit is missing",
                "passwd: files unbit [!UNAVAIL=return] systemd",
            ),
            (
                "shadow: unbit files",
                "files comes after unbit, so containers come before the node's own accounts",
                "shadow: files unbit",
            ),
            ("hosts: files dns", "unbit is missing", "hosts: files unbit dns"),
            ("hosts: dns", "unbit is missing", "hosts: unbit dns"),
            ("hosts: files dns unbit", "dns is asked before unbit", "hosts: files unbit dns"),
            (
                "hosts: files mdns4_minimal [NOTFOUND=return] dns unbit",
                "mdns4_minimal [NOTFOUND=return] ends the search before unbit",
                "hosts: files unbit mdns4_minimal [NOTFOUND=return] dns",
            ),
            (
                "hosts: files resolve [ !UNAVAIL=return ] unbit dns",
                "resolve [ !UNAVAIL=return ] ends the search before unbit",
                "hosts: files unbit resolve [ !UNAVAIL=return ] dns",
            ),
            ("hosts: mdns4 unbit", "mdns4 is asked before unbit", "hosts: unbit mdns4"),
            ("hosts: dns files", "unbit is missing", "hosts: unbit dns files"),
            (
                "hosts: mdns4_minimal [NOTFOUND=return] files dns",
                "unbit is missing",
                "hosts: unbit mdns4_minimal [NOTFOUND=return] files dns",
            ),
            // Without an answer from ldap the files are asked, as before.
            ("passwd: ldap [NOTFOUND=return] files", "unbit is missing", "passwd: unbit ldap [NOTFOUND=return] files"),
            ("passwd: sss files", "unbit is missing", "passwd: sss files unbit"),
            ("passwd:\tfiles\r\n", "unbit is missing", "passwd:\tfiles unbit\r\n"),
        ] {
            assert_eq!(seen(line).as_deref(), Some(fault), "{line}");
            assert_eq!(fix_line(line), new);
        }
    }

    #[test]
    fn a_line_that_is_not_there_is_added() {
        assert_eq!(fault("#passwd: files unbit\n", "passwd").unwrap().seen, "there is no such line");
        assert_eq!(fixed("", "hosts"), "hosts:          files unbit dns\n");
        assert_eq!(fixed("group: files", "passwd"), "group: files\npasswd:         files unbit\n");
    }

    #[test]
    fn of_two_lines_both_are_fixed() {
        assert_eq!(
            fixed("passwd: files\nx\npasswd: compat\n", "passwd"),
            "passwd: files unbit\nx\npasswd: compat unbit\n"
        );
    }
}
