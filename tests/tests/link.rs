//! Root's link `/etc/unbit/<uid>` to the cgroup of any engine's container: where a login ends, and
//! every case in which it is refused.
//!
//! The account is 30001, whose container of the Emperor's runs all the time and has the host name
//! c30001: a login that takes no notice of the link lands there.

use std::fs;
use std::process::Command;
use unbit_tests::linked::*;
use unbit_tests::*;

const NOT_RUNNING: &str = "is not running.";
const STARTING: &str = "is starting. Please try again in a moment.";
const PAUSED: &str = "is paused.";
const BAD_LINK: &str = "cannot be entered: this node has a wrong link to it.";
const NO_PID_NAMESPACE: &str = "is starting, or has no pid namespace of its own.";
const TWO: &str = "cannot be entered: its link leads to more than one container.";
const TOO_MUCH_POWER: &str = "cannot be entered: its root user has too much power on this node.";
const SLOW: &str = "does not answer.";
const TOO_MANY_GROUPS: &str = "has too many cgroups.";

/// A login is in this container, as its user, in its namespaces and groups.
#[track_caller]
fn assert_login_in(container: &Container, name: &str) {
    let log = Log::from_now();
    let done = ssh(30001, "hostname; id -u; id -G; readlink /proc/self/ns/*; grep ^CapEff /proc/self/status");
    assert_eq!(done.status, Some(0), "{done:?}\n{}", log.text());
    let mut lines = done.out.lines();
    let mut line = || lines.next().unwrap_or_default().to_owned();
    assert_eq!((line(), line(), line()), (name.to_owned(), "30001".to_owned(), "30001".to_owned()), "{done:?}");
    for (kind, namespace) in namespaces(&container.leader) {
        assert!(done.out.contains(&namespace), "{kind}: {namespace} in {done:?}");
    }
    assert!(done.out.contains("CapEff:\t0000000000000000"), "{done:?}");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_link_comes_first_and_its_container_is_entered() {
    let container = Engine::new("web1").start();
    assert_eq!(ssh(30001, "hostname").ok(), "c30001", "without a link, the Emperor's");
    let groups = container.groups();
    assert!(!groups.is_empty());
    for group in &groups {
        let _link = Link::to(30001, group);
        assert_login_in(&container, "web1");
    }
    {
        let _link = container.link(30001);
        let log = Log::from_now();
        assert_eq!(
            ssh(30001, "cat /proc/self/cgroup").ok(),
            sh(format!("nsenter -t {} -C cat /proc/{0}/cgroup", container.leader)).ok()
        );
        let line = log.one_line("session opened");
        assert!(
            line.contains("/engine.slice/web1") && line.contains(&format!("of pid {}", container.leader)),
            "{line}"
        );
        assert_eq!(sh("unbitctl enter 30001 -- hostname").ok(), "web1");
        assert_eq!(
            run("sftp", &["-q", "-b", "-", "30001@node"], b"pwd\n").ok().lines().last(),
            Some("Remote working directory: /containers/30001")
        );
        assert_eq!(ssh(30000, "hostname").ok(), "c30000");
        for user in ["root", "alice"] {
            assert_eq!(ssh(user, "hostname").ok(), "node");
        }
    }
    // A relative link, and one through a link that root made.
    let relative = format!("../..{}", container.group());
    {
        let _link = Link::to(30001, &relative);
        assert_login_in(&container, "web1");
    }
    {
        let _gone = AtEnd(|| drop(fs::remove_file("/srv/groups")));
        sh("ln -s /sys/fs /srv/groups").ok();
        let _link = Link::to(30001, &container.group().replace("/sys/fs", "/srv/groups"));
        assert_login_in(&container, "web1");
    }
    assert_eq!(ssh(30001, "hostname").ok(), "c30001");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_link_that_leads_to_no_container() {
    let container = Engine::new("web1").start();
    let group = container.group();
    let top = group[..group.find("/engine.slice").unwrap()].to_owned();
    let own_directory = format!("{top}/system"); // tests/node/enter
    for (target, sentence, cause) in [
        ("/etc/passwd", BAD_LINK, "\"passwd\" is not a directory"),
        (&format!("{group}/cgroup.procs"), BAD_LINK, "\"cgroup.procs\" is not a directory"),
        ("/srv", BAD_LINK, "its link leads to /srv, which is not a cgroup"),
        ("/srv/no/such", BAD_LINK, "\"no\" does not exist"),
        (&format!("{top}/engine.slice/stopped"), NOT_RUNNING, "there is no cgroup \"stopped\""),
        (&top, BAD_LINK, "the root cgroup of a hierarchy"),
        (&own_directory, BAD_LINK, "is in that cgroup itself"),
        ("30001", BAD_LINK, "more than 40 symbolic links"),
    ] {
        let _link = Link::to(30001, target);
        assert_refused(sentence, cause);
    }
    let theirs = "install -d -o 30001 /srv/theirs && ln -sfn /sys/fs /srv/theirs/fs";
    let _gone = AtEnd(|| drop(sh("rm -rf /srv/theirs /srv/fs")));
    for (spoil, target, cause) in [
        (theirs, group.replace("/sys/fs", "/srv/theirs/fs"), "\"theirs\" has mode 40755 and belongs to uid 30001"),
        (
            "ln -sfn /sys/fs /srv/fs && chown -h 30001 /srv/fs",
            group.replace("/sys/fs", "/srv/fs"),
            "symbolic link that belongs to uid 30001",
        ),
        ("chmod 777 /etc/unbit", group.clone(), "\"unbit\" has mode 40777"),
        ("chown 30001 /etc/unbit", group.clone(), "\"unbit\" has mode 40755 and belongs to uid 30001"),
        ("chown -h 30001 /etc/unbit/30001", group.clone(), "/etc/unbit/30001 is not a symbolic link that root owns"),
        (
            "rm /etc/unbit/30001; touch /etc/unbit/30001",
            group.clone(),
            "/etc/unbit/30001 is not a symbolic link that root owns",
        ),
        ("mkdir /etc/unbit/30001.root-is-trusted", group.clone(), "30001.root-is-trusted is not a regular file"),
        (
            "touch /etc/unbit/30001.root-is-trusted; chmod 666 /etc/unbit/30001.root-is-trusted",
            group.clone(),
            "has mode 100666",
        ),
    ] {
        let _link = Link::to(30001, &target);
        sh(spoil).ok();
        assert_refused(BAD_LINK, cause);
        sh("chown 0:0 /etc/unbit && chmod 755 /etc/unbit").ok();
    }
    assert_honest_logins();
}

/// Processes of the node's own in a group: `--pid=host`, or an engine's that is about to start a
/// container.
#[test]
#[ignore = "needs the node: make test"]
fn a_group_without_a_container() {
    let mut container = Engine::new("web1").start();
    let group = container.group();
    let _link = container.link(30001);
    container.stop();
    assert_refused(NOT_RUNNING, "/engine.slice/web1 has no processes");
    let mut host = Command::new("sleep").arg("86400").spawn().unwrap();
    let pid = host.id();
    let _end = AtEnd(|| drop((host.kill(), host.wait())));
    sh(format!("echo {pid} >{group}/cgroup.procs")).ok();
    assert_refused(
        NO_PID_NAMESPACE,
        &format!("such as {pid}, but none in a pid namespace that is a direct child of the node's"),
    );
}

/// A slice, a pod: nobody can tell whose the login is.
#[test]
#[ignore = "needs the node: make test"]
fn a_group_of_two_containers() {
    let (one, two) = (Engine::new("web1").start(), Engine::new("web2").start());
    let slice = one.group().replace("/web1", "");
    let _link = Link::to(30001, &slice);
    assert_refused(TWO, "has processes of more than one container, such as ");
    drop(two);
    assert_login_in(&one, "web1");
}

/// A container inside the container is no second one.
#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_has_containers() {
    let nested = "setpriv --bounding-set=-sys_ptrace bash -c 'for i in 1 2 3; do unshare --pid --fork sleep 86400 & done; exec -a web sleep 86400'";
    let container = Engine::new("web1").running(nested, "sleep").start();
    let _link = container.link(30001);
    let members = || fs::read_to_string(format!("{}/cgroup.procs", container.group())).unwrap();
    eventually("the nested ones", || (members().lines().count() == 8).then_some(()));
    assert_login_in(&container, "web1");
}

/// Until an engine has executed the container's own program, its pid 1 is root of the node in the
/// node's files.
#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_is_still_starting() {
    // bash is the node's: this pid 1 goes to the container's root directory, and executes nothing
    // there itself.
    let pivot = "cd /ns; pivot_root . .old_root; umount -l /.old_root; touch /tmp/pivoted; sleep 86400; exit";
    let container = Engine::new("web1").after(pivot).running("false", "bash").start();
    let _link = container.link(30001);
    let pivoted = format!("/proc/{}/root/tmp/pivoted", container.leader);
    eventually("its root directory", || fs::exists(&pivoted).unwrap().then_some(()));
    assert_refused(STARTING, "runs a program that is not on a mount of its own yet");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_is_paused() {
    let container = Engine::new("web1").start();
    let _link = container.link(30001);
    let mut tried = 0;
    for group in container.groups() {
        let (freeze, thaw) = if fs::exists(format!("{group}/cgroup.freeze")).unwrap() {
            (
                format!("echo 1 >{group}/cgroup.freeze; until grep -q 'frozen 1' {group}/cgroup.events; do :; done"),
                format!("echo 0 >{group}/cgroup.freeze"),
            )
        } else if fs::exists(format!("{group}/freezer.state")).unwrap() {
            (
                format!("echo FROZEN >{group}/freezer.state; until grep -q FROZEN {group}/freezer.state; do :; done"),
                format!("echo THAWED >{group}/freezer.state"),
            )
        } else {
            continue;
        };
        let _thaw = AtEnd(|| drop(sh(&thaw)));
        sh(freeze).ok();
        assert_refused(PAUSED, "/engine.slice/web1 is frozen");
        let purge = sh("unbitctl remove 30001 --purge --yes").failed();
        assert!(purge.contains("30001 is a container of another engine") && purge.contains("may run"), "{purge}");
        tried += 1;
    }
    if tried == 0 {
        not_tried(format!("no freezer in {:?}", container.groups()), true);
    }
    assert_login_in(&container, "web1");
}

/// What a container's root does to keep a login waiting keeps out nobody but its own users.
#[test]
#[ignore = "needs the node: make test"]
fn many_processes_and_many_groups() {
    let container = Engine::new("web1").start();
    let group = container.group();
    let _link = container.link(30001);
    // Each of them is looked at, which takes a busy machine longer than 3 s.
    let patient = with_option("timeout=30");
    {
        // All are children of a process of the container's, and end with it.
        let fork = format!(
            "echo $$ >{group}/cgroup.procs; exec nsenter -t {} -m -p setpriv --bounding-set=-sys_ptrace perl -e 'for (1..5000) {{ fork or do {{ sleep 86400; exit }} }} $| = 1; print qq(done\\n); sleep 86400'",
            container.leader
        );
        let mut many = Command::new("bash").args(["-c", &fork]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let stdout = many.stdout.take().unwrap();
        let _end = AtEnd(|| {
            drop(sh(format!("nsenter -t {} -m -p pkill -KILL perl", container.leader)));
            drop((many.kill(), many.wait()));
        });
        let mut said = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut said).unwrap();
        assert_eq!(said, "done\n");
        let members = fs::read_to_string(format!("{group}/cgroup.procs")).unwrap().lines().count();
        assert!(members > 5000, "{members}");
        assert_login_in(&container, "web1");
    }
    let make = |script: &str| {
        sh(format!("cd {group} && perl -e '{script}'")).ok();
        AtEnd({
            let group = group.clone();
            move || sh(format!("find {group} -mindepth 1 -depth -type d -delete")).ok().clear()
        })
    };
    {
        let _groups = make("for $a (1..100) { mkdir $a; for $b (1..199) { mkdir qq($a/$b) or die $! } }");
        let log = Log::from_now();
        assert_login_in(&container, "web1");
        println!("20000 groups: {}", log.one_line("session opened"));
    }
    {
        // 100 times 200 letters, where a path has 4096.
        let _deep = make("for (1..100) { $n = q(x) x 200; mkdir $n or die $!; chdir $n or die $! }");
        assert_login_in(&container, "web1");
    }
    {
        let _nested = make("for (1..3000) { mkdir q(n) or die $!; chdir q(n) or die $! }");
        assert_login_in(&container, "web1");
    }
    drop(patient);
    {
        let _too_many = make("for $a (1..200) { mkdir $a; for $b (1..170) { mkdir qq($a/$b) or die $! } }");
        let log = Log::from_now();
        let done = ssh(30001, "hostname");
        assert_eq!(done.status, Some(255), "{done:?}");
        let line = log.one_line("refused:");
        let by_number = done.err.contains(TOO_MANY_GROUPS) && line.contains("more than 32768 cgroups");
        let by_time = done.err.contains(SLOW) && line.contains("no time left");
        assert!(by_number || by_time, "{done:?} {line}");
        assert_eq!(ssh(30000, "hostname").ok(), "c30000");
    }
    assert_login_in(&container, "web1");
}

#[test]
#[ignore = "needs the node: make test"]
fn threaded_groups() {
    let threads = "python3 -c 'import threading, time; [threading.Thread(target=time.sleep, args=(86400,)).start() for _ in range(3)]'";
    let container =
        Engine::new("web1").running(&format!("setpriv --bounding-set=-sys_ptrace {threads}"), "python3").start();
    let group = container.group();
    if !fs::exists(format!("{group}/cgroup.type")).unwrap() {
        return not_tried("no v2 cgroup in this layout", true);
    }
    let _link = container.link(30001);
    let threaded = format!("mkdir {group}/t && echo threaded >{group}/t/cgroup.type");
    if let Done { status: Some(1), err, .. } = sh(&threaded) {
        return not_tried(format!("a group with controllers has no threaded one: {err}"), true);
    }
    let thread = eventually("its threads", || {
        let threads = sh(format!("ls /proc/{}/task | tail -n 1", container.leader)).ok();
        (threads != container.leader).then_some(threads)
    });
    sh(format!("echo {thread} >{group}/t/cgroup.threads")).ok();
    assert_login_in(&container, "web1");
    let _threaded = Link::to(30001, &format!("{group}/t"));
    assert_refused(BAD_LINK, "the link leads to a threaded cgroup");
}

/// Its processes come and go, in groups that come and go, while it is searched.
#[test]
#[ignore = "needs the node: make test"]
fn processes_and_groups_that_come_and_go() {
    let container = Engine::new("web1").start();
    let (group, pid_1) = (container.group(), &container.leader);
    let _link = container.link(30001);
    let busy = [
        format!(
            "echo $$ >{group}/cgroup.procs; exec nsenter -t {pid_1} -m -p setpriv --bounding-set=-sys_ptrace bash -c 'while :; do /bin/true; done'"
        ),
        format!(
            "cd {group}; while :; do mkdir a a/b c; echo $BASHPID >c/cgroup.procs; rmdir a/b; rmdir a; echo $BASHPID >cgroup.procs; rmdir c; done 2>/dev/null"
        ),
    ];
    let mut busy = busy.map(|script| Command::new("bash").args(["-c", &script]).spawn().unwrap());
    let _end = AtEnd(|| {
        for process in &mut busy {
            drop((process.kill(), process.wait()));
        }
        drop(sh(format!("nsenter -t {pid_1} -m -p pkill -KILL bash; find {group} -mindepth 1 -depth -type d -delete")));
    });
    for _ in 0..40 {
        assert_eq!(ssh(30001, "hostname").ok(), "web1", "{}", Log::all().lines().last().unwrap_or_default());
    }
}

/// A root process of another container goes to the linked group, as it can if it sees the hierarchy
/// and has no cgroup namespace of its own.
#[test]
#[ignore = "needs the node: make test"]
fn a_process_of_another_container_in_the_linked_group() {
    let mut victim = Engine::new("web1").start();
    let group = victim.group();
    let bind = "mount --rbind /sys /ns/sys";
    // Every line that it is told is a shell command, done by its root.
    let listen = "setpriv --bounding-set=-sys_ptrace bash -c 'rm -f /containers/30000/orders; mkfifo /containers/30000/orders; exec 3<>/containers/30000/orders; while read -r order <&3; do eval \"$order\" 2>>/containers/30000/said; done'";
    let intruder = Engine::new("other").unsharing("-m -p -i -u -n").after(bind).running(listen, "bash").start();
    let order = |order: String| {
        eventually("its fifo", || fs::exists("/containers/30000/orders").unwrap().then_some(()));
        fs::write("/containers/30000/orders", format!("{order}\n")).unwrap();
    };
    let members = || fs::read_to_string(format!("{group}/cgroup.procs")).unwrap();
    let _link = victim.link(30001);
    assert_login_in(&victim, "web1");
    {
        order(format!("sleep 86400 & echo $! >{group}/cgroup.procs"));
        eventually("the intruder", || (members().lines().count() == 3).then_some(()));
        assert_refused(TWO, "has processes of more than one container");
    }
    victim.stop();
    assert_eq!(members().lines().count(), 1);
    assert_refused(NOT_TRUSTED, "its pid 1 is not in the cgroup that the link leads to");
    order(format!("echo 1 >{group}/cgroup.procs; echo \"pid 1 was moved: $?\" >&2"));
    let said = || fs::read_to_string("/containers/30000/said").unwrap_or_default();
    eventually("what became of the order", || said().contains("pid 1 was moved").then_some(()));
    assert!(members().lines().any(|pid| pid == intruder.leader), "{} in {:?}: {}", intruder.leader, members(), said());
    assert_refused(NOT_TRUSTED, "it has no cgroup namespace of its own, and can be root");
    drop(intruder);
    drop((fs::remove_file("/containers/30000/orders"), fs::remove_file("/containers/30000/said")));
}

/// Without a cgroup namespace, but never root: a unit with `User=` and `NoNewPrivileges=`.
#[test]
#[ignore = "needs the node: make test"]
fn who_can_never_be_root_needs_no_cgroup_namespace() {
    let user = "setpriv --reuid 30001 --regid 30001 --clear-groups --no-new-privs --bounding-set=-sys_ptrace";
    let container =
        Engine::new("web1").unsharing("-m -p -i -u -n").running(&format!("{user} sleep 86400"), "sleep").start();
    let _link = container.link(30001);
    assert_login_in(&container, "web1");
    drop(container);
    let user = user.replace(" --no-new-privs", "");
    let container =
        Engine::new("web1").unsharing("-m -p -i -u -n").running(&format!("{user} sleep 86400"), "sleep").start();
    let _link = container.link(30001);
    assert_refused(NOT_TRUSTED, "it has no cgroup namespace of its own, and can be root");
}

/// Root inside with CAP_SYS_PTRACE reaches the node's files by the program of a session.
#[test]
#[ignore = "needs the node: make test"]
fn a_container_whose_root_can_ptrace_needs_the_trust_file() {
    // What the session runs is sshd, a file of the node's.
    let open_program = |container: &Container| {
        let session = supervision::SupervisedSession::start("30001", &[], "traced");
        let inside = sh(format!("awk '/^NSpid/ {{ print $3 }}' /proc/{}/status", session.first)).ok();
        sh(format!(
            "nsenter -t {} -a setpriv --bounding-set=$(awk '/^CapBnd/ {{ print ($2 ~ /f7ffff$/) ? \"-sys_ptrace\" : \"+sys_ptrace\" }}' /proc/{0}/status) head -c 4 /proc/{inside}/exe",
            container.leader
        ))
    };
    {
        let container = Engine::new("web1").start();
        let _link = container.link(30001);
        let done = open_program(&container);
        assert!(done.failed().contains("Permission denied"), "root inside without CAP_SYS_PTRACE");
        let _su = join_now("su");
        assert_eq!(sh("su 30001 -c hostname").ok(), "web1");
    }
    let container = Engine::new("web1").running("sleep 86400", "sleep").start();
    let _link = container.link(30001);
    assert_refused(TOO_MUCH_POWER, "/etc/unbit/UID.root-is-trusted does not exist");
    let _trust = trust(30001);
    assert_login_in(&container, "web1");
    assert_eq!(open_program(&container).ok(), "\x7fELF", "what the trust is about");
    let _su = join_now("su");
    let log = Log::from_now();
    let done = sh("su 30001 -c hostname");
    assert!(done.status != Some(0) && done.out.is_empty() && done.err.contains(TOO_MUCH_POWER), "{done:?}");
    log.one_line("could trace an application that enters by join=now");
}

/// systemd gives a process the name of the unit's program in brackets until it executes that, and
/// takes its capabilities away meanwhile.
#[test]
#[ignore = "needs the node: make test"]
fn a_unit_that_systemd_has_not_started_yet() {
    let copy = "cp /bin/sleep '/ns/tmp/(sleep)'";
    let container = Engine::new("web1").after(copy).running("'/tmp/(sleep)' 86400", "(sleep)").start();
    let _link = container.link(30001);
    assert_refused("is starting. Please try again in a moment.", "its root can have CAP_SYS_PTRACE");
}

/// Rule 7: a session must be in pid 1's root directory.
#[test]
#[ignore = "needs the node: make test"]
fn a_pid_1_in_a_chroot() {
    let container = Engine::new("web1").after("exec chroot /ns setpriv --bounding-set=-sys_ptrace sleep 86400").start();
    let _link = container.link(30001);
    assert_refused(NOT_TRUSTED, "its pid 1's root directory is not the root of its mount namespace (chroot)");
}

/// What Docker's and podman's default profiles deny a process without capabilities fails in a
/// session, if pid 1 has a filter; and in a session of a pid 1 without one it does not fail for
/// that reason.
#[test]
#[ignore = "needs the node: make test"]
fn a_pid_1_with_a_filter_of_system_calls() {
    let tool = tenant::install_program(30001, "filtered");
    // That fail otherwise where a user without capabilities makes them without a filter: the
    // witness that it is the filter's doing.
    let witnesses = [
        libc::SYS_add_key,
        libc::SYS_io_uring_setup,
        libc::SYS_keyctl,
        libc::SYS_pidfd_getfd,
        libc::SYS_process_vm_readv,
        libc::SYS_ptrace,
        libc::SYS_request_key,
        libc::SYS_setns,
        libc::SYS_unshare,
    ];
    let others = [
        libc::SYS_bpf,
        libc::SYS_mount,
        libc::SYS_open_by_handle_at,
        libc::SYS_open_tree,
        libc::SYS_perf_event_open,
        libc::SYS_umount2,
        libc::SYS_userfaultfd,
    ];
    let numbers = |calls: &[i64]| calls.iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
    let errnos = |calls: &[i64]| {
        let done = ssh(
            30001,
            &format!("{tool} calls {}; unshare --user true; grep ^Seccomp: /proc/self/status", numbers(calls)),
        );
        let text = done.out;
        let (mode, errnos): (Vec<_>, Vec<_>) =
            text.lines().map(str::to_owned).partition(|line| line.starts_with("Seccomp"));
        (mode.concat(), errnos, done.err)
    };
    {
        let container = Engine::new("web1").start();
        let _link = container.link(30001);
        let (mode, errnos, _) = errnos(&witnesses);
        assert_eq!(mode, "Seccomp:\t0");
        let denied: Vec<_> = errnos.iter().filter(|line| line.ends_with(&format!(" {}", libc::EPERM))).collect();
        assert_eq!(denied, [""; 0], "the witness, without a filter");
    }
    for users in [None, Some(Users::usual())] {
        let filtered = format!("{tool} setpriv --bounding-set=-sys_ptrace sleep 86400");
        let container = Engine { users, ..Engine::new("web1").running(&filtered, "sleep") }.start();
        let _link = container.link(30001);
        let (mode, errnos, err) = errnos(&[&witnesses[..], &others].concat());
        assert_eq!(mode, "Seccomp:\t2");
        assert_eq!(errnos.len(), witnesses.len() + others.len(), "{errnos:?}");
        let allowed: Vec<_> = errnos.iter().filter(|line| !line.ends_with(&format!(" {}", libc::EPERM))).collect();
        assert_eq!(allowed, [""; 0]);
        assert!(err.contains("unshare failed: Operation not permitted"), "{err}");
        // What people do in a session goes on.
        assert_eq!(ssh(30001, "ls / | head -n 1; bash -c 'echo x | cat'").ok().lines().last(), Some("x"));
        assert_eq!(sh("unbitctl enter 30001 -- hostname").ok(), "web1");
    }
}

/// Restarts under logins: each is in the container or refused.
#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_restarts_while_people_log_in() {
    let mut container = Some(Engine::new("web1").start());
    let _link = container.as_ref().unwrap().link(30001);
    let (mut inside, mut refused) = (0, 0);
    for _ in 0..6 {
        std::thread::scope(|scope| {
            let logins: Vec<_> =
                (0..4).map(|_| scope.spawn(|| ssh(30001, "hostname; grep ^CapBnd /proc/self/status"))).collect();
            drop(container.take());
            container = Some(Engine::new("web1").start());
            for login in logins {
                let done = login.join().unwrap();
                match done.status {
                    Some(255) if done.out.is_empty() => refused += 1,
                    // One whose container ends may be cut off at any point.
                    _ => {
                        assert!(done.out.is_empty() || done.out.starts_with("web1\n"), "{done:?}");
                        assert!(!done.out.contains("CapBnd:\t000001ffffffffff"), "{done:?}");
                        inside += 1;
                    }
                }
            }
        });
    }
    println!("{inside} inside, {refused} refused");
    assert_login_in(&container.unwrap(), "web1");
}

/// Root of a container can make set-user-ID programs that root owns, and what it makes in the
/// account's directory is a file of the node's. There another user of the node would run it:
/// CVE-2021-41091. A mount with its ids mapped gives root of a user namespace the node's ids in
/// that directory, and so the same: CVE-2025-64507. Mount options of /containers keep the node's
/// users from that.
#[test]
#[ignore = "needs the node: make test"]
fn a_set_user_id_program_of_a_containers_root_gives_nobody_on_the_node_more_power() {
    // open_tree(2), mount_setattr(2) and move_mount(2), in the container's mount namespace. 9 is
    // its user namespace.
    let map_ids = r#"my ($at, $home) = (-100, "/containers/30001\0");
        my $tree = syscall(428, $at, $home, 1 | 0x80000); $tree >= 0 or die "open_tree: $!";
        my $map = pack "Q4", 0x100000, 0, 0, 9; my $empty = "\0";
        syscall(442, $tree, $empty, 0x1000, $map, 32) == 0 or die "mount_setattr: $!";
        syscall(429, $tree, $empty, $at, $home, 4) == 0 or die "move_mount: $!""#;
    let as_alice = |command: &str| sh(format!("setpriv --reuid alice --regid alice --clear-groups {command}"));
    let run_it = || as_alice("/containers/30001/root-cat /proc/self/status");
    let has_power = || run_it().ok().contains("Uid:\t1000\t0\t0\t0");
    let can_read = || as_alice("head -c 1 /containers/30001/device").status == Some(0);
    for engine in [Engine::new("web1"), Engine::new("web1").with_users(Users::usual())] {
        let _made = AtEnd(|| drop(sh("rm -f /containers/30001/root-cat /containers/30001/device")));
        let container = engine.start();
        let leader = &container.leader;
        let has_users = engine.users.is_some();
        if has_users {
            let script = "exec nsenter -t $1 -m perl -e \"$0\" 9</proc/$1/ns/user";
            let mapped = run("bash", &["-c", script, map_ids, leader], b"");
            if mapped.err.starts_with("mount_setattr") {
                return not_tried("this kernel maps no ids of a mount of tmpfs, Linux 6.3 does", true);
            }
            mapped.ok();
        }
        let inside = |command: &str| sh(format!("nsenter -a -t {leader} sh -c 'cd /containers/30001 && {command}'"));
        inside("install -m 4755 /bin/cat root-cat").ok();
        assert_eq!(inside("mknod -m 666 device c 1 5").status == Some(0), !has_users, "root of the node alone");
        assert!(has_power() && can_read() != has_users, "the witness: without the options it has root's power");
        sh("mount --bind /containers /containers && mount -o remount,bind,nosuid,nodev /containers").ok();
        let _back = AtEnd(|| drop(sh("umount /containers").ok()));
        assert!(!has_power(), "{:?}", run_it());
        assert!(!can_read(), "a device");
    }
}

/// In the place of the container's /proc is something of its root's making, which waits for whoever
/// opens a file of it. Root would take what it reads there for the kernel's word, and what it
/// writes there would bind nobody: CVE-2015-1334, CVE-2023-28642, CVE-2025-52881.
#[test]
#[ignore = "needs the node: make test"]
fn a_container_whose_proc_is_not_the_kernels() {
    const OWN: &str = "attr/current attr/exec attr/apparmor/current attr/apparmor/exec cgroup status stat mountinfo mounts uid_map gid_map \
        setgroups loginuid oom_score_adj timerslack_ns limits";
    let container = Engine::new("web1").start();
    let made = format!(
        "mount -t tmpfs none /proc; cd /proc; umask 0
        for own in self thread-self 1; do
            mkdir -p $own/attr/apparmor $own/ns $own/fd; for file in {OWN}; do mkfifo $own/$file; done
            for kind in mnt pid net ipc uts user cgroup; do mkfifo $own/ns/$kind; done
        done
        mkfifo mounts filesystems"
    );
    sh(format!("nsenter -m -t {} bash -ec '{made}'", container.leader)).ok();
    let _link = container.link(30001);
    let witness = sh(format!("nsenter -m -t {} timeout 1 cat /proc/self/cgroup || echo $?", container.leader));
    assert_eq!(witness.ok(), "124", "the witness: who opens one waits");
    for options in [&["-q"][..], &["-q", "-tt"]] {
        let done = run("ssh", &[options, &["30001@node", "hostname; echo $UID"]].concat(), b"");
        assert_eq!(done.ok().replace('\r', ""), "web1\n30001", "{}", Log::all().lines().last().unwrap_or_default());
    }
    assert_eq!(sh("unbitctl enter 30001 -- hostname").ok(), "web1");
    sh("unbitctl check 30001").ok();
}
