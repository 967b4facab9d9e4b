//! Containers with a user namespace of their own, by root's link: who a session is there, which
//! maps are refused, and what the container's root, who has every capability there, gets of a
//! login.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use unbit_tests::linked::*;
use unbit_tests::supervision::{SupervisedSession, status};
use unbit_tests::tenant::install_program;
use unbit_tests::*;

const BAD_MAP: &str = "cannot be entered: its user has no uid of its own on this node.";

/// What 30001 is on the node with the usual maps.
const ON_THE_NODE: &str = "1030001";

/// Who a session is, inside and as the node sees it.
#[track_caller]
fn assert_login_in(container: &Container, name: &str) {
    let log = Log::from_now();
    let done = ssh(
        30001,
        "hostname; id -u; id -G; readlink /proc/self/ns/*; cat /proc/self/cgroup; grep ^Cap /proc/self/status
        perl -e 'use POSIX; print setuid(0) ? \"root\" : \"no root\", \"\\n\"'; touch /tmp/made; sleep 0.1",
    );
    assert_eq!(done.status, Some(0), "{done:?}\n{}", log.text());
    assert!(done.out.starts_with(&format!("{name}\n30001\n30001\n")), "{done:?}");
    for (kind, namespace) in namespaces(&container.leader) {
        assert!(done.out.contains(&namespace), "{kind}: {namespace} in {done:?}");
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(done.out.contains(&format!("{set}:\t0000000000000000")), "{done:?}");
    }
    assert!(done.out.contains("no root"), "{done:?}");
    let made = fs::metadata(format!("/proc/{}/root/tmp/made", container.leader)).unwrap();
    let users = fs::read_to_string(format!("/proc/{}/uid_map", container.leader)).unwrap();
    assert_ne!((made.uid(), made.gid()), (30001, 30001), "{users}");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_session_is_the_containers_user_inside_and_another_on_the_node() {
    // Its directory is not its own inside, so that the NSS module there knows no such account.
    let account = "mount -t tmpfs none /mnt; cp /ns/etc/passwd /mnt; echo 30001:x:30001:30001::/tmp:/bin/bash >>/mnt/passwd; mount --bind /mnt/passwd /ns/etc/passwd";
    let container = Engine::new("web1").with_users(Users::usual()).after(account).start();
    let _link = container.link(30001);
    assert_login_in(&container, "web1");
    {
        let mut session = SupervisedSession::start("30001", &[], "users");
        session.assert_supervised();
        for pid in [&session.command, &session.first] {
            let ids = [ON_THE_NODE; 4].join(" ");
            assert_eq!((status(pid, "Uid"), status(pid, "Gid")), (ids.clone(), ids), "{}", session.describe());
            assert_eq!(status(pid, "Groups"), "", "{}", session.describe());
            assert_eq!(status(pid, "CapEff"), "0000000000000000");
        }
        assert_eq!(status(&session.supervisor, "Uid"), [ON_THE_NODE; 4].join(" "));
        session.assert_answers();
        // The supervisor may signal the session.
        sh(format!("kill -TERM {}", session.supervisor)).ok();
        eventually("the end of the session", || (!supervision::lives(&session.first)).then_some(()));
    }
    // Its keyring is its own.
    let describe = "perl -e '$b = \" \" x 100; syscall(250, 6, -3, $b, 100); print $b'";
    let keyring = ssh(30001, describe).ok();
    assert!(keyring.starts_with("keyring;30001;30001;"), "{keyring}");
    let tty = run(
        "ssh",
        &["-tt", "-q", "30001@node", "stty size; test -t 0 && echo terminal; read line; echo $line"],
        b"typed\n",
    );
    assert!(tty.out.contains("terminal") && tty.out.contains("typed"), "{tty:?}");
    let (sftp, got) = ("ls /tmp\nput /etc/hostname /tmp/put\n", format!("/proc/{}/root/tmp/put", container.leader));
    run("sftp", &["-q", "-b", "-", "30001@node"], sftp.as_bytes()).ok();
    assert_eq!(fs::metadata(got).unwrap().uid().to_string(), ON_THE_NODE);
    assert_eq!(sh("unbitctl enter 30001 -- id -u").ok(), "30001");
    let root = sh("unbitctl enter --root 30001 -- id -u");
    assert!(root.failed().contains("it has a user namespace of its own"));
    let _su = join_now("su");
    let su = sh("su 30001 -c hostname");
    assert!(su.status != Some(0) && su.out.is_empty(), "{su:?}");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_user_namespace_without_setgroups() {
    let container = Engine::new("web1").with_users(Users { setgroups: "deny", ..Users::usual() }).start();
    let _link = container.link(30001);
    assert_login_in(&container, "web1");
}

/// Namespaces that root of the node has made, and a pid 1 that goes to a user namespace after that.
#[test]
#[ignore = "needs the node: make test"]
fn namespaces_that_belong_to_the_node() {
    let go = "perl -e 'syscall(272, 0x10000000); sleep 86400'";
    let container = Engine::new("web1").running(go, "perl").start();
    let _link = container.link(30001);
    eventually("its user namespace", || {
        (namespaces(&container.leader)["user"] != namespaces("self")["user"]).then_some(())
    });
    // What it may have forked before has the power of its pid namespace's user namespace.
    let too_much = "cannot be entered: its root user has too much power on this node.";
    assert_refused(too_much, "its pid namespace belongs to the node's");
    let _trust = trust(30001);
    assert_refused(BAD_MAP, "30001 is not mapped in its user namespace (uid_map: )");
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", container.leader), "0 1000000 65536").unwrap();
    }
    assert_login_in(&container, "web1");
}

#[test]
#[ignore = "needs the node: make test"]
fn maps_that_no_session_may_have() {
    let good = "0 1000000 65536";
    for (uids, gids, cause) in [
        ("0 1000000 30001", good, "30001 is not mapped in its user namespace (uid_map: 0 1000000 30001)"),
        (good, "0 1000000 30001", "30001 is not mapped in its user namespace (gid_map: 0 1000000 30001)"),
        ("0 1000000 1\n30001 0 1", good, "30001 is 0 on the node, which is below"),
        (good, "0 1000000 1\n30001 0 1", "30001 is 0 on the node, which is below"),
        ("0 1000000 1\n30001 33 1", good, "30001 is 33 on the node, which is below"),
        (
            "0 1000000 1\n30001 30000 1",
            good,
            "30001 in its user namespace is 30000 on the node, which is the account 30000",
        ),
        (
            good,
            "0 1000000 1\n30001 30000 1",
            "30001 in its user namespace is 30000 on the node, which is the account 30000",
        ),
        (
            "0 1000000 1\n30001 30001 1",
            good,
            "30001 in its user namespace is 30001 on the node, which is the account 30001",
        ),
        ("0 1000000 1\n30001 1000 1", good, "30001 is 1000 on the node, which is below"),
        ("0 0 1\n1 1000001 65535", good, "0 in its user namespace is 0 on the node, which is the account root"),
        (
            "0 30000 1\n1 1000001 65535",
            good,
            "0 in its user namespace is 30000 on the node, which is the account 30000",
        ),
        (good, "0 5 1\n1 1000001 65535", "0 in its user namespace is 5 on the node, which is the account tty"),
    ] {
        let users = Users { uids: uids.to_owned(), gids: gids.to_owned(), setgroups: "allow" };
        let container = Engine::new("web1").with_users(users).start();
        let _link = container.link(30001);
        assert_refused(BAD_MAP, cause);
    }
    assert_honest_logins();
}

/// nss-mymachines(8) has names for the ids of containers. Only these are no accounts.
#[test]
#[ignore = "needs the node: make test"]
fn an_account_that_is_named_like_those_of_machined() {
    let kept = fs::read_to_string("/etc/passwd").unwrap();
    let _back = AtEnd(|| fs::write("/etc/passwd", &kept).unwrap());
    let line = |name: &str, uid: u32| format!("{name}:x:{uid}:65534::/:/usr/sbin/nologin\n");
    let accounts = line("vu-smith", 1_600_001) + &line("vu-web1-30001", 1_600_002);
    fs::write("/etc/passwd", format!("{kept}{accounts}")).unwrap();
    let start = |uid: u32| {
        let users = Users { uids: format!("0 1000000 1\n30001 {uid} 1"), ..Users::usual() };
        Engine::new("web1").with_users(users).start()
    };
    {
        let container = start(1_600_001);
        let _link = container.link(30001);
        assert_refused(BAD_MAP, "30001 in its user namespace is 1600001 on the node, which is the account vu-smith");
    }
    let container = start(1_600_002);
    let _link = container.link(30001);
    assert_login_in(&container, "web1");
}

/// Ids that are neither the session's nor root's inside refuse nobody: they are the business of
/// whoever made the map, and LXC's users map an ordinary user's id so. `unbitctl check UID` says
/// whose they are.
#[test]
#[ignore = "needs the node: make test"]
fn maps_with_the_ids_of_others() {
    let check = |map: &str| {
        let container = Engine::new("web1").with_users(Users::of(map)).start();
        let _link = container.link(30001);
        assert_login_in(&container, "web1");
        sh("unbitctl check 30001").ok()
    };
    let warning = "warn  namespaces  ";
    for (map, who) in [
        ("0 1000000 30001\n30001 1030001 1\n40000 30000 1", "the container 30000"),
        ("0 1000000 1000\n1000 1000 1\n1001 1001001 64535", "1000, alice in /etc/passwd"),
    ] {
        let said = check(map);
        let line = format!(
            "{warning}root of its user namespace can be {who} on the node (uid_map: {}",
            map.replace('\n', " ")
        );
        assert!(said.contains(&line) && said.contains("gid_map"), "{line} in {said}");
    }
    // Its own account's number, as another one inside.
    let own = check("0 1000000 5000\n5000 30001 1\n5001 1005001 60000");
    assert!(!own.contains(warning), "{own}");
    // Ids that an ordinary user has in user namespaces of its own.
    let kept = fs::read("/etc/subuid").unwrap_or_default();
    let _back = AtEnd(|| fs::write("/etc/subuid", &kept).unwrap());
    fs::write("/etc/subuid", "alice:1000000:65536\nroot:1000000:65536\n").unwrap();
    let theirs = check("0 1000000 65536");
    assert!(theirs.contains("/etc/subuid: alice has 1000000-1065535, and so ids of its user namespace"), "{theirs}");
    fs::write("/etc/subuid", "root:1000000:65536\n").unwrap();
    let roots = check("0 1000000 65536");
    assert!(!roots.contains(warning), "{roots}");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_user_namespace_that_is_not_a_direct_child() {
    let deeper = "unshare --user --map-root-user sleep 86400";
    let engine = Engine { command: deeper.to_owned(), ..Engine::new("web1").with_users(Users::usual()) };
    let container = engine.start();
    let _link = container.link(30001);
    assert_refused(NOT_TRUSTED, "its user namespace is not a direct child of the node's user namespace");
}

/// One that a user made who is root there, and whom the kernel lets do there what it lets nobody do
/// in the node's.
#[test]
#[ignore = "needs the node: make test"]
fn a_namespace_that_belongs_to_a_third() {
    let mut third = Command::new("unshare");
    third.arg("--user").args(["--uts", "--ipc", "--net", "--cgroup", "sleep", "86400"]);
    let mut third = third.spawn().unwrap();
    let pid = third.id().to_string();
    let _end = AtEnd(|| drop((third.kill(), third.wait())));
    let kinds = ["uts", "ipc", "net", "cgroup"];
    eventually("its namespaces", || {
        kinds.iter().all(|kind| namespaces(&pid)[*kind] != namespaces("self")[*kind]).then_some(())
    });
    for kind in kinds {
        let join = format!("nsenter --{kind}=/proc/self/fd/9 setpriv --bounding-set=-sys_ptrace sleep 86400");
        let engine = Engine::new("web1").after(&format!("exec 9</proc/{pid}/ns/{kind}")).running(&join, "sleep");
        let container = engine.start();
        let _link = container.link(30001);
        assert_refused(NOT_TRUSTED, &format!("its {kind} namespace belongs to another user namespace"));
    }
}

/// Once it has been checked, its pid 1 goes to another user namespace, where it would look as if
/// nothing bound it.
#[test]
#[ignore = "needs the node: make test"]
fn a_pid_1_that_changes_its_user_namespace_between_check_and_join() {
    let go = "perl -e '$SIG{USR1} = sub { syscall(272, 0x10000000); }; $| = 1; sleep 1 while 1'";
    let plain = Engine::new("web1").running(&format!("setpriv --bounding-set=-sys_ptrace {go}"), "perl");
    let with_users =
        Engine { command: go.to_owned(), program: "perl", ..Engine::new("web1").with_users(Users::usual()) };
    for engine in [plain, with_users] {
        let container = engine.start();
        let _link = container.link(30001);
        assert_login_in_any(&container);
        let before = namespaces(&container.leader)["user"].clone();
        let wait =
            format!("while [ $(readlink /proc/{0}/ns/user) = '{before}' ]; do sleep 0.01; done", container.leader);
        let between = between_check_and_join(&format!("kill -USR1 {}; {wait}", container.leader));
        let log = Log::from_now();
        let done = ssh(30001, "touch /tmp/half-done");
        drop(between);
        assert_eq!(done.status, Some(255), "{done:?}\n{}", log.text());
        let line = log.one_line("refused:");
        // That of the node's pid namespace may not have gone to one at all.
        let cause = match engine.users {
            Some(_) => "its pid 1 has changed its user namespace since it was verified",
            None => "its pid 1 is in a user namespace of its own, but its pid namespace belongs to the node's",
        };
        assert!(line.contains(cause), "{line}");
        assert!(!fs::exists(format!("/proc/{}/root/tmp/half-done", container.leader)).unwrap());
    }
}

#[track_caller]
fn assert_login_in_any(container: &Container) {
    let done = ssh(30001, "hostname");
    assert_eq!(done.out, "web1\n", "{done:?} {} {}", container.leader, Log::all().lines().last().unwrap_or_default());
}

/// Root inside has every capability in its user namespace. It gets nothing of a session's sshd,
/// because that is not dumpable.
#[test]
#[ignore = "needs the node: make test"]
fn root_inside_gets_hold_of_no_session() {
    let tool = install_program(30001, "onlooker");
    let container = Engine::new("web1").with_users(Users::usual()).start();
    let _link = container.link(30001);
    let session = SupervisedSession::start("30001", &[], "grabbed");
    let inside = sh(format!("awk '/^NSpid/ {{ print $3 }}' /proc/{}/status", session.first)).ok();
    let grab = || sh(format!("nsenter -t {} -a {tool} grab {inside}", container.leader)).ok();
    assert_eq!(grab(), "", "{}", session.describe());
    const PR_SET_DUMPABLE: u32 = 4;
    let prctl = libc::SYS_prctl;
    assert_eq!(sh(format!("{tool} inject {} {prctl} {PR_SET_DUMPABLE} 1", session.first)).ok(), "0");
    let got = grab();
    for what in ["its memory", "its program", "its descriptors", "a descriptor", "control"] {
        assert!(got.contains(what), "the negative control, a session that is dumpable: {got}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn root_inside_grabs_at_each_process_during_many_logins() {
    const LOGINS: usize = 200;
    let tool = install_program(30001, "onlooker");
    let log = "/tmp/grabs";
    let command = format!("{tool} grab 30001 {log} sleep 86400");
    let engine = Engine { command, ..Engine::new("web1").with_users(Users::usual()) };
    let container = engine.start();
    let _link = container.link(30001);
    let file = format!("/proc/{}/root{log}", container.leader);
    eventually("the onlooker", || fs::exists(&file).unwrap().then_some(()));
    let logins = std::env::var("LOGINS").map_or(LOGINS, |logins| logins.parse().unwrap());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::SeqCst) < logins {
                    assert_eq!(
                        ssh(30001, "hostname").out,
                        "web1\n",
                        "{}",
                        Log::all().lines().last().unwrap_or_default()
                    );
                }
            });
        }
    });
    let text = fs::read_to_string(&file).unwrap();
    let count = |word: &str| text.lines().filter(|line| line.starts_with(word)).count();
    println!(
        "{logins} logins; {} births, {} more missed; {} sessions grabbed at",
        count("born"),
        count("missed"),
        count("tried")
    );
    let got: Vec<_> = text.lines().filter(|line| line.starts_with("got")).collect();
    assert!(got.is_empty(), "{got:#?}");
    assert!(count("tried") > logins / 2, "the witness: it tried at {} of {logins}", count("tried"));
}
