//! What users do through sshd besides a shell, as a container's user: forwarding, multiplexing,
//! forced commands, certificates and the like. Whatever of it runs for the user runs inside the
//! container, and what cannot be is refused without a session on the host.

use std::fs;
use std::process::{Child, Command, Stdio};
use unbit_tests::*;

/// Says where it runs, in one line.
const PLACE: &str = "echo $(hostname) $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/net) $(id -u):$(id -G)";

/// What [`PLACE`] says in container 30001.
fn inside() -> String {
    let namespaces = namespaces(&leader(30001));
    format!("c30001 {} {} 30001:30001", namespaces["mnt"], namespaces["net"])
}

/// The same on the node.
fn outside(user: &str) -> String {
    let (host, ids) = (namespaces("self"), sh(format!("echo $(id -u {user}):$(id -G {user})")).ok());
    format!("node {} {} {ids}", host["mnt"], host["net"])
}

/// Every process of the container users, and sshd's own one for them, is in none of the host's
/// namespaces that a container has to itself.
#[track_caller]
fn assert_nothing_on_the_host() {
    eventually("no process of a container's user on the host", || {
        let host = namespaces("self");
        let processes = sh("ps -eo pid=,uid= | awk '$2 >= 30000 && $2 < 60000 {print $1}'").ok();
        let on_the_host = processes.split_whitespace().find(|pid| {
            !supervision::violations(pid).is_empty()
                && OWN_NAMESPACES.iter().any(|kind| {
                    fs::read_link(format!("/proc/{pid}/ns/{kind}"))
                        .is_ok_and(|link| link.to_string_lossy() == host[*kind])
                })
        });
        on_the_host.is_none().then_some(())
    });
}

/// A process that ends with the test. What it complains about is shown if the test fails.
struct Running(Child);

impl Running {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        Self(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

/// One more sshd, on port 2200, with these options before those of the file.
struct Sshd;

impl Sshd {
    fn with(options: &[&str]) -> Self {
        Self::of("/usr/sbin/sshd", options)
    }

    fn of(program: &str, options: &[&str]) -> Self {
        let mut all = vec!["-p", "2200", "-o", "PidFile=/run/sshd-2200.pid"];
        all.extend(options.iter().flat_map(|option| ["-o", option]));
        run(program, &all, b"").ok();
        eventually("its pid file", || sh("test -s /run/sshd-2200.pid").status.filter(|status| *status == 0));
        Self
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        sh("pid=$(</run/sshd-2200.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.01; done; rm -f /run/sshd-2200.pid").ok();
    }
}

/// `ssh -p 2200 30001@node COMMAND`, with options before.
fn ssh_2200(options: &[&str], command: &str) -> Done {
    let mut all = vec!["-p", "2200"];
    all.extend(options);
    all.extend(["30001@node", command]);
    run("ssh", &all, b"")
}

/// On 127.0.0.1:7777 and at /tmp/greeter, on the node as well as in the container, somebody answers
/// with the name of the host.
fn greeters() -> [Running; 2] {
    let greeter = "perl -MIO::Socket::INET -MIO::Socket::UNIX -MIO::Select -e '
        unlink(q(/tmp/greeter));
        my $tcp = IO::Socket::INET->new(LocalAddr => q(127.0.0.1:7777), Listen => 50, ReuseAddr => 1) or die $!;
        my $unix = IO::Socket::UNIX->new(Local => q(/tmp/greeter), Listen => 50) or die $!;
        chmod 0777, q(/tmp/greeter);
        my $both = IO::Select->new($tcp, $unix);
        while (my @ready = $both->can_read) { for (@ready) { my $c = $_->accept; print $c `hostname`; close $c } }'";
    let greeters = [
        Running::start("bash", &["-c", &format!("exec {greeter}")]),
        // With a terminal, so that it gets a hangup when the client goes.
        Running::start("ssh", &["-tt", "30001@node", &format!("exec {greeter}")]),
    ];
    eventually("the node's greeter", || (ask("7777") == "node").then_some(()));
    eventually("the container's greeter", || (ssh(30001, &greeting("7777")).out.trim() == "c30001").then_some(()));
    greeters
}

/// A bash script that prints what is said at a port of this machine.
fn greeting(port: &str) -> String {
    format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port} && cat <&3'")
}

/// The same, on the node.
fn ask(port: &str) -> String {
    sh(greeting(port)).out.trim().to_owned()
}

/// A perl script that prints what is said at a unix socket.
fn greeting_at(path: &str) -> String {
    format!("perl -MIO::Socket::UNIX -e 'print readline(IO::Socket::UNIX->new(Peer => q({path})) // exit 1)'")
}

#[test]
#[ignore = "needs the node: make test"]
fn the_agent_is_reached_from_inside() {
    let _agent = Running::start("ssh-agent", &["-D", "-a", "/tmp/agent"]);
    eventually("the agent", || fs::exists("/tmp/agent").unwrap().then_some(()));
    let _gone = AtEnd(|| drop(fs::remove_file("/tmp/agent")));
    sh("SSH_AUTH_SOCK=/tmp/agent ssh-add -q ~/.ssh/id_ed25519").ok();
    let key = sh("ssh-keygen -lf ~/.ssh/id_ed25519").ok();

    let script = format!("{PLACE}; ssh-add -l; stat -c %F,%u $SSH_AUTH_SOCK; echo $SSH_AUTH_SOCK");
    let out = sh(format!("SSH_AUTH_SOCK=/tmp/agent ssh -A 30001@node '{script}'")).ok();
    let out: Vec<_> = out.lines().collect();
    assert_eq!(out[..3], [&inside(), &key, "socket,30001"]);
    // It was made inside, and is gone with the session.
    let sock = out[3];
    assert!(sock.starts_with("/tmp/ssh-") || sock.starts_with("/containers/30001/.ssh/agent/"), "{sock}");
    let left = format!("/proc/{}/root{sock}", leader(30001));
    eventually("the end of the socket", || (!fs::exists(&left).unwrap()).then_some(()));
    assert_ne!(ssh(30001, "ssh-add -l").status, Some(0), "without -A there is none");
    assert_nothing_on_the_host();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_port_forwarded_back_listens_in_the_container() {
    let _greeters = greeters();
    let remote = ["-o", "ExitOnForwardFailure=yes", "-R", "127.0.0.1:7801:127.0.0.1:7777", "30001@node"];
    let script = format!("{PLACE}; {}", greeting("7801"));
    let _session = Running::start("ssh", &[&["-N"], &remote[..]].concat());
    // The client, on the node, is who answers.
    let out = eventually("an answer", || Some(ssh(30001, &script)).filter(|done| done.status == Some(0))).ok();
    assert_eq!(out, format!("{}\nnode", inside()));
    assert_eq!(ask("7801"), "", "nobody listens there on the node");
    assert_nothing_on_the_host();

    // The same port again, and one that takes root's power: refused as it is for anybody.
    for port in ["7801", "80"] {
        let forward = format!("127.0.0.1:{port}:127.0.0.1:7777");
        let done = run("ssh", &["-o", "ExitOnForwardFailure=yes", "-R", &forward, "30001@node", "hostname"], b"");
        assert_eq!(done.status, Some(255), "{done:?}");
        assert!(done.err.contains("remote port forwarding failed for listen port"), "{done:?}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_socks_proxy_goes_out_from_the_container() {
    let _greeters = greeters();
    let _proxy = Running::start("ssh", &["-N", "-D", "127.0.0.1:7802", "30001@node"]);
    // Port 7777 is 1e61. By number, and by a name that sshd's child looks up.
    for address in [r"\x01\x7f\x00\x00\x01", r"\x03\x09localhost"] {
        let socks = format!(
            r"exec 3<>/dev/tcp/127.0.0.1/7802 && printf '\x05\x01\x00' >&3 && head -c 2 <&3 >/dev/null &&
            printf '\x05\x01\x00{address}\x1e\x61' >&3 && head -c 10 <&3 >/dev/null && cat <&3"
        );
        let answer = eventually("an answer through the proxy", || Some(sh(&socks).out).filter(|out| !out.is_empty()));
        assert_eq!(answer.trim(), "c30001", "{address}");
    }
    assert_eq!(ask("7777"), "node", "the witness: there is somebody to be confused with");
    assert_nothing_on_the_host();
}

#[test]
#[ignore = "needs the node: make test"]
fn standard_streams_are_forwarded_into_the_container() {
    let _greeters = greeters();
    assert_eq!(run("ssh", &["-W", "127.0.0.1:7777", "alice@node"], b"").ok(), "node", "the witness");
    assert_eq!(run("ssh", &["-W", "127.0.0.1:7777", "30001@node"], b"").ok(), "c30001");
    let failed = run("ssh", &["-W", "127.0.0.1:22", "30001@node"], b"").failed();
    assert!(failed.contains("Connection refused"), "sshd of the node is not there: {failed}");
    // As a jump host, on the way to another container.
    let jump = "ssh -J 30001@node -o HostKeyAlias=node 30000@127.0.0.1 hostname";
    assert_ne!(sh(jump).status, Some(0), "127.0.0.1 is the container's");
    assert_nothing_on_the_host();
}

#[test]
#[ignore = "needs the node: make test"]
fn unix_sockets_are_forwarded_both_ways() {
    let _greeters = greeters();
    let _gone = AtEnd(|| drop(sh("rm -f /tmp/to /tmp/from /tmp/only; ssh 30001@node rm -f /tmp/from")));
    // A socket that only the node has.
    let _only = Running::start(
        "perl",
        &[
            "-MIO::Socket::UNIX",
            "-e",
            "IO::Socket::UNIX->new(Local => q(/tmp/only), Listen => 5); chmod 0777, q(/tmp/only); sleep 600",
        ],
    );
    eventually("the socket", || fs::exists("/tmp/only").unwrap().then_some(()));
    let _session = Running::start(
        "ssh",
        &["-N", "-L", "/tmp/to:/tmp/greeter", "-L", "7803:/tmp/only", "-R", "/tmp/from:/tmp/greeter", "30001@node"],
    );
    let to = eventually("an answer", || Some(sh(greeting_at("/tmp/to")).out).filter(|out| !out.is_empty()));
    assert_eq!(to.trim(), "c30001");
    assert_eq!(ask("7803"), "", "the node's own socket is out of reach");

    let script = format!("{PLACE}; {}; stat -c %F,%u /tmp/from", greeting_at("/tmp/from"));
    let from = eventually("an answer", || Some(ssh(30001, &script)).filter(|done| done.out.contains("node")));
    assert_eq!(from.ok(), format!("{}\nnode\nsocket,30001", inside()));
    assert!(!fs::exists("/tmp/from").unwrap(), "it is in the container's /tmp");
    assert_nothing_on_the_host();
}

/// A unix socket without a file belongs to a network namespace (unix(7), abstract): CVE-2020-15257.
#[test]
#[ignore = "needs the node: make test"]
fn a_socket_without_a_file_is_out_of_reach() {
    let listen = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Local => qq(\\0unbit-test), Listen => 5) or die;
        while (my $c = $s->accept) { print $c `hostname`; close $c }";
    let ask = "perl -MIO::Socket::UNIX -e 'print readline(IO::Socket::UNIX->new(Peer => qq(\\0unbit-test)) // exit 1)'";
    let _nodes = Running::start("perl", &["-e", listen]);
    eventually("the node's socket", || (sh(ask).out == "node\n").then_some(()));
    let reach = |user: &str| {
        let done = ssh(user, ask);
        (done.status, done.out)
    };
    assert_eq!(reach("30001"), (Some(1), String::new()));
    let _theirs = Running::start("ssh", &["-tt", "30000@node", &format!("exec perl -e '{listen}'")]);
    eventually("the other container's socket", || (reach("30000").1 == "c30000\n").then_some(()));
    assert_eq!(reach("30001"), (Some(1), String::new()));
    let _shared = with_option("namespaces=mnt,pid");
    assert_eq!(reach("30001"), (Some(0), "node\n".to_owned()), "the witness: in the node's network namespace");
}

#[test]
#[ignore = "needs the node: make test"]
fn many_sessions_on_one_connection_are_all_inside() {
    let _greeters = greeters();
    let log = Log::from_now();
    let mut master = Running::start("ssh", &["-M", "-N", "-S", "/tmp/master", "30001@node"]);
    eventually("the master", || fs::exists("/tmp/master").unwrap().then_some(()));
    let through = |arguments: &[&str]| run("ssh", &[&["-S", "/tmp/master", "30001@node"], arguments].concat(), b"");

    let expected = inside();
    // Ten at a time: MaxSessions.
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let sessions: Vec<_> =
                (0..10).map(|i| scope.spawn(move || through(&[&format!("{PLACE}; exit {i}")]))).collect();
            for (i, session) in sessions.into_iter().enumerate() {
                let done = session.join().unwrap();
                assert_eq!((done.status, done.out.trim()), (Some(i as i32), expected.as_str()), "{done:?}");
            }
        });
    }
    // With terminals, which the monitor opens; as sftp; and with a forwarding that is added now.
    let terminal =
        run("ssh", &["-tt", "-S", "/tmp/master", "30001@node", &format!("test -t 0 && echo terminal; {PLACE}")], b"")
            .ok();
    assert!(terminal.starts_with("terminal") && terminal.trim_end().ends_with(&expected), "{terminal}");
    let sftp = run("sftp", &["-q", "-b", "-", "-o", "ControlPath=/tmp/master", "30001@node"], b"pwd\n").ok();
    assert!(sftp.contains("Remote working directory: /containers/30001"), "{sftp}");
    run("ssh", &["-S", "/tmp/master", "-O", "forward", "-L", "7804:127.0.0.1:7777", "30001@node"], b"").ok();
    assert_eq!(ask("7804"), "c30001");
    assert_nothing_on_the_host();

    log.one_line("container 30001: session opened"); // once: it was one connection all the time
    let mut sleeper = Running::start("ssh", &["-S", "/tmp/master", "30001@node", "sleep 1101"]);
    let sleep = eventually("a session", || pgrep("^sleep 1101$"));
    assert_eq!(namespaces(&sleep), namespaces(&leader(30001)));
    drop(run("ssh", &["-S", "/tmp/master", "-O", "exit", "30001@node"], b""));
    assert_eq!(eventually("the client's end", || sleeper.0.try_wait().unwrap()).code(), Some(255));
    eventually("the master's end", || master.0.try_wait().unwrap());
    drop(sh("pkill -f '^sleep 1101$'"));
}

#[test]
#[ignore = "needs the node: make test"]
fn the_servers_forced_command_runs_inside() {
    {
        let _sshd = Sshd::with(&[&format!("ForceCommand={PLACE}; echo asked for $SSH_ORIGINAL_COMMAND")]);
        let expected = format!("{}\nasked for touch /tmp/unforced", inside());
        assert_eq!(ssh_2200(&[], "touch /tmp/unforced").ok(), expected);
        let terminal = ssh_2200(&["-tt"], "x").ok();
        assert!(terminal.starts_with(&inside()), "{terminal}");
    }
    {
        let _sshd = Sshd::with(&["ForceCommand=internal-sftp"]);
        let sftp = run("sftp", &["-q", "-b", "-", "-P2200", "30001@node"], b"pwd\n").ok();
        assert!(sftp.contains("Remote working directory: /containers/30001"), "{sftp}");
        drop(ssh_2200(&[], "touch /tmp/unforced"));
    }
    assert_eq!(ssh(30001, "test -e /tmp/unforced").status, Some(1));
    assert!(!fs::exists("/tmp/unforced").unwrap());
    assert_nothing_on_the_host();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_keys_forced_command_runs_inside() {
    let keys = |options: String| {
        Changed::file("/containers/30001/.ssh/uwsgi_authorized_keys", |key| format!("{options} {key}"))
    };
    {
        let _key = keys(format!(r#"restrict,command="{PLACE}; echo asked for $SSH_ORIGINAL_COMMAND""#));
        assert_eq!(ssh(30001, "id").ok(), format!("{}\nasked for id", inside()));
        // Without a command the forced one runs, too.
        assert!(run("ssh", &["30001@node"], b"").ok().starts_with(&inside()));
        let done = run("ssh", &["-tt", "30001@node", "tty"], b"");
        assert!(done.err.contains("PTY allocation request failed"), "{done:?}");
        let failed = run("ssh", &["-W", "127.0.0.1:7777", "30001@node"], b"").failed();
        assert!(failed.contains("administratively prohibited"), "{failed}");
    }
    {
        let _key = keys(r#"command="internal-sftp""#.to_owned());
        let sftp = run("sftp", &["-q", "-b", "-", "30001@node"], b"pwd\n").ok();
        assert!(sftp.contains("Remote working directory: /containers/30001"), "{sftp}");
    }
    assert_eq!(ssh(30001, PLACE).ok(), inside());
    assert_nothing_on_the_host();
}

/// sshd changes its root after PAM, when this module has already given up root: it cannot, and ends
/// the session.
#[test]
#[ignore = "needs the node: make test"]
fn chroot_directory_is_refused() {
    log_from_inside(30001);
    for directory in ["/", "/usr", "/nowhere", "%h"] {
        let _sshd = Sshd::with(&[&format!("ChrootDirectory={directory}")]);
        if directory == "/" {
            assert_eq!(run("ssh", &["-p2200", "alice@node", PLACE], b"").ok(), outside("alice"), "the witness");
        }
        for way in [&["ssh", "-p2200", "30001@node", "hostname"], &["ssh", "-p2200", "-N", "30001@node"]] {
            let log = Log::from_now();
            let done = run(way[0], &way[1..], b"");
            assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{directory}: {done:?}");
            eventually(format!("sshd's fatal line in {}", log.text()), || {
                let text = log.text();
                [
                    "chroot(\"/\"): Operation not permitted",
                    "chroot(\"/usr\"): Operation not permitted",
                    "stat(\"/nowhere\"): No such file or directory",
                    "bad ownership or modes for chroot directory",
                ]
                .iter()
                .any(|fatal| text.contains(fatal))
                .then_some(())
            });
            log.one_line("container 30001: session opened"); // it was let in, and it was sshd that ended it
        }
        assert_nothing_on_the_host();
    }
    assert_eq!(ssh(30001, PLACE).ok(), inside());
}

#[test]
#[ignore = "needs the node: make test"]
fn the_internal_sftp_server_is_inside() {
    let mut client = Command::new("sftp");
    client.args(["-q", "-b", "-", INTERNAL_SFTP, "30001@node"]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let server = eventually("the server", || {
        let found = sh("ps -u 30001 -o pid=,args= | awk '/sshd(-session)?: 30001@internal-sftp/ {print $1}'").out;
        Some(found.trim().to_owned()).filter(|pid| !pid.is_empty())
    });
    let _end = AtEnd(|| drop((client.kill(), client.wait())));
    assert_eq!(namespaces(&server), namespaces(&leader(30001)));
    assert_ne!(namespaces(&server)["mnt"], namespaces("self")["mnt"]);
    assert_nothing_on_the_host();
    // Neither what only the node has, nor what the user may not.
    for refused in [
        "ls /distros",
        "get /root/.ssh/id_ed25519 /dev/null",
        "get /proc/1/environ /dev/null",
        "put /etc/hostname /etc/put",
    ] {
        let done = run("sftp", &["-q", "-b", "-", INTERNAL_SFTP, "30001@node"], format!("{refused}\n").as_bytes());
        assert_eq!(done.status, Some(1), "{refused}: {done:?}");
    }
    assert!(!fs::exists("/etc/put").unwrap() && !fs::exists("/distros/base/etc/put").unwrap());
}

/// Passwords that fail freeze libpam's chain of modules for the later calls; the login by key goes
/// on all the same, and inside.
#[test]
#[ignore = "needs the node: make test"]
fn passwords_that_fail_before_the_key() {
    fs::write("/tmp/askpass", "#!/bin/sh\necho wrong\n").unwrap();
    sh("chmod 755 /tmp/askpass").ok();
    let order = |methods: &str| {
        let options = "-p 2200 -o BatchMode=no -o NumberOfPasswordPrompts=1 -o PreferredAuthentications";
        sh(format!(
            "SSH_ASKPASS=/tmp/askpass SSH_ASKPASS_REQUIRE=force DISPLAY=x setsid -w ssh {options}={methods} 30001@node '{PLACE}'"
        ))
    };
    // The last is what sshd before 8.7 calls the second.
    let open =
        ["PasswordAuthentication=yes", "KbdInteractiveAuthentication=yes", "ChallengeResponseAuthentication=yes"];
    {
        let _sshd = Sshd::with(&open);
        for (methods, offered) in [
            ("password,publickey", 1),
            ("keyboard-interactive,publickey", 1),
            ("keyboard-interactive,password,publickey", 2),
        ] {
            let log = Log::from_now();
            assert_eq!(order(methods).ok(), inside(), "{methods}");
            let text = log.text();
            assert_eq!(
                text.matches("a password was offered; container users log in with keys").count(),
                offered,
                "{text}"
            );
            assert!(text.contains("Accepted publickey for 30001"), "{text}");
            assert_nothing_on_the_host();
        }
        assert_eq!(order("keyboard-interactive,password").status, Some(255), "no key, no login");
    }
    // Where a password is asked for besides the key, a container's user does not get in.
    for second in ["password", "keyboard-interactive"] {
        let methods = format!("AuthenticationMethods=publickey,{second}");
        let _sshd = Sshd::with(&[&open[..], &["LogLevel=VERBOSE", &methods]].concat());
        let log = Log::from_now();
        let done = order(&format!("publickey,{second}"));
        assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}");
        let text = log.text();
        assert!(text.contains("Partial publickey for 30001"), "{text}");
        assert!(text.contains("a password was offered; container users log in with keys"), "{text}");
        assert_nothing_on_the_host();
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_certificate_opens_its_own_container() {
    let _gone = AtEnd(|| drop(sh("rm -rf /tmp/ca")));
    sh("mkdir -m 700 /tmp/ca && cd /tmp/ca && ssh-keygen -q -t ed25519 -N '' -f ca &&
        for key in own other forced; do ssh-keygen -q -t ed25519 -N '' -f $key; done &&
        ssh-keygen -q -s ca -I own -n 30001 own.pub &&
        ssh-keygen -q -s ca -I other -n 30000 other.pub &&
        ssh-keygen -q -s ca -I forced -n 30001 -O force-command='hostname; echo $SSH_ORIGINAL_COMMAND' forced.pub")
    .ok();
    let client = |port: &str, key: &str, command: &str| {
        let file = format!("/tmp/ca/{key}");
        let options = ["-F", "none", "-o", "HostKeyAlias=node", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"];
        run("ssh", &[&options[..], &["-p", port, "-i", &file, "30001@node", command]].concat(), b"")
    };
    let _sshd = Sshd::with(&["TrustedUserCAKeys=/tmp/ca/ca.pub"]);
    assert!(
        client("22", "own", "true").failed().contains("Permission denied"),
        "the witness: it is the certificate that counts"
    );
    let log = Log::from_now();
    assert_eq!(client("2200", "own", PLACE).ok(), inside());
    assert!(log.text().contains("ID own (serial 0) CA"), "{}", log.text());
    assert_eq!(client("2200", "forced", "asked").ok(), "c30001\nasked");
    assert!(client("2200", "other", "true").failed().contains("Permission denied"));
    assert_nothing_on_the_host();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_tenants_environment_reaches_nobody_but_the_tenant() {
    let _sshd = Sshd::with(&["PermitUserEnvironment=yes", "AcceptEnv=*"]);
    let file = "/containers/30001/.ssh/environment";
    fs::write(file, "UNBIT_FILE=tenant\nLD_PRELOAD=/containers/30001/none.so\nPATH=/containers/30001/bin:/usr/bin:/bin\nLD_AUDIT=/x\nTZ=/x\n").unwrap();
    let _gone = AtEnd(|| drop(fs::remove_file(file)));
    let _key = Changed::file("/containers/30001/.ssh/uwsgi_authorized_keys", |key| {
        format!(r#"environment="UNBIT_KEY=tenant",environment="PAM_SERVICE=x" {key}"#)
    });
    let options = ["-o", "SetEnv UNBIT_CLIENT=tenant NSS_UNBIT=x"];
    let script = format!("{PLACE}; echo $UNBIT_FILE $UNBIT_KEY $UNBIT_CLIENT $LD_PRELOAD; exec sleep 1102");
    let mut all = vec!["-p2200"];
    all.extend(options);
    all.extend(["30001@node", &script]);
    let client = Command::new("ssh")
        .args(all)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(client_errors())
        .spawn()
        .unwrap();
    let mut client = Running(client);
    let sleep = eventually("the session", || pgrep("^sleep 1102$"));
    assert_nothing_on_the_host();

    let environment = |pid: &str| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let marked = |pid: &str| String::from_utf8_lossy(&environment(pid)).contains("UNBIT_");
    assert!(marked(&sleep), "the witness: the user does see it");
    for pid in sh("ps -eo pid=,uid= | awk '$2 < 30000 {print $1}'").ok().split_whitespace() {
        // The client, on the node, is root's.
        assert!(!marked(pid) || pid == client.0.id().to_string(), "process {pid} of the node has it");
    }
    let monitor = pgrep(r"^sshd(-session)?: 30001 \[(priv|postauth)\]").unwrap();
    let maps = fs::read_to_string(format!("/proc/{monitor}/maps")).unwrap();
    assert!(maps.contains("pam_unbit.so") && !maps.contains("/containers/"), "{maps}");

    drop((run("kill", &[&sleep], b""), client.0.wait()));
    let mut out = String::new();
    std::io::Read::read_to_string(client.0.stdout.as_mut().unwrap(), &mut out).unwrap();
    assert_eq!(out.trim(), format!("{}\ntenant tenant tenant /containers/30001/none.so", inside()));
}

#[test]
#[ignore = "needs the node: make test"]
fn the_environment_file_is_a_link_or_a_fifo() {
    let file = "/containers/30001/.ssh/environment";
    let made = |how: &str| sh(format!("rm -f {file}; {how} {file} && chown -h 30001:30001 {file}")).ok();
    let _gone = AtEnd(|| drop(sh(format!("rm -f {file} /tmp/environment; ssh 30001@node rm -f /tmp/environment"))));
    fs::write("/tmp/environment", "FROM=node\n").unwrap();
    ssh(30001, "echo FROM=container >/tmp/environment").ok();
    let _sshd = Sshd::with(&["PermitUserEnvironment=yes"]);
    let script = format!("{PLACE}; echo from $FROM");
    for (target, from) in
        [("/tmp/environment", "from container"), ("/.old_root/tmp/environment", "from"), ("/proc/1/environ", "from")]
    {
        made(&format!("ln -s {target}"));
        assert_eq!(ssh_2200(&[], &script).ok(), format!("{}\n{from}", inside()), "{target}");
    }

    // Who waits for somebody to write is the user, inside.
    made("mkfifo");
    let waits = std::thread::scope(|scope| {
        let login = scope.spawn(|| ssh_2200(&[], &script));
        let child = eventually("sshd's child", || {
            let child = pgrep("^sshd(-session)?: 30001(@notty)? *$")?;
            let mounts = fs::read_link(format!("/proc/{child}/ns/mnt")).ok()?; // it may be the helper, which ends
            (mounts.to_string_lossy() == namespaces(&leader(30001))["mnt"]).then_some(child)
        });
        std::thread::sleep(std::time::Duration::from_millis(300));
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap();
        assert!(status.contains("Uid:\t30001\t30001\t30001\t30001"), "{status}");
        assert_eq!(ssh(30001, PLACE).ok(), inside());
        assert_eq!(run("ssh", &["-p2200", "alice@node", PLACE], b"").ok(), outside("alice"));
        assert_nothing_on_the_host();
        assert!(!login.is_finished(), "the witness: it waits");
        fs::write(file, "FROM=fifo\n").unwrap();
        login.join().unwrap()
    });
    assert_eq!(waits.ok(), format!("{}\nfrom fifo", inside()));
}

/// Whatever keeps sshd's child from calling setcred of this module, another release of sshd or a
/// line of PAM before ours, ends the login: here a line that jumps over ours as soon as a file is
/// there, which the session's first line makes.
#[test]
#[ignore = "needs the node: make test"]
fn without_setcred_in_the_child_the_login_ends() {
    let jump = "auth [success=1 default=ignore] pam_env.so conffile=/run/second\n";
    let touch = "session optional pam_exec.so /usr/bin/touch /run/second\n";
    let _gone = AtEnd(|| drop(fs::remove_file("/run/second")));
    {
        let _lines = Changed::file("/etc/pam.d/sshd", |text| {
            let before = |line: &str| match line.split_whitespace().next() {
                Some("auth") if line.contains("pam_unbit.so") => jump,
                Some("session") if line.contains("pam_unbit.so") => touch,
                _ => "",
            };
            text.lines().map(|line| before(line).to_owned() + line + "\n").collect()
        });
        for arguments in [["30001@node", "hostname"], ["-N", "30001@node"]] {
            drop(fs::remove_file("/run/second"));
            let log = Log::from_now();
            let done = run("ssh", &arguments, b"");
            assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}");
            assert!(fs::exists("/run/second").unwrap(), "the witness: the session's line has run");
            log.one_line("container 30001: session opened"); // so it was the child that ended
            assert_nothing_on_the_host();
        }
        assert_eq!(ssh("alice", PLACE).ok(), outside("alice"));
    }
    assert_eq!(ssh(30001, PLACE).ok(), inside());
}

/// A second line of ours, which sshd's child calls when the first has entered.
#[test]
#[ignore = "needs the node: make test"]
fn the_childs_setcred_comes_twice() {
    log_from_inside(30001);
    {
        let _lines = Changed::file("/etc/pam.d/sshd", |text| {
            let line = text.lines().find(|line| line.starts_with("auth") && line.contains("pam_unbit.so")).unwrap();
            let first = line.replace("success=done", "success=ok");
            text.replace(line, &format!("{first}\n{line}"))
        });
        let log = Log::from_now();
        let done = ssh(30001, "hostname");
        assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}");
        let line = log.one_line("refused:");
        assert!(line.contains("pam_setcred was called again after the session had entered"), "{line}");
        assert_nothing_on_the_host();
    }
    assert_eq!(ssh(30001, PLACE).ok(), inside());
}

/// PAM's service is what this module goes by: an sshd that calls itself something else cannot be
/// known to call setcred in its child.
#[test]
#[ignore = "needs the node: make test"]
fn sshd_under_another_service_name() {
    sh("cp /etc/pam.d/sshd /etc/pam.d/sshx && ln -sf sshd /usr/sbin/sshx").ok();
    let _gone = AtEnd(|| drop(sh("rm -f /etc/pam.d/sshx /usr/sbin/sshx")));
    // Either there is an option for it, or it is the program's own name.
    let option = sh("/usr/sbin/sshd -t -o PAMServiceName=sshx").status == Some(0);
    let _sshd = if option { Sshd::with(&["PAMServiceName=sshx"]) } else { Sshd::of("/usr/sbin/sshx", &[]) };
    assert_eq!(run("ssh", &["-p2200", "alice@node", PLACE], b"").ok(), outside("alice"), "the witness");
    for way in [&["ssh", "-p2200", "30001@node", "hostname"], &["ssh", "-p2200", "-N", "30001@node"]] {
        let log = Log::from_now();
        let done = run(way[0], &way[1..], b"");
        assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}");
        assert!(done.err.contains("Container 30001 cannot be entered: this node is not set up for it."), "{done:?}");
        let line = log.one_line("refused:");
        assert!(
            line.contains("pam_unbit(sshx:account)") && line.contains("the service sshx cannot enter containers"),
            "{line}"
        );
    }
    assert_nothing_on_the_host();
    assert_eq!(ssh(30001, PLACE).ok(), inside());
}
