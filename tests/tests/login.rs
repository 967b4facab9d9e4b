//! Logins that work, on a node: real sshd, real Emperor, real glibc.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use unbit_tests::*;

const MEGABYTE: usize = 1 << 20;

/// A session that stays open until it is dropped.
struct Session(Child);

impl Session {
    /// `marker` is a number of seconds that no other session sleeps, to find it by.
    fn open(user: &str, marker: u32) -> (Self, String) {
        let client = Command::new("ssh")
            .args([&format!("{user}@node"), &format!("sleep {marker}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(client_errors())
            .spawn()
            .unwrap();
        let sleep = eventually("the session's process", || pgrep(&format!("^sleep {marker}$")));
        (Self(client), sleep)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn glibc_knows_the_containers() {
    assert_eq!(sh("getent passwd 30001").ok(), "30001:x:30001:30001:30001:/containers/30001:/bin/bash");
    assert_eq!(sh("getent passwd 30000").ok(), "30000:x:30000:30000:30000:/containers/30000:/bin/bash");
    assert_eq!(sh("getent group 30001").ok(), "30001:x:30001:");
    assert_eq!(sh("getent shadow 30001").ok().split(':').take(2).collect::<Vec<_>>(), ["30001", "!"]);
    assert_eq!(sh("stat -c '%U %G' /containers/30001").ok(), "30001 30001", "by number");
    assert_eq!(sh("id 30001").ok(), "uid=30001(30001) gid=30001(30001) groups=30001(30001)");
    // By name: getent would turn these into numbers first.
    for absent in ["30002", "030001", "+30001", "30001a", "30001/", "30001/../30000", " 30001", "2147483648"] {
        let found = run("perl", &["-e", "print join ':', getpwnam(shift), getgrnam(shift)", absent, absent], b"");
        assert_eq!(found.ok(), "", "{absent}");
    }
    assert_eq!(sh("perl -e 'print scalar getpwnam(30001)'").ok(), "30001", "the witness");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_login_is_inside() {
    for uid in [30000, 30001] {
        assert_eq!(ssh(uid, "hostname").ok(), format!("c{uid}"));
        assert_eq!(ssh(uid, "id -u; id -G; pwd").ok(), format!("{uid}\n{uid}\n/containers/{uid}"));
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn the_shell_is_in_all_of_the_containers_namespaces_and_the_monitor_in_none() {
    let log = Log::from_now();
    let (_session, shell) = Session::open("30001", 1001);
    let (host, container) = (namespaces("self"), namespaces(&leader(30001)));
    let inside = namespaces(&shell);
    assert_eq!(inside, container);
    for kind in OWN_NAMESPACES {
        assert_ne!(inside[kind], host[kind], "{kind}");
    }

    let monitor = eventually("the monitor", || pgrep(r"^sshd(-session)?: 30001 \[(priv|postauth)\]"));
    // pid_for_children among them: nobody else that the monitor forks is born in the container.
    for (kind, namespace) in &namespaces(&monitor) {
        if kind == "mnt" {
            // Its own, with the container's /dev/pts: tests/terminals.rs
            assert!(![&host[kind], &container[kind]].contains(&namespace), "the monitor's {kind}");
        } else {
            assert_eq!(namespace, &host[kind], "the monitor's {kind}");
        }
    }
    let (ours, theirs) = (
        fs::read_to_string(format!("/proc/{monitor}/cgroup")).unwrap(),
        fs::read_to_string("/proc/self/cgroup").unwrap(),
    );
    assert_eq!(ours, theirs, "the monitor stays in sshd's cgroups");

    let line = log.one_line("container 30001: session opened");
    assert!(line.starts_with(INFO) && line.contains("pam_unbit(sshd:session)"), "{line}");
    assert!(line.contains("; namespaces pid,uts,ipc,net,mnt of pid "), "{line}");
    let took = line.rsplit_once("; verified in ").and_then(|(_, took)| took.strip_suffix(" ms")?.parse().ok());
    assert!(took.is_some_and(|ms: f64| ms > 0.0 && ms < 3000.0), "{line}");
}

#[test]
#[ignore = "needs the node: make test"]
fn the_steps_are_told_under_debug_and_not_without() {
    let login = || {
        let log = Log::from_now();
        ssh(30001, "true").ok();
        eventually("its end", || {
            // An earlier login may have its last line still to come: those of this one have one
            // process.
            let lines = log.lines("container 30001");
            let monitor = lines.iter().find(|line| line.contains("session opened"))?.split(['[', ']']).nth(1)?;
            let own: Vec<_> = lines.iter().filter(|line| line.contains(&format!("[{monitor}]"))).cloned().collect();
            own.last()?.contains("session closed").then_some(own)
        })
    };
    let without = login();
    assert!(without.len() == 2 && without.iter().all(|line| line.starts_with(INFO)), "{without:#?}");
    let _debug = Changed::file("/etc/pam.d/sshd", |text| text.replace("pam_unbit.so", "pam_unbit.so debug"));
    let with = login();
    let (steps, others): (Vec<_>, Vec<_>) = with.iter().partition(|line| line.starts_with(DEBUG));
    assert!(others.len() == 2 && others[1].contains("session closed after "), "{with:#?}");
    let told =
        ["30001: reach: ", "30001: verify: ", "30001: namespaces: pid,", "30001: cgroups: ", "30001: terminals: "];
    assert_eq!(steps.len(), told.len(), "{steps:#?}");
    assert!(steps.iter().zip(told).all(|(step, told)| step.contains(told)), "{steps:#?}");
}

#[test]
#[ignore = "needs the node: make test"]
fn the_session_is_in_the_containers_cgroups() {
    let (_session, shell) = Session::open("30001", 1002);
    let [shell, leader] = [shell, leader(30001)].map(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap());
    assert_eq!(shell, leader);
    assert!(shell.contains("/30001"), "{shell}");
}

#[test]
#[ignore = "needs the node: make test"]
fn no_process_of_the_session_holds_power_or_a_descriptor_of_the_node() {
    let (_session, shell) = Session::open("30001", 1003);
    let pid_namespace = namespaces(&shell)["pid"].clone();
    let inside: Vec<_> = sh("ps -eo pid=").ok().split_whitespace().map(str::to_owned).collect();
    let inside: Vec<_> = inside
        .into_iter()
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link.to_string_lossy() == pid_namespace)
        })
        .collect();
    assert!(inside.len() >= 3, "pid 1, sshd's child and the shell at least: {inside:?}");
    for pid in inside {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        assert_eq!(line("Uid:"), "30001\t30001\t30001\t30001", "{status}");
        assert_eq!(line("Gid:"), "30001\t30001\t30001\t30001", "{status}");
        for set in ["CapPrm:", "CapEff:", "CapInh:"] {
            assert_eq!(line(set), "0000000000000000", "{status}");
        }
        // The container's own uWSGI keeps its namespaces open, for it serves them on ns.socket.
        if !line("Name:").starts_with("uwsgi") {
            for open in descriptors(&pid) {
                assert!(
                    !open.starts_with("mnt:") && !open.contains(":[40265") && !open.contains("/proc"),
                    "{pid} holds {open}"
                );
                assert!(!open.contains("cgroup") && !open.contains("pidfd"), "{pid} holds {open}");
            }
        }
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_terminal_works() {
    let done = run("ssh", &["-tt", "30001@node", "test -t 0 && test -t 2 && stty -a </dev/tty && id -un"], b"");
    let out = done.ok();
    assert!(out.starts_with("speed "), "{out}");
    assert!(out.trim_end().ends_with("30001"), "{out}");
}

#[test]
#[ignore = "needs the node: make test"]
fn the_exit_status_and_the_signal_come_back() {
    assert_eq!(ssh(30001, "exit 42").status, Some(42));
    let ordinary = ssh("alice", "kill -TERM $$");
    assert_eq!(ssh(30001, "kill -TERM $$"), ordinary, "as for anybody else");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_megabyte_goes_through_unharmed() {
    let data: Vec<u8> = (0..MEGABYTE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let here = run("sha256sum", &[], &data).ok();
    assert_eq!(run("ssh", &["30001@node", "sha256sum"], &data).ok(), here);
}

#[test]
#[ignore = "needs the node: make test"]
fn files_go_in_and_out_by_scp_and_sftp() {
    sh("head -c 300000 /dev/urandom >/tmp/out").ok();
    // By the old protocol, which is all that scp has before 9.0, and by sftp.
    let old = if sh("scp -O").err.contains("unknown option") { "scp -q" } else { "scp -q -O" };
    for (copy, port) in [(old, "-P22"), ("scp -q", "-P22"), ("scp -q", INTERNAL_SFTP)] {
        sh(format!(
            "rm -f /tmp/back; {copy} {port} /tmp/out 30001@node:copied && {copy} {port} 30001@node:copied /tmp/back"
        ))
        .ok();
        sh("cmp /tmp/out /tmp/back").ok();
        assert_eq!(sh("stat -c %u:%g /containers/30001/copied; rm /containers/30001/copied").ok(), "30001:30001");
    }
    for port in ["-P22", INTERNAL_SFTP] {
        let batch = b"put /tmp/out put\nls -l put\npwd\nrm put\n";
        let out = run("sftp", &["-q", "-b", "-", port, "30001@node"], batch).ok();
        assert!(out.contains("Remote working directory: /containers/30001"), "{out}");
        assert!(out.contains("300000"), "{out}");
    }
    assert_eq!(
        sh("echo 'ls /' | sftp -q -b - -P 2222 30001@node | grep -c distros").out.trim(),
        "0",
        "not the node's root"
    );
}

#[test]
#[ignore = "needs the node: make test"]
fn a_forwarded_port_leads_into_the_containers_network() {
    let listener = "perl -MIO::Socket::INET -e '
        $s = IO::Socket::INET->new(LocalAddr => \"127.0.0.1:7777\", Listen => 5, ReuseAddr => 1) or die $!;
        while ($c = $s->accept) { print $c `hostname`; close $c }'";
    let mut server = Command::new("ssh").args(["30001@node", listener]).stdin(Stdio::null()).spawn().unwrap();
    let mut tunnel = Command::new("ssh")
        .args(["-N", "-L", "5555:127.0.0.1:7777", "30001@node"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let _end = AtEnd(|| {
        for client in [&mut server, &mut tunnel] {
            let _ = client.kill();
            let _ = client.wait();
        }
    });
    let ask = "exec 3<>/dev/tcp/127.0.0.1/5555 && cat <&3";
    let answer = eventually("an answer through the tunnel", || Some(sh(ask).out).filter(|answer| !answer.is_empty()));
    assert_eq!(answer.trim(), "c30001");
    assert_ne!(sh("exec 3<>/dev/tcp/127.0.0.1/7777").status, Some(0), "the node itself does not listen there");
}

#[test]
#[ignore = "needs the node: make test"]
fn fifty_at_once() {
    let started = Instant::now();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let logins: Vec<_> =
            (0..50).map(|i| scope.spawn(move || (30000 + i % 2, ssh(30000 + i % 2, "hostname; id -u")))).collect();
        logins.into_iter().map(|login| login.join().unwrap()).collect()
    });
    for (uid, answer) in answers {
        assert_eq!(answer.ok(), format!("c{uid}\n{uid}"));
    }
    println!("fifty logins took {:.1} s", started.elapsed().as_secs_f64());
}

#[test]
#[ignore = "needs the node: make test"]
fn root_and_ordinary_users_stay_on_the_node() {
    for user in ["root", "alice"] {
        let log = Log::from_now();
        assert_eq!(ssh(user, "hostname; id -un").ok(), format!("node\n{user}"));
        let links = ssh(user, "readlink /proc/self/ns/mnt /proc/self/ns/pid /proc/self/ns/net").ok();
        let host = namespaces("self");
        assert_eq!(links.lines().collect::<Vec<_>>(), [&host["mnt"], &host["pid"], &host["net"]]);
        assert!(!log.text().contains("pam_unbit"), "{}", log.text());
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn nothing_is_left_behind() {
    let listener = || sh("cat /run/sshd.pid").ok();
    let count = || {
        let processes = sh("ps -eo stat=,args= | grep -vE 'ps -eo|grep -v|bash -c' | sed 's/^[^ ]* *//' | sort").ok();
        let zombies = sh("ps -eo stat= | grep -c ^Z").out;
        let open = [listener(), leader(30001)].map(|pid| descriptors(&pid).len());
        (processes, zombies, open)
    };
    ssh(30001, "true").ok();
    eventually("the end of all sessions", || pgrep(r"^sshd(-session)?: [a-z0-9]").is_none().then_some(()));
    std::thread::sleep(Duration::from_millis(300));
    let before = count();
    for _ in 0..10 {
        ssh(30001, "true").ok();
        ssh(30001, "sleep 0 & exit 3").failed();
    }
    eventually("as before", || (count() == before).then_some(()));
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_is_killed_takes_its_sessions_with_it() {
    let (mut session, shell) = Session::open("30001", 1004);
    let monitor = pgrep(r"^sshd(-session)?: 30001 \[(priv|postauth)\]").unwrap();
    let killed = leader(30001);
    sh(format!("kill -KILL {killed}")).ok();
    for pid in [shell, monitor] {
        eventually("its end", || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(()));
    }
    let status = eventually("the client's end", || session.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(255));
    eventually("a new pid 1", || Some(leader(30001)).filter(|new| *new != killed));
    assert_eq!(ssh(30001, "hostname").ok(), "c30001");
}
