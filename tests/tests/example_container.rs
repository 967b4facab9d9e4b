//! `examples/container.ini` against its tenant: what the tenant puts into its directory must not
//! make root do anything for it when the container starts, restarts or stops.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use unbit_tests::*;

const HOME: &str = "/containers/30001";
const VASSAL: &str = "/etc/uwsgi/vassals/30001.ini";
const EMPERORS_LOG: &str = "/var/log/emperor.log";

/// Runs a script as the container's user on the node, in the tenant's directory.
fn as_tenant(script: &str) {
    let script = format!("cd {HOME}; {script}");
    run("setpriv", &["--reuid", "30001", "--regid", "30001", "--clear-groups", "bash", "-euc", &script], b"").ok();
}

/// What the Emperor has logged since a given moment.
struct EmperorsLog(usize);

impl EmperorsLog {
    fn from_now() -> Self {
        Self(fs::read(EMPERORS_LOG).unwrap().len())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(EMPERORS_LOG).unwrap()[self.0..]).into_owned()
    }
}

/// The container's pid 1 once it has the tenant's uid, which is after everything that root does.
fn pid_1() -> Option<String> {
    let done = run("node-pid", &["30001"], b"");
    (done.status == Some(0)).then(|| done.out.trim().to_owned())
}

/// How a start of the container must end.
#[derive(Clone, Copy)]
enum Start {
    /// The container runs.
    Runs,
    /// It does not run, and the Emperor's log contains this text.
    Fails(&'static str),
}
use Start::{Fails, Runs};

/// The Emperor otherwise looks once a second whether a container is to be started. Its handler of
/// SIGWINCH does nothing.
fn wake_the_emperor() {
    sh("kill -WINCH $(pgrep -P $(cat /run/emperor.pid))").ok();
}

/// The container does not run, and the Emperor is stopped, until this is dropped. So nobody writes
/// to the tenant's directory but the test.
struct Held(String);

impl Held {
    fn now() -> Self {
        let held = Self(sh("pgrep -P $(cat /run/emperor.pid)").ok());
        sh(format!("kill -STOP {held}", held = held.0)).ok();
        // A container that is starting is still a root process that ignores its Emperor: it becomes
        // the tenant's, or fails.
        let vassals = format!("ps -o uid=,pid=,stat= --ppid {} | grep -v ' Z'", held.0);
        eventually("the end of the container", || {
            let (mut is_over, found) = (true, sh(&vassals).out);
            for vassal in found.lines() {
                let words: Vec<_> = vassal.split_whitespace().collect();
                if words[0] == "30001" {
                    sh(format!("kill -KILL {}", words[1]));
                }
                is_over &= words[0] == "30000";
            }
            is_over.then_some(())
        });
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        sh(format!("kill -CONT {}", self.0)).ok();
    }
}

/// Ends the container, makes a change, and waits until its Emperor has started it again. An error
/// says what went wrong.
fn restart_after(change: impl FnOnce(), expected: Start) -> Result<(), String> {
    let held = Held::now();
    change();
    let log = EmperorsLog::from_now();
    drop(held);
    for _ in 0..500 {
        sleep(Duration::from_millis(20));
        let now = pid_1();
        match expected {
            Runs if now.is_some() => return Ok(()),
            Fails(why) if now.is_none() && log.text().contains(why) => return Ok(()),
            _ if now.is_none() => wake_the_emperor(),
            _ => {}
        }
    }
    Err(format!("pid 1 is {:?}; the Emperor's log: {}", pid_1(), log.text()))
}

fn restart(expected: Start) -> Result<(), String> {
    restart_after(|| {}, expected)
}

/// The container's mounts, without the fields that differ from one start to the next.
fn mounts() -> BTreeSet<String> {
    mounts_of(&pid_1().unwrap()).unwrap()
}

/// The same; nothing if the process has ended, as it does when it cannot open its log.
fn mounts_of(pid: &str) -> Option<BTreeSet<String>> {
    let mountinfo = fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
    let mounts = mountinfo
        .lines()
        .map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let (_, of_its_kind) = line.split_once(" - ").unwrap();
            format!("{} on {} ({}) {of_its_kind}", fields[3], fields[4], fields[5])
        })
        .collect();
    Some(mounts)
}

/// Lists what the tenant must not change: files of the node, the distribution and the other tenant.
const CANARIES: &str = "find /etc /root /home /var/lib /usr/local /distros/base -xdev -printf '%p %y %l %m %U %G %s %T@ %C@\\n' | grep -v '^/etc/uwsgi/vassals' | sort; \
     ls -A / /dev /dev/shm /tmp /run; find /containers/30000 -name logs -prune -o -printf '%p %y %l %m %U %G %s %T@\\n' | sort";

/// Programs that root could look up in PATH.
const PROGRAMS: &str = "ip sh bash dash mkdir cp ln mount umount chroot setpriv sed echo test true env uwsgi uwsgi-core chown chmod hostname";

/// The files in the tenant's directory that have another owner.
fn others() -> String {
    sh(format!("find {HOME} '!' -uid 30001 -printf '%p of %U, '")).out
}

/// The state before a test case, to compare with the state after it.
struct Case {
    mounts: BTreeSet<String>,
    canaries: String,
    others: String,
    neighbour: String,
}

impl Case {
    fn begin() -> Self {
        leader(30001);
        Self { mounts: mounts(), canaries: sh(CANARIES).ok(), others: others(), neighbour: leader(30000) }
    }

    /// Says what has changed that the tenant must not change.
    fn harm(&self) -> String {
        let mut harm = String::new();
        let ran = fs::read_to_string(format!("{HOME}/ran-as")).unwrap_or_default();
        if ran.lines().any(|uid| !uid.starts_with("30001 ")) {
            write!(harm, "\n    the tenant's program has run as {ran:?}").unwrap();
        }
        if others() != self.others {
            write!(harm, "\n    in its directory: {}", others()).unwrap();
        }
        let canaries = sh(CANARIES).ok();
        let changed = |one: &str, other: &str| {
            let known: BTreeSet<_> = other.lines().collect();
            one.lines().filter(|line| !known.contains(line)).take(3).map(str::to_owned).collect::<Vec<_>>()
        };
        if canaries != self.canaries {
            let (new, old) = (changed(&canaries, &self.canaries), changed(&self.canaries, &canaries));
            write!(harm, "\n    outside: {new:?} where {old:?} was").unwrap();
        }
        let pid = pid_1().unwrap_or_default();
        if let Some(mounts) = mounts_of(&pid) {
            for mount in mounts.symmetric_difference(&self.mounts) {
                write!(harm, "\n    mounts: {mount}").unwrap();
            }
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
        if groups.split_whitespace().any(|group| group != "30001") {
            write!(harm, "\n    pid 1 is in the groups {groups}").unwrap();
        }
        if leader(30000) != self.neighbour {
            harm.push_str("\n    the other container is not as it was");
        }
        harm
    }

    /// Removes what the tenant has made, and checks that the container works.
    fn end(self) {
        restart_after(clean, Runs).unwrap();
        leader(30001);
        assert_eq!(ssh(30001, "hostname; id -G").ok(), "c30001\n30001");
        assert_eq!(ssh(30000, "hostname").ok(), "c30000");
    }
}

/// Removes what the tenant has made.
fn clean() {
    // Links may lead anywhere, so the tenant removes them by name.
    as_tenant(
        "chmod -R u+rwX run logs tmp etc vassals bin sbin lib .old_root 2>/dev/null || true
         rm -rf run logs tmp etc vassals bin sbin lib .old_root ran-as ld.so.preload evil* kept* || true
         mkdir -p run logs vassals",
    );
    sh(format!("rm -rf {HOME}/.old_root {HOME}/ran-as")).ok();
}

/// Gives the tests that follow a working container.
fn clean_after_failure() {
    if std::thread::panicking() {
        clean();
        drop(sh("node-emperor restart"));
    }
}

/// Has the tenant make each change, restarts the container, and fails if that did any harm.
fn assert_none_does_harm(cases: &[(&str, Start)]) {
    let case = Case::begin();
    let _end = AtEnd(clean_after_failure);
    let mut found = String::new();
    for (script, expected) in cases {
        let change = || {
            clean();
            as_tenant(script);
        };
        let mut harm = restart_after(change, *expected)
            .err()
            .map_or_else(String::new, |why| format!("\n    it did not start as it should: {why}"));
        harm += &case.harm();
        if !harm.is_empty() {
            println!("{script}:{harm}"); // also when something below does not get the container back
            write!(found, "\n{script}:{harm}").unwrap();
        }
    }
    case.end();
    assert!(found.is_empty(), "{found}");
}

#[test]
#[ignore = "needs the node: make test"]
fn programs_of_the_tenants_where_root_looks_for_its_own() {
    let make = |directory: &str| {
        format!(
            "mkdir -p {directory}; for name in {PROGRAMS}; do
                 printf '#!/bin/bash\\necho $UID $0 $* >>{HOME}/ran-as\\necho forged >&2\\nexit 0\\n' >{directory}/$name
                 chmod 755 {directory}/$name
             done"
        )
    };
    let log = EmperorsLog::from_now();
    assert_none_does_harm(&[(&make("sbin"), Runs), (&make("bin"), Runs), (&make("."), Runs)]);
    sh(format!("cd {HOME}; rm -f {PROGRAMS}")).ok();
    assert!(!log.text().contains("forged"), "a program of the tenant's writes to the Emperor's log");
}

#[test]
#[ignore = "needs the node: make test"]
fn the_log_is_something_else() {
    sh("mkdir -p /root/walls; echo precious >/root/walls/file").ok();
    let _gone = AtEnd(|| drop(sh("rm -rf /root/walls")));
    let cannot_open = Fails("logs/emperor.log");
    assert_none_does_harm(&[
        ("rm -f logs/emperor.log; ln -s /root/walls/file logs/emperor.log", cannot_open),
        ("rm -f logs/emperor.log; ln -s /root/walls/new logs/emperor.log", cannot_open),
        ("rm -f logs/emperor.log; ln -s /.old_root/root/walls/file logs/emperor.log", cannot_open),
        ("rm -f logs/emperor.log; ln -s ../../30000/logs/other logs/emperor.log", cannot_open),
        ("rm -f logs/emperor.log; ln -s /proc/self/root/etc/walls logs/emperor.log", cannot_open),
        ("rm -rf logs; ln -s /root/walls logs", Fails("mkdir: cannot")),
        ("rm -rf logs; ln -s /etc logs", cannot_open),
        ("rm -rf logs; ln -s .. logs", cannot_open),
        ("rm -f logs/emperor.log; mkdir logs/emperor.log", cannot_open),
        ("rm -f logs/emperor.log; mkfifo logs/emperor.log", Runs),
        ("rm -rf logs; mkfifo logs", Fails("mkdir: cannot")),
    ]);
}

#[test]
#[ignore = "needs the node: make test"]
fn directories_that_root_used_to_mount_are_links_or_fifos() {
    let mut cases = Vec::new();
    // The container does not use these, so it must run whatever they are.
    let all =
        |make: &str| (format!("for name in tmp etc .old_root bin lib; do rm -rf $name; {make} $name; done"), Runs);
    for target in ["/", "/etc", "/root", "..", "../30000", "/.old_root", "/proc/1/root", "/nowhere"] {
        cases.push(all(&format!("ln -s {target}")));
    }
    cases.push(all("mkfifo"));
    cases.push(all("mkdir -m 0"));
    // pid 1 uses these as the tenant: it runs, or it fails as the tenant.
    for name in ["run", "vassals"] {
        for make in ["ln -s /nowhere", "mkfifo"] {
            cases.push((format!("rm -rf {name}; {make} {name}"), Fails("mkdir: cannot")));
        }
    }
    for target in ["/", "/etc", "..", "/tmp"] {
        cases.push((format!("rm -rf vassals; ln -s {target} vassals"), Runs));
    }
    cases.push(("rm -rf run; ln -s /tmp run".into(), Runs));
    let cases: Vec<_> = cases.iter().map(|(script, start)| (script.as_str(), *start)).collect();
    assert_none_does_harm(&cases);
}

#[test]
#[ignore = "needs the node: make test"]
fn the_mount_point_of_old_root_leads_elsewhere() {
    let log = EmperorsLog::from_now();
    let preload = "echo /containers/30001/evil.so >ld.so.preload; rm -rf .old_root";
    assert_none_does_harm(&[
        // Another container's directory and the node's root directory.
        ("rm -rf .old_root; ln -s .. .old_root", Runs),
        ("rm -rf .old_root; mkdir .old_root; ln -s / .old_root/30001", Runs),
        // The tenant's directory as /etc, with an ld.so.preload for the programs that root runs.
        (&format!("{preload}; mkdir .old_root; ln -s /etc .old_root/30001"), Runs),
        (&format!("{preload}; ln -s /etc .old_root"), Runs),
        (&format!("{preload}; mkdir -p etc; cp ld.so.preload etc"), Runs),
        ("rm -rf .old_root; mkdir .old_root; ln -s /usr/sbin .old_root/30001; mkdir sbin; cp /bin/true ip", Runs),
    ]);
    sh(format!("rm -f {HOME}/ip")).ok();
    let log = log.text();
    let loaded: Vec<_> = log.lines().filter(|line| line.contains("ld.so.preload")).collect();
    assert!(loaded.is_empty(), "a program that root runs has read the tenant's: {loaded:?}");
}

/// A fake nscd that tells initgroups(3) that the tenant is in the groups root, disk and shadow.
const NSCD: &str = r"
    use Socket; mkdir q(run); mkdir q(run/nscd); unlink q(run/nscd/socket);
    socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, sockaddr_un(q(run/nscd/socket))) or die; chmod 0777, q(run/nscd/socket); listen(S, 99);
    while (accept(C, S)) {
        sysread(C, $_, 12); my ($version, $type, $length) = unpack q(l3), $_; sysread(C, $_, $length);
        syswrite(C, pack(q(l3 l3), 2, 1, 3, 0, 6, 42)) if $type == 15; close C
    }";

#[test]
#[ignore = "needs the node: make test"]
fn an_nscd_of_the_tenants_answers_whose_groups_it_is_in() {
    // glibc stops asking for a while after it has found no nscd, so the node runs one.
    sh("mkdir -p /run/nscd; nscd").ok();
    let _nscd = AtEnd(|| drop(sh("nscd --shutdown")));
    let case = Case::begin();
    as_tenant("mkdir -p run");
    // It must survive the restart, so it runs outside the container.
    let mut nscd = Command::new("setpriv")
        .args(["--reuid", "30001", "--regid", "30001", "--clear-groups", "perl", "-e", NSCD])
        .current_dir(HOME)
        .spawn()
        .unwrap();
    let _end = AtEnd(move || drop((nscd.kill(), nscd.wait())));
    eventually("its socket", || fs::exists(format!("{HOME}/run/nscd/socket")).unwrap().then_some(()));
    restart(Runs).unwrap();
    let harm = case.harm();
    case.end();
    assert_eq!(harm, "");
}

#[test]
#[ignore = "needs the node: make test"]
fn names_are_swapped_while_the_container_starts() {
    let case = Case::begin();
    let _end = AtEnd(clean_after_failure);
    as_tenant(
        "mkdir -p tmp etc .old_root/30001 run logs; ln -sfn / evil-1; ln -sfn .. evil-2; ln -sfn /etc evil-3; ln -sfn /root evil-4",
    );
    // RENAME_EXCHANGE, so that the name always exists.
    let swap = "my $n = 0; while (1) { for my $name (qw(tmp etc .old_root logs)) { my ($one, $other) = ($name, q(evil-) . (1 + $n++ % 4));
        syscall(316, -100, $one, -100, $other, 2); select(undef, undef, undef, 0.0002); syscall(316, -100, $one, -100, $other, 2) } }";
    let mut swapper = Command::new("setpriv")
        .args(["--reuid", "30001", "--regid", "30001", "--clear-groups", "perl", "-e", swap])
        .current_dir(HOME)
        .spawn()
        .unwrap();
    let (mut harm, mut started, mut failed) = (String::new(), 0, 0);
    while harm.is_empty() && started + failed < 12 {
        let log = EmperorsLog::from_now();
        let before = pid_1();
        if let Some(pid) = &before {
            sh(format!("kill -KILL {pid}")).ok();
        }
        // After a failure the Emperor tries again, which is the next round's start.
        let has_started = eventually("a start or a failure", || {
            let now = pid_1();
            let has_failed = || log.text().contains("mkdir: cannot") || log.text().contains("emperor.log");
            if now.is_none() {
                wake_the_emperor();
            }
            if now.is_some() && now != before { Some(true) } else { (now.is_none() && has_failed()).then_some(false) }
        });
        if has_started {
            started += 1;
        } else {
            failed += 1;
        }
        harm += &case.harm();
    }
    drop((swapper.kill(), swapper.wait()));
    case.end();
    println!("{started} started, {failed} failed");
    assert_eq!(harm, "");
    assert!(started > 0, "{started} started, {failed} failed");
}

#[test]
#[ignore = "needs the node: make test"]
fn what_is_mounted_is_what_the_file_says() {
    leader(30001);
    let inside = |script: &str| ssh(30001, script).ok();
    let mounts: Vec<_> = mounts().into_iter().collect();
    // The tenant tries where it can write.
    let places: Vec<_> = mounts.iter().map(|mount| mount.split(' ').nth(2).unwrap()).collect();
    let written = inside(&format!(
        "for place in {}; do
             {{ test -d $place && touch $place/walls && rm $place/walls; }} 2>/dev/null && echo $place; true
         done",
        places.join(" ")
    ));
    let mut writable = Vec::new();
    for (mount, place) in mounts.iter().zip(places) {
        if written.lines().any(|one| one == place) {
            writable.push(place);
            let options = mount.split(['(', ')']).nth(1).unwrap();
            let has = |option: &str| options.split(',').any(|one| one == option);
            assert!(has("nosuid") && has("nodev"), "{mount}");
        }
    }
    assert_eq!(writable, ["/dev/shm", "/run", "/tmp", "/var/tmp", "/containers/30001", "/usr/local"], "{mounts:#?}");
    // The kernel enforces the mount options.
    sh(format!("install -m 4755 /usr/bin/id {HOME}/id && mknod -m 666 {HOME}/null c 1 3")).ok();
    let _gone = AtEnd(|| drop(sh(format!("rm -f {HOME}/id {HOME}/null"))));
    for at in [HOME, "/usr/local"] {
        assert_eq!(
            inside(&format!("{at}/id -u; cat {at}/null 2>&1 || true")),
            format!("30001\ncat: {at}/null: Permission denied")
        );
    }
    // All containers share the distribution.
    let writes = inside("find / -xdev -writable -not -type l 2>/dev/null; true");
    let elsewhere: Vec<_> =
        writes.lines().filter(|path| !writable.iter().any(|place| path.starts_with(place))).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");

    assert!(mounts.iter().any(|mount| mount.contains(" on /proc ") && mount.contains("hidepid=")), "{mounts:#?}");
    let pids = inside("cd /proc; for pid in [0-9]*; do stat -c %u $pid; done | sort -u");
    assert_eq!(pids, "30001");
    assert_eq!(inside("ls /proc | grep -cx 1; true"), "0", "pid 1 was root");

    // Nothing of another container or of the node is visible.
    assert_eq!(
        inside("ls -A /containers /.old_root /sys /root 2>/dev/null; true"),
        "/.old_root:\n\n/containers:\n30001\n\n/sys:"
    );
    assert!(!mounts.iter().any(|mount| mount.contains("/containers/30000")), "{mounts:#?}");
    for place in ["/dev/shm", "/run", "/tmp", "/var/tmp"] {
        ssh(30000, &format!("echo other >{place}/of-30000; chmod 644 {place}/of-30000")).ok();
        fs::write(format!("{place}/of-the-node"), "").unwrap();
        let seen = inside(&format!("ls -A {place} | grep of-; true"));
        drop((fs::remove_file(format!("{place}/of-the-node")), ssh(30000, &format!("rm -f {place}/of-30000"))));
        assert_eq!(seen, "", "{place}");
    }
    let devices = inside("ls -A /dev");
    let devices: Vec<_> = devices.lines().collect();
    assert_eq!(
        devices,
        ["fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"]
    );
    assert_eq!(
        inside(
            "echo x >/dev/null; head -c 1 /dev/zero | wc -c; head -c 9 /dev/urandom | wc -c; echo x | cat /dev/stdin"
        ),
        "1\n9\nx"
    );

    // pid 1 has no file open outside its own mounts.
    let pid = pid_1().unwrap();
    let open: Vec<_> = descriptors(&pid).into_iter().filter(|file| file.starts_with('/')).collect();
    let log = format!("{HOME}/logs/emperor.log");
    assert!(open.iter().all(|file| *file == log || file == "/dev/null"), "{open:?}");
}

/// Runs a Perl script below the container's pid 1 as its tenant: an Emperor's vassal may name a
/// program. Returns what it prints.
fn below_pid_1(uid: u32, name: &str, script: &str) -> String {
    let file = format!("/containers/{uid}/walls-{name}");
    let vassal = format!("/containers/{uid}/vassals/walls-{name}.ini");
    let _gone = AtEnd(|| drop(sh(format!("rm -f {file}* {vassal}"))));
    fs::write(format!("{file}.pl"), script).unwrap();
    // A vassal that ended would be started again.
    let shell = format!("perl {file}.pl >{file}.tmp 2>&1; mv {file}.tmp {file}.out; exec sleep 600\n");
    fs::write(format!("{file}.sh"), shell).unwrap();
    sh(format!("chown {uid}:{uid} {file}*")).ok();
    fs::write(&vassal, format!("[uwsgi]\nexec-asap = exec bash {file}.sh\n")).unwrap();
    eventually("what a vassal prints", || fs::read_to_string(format!("{file}.out")).ok())
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_shares_no_keyring_with_another() {
    leader(30001);
    leader(30000);
    // systemd's own processes have none, and node-emperor cannot drop one.
    let (keyctl, add_key) = (libc::SYS_keyctl, libc::SYS_add_key);
    let root = sh(format!("perl -e 'print syscall({keyctl}, 0, -3, 0) == syscall({keyctl}, 0, -5, 0) ? 1 : 0'")).ok();
    if root != "1" {
        assert!(std::env::var("CI").is_err(), "NOT TRIED: these tests were started in a session keyring");
        println!("NOT TRIED: these tests were started in a session keyring, which the Emperor then inherits");
        return;
    }
    let add = format!(
        "my ($type, $name, $secret) = (q(user), qq(walls of $<), qq(secret of $<));
         print syscall({add_key}, $type, $name, $secret, length $secret, -3) > 0 ? qq(added\\n) : qq(not added: $!\\n);"
    );
    let read = format!(
        "my $ring = qq(\\0) x 4096; my $length = syscall({keyctl}, 11, -3, $ring, 4096); print qq($length bytes of keys\\n);
         for my $key (unpack q(l*), substr $ring, 0, $length) {{
             my $value = qq(\\0) x 99; syscall({keyctl}, 11, $key, $value, 99) > 0 and print qq($value\\n)
         }}
         print syscall({keyctl}, 3, -3) == 0 ? qq(revoked\\n) : qq(not revoked: $!\\n);"
    );
    assert_eq!(below_pid_1(30000, "first", &add), "added\n");
    let seen = below_pid_1(30001, "other", &(add.clone() + &read));
    assert!(seen.starts_with("added\n4 bytes of keys\nsecret of 30001"), "{seen}");
    assert!(!seen.contains("secret of 30000") && seen.ends_with("\nrevoked\n"), "{seen}");
    assert_eq!(below_pid_1(30000, "again", &add), "added\n", "after the other tenant has revoked its keyring");
}

/// An Emperor that root starts from a login, by the line that `unbitctl check` prints:
/// pam_keyinit(8) gives that login a session keyring.
#[test]
#[ignore = "needs the node: make test"]
fn the_keyring_of_who_starts_the_emperor_is_not_the_tenants() {
    let (keyctl, add_key) = (libc::SYS_keyctl, libc::SYS_add_key);
    let login = format!(
        "syscall({keyctl}, 1, 0) > 0 or die qq(join: $!); my ($type, $name, $secret) = (q(user), q(walls), q(secret of root));
         syscall({add_key}, $type, $name, $secret, length $secret, -3) > 0 or die qq(add: $!); exec @ARGV"
    );
    let read = format!(
        "my $ring = qq(\\0) x 4096; my $length = syscall({keyctl}, 11, -3, $ring, 4096);
         $length >= 0 or print qq($!\\n);
         for my $key ($length > 0 ? unpack q(l*), substr $ring, 0, $length : ()) {{
             my $value = qq(\\0) x 99; syscall({keyctl}, 11, $key, $value, 99) > 0 and print qq($value\\n)
         }}
         my ($type, $name) = (q(user), q(walls of $<)); print syscall({add_key}, $type, $name, $name, 1, -3) > 0 ? qq(added\\n) : qq($!\\n)"
    );
    let seen_by_the_tenant = |line: &str| {
        sh("node-emperor stop").ok();
        let _back = AtEnd(|| {
            sh("pid=$(pgrep -o -x uwsgi); kill -INT $pid; for try in $(seq 100); do test -e /proc/$pid || break; sleep 0.05; done").ok();
            sh("node-emperor start; node-wait-container 30000; node-wait-container 30001").ok();
        });
        run("perl", &["-e", &login, "sh", "-c", line], b"").ok();
        leader(30001);
        below_pid_1(30001, "keyring", &read)
    };
    sh("node-emperor stop").ok();
    let all: Value = serde_json::from_str(&sh("unbitctl check --json").out).unwrap();
    let found = all.as_array().unwrap().iter().find(|finding| finding["check"] == "emperor").unwrap();
    let line = found["fix"].as_str().unwrap().to_owned();
    let revoked = "Key has been revoked\n";
    assert_eq!(seen_by_the_tenant(&line), format!("{revoked}{revoked}"), "{line}");
    // What it would be otherwise.
    let (_, without) = line.split_once(" setsid ").unwrap();
    let seen = seen_by_the_tenant(&format!("setsid {without}"));
    assert!(seen.starts_with("secret of root") && seen.ends_with("\nadded\n"), "{seen}");
}

#[test]
#[ignore = "needs the node: make test"]
fn the_audit_log_has_the_containers_number() {
    if !fs::exists("/proc/self/loginuid").unwrap() {
        return not_tried("a kernel without audit", true);
    }
    let write = "open(my $own, q(+<), q(/proc/self/loginuid)); syswrite($own, q(0)) or print qq($!\n);
        open($own, q(<), q(/proc/self/loginuid)); print <$own>, qq(\n);";
    assert_eq!(below_pid_1(30001, "loginuid", write), "Operation not permitted\n30001\n");
    assert_eq!(ssh(30001, "cat /proc/self/loginuid").ok(), "30001");
}

/// An Emperor that root has started from a terminal, as from a login without systemd.
struct OnATerminal(Child);

impl OnATerminal {
    fn start() -> Self {
        sh("node-emperor stop").ok();
        let command = sh("sed -n 's/^ExecStart=//p' /etc/systemd/system/containers.service").ok();
        let command = format!("echo $$ >/run/emperor.pid; exec {command} >>{EMPERORS_LOG} 2>&1");
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let terminal = Self(script.spawn().unwrap());
        eventually("the Emperor", || fs::exists("/run/emperor.pid").unwrap().then_some(()));
        leader(30001);
        leader(30000);
        terminal
    }
}

impl Drop for OnATerminal {
    fn drop(&mut self) {
        sh("node-emperor stop");
        drop((self.0.kill(), self.0.wait()));
        sh("node-emperor start; node-wait-container 30000; node-wait-container 30001");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn the_terminal_that_the_emperor_was_started_from_is_not_the_tenants() {
    let open = "open(my $terminal, q(+<), q(/dev/tty)) ? print qq(opened\n) : print qq($!\n);";
    let check = || {
        let all: Value = serde_json::from_str(&sh("unbitctl check --json").out).unwrap();
        let found = all.as_array().unwrap().iter().find(|finding| finding["check"] == "emperor").unwrap();
        ["state", "seen", "fix"].map(|key| found[key].as_str().unwrap_or_default().to_owned()).join("\n")
    };
    let terminal = OnATerminal::start();
    assert_eq!(below_pid_1(30001, "tty", open), "No such device or address\n");
    let found = check();
    assert!(found.starts_with("ok\n"), "{found}");
    drop(terminal);
    // What the line is for, and what `unbitctl check` says of a file without it.
    let lacks = Changed::unseen_by_the_emperor(VASSAL, |text| text.replace("hook-asap = call:setsid\n", ""));
    let _in_this_order = (lacks, OnATerminal::start()); // the Emperor that comes after it finds the file as it was
    assert_eq!(below_pid_1(30001, "tty", open), "opened\n");
    let found = check();
    assert!(found.starts_with("fail\nhas the terminal from which the Emperor was started: 30001\n"), "{found}");
    assert!(found.contains(" setsid --fork env -i PATH="), "{found}");
}

#[test]
#[ignore = "needs the node: make test"]
fn with_the_overlay_line_a_tenant_sees_nothing_of_what_others_open() {
    let overlay = |text: &str| {
        let (before, rest) = text.split_once(";hook-pre-jail = mount:overlay ").unwrap();
        let (line, rest) = rest.split_once('\n').unwrap();
        let rest = rest.splitn(3, '\n').nth(2).unwrap();
        format!("{before}hook-pre-jail = mount:overlay {line}\n{rest}")
    };
    let watch = format!(
        r#"my $watch = syscall({}, 0); my $name = qq(/usr/bin\0); syscall({}, $watch, $name, 0x20) > 0 or die $!;
           open my $events, q(<&=), $watch; open my $lock, q(<), q(/etc/passwd); flock $lock, 6 or die $!;
           $| = 1; print qq(ready\n); my $ready = q(); vec($ready, fileno $events, 1) = 1;
           <STDIN>; print scalar(select $ready, undef, undef, 0), qq(\n)"#,
        libc::SYS_inotify_init1,
        libc::SYS_inotify_add_watch
    );
    let other = "sha512sum /dev/null >/dev/null; flock -n /etc/passwd true && echo not locked || echo locked";
    let seen = || {
        fs::write(format!("{HOME}/walls.pl"), &watch).unwrap();
        let mut watcher = Command::new("ssh")
            .args(["30001@node", "perl /containers/30001/walls.pl 2>&1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(watcher.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        let locked = ssh(30000, other).ok();
        let events = String::from_utf8(watcher.wait_with_output().unwrap().stdout).unwrap();
        (events.trim().to_owned(), locked)
    };
    leader(30001);
    // What the head of the file says of the lines as they are. It proves that the watch and the
    // lock work.
    assert_eq!(seen(), ("1".into(), "locked".into()));
    let mut changed = Some(Changed::unseen_by_the_emperor(VASSAL, overlay));
    let _end = AtEnd(move || {
        drop(changed.take());
        let _ = (sh(format!("rm -f {HOME}/walls.pl")), restart(Runs));
    });
    restart(Runs).unwrap();
    leader(30001);
    let root = mounts().into_iter().find(|mount| mount.contains(" on / (")).unwrap();
    assert!(root.contains(" overlay ") && root.contains("nosuid") && root.contains("nodev"), "{root}");
    assert_eq!(seen(), ("0".into(), "not locked".into()));
    assert_eq!(
        ssh(30001, "touch /etc/walls 2>&1; id -un").out,
        "touch: cannot touch '/etc/walls': Read-only file system\n30001\n"
    );
}

#[test]
#[ignore = "needs the node: make test"]
fn terminals_are_the_containers_own_and_bounded() {
    // Not until none is left: terminals are limited for the whole machine.
    let take =
        r"my @held; for (1 .. 200) { open(my $one, q(+<), q(/dev/ptmx)) or last; push @held, $one } print scalar @held";
    let taken = ssh(30001, &format!("perl -e '{take}'")).ok();
    assert!(taken.parse::<u32>().unwrap() <= 64, "{taken} terminals");

    let on_a_terminal = |user: &str, command: &str| run("ssh", &["-tt", &format!("{user}@node"), command], b"").ok();
    // While the container holds all that it can get, others get theirs.
    let script = format!("perl -e '{take}; $| = 1; print qq( held\\n); sleep 600'");
    let mut holder =
        Command::new("ssh").args(["30001@node", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 7];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    let _end = AtEnd(move || drop((holder.kill(), holder.wait())));
    assert!(on_a_terminal("root", "tty").starts_with("/dev/pts/"));
    assert!(on_a_terminal("30000", "script -qc tty /dev/null").starts_with("/dev/pts/"));
    // sshd opens its terminals there too.
    let full = run("ssh", &["-tt", "30001@node", "tty"], b"");
    assert!(full.err.contains("PTY allocation request failed"), "{full:?}");
    assert_eq!(on_a_terminal("30000", "test -t 0 && tty; stty -a >/dev/tty").lines().next(), Some("/dev/pts/0"));
}

/// A connection that nobody reads from, sent to the Emperor over the socket of a container's pid 1:
/// its last close waits for an hour, and is the Emperor's (`SO_LINGER` of socket(7)).
const LINGER: &str = r#"
import array, ctypes, os, socket, struct, sys, time
libc = ctypes.CDLL(None)
emperor = socket.socket(fileno=libc.syscall(438, os.pidfd_open(1), int(sys.argv[1]), 0)) # pidfd_getfd(2)
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen()
full = socket.create_connection(listener.getsockname()); kept = listener.accept()
full.setblocking(False)
try:
    while True: full.send(bytes(65536))
except BlockingIOError: pass
full.setblocking(True)
full.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
emperor.send(bytes([255]) * 400) # which the Emperor reads one by one, while the next line closes ours
emperor.sendmsg([bytes([255])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [full.fileno()]))])
full.close()
time.sleep(600)
"#;

/// SECURITY.md, "What is not": who has taken over pid 1 itself keeps the Emperor waiting. What runs
/// goes on, and the end of that container ends it.
#[test]
#[ignore = "needs the node: make test"]
fn a_pid_1_that_keeps_the_emperor_waiting() {
    let hostile = leader(30001);
    // Its child, the container's own Emperor, has one socket only, which is this one.
    let number = eventually("the socket to the Emperor", || {
        let child = run("pgrep", &["-P", &hostile], b"").out.trim().to_owned();
        let socket = descriptors(&child).into_iter().find(|file| file.starts_with("socket:"))?;
        let mut own = fs::read_dir(format!("/proc/{hostile}/fd")).ok()?.flatten();
        let own = own.find(|file| fs::read_link(file.path()).is_ok_and(|file| file.as_os_str() == socket.as_str()))?;
        own.file_name().into_string().ok()
    });
    fs::write("/tmp/walls.py", LINGER).unwrap();
    // In the container's pid namespace, so that it ends with the container.
    let mut inside = Command::new("nsenter")
        .args(["-t", &hostile, "-n", "-p", "python3", "/tmp/walls.py", &number])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let _end = AtEnd(move || {
        drop((inside.kill(), inside.wait()));
        sh("rm -f /tmp/walls.py; node-emperor restart; node-wait-container 30000; node-wait-container 30001").ok();
    });
    // A read(2) of a socket, and not epoll_wait(2), every time that we look.
    let waits =
        || sh("cut -d' ' -f1 /proc/$(pgrep -P $(cat /run/emperor.pid))/syscall").ok() == libc::SYS_read.to_string();
    eventually("the Emperor waits", || {
        (0..50)
            .all(|_| {
                sleep(Duration::from_millis(2));
                waits()
            })
            .then_some(())
    });
    assert_eq!(ssh(30000, "hostname").ok(), "c30000");
    let other = leader(30000);
    sh(format!("kill -KILL {other}")).ok();
    eventually("its end", || run("node-pid", &["30000"], b"").status.filter(|status| *status != 0));
    let found = sh("unbitctl check");
    assert!(found.out.contains("does not run: 30000"), "{found:?}");
    assert!(waits());
    // What operating.md says.
    sh(format!("kill -KILL {hostile}")).ok();
    leader(30000);
    leader(30001);
    assert_eq!(ssh(30000, "hostname").ok(), "c30000");
}

/// Every lock of a file on the machine waits while somebody reads /proc/locks, for seconds if there
/// are many locks.
#[test]
#[ignore = "needs the node: make test"]
fn a_tenant_does_not_read_the_locks_of_the_machine() {
    leader(30001);
    let script = "use Fcntl q(:flock); open(my $file, q(>), q(/tmp/walls)); flock($file, LOCK_EX) or die $!;
        open(my $locks, q(<), q(/proc/locks)) or die $!; print <$locks>; unlink q(/tmp/walls)";
    assert_eq!(ssh(30001, &format!("perl -e '{script}'")).ok(), "");
    // The same script sees its lock where the node's own /proc is.
    let seen = run("perl", &["-e", script], b"").ok();
    assert!(seen.contains(" FLOCK "), "{seen:?}");
}

/// Who watches files in /proc/pressure takes minutes to end, and a file in /proc/fs/ext4 holds a
/// lock of a whole file system.
#[test]
#[ignore = "needs the node: make test"]
fn a_tenant_reads_no_pressure_and_no_file_systems() {
    leader(30001);
    for directory in ["/proc/pressure", "/proc/fs"] {
        if sh(format!("ls -A {directory}")).out.is_empty() {
            not_tried(directory, true);
        } else {
            assert_eq!(ssh(30001, &format!("ls -A {directory}")).ok(), "", "{directory}");
        }
    }
}

/// To leave thousands of groups at once holds the lock of the machine's network for seconds.
#[test]
#[ignore = "needs the node: make test"]
fn a_tenant_joins_no_multicast_group() {
    leader(30001);
    let join = r#"perl -MSocket -e 'socket my $socket, AF_INET, SOCK_DGRAM, 0 or die;
        print setsockopt($socket, 0, 35, pack "C8", 225, 0, 0, 1, 127, 0, 0, 1) ? "joined" : "no: $!"'"#;
    assert_eq!(ssh(30001, join).ok(), "no: No buffer space available");
    assert_eq!(
        sh(format!("unshare --net sh -c 'ip link set lo up; exec {}'", join.replace('\'', "'\\''"))).ok(),
        "joined"
    );
}

/// SECURITY.md, "What is not promised". Where the kernel limits them one day, that and operating.md
/// have to say so.
#[test]
#[ignore = "needs the node: make test"]
fn groups_of_ipv6_are_not_limited() {
    leader(30001);
    // IPPROTO_IPV6, IPV6_JOIN_GROUP: a struct in6_addr, and the number of the interface lo.
    let join = r#"perl -MSocket -e 'for (1 .. 10) { socket my $socket, AF_INET6, SOCK_DGRAM, 0 or die; push @kept, $socket;
        for (1 .. 100) { $joined += setsockopt $socket, 41, 20, pack "n8 I", 0xff05, (0) x 6, ++$group, 1 or die $! } }
        print $joined'"#;
    assert_eq!(ssh(30001, join).ok(), "1000");
}

/// The container with this memory limit, which cgroup v1 counts in a hierarchy of its
/// own, until the answer is dropped. `None`, and that it is not tried, without such a hierarchy.
#[must_use]
fn with_memory(bytes: &str) -> Option<AtEnd<impl FnMut()>> {
    let limit = "/sys/fs/cgroup/memory/30001/memory.limit_in_bytes";
    leader(30001);
    if !fs::exists(limit).unwrap() {
        not_tried("the memory controller of cgroup v1, in a hierarchy of its own", true);
        return None;
    }
    let mut changed =
        Some(Changed::file(VASSAL, |text| text.replace("memory-max=1073741824", &format!("memory-max={bytes}"))));
    let end = AtEnd(move || {
        drop(changed.take());
        let _ = (sh(format!("rm -f {HOME}/walls.pl {HOME}/walls.py")), restart(Runs));
    });
    restart(Runs).unwrap();
    leader(30001);
    assert_eq!(fs::read_to_string(limit).unwrap().trim(), bytes);
    Some(end)
}

/// cgroup v1 counts what connections have in their buffers apart from other memory.
#[test]
#[ignore = "needs the node: make test"]
fn what_connections_buffer_is_limited() {
    leader(30001);
    if !fs::exists("/sys/fs/cgroup/memory/30001/memory.kmem.tcp.usage_in_bytes").unwrap() {
        return not_tried("the memory controller of cgroup v1, in a hierarchy of its own", true);
    }
    let Some(_limit) = with_memory("67108864") else { return };
    let fill = r#"use Socket; use Fcntl; my ($all, $block, @kept) = (0, q(x) x 65536);
        socket(my $listener, AF_INET, SOCK_STREAM, 0); bind($listener, sockaddr_in(0, inet_aton(q(127.0.0.1)))); listen($listener, 9);
        for (1 .. 400) {
            socket(my $one, AF_INET, SOCK_STREAM, 0); setsockopt($one, SOL_SOCKET, SO_SNDBUF, 400000);
            connect($one, getsockname $listener) or last; accept(my $other, $listener) or last;
            setsockopt($other, SOL_SOCKET, SO_RCVBUF, 600000); fcntl($one, F_SETFL, O_NONBLOCK);
            while (my $sent = syswrite $one, $block) { $all += $sent } push @kept, $one, $other; last if $all > 150e6
        }
        print $all"#;
    fs::write(format!("{HOME}/walls.pl"), fill).unwrap();
    let sent: u64 = ssh(30001, "perl ~/walls.pl").ok().parse().unwrap();
    // The least that each connection may have is counted, and not refused.
    assert!((10 << 20..100 << 20).contains(&sent), "{sent} bytes, of 67108864");
}

/// SECURITY.md, "What is not". Where the kernel counts this one day, that and operating.md have to
/// say so.
#[test]
#[ignore = "needs the node: make test"]
fn what_waits_in_netlink_sockets_is_not_limited() {
    let Some(_limit) = with_memory("67108864") else { return };
    // Family AF_NETLINK, protocol NETLINK_USERSOCK, MSG_DONTWAIT; the address is a struct
    // sockaddr_nl.
    let fill = r#"my ($all, $block, @kept) = (0, q(x) x 100000);
        socket(my $from, 16, 2, 2) or die $!; bind($from, pack q(SSLL), 16, 0, 0, 0) or die $!;
        while ($all < 150e6) {
            socket(my $to, 16, 2, 2) or last; bind($to, pack q(SSLL), 16, 0, 0, 0) or last; push @kept, $to;
            my $address = getsockname $to; my $sent = send($from, $block, 0x40, $address) or last; $all += $sent
        }
        print $all"#;
    fs::write(format!("{HOME}/walls.pl"), fill).unwrap();
    assert_eq!(ssh(30001, "perl ~/walls.pl").ok(), "150000000");
}

/// SECURITY.md, "What is not promised". Where the kernel counts one of these one day, that and
/// operating.md have to say so.
#[test]
#[ignore = "needs the node: make test"]
fn locks_and_access_control_lists_are_not_limited() {
    let Some(_limit) = with_memory("33554432") else { return };
    // Each lock has at least 150 bytes: a struct file_lock. The entries of a list are
    // struct { __le16 tag, perm; __le32 id }, and 8 bytes in memory.
    let fill = r"
import fcntl, os, struct
keep = []
for number in range(1000):
    keep.append(os.open('/tmp/walls%d' % number, os.O_RDWR | os.O_CREAT))
    for at in range(500):
        lock = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 2 * at, 1, 0)
        fcntl.fcntl(keep[-1], fcntl.F_SETLK, lock)
entries = [(1, -1)] + [(2, 30001)] * 8187 + [(4, -1), (16, -1), (32, -1)]
text = struct.pack('<I', 2) + b''.join(struct.pack('<HHi', tag, 7, number) for tag, number in entries)
for number in range(600):
    name = '/tmp/walls-list%d' % number
    os.mkdir(name)
    for which in ('access', 'default'): os.setxattr(name, 'system.posix_acl_' + which, text)
print(len(text))";
    fs::write(format!("{HOME}/walls.py"), fill).unwrap();
    // 75 MB of locks, and 78 MB of lists at least.
    assert_eq!(ssh(30001, "python3 ~/walls.py").ok(), "65532");
}

/// Runs a perl script in a session, and looks once it has printed `made`. The script then waits for
/// its input to end.
fn once_made<T>(script: &str, look: impl FnOnce() -> T) -> T {
    fs::write(format!("{HOME}/walls.pl"), script).unwrap();
    let _end = AtEnd(|| drop(fs::remove_file(format!("{HOME}/walls.pl"))));
    let mut session = Command::new("ssh")
        .args(["30001@node", "perl walls.pl"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(client_errors())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(session.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let seen = look();
    drop(session.stdin.take());
    session.wait().unwrap();
    assert_eq!(said, "made\n");
    seen
}

/// The kernel counts connections that are closed before all was sent for the whole machine
/// (`tcp_max_orphans`), and beyond that number resets every one that is closed. The limit of memory
/// has to end it first.
#[test]
#[ignore = "needs the node: make test"]
fn connections_that_nobody_has_open_any_more_are_limited_by_memory() {
    const NUMBER: u64 = 2000;
    leader(30001);
    let used = "/sys/fs/cgroup/memory/30001/memory.usage_in_bytes";
    if !fs::exists(used).unwrap() {
        return not_tried("the memory controller of cgroup v1, in a hierarchy of its own", true);
    }
    let number = |path: &str| fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap();
    // `TCP: inuse 4 orphan 0 ...`
    let orphans =
        || sh("sed -n 's/^TCP:.* orphan \\([0-9]*\\) .*/\\1/p' /proc/net/sockstat").ok().parse::<u64>().unwrap();
    let before = number(used);
    let make = format!(
        "use Socket; use Fcntl; my @kept; $| = 1;
         socket(my $l, AF_INET, SOCK_STREAM, 0); setsockopt($l, SOL_SOCKET, SO_RCVBUF, pack q(l), 2048);
         bind($l, sockaddr_in(0, INADDR_LOOPBACK)) && listen($l, 9) or die $!; my $address = getsockname $l;
         for (1 .. {NUMBER}) {{ socket(my $c, AF_INET, SOCK_STREAM, 0); setsockopt($c, SOL_SOCKET, SO_SNDBUF, pack q(l), 4096);
             connect($c, $address) && accept(my $s, $l) or die $!; push @kept, $s;
             fcntl($c, F_SETFL, O_NONBLOCK); 1 while syswrite $c, q(x) x 4096; close $c }}
         print qq(made\n); <STDIN>"
    );
    let (seen, each) = once_made(&make, || (orphans(), (number(used) - before) / NUMBER));
    assert!(seen >= NUMBER, "the node has {seen}: the kernel no longer counts them for the whole machine");
    let file = fs::read_to_string("/usr/share/doc/unbit/examples/sysctl.d-unbit.conf").unwrap();
    let limit = file.lines().find_map(|line| line.strip_prefix("net.ipv4.tcp_max_orphans = ")?.parse::<u64>().ok());
    let limit = limit.expect("the example has no limit of them");
    assert!(limit * each > 1_073_741_824, "{limit} of {each} bytes are less than memory-max");
}

/// The kernel counts the memory of datagrams for the whole machine (`udp_mem`), and drops all that
/// arrive once there is too much. The limit of memory has to end it first.
#[test]
#[ignore = "needs the node: make test"]
fn datagrams_that_nobody_reads_are_limited_by_memory() {
    leader(30001);
    let used = "/sys/fs/cgroup/memory/30001/memory.kmem.tcp.usage_in_bytes"; // also of other protocols
    if !fs::exists(used).unwrap() {
        return not_tried("the memory controller of cgroup v1, in a hierarchy of its own", true);
    }
    // `UDP: inuse 4 mem 100`
    let pages = || sh("sed -n 's/^UDP: .* mem //p' /proc/net/sockstat").ok().parse::<u64>().unwrap();
    let make = "use Socket; my @kept; $| = 1; socket(my $from, AF_INET, SOCK_DGRAM, 0) or die $!;
        for (1 .. 50) { socket(my $to, AF_INET, SOCK_DGRAM, 0); bind($to, sockaddr_in(0, INADDR_LOOPBACK)) or die $!;
            push @kept, $to; send($from, q(x) x 50000, 0, getsockname $to) for 1 .. 8 }
        print qq(made\n); <STDIN>";
    let before = pages();
    let (seen, counted) = once_made(make, || {
        let counted = fs::read_to_string(used).unwrap().trim().parse::<u64>().unwrap() / 4096;
        (pages().saturating_sub(before), counted)
    });
    assert!(seen > 1000, "{seen} pages more: the kernel no longer counts them for the whole machine");
    assert!(counted * 2 > seen, "{counted} pages of {seen} count as the container's");
    let file = fs::read_to_string("/usr/share/doc/unbit/examples/sysctl.d-unbit.conf").unwrap();
    let limit =
        file.lines().find_map(|line| line.strip_prefix("net.ipv4.udp_mem = ")?.rsplit(' ').next()?.parse::<u64>().ok());
    let limit = limit.expect("the example has no limit of them");
    assert!(limit * 4096 > 1_073_741_824, "{limit} pages are less than memory-max");
}

/// What strace(1) logged of the Emperor and its children.
struct Trace(String);

/// The strace(1) command line.
const STRACE: &str =
    "strace -f -qq -y -s 4096 --pidns-translation -o /tmp/walls.trace -e trace=%file,%process,%creds,connect,bind";

/// An Emperor under strace.
struct Traced(Child);

impl Traced {
    fn start() -> Self {
        sh("node-emperor stop; rm -f /tmp/walls.trace").ok();
        let command = sh("sed -n 's/^ExecStart=//p' /etc/systemd/system/containers.service").ok();
        let log = fs::OpenOptions::new().append(true).create(true).open(EMPERORS_LOG).unwrap();
        let traced = Command::new("sh")
            .args(["-c", &format!("echo $$ >/run/emperor.pid; exec {STRACE} {command}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let traced = Self(traced);
        leader(30001);
        leader(30000);
        traced
    }

    fn stop(self) -> Trace {
        drop(self);
        Trace(String::from_utf8_lossy(&fs::read("/tmp/walls.trace").unwrap()).into_owned())
    }
}

impl Drop for Traced {
    /// Starts an Emperor without strace again.
    fn drop(&mut self) {
        // strace does not pass SIGINT on, so it goes to the Emperor itself.
        sh("kill -INT $(pgrep -P $(cat /run/emperor.pid))").ok();
        self.0.wait().unwrap();
        sh("rm -f /run/emperor.pid; node-emperor start").ok();
    }
}

/// One process in the trace.
#[derive(Clone, Debug, Default)]
struct Process {
    is_root: bool,
    cwd: String,
    /// Where the tenant's files are in the file system that this process sees.
    tenants: BTreeSet<String>,
}

impl Trace {
    /// Each breach of the rule at the head of container.ini, and the number of system calls that
    /// root made with a tenant's files mounted.
    fn broken(&self) -> (Vec<String>, usize) {
        let parents = self.parents();
        let mut processes: BTreeMap<&str, Process> = BTreeMap::new();
        let (mut broken, mut looked_at) = (Vec::new(), 0);
        for line in self.0.lines() {
            let Some((pid, call)) = line.split_once(' ') else { continue };
            let call = call.trim_start();
            if !processes.contains_key(pid) {
                let born = match parents.get(pid).and_then(|parent| processes.get(parent.as_str())) {
                    Some(parent) => parent.clone(),
                    None => Process { is_root: true, cwd: "/".into(), ..Process::default() },
                };
                processes.insert(pid, born);
            }
            let process = processes.get_mut(pid).unwrap();
            if call.starts_with("---") || call.starts_with("+++") || call.starts_with("<...") {
                continue;
            }
            let (name, arguments) = call.split_once('(').unwrap_or((call, ""));
            if name.starts_with("set") && name.contains("uid") {
                process.is_root = arguments.starts_with('0') || arguments.starts_with("-1");
            }
            if !process.is_root {
                continue;
            }
            let paths = paths(name, arguments, &process.cwd);
            looked_at += usize::from(!process.tenants.is_empty());
            for path in &paths {
                let below = process.tenants.iter().any(|place| path.starts_with(&format!("{place}/")));
                let by_name = path
                    .split_once("/containers/3000")
                    .is_some_and(|(_, rest)| rest.len() > 1 && rest.as_bytes()[1] == b'/');
                if below || by_name {
                    broken.push(format!("{pid} resolves {path}: {call}"));
                }
            }
            if !process.tenants.is_empty() && name.starts_with("exec") {
                broken.push(format!("{pid} executes beside the tenant's files: {call}"));
            }
            // With the tenant's files mounted, root reads only these.
            let reads = name.starts_with("open") && !process.tenants.is_empty();
            if reads && !paths.iter().all(|path| path.starts_with("/sys/fs/cgroup/") || path == "/proc/self/mounts") {
                broken.push(format!("{pid} opens beside the tenant's files: {call}"));
            }
            match name {
                "mount" => {
                    let [source, target] = &paths[..] else { continue };
                    let is_tenants = source.contains("/containers/3000")
                        || process
                            .tenants
                            .iter()
                            .any(|place| source == place || source.starts_with(&format!("{place}/")));
                    if is_tenants {
                        process.tenants.insert(target.clone());
                    }
                }
                "chdir" if call.ends_with("= 0") => process.cwd.clone_from(&paths[0]),
                "pivot_root" => {
                    let moved = process.tenants.iter().map(|place| {
                        place.strip_prefix("/ns").map_or_else(|| format!("/.old_root{place}"), str::to_owned)
                    });
                    process.tenants = moved.collect();
                }
                _ => {}
            }
        }
        (broken, looked_at)
    }

    /// The parent of each process.
    fn parents(&self) -> BTreeMap<String, String> {
        let births = self.0.lines().filter(|line| ["clone", "fork"].iter().any(|name| line.contains(name)));
        births
            .filter_map(|line| {
                let (parent, _) = line.split_once(' ')?;
                let (_, born) = line.rsplit_once("= ")?;
                // "4 /* 1234 in strace's PID NS */", or a single number if both are the same.
                let born = born.split_once("/* ").map_or(born, |(_, outside)| outside);
                let child: String = born.chars().take_while(char::is_ascii_digit).collect();
                (!child.is_empty()).then(|| (child, parent.to_owned()))
            })
            .collect()
    }
}

/// The paths that a system call resolves, made absolute, without those in its result.
fn paths(name: &str, arguments: &str, cwd: &str) -> Vec<String> {
    let strings: Vec<_> = arguments.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    let how_many = match name {
        "getcwd" => 0,
        "mount" | "rename" | "renameat" | "renameat2" | "link" | "linkat" | "pivot_root" => 2,
        "symlink" | "symlinkat" => return paths("unlink", &arguments.replacen('"', "", 2), cwd),
        _ => 1,
    };
    // "AT_FDCWD</here>", or another descriptor.
    let at = arguments.split_once('<').filter(|(before, _)| !before.contains('"') && !before.contains('{'));
    let from = at.and_then(|(_, rest)| rest.split_once('>')).map_or(cwd, |(directory, _)| directory);
    strings
        .into_iter()
        .take(how_many)
        .map(|path| if path.starts_with('/') { path } else { format!("{from}/{path}") })
        .map(|path| path.replace("//", "/").replace("/./", "/").replace("/var/run/", "/run/"))
        .map(|path| path.strip_suffix("/.").map_or(path.clone(), str::to_owned))
        .collect()
}

/// The operator's restart: the Emperor restarts a container whose file has a newer time, in whole
/// seconds.
fn touch_vassal() -> String {
    format!("touch -d @$(($(stat -c %Y {VASSAL}) + 2)) {VASSAL}")
}

/// Every event in a container's life: start, restart by operator and tenant, death, stop.
fn a_life() {
    let died = |how: &str| {
        let before = leader(30001); // which listens, and so has its signal handlers
        sh(how.replace("PID", &before)).ok();
        eventually(how, || pid_1().filter(|now| *now != before));
    };
    died(&touch_vassal());
    died("setpriv --reuid 30001 --regid 30001 --clear-groups kill -HUP PID");
    died("setpriv --reuid 30001 --regid 30001 --clear-groups kill -INT PID");
    died("kill -KILL PID");
    sh(format!("mv {VASSAL} /tmp/walls.vassal")).ok();
    eventually("its stop", || pid_1().is_none().then_some(()));
    sh(format!("mv /tmp/walls.vassal {VASSAL}")).ok();
    leader(30001);
}

#[test]
#[ignore = "needs the node: make test"]
fn root_opens_nothing_of_the_tenants_and_runs_nothing_beside_it() {
    let _gone = AtEnd(|| drop(sh("rm -f /tmp/walls.trace; node-wait-container 30001")));
    let traced = Traced::start();
    a_life();
    let (broken, looked_at) = traced.stop().broken();
    assert!(broken.is_empty(), "{broken:#?}");
    // Seven starts. This proves that the trace has root at work with the tenant's files mounted.
    assert!(looked_at >= 7 * 8, "{looked_at} system calls");
}

#[test]
#[ignore = "needs the node: make test"]
fn the_trace_sees_each_kind_of_breach() {
    let _gone = AtEnd(|| drop(sh("rm -f /tmp/walls.trace; node-wait-container 30001")));
    let changed = Changed::unseen_by_the_emperor(VASSAL, |text| {
        text.replace("no-initgroups = true\n", "").replace("hook-as-user = exec:", "hook-as-root = exec:")
            + "logto = /containers/%n/logs/walls.log\n\
               hook-pre-jail = chmod:/ns/containers/%n/.ssh 700\n\
               hook-as-root = mount:none /usr/local/.ssh /mnt bind\n\
               hook-as-root = exec:test -e /containers/%n/run\n\
               hook-as-root = exec:/bin/true\n"
    });
    let vassal = fs::read_to_string(VASSAL).unwrap();
    let traced = Traced::start();
    drop(changed); // before another Emperor reads it
    let (broken, _) = traced.stop().broken();
    for (kind, what) in [
        (" resolves /containers/30001/logs/walls.log: ", "open"),
        (" resolves /ns/containers/30001/.ssh: ", "chmod"),
        (" resolves /usr/local/.ssh: ", "mount"),
        (" resolves /containers/30001/run: ", "stat"),
        (" executes ", "\"/bin/true\""),
        (" executes ", "/bin/mkdir -p"),
        (" opens ", "/etc/group"),
    ] {
        let seen = broken.iter().any(|line| line.contains(kind) && line.contains(what));
        assert!(seen, "{kind}{what}: {broken:#?} in {vassal}");
    }
}
