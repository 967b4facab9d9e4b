//! Logins that must not be: each is refused by pam_unbit for the reason that the test is about,
//! with one line in the log and one sentence for the user, and never a session on the host.
//! What ends at the container's socket is in `unreachable`.

use std::fs;
use unbit_tests::*;

/// sshd from 9.8 on penalises the client's address for failed authentications, and counts a refusal
/// in account as one.
#[test]
#[ignore = "needs the node: make test"]
fn refusals_keep_nobody_else_out() {
    if sh("sshd -t -o 'PerSourcePenalties authfail:0'").status != Some(0) {
        not_tried("penalties of OpenSSH: this sshd is older than 9.8", true);
        return;
    }
    sh("mv /containers/30000/run /containers/30000/away").ok();
    let _running = AtEnd(|| drop(sh("mv /containers/30000/away /containers/30000/run")));
    let ten_refusals = || {
        sh("node-sshd restart").ok();
        (0..10)
            .map(|_| ssh(30000, "true").failed())
            .filter(|error| error.contains("Container 30000 is not running."))
            .count()
    };
    let _stock = AtEnd(|| drop(sh("node-sshd restart")));
    let _on = Changed::file("/etc/ssh/sshd_config", |text| text.replace("PerSourcePenalties no\n", ""));

    let log = Log::from_now();
    let before_the_penalty = ten_refusals();
    assert!(before_the_penalty < 10, "the witness: penalties are on");
    ssh("root", "true").failed();
    assert!(log.text().contains("penalty: failed authentication"), "{}", log.text());

    let _ours = Changed::file("/etc/ssh/sshd_config.d/00-unbit.conf", |text| {
        text.replace("#PerSourcePenalties authfail:0\n", "PerSourcePenalties authfail:0\n")
    });
    assert_eq!(ten_refusals(), 10);
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn names_that_are_not_the_canonical_number() {
    for name in ["030001", "+30001", "30001a", "30001x/", "0x7531", "30001 ", "99999"] {
        let log = Log::from_now();
        let done = run("ssh", &["-l", name, "node", "touch /tmp/landed-on-the-host"], b"");
        assert!(
            done.err.contains("Permission denied (publickey)") || done.err.contains("remote username contains invalid"),
            "{name}: {done:?}"
        );
        if !done.err.contains("invalid characters") {
            assert!(log.text().contains("Invalid user"), "{name}: {}", log.text());
        }
    }
    assert_no_session_on_the_host();
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_directory_that_is_no_container_is_no_account() {
    sh("mkdir /containers/30005 && chown 30006:30005 /containers/30005").ok();
    sh("touch /containers/30007 && chown 30007:30007 /containers/30007").ok();
    let _end = AtEnd(|| drop(sh("rm -r /containers/30005 /containers/30007")));
    for name in ["30005", "30007", "30008"] {
        assert_eq!(run("getent", &["passwd", name], b"").status, Some(2), "{name}");
        let log = Log::from_now();
        assert!(ssh(name, "true").err.contains("Permission denied (publickey)"));
        assert!(log.text().contains(&format!("Invalid user {name}")), "{}", log.text());
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_line_in_passwd_makes_no_container() {
    let sentence = "is not on this node.";
    let cases = [
        // No directory at all.
        ("30009:x:30009:30009::/home/30009:/bin/bash", "the account has no directory /containers/30009 of its own"),
        // Another name than its own.
        (
            "bob:x:30001:30001::/home/bob:/bin/bash",
            "uid 30001 belongs to container 30001 but not to an account of this name",
        ),
        // A group of the host's.
        (
            "30001:x:30001:0::/home/30001:/bin/bash",
            "the name is a container's number, but the account has uid 30001 and gid 0",
        ),
        // The uid of another container.
        (
            "30000:x:30001:30001::/home/30000:/bin/bash",
            "the name is a container's number, but the account has uid 30001 and gid 30001",
        ),
    ];
    for (line, cause) in cases {
        let _account = add_account(line);
        assert_user_refused(line.split(':').next().unwrap(), sentence, cause);
    }
    // A directory of someone else's.
    let _account = add_account("30010:x:30010:30010::/home/30010:/bin/bash");
    sh("mkdir /containers/30010").ok();
    let _end = AtEnd(|| drop(sh("rmdir /containers/30010")));
    assert_user_refused("30010", sentence, "the account has no directory /containers/30010 of its own");
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn an_unknown_option() {
    {
        let _option = with_option("timout=5");
        assert_user_refused(
            "30001",
            "Container 30001 cannot be entered: this node is not set up for it.",
            "unknown option: timout=5",
        );
        assert_eq!(ssh("alice", "hostname").ok(), "node", "others do not suffer");
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_account_line_is_missing() {
    {
        let _line = without_line("account");
        let log = Log::from_now();
        let done = ssh(30001, "touch /tmp/landed-on-the-host");
        assert_ne!(done.status, Some(0), "{done:?}");
        assert!(log.one_line("refused: is the account line").contains("pam_unbit(sshd:session)"), "{}", log.text());
        assert_no_session_on_the_host();
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_auth_line_is_missing() {
    {
        let _line = without_line("auth");
        let log = Log::from_now();
        let done = ssh(30001, "touch /tmp/landed-on-the-host");
        assert_eq!(done.status, Some(255), "{done:?}");
        assert!(log.one_line("refused:").contains("is the auth line of pam_unbit.so missing?"), "{}", log.text());
        assert_no_session_on_the_host();
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_session_line_is_missing() {
    {
        let _line = without_line("session");
        for arguments in [["30001@node", "touch /tmp/landed-on-the-host"], ["-N", "30001@node"]] {
            let log = Log::from_now();
            let done = run("ssh", &arguments, b"");
            assert_eq!(done.status, Some(255), "{done:?}");
            assert!(
                log.one_line("refused:").contains("is the session line of pam_unbit.so missing?"),
                "{}",
                log.text()
            );
        }
        assert_no_session_on_the_host();
    }
    assert_honest_logins();
}

/// The C module's session line, whose control value may have libpam ignore a refusal.
#[test]
#[ignore = "needs the node: make test"]
fn a_session_line_whose_refusal_libpam_ignores() {
    for control in ["required", "requisite", "sufficient", "optional", "[default=ignore]"] {
        let of_the_session = |line: &str| {
            let line = line.strip_prefix("session").filter(|_| line.contains("pam_unbit.so"))?.trim_start();
            let arguments = line.split_once("pam_unbit.so")?.1;
            Some(format!("session {control} pam_unbit.so{arguments}\n"))
        };
        let _lines = pam_lines(|line| of_the_session(line).unwrap_or_default());
        for way in CLIENTS {
            let log = Log::from_now();
            let done = try_client(30001, way);
            assert!(![Some(0), Some(137)].contains(&done.status), "{control} {way:?}: {done:?}");
            assert!(
                log.one_line("refused:").contains("is the account line of pam_unbit.so missing?"),
                "{}",
                log.text()
            );
        }
    }
    assert_no_session_on_the_host();
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_module_is_missing() {
    let module = sh("echo /usr/lib/*/security/pam_unbit.so").ok();
    sh(format!("mv {module} /tmp/")).ok();
    {
        let _back = AtEnd(|| drop(sh(format!("mv /tmp/pam_unbit.so {module}"))));
        for user in ["root", "alice"] {
            assert_eq!(ssh(user, "hostname").ok(), "node");
        }
        let log = Log::from_now();
        assert_eq!(ssh(30001, "touch /tmp/landed-on-the-host").status, Some(255));
        assert!(log.text().contains("unable to dlopen(pam_unbit.so)"), "{}", log.text());
        assert_no_session_on_the_host();
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_without_a_cgroup_of_its_own() {
    let pid = leader(30001);
    let procs: Vec<_> =
        sh("find /sys/fs/cgroup -name cgroup.procs -path '*/30001/*'").ok().lines().map(str::to_owned).collect();
    assert!(!procs.is_empty());
    let mut members = Vec::new();
    for file in &procs {
        for pid in fs::read_to_string(file).unwrap().lines() {
            members.push((file.clone(), pid.to_owned()));
            fs::write(file.replace("/30001/", "/system/"), pid).unwrap();
        }
    }
    assert!(members.iter().any(|(_, member)| *member == pid));
    {
        let _back = AtEnd(|| {
            for (file, pid) in &members {
                let _ = fs::write(file, pid);
            }
        });
        assert_user_refused(
            "30001",
            "Container 30001 cannot be entered: its set-up failed a check.",
            "it has no cgroup of its own",
        );
        let _option = with_option("cgroup=optional");
        assert_eq!(ssh(30001, "hostname").ok(), "c30001");
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_password_is_never_asked_for() {
    let permissive =
        Changed::file(SSHD_PAM, |text| text.replace("@include common-auth", "auth sufficient pam_permit.so"));
    let extra = [
        "-o",
        "PreferredAuthentications=keyboard-interactive,password",
        "-o",
        "PubkeyAuthentication=no",
        "-o",
        "BatchMode=no",
    ];
    sh("node-sshd stop; sed -i 's/^\\(PasswordAuthentication\\|KbdInteractiveAuthentication\\).*/\\1 yes/' /etc/ssh/sshd_config.d/00-unbit.conf; node-sshd start").ok();
    let _back = AtEnd(|| {
        drop(sh(
            "node-sshd stop; sed -i 's/^\\(PasswordAuthentication\\|KbdInteractiveAuthentication\\).*/\\1 no/' /etc/ssh/sshd_config.d/00-unbit.conf; node-sshd start",
        ));
    });
    sh("printf '#!/bin/sh\\necho x\\n' >/tmp/askpass; chmod +x /tmp/askpass").ok();
    let try_as = |user: &str| {
        let script = format!(
            "SSH_ASKPASS=/tmp/askpass SSH_ASKPASS_REQUIRE=force setsid -w ssh {} {user}@node hostname",
            extra.join(" ")
        );
        sh(script)
    };
    assert_eq!(try_as("alice").ok(), "node", "the witness: a password does work");
    let log = Log::from_now();
    let done = try_as("30001");
    assert_eq!(done.status, Some(255), "{done:?}");
    assert!(log.text().contains("a password was offered; container users log in with keys"), "{}", log.text());
    drop(permissive);
    assert_no_session_on_the_host();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_service_other_than_sshd() {
    let _su = Changed::file("/etc/pam.d/su", |text| format!("session required pam_unbit.so\n{text}"));
    let log = Log::from_now();
    let done = sh("su 30001 -c 'touch /tmp/landed-on-the-host'");
    assert_ne!(done.status, Some(0), "{done:?}");
    assert!(log.one_line("refused:").contains("the service su cannot enter containers"), "{}", log.text());
    assert_eq!(sh("su alice -c 'id -un'").ok(), "alice");
    assert_no_session_on_the_host();
}

#[test]
#[ignore = "needs the node: make test"]
fn fewer_namespaces_if_the_operator_says_so() {
    let host = namespaces("self");
    let _option = with_option("namespaces=mnt,pid");
    let links = ssh(30001, "readlink /proc/self/ns/net /proc/self/ns/uts /proc/self/ns/mnt").ok();
    let links: Vec<_> = links.lines().collect();
    assert_eq!(links[..2], [&host["net"], &host["uts"]]);
    assert_ne!(links[2], host["mnt"]);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_panic_ends_the_login() {
    let module = sh("echo /usr/lib/*/security/pam_unbit.so").ok();
    sh(format!("cp {module} /tmp/sound.so && cp /unbit/target/panics/debug/libpam_unbit.so {module}")).ok();
    {
        let _back = AtEnd(|| drop(sh(format!("mv /tmp/sound.so {module}; rm -f /run/pam_unbit.panic"))));
        assert_eq!(ssh(30001, "hostname").ok(), "c30001", "the module with panics in it works until one is asked for");
        for point in ["authenticate", "acct_mgmt", "setcred", "open_session", "enter"] {
            fs::write("/run/pam_unbit.panic", point).unwrap();
            let log = Log::from_now();
            let done = match point {
                "authenticate" => sh("pamtester sshd 30001 authenticate"), // sshd does not call it for keys
                _ => ssh(30001, "touch /tmp/landed-on-the-host"),
            };
            assert_eq!(done.status, Some(255), "{point}: {done:?}");
            let line = log.one_line("internal error, login refused");
            assert!(line.contains(point), "{line}");
        }
        assert_no_session_on_the_host();
    }
    assert_honest_logins();
}

/// A refusal in setcred ends the connection for whoever holds it, and nothing else: with `sshd -e`
/// standard error is the log of all sshds.
#[test]
#[ignore = "needs the node: make test"]
fn the_log_on_standard_error_outlives_a_refusal() {
    let (log, error) = std::os::unix::net::UnixStream::pair().unwrap();
    log.set_nonblocking(true).unwrap();
    let mut sshd = std::process::Command::new("/usr/sbin/sshd")
        .args(["-D", "-e", "-p2200"])
        .stderr(std::os::fd::OwnedFd::from(error))
        .spawn()
        .unwrap();
    let _end = AtEnd(|| drop((sshd.kill(), sshd.wait())));
    let mut text = String::new();
    let mut told = |needle: &str| {
        eventually(needle, || {
            let end = std::io::Read::read_to_string(&mut &log, &mut text);
            assert!(end.is_err(), "nobody has it open any more: {text}"); // EAGAIN
            text.contains(needle).then_some(())
        });
        text.clear();
    };
    told("Server listening on");
    let login = || run("ssh", &["-p2200", "30001@node", "hostname"], b"");
    {
        let file = format!("/proc/{}/oom_score_adj", leader(30001));
        let before = fs::read_to_string(&file).unwrap();
        let _as_before = AtEnd(|| fs::write(&file, &before).unwrap());
        let _between = between_check_and_join(&format!("echo 17 >{file}"));
        let log = Log::from_now();
        assert_eq!(login().status, Some(255));
        log.one_line("the confinement of its pid 1 has changed since it was verified");
    }
    told("Accepted publickey for 30001");
    assert_eq!(login().ok(), "c30001");
    told("Accepted publickey for 30001");
}
