//! Runs programs of the node: getent, ldd, sshd. With --root they run in that root directory.

use crate::rootfs::RootFs;
use anyhow::{Context, Result, bail};
use shared::escape;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// sshd, which reads sshd_config(5).
pub const SSHD: &str = "/usr/sbin/sshd";

/// How a program ended, and what it printed.
pub struct Output {
    /// The exit status; `None` if a signal or the time limit ended it.
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Output {
    /// Whether its exit status is 0.
    pub fn succeeded(&self) -> bool {
        self.status == Some(0)
    }

    /// The first lines that it printed, if it failed, or how it ended.
    pub fn error_summary(&self) -> String {
        let printed = if self.err.trim().is_empty() { &self.out } else { &self.err };
        let lines: Vec<_> = printed.lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
        match self.status {
            None => "it crashed, or did not end in time".to_owned(),
            Some(status) if lines.is_empty() => format!("exit status {status}"),
            Some(_) => lines.join("; "),
        }
    }
}

/// The time limit, as timeout(1) reads it.
const SECONDS: &str = "20";

/// Whether this user can run programs there: only root can change its root directory.
pub fn can_run_programs(node: &RootFs) -> bool {
    node.is_running() || nix::unistd::geteuid().is_root()
}

/// Runs a program of the node, with a time limit.
pub fn run(node: &RootFs, program: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = with_timeout();
    if !node.is_running() {
        command.arg("chroot").arg(node.root());
    }
    command.arg(program).args(arguments);
    answer(command, program)
}

/// Runs a program of the node that runs, with this standard input, and a time limit.
pub fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<Output> {
    let mut command = with_timeout();
    command.arg(program).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes()); // if it does not read it, its output says why
    }
    output(child.wait_with_output(), program)
}

/// Runs sshd. It needs its directory below /run and a host key even to print its configuration, so
/// it gets both in a mount namespace of its own, and /dev/null if an image has none.
pub fn run_sshd(node: &RootFs, arguments: &[&str]) -> Result<Output> {
    run_sshd_with(node, &[], arguments)
}

/// Like [`run_sshd`], with some files replaced: each by the given file, or by an empty one.
pub fn run_sshd_with(node: &RootFs, instead: &[(PathBuf, Option<PathBuf>)], arguments: &[&str]) -> Result<Output> {
    const SCRIPT: &str = r#"
        root=$1
        shift
        while [ "$1" != -- ]; do
            if [ -e "$1" ]; then mount --bind "${2:-/dev/null}" "$1"; fi
            shift 2
        done
        shift
        mount -t tmpfs -o mode=755 unbitctl "$root/run"
        mkdir "$root/run/sshd"
        if [ ! -c "$root/dev/null" ]; then
            mount -t tmpfs -o mode=755 unbitctl "$root/dev"
            touch "$root/dev/null"
            mount --bind /dev/null "$root/dev/null"
        fi
        chroot "$root" ssh-keygen -q -t ed25519 -N "" -f /run/unbitctl-key
        exec chroot "$root" /usr/sbin/sshd -h /run/unbitctl-key "$@"
    "#;
    let mut command = with_timeout();
    command.args(["unshare", "--mount", "sh", "-euc", SCRIPT, "sh"]).arg(node.root());
    for (path, other) in instead {
        command.arg(path).arg(other.as_deref().unwrap_or(Path::new("")));
    }
    command.arg("--").args(arguments);
    answer(command, "sshd")
}

/// Runs a shell script in a mount namespace of its own, so that its mounts end with it. Its first
/// argument is the node's root directory.
pub fn run_in_mount_namespace(node: &RootFs, script: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = with_timeout();
    command.args(["unshare", "--mount", "sh", "-euc", script, "sh"]).arg(node.root()).args(arguments);
    answer(command, "sh")
}

fn with_timeout() -> Command {
    let mut command = Command::new("timeout");
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    // Without it bash, in which ldd is written, asks for its own account first.
    command.env("SHELL", "/bin/sh");
    command.stdin(Stdio::null()).args(["--kill-after=1", SECONDS]);
    command
}

fn answer(mut command: Command, program: &str) -> Result<Output> {
    output(command.output(), program)
}

fn output(done: io::Result<std::process::Output>, program: &str) -> Result<Output> {
    let done = done.with_context(|| format!("run {program}"))?;
    // timeout(1) exits with 124 on a timeout. If signal N ended the program (a crash, or SIGKILL
    // after the time limit), it ends by that signal, too, or exits with 128 + N.
    let status = done.status.code().filter(|status| *status != 124 && !(129..=192).contains(status));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if status == Some(127) {
        bail!("{program}, or a program that it runs, is not installed: {}", escape::name(text(&done.stderr).trim()));
    }
    Ok(Output { status, out: text(&done.stdout), err: text(&done.stderr) })
}

/// Where the libraries of a root directory may be: those of one architecture, or of several next to
/// each other.
pub fn library_directories(node: &RootFs) -> Vec<String> {
    let mut directories = Vec::new();
    for base in ["/usr/lib", "/lib"] {
        let entries = node.resolve(base).and_then(std::fs::read_dir).into_iter().flatten().flatten();
        let mut several: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        several.retain(|name| name.contains("-linux-gnu"));
        several.sort();
        directories.extend(several.iter().map(|name| format!("{base}/{name}")));
        directories.push(base.to_owned());
        directories.push(format!("{base}64"));
    }
    directories
}

/// Why the root directory's dynamic linker cannot load a library; `None` if it can.
pub fn cannot_load(node: &RootFs, library: &str) -> Result<Option<String>> {
    let answer = run(node, "ldd", &["-r", library])?;
    let missing = |line: &&str| line.contains("not found") || line.contains("undefined symbol");
    let reason = answer.err.lines().chain(answer.out.lines()).find(missing).map(|line| line.trim().to_owned());
    Ok(reason.or_else(|| (!answer.succeeded()).then(|| answer.error_summary())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_its_input_and_not_the_environment() {
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        let done = run_with_input("sh", &["-c", "cat; echo $CARGO_MANIFEST_DIR; exit 3"], "input ").unwrap();
        assert_eq!((done.status, done.out.as_str()), (Some(3), "input \n"));
        assert!(run_with_input("is-not-there", &[], "").is_err());
    }
}
