//! `unbitctl create`: makes a container that the Emperor runs, from its directory to the first
//! login.
//!
//! Everything that can be checked is checked before anything is made. From then on each step
//! records how it is undone. If a step fails or the operator interrupts the command, all steps are
//! undone, the last one first; what existed before stays. A second run skips the steps that are
//! done.

mod undo;

use crate::check;
use crate::check::distributions::{DISTRIBUTIONS, NEEDED};
use crate::command_line::must_be_root;
use crate::containers::{VASSALS, has_vassal};
use crate::emperor::{self, Emperor};
use crate::interrupt::Interrupt;
use crate::keys::{self, Key};
use crate::leftovers;
use crate::list::processes::Processes;
use crate::lock::Lock;
use crate::names::Account;
use crate::progress::{Done, Progress};
use crate::quota;
use crate::report::{self, Finding, Format, State};
use crate::rootfs::RootFs;
use crate::shell::quoted;
use crate::vassal::{self, Choice};
use anyhow::{Context, Result, bail};
use join::{link, regular_file};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Uid, User};
use serde::Serialize;
use shared::ContainerUid;
use shared::settings::CONTAINERS;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use undo::{Step, Undo};

pub const EXAMPLES: &str = "\
Examples:
  unbitctl create 30001 --key ~/.ssh/id_ed25519.pub
  unbitctl create 30001 --memory 2G --cpus 0.5      change the limits of a container
  ssh-add -L | unbitctl create 30002 --key - --distribution trixie --disk 10G";

#[derive(clap::Args)]
pub struct Arguments {
    /// The container: its number, or a second name that it has
    #[arg(value_name = "UID", value_parser = Account::parse)]
    account: Account,
    /// A file with public keys of its user, or - for standard input; may be given several times
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// Make it without a key: nobody can log in until one is added
    #[arg(long, conflicts_with = "keys")]
    without_key: bool,
    /// The directory of /distros that it starts from (default: the only one, or base)
    #[arg(long, value_name = "NAME", value_parser = distribution)]
    distribution: Option<String>,
    /// Its memory limit, such as 512M (default: 1G)
    #[arg(long, value_name = "SIZE", value_parser = vassal::parse_memory)]
    memory: Option<u64>,
    /// Its limit on processes and threads (default: 1000)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(10..=4_194_304))]
    pids: Option<u64>,
    /// The number of processors that it may use, such as 0.5 (default: as /etc/uwsgi/cgroup.ini
    /// says)
    #[arg(long, value_name = "NUMBER", value_parser = vassal::parse_cpus)]
    cpus: Option<u64>,
    /// Its limit on disk space, such as 10G, and one on files in proportion, if /containers has
    /// user quotas
    #[arg(long, value_name = "SIZE", value_parser = vassal::parse_size)]
    disk: Option<u64>,
    /// Give up after this many seconds if it has not started
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The name of a directory in /distros.
pub fn distribution(text: &str) -> Result<String, String> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    if !text.is_empty() && text.len() < 100 && !text.starts_with(['.', '-']) && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("the name of a directory in /distros is needed, of letters, digits and . _ -".to_owned())
    }
}

/// What is written to standard output with --json.
#[derive(Serialize)]
struct JsonOutput<'a> {
    uid: u32,
    /// Whether anything was made or changed.
    changed: bool,
    steps: &'a [Done],
    check: &'a [Finding],
    /// What its user types.
    login: &'a str,
    seconds: f64,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    must_be_root("create")?;
    let began = Instant::now();
    arguments.account.uid().with_context(|| {
        let name = &arguments.account;
        format!("create needs a number, not the name {name}: create the number, then unbitctl attach UID --name {name}")
    })?;
    umask(Mode::S_IWGRP | Mode::S_IWOTH); // whatever the caller's: everybody looks up what is made in /containers
    let (uid, _lock) = Lock::of_container(&arguments.account)?;
    let plan = Plan::make(arguments, uid)?;
    let interrupt = Interrupt::hold()?;
    let mut progress = Progress::new(arguments.json);
    let mut undo = Undo::new(uid);
    let findings = match plan.carry_out(&interrupt, &mut progress, &mut undo) {
        Ok(findings) => findings,
        Err(Failed { error, findings }) => {
            progress.now("");
            if !arguments.json {
                // Whether or not it can be written, everything is undone.
                let _ = report::show(&findings, Format::new(false));
            }
            let undone = undo.run();
            return Err(error.context(format!("create {uid} failed; {undone}")));
        }
    };
    let login = plan.login();
    if arguments.json {
        let seconds = (began.elapsed().as_secs_f64() * 100.0).round() / 100.0;
        let (steps, changed) = (progress.done(), progress.has_changed());
        let output = JsonOutput { uid: uid.get(), changed, steps, check: &findings, login: &login, seconds };
        report::print(&(serde_json::to_string_pretty(&output)? + "\n"))?;
    } else {
        progress.text(&format!("{login}\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// A step that failed, with what the check of the login found.
struct Failed {
    error: anyhow::Error,
    findings: Vec<Finding>,
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self { error, findings: Vec::new() }
    }
}

/// Everything that is known before anything is changed.
struct Plan<'a> {
    arguments: &'a Arguments,
    uid: ContainerUid,
    home: PathBuf,
    keys: Vec<Key>,
    vassal: PathBuf,
    /// The present and the new content of the vassal.
    old: Option<String>,
    new: String,
    quota: quota::State,
    emperor: Emperor,
}

impl<'a> Plan<'a> {
    fn make(arguments: &'a Arguments, uid: ContainerUid) -> Result<Self> {
        let node = RootFs::at(None);
        let home = PathBuf::from(uid.home().as_c_str().to_string_lossy().into_owned());
        let keys = keys::read_all(&arguments.keys)?;
        must_not_be_taken(uid, &home)?;
        if arguments.keys.is_empty() && !arguments.without_key && !(home.exists() && keys::any(uid)?) {
            bail!("without a key nobody could log in to {uid}: give --key FILE, or --without-key if a key comes later");
        }
        let emperor = Emperor::find(&node)?;
        let vassal = Path::new(VASSALS).join(format!("{uid}.ini"));
        let old = read_vassal(uid, &vassal)?;
        let mut choice = Choice {
            memory: arguments.memory,
            pids: arguments.pids,
            cpu: arguments.cpus,
            distribution: arguments.distribution.clone(),
        };
        let used = old.as_deref().map(vassal::settings).unwrap_or_default().distribution;
        if old.is_none() {
            choice.distribution = Some(chosen_distribution(arguments.distribution.as_deref())?);
        }
        // An existing vassal's distribution is checked, too.
        if let Some(name) = choice.distribution.as_ref().or(used.as_ref()) {
            must_be_complete(name)?;
        }
        if choice.cpu.is_some() {
            emperor::must_limit_processors(&node)?;
        }
        let new = match &old {
            None => vassal::from_template(&choice)?,
            Some(old) => vassal::change(old, &choice)
                .with_context(|| format!("{} is not as unbitctl makes it: change it by hand", vassal.display()))?,
        };
        let quota = quota::state(&node, uid)?;
        if arguments.disk.is_some() {
            quota.must_be_on()?;
        }
        Ok(Self { arguments, uid, home, keys, vassal, old, new, quota, emperor })
    }

    fn carry_out(
        &self,
        interrupt: &Interrupt,
        progress: &mut Progress,
        undo: &mut Undo,
    ) -> Result<Vec<Finding>, Failed> {
        self.make_directory(progress, undo)?;
        interrupt.check()?;
        self.write_keys(progress, undo)?;
        interrupt.check()?;
        self.limit_disk(progress, undo)?;
        self.must_let_in()?;
        interrupt.check()?;
        let before = self.running()?;
        let was_written = self.write_vassal(progress, undo)?;
        let started = Instant::now();
        if let Some(what) = self.emperor.start()? {
            undo.push(Step::Service(what));
            progress.changed("emperor", what.description());
        }
        let findings = self.wait(interrupt, progress, if was_written { before } else { None })?;
        let pid = self.running()?.map_or_else(String::new, |pid| format!("its pid 1 is process {pid} on this node"));
        match (was_written, started.elapsed().as_secs_f64()) {
            (true, seconds) => progress.changed("start", format!("{pid}, after {seconds:.1} s")),
            _ => progress.found("start", pid),
        }
        progress.found("check", summary(&findings));
        Ok(findings)
    }

    fn make_directory(&self, progress: &mut Progress, undo: &mut Undo) -> Result<()> {
        let shown = self.home.display();
        if self.home.symlink_metadata().is_ok() {
            progress.found("directory", format!("{shown}: exists"));
            return Ok(());
        }
        // A container that had this number before may have been removed by hand.
        leftovers::remove(self.uid).context("remove what the node keeps of an earlier user of this number")?;
        // Complete before it has its name, from which on it is an account.
        let new = Path::new(CONTAINERS).join(format!(".{}.unbitctl", self.uid));
        match fs::remove_dir(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| new.display().to_string());
            }
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&new).with_context(|| new.display().to_string())?;
        let id = Some(self.uid.get());
        let made = chown(&new, id, id)
            .and_then(|()| fs::set_permissions(&new, Permissions::from_mode(0o755)))
            .and_then(|()| Ok(renameat2(AT_FDCWD, &new, AT_FDCWD, &self.home, RenameFlags::RENAME_NOREPLACE)?));
        made.inspect_err(|_| drop(fs::remove_dir(&new))).with_context(|| format!("make {shown}"))?;
        undo.push(Step::Directory(self.home.clone()));
        progress.changed("directory", format!("{shown}: made"));
        Ok(())
    }

    fn write_keys(&self, progress: &mut Progress, undo: &mut Undo) -> Result<()> {
        if self.keys.is_empty() {
            let what = if self.arguments.without_key { "none is written" } else { "some exist already" };
            progress.found("key", what);
            return Ok(());
        }
        let added = keys::add(self.uid, &self.keys)?;
        for key in &self.keys {
            if key.is_in(&added.lines) {
                progress.changed("key", format!("{}: added", key.shown));
            } else {
                progress.found("key", format!("{}: exists already", key.shown));
            }
        }
        if !added.lines.is_empty() {
            undo.push(Step::Keys(added));
        }
        Ok(())
    }

    fn limit_disk(&self, progress: &mut Progress, undo: &mut Undo) -> Result<()> {
        match self.arguments.disk {
            Some(limit) if !self.quota.is_limited_to(limit) => {
                self.quota.set_bytes(self.uid, limit)?;
                undo.push(Step::Quota(self.quota.clone()));
                progress.changed("disk", vassal::size(limit));
            }
            _ => progress.found("disk", self.quota.to_string()),
        }
        Ok(())
    }

    /// Checks sshd and PAM before the container is started.
    fn must_let_in(&self) -> Result<(), Failed> {
        let findings = check::container(&Account::Number(self.uid))?;
        let of_the_node =
            |finding: &&Finding| BEFORE_THE_CONTAINER.contains(&finding.check) && !self.is_excused(finding);
        match failure(&findings).filter(of_the_node) {
            Some(failure) => {
                let error = anyhow::anyhow!("a login would fail at step {}: {}", failure.check, failure.seen);
                Err(Failed { error, findings })
            }
            None => Ok(()),
        }
    }

    /// With `--without-key` a login fails at the keys, as the operator has chosen.
    fn is_excused(&self, finding: &Finding) -> bool {
        self.arguments.without_key && finding.check == "keys"
    }

    /// Writes the vassal; true if that starts or restarts the container.
    fn write_vassal(&self, progress: &mut Progress, undo: &mut Undo) -> Result<bool> {
        let shown = self.vassal.display();
        let what = |text: &str| vassal::settings(text);
        match &self.old {
            Some(old) if *old == self.new => {
                progress.found("vassal", format!("{shown}: exists; {}", what(old)));
                return Ok(false);
            }
            Some(old) => {
                let open = join::sessions::count(Path::new(join::sessions::DIRECTORY), self.uid).unwrap_or(0);
                replace(&self.vassal, &self.new)?;
                undo.push(Step::Vassal(self.vassal.clone(), Some(old.clone())));
                let ends = if open > 0 { format!(", which ends its {open} open sessions") } else { String::new() };
                let (before, after) = (what(old), what(&self.new));
                progress.changed("vassal", format!("{shown}: {after} instead of {before}; it restarts{ends}"));
            }
            None => {
                replace(&self.vassal, &self.new)?;
                undo.push(Step::Vassal(self.vassal.clone(), None));
                progress.changed("vassal", format!("{shown}: made; {}", what(&self.new)));
            }
        }
        Ok(true)
    }

    /// Its pid 1, if it runs.
    fn running(&self) -> Result<Option<i32>> {
        Ok(Processes::read()?.pid_1_of(self.uid.get()).map(|process| process.pid))
    }

    /// Waits until a login would work, with a new pid 1.
    fn wait(&self, interrupt: &Interrupt, progress: &Progress, before: Option<i32>) -> Result<Vec<Finding>, Failed> {
        let limit = Duration::from_secs(self.arguments.timeout);
        let end = Instant::now() + limit;
        let mut findings = Vec::new();
        loop {
            let runs = self.running()?.filter(|pid| Some(*pid) != before);
            if runs.is_some() {
                findings = check::container(&Account::Number(self.uid))?;
                match failure(&findings) {
                    None => return Ok(findings),
                    Some(failure) if self.is_excused(failure) && self.is_reachable() => return Ok(findings),
                    Some(failure) => {
                        progress.now(format!("waiting for a login to work: {}: {}", failure.check, failure.seen))
                    }
                }
            } else {
                progress.now("waiting for the Emperor to start it");
            }
            if Instant::now() >= end {
                let error = match failure(&findings).filter(|_| runs.is_some()) {
                    Some(failure) => anyhow::anyhow!(
                        "after {} s a login would fail at step {}: {}",
                        limit.as_secs(),
                        failure.check,
                        failure.seen
                    ),
                    None => anyhow::anyhow!(
                        "the Emperor has not started it within {} s: {}",
                        limit.as_secs(),
                        self.emperor.log_hint()
                    ),
                };
                return Err(Failed { error, findings });
            }
            interrupt.pause(POLL_INTERVAL)?;
        }
    }

    /// Whether it can be entered.
    fn is_reachable(&self) -> bool {
        use join::{attach::Attachment, options::Options};
        Attachment::prepare(self.uid, &Options::default(), &mut |_, _| {}).is_ok()
    }

    /// What its user types.
    fn login(&self) -> String {
        let host = nix::sys::utsname::uname().ok().and_then(|name| name.nodename().to_str().map(str::to_owned));
        let host = host.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_owned());
        let identity = match self.arguments.keys.as_slice() {
            [file] => private_of(file).map(|file| format!("-i {} ", quoted(&file.display().to_string()))),
            _ => None,
        };
        format!("ssh {}{}@{}", identity.unwrap_or_default(), self.uid, quoted(&host))
    }
}

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The steps of a login that are about the node and its keys.
const BEFORE_THE_CONTAINER: [&str; 4] = ["account", "sshd", "pam", "keys"];

fn failure(findings: &[Finding]) -> Option<&Finding> {
    findings.iter().find(|finding| finding.state == State::Fail)
}

fn summary(findings: &[Finding]) -> String {
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    match count(State::Warn) {
        0 => format!("{} ok", count(State::Ok)),
        warnings => format!("{} ok, {warnings} warn: unbitctl check shows what", count(State::Ok)),
    }
}

/// The private key next to a public one, unless ssh(1) uses it by default.
fn private_of(file: &Path) -> Option<PathBuf> {
    let private = file.canonicalize().ok()?.with_extension("");
    let is_usual = ["id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"]
        .iter()
        .any(|name| private.ends_with(Path::new(".ssh").join(name)));
    (file.extension()? == "pub" && private.is_file() && !is_usual).then_some(private)
}

/// Refuses a number that an account or another engine's container has.
fn must_not_be_taken(uid: ContainerUid, home: &Path) -> Result<()> {
    let shown = home.display();
    let link = Path::new(link::DIRECTORY).join(uid.to_string());
    if let Ok(target) = fs::read_link(&link) {
        bail!(
            "{uid} is a container of another engine: {} leads to {} (unbitctl detach {uid})",
            link.display(),
            target.display()
        );
    }
    match fs::metadata(home) {
        Ok(status) if uid.owns_directory(status.mode(), status.uid(), status.gid()) => return Ok(()),
        Ok(status) => {
            bail!("{shown} exists, and belongs to {}:{}: is it the directory of {uid}?", status.uid(), status.gid())
        }
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(|| shown.to_string()),
        Err(_) if home.is_symlink() => bail!("{shown} is a symbolic link that leads nowhere"),
        Err(_) => {}
    }
    let (by_name, by_uid) = (User::from_name(&uid.to_string())?, User::from_uid(Uid::from_raw(uid.get()))?);
    if let Some(user) = by_name.or(by_uid) {
        bail!("{uid} is an account already: {} has the uid {}", user.name, user.uid);
    }
    Ok(())
}

/// The content of the vassal, if there is one.
fn read_vassal(uid: ContainerUid, file: &Path) -> Result<Option<String>> {
    let shown = file.display();
    match fs::symlink_metadata(file) {
        Ok(found) if found.is_file() => Ok(Some(fs::read_to_string(file).with_context(|| shown.to_string())?)),
        Ok(_) => bail!("{shown} is not a regular file, and is left as it is"),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| shown.to_string()),
        Err(_) if has_vassal(uid) => {
            bail!("another vassal in {VASSALS} starts {uid} already (ls {VASSALS}/{uid}.*): change that by hand")
        }
        Err(_) => Ok(None),
    }
}

/// The distribution that is named, or the only one, or `base`.
fn chosen_distribution(named: Option<&str>) -> Result<String> {
    if let Some(name) = named {
        return Ok(name.to_owned());
    }
    let entries = fs::read_dir(DISTRIBUTIONS).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| distribution(entry.file_name().to_str()?).ok())
        .filter(|name| name != "lost+found")
        .collect();
    names.sort();
    match names.as_slice() {
        [] => bail!("there is no distribution to start it from: unbitctl setup distribution base"),
        [one] => Ok(one.clone()),
        several if several.iter().any(|name| name == "base") => Ok("base".to_owned()),
        several => bail!("there are several distributions; name one: --distribution {}", several.join(", or ")),
    }
}

fn must_be_complete(name: &str) -> Result<()> {
    let root = Path::new(DISTRIBUTIONS).join(name);
    let shown = root.display();
    if !root.is_dir() {
        bail!("there is no distribution {shown}: unbitctl setup distribution {name}");
    }
    if let Some(lack) =
        NEEDED.iter().find(|directory| !root.join(directory).symlink_metadata().is_ok_and(|found| found.is_dir()))
    {
        bail!("{shown} has no directory {lack}, which a container's start needs: unbitctl setup distribution {name}");
    }
    Ok(())
}

/// Replaces the file atomically, under a temporary name that the Emperor ignores.
fn replace(file: &Path, text: &str) -> Result<()> {
    let shown = || file.display().to_string();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let new = file.with_file_name(format!(".{name}.unbitctl"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(shown),
        _ => {}
    }
    let write = || {
        let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
        opened.write_all(text.as_bytes())?;
        if let Ok(former) = fs::metadata(file) {
            opened.set_modified(regular_file::time_after(former.modified()?))?;
        }
        opened.sync_all()?;
        fs::rename(&new, file)?;
        File::open(VASSALS)?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&new))).with_context(shown)
}
