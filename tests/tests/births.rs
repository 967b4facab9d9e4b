//! What a container's root sees of logins: each process of a session is created in its pid
//! namespace as the container's user. It never has the node's root or working directory, an id of
//! the node, a capability, or a descriptor of the node.
//!
//! `src/bin/onlooker.rs` looks at them, as root inside the container with CAP_SYS_PTRACE. Three
//! things of the node belong to a session: sshd's program, which runs as the user and is not
//! dumpable, its socket to the client, and its socket pairs with the monitor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use unbit_tests::tenant::*;
use unbit_tests::*;

/// The number of logins of each test, all kinds in turn, unless `LOGINS` gives another.
const LOGINS: usize = 200;

/// What a login is for, and how to make the n-th one.
type Kind = (&'static str, fn(usize));

/// Each makes one login, and fails unless sshd's child has done something for it.
const KINDS: [Kind; 10] = [
    ("exec", |n| assert_eq!(ssh(HOSTILE, &format!("hostname; exit {}", n % 256)).out, "c30003\n")),
    ("exec with input", |_| {
        let input = [b'x'; 100_000];
        assert_eq!(run("ssh", &[&at_node(), "wc -c"], &input).ok().trim(), "100000");
    }),
    ("tty", |_| assert!(run("ssh", &["-tt", "-oLogLevel=ERROR", &at_node(), "tty"], b"").ok().contains("/dev/pts/"))),
    ("sftp", |_| drop(run("sftp", &["-q", "-b", "-", &at_node()], b"put /etc/hostname tmp/put\nls tmp\n").ok())),
    ("internal sftp", |_| drop(run("sftp", &["-q", "-b", "-", INTERNAL_SFTP, &at_node()], b"ls tmp\n").ok())),
    ("scp", |n| drop(run("scp", &["-q", "/etc/hostname", &format!("{}:tmp/scp{n}", at_node())], b"").ok())),
    ("scp of old", |n| {
        // Before OpenSSH 8.7 it has no other protocol, and no -O.
        let old = if run("scp", &["-O"], b"").err.contains("unknown option") { "-q" } else { "-O" };
        drop(run("scp", &["-q", old, "/etc/hostname", &format!("{}:tmp/scp{n}", at_node())], b"").ok())
    }),
    ("-L", |n| {
        let port = 20_000 + n % 10_000;
        let _master = Master::start(n, &["-N", "-L", &format!("127.0.0.1:{port}:127.0.0.1:9")]);
        // Nobody listens inside, so sshd's child closes the connection.
        let answer = sh(format!("exec 3<>/dev/tcp/127.0.0.1/{port} && timeout 10 cat <&3"));
        assert_eq!((answer.status, answer.out.as_str()), (Some(0), ""), "{answer:?}");
    }),
    ("-N", |n| {
        let master = Master::start(n, &["-N"]);
        let port = master.order(&["-O", "forward", "-R", "127.0.0.1:0:127.0.0.1:9"]).ok();
        assert!(port.trim().parse::<u16>().is_ok(), "{port}");
    }),
    ("multiplexed", |n| {
        let master = Master::start(n, &["-N", "-A"]);
        for i in 0..3 {
            assert_eq!(master.order(&[&format!("exit {i}")]).status, Some(i));
        }
        assert!(master.order(&["-tt", "-oLogLevel=ERROR", "tty"]).ok().contains("/dev/pts/"));
    }),
];

fn at_node() -> String {
    format!("{HOSTILE}@node")
}

/// A connection that other clients share. It ends when this is dropped.
struct Master(std::process::Child, String);

impl Master {
    fn start(n: usize, options: &[&str]) -> Self {
        let socket = format!("/tmp/master-{n}");
        drop(fs::remove_file(&socket)); // of a master before, which was killed
        let mut ssh = Command::new("ssh");
        ssh.args(["-M", "-S", &socket]).args(options).arg(at_node());
        let master = Self(ssh.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap(), socket);
        eventually("the master's socket", || fs::exists(&master.1).unwrap().then_some(()));
        master
    }

    fn order(&self, what: &[&str]) -> Done {
        let (options, command): (Vec<_>, Vec<_>) = match what {
            ["-O", ..] => (what.to_vec(), vec![]),
            [options @ .., command] => (options.to_vec(), vec![*command]),
            [] => unreachable!(),
        };
        run("ssh", &[&["-S", &self.1], &options[..], &[&at_node()], &command[..]].concat(), b"")
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        drop(self.order(&["-O", "exit"]));
        drop((self.0.kill(), self.0.wait()));
    }
}

/// What the onlooker has reported.
#[derive(Default)]
struct Seen {
    born: usize,
    missed: usize,
    /// First processes of sessions that were looked at completely.
    sessions: usize,
    whole: usize,
    /// Each kind of violation, how often it was seen, and the first report of it.
    wrong: BTreeMap<String, (usize, String)>,
}

impl Seen {
    fn since(offset: usize) -> Self {
        let mut seen = Self::default();
        let text = fs::read(file()).unwrap();
        let mut born = BTreeSet::new();
        for line in String::from_utf8_lossy(&text[offset..]).lines() {
            let mut words = line.split(' ');
            let (what, pid) = (words.next().unwrap(), words.next());
            match what {
                "born" => {
                    seen.born += 1;
                    born.insert(pid);
                }
                "missed" => seen.missed += 1,
                // The end of a look at one before, on a busy machine.
                _ if !born.contains(&pid) => {}
                "session" => seen.sessions += 1,
                "whole" => seen.whole += 1,
                _ => {
                    let kind = line.split(": ").nth(1).unwrap_or(line).chars();
                    let kind = kind.map(|letter| if letter.is_ascii_digit() { 'N' } else { letter }).collect();
                    seen.wrong.entry(kind).or_insert((0, line.to_owned())).0 += 1;
                }
            }
        }
        seen
    }
}

fn file() -> String {
    format!("/containers/{HOSTILE}/births.log")
}

fn size() -> usize {
    fs::metadata(file()).unwrap().len() as usize
}

/// Root processes with the node's root directory are born inside and end at once: nsenter(1) into
/// the pid namespace alone. An onlooker that does not catch them proves nothing. On a busy machine
/// it takes more of them.
#[track_caller]
fn assert_onlooker_sees(leader: &str) {
    const WANTED: usize = 10;
    const AT_ONCE: usize = 20;
    const MOST: usize = 200;
    let before = size();
    for tried in (AT_ONCE..=MOST).step_by(AT_ONCE) {
        for _ in 0..AT_ONCE {
            sh(format!("nsenter --pid=/proc/{leader}/ns/pid true")).ok();
        }
        // The last one lives long enough to be seen, so that numbers that were missed before it are
        // counted.
        sh(format!("nsenter --pid=/proc/{leader}/ns/pid sleep 0.2")).ok();
        let complete = || Some(Seen::since(before)).filter(|seen| seen.born + seen.missed > tried);
        let wrong = eventually("the onlooker to see the last of them", complete).wrong;
        let caught = |what: &str| -> usize {
            wrong.iter().filter(|(kind, _)| kind.contains(what)).map(|(_, (times, _))| times).sum()
        };
        if ["another root directory", "a working directory on a mount of the node's", "has Uid", "has CapEff"]
            .iter()
            .all(|what| caught(what) >= WANTED)
        {
            return;
        }
        assert!(tried < MOST, "the witness: of {tried} it has seen {wrong:#?}");
    }
}

fn assert_nothing_of_the_nodes_is_born(way: &str) {
    let watch = Watch::start();
    {
        give_home();
        let tool = install_program(HOSTILE, "onlooker");
        drop(fs::remove_file(file()));
        // No more power than looking takes.
        let become_it = format!(
            "setpriv --bounding-set=-all,+sys_ptrace,+kill,+dac_override,+dac_read_search,+setuid,+setgid {tool} {way} {HOSTILE} {}",
            file()
        );
        let hostile = Hostile::become_by(&become_it, "serve /run/ns.socket");
        eventually("the onlooker", || fs::exists(file()).unwrap().then_some(()));
        assert_onlooker_sees(&hostile.leader);

        let logins = std::env::var("LOGINS").map_or(LOGINS, |logins| logins.parse().unwrap());
        let (next, start) = (AtomicUsize::new(0), size());
        // A session can end before the first look at it is complete; on a busy machine it takes
        // more of them. Those that are seen in part are judged as well.
        let (wanted, most) = (logins - logins / 10, 3 * logins);
        let is_enough = |n| n >= logins && (n >= most || Seen::since(start).sessions >= wanted);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::SeqCst);
                        if is_enough(n) {
                            break;
                        }
                        KINDS[n % KINDS.len()].1(n);
                    }
                });
            }
        });
        eventually("the end of all sessions", || {
            let left = sh(format!("pgrep -c -u {HOSTILE} sshd")).out;
            (left.trim() == "0").then_some(())
        });
        let seen = Seen::since(start);
        let logins = next.into_inner() - 3; // each of the three has ended with one that it did not make
        println!(
            "{way}: {logins} logins; {} births, {} more ended before they were seen; {} sessions and {} other processes looked at completely",
            seen.born, seen.missed, seen.sessions, seen.whole
        );
        assert!(seen.wrong.is_empty(), "{way}: of {} births: {:#?}", seen.born, seen.wrong);
        assert!(
            seen.sessions >= wanted,
            "only {} sessions were looked at completely, of {logins} logins, where {wanted} are wanted",
            seen.sessions
        );
        assert_onlooker_sees(&hostile.leader); // it still looks
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_reader_of_proc_sees_nothing_of_the_nodes() {
    assert_nothing_of_the_nodes_is_born("spin");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_tracer_that_stops_every_process_at_birth_sees_nothing_of_the_nodes() {
    assert_nothing_of_the_nodes_is_born("seize");
}
