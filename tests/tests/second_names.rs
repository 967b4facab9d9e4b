//! Second names: root's link `/containers/web1 -> 30001`. By that name sshd and su lead into
//! container 30001, and the log has both names.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use unbit_tests::*;

const NODE_NOT_SET_UP: &str = "Container web1 cannot be entered: this node is not set up for it.";

/// What a session says of where it is and who it is.
const WHERE: &str = "echo $(hostname) $(id -u):$(id -G) $HOME $USER $LOGNAME";

#[track_caller]
fn assert_inside(user: &str) {
    let log = Log::from_now();
    let done = ssh(user, WHERE);
    assert_eq!(
        done.out.trim(),
        format!("c30001 30001:30001 /containers/30001 {user} {user}"),
        "{done:?}\n{}",
        log.text()
    );
}

/// sshd with these options, until this is dropped.
fn sshd_with(options: &str) -> AtEnd<impl FnMut()> {
    sh(format!("node-sshd restart {options}")).ok();
    AtEnd(|| drop(sh("node-sshd restart").ok()))
}

#[test]
#[ignore = "needs the node: make test"]
fn a_login_by_a_second_name_is_in_the_container() {
    let _names = [second_name("web1", "30001"), second_name("_web-1", "30001")];
    for user in ["web1", "_web-1", "30001"] {
        assert_inside(user);
        for port in ["-P22", INTERNAL_SFTP] {
            let out = run("sftp", &["-q", "-b", "-", port, &format!("{user}@node")], b"pwd\n").ok();
            assert!(out.contains("Remote working directory: /containers/30001"), "{out}");
        }
        sh(format!("echo hello >/tmp/sent; scp -q /tmp/sent {user}@node: && rm /containers/30001/sent")).ok();
        assert_eq!(ssh(user, "exit 42").status, Some(42));
        assert!(
            run("ssh", &["-tt", &format!("{user}@node"), WHERE], b"").out.starts_with("c30001 30001:30001"),
            "{user}"
        );
    }
    let session = Session::open("web1", &[], 1801);
    assert_eq!(namespaces(&session.process), namespaces(&leader(30001)));
    let monitor = fs::read_to_string(format!("/proc/{}/cmdline", session.monitor())).unwrap();
    assert!(monitor.contains(": web1 ["), "{monitor}");
    drop(session);
    assert_eq!(ssh("web2", "true").status, Some(255));
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_log_has_both_names() {
    let _name = second_name("web1", "30001");
    let _debug = with_option("debug");
    let log = Log::from_now();
    ssh("web1", "true").ok();
    eventually("its end", || (!log.lines("session closed").is_empty()).then_some(()));
    let lines = log.lines("");
    assert!(lines.len() >= 5, "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains(": container 30001 (web1): ")), "{lines:#?}");
    assert!(
        log.one_line("session opened")
            .contains("container 30001 (web1): session opened from 127.0.0.1 with ssh-ed25519")
    );
    assert!(log.one_line("session closed").contains("container 30001 (web1): session closed after "));
    // A refusal too; the user reads the name that they know.
    let wrong = linked::Link::to(30001, "/sys/fs/cgroup/no-such-group");
    assert_user_refused(
        "web1",
        "Container web1 cannot be entered: this node has a wrong link to it.",
        "container 30001 (web1) refused: ",
    );
    drop(wrong);
    let _without = without_line("auth");
    let log = Log::from_now();
    assert_ne!(ssh("web1", &format!("touch {HOST_MARKER}")).status, Some(0));
    assert!(!fs::exists(HOST_MARKER).unwrap(), "a session on the node");
    let line = log.one_line("refused:");
    assert!(line.contains("(sshd:session): container 30001 (web1) refused: is the auth line"), "{line}");
}

#[test]
#[ignore = "needs the node: make test"]
fn sessions_are_counted_together() {
    let _name = second_name("web1", "30001");
    let _one = with_option("sessions=1");
    let _session = Session::open("web1", &[], 1802);
    let log = Log::from_now();
    let done = ssh(30001, "true");
    assert!(done.err.contains("Container 30001 has too many open sessions."), "{done:?}\n{}", log.text());
}

#[test]
#[ignore = "needs the node: make test"]
fn keys_are_found_by_the_home_or_by_the_name() {
    let _name = second_name("web1", "30001");
    let _keys = AtEnd(|| drop(sh("rm -rf /etc/ssh/keys")));
    sh("mkdir /etc/ssh/keys && cp /root/.ssh/id_ed25519.pub /etc/ssh/keys/web1").ok();
    {
        let _sshd = sshd_with("-o AuthorizedKeysFile=/etc/ssh/keys/%u");
        assert_inside("web1");
        assert_eq!(ssh(30001, "true").status, Some(255), "%u is the name in use");
    }
    let _sshd = sshd_with("-o AuthorizedKeysFile=%h/.ssh/uwsgi_authorized_keys");
    assert_inside("web1");
    assert_inside("30001");
}

/// As nss-unbit(8) says: a rule about users is about the name in use, one about groups about the
/// container.
#[test]
#[ignore = "needs the node: make test"]
fn rules_of_sshd() {
    let _name = second_name("web1", "30001");
    {
        let _sshd = sshd_with("-o DenyUsers=30001");
        assert_eq!(ssh(30001, "true").status, Some(255));
        assert_inside("web1");
    }
    let _sshd = sshd_with("-o DenyGroups=30001");
    for user in ["30001", "web1"] {
        assert_eq!(ssh(user, "true").status, Some(255), "{user}");
    }
    assert_eq!(ssh(30000, "hostname").ok(), "c30000");
}

#[test]
#[ignore = "needs the node: make test"]
fn passwords_are_refused() {
    let _name = second_name("web1", "30001");
    let lines = "auth required pam_unbit.so\nauth required pam_permit.so\n";
    fs::write("/etc/pam.d/unbit-test", lines).unwrap();
    let _end = AtEnd(|| drop(fs::remove_file("/etc/pam.d/unbit-test")));
    let log = Log::from_now();
    assert_ne!(sh("pamtester unbit-test web1 authenticate </dev/null").status, Some(0));
    assert!(log.one_line("refused:").contains("container 30001 (web1) refused: a password was offered"));
    assert_eq!(sh("pamtester unbit-test alice authenticate </dev/null").status, Some(0), "the witness");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_name_in_the_nodes_own_files_comes_first() {
    let _name = second_name("web1", "30001");
    let _account = add_account("web1:x:1007:1007::/home/web1:/bin/bash");
    let log = Log::from_now();
    assert_eq!(ssh("web1", "echo $(hostname) $(id -u) $HOME").ok(), "node 1007 /home/web1");
    assert_eq!(log.lines("web1"), [""; 0], "none of this module's business");
    assert_eq!(ssh(30001, "hostname").ok(), "c30001");
}

/// A passwd line of another name with a container's uid is refused, whatever links there are to
/// something else.
#[test]
#[ignore = "needs the node: make test"]
fn a_uid_without_a_link_of_that_name_to_it_is_refused() {
    const CAUSE: &str = "uid 30001 belongs to container 30001 but not to an account of this name";
    for line in ["web1:x:30001:30001::/home/web1:/bin/bash", "Web1:x:30001:30001::/home/Web1:/bin/bash"] {
        let user = line.split(':').next().unwrap();
        let _account = add_account(line);
        assert_user_refused(user, &format!("Container {user} is not on this node."), CAUSE);
        for target in ["30000", "./30001", "30001/", "/containers/30001", "web2"] {
            let _name = second_name(user, target);
            assert_user_refused(user, &format!("Container {user} is not on this node."), CAUSE);
        }
    }
    let _name = second_name("web1", "30001");
    let _account = add_account("web1:x:30001:100::/home/web1:/bin/bash");
    assert_user_refused("web1", "Container web1 is not on this node.", CAUSE);
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_link_that_another_than_root_can_have_made_is_refused() {
    let _name = second_name("web1", "30001");
    let _mode = AtEnd(|| drop(sh("chown root:root /containers; chmod 755 /containers")));
    for (change, cause) in [
        (
            "chown -h alice /containers/web1",
            "/containers/web1 is a symbolic link to 30001, but it belongs to uid 1000, not to root",
        ),
        ("chown -h root /containers/web1; chmod 775 /containers", "/containers has mode 40775 and belongs to uid 0"),
        ("chmod 1777 /containers", "/containers has mode 41777 and belongs to uid 0"),
        ("chmod 755 /containers; chown alice /containers", "/containers has mode 40755 and belongs to uid 1000"),
    ] {
        sh(change).ok();
        assert_user_refused("web1", NODE_NOT_SET_UP, cause);
        assert_eq!(ssh(30001, "hostname").ok(), "c30001", "{change}: a number needs no link");
    }
    sh("chown root:root /containers; chmod 755 /containers").ok();
    assert_inside("web1");
}

/// Only root can do that; it must not end in a session on the node.
#[test]
#[ignore = "needs the node: make test"]
fn a_link_that_changes_during_a_login() {
    let _end = AtEnd(|| drop(sh("rm -f /containers/web1")));
    for (change, cause) in [
        ("rm /containers/web1", "could not identify user"), // pam_unix, of common-account
        ("ln -sfn 30000 /containers/web1", "the session does not belong to the user"),
    ] {
        sh("ln -sfn 30001 /containers/web1").ok();
        let _between = between_check_and_join(change);
        drop(fs::remove_file(HOST_MARKER));
        let log = Log::from_now();
        let done = ssh("web1", &format!("hostname; touch {HOST_MARKER}"));
        assert!(done.status == Some(255) && done.out.is_empty(), "{change}: {done:?}\n{}", log.text());
        assert!(!fs::exists(HOST_MARKER).unwrap(), "{change}: a session on the node");
        assert!(log.text().contains(cause), "{change}: {}", log.text());
        assert_no_session_on_the_host();
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn su_by_a_second_name() {
    let _name = second_name("web1", "30001");
    let _su = join_now("su");
    let log = Log::from_now();
    assert_eq!(sh("su web1 -c 'hostname; id -u; id -G; echo $HOME'").ok(), "c30001\n30001\n30001\n/containers/30001");
    let line = log.one_line("session opened");
    assert!(line.contains("pam_unbit(su:session): container 30001 (web1): session opened"), "{line}");
    sh("node-wait-container 30001").ok();
    let _wrong = linked::Link::to(30001, "/sys/fs/cgroup/no-such-group");
    let log = Log::from_now();
    let done = sh(format!("su web1 -c 'touch {HOST_MARKER}'"));
    assert!(done.err.contains("Container web1 cannot be entered: this node has a wrong link to it."), "{done:?}");
    assert!(log.one_line("refused:").contains("container 30001 (web1) refused: "));
    assert!(!fs::exists(HOST_MARKER).unwrap(), "a session on the node");
}

/// Step by step: whose session it is has been decided in account.
#[test]
#[ignore = "needs the node: make test"]
fn a_link_that_goes_between_account_and_session_of_another_service() {
    let _end = AtEnd(|| drop(sh("rm -f /containers/web1 /etc/pam.d/unbit-test")));
    let lines = |change: &str| {
        format!(
            "account required pam_unbit.so join=now\naccount required pam_exec.so quiet /bin/{change}\n\
             session required pam_unbit.so join=now\nsession required pam_permit.so\n"
        )
    };
    for (change, opens) in [("rm /containers/web1", false), ("ln -sfn 30000 /containers/web1", false), ("true", true)] {
        sh("ln -sfn 30001 /containers/web1").ok();
        fs::write("/etc/pam.d/unbit-test", lines(change)).unwrap();
        let log = Log::from_now();
        let done = sh("pamtester unbit-test web1 acct_mgmt open_session");
        assert_eq!(done.status == Some(0), opens, "{change}: {done:?}\n{}", log.text());
        if !opens {
            assert!(log.one_line("refused:").contains("for container 30001 (web1)"), "{}", log.text());
        }
    }
}

// unbitctl

fn unbitctl(arguments: &str) -> Done {
    sh(format!("unbitctl {arguments}"))
}

/// The lines of a check that are about accounts, names and whom sshd lets in.
fn findings(check: &str) -> Vec<String> {
    let wanted = |line: &&str| line.contains(" account ") || line.contains(" names ") || line.contains(" sshd ");
    unbitctl(check).out.lines().filter(wanted).map(str::to_owned).collect()
}

#[test]
#[ignore = "needs the node: make test"]
fn attach_gives_names_and_detach_takes_them() {
    let _end = AtEnd(|| drop(sh("rm -rf /containers/web1 /containers/www /etc/unbit")));
    // An Emperor's container, which needs no link.
    let done = unbitctl("attach 30001 --name web1 --name www");
    assert_eq!(done.status, Some(0), "{done:?}");
    assert!(done.out.starts_with("/containers/web1 -> 30001: made\n/containers/www -> 30001: made\n"), "{done:?}");
    assert!(done.out.contains("web1 is a second name of 30001, by the symbolic link /containers/web1"), "{done:?}");
    assert_eq!(sh("stat -c '%N %U' /containers/web1").ok(), "'/containers/web1' -> '30001' root");
    assert_inside("web1");
    let again = unbitctl("attach web1 --name www").ok();
    assert!(again.starts_with("/containers/www -> 30001: exists already\n"), "{again}");

    let listed = unbitctl("list").ok();
    assert!(listed.lines().any(|line| line.starts_with("30001  web1,www  uwsgi ")), "{listed}");
    assert!(listed.lines().any(|line| line.starts_with("30000  -         uwsgi ")), "{listed}");
    let json =
        unbitctl("list --json | python3 -c 'import json, sys; print([c[\"names\"] for c in json.load(sys.stdin)])'")
            .ok();
    assert_eq!(json, "[[], ['web1', 'www']]");
    assert_eq!(
        unbitctl("enter web1 -- sh -c 'hostname; id -u; echo $HOME $USER'").ok(),
        "c30001\n30001\n/containers/30001 web1"
    );
    assert_eq!(unbitctl("enter --root www -- hostname").ok(), "c30001");
    let tip = unbitctl("enter web1 ps --full").failed();
    assert!(tip.contains("unbitctl enter web1 -- ps --full"), "{tip}");

    let said = unbitctl("detach www").ok();
    assert_eq!(said, "/containers/www -> 30001: removed");
    assert_inside("web1");
    let container = linked::Engine::new("engine1").start();
    let group = container.groups().remove(0);
    let done = unbitctl(&format!("attach web1 --cgroup {group} --name www"));
    assert!(done.status == Some(0) && done.out.contains("/containers/www -> 30001: made\n"), "{done:?}");
    assert_eq!(ssh("web1", "hostname").ok(), "engine1");
    let said = unbitctl("detach 30001").ok();
    for gone in [
        "/containers/web1 -> 30001: removed",
        "/containers/www -> 30001: removed",
        &format!("/etc/unbit/30001 -> {group}: removed"),
    ] {
        assert!(said.contains(gone), "{said}");
    }
    assert_eq!(sh("getent passwd web1").status, Some(2));
    assert!(!unbitctl("list").ok().contains("NAME"), "no column without names");
    assert!(unbitctl("detach web1").failed().contains("no container has the name web1"));
}

/// Two commands give the same name at the same time.
#[test]
#[ignore = "needs the node: make test"]
fn a_name_that_another_command_has_just_given_is_not_given() {
    let _end = AtEnd(|| drop(sh("rm -f /containers/web1 /containers/www")));
    // It has a full pipe to write to, so it waits as soon as it has given the first name.
    let attach = Command::new("bash")
        .args(["-c", "head -c 65536 /dev/zero; exec unbitctl attach 30001 --name web1 --name www"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the first name", || fs::symlink_metadata("/containers/web1").ok());
    symlink("30000", "/containers/www").unwrap();
    let done = attach.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    let is_refused = done.status.code() == Some(1) && err.contains("www is a name of 30000: unbitctl detach www");
    let out = String::from_utf8_lossy(&done.stdout);
    assert!(is_refused, "{} {err} {}", done.status, out.trim_start_matches('\0'));
}

/// Between the look at whose name it is and the lock of that container.
#[test]
#[ignore = "needs the node: make test"]
fn a_name_that_has_become_anothers_is_not_detached() {
    const LOCK: &str = "/run/unbit/30001.lock";
    let _end = AtEnd(|| drop(sh(format!("rm -f /containers/web1 {LOCK}"))));
    // Who opens a FIFO to write waits for a reader.
    sh(format!("mkdir -p /run/unbit; rm -f {LOCK}; mkfifo {LOCK}; ln -s 30001 /containers/web1")).ok();
    let detach = Command::new("unbitctl").args(["detach", "web1"]).stderr(Stdio::piped()).spawn().unwrap();
    let of_it = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", detach.id())).unwrap();
    eventually("it waits for the lock", || {
        let opens = of_it("syscall").starts_with(&format!("{} ", libc::SYS_openat));
        (opens && of_it("status").contains("State:\tS")).then_some(())
    });
    sh("ln -sfn 30000 /containers/web1").ok();
    drop(fs::File::open(LOCK).unwrap());
    let done = detach.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.code() == Some(1) && err.contains("web1 is no longer a name of 30001"), "{done:?}");
    assert_eq!(sh("readlink /containers/web1").ok(), "30000");
}

#[test]
#[ignore = "needs the node: make test"]
fn attach_takes_no_name_that_is_anybodys() {
    let _end = AtEnd(|| drop(sh("rm -rf /containers/web1 /containers/taken /containers/data; chmod 755 /containers")));
    sh("ln -s 30000 /containers/taken; mkdir /containers/data").ok();
    for (name, status, cause) in [
        ("alice", 1, "alice is an account already, with the uid 1000"),
        ("root", 1, "root is an account already"),
        ("taken", 1, "taken is a name of 30000"),
        ("data", 1, "/containers/data is not a symbolic link"),
        ("Web1", 2, "a name has at most 32 lower case letters"),
        ("30002", 2, "a name has at most 32 lower case letters"),
    ] {
        let done = unbitctl(&format!("attach 30001 --name web1 --name {name}"));
        assert!(done.status == Some(status) && done.err.contains(cause), "{name}: {done:?}");
        assert!(fs::symlink_metadata("/containers/web1").is_err(), "{name}: nothing has been changed");
    }
    sh("chmod 775 /containers").ok();
    let done = unbitctl("attach 30001 --name web1");
    assert!(done.status == Some(1) && done.err.contains("/containers has mode 40775"), "{done:?}");
    assert!(fs::symlink_metadata("/containers/web1").is_err());
    assert_eq!(unbitctl("attach 30001").status, Some(2), "neither a container nor a name");
}

#[test]
#[ignore = "needs the node: make test"]
fn check_fails_where_a_login_by_the_name_fails() {
    let _end = AtEnd(|| drop(sh("rm -f /containers/web1; chown root:root /containers; chmod 755 /containers")));
    let ends_with = |cause: &str| {
        let done = unbitctl("check web1");
        assert!(done.status == Some(1) && done.out.contains("FAIL  ") && done.out.contains(cause), "{cause}: {done:?}");
        // And a login by that name does not get into the container.
        assert_ne!(ssh("web1", "hostname").out, "c30001\n", "{cause}");
    };
    ends_with("no container has the name web1");
    sh("ln -s 030001 /containers/web1").ok();
    ends_with("/containers/web1 is a symbolic link to \"030001\", which is not exactly the number of a container");
    sh("ln -sfn 30009 /containers/web1").ok();
    ends_with("there is no directory /containers/30009");
    sh("ln -sfn 30001 /containers/web1").ok();
    assert_eq!(unbitctl("check web1").status, Some(0));
    assert_inside("web1");
    sh("chown -h alice /containers/web1").ok();
    ends_with("/containers/web1 belongs to uid 1000: logins by this name are refused");
    sh("chown -h root /containers/web1; chmod 777 /containers").ok();
    ends_with("/containers has mode 40777");
    sh("chmod 755 /containers").ok();
    {
        let _account = add_account("web1:x:1007:1007::/home/web1:/bin/bash");
        ends_with("the account web1 is uid 1007 and gid 1007, not 30001's");
    }
    // sshd is asked about the name.
    let _denied = Changed::file("/etc/ssh/sshd_config", |text| format!("{text}DenyUsers web1\n"));
    assert!(findings("check web1").iter().any(|line| line.contains("DenyUsers web1: web1 is excluded")));
    assert_eq!(unbitctl("check 30001").status, Some(0));
}

#[test]
#[ignore = "needs the node: make test"]
fn check_of_the_node_looks_at_every_name() {
    let names = |want: &str| {
        let lines: Vec<_> = findings("check").into_iter().filter(|line| line.contains(" names ")).collect();
        assert!(
            if want.is_empty() { lines.is_empty() } else { lines.iter().any(|line| line.contains(want)) },
            "{want}: {lines:#?}"
        );
    };
    names("");
    let _name = second_name("web1", "30001");
    names("ok    names  ");
    {
        let _gone = second_name("gone", "30009");
        names("gone is a name of 30009, and there is no such container on this node");
    }
    {
        let _almost = second_name("www", "/containers/30001");
        names("/containers/www leads to \"/containers/30001\", and is not a second name");
    }
    {
        let _account = add_account("web1:x:1007:1007::/home/web1:/bin/bash");
        names("/etc/passwd has an account web1 too, which comes first");
    }
    let _mode = AtEnd(|| drop(sh("chmod 755 /containers")));
    sh("chmod 775 /containers").ok();
    let out = unbitctl("check").out;
    assert!(out.lines().any(|line| line.starts_with("FAIL  directories ") && line.contains("/containers is")), "{out}");
}
