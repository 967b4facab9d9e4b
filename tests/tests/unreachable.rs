//! Logins while the container's pid 1 cannot be reached by its socket: nobody listens, somebody
//! else does, or pid 1 does not answer.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;
use unbit_tests::*;

#[test]
#[ignore = "needs the node: make test"]
fn logins_are_refused_while_the_emperor_is_stopped() {
    sh("node-emperor stop").ok();
    {
        let _up = AtEnd(|| drop(sh("node-emperor start")));
        assert_user_refused(
            "30001",
            "Container 30001 is not running. Please try again in a moment.",
            "connect to run/ns.socket: ECONNREFUSED",
        );
        sh("mv /containers/30001/run/ns.socket /tmp/").ok();
        assert_user_refused("30001", "Container 30001 is not running.", "open run/ns.socket: ENOENT");
        sh("rm /tmp/ns.socket; mv /containers/30001/run /containers/30001/away").ok();
        assert_user_refused("30001", "Container 30001 is not running.", "open its directory run: ENOENT");
        sh("mv /containers/30001/away /containers/30001/run").ok();
    }
    assert_honest_logins();
}

/// Stops the container's pid 1 until this is dropped.
fn stopped_pid_1() -> AtEnd<impl FnMut()> {
    let pid = leader(30001);
    sh(format!("kill -STOP {pid}")).ok();
    AtEnd(move || drop(sh(format!("kill -CONT {pid}"))))
}

#[test]
#[ignore = "needs the node: make test"]
fn a_stopped_pid_1_does_not_refuse_logins() {
    let _go = stopped_pid_1();
    assert_eq!(ssh(30001, "hostname").ok(), "c30001");
}

/// Holds as many connections as the listener of a stopped container takes.
fn full_backlog() -> AtEnd<impl FnMut()> {
    let fill = "use Socket qw(:DEFAULT SOCK_NONBLOCK); my @held; while (1) { socket(my $s, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0) or die;
        connect($s, sockaddr_un('/containers/30001/run/ns.socket')) or last; push @held, $s } $| = 1; print qq(full\n); sleep 600";
    let mut holder = Command::new("perl").args(["-e", fill]).stdout(Stdio::piped()).spawn().unwrap();
    holder.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    AtEnd(move || drop((holder.kill(), holder.wait())))
}

#[test]
#[ignore = "needs the node: make test"]
fn a_full_backlog_costs_the_timeout_and_no_more() {
    {
        let _go = stopped_pid_1();
        let _full = full_backlog();
        let _options = with_option("timeout=1");
        let started = Instant::now();
        let log = Log::from_now();
        let done = ssh(30001, "true");
        assert!(done.err.contains("Container 30001 does not answer."), "{done:?}");
        assert!(log.one_line("refused:").contains("connect to run/ns.socket: ETIMEDOUT"));
        assert!((1..5).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    }
    assert_honest_logins();
}

/// sshd's LoginGraceTime counts on while the module waits for the tenant. The signal that ends it
/// must find nothing that waits on, and leave nothing of the container's.
#[test]
#[ignore = "needs the node: make test"]
fn the_grace_time_ends_while_the_module_waits() {
    let _options = with_option("timeout=40");
    sh("node-sshd restart -o LoginGraceTime=2").ok();
    let _sshd = AtEnd(|| drop(sh("node-sshd restart")));
    {
        let _go = stopped_pid_1();
        let _full = full_backlog();
        let before = sh("pgrep -c '^sshd'").ok();
        let started = Instant::now();
        let done = ssh(30001, "touch /tmp/landed-on-the-host");
        assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}");
        assert!((2..20).contains(&started.elapsed().as_secs()), "{:?}: {done:?}", started.elapsed());
        eventually("the end of sshd's processes", || (sh("pgrep -c '^sshd'").ok() == before).then_some(()));
        assert_no_session_on_the_host();
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_socket_is_another_containers_or_no_socket_at_all() {
    let cause = "belongs to uid 30000";
    for (made, sentence, cause) in [
        ("ln /containers/30000/run/ns.socket S", "its set-up failed a check", cause),
        ("ln -s /containers/30000/run/ns.socket S", "its set-up failed a check", "run/ns.socket is not a socket"),
        ("mkfifo -m 666 S", "its set-up failed a check", "run/ns.socket is not a socket"),
        ("touch S", "its set-up failed a check", "run/ns.socket is not a socket"),
        ("mkdir S", "its set-up failed a check", "run/ns.socket is not a socket"),
    ] {
        let socket = "/containers/30001/run/ns.socket";
        sh(format!(
            "mv {socket} {socket}.kept && {} && {{ [ -L {socket} ] || [ -S {socket} ] || chown 30001 {socket}; }}",
            made.replace('S', socket)
        ))
        .ok();
        {
            let _back = AtEnd(|| drop(sh(format!("rm -rf {socket} && mv {socket}.kept {socket}"))));
            assert_user_refused("30001", sentence, cause);
        }
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn someone_else_listens_on_the_socket() {
    // By the host's root, by the tenant on the host, and by the tenant inside, where it has another
    // pid than 1.
    let listen = "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, sockaddr_un(shift)) or die; listen(S, 9); sleep 900'";
    let socket = "/containers/30001/run/ns.socket";
    let inside = format!("nsenter -t {} -a setpriv --reuid 30001 --regid 30001 --clear-groups", leader(30001));
    for (by, at, cause) in [
        ("", socket, "would be a container's pid 1"),
        ("setpriv --reuid 30001 --regid 30001 --clear-groups", socket, "would be a container's pid 1"),
        (&inside, socket, "would be a container's pid 1"),
    ] {
        sh(format!("mv {socket} {socket}.kept")).ok();
        let mut listener =
            std::process::Command::new("sh").args(["-c", &format!("exec {by} {listen} {at}")]).spawn().unwrap();
        {
            let _back = AtEnd(|| {
                drop((listener.kill(), listener.wait()));
                drop(sh(format!("pkill -f '[s]leep 900'; rm -f {socket}; mv {socket}.kept {socket}")));
            });
            eventually("the listener", || fs::exists(socket).unwrap().then_some(()));
            assert_user_refused("30001", "its set-up failed a check", cause);
        }
    }
    assert_honest_logins();
}
