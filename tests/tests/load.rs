// node: --containers '30000 30001 30002 30003 30004'
//! Many logins at once while two other containers are in trouble: nobody else notices, and nothing
//! is left of it.
//!
//! `LOGINS` is how many, 150 by default; `make test-load` makes 500. Their times are printed and
//! not judged.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use unbit_tests::*;

const CLIENTS: usize = 50;
const ROUNDS: usize = 3;
const HONEST: [&str; 4] = ["alice", "30000", "30001", "30002"];
/// Its pid 1 is stopped, and its socket's backlog full.
const SILENT: u32 = 30003;
/// Its pid 1 is killed, and killed again as soon as there is a new one.
const DYING: u32 = 30004;

/// Those who also come to each container that is or will be in trouble, at the same pace with and
/// without the trouble.
const KNOCKERS: u32 = 8;
const PACE: Duration = Duration::from_secs(8);

/// What memory may grow, in kB: less than half a kilobyte for each login.
const SLACK: i64 = 64;

const WHERE_AM_I: &str = "echo $HOSTNAME $EUID";

struct Login {
    user: String,
    done: Done,
    took: Duration,
}

impl Login {
    fn of(user: &str) -> Self {
        let started = Instant::now();
        let done = ssh(user, WHERE_AM_I);
        Self { user: user.to_owned(), done, took: started.elapsed() }
    }

    fn is_inside(&self) -> bool {
        let place = if self.user == "alice" { "node 1000\n".to_owned() } else { format!("c{0} {0}\n", self.user) };
        self.done == Done { status: Some(0), out: place, err: String::new() }
    }
}

/// So many honest logins from all the clients, and the knocks that fall into the same time.
fn load(logins: usize) -> (Vec<Login>, Vec<Login>) {
    let (honest, knocks) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for knocker in 0..2 * KNOCKERS {
            let (knocks, over) = (&knocks, &over);
            scope.spawn(move || {
                let user = [SILENT, DYING][knocker as usize % 2].to_string();
                let mut at = Instant::now() + PACE * knocker / (2 * KNOCKERS);
                while !over.load(Ordering::Relaxed) {
                    if Instant::now() < at {
                        thread::sleep(Duration::from_millis(50));
                        continue;
                    }
                    at += PACE;
                    let login = Login::of(&user);
                    knocks.lock().unwrap().push(login);
                }
            });
        }
        let client = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= logins {
                    break;
                }
                let login = Login::of(HONEST[i % HONEST.len()]);
                honest.lock().unwrap().push(login);
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        for client in clients {
            client.join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    (honest.into_inner().unwrap(), knocks.into_inner().unwrap())
}

/// Every one is where it wanted to be, and the log has one line for each of a container's.
#[track_caller]
fn assert_all_inside<'a>(logins: impl IntoIterator<Item = &'a Login>, log: &Log) {
    let mut expected = BTreeMap::new();
    for login in logins {
        assert!(login.is_inside(), "{}: {:?}", login.user, login.done);
        *expected.entry(login.user.as_str()).or_insert(0) += 1;
    }
    for (user, logins) in expected {
        let opened = if user == "alice" { 0 } else { logins };
        eventually(format!("{opened} sessions of {user} in the log"), || {
            (lines(log, &format!("container {user}: session opened")) == opened).then_some(())
        });
        let refused = format!("container {user} refused");
        let refused: Vec<_> = log.text().lines().filter(|line| line.contains(&refused)).map(str::to_owned).collect();
        assert_eq!(refused, [""; 0]);
    }
}

fn lines(log: &Log, needle: &str) -> usize {
    log.text().lines().filter(|line| line.contains(needle)).count()
}

fn signal(name: &str, pid: &str) -> bool {
    run("kill", &["-s", name, pid], b"").status == Some(0)
}

/// The container's pid 1 is stopped, and somebody holds as many connections as its socket takes.
struct Silence {
    pid: String,
    holder: Child,
}

impl Silence {
    fn of(uid: u32) -> Self {
        let pid = leader(uid);
        assert!(signal("STOP", &pid));
        let fill = r#"use Socket qw(:DEFAULT SOCK_NONBLOCK); use Errno; $| = 1;
            do { socket($s, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0) or die; push @held, $s } while connect($s, sockaddr_un($ARGV[0]));
            $!{EAGAIN} or die; print "full\n"; sleep 900"#;
        let mut holder = Command::new("perl")
            .args(["-e", fill, &format!("/containers/{uid}/run/ns.socket")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "full\n");
        Self { pid, holder }
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        signal("CONT", &self.pid);
        drop((self.holder.kill(), self.holder.wait()));
    }
}

/// A number or a word of /proc/PID/status.
fn status(pid: &str, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next().map(str::to_owned))
}

/// Kills the container whenever there is one, until `over`: some as soon as they are born, some
/// after a while. Says how many.
fn keep_killing(uid: u32, over: &AtomicBool) -> usize {
    // Only the Emperor's children are looked at: a search of all /proc would cost the logins their
    // time.
    let emperor = status(&leader(uid), "PPid:").unwrap();
    let born = || {
        let children = fs::read_to_string(format!("/proc/{emperor}/task/{emperor}/children")).unwrap();
        children.split_whitespace().find(|pid| status(pid, "Uid:") == Some(uid.to_string())).map(str::to_owned)
    };
    let lives = [0, 3000, 500, 6000].map(Duration::from_millis);
    let mut killed = 0;
    let mut since = None;
    while !over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(100));
        let Some(pid) = born() else { continue };
        if since.get_or_insert_with(Instant::now).elapsed() >= lives[killed % lives.len()] && signal("KILL", &pid) {
            killed += 1;
            since = None;
        }
    }
    killed
}

fn processes() -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    entries.filter(|name| name.starts_with(|first: char| first.is_ascii_digit())).collect()
}

fn command(pid: &str) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?.replace('\0', " ").trim_end().to_owned())
}

/// All that a login could leave on the node: processes and zombies, what they have open, sockets,
/// mounts, cgroups and who is in them.
fn inventory() -> Vec<String> {
    let count = |path: &str| fs::read_to_string(path).unwrap_or_default().lines().count();
    let mut found: Vec<_> = processes()
        .into_iter()
        .filter(|pid| *pid != std::process::id().to_string())
        .filter_map(|pid| {
            let zombie = if status(&pid, "State:")? == "Z" { ", a zombie" } else { "" };
            Some(format!("{}: {} descriptors{zombie}", command(&pid)?, descriptors(&pid).len()))
        })
        .collect();
    found.sort();
    found.push(format!("{} unix sockets", count("/proc/net/unix")));
    found.push(format!("{} mounts", count("/proc/self/mountinfo")));
    let groups = sh("find /sys/fs/cgroup -name cgroup.procs | sort").ok();
    found.extend(groups.lines().map(|procs| format!("{} processes in {procs}", count(procs))));
    found
}

/// When what is ending has ended: half a second later it is the same.
fn settled_inventory() -> Vec<String> {
    let mut before = Vec::new();
    eventually("that the node comes to rest", || {
        thread::sleep(Duration::from_millis(500));
        let now = inventory();
        let is_settled = now == before && !now.iter().any(|line| line.ends_with("a zombie"));
        before.clone_from(&now);
        is_settled.then_some(now)
    })
}

/// The memory of those who live through all of it, in kB: the two sshd and the containers' pid 1.
fn memory() -> BTreeMap<String, i64> {
    let mut who: Vec<_> = ["/run/sshd.pid", "/run/sshd-internal.pid"].map(|file| sh(format!("cat {file}")).ok()).into();
    who.extend([30000, 30001, 30002, SILENT].map(leader));
    who.into_iter()
        .map(|pid| {
            let memory = status(&pid, "RssAnon:").unwrap().parse().unwrap();
            (format!("{pid} {}", command(&pid).unwrap()), memory)
        })
        .collect()
}

fn median_of(users: &[&str], logins: &[Login]) -> f64 {
    let mut times: Vec<_> =
        logins.iter().filter(|login| users.contains(&login.user.as_str())).map(|login| login.took).collect();
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// Also where tests keep what they print to themselves.
fn print(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// What came of the rounds in which two containers were in trouble.
#[derive(Default)]
struct Trouble {
    honest: Vec<Login>,
    silent: usize,
    killed: usize,
    dying: Vec<Login>,
}

impl Trouble {
    /// Who comes to those two is refused, or loses a session; nobody else notices.
    fn round(&mut self, logins: usize) {
        let log = Log::from_now();
        let over = AtomicBool::new(false);
        let (honest, knocks, killed) = thread::scope(|scope| {
            let _silence = Silence::of(SILENT);
            let _end = AtEnd(|| over.store(true, Ordering::Relaxed));
            let killer = scope.spawn(|| keep_killing(DYING, &over));
            let (honest, knocks) = load(logins);
            over.store(true, Ordering::Relaxed);
            (honest, knocks, killer.join().unwrap())
        });
        assert_all_inside(&honest, &log);
        let (silent, dying): (Vec<_>, Vec<_>) = knocks.into_iter().partition(|login| login.user == SILENT.to_string());
        for Login { done, took, .. } in &silent {
            assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}");
            assert!(done.err.contains("Container 30003 does not answer."), "{done:?}");
            assert!(took.as_secs() >= 3, "{took:?}");
        }
        let refused = "container 30003 refused: connect to run/ns.socket: ETIMEDOUT";
        assert_eq!(lines(&log, refused), silent.len(), "{}", log.text());
        for Login { done, .. } in &dying {
            assert!("c30004 30004\n".starts_with(&done.out), "{done:?}");
            assert!([Some(0), Some(255)].contains(&done.status), "{done:?}");
        }
        self.honest.extend(honest);
        self.silent += silent.len();
        self.killed += killed;
        self.dying.extend(dying);

        // And it ends with its cause.
        for uid in [SILENT, DYING] {
            leader(uid);
            assert!(Login::of(&uid.to_string()).is_inside());
        }
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn logins_to_other_containers_work_while_two_keep_dying() {
    let logins = std::env::var("LOGINS").map_or(150_usize, |number| number.parse().unwrap());
    let logins = logins.div_ceil(ROUNDS);
    let log = Log::from_now();
    let (honest, knocks) = load(CLIENTS); // a warm-up
    assert_all_inside(honest.iter().chain(&knocks), &log);
    let before = settled_inventory();
    let memory_before = memory();

    // They take turns, so that what else the machine does falls on both.
    let mut peace = Vec::new();
    let mut trouble = Trouble::default();
    for _ in 0..ROUNDS {
        let log = Log::from_now();
        let (honest, knocks) = load(logins);
        assert_all_inside(honest.iter().chain(&knocks), &log);
        peace.extend(honest);
        trouble.round(logins);
    }
    let Trouble { honest, silent, killed, dying } = &trouble;
    let refused = dying.iter().filter(|login| login.done.err.contains("Container 30004 ")).count();
    let inside = dying.iter().filter(|login| login.is_inside()).count();
    assert!(*silent > 0 && *killed >= ROUNDS, "the witness: {silent} refused, {killed} times killed");

    let after = settled_inventory();
    assert_eq!(after, before, "nothing is left behind");
    for (who, now) in memory() {
        let then = memory_before[&who];
        assert!(now <= then + SLACK, "{who} had {then} kB and has {now} kB");
    }

    print(&format!(
        "{CLIENTS} clients, {} logins in peace and {} in trouble, all of them let in. Meanwhile {silent} at the silent container were refused; \
         of {} at the one that was killed {killed} times {inside} came in, {refused} were refused and the rest cut off",
        peace.len(),
        honest.len(),
        dying.len()
    ));
    for (who, users) in [("ordinary users", &HONEST[..1]), ("users of the other containers", &HONEST[1..])] {
        let [peace, trouble] = [&peace, honest].map(|logins| median_of(users, logins));
        let ratio = trouble / peace;
        print(&format!(
            "{who}: a login takes {peace:.2} s in peace, {trouble:.2} s in trouble (medians), ratio {ratio:.2}"
        ));
    }
}
