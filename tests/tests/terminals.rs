//! The terminals of sessions: which devpts they come from, what limits them, and that the node's
//! terminals and records are not touched.

use std::fs;
use unbit_tests::linked::{Engine, Users};
use unbit_tests::*;

fn on_a_terminal(user: &str, command: &str) -> Done {
    run("ssh", &["-tt", "-oLogLevel=ERROR", &format!("{user}@node"), command], b"")
}

/// The terminals that the kernel counts for the whole machine.
fn taken() -> u32 {
    fs::read_to_string("/proc/sys/kernel/pty/nr").unwrap().trim().parse().unwrap()
}

#[test]
#[ignore = "needs the node: make test"]
fn a_terminal_has_its_name_in_the_container() {
    let done =
        on_a_terminal("30001", "tty; echo $SSH_TTY; stat -c '%U %G %a' $(tty); stty -F $(tty) size; ls /dev/pts");
    let out = done.ok();
    let mut lines = out.lines();
    let name = lines.next().unwrap().to_owned();
    assert!(name.starts_with("/dev/pts/"), "{out}");
    assert_eq!(lines.next(), Some(name.as_str()), "{out}");
    assert_eq!(lines.next(), Some("30001 tty 620"), "{out}");
    assert_eq!(lines.next(), Some("0 0"), "{out}");
    // It is one of the container's, and none of the node's.
    let (open, inside) = Terminal::open("30001", "ls /dev/pts", 1201);
    assert!(inside.contains("ptmx") && inside.split_whitespace().count() == 2, "{inside}");
    assert_eq!(sh("ls /dev/pts").ok(), "ptmx");
    drop(open);
    // Programs that ask for the name: screen and tmux open it again.
    assert_eq!(on_a_terminal("30001", "script -qc 'tty <$(tty)' /dev/null | tr -d '\\r'").ok().lines().count(), 1);
}

/// What a tenant keeps open when its session has ended is its own loss.
#[test]
#[ignore = "needs the node: make test"]
fn terminals_that_a_tenant_keeps_are_its_own() {
    let before = taken();
    let keep = "(trap '' HUP; exec setsid sleep 1202) <&0 >/dev/null 2>&1 & sleep 0.1; echo kept";
    let mut kept = 0;
    let _end = AtEnd(|| {
        sh("pkill -KILL -f '^sleep 1202$'");
    });
    let full = loop {
        let done = run("ssh", &["-tt", "30001@node", keep], b"");
        if !done.out.contains("kept") || done.err.contains("PTY allocation") {
            break done;
        }
        kept += 1;
        assert!(kept <= 64, "{kept} terminals, and the example allows 64");
    };
    assert!(full.err.contains("PTY allocation request failed"), "{full:?}");
    assert!(kept >= 60 && taken() <= before + 70, "{kept} kept; {before} before and {} now", taken());
    for other in ["root", "30000"] {
        assert!(on_a_terminal(other, "tty").ok().contains("/dev/pts/"), "{other}");
    }
    assert_eq!(ssh(30001, "echo without one").ok(), "without one");
    sh("pkill -KILL -f '^sleep 1202$'").ok();
    let again = || on_a_terminal("30001", "tty").out.contains("/dev/pts/").then_some(());
    eventually("a terminal for the tenant again", again);
}

/// Who is logged in where, by utmp(5). Debian 13's who asks logind.
const WHO: &str = r#"perl -0777 -ne 'for (unpack "(a384)*") { my ($type, $line, $user) = unpack "s x6 Z32 x4 Z32"; print "$user $line\n" if $type == 7 }' /run/utmp"#;

/// In utmp(5) a terminal is its name, and the container's have the names of the node's.
#[test]
#[ignore = "needs the node: make test"]
fn container_sessions_are_not_in_utmp() {
    let (_root, name) = Terminal::open("root", "tty", 1203);
    let name = name.trim().trim_start_matches("/dev/").to_owned();
    let who = || sh(WHO).ok();
    assert_eq!(who(), format!("root {name}"));
    let log = Log::from_now();
    {
        let (_tenant, theirs) = Terminal::open("30001", "tty", 1204);
        assert_eq!(theirs.trim(), format!("/dev/{name}"), "the witness: the same name");
        assert_eq!(who(), format!("root {name}"));
    }
    eventually("the session's end", || log.text().contains("session closed").then_some(()));
    assert_eq!(who(), format!("root {name}"));
    assert!(!log.text().contains("logout() returned an error"), "{}", log.text());
}

/// Debian 12 has wtmp, 13 has the database of wtmpdb(8) too, where a terminal is its name as well.
#[test]
#[ignore = "needs the node: make test"]
fn wtmp_has_the_nodes_users_alone() {
    let (_root, _) = Terminal::open("root", "tty", 1208);
    let records = || sh("cksum /var/log/wtmp*").ok();
    let lastlog = || sh("stat -c %y /var/log/lastlog").ok(); // in the same second the same login has the same bytes
    assert_ne!(sh("grep -al root /var/log/wtmp*").ok(), "", "the witness");
    let before = records();
    drop(Terminal::open("30001", "tty", 1209));
    assert_eq!(records(), before);
    // As logrotate does it, while a connection is open.
    sh("rm -f /tmp/terminals.sock; ssh -fNM -S /tmp/terminals.sock 30001@node >/dev/null 2>&1").ok();
    let _close = AtEnd(|| drop(sh("ssh -S /tmp/terminals.sock -O exit 30001@node")));
    sh("cd /var/log && mv wtmp wtmp.1 && install -g utmp -m 664 /dev/null wtmp").ok();
    let (before, last) = (records(), lastlog());
    let done = run("ssh", &["-tt", "-S", "/tmp/terminals.sock", "node", "tty"], b"");
    assert!(done.out.contains("/dev/pts/"), "{done:?}");
    assert_eq!(records(), before);
    if sh("grep -qa lastlog_write_entry /usr/sbin/sshd").status == Some(0) {
        assert_ne!(lastlog(), last, "sshd writes lastlog itself");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn the_monitors_mounts_are_nobody_elses() {
    // As systemd has it: what is mounted anywhere appears everywhere.
    sh("mount --make-rshared /").ok();
    let _private = AtEnd(|| drop(sh("mount --make-rprivate /").ok()));
    let mounts = |pid: &str| fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let before = mounts("self");
    let (open, _) = Terminal::open("30001", "tty", 1205);
    let monitor = open.monitor();
    assert_eq!(mounts("self"), before, "the node has the same mounts");
    let devpts =
        |mounts: &str| mounts.lines().filter(|line| line.contains(" /dev/pts ") && line.contains("- devpts")).count();
    assert_eq!((devpts(&before), devpts(&mounts(&monitor))), (1, 2), "the witness");
    // The monitor keeps no file system of the node's busy.
    sh("mkdir -p /mnt/late && mount -t tmpfs late /mnt/late").ok();
    assert!(mounts(&monitor).contains("/mnt/late"));
    sh("umount /mnt/late && rmdir /mnt/late").ok();
    assert!(!mounts(&monitor).contains("/mnt/late"));
}

/// A container of another engine: where sshd opens its terminals depends on what its `/dev/pts` is,
/// and on who could change that.
#[test]
#[ignore = "needs the node: make test"]
fn whose_terminals_a_linked_container_has() {
    const BARE: &str = "umount -R /ns/dev; mount -t tmpfs none /ns/dev; cp -a /dev/null /dev/tty /ns/dev";
    // All in a layer of its own above the distribution.
    const LINKED: &str = "umount -R /ns/dev; mkdir /ns/tmp/up /ns/tmp/work
        mount -t overlay -o lowerdir=/distros/base,upperdir=/ns/tmp/up,workdir=/ns/tmp/work none /ns; mkdir -p /ns/real/pts
        cp -a /dev/null /dev/tty /ns/real; mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666,max=1 none /ns/real/pts
        rm -r /ns/dev; ln -s real /ns/dev; mount -t proc proc /ns/proc; mount -t tmpfs none /ns/containers
        mkdir /ns/containers/30001; mount --bind /containers/30001 /ns/containers/30001";
    const NO_ADMIN: &str = "setpriv --bounding-set=-sys_ptrace,-sys_admin sleep 86400";
    let own = "mkdir /ns/dev/pts; mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666,max=1 none /ns/dev/pts";
    let own_on_the_nodes = "mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666,max=1 none /ns/dev/pts";
    let (container, connection) = ("of the container's /dev/pts", "of a /dev/pts of this connection's own");
    let node = "of the node's /dev/pts, which the container shares";
    let plain = || Engine::new("terminals").running(NO_ADMIN, "sleep");
    let bare = |then: &str| plain().after(&format!("{BARE}; {then}"));
    let _debug = with_option("debug");
    let cases = [
        ("the node's", plain(), node, "/dev/pts/"),
        ("its own", bare(own), container, "/dev/pts/0"),
        ("none", bare("true"), connection, "not a tty"),
        ("an empty directory", bare("mkdir /ns/dev/pts"), connection, "not a tty"),
        ("a file", bare("touch /ns/dev/pts"), connection, "not a tty"),
        (
            "a link",
            bare("mkdir /ns/dev/real; mount -t devpts none /ns/dev/real; ln -s real /ns/dev/pts"),
            connection,
            "",
        ),
        ("a /dev that is a link", plain().after(LINKED), connection, ""), // CVE-2026-41579
        ("with CAP_SYS_ADMIN", Engine::new("terminals").after(&format!("{BARE}; {own}")), connection, ""),
        (
            "in a user namespace",
            Engine::new("terminals").with_users(Users::usual()).after(own_on_the_nodes),
            connection,
            "",
        ),
    ];
    for (what, engine, whose, name) in cases {
        let started = engine.start();
        let _link = started.link(30001);
        let log = Log::from_now();
        let done = on_a_terminal("30001", "test -t 0 && tty; stty size </dev/tty; hostname");
        assert!(log.text().contains(&format!("terminals: {whose}")), "{what}: {done:?}\n{}", log.text());
        assert!(done.out.contains(name) && done.out.ends_with("terminals\r\n"), "{what}: {done:?}");
        if whose == container {
            let (_first, _) = Terminal::open("30001", "tty", 1206);
            let second = run("ssh", &["-tt", "30001@node", "true"], b"");
            assert!(second.err.contains("PTY allocation request failed"), "{what}: max=1: {second:?}");
        }
    }
}

/// A connection's own /dev/pts has a limit too.
#[test]
#[ignore = "needs the node: make test"]
fn a_connections_own_terminals_are_bounded() {
    let started = Engine::new("bounded").with_users(Users::usual()).start();
    let _link = started.link(30001);
    let before = taken();
    let _end = AtEnd(|| {
        sh("pkill -KILL -f '^sleep 1207$'");
    });
    let keep = "(trap '' HUP; exec setsid sleep 1207) <&0 >/dev/null 2>&1 & sleep 0.1; echo kept";
    sh("rm -f /tmp/terminals.sock; ssh -fNM -S /tmp/terminals.sock 30001@node >/dev/null 2>&1").ok();
    let _close = AtEnd(|| drop(sh("ssh -S /tmp/terminals.sock -O exit 30001@node")));
    let kept = (0..70)
        .take_while(|_| {
            let done = run("ssh", &["-tt", "-S", "/tmp/terminals.sock", "node", keep], b"");
            !done.err.contains("PTY allocation request failed")
        })
        .count();
    assert!((60..=64).contains(&kept) && taken() <= before + 70, "{kept} kept; {before} before and {} now", taken());
    assert!(on_a_terminal("root", "tty").ok().contains("/dev/pts/"));
}

#[test]
#[ignore = "needs the node: make test"]
fn check_says_whose_they_are() {
    assert!(sh("unbitctl check 30001").ok().contains("sshd opens terminals of the container's /dev/pts"));
}
