//! `unbitctl check UID`, `list` and `enter`, on a node whose containers work, and on one where each
//! thing in turn does not.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use unbit_tests::linked::Link;
use unbit_tests::*;

const SOCKET: &str = "/containers/30001/run/ns.socket";

/// A finding of `unbitctl check 30001`, as its JSON has it.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    check: String,
    state: String,
    seen: String,
    fix: String,
}

/// What it finds, and its exit status.
fn check() -> (Vec<Finding>, Option<i32>) {
    let done = run("unbitctl", &["check", "30001", "--json"], b"");
    let rows = "import json, sys
for f in json.load(sys.stdin): print(f['check'], f['state'], f['seen'], (f['fix'] or '').replace('\\n', ' / '), sep='\\t')";
    let rows = run("python3", &["-c", rows], done.out.as_bytes()).ok();
    let finding = |row: &str| {
        let mut cells = row.split('\t').map(str::to_owned);
        let mut next = || cells.next().unwrap_or_default();
        Finding { check: next(), state: next(), seen: next(), fix: next() }
    };
    (rows.lines().map(finding).collect(), done.status)
}

/// A login would not work: it ends at this step, for this cause.
#[track_caller]
fn assert_ends_at(step: &str, cause: &str) -> Finding {
    let (mut findings, status) = check();
    assert_eq!(status, Some(1), "{findings:#?}");
    let last = findings.pop().unwrap();
    let failed = match last.state.as_str() {
        "not-applicable" => {
            assert!(last.seen.starts_with("not tried, like all later steps"), "{last:?}");
            findings.pop().unwrap()
        }
        _ => last, // there is nothing after it
    };
    assert_eq!((failed.check.as_str(), failed.state.as_str()), (step, "fail"), "{failed:?}");
    assert!(failed.seen.contains(cause), "{failed:?}");
    assert!(!failed.fix.is_empty(), "{failed:?}");
    assert!(findings.iter().all(|before| ["ok", "warn"].contains(&before.state.as_str())), "{findings:#?}");
    failed
}

/// The same, and pam_unbit.so refuses a login with the very words.
#[track_caller]
fn assert_ends_as_a_login(step: &str, cause: &str) {
    let failed = assert_ends_at(step, cause);
    let log = Log::from_now();
    let done = ssh(30001, "true");
    assert_eq!(done.status, Some(255), "{done:?}");
    let line = log.one_line("refused: ");
    let refused = line.split_once("refused: ").unwrap().1;
    // Numbers of processes differ from one try to the next only where the process does.
    assert!(failed.seen.starts_with(refused), "check: {}\nlogin: {refused}", failed.seen);
    let told = failed.seen.split_once("the user reads: ").unwrap().1;
    assert!(done.err.contains(told), "check: {told}\nlogin: {}", done.err);
}

#[track_caller]
fn assert_login_works() {
    leader(30001);
    assert_eq!(ssh(30001, "hostname").ok(), "c30001");
    let (findings, status) = check();
    let steps: Vec<_> = findings.iter().map(|finding| (finding.check.as_str(), finding.state.as_str())).collect();
    let all = [
        "account",
        "sshd",
        "pam",
        "keys",
        "reach",
        "verify",
        "namespaces",
        "cgroups",
        "terminals",
        "join",
        "home",
        "shell",
    ];
    assert_eq!(steps, all.map(|step| (step, "ok")), "{findings:#?}");
    assert_eq!(status, Some(0));
}

/// Something else in a file's place, until this is dropped.
fn instead(path: &str, made: &str) -> AtEnd<impl FnMut() + use<>> {
    sh(format!("mv {path} {path}.kept && {made}")).ok();
    let back = format!("rm -rf {path} && mv {path}.kept {path}");
    AtEnd(move || drop(sh(&back)))
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_works() {
    let members =
        || sh("cat /sys/fs/cgroup/*/30001/cgroup.procs /sys/fs/cgroup/30001/cgroup.procs 2>/dev/null | sort -u").ok();
    let before = members();
    assert_login_works();
    assert_eq!(members(), before, "nothing is left behind");
    let text = run("unbitctl", &["check", "30001"], b"").ok();
    let last = text.lines().nth_back(1).unwrap(); // behind it they are counted
    assert_eq!(last.split_whitespace().collect::<Vec<_>>(), ["ok", "shell", "/bin/bash", "runs"]);
    assert!(!text.contains('\x1b'), "no colour but on a terminal");
}

#[test]
#[ignore = "needs the node: make test"]
fn the_account() {
    {
        sh("chown 0:0 /containers/30001").ok();
        let _back = AtEnd(|| drop(sh("chown 30001:30001 /containers/30001")));
        let failed = assert_ends_at("account", "/containers/30001 belongs to 0:0");
        assert_eq!(failed.fix, "chown 30001:30001 /containers/30001");
        assert!(ssh(30001, "true").err.contains("Permission denied (publickey)"), "a login does not work either");
    }
    {
        let _nsswitch = Changed::file("/etc/nsswitch.conf", |text| text.replace("unbit", ""));
        assert_eq!(assert_ends_at("account", "nsswitch.conf lacks unbit").fix, "unbitctl setup nsswitch");
    }
    {
        let _other = Changed::file("/etc/passwd", |text| format!("{text}30001:x:30001:0::/root:/bin/bash\n"));
        let failed = assert_ends_at("account", "the account 30001 is uid 30001 and gid 0, not uid and gid 30001");
        assert!(failed.fix.starts_with("remove the line of 30001 from /etc/passwd"), "{failed:?}");
        assert_eq!(ssh(30001, "true").status, Some(255));
    }
    {
        fs::write("/etc/nologin", "").unwrap();
        let _end = AtEnd(|| fs::remove_file("/etc/nologin").unwrap());
        assert_ends_at("account", "nologin is there");
        assert_eq!(ssh(30001, "true").status, Some(255));
    }
    let absent = run("unbitctl", &["check", "30008"], b"");
    assert_eq!(absent.status, Some(1));
    assert!(absent.out.contains("FAIL  account  there is no directory /containers/30008"), "{absent:?}");
    assert_login_works();
}

/// A line that a test adds to /etc/passwd, with a home directory where our key opens the account.
fn with_account(line: &str) -> (Changed, AtEnd<impl FnMut() + use<>>) {
    let mut fields = line.split(':');
    let (name, uid) = (fields.next().unwrap().to_owned(), fields.nth(1).unwrap().to_owned());
    let home = format!("/home/{name}");
    sh(format!(
        "install -d -o {uid} -m 755 {home}; install -d -o {uid} -m 700 {home}/.ssh
        install -o {uid} -m 600 /root/.ssh/id_ed25519.pub {home}/.ssh/authorized_keys"
    ))
    .ok();
    let end = AtEnd(move || drop(sh(format!("rm -r {home}"))));
    (Changed::file("/etc/passwd", |text| format!("{line}\n{text}")), end)
}

/// Who is a container's user is a matter of name, uid and directory together.
#[test]
#[ignore = "needs the node: make test"]
fn accounts_that_are_not_the_containers() {
    let account = |uid: &str| {
        let done = run("unbitctl", &["check", uid, "--json"], b"");
        let text = run("python3", &["-c", "import json, sys; f = json.load(sys.stdin)[0]; print(f['state'], f['check'], f['seen'], f['fix'], sep='\t')"], done.out.as_bytes()).ok();
        assert_eq!(done.status, Some(1), "{text}");
        let cells: Vec<_> = text.split('\t').map(str::to_owned).collect();
        let [state, check, seen, fix] = cells.try_into().unwrap();
        assert_eq!((state.as_str(), check.as_str()), ("fail", "account"), "{seen}");
        (seen, fix)
    };
    // useradd --badname 30005, with and without a container of that number.
    let owned = |owner: &str| format!("mkdir /containers/30005 && chown {owner} /containers/30005");
    for (made, begins) in [
        (owned("+30005:+30005"), ""),
        (owned("30005:+30005"), "/containers/30005 belongs to 1001:30005, and "),
        ("true".to_owned(), "there is no directory /containers/30005, and "),
    ] {
        let _account = with_account("30005:x:1001:1001::/home/30005:/bin/bash");
        sh(&made).ok();
        let _gone = AtEnd(|| drop(sh("rm -rf /containers/30005")));
        let (seen, fix) = account("30005");
        let cause = "the account 30005 is uid 1001 and gid 1001, not uid and gid 30005, so it is not a container's";
        let cause = format!("{begins}{cause}: its logins are refused");
        assert_eq!(seen, cause, "{made}");
        assert!(fix.starts_with("remove the line of 30005 from /etc/passwd"), "{fix}");
    }
    {
        let _account = with_account("30009:x:30009:30009::/home/30009:/bin/bash");
        let (seen, _) = account("30009");
        assert_eq!(
            seen,
            "there is no directory /containers/30009, though there is an account 30009: its logins are refused"
        );
        assert_eq!(ssh(30009, "true").status, Some(255));
    }
    {
        let _account = with_account("carol:x:41234:41234::/home/carol:/bin/bash");
        let (seen, fix) = account("41234");
        let cause = "there is no directory /containers/41234, so 41234 is not a container; the uid is that of carol, an ordinary account";
        assert!(seen.starts_with(cause), "{seen}");
        assert!(fix.starts_with("nothing, unless there should be a container 41234"), "{fix}");
    }
    {
        // The container's user is who it was; the other name is refused.
        let _account = with_account("bob:x:30001:30001::/home/bob:/bin/bash");
        let (findings, status) = check();
        assert_eq!((findings[1].check.as_str(), findings[1].state.as_str()), ("account", "warn"), "{findings:#?}");
        assert!(findings[1].seen.starts_with("the account bob has the uid 30001 as well: logins of bob are refused"));
        assert_eq!((findings.last().unwrap().check.as_str(), status), ("shell", Some(0)), "{findings:#?}");
        assert_eq!(ssh(30001, "hostname").ok(), "c30001");
        assert_eq!(ssh("bob", "hostname").status, Some(255));
    }
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_pam_lines() {
    for kind in ["auth", "account", "session"] {
        let without = |text: &str| -> String {
            let stays = |line: &&str| !(line.starts_with(kind) && line.contains("pam_unbit.so"));
            text.lines().filter(stays).map(|line| line.to_owned() + "\n").collect()
        };
        let _line = Changed::file("/etc/pam.d/sshd", without);
        let failed = assert_ends_at("pam", &format!("there is no {kind} line of pam_unbit.so"));
        assert_eq!(failed.fix, "unbitctl setup pam");
    }
    {
        let _module = instead(&sh("ls /usr/lib/*/security/pam_unbit.so").ok(), "true");
        assert_ends_at("pam", "there is no /usr/lib/");
        assert_eq!(ssh(30001, "true").status, Some(255));
    }
    {
        let _option = with_option("timout=5");
        assert_ends_at("pam", "unknown option: timout=5");
        let log = Log::from_now();
        assert_eq!(ssh(30001, "true").status, Some(255));
        log.one_line("unknown option: timout=5");
    }
    {
        let _option = with_option("join=now");
        assert_ends_at("pam", "join=now is not for sshd");
    }
    {
        let _option = with_option("namespaces=mnt,pid timeout=7");
        let (findings, status) = check();
        assert_eq!(status, Some(0), "{findings:#?}");
        let seen = |step| findings.iter().find(|finding| finding.check == step).unwrap().seen.clone();
        assert_eq!(seen("namespaces"), "pid,mnt", "the options are the login's");
        assert!(seen("pam").contains("timeout=7"));
    }
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn what_the_pam_lines_let_in_and_should_not() {
    let before = |kind: &'static str, line: &'static str| {
        Changed::file("/etc/pam.d/sshd", move |text| {
            let lines = text.lines().map(|each| {
                let is_ours = each.starts_with(kind) && each.contains("pam_unbit.so");
                if is_ours { format!("{line}\n{each}\n") } else { format!("{each}\n") }
            });
            lines.collect()
        })
    };
    {
        let _option = Changed::file("/etc/pam.d/sshd", |text| text.replacen("pam_unbit.so", "pam_unbit.so debug", 1));
        let (findings, status) = check();
        assert_eq!((findings[3].check.as_str(), findings[3].state.as_str(), status), ("pam", "warn", Some(0)));
        assert!(findings[3].seen.contains("other options than in"), "{findings:#?}");
        assert_eq!(ssh(30001, "hostname").ok(), "c30001");
    }
    for line in ["session optional pam_motd.so", "session required pam_limits.so", "session include common-session"] {
        let _early = before("session", line);
        let (findings, status) = check();
        let last = findings.last().unwrap();
        assert_eq!((last.check.as_str(), last.state.as_str(), status), ("shell", "ok", Some(1)), "{findings:#?}");
        let file = if line.contains("include") { "common-session" } else { "sshd" };
        let place = format!("/etc/pam.d/{file} line ");
        assert_eq!((findings[3].check.as_str(), findings[3].state.as_str()), ("pam", "fail"), "{findings:#?}");
        assert!(findings[3].seen.starts_with(&place), "{findings:#?}");
        assert!(findings[3].seen.contains(" runs for container users: "), "{findings:#?}");
        assert_eq!(findings[3].fix, "unbitctl setup pam");
    }
    {
        let _jump = before("session", "session [success=1 default=ignore] pam_permit.so");
        assert_ends_at("pam", "pam_permit.so may end the stack before pam_unbit.so");
        assert_eq!(ssh(30001, "true").status, Some(255));
    }
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn whom_sshd_lets_in() {
    for (lines, cause) in [
        ("AllowUsers root alice", "AllowUsers root alice: 30001 is excluded"),
        ("DenyGroups 300*", "DenyGroups 300*: 30001 is excluded"),
        ("UsePAM no", "sshd does not use PAM"),
        ("ChrootDirectory /distros/base", "ChrootDirectory /distros/base"),
        ("Match User 30001\nPubkeyAuthentication no", "PubkeyAuthentication no"),
        ("NoSuchKeyword yes", "sshd -T: "),
    ] {
        let file = "/etc/ssh/sshd_config.d/00-a.conf";
        fs::write(file, format!("{lines}\n")).unwrap();
        let _end = AtEnd(|| fs::remove_file(file).unwrap());
        assert_ends_at(if lines.contains("Pubkey") { "keys" } else { "sshd" }, cause);
    }
    {
        let file = "/etc/ssh/sshd_config.d/00-a.conf";
        let _end = AtEnd(|| fs::remove_file(file).unwrap());
        fs::write(file, "ForceCommand uptime\n").unwrap();
        let (findings, status) = check();
        assert_eq!((findings[1].check.as_str(), findings[1].state.as_str(), status), ("sshd", "warn", Some(0)));
    }
    {
        sh("node-sshd stop").ok();
        let _up = AtEnd(|| drop(sh("node-sshd start")));
        let failed = assert_ends_at("sshd", "no sshd runs, and nothing listens on ");
        assert!(failed.seen.contains("0.0.0.0:22"), "{failed:?}");
        // A tenant's process of that name is none.
        let fake = "exec -a 'sshd: /usr/sbin/sshd [listener] 0 of 10-100 startups' sleep 60";
        let mut tenant = Command::new("setpriv")
            .args(["--reuid", "30001", "--regid", "30001", "--clear-groups", "bash", "-c", fake])
            .spawn()
            .unwrap();
        eventually("its title", || pgrep("^sshd: .*listener"));
        assert_ends_at("sshd", "no sshd runs, and nothing listens on ");
        drop((tenant.kill(), tenant.wait()));
    }
    assert_login_works();
}

/// What systemd and others may keep from sshd, each as a prefix of the command that starts it.
const READ_ONLY_CGROUPS: &str = "unshare -m --propagation private bash -ec 'for mount in $(findmnt -rno TARGET | grep ^/sys/fs/cgroup); do mount -o remount,bind,ro $mount; done; exec \"$@\"' -";
const NO_CONTAINERS: &str =
    "unshare -m --propagation private bash -ec 'mount -t tmpfs -o mode=0 none /containers; exec \"$@\"' -";
const NO_PTRACE: &str = "setpriv --bounding-set -sys_ptrace --inh-caps -sys_ptrace";

/// With `setns` answered by a filter of seccomp(2): SECCOMP_RET_ERRNO | EPERM, or
/// SECCOMP_RET_KILL_PROCESS.
fn filtered(answer: u32, call: &str) -> String {
    let file = "/tmp/filtered.py";
    fs::write(
        file,
        r#"import ctypes, os, struct, sys
answer, name, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
calls = {'x86_64': {'setns': 308, 'mount': 165}, 'aarch64': {'setns': 268, 'mount': 40}}[os.uname().machine]
call = (calls | {'open_tree': 428, 'move_mount': 429})[name]
program = b''.join(struct.pack('HBBI', *one) for one in [
    (0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, answer), (0x06, 0, 0, 0x7fff0000)])
code = ctypes.create_string_buffer(program, len(program))
fprog = ctypes.create_string_buffer(struct.pack('HxxxxxxP', 4, ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(22, 2, fprog, 0, 0) == 0, ctypes.get_errno()
os.execvp(command[0], command)
"#,
    )
    .unwrap();
    format!("python3 {file} {answer} {call}")
}

#[test]
#[ignore = "needs the node: make test"]
fn what_sshds_own_process_may_not_do() {
    const FILTER: &str = "(does sshd's service have SystemCallFilter=?): EPERM";
    let _up = AtEnd(|| drop(sh("node-sshd restart")));
    for (prefix, step, cause, more) in [
        (READ_ONLY_CGROUPS.to_owned(), "cgroups", "EROFS", "sshd runs in a mount namespace of its own"),
        (NO_PTRACE.to_owned(), "reach", "lacks CAP_SYS_PTRACE", "sshd runs without CAP_SYS_PTRACE"),
        (filtered(0x0005_0001, "setns"), "terminals", "EPERM", "sshd runs with a seccomp filter"),
        (filtered(0x0005_0001, "mount"), "terminals", FILTER, "sshd runs with a seccomp filter"),
        (filtered(0x0005_0001, "open_tree"), "terminals", FILTER, "sshd runs with a seccomp filter"),
        (filtered(0x0005_0001, "move_mount"), "terminals", FILTER, "sshd runs with a seccomp filter"),
    ] {
        sh(format!("node-sshd stop && {prefix} node-sshd start")).ok();
        let failed = assert_ends_at(step, cause);
        assert!(failed.fix.contains(more), "{failed:?}");
        let log = Log::from_now();
        assert_eq!(ssh(30001, "true").status, Some(255), "{prefix}: {}", log.text());
        eventually("a line of the refusal", || log.text().contains(cause).then_some(()));
    }
    {
        sh(format!("node-sshd stop && {NO_CONTAINERS} node-sshd start")).ok();
        assert_ends_at("account", "there is no directory /containers/30001");
        assert_eq!(ssh(30001, "true").status, Some(255));
    }
    {
        sh(format!("node-sshd stop && {} node-sshd start", filtered(0x8000_0000, "setns"))).ok();
        assert_ends_at("terminals", "SIGSYS");
        assert_eq!(ssh(30001, "true").status, Some(255));
    }
    sh("node-sshd restart").ok();
    assert_login_works();
}

/// systemd listens, and starts an sshd for each connection: there is none to look at before.
#[test]
#[ignore = "needs the node: make test"]
fn an_sshd_for_each_connection() {
    const LISTENER: &str = r"import socket, subprocess, sys
open('/proc/self/comm', 'w').write('systemd')
with socket.create_server(('127.0.0.1', 22)) as server:
    print(flush=True)
    while True:
        client, _ = server.accept()
        subprocess.Popen(sys.argv[1:], stdin=client, stdout=client)
        client.close()
";
    struct Listener(Child);
    impl Drop for Listener {
        fn drop(&mut self) {
            drop((self.0.kill(), self.0.wait()));
        }
    }
    let listen = |prefix: &str| {
        let command = format!("exec python3 -c \"$LISTENER\" {prefix} /usr/sbin/sshd -i");
        let mut child = Command::new("bash")
            .args(["-c", &command])
            .env("LISTENER", LISTENER)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Listener(child)
    };
    sh("node-sshd stop").ok();
    let _up = AtEnd(|| drop(sh("node-sshd start")));
    {
        let _listener = listen("");
        assert_login_works();
    }
    {
        let _listener = listen(NO_PTRACE);
        assert_ends_as_a_login("reach", "lacks CAP_SYS_PTRACE");
    }
    {
        let _listener = listen("sleep 0 #");
        assert_ends_at("sshd", "no sshd answers");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn no_more_processes() {
    let found = ["/sys/fs/cgroup/pids/30001", "/sys/fs/cgroup/30001"];
    let Some(group) = found.into_iter().find(|group| fs::exists(format!("{group}/pids.max")).unwrap()) else {
        return not_tried("no controller pids in this layout", layout_lacks_controllers());
    };
    let now = || fs::read_to_string(format!("{group}/pids.current")).unwrap().trim().parse::<u32>().unwrap();
    assert_login_works();
    let limit = fs::read_to_string(format!("{group}/pids.max")).unwrap();
    let _back = AtEnd(|| fs::write(format!("{group}/pids.max"), &limit).unwrap());
    let processes = now();
    for room in [0, 1] {
        fs::write(format!("{group}/pids.max"), (processes + room).to_string()).unwrap();
        let failed = assert_ends_at("join", "EAGAIN");
        assert!(failed.fix.contains("its limit on the number of processes is reached"), "{failed:?}");
        assert_ne!(ssh(30001, "true").status, Some(0), "a login needs two");
    }
    fs::write(format!("{group}/pids.max"), (processes + 2).to_string()).unwrap();
    assert_eq!(check().1, Some(0), "{:#?}", check());
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_is_gone() {
    {
        sh("mv /etc/uwsgi/vassals/30001.ini /tmp").ok();
        let _back = AtEnd(|| drop(sh("mv /tmp/30001.ini /etc/uwsgi/vassals/")));
        let failed = eventually("the end of the container", || {
            let last = check().0.into_iter().rfind(|finding| finding.state == "fail")?;
            last.fix.contains("nothing starts this container").then_some(last)
        });
        assert_eq!(failed.check, "reach", "{failed:?}");
        assert!(failed.fix.contains("what is left is /containers/30001"), "{failed:?}");
    }
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_keys() {
    let keys = "/containers/30001/.ssh/uwsgi_authorized_keys";
    let as_the_tenant = |made: &str| format!("{} && chown -h 30001:30001 {keys}", made.replace("KEYS", keys));
    {
        let _none = instead(keys, "true");
        assert_ends_at("keys", "there is no authorized_keys file");
        assert_eq!(ssh(30001, "true").status, Some(255));
    }
    for (made, cause) in [
        (
            "ln -s /root/.ssh/authorized_keys KEYS",
            "uwsgi_authorized_keys: Permission denied (os error 13); it is a symbolic link to /root/.ssh/authorized_keys",
        ),
        ("ln -s nowhere KEYS", "there is no authorized_keys file"),
        ("ln -s /dev/zero KEYS", "bad ownership or modes for file /dev/zero"),
        ("mkfifo KEYS", "is not a regular file"),
        ("mkdir KEYS", "is not a regular file"),
        (
            "install -m 666 /root/.ssh/id_ed25519.pub KEYS",
            "bad ownership or modes for file /containers/30001/.ssh/uwsgi_authorized_keys",
        ),
    ] {
        let _odd = instead(keys, &as_the_tenant(made));
        assert_ends_at("keys", cause);
    }
    {
        let _text = instead(keys, &as_the_tenant("echo not a key >KEYS"));
        assert_ends_at("keys", "uwsgi_authorized_keys holds no key");
    }
    for (path, mode) in [("/containers/30001/.ssh", "0"), ("/containers", "700"), (keys, "600; chown 0:0")] {
        let before = sh(format!("stat -c '%a %u:%g' {path}; chmod {mode} {path}")).ok();
        let (before, owner) = before.split_once(' ').unwrap();
        let _back = AtEnd(|| drop(sh(format!("chown {owner} {path}; chmod {before} {path}"))));
        assert_ends_at("keys", "Permission denied");
        assert_eq!(ssh(30001, "true").status, Some(255), "{path}");
    }
    for (directory, cause) in [
        ("/containers/30001", "bad ownership or modes for directory /containers/30001"),
        ("/containers/30001/.ssh", "bad ownership or modes for directory /containers/30001/.ssh"),
    ] {
        let before = sh(format!("stat -c %a {directory}; chmod o+w {directory}")).ok();
        let _back = AtEnd(|| drop(sh(format!("chmod {before} {directory}"))));
        assert_ends_at("keys", cause);
        let log = Log::from_now();
        assert_eq!(ssh(30001, "true").status, Some(255));
        eventually("sshd's own line", || log.text().contains(cause).then_some(()));
    }
    {
        // A link is followed, as far as the user could follow it.
        let link =
            "install -o 30001 -g 30001 -m 600 /root/.ssh/id_ed25519.pub /containers/30001/.ssh/real; ln -s real KEYS";
        let _link = instead(keys, &as_the_tenant(link));
        assert_eq!(ssh(30001, "hostname").ok(), "c30001");
        let (findings, status) = check();
        assert_eq!((findings[3].state.as_str(), status), ("ok", Some(0)), "{findings:#?}");
    }
    {
        // Outside the home directory every directory counts.
        let _keys = instead(keys, "true");
        let file = "/etc/ssh/sshd_config.d/00-a.conf";
        fs::write(file, "AuthorizedKeysFile /etc/ssh/keys/%u\n").unwrap();
        sh("install -d -m 777 /etc/ssh/keys; cp /root/.ssh/id_ed25519.pub /etc/ssh/keys/30001").ok();
        let _end = AtEnd(|| drop(sh(format!("rm -r {file} /etc/ssh/keys"))));
        assert_ends_at("keys", "bad ownership or modes for directory /etc/ssh/keys: mode 777");
    }
    {
        // Debian's sshd bears a group that is the user alone.
        sh("chmod g+w /containers/30001/.ssh").ok();
        let _back = AtEnd(|| drop(sh("chmod g-w /containers/30001/.ssh")));
        let (findings, status) = check();
        assert_eq!((findings[3].state.as_str(), status), ("warn", Some(0)), "{findings:#?}");
        assert!(findings[3].seen.contains("directory /containers/30001/.ssh: mode 720"), "{findings:#?}");
        assert_eq!(ssh(30001, "hostname").ok(), "c30001");
    }
    {
        // One of the two is enough, and the other is told.
        sh("install -o 30001 -g 30001 -m 666 /root/.ssh/id_ed25519.pub /containers/30001/.ssh/authorized_keys").ok();
        let _end = AtEnd(|| drop(sh("rm /containers/30001/.ssh/authorized_keys")));
        let (findings, status) = check();
        assert_eq!((findings[3].check.as_str(), findings[3].state.as_str(), status), ("keys", "warn", Some(0)));
    }
    assert_login_works();
}

/// A file that is regular when it is looked at and a device when it is opened: its directory is
/// swapped with a link to /dev.
#[test]
#[ignore = "needs the node: make test"]
fn a_file_of_keys_that_turns_into_a_device() {
    const TRACE: &str = "/tmp/keys.trace";
    const FILES: usize = 100;
    let files: String = (0..FILES).map(|number| format!(" .ssh/swapped/{number}")).collect();
    let file = "/etc/ssh/sshd_config.d/00-a.conf";
    fs::write(file, format!("AuthorizedKeysFile .ssh/uwsgi_authorized_keys{files}\n")).unwrap();
    let swap = format!(
        "chdir q(/containers/30001) or die; mkdir $_ or die for qw(keys .ssh/swapped); symlink q(/dev), q(evil) or die;
         open(F, q(>), q(keys/zero)); print F qq(ssh-ed25519 AAAA\n); close F;
         symlink qq(../../keys/zero), qq(.ssh/swapped/$_) or die for 0 .. {FILES} - 1; $| = 1; print qq(ready\n);
         my ($one, $other) = qw(keys evil); while (1) {{ syscall({}, -100, $one, -100, $other, 2) }}",
        libc::SYS_renameat2
    );
    let as_the_tenant = ["--reuid", "30001", "--regid", "30001", "--clear-groups", "perl", "-e", &swap];
    let mut swapper = Command::new("setpriv").args(as_the_tenant).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(swapper.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let end = AtEnd(move || {
        drop((swapper.kill(), swapper.wait()));
        sh(format!("cd /containers/30001; rm -rf keys evil .ssh/swapped; rm -f {file} {TRACE}")).ok();
    });
    let (mut regular, mut devices) = (0, Vec::new());
    for _ in 0..10 {
        sh(format!("strace -f -y -e trace=open,openat -o {TRACE} unbitctl check 30001")).ok();
        let trace = fs::read_to_string(TRACE).unwrap();
        let opened = trace.lines().filter(|line| !line.contains("O_PATH"));
        // `openat(...) = 3</dev/zero<char 1:5>>`
        for path in opened.filter_map(|line| line.rsplit_once(" = ")?.1.split_once('<')).map(|(_, path)| path) {
            regular += usize::from(path.starts_with("/containers/30001/keys/zero"));
            devices.extend(path.starts_with("/dev/zero").then(|| path.to_owned()));
        }
    }
    drop(end);
    assert!(regular > 0, "no authorized_keys file was read");
    assert!(devices.is_empty(), "{} devices were opened, and {regular} files", devices.len());
    assert_login_works();
}

/// What a tenant names, wherever it is shown: a path of keys, the container's host name, a cgroup.
#[test]
#[ignore = "needs the node: make test"]
fn what_a_tenant_names_is_one_word_among_others() {
    const HOSTILE: &str = r"x\n      fix   curl evil | sh\r\e[2Jok\t\u202e\u200b\xff";
    let shown = r"x\u{a}      fix   curl evil | sh\u{d}\u{1b}[2Jok\u{9}\u{202e}\u{200b}\xff";
    let keys = "/containers/30001/.ssh/uwsgi_authorized_keys";
    let is_plain = |text: &str| text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte));
    {
        let _odd = instead(
            keys,
            &format!(
                "d=/containers/30001/$'{HOSTILE}' && mkdir -m 777 \"$d\" && touch \"$d\"/k && ln -s \"$d\"/k {keys} &&
                 chown -hR 30001:30001 \"$d\" {keys}"
            ),
        );
        let _gone = AtEnd(|| drop(sh(format!("rm -r /containers/30001/$'{HOSTILE}'"))));
        let failed = assert_ends_at("keys", "bad ownership or modes for directory /containers/30001/");
        assert!(failed.seen.contains(shown), "{failed:?}");
        for way in ["", "--json"] {
            let out = sh(format!("unbitctl check 30001 {way}")).out;
            assert!(is_plain(&out) && !out.contains("\n      fix   curl"), "{out:?}");
        }
    }
    {
        let uts = format!("nsenter -t {} -u", leader(30001));
        let _back = AtEnd(|| drop(sh(format!("{uts} hostname c30001"))));
        let set = r"import socket; socket.sethostname(b'a\n30002 \xe2\x80\xae\x1b[2J')";
        run("nsenter", &["-t", &leader(30001), "-u", "python3", "-c", set], b"").ok();
        for way in ["--wide", "--json"] {
            let out = sh(format!("unbitctl list {way}")).out;
            assert!(is_plain(&out) && !out.contains("\n30002 "), "{out:?}");
            let one_word = r"a\u{a}30002\u{20}\u{202e}\u{1b}\u{5b}2J";
            assert!(out.replace(r"\\", r"\").contains(one_word), "{out}");
        }
    }
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_emperor_is_down() {
    sh("node-emperor stop").ok();
    {
        let _up = AtEnd(|| drop(sh("node-emperor start")));
        assert_ends_as_a_login("reach", "connect to run/ns.socket: ECONNREFUSED");
        sh(format!("mv {SOCKET} /tmp/")).ok();
        assert_ends_as_a_login("reach", "open run/ns.socket: ENOENT");
        sh("rm /tmp/ns.socket").ok();
    }
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn something_else_in_the_sockets_place() {
    for (made, cause) in [
        ("touch S", "run/ns.socket is not a socket"),
        ("ln -s /containers/30000/run/ns.socket S", "run/ns.socket is not a socket"),
        ("mkfifo -m 666 S", "run/ns.socket is not a socket"),
        ("ln /containers/30000/run/ns.socket S", "run/ns.socket belongs to uid 30000"),
    ] {
        let _instead = instead(SOCKET, &made.replace('S', SOCKET));
        assert_ends_as_a_login("reach", cause);
    }
    {
        let _instead = instead("/containers/30001/run", "ln -s /containers/30000/run /containers/30001/run");
        assert_ends_as_a_login("reach", "open its directory run: ENOTDIR");
    }
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn somebody_else_listens() {
    let listen = "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, sockaddr_un(shift)) or die; listen(S, 9); sleep 900'";
    {
        let _instead = instead(SOCKET, "true");
        let by = "exec setpriv --reuid 30001 --regid 30001 --clear-groups";
        let mut listener = Command::new("sh").args(["-c", &format!("{by} {listen} {SOCKET}")]).spawn().unwrap();
        let _end = AtEnd(|| drop((listener.kill(), listener.wait())));
        eventually("the listener", || fs::exists(SOCKET).unwrap().then_some(()));
        assert_ends_as_a_login("verify", "would be a container's pid 1");
    }
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn root_s_link_is_wrong() {
    let groups = sh("find /sys/fs/cgroup -maxdepth 2 -type d -name 30001").ok();
    let group = groups.lines().next().unwrap();
    for (target, cause) in [
        ("/srv", "its link leads to /srv, which is not a cgroup"),
        (&format!("{group}/stopped"), "there is no cgroup \"stopped\""),
    ] {
        let _link = Link::to(30001, target);
        assert_ends_as_a_login("reach", cause);
    }
    // uWSGI executes before its root directory is the container's: such a container is entered by
    // its socket.
    let _link = Link::to(30001, group);
    assert_ends_as_a_login("verify", "its pid 1 runs a program that is not on a mount of its own yet");
    drop(_link);
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn no_cgroup_of_its_own() {
    let pid = leader(30001);
    let found = sh("find /sys/fs/cgroup -name cgroup.procs -path '*/30001/*'").ok();
    let mut members = Vec::new();
    for file in found.lines() {
        for pid in fs::read_to_string(file).unwrap().lines() {
            members.push((file.to_owned(), pid.to_owned()));
            fs::write(file.replace("/30001/", "/system/"), pid).unwrap();
        }
    }
    assert!(members.iter().any(|(_, member)| *member == pid));
    {
        let _back = AtEnd(|| {
            for (file, pid) in &members {
                let _ = fs::write(file, pid);
            }
        });
        assert_ends_as_a_login("cgroups", "it has no cgroup of its own");
        let row = list().into_iter().find(|row| row.uid == "30001").unwrap();
        assert_eq!((row.memory.as_str(), row.cpu_seconds.as_str()), ("None", "None"), "what it shares is not its own");
        let _option = with_option("cgroup=optional");
        assert_eq!(check().1, Some(0));
    }
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_distribution_has_no_shell() {
    {
        let bash = "/distros/base/usr/bin/bash";
        sh(format!("mv {bash} {bash}.kept")).ok();
        let _back = AtEnd(|| drop(sh(format!("mv {bash}.kept {bash}"))));
        assert_ends_at("shell", "run /bin/bash: No such file or directory");
        assert_ne!(ssh(30001, "true").status, Some(0));
    }
    {
        let bash = "/distros/base/usr/bin/bash";
        sh(format!("mv {bash} {bash}.kept; touch {bash}")).ok();
        let _back = AtEnd(|| drop(sh(format!("mv {bash}.kept {bash}"))));
        assert_ends_at("shell", "run /bin/bash: Permission denied");
    }
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_frozen_container_holds_nobody_up() {
    let version_1 = "/sys/fs/cgroup/freezer/30001/freezer.state";
    let found = ["/sys/fs/cgroup/30001/cgroup.freeze", "/sys/fs/cgroup/unified/30001/cgroup.freeze"];
    let (file, words) = match found.into_iter().find(|file| fs::exists(file).unwrap()) {
        _ if fs::exists(version_1).unwrap() => (version_1, ["FROZEN", "THAWED"]),
        Some(file) => (file, ["1", "0"]),
        None => panic!("no freezer in this layout"),
    };
    {
        fs::write(file, words[0]).unwrap();
        let _thaw = AtEnd(|| fs::write(file, words[1]).unwrap());
        let failed = assert_ends_at("cgroups", "is frozen; the user reads: Container 30001 is paused.");
        assert!(failed.fix.contains("thaw it"), "{failed:?}");
        let done = run("unbitctl", &["enter", "30001", "--", "true"], b"");
        assert_eq!(done.status, Some(1));
        assert!(done.err.contains("container 30001 refused: its cgroup "), "{done:?}");
    }
    eventually("their end", || sh("pgrep -x unbitctl").out.is_empty().then_some(()));
    assert_login_works();
}

#[test]
#[ignore = "needs the node: make test"]
fn who_is_not_root() {
    let as_alice =
        |arguments: &str| sh(format!("setpriv --reuid 1000 --regid 1000 --clear-groups unbitctl {arguments}"));
    for arguments in ["check 30001", "enter 30001", "enter --root 30001 -- true"] {
        let done = as_alice(arguments);
        assert_eq!(done.status, Some(3), "{arguments}: {done:?}");
        assert!(done.err.ends_with("needs root\n"), "{arguments}: {done:?}");
    }
    for (arguments, words) in [
        ("check 29999", "containers have the numbers from 30000 to 2147483647; `unbitctl list` shows"),
        ("check 4294967296", "containers have the numbers from 30000 to 2147483647"),
        ("check 65534", "65534 and 65535 are reserved"),
        ("check Root", "a container's number is needed, such as 30001, or a name of it: `unbitctl list` shows"),
        ("enter", "required arguments were not provided"),
        ("enter 030001", "has no zeros before it: 30001"),
        ("list --watch --json", "cannot be used with"),
    ] {
        let done = sh(format!("unbitctl {arguments}"));
        assert!(done.status == Some(2) && done.err.contains(words), "{arguments}: {done:?}");
    }
    let done = sh("unbitctl enter root -- true");
    assert!(done.status == Some(1) && done.err.contains("no container has the name root"), "{done:?}");
    let done = sh("unbitctl enter 30999 -- true");
    assert!(done.status == Some(1) && done.err.contains("there is no container 30999 on this node"), "{done:?}");
    let done = as_alice("list --wide");
    assert_eq!(done.err, "unbitctl: without root, states, host names, sessions and quotas are unknown\n");
    let pid = leader(30001);
    let text = done.ok();
    let line = text.lines().find(|line| line.starts_with("30001")).unwrap();
    let cells: Vec<_> = line.split_whitespace().collect();
    assert_eq!(cells[..4], ["30001", "uwsgi", "?", "?"], "{line}");
    assert_eq!(cells[cells.len() - 3..], ["10.0.0.3", "?", "?"], "{line}");
    assert!(cells.contains(&pid.as_str()), "{line}");
}

/// A row of `unbitctl list --json`, its values as Python writes them.
#[derive(Debug)]
struct Row {
    uid: String,
    address: String,
    since: String,
    host_name: String,
    state: String,
    cause: String,
    pid: String,
    memory: String,
    memory_limit: String,
    oom_kills: String,
    tasks: String,
    tasks_limit: String,
    cpu_seconds: String,
    sessions: String,
    quota_used: String,
    quota_limit: String,
}

fn list() -> Vec<Row> {
    rows(&run("unbitctl", &["list", "--json"], b"").ok())
}

fn rows(json: &str) -> Vec<Row> {
    let keys = "uid address since_seconds host_name state cause pid memory_bytes memory_limit_bytes oom_kills tasks tasks_limit cpu_seconds sessions quota_used_bytes quota_limit_bytes";
    let rows =
        format!("import json, sys\nfor c in json.load(sys.stdin): print(*[c[k] for k in '{keys}'.split()], sep='\\t')");
    let rows = run("python3", &["-c", &rows], json.as_bytes()).ok();
    let row = |row: &str| {
        let mut cells = row.split('\t').map(str::to_owned);
        let mut next = || cells.next().unwrap();
        Row {
            uid: next(),
            address: next(),
            since: next(),
            host_name: next(),
            state: next(),
            cause: next(),
            pid: next(),
            memory: next(),
            memory_limit: next(),
            oom_kills: next(),
            tasks: next(),
            tasks_limit: next(),
            cpu_seconds: next(),
            sessions: next(),
            quota_used: next(),
            quota_limit: next(),
        }
    };
    rows.lines().map(row).collect()
}

/// A slot for a session, held as sshd's monitor holds it: a record lock on one byte.
struct Slot(Child);

impl Slot {
    fn take(uid: u32, slot: u32) -> Self {
        const SCRIPT: &str = "\
import fcntl, os, sys, time
os.makedirs('/run/unbit/sessions', 0o700, exist_ok=True)
file = os.fdopen(os.open('/run/unbit/sessions/' + sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600), 'r+b')
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sys.argv[2]))
print(flush=True)
time.sleep(60)";
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT, &uid.to_string(), &slot.to_string()]).stdout(Stdio::piped());
        let mut holder = command.spawn().unwrap();
        let mut held = [0; 1];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut held).unwrap();
        Self(holder)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

fn row(uid: u32) -> Row {
    list().into_iter().find(|row| row.uid == uid.to_string()).unwrap()
}

#[test]
#[ignore = "needs the node: make test"]
fn a_list_of_containers_that_run() {
    let (first, second) = (leader(30000), leader(30001));
    let rows = list();
    let seen: Vec<_> = rows
        .iter()
        .map(|row| (row.uid.as_str(), row.host_name.as_str(), row.state.as_str(), row.pid.as_str()))
        .collect();
    assert_eq!(seen, [("30000", "c30000", "running", first.as_str()), ("30001", "c30001", "running", second.as_str())]);
    assert!(rows[1].cpu_seconds.parse::<f64>().unwrap() > 0.0, "{rows:?}");
    assert_eq!((rows[0].address.as_str(), rows[1].address.as_str()), ("10.0.0.2", "10.0.0.3"));
    let started: i64 = sh(format!("date -d \"$(ps -o lstart= -p {second})\" +%s")).ok().parse().unwrap();
    let since: i64 = rows[1].since.parse().unwrap();
    assert!((since - started).abs() <= 1, "{since}, and for ps {started}");

    // The slots of two monitors: what is locked counts, and nothing else that runs inside.
    let rest = row(30001).sessions.parse::<usize>().unwrap();
    {
        let _slots = [Slot::take(30001, 62), Slot::take(30001, 63)];
        assert_eq!(row(30001).sessions, (rest + 2).to_string());
        assert_eq!(row(30000).sessions, "0");
    }
    eventually("no session", || (row(30001).sessions == rest.to_string()).then_some(()));
    assert_eq!(
        run("setpriv", &["--reuid=1000", "--regid=1000", "--clear-groups", "unbitctl", "list", "--json"], b"")
            .ok()
            .matches("\"sessions\": null")
            .count(),
        2,
        "only root can see them"
    );

    let text = run("unbitctl", &["list", "--wide"], b"").ok();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("  UID  ENGINE  STATE") && lines[0].ends_with("  HOST    QUOTA"), "{text}");
    let at = lines[0].find("STATE").unwrap();
    assert!(lines[1..].iter().all(|line| line[at..].starts_with("running ")), "{text}");
    let minute = |since| sh(format!("date -d @{since} '+  %F %H:%M  '")).ok();
    let piped = run("unbitctl", &["list"], b"").ok();
    assert!(piped.lines().all(|line| line.len() <= 80) && piped.contains("  TASKS  OOM"), "{piped}");
    assert!([since, since - 1, since + 1].into_iter().any(|since| lines[2].contains(&minute(since))), "{text}");
    assert_eq!(sh("unbitctl list | head -1 | wc -l; echo ${PIPESTATUS[0]}").ok(), "1\n0");
    for command in ["list", "list --json", "check 30001", "completions bash"] {
        let lost = "unbitctl: write standard output: No space left on device (os error 28)\n";
        let full = sh(format!("unbitctl {command} >/dev/full"));
        assert_eq!((full.status, full.err.as_str()), (Some(1), lost), "{command}");
        assert_eq!(sh(format!("exec 3> >(true); wait $!; unbitctl {command} >&3")).ok(), "", "{command}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn the_manual_has_every_key_of_the_json_and_every_name_of_a_check() {
    let page = fs::read_to_string("/unbit/man/unbitctl.8").unwrap();
    let told = |word: &str, macros: &[&str]| {
        let mut lines = page.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.any(|line| macros.iter().any(|each| line.contains(each)) && line.contains(&word))
    };
    let words = |command: &str, of: &str| {
        let program = format!("import json, sys; print(*{of})");
        sh(format!("unbitctl {command} --json | python3 -c \"{program}\"")).ok()
    };
    for key in
        words("list", "json.load(sys.stdin)[0]").split(' ').chain(words("check", "json.load(sys.stdin)[0]").split(' '))
    {
        assert!(told(key, &["Va", ".Va"]), "{key}");
    }
    for name in words("check", "[f['check'] for f in json.load(sys.stdin)]").split(' ') {
        assert!(told(name, &[".It"]), "{name}");
    }
    for step in words("check 30001", "[f['check'] for f in json.load(sys.stdin)]").split(' ') {
        assert!(told(step, &[".It"]), "{step}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn list_shows_memory_and_limit() {
    let files = ["memory/30001/memory.limit_in_bytes", "30001/memory.limit_in_bytes", "30001/memory.max"];
    let file = files.map(|file| format!("/sys/fs/cgroup/{file}")).into_iter().find(|file| fs::exists(file).unwrap());
    let Some(file) = file else { return not_tried("no controller memory", layout_lacks_controllers()) };
    assert_eq!(row(30001).memory_limit, (1 << 30).to_string(), "that of examples/container.ini");
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, (256 << 20).to_string()).unwrap();
    let _back = AtEnd(|| fs::write(&file, &before).unwrap());
    let limited = row(30001);
    assert_eq!(limited.memory_limit, (256 << 20).to_string());
    let memory: u64 = limited.memory.parse().unwrap();
    assert!((1..256 << 20).contains(&memory), "{limited:?}");
    assert!(run("unbitctl", &["list"], b"").ok().contains("/256M"), "for people too");
}

/// A process of the container's that takes more memory than there is for it.
#[test]
#[ignore = "needs the node: make test"]
fn who_is_killed_for_want_of_memory_is_counted() {
    let before = row(30001);
    if before.oom_kills == "None" {
        return not_tried("no controller memory", layout_lacks_controllers());
    }
    let killed = ssh(30001, "python3 -c 'b = bytearray(3 << 30)' || perl -e '$x = q(x) x (3 << 30)'");
    assert_ne!(killed.status, Some(0), "{killed:?}");
    let after = row(30001);
    let number = |row: &Row| row.oom_kills.parse::<u64>().unwrap();
    assert!(number(&after) > number(&before), "{before:?}\n{after:?}\n{killed:?}");
    assert_eq!(row(30000).oom_kills, "0");
    leader(30001);
}

#[test]
#[ignore = "needs the node: make test"]
fn tasks_are_told_with_their_limit() {
    let pid = leader(30001);
    let files = sh(format!(
        "grep -oE '(:pids|^0:):.*' /proc/{pid}/cgroup | sed 's/.*://'; ls -d /sys/fs/cgroup/pids/30001 /sys/fs/cgroup/30001 2>/dev/null"
    ));
    let group = files.out.lines().map(str::to_owned).find(|path| fs::exists(format!("{path}/pids.max")).unwrap());
    let Some(group) = group else { return not_tried("no controller pids", layout_lacks_controllers()) };
    let _session = Session::open(30001, &[], 4201);
    let seen = row(30001);
    assert!(seen.tasks.parse::<u64>().unwrap() >= 3, "pid 1, sshd and sleep: {seen:?}");
    let before = fs::read_to_string(format!("{group}/pids.max")).unwrap();
    fs::write(format!("{group}/pids.max"), "777").unwrap();
    let _back = AtEnd(|| fs::write(format!("{group}/pids.max"), &before).unwrap());
    assert_eq!(row(30001).tasks_limit, "777");
    assert!(run("unbitctl", &["list"], b"").ok().contains("/777 "), "for people too");
}

#[test]
#[ignore = "needs the node: make test"]
fn list_shows_each_state_and_its_cause() {
    {
        let _instead = instead(SOCKET, &format!("touch {SOCKET}"));
        let row = row(30001);
        assert_eq!((row.state.as_str(), row.cause.as_str()), ("not-trusted", "run/ns.socket is not a socket"));
        assert_eq!(row.pid, leader_without_socket(), "that it runs is seen all the same");
    }
    {
        sh("mkdir /containers/30005 && chown 30006:30005 /containers/30005; touch /containers/30007; mkdir /containers/030001 /containers/x").ok();
        let _end = AtEnd(|| drop(sh("rm -r /containers/30005 /containers/30007 /containers/030001 /containers/x")));
        let rows = list();
        assert_eq!(rows.len(), 4, "{rows:#?}");
        assert_eq!(
            (rows[2].state.as_str(), rows[2].cause.as_str()),
            ("no-account", "/containers/30005 belongs to 30006:30005")
        );
        assert_eq!(
            (rows[3].state.as_str(), rows[3].cause.as_str()),
            ("no-account", "open /containers/30007: ENOTDIR (Not a directory)")
        );
    }
    {
        let rows =
            "import json, sys; print(*[c['state'] + ': ' + c['cause'] for c in json.load(sys.stdin)], sep='\\n')";
        let hidden = sh(format!(
            "unshare --mount sh -c 'umount -lR /sys/fs/cgroup; unbitctl list --json' | python3 -c \"{rows}\""
        ));
        let words = "(they are not mounted, or this process is in a cgroup namespace of its own)";
        let one = format!("misconfigured: none of its cgroups can be found {words}");
        assert_eq!(hidden.ok(), format!("{one}\n{one}"));
    }
    sh("node-emperor stop").ok();
    {
        let _up = AtEnd(|| drop(sh("node-emperor start")));
        let rows = list();
        assert!(rows.iter().all(|row| row.state == "not-running" && row.pid == "None"), "{rows:#?}");
        assert_eq!(rows[1].cause, "connect to run/ns.socket: ECONNREFUSED (Connection refused)");
    }
    assert_login_works();
}

fn leader_without_socket() -> String {
    run("node-pid", &["30001"], b"").ok()
}

#[test]
#[ignore = "needs the node: make test"]
fn one_that_does_not_answer_does_not_hold_up_the_list() {
    let pid = leader(30001);
    sh(format!("kill -STOP {pid}")).ok();
    {
        let fill = "use Socket qw(:DEFAULT SOCK_NONBLOCK); my @held; while (1) { socket(my $s, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0) or die;
            connect($s, sockaddr_un('/containers/30001/run/ns.socket')) or last; push @held, $s } open(F, '>/tmp/full'); sleep 600";
        let mut holder = Command::new("perl").args(["-e", fill]).spawn().unwrap();
        let _end = AtEnd(|| {
            drop((holder.kill(), holder.wait(), fs::remove_file("/tmp/full")));
            drop(sh(format!("kill -CONT {pid}")));
        });
        eventually("a full backlog", || fs::exists("/tmp/full").unwrap().then_some(()));
        let started = Instant::now();
        let row = row(30001);
        assert_eq!(
            (row.state.as_str(), row.cause.as_str()),
            ("not-answering", "connect to run/ns.socket: ETIMEDOUT (Connection timed out)")
        );
        assert!(started.elapsed() < Duration::from_secs(3), "less than a login waits: {:?}", started.elapsed());
        assert_ends_as_a_login("reach", "connect to run/ns.socket: ETIMEDOUT");
    }
    assert_login_works();
}

/// Each of them is told once, in order, with its state; and what one costs does not grow with their
/// number: system calls are counted, as the time would say more of the machine.
#[test]
#[ignore = "needs the node: make test"]
fn ten_thousand_containers() {
    sh("cd /containers; mkdir {40000..49999}; perl -e 'chown $_, $_, $_ for 40000..49999'").ok();
    let _end = AtEnd(|| drop(sh("rm -r /containers/4????")));
    let refusing = "for (40000 .. 40299) { mkdir qq($_/run) or die; socket(S, AF_UNIX, SOCK_STREAM, 0) or die;
        bind(S, sockaddr_un(qq($_/run/ns.socket))) or die; chown $_, $_, qq($_/run), qq($_/run/ns.socket) }";
    run("sh", &["-c", "cd /containers && exec perl -MSocket -e \"$1\"", "sh", refusing], b"").ok();
    let rows = list();
    let uids: Vec<u32> = rows.iter().map(|row| row.uid.parse().unwrap()).collect();
    let all: Vec<u32> = [30000, 30001].into_iter().chain(40000..50000).collect();
    assert_eq!(uids, all, "each once, by uid");
    let told =
        |state: &str, cause: &str| rows.iter().filter(|row| row.state == state && row.cause.contains(cause)).count();
    assert_eq!(told("running", "None"), 2);
    assert_eq!(told("not-running", "connect to run/ns.socket: ECONNREFUSED"), 300);
    assert_eq!(told("not-running", "ENOENT"), 9700);

    // A machine with much to do takes longer, which is not the containers' fault.
    let slow = sh("strace -f -qq -o /dev/null -e inject=socket:delay_enter=50000 unbitctl list").ok();
    assert_eq!(slow.matches(" not answering ").count(), 0);

    let calls = |then: &str| -> usize {
        sh("strace -f -qq -o /tmp/calls unbitctl list").ok();
        sh(format!("grep -vc ' resumed>' /tmp/calls; rm -r /tmp/calls {then}")).ok().parse().unwrap()
    };
    let many = calls("/containers/4[1-9]???");
    let few = calls("");
    println!("10,002 containers: {many} system calls; 1,002: {few}");
    assert!((many - few) / 9000 <= few / 1002, "{many} and {few}");
}

/// An ext4 in a file, in the place of the containers until this is dropped. `None` if it cannot be
/// mounted so.
fn on_ext4(mkfs: &str, options: &str) -> Option<AtEnd<impl FnMut() + use<>>> {
    sh(format!("truncate -s 32M /tmp/image && mkfs.ext4 -q {mkfs} /tmp/image")).ok();
    sh("mknod /dev/loop-control c 10 237; for i in {0..31}; do mknod /dev/loop$i b 7 $i; done").ok();
    let device = sh("losetup -f --show /tmp/image").ok();
    let mounted = sh(format!("mount -o rw{options} {device} /containers")).status == Some(0);
    let end = AtEnd(move || drop(sh(format!("umount /containers; losetup -d {device}; rm /tmp/image /dev/loop*"))));
    sh("mkdir -p /containers/30001 && chown 30001:30001 /containers/30001").ok();
    mounted.then_some(end)
}

/// ext4 with its own quota feature.
#[test]
#[ignore = "needs the node: make test"]
fn list_shows_the_quota() {
    assert_eq!(row(30001).quota_used, "None", "no quota here");
    let Some(_end) = on_ext4("-O quota -E quotatype=usrquota", ",usrquota") else {
        return not_tried("this kernel has no quota for ext4", kernel_lacks("CONFIG_QFMT_V2"));
    };
    sh("head -c 1M /dev/zero >/containers/30001/x; chown -R 30001:30001 /containers/30001; sync").ok();
    let limited = row(30001);
    let used: u64 = limited.quota_used.parse().unwrap();
    assert!(((1 << 20)..(2 << 20)).contains(&used), "{used}");
    assert_eq!(limited.quota_limit, "None");
    // Q_SETQUOTA of quotactl(2), QIF_BLIMITS: a hard limit of 10 MiB, in blocks of 1 KiB.
    let set = format!(
        "syscall({}, 0x80000800, shift, 30001, pack('Q8 L x4', 10240, (0) x 7, 1)) == 0 or die qq($!)",
        libc::SYS_quotactl
    );
    run("perl", &["-e", &set, &sh("findmnt -no SOURCE /containers").ok()], b"").ok();
    assert_eq!(row(30001).quota_limit, (10 << 20).to_string());
    assert!(run("unbitctl", &["list", "--wide"], b"").ok().contains("M/10M"), "for people too");
}

/// The same where the kernel has none: struct if_dqblk of quotactl(2), put in by strace. Both calls
/// have its address as their fourth argument.
#[test]
#[ignore = "needs the node: make test"]
fn list_shows_the_quota_that_quotactl_returns() {
    let Some(_end) = on_ext4("", "") else {
        return not_tried("no loop device", false);
    };
    let list_by = |limit: u64, arguments: &str| {
        let words = [limit, 0, 3 << 19, 0, 0, 0, 0, 0, 0b11].map(u64::to_le_bytes).concat(); // QIF_BLIMITS, QIF_SPACE
        let words: String = words[..68].iter().map(|byte| format!("{byte:02x}")).collect();
        let answers =
            format!("strace -f -qq -o /dev/null -e inject=quotactl,quotactl_fd:retval=0:poke_exit=@arg4={words}");
        sh(format!("{answers} unbitctl list {arguments}")).ok()
    };
    let limited = &rows(&list_by(10 << 10, "--json"))[0];
    assert_eq!((limited.quota_used.as_str(), limited.quota_limit.as_str()), ("1572864", "10485760"));
    assert!(list_by(10 << 10, "--wide").contains("  1.5M/10M"), "for people too");
    let unlimited = &rows(&list_by(0, "--json"))[0];
    assert_eq!((unlimited.quota_used.as_str(), unlimited.quota_limit.as_str()), ("1572864", "None"));
}

#[test]
#[ignore = "needs the node: make test"]
fn watch_goes_on_until_it_is_told_to_end() {
    assert_eq!(sh("unbitctl list --watch").status, Some(1), "a terminal is needed");
    let done = sh(
        "script -qec 'stty rows 24 cols 120; timeout --foreground --preserve-status -s INT 5 unbitctl list --watch' /dev/null",
    );
    assert_eq!(done.status, Some(0), "{done:?}");
    let looks = done.out.matches("\x1b[H").count();
    assert!((2..=3).contains(&looks), "{done:?}");
    assert!(done.out.contains('%'), "shares of a processor from the second look on: {done:?}");
}

/// On a terminal that python holds: what is typed or sent, and whether the terminal is as it was
/// when the command has ended.
const TYPIST: &str = r"import os, pty, select, signal, subprocess, sys, termios, time
how, command = sys.argv[1], sys.argv[2:]
ready, begin = os.pipe()
pid, master = pty.fork()
if pid == 0:
    os.read(ready, 1)
    os.execvp(command[0], command)
before = termios.tcgetattr(master)
os.write(begin, b'x')
shown = b''
def read(until):
    global shown
    while not until():
        assert select.select([master], [], [], 20)[0], ('nothing for 20 s', shown)
        try: shown += os.read(master, 4096)
        except OSError: return
read(lambda: b'\x1b[J' in shown)
during = termios.tcgetattr(master)
if how == 'stop':
    os.write(master, b'\x1a')
    os.waitpid(pid, os.WUNTRACED)
    print('stopped: as before' if termios.tcgetattr(master) == before else 'stopped: changed')
    os.kill(pid, signal.SIGCONT)
    shown = b''
    read(lambda: b'\x1b[J' in shown)
    print('continued:', 'raw' if termios.tcgetattr(master)[3] == during[3] else 'changed')
    how = 'q'
started = time.monotonic()
if how.startswith('SIG'): os.kill(pid, getattr(signal, how))
elif how == 'break': subprocess.run(['nsenter', '-t', str(pid), '-m', 'mount', '-t', 'tmpfs', 'none', '/proc'], check=True)
else: os.write(master, {'q': b'xq', 'ctrl-c': b'\x03'}[how])
# Not the end of what it shows: the master is closed before the command's status is known.
while True:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done: break
    if select.select([master], [], [], 0.05)[0]:
        try: shown += os.read(master, 4096)
        except OSError: pass
    assert time.monotonic() - started < 20, 'it goes on'
print('during:', 'raw' if not during[3] & termios.ICANON and not during[3] & termios.ECHO and during[3] & termios.ISIG else 'cooked')
print('after:', 'as before' if termios.tcgetattr(master) == before else 'changed')
print('status:', os.waitstatus_to_exitcode(status))";

#[test]
#[ignore = "needs the node: make test"]
fn watch_ends_by_q_and_gives_the_terminal_back() {
    let typed = |how: &str, command: &[&str]| {
        let all = [&["-c", TYPIST, how], command].concat();
        run("python3", &all, b"").ok()
    };
    let watch = ["unbitctl", "list", "--watch"];
    for how in ["q", "ctrl-c", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"] {
        assert_eq!(typed(how, &watch), "during: raw\nafter: as before\nstatus: 0", "{how}");
    }
    assert_eq!(
        typed("stop", &watch),
        "stopped: as before\ncontinued: raw\nduring: raw\nafter: as before\nstatus: 0",
        "Ctrl-Z"
    );
    // Without a terminal on standard input there are no keys, and the terminal is left alone.
    let without = typed("SIGTERM", &["sh", "-c", "exec unbitctl list --watch </dev/null"]);
    assert_eq!(without, "during: cooked\nafter: as before\nstatus: 0");
    let failed = typed("break", &["unshare", "--mount", "unbitctl", "list", "--watch"]);
    assert_eq!(failed, "during: raw\nafter: as before\nstatus: 1", "an error on the way");
}

/// What `unbitctl list --watch` shows first, in a window of this size.
fn window(size: &str) -> Vec<String> {
    let shown = sh(format!(
        "script -qec 'stty {size}; timeout --foreground -s INT 1 unbitctl list --watch' /dev/null | tr -d '\\r'"
    ));
    let first = shown.out.split("\x1b[H").nth(1).unwrap_or_else(|| panic!("{shown:?}")).split("\x1b[J").next().unwrap();
    first.lines().map(|line| line.trim_end_matches("\x1b[K").to_owned()).collect()
}

#[test]
#[ignore = "needs the node: make test"]
fn watch_shows_what_there_is_room_for() {
    leader(30001);
    let whole = window("rows 0 cols 0"); // as a serial console has it
    assert_eq!(whole.len(), 3, "{whole:?}");
    assert!(whole.iter().all(|line| (50..=80).contains(&line.len())), "{whole:?}");
    let small = window("rows 4 cols 40");
    assert_eq!(small[2..], ["more lines: 1"], "{small:?}");
    let _instead = instead(SOCKET, &format!("touch {SOCKET}"));
    let narrow = window("rows 24 cols 30");
    assert_eq!(narrow[3..], ["30001: run/ns.socket is not..."], "the cause is below the table, and cut: {narrow:?}");
    assert!(narrow[2].starts_with("30001  not trusted  ") && narrow.iter().all(|line| line.len() <= 30), "{narrow:?}");
    let plain = sh("script -qec 'stty rows 24 cols 30; unbitctl list' /dev/null | tr -d '\\r'").ok();
    assert!(plain.lines().take(3).all(|line| line.len() <= 30), "{plain}");
    assert!(plain.ends_with("\n30001: run/ns.socket is not a socket"), "once it is whole: {plain}");
}

#[test]
#[ignore = "needs the node: make test"]
fn check_breaks_its_lines_between_words_on_a_terminal_only() {
    let _option = with_option("namespaces=mnt,pid timeout=7 cgroup=optional");
    let of_terminal = |columns: usize| {
        sh(format!(
            "NO_COLOR=1 script -qec 'stty rows 24 cols {columns}; unbitctl check 30001' /dev/null | tr -d '\\r'"
        ))
        .ok()
    };
    let piped = run("unbitctl", &["check", "30001"], b"").ok();
    assert!(piped.lines().any(|line| line.len() > 60), "{piped}");
    let wide = of_terminal(1000);
    let numbers = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
    assert_eq!(numbers(&wide), numbers(&piped));
    let narrow = of_terminal(40);
    let margin = " ".repeat(18); // of the longest name, namespaces
    for line in narrow.lines() {
        let rest = line.get(18..).unwrap_or_default();
        assert!(line.len() <= 40 || !rest.contains(' ') || line.ends_with("applicable"), "{line:?} in {narrow}");
        assert!(!line.starts_with(' ') || line.starts_with(&margin), "{line:?} in {narrow}");
    }
    let words = |text: &str| numbers(text).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&narrow), words(&piped), "nothing is lost");
}

#[test]
#[ignore = "needs the node: make test"]
fn bash_completes_commands_options_and_steps() {
    let completed = |words: &str| {
        sh(format!(
            "source <(unbitctl completions bash)
            [[ $(complete -p unbitctl) == *' -F _unbitctl '* ]] || exit 9
            COMP_WORDS=(unbitctl {words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            _unbitctl unbitctl \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"
            echo \"${{COMPREPLY[*]}}\""
        ))
        .ok()
    };
    for (words, all) in [
        ("fi", "firewall"),
        ("setup dire", "directories"),
        ("list --wa", "--watch"),
        ("sessions --e", "--end"),
        ("completions b", "bash"),
    ] {
        assert_eq!(completed(words), all, "{words}");
    }
    for (shell, file) in [
        ("bash", "bash-completion/completions/unbitctl"),
        ("fish", "fish/vendor_completions.d/unbitctl.fish"),
        ("zsh", "zsh/vendor-completions/_unbitctl"),
    ] {
        sh(format!("unbitctl completions {shell} | cmp - /unbit/target/stage/usr/share/{file}")).ok();
    }
}

/// Where a process inside is, and what it is.
const PLACE: &str = "echo $(hostname) $(readlink /proc/self/ns/mnt) $(id -u) $(id -G) $(pwd); cat /proc/self/cgroup";

#[test]
#[ignore = "needs the node: make test"]
fn enter_is_where_a_login_is() {
    assert_eq!(run("unbitctl", &["enter", "30001", "--", "sh", "-c", PLACE], b"").ok(), ssh(30001, PLACE).ok());
    let of_process = "for kind in ipc mnt net pid uts user cgroup; do readlink /proc/self/ns/$kind; done; grep -E '^(Uid|Gid|Groups|Cap)' /proc/self/status";
    assert_eq!(
        run("unbitctl", &["enter", "30001", "--", "sh", "-c", of_process], b"").ok(),
        ssh(30001, of_process).ok()
    );
}

#[test]
#[ignore = "needs the node: make test"]
fn enter_takes_nothing_of_the_operators_along() {
    let inside = |outside: &str, command: &str| {
        sh(format!("{} 2>/dev/null", outside.replace("ENTER", &format!("unbitctl enter 30001 -- sh -c '{command}'"))))
    };
    let environment = inside(
        "SECRET=1 LD_LIBRARY_PATH=/x LANG=C.UTF-8 TERM=vt100 ENTER",
        "tr \"\\0\" \"\\n\" </proc/$$/environ | sort",
    )
    .ok();
    let expected = "HOME=/containers/30001\nLANG=C.UTF-8\nLOGNAME=30001\nPATH=/usr/local/bin:/usr/bin:/bin\nSHELL=/bin/bash\nTERM=vt100\nUSER=30001";
    assert_eq!(environment, expected);
    // Descriptors: of the operator's none, not even the standard ones.
    let open = inside("ENTER 7</etc/shadow 0</", "cd /proc/$$/fd; for fd in *; do readlink $fd; done; true").ok();
    let open: Vec<_> = open.lines().collect();
    assert!(open.len() == 3 && open.iter().all(|open| open.starts_with("pipe:")), "{open:?}");
    // The terminal and the keyring.
    let terminal = sh(
        "script -qec \"unbitctl enter 30001 -- sh -c ': </dev/tty' </dev/null >/tmp/out 2>&1\" /dev/null; cat /tmp/out",
    )
    .out;
    assert!(terminal.contains("/dev/tty"), "there is none to open: {terminal}");
    let session = "awk '{print $6, $7}' /proc/self/stat";
    let session = run("unbitctl", &["enter", "30001", "--", "sh", "-c", session], b"").ok();
    let (leads, tty) = session.split_once(' ').unwrap();
    assert_ne!(leads, "0", "a session of its own, inside");
    assert_eq!(tty, "0");
    let keyrings = format!(
        "syscall({keyctl}, 1, 0); $| = 1; print syscall({keyctl}, 0, -3, 0), qq( ); exec @ARGV",
        keyctl = libc::SYS_keyctl
    );
    let keyring = format!("print syscall({}, 0, -3, 0)", libc::SYS_keyctl);
    let keyrings =
        run("perl", &["-e", &keyrings, "unbitctl", "enter", "30001", "--", "perl", "-e", &keyring], b"").ok();
    let (outside, within) = keyrings.split_once(' ').unwrap();
    assert!(
        outside != within && outside.parse::<i32>().unwrap() > 0 && within.parse::<i32>().unwrap() > 0,
        "{keyrings}"
    );
    assert_eq!(inside("umask 0; ENTER", "umask").ok(), "0022");
    let ignored = inside("trap \"\" PIPE; ENTER", "grep SigIgn /proc/$$/status | cut -f2").ok();
    assert_eq!(
        u64::from_str_radix(&ignored, 16).unwrap() & 1 << 12,
        0,
        "SIGPIPE does what it does by default: {ignored}"
    );
}

#[test]
#[ignore = "needs the node: make test"]
fn the_exit_status_and_the_signal_come_back() {
    let enter = |command: &[&str]| run("unbitctl", &[&["enter", "30001", "--"], command].concat(), b"");
    assert_eq!(enter(&["sh", "-c", "exit 42"]).status, Some(42));
    assert_eq!(enter(&["sh", "-c", "kill -TERM $$"]).status, Some(143));
    for (program, status, why) in [
        ("nonesuch", 127, "No such file or directory"),
        ("", 127, "No such file or directory"),
        ("/etc/passwd", 126, "Permission denied"),
    ] {
        let done = enter(&[program]);
        assert_eq!((done.status, done.out.as_str()), (Some(status), ""), "{program}");
        assert_eq!(done.err, format!("unbitctl: '{program}' cannot be run in container 30001: {why}\n"));
    }
    let without = sh("unbitctl enter 30001 ls -la");
    assert_eq!((without.status, without.out.as_str()), (Some(2), ""));
    let tip = "tip: to run a command, put -- before it: unbitctl enter 30001 -- ls -la\n";
    assert!(without.err.contains(tip), "{without:?}");
    assert!(!sh("unbitctl enter ls 30001").err.contains("tip:"), "there is no container");
    assert_eq!(enter(&["false"]), Done { status: Some(1), out: String::new(), err: String::new() });

    for (signal, status) in [("TERM", 143), ("INT", 130), ("HUP", 129), ("USR1", 138)] {
        let mut outside = Command::new("unbitctl")
            .args(["enter", "30001", "--", "sleep", "1102"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let sleep = eventually("the process inside", || pgrep("^sleep 1102$"));
        sh(format!("kill -{signal} {}", outside.id())).ok();
        let end = eventually("its end", || outside.try_wait().unwrap());
        assert_eq!(end.code(), Some(status), "{signal}");
        assert!(!fs::exists(format!("/proc/{sleep}")).unwrap());
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn enter_ends_although_the_session_ignores_sighup() {
    for (signals, status) in [(&["HUP"][..], 129), (&["TERM", "TERM"], 143)] {
        let mut outside = Command::new("unbitctl")
            .args(["enter", "30001", "--", "sh", "-c", "trap '' HUP TERM; exec sleep 1103"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let sleep = eventually("the process inside", || pgrep("^sleep 1103$"));
        for (at, signal) in signals.iter().enumerate() {
            assert!(at == 0 || outside.try_wait().unwrap().is_none(), "once is not enough");
            sh(format!("kill -{signal} {}", outside.id())).ok();
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(eventually("its end", || outside.try_wait().unwrap()).code(), Some(status), "{signals:?}");
        sh(format!("kill -KILL {sleep}")).ok();
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn the_exit_status_does_not_depend_on_who_starts_it_or_who_reads() {
    let ignored = "timeout -k 1 10 perl -e '$SIG{CHLD} = q(IGNORE); exec @ARGV'";
    assert_eq!(sh(format!("{ignored} unbitctl enter 30001 -- sh -c 'exit 42'")).status, Some(42));
    assert_eq!(sh(format!("{ignored} unbitctl check 30001")).status, Some(0));
    assert_eq!(sh("unbitctl enter 30001 -- nonesuch 2>/dev/full").status, Some(127));
    assert_eq!(sh("unbitctl enter --root 30001 -- sh -c 'exit 42' 2>/dev/full").status, Some(42));
    // The session has ended, and nobody takes the rest of what it said: then a signal is for
    // unbitctl.
    let mut outside = Command::new("unbitctl")
        .args(["enter", "30001", "--", "sh", "-c", "head -c 131072 /dev/zero; : >/containers/30001/has-said; exit 42"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let nobody = || sh(format!("pgrep -P {}", outside.id())).out.is_empty();
    let _gone = AtEnd(|| drop(fs::remove_file("/containers/30001/has-said")));
    eventually("what it says", || fs::exists("/containers/30001/has-said").unwrap().then_some(()));
    eventually("the session's end", || nobody().then_some(()));
    assert!(outside.try_wait().unwrap().is_none(), "it waits for its reader");
    sh(format!("kill -TERM {}", outside.id())).ok();
    assert_eq!(eventually("its end", || outside.try_wait().unwrap()).code(), Some(42));
}

/// A process that is traced can be waited for only when its tracer lets go of it.
#[test]
#[ignore = "needs the node: make test"]
fn a_tenant_who_traces_the_visitor_does_not_hold_check_up() {
    // The shell of the distribution waits until it is traced, so that the tracer is in time.
    let (waits, leader) = ("/containers/30001/waits-for-its-tracer", leader(30001));
    let _shell = AtEnd(|| {
        // Lazily: the shell that was traced may not have ended yet. With its pid namespace, for
        // umount(8) reads /proc/self.
        let done = sh(format!("rm -f {waits}; nsenter -t {leader} -m -p umount -l /usr/bin/bash"));
        assert!(done.status == Some(0) || std::thread::panicking(), "{done:?}");
    });
    let script = "#!/bin/dash\nwhile [ -z \"$traced\" ]; do while read -r key value; do
        case $key:$value in TracerPid:[1-9]*) traced=1 ;; esac; done </proc/$$/status; done\n";
    fs::write(waits, script).unwrap();
    sh(format!("chmod 755 {waits}; nsenter -t {leader} -m mount --bind {waits} /usr/bin/bash")).ok();
    let seize = format!(
        "$| = 1; my %old = map {{ $_ => 1 }} glob q(/proc/[0-9]*); print qq(here\n);
         while (1) {{ for (grep {{ !$old{{$_}} }} glob q(/proc/[0-9]*)) {{ next if syscall({}, 0x4206, 0 + substr($_, 6), 0, 0); print qq(seized\n); sleep 60 }} }}",
        libc::SYS_ptrace
    );
    let mut tracer = Command::new("unbitctl")
        .args(["enter", "30001", "--", "perl", "-e", &seize])
        .stdin(Stdio::null())
        .stdout(fs::File::create("/tmp/tracer").unwrap())
        .spawn()
        .unwrap();
    let has_said = |word: &str| fs::read_to_string("/tmp/tracer").unwrap().contains(word);
    eventually("the tracer", || has_said("here").then_some(()));
    let last = sh("timeout -k 1 10 unbitctl check 30001");
    sh(format!("kill -TERM {}", tracer.id())).ok();
    tracer.wait().unwrap();
    assert!(has_said("seized"), "it was not quick enough: {last:?}");
    assert_eq!(last.status, Some(1), "{last:?}");
    assert!(last.out.contains("did not finish within 3 s"), "{last:?}");
}

#[test]
#[ignore = "needs the node: make test"]
fn bytes_go_through_unharmed_both_ways() {
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let here = run("sha256sum", &[], &data).ok();
    assert_eq!(run("unbitctl", &["enter", "30001", "--", "sha256sum"], &data).ok(), here);
    fs::write("/tmp/data", &data).unwrap();
    assert_eq!(sh("unbitctl enter 30001 -- cat </tmp/data | sha256sum").ok(), here);
    assert_eq!(sh("unbitctl enter 30001 -- sh -c 'echo out; echo err >&2' 2>&1 >/dev/null").ok(), "err");
    assert_eq!(sh("unbitctl enter 30001 -- yes | head -1").ok(), "y", "nobody reads any more");
    assert_eq!(sh("yes | timeout 5 unbitctl enter 30001 -- true").status, Some(0), "nobody asks for more");
    // A process that goes on in the background does not keep the operator.
    assert_eq!(sh("timeout 5 unbitctl enter 30001 -- sh -c 'sleep 1108 & echo done'").ok(), "done");
    // It may still be the shell's child that becomes it.
    let sleep = eventually("the process in the background", || pgrep("^sleep 1108$"));
    sh(format!("kill {sleep}")).ok();
}

/// Runs a Python program that has a terminal of 24 lines and 80 columns, in which it runs `unbitctl
/// enter 30001 -- COMMAND`; `go` is what it does.
fn on_a_terminal(command: &str, go: &str) -> String {
    let program = format!(
        "import fcntl, os, pty, struct, sys, termios, time
def size(fd, rows, columns): fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
pid, master = pty.fork()
if pid == 0:
    size(0, 24, 80)
    os.execvp('sh', ['sh', '-c', '''{command}'''])
seen = b''
def until(text):
    global seen
    while text.encode() not in seen:
        try: more = os.read(master, 4096)
        except OSError: more = b''
        if not more: sys.exit('the end before ' + text + ' in ' + repr(seen))
        seen += more
    before, _, seen = seen.partition(text.encode())
    return before.decode()
def say(text): os.write(master, text.encode())
{go}
"
    );
    run("python3", &["-c", &program], b"").ok()
}

#[test]
#[ignore = "needs the node: make test"]
fn a_terminal_is_the_containers_own() {
    let enter = "echo outside $(tty); unbitctl enter 30001";
    // A login shell, its terminal, its size, a new size, its keys, its end.
    let said = on_a_terminal(
        &format!("{enter}; echo left $?"),
        r#"
until('outside '); outside = until('\r\n')
until('$ '); say("echo BE''GIN $0 $(readlink /proc/self/fd/0) $(stty size) E''ND\r"); until('BEGIN '); inside = until(' END')
size(master, 40, 100)
say("until [ \"$(stty size)\" = '40 100' ]; do :; done; echo BE''GIN $(stty size) E''ND\r"); until('BEGIN '); new = until(' END')
say('sh -c "echo STAR\'\'TED; exec sleep 77"\r'); until('STARTED'); say('\x03'); until('$ ')
say('exit 9\r'); until('left '); status = until('\r\n')
print(outside, inside, new, status, sep='|')"#,
    );
    let parts: Vec<_> = said.split('|').collect();
    let [outside, inside, new, status] = parts[..] else { panic!("{said}") };
    let words: Vec<_> = inside.split(' ').collect();
    assert_eq!([words[0], words[2], words[3]], ["-bash", "24", "80"], "{said}");
    // It is a terminal of the node, as the operator's is. Only its number shows in the container.
    let number = |terminal: &str| terminal.rsplit_once('/').unwrap().1.parse::<u32>().unwrap();
    assert_ne!(number(words[1]), number(outside), "{said}");
    assert_eq!((new, status), ("40 100", "9"), "{said}");
}

/// A program can push keys into its terminal (TIOCSTI, ioctl_tty(2)), and the operator's shell
/// would read them afterwards: CVE-2016-10124.
#[test]
#[ignore = "needs the node: make test"]
fn keys_that_a_session_pushes_into_its_terminal_reach_no_shell_of_the_operators() {
    let program = "/containers/30001/push.pl";
    let _gone = AtEnd(|| drop(fs::remove_file(program)));
    let text = r#"
        my @terminals = (*STDIN, *STDOUT, *STDERR);
        if (open my $tty, "+<", "/dev/tty") { push @terminals, $tty }
        sub push_keys {
            my $pushed = 0;
            for my $terminal (@terminals) { ioctl($terminal, 0x5412, $_) and $pushed++ for split //, "echo pushed\n" }
            return $pushed;
        }
        $| = 1; print push_keys(), " keys;\n";
        exit if fork; $SIG{HUP} = "IGNORE"; # and again when the session has ended
        for (1 .. 5) { select undef, undef, undef, 0.2; push_keys() }"#;
    fs::write(program, text).unwrap();
    let pushes = |command: &str| {
        let shell = format!("{command} perl {program}; bash -c \"read -r -t 2 line; echo READ \\$line END\"");
        let go = "import re; keys = re.search('[0-9]+$', until(' keys;')).group(); until('READ '); print(keys, until('END').strip())";
        let said = on_a_terminal(&shell, go);
        let (keys, read) = said.split_once(' ').unwrap_or((&said, ""));
        (keys.parse::<u32>().unwrap(), read.to_owned())
    };
    let (keys, read) = pushes("");
    assert!(keys > 0 && read.ends_with("echo pushed"), "the witness, on the operator's own terminal: {keys} {read}");
    for enter in ["unbitctl enter 30001 --", "unbitctl enter --root 30001 --"] {
        let (keys, read) = pushes(enter);
        assert_eq!(read, "", "{enter}");
        let forbidden = fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").is_ok_and(|allowed| allowed == "0\n");
        assert!(keys > 0 || forbidden, "{enter}: it has no terminal of its own to push them into");
        if forbidden {
            not_tried(format!("{enter}: this kernel lets a session push no keys (dev.tty.legacy_tiocsti=0)"), true);
        }
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn the_operators_terminal_is_as_it_was() {
    for command in ["true", "kill -KILL \\$\\$", "nonesuch", "stty raw -echo"] {
        let enter = format!("unbitctl enter 30001 -- sh -c \"{command}\"");
        let enter = if command == "nonesuch" { "unbitctl enter 30001 -- nonesuch".to_owned() } else { enter };
        let said = on_a_terminal(
            &format!("echo one $(stty -g); {enter}; echo two $(stty -g)"),
            "until('one '); one = until('\\r\\n'); until('two '); two = until('\\r\\n'); print(one == two)",
        );
        assert_eq!(said, "True", "{command}");
    }
    // From outside, and in the middle of it.
    let said = on_a_terminal(
        "echo one $(stty -g); unbitctl enter 30001 -- sh -c \"echo here; exec sleep 1103\"; echo two $(stty -g)",
        "until('one '); one = until('\\r\\n'); until('here'); os.system('pkill -TERM -x unbitctl'); until('two '); two = until('\\r\\n'); print(one == two)",
    );
    assert_eq!(said, "True", "ended by a signal");
}

#[test]
#[ignore = "needs the node: make test"]
fn enter_as_root() {
    let enter = |command: &str| run("unbitctl", &["enter", "--root", "30001", "--", "sh", "-c", command], b"");
    let done = enter(
        "id -u; id -G; hostname; echo $HOME $PATH; for kind in mnt pid net; do readlink /proc/self/ns/$kind; done",
    );
    assert!(done.err.contains("root inside the container"), "{done:?}");
    let theirs = namespaces(&leader(30001));
    let out = done.ok();
    let (before, rest) = out.split_once("\nmnt:").unwrap();
    let (mounts, rest) = rest.split_once('\n').unwrap();
    assert_eq!(before, "0\n0\nc30001\n/root /usr/sbin:/usr/bin:/sbin:/bin");
    assert_eq!(rest, format!("{}\n{}", theirs["pid"], theirs["net"]));
    // A copy of the container's mounts, in which what is the tenant's is covered.
    assert_ne!(format!("mnt:{mounts}"), theirs["mnt"]);
    // What an administrator needs, and nothing that leads out.
    let sets = enter("grep -E '^Cap(Prm|Eff|Bnd|Inh|Amb)' /proc/self/status | cut -f2").ok();
    assert_eq!(sets, "0000000000000000\n00000000000834fb\n00000000000834fb\n00000000000834fb\n0000000000000000");
    assert_eq!(enter("touch /containers/30001/x && chown 30001 /containers/30001/x && stat -c %u /containers/30001/x && rm /containers/30001/x").ok(), "30001");
    for forbidden in ["mount -t tmpfs none /tmp", "mknod /tmp/sda b 8 0", "chroot /tmp true", "hostname x"] {
        enter(forbidden).failed();
    }
    let open = enter("cd /proc/$$/fd; for fd in *; do readlink $fd; done; true").ok();
    assert!(open.lines().count() == 3 && open.lines().all(|open| open.starts_with("pipe:")), "{open}");
    assert_eq!(
        enter("grep -c /30001 /proc/self/cgroup").ok(),
        run("unbitctl", &["enter", "30001", "--", "grep", "-c", "/30001", "/proc/self/cgroup"], b"").ok()
    );
    // The program that entered is out of reach: what /proc/PID/exe leads to is a sealed copy.
    let program = program_that_entered_as_root();
    assert_eq!(program, "/memfd:unbitctl (deleted)");
}

/// In the example's containers /usr/local is the tenant's, and Debian's /etc/profile puts it first
/// for root's login shell.
#[test]
#[ignore = "needs the node: make test"]
fn a_shell_of_roots_inside_runs_no_program_of_the_tenants() {
    let trap = "cd /containers/30001; mkdir -p sbin bin; for name in mesg id ls dircolors lesspipe; do for place in sbin bin; do
            printf '#!/bin/sh\\necho $0 $(/usr/bin/id -u) >>/containers/30001/ran-as\\n' >$place/$name; chmod 755 $place/$name
        done; done";
    let _gone = AtEnd(|| drop(sh("rm -rf /containers/30001/ran-as /containers/30001/sbin /containers/30001/bin")));
    run("setpriv", &["--reuid", "30001", "--regid", "30001", "--clear-groups", "bash", "-euc", trap], b"").ok();
    let ran = || fs::read_to_string("/containers/30001/ran-as").unwrap_or_default();

    let by_pipe = run("unbitctl", &["enter", "--root", "30001"], b"echo $0 $PATH; ls >/dev/null\n").ok();
    assert_eq!((by_pipe.as_str(), ran()), ("bash /usr/sbin:/usr/bin:/sbin:/bin", String::new()));
    let script = r#"until('# '); say("echo BE''GIN $PATH E''ND; ls >/dev/null\r"); until('BEGIN '); print(until(' END'))
until('# '); say('exit\r'); until('left 0')"#;
    let on_a_terminal = on_a_terminal("unbitctl enter --root 30001; echo left $?", script);
    assert_eq!((on_a_terminal.as_str(), ran()), ("/usr/sbin:/usr/bin:/sbin:/bin", String::new()));

    // Nor does a login shell, for which there is nothing in /usr/local.
    run("unbitctl", &["enter", "--root", "30001", "--", "bash", "-l"], b"").ok();
    assert_eq!(ran(), "");
    // What it would be otherwise.
    sh(format!("HOME=/root nsenter -t {} -m bash -l </dev/null", leader(30001))).ok();
    assert!(ran().contains("/mesg 0\n"), "{}", ran());
}

/// Perl and Python look into /usr/local for modules, and name services for sockets in /run. Both
/// are the tenant's in the example's containers.
#[test]
#[ignore = "needs the node: make test"]
fn what_root_runs_inside_loads_no_module_of_the_tenants() {
    let home = "/containers/30001";
    let _gone = AtEnd(|| drop(sh(format!("rm -rf {home}/ran-as {home}/share {home}/lib"))));
    let trap = r#"cd /containers/30001; ran=/containers/30001/ran-as
        perl -e 'print "$_\n" for grep m(^/usr/local/), @INC' | while read -r place; do
            place=.${place#/usr/local}; mkdir -p $place
            printf 'package strict; open my $ran, q(>>), q(%s); print $ran qq(perl $>\n); 1' $ran >$place/strict.pm
        done
        python3 -c 'import sys; print("/usr/local/lib/python%d.%d/dist-packages" % sys.version_info[:2])' | while read -r place; do
            place=.${place#/usr/local}; mkdir -p $place
            printf 'import os; open("%s", "a").write("python %%d\\n" %% os.geteuid())\n' $ran >$place/walls.pth
        done"#;
    run("setpriv", &["--reuid", "30001", "--regid", "30001", "--clear-groups", "bash", "-euc", trap], b"").ok();
    let ran = || {
        let ran = fs::read_to_string(format!("{home}/ran-as")).unwrap_or_default();
        drop(fs::remove_file(format!("{home}/ran-as")));
        let mut ran: Vec<_> = ran.lines().map(str::to_owned).collect();
        ran.sort();
        ran.dedup();
        ran
    };
    let programs = "perl -e 'use strict' && python3 -c 'print(1)'";
    let root = |script: &str| run("unbitctl", &["enter", "--root", "30001", "--", "sh", "-c", script], b"").ok();
    // The witness: the tenant's own programs load them.
    assert_eq!(run("unbitctl", &["enter", "30001", "--", "sh", "-c", programs], b"").ok(), "1");
    assert_eq!(ran(), ["perl 30001", "python 30001"]);
    assert_eq!((root(programs).as_str(), ran()), ("1", vec![]));
    assert_eq!(root("ls -A /usr/local /run; stat -c '%u %a' /usr/local /run"), "/run:\n\n/usr/local:\n0 755\n0 755");
    assert!(!sh("unbitctl enter --root 30001 -- touch /run/walls").err.is_empty());
    // It is root's view alone: the container and the node have what they had, also while root is
    // inside.
    let seen = root(
        "test -e /proc/1/root/usr/local/lib && test -S /proc/1/root/containers/30001/run/ns.socket && echo theirs",
    );
    assert_eq!(seen, "theirs");
    let mounts = || sh(format!("grep -c . /proc/{}/mountinfo /proc/self/mountinfo", leader(30001))).ok();
    let before = mounts();
    let mut inside = Command::new("unbitctl")
        .args(["enter", "--root", "30001", "--", "sleep", "1109"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the process inside", || pgrep("^sleep 1109$"));
    let during = (mounts(), ssh(30001, "ls /usr/local").ok());
    sh(format!("kill -TERM {}", inside.id())).ok();
    inside.wait().unwrap();
    assert_eq!(during.0, before);
    assert!(during.1.contains("lib") && during.1.contains("run"), "{during:?}");
}

/// What /proc/PID/exe of `enter --root` leads to while something runs inside.
fn program_that_entered_as_root() -> String {
    let mut outside = Command::new("unbitctl")
        .args(["enter", "--root", "30001", "--", "sleep", "1104"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the process inside", || pgrep("^sleep 1104$"));
    let program = fs::read_link(format!("/proc/{}/exe", outside.id())).unwrap();
    sh(format!("kill -TERM {}", outside.id())).ok();
    outside.wait().unwrap();
    program.to_string_lossy().into_owned()
}

/// vm.memfd_noexec is a pid namespace's own, and the node has one.
#[test]
#[ignore = "needs the node: make test"]
fn enter_as_root_where_files_in_memory_run_no_programs() {
    let file = "/proc/sys/vm/memfd_noexec";
    if !fs::exists(file).unwrap() {
        return not_tried("vm.memfd_noexec is of Linux 6.3", true);
    }
    let _back = AtEnd(|| fs::write(file, "0").unwrap());
    for value in ["1", "2", "0"] {
        fs::write(file, value).unwrap();
        let done = run("unbitctl", &["enter", "--root", "30001", "--", "id", "-u"], b"");
        assert_eq!((done.status, done.out.as_str()), (Some(0), "0\n"), "vm.memfd_noexec={value}: {done:?}");
        // Nor is it the node's own program then.
        let program = program_that_entered_as_root();
        assert!(program.ends_with(" (deleted)"), "vm.memfd_noexec={value}: {program:?}");
    }
}

/// Its container's pid 1 cannot end before every process of the pid namespace has been waited for.
#[test]
#[ignore = "needs the node: make test"]
fn a_stopped_enter_does_not_block_a_restart() {
    let mut outside: Child =
        Command::new("unbitctl").args(["enter", "30001", "--", "sleep", "1107"]).stdin(Stdio::null()).spawn().unwrap();
    eventually("the process inside", || pgrep("^sleep 1107$"));
    sh(format!("kill -STOP {}", outside.id())).ok();
    let pid = leader(30001);
    sh(format!("kill -KILL {pid}")).ok();
    eventually("the end of its pid 1", || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(()));
    assert_login_works();
    sh(format!("kill -CONT {}", outside.id())).ok();
    assert_eq!(eventually("its end", || outside.try_wait().unwrap()).code(), Some(137));
    eventually("the end of who waited", || sh("pgrep -x unbitctl").out.is_empty().then_some(()));
}

#[test]
#[ignore = "needs the node: make test"]
fn enter_refuses_what_a_login_refuses() {
    let refused = |cause: &str| {
        for root in [&[][..], &["--root"]] {
            let done = run(
                "unbitctl",
                &[&["enter"], root, &["30001", "--", "touch", "/tmp/landed-on-the-host"]].concat(),
                b"",
            );
            assert_eq!((done.status, done.out.as_str()), (Some(1), ""), "{done:?}");
            assert!(done.err.contains(cause), "{done:?}");
        }
        assert!(!fs::exists("/tmp/landed-on-the-host").unwrap());
    };
    {
        let _instead = instead(SOCKET, &format!("touch {SOCKET}"));
        refused("container 30001 refused: run/ns.socket is not a socket");
    }
    {
        sh("chown 0:0 /containers/30001").ok();
        let _back = AtEnd(|| drop(sh("chown 30001:30001 /containers/30001")));
        refused("there is no container 30001 on this node (/containers/30001 belongs to 0:0); unbitctl list shows");
    }
    assert_eq!(run("unbitctl", &["enter", "30001", "--", "hostname"], b"").ok(), "c30001", "the witness");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_is_killed_takes_its_visitors_with_it() {
    let mut outside: Child =
        Command::new("unbitctl").args(["enter", "30001", "--", "sleep", "1105"]).stdin(Stdio::null()).spawn().unwrap();
    eventually("the process inside", || pgrep("^sleep 1105$"));
    sh(format!("kill -KILL {}", leader(30001))).ok();
    let end = eventually("its end", || outside.try_wait().unwrap());
    assert_eq!(end.code(), Some(137));
    eventually("a new pid 1", || (run("node-pid", &["30001"], b"").status == Some(0)).then_some(()));
    assert_login_works();
}
