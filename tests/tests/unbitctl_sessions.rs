//! `unbitctl sessions`: lists who is logged in, and ends sessions; with real logins by sshd and su.

use std::fs;
use std::process::{Child, Command, Stdio};
use unbit_tests::*;

/// A session as the JSON has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    id: String,
    uid: String,
    since: String,
    service: String,
    address: String,
    port: String,
    terminals: String,
    key: String,
    pid: String,
}

fn rows(arguments: &str) -> Vec<Row> {
    let json = sh(format!("unbitctl sessions {arguments} --json")).ok();
    let keys = "id uid since_seconds service address port terminals key pid";
    let script = format!(
        "import json, sys
for s in json.load(sys.stdin): s['terminals'] = ','.join(s['terminals']); print(*[s[k] for k in '{keys}'.split()], sep='\\t')"
    );
    let rows = run("python3", &["-c", &script], json.as_bytes()).ok();
    let row = |row: &str| {
        let mut cells = row.split('\t').map(str::to_owned);
        let mut next = || cells.next().unwrap();
        Row {
            id: next(),
            uid: next(),
            since: next(),
            service: next(),
            address: next(),
            port: next(),
            terminals: next(),
            key: next(),
            pid: next(),
        }
    };
    rows.lines().map(row).collect()
}

/// The session of this monitor.
#[track_caller]
fn session(pid: &str) -> Row {
    rows("").into_iter().find(|row| row.pid == pid).unwrap_or_else(|| panic!("{pid} in {:?}", rows("")))
}

fn wait_until_no_session_is_open() {
    eventually("the end of all sessions", || rows("").is_empty().then_some(()));
}

fn key() -> String {
    "ssh-ed25519 ".to_owned() + &sh("ssh-keygen -l -f /root/.ssh/id_ed25519.pub | cut -d' ' -f2").ok()
}

#[test]
#[ignore = "needs the node: make test"]
fn who_is_in() {
    wait_until_no_session_is_open();
    let began: u64 = sh("date +%s").ok().parse().unwrap();
    let (terminal, said) = Terminal::open("30001", "tty; echo $SSH_CONNECTION", 4101);
    let ended: u64 = sh("date +%s").ok().parse().unwrap();
    let [tty, connection] = said.lines().collect::<Vec<_>>().try_into().unwrap();
    let seen = session(&terminal.monitor());
    let words: Vec<_> = connection.split_whitespace().collect();
    assert_eq!([seen.address.as_str(), &seen.port], words[..2], "{said}");
    assert_eq!(format!("/dev/{}", seen.terminals), tty);
    assert_eq!((seen.uid.as_str(), seen.service.as_str(), seen.key.clone()), ("30001", "sshd", key()));
    assert!(seen.id.starts_with(&format!("{}-", seen.pid)), "{seen:?}");
    let since: u64 = seen.since.parse().unwrap();
    assert!((began - 1..=ended + 1).contains(&since), "{began} {seen:?} {ended}");

    // Another, without a terminal, and in another container.
    let other = Session::open(30000, &[], 4102);
    let _name = second_name("web1", "30001");
    assert_eq!(rows("").iter().map(|row| row.uid.as_str()).collect::<Vec<_>>(), ["30000", "30001"]);
    assert_eq!(rows("web1"), std::slice::from_ref(&seen));
    let there = session(&other.monitor());
    assert_eq!(rows("30000"), std::slice::from_ref(&there));
    assert_eq!((there.terminals.as_str(), there.key), ("", key()));
    assert_eq!(rows("30002"), []);

    // The text has all of it with --wide; on a terminal of 80 columns each is one line.
    let wide = sh("unbitctl sessions --wide").ok();
    let from = format!("{}:{}", seen.address, seen.port);
    let line = wide.lines().find(|line| line.starts_with(&seen.id)).unwrap();
    for cell in ["30001", &from, &seen.terminals, "sshd", &seen.key] {
        assert!(line.split("  ").any(|each| each.trim() == cell), "{cell}: {wide}");
    }
    let narrow = sh("script -qec 'stty rows 24 cols 80; unbitctl sessions' /dev/null | tr -d '\\r'").ok();
    assert_eq!(narrow.lines().count(), 3, "{narrow}");
    assert!(narrow.lines().all(|line| line.len() <= 80) && narrow.contains("..."), "{narrow}");
    let piped = sh("unbitctl sessions").ok();
    assert!(piped.contains(key().split_once(' ').unwrap().1), "a pipe gets whole keys: {piped}");

    drop((terminal, other));
    wait_until_no_session_is_open();
    let nobody = "setpriv --reuid=1000 --regid=1000 --clear-groups unbitctl sessions";
    assert_eq!(sh(nobody).status, Some(3), "{:?}", sh(nobody));
}

/// A lock on a slot, and with `text` a record that its holder wrote.
struct Slot(Child);

impl Slot {
    fn take(uid: u32, slot: u32, text: &str) -> Self {
        const SCRIPT: &str = "\
import fcntl, os, sys, time
file = os.fdopen(os.open('/run/unbit/sessions/' + sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600), 'r+b')
slot = int(sys.argv[2])
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
text = sys.argv[3].replace('PID', str(os.getpid())).replace('NOW', str(time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000000))
if text: os.pwrite(file.fileno(), text.encode('unicode_escape').decode().replace('\\\\n', '\\n').encode('latin1').decode('unicode_escape').encode().ljust(1024, b'\\0'), slot * 1024)
print(flush=True)
time.sleep(600)";
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT, &uid.to_string(), &slot.to_string(), text]).stdout(Stdio::piped());
        let mut holder = command.spawn().unwrap();
        let mut held = [0; 1];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut held).unwrap();
        Self(holder)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

/// A lock without a record, with another's, and with one that is no text.
#[test]
#[ignore = "needs the node: make test"]
fn what_is_not_of_the_holder_of_the_lock_does_not_count() {
    wait_until_no_session_is_open();
    drop(Session::open(30001, &[], 4103));
    wait_until_no_session_is_open();
    let left = fs::read_to_string("/run/unbit/sessions/30001").unwrap();
    assert!(left.contains("sshd"), "the record of the session before is still there: {left:?}");
    let bare = |pid: &str| {
        let seen = session(pid);
        assert_eq!([seen.service, seen.address, seen.port, seen.key].map(|cell| cell == "None"), [true; 4], "{pid}");
        assert_ne!(seen.since, "None", "that of its process");
    };
    {
        let slot = Slot::take(30001, 0, "");
        bare(&slot.pid());
    }
    for text in [
        "unbit 1\n1\nNOW\nsshd\n192.0.2.7\n22\n\nkey\n",   // another's number
        "unbit 1\nPID\n1\nsshd\n192.0.2.7\n22\n\nkey\n",   // of before that process was there
        "unbit 2\nPID\nNOW\nsshd\n192.0.2.7\n22\n\nkey\n", // another format
        "unbit 1\nPID\nNOW\nsshd",                         // half of one
    ] {
        let slot = Slot::take(30001, 0, text);
        bare(&slot.pid());
    }
    let hostile = Slot::take(30001, 0, "unbit 1\nPID\nNOW\nss\u{1b}[2Jhd\n192.0.2.7\n22\n\nk\u{202e}ey\r\t\n");
    let seen = session(&hostile.pid());
    assert_eq!((seen.service.as_str(), seen.address.as_str()), (r"ss\u{1b}[2Jhd", "192.0.2.7"), "the witness");
    for command in ["unbitctl sessions", "unbitctl sessions --wide", "unbitctl sessions --json"] {
        let text = run("sh", &["-c", command], b"").ok();
        assert!(text.chars().all(|letter| letter == '\n' || letter == ' ' || letter.is_ascii_graphic()), "{text:?}");
    }
    assert_eq!(sh("unbitctl sessions").ok().lines().count(), 2);
}

/// Titles, names and environments of a tenant's processes are no sessions.
#[test]
#[ignore = "needs the node: make test"]
fn a_tenant_can_add_and_hide_none() {
    wait_until_no_session_is_open();
    let mut one = Session::open(30001, &[], 4104);
    let before = rows("");
    let fake =
        "export SSH_CONNECTION='192.0.2.9 1 192.0.2.1 22'; mkdir -p run/unbit/sessions; touch run/unbit/sessions/30001
        (exec -a 'sshd-session: 30001 [priv]' sleep 4105 >/dev/null 2>&1) &";
    ssh(30001, fake).ok();
    eventually("the fake", || pgrep("^sshd-session: 30001 .priv. 4105$"));
    eventually("one session", || (rows("") == before).then_some(()));
    sh("kill $(pgrep -f '4105$')").ok();
    // Its own sshd, which is the tenant's, does not say who it is.
    sh(format!("kill -KILL {}", one.process)).ok();
    drop(one.client.wait());
    wait_until_no_session_is_open();
}

#[test]
#[ignore = "needs the node: make test"]
fn su_is_a_session_too() {
    wait_until_no_session_is_open();
    let _su = join_now("su");
    let mut su = Command::new("su").args(["30001", "-c", "exec sleep 4106"]).stdin(Stdio::null()).spawn().unwrap();
    let process = eventually("its process", || pgrep("^sleep 4106$"));
    let _end = AtEnd(|| drop(sh(format!("kill -KILL {process}"))));
    let seen = session(&su.id().to_string());
    assert_eq!(
        (seen.service.as_str(), seen.uid.as_str(), seen.address.as_str(), seen.key.as_str()),
        ("su", "30001", "None", "None")
    );
    let end = sh(format!("unbitctl sessions --end {}", seen.id));
    assert_eq!(end.status, Some(0), "{end:?}");
    assert!(!su.wait().unwrap().success());
    eventually("the end of what su has run", || (!fs::exists(format!("/proc/{process}")).unwrap()).then_some(()));
    wait_until_no_session_is_open();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_session_ends_and_no_other_does() {
    wait_until_no_session_is_open();
    let other = Session::open(30001, &[], 4107);
    let log = Log::from_now();
    // In the background: one that ignores a hang-up, one in a session of its own, and one that has
    // neither.
    let mut client = Command::new("ssh")
        .args(["30001@node", "nohup sleep 4108 >/dev/null 2>&1 & setsid sleep 4109 >/dev/null 2>&1 & sleep 4110 >/dev/null 2>&1 & exec sleep 4111"])
        .stdin(Stdio::null())
        .stderr(client_errors())
        .spawn()
        .unwrap();
    let [nohup, setsid, plain, front] =
        [4108, 4109, 4110, 4111].map(|seconds| eventually(seconds, || pgrep(&format!("^sleep {seconds}$"))));
    let _end = AtEnd(|| drop(sh(format!("kill -KILL {nohup} {setsid}"))));
    let is_there = |pid: &str| fs::exists(format!("/proc/{pid}")).unwrap();
    let seen = rows("30001").into_iter().find(|row| row.pid != other.monitor()).unwrap();

    let (pid, mark) = seen.id.split_once('-').unwrap();
    let another = format!("{pid}-{:04x}", u16::from_str_radix(mark, 16).unwrap() ^ 1);
    for (arguments, status, said) in [
        (another.clone(), 1, format!("no open session has the ID {another}; ")),
        (format!("{} 30000", seen.id), 1, format!("no open session of 30000 has the ID {}; ", seen.id)),
        ("1-0000".to_owned(), 1, "no open session has the ID 1-0000; ".to_owned()),
        ("4194303-0000".to_owned(), 1, "no open session has the ID 4194303-0000; ".to_owned()),
        (pid.to_owned(), 2, "an ID is as `unbitctl sessions` shows it, such as 48213-0f3a".to_owned()),
    ] {
        let done = sh(format!("unbitctl sessions --end {arguments}"));
        assert!(done.status == Some(status) && done.err.contains(&said), "{arguments}: {done:?}");
    }
    assert!(is_there(&front) && is_there(&seen.pid), "nothing has ended");

    let json = sh(format!("unbitctl sessions 30001 --end {} --json", seen.id)).ok();
    assert!(json.contains("\"end\": \"ended\"") && json.contains(&format!("\"id\": \"{}\"", seen.id)), "{json}");
    assert_eq!(client.wait().unwrap().code(), Some(255));
    assert!(!is_there(&seen.pid));
    for pid in [&front, &plain] {
        eventually("the end of its processes", || (!is_there(pid)).then_some(()));
    }
    assert!(is_there(&nohup) && is_there(&setsid), "what is in the background goes on: {}", sh("ps -ef").out);
    assert!(is_there(&other.process), "and so does another session");
    assert_eq!(rows("30001").iter().map(|row| row.pid.clone()).collect::<Vec<_>>(), [other.monitor()]);
    log.one_line("session closed after");

    let again = sh(format!("unbitctl sessions --end {}", seen.id));
    assert!(again.status == Some(1) && again.err.contains("no open session has the ID"), "{again:?}");
    let nobody = format!("setpriv --reuid=1000 --regid=1000 --clear-groups unbitctl sessions --end {}", seen.id);
    assert_eq!(sh(nobody).status, Some(3));
}

/// Freezes the container and waits until it is; it is thawed when this is dropped. And whether a
/// signal that kills gets through, as in cgroup v2. Nothing if there is no freezer.
fn frozen() -> Option<(AtEnd<impl FnMut()>, bool)> {
    let pid = leader(30001);
    // One in which it is: with both versions mounted a hierarchy may have no processes.
    let is_in = |file: &&str| {
        let members = fs::read_to_string(format!("{}/cgroup.procs", file.rsplit_once('/').unwrap().0)).unwrap();
        members.lines().any(|member| member == pid)
    };
    let find = "find /sys/fs/cgroup -path '*/30001/freezer.state'; find /sys/fs/cgroup -path '*/30001/cgroup.freeze'";
    let file = sh(find).out.lines().find(is_in)?.to_owned();
    let (freeze, thaw, shown, says) = match file.strip_suffix("cgroup.freeze") {
        Some(group) => ("1", "0", format!("{group}cgroup.events"), "frozen 1"),
        None => ("FROZEN", "THAWED", file.clone(), "FROZEN"),
    };
    fs::write(&file, freeze).unwrap();
    let thawed = AtEnd(move || fs::write(&file, thaw).unwrap());
    eventually("a frozen container", || fs::read_to_string(&shown).unwrap().contains(says).then_some(()));
    Some((thawed, freeze == "1"))
}

/// Its sshd inside cannot end, so that the monitor waits for it: where a freezer of cgroup v1 holds
/// it.
#[test]
#[ignore = "needs the node: make test"]
fn a_session_that_does_not_end_by_itself_is_killed() {
    wait_until_no_session_is_open();
    let session_of_it = Session::open(30001, &[], 4112);
    let seen = session(&session_of_it.monitor());
    {
        let Some((_frozen, can_be_killed)) = frozen() else { return not_tried("no freezer", false) };
        let done = sh(format!("unbitctl sessions --end {}", seen.id)).ok();
        let how = if can_be_killed { "has ended" } else { "did not end within 5 s and was killed" };
        assert!(done.ends_with(how), "{done}");
        assert_eq!(rows(""), []);
        // It has ended, and sshd may not have reaped it yet.
        eventually("its monitor", || (!fs::exists(format!("/proc/{}", seen.pid)).unwrap()).then_some(()));
    }
    let process = &session_of_it.process;
    eventually("the end of its process", || (!fs::exists(format!("/proc/{process}")).unwrap()).then_some(()));
    assert_eq!(ssh(30001, "hostname").ok(), "c30001");
}
