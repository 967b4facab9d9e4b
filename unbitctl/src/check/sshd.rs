//! Checks what sshd does with container users, by its effective configuration (`sshd -T`), see
//! sshd_config(5).

pub(crate) mod files;

use super::{distributions, pam};
use crate::command::{self, SSHD};
use crate::containers::{has_emperor, some_container};
use crate::report::{Finding, Profile, State};
use crate::rootfs::RootFs;
use crate::step::{Change, Choices, Step};
use anyhow::{Result, bail};
use files::{Directive, directives};
use shared::settings::{FIRST_UID, SHELL};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

pub const NAME: &str = "sshd";
const PAM_SERVICE: &str = "sshd";
const MAIN: &str = "/etc/ssh/sshd_config";
const DIRECTORY: &str = "/etc/ssh/sshd_config.d";
/// The first of its directory: sshd takes the first value that it reads.
const OURS: &str = "/etc/ssh/sshd_config.d/00-unbit.conf";
/// What is in it, where there was none.
const EXAMPLE: &str = include_str!("../../../examples/sshd_config.d-unbit.conf");
/// They affect all users, so set-up leaves them alone without `--keys-only`.
const PASSWORDS: [&str; 2] = ["PasswordAuthentication", "KbdInteractiveAuthentication"];
const WHY: &str = "sshd accepts or refuses a user before it asks pam_unbit";
const WHY_SHELL: &str = "sshd refuses an account whose shell does not exist on the node";

/// The output of `sshd -T`.
pub struct EffectiveConfig {
    /// Its keywords, in lower case, with the values of their lines.
    keywords: BTreeMap<String, Vec<String>>,
}

impl EffectiveConfig {
    pub(crate) fn parse(out: &str) -> Self {
        let mut keywords: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in out.lines() {
            let (keyword, value) = line.split_once(' ').unwrap_or((line, ""));
            keywords.entry(keyword.to_ascii_lowercase()).or_default().push(value.trim().to_owned());
        }
        Self { keywords }
    }

    /// The values of a keyword, one for each line that it has.
    pub(crate) fn each(&self, keyword: &str) -> &[String] {
        self.keywords.get(&keyword.to_ascii_lowercase()).map_or(&[], Vec::as_slice)
    }

    /// The value of a keyword; nothing if it has none.
    pub fn value(&self, keyword: &str) -> String {
        self.each(keyword).join(" ")
    }

    /// Whether a keyword names something.
    pub fn names(&self, keyword: &str) -> bool {
        !matches!(self.value(keyword).as_str(), "" | "none")
    }

    /// The command that runs instead of what the client asks for. internal-sftp counts, too: it is
    /// not what the client asked for.
    pub fn forced_command(&self) -> Option<String> {
        Some(self.value("ForceCommand")).filter(|_| self.names("ForceCommand"))
    }

    /// Where it would listen.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.each("ListenAddress").iter().filter_map(|address| address.parse().ok()).collect()
    }

    /// Whether it asks PAM, and by the name of the service that has our lines.
    pub fn asks_pam(&self) -> bool {
        self.faults_of_pam().next().is_none()
    }

    fn faults_of_pam(&self) -> impl Iterator<Item = (&'static Setting, String)> {
        faults(self).into_iter().filter(|(setting, _)| matches!(setting.keyword, "UsePAM" | "PAMServiceName"))
    }

    /// The keyword that refuses this user, as allowed_user() of OpenSSH's auth.c finds it. Patterns
    /// with @ depend on the address and are not counted.
    fn exclusion(&self, user: &str, group: &str) -> Option<String> {
        let names = |keyword: &str, with_an_address: bool| {
            let patterns = self.each(keyword).iter().flat_map(|value| value.split_whitespace());
            let mut counted = patterns.filter(|pattern| with_an_address || !pattern.contains('@'));
            let who = if keyword.ends_with("Groups") { group } else { user };
            counted.any(|pattern| matches(pattern.split('@').next().unwrap_or(pattern), who))
        };
        let denies = ["DenyUsers", "DenyGroups"].into_iter().find(|keyword| names(keyword, false));
        let mut allowing = ["AllowUsers", "AllowGroups"].into_iter();
        let keyword = denies.or_else(|| allowing.find(|keyword| self.names(keyword) && !names(keyword, true)))?;
        Some(format!("{keyword} {}: {user} is excluded", self.value(keyword)))
    }
}

/// A pattern of sshd's, in which * is any letters and ? any one (PATTERNS in ssh_config(5)).
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (mut letters, mut left) = (pattern.chars(), text.chars());
    // What is behind the last star, and the text that it need not cover. Earlier ones never have to
    // cover more than they do.
    let mut star = None;
    loop {
        let uncovered = left.clone();
        match (letters.next(), left.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                left = uncovered.clone();
                star = Some((letters.clone(), uncovered));
            }
            (Some(letter), Some(other)) if letter == '?' || letter == other => {}
            _ => {
                let Some((behind, uncovered)) = &mut star else { return false };
                if uncovered.next().is_none() {
                    return false;
                }
                (letters, left) = (behind.clone(), uncovered.clone());
            }
        }
    }
}

/// A keyword that must have a certain value.
struct Setting {
    /// The question that it bears on.
    profile: Profile,
    keyword: &'static str,
    state: State,
    good: fn(&str) -> bool,
    /// The value that it should have instead of this one.
    value: fn(&str) -> String,
    why: &'static str,
}

const SETTINGS: [Setting; 9] = [
    Setting {
        profile: Profile::Login,
        keyword: "UsePAM",
        state: State::Fail,
        good: |value| value == "yes",
        value: |_| "yes".to_owned(),
        why: "without PAM nothing but unbit in the shadow line of nsswitch.conf keeps container users from a session on the node",
    },
    Setting {
        profile: Profile::Login,
        keyword: "PAMServiceName",
        state: State::Fail,
        good: |value| matches!(value, "" | PAM_SERVICE), // sshd before 9.8 has no such keyword
        value: |_| PAM_SERVICE.to_owned(),
        why: "the lines of pam_unbit.so are in /etc/pam.d/sshd: with another service, container users get a session on the node",
    },
    Setting {
        profile: Profile::Login,
        keyword: "PubkeyAuthentication",
        state: State::Fail,
        good: |value| value == "yes",
        value: |_| "yes".to_owned(),
        why: "container users log in with keys: pam_unbit refuses their passwords",
    },
    KEYS_SETTING,
    Setting {
        profile: Profile::Guide,
        keyword: "PasswordAuthentication",
        state: State::Warn,
        good: |value| value == "no",
        value: |_| "no".to_owned(),
        why: "container users cannot log in with a password anyway, and passwords of other users can be guessed",
    },
    Setting {
        profile: Profile::Guide,
        keyword: "KbdInteractiveAuthentication",
        state: State::Warn,
        good: |value| value == "no",
        value: |_| "no".to_owned(),
        why: "it asks for passwords as well",
    },
    Setting {
        profile: Profile::Guide,
        keyword: "X11Forwarding",
        state: State::Warn,
        good: |value| value == "no",
        value: |_| "no".to_owned(),
        why: "it would give the container access to the client's display",
    },
    Setting {
        profile: Profile::Login,
        keyword: "ClientAliveInterval",
        state: State::Warn,
        good: |value| value.parse().is_ok_and(|seconds: u32| (1..=60).contains(&seconds)),
        value: |_| "30".to_owned(),
        why: "sessions of clients that have disappeared would stay open",
    },
    Setting {
        profile: Profile::Login,
        keyword: PENALTIES,
        state: State::Warn,
        good: |value| {
            // sshd before 9.8 has no such keyword.
            matches!(value, "" | "no") || value.split_whitespace().any(|penalty| penalty == "authfail:0")
        },
        value: |_| "authfail:0".to_owned(),
        why: "sshd counts a login to a stopped container as a failed authentication, and after four of them accepts no connection from that address, root's included",
    },
];

const PENALTIES: &str = "PerSourcePenalties";

const KEYS: &str = "AuthorizedKeysFile";

const KEYS_SETTING: Setting = Setting {
    profile: Profile::Guide,
    keyword: KEYS,
    state: State::Fail,
    good: |value| missing_keys_files(value).is_empty(),
    value: |value| {
        let named = value.split_whitespace().filter(|file| *file != "none");
        named.chain(missing_keys_files(value)).collect::<Vec<_>>().join(" ")
    },
    why: "keys that customers set through the API are in .ssh/uwsgi_authorized_keys, keys that they add in the container in .ssh/authorized_keys",
};

const KEYS_FILES: [&str; 2] = [".ssh/authorized_keys", ".ssh/uwsgi_authorized_keys"];

/// Those of the files of keys that a value does not name.
fn missing_keys_files(value: &str) -> Vec<&'static str> {
    let named: Vec<_> = value.split_whitespace().map(|file| file.trim_start_matches("%h/")).collect();
    KEYS_FILES.into_iter().filter(|file| !named.contains(file)).collect()
}

pub const STEP: Step = Step {
    guide: check_guide,
    needs: &[pam::NAME], // which sshd asks from then on about everybody
    validate,
    warning,
    follow_up: "to make sshd read its files again: systemctl reload ssh",
    ..Step::new(NAME, check, fix)
};

/// What the guide asks for in addition. [`check`] reports an sshd that cannot be asked.
pub fn check_guide(node: &RootFs) -> Vec<Finding> {
    let config = node.has(SSHD).then(|| effective_config(node, &any_user(node)).ok()).flatten();
    config.map(|config| judge_guide(node, &config)).unwrap_or_default()
}

pub fn check(node: &RootFs) -> Vec<Finding> {
    let mut findings = Vec::new();
    if node.has(SSHD) {
        if nix::unistd::geteuid().is_root() {
            match effective_config(node, &any_user(node)) {
                Ok(config) => findings.extend(judge(node, &config)),
                Err(error) => {
                    findings.push(Finding::fail(NAME, WHY, format!("{error:#}"), format!("fix {MAIN}, then: sshd -t")));
                }
            }
        } else {
            findings.push(Finding::not_applicable(NAME, WHY, "root is needed to see what sshd is configured to do"));
        }
        findings.push(shell(node));
    } else if node.is_running() {
        findings.push(Finding::fail(NAME, WHY, format!("there is no {SSHD}"), "install openssh-server"));
    } else {
        findings.push(Finding::not_applicable(NAME, WHY, format!("there is no {SSHD}")));
    }
    findings
}

/// Whether sshd, if it is there, asks PAM, and by the name of the service that has our lines; or
/// will, once it is `fixed`.
pub fn uses_pam(node: &RootFs, fixed: bool) -> Result<bool> {
    if !node.has(SSHD) {
        return Ok(true);
    }
    let config = effective_config(node, &any_user(node))?;
    Ok(config.faults_of_pam().all(|(setting, value)| fixed && cannot_fix(node, setting, &value).is_none()))
}

/// Whether sshd will use PAM after files are replaced: each pair is a path and the file that will
/// be there, if any.
pub fn will_use_pam(node: &RootFs, instead: &[(PathBuf, Option<PathBuf>)]) -> Result<bool> {
    if !node.has(SSHD) {
        return Ok(true);
    }
    Ok(effective_config_with(node, &any_user(node), instead)?.asks_pam())
}

/// A container's user, any of them.
fn any_user(node: &RootFs) -> String {
    some_container(node).map_or(FIRST_UID, |container| container.get()).to_string()
}

/// sshd's effective configuration for a user, whatever the address.
pub fn effective_config(node: &RootFs, user: &str) -> Result<EffectiveConfig> {
    effective_config_with(node, user, &[])
}

fn effective_config_with(node: &RootFs, user: &str, instead: &[(PathBuf, Option<PathBuf>)]) -> Result<EffectiveConfig> {
    crate::command_line::root_or("root is needed to ask sshd what it is configured to do")?;
    let who = format!("user={user},host=client.invalid,addr=192.0.2.1,laddr=192.0.2.2,lport=22");
    let answer = command::run_sshd_with(node, instead, &["-T", "-C", &who])?;
    if !answer.succeeded() {
        bail!("sshd -T: {}", answer.error_summary());
    }
    Ok(EffectiveConfig::parse(&answer.out))
}

/// The settings with a wrong value, and that value.
fn faults(config: &EffectiveConfig) -> Vec<(&'static Setting, String)> {
    let with_value = SETTINGS.iter().map(|setting| (setting, config.value(setting.keyword)));
    with_value.filter(|(setting, value)| !(setting.good)(value)).collect()
}

fn judge(node: &RootFs, config: &EffectiveConfig) -> Vec<Finding> {
    let mut findings = judge_settings(node, config, Profile::Login);
    if has_no_keys(config) {
        let why = "container users log in with keys, and sshd looks for none";
        let seen = format!("{KEYS} {}, and neither AuthorizedKeysCommand nor TrustedUserCAKeys", config.value(KEYS));
        let fix = cannot_fix(node, &KEYS_SETTING, &config.value(KEYS)).unwrap_or_else(|| node.setup_command(NAME));
        findings.push(Finding::fail(NAME, why, seen, fix));
    }
    findings.extend(judge_sftp(node, config));
    findings.extend(obstacles(config, &any_user(node), &any_user(node)));
    if findings.is_empty() {
        findings.push(Finding::ok(NAME, WHY, "sshd -T has the right values for container users"));
    }
    findings
}

fn judge_guide(node: &RootFs, config: &EffectiveConfig) -> Vec<Finding> {
    let mut findings = judge_settings(node, config, Profile::Guide);
    if !internal_sftp(config) {
        let why = "sftp then needs no sftp-server in any distribution";
        let seen = sftp(config).map_or_else(|| NO_SFTP.to_owned(), |command| format!("Subsystem sftp {command}"));
        findings.push(Finding::warn(NAME, why, seen, node.guide_setup_command(NAME)));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(NAME, WHY, "sshd -T has the values of the guide"));
    }
    findings
}

fn judge_settings(node: &RootFs, config: &EffectiveConfig, profile: Profile) -> Vec<Finding> {
    let faults = faults(config).into_iter().filter(|(setting, _)| setting.profile == profile);
    let finding = |(setting, value): (&Setting, String)| {
        let seen = format!("{} {value}", setting.keyword);
        let fix = cannot_fix(node, setting, &value).unwrap_or_else(|| setup_of(node, setting));
        Finding::new(NAME, setting.state, setting.why, seen, Some(fix))
    };
    faults.map(finding).collect()
}

/// The command that sets it.
fn setup_of(node: &RootFs, setting: &Setting) -> String {
    match setting.profile {
        _ if PASSWORDS.contains(&setting.keyword) => node.setup_command("--keys-only sshd"),
        Profile::Guide => node.guide_setup_command(NAME),
        Profile::Login => node.setup_command(NAME),
    }
}

/// Whether sshd looks for keys nowhere.
fn has_no_keys(config: &EffectiveConfig) -> bool {
    ![KEYS, "AuthorizedKeysCommand", "TrustedUserCAKeys"].iter().any(|keyword| config.names(keyword))
}

const NO_SFTP: &str = "there is no Subsystem sftp";

/// Whether sftp and scp find a server: sshd's own, or the program that it names in each
/// distribution. What other engines' containers have is not seen from here.
fn judge_sftp(node: &RootFs, config: &EffectiveConfig) -> Option<Finding> {
    let why = "sftp and scp do not work";
    let Some(command) = sftp(config) else { return Some(Finding::warn(NAME, why, NO_SFTP, node.setup_command(NAME))) };
    let program = command.split_whitespace().next().filter(|_| !internal_sftp(config))?;
    let lacking = if has_emperor(node) { distributions::lacking_program(node, program) } else { Vec::new() };
    (!lacking.is_empty()).then(|| {
        let seen = format!("Subsystem sftp {command}, which is not in {}", lacking.join(" "));
        Finding::warn(NAME, why, seen, node.setup_command(NAME))
    })
}

/// What keeps a container user out, and the manual fix: somebody has configured it. The name of the
/// group is the number.
pub fn obstacles(config: &EffectiveConfig, user: &str, group: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |why, seen, fix| findings.push(Finding::fail(NAME, why, seen, fix));
    if let Some(seen) = config.exclusion(user, group) {
        let pattern = if user == group { "3*" } else { user };
        let fix = format!(
            "allow the names or groups of your containers there, in {MAIN}, such as AllowUsers {pattern}: see sshd_config(5)"
        );
        found("a user whom sshd refuses cannot reach a container", seen, fix);
    }
    if config.value("RefuseConnection") == "yes" {
        let fix = format!("keep it from container users: RefuseConnection no in a Match block for them, in {MAIN}");
        found("sshd ends the connection at once", "RefuseConnection yes".to_owned(), fix);
    }
    let methods = config.value("AuthenticationMethods");
    if !methods.is_empty() && !methods.split_whitespace().any(|method| matches!(method, "any" | "publickey")) {
        let fix = format!(
            "let container users in with publickey only: Match Group 3* (or the groups of your containers), AuthenticationMethods publickey, at the end of {MAIN}"
        );
        found("container users have only keys", format!("AuthenticationMethods {methods}"), fix);
    }
    if config.names("ChrootDirectory") {
        let fix = format!(
            "keep it from container users: ChrootDirectory none in a Match block for them, before the other Match block, in {MAIN}"
        );
        let why = "sshd must be root for it, but the sessions of container users have given up root by then, so they are refused";
        found(why, format!("ChrootDirectory {}", config.value("ChrootDirectory")), fix);
    }
    findings
}

fn sftp(config: &EffectiveConfig) -> Option<&str> {
    config.each("Subsystem").iter().find_map(|subsystem| subsystem.strip_prefix("sftp "))
}

fn internal_sftp(config: &EffectiveConfig) -> bool {
    sftp(config).is_some_and(|command| command.split_whitespace().next() == Some("internal-sftp"))
}

/// The accounts' shell.
fn shell(node: &RootFs) -> Finding {
    let Ok(file) = node.open(SHELL).map(File::from) else {
        return Finding::fail(NAME, WHY_SHELL, format!("there is no {SHELL}"), format!("install the shell {SHELL}"));
    };
    if file.metadata().is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0) {
        Finding::ok(NAME, WHY_SHELL, format!("{SHELL} is there"))
    } else {
        Finding::fail(NAME, WHY_SHELL, format!("{SHELL} cannot be run"), format!("reinstall the shell {SHELL}"))
    }
}

/// The manual fix, if a file of ours would have no effect.
fn cannot_fix(node: &RootFs, setting: &Setting, value: &str) -> Option<String> {
    let read = |path: &str| node.read(path).ok().flatten();
    let line = format!("{} {}", setting.keyword, (setting.value)(value));
    let with_ours = |path: &str| if path == OURS { Some(line.clone()) } else { read(path) };
    let list = |directory: &str| {
        let mut names = list(node, directory);
        if directory == DIRECTORY && !names.iter().any(|name| OURS.ends_with(name.as_str())) {
            names.push(OURS.trim_start_matches(DIRECTORY).trim_start_matches('/').to_owned());
        }
        names
    };
    let obstacle = match overriding_match(&directives(&read, &list, MAIN), setting) {
        Some(conditional) => Some(conditional),
        None => takes_effect(&directives(&with_ours, &list, MAIN), setting.keyword).err()?,
    };
    Some(match obstacle {
        Some(directive) => format!("in {} line {}: {line}", directive.file, directive.line),
        None => format!("at the top of {MAIN}: Include {DIRECTORY}/*.conf\nthen: {}", setup_of(node, setting)),
    })
}

/// The directive in a Match block that decides although the value outside of it is good.
fn overriding_match(directives: &[Directive], setting: &Setting) -> Option<Directive> {
    let mut about = directives.iter().filter(|directive| directive.keyword.eq_ignore_ascii_case(setting.keyword));
    about.clone().find(|directive| !directive.conditional).filter(|first| (setting.good)(&first.value))?;
    about.find(|directive| directive.conditional && !(setting.good)(&directive.value)).cloned()
}

/// Whether a line decides about a keyword. The lines of PerSourcePenalties add up: the first that
/// names a penalty decides about it.
fn is_about(keyword: &str, of_line: &str, value: &str) -> bool {
    keyword.eq_ignore_ascii_case(of_line)
        && (keyword != PENALTIES || value.split_whitespace().any(|penalty| penalty.starts_with("authfail:")))
}

/// Whether our own file decides for everybody; otherwise the directive that does, or `None` if our
/// file is not read.
fn takes_effect(directives: &[Directive], keyword: &str) -> Result<(), Option<Directive>> {
    let mut about = directives.iter().filter(|directive| is_about(keyword, &directive.keyword, &directive.value));
    let is_read = about.clone().any(|directive| directive.file == OURS);
    match about.find(|directive| !directive.conditional) {
        Some(first) if first.file == OURS => Ok(()),
        first => Err(first.cloned().filter(|_| is_read)),
    }
}

fn list(node: &RootFs, directory: &str) -> Vec<String> {
    let entries = node.resolve(directory).and_then(std::fs::read_dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn fix(node: &RootFs, choices: Choices) -> Result<Vec<Change>> {
    if !node.has(SSHD) {
        return Ok(Vec::new());
    }
    let config = effective_config(node, &any_user(node))?;
    let mut lines: Vec<_> = faults(&config)
        .into_iter()
        .filter(|(setting, _)| is_chosen(setting, &config, choices))
        .filter(|(setting, value)| cannot_fix(node, setting, value).is_none())
        .map(|(setting, value)| (setting.keyword, (setting.value)(&value)))
        .collect();
    let mut changes = Vec::new();
    if judge_sftp(node, &config).is_some() || choices.guide && !internal_sftp(&config) {
        let read = |path: &str| node.read(path).ok().flatten();
        let directives = directives(&read, &|directory| list(node, directory), MAIN);
        let defined = directives.iter().find(|directive| {
            directive.keyword.eq_ignore_ascii_case("Subsystem")
                && directive.value.split_whitespace().next() == Some("sftp")
        });
        match defined {
            // Two of them are an error, so the one that is there is changed.
            Some(directive) => {
                let text = read(&directive.file).unwrap_or_default();
                changes.push(Change::File {
                    path: directive.file.clone(),
                    content: with_internal_sftp(&text, directive),
                    mode: 0o644,
                });
            }
            None => lines.push(("Subsystem", "sftp internal-sftp".to_owned())),
        }
    }
    if !lines.is_empty() {
        let old = match changes.iter().find(|change| matches!(change, Change::File { path, .. } if path == OURS)) {
            Some(Change::File { content, .. }) => content.clone(),
            _ => node.read(OURS)?.unwrap_or_else(|| example(choices.keys_only)),
        };
        changes.retain(|change| !matches!(change, Change::File { path, .. } if path == OURS));
        changes.push(Change::File { path: OURS.to_owned(), content: with_lines(&old, &lines), mode: 0o644 });
    }
    Ok(changes)
}

/// Whether the operator has chosen to change a setting.
fn is_chosen(setting: &Setting, config: &EffectiveConfig, choices: Choices) -> bool {
    match setting.keyword {
        keyword if PASSWORDS.contains(&keyword) => choices.keys_only,
        KEYS if has_no_keys(config) => true,
        _ => choices.guide || setting.profile == Profile::Login,
    }
}

/// Our file as examples/ has it, without the lines about passwords unless they are wished for.
fn example(keys_only: bool) -> String {
    let is_left_out = |line: &str| !keys_only && PASSWORDS.iter().any(|keyword| line.starts_with(keyword));
    EXAMPLE.lines().map(|line| format!("{}{line}\n", if is_left_out(line) { "#" } else { "" })).collect()
}

/// Whether sshd takes passwords from somebody.
pub fn takes_passwords(node: &RootFs) -> bool {
    let config = node.has(SSHD).then(|| effective_config(node, &any_user(node)).ok()).flatten();
    config.is_some_and(|config| PASSWORDS.iter().any(|keyword| config.value(keyword) == "yes"))
}

/// Who has no key is shut out, and there may be nobody else at the machine.
fn warning(node: &RootFs, choices: Choices) -> Vec<String> {
    if !choices.keys_only || !takes_passwords(node) {
        return Vec::new();
    }
    let mut lines = vec![
        "passwords: sshd will refuse all passwords, root's included, as soon as it reads its files again".to_owned(),
    ];
    let keys = ["/root/.ssh/authorized_keys", "/root/.ssh/authorized_keys2"];
    if !keys.iter().any(|file| node.read_bytes(file).is_ok_and(|text| !text.trim_ascii().is_empty())) {
        lines.push("passwords: root has no key on this node (/root/.ssh/authorized_keys): add one, and keep this session open until you have logged in with it".to_owned());
    }
    lines
}

/// sshd reads its files without an error.
fn validate(node: &RootFs) -> Result<()> {
    if !node.has(SSHD) {
        return Ok(());
    }
    let answer = command::run_sshd(node, &["-t"])?;
    if !answer.succeeded() {
        bail!("sshd -t: {}", answer.error_summary());
    }
    Ok(())
}

/// The text with these lines: each in the place of the first for the same keyword, or of one that
/// is commented out, else at the end.
pub(crate) fn with_lines(old: &str, lines: &[(&str, String)]) -> String {
    let about = |line: &str| {
        let keyword = line.split([' ', '\t', '=']).find(|word| !word.is_empty()).unwrap_or_default();
        lines.iter().find(|(ours, _)| *ours != "Subsystem" && is_about(ours, keyword, line))
    };
    let has_one = |keyword: &str| old.lines().any(|line| about(line).is_some_and(|(ours, _)| *ours == keyword));
    let (mut text, mut placed) = (String::new(), Vec::new());
    for line in old.lines() {
        let commented = line.strip_prefix('#').and_then(about).filter(|(keyword, _)| !has_one(keyword));
        match about(line).or(commented) {
            Some((keyword, value)) if !placed.contains(keyword) => {
                text.push_str(&format!("{keyword} {value}\n"));
                placed.push(keyword);
            }
            Some(_) if about(line).is_some() => {}
            _ => text.push_str(&format!("{line}\n")),
        }
    }
    for (keyword, value) in lines.iter().filter(|(keyword, _)| !placed.contains(keyword)) {
        text.push_str(&format!("{keyword} {value}\n"));
    }
    text
}

/// The text with sshd's own sftp server instead of a program; its options are the same.
fn with_internal_sftp(text: &str, directive: &Directive) -> String {
    let options: String = directive.value.split_whitespace().skip(2).map(|word| format!(" {word}")).collect();
    let line = |(number, line): (usize, &str)| {
        if number + 1 == directive.line {
            format!("Subsystem\tsftp\tinternal-sftp{options}\n")
        } else {
            format!("{line}\n")
        }
    };
    text.lines().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faulty(out: &str) -> Vec<&'static str> {
        faults(&EffectiveConfig::parse(out)).into_iter().map(|(setting, _)| setting.keyword).collect()
    }

    const GOOD: &str = "usepam yes\npubkeyauthentication yes\nauthorizedkeysfile .ssh/authorized_keys .ssh/uwsgi_authorized_keys\n\
        passwordauthentication no\nkbdinteractiveauthentication no\nx11forwarding no\nclientaliveinterval 30\n\
        subsystem sftp internal-sftp -l INFO\n";

    #[test]
    fn each_setting_is_judged_by_itself() {
        assert_eq!(faulty(GOOD), [""; 0]);
        assert!(internal_sftp(&EffectiveConfig::parse(GOOD)));
        for (old, new, keyword) in [
            ("usepam yes", "usepam no", "UsePAM"),
            ("pubkeyauthentication yes", "pubkeyauthentication no", "PubkeyAuthentication"),
            (" .ssh/uwsgi_authorized_keys", " .ssh/authorized_keys2", "AuthorizedKeysFile"),
            (".ssh/authorized_keys ", "/etc/keys/%u ", "AuthorizedKeysFile"),
            ("passwordauthentication no", "passwordauthentication yes", "PasswordAuthentication"),
            ("kbdinteractiveauthentication no", "kbdinteractiveauthentication yes", "KbdInteractiveAuthentication"),
            ("x11forwarding no", "x11forwarding yes", "X11Forwarding"),
            ("clientaliveinterval 30", "clientaliveinterval 0", "ClientAliveInterval"),
        ] {
            assert_eq!(faulty(&GOOD.replacen(old, new, 1)), [keyword]);
        }
        assert_eq!(faulty(&format!("{GOOD}pamservicename sshd\n")), [""; 0]);
        assert_eq!(faulty(&format!("{GOOD}pamservicename other\n")), ["PAMServiceName"]);
        for (penalties, fault) in [
            ("no", &[][..]),
            ("crash:90 authfail:0 noauth:1", &[]),
            ("crash:90 authfail:5 noauth:1", &["PerSourcePenalties"]),
        ] {
            assert_eq!(faulty(&format!("{GOOD}persourcepenalties {penalties}\n")), fault, "{penalties}");
        }
        assert!(!internal_sftp(&EffectiveConfig::parse("subsystem sftp /usr/lib/openssh/sftp-server")));
    }

    #[test]
    fn whom_sshd_does_not_let_in() {
        for (out, is_out) in [
            ("", false),
            ("allowusers alice", true),
            ("allowusers alice\nallowusers 3*", false),
            ("allowusers 3000?", false),
            ("allowusers 3?", true),
            ("allowusers *@10.0.0.1", false), // from there
            ("allowusers alice@*", true),
            ("allowgroups ssh sftp", true),
            ("allowgroups ssh\nallowgroups *1", false),
            ("denyusers 30002", false),
            ("denyusers *@10.0.0.1", false),
            ("denyusers 300*\nallowusers 30001", true),
            ("denygroups *", true),
            ("allowusers 30001\nallowgroups ssh", true),
        ] {
            assert_eq!(EffectiveConfig::parse(out).exclusion("30001", "30001").is_some(), is_out, "{out}");
        }
        assert_eq!(
            EffectiveConfig::parse("allowusers a\nallowusers b").exclusion("1", "1").unwrap(),
            "AllowUsers a b: 1 is excluded"
        );
        let by_name = |out: &str| EffectiveConfig::parse(out).exclusion("web1", "30001").is_some();
        assert!(by_name("denyusers web*") && by_name("denygroups 30001") && by_name("allowusers 3*"));
        assert!(!by_name("denyusers 30001") && !by_name("allowgroups 3*") && !by_name("denygroups web1"));
    }

    #[test]
    fn files_of_keys_that_others_want_stay() {
        let setting = SETTINGS.iter().find(|setting| setting.keyword == "AuthorizedKeysFile").unwrap();
        assert_eq!(
            (setting.value)("/etc/k/%u .ssh/authorized_keys"),
            "/etc/k/%u .ssh/authorized_keys .ssh/uwsgi_authorized_keys"
        );
        assert!((setting.good)("%h/.ssh/authorized_keys %h/.ssh/uwsgi_authorized_keys"));
        assert_eq!((setting.value)("none"), ".ssh/authorized_keys .ssh/uwsgi_authorized_keys");
    }

    #[test]
    fn where_sshd_looks_for_keys() {
        for (config, none) in [
            ("authorizedkeysfile none\nauthorizedkeyscommand none\ntrustedusercakeys none\n", true),
            ("authorizedkeysfile none\nauthorizedkeyscommand /usr/bin/keys %u\n", false),
            ("authorizedkeysfile none\ntrustedusercakeys /etc/ssh/ca.pub\n", false),
            ("authorizedkeysfile /etc/ssh/keys/%u\n", false),
        ] {
            assert_eq!(has_no_keys(&EffectiveConfig::parse(config)), none, "{config}");
        }
    }

    /// What decides about X11Forwarding, as file and line.
    fn decides(files: &[(&str, &str)]) -> Result<(), Option<String>> {
        decides_about("X11Forwarding", files)
    }

    fn decides_about(keyword: &str, files: &[(&str, &str)]) -> Result<(), Option<String>> {
        let read = |path: &str| files.iter().find(|(file, _)| *file == path).map(|(_, text)| (*text).to_owned());
        let names = |_: &str| {
            files.iter().filter_map(|(file, _)| Some(file.strip_prefix(DIRECTORY)?[1..].to_owned())).collect()
        };
        let directives = directives(&read, &names, MAIN);
        let setting = SETTINGS.iter().find(|setting| setting.keyword == keyword).unwrap();
        let decided = overriding_match(&directives, setting)
            .map_or_else(|| takes_effect(&directives, keyword), |found| Err(Some(found)));
        decided.map_err(|obstacle| obstacle.map(|directive| format!("{}:{}", directive.file, directive.line)))
    }

    #[test]
    fn the_first_value_wins_and_a_match_before_it() {
        const INCLUDE: &str = "# Debian's\nInclude /etc/ssh/sshd_config.d/*.conf\nX11Forwarding yes\n";
        let ours = (OURS, "X11Forwarding no\n");
        assert_eq!(decides(&[(MAIN, INCLUDE), ours]), Ok(()));
        assert_eq!(
            decides(&[(MAIN, INCLUDE), ours, ("/etc/ssh/sshd_config.d/50-cloud-init.conf", "x11forwarding=yes\n")]),
            Ok(())
        );
        assert_eq!(decides(&[(MAIN, "X11Forwarding yes\n"), ours]), Err(None));
        let after = "X11Forwarding yes\nInclude /etc/ssh/sshd_config.d/*.conf\n";
        assert_eq!(decides(&[(MAIN, after), ours]), Err(Some(format!("{MAIN}:1"))));
        let first = "/etc/ssh/sshd_config.d/0-first.conf";
        assert_eq!(decides(&[(MAIN, INCLUDE), ours, (first, "X11Forwarding\tyes\n")]), Err(Some(format!("{first}:1"))));
        let conditional = format!("{INCLUDE}Match User 3*\n  X11Forwarding yes\n");
        assert_eq!(decides(&[(MAIN, &conditional), ours]), Err(Some(format!("{MAIN}:5"))));
        let ends = "/etc/ssh/sshd_config.d/x.conf";
        assert_eq!(
            decides(&[(MAIN, INCLUDE), ours, (ends, "Match all\nX11Forwarding no\n")]),
            Ok(()),
            "a match ends with its file"
        );
    }

    #[test]
    fn the_lines_of_per_source_penalties_add_up() {
        const INCLUDE: &str = "Include /etc/ssh/sshd_config.d/*.conf\n";
        let ours = (OURS, "PerSourcePenalties authfail:0\n");
        let first = "/etc/ssh/sshd_config.d/0-first.conf";
        for (before, decided) in [
            ("PerSourcePenalties crash:1h\n", Ok(())),
            ("PerSourcePenalties yes\n", Ok(())),
            ("PerSourcePenalties crash:1h authfail:30\n", Err(Some(format!("{first}:1")))),
        ] {
            assert_eq!(decides_about(PENALTIES, &[(MAIN, INCLUDE), ours, (first, before)]), decided, "{before}");
        }
    }

    #[test]
    fn lines_are_put_in_the_place_of_old_ones() {
        let new = with_lines(
            "# mine\nX11Forwarding yes\nMaxSessions 3\n",
            &[("X11Forwarding", "no".into()), ("UsePAM", "yes".into())],
        );
        assert_eq!(new, "# mine\nX11Forwarding no\nMaxSessions 3\nUsePAM yes\n");
        let new = with_lines(
            "#UsePAM yes\n#X11Forwarding no\nX11Forwarding yes\n",
            &[("X11Forwarding", "no".into()), ("UsePAM", "yes".into())],
        );
        assert_eq!(new, "UsePAM yes\n#X11Forwarding no\nX11Forwarding no\n");
        let new = with_lines(
            "PerSourcePenalties crash:1h\npersourcepenalties authfail:30\n",
            &[("PerSourcePenalties", "authfail:0".into())],
        );
        assert_eq!(new, "PerSourcePenalties crash:1h\nPerSourcePenalties authfail:0\n");
        let text = "# x\nSubsystem\tsftp\t/usr/lib/openssh/sftp-server -l INFO\nMatch all\n";
        let read = |_: &str| Some(text.to_owned());
        let directives = directives(&read, &|_| Vec::new(), MAIN);
        assert_eq!(
            with_internal_sftp(text, &directives[0]),
            "# x\nSubsystem\tsftp\tinternal-sftp -l INFO\nMatch all\n"
        );
    }
}
