//! `unbitctl create` and `remove` of the Emperor's containers: what they make and take away, what
//! stays when something fails, and what a tenant that was there before can do to them.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use unbit_tests::*;

const UID: u32 = 30006;
const KEY: &str = "/root/.ssh/id_ed25519.pub";
const HOME: &str = "/containers/30006";
const VASSAL: &str = "/etc/uwsgi/vassals/30006.ini";
/// A tree of a distribution's shape in which nothing is: no container starts from it.
const BROKEN: &str = "/distros/broken";

fn unbitctl(words: &str) -> Done {
    run("unbitctl", &words.split_whitespace().collect::<Vec<_>>(), b"")
}

fn create(words: &str) -> Done {
    unbitctl(&format!("create {UID} {words}"))
}

/// However a test ends, the next one finds nothing of its container.
fn afterwards() -> AtEnd<impl FnMut() + use<>> {
    AtEnd(|| {
        sh("umount -R /containers/30006/mnt");
        sh("unbitctl remove 30006 --purge --yes; rm -rf /containers/30006 /distros/broken");
    })
}

/// What is there of the container: its directory with the inode numbers below it, its file, its
/// processes and its cgroups.
fn state() -> String {
    sh(format!(
        "find /containers -path '*30006*' -printf '%p %y %U:%G %m %i %s\\n' | grep -vE '/(logs|run|vassals)' | sort
        ls -a /etc/uwsgi/vassals; cat {VASSAL} 2>&1 | cksum
        ps -eo uid=,stat=,args= | grep '^ *{UID} [^Z]'
        find /sys/fs/cgroup -name {UID} | sort; cksum /root/.ssh/authorized_keys"
    ))
    .out
}

/// A limit of one of its cgroups; `None` where this layout has no such controller.
fn limit(files: &[&str]) -> Option<String> {
    let find =
        files.iter().map(|file| format!("find -L /sys/fs/cgroup -maxdepth 3 -path '*/{UID}/{file}' 2>/dev/null"));
    let found = sh(format!("({}) | head -1", find.collect::<Vec<_>>().join("; "))).ok();
    (!found.is_empty()).then(|| fs::read_to_string(found).unwrap().trim().to_owned())
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_is_made_changed_stopped_and_purged() {
    let _end = afterwards();
    let began = Instant::now();
    let said = create(&format!("--key {KEY}")).ok();
    let landed = ssh(UID, "hostname; id -un; pwd").ok();
    let took = began.elapsed();
    assert_eq!(landed, format!("c{UID}\n{UID}\n{HOME}"));
    println!("from create to the end of an ssh session: {took:.1?}");
    assert!(took < Duration::from_secs(10), "{took:?}: {said}");
    assert!(said.ends_with("\nssh 30006@node"), "{said}");
    for line in [
        "directory     /containers/30006: made",
        "node (ED25519): added",
        "vassal        /etc/uwsgi/vassals/30006.ini: made; memory 1G, pids 1000, on /distros/base",
        "start         its pid 1 is process ",
        "\ncheck         ",
        " ok\nssh 30006@node",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert_eq!(
        sh(format!("cmp {VASSAL} /usr/share/doc/unbit/examples/container.ini && stat -c '%U:%G %a' {VASSAL}")).ok(),
        "root:root 644"
    );
    let stat = sh(format!("stat -c '%u:%g %a' {HOME} {HOME}/.ssh {HOME}/.ssh/authorized_keys; ls -A {HOME}/.ssh")).ok();
    assert_eq!(stat, "30006:30006 755\n30006:30006 700\n30006:30006 600\nauthorized_keys");

    // A second time, and with the same limits, it finds all of it.
    let before = state() + &leader(UID);
    for words in [format!("--key {KEY}"), "--memory 1G --pids 1000 --distribution base".to_owned(), String::new()] {
        let said = create(&format!("{words} --json")).ok();
        assert!(said.contains("\"changed\": false") && !said.contains("\"changed\": true"), "{said}");
        assert!(said.contains("\"login\": \"ssh 30006@node\"") && said.contains("\"check\": \"shell\""), "{said}");
        assert_eq!(state() + &leader(UID), before, "{words}");
    }

    // Other limits are another vassal, and the container restarts; a session that is open ends.
    let session = Session::open(UID, &[], 3301);
    let said = create("--memory 512M --pids 400 --cpus 1.5").ok();
    let changed = "30006.ini: memory 512M, pids 400, cpus 1.5, on /distros/base instead of memory 1G, pids 1000, on /distros/base; it restarts, which ends its 1 open sessions";
    assert!(said.contains(changed), "{said}");
    assert_eq!(ssh(UID, "hostname").ok(), "c30006");
    eventually("the end of the session", || (!fs::exists(format!("/proc/{}", session.process)).unwrap()).then_some(()));
    drop(session);
    for (files, value) in [
        (["memory.max", "memory.limit_in_bytes"], "536870912"),
        (["pids.max", "pids.max"], "400"),
        (["cpu.max", "cpu.cfs_quota_us"], "150000"),
    ] {
        match limit(&files) {
            Some(found) => assert_eq!(found.split(' ').next(), Some(value), "{files:?}"),
            None => not_tried(
                format_args!("{files:?}: no such controller here"),
                layout_lacks_controllers() || files[1].starts_with("cpu"),
            ),
        }
    }

    // Its files stay, and it is made again from them.
    sh(format!("setpriv --reuid {UID} --regid {UID} --clear-groups touch {HOME}/kept")).ok();
    let said = unbitctl("remove 30006").ok();
    assert!(said.contains("vassal        /etc/uwsgi/vassals/30006.ini: removed\nstop          it has ended"), "{said}");
    assert_eq!(
        sh(format!(
            "ps -eo uid=,stat=,args= | grep '^ *{UID} [^Z]'; find /sys/fs/cgroup -name {UID}; ls /etc/uwsgi/vassals"
        ))
        .out,
        "30000.ini\n30001.ini\n"
    );
    assert!(ssh(UID, "true").failed().contains("is not running"));
    let said = unbitctl("remove 30006").ok();
    assert!(said.contains("it did not run") && !said.contains(": removed"), "{said}");
    let said = create("").ok();
    assert!(said.contains("some exist already") && said.contains("memory 1G"), "{said}");
    assert_eq!(ssh(UID, "ls").ok(), "kept\nlogs\nrun\nvassals");

    let err = unbitctl("remove 30006 --purge").failed();
    assert!(err.contains("all files in it would be removed: confirm with --yes"), "{err}");
    assert_eq!(ssh(UID, "hostname").ok(), "c30006", "nothing was done");
    sh("ln -s 30006 /containers/web5").ok();
    let said = unbitctl("remove 30006 --purge --yes --json").ok();
    assert!(said.contains("/containers/30006: removed, with") && said.contains("/containers/web5: removed"), "{said}");
    assert_eq!(sh("ls -A /containers").ok(), "30000\n30001");
    let said = unbitctl("remove 30006 --purge --yes").ok();
    assert!(said.ends_with("30006: there is nothing to remove"), "{said}");
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn what_is_wrong_is_found_before_anything_is_made() {
    let _end = afterwards();
    sh(format!(
        "mkdir -p {BROKEN}/.old_root; ssh-keygen -q -t ed25519 -N '' -f /tmp/other <<<y; echo hello >/tmp/words
        echo \"$(cat /tmp/other.pub) $(head -c 400000 /dev/zero | tr '\\0' x)\" >/tmp/long"
    ))
    .ok();
    let before = state();
    for (words, status, cause) in [
        ("", 1, "without a key nobody could log in to 30006: give --key FILE, or --without-key"),
        ("--key /is/not/there", 1, "/is/not/there: No such file or directory"),
        ("--key /root/.ssh/id_ed25519", 1, "is a private key"),
        ("--key /tmp/words", 1, "/tmp/words, line 1: it is not a public key"),
        ("--key - --key /tmp/other.pub", 1, "standard input contains no public key"),
        ("--key /tmp/long --key /tmp/long --key /tmp/long", 1, "the keys have more than 1048576 bytes together"),
        (
            "--key /tmp/other.pub --distribution none",
            1,
            "there is no distribution /distros/none: unbitctl setup distribution none",
        ),
        ("--key /tmp/other.pub --distribution broken", 1, "/distros/broken has no directory containers"),
        ("--key /tmp/other.pub --distribution ../base", 2, "the name of a directory in /distros is needed"),
        ("--key /tmp/other.pub --memory 1", 2, "a container needs 32M at least"),
        ("--key /tmp/other.pub --memory 1X", 2, "a size is needed"),
        ("--key /tmp/other.pub --pids 1", 2, "1 is not in 10..=4194304"),
        ("--key /tmp/other.pub --cpus 0", 2, "a number of processors is needed"),
        ("--key /tmp/other.pub --disk 10G", 1, "has no user quota"),
        ("--key /tmp/other.pub --without-key", 2, "cannot be used with"),
    ] {
        let done = create(words);
        assert_eq!(done.status, Some(status), "{words}: {done:?}");
        assert!(done.err.contains(cause), "{words}: {done:?}");
        assert_eq!(state(), before, "{words}");
    }
    for (change, undo, cause) in [
        ("mkdir /containers/30006", "rmdir /containers/30006", "/containers/30006 exists, and belongs to 0:0"),
        ("ln -s nowhere /containers/30006", "rm /containers/30006", "is a symbolic link that leads nowhere"),
        (
            "echo 'bob:x:30006:100::/:/bin/sh' >>/etc/passwd",
            "sed -i '$d' /etc/passwd",
            "30006 is an account already: bob has the uid 30006",
        ),
        (
            "mkdir -p /etc/unbit; ln -s /sys/fs/cgroup/x /etc/unbit/30006",
            "rm -r /etc/unbit",
            "30006 is a container of another engine",
        ),
        (
            "touch /etc/uwsgi/vassals/30006.yml",
            "rm /etc/uwsgi/vassals/30006.yml",
            "another vassal in /etc/uwsgi/vassals starts 30006 already",
        ),
        (
            "ln -s /etc/passwd /etc/uwsgi/vassals/30006.ini",
            "rm /etc/uwsgi/vassals/30006.ini",
            "30006.ini is not a regular file",
        ),
        (
            "chmod o+w /etc/uwsgi/vassals",
            "chmod o-w /etc/uwsgi/vassals",
            "users other than root can write to /etc/uwsgi/vassals",
        ),
        ("mv /etc/uwsgi/cgroup.ini /tmp", "mv /tmp/cgroup.ini /etc/uwsgi", "the Emperor is not set up here"),
        ("mv /distros /distributions", "mv /distributions /distros", "unbitctl setup distribution base"),
    ] {
        sh(change).ok();
        let before = state();
        let done = create(&format!("--key {KEY}"));
        let after = state();
        sh(undo).ok();
        assert!(done.failed().contains(cause), "{change}");
        assert_eq!(before, after, "{change}");
    }
    let done = sh(format!("setpriv --reuid 1000 --regid 1000 --clear-groups unbitctl create {UID} --key {KEY}"));
    assert_eq!((done.status, done.err.as_str()), (Some(3), "unbitctl: create needs root\n"));
    for words in ["create 30001x", "create 7", "remove 030001"] {
        assert_eq!(unbitctl(words).status, Some(2), "{words}");
    }
    assert_honest_logins();
}

/// `create` while something keeps the container from being entered: it ends by itself, or by a
/// signal. All is as before.
#[test]
#[ignore = "needs the node: make test"]
fn what_was_made_is_undone_when_a_step_fails() {
    let _end = afterwards();
    sh(format!("mkdir -p {BROKEN}/.old_root {BROKEN}/containers")).ok();
    let before = state();
    let log = sh("wc -c </var/log/emperor.log").ok();
    let done = create(&format!("--key {KEY} --distribution broken --timeout 3"));
    let err = done.failed();
    assert!(err.contains("create 30006 failed; /etc/uwsgi/vassals/30006.ini is removed again, the keys are taken out again, /containers/30006 is removed again: "), "{err}");
    assert_eq!(state(), before, "{}", sh(format!("tail -c +{log} /var/log/emperor.log")).out);

    {
        let _pam = without_line("session");
        let done = create(&format!("--key {KEY}"));
        assert!(
            done.out.contains("FAIL  pam") && !done.out.contains("vassal"),
            "before the container is started: {done:?}"
        );
        assert!(done.failed().contains("a login would fail at step pam: "));
        // Nobody reads what is wrong.
        let unread = sh(format!("unbitctl create 30006 --key {KEY} >/dev/full"));
        assert!(unread.failed().contains("a login would fail at step pam: "));
        assert_eq!(state(), before);
    }

    for (signal, name) in [("INT", "SIGINT"), ("TERM", "SIGTERM"), ("HUP", "SIGHUP")] {
        let mut create = begin(&format!("--key {KEY} --distribution broken"));
        eventually("its vassal", || fs::exists(VASSAL).unwrap().then_some(()));
        let err = end_by(&mut create, signal);
        assert!(err.contains(&format!("/containers/30006 is removed again: ended by {name}")), "{err}");
        assert_eq!(state(), before, "{signal}");
    }

    // What was there stays: the directory, a key, the vassal, and the container runs again.
    create(&format!("--key {KEY}")).ok();
    sh("ssh-keygen -q -t ed25519 -N '' -f /tmp/other <<<y").ok();
    let keys = fs::read_to_string(format!("{HOME}/.ssh/authorized_keys")).unwrap();
    let vassal = fs::read_to_string(VASSAL).unwrap();
    let err = create("--key /tmp/other.pub --distribution broken --timeout 3").failed();
    assert!(
        err.contains("create 30006 failed; /etc/uwsgi/vassals/30006.ini is as before, the keys are taken out again: "),
        "{err}"
    );
    assert_eq!(fs::read_to_string(format!("{HOME}/.ssh/authorized_keys")).unwrap(), keys);
    assert_eq!(fs::read_to_string(VASSAL).unwrap(), vassal);
    create("").ok();
    assert_eq!(ssh(UID, "hostname").ok(), "c30006");
    assert_honest_logins();
}

fn begin(words: &str) -> Child {
    let words = format!("create {UID} {words}");
    let mut command = Command::new("unbitctl");
    command.args(words.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn end_by(create: &mut Child, signal: &str) -> String {
    sh(format!("kill -{signal} {}", create.id())).ok();
    let mut err = String::new();
    std::io::Read::read_to_string(&mut create.stderr.take().unwrap(), &mut err).unwrap();
    assert_eq!(create.wait().unwrap().code(), Some(1), "{err}");
    err
}

#[test]
#[ignore = "needs the node: make test"]
fn create_and_remove_are_refused_while_a_create_runs() {
    let _end = afterwards();
    sh(format!("mkdir -p {BROKEN}/.old_root {BROKEN}/containers")).ok();
    let mut first = begin(&format!("--key {KEY} --distribution broken"));
    eventually("its vassal", || fs::exists(VASSAL).unwrap().then_some(()));
    for words in [format!("create {UID} --key {KEY}"), format!("remove {UID}")] {
        assert!(unbitctl(&words).failed().contains("another unbitctl is working on 30006"), "{words}");
    }
    end_by(&mut first, "TERM");
}

#[test]
#[ignore = "needs the node: make test"]
fn what_a_tenant_keeps_from_being_undone_is_told() {
    let _end = afterwards();
    sh(format!("mkdir -p {BROKEN}/.old_root {BROKEN}/containers; install -d -o {UID} -g {UID} {HOME}")).ok();
    let mut create = begin(&format!("--key {KEY} --distribution broken"));
    eventually("its vassal", || fs::exists(VASSAL).unwrap().then_some(()));
    as_tenant("mv .ssh kept; ln -s /root/.ssh .ssh");
    let err = end_by(&mut create, "TERM");
    assert!(err.contains(&format!("this could not be undone: {HOME}: .ssh is a symbolic link")), "{err}");
    assert!(err.contains("create 30006 failed;") && err.contains("and the rest could not be undone"), "{err}");
}

/// The kernel keeps a user's keyrings until the next boot, and sshd its last login.
#[test]
#[ignore = "needs the node: make test"]
fn the_next_user_of_a_number_finds_nothing_of_the_one_before() {
    const LASTLOG: &str = "/var/log/lastlog";
    let _end = afterwards();
    let keyctl = libc::SYS_keyctl;
    let perl = |script: &str| run("ssh", &[&format!("{UID}@node"), "perl", "-"], script.as_bytes()).ok();
    // -3 is the session's keyring, -4 the user's; 22 is KEYCTL_GET_PERSISTENT, 8 KEYCTL_LINK, 11
    // KEYCTL_READ.
    let open = format!(
        "my @rings = (-4); my $persistent = syscall({keyctl}, 22, -1, -3); push @rings, $persistent if $persistent > 0;
         syscall({keyctl}, 8, -4, -3) == 0 or die qq(link: $!);"
    );
    let add = format!(
        "{open} for my $ring (@rings) {{ my ($type, $name, $secret) = (q(user), q(unbit), q(secret));
         syscall({}, $type, $name, $secret, length $secret, $ring) > 0 or die qq(add: $!); print qq(added\n) }}",
        libc::SYS_add_key
    );
    let read = format!(
        "{open} for my $ring (@rings) {{ my $keys = qq(\\0) x 4096; my $length = syscall({keyctl}, 11, $ring, $keys, 4096);
         for my $key (unpack q(l*), substr $keys, 0, $length) {{ my $value = qq(\\0) x 9;
         my $length = syscall({keyctl}, 11, $key, $value, 9); print substr($value, 0, 6), qq(\n) if $length == 6 }} }}"
    );
    let last_login = || {
        let file = fs::read(LASTLOG).unwrap_or_default();
        let record = file.chunks_exact(292).nth(UID as usize).unwrap_or_default();
        record.iter().any(|byte| *byte != 0)
    };
    // By `remove --purge`, and by hand.
    for gone in ["unbitctl remove 30006 --purge --yes", "unbitctl remove 30006 && rm -r /containers/30006"] {
        create(&format!("--key {KEY}")).ok();
        let added = perl(&add);
        assert!(["added", "added\nadded"].contains(&added.as_str()), "{added}");
        assert_eq!(perl(&read), added.replace("added", "secret"), "it is there in the next session");
        if fs::exists(LASTLOG).unwrap() {
            run("ssh", &["-tt", &format!("{UID}@node"), "true"], b"").ok();
            assert!(last_login(), "sshd writes none");
        }
        sh(gone).ok();
        create(&format!("--key {KEY}")).ok();
        assert!(!last_login(), "{gone}");
        assert_eq!(perl(&read), "", "{gone}");
        assert!(!last_login(), "{gone}");
        unbitctl("remove 30006 --purge --yes").ok();
    }
    // A record of lastlog is removed, and none is made.
    let size = || fs::metadata(LASTLOG).map_or(0, |file| file.len());
    let before = size();
    sh("install -d -o 2000000000 -g 2000000000 /containers/2000000000").ok();
    unbitctl("remove 2000000000 --purge --yes").ok();
    assert_eq!(size(), before);
    assert_honest_logins();
}

/// Its last step fails when the directory is gone already.
#[test]
#[ignore = "needs the node: make test"]
fn a_purge_that_has_failed_is_finished_by_the_next_one() {
    const RECORD: &str = "dd if=/var/log/lastlog bs=292 skip=30006 count=1 status=none | tr -d '\\0'";
    let _end = afterwards();
    sh("cd /var/log; [ ! -e lastlog ] || mv lastlog lastlog.away; mkdir lastlog").ok();
    let _back = AtEnd(|| drop(sh("cd /var/log; rm -rf lastlog; [ ! -e lastlog.away ] || mv lastlog.away lastlog")));
    sh(format!("install -d -o {UID} -g {UID} {HOME}")).ok();
    let err = unbitctl("remove 30006 --purge --yes").failed();
    assert!(err.contains("remove what the node keeps of its user: /var/log/lastlog: "), "{err}");
    assert!(!fs::exists(HOME).unwrap(), "{err}");
    sh("cd /var/log; rmdir lastlog; echo there | dd of=lastlog bs=292 seek=30006 conv=sync status=none").ok();
    assert_eq!(sh(RECORD).ok(), "there");
    unbitctl("remove 30006 --purge --yes").ok();
    assert_eq!(sh(RECORD).ok(), "");
}

/// sshd reads an authorized_keys file that it has opened to its end, also after `remove --purge`.
/// The one at the end of a long file is then the former user's.
#[test]
#[ignore = "needs the node: make test"]
fn a_login_that_began_before_a_purge_is_not_the_next_users() {
    let _end = afterwards();
    let _keys = AtEnd(|| drop(sh("rm -f /root/former /root/former.public /root/next /root/next.pub")));
    // Without the public key, ssh signs at once; with it, it would ask first, and sshd read twice.
    sh("ssh-keygen -q -t rsa -b 2048 -m PEM -N '' -f /root/former && mv /root/former.pub /root/former.public; \
        ssh-keygen -q -t ed25519 -N '' -f /root/next")
    .ok();
    create("--key /root/former.public").ok();
    sh(format!(
        "cd {HOME}/.ssh && truncate -s 300M authorized_keys && {{ echo; cat /root/former.public; }} >>authorized_keys"
    ))
    .ok();
    let log = Log::from_now();
    let client = Command::new("ssh")
        .args(["-F", "none", "-i", "/root/former", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"])
        .args(["30006@node", "hostname; cat secret"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let readers =
        format!("find /proc/[0-9]*/fd -lname {HOME}/.ssh/authorized_keys 2>/dev/null | cut -d/ -f3 | head -1");
    let reader = eventually("sshd to read authorized_keys", || Some(sh(&readers).out).filter(|pid| !pid.is_empty()));
    let reader = reader.trim();
    sh(format!("kill -STOP {reader}")).ok();
    let goes_on = AtEnd(|| drop(sh(format!("kill -CONT {reader}"))));
    unbitctl("remove 30006 --purge --yes").ok();
    create("--key /root/next.pub").ok();
    sh(format!("echo secret of the next user >{HOME}/secret && chown 30006:30006 {HOME}/secret")).ok();
    drop(goes_on);
    let done = client.wait_with_output().unwrap();
    assert!(!done.status.success() && done.stdout.is_empty(), "{done:?}\n{}", log.text());
    let line = log.one_line("refused:");
    assert!(line.contains("and this login began") && line.contains("/containers/30006 was made"), "{line}");
    assert_eq!(sh("ssh -i /root/next 30006@node cat secret").ok(), "secret of the next user");
    assert_honest_logins();
}

/// Runs perl on the node as this user, with the keyrings that the kernel has for it.
fn perl_as(uid: u32, script: &str) -> String {
    let uid = uid.to_string();
    run("setpriv", &["--reuid", &uid, "--regid", &uid, "--clear-groups", "perl", "-"], script.as_bytes()).ok()
}

/// Two numbers that no other run has: all nodes of this machine have the same keys, and the kernel
/// keeps a revoked keyring for some minutes.
fn unused_uids() -> (u32, u32) {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let uid = 1_000_000_000 + u32::try_from(seconds * 2 % 1_000_000_000).unwrap();
    (uid, uid + 1)
}

/// The owner of a keyring may take its rights away, also from root.
#[test]
#[ignore = "needs the node: make test"]
fn whoever_closes_its_keyrings_keeps_nobody_from_its_number() {
    let (add_key, keyctl) = (libc::SYS_add_key, libc::SYS_keyctl);
    // -4 is the user's keyring, -5 its session's; 5 is KEYCTL_SETPERM, 3 KEYCTL_REVOKE.
    let unwritable = format!("syscall({keyctl}, 5, $_, 0x0b0b0000) == 0 or die qq(setperm: $!) for (-4, -5)");
    let revoked = format!("syscall({keyctl}, 3, -4) == 0 or die qq(revoke: $!)");
    let (uid, next) = unused_uids();
    for (close, is_told, uid) in [(&unwritable, false, uid), (&unwritable, false, uid), (&revoked, true, next)] {
        let _end = AtEnd(|| drop(sh(format!("unbitctl remove {uid} --purge --yes; rm -rf /containers/{uid}"))));
        let make = format!("unbitctl create {uid} --key {KEY}");
        sh(&make).ok();
        perl_as(
            uid,
            &format!(
                "my ($type, $name, $secret) = (q(user), q(unbit), q(secret));
                 syscall({add_key}, $type, $name, $secret, length $secret, -4) > 0 or die qq(add: $!); {close}"
            ),
        );
        let telling = format!("the user {uid} has closed its keyrings");
        let removed = sh(format!("unbitctl remove {uid} --purge --yes"));
        assert_eq!((removed.status, removed.err.contains(&telling)), (Some(0), is_told), "{close}: {removed:?}");
        assert!(removed.out.contains(&format!("/containers/{uid}: removed")), "{close}: {removed:?}");
        let made = sh(&make);
        assert_eq!((made.status, made.err.contains(&telling)), (Some(0), is_told), "{close}: {made:?}");
        assert!(!ssh(uid, "cat /proc/keys").ok().contains("unbit"), "{close}");
        if !is_told {
            perl_as(uid, &format!("syscall({keyctl}, 0, -4, 1) > 0 or die qq(the next user has no keyring: $!)"));
        }
    }
    assert_honest_logins();
}

/// Keys of a user that another user has linked to a keyring of its own would stay, and count as
/// those of the next user of the number. They may have the names of the kernel's keyrings.
#[test]
#[ignore = "needs the node: make test"]
fn keys_that_another_user_keeps_are_not_the_next_users() {
    let (add_key, keyctl) = (libc::SYS_add_key, libc::SYS_keyctl);
    let (uid, other) = unused_uids();
    let _end = AtEnd(|| drop(sh(format!("unbitctl remove {uid} --purge --yes"))));
    // With the second one, only who possesses a key may do anything with it.
    for (close, kept) in [("3f3f3f3f", None), ("3f000000", Some("3 keys of the user"))] {
        sh(format!("unbitctl create {uid} --key {KEY}")).ok();
        // -2 is the process's keyring, -4 the user's; 5 is KEYCTL_SETPERM, 7 KEYCTL_CLEAR, 8
        // KEYCTL_LINK.
        let mut owner = Command::new("setpriv")
            .args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups", "perl", "-e"])
            .arg(format!(
                "$| = 1; my ($user, $keyring, $secret) = (q(user), q(keyring), q(secret)); my @keys;
                 for (qw(unbit _uid.{uid})) {{ my $name = $_; push @keys, syscall({add_key}, $user, $name, $secret, 6, -2) }}
                 my $name = q(_uid_ses.{uid}); push @keys, syscall({add_key}, $keyring, $name, 0, 0, -2);
                 syscall({keyctl}, 5, $_, 0x3f3f3f3f) == 0 or die qq(setperm: $!) for @keys;
                 print qq(@keys\n); <STDIN>; syscall({keyctl}, 5, $_, hex q({close})) for @keys"
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut keys = String::new();
        BufReader::new(owner.stdout.take().unwrap()).read_line(&mut keys).unwrap();
        let linked = perl_as(other, &format!("print syscall({keyctl}, 8, $_ + 0, -4) for qw({keys})"));
        let _clear = AtEnd(|| drop(perl_as(other, &format!("syscall({keyctl}, 7, -4)"))));
        assert_eq!(linked, "000", "{keys}");
        drop(owner.stdin.take());
        assert!(owner.wait().unwrap().success());
        let removed = sh(format!("unbitctl remove {uid} --purge --yes"));
        assert_eq!(removed.status, Some(0), "{close}: {removed:?}");
        match kept {
            Some(telling) => assert!(removed.err.contains(telling), "{close}: {removed:?}"),
            None => {
                // Those of its two keyrings are left.
                let users = fs::read_to_string("/proc/key-users").unwrap();
                let its = users.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{uid}:")));
                assert!(its.is_none_or(|its| its.contains(" 2/")) && removed.err.is_empty(), "{its:?} {removed:?}");
            }
        }
    }
    assert_honest_logins();
}

/// A key's name may contain line feeds. In /proc/keys the rest looks like keys of its owner's, with
/// any number, such as that of a key that root has, or -3, which is root's session keyring.
#[test]
#[ignore = "needs the node: make test"]
fn the_name_of_a_key_does_not_make_root_end_others() {
    let (add_key, keyctl) = (libc::SYS_add_key, libc::SYS_keyctl);
    let (uid, other) = unused_uids();
    let _end = AtEnd(|| drop(sh(format!("unbitctl remove {uid} --purge --yes"))));
    // Root sees the first key, and its owner does not. The second name is not UTF-8.
    let line = |number: &str| format!("{number} I--Q--- 1 perm 3f3f3f3f {uid} {uid} user x");
    for (name, permissions, is_ended) in [("unbit\\n-3\\n$key", 1, false), ("\\xff", 0x3f3f_3f3f, true)] {
        sh(format!("unbitctl create {uid} --key {KEY}")).ok();
        // 1 is KEYCTL_JOIN_SESSION_KEYRING, 11 KEYCTL_READ.
        let mut operator = Command::new("perl")
            .arg("-e")
            .arg(format!(
                "$| = 1; syscall({keyctl}, 1, 0) > 0 or die qq(join: $!); my ($user, $name, $secret) = qw(user operators secret);
                 my $key = syscall({add_key}, $user, $name, $secret, 6, -3); printf qq(%x\\n), $key; <STDIN>;
                 system(qw(unbitctl remove {uid} --purge --yes)) == 0 or die; my $buffer = q(x) x 10;
                 print syscall({keyctl}, 11, $key, $buffer, 10) == 6 ? q(kept) : qq(ended: $!)"
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(operator.stdout.take().unwrap());
        let mut key = String::new();
        said.read_line(&mut key).unwrap();

        // -2 is the process's keyring, -4 the user's; 5 is KEYCTL_SETPERM, 7 KEYCTL_CLEAR, 8
        // KEYCTL_LINK. Another user links the key, so that it stays.
        let name = name.replace("-3", &line("-3")).replace("$key", &line(key.trim()));
        let made = perl_as(
            uid,
            &format!(
                "my ($user, $name, $secret) = (q(user), qq({name}), q(secret));
                 my $key = syscall({add_key}, $user, $name, $secret, 6, -2); $key > 0 or die qq(add: $!);
                 syscall({keyctl}, 5, $key, 0x3f3f3f3f) == 0 && syscall({keyctl}, 8, $key, -4) == 0 or die qq(link: $!);
                 print $key"
            ),
        );
        assert_eq!(perl_as(other, &format!("print syscall({keyctl}, 8, {made}, -4)")), "0", "{name}");
        let _clear = AtEnd(|| drop(perl_as(other, &format!("syscall({keyctl}, 7, -4)"))));
        perl_as(uid, &format!("syscall({keyctl}, 5, {made}, {permissions}) == 0 or die qq(setperm: $!)"));

        drop(operator.stdin.take());
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert!(operator.wait().unwrap().success());
        assert!(rest.ends_with("kept"), "{name}: {rest}");
        let listed = String::from_utf8_lossy(&fs::read("/proc/keys").unwrap()).into_owned();
        let is_listed = listed.contains(&format!("{:08x} ", made.parse::<u32>().unwrap()));
        assert_eq!(is_listed, !is_ended, "{name}: {made}: {listed}");
    }
}

/// A user has so many bytes of keys (`kernel.keys.maxbytes`). With all of them used, even a link to
/// a keyring has no room.
#[test]
#[ignore = "needs the node: make test"]
fn keys_of_a_user_that_has_as_many_as_it_may_are_removed() {
    let (add_key, keyctl) = (libc::SYS_add_key, libc::SYS_keyctl);
    let _end = afterwards();
    let own = format!("print syscall({keyctl}, 0, -3, 0) == syscall({keyctl}, 0, -5, 0) ? 1 : 0");
    if run("perl", &["-e", &own], b"").ok() != "1" {
        return not_tried("these tests were started in a session keyring, which counts among the keys", true);
    }
    create(&format!("--key {KEY}")).ok();
    // 22 is KEYCTL_GET_PERSISTENT, which makes a link to it in the keyring that it is told.
    let fill = format!(
        "my ($ring, $size, $count) = (syscall({keyctl}, 22, -1, -4), 3000, 0);
         if ($ring < 0) {{ print qq(none\n); exit }}
         while ($size) {{ my ($type, $name, $secret) = (q(user), q(unbit) . $count++, q(x) x $size);
             syscall({add_key}, $type, $name, $secret, $size, $ring) > 0 or $size = int $size / 2 }}
         print qq(filled\n)"
    );
    match perl_as(UID, &fill).as_str() {
        "none" => return not_tried("persistent keyrings", kernel_lacks("CONFIG_PERSISTENT_KEYRINGS")),
        filled => assert_eq!(filled, "filled"),
    }
    unbitctl("remove 30006 --purge --yes").ok();
    create(&format!("--key {KEY}")).ok();
    let keys = ssh(UID, "cat /proc/keys").ok();
    assert!(!keys.contains(" unbit"), "{keys}");
}

/// The directory is there, and is the tenant's. Each of these is in it when the operator adds a
/// key.
#[test]
#[ignore = "needs the node: make test"]
fn nothing_of_a_tenants_leads_root_astray() {
    let _end = afterwards();
    for (tenants, cause) in [
        ("ln -s /root/.ssh .ssh", ".ssh is a symbolic link or no directory"),
        ("ln -s ../30001/.ssh .ssh", ".ssh is a symbolic link or no directory"),
        ("touch .ssh", ".ssh is a symbolic link or no directory"),
        ("mkfifo .ssh", ".ssh is a symbolic link or no directory"),
        ("mkdir -m 0 .ssh", ".ssh: EACCES"),
        ("mkdir .ssh; ln -s /root/.ssh/authorized_keys .ssh/", ".ssh/authorized_keys is a symbolic link"),
        ("mkdir .ssh; ln -s nowhere .ssh/authorized_keys", ".ssh/authorized_keys is a symbolic link"),
        ("mkdir .ssh; ln -s /proc/self/fd/1 .ssh/authorized_keys", ".ssh/authorized_keys is a symbolic link"),
        ("mkdir .ssh; mkfifo .ssh/authorized_keys", ".ssh/authorized_keys is not a regular file"),
        ("mkdir -p .ssh/authorized_keys", ".ssh/authorized_keys is not a regular file"),
        (
            "mkdir .ssh; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\".ssh/authorized_keys\")'",
            ".ssh/authorized_keys is not a regular file",
        ),
        (
            "mkdir .ssh; truncate -s 20G .ssh/authorized_keys",
            ".ssh/authorized_keys is too long for an authorized_keys file",
        ),
        ("mkdir .ssh; touch .ssh/authorized_keys; chmod 500 .ssh", "make .ssh/.authorized_keys."),
    ] {
        sh(format!("install -d -o {UID} -g {UID} {HOME}")).ok();
        as_tenant(tenants);
        let before = state() + &sh("cksum /root/.ssh/* /containers/30001/.ssh/*; ls -l /root/.ssh").ok();
        let began = Instant::now();
        let done = create(&format!("--key {KEY}"));
        assert!(began.elapsed() < Duration::from_secs(5), "{tenants}: {:?}", began.elapsed());
        let err = done.failed();
        assert!(err.contains(cause) && err.contains("nothing has been changed"), "{tenants}: {err}");
        assert_eq!(
            state() + &sh("cksum /root/.ssh/* /containers/30001/.ssh/*; ls -l /root/.ssh").ok(),
            before,
            "{tenants}"
        );
        assert!(!fs::exists(VASSAL).unwrap(), "{tenants}");
        sh(format!("rm -rf {HOME}")).ok();
    }
    // What was left by one that was killed, and what the tenant has put in the way, is replaced and
    // not followed.
    for tenants in [
        "mkdir .ssh; ln -s /root/.ssh/authorized_keys .ssh/.authorized_keys.unbitctl",
        "mkdir .ssh; mkfifo .ssh/.authorized_keys.unbitctl",
        "mkdir .ssh; printf 'no newline at the end' >.ssh/authorized_keys",
    ] {
        sh(format!("install -d -o {UID} -g {UID} {HOME}")).ok();
        as_tenant(tenants);
        let roots = sh("cksum /root/.ssh/*").ok();
        create(&format!("--key {KEY}")).ok();
        assert_eq!(sh("cksum /root/.ssh/*").ok(), roots, "{tenants}");
        assert_eq!(ssh(UID, "hostname").ok(), "c30006", "{tenants}");
        assert_eq!(
            sh(format!("ls -A {HOME}/.ssh; stat -c %u {HOME}/.ssh/authorized_keys")).ok(),
            "authorized_keys\n30006"
        );
        unbitctl("remove 30006 --purge --yes").ok();
    }
    assert_honest_logins();
}

fn as_tenant(script: &str) {
    sh(format!("cd {HOME} && setpriv --reuid {UID} --regid {UID} --clear-groups bash -euc {script:?}")).ok();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_does_not_end_is_killed() {
    let _end = afterwards();
    create(&format!("--key {KEY}")).ok();
    let pid = leader(UID);
    sh(format!("kill -STOP {pid}")).ok();
    let began = Instant::now();
    let said = unbitctl("remove 30006").ok();
    // The Emperor has 30 s of patience.
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert!(said.contains("it did not end by itself and was killed; its cgroups are gone"), "{said}");
    eventually("the Emperor's wait for it", || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(()));
    assert_eq!(sh(format!("find /sys/fs/cgroup -name {UID}")).ok(), "");
    assert_honest_logins();
}

/// Its pid 1 is root's at first, as those of other containers may be, and is in its cgroups only
/// later.
#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_is_still_starting_is_waited_for() {
    const HOLD: &str = "/run/hold.fifo";
    let _end = afterwards();
    sh(format!("rm -f {HOLD}; mkfifo {HOLD}; install -d -o {UID} -g {UID} {HOME}")).ok();
    let mut others: Vec<_> = (0..8)
        .map(|_| Command::new("unshare").args(["--pid", "--fork", "--kill-child", "sleep", "7777"]).spawn().unwrap())
        .collect();
    let _gone = AtEnd(move || {
        others.iter_mut().for_each(|other| drop((other.kill(), other.wait())));
        sh(format!("rm -f {HOLD}"));
    });
    eventually("root's other containers", || {
        (sh("pgrep -xfc 'sleep 7777'").out.trim().parse::<u32>() == Ok(8)).then_some(())
    });
    let hold = format!("hook-pre-jail = exec:cat {HOLD}\nhook-pre-jail = exec:ip link");
    let text = fs::read_to_string("/usr/share/doc/unbit/examples/container.ini").unwrap();
    fs::write(VASSAL, text.replace("hook-pre-jail = exec:ip link", &hold)).unwrap();
    let starts = || !sh(format!("pgrep -f '[u]wsgi.*{UID}.ini'")).out.is_empty();
    eventually("its start", || (!sh(format!("pgrep -xf 'cat {HOLD}'")).out.is_empty()).then_some(()));
    assert!(starts());
    let remove = Command::new("unbitctl").args(["remove", "30006"]).stdout(Stdio::piped()).spawn().unwrap();
    eventually("that the Emperor has no file of it", || (!fs::exists(VASSAL).unwrap()).then_some(()));
    fs::write(HOLD, "go on").unwrap();
    let removed = remove.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&removed.stdout);
    assert!(removed.status.success() && said.contains("its cgroups are gone"), "{said}");
    eventually("its end", || (!starts()).then_some(()));
    assert_eq!(sh(format!("find /sys/fs/cgroup -name {UID}")).ok(), "", "{said}");
    assert_honest_logins();
}

/// SECURITY.md, "What is not promised". `create` cannot tell a limit that is too low from a tenant
/// that does not like it.
#[test]
#[ignore = "needs the node: make test"]
fn a_tenant_that_does_not_start_keeps_its_limits_until_they_are_changed_by_hand() {
    const FORMER: &str = "memory-max=1073741824";
    let _end = afterwards();
    create(&format!("--key {KEY}")).ok();
    as_tenant("rm -r logs; ln -s /nowhere/at/all logs");
    let err = create("--memory 64M --timeout 3").failed();
    assert!(err.contains(&format!("{VASSAL} is as before")), "{err}");
    assert!(fs::read_to_string(VASSAL).unwrap().contains(FORMER));
    let _changed = Changed::file(VASSAL, |text| text.replace(FORMER, "memory-max=67108864"));
    as_tenant("rm logs");
    leader(UID);
    match limit(&["memory.limit_in_bytes", "memory.max"]) {
        Some(limit) => assert_eq!(limit, "67108864"),
        None => not_tried("the memory controller", layout_lacks_controllers()),
    }
}

/// Where an engine has delegated a group, a tenant can make one of any name below it.
#[test]
#[ignore = "needs the node: make test"]
fn a_group_of_that_name_elsewhere_is_left_alone() {
    let top = sh("ls /sys/fs/cgroup/{memory,unified,.}/cgroup.procs 2>/dev/null | head -1 | xargs dirname").ok();
    let group = format!("{top}/delegated.slice/{UID}");
    sh(format!("mkdir -p {group}")).ok();
    let mut sleep = Command::new("setpriv")
        .args(["--reuid", "30006", "--regid", "30006", "--clear-groups", "sleep", "8888"])
        .spawn()
        .unwrap();
    sh(format!("echo {} >{group}/cgroup.procs", sleep.id())).ok();
    let _end = AtEnd(|| {
        drop((sleep.kill(), sleep.wait()));
        sh(format!("unbitctl remove {UID} --purge --yes; rmdir {group} {top}/delegated.slice"));
    });
    create(&format!("--key {KEY}")).ok();
    let began = Instant::now();
    unbitctl("remove 30006").ok();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(sh(format!("cat {group}/cgroup.procs | wc -l")).ok(), "1");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_purge_stays_in_the_directory() {
    let _end = afterwards();
    create(&format!("--key {KEY}")).ok();
    let hostile = "mkdir -p a/b/c; ln -s / root; ln -s /etc/passwd a/passwd; ln -s ../30001 a/b/neighbour; mkfifo a/b/c/fifo; \
        ln -s /root/.ssh .unbitctl-1; mkdir -m 0 a/closed; touch -- -rf 'a\nb'; chmod 500 a/b";
    as_tenant(hostile);
    as_tenant("python3 -c 'import os; [(os.mkdir(\"d\"), os.chdir(\"d\")) for _ in range(5000)]'");
    sh(format!("touch {HOME}/roots && chown 0:0 {HOME}/roots && mkdir {HOME}/mnt && mount -t tmpfs none {HOME}/mnt && touch {HOME}/mnt/kept")).ok();
    let outside = sh("ls -lR /root /etc/ssh /containers/30000 | cksum").ok();

    // Another file system stays, and the container is no account meanwhile; the rest is done the
    // next time.
    let err = unbitctl("remove 30006 --purge --yes").failed();
    assert!(
        err.contains("mnt: a file system is mounted there")
            && err.contains("run it again: unbitctl remove 30006 --purge"),
        "{err}"
    );
    assert_eq!(sh("ls -A /containers/*30006*/mnt; ls /containers/.30006.purge/mnt").out.trim(), "kept");
    assert_eq!(sh("getent passwd 30006").status, Some(2));
    sh("umount /containers/.30006.purge/mnt").ok();
    let said = unbitctl("remove 30006 --purge --yes").ok();
    assert!(said.contains("/containers/30006: removed, with"), "{said}");
    assert_eq!(sh("ls -A /containers").ok(), "30000\n30001");
    assert_eq!(sh("ls -lR /root /etc/ssh /containers/30000 | cksum").ok(), outside);

    // A link of the operator's, and a directory that is not the container's, are nobody's to purge.
    for (change, cause) in [("ln -s /root", "is a symbolic link"), ("mkdir", "belongs to 0:0, so it is not 30006's")] {
        sh(format!("{change} {HOME}")).ok();
        let err = unbitctl("remove 30006 --purge --yes").failed();
        assert!(err.contains(cause), "{err}");
        sh(format!("rm -d {HOME}")).ok();
    }
    assert_honest_logins();
}

/// A tenant keeps file systems from moving a directory out of another: by a subvolume of btrfs, or
/// on XFS and ext4 by a project that is inherited. On an overlay, directories of the lower layer
/// cannot be moved; so here the account has lost its name already.
#[test]
#[ignore = "needs the node: make test"]
fn a_purge_of_what_cannot_be_moved() {
    let script = r#"
        mount -t tmpfs none /tmp
        mkdir -p /tmp/lower/.30006.purge/a/b/c/d /tmp/lower/.30006.purge/e/f /tmp/upper /tmp/work
        touch /tmp/lower/.30006.purge/a/b/c/file /tmp/lower/.30006.purge/a/file; ln -s /root /tmp/lower/.30006.purge/a/b/link
        chown -hR 30006:30006 /tmp/lower/.30006.purge
        mount -t overlay none -o lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work,redirect_dir=off /containers || exit 77
        python3 -c "import os; os.rename(\"/containers/.30006.purge/a/b\", \"/containers/.30006.purge/x\")" 2>&1 | grep -o "Errno 18"
        unbitctl remove 30006 --purge --yes
        ls -A /containers"#;
    let outside = sh("ls -lR /root /etc/ssh | cksum").ok();
    let done = sh(format!("unshare --mount --propagation private bash -euc '{script}'"));
    if done.status == Some(77) {
        return not_tried(format_args!("an overlay: {}", done.err), false);
    }
    let said = done.ok();
    let (first, last) = (said.lines().next(), said.lines().last().unwrap());
    assert!(first == Some("Errno 18") && last == "directory     /containers/30006: removed, with 9 files", "{said}");
    assert_eq!(sh("ls -lR /root /etc/ssh | cksum").ok(), outside);
}

/// On a full disk there is no room for one more name in a directory. Who filled it leaves no free
/// place in the blocks that the top has.
#[test]
#[ignore = "needs the node: make test"]
fn a_purge_of_a_disk_that_its_user_has_filled() {
    let fill = r#"chdir q(/containers/30006) or die;
        for (101 .. 140) { my $name = $_ . q(d) x 240; mkdir $name or last; mkdir qq($name/a) and mkdir qq($name/a/b) }
        open my $file, q(>), (glob q(*))[0] . q(/a/b/file); my $block = q(x) x 1024; 1 while syswrite $file, $block; print qq($!\n);
        for my $length (reverse 1 .. 240) { my $number = 0; 1 while open my $empty, q(>), q(f) x $length . $number++ }"#;
    let script = format!(
        r#"mount -t tmpfs none /tmp; truncate -s 8M /tmp/image
        mkfs.ext4 -q -m 0 -b 1024 -O ^has_journal,^dir_index /tmp/image
        for i in {{0..63}}; do [[ -e /dev/loop$i ]] || mknod /dev/loop$i b 7 $i; done
        [[ -e /dev/loop-control ]] || mknod /dev/loop-control c 10 237
        mount -o loop /tmp/image /containers || exit 77
        install -d -o 30006 -g 30006 /containers/30006
        setpriv --reuid 30006 --regid 30006 --clear-groups perl -e '{fill}'
        unbitctl remove 30006 --purge --yes
        ls /containers"#
    );
    let done = run("unshare", &["--mount", "--propagation", "private", "bash", "-euc", &script], b"");
    if done.status == Some(77) {
        return not_tried(format_args!("CONFIG_BLK_DEV_LOOP: {}", done.err), kernel_lacks("CONFIG_BLK_DEV_LOOP"));
    }
    let said = done.ok();
    assert!(said.starts_with("No space left on device\n"), "{said}");
    assert!(
        said.contains("\ndirectory     /containers/30006: removed, with ") && said.ends_with("\nlost+found"),
        "{said}"
    );
}

/// Links lead root nowhere if root writes nothing: of the commands, `create` and `remove` alone
/// change what is below a tenant's directory, and those that enter the container are the tenant
/// there.
#[test]
#[ignore = "needs the node: make test"]
fn no_other_command_writes_in_a_tenants_directory() {
    let _end = afterwards();
    let _links = AtEnd(|| drop(sh("rm -rf /etc/unbit /containers/web5 /tmp/other /tmp/other.pub")));
    create(&format!("--key {KEY}")).ok();
    sh("ssh-keygen -q -t ed25519 -N '' -f /tmp/other <<<y").ok();
    // With the time of each change; the container itself writes its log.
    let state =
        || sh(format!("find {HOME} -path {HOME}/logs -prune -o -printf '%p %y %m %U %G %s %C@ %l\\n' | sort")).ok();
    let before = state();
    let group = sh(format!("find /sys/fs/cgroup -maxdepth 2 -type d -name {UID} | head -1")).ok();
    let commands = [
        "check",
        "check --guide uwsgi.it",
        &format!("check {UID}"),
        "list",
        "list --json",
        "setup --dry-run",
        "setup directories",
        &format!("attach {UID} --cgroup {group}"),
        &format!("attach {UID} --name web5 --create-home"),
        "detach web5",
        &format!("detach {UID}"),
        &format!("enter {UID} -- true"),
        &format!("enter --root {UID} -- true"),
        "completions bash",
    ];
    for command in commands {
        let done = unbitctl(command);
        assert_ne!(done.status, Some(2), "{command}: {done:?}");
        assert_eq!(state(), before, "{command}");
    }
    create("--key /tmp/other.pub").ok();
    assert_ne!(state(), before, "the witness");
}
