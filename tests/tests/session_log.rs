//! What a login leaves in the log: one line as the session opens, with the client's address and
//! key, and one when it has ended, with how long it was. What a client or a tenant can choose in
//! them makes neither another line nor another meaning.

use std::fs;
use std::os::unix::fs::chown;
use std::time::Duration;
use unbit_tests::*;

/// The lines of ours about container 30001's sessions, once both are there.
#[track_caller]
fn lines(log: &Log) -> [String; 2] {
    eventually(format!("the end of the session in {}", log.text()), || {
        let lines = log.lines("container 30001");
        (lines.len() == 2 || pgrep(r"^sshd(-session)?: 30001 \[(priv|postauth)\]").is_none() && lines.len() > 1)
            .then_some(lines)
    })
    .try_into()
    .unwrap()
}

/// What a line says after the module's name, where nothing else may be.
fn text(line: &str) -> &str {
    assert!(line.starts_with(INFO), "{line}");
    line.split_once("pam_unbit(sshd:session): ").unwrap_or_else(|| panic!("{line}")).1
}

fn seconds(closed: &str) -> f64 {
    let number =
        text(closed).strip_prefix("container 30001: session closed after ").and_then(|rest| rest.strip_suffix(" s"));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{closed}"))
}

fn fingerprint(key: &str) -> String {
    sh(format!("ssh-keygen -l -f {key} | cut -d' ' -f2")).ok()
}

#[test]
#[ignore = "needs the node: make test"]
fn a_login_and_its_end() {
    let key = fingerprint("/root/.ssh/id_ed25519.pub");
    assert!(key.starts_with("SHA256:"), "{key}");
    let log = Log::from_now();
    ssh(30001, "sleep 1.5").ok();
    let [opened, closed] = lines(&log);
    let head = format!(
        "container 30001: session opened from 127.0.0.1 with ssh-ed25519 {key}; namespaces pid,uts,ipc,net,mnt of pid {}, cgroups ",
        leader(30001)
    );
    assert!(text(&opened).starts_with(&head), "{opened}\nand not\n{head}");
    let took = text(&opened).rsplit_once("; verified in ").and_then(|(_, took)| took.strip_suffix(" ms")?.parse().ok());
    assert!(took.is_some_and(|ms: f64| ms > 0.0 && ms < 3000.0), "{opened}");
    assert!((1.5..9.0).contains(&seconds(&closed)), "{closed}");
}

#[test]
#[ignore = "needs the node: make test"]
fn whatever_the_session_is_and_however_it_ends() {
    let key = fingerprint("/root/.ssh/id_ed25519.pub");
    let from = format!("session opened from 127.0.0.1 with ssh-ed25519 {key}; ");
    for command in [
        "echo pwd | sftp -q -b - 30001@node",
        "echo pwd | sftp -q -P 2222 -b - 30001@node",
        "ssh -tt 30001@node 'exit 3'",
        "ssh 30001@node 'kill -KILL $$'",
        "ssh -N 30001@node & WHEN_OPEN; kill $!",
        "ssh 30001@node 'sleep 1201' & WHEN_OPEN; kill -KILL $!",
    ] {
        let log = Log::from_now();
        let when_open =
            format!("until tail -c +{} {} | grep -q 'session opened'; do sleep 0.05; done", log.start() + 1, Log::FILE);
        sh(command.replace("WHEN_OPEN", &when_open));
        let [opened, closed] = lines(&log);
        assert!(opened.contains(&from), "{command}: {opened}");
        assert!((0.0..9.0).contains(&seconds(&closed)), "{command}: {closed}");
    }
    if sh("ssh alice@::1 hostname").out == "node\n" {
        let log = Log::from_now();
        ssh_to("::1", "true");
        assert!(lines(&log)[0].contains("session opened from ::1 with "), "{}", log.text());
    } else {
        not_tried("sshd is not reached by IPv6", true);
    }
    // A refusal opens nothing, and so ends nothing.
    let _option = with_option("unheard-of");
    let log = Log::from_now();
    assert_eq!(ssh(30001, "true").status, Some(255));
    eventually("sshd's own line", || log.text().contains("by PAM account configuration").then_some(()));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(log.lines("container 30001").len(), 1, "{}", log.text());
}

fn ssh_to(address: &str, command: &str) {
    run("ssh", &[&format!("30001@{address}"), command], b"").ok();
}

/// Keys of other types, each with its name and fingerprint as ssh-keygen(1) has them.
#[test]
#[ignore = "needs the node: make test"]
fn the_key_that_was_used_and_no_other() {
    let _gone = AtEnd(|| drop(sh("rm -rf /tmp/keys")));
    sh("mkdir -m 700 /tmp/keys && cd /tmp/keys && ssh-keygen -q -t rsa -b 2048 -N '' -f rsa && ssh-keygen -q -t ecdsa -N '' -f ecdsa").ok();
    let keys = sh("cat /tmp/keys/*.pub").ok();
    let _keys = Changed::file("/containers/30001/.ssh/uwsgi_authorized_keys", |text| format!("{text}{keys}\n"));
    for (name, kind) in [("rsa", "ssh-rsa"), ("ecdsa", "ecdsa-sha2-nistp256")] {
        let log = Log::from_now();
        client(&format!("/tmp/keys/{name}"), "true").ok();
        let with = format!(" with {kind} {}; ", fingerprint(&format!("/tmp/keys/{name}.pub")));
        assert!(lines(&log)[0].contains(&with), "{with}: {}", log.text());
    }
}

/// A login with this key and no other.
fn client(key: &str, command: &str) -> Done {
    let options =
        ["-F", "none", "-o", "HostKeyAlias=node", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", key];
    run("ssh", &[&options[..], &["30001@node", command]].concat(), b"")
}

/// The tenant is its own authority, by a line in its authorized_keys, and gives its certificates
/// any id that it likes.
#[test]
#[ignore = "needs the node: make test"]
fn a_certificate_cannot_forge_a_line() {
    let _gone = AtEnd(|| drop(sh("rm -rf /tmp/ca")));
    sh("mkdir -m 700 /tmp/ca && cd /tmp/ca && ssh-keygen -q -t ed25519 -N '' -f ca && ssh-keygen -q -t ed25519 -N '' -f key").ok();
    let authority = sh("cat /tmp/ca/ca.pub").ok();
    let _keys = Changed::file("/containers/30001/.ssh/uwsgi_authorized_keys", |text| {
        format!("{text}cert-authority,principals=\"30001\" {authority}\n")
    });
    const FORGED: &str = "pam_unbit(sshd:session): container 30000: session opened from 192.0.2.1";
    let forged = format!("<86>Nov 25 12:00:00 sshd[1]: {FORGED}");
    let long = "x".repeat(5000);
    for (id, serial) in [
        ("web-deploy", "42"),
        ("18446744073709551615", "18446744073709551615"),
        (&format!("a\n{forged}\n"), "7"),
        (&format!("a\r\u{1b}[2K{forged}\u{7}\u{8}\u{7f}"), "7"),
        ("a\u{202e}b\u{2066}c\u{200b}d\u{2028}e\u{85}f\u{9b}g", "7"),
        ("x\" (serial 1); namespaces none of pid 1; verified in 0.1 ms", "7"),
        (&long, "7"),
        ("", "7"),
    ] {
        let sign = run(
            "ssh-keygen",
            &["-q", "-s", "/tmp/ca/ca", "-I", id, "-z", serial, "-n", "30001", "/tmp/ca/key.pub"],
            b"",
        );
        sign.ok();
        let log = Log::from_now();
        assert_eq!(client("/tmp/ca/key", "hostname").ok(), "c30001", "{id:?}");
        let [opened, closed] = lines(&log);
        seconds(&closed);
        let opened = text(&opened);
        assert!(
            opened.starts_with("container 30001: session opened from 127.0.0.1 with ssh-ed25519-cert-v01@openssh.com "),
            "{opened}"
        );
        assert!(opened.contains(&format!("serial {serial}")), "{opened}");
        if id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') && id.len() < 100 {
            assert!(opened.contains(id), "{opened}");
        }
        // The node's syslog writes a control character of C0 as #ooo.
        let harmless = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && !text.contains("#0");
        assert!(harmless(opened), "{id:?}: {opened:?}");
        // What is the module's own stays after what is the client's, once and whole.
        let own = format!("; namespaces pid,uts,ipc,net,mnt of pid {}, cgroups ", leader(30001));
        assert_eq!(opened.matches(&own).count(), 1, "{opened}");
        assert!(opened.ends_with(" ms") && opened.rsplit_once("; verified in ").is_some(), "{opened}");
        assert!(opened.len() < 2000, "{} bytes", opened.len());
        // sshd's own line has the id too, escaped by sshd.
        let is_forged = |line: &str| line.split_once("]: ").is_some_and(|(_, said)| said.starts_with(FORGED));
        assert!(!log.text().lines().any(is_forged), "{}", log.text());
    }
}

/// The client's address is whatever the application says that it is.
#[test]
#[ignore = "needs the node: make test"]
fn an_address_cannot_forge_a_line() {
    let forged = "x\n<86>container 30000: session opened\u{1b}[1m\u{202e}";
    let log = Log::from_now();
    let rhost = format!("rhost={forged}");
    let steps = ["acct_mgmt", "setcred(PAM_ESTABLISH_CRED)", "open_session", "close_session"];
    run("pamtester", &[&["-I", &rhost, "sshd", "30001"][..], &steps].concat(), b"").ok();
    let [opened, closed] = lines(&log);
    assert!(text(&opened).starts_with("container 30001: session opened from x"), "{opened}");
    assert!(opened.is_ascii() && !opened.contains('\u{1b}') && !opened.contains("#0"), "{opened:?}");
    seconds(&closed);
    // Who comes from nowhere, without a key.
    let log = Log::from_now();
    run("pamtester", &[&["sshd", "30001"][..], &steps].concat(), b"").ok();
    let [opened, _] = lines(&log);
    assert!(text(&opened).starts_with("container 30001: session opened"), "{opened}");
}

/// For each line with the client's key that may not be used from its address. The block of
/// docs/operating.md prevents it.
#[test]
#[ignore = "needs the node: make test"]
fn a_file_of_keys_makes_sshd_log_many_lines() {
    const MANY: usize = 500;
    let file = "/containers/30001/.ssh/authorized_keys";
    let key = fs::read_to_string("/root/.ssh/id_ed25519.pub").unwrap();
    fs::write(file, format!("from=\"192.0.2.1\" {key}").repeat(MANY)).unwrap();
    let _keys = AtEnd(|| fs::remove_file(file).unwrap());
    chown(file, Some(30001), Some(30001)).unwrap();
    let logged = || {
        let log = Log::from_now();
        assert_eq!(ssh(30001, "hostname").ok(), "c30001");
        lines(&log);
        let text = log.text();
        let of_sshd: Vec<_> = text.lines().filter(|line| !line.contains("pam_unbit")).map(str::to_owned).collect();
        of_sshd
    };
    let before = logged();
    assert!(before.len() > MANY, "{before:?}");

    let page = fs::read_to_string("/unbit/docs/operating.md").unwrap();
    let block: Vec<_> = page.lines().skip_while(|line| !line.starts_with("    Match User 1*")).take(2).collect();
    let _restart = AtEnd(|| drop(sh("node-sshd restart").ok()));
    let _config = Changed::file("/etc/ssh/sshd_config.d/00-unbit.conf", |text| format!("{text}{}\n", block.join("\n")));
    sh("node-sshd restart").ok();
    assert_eq!(logged(), [""; 0]);
    let log = Log::from_now();
    ssh("alice", "true").ok();
    assert!(log.text().contains("Accepted publickey for alice"), "{}", log.text());
    let check = sh("unbitctl check");
    assert!(!check.out.contains("FAIL"), "{}", check.out);
}
