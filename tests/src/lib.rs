//! What the tests say to the node that they run on (see `tests/node/run`).
//!
//! Everything here panics when it goes wrong: it is for tests only.

pub mod nss;
pub mod nss_fuzz;
pub mod tenant;
pub mod wire;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How a command ended, and what it said.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    /// The exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Done {
    /// The output of a command that must have succeeded, without the last newline.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, Some(0), "{self:?}");
        self.out.trim_end_matches('\n').to_owned()
    }

    /// The error text of a command that must have failed.
    #[track_caller]
    pub fn failed(self) -> String {
        assert_ne!(self.status, Some(0), "{self:?}");
        self.err
    }
}

/// Runs a program with arguments and input, for a minute at most.
pub fn run(program: &str, arguments: &[&str], input: &[u8]) -> Done {
    let mut child = Command::new("timeout")
        .args(["--kill-after=1", "60", program])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let done = std::thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    assert_ne!(done.status.code(), Some(124), "{program} {arguments:?} hung");
    Done {
        status: done.status.code(),
        out: String::from_utf8_lossy(&done.stdout).into_owned(),
        err: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}

/// Runs a shell script on the node, as root.
pub fn sh(script: impl AsRef<str>) -> Done {
    run("bash", &["-c", script.as_ref()], b"")
}

/// Runs a command by `ssh USER@node`.
pub fn ssh(user: impl Display, command: &str) -> Done {
    run("ssh", &[&format!("{user}@node"), command], b"")
}

/// The same by sshd's other port, whose sftp server is internal.
pub const INTERNAL_SFTP: &str = "-P2222";

/// What a line of the node's system log begins with: facility authpriv, and LOG_ERR, LOG_INFO or LOG_DEBUG of syslog(3).
pub const ERR: &str = "<83>";
/// See [`ERR`].
pub const INFO: &str = "<86>";
/// See [`ERR`].
pub const DEBUG: &str = "<87>";

/// The node's system log from some moment on.
pub struct Log(usize);

impl Log {
    const FILE: &str = "/var/log/syslog";

    /// From now on.
    pub fn from_now() -> Self {
        Self(fs::read(Self::FILE).unwrap().len())
    }

    /// All of it, for the message of a test that fails.
    pub fn all() -> String {
        Self(0).text()
    }

    /// What has been written.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(Self::FILE).unwrap()[self.0..]).into_owned()
    }

    /// The lines of ours that hold this text.
    pub fn lines(&self, needle: &str) -> Vec<String> {
        let text = self.text();
        let ours = text.lines().filter(|line| line.contains("pam_unbit") && line.contains(needle));
        ours.map(str::to_owned).collect()
    }

    /// Waits for the one line of ours that holds this text, and gives back the whole line.
    #[track_caller]
    pub fn one_line(&self, needle: &str) -> String {
        eventually(&format!("one log line with {needle:?} in {}", self.text()), || {
            let mut lines = self.lines(needle);
            let line = lines.pop()?;
            assert_eq!(lines, [""; 0], "one refusal, one line");
            Some(line)
        })
    }
}

/// Waits, for ten seconds at most, until there is an answer.
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The namespaces of a process of the node, by kind.
pub fn namespaces(pid: &str) -> BTreeMap<String, String> {
    let links = fs::read_dir(format!("/proc/{pid}/ns")).unwrap_or_else(|error| panic!("/proc/{pid}/ns: {error}"));
    links
        .map(|link| {
            let link = link.unwrap();
            let name = link.file_name().into_string().unwrap();
            (name, fs::read_link(link.path()).unwrap().to_string_lossy().into_owned())
        })
        .collect()
}

/// What a process of the node has open.
pub fn descriptors(pid: &str) -> Vec<String> {
    let Ok(links) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    links.filter_map(|link| Some(fs::read_link(link.ok()?.path()).ok()?.to_string_lossy().into_owned())).collect()
}

/// The first process of the node whose command line matches, as pgrep(1) has it.
pub fn pgrep(pattern: &str) -> Option<String> {
    let found = run("pgrep", &["-f", pattern], b"");
    found.out.lines().next().map(str::to_owned)
}

/// The pid 1 of a container, as the node counts.
pub fn leader(uid: u32) -> String {
    run("node-wait-container", &[&uid.to_string()], b"").ok()
}

/// The mount, pid, net, ... namespaces that a container has to itself.
pub const OWN: [&str; 5] = ["ipc", "mnt", "net", "pid", "uts"];

/// Says what this machine cannot show, where cargo does not swallow it. Unless something else says too that it `lacks` what it takes, that is a
/// failure under `CI=true`.
#[track_caller]
pub fn not_tried(why: impl Display, lacks: bool) {
    writeln!(std::io::stderr().lock(), "NOT TRIED: {why}").unwrap();
    let must_try = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(lacks || !must_try, "NOT TRIED, and nothing says why not: {why}");
}

/// Whether the kernel was built without this option. Where it does not say how it was built, that cannot be told apart.
pub fn kernel_lacks(option: &str) -> bool {
    !fs::exists("/proc/config.gz").unwrap()
        || sh(format!("zcat /proc/config.gz | grep -qx '# {option} is not set'")).status == Some(0)
}

/// Whether this layout of cgroups has the controllers of version 1 out of reach: a machine has them on one version.
pub fn layout_lacks_controllers() -> bool {
    std::env::var("NODE_LAYOUT").unwrap() == "v2"
}

/// A file that a test has changed; it is put back when the test ends, however it ends.
pub struct Changed {
    path: PathBuf,
    before: Vec<u8>,
}

impl Changed {
    /// Rewrites a file.
    pub fn file(path: impl AsRef<Path>, change: impl FnOnce(&str) -> String) -> Self {
        let path = path.as_ref().to_owned();
        let before = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&before).into_owned();
        let after = change(&text);
        assert_ne!(text, after, "{} is not changed", path.display());
        fs::write(&path, after).unwrap();
        Self { path, before }
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        fs::write(&self.path, &self.before).unwrap();
    }
}

/// Something to do when the test ends, however it ends.
pub struct AtEnd<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Lets container users in through another service than sshd: our account and session lines, with `join=now`, in front of its own.
pub fn join_now(service: &str) -> Changed {
    Changed::file(format!("/etc/pam.d/{service}"), |text| {
        format!(
            "account [success=done ignore=ignore default=die] pam_unbit.so join=now\n\
             session [success=done ignore=ignore default=die] pam_unbit.so join=now\n{text}"
        )
    })
}

/// A door of root's for a container, until this is dropped.
pub struct Door {
    keeper: Child,
    directory: String,
}

impl Door {
    /// It leads to the namespaces of the process `pid`; `kind` is how it is kept, see `src/bin/door.rs`.
    pub fn open(uid: u32, pid: &str, kind: &str) -> Self {
        let directory = format!("/run/unbit/{uid}");
        let socket = format!("{directory}/ns.socket");
        sh(format!("mkdir -p {directory} && rm -f {socket}")).ok();
        let keeper = Command::new("/unbit/target/debug/door").args([&socket, pid, kind]).spawn().unwrap();
        eventually("the door", || fs::exists(&socket).unwrap().then_some(()));
        Self { keeper, directory }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        drop((self.keeper.kill(), self.keeper.wait()));
        sh(format!("rm -rf {} && rmdir --ignore-fail-on-non-empty /run/unbit", self.directory)).ok();
    }
}
