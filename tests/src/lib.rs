//! Helpers for tests that run on a test node (see `tests/node/run`): commands, logins, the log,
//! changes that are undone.
//!
//! They panic if something fails, so they are for tests only.

pub mod agent;
pub mod api;
pub mod linked;
pub mod nss;
pub mod nss_fuzz;
pub mod registers;
pub mod scm_rights;
pub mod supervision;
pub mod tenant;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

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
    show_evidence_on_panic();
    let mut child = Command::new("timeout")
        .args(["--kill-after=1", "60", program])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (ended, end) = mpsc::channel::<()>();
    let (done, seen) = std::thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(input)));
        // Looked at before it is killed, because nothing is left to see afterwards.
        let late = scope.spawn(move || {
            (end.recv_timeout(Duration::from_secs(50)) == Err(RecvTimeoutError::Timeout)).then(evidence)
        });
        let done = child.wait_with_output().unwrap();
        drop(ended);
        (done, late.join().unwrap().unwrap_or_default())
    });
    assert_ne!(done.status.code(), Some(124), "{program} {arguments:?} hung\n{done:?}\n{seen}");
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

/// The option of sftp(1) for sshd's other port, whose sftp server is internal-sftp.
pub const INTERNAL_SFTP: &str = "-P2222";

/// What a line of the node's system log begins with: facility authpriv, and LOG_ERR, LOG_INFO or
/// LOG_DEBUG of syslog(3).
pub const ERR: &str = "<83>";
/// See [`ERR`].
pub const INFO: &str = "<86>";
/// See [`ERR`].
pub const DEBUG: &str = "<87>";

/// What marks a place in the log, see [`Log::text`].
const LOG_MARK: &str = "unbit-tests-mark-";

/// The node's system log from some moment on.
pub struct Log(usize);

impl Log {
    /// Where it is.
    pub const FILE: &str = "/var/log/syslog";

    /// From now on.
    pub fn from_now() -> Self {
        Self::flush();
        Self(fs::read(Self::FILE).unwrap().len())
    }

    /// Where in the file that moment is.
    pub const fn start(&self) -> usize {
        self.0
    }

    /// Waits until everything that was sent to the log before now is in the file: messages arrive
    /// in the order in which they were sent.
    #[track_caller]
    fn flush() {
        static MARKS: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("{LOG_MARK}{}-{}", std::process::id(), MARKS.fetch_add(1, Ordering::Relaxed));
        // A test may have put something else in the place of /dev/log.
        let is_sent = UnixDatagram::unbound().unwrap().send_to(mark.as_bytes(), "/dev/log").is_ok();
        let start = Instant::now();
        while is_sent && !String::from_utf8_lossy(&fs::read(Self::FILE).unwrap()).contains(&mark) {
            assert!(start.elapsed() < Duration::from_secs(10), "never in {}: {mark}", Self::FILE);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// All of it, for the message of a test that fails.
    pub fn all() -> String {
        Self(0).text()
    }

    /// What has been written.
    #[track_caller]
    pub fn text(&self) -> String {
        Self::flush();
        let text = String::from_utf8_lossy(&fs::read(Self::FILE).unwrap()[self.0..]).into_owned();
        text.split_inclusive('\n').filter(|line| !line.contains(LOG_MARK)).collect()
    }

    /// The lines of pam_unbit that contain this text.
    pub fn lines(&self, needle: &str) -> Vec<String> {
        let text = self.text();
        let ours = text.lines().filter(|line| line.contains("pam_unbit") && line.contains(needle));
        ours.map(str::to_owned).collect()
    }

    /// Waits for the one line of pam_unbit that contains this text, and returns it.
    #[track_caller]
    pub fn one_line(&self, needle: &str) -> String {
        eventually(format!("one log line with {needle:?} in {}", self.text()), || {
            let mut lines = self.lines(needle);
            let line = lines.pop()?;
            assert_eq!(lines, [""; 0], "one refusal, one line");
            Some(line)
        })
    }
}

/// Gives a container a `/dev/log` until it restarts, so that what sshd's child logs inside reaches
/// the node's system log.
pub fn log_from_inside(uid: u32) {
    sh(format!("node-syslog /proc/{}/root/dev/log", leader(uid))).ok();
}

/// Waits, for ten seconds at most, until there is an answer.
#[track_caller]
pub fn eventually<T>(what: impl Display, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether login(1) is util-linux's, Debian 13's, which opens its terminal again by a path that a
/// container with a /dev/pts of its own does not have.
pub fn login_reopens_its_terminal() -> bool {
    sh("login --version").out.contains("util-linux")
}

/// The text of a file, read when it is needed.
pub struct TextOf<'a>(pub &'a str);

impl Display for TextOf<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&fs::read_to_string(self.0).unwrap_or_default())
    }
}

/// What a test that fails shows: the node's processes, the end of its logs, and what clients in the
/// background have printed.
fn evidence() -> String {
    let ps = Command::new("timeout").args(["-sKILL", "10", "ps", "-eHo", "pid,ppid,uid,stat,args"]).output();
    let processes = ps.map_or_else(|error| error.to_string(), |ps| String::from_utf8_lossy(&ps.stdout).into_owned());
    let end_of = |file: &str| {
        let text = fs::read(file).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
        let lines: Vec<_> = text.lines().filter(|line| !line.contains(LOG_MARK)).collect();
        format!("-- the end of {file}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
    };
    let ends = [Log::FILE, "/var/log/emperor.log", CLIENT_ERRORS].map(end_of).join("\n");
    format!("-- the node's processes\n{processes}\n{ends}")
}

/// Has every test that fails show the node as it is at that moment.
fn show_evidence_on_panic() {
    static ONCE: Once = Once::new();
    if !std::thread::panicking() {
        ONCE.call_once(|| {
            let print = panic::take_hook();
            panic::set_hook(Box::new(move |what| {
                print(what);
                eprintln!("{}", evidence());
            }));
        });
    }
}

const CLIENT_ERRORS: &str = "/var/log/client-errors";

/// The standard error of a client in the background, which a test that fails shows.
pub fn client_errors() -> Stdio {
    fs::File::options().append(true).create(true).open(CLIENT_ERRORS).unwrap().into()
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

/// The pid on the node of a container's pid 1: of the one that root's link leads to, or else of the
/// Emperor's, for which it waits.
pub fn leader(uid: u32) -> String {
    linked::linked_leader(uid).unwrap_or_else(|| emperors_leader(uid))
}

/// Waits for the pid 1 of the Emperor's container, and returns its pid on the node.
pub fn emperors_leader(uid: u32) -> String {
    run("node-wait-container", &[&uid.to_string()], b"").ok()
}

/// The kinds of namespaces that a container has of its own.
pub const OWN_NAMESPACES: [&str; 5] = ["ipc", "mnt", "net", "pid", "uts"];

/// Says what this machine cannot show, where cargo does not swallow it. Unless something else says
/// too that it `lacks` what it takes, that is a failure under `CI=true`.
#[track_caller]
pub fn not_tried(why: impl Display, lacks: bool) {
    writeln!(std::io::stderr().lock(), "NOT TRIED: {why}").unwrap();
    let must_try = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(lacks || !must_try, "NOT TRIED, and nothing says why not: {why}");
}

/// Whether the kernel was built without this option. If it does not say how it was built, it counts
/// as lacking the option.
pub fn kernel_lacks(option: &str) -> bool {
    !fs::exists("/proc/config.gz").unwrap()
        || sh(format!("zcat /proc/config.gz | grep -qx '# {option} is not set'")).status == Some(0)
}

/// Whether this layout of cgroups has the controllers of cgroup v1 out of reach: a machine has them
/// on one version.
pub fn layout_lacks_controllers() -> bool {
    std::env::var("NODE_LAYOUT").unwrap() == "v2"
}

/// A file that a test has changed; it is put back when the test ends, however it ends.
pub struct Changed {
    path: PathBuf,
    before: Vec<u8>,
    time: Option<SystemTime>,
}

impl Changed {
    /// Rewrites a file.
    pub fn file(path: impl AsRef<Path>, change: impl FnOnce(&str) -> String) -> Self {
        Self::write(path.as_ref(), None, change)
    }

    /// Rewrites the file of a container that goes on running: the Emperor restarts a container
    /// whose file has a newer time than before.
    pub fn unseen_by_the_emperor(path: impl AsRef<Path>, change: impl FnOnce(&str) -> String) -> Self {
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        Self::write(path.as_ref(), Some(time), change)
    }

    fn write(path: &Path, time: Option<SystemTime>, change: impl FnOnce(&str) -> String) -> Self {
        let before = fs::read(path).unwrap();
        let text = String::from_utf8_lossy(&before).into_owned();
        let after = change(&text);
        assert_ne!(text, after, "{} is not changed", path.display());
        let changed = Self { path: path.to_owned(), before, time };
        changed.put(after.as_bytes());
        changed
    }

    fn put(&self, text: &[u8]) {
        let vassals = Path::new("/etc/uwsgi/vassals");
        if self.path.parent() != Some(vassals) {
            return fs::write(&self.path, text).unwrap();
        }
        // The Emperor compares whole seconds, so a second change within one would be lost on it.
        let time = self.time.unwrap_or_else(|| {
            let next = fs::metadata(&self.path).unwrap().modified().unwrap() + Duration::from_secs(1);
            next.max(SystemTime::now())
        });
        let new = "/etc/uwsgi/changed"; // and not next to it, where the Emperor looks
        fs::copy(&self.path, new).unwrap();
        fs::write(new, text).unwrap();
        fs::File::options().write(true).open(new).unwrap().set_modified(time).unwrap();
        fs::rename(new, &self.path).unwrap();
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        self.put(&self.before);
    }
}

/// Something to do when the test ends, however it ends.
pub struct AtEnd<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A symbolic link in /containers, until this is dropped: `web1 -> 30001` is a second name of
/// 30001.
pub fn second_name(name: &str, target: &str) -> AtEnd<impl FnMut()> {
    let link = format!("/containers/{name}");
    symlink(target, &link).unwrap_or_else(|error| panic!("{link}: {error}"));
    AtEnd(move || drop(fs::remove_file(&link)))
}

/// Lets container users in through another service than sshd: our account and session lines, with
/// `join=now`, in front of its own.
pub fn join_now(service: &str) -> Changed {
    Changed::file(format!("/etc/pam.d/{service}"), |text| {
        format!(
            "account [success=done ignore=ignore default=die] pam_unbit.so join=now\n\
             session [success=done ignore=ignore default=die] pam_unbit.so join=now\n{text}"
        )
    })
}

/// sshd's PAM lines.
pub const SSHD_PAM: &str = "/etc/pam.d/sshd";

/// The file that a session would make if it was on the host.
pub const HOST_MARKER: &str = "/tmp/landed-on-the-host";

/// The clients that need no terminal.
pub const CLIENTS: [&[&str]; 4] = [
    &["ssh", "USER@node", "touch /tmp/landed-on-the-host"],
    &["sftp", "-b", "/dev/null", "USER@node"],
    &["sftp", INTERNAL_SFTP, "-b", "/dev/null", "USER@node"],
    &["ssh", "-N", "USER@node"],
];

/// Runs one of [`CLIENTS`], for ten seconds at most: a client that hangs is killed, and has the
/// status 137.
pub fn try_client(user: impl Display, client: &[&str]) -> Done {
    let words = client.iter().map(|word| word.replace("USER", &user.to_string())).collect::<Vec<_>>();
    let words = words.iter().map(String::as_str).collect::<Vec<_>>();
    run("timeout", &[&["-s", "KILL", "10"], &words[..]].concat(), b"")
}

/// Tries everything a client can come for. Each attempt must be refused with this sentence and one
/// log line with this cause.
#[track_caller]
pub fn assert_user_refused(user: &str, sentence: &str, cause: &str) {
    for client in CLIENTS {
        let log = Log::from_now();
        let done = try_client(user, client);
        assert_eq!(done.status, Some(255), "{client:?}: {done:?}\n{}", log.text());
        assert_eq!(done.out, "", "{client:?}: standard output is the protocol's");
        assert!(done.err.contains(sentence), "{client:?}: {done:?}");
        let line = log.one_line("refused:");
        assert!(line.contains(cause), "{line}");
        assert!(line.starts_with(ERR) && line.contains("pam_unbit(sshd:account)"), "{line}");
        eventually("sshd's own line", || log.text().contains("by PAM account configuration").then_some(()));
    }
    assert_no_session_on_the_host();
}

/// No container user has a process on the node, and none has been there.
#[track_caller]
pub fn assert_no_session_on_the_host() {
    assert!(!fs::exists(HOST_MARKER).unwrap(), "a session on the host");
    eventually("no process of a container's uid outside the containers", || {
        let processes = sh("ps -eo pid=,uid=,comm= | awk '$2 >= 30000 && $3 !~ /^perl/ {print $1}'").ok();
        let host = namespaces("self");
        let on_the_host = processes.split_whitespace().any(|pid| {
            !supervision::violations(pid).is_empty()
                && fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|link| link.to_string_lossy() == host["mnt"])
        });
        (!on_the_host).then_some(())
    });
}

/// Container 30001, root and an ordinary user log in. After a test this shows that the refusal had
/// no other reason.
#[track_caller]
pub fn assert_honest_logins() {
    leader(30001);
    assert_eq!(ssh(30001, "hostname").ok(), "c30001");
    for user in ["root", "alice"] {
        assert_eq!(ssh(user, "hostname").ok(), "node");
    }
}

/// Rewrites our lines of sshd's PAM file.
pub fn pam_lines(change: impl Fn(&str) -> String) -> Changed {
    let line = |line: &str| if line.contains("pam_unbit.so") { change(line) } else { line.to_owned() + "\n" };
    Changed::file(SSHD_PAM, |text| text.lines().map(line).collect())
}

/// Adds an option to each of our lines of sshd's PAM file.
pub fn with_option(option: &str) -> Changed {
    let option = format!("pam_unbit.so {option}");
    pam_lines(|line| line.replacen("pam_unbit.so", &option, 1) + "\n")
}

/// Removes our line of one type from sshd's PAM file.
pub fn without_line(kind: &str) -> Changed {
    pam_lines(|line| if line.starts_with(kind) { String::new() } else { line.to_owned() + "\n" })
}

/// Runs a script as root between the check of the container, in account, and the join.
pub fn between_check_and_join(script: &str) -> Changed {
    let file = "/tmp/between-check-and-join";
    fs::write(file, format!("#!/bin/bash\nexport PATH={}\n{script}\n", std::env::var("PATH").unwrap())).unwrap();
    sh(format!("chmod 755 {file}")).ok();
    pam_lines(|line| {
        let added = if line.starts_with("account") {
            format!("account optional pam_exec.so quiet {file}\n")
        } else {
            String::new()
        };
        format!("{line}\n{added}")
    })
}

/// Adds a line to /etc/passwd, with a home directory that the key which opens every account opens
/// too.
pub fn add_account(line: &str) -> Changed {
    let user = line.split(':').next().unwrap();
    sh(format!("install -d -m 755 /home/{user} && cp -r /root/.ssh /home/{user}/ && cp /root/.ssh/id_ed25519.pub /home/{user}/.ssh/authorized_keys")).ok();
    sh(format!("chown -R {} /home/{user} && chmod 700 /home/{user}/.ssh", line.split(':').nth(2).unwrap())).ok();
    Changed::file("/etc/passwd", |text| format!("{text}{line}\n"))
}

/// A value in a process's /proc/PID/status.
pub fn status_field(pid: &str, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// A session that stays open until this is dropped.
pub struct Session {
    /// The client.
    pub client: Child,
    /// The number, on the node, of the process that the session runs.
    pub process: String,
}

impl Session {
    /// A session by `ssh OPTIONS USER@node`. `marker` is a number of seconds that no other session
    /// sleeps, to find its process by.
    pub fn open(user: impl Display, options: &[&str], marker: u32) -> Self {
        let client = Command::new("ssh")
            .args(options)
            .args([format!("{user}@node"), format!("exec sleep {marker}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(client_errors())
            .spawn()
            .unwrap();
        let mut session = Self { client, process: String::new() };
        session.process = eventually("the session's process", || pgrep(&format!("^sleep {marker}$")));
        session
    }

    /// Its processes, from the one that it runs up to sshd's monitor, which is root's.
    pub fn processes(&self) -> Vec<String> {
        up_to_the_monitor(&self.process)
    }

    /// sshd's monitor.
    pub fn monitor(&self) -> String {
        self.processes().pop().unwrap()
    }
}

/// This process of a session and its ancestors, up to sshd's monitor, which is root's.
fn up_to_the_monitor(process: &str) -> Vec<String> {
    let mut processes = vec![process.to_owned()];
    loop {
        let last = processes.last().unwrap();
        if status_field(last, "Uid").is_some_and(|uid| uid.starts_with("0\t")) {
            return processes;
        }
        let parent = status_field(last, "PPid");
        processes.push(parent.unwrap_or_else(|| panic!("the parent of {last} in {}", sh("ps -efww").out)));
    }
}

/// A session with a terminal, which stays open until this is dropped.
pub struct Terminal {
    ssh: Child,
    /// Open as long as the client, which writes to it.
    out: ChildStdout,
    marker: u32,
}

impl Terminal {
    /// It has run this command, and waits; and what that has printed. `marker` as in
    /// [`Session::open`].
    pub fn open(user: &str, command: &str, marker: u32) -> (Self, String) {
        let script = format!("{command}; echo END; sleep {marker}");
        let mut ssh = Command::new("ssh");
        ssh.args(["-tt", "-oLogLevel=ERROR", &format!("{user}@node"), &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut ssh = ssh.spawn().unwrap();
        let out = ssh.stdout.take().unwrap();
        let mut open = Self { ssh, out, marker };
        let mut said = Vec::new();
        while !said.ends_with(b"END\r\n") {
            let mut byte = [0];
            assert_eq!(open.out.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
        (open, String::from_utf8(said).unwrap().replace("END\r\n", ""))
    }

    fn process(&self) -> Option<String> {
        pgrep(&format!("^sleep {}$", self.marker))
    }

    /// sshd's monitor.
    pub fn monitor(&self) -> String {
        up_to_the_monitor(&eventually("the session's process", || self.process())).pop().unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop((self.ssh.kill(), self.ssh.wait()));
        eventually("its end", || self.process().is_none().then_some(()));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop((self.client.kill(), self.client.wait()));
        // Without a terminal it would go on.
        sh(format!("kill -KILL {}", self.process));
        eventually("its end", || (!fs::exists(format!("/proc/{}", self.process)).unwrap()).then_some(()));
    }
}
