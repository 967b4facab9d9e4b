//! `sessions=N`: how many sessions a container may have open at once. Each holds a slot, a record
//! lock that sshd's monitor holds on a byte of /run/unbit/sessions/UID, which the kernel releases
//! however the monitor ends.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use unbit_tests::*;

const SENTENCE: &str = "Container 30001 has too many open sessions.";
const DIRECTORY: &str = "/run/unbit/sessions";

/// The slots that are taken: which byte by which process. From /proc/locks, whose lines are "1:
/// POSIX ADVISORY WRITE PID DEVICE:INODE FIRST LAST".
fn slots(uid: u32) -> Vec<(u64, String)> {
    let Ok(file) = fs::metadata(format!("{DIRECTORY}/{uid}")) else { return Vec::new() };
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let mut slots = Vec::new();
    for line in locks.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let ["POSIX", "ADVISORY", "WRITE", pid, inode, first, last] = words[1..] else { continue };
        if inode.rsplit(':').next() == Some(&file.ino().to_string()) {
            assert_eq!(first, last, "a slot is one byte: {line}");
            slots.push((first.parse().unwrap(), pid.to_owned()));
        }
    }
    slots
}

#[track_caller]
fn wait_for_slots(count: usize) {
    eventually(format!("{count} slots, not {:?}", slots(30001)), || (slots(30001).len() == count).then_some(()));
}

/// One login that is refused for its number.
#[track_caller]
fn assert_too_many(limit: usize) {
    let (log, done) = (Log::from_now(), ssh(30001, "hostname"));
    assert!(done.status == Some(255) && done.err.contains(SENTENCE), "{done:?}\n{}", log.text());
    log.one_line(&format!("{limit} sessions are open (sessions={limit})"));
}

/// Nobody's but the sessions of this test are open.
fn wait_until_no_session_is_open() {
    eventually("the end of all sessions", || {
        pgrep(r"^sshd(-session)?: 30001 \[(priv|postauth)\]").is_none().then_some(())
    });
}

#[test]
#[ignore = "needs the node: make test"]
fn one_more_than_may_be_open_is_refused_by_every_way_in() {
    wait_until_no_session_is_open();
    {
        let _option = with_option("sessions=2");
        let [one, two] = [2001, 2002].map(|marker| Session::open(30001, &[], marker));
        assert_user_refused("30001", SENTENCE, "2 sessions are open (sessions=2)");

        let (bytes, holders): (BTreeSet<_>, BTreeSet<_>) = slots(30001).into_iter().unzip();
        assert_eq!((bytes.len(), holders), (2, BTreeSet::from([one.monitor(), two.monitor()])));
        for (path, kind, modes) in [
            ("/run/unbit", "directory", &["700", "755"][..]),
            (DIRECTORY, "directory", &["700", "755"]),
            (&format!("{DIRECTORY}/30001"), "regular file", &["600"]),
        ] {
            let found = sh(format!("stat -c '%F %U:%G %a' {path}")).ok();
            assert!(modes.iter().any(|mode| found == format!("{kind} root:root {mode}")), "{path}: {found}");
        }

        // Others have slots of their own, or none.
        let _other = Session::open(30000, &[], 2003);
        assert_eq!(ssh(30000, "hostname").ok(), "c30000");
        for user in ["root", "alice"] {
            assert_eq!(ssh(user, "hostname").ok(), "node");
        }
        drop(one);
        wait_for_slots(1);
        let _third = Session::open(30001, &[], 2004);
        assert_too_many(2);
    }
    wait_until_no_session_is_open();
    assert_honest_logins();
    wait_for_slots(0);
}

/// A process for each slot, which holds it as a monitor does.
struct Holders(Child);

impl Holders {
    fn of(first: u32, count: u32) -> Self {
        let script = format!(
            "import fcntl, os, time
file = open('{DIRECTORY}/30001', 'r+')
for slot in range({first}, {first} + {count}):
    if os.fork() == 0:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        time.sleep(600)
time.sleep(600)"
        );
        Self(Command::new("python3").args(["-c", &script]).process_group(0).spawn().unwrap())
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        sh(format!("kill -KILL -- -{}", self.0.id())).ok();
        drop(self.0.wait());
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn sixty_four_unless_a_line_says_otherwise() {
    wait_until_no_session_is_open();
    ssh(30001, "true").ok();
    wait_for_slots(0);
    assert!(fs::exists(format!("{DIRECTORY}/30001")).unwrap(), "the slots' file stays");
    {
        let _holders = Holders::of(1, 62);
        wait_for_slots(62);
        let _sessions = [2101, 2102].map(|marker| Session::open(30001, &[], marker));
        assert_too_many(64);
        assert_eq!(ssh(30000, "hostname").ok(), "c30000");
    }
    wait_until_no_session_is_open();
    wait_for_slots(0);
    assert_honest_logins();
}

/// Where the limit was higher until now, sessions have slots on both sides of it, and all of them
/// count.
#[test]
#[ignore = "needs the node: make test"]
fn a_limit_that_has_been_lowered() {
    wait_until_no_session_is_open();
    ssh(30001, "true").ok();
    wait_for_slots(0);
    {
        let _option = with_option("sessions=5");
        let _below = Holders::of(3, 2);
        let _above = Holders::of(10, 2);
        wait_for_slots(4);
        let _fifth = Session::open(30001, &[], 2111);
        assert_too_many(5);
        wait_for_slots(5);
    }
    wait_until_no_session_is_open();
    wait_for_slots(0);
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_count_is_exact_whoever_is_killed() {
    wait_until_no_session_is_open();
    let _option = with_option("sessions=2");
    let other = Session::open(30001, &[], 2201);
    // Of a session's processes: the one that it runs, sshd's child, the monitor. Then its client;
    // then all, from either end.
    for victims in ["first", "second", "last", "client", "upwards", "downwards"] {
        let session = Session::open(30001, &[], 2202);
        let mut processes = session.processes();
        wait_for_slots(2);
        match victims {
            "first" => processes.truncate(1),
            "second" => processes = vec![processes.swap_remove(1)],
            "last" => processes = processes.split_off(processes.len() - 1),
            "client" => processes = vec![session.client.id().to_string()],
            "downwards" => processes.reverse(),
            _ => {}
        }
        sh(format!("kill -KILL {}", processes.join(" "))); // some end with those before
        eventually(format!("one slot after {victims}, not {:?}", slots(30001)), || {
            (slots(30001).into_iter().map(|(_, pid)| pid).collect::<Vec<_>>() == [other.monitor()]).then_some(())
        });
    }
    let _second = Session::open(30001, &[], 2203);
    assert_too_many(2);
}

#[test]
#[ignore = "needs the node: make test"]
fn the_channels_of_one_connection_are_one_session() {
    wait_until_no_session_is_open();
    let _option = with_option("sessions=1");
    let _master = Session::open(30001, &["-M", "-S", "/tmp/one-connection"], 2301);
    for _ in 0..3 {
        let done = run("ssh", &["-S", "/tmp/one-connection", "30001@node", "hostname"], b"");
        assert_eq!(done.ok(), "c30001");
    }
    let _channel = Session::open(30001, &["-S", "/tmp/one-connection"], 2302);
    sh("echo pwd | sftp -q -b - -o ControlPath=/tmp/one-connection 30001@node").ok();
    assert_eq!(slots(30001).len(), 1, "{:?}", slots(30001));
    assert_too_many(1);
}

#[test]
#[ignore = "needs the node: make test"]
fn sessions_option_must_be_1_to_1024() {
    wait_until_no_session_is_open();
    for good in ["sessions=1", "sessions=1024"] {
        let _option = with_option(good);
        assert_eq!(ssh(30001, "hostname").ok(), "c30001", "{good}");
        wait_until_no_session_is_open();
    }
    for bad in [
        "sessions=0",
        "sessions=1025",
        "sessions=x",
        "sessions=",
        "sessions=-1",
        "sessions=2s",
        "sessions=99999999999999999999",
    ] {
        let _option = with_option(bad);
        let log = Log::from_now();
        let done = ssh(30001, &format!("touch {HOST_MARKER}"));
        assert!(done.err.contains("Container 30001 cannot be entered: this node is not set up for it."), "{done:?}");
        let line = log.one_line("refused:");
        assert!(line.contains(&format!("option {bad}:")), "{line}");
    }
    for unknown in ["sessions", "session=2", "maxsessions=2"] {
        let _option = with_option(unknown);
        let log = Log::from_now();
        assert_eq!(ssh(30001, "true").status, Some(255), "{unknown}");
        log.one_line(&format!("unknown option: {unknown}"));
        assert_eq!(ssh("alice", "hostname").ok(), "node", "others log in as before");
    }
    assert_no_session_on_the_host();
    assert_honest_logins();
}

/// A tenant with a key, who has all the time and all the processes that it takes.
#[test]
#[ignore = "needs the node: make test"]
fn a_tenant_that_opens_sessions_without_end_keeps_nobody_else_out() {
    const ATTEMPTS: usize = 60;
    const AT_ONCE: usize = 20;
    const LIMIT: usize = 8;
    wait_until_no_session_is_open();
    let option = with_option(&format!("sessions={LIMIT}"));
    let log = Log::from_now();
    let mut clients: Vec<Child> = Vec::new();
    let (mut others, mut slowest, mut most) = (0, Duration::ZERO, 0);
    // Those that are refused make room for the next.
    while clients.len() < ATTEMPTS {
        let running =
            clients.iter_mut().filter_map(|client| client.try_wait().unwrap().is_none().then_some(())).count();
        for _ in running..AT_ONCE.min(ATTEMPTS - clients.len() + running) {
            let mut ssh = Command::new("ssh");
            ssh.args(["30001@node", "echo in; exec sleep 2401"]).stdin(Stdio::null());
            clients.push(ssh.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        }
        let started = Instant::now();
        for (user, host) in [("30000", "c30000"), ("alice", "node"), ("root", "node")] {
            assert_eq!(ssh(user, "hostname").ok(), host);
            others += 1;
        }
        slowest = slowest.max(started.elapsed() / 3);
        most = most.max(slots(30001).len());
    }
    let left = eventually("everybody but the sessions is refused", || {
        let open = clients.iter_mut().filter_map(|client| client.try_wait().unwrap().is_none().then_some(())).count();
        (open == LIMIT).then_some(open)
    });
    assert_eq!((left, slots(30001).len()), (LIMIT, LIMIT));
    assert!(most <= LIMIT, "{most} slots");
    let monitors = sh(r"pgrep -fc '^sshd(-session)?: 30001 \[(priv|postauth)\]'").out;
    assert_eq!(monitors.trim(), LIMIT.to_string(), "{}", sh("ps -efww").out);
    // One that lost the race for the last slot after account is refused there, with a line, and
    // without a sentence.
    let refused = log.lines(&format!("{LIMIT} sessions are open (sessions={LIMIT})")).len();
    assert_eq!(refused, ATTEMPTS - LIMIT, "each has a line: {}", log.text());
    println!(
        "{ATTEMPTS} attempts; {others} others logged in meanwhile, each group of three in {slowest:.1?} a login at most"
    );
    for client in &mut clients {
        drop((client.kill(), client.wait()));
    }
    drop(option);
    wait_until_no_session_is_open();
    assert_honest_logins();
}
