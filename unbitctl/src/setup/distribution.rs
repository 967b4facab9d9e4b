//! `unbitctl setup distribution NAME`: a root file system that containers start from, by
//! debootstrap(8) or mmdebstrap(1), with our library in it.
//!
//! It is made under a name that is no distribution's, and gets its own when it is complete. What is
//! left of one that was cut short is thrown away by the next. A distribution that is there only
//! gets what it lacks.

use super::file;
use crate::check::distributions::{self, DISTRIBUTIONS};
use crate::check::{self, library::NSS_MODULE};
use crate::command::library_directories;
use crate::command_line::must_be_root;
use crate::interrupt::Interrupt;
use crate::packages::{self, Package};
use crate::progress::Progress;
use crate::purge::purge;
use crate::report::{self, Finding, Format, State};
use crate::rootfs::RootFs;
use crate::step::Choices;
use anyhow::{Context, Result, bail};
use join::safe_path;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, lstat, umask};
use nix::unistd::{Pid, pipe2};
use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

pub const EXAMPLES: &str = "\
Examples:
  unbitctl setup distribution base
  unbitctl setup distribution bookworm --suite bookworm --include vim-tiny,git";

#[derive(clap::Args)]
pub struct Arguments {
    /// Its name: it is made in /distros/NAME
    #[arg(value_parser = crate::create::distribution)]
    name: String,
    /// The release of Debian
    #[arg(long, default_value = "stable", value_parser = word)]
    suite: String,
    /// The mirror to take packages from (default: the tool's own)
    #[arg(long, value_name = "URL", value_parser = word)]
    mirror: Option<String>,
    /// More packages, separated by commas
    #[arg(long, value_name = "PACKAGE,...", value_delimiter = ',', value_parser = word)]
    include: Vec<String>,
    /// Install debootstrap, with apt-get, if neither it nor mmdebstrap is there
    #[arg(long)]
    install: bool,
    /// More options for debootstrap or mmdebstrap, after --
    #[arg(last = true, value_name = "OPTION")]
    more: Vec<String>,
}

/// An argument that no tool reads as an option.
fn word(text: &str) -> Result<String, String> {
    let is_plain = !text.is_empty() && !text.starts_with('-') && text.chars().all(|letter| letter.is_ascii_graphic());
    if is_plain { Ok(text.to_owned()) } else { Err("a word is needed".to_owned()) }
}

/// For `ip`, and for sftp and scp.
const PACKAGES: [&str; 2] = ["iproute2", "openssh-sftp-server"];
const DEBOOTSTRAP: &str = "/usr/sbin/debootstrap";
const MMDEBSTRAP: &str = "/usr/bin/mmdebstrap";

/// The one of this name, with what a set-up of the whole node makes of it.
pub fn make(name: &str, install: bool) -> Result<ExitCode> {
    let stable = "stable".to_owned();
    run(&Arguments {
        name: name.to_owned(),
        suite: stable,
        mirror: None,
        include: Vec::new(),
        install,
        more: Vec::new(),
    })
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    must_be_root("setup distribution")?;
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let node = RootFs::at(None);
    let place = Path::new(DISTRIBUTIONS).join(&arguments.name);
    let shown = place.display();
    let library = library(&node)?;
    let mut progress = Progress::new(false);
    let is_there = place.symlink_metadata().is_ok();
    if !is_there && !Path::new(MMDEBSTRAP).exists() {
        packages::need(&[Package { program: DEBOOTSTRAP, name: "debootstrap" }], arguments.install, false)?;
    }
    DirBuilder::new().recursive(true).mode(0o755).create(DISTRIBUTIONS).context(DISTRIBUTIONS)?;
    let _lock = crate::lock::Lock::of_setup(&node)?;
    if is_there {
        progress.found("system", format!("{shown}: exists"));
        must_belong_to_root(&place)?;
        complete(&place, &library, &mut progress)?;
        return verdict(&place);
    }
    let interrupt = Interrupt::hold()?;
    let hidden = format!(".{}.unbitctl", arguments.name);
    let new = Path::new(DISTRIBUTIONS).join(&hidden);
    let forget = || purge(Path::new(DISTRIBUTIONS), &hidden, &mut |_| Ok(()));
    forget()?;
    let made = bootstrap(arguments, &new, &interrupt, &mut progress)
        .and_then(|()| complete(&new, &library, &mut progress))
        .and_then(|()| interrupt.check())
        .and_then(|()| {
            let placed = renameat2(AT_FDCWD, &new, AT_FDCWD, &place, RenameFlags::RENAME_NOREPLACE);
            placed.with_context(|| format!("make {shown}"))
        });
    if let Err(error) = made {
        progress.now("removing what has been made");
        forget()?;
        progress.now("");
        return Err(error.context(format!("{shown} has not been made, and nothing of it is left")));
    }
    verdict(&place)
}

/// Shows the findings of check about it.
fn verdict(place: &Path) -> Result<ExitCode> {
    let node = RootFs::at(Some(place));
    let mut findings: Vec<Finding> = distributions::check_distribution(&node);
    findings.extend(check::nsswitch::check(&node).into_iter().filter(|finding| finding.state == State::Fail));
    report::show(&findings, Format::new(false))
}

/// The library that the node's own glibc loads.
fn library(node: &RootFs) -> Result<PathBuf> {
    let directories = library_directories(node);
    let is_beside_libc = |directory: &&String| node.has(&format!("{directory}/libc.so.6"));
    let directory = directories.iter().find(is_beside_libc).context("this node has no libc.so.6")?;
    let library = Path::new(directory).join(NSS_MODULE);
    if !library.exists() {
        bail!(
            "there is no {} on this node: install the package libnss-unbit first, or run make install",
            library.display()
        );
    }
    Ok(library)
}

/// Refuses a directory that users other than root can change.
fn must_belong_to_root(place: &Path) -> Result<()> {
    let shown = place.display();
    let found = lstat(place).with_context(|| shown.to_string())?;
    if safe_path::kind(&found) != SFlag::S_IFDIR || safe_path::must_belong_to_root(&found).is_err() {
        bail!("{shown} is not a directory that root owns and nobody else may write to, and is left as it is");
    }
    Ok(())
}

/// Adds what Debian does not have: the library, its line in nsswitch.conf, and where a
/// container's start mounts.
fn complete(root: &Path, library: &Path, progress: &mut Progress) -> Result<()> {
    let node = RootFs::at(Some(root));
    for directory in distributions::NEEDED {
        let path = format!("/{directory}");
        match node.open_link(&path) {
            Ok(_) => progress.found("directory", format!("{path}: exists")),
            Err(_) => {
                DirBuilder::new().mode(0o755).create(node.path(&path)).with_context(|| path.clone())?;
                progress.changed("directory", format!("{path}: made"));
            }
        }
    }
    let inside = library.to_string_lossy();
    let ours = fs::read(library).with_context(|| inside.to_string())?;
    if node.read_bytes(&inside).is_ok_and(|found| found == ours) {
        progress.found("library", format!("{inside}: exists"));
    } else {
        // In its directory, wherever links lead inside: it is on the node's path only as long as
        // they stay there.
        let directory = library.parent().and_then(Path::to_str).context("a library is in a directory")?;
        let directory = node
            .resolve(directory)
            .with_context(|| format!("{directory} in it: is it of this machine's architecture?"))?;
        let new = directory.join(format!(".{NSS_MODULE}.unbitctl"));
        let _ = fs::remove_file(&new);
        let copied = fs::write(&new, &ours).and_then(|()| fs::rename(&new, directory.join(NSS_MODULE)));
        copied.inspect_err(|_| drop(fs::remove_file(&new))).with_context(|| inside.to_string())?;
        progress.changed("library", format!("{inside}: copied from the node"));
    }
    let changes =
        file::pending(&node, (check::nsswitch::STEP.changes)(&node, Choices { keys_only: false, guide: false })?)?;
    if changes.is_empty() {
        progress.found("nsswitch", "unbit is in its place already");
    }
    for change in changes {
        change.make()?;
        progress.changed("nsswitch", "unbit is in its place, directly after files");
    }
    Ok(())
}

/// Runs the tool in mount and pid namespaces of its own, so that no mount and no process of it
/// stays.
fn bootstrap(arguments: &Arguments, new: &Path, interrupt: &Interrupt, progress: &mut Progress) -> Result<()> {
    const SCRIPT: &str = r#"mount -t proc -o nosuid,nodev,noexec proc /proc; exec "$@""#;
    let (tool, packages) = {
        let packages = PACKAGES.into_iter().chain(arguments.include.iter().map(String::as_str));
        let packages = packages.collect::<Vec<_>>().join(",");
        if Path::new(DEBOOTSTRAP).exists() { (DEBOOTSTRAP, packages) } else { (MMDEBSTRAP, packages) }
    };
    let name = Path::new(tool).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", SCRIPT, "sh", tool]);
    command.args(["--variant=minbase", &format!("--include={packages}")]);
    if tool == MMDEBSTRAP {
        command.args(["--mode=root", "--format=directory"]);
    }
    command.args(&arguments.more).arg(&arguments.suite).arg(new).args(&arguments.mirror);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
    // Not of the terminal's foreground: a signal of the operator's comes to us, and we end it.
    command.stdin(Stdio::null()).process_group(0);
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    command.stdout(writer.try_clone()?).stderr(writer);
    progress.text(&format!("{name} makes a Debian {}, which takes a minute or so\n", arguments.suite));
    let began = Instant::now();
    let child = command.spawn().context("run unshare")?;
    drop(command); // and with it the other end of the pipe
    let mut running = Running(child);
    let mut output = ToolOutput::default();
    let mut pipe = File::from(reader);
    loop {
        if !interrupt.wait_for(Some(pipe.as_fd()), Duration::from_secs(3600))? {
            bail!("{name} has said nothing for an hour");
        }
        let mut some = [0; 4096];
        match pipe.read(&mut some) {
            Ok(length) if length > 0 => {
                for line in output.add(some.get(..length).unwrap_or_default()) {
                    progress.now(format!("{name}, {} s: {line}", began.elapsed().as_secs()));
                }
            }
            _ => break,
        }
    }
    let status = running.0.wait()?;
    if !status.success() {
        bail!("{name} {}: {status}: {}", arguments.suite, output.last.into_iter().collect::<Vec<_>>().join("; "));
    }
    let (seconds, place) = (began.elapsed().as_secs(), format!("{DISTRIBUTIONS}/{}", arguments.name));
    progress.changed("system", format!("{place}: Debian {} by {name}, in {seconds} s", arguments.suite));
    Ok(())
}

/// A child process, which is killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        // It kills its child, which is pid 1 of its namespace, as it ends.
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// The output of a tool, line by line, and the last lines.
#[derive(Default)]
struct ToolOutput {
    rest: Vec<u8>,
    last: VecDeque<String>,
}

impl ToolOutput {
    fn add(&mut self, bytes: &[u8]) -> Vec<String> {
        const KEPT: usize = 4;
        self.rest.extend(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim().trim_start_matches("I: ").to_owned();
            if !line.is_empty() {
                self.last.push_back(line.clone());
                lines.push(line);
            }
            if self.last.len() > KEPT {
                self.last.pop_front();
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whole_and_the_last_are_kept() {
        let mut output = ToolOutput::default();
        assert_eq!(output.add(b"I: Retrieving a\nI: Re"), ["Retrieving a"]);
        assert_eq!(output.add(b"trieving b\r\n\n"), ["Retrieving b"]);
        output.add(b"1\n2\n3\nE: 4\n");
        assert_eq!(output.last, ["1", "2", "3", "E: 4"]);
    }

    #[test]
    fn a_word_is_no_option() {
        assert!(word("stable").is_ok() && word("http://deb.debian.org/debian").is_ok());
        for bad in ["", "-x", "--keyring=x", "a b", "ä"] {
            assert!(word(bad).is_err(), "{bad}");
        }
    }
}
