//! `unbitctl check` of what else a container's number reaches: the programs of a node, besides
//! sshd's sessions, that take it for a user of the node.

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use unbit_tests::*;

/// What one check says: state, what was seen, and what to do.
type Finding = (String, String, Option<String>);

#[track_caller]
fn check(name: &str) -> Vec<Finding> {
    check_by("unbitctl check --guide uwsgi.it --json", name)
}

#[track_caller]
fn check_by(command: &str, name: &str) -> Vec<Finding> {
    let done = sh(command);
    let json: Value = serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let of_it = json.as_array().unwrap().iter().filter(|finding| finding["check"] == name);
    of_it
        .map(|finding| (text(&finding["state"]).unwrap(), text(&finding["seen"]).unwrap(), text(&finding["fix"])))
        .collect()
}

/// The one finding of this state; its words hold a text.
#[track_caller]
fn one(findings: &[Finding], state: &str, words: &str) -> Option<String> {
    let found: Vec<_> = findings.iter().filter(|(is, seen, _)| is == state && seen.contains(words)).collect();
    assert_eq!(found.len(), 1, "no {state} with {words:?}, or more than one, in {findings:#?}");
    found[0].2.clone()
}

#[track_caller]
fn assert_healthy(name: &str) {
    let findings = check(name);
    assert!(!findings.is_empty() && findings.iter().all(|(state, ..)| state == "ok"), "{findings:#?}");
}

fn append<'a>(line: &'a str) -> impl FnOnce(&str) -> String + 'a {
    move |text| format!("{text}{line}\n")
}

#[test]
#[ignore = "needs the node: make test"]
fn an_account_with_a_containers_name_or_number() {
    assert_healthy("accounts");
    {
        // The account was there before the container: of one that is there useradd(8) knows the
        // name to be taken.
        assert_eq!(sh("useradd --badname --uid 2001 30001").status, Some(9));
        sh("useradd --badname --uid 2001 30555 2>/dev/null").ok();
        let _gone = AtEnd(|| drop(sh("userdel 30555; userdel other; rmdir /containers/30555")));
        one(&check("accounts"), "warn", "the account 30555 has the uid 2001, and a container's name");
        sh("install -d -o 30555 -g 30555 /containers/30555").ok();
        let fix = one(&check("accounts"), "fail", "the account 30555 has the uid 2001, and /containers/30555 is there");
        assert_eq!(fix.as_deref(), Some("usermod --login ANOTHER_NAME 30555"));
        sh(fix.unwrap().replace("ANOTHER_NAME", "other")).ok();
        assert_healthy("accounts");
    }
    {
        let _other = Changed::file("/etc/passwd", append("30999:x:2002:2002::/:/bin/sh"));
        one(&check("accounts"), "warn", "the account 30999 has the uid 2002");
    }
    {
        let _same = Changed::file("/etc/passwd", append("30001:x:30001:30001::/containers/30001:/bin/bash"));
        one(&check("accounts"), "warn", "a line of its own for the container 30001");
    }
    {
        let _number = Changed::file("/etc/passwd", append("web:x:30001:30001::/:/bin/sh"));
        one(&check("accounts"), "fail", "the account web has the uid of the container 30001");
    }
    // A name that would draw lines of its own in a terminal.
    {
        let _name = Changed::file("/etc/passwd", append("a\x1b[2Kb\r:x:30001:30001::/:/bin/sh"));
        let text = sh("unbitctl check").out;
        assert!(text.contains("the account a\\u{1b}[2Kb\\u{d} has"), "{text}");
    }
    assert_healthy("accounts");
}

/// An ordinary user is its subordinate ids by newuidmap(1); which one is a container's, the kernel
/// does not care.
#[test]
#[ignore = "needs the node: make test"]
fn subordinate_ids_that_are_containers() {
    let kept = fs::read_to_string("/etc/login.defs").unwrap();
    sh("touch /etc/subuid /etc/subgid").ok();
    let files = ["/etc/subuid", "/etc/subgid", "/etc/login.defs"].map(|file| (file, fs::read(file).unwrap()));
    let _back = AtEnd(|| {
        files.iter().for_each(|(file, content)| fs::write(file, content).unwrap());
        drop(sh("userdel -r carol; userdel -r dave; rmdir /containers/100005"));
    });
    for file in ["/etc/subuid", "/etc/subgid"] {
        fs::write(file, "").unwrap();
    }
    // Debian's default, and what it does.
    for kind in ["SUB_UID", "SUB_GID"] {
        assert!(kept.contains(&format!("{kind}_MIN")), "{kept}");
    }
    let given = check("subids");
    assert_eq!(given.len(), 3, "{given:#?}");
    one(&given, "ok", "no range in /etc/subuid or /etc/subgid has the number of a container");
    let fixes = [one(&given, "warn", "(/etc/subuid)").unwrap(), one(&given, "warn", "(/etc/subgid)").unwrap()];
    sh("useradd carol").ok();
    let range = sh("sed -n 's/^carol://p' /etc/subuid").ok();
    assert_eq!(range, "100000:65536");
    let usermod = one(&check("subids"), "warn", "/etc/subuid: carol has 100000-165535: no container may get").unwrap();
    assert_eq!(usermod, "usermod --del-subuids 100000-165535 carol");
    sh("install -d -o 100005 -g 100005 /containers/100005").ok();
    let usermod = one(
        &check("subids"),
        "fail",
        "/etc/subuid: carol has 100000-165535, and so the number of the container 100005",
    )
    .unwrap();
    sh(usermod).ok();
    sh(one(&check("subids"), "fail", "/etc/subgid: carol").unwrap()).ok();
    // What useradd gives after what is to be done is done.
    for (fix, kind) in fixes.iter().zip(["SUB_UID", "SUB_GID"]) {
        assert_eq!(fix, &format!("set {kind}_COUNT 0 in /etc/login.defs"));
        sh(format!("sed -i '/^{kind}_COUNT/d' /etc/login.defs; echo {kind}_COUNT 0 >>/etc/login.defs")).ok();
    }
    assert_healthy("subids");
    sh("useradd dave").ok();
    assert_healthy("subids");
    // Those of root, for other engines.
    fs::write("/etc/subuid", "root:100000:65536\n").unwrap();
    one(&check("subids"), "warn", "so what root starts with them has the uid of the container 100005");
    fs::write("/etc/subuid", "root:1000000:65536\n").unwrap();
    assert_healthy("subids");
}

#[test]
#[ignore = "needs the node: make test"]
fn limits_that_limit_nothing() {
    assert_healthy("limits");
    for line in ["30001 hard nproc 5", "%30001 - maxlogins 4", "30000: hard nofile 100"] {
        let file = "/etc/security/limits.d/x.conf";
        fs::create_dir_all("/etc/security/limits.d").unwrap();
        fs::write(file, format!("# {line}\n\n{line}\n")).unwrap();
        let _gone = AtEnd(|| fs::remove_file(file).unwrap());
        let domain = line.split(' ').next().unwrap();
        one(&check("limits"), "warn", &format!("{file}:3: {domain}"));
    }
    assert_healthy("limits");
    // So it is: the line has no effect on a session.
    let limits = |user: &str| ssh(user, "ulimit -n").ok();
    let before = limits("30001");
    let _line = Changed::file("/etc/security/limits.conf", append("30001 - nofile 321\nalice - nofile 321"));
    assert_eq!((limits("30001"), limits("alice")), (before, "321".to_owned()));
}

#[test]
#[ignore = "needs the node: make test"]
fn files_of_keys_that_sshd_reads_whole() {
    let file = "/containers/30001/.ssh/authorized_keys";
    let _gone = AtEnd(|| drop(fs::remove_file(file)));
    one(&check("keyfiles"), "warn", "its cgroup has no memory limit");
    let group = "/sys/fs/cgroup/memory/sshd-of-the-test";
    if sh(format!("mkdir {group} && test -e {group}/memory.limit_in_bytes")).status != Some(0) {
        drop(sh(format!("rmdir {group}")));
        return not_tried("no controller memory of cgroup v1 to set a limit with", true);
    }
    let pid = fs::read_to_string("/run/sshd.pid").unwrap();
    let listener = pid.trim();
    let before =
        sh(format!("sed -n 's/.*[:,]memory[,:]\\(.*\\)/\\1/p' /proc/{listener}/cgroup | sed 's/^[^/]*//'")).ok();
    let _back = AtEnd(|| {
        sh(format!("echo {listener} >/sys/fs/cgroup/memory{before}/cgroup.procs")).ok();
        // A monitor that it forked ends a moment after its client.
        eventually("the end of its monitors", || (sh(format!("rmdir {group}")).status == Some(0)).then_some(()));
    });
    sh(format!("echo {listener} >{group}/cgroup.procs")).ok();
    one(&check("keyfiles"), "warn", "no memory limit");
    sh(format!("echo 100M >{group}/memory.limit_in_bytes")).ok();
    one(&check("keyfiles"), "ok", "100 MiB");
    // What the limit is for: one line of 1 GB on no disk block ends its own connection and nothing
    // else.
    sh(format!("setpriv --reuid 30001 --regid 30001 --clear-groups truncate -s 1G {file}")).ok();
    assert_eq!(sh(format!("du -k {file} | cut -f1")).ok(), "0");
    assert_eq!(ssh(30001, "true").status, Some(255));
    let most: u64 = sh(format!("cat {group}/memory.max_usage_in_bytes")).ok().parse().unwrap();
    assert!(most > 99 << 20, "sshd took {most} bytes");
    assert_eq!(ssh("alice", "echo still here").ok(), "still here");
    fs::remove_file(file).unwrap();
    assert_eq!(ssh(30001, "echo still here").ok(), "still here");
}

/// To read a command line takes the lock of its process's memory, which a tenant's process can hold
/// for seconds.
#[test]
#[ignore = "needs the node: make test"]
fn no_command_line_of_a_tenants_is_read() {
    const TRACE: &str = "/tmp/doors.trace";
    // sshd is looked for by number, and comes behind the containers' processes.
    sh("node-sshd restart").ok();
    let tenants = ["30000", "30001"].map(|uid| leader(uid.parse().unwrap()));
    let sshd = fs::read_to_string("/run/sshd.pid").unwrap().trim().to_owned();
    let after = tenants.iter().all(|pid| pid.parse::<i32>().unwrap() < sshd.parse().unwrap());
    assert!(after, "{tenants:?} {sshd}");
    let _gone = AtEnd(|| drop(fs::remove_file(TRACE)));
    sh(format!(
        "strace -f -e trace=open,openat -o {TRACE} unbitctl check --guide uwsgi.it >/dev/null; test -s {TRACE}"
    ))
    .ok();
    let trace = fs::read_to_string(TRACE).unwrap();
    let is_read = |pid: &String| trace.contains(&format!("\"/proc/{pid}/cmdline\""));
    assert!(is_read(&sshd) || trace.contains("/cmdline\""), "no command line is read: {trace}");
    assert!(!tenants.iter().any(is_read), "{tenants:?}: {trace}");
}

/// A container made by hand: a process that is pid 1 of its own pid namespace and a container's
/// user, with mounts of its own.
struct Made(Child);

impl Made {
    /// `mounts` is done there before root is given up. What it says to the log is a tenant's word.
    fn with(uid: u32, mounts: &str) -> Self {
        let say = "use Socket; socket(S, AF_UNIX, SOCK_DGRAM, 0); connect(S, sockaddr_un('/dev/log')) and \
            send(S, '<86>Nov 25 12:00:00 sshd[1]: pam_unbit(sshd:session): container 30000: forged', 0); $| = 1; print qq(said\\n); sleep 60";
        let script = format!("{mounts}; exec setpriv --reuid {uid} --regid {uid} --clear-groups perl -e \"$0\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", &script, say]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "said\n");
        Self(child)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_log_that_containers_write_into() {
    const FORGED: &str = "container 30000: forged";
    sh("node-emperor stop").ok();
    let _back = AtEnd(|| drop(sh("node-emperor start && node-wait-container 30000 && node-wait-container 30001")));
    let log = Log::from_now();
    {
        let _made = Made::with(30007, "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3");
        one(&check("log"), "ok", "the one container that runs does not reach the node's log");
    }
    assert_eq!(log.lines(FORGED), [""; 0], "{}", log.text());
    {
        let _made = Made::with(30007, ":");
        eventually("the forged line", || log.text().contains(FORGED).then_some(()));
        let fix = one(&check("log"), "warn", "can reach the node's log, by /dev/log: 30007").unwrap();
        assert!(fix.contains("a /dev of its own"), "{fix}");
        let _other = Made::with(30008, "mkdir -p /srv/deep && mount --bind /dev /srv/deep");
        one(&check("log"), "warn", "by /dev/log: 30007 30008");
    }
}

/// What the mail servers themselves do: `tests/mail`.
#[test]
#[ignore = "needs the node: make test"]
fn no_mail_server() {
    assert_healthy("mail");
    let _other = AtEnd(|| fs::remove_file("/usr/sbin/sendmail").unwrap());
    std::os::unix::fs::symlink("/bin/true", "/usr/sbin/sendmail").unwrap();
    one(&check("mail"), "not-applicable", "neither exim nor postfix");
}
