//! The other modules of a PAM stack. Behind our session line none has an effect for a container
//! user, whatever it does or however it fails. A line before ours does: if it is `required` and
//! fails, `success=done` ends nothing, and root runs every later module for the container's user.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use unbit_tests::*;

const PAM: &str = "/etc/pam.d/sshd";

/// Where [`WITNESS`] writes for whom it ran, and as whom. Anybody may write to it: inside a
/// container root is not above permissions.
const RAN: &str = "/containers/30001/ran";

/// The last line of a stack: a program that root runs for whoever logs in.
const WITNESS: &str =
    "session optional pam_exec.so /bin/sh -c [echo $PAM_TYPE for $PAM_USER as $(id -u) >>/containers/30001/ran]\n";

/// A stack with lines before and behind our session line, and the witness at its end.
struct Stack {
    _lines: Changed,
}

impl Stack {
    fn with(before: &str, behind: &str) -> Self {
        Self::of(PAM, before, behind)
    }

    fn of(file: &str, before: &str, behind: &str) -> Self {
        sh(format!("install -o 30001 -g 30001 -m 666 /dev/null {RAN}")).ok();
        let is_ours = |line: &str| line.starts_with("session") && line.contains("pam_unbit.so");
        let lines = Changed::file(file, |text| {
            assert_eq!(text.lines().filter(|line| is_ours(line)).count(), 1, "{text}");
            let line = |line: &str| if is_ours(line) { format!("{before}{line}\n") } else { format!("{line}\n") };
            text.lines().map(line).chain([behind.to_owned(), WITNESS.to_owned()]).collect()
        });
        Self { _lines: lines }
    }

    /// Whether the witness ran for a user, as root, since the last look.
    fn ran_for(user: &str) -> bool {
        let ran = fs::read_to_string(RAN).unwrap();
        fs::write(RAN, "").unwrap();
        ran.contains(&format!("open_session for {user} as 0\n"))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = fs::remove_file(RAN);
    }
}

/// What `unbitctl check` and `unbitctl check 30001` find wrong with the lines of PAM.
fn check() -> [Vec<String>; 2] {
    ["check", "check 30001"].map(|command| {
        let done = sh(format!("unbitctl {command}"));
        done.out.lines().filter(|line| line.starts_with("FAIL  pam ")).map(str::to_owned).collect()
    })
}

fn has_module(name: &str) -> bool {
    sh(format!("ls /usr/lib/*/security/{name}")).status == Some(0)
}

/// A module of Debian's sshd, su, login or cron.
struct Module {
    name: &'static str,
    /// Its line, made so that what it does can be seen.
    line: &'static str,
    /// Files that it reads.
    files: &'static str,
    /// A command that prints something if the module ran for `$user`, after a login whose output is
    /// in `$out`.
    seen: &'static str,
    /// Arguments with which it fails; without them it is a file that libpam cannot load.
    fails: Option<&'static str>,
}

const LOGIN: &str = "umask; ulimit -n; env";

const MODULES: [Module; 13] = [
    Module {
        name: "pam_selinux.so",
        line: "session required pam_selinux.so open debug",
        files: "",
        seen: "", // there is no SELinux in these kernels: it does nothing for anybody
        fails: None,
    },
    Module {
        name: "pam_loginuid.so",
        line: "session optional pam_loginuid.so require_auditd",
        files: "",
        // The number itself is no sign: our module writes it for container users.
        seen: "grep 'pam_loginuid(sshd:session)' $log",
        fails: Some("require_auditd"),
    },
    Module {
        name: "pam_keyinit.so",
        line: "session optional pam_keyinit.so force revoke debug",
        files: "",
        seen: "grep 'pam_keyinit(sshd:session): ' $log",
        fails: None,
    },
    Module {
        name: "pam_unix.so",
        line: "session required pam_unix.so",
        files: "",
        seen: "grep \"pam_unix(sshd:session): session opened for user $user\" $log",
        fails: None,
    },
    Module {
        name: "pam_systemd.so",
        line: "session optional pam_systemd.so debug",
        files: "",
        seen: "grep 'pam_systemd(sshd:session)' $log",
        fails: None,
    },
    Module {
        name: "pam_limits.so",
        line: "session required pam_limits.so conf=/run/stack/files.conf",
        files: "echo '* - nofile 777' >/run/stack/files.conf; echo '* - maxlogins 0' >/run/stack/logins.conf",
        seen: "grep -x 777 $out",
        fails: Some("conf=/run/stack/logins.conf"),
    },
    Module {
        name: "pam_env.so",
        line: "session required pam_env.so conffile=/run/stack/env.conf",
        files: "echo 'STACK_CONF DEFAULT=yes' >/run/stack/env.conf",
        seen: "grep STACK_CONF=yes $out",
        fails: None,
    },
    Module {
        name: "pam_env.so",
        line: "session required pam_env.so user_readenv=1",
        files: "for home in /home/alice /containers/30001; do echo 'STACK_USER DEFAULT=yes' >$home/.pam_environment; done",
        seen: "grep STACK_USER=yes $out",
        fails: None,
    },
    Module {
        name: "pam_exec.so",
        line: "session optional pam_exec.so /bin/sh -c [echo $PAM_USER >>/run/stack/exec]",
        files: "",
        seen: "grep -x $user /run/stack/exec",
        fails: Some("/bin/false"),
    },
    Module {
        name: "pam_motd.so",
        line: "session optional pam_motd.so motd=/run/motd.dynamic",
        // Debian's runs the programs of this directory, as root.
        files: "mkdir -p /etc/update-motd.d; printf '#!/bin/sh\necho ran >>/run/stack/motd\n' >/etc/update-motd.d/99-stack; chmod 755 /etc/update-motd.d/99-stack",
        seen: "[ -s /run/stack/motd ] && cat /run/stack/motd",
        fails: None,
    },
    Module {
        name: "pam_mail.so",
        line: "session optional pam_mail.so dir=/run/stack/mail",
        files: "mkdir /run/stack/mail",
        seen: "grep MAIL=/run/stack/mail/ $out",
        fails: None,
    },
    Module {
        name: "pam_lastlog.so",
        line: "session optional pam_lastlog.so",
        files: "rm -f /var/log/lastlog",
        seen: "[ -s /var/log/lastlog ] && ls /var/log/lastlog",
        fails: None,
    },
    Module {
        name: "pam_umask.so",
        line: "session optional pam_umask.so umask=0111",
        files: "",
        seen: "grep -x 0111 $out",
        fails: None,
    },
];

impl Module {
    /// Those that this release has, with their files.
    fn all() -> Vec<Self> {
        let missing: Vec<_> = MODULES.iter().map(|module| module.name).filter(|name| !has_module(name)).collect();
        if !missing.is_empty() {
            not_tried(format!("{}: not in this node's image", missing.join(", ")), true);
        }
        sh("mkdir /run/stack /run/stack/broken").ok();
        MODULES.into_iter().filter(|module| has_module(module.name)).collect()
    }

    fn clean() -> AtEnd<impl FnMut()> {
        AtEnd(|| {
            drop(sh(
                "rm -rf /run/stack /etc/update-motd.d/99-stack /home/alice/.pam_environment /containers/30001/.pam_environment",
            ))
        })
    }

    /// Its line when it fails.
    fn failing(&self) -> String {
        sh(self.files).ok();
        match self.fails {
            Some(arguments) => format!("session required {} {arguments}\n", self.name),
            None => {
                let broken = format!("/run/stack/broken/{}", self.name);
                fs::write(&broken, "").unwrap();
                format!("session required {broken}\n")
            }
        }
    }

    /// Logs somebody in, and says what is to be seen of the module afterwards.
    fn seen_by(&self, user: &str, place: &str) -> String {
        sh("rm -rf /run/stack/*; mkdir /run/stack/broken").ok();
        sh(self.files).ok();
        let log = Log::from_now();
        let out = ssh(user, &format!("hostname; {LOGIN}")).ok();
        assert_eq!(out.lines().next(), Some(place), "{}: {out}", self.name);
        let monitor = eventually("the login in the log", || {
            let text = log.text();
            let line = text.lines().find(|line| line.contains("Accepted publickey"))?;
            Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())
        });
        eventually("the end of sshd's monitor", || (!Path::new(&format!("/proc/{monitor}")).exists()).then_some(()));
        fs::write("/run/stack/out", out).unwrap();
        fs::write("/run/stack/log", log.text()).unwrap();
        sh(format!("user={user}; out=/run/stack/out; log=/run/stack/log; {}", self.seen)).out
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn behind_ours_no_module_has_an_effect_for_a_container_user() {
    let _clean = Module::clean();
    for module in Module::all().iter().filter(|module| !module.seen.is_empty()) {
        let _stack = Stack::with("", &format!("{}\n", module.line));
        let seen = module.seen_by("30001", "c30001");
        assert_eq!(seen, "", "{}", module.line);
        assert!(!Stack::ran_for("30001"), "{}", module.line);
        assert_ne!(module.seen_by("alice", "node"), "", "the witness: {}\n{}", module.line, Log::all());
        assert!(Stack::ran_for("alice"), "the witness: {}", module.line);
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn behind_ours_a_module_that_fails_has_no_effect_for_a_container_user() {
    let _clean = Module::clean();
    for module in Module::all() {
        let line = module.failing();
        let _stack = Stack::with("", &line);
        assert_eq!(ssh(30001, "hostname").ok(), "c30001", "{line}");
        assert!(!Stack::ran_for("30001"), "{line}");
        let refused = ssh("alice", "hostname");
        assert_ne!(refused.status, Some(0), "the witness: {line}");
        assert!(Stack::ran_for("alice"), "the witness: {line}");
        for found in check() {
            assert_eq!(found, [""; 0], "{line}");
        }
    }
}

/// Why `check` fails on any line before ours, and what setup makes of it.
#[test]
#[ignore = "needs the node: make test"]
fn before_ours_a_module_that_fails_has_root_run_the_rest() {
    let _clean = Module::clean();
    for module in Module::all() {
        let line = module.failing();
        let _stack = Stack::with(&line, "");
        for found in check() {
            let is_it = |found: &String| {
                found.contains("/etc/pam.d/sshd line ")
                    && found.contains(&format!("{} runs for container users", module.name))
            };
            assert_eq!(found.iter().filter(|found| is_it(found)).count(), 1, "{line}: {found:#?}");
        }
        let refused = ssh(30001, "hostname");
        assert!(refused.status != Some(0) && !refused.out.contains("c30001"), "{line}: {refused:?}");
        assert!(Stack::ran_for("30001"), "{line}: what the check is about: {}", Log::all());

        let done = sh("unbitctl setup pam");
        // It asks of each module that the file needs whether it can be loaded, and of these some
        // cannot.
        if module.fails.is_none() {
            assert!(done.err.contains("cannot be loaded"), "{line}: {done:?}");
            continue;
        }
        assert_eq!(done.status, Some(0), "{line}: {done:?}");
        assert_eq!(ssh(30001, "hostname").ok(), "c30001", "{line}");
        assert!(!Stack::ran_for("30001"), "{line}");
        for found in check() {
            assert_eq!(found, [""; 0], "{line}");
        }
        assert_ne!(ssh("alice", "hostname").status, Some(0), "{line}: it is somebody's, and stays");
    }
}

/// By Debian's own lines in their own places: pam_loginuid is the first that can fail, and comes
/// long before the common ones.
#[test]
#[ignore = "needs the node: make test"]
fn in_debians_own_stack_nothing_comes_before_ours() {
    let _stack = Stack::with("", "");
    let _fails = Changed::file(PAM, |text| text.replace("pam_loginuid.so", "pam_loginuid.so require_auditd"));
    let done = ssh(30001, "hostname");
    assert!(!Stack::ran_for("30001"), "{done:?} {}", Log::all());
    assert_eq!(done.ok(), "c30001");
    assert_ne!(ssh("alice", "hostname").status, Some(0), "the witness");
    assert!(Stack::ran_for("alice"), "the witness");
    for found in check() {
        assert_eq!(found, [""; 0]);
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_line_that_denies_everybody() {
    const DENY: &str = "session required pam_deny.so\n";
    {
        let _stack = Stack::with("", DENY);
        assert_eq!(ssh(30001, "hostname").ok(), "c30001");
        assert!(!Stack::ran_for("30001"));
        assert_ne!(ssh("alice", "hostname").status, Some(0), "the witness");
        assert!(Stack::ran_for("alice"), "the witness");
    }
    let _stack = Stack::with(DENY, "");
    for found in check() {
        let is_it = |found: &String| found.contains("pam_deny.so refuses everybody before pam_unbit.so");
        assert!(found.iter().any(is_it), "{found:#?}");
    }
    assert_ne!(ssh(30001, "hostname").status, Some(0));
    assert!(Stack::ran_for("30001"), "what the check is about: {}", Log::all());
    sh("unbitctl setup pam").ok();
    assert_eq!(ssh(30001, "hostname").ok(), "c30001");
    assert!(!Stack::ran_for("30001"));
}

/// A limit that alice reaches at will by the sessions that she keeps open. Those of containers are
/// not in utmp, so nobody counts them.
#[test]
#[ignore = "needs the node: make test"]
fn a_tenant_reaches_no_limit_of_logins_and_has_nothing_run_for_it() {
    if sh("grep -q 'with systemd-logind' /usr/lib/*/security/pam_limits.so").status == Some(0) {
        return not_tried(
            "this release's pam_limits counts the sessions of systemd-logind, which does not run here",
            true,
        );
    }
    let limits = "session required pam_limits.so conf=/run/logins.conf\n";
    fs::write("/run/logins.conf", "* - maxlogins 1\n").unwrap();
    let _end = AtEnd(|| drop(fs::remove_file("/run/logins.conf")));
    for (before, behind) in [(limits, ""), ("", limits)] {
        let _held = Terminal::open("30001", "true", 1110);
        {
            let _stack = Stack::with(before, behind);
            let log = Log::from_now();
            let done = ssh(30001, "hostname");
            assert_eq!(done.out, "c30001\n", "{done:?} {}", log.text());
            assert!(!log.text().contains("Too many logins"), "{}", log.text());
            assert!(!Stack::ran_for("30001"));
        }
    }
    let _held = Terminal::open("alice", "true", 1111);
    let _stack = Stack::with("", limits);
    let log = Log::from_now();
    assert_ne!(ssh("alice", "hostname").status, Some(0), "the witness");
    assert!(log.text().contains("Too many logins (max 1) for alice"), "{}", log.text());
}

/// pam_env reads it in sshd's monitor, which waits for the tenant then.
#[test]
#[ignore = "needs the node: make test"]
fn a_fifo_for_an_environment_holds_nobody() {
    let _stack = Stack::with("", "session required pam_env.so user_readenv=1\n");
    for (user, home) in [("30001", "/containers/30001"), ("alice", "/home/alice")] {
        let fifo = format!("{home}/.pam_environment");
        sh(format!("mkfifo {fifo} && chown {user} {fifo}")).ok();
        let patience = if user == "alice" { 5 } else { 20 };
        let done = sh(format!("timeout {patience} ssh {user}@node hostname; [ $? != 124 ] || echo hangs"));
        // Whoever waits for it sees its end; nobody may.
        sh(format!("timeout 1 sh -c ': >{fifo}'; rm {fifo}"));
        assert_eq!(done.out, if user == "alice" { "hangs\n" } else { "c30001\n" }, "{done:?}");
    }
}

/// The services of join=now, and how somebody gets a session of each: its output is in the file.
const SERVICES: [(&str, &str); 2] = [
    ("su", "su USER -c 'echo at-$(hostname)'"),
    ("login", "(sleep 2; printf 'echo at-$(hostname)\\nexit\\n'; sleep 1) | script -qec 'login -f USER' /dev/null"),
];

const FAILS: &str = "session required pam_limits.so conf=/run/logins.conf\n";

/// What is wrong with a service's lines, as `unbitctl check` has it.
fn service_faults(service: &str) -> Vec<String> {
    let [faults, _] = check();
    faults.into_iter().filter(|fault| fault.contains(&format!("/etc/pam.d/{service} line "))).collect()
}

#[test]
#[ignore = "needs the node: make test"]
fn the_same_for_su_and_login() {
    fs::write("/run/logins.conf", "* - maxlogins 0\n").unwrap();
    let _end = AtEnd(|| drop(fs::remove_file("/run/logins.conf")));
    for (service, session) in SERVICES {
        let _ours = join_now(service);
        let file = format!("/etc/pam.d/{service}");
        let place = |user: &str| {
            let done = sh(session.replace("USER", user));
            let said = |place: &str| done.out.contains(&format!("at-{place}"));
            if said("c30001") {
                "inside"
            } else if said("node") {
                "node"
            } else {
                "nowhere"
            }
        };
        {
            let _stack = Stack::of(&file, "", "");
            assert_eq!(place("alice"), "node", "{service}: the witness");
            assert!(Stack::ran_for("alice"), "{service}: the witness");
        }
        {
            let _stack = Stack::of(&file, "", FAILS);
            let expected = if service == "login" && login_reopens_its_terminal() { "nowhere" } else { "inside" };
            assert_eq!(place("30001"), expected, "{service}: {}", Log::all());
            assert!(!Stack::ran_for("30001"), "{service}");
            assert_eq!(place("alice"), "nowhere", "{service}: the witness");
            assert_eq!(service_faults(service), [""; 0]);
        }
        for before in [FAILS, "session include logins\n"] {
            fs::write("/etc/pam.d/logins", FAILS).unwrap();
            let _end = AtEnd(|| drop(fs::remove_file("/etc/pam.d/logins")));
            let _stack = Stack::of(&file, before, "");
            assert_eq!(place("30001"), "nowhere", "{service}");
            assert!(Stack::ran_for("30001"), "{service}: what the check is about: {}", Log::all());
            let at = if before == FAILS { service } else { "logins" };
            let faults = service_faults(at);
            assert_eq!(faults.len(), 1, "{service}: {:#?}", check());
            assert!(faults[0].contains("pam_limits.so runs for container users"), "{faults:#?}");
        }
    }
}

/// cron looks at its tables once a minute.
#[test]
#[ignore = "needs the node: make test"]
fn the_same_for_cron() {
    fs::write("/run/logins.conf", "* - maxlogins 0\n").unwrap();
    let (inside, outside) = ("/containers/30001/from-cron", "/home/alice/from-cron");
    let table = format!("* * * * * 30001 hostname >{inside}\n* * * * * alice hostname >{outside}\n");
    let _ours = join_now("cron");
    for (before, behind) in [("", FAILS), (FAILS, "")] {
        let _stack = Stack::of("/etc/pam.d/cron", before, behind);
        let _end = AtEnd(|| drop(sh(format!("rm -f {inside} {outside}"))));
        assert_eq!(service_faults("cron").len(), usize::from(!before.is_empty()), "{:#?}", check());
        fs::write("/etc/cron.d/unbit-test", &table).unwrap();
        let mut cron = Command::new("cron").arg("-f").spawn().unwrap();
        let _gone = AtEnd(|| {
            drop((cron.kill(), cron.wait()));
            drop(fs::remove_file("/etc/cron.d/unbit-test"));
        });
        let ran = |user: &str| fs::read_to_string(RAN).unwrap().contains(&format!("open_session for {user} as 0\n"));
        let start = Instant::now();
        // For alice the witness runs in both: her session is refused, as a failure before or behind
        // ours has it.
        while !(ran("alice") && (ran("30001") || Path::new(inside).exists())) {
            assert!(start.elapsed() < Duration::from_secs(75), "cron did not run the jobs: {}", Log::all());
            std::thread::sleep(Duration::from_millis(200));
        }
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(ran("30001"), !before.is_empty(), "{}", Log::all());
        assert_eq!(fs::read_to_string(inside).ok().as_deref(), before.is_empty().then_some("c30001\n"));
        assert!(!Path::new(outside).exists(), "the witness: alice is refused");
    }
    fs::remove_file("/run/logins.conf").unwrap();
}
