//! Who is a container user: the name and the uid of an account decide, and whether there is a
//! container of that number. Ordinary users whose uid is 30000 or more log in as before; no account
//! gets anything of a container that is not its own.

use std::fs;
use std::process::{Child, Command};
use unbit_tests::*;

/// An account in the node's own files, with a shadow line as useradd(8) writes it.
struct Account(#[expect(dead_code, reason = "dropped with it")] [Changed; 2]);

impl Account {
    fn add(line: &str) -> Self {
        let user = line.split(':').next().unwrap();
        let shadow = Changed::file("/etc/shadow", |text| format!("{text}{user}:*:19000:0:99999:7:::\n"));
        Self([add_account(line), shadow])
    }
}

/// A directory in /containers, until this is dropped. Its owner and group are numbers, whoever has
/// such a name.
fn directory(name: &str, owner: &str) -> AtEnd<impl FnMut()> {
    let path = format!("/containers/{name}");
    let owner = format!("+{}", owner.replace(':', ":+"));
    sh(format!("mkdir {path} && chown {owner} {path}")).ok();
    AtEnd(move || drop(sh(format!("rmdir {path}"))))
}

/// Whether by ssh, sftp or su with `join=now`: nothing of it may run, and each attempt must leave
/// one line in the log.
#[track_caller]
fn assert_kept_out(user: &str, cause: &str) {
    drop(fs::remove_file(HOST_MARKER)); // another test's
    let _su = join_now("su");
    let su = ["su", "USER", "-c", "touch /tmp/landed-on-the-host"];
    for way in CLIENTS.iter().copied().chain([&su[..]]) {
        let log = Log::from_now();
        let done = try_client(user, way);
        assert!(done.status != Some(0) && done.status != Some(137), "{way:?}: {done:?}\n{}", log.text());
        assert_eq!(done.out, "", "{way:?}");
        assert!(!fs::exists(HOST_MARKER).unwrap(), "{way:?}: a session on the node");
        let line = log.one_line("refused:");
        assert!(line.starts_with(ERR) && line.contains(user) && line.contains(cause), "{line}");
    }
    let uid = sh(format!("id -u {user}")).ok();
    eventually("the end of its processes", || {
        sh(format!("ps -eo uid=,args= | grep '^ *{uid} '")).out.is_empty().then_some(())
    });
}

/// By ssh, sftp and su, with and without lines of ours in front of su's own; and without a word in
/// the log.
#[track_caller]
fn assert_logs_in_as_ever(user: &str, uid: u32) {
    let log = Log::from_now();
    let place = format!("node {uid} {user}");
    let where_am_i = "echo $HOSTNAME $(id -u) $(id -un)";
    assert_eq!(ssh(user, where_am_i).ok(), place);
    let mounts = ssh(user, "readlink /proc/self/ns/mnt").ok();
    assert_eq!(mounts, namespaces("self")["mnt"]);
    for port in ["-P22", INTERNAL_SFTP] {
        let out = run("sftp", &["-q", "-b", "-", port, &format!("{user}@node")], b"pwd\n").ok();
        assert!(out.contains(&format!("Remote working directory: /home/{user}")), "{out}");
    }
    assert_eq!(run("su", &[user, "-c", where_am_i], b"").ok(), place);
    {
        let _su = join_now("su");
        assert_eq!(run("su", &[user, "-c", where_am_i], b"").ok(), place);
    }
    assert_eq!(log.lines(user), [""; 0]);
}

const LDAPUSER: &str = "ldapuser:x:41234:41234::/home/ldapuser:/bin/bash";

#[test]
#[ignore = "needs the node: make test"]
fn a_name_that_is_a_number_with_an_ordinary_uid() {
    // As by `useradd --badname 30005`.
    let _account = Account::add("30005:x:1001:1001::/home/30005:/bin/bash");
    assert_kept_out("30005", "1001");
    {
        let _container = directory("30005", "30005:30005");
        assert_kept_out("30005", "1001");
        assert_eq!(run("id", &["-G", "30005"], b"").ok(), "1001", "the container's group is not that user's");
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_name_that_is_another_containers_number() {
    let _container = directory("30012", "30012:30012");
    let _account = Account::add("30011:x:30012:30012::/home/30011:/bin/bash");
    assert_kept_out("30011", "30012");
}

#[test]
#[ignore = "needs the node: make test"]
fn an_ordinary_user_whose_uid_is_no_containers() {
    for line in
        [LDAPUSER, "ldapuser:x:41234:100::/home/ldapuser:/bin/bash", "far:x:2147483648:100::/home/far:/bin/bash"]
    {
        let _account = Account::add(line);
        let mut fields = line.split(':');
        assert_logs_in_as_ever(fields.next().unwrap(), fields.nth(1).unwrap().parse().unwrap());
    }
    let _account = Account::add(LDAPUSER);
    // The owner makes a directory a container; a file is none, nor is a link.
    let path = "/containers/41234";
    for make in [
        format!("mkdir {path}"),
        format!("mkdir {path} && chown 41234:0 {path}"),
        format!("mkdir {path} && chown 0:41234 {path}"),
        format!("touch {path} && chown 41234:41234 {path}"),
        format!("ln -s /home {path} && chown -h 41234:41234 {path}"),
    ] {
        sh(&make).ok();
        let _gone = AtEnd(|| drop(sh(format!("rm -r {path}")).ok()));
        let log = Log::from_now();
        assert_eq!(ssh("ldapuser", "hostname").ok(), "node", "{make}");
        let _su = join_now("su");
        assert_eq!(sh("su ldapuser -c 'id -un'").ok(), "ldapuser", "{make}");
        assert_eq!(log.lines("ldapuser"), [""; 0], "{make}");
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn an_ordinary_user_whose_uid_is_a_containers() {
    let _container = directory("41234", "41234:41234");
    for line in [LDAPUSER, "ldapuser:x:41234:100::/home/ldapuser:/bin/bash"] {
        let _account = Account::add(line);
        assert_kept_out("ldapuser", "41234");
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_right_name_and_uid_without_the_group() {
    let _container = directory("30013", "30013:30013");
    let _account = Account::add("30013:x:30013:100::/home/30013:/bin/bash");
    assert_kept_out("30013", "30013");
}

/// What is asked about this path fails in whatever sshd forks, until this is dropped.
struct Failing(Child);

impl Failing {
    fn with(errno: &str, path: &str) -> Self {
        let listener = sh("cat /run/sshd.pid").ok();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/tmp/failing.trace", "-e", "trace=%file", "-P", path]);
        strace.args(["-e", &format!("inject=%file:error={errno}"), "-p", &listener]);
        let failing = Self(strace.spawn().unwrap());
        eventually("strace", || (status_field(&listener, "TracerPid")? != "0").then_some(()));
        failing
    }

    /// How often it has failed.
    fn count(&self) -> usize {
        fs::read_to_string("/tmp/failing.trace").unwrap().matches("(INJECTED)").count()
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        sh(format!("kill -INT {}", self.0.id())).ok();
        drop(self.0.wait());
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_disk_that_does_not_answer_refuses() {
    let _account = Account::add(LDAPUSER);
    for errno in ["EIO", "EACCES", "ENOMEM", "ESTALE"] {
        let failing = Failing::with(errno, "/containers/41234");
        let log = Log::from_now();
        let done = ssh("ldapuser", &format!("touch {HOST_MARKER}"));
        assert_eq!(done.status, Some(255), "{errno}: {done:?}\n{}", log.text());
        let line = log.one_line("refused:");
        assert!(line.contains(errno) && line.contains("41234"), "{line}");
        assert!(failing.count() > 0, "the witness: the directory was looked for");
        assert!(!fs::exists(HOST_MARKER).unwrap(), "a session on the node");
        // Whoever has an ordinary uid is not asked about.
        assert_eq!(ssh("alice", "hostname").ok(), "node");
        assert_eq!(ssh(30001, "hostname").ok(), "c30001");
    }
    assert_logs_in_as_ever("ldapuser", 41234);
}
