//! `join=now`: services that never call setcred in a child, tried with su, login and cron, and step
//! by step with pamtester.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use unbit_tests::*;

/// A service of pamtester's own.
fn pamtester(lines: &str, operations: &str) -> Done {
    fs::write("/etc/pam.d/unbit-test", lines).unwrap();
    let done = sh(format!("pamtester unbit-test 30001 {operations}"));
    fs::remove_file("/etc/pam.d/unbit-test").unwrap();
    done
}

const LINES: &str =
    "auth required pam_permit.so\naccount required pam_unbit.so join=now\nsession required pam_unbit.so join=now\n";

/// The processes in a container's pid namespace that are not its uWSGI: pid, uid, effective
/// capabilities, file system uid.
fn guests(uid: u32) -> Vec<(String, String, String)> {
    let inside = namespaces(&leader(uid))["pid"].clone();
    let all = sh("ps -eo pid=").ok();
    all.split_whitespace()
        .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link.to_string_lossy() == inside))
        .filter_map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line =
                |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(|rest| rest.trim().to_owned());
            (!line("Name:")?.starts_with("uwsgi")).then_some((pid.to_owned(), line("Uid:")?, line("CapBnd:")?))
        })
        .collect()
}

#[test]
#[ignore = "needs the node: make test"]
fn su_enters() {
    let _su = join_now("su");
    let log = Log::from_now();
    assert_eq!(sh("su 30001 -c 'hostname; id -u; id -G'").ok(), "c30001\n30001\n30001");
    assert!(log.one_line("session opened").contains("pam_unbit(su:session)"));
    assert_eq!(sh("su alice -c 'hostname; id -un'").ok(), "node\nalice");
}

/// The kernel's audit log goes on naming the operator who has become the container's user; who is
/// nobody there yet becomes that.
#[test]
#[ignore = "needs the node: make test"]
fn su_keeps_the_audit_identity_of_who_uses_it() {
    let _su = join_now("su");
    let su = "su 30001 -c 'cat /proc/self/loginuid'";
    if sh("echo 1000 >/proc/self/loginuid").status != Some(0) {
        return not_tried("this kernel lets nobody write /proc/self/loginuid", kernel_lacks("CONFIG_AUDIT"));
    }
    assert_eq!(sh(format!("echo 1000 >/proc/self/loginuid; {su}")).ok(), "1000");
    assert_eq!(sh(format!("echo 4294967295 >/proc/self/loginuid; {su}")).ok(), "30001");
}

#[test]
#[ignore = "needs the node: make test"]
fn the_exit_status_and_the_signal_are_passed_on() {
    let _su = join_now("su");
    assert_eq!(sh("su 30001 -c 'exit 42'").status, Some(42));
    // As bash tells of it: 128 and the signal's number.
    assert_eq!(sh("su 30001 -c 'kill -TERM $$'; echo $?").out, sh("su alice -c 'kill -TERM $$'; echo $?").out);
}

#[test]
#[ignore = "needs the node: make test"]
fn signals_are_forwarded_to_the_application() {
    let _su = join_now("su");
    let mut su = Command::new("su").args(["30001", "-c", "sleep 1100"]).stdin(Stdio::null()).spawn().unwrap();
    let sleep = eventually("the session", || pgrep("^sleep 1100$"));
    assert_ne!(namespaces(&sleep)["mnt"], namespaces("self")["mnt"]);
    sh(format!("kill -TERM {}", su.id())).ok();
    eventually("the end of su", || su.try_wait().unwrap());
    eventually("the end of the session", || (!fs::exists(format!("/proc/{sleep}")).unwrap()).then_some(()));
    eventually("nobody left inside", || guests(30001).is_empty().then_some(()));
}

#[test]
#[ignore = "needs the node: make test"]
fn who_is_root_inside_has_next_to_no_power() {
    let _su = join_now("su");
    let mut su = Command::new("su").args(["30001", "-c", "sleep 1101"]).stdin(Stdio::null()).spawn().unwrap();
    eventually("the session", || pgrep("^sleep 1101$"));
    let guests = guests(30001);
    let open = |pid: &String| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        files.filter_map(|file| fs::read_link(file.unwrap().path()).ok()).collect::<Vec<_>>()
    };
    let open: Vec<_> = guests.iter().flat_map(|(pid, ..)| open(pid)).collect();
    sh(format!("kill -TERM {}", su.id())).ok();
    su.wait().unwrap();
    assert!(!open.iter().any(|file| file.starts_with("/run/unbit")), "a file of the node's: {open:?}");
    assert!(guests.iter().any(|(_, uid, _)| uid.starts_with("0\t")), "su itself waits inside: {guests:?}");
    for (pid, uid, bounding) in guests {
        // CHOWN, FOWNER, KILL, SETGID, SETUID, AUDIT_WRITE, and files as the container's user.
        assert_eq!(bounding, "00000000200000e9", "{pid}");
        assert!(uid.ends_with("\t30001"), "{pid} reaches files as {uid}");
    }
}

/// Neither a library nor a catalogue of messages: su says how the shell ended, and glibc would look
/// for its words in the tenant's language.
#[test]
#[ignore = "needs the node: make test"]
fn who_is_root_inside_opens_no_file() {
    let _su = join_now("su");
    let trace = "/run/su.trace";
    let _end = AtEnd(|| drop(fs::remove_file(trace)));
    let su = format!("LC_ALL=C.UTF-8 strace -f -o {trace} -e trace=openat,execve,setns su 30001 -c 'kill -TERM $$'");
    assert_eq!(sh(su).status, Some(143));
    let trace = fs::read_to_string(trace).unwrap();
    let mut calls = trace.lines().skip_while(|call| !call.contains("CLONE_NEWNS"));
    let root = calls.next().unwrap().split(' ').next().unwrap();
    // The root directory itself, as no more than a place, is where it finds out that it is inside.
    let is_root_directory = |call: &&str| call.contains("\"/\", O_RDONLY|O_CLOEXEC|O_PATH|O_DIRECTORY)");
    let opened = calls.filter(|call| call.starts_with(root) && call.contains("openat(") && !is_root_directory(call));
    let opened: Vec<_> = opened.collect();
    assert!(opened.is_empty(), "{opened:#?}");
}

#[test]
#[ignore = "needs the node: make test"]
fn an_application_that_ignores_its_children_ends_all_the_same() {
    let _su = join_now("su");
    let su = |user| format!("timeout 10 perl -e '$SIG{{CHLD}} = q(IGNORE); exec @ARGV' su {user} -c 'exit 3'");
    // Before util-linux 2.37 su itself loses the status.
    let status = sh(su("alice")).status;
    assert!([Some(3), Some(1)].contains(&status), "{status:?}");
    assert_eq!(sh(su("30001")).status, status);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_line_that_hangs_up_ends_the_session() {
    let _login = join_now("login");
    let users = if login_reopens_its_terminal() { &["alice"][..] } else { &["alice", "30001"] };
    for user in users {
        let mut script = Command::new("script");
        script.args(["-qec", &format!("login -f {user}"), "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut script = script.spawn().unwrap();
        eventually("the shell", || pgrep("^-bash"));
        std::thread::sleep(Duration::from_millis(500)); // login drops what was typed before
        script.stdin.as_mut().unwrap().write_all(b"sleep 1102\n").unwrap();
        let sleep = eventually("the session", || pgrep("^sleep 1102$"));
        assert_eq!(namespaces(&sleep)["mnt"] == namespaces("self")["mnt"], *user == "alice");
        drop((script.kill(), script.wait()));
        let _end = AtEnd(|| drop(sh(format!("kill {sleep} 2>/dev/null"))));
        eventually(format!("the end of {user}'s session"), || {
            (pgrep("^sleep 1102$").is_none() && guests(30001).is_empty()).then_some(())
        });
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn pamtester_step_by_step() {
    for operations in [
        "acct_mgmt open_session close_session",
        "open_session close_session",
        "acct_mgmt setcred open_session setcred close_session",
    ] {
        let log = Log::from_now();
        let done = pamtester(LINES, operations);
        assert_eq!(done.status, Some(0), "{operations}: {done:?}");
        assert!(log.one_line("session opened").contains("pam_unbit(unbit-test:session)"));
    }
    let log = Log::from_now();
    assert_ne!(pamtester(&LINES.replace(" join=now", ""), "open_session").status, Some(0));
    assert!(log.one_line("refused:").contains("the service unbit-test cannot enter containers without join=now"));
}

/// PAM_SILENT of pam_acct_mgmt(3): what is silent for the user is in the log all the same.
#[test]
#[ignore = "needs the node: make test"]
fn an_application_that_asks_for_silence() {
    let lines = LINES.replace(" join=now", "");
    for (operation, is_told) in [("acct_mgmt", true), ("'acct_mgmt(PAM_SILENT)'", false)] {
        let log = Log::from_now();
        let done = pamtester(&lines, operation);
        assert_eq!(done.status, Some(1), "{done:?}");
        assert_eq!((done.out + &done.err).contains("Container 30001 "), is_told, "{operation}");
        assert!(log.one_line("refused:").starts_with(ERR));
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn cron_enters_and_asks_nobody_inside_for_groups() {
    let _cron = join_now("cron");
    // cron calls initgroups(3) when it is inside. This is what it would read there, as if the file
    // system were the tenant's own.
    let _group = Changed::file("/distros/base/etc/group", |text| format!("{text}disk2:x:6:30001\nroot2:x:0:30001\n"));
    fs::write(
        "/etc/cron.d/unbit-test",
        "* * * * * 30001 sh -c 'hostname; id -u; id -G' >/containers/30001/from-cron\n",
    )
    .unwrap();
    let mut cron = Command::new("cron").arg("-f").spawn().unwrap();
    let _end = AtEnd(|| {
        drop((cron.kill(), cron.wait()));
        drop(sh("rm -f /etc/cron.d/unbit-test /containers/30001/from-cron"));
    });
    let start = Instant::now();
    while !fs::read_to_string("/containers/30001/from-cron").is_ok_and(|text| text == "c30001\n30001\n30001\n") {
        assert!(start.elapsed() < Duration::from_secs(75), "cron did not run the job: {}", Log::all());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn login_enters() {
    let _login = join_now("login");
    // login drops what was typed before the shell is there.
    let typed = "sleep 2; printf 'hostname; id -u\\nexit 7\\n'; sleep 2";
    let done = sh(format!("({typed}) | script -qec 'login -f 30001' /dev/null"));
    if login_reopens_its_terminal() {
        assert!(!done.out.contains("c30001") && !done.out.contains("30001\r\n"), "{done:?}");
        return assert_no_session_on_the_host();
    }
    assert!(done.out.contains("c30001") && done.out.contains("30001\r\n"), "{done:?} {}", Log::all());
}

#[test]
#[ignore = "needs the node: make test"]
fn what_is_refused_stays_outside() {
    let _su = join_now("su");
    sh("node-emperor stop").ok();
    {
        let _up = AtEnd(|| drop(sh("node-emperor start")));
        let log = Log::from_now();
        let done = sh(format!("su 30001 -c 'touch {HOST_MARKER}'"));
        assert_ne!(done.status, Some(0), "{done:?}");
        assert!(done.err.contains("Container 30001 is not running."), "{done:?}");
        assert!(log.one_line("refused:").contains("ECONNREFUSED"));
        assert!(!fs::exists(HOST_MARKER).unwrap());
    }
    leader(30001);
    assert_eq!(sh("su 30001 -c hostname").ok(), "c30001");
}

#[test]
#[ignore = "needs the node: make test"]
fn join_now_is_refused_for_sshd() {
    let _option = Changed::file("/etc/pam.d/sshd", |text| text.replace("pam_unbit.so", "pam_unbit.so join=now"));
    let log = Log::from_now();
    assert_eq!(ssh(30001, &format!("touch {HOST_MARKER}")).status, Some(255));
    assert!(log.one_line("refused:").contains("join=now would take sshd's monitor into the container"));
    assert!(!fs::exists(HOST_MARKER).unwrap());
}
