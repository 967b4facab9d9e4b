//! What a hostile tenant may try: one who owns /containers/UID and all below it, has unprivileged
//! user namespaces, and in the worst case the code of the container's pid 1 and a root file system.
//! Each case ends with [`Watch::done`]: no root process ran inside, nobody got a group, no file
//! outside was touched, no session was on the host, nothing is left, and honest people log in.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use unbit_tests::tenant::*;
use unbit_tests::*;

const SOCKET: &str = "/containers/30001/run/ns.socket";
const NOT_PID_1: &str = "would be a container's pid 1";

/// What the Emperor might say, and what it would never.
const KINDS: [&str; 27] = [
    "silent",
    "close",
    "deaf",
    "short",
    "long",
    "wrong",
    "late",
    "split",
    "drip",
    "send-0-own",
    "send-1-own",
    "send-5-own",
    "send-2-hosts",
    "send-7-forged",
    "send-64-own",
    "send-65-own",
    "send-200-own",
    "send-200-forged",
    "miscount-3-own",
    "miscount-1-forged",
    "send-5-file",
    "send-5-dir",
    "send-64-socket",
    "send-2-fifo",
    "send-64-dir",
    "send-253-file",
    "linger", // the last: what the tenant has made ready for it keeps the tenant waiting, too
];

/// More than any login takes that waits for nothing.
const SLOW: Duration = Duration::from_secs(3);

/// One login that this module refuses for this cause.
#[track_caller]
fn assert_refused(uid: u32, cause: &str) {
    let (log, started) = (Log::from_now(), Instant::now());
    let done = ssh(uid, "touch /tmp/landed-on-the-host");
    assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}");
    assert!(done.err.contains(&format!("Container {uid} ")), "{done:?}");
    let line = log.one_line("refused:");
    assert!(line.contains(cause) && line.contains("pam_unbit(sshd:account)"), "{line}");
    assert!(started.elapsed() < SLOW, "{:?}", started.elapsed());
}

/// What a session tells of itself.
const WHOAMI: &str = "hostname; readlink /proc/self/ns/mnt; id -G";

fn inside(uid: u32, mounts: &str) -> String {
    format!("c{uid}\n{mounts}\n{uid}")
}

#[track_caller]
fn assert_login_inside(uid: u32, mounts: &str) {
    let started = Instant::now();
    assert_eq!(ssh(uid, WHOAMI).ok(), inside(uid, mounts));
    assert!(started.elapsed() < SLOW, "{:?}", started.elapsed());
}

/// What the tenant's user can do to its files.
#[track_caller]
fn as_tenant(uid: u32, script: &str) {
    let uid = uid.to_string();
    run("setpriv", &["--reuid", &uid, "--regid", &uid, "--clear-groups", "bash", "-euc", script], b"").ok();
}

/// A login of the tenant's own that puts a listener of its own in the place of the Emperor's.
fn listen_inside(how: &str) -> (Restored, Inside, impl Sized + use<>) {
    let tool = give_tool(30001);
    drop(fs::remove_file("/containers/30001/kind"));
    let restored = Restored::later(SOCKET);
    let inside = Inside::start(30001, &format!("mv ~/run/ns.socket ~/run/kept; {}", how.replace("TENANT", &tool)));
    eventually("the socket to be away", || Path::new("/containers/30001/run/kept").exists().then_some(()));
    let killed = wait_for_listener(30001);
    (restored, inside, killed)
}

/// Connects like somebody who does listen, so that the tenant tells how far it comes then. What it
/// tells.
fn listen_to(uid: u32, kind: &str) -> Option<String> {
    let (bytes, descriptors) = match kind.split('-').collect::<Vec<_>>()[..] {
        ["deaf"] => return None,
        ["linger"] => return None, // the last close would be ours
        ["silent" | "close"] => (0, "0"),
        ["short"] => (5, "0"),
        ["long"] => (60_011, "0"),
        ["drip"] => (1, "0"),
        ["late" | "split"] => (11, "0"),
        [_, count, _] => (15, count),
        _ => (15, "0"),
    };
    let mut peer = UnixStream::connect(format!("/containers/{uid}/run/ns.socket")).unwrap();
    peer.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    let taken = peer.read(&mut [0; 1]);
    assert_eq!(taken.is_ok_and(|taken| taken > 0), bytes > 0, "{kind}");
    let end = if kind == "drip" { ", then BrokenPipe" } else { "" };
    let _peer = (kind != "drip").then_some(peer); // that one goes on until we are gone
    let heard = format!("{kind}: {bytes} bytes and {descriptors} descriptors{end}");
    eventually(&heard, || listener_log(uid).contains(&heard).then_some(()));
    Some(heard)
}

/// Of the other connections it came to nothing: each was closed to whatever it would have sent.
#[track_caller]
fn assert_unheard(uid: u32, kind: &str, heard: Option<String>) {
    let end = if ["silent", "close"].contains(&kind) { "" } else { ", then BrokenPipe" };
    let unheard = (kind != "deaf").then(|| format!("{kind}: 0 bytes and 0 descriptors{end}"));
    let expected: BTreeSet<_> = heard.into_iter().chain(unheard).collect();
    eventually(format!("{expected:?}, and not {:?}", listener_log(uid)), || {
        // The listener may write down the last connection of the kind before only now.
        let (own, late): (BTreeSet<_>, BTreeSet<_>) =
            listener_log(uid).into_iter().partition(|line| line.starts_with(&format!("{kind}: ")));
        assert!(late.iter().all(|line| line.contains(": 0 bytes and 0 descriptors")), "{late:?}");
        (own == expected).then_some(())
    });
}

#[test]
#[ignore = "needs the node: make test"]
fn a_listener_inside_says_whatever_it_likes() {
    let watch = Watch::start();
    {
        let _listener = listen_inside("exec TENANT serve ~/run/ns.socket");
        for kind in KINDS {
            set_treatment(30001, kind);
            let heard = listen_to(30001, kind);
            assert_refused(30001, NOT_PID_1);
            assert_unheard(30001, kind, heard);
        }
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_listener_with_mounts_and_a_group_file_of_its_own() {
    let watch = Watch::start();
    for pid_1_of_its_own in ["", "-p --fork"] {
        let _listener = listen_inside(&format!(
            "exec unshare -Urmn {pid_1_of_its_own} bash -c 'mount -t tmpfs none /etc && echo disk:x:6:30001 >/etc/group && exec TENANT serve ~/run/ns.socket'"
        ));
        set_treatment(30001, "send-7-own");
        assert_refused(30001, NOT_PID_1);
        assert_unheard(30001, "send-7-own", None);
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_listener_that_has_ended_and_whose_number_is_somebody_elses() {
    let watch = Watch::start();
    {
        let _listener = listen_inside("TENANT orphan ~/run/ns.socket; sleep 600");
        let ask = "socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un(shift)) or die; print unpack 'l', getsockopt(S, SOL_SOCKET, 17)";
        let gone = run("perl", &["-MSocket", "-e", ask, SOCKET], b"").ok();
        assert!(!Path::new(&format!("/proc/{gone}")).exists(), "{gone} still lives");
        assert_refused(30001, "");
        // Root's, of all people's.
        let mut heir = eventually("the number to be given away again", || {
            fs::write("/proc/sys/kernel/ns_last_pid", (gone.parse::<u32>().unwrap() - 1).to_string()).unwrap();
            let mut heir = std::process::Command::new("sleep").arg("600").spawn().unwrap();
            if heir.id().to_string() == gone {
                return Some(heir);
            }
            drop((heir.kill(), heir.wait()));
            None
        });
        let log = Log::from_now();
        assert_refused(30001, "");
        let line = log.one_line("refused:");
        assert!(["ended", "ESRCH", NOT_PID_1].iter().any(|cause| line.contains(cause)), "{line}");
        drop((heir.kill(), heir.wait()));
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_hostile_pid_1_says_whatever_it_likes() {
    let watch = Watch::start();
    {
        let hostile = Hostile::start("serve /run/ns.socket");
        let mounts = hostile.mounts();
        for kind in ["cgroup", "user"] {
            assert_eq!(namespaces(&hostile.leader)[kind], namespaces("self")[kind], "what send-2-hosts sends");
        }
        for kind in ["send-5-others"].into_iter().chain(KINDS) {
            set_treatment(HOSTILE, kind);
            let heard = listen_to(HOSTILE, kind);
            assert_login_inside(HOSTILE, &mounts);
            assert_unheard(HOSTILE, kind, heard);
        }
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_hostile_pid_1_leaves_its_backlog_full() {
    let watch = Watch::start();
    {
        let _hostile = Hostile::start("serve /run/ns.socket");
        set_treatment(HOSTILE, "deaf");
        let fill = "use Socket qw(:DEFAULT SOCK_NONBLOCK); while (1) { socket(my $s, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0) or die; \
            connect($s, sockaddr_un(shift // q(/containers/30003/run/ns.socket))) or last; push @held, $s } $| = 1; print qq(full\\n); sleep 600";
        let mut filler =
            std::process::Command::new("perl").args(["-e", fill]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut said = [0; 5];
        std::io::Read::read_exact(filler.stdout.as_mut().unwrap(), &mut said).unwrap();
        assert_eq!(&said, b"full\n");
        let _end = AtEnd(|| drop((filler.kill(), filler.wait())));
        let (log, started) = (Log::from_now(), Instant::now());
        assert!(ssh(HOSTILE, "true").err.contains("does not answer"));
        assert!(log.one_line("refused:").contains("ETIMEDOUT"));
        assert!((2..6).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
        assert_login_inside(30001, &namespaces(&leader(30001))["mnt"]); // others do not wait with it
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn another_containers_pid_1_listens() {
    let watch = Watch::start();
    {
        let _socket = Restored::later(SOCKET);
        // Two tenants cannot do this alone, they have no directory in common.
        sh(format!("mv {SOCKET} {SOCKET}.kept; ln /containers/30000/run/ns.socket {SOCKET}; chown 30001 {SOCKET}"))
            .ok();
        let _owner = AtEnd(|| drop(sh("chown 30000 /containers/30000/run/ns.socket")));
        assert_refused(30001, "its uids are [30000, 30000, 30000, 30000], not the container's");
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_path_leads_somewhere_else() {
    let watch = Watch::start();
    let run = "/containers/30001/run";
    for (path, made, cause) in [
        (run, "ln -s /containers/30000/run P", "open its directory run: ENOTDIR"),
        (run, "ln -s ../30000/run P", "open its directory run: ENOTDIR"),
        (run, "ln -s /nowhere P", "open its directory run: ENOTDIR"),
        (run, "ln -s run P", "open its directory run: ENOTDIR"),
        (run, "mkfifo P", "open its directory run: ENOTDIR"),
        (run, "touch P", "open its directory run: ENOTDIR"),
        (run, "mkdir P", "open run/ns.socket: ENOENT"),
        (run, "mkdir -m 0 P", "open run/ns.socket: ENOENT"),
        (SOCKET, "ln -s /containers/30000/run/ns.socket P", "run/ns.socket is not a socket"),
        (SOCKET, "ln -s kept P", "run/ns.socket is not a socket"),
        (SOCKET, "ln -s /dev/log P", "run/ns.socket is not a socket"),
        (SOCKET, "ln -s /nowhere P", "run/ns.socket is not a socket"),
        (SOCKET, "ln -s ns.socket P", "run/ns.socket is not a socket"),
        (SOCKET, "mkfifo P", "run/ns.socket is not a socket"),
    ] {
        let _restored = Restored::later(path);
        as_tenant(
            30001,
            &format!(
                "mv {path} {}; {}",
                path.replace("ns.socket", "kept").replace("30001/run", "30001/away").replace("away/kept", "run/kept"),
                made.replace('P', path)
            ),
        );
        assert_refused(30001, cause);
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_socket_of_another_type_or_that_nobody_listens_on() {
    let watch = Watch::start();
    for (kind, cause) in [("dgram", "EPROTOTYPE"), ("bound", "ECONNREFUSED")] {
        let _restored = Restored::later(SOCKET);
        as_tenant(30001, &format!("mv {SOCKET} {SOCKET}.kept"));
        let _kept = (kind == "dgram").then(|| UnixDatagram::bind(SOCKET).unwrap());
        if kind == "bound" {
            drop(UnixListener::bind(SOCKET).unwrap());
        }
        sh(format!("chown 30001 {SOCKET}")).ok();
        assert_refused(30001, &format!("connect to run/ns.socket: {cause}"));
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn roots_own_socket_elsewhere_is_never_called() {
    sh("rm -rf /run/roots; mkdir -m 700 /run/roots").ok();
    let watch = Watch::start();
    let roots = UnixListener::bind("/run/roots/ns.socket").unwrap();
    roots.set_nonblocking(true).unwrap();
    for (path, target) in [(SOCKET, "/run/roots/ns.socket"), ("/containers/30001/run", "/run/roots")] {
        let _restored = Restored::later(path);
        as_tenant(30001, &format!("mv {path} {path}.kept; ln -s {target} {path}"));
        assert_refused(30001, "");
        assert_eq!(roots.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody called");
    }
    watch.done();
    sh("rm -r /run/roots").ok();
}

/// Logs in for as long as the tenant swaps two paths. Each login is refused, or is in the one true
/// container.
fn assert_each_login_is_whole(prepare: &str, a: &str, b: &str) {
    let watch = Watch::start();
    {
        let tool = give_tool(30001);
        drop(fs::remove_file("/containers/30001/kind"));
        let mounts = &namespaces(&leader(30001))["mnt"];
        let _restored = Restored::later(a);
        let prepare = prepare.replace("TENANT", &tool);
        let mut swapper =
            Inside::start(30001, &format!("{prepare} touch ~/swapping; {tool} swap {a} {b}; rm -r ~/swapping"));
        let swapping = || Path::new("/containers/30001/swapping").exists();
        eventually("the tenant to swap", || swapping().then_some(()));
        // Each side of the race must have won.
        let outcomes = [false, false].map(AtomicBool::new);
        let clients: Vec<_> = std::thread::scope(|scope| {
            let client = || {
                let mut logins = Vec::new();
                while swapping() {
                    let login = ssh(30001, WHOAMI);
                    outcomes[usize::from(login.status == Some(0))].store(true, Ordering::Relaxed);
                    if outcomes.iter().all(|seen| seen.load(Ordering::Relaxed)) {
                        fs::write("/containers/30001/enough", "").unwrap();
                    }
                    logins.push(login);
                }
                logins
            };
            let clients = [(); 3].map(|()| scope.spawn(client));
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        let (let_in, refused): (Vec<_>, Vec<_>) = clients.into_iter().partition(|login| login.status == Some(0));
        let (let_in, refused) = (
            let_in.into_iter().map(|login| assert_eq!(login.ok(), inside(30001, mounts))).count(),
            refused
                .into_iter()
                .map(|login| {
                    assert_eq!((login.status, login.out.as_str()), (Some(255), ""), "{login:?}");
                    assert!(login.err.contains("Container 30001 "), "{login:?}");
                })
                .count(),
        );
        swapper.wait();
        println!("{let_in} let in, {refused} refused");
        assert!(let_in > 0 && refused > 0, "{let_in} let in, {refused} refused: no race was run");
    }
    drop(wait_for_listener(30001));
    sh("rm -rf /containers/30001/{evil,run/other,enough}").ok();
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_socket_is_swapped_with_a_listener_of_the_tenants() {
    assert_each_login_is_whole(
        "TENANT serve ~/run/other & sleep 0.3;",
        "/containers/30001/run/ns.socket",
        "/containers/30001/run/other",
    );
}

#[test]
#[ignore = "needs the node: make test"]
fn the_socket_is_swapped_with_a_link_to_another_containers() {
    assert_each_login_is_whole(
        "ln -s /containers/30000/run/ns.socket ~/run/other;",
        "/containers/30001/run/ns.socket",
        "/containers/30001/run/other",
    );
}

#[test]
#[ignore = "needs the node: make test"]
fn the_directory_is_swapped_with_a_link_to_another_containers() {
    assert_each_login_is_whole("ln -s ../30000/run ~/evil;", "/containers/30001/run", "/containers/30001/evil");
}

#[test]
#[ignore = "needs the node: make test"]
fn the_directory_is_swapped_with_one_where_the_tenant_listens() {
    assert_each_login_is_whole(
        "mkdir ~/evil; TENANT serve ~/evil/ns.socket & sleep 0.3;",
        "/containers/30001/run",
        "/containers/30001/evil",
    );
}

/// In microseconds: between two calls of a login, and between two of its steps.
const MOMENTS: [u32; 18] =
    [0, 200, 400, 600, 800, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 8000, 10_000, 15_000, 30_000, 60_000, 150_000];

#[test]
#[ignore = "needs the node: make test"]
fn a_pid_1_that_unshares_between_the_check_and_the_join() {
    let watch = Watch::start();
    let (mut let_in, mut refused) = (0, 0);
    for moment in MOMENTS {
        let hostile = Hostile::start("serve /run/ns.socket");
        let mounts = hostile.mounts();
        set_treatment(HOSTILE, &format!("unshare-{moment}"));
        let done = ssh(HOSTILE, WHOAMI);
        if done.status == Some(0) {
            assert_eq!(done.ok(), inside(HOSTILE, &mounts), "after {moment} us");
            let_in += 1;
        } else {
            assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}");
            refused += 1;
        }
        eventually("it to unshare", || (hostile.mounts() != mounts).then_some(()));
    }
    println!("{let_in} let in, {refused} refused");
    assert!(let_in > 0 && refused > 0, "{let_in} let in, {refused} refused: the moments miss");
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_pid_1_that_dies_at_any_moment() {
    let watch = Watch::start();
    let (mut let_in, mut cut) = (0, 0);
    for moment in MOMENTS.into_iter().chain([250_000, 400_000]) {
        let hostile = Hostile::start("serve /run/ns.socket");
        let whole = inside(HOSTILE, &hostile.mounts());
        set_treatment(HOSTILE, &format!("die-{moment}"));
        let done = ssh(HOSTILE, &format!("{WHOAMI}; exec sleep 60"));
        assert!(done.status != Some(0) && whole.starts_with(done.out.trim_end()), "after {moment} us: {done:?}");
        if done.out.is_empty() {
            cut += 1
        } else {
            let_in += 1
        }
        // The client hears that sshd's child has ended, and the kernel may still be ending the
        // others.
        eventually("the end of the session with its container", || pgrep("^sleep 60$").is_none().then_some(()));
    }
    println!("{let_in} let in, {cut} cut short");
    assert!(let_in > 0 && cut > 0, "{let_in} let in, {cut} cut short: the moments miss");
    watch.done();
}

/// What a file system in user space has been asked and does not answer, it never will; no signal
/// ends the wait. See fuse(4), fusectl.
fn abort_fuse_connections() {
    sh(format!(
        "mkdir -p /tmp/fuse; unshare -m sh -c 'mount -t fusectl none /tmp/fuse; for one in $(find /tmp/fuse -name abort -uid {HOSTILE}); do echo 1 >$one; done'"
    ))
    .ok();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_file_whose_last_close_waits_for_the_tenant() {
    sh("mknod -m 666 /dev/fuse c 10 229").ok();
    let _device = AtEnd(|| drop(sh("rm /dev/fuse")));
    let watch = Watch::start();
    {
        give_home();
        let hostile = Hostile::start(&format!("fuse /run/ns.socket /containers/{HOSTILE}/files"));
        let ready = format!("/containers/{HOSTILE}/kind.ready");
        eventually("the file system", || Path::new(&ready).exists().then_some(()));
        let mounts = hostile.mounts();
        let _freed = AtEnd(abort_fuse_connections);
        // The status is timeout's own where the login hangs.
        let done = sh(format!("timeout 20 ssh {HOSTILE}@node '{WHOAMI}' || echo $?"));
        let stuck = sh("ps -eo stat=,comm= | grep '^D.*sshd'").out;
        assert_eq!(stuck, "", "sshd waits for the tenant, and no signal helps: {done:?}");
        assert_eq!(done.ok(), inside(HOSTILE, &mounts));
        assert_eq!(listener_log(HOSTILE).into_iter().collect::<Vec<_>>(), ["fuse: Err(BrokenPipe)"]);
    }
    watch.done();
}

/// sshd with passwords, and a module behind ours that takes every one of them.
fn permissive() -> (Changed, impl Sized + use<>) {
    let changed =
        Changed::file("/etc/pam.d/sshd", |text| text.replace("@include common-auth", "auth sufficient pam_permit.so"));
    // The last is what sshd before 8.7 calls the second.
    sh("node-sshd restart -o PasswordAuthentication=yes -o KbdInteractiveAuthentication=yes -o ChallengeResponseAuthentication=yes").ok();
    sh("printf '#!/bin/sh\\necho x\\n' >/tmp/askpass; chmod +x /tmp/askpass").ok();
    (changed, AtEnd(|| drop(sh("node-sshd restart; rm /tmp/askpass"))))
}

fn ssh_with_password(methods: &str, user: &str, command: &str) -> Done {
    sh(format!(
        "SSH_ASKPASS=/tmp/askpass SSH_ASKPASS_REQUIRE=force setsid -w ssh -o BatchMode=no -o NumberOfPasswordPrompts=1 \
         -o PreferredAuthentications={methods} {user}@node '{command}'"
    ))
}

#[test]
#[ignore = "needs the node: make test"]
fn a_password_with_a_module_behind_ours_that_takes_any() {
    let _permissive = permissive();
    let watch = Watch::start();
    for method in ["password", "keyboard-interactive", "password,keyboard-interactive"] {
        assert_eq!(ssh_with_password(method, "alice", "hostname").ok(), "node", "the witness: it takes any");
        let log = Log::from_now();
        let done = ssh_with_password(method, "30001", "touch /tmp/landed-on-the-host");
        assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{method}: {done:?}");
        assert!(log.text().contains("a password was offered; container users log in with keys"), "{}", log.text());
        assert!(!log.text().contains("session open"), "{}", log.text());
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_password_is_tried_before_the_key() {
    let _permissive = permissive();
    let watch = Watch::start();
    let mounts = &namespaces(&leader(30001))["mnt"];
    for methods in ["password,publickey", "keyboard-interactive,publickey", "keyboard-interactive,password,publickey"] {
        let log = Log::from_now();
        let done = ssh_with_password(methods, "30001", WHOAMI);
        assert_eq!(done.ok(), inside(30001, mounts), "{methods}");
        assert!(log.text().contains("a password was offered"), "{methods} was not tried: {}", log.text());
    }
    watch.done();
}

/// Files below a container's home that sshd, login or PAM know, where a container's root file
/// system is as the Emperor sets it up.
const FILES: [&str; 15] = [
    "logs/lastlog",
    "logs/wtmp",
    "logs/btmp",
    "logs/faillog",
    "logs/tallylog",
    "run/utmp",
    "run/motd",
    "run/motd.dynamic",
    "run/faillock",
    ".pam_environment",
    ".hushlogin",
    ".ssh/environment",
    ".login_conf",
    ".Xauthority",
    ".k5login",
];

#[test]
#[ignore = "needs the node: make test"]
fn records_and_dot_files_are_links_and_fifos() {
    sh("echo precious >/root/precious; chmod 600 /root/precious").ok();
    let watch = Watch::start();
    let mounts = &namespaces(&leader(30001))["mnt"];
    let files = FILES.map(|file| format!("/containers/30001/{file}")).join(" ");
    let remove = format!("rm -rf {files} /containers/30001/.ssh/rc");
    let clean = AtEnd(|| as_tenant(30001, &remove));
    for made in [
        "ln -s /root/precious $file",
        "ln -s /etc/passwd $file",
        "ln -s /.old_root/etc/passwd $file",
        "ln -s /dev/full $file",
        "ln -s /nowhere $file",
        "mkfifo $file",
        "mkdir $file",
    ] {
        as_tenant(30001, &format!("{remove}; for file in {files}; do {made}; done"));
        assert_login_inside(30001, mounts);
        let terminal = run("ssh", &["-tt", "-oLogLevel=ERROR", "30001@node", WHOAMI], b"");
        assert_eq!(terminal.ok().replace('\r', ""), inside(30001, mounts), "{made}");
    }
    // What sshd runs of the tenant's, it runs as the tenant.
    as_tenant(
        30001,
        &format!("{remove}; echo 'id -u; cat /root/precious; : >/etc/was-here' >/containers/30001/.ssh/rc"),
    );
    let done = ssh(30001, "true");
    assert_eq!(done.out, "30001\n", "{done:?}");
    assert!(done.err.contains("/root/precious: Permission denied"), "{done:?}");
    drop(clean);
    watch.done();
    sh("rm /root/precious").ok();
}

/// An /etc of the tenant's own, as a copy of the distribution's.
fn own_etc(changes: &str) -> impl Sized + use<> {
    give_home();
    let etc = format!("/containers/{HOSTILE}/etc");
    sh(format!("cp -a /distros/base/etc/. {etc} && chown -R {HOSTILE}:{HOSTILE} {etc}")).ok();
    as_tenant(HOSTILE, &format!("cd {etc}; {changes}"));
    AtEnd(move || drop(sh(format!("rm -rf {etc}"))))
}

#[test]
#[ignore = "needs the node: make test"]
fn a_root_file_system_of_the_tenants_own() {
    let watch = Watch::start();
    {
        let _etc = own_etc(&format!(
            "rm -rf group passwd shadow nsswitch.conf motd localtime environment pam.d security default/locale ld.so.preload
            echo root:x:0:{HOSTILE} >group; echo disk:x:6:{HOSTILE} >>group; echo shadow:x:42:{HOSTILE} >>group
            echo {HOSTILE}:x:0:0::/:/bin/bash >passwd; echo sshd:x:0:0::/:/bin/sh >>passwd; echo {HOSTILE}:: >shadow
            echo 'passwd: files tenant' >nsswitch.conf; echo 'group: files tenant' >>nsswitch.conf
            echo /containers/{HOSTILE}/tenant.so >ld.so.preload
            mkdir pam.d security; echo 'session required pam_exec.so /containers/{HOSTILE}/tenant' >pam.d/sshd; cp pam.d/sshd pam.d/other
            echo 'cap_sys_admin {HOSTILE}' >security/capability.conf; echo '* ; * ; * ; Al0000-2400 ; root,disk' >security/group.conf
            echo LD_PRELOAD=/containers/{HOSTILE}/tenant.so >environment; ln -s /root/precious motd; ln -s /dev/zero localtime
            echo 'id -u >&2; : >/dev/was-here' >ssh/sshrc"
        ));
        let hostile = Hostile::start("serve /run/ns.socket");
        let done =
            ssh(HOSTILE, "readlink /proc/self/ns/mnt; id -ru; cat /proc/self/status | grep Groups; head -1 /etc/group");
        assert!(
            done.err.contains(&format!("{HOSTILE}\n")),
            "the witness: sshrc is the tenant's, and has its power: {done:?}"
        );
        assert_eq!(
            done.ok().split_whitespace().collect::<Vec<_>>(),
            [&hostile.mounts(), &HOSTILE.to_string(), "Groups:", &HOSTILE.to_string(), &format!("root:x:0:{HOSTILE}")],
        );
        run("ssh", &["-tt", "-oLogLevel=ERROR", &format!("{HOSTILE}@node"), "true"], b"").ok();
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_session_that_hangs_in_a_file_of_the_tenants_is_nobody_elses_trouble() {
    let watch = Watch::start();
    {
        let _etc = own_etc("rm -f nologin; mkfifo nologin");
        let _hostile = Hostile::start("serve /run/ns.socket");
        let mut clients: Vec<_> = (0..5).map(|_| Inside::start(HOSTILE, "true")).collect();
        std::thread::sleep(Duration::from_secs(1));
        assert_login_inside(30001, &namespaces(&leader(30001))["mnt"]);
        clients.clear();
    }
    watch.done(); // with the container all of it has gone
}

#[test]
#[ignore = "needs the node: make test"]
fn files_of_a_root_file_system_of_the_tenants_own_are_links_and_fifos() {
    let watch = Watch::start();
    for (files, made) in [
        ("group nsswitch.conf", "mkfifo $file"), // which nobody inside asks for on the way to the shell
        ("group nsswitch.conf ssh/sshrc", "ln -s /.old_root/root/.bashrc $file"),
        ("group ssh/sshrc", "ln -s /dev/null $file"),
    ] {
        let _etc = own_etc(&format!("for file in {files}; do rm -f $file; {made}; done"));
        let hostile = Hostile::start("serve /run/ns.socket");
        assert_eq!(ssh(HOSTILE, "readlink /proc/self/ns/mnt").ok(), hostile.mounts(), "{files}: {made}");
    }
    {
        let _etc = own_etc("mkfifo ssh/sshrc");
        let hostile = Hostile::start("serve /run/ns.socket");
        let _client = Inside::start(HOSTILE, "true");
        let waits = eventually("who waits for a word of it", || pgrep("/etc/ssh/sshrc$"));
        assert_eq!(namespaces(&waits)["mnt"], hostile.mounts());
        assert_login_inside(30001, &namespaces(&leader(30001))["mnt"]);
    }
    watch.done();
}

#[test]
#[ignore = "needs the node: make test"]
fn sshds_child_loads_no_library_of_the_tenants() {
    // What of nsswitch.conf nobody has used yet is loaded when a name is looked up: for -L, inside.
    let hosts = ["", "/distros/base"].map(|root| {
        Changed::file(format!("{root}/etc/nsswitch.conf"), |text| text.replace("hosts:  files", "hosts:  hesiod files"))
    });
    sh("node-sshd restart").ok();
    let watch = Watch::start();
    let loaded = |user: &str, port: u16| {
        let forward = format!("{port}:some.name.invalid:80");
        let mut client = std::process::Command::new("ssh")
            .args(["-oLogLevel=ERROR", "-N", "-L", &forward, &format!("{user}@node")])
            .spawn()
            .unwrap();
        let _end = AtEnd(|| drop((client.kill(), client.wait())));
        eventually("the tunnel", || {
            (sh(format!("timeout 5 cat </dev/tcp/127.0.0.1/{port}")).status == Some(0)).then_some(())
        });
        let title = format!("^sshd(-session)?: {user} *$"); // padded before OpenSSH 9
        let child = eventually(&title, || pgrep(&title));
        fs::read_to_string(format!("/proc/{child}/maps")).unwrap().contains("libnss_hesiod")
    };
    assert!(loaded("alice", 5601), "the witness: on the host it is loaded, and it is the host's");
    let inside = loaded("30001", 5602);
    watch.done();
    assert!(!inside, "a library from the container's file system is in the process that holds the monitor's socket");
    drop(hosts);
    sh("node-sshd restart").ok();
}

#[test]
#[ignore = "needs the node: make test"]
fn user_names_that_are_no_numbers_enter_no_other_container() {
    let watch = Watch::start();
    let long = "3".repeat(5000);
    for name in [
        "30001/",
        "30001/../30000",
        "/containers/30001",
        "./30001",
        "030001",
        "0030001",
        "+30001",
        "-30001",
        " 30001",
        "30001 ",
        "30001\t",
        "30001.",
        "30001.0",
        "30001,30000",
        "3.0001e4",
        "0x7531",
        "0o72461",
        "3 0001",
        "３０００１",
        "30001a",
        "a30001",
        "30001@node",
        "30001%%00",
        "4294997297",
        "18446744073709581617",
        "-1",
        "4294967295",
        "65534",
        "29999",
        "0",
        "root/",
        "*",
        "3000?",
        &long,
    ] {
        // In a file, since a client may refuse by itself what its command line has. (%% is % there
        // from OpenSSH 10 on.)
        fs::write("/tmp/names", format!("User \"{name}\"\nInclude /root/.ssh/config\n")).unwrap();
        let log = Log::from_now();
        let done = run("ssh", &["-F", "/tmp/names", "node", "touch /tmp/landed-on-the-host"], b"");
        assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{name:?}: {done:?}");
        // Debian's sshd cuts a name at the slash.
        let cut = name.split('/').next().unwrap();
        let heard = match cut {
            "30001" | "root" if cut != name => format!("authenticating user {cut} "),
            _ => format!(
                "Invalid user {}",
                cut.split(|letter| !matches!(letter, ' '..='~') || letter == '%').next().unwrap()
            ),
        };
        let heard = &heard[..heard.len().min(90)];
        eventually(format!("{name:?}: {heard:?} in {}", log.text()), || log.text().contains(heard).then_some(()));
    }
    for name in ["30001\n", ""] {
        let done = run("ssh", &["-l", name, "node", "touch /tmp/landed-on-the-host"], b"");
        assert_ne!(done.status, Some(0), "{name:?}: {done:?}");
    }
    // sshd takes what is behind a colon for itself.
    let mounts = &namespaces(&leader(30001))["mnt"];
    assert_eq!(ssh("30001:style", WHOAMI).ok(), inside(30001, mounts));
    watch.done();
}

const CAT_AS_ROOT: &str = "/usr/local/bin/cat-as-root";

/// A set-user-ID program of the distribution's, until this is dropped.
fn cat_as_root() -> AtEnd<impl FnMut()> {
    sh(format!("install -m 4755 /bin/cat /distros/base{CAT_AS_ROOT}")).ok();
    AtEnd(|| drop(sh(format!("rm /distros/base{CAT_AS_ROOT}"))))
}

#[test]
#[ignore = "needs the node: make test"]
fn a_pid_1_that_widens_its_bounds_as_the_session_is_born() {
    let _program = cat_as_root();
    let become_it = format!("setpriv --reuid {HOSTILE} --regid {HOSTILE} --clear-groups --bounding-set=-all");
    let mut let_in = 0;
    for _ in 0..16 {
        let hostile = Hostile::become_by(&become_it, "serve /run/ns.socket");
        set_treatment(HOSTILE, "unshare-birth");
        let done = ssh(HOSTILE, &format!("grep CapBnd /proc/self/status; {CAT_AS_ROOT} /proc/self/status"));
        if done.status == Some(0) {
            assert!(done.out.starts_with("CapBnd:\t0000000000000000\n"), "{done:?}");
            assert!(done.out.contains("CapEff:\t0000000000000000\n"), "{done:?}");
            let_in += 1;
        }
        let own_users = || namespaces(&hostile.leader)["user"] != namespaces("self")["user"];
        eventually("it to unshare", || own_users().then_some(()));
    }
    assert!(let_in > 0, "the moment is not met");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_set_user_id_program_gives_a_session_no_more_than_pid_1() {
    let _program = cat_as_root();
    const KEYS: [&str; 4] = ["Uid:", "CapEff:", "CapBnd:", "NoNewPrivs:"];
    let of = |status: &str| {
        KEYS.map(|key| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned())
    };
    let _su = join_now("su");
    let command = format!("{CAT_AS_ROOT} /proc/self/status");
    for bounds in ["", "--bounding-set=-all", "--bounding-set=-mknod,-sys_admin", "--no-new-privs"] {
        let become_it = format!("setpriv --reuid {HOSTILE} --regid {HOSTILE} --clear-groups {bounds}");
        let hostile = Hostile::become_by(&become_it, "serve /run/ns.socket");
        let [_, _, bounding, no_new_privs] =
            of(&fs::read_to_string(format!("/proc/{}/status", hostile.leader)).unwrap());
        for said in [
            ssh(HOSTILE, &command),
            sh(format!("unbitctl enter {HOSTILE} -- {command}")),
            sh(format!("su {HOSTILE} -c '{command}'")),
        ] {
            let [uids, effective, session_bounding, session_no_new_privs] = of(&said.ok());
            let uid = if no_new_privs == "1" { HOSTILE } else { 0 };
            assert!(uids.starts_with(&format!("{HOSTILE}\t{uid}\t")), "{bounds}: {uids}");
            assert_eq!(session_no_new_privs, no_new_privs, "{bounds}");
            // su's own bounding set is smaller still.
            let mask = |text: &str| u64::from_str_radix(text, 16).unwrap();
            assert_eq!(mask(&session_bounding) & !mask(&bounding), 0, "{bounds}: {session_bounding}");
            let gained = if uid == 0 { mask(&session_bounding) } else { 0 };
            assert_eq!(mask(&effective), gained, "{bounds}");
        }
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn groups_of_the_node_stay_on_the_node() {
    let _group = Changed::file("/etc/group", |text| format!("{text}node-secrets:x:900:30001,alice\n"));
    let watch = Watch::start();
    assert!(sh("id -G alice").ok().contains("900"), "the group is one");
    assert_eq!(ssh(30001, "id -G").ok(), "30001");
    assert_eq!(sh("unbitctl enter 30001 -- id -G").ok(), "30001");
    watch.done();
}
