//! `unbitctl attach` and `detach`: root's link `/etc/unbit/UID`, by which a container of another
//! engine is found.
//!
//! The link leads to the container's cgroup directory. Before it is written, the code of the PAM
//! module ([`Attachment`]) says whether a login would accept it; afterwards all of `unbitctl check
//! UID` runs.
//!
//! How an engine's cgroup is found is in [`engine`](crate::engine).

use crate::check;
use crate::command_line::{must_be_root, print_lossy};
use crate::engine::{Engine, Found};
use crate::lock::Lock;
use crate::names::{self, Account};
use crate::report::{self, Format, State, lines_of};
use crate::rootfs::RootFs;
use anyhow::{Context, Result, bail};
use join::attach::Attachment;
use join::link::{DIRECTORY, Link, ROOT_IS_TRUSTED_SUFFIX};
use join::options::Options;
use join::refusal::{Reason, Refusal};
use join::sessions;
use nix::sys::stat::{Mode, umask};
use shared::{ContainerUid, SecondName};
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub const EXAMPLES: &str = "\
Examples:
  unbitctl attach 30001 --machine web1 --create-home
  unbitctl attach 30001 --podman web1 --name web1
  unbitctl attach 30001 --cgroup /sys/fs/cgroup/lxc.payload.web1
  unbitctl attach 30001 --name web1       `ssh web1@node` then works like `ssh 30001@node`";

pub const DETACH_EXAMPLES: &str = "\
Examples:
  unbitctl detach 30001             logins to its container are refused from now on
  unbitctl detach web1              30001 loses this name; nothing else changes";

#[derive(clap::Args)]
pub struct Arguments {
    /// The account: its number, or a second name that it has
    #[arg(value_name = "UID", value_parser = Account::parse)]
    account: Account,
    #[command(flatten)]
    place: Place,
    /// Give the account this second name; may be given more than once, and without a container
    #[arg(long = "name", value_name = "NAME", value_parser = names::second_name, required_unless_present = "place")]
    names: Vec<SecondName>,
    /// Make the account's directory in /containers if it does not exist
    #[arg(long)]
    create_home: bool,
}

#[derive(clap::Args)]
#[group(id = "place", multiple = false)]
struct Place {
    /// A machine that machinectl shows, such as one of systemd-nspawn
    #[arg(long, value_name = "NAME", value_parser = name)]
    machine: Option<String>,
    /// A container of LXC
    #[arg(long, value_name = "NAME", value_parser = name)]
    lxc: Option<String>,
    /// An instance of Incus; PROJECT/NAME for one of another project
    #[arg(long, value_name = "NAME", value_parser = instance)]
    incus: Option<String>,
    /// A container that root's podman runs
    #[arg(long, value_name = "NAME", value_parser = name)]
    podman: Option<String>,
    /// A container of Docker
    #[arg(long, value_name = "NAME", value_parser = name)]
    docker: Option<String>,
    /// A systemd service with PrivatePIDs=yes, or one that runs another engine
    #[arg(long, value_name = "NAME.service", value_parser = name)]
    unit: Option<String>,
    /// The directory of the container's cgroup
    #[arg(long, value_name = "PATH", value_parser = directory)]
    cgroup: Option<PathBuf>,
}

impl Place {
    /// The one that is given, if there is one: clap sees that there are no two.
    fn engine(&self) -> Option<Engine> {
        let of = |name: &Option<String>, engine: fn(String) -> Engine| name.clone().map(engine);
        of(&self.machine, Engine::Machine)
            .or_else(|| of(&self.lxc, Engine::Lxc))
            .or_else(|| of(&self.incus, Engine::Incus))
            .or_else(|| of(&self.podman, Engine::Podman))
            .or_else(|| of(&self.docker, Engine::Docker))
            .or_else(|| of(&self.unit, Engine::Unit))
            .or_else(|| self.cgroup.clone().map(Engine::Cgroup))
    }
}

/// A name that an engine's tool takes for a name, and for no option, path or pattern.
fn name(text: &str) -> Result<String, String> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "._-@:\\".contains(letter);
    if !text.is_empty() && !text.starts_with(['-', '.']) && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("a name is needed, of letters, digits and . _ - @ : \\".to_owned())
    }
}

fn instance(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((project, instance)) => Ok(format!("{}/{}", name(project)?, name(instance)?)),
        None => name(text),
    }
}

fn directory(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if path.is_absolute() && path.components().all(|part| part != std::path::Component::ParentDir) {
        Ok(path.to_owned())
    } else {
        Err("an absolute path without .. is needed, below /sys/fs/cgroup".to_owned())
    }
}

/// How long a container may be so right after its start.
const fn time_for(reason: Reason) -> Duration {
    Duration::from_secs(match reason {
        Reason::Starting => 10,      // until its own program is pid 1
        Reason::NoPidNamespace => 2, // until the engine has made the namespace
        _ => 0,
    })
}
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    must_be_root("attach")?;
    let (uid, _lock) = Lock::of_container(&arguments.account)?;
    let node = RootFs::at(None);
    let found = arguments.place.engine().map(|engine| {
        let found = engine.find(&node)?;
        let pid = find(&found.cgroup, uid).map_err(|refusal| {
            let target = found.cgroup.display();
            anyhow::anyhow!("{target} cannot be linked to {uid}: {}; nothing has been changed", refusal.cause)
        })?;
        anyhow::Ok((engine, found, pid))
    });
    let found = found.transpose()?;
    for name in &arguments.names {
        names::can_be_given(name, uid)
            .with_context(|| format!("{uid} cannot have the name {name}; nothing has been changed"))?;
    }
    // Root and everybody who looks it up read what is made here.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    home(uid, arguments.create_home)?;
    if let Some((engine, found, pid)) = found {
        let before = write(uid, &found.cgroup)?;
        print_lossy!("{}", lines_of(&attach_message(uid, &engine, &found, pid, before.as_deref())));
    }
    for name in &arguments.names {
        let done = if names::give(name, uid)? { "made" } else { "exists already" };
        print_lossy!("{} -> {uid}: {done}\n", names::link_path(name).display());
    }
    let shown = arguments.names.first().map_or(Account::Number(uid), |name| Account::Name(*name));
    let mut findings = check::container(&shown)?;
    if !arguments.names.is_empty() {
        // A mail server that knows the numbers need not know the names.
        findings.extend(check::mail::check(&node).into_iter().filter(|finding| finding.state == State::Fail));
    }
    report::show(&findings, Format::new(false))
}

/// The container's pid 1, if a login would enter. One that is still starting is waited for.
fn find(cgroup: &Path, uid: ContainerUid) -> Result<i32, Refusal> {
    let started = Instant::now();
    loop {
        let link = Link::candidate(cgroup, uid);
        match link.and_then(|link| Attachment::prepare_by(Some(link), uid, &Options::default(), &mut |_, _| {})) {
            Err(refusal) if started.elapsed() < time_for(refusal.reason) => sleep(POLL_INTERVAL),
            other => return other.map(|attachment| attachment.leader().pid),
        }
    }
}

/// What has been done, and what the operator has to know of it.
fn attach_message(uid: ContainerUid, engine: &Engine, found: &Found, pid: i32, before: Option<&Path>) -> String {
    let link = link_path(uid);
    let (link, target) = (link.display(), found.cgroup.display());
    let done = match before {
        Some(before) if before == found.cgroup => "exists already",
        Some(_) => "replaced",
        None => "made",
    };
    let mut text = format!("{link} -> {target}: {done}\n{}: its pid 1 is process {pid} on this node\n", engine.name());
    text.push_str(&format!("the link stays valid {}\n", found.stays));
    for warning in &found.warnings {
        text.push_str(&format!("note: {warning}\n"));
    }
    if let Some(before) = before.filter(|before| *before != found.cgroup) {
        text.push_str(&format!("note: the link led to {}\n", before.display()));
    }
    if before != Some(&found.cgroup) && trust_file(uid).exists() {
        text.push_str(&format!(
            "note: {} says that this container's root is trusted; remove it unless that is true of the {}\n",
            trust_file(uid).display(),
            engine.name()
        ));
    }
    text
}

/// The link's name.
fn link_path(uid: ContainerUid) -> PathBuf {
    Path::new(DIRECTORY).join(uid.to_string())
}

/// The trust file: root has made it if a container's root is trusted.
fn trust_file(uid: ContainerUid) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{uid}{ROOT_IS_TRUSTED_SUFFIX}"))
}

/// Checks that the account's directory exists, or makes it.
fn home(uid: ContainerUid, create: bool) -> Result<()> {
    let home = uid.home();
    let path = PathBuf::from(home.as_c_str().to_string_lossy().into_owned());
    let shown = path.display();
    match fs::symlink_metadata(&path) {
        Ok(status) if uid.owns_directory(status.mode(), status.uid(), status.gid()) => return Ok(()),
        // An operator may keep it elsewhere; `check` says whether it is an account then.
        Ok(status) if status.is_symlink() => return Ok(()),
        Ok(status) => bail!(
            "{shown} belongs to {}:{}, so it is not an account: chown {uid}:{uid} {shown}",
            status.uid(),
            status.gid()
        ),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(|| shown.to_string()),
        Err(_) if !create => bail!("there is no {shown}, which makes the account {uid}: --create-home makes it"),
        Err(_) => {}
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(parent).with_context(|| parent.display().to_string())?;
    DirBuilder::new().mode(0o755).create(&path).with_context(|| shown.to_string())?;
    chown(&path, Some(uid.get()), Some(uid.get())).with_context(|| format!("chown {shown}"))?;
    print_lossy!("{shown}: made\n");
    Ok(())
}

/// Makes or replaces the link, atomically. Returns where it led before.
fn write(uid: ContainerUid, target: &Path) -> Result<Option<PathBuf>> {
    let link = link_path(uid);
    DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY).with_context(|| DIRECTORY.to_owned())?;
    let before = read(&link)?;
    if before.as_deref() != Some(target) {
        let new = Path::new(DIRECTORY).join(format!(".{uid}.unbitctl"));
        remove(&new)?;
        symlink(target, &new).and_then(|()| fs::rename(&new, &link)).with_context(|| link.display().to_string())?;
        File::open(DIRECTORY).and_then(|directory| directory.sync_all()).with_context(|| DIRECTORY.to_owned())?;
    }
    Ok(before)
}

/// Where a link leads, if there is one. What else is in its place stays there.
fn read(link: &Path) -> Result<Option<PathBuf>> {
    match fs::read_link(link) {
        Ok(target) => Ok(Some(target)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            bail!("{} is not a symbolic link: check what it is, and remove it", link.display())
        }
        Err(error) => Err(error).with_context(|| link.display().to_string()),
    }
}

/// Removes a file. Returns whether it existed.
fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

/// Removes the trust file and the link of an account. Returns those that existed, and where the
/// link led.
pub fn unlink(uid: ContainerUid) -> Result<Vec<(PathBuf, Option<PathBuf>)>> {
    let link = link_path(uid);
    let before = read(&link)?;
    let mut removed = Vec::new();
    // The trust file first: it must never exist for a container that is linked later.
    if remove(&trust_file(uid))? {
        removed.push((trust_file(uid), None));
    }
    if before.is_some() && remove(&link)? {
        removed.push((link, before));
    }
    Ok(removed)
}

#[derive(clap::Args)]
pub struct DetachArguments {
    /// The account's number, to remove its link and all its second names; or one second name, to
    /// remove only that
    #[arg(value_name = "UID", value_parser = Account::parse)]
    account: Account,
}

pub fn detach(arguments: &DetachArguments) -> Result<ExitCode> {
    must_be_root("detach")?;
    let (uid, _lock) = Lock::of_container(&arguments.account)?;
    if let Account::Name(name) = &arguments.account {
        return detach_name(name, uid).map(|()| ExitCode::SUCCESS);
    }
    for name in names::names_of(uid) {
        detach_name(&name, uid)?;
    }
    let removed = unlink(uid)?;
    if !removed.iter().any(|(name, _)| *name == link_path(uid)) {
        removed.iter().for_each(|(name, _)| print_lossy!("{}: removed\n", name.display()));
        print_lossy!("{}: there is no such link\n", link_path(uid).display());
        return Ok(ExitCode::SUCCESS);
    }
    for (name, target) in removed {
        let target = target.map_or_else(String::new, |target| format!(" -> {}", target.display()));
        print_lossy!("{}", lines_of(&format!("{}{target}: removed\n", name.display())));
    }
    if let Some(open) = sessions::count(Path::new(sessions::DIRECTORY), uid).filter(|open| *open > 0) {
        print_lossy!("note: open sessions stay open: {open}\n");
    }
    Ok(ExitCode::SUCCESS)
}

fn detach_name(name: &SecondName, uid: ContainerUid) -> Result<()> {
    let link = names::link_path(name);
    remove(&link)?;
    print_lossy!("{} -> {uid}: removed\n", link.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_option_path_or_pattern() {
        for good in ["web1", "web_1.example", "systemd-nspawn@web1.service", "a\\x2db.service"] {
            assert!(name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "--all", "a b", "a/b", "..", ".a", "a*", "a?", "a\n", "$(id)", "ä"] {
            assert!(name(bad).is_err_and(|error| error.ends_with(r"of letters, digits and . _ - @ : \")), "{bad}");
        }
        assert_eq!(instance("project/web1").as_deref(), Ok("project/web1"));
        for bad in ["/web1", "project/", "a/b/c", "a/../b"] {
            assert!(instance(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_directory_is_named_from_the_root() {
        assert!(directory("/sys/fs/cgroup/a.slice").is_ok());
        for bad in ["", "sys", "./a", "/sys/fs/cgroup/../x"] {
            assert!(directory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_operator_reads_what_was_done_and_how_long_it_holds() {
        let uid = ContainerUid::parse(b"30001").unwrap();
        let found = Found {
            cgroup: "/c/machine.slice/libpod-1.scope".into(),
            stays: "until then".to_owned(),
            warnings: vec!["look".to_owned()],
        };
        let engine = Engine::Podman("web1".to_owned());
        let text = attach_message(uid, &engine, &found, 7, None);
        let expected = "/etc/unbit/30001 -> /c/machine.slice/libpod-1.scope: made\n\
                        podman container web1: its pid 1 is process 7 on this node\n\
                        the link stays valid until then\n\
                        note: look\n";
        assert_eq!(text, expected);
        assert!(attach_message(uid, &engine, &found, 7, Some(&found.cgroup)).contains(": exists already\n"));
        let text = attach_message(uid, &engine, &found, 7, Some(Path::new("/c/old")));
        assert!(text.contains(": replaced\n") && text.ends_with("note: the link led to /c/old\n"), "{text}");
    }
}
