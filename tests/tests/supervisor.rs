//! The supervisor, which stays on the node for each session: it has nothing to take, nobody inside
//! can reach it, and it keeps no container from ending. Whoever is killed leaves nothing behind. A
//! session's exit, signals and streams are those of an ordinary user's session.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use unbit_tests::supervision::{SupervisedSession, lives, status};
use unbit_tests::tenant::*;
use unbit_tests::*;

const TTY: [&str; 2] = ["-tt", "-oLogLevel=ERROR"];

/// Runs a script as root of a container, with every capability, in all the namespaces of its pid 1.
fn root_inside(leader: &str, script: &str) -> Done {
    sh(format!("nsenter -a -t {leader} /bin/sh -c '{script}'"))
}

/// Whether none of these processes is left, not even as a zombie.
fn are_gone(pids: &[&String]) -> bool {
    pids.iter().all(|pid| !fs::exists(format!("/proc/{pid}")).unwrap())
}

/// Longer than a container takes to end. What hangs never ends.
const SOON: Duration = Duration::from_secs(3);

#[track_caller]
fn soon(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        let processes = || sh("ps -eo pid,ppid,pgid,uid,stat,wchan:20,args").out;
        assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}\n{}", processes());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn it_owns_nothing() {
    for (way, options) in
        [("exec", &[][..]), ("tty", &TTY), ("agent and port", &["-A", "-R", "127.0.0.1:7811:127.0.0.1:9"])]
    {
        let mut session = SupervisedSession::start("30001", options, "supervised");
        session.assert_answers();
        session.assert_supervised();
        let supervisor = &session.supervisor;
        // Not even another process of the same user on the node may look into it or trace it.
        for attempt in [
            format!("readlink -v /proc/{supervisor}/exe"),
            format!("ls /proc/{supervisor}/fd"),
            format!("cat /proc/{supervisor}/environ"),
            format!("perl -e '$! = 0; syscall(101, 0x4206, {supervisor}, 0, 0) == 0 or die $!'"),
        ] {
            let as_user = format!("setpriv --reuid 30001 --regid 30001 --clear-groups {attempt}");
            let done = sh(&as_user);
            assert!(
                done.status != Some(0) && ["denied", "not permitted"].iter().any(|no| done.err.contains(no)),
                "{way}: {attempt}: {done:?}"
            );
        }
        assert_ne!(
            fs::read_to_string(format!("/proc/{supervisor}/cgroup")).unwrap(),
            fs::read_to_string(format!("/proc/{}/cgroup", session.first)).unwrap(),
            "the witness: the container's groups are others"
        );
        // The monitor must have closed what it opened of the container.
        let of_container: Vec<_> = descriptors(&session.monitor)
            .into_iter()
            .filter(|open| {
                open.contains("pidfd")
                    || open.contains("cgroup.procs")
                    || open.contains(":[4") && !open.starts_with("socket") && !open.starts_with("pipe")
            })
            .collect();
        assert_eq!(of_container, [""; 0], "{way}: the monitor keeps these open during the session");
        session.hang_up();
        soon("the end of the session", || are_gone(&[&session.supervisor, &session.first, &session.monitor]));
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn nobody_inside_sees_traces_or_signals_it() {
    give_home();
    let tool = install_program(HOSTILE, "onlooker");
    let hostile = Hostile::start("serve /run/ns.socket");
    for options in [&[][..], &TTY] {
        let mut session = SupervisedSession::start(&HOSTILE.to_string(), options, "supervised");
        session.assert_answers();
        session.assert_supervised();
        let supervisor = &session.supervisor;

        // It has no number inside; only the container's own processes have one.
        assert_eq!(status(supervisor, "NSpid"), *supervisor, "{}", session.describe());
        let pid_namespace = namespaces(&hostile.leader)["pid"].clone();
        let on_node = sh("ps -eo pid=").ok();
        let inside: BTreeSet<_> = on_node
            .split_whitespace()
            .filter(|pid| {
                fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link.to_string_lossy() == pid_namespace)
            })
            .map(|pid| status(pid, "NSpid").split(' ').next_back().unwrap().to_owned())
            .collect();
        let seen = root_inside(
            &hostile.leader,
            "for i in $(seq 1 5000); do [ $i = $$ ] || ! kill -0 $i 2>/dev/null || echo $i; done",
        );
        let seen: BTreeSet<_> = seen.ok().lines().map(str::to_owned).collect();
        assert_eq!(seen, inside, "who can be signalled by number");

        // A signal to every process inside, from root.
        let number = status(&session.first, "NSpid").split(' ').next_back().unwrap().to_owned();
        let stops = |who: &str, witness: &str| {
            eventually(format!("{who}: {witness} to stop: {}", session.describe()), || {
                status(witness, "State").starts_with('T').then_some(())
            });
            std::thread::sleep(Duration::from_millis(50));
            assert!(
                lives(supervisor) && !status(supervisor, "State").starts_with(['T', 't']),
                "{who}: {}",
                session.describe()
            );
            root_inside(&hostile.leader, "kill -CONT -1").ok();
            eventually("it to go on", || status(witness, "State").starts_with('S').then_some(()));
        };
        root_inside(&hostile.leader, "kill -STOP -1").ok();
        stops("kill(-1) by root", &session.first);
        // From the session's first process, under a tracer's control. kill(0) signals its process
        // group and asks for no number, so that it would reach a supervisor of the same group;
        // kill(-1) signals everybody but the caller.
        for (target, witness) in [("0", &session.first), ("-1", &session.command)] {
            let (kill, stop) = (libc::SYS_kill, libc::SIGSTOP);
            let done = root_inside(&hostile.leader, &format!("{tool} inject {number} {kill} {target} {stop}"));
            assert_eq!(done.ok(), "0");
            stops(&format!("kill({target}) by the session's first process"), witness);
        }
        session.assert_answers();
        session.hang_up();
        soon("the end of the session", || are_gone(&[&session.supervisor, &session.first, &session.monitor]));
    }
}

/// Stops all processes of the container, as some engines do when they shut one down, and then kills
/// its pid 1.
#[track_caller]
fn assert_ends_at_once(hostile: &Hostile, stopped: &[&String], all: &[&String]) {
    root_inside(&hostile.leader, "kill -STOP -1").ok();
    for pid in stopped {
        eventually("it to stop", || status(pid, "State").starts_with('T').then_some(()));
    }
    std::thread::sleep(Duration::from_millis(200)); // for whoever copies a stop
    sh(format!("kill -KILL {}", hostile.leader)).ok();
    soon("the end of the container and of all its sessions", || {
        are_gone(all) && sh(format!("pgrep -u {HOSTILE}")).out.is_empty()
    });
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_stops_all_its_processes_ends_at_once() {
    let hostile = Hostile::start("serve /run/ns.socket");
    let user = HOSTILE.to_string();
    let mut sessions = [("exec", &[][..]), ("tty", &TTY), ("internal", &["-p2222", "-A"])]
        .map(|(name, options)| SupervisedSession::start(&user, options, &format!("stopped-{name}")));
    for session in &mut sessions {
        session.assert_answers();
        session.assert_supervised();
    }
    let first: Vec<_> = sessions.iter().map(|session| &session.first).collect();
    let all: Vec<_> = sessions
        .iter()
        .flat_map(|session| [&session.command, &session.first, &session.supervisor, &session.monitor])
        .collect();
    assert_ends_at_once(&hostile, &first, &all);
    for session in &mut sessions {
        assert_eq!(eventually("the client's end", || session.client.try_wait().unwrap()).code(), Some(255));
    }
    assert_honest_logins();
}

/// The same for a session of another service, whose caller must see it stop when a shell's job
/// control stops it.
#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_stops_all_its_processes_ends_at_once_with_join_now() {
    let _su = join_now("su");
    let hostile = Hostile::start("serve /run/ns.socket");
    let user = HOSTILE.to_string();
    let mut su = Command::new("su");
    su.args([&user, "-c", "exec -a stopped-su sleep 600"]);
    // Dropped before the container, which cannot end before somebody has waited for the session's
    // process.
    let mut su = Ended(su.stdin(Stdio::null()).stdout(Stdio::null()).stderr(client_errors()).spawn().unwrap());
    let command = eventually("the command", || pgrep("^stopped-su 600$"));
    assert_ends_at_once(&hostile, &[&command], &[&command]);
    // A shell that saw it stop would continue it.
    eventually("the end of su", || {
        sh(format!("kill -CONT {}", su.0.id()));
        su.0.try_wait().unwrap()
    });
    assert_honest_logins();
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

const WHO: [&str; 6] = ["supervisor", "first", "command", "monitor", "pid 1", "client"];

#[test]
#[ignore = "needs the node: make test"]
fn whoever_is_killed_in_whatever_order_nothing_is_left() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let processes = || {
        let all = sh("ps -eo pid=,ppid=,uid=,stat=,args= | grep -E 'sshd(-session)?: (3|\\[)|[k]illed-|<defunct>' | grep -vE 'grep|listener'").out;
        all.trim().to_owned()
    };
    let start = || Hostile::start("serve /run/ns.socket");
    let before = mounts();
    let mut hostile = Some(start());
    let mut tried = 0;
    for options in [&[][..], &TTY] {
        for signal in ["KILL", "TERM"] {
            for (i, first) in WHO.iter().enumerate() {
                for (j, second) in WHO.iter().enumerate() {
                    // Each one alone, too, except the monitor: a session outlives it until the
                    // client goes, as in stock sshd. pid 1 ignores SIGTERM.
                    if (i == j && *first == "monitor") || (signal == "TERM" && [*first, *second].contains(&"pid 1")) {
                        continue;
                    }
                    let leader = hostile.get_or_insert_with(start).leader.clone();
                    let mut session = SupervisedSession::start(&HOSTILE.to_string(), options, "killed-session");
                    session.assert_answers();
                    session.assert_supervised();
                    let number = |who: &str| match who {
                        "supervisor" => session.supervisor.clone(),
                        "first" => session.first.clone(),
                        "command" => session.command.clone(),
                        "monitor" => session.monitor.clone(),
                        "pid 1" => leader.clone(),
                        _ => session.client.id().to_string(),
                    };
                    let (one, other) = (number(first), number(second));
                    // The second may end with the first.
                    sh(format!("kill -{signal} {one} && {{ kill -{signal} {other}; true; }}")).ok();
                    let what = format!("SIG{signal} to {first} and {second}, {options:?}: {}", session.describe());
                    let all = [&session.command, &session.first, &session.supervisor, &session.monitor];
                    soon(&what, || are_gone(&all));
                    eventually(format!("{what}: the client's end"), || session.client.try_wait().unwrap());
                    if [*first, *second].contains(&"pid 1") {
                        hostile = None; // its cgroups must be empty
                    }
                    drop(session);
                    soon(&format!("{what}: nothing left of {}", processes()), || processes().is_empty());
                    tried += 1;
                }
            }
            assert_eq!(mounts(), before);
            let leader = hostile.get_or_insert_with(start).leader.clone();
            assert_eq!(ssh(HOSTILE, "readlink /proc/self/ns/pid").ok(), namespaces(&leader)["pid"]);
            assert_honest_logins();
        }
    }
    println!("{tried} sessions, each with two killed");
}

/// Runs a command for an ordinary user and for a container's user. Both must end in the same way.
#[track_caller]
fn as_alice(options: &[&str], command: &str, input: &[u8]) -> Done {
    let done = |user: &str| {
        let mut done = run("ssh", &[options, &[&format!("{user}@node"), command]].concat(), input);
        // Of what -v prints, only how the session ended.
        done.err = done
            .err
            .lines()
            .filter(|line| line.contains("rtype exit") || !line.contains("debug1"))
            .map(|line| line.to_owned() + "\n")
            .collect();
        done.err = done
            .err
            .lines()
            .filter(|line| {
                !line.starts_with("Authenticated to")
                    && !line.starts_with("Transferred")
                    && !line.starts_with("Bytes per")
                    && !line.starts_with("OpenSSH_")
            })
            .collect();
        done
    };
    let (alices, containers) = (done("alice"), done("30001"));
    assert_eq!(containers, alices, "{options:?} {command}");
    containers
}

#[test]
#[ignore = "needs the node: make test"]
fn an_exit_status_is_what_it_is_for_others() {
    for status in [0, 1, 2, 42, 126, 127, 128, 129, 137, 143, 254, 255] {
        assert_eq!(as_alice(&[], &format!("exit {status}"), b"").status, Some(status));
    }
    assert_eq!(as_alice(&TTY, "exit 17", b"").status, Some(17));
    // Every status, on one connection for each user.
    let all = |user: &str| {
        let mut master = Command::new("ssh");
        master.args(["-M", "-N", "-S", "/tmp/statuses", &format!("{user}@node")]);
        let mut master = master.stdin(Stdio::null()).spawn().unwrap();
        eventually("the master", || fs::exists("/tmp/statuses").unwrap().then_some(()));
        // Printed, because `run` takes the status 124 for a timeout.
        let order = |status: i32| -> i32 {
            sh(format!("ssh -S /tmp/statuses {user}@node 'exit {status}'; echo $?")).ok().parse().unwrap()
        };
        let all: Vec<_> = (0..256).map(order).collect();
        drop(run("ssh", &["-S", "/tmp/statuses", "-O", "exit", &format!("{user}@node")], b""));
        eventually("the master's end", || master.try_wait().unwrap());
        all
    };
    let (alices, containers) = (all("alice"), all("30001"));
    assert_eq!(containers, alices);
    assert_eq!(containers, (0..256).collect::<Vec<_>>());
}

#[test]
#[ignore = "needs the node: make test"]
fn a_signal_ends_a_command_as_it_does_for_others() {
    // Not from a shell, which treats some of them in its own way.
    let command = |signal: &str| format!("ulimit -c 0; exec perl -e 'kill(shift, $$); sleep 5' {signal}");
    for signal in ["HUP", "INT", "QUIT", "ABRT", "KILL", "USR1", "SEGV", "PIPE", "ALRM", "TERM"] {
        let done = as_alice(&["-v"], &command(signal), b"");
        assert_eq!(done.status, Some(255), "{signal}: {done:?}");
        assert!(done.err.contains("rtype exit-signal"), "the witness: {signal}: {done:?}");
    }
    as_alice(&TTY, "kill -TERM $$", b"");
}

#[test]
#[ignore = "needs the node: make test"]
fn streams_carry_and_end_as_they_do_for_others() {
    let mega: Vec<_> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sum = sh("true").ok() + &run("md5sum", &[], &mega).ok();
    assert_eq!(as_alice(&[], "md5sum", &mega).ok(), sum);
    let both = as_alice(&[], "tee /dev/stderr | md5sum; echo ended", b"to both\n");
    assert!(both.out.ends_with("ended\n") && both.err.contains("to both"), "{both:?}");
    assert_eq!(as_alice(&[], "exec <&-; echo out", b"never read").ok(), "out");
    assert_eq!(as_alice(&[], "exec >&-; cat >&2", b"").status, Some(0));
    // The client stops reading: the command must end.
    for user in ["alice", "30001"] {
        let done = sh(format!("ssh {user}@node 'yes' | head -n1"));
        assert_eq!((done.status, done.out.as_str()), (Some(0), "y\n"), "{user}: {done:?}");
        let ended = || sh(format!("pgrep -u {user} -x yes")).out.is_empty();
        soon("the end of a command that nobody reads", ended);
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_process_in_the_background_holds_a_session_as_it_does_for_others() {
    for user in ["alice", "30001"] {
        let take = |options: &[&str], command: &str| {
            let start = Instant::now();
            let done = run("ssh", &[options, &[&format!("{user}@node"), command]].concat(), b"");
            assert_eq!((done.status, done.out.trim()), (Some(0), "left"), "{user}: {done:?}");
            start.elapsed()
        };
        let held = take(&[], "sleep 2 & echo left");
        assert!(held > Duration::from_secs(2), "{user}: sshd must wait for whoever holds its pipes: {held:?}");
        let free = take(&[], "sleep 30 >/dev/null 2>&1 </dev/null & echo left");
        assert!(free < Duration::from_secs(5), "{user}: {free:?}");
        // It outlives the session.
        let sleep =
            pgrep("^sleep 30$").unwrap_or_else(|| panic!("{user}: the background process ended with the session"));
        sh(format!("kill {sleep}")).ok();
        let hung_up = take(&TTY, "sleep 30 & echo left");
        assert!(hung_up < Duration::from_secs(5), "{user}: {hung_up:?}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_client_that_goes_hangs_up_as_it_does_for_others() {
    for (user, home) in [("alice", "/home/alice"), ("30001", "/containers/30001")] {
        let mark = format!("{home}/hung-up");
        drop(fs::remove_file(&mark));
        let script = format!("trap \"echo hup >{mark}; exit\" HUP; echo ready; while :; do sleep 0.1; done");
        let mut client = Command::new("ssh");
        client.args(["-tt", "-oLogLevel=ERROR", &format!("{user}@node"), &script]);
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 5];
        std::io::Read::read_exact(client.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert_eq!(&ready, b"ready");
        drop((client.kill(), client.wait()));
        let hung_up = || fs::read_to_string(&mark).is_ok_and(|text| text == "hup\n");
        soon(&format!("{user}: SIGHUP to the session of the terminal"), hung_up);
        drop(fs::remove_file(&mark));
    }
    assert_honest_logins();
}

/// One that is killed before it has a session to supervise leaves none behind.
#[test]
#[ignore = "needs the node: make test"]
fn a_supervisor_that_is_killed_while_its_helper_enters() {
    let mut sshd = Command::new("/usr/sbin/sshd").args(["-D", "-p2298"]).stderr(client_errors()).spawn().unwrap();
    let listener = sshd.id().to_string();
    let mut strace = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-o/dev/null",
            "-etrace=setns",
            "-einject=setns:delay_enter=2000000:when=2",
            "-p",
            &listener,
        ])
        .spawn()
        .unwrap();
    eventually("strace", || (status(&listener, "TracerPid") != "0").then_some(()));
    let listens = || (sh("grep -q ':08FA .* 0A ' /proc/net/tcp /proc/net/tcp6").status == Some(0)).then_some(());
    eventually("its port", listens); // 2298, in the state LISTEN
    let mut client = Command::new("ssh")
        .args(["-p2298", "30001@node", "touch half-done; exec sleep 3047"])
        .stderr(client_errors())
        .spawn()
        .unwrap();
    let child_of = |pid: &str| sh(format!("pgrep -P {pid}")).out.lines().last().map(str::to_owned);
    let supervisor = eventually("the helper", || {
        let supervisor = child_of(&child_of(&listener)?)?;
        child_of(&supervisor).map(|_helper| supervisor)
    });
    let monitor = status(&supervisor, "PPid");
    sh(format!("kill -KILL {supervisor}")).ok();
    std::thread::sleep(Duration::from_secs(4)); // twice as long as the helper takes
    let left = sh("ps -eo pid=,ppid=,uid=,args= | grep -E '[s]shd: 30001@|[s]leep 3047'").out;
    drop((strace.kill(), strace.wait(), client.kill(), client.wait(), sshd.kill(), sshd.wait()));
    drop(sh(format!("kill -KILL {monitor}; pkill -KILL -f '^sleep 3047$|^sshd: 30001@'")));
    assert_eq!(left, "");
    assert!(!fs::exists("/containers/30001/half-done").unwrap());
}
