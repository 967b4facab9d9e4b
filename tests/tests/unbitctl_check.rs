//! `unbitctl check` of a node: each check fails when its one thing is broken, and passes when that
//! is fixed.
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use unbit_tests::*;

/// What a check says.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    profile: String,
    check: String,
    state: String,
    seen: String,
    fix: Option<String>,
}

/// The findings of a command that ends in `unbitctl check --json`; its exit status must agree with
/// them.
#[track_caller]
fn findings(done: Done) -> Vec<Finding> {
    let json: Value = serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let findings = json.as_array().unwrap().iter().map(|finding| Finding {
        profile: text(&finding["profile"]).unwrap(),
        check: text(&finding["check"]).unwrap(),
        state: text(&finding["state"]).unwrap(),
        seen: text(&finding["seen"]).unwrap(),
        fix: text(&finding["fix"]),
    });
    let findings: Vec<_> = findings.collect();
    let fails = |profile| findings.iter().any(|finding| finding.state == "fail" && finding.profile == profile);
    let status = if fails("login") { 1 } else { 4 * i32::from(fails("uwsgi.it")) };
    assert_eq!(done.status, Some(status), "{findings:?}");
    for finding in &findings {
        assert_eq!(finding.fix.is_some(), ["warn", "fail"].contains(&finding.state.as_str()), "{finding:?}");
    }
    findings
}

/// What one check says of the node, about a login and about the guide; `prefix` goes before the
/// command.
#[track_caller]
fn check_by(prefix: &str, name: &str) -> Vec<Finding> {
    let findings = findings(sh(format!("{prefix} {CHECK}")));
    findings.into_iter().filter(|finding| finding.check == name).collect()
}

const CHECK: &str = "unbitctl check --guide uwsgi.it --json";

/// Whether strace can put an answer in where a call has its own: that of Debian 11 cannot yet.
fn strace_pokes() -> bool {
    let pokes = sh("strace -qq -o /dev/null -e inject=getppid:poke_exit=@arg1=00 true").status == Some(0);
    if !pokes {
        let is_debian_11 = fs::read_to_string("/etc/os-release").unwrap().contains("VERSION_CODENAME=bullseye");
        not_tried("strace has no poke_exit", is_debian_11);
    }
    pokes
}

#[track_caller]
fn check(name: &str) -> Vec<Finding> {
    check_by("", name)
}

/// The finding of this state whose words hold a text.
#[track_caller]
fn one<'a>(findings: &'a [Finding], state: &str, words: &str) -> &'a Finding {
    let mut found = findings.iter().filter(|finding| finding.state == state && finding.seen.contains(words));
    let finding = found.next().unwrap_or_else(|| panic!("no {state} with {words:?} in {findings:#?}"));
    assert_eq!(found.next(), None);
    finding
}

/// All is well with a check, as far as this text goes.
#[track_caller]
fn assert_healthy(findings: &[Finding], words: &str) {
    one(findings, "ok", words);
    assert!(findings.iter().all(|finding| finding.state == "ok"), "{findings:#?}");
}

// The two questions

/// On a node that is set up as examples/ has it nothing is wrong that a login needs; the guide's
/// steps are another question.
#[test]
#[ignore = "needs the node: make test"]
fn nothing_is_wrong_with_the_node_of_the_examples() {
    for uid in [30000, 30001] {
        leader(uid);
    }
    let found = findings(sh("unbitctl check --json"));
    let faults: Vec<_> = found.iter().filter(|finding| ["warn", "fail"].contains(&finding.state.as_str())).collect();
    match faults.as_slice() {
        [] => {}
        faults if layout_lacks_controllers() => {
            assert!(faults.iter().all(|finding| finding.seen.starts_with("no limit on ")), "{faults:#?}");
            not_tried("limits: this layout has no such controllers", true);
        }
        faults => panic!("{faults:#?}"),
    }
    assert!(found.iter().all(|finding| finding.profile == "login"), "{found:#?}");
    assert_eq!(sh("unbitctl check --guide another").status, Some(2));
    assert_eq!(sh("unbitctl check --guide uwsgi.it 30001").status, Some(2));
    let guide: Vec<_> = findings(sh(CHECK)).into_iter().filter(|finding| finding.profile == "uwsgi.it").collect();
    for check in ["filesystem", "cgroups", "time", "directories", "sshd", "ports", "subids", "keyfiles"] {
        assert!(guide.iter().any(|finding| finding.check == check), "{check}: {guide:#?}");
    }
    // A fault in both: what a login needs decides.
    let _mode = AtEnd(|| drop(sh("chmod 755 /containers")));
    sh("chmod 777 /containers").ok();
    assert_eq!(sh(CHECK).status, Some(1));
}

// Directories

/// All of them, as set-up makes them.
const MADE: &str = "
    install -d /containers /distros /ns /opt/unbit/uwsgi/plugins /etc/uwsgi/{vassals,ssl,services,custom_services}
    install -d -o www-data -g www-data /subscribe /etc/uwsgi/domains
    install -d -o www-data -g www-data -m 700 /etc/uwsgi/tmp_ssl
    install -d -m 1777 /etc/uwsgi/alarms
    install -d -g www-data -m 770 /var/log/uwsgi";

#[test]
#[ignore = "needs the node: make test"]
fn directories() {
    sh(MADE).ok();
    assert_healthy(&check("directories"), "all 13 exist");
    for (path, breaks, seen, fixes) in [
        ("/containers", "chmod o+w", "is root:root 0757 where root:root 0755 is needed", "chmod 755"),
        ("/containers", "chmod g+w", "root:root 0775", "chmod 755"),
        ("/containers", "chown alice", "1000:root 0755", "chown root"),
        ("/containers", "chmod 700", "root:root 0700", "chmod 755"),
        ("/distros", "chmod 777", "root:root 0777", "chmod 755"),
        ("/ns", "rmdir", "missing: /ns", "install -d"),
        ("/subscribe", "chown root", "root:www-data 0755 where www-data:www-data 0755", "chown www-data"),
        ("/opt/unbit/uwsgi/plugins", "chmod 757", "0757", "chmod 755"),
        ("/etc/uwsgi", "chown www-data", "www-data:root 0755", "chown root"),
        ("/etc/uwsgi/vassals", "chmod 1777", "1777", "chmod 755"),
        ("/etc/uwsgi/domains", "rmdir", "missing: /etc/uwsgi/domains", "install -d -o www-data -g www-data"),
        ("/etc/uwsgi/ssl", "chmod o+w", "0757", "chmod 755"),
        ("/etc/uwsgi/tmp_ssl", "chmod 755", "www-data:www-data 0755 where www-data:www-data 0700", "chmod 700"),
        ("/etc/uwsgi/alarms", "chmod 755", "root:root 0755 where root:root 1777", "chmod 1777"),
        ("/etc/uwsgi/services", "chown www-data", "www-data:root", "chown root"),
        ("/etc/uwsgi/custom_services", "chmod g+w", "0775", "chmod 755"),
        ("/var/log/uwsgi", "chgrp root", "root:root 0770 where root:www-data 0770", "chgrp www-data"),
        ("/var/log/uwsgi", "chmod o+rx", "root:www-data 0775", "chmod 770"),
    ] {
        sh(format!("{breaks} {path}")).ok();
        let found = check("directories");
        let finding = one(&found, "fail", seen);
        assert!(finding.seen.contains(path), "{finding:?}");
        let (command, profile, others) = match path {
            "/containers" => ("unbitctl setup directories", "login", "all 13 exist"),
            _ => ("unbitctl setup --guide uwsgi.it directories", "uwsgi.it", "12 of 13 exist"),
        };
        assert_eq!((finding.fix.as_deref(), finding.profile.as_str()), (Some(command), profile));
        one(&found, "ok", others);
        let well = found.iter().filter(|finding| finding.state == "ok").count();
        assert_eq!(found.len(), well + 1, "nothing else is the matter: {found:?}");
        sh(format!("{fixes} {path}")).ok();
        assert_healthy(&check("directories"), "all 13");
    }
    sh("chmod 777 /etc/uwsgi/alarms").ok();
    one(&check("directories"), "warn", "/etc/uwsgi/alarms lacks the sticky bit");
    sh(MADE).ok();
    assert_healthy(&check("directories"), "all 13");
}

#[test]
#[ignore = "needs the node: make test"]
fn what_is_in_the_way_of_a_directory() {
    sh(MADE).ok();
    let _back = AtEnd(|| {
        sh(format!("rm -rf /etc/uwsgi/ssl /etc/uwsgi/ssl.old /srv/ssl; {MADE}")).ok();
    });
    for (breaks, seen) in [
        ("touch /etc/uwsgi/ssl", "/etc/uwsgi/ssl is not a directory"),
        ("ln -s /srv/nowhere /etc/uwsgi/ssl", "/etc/uwsgi/ssl is a symbolic link that leads nowhere"),
        ("ln -s ssl /etc/uwsgi/ssl", "/etc/uwsgi/ssl cannot be opened"),
    ] {
        sh(format!("rm -rf /etc/uwsgi/ssl; {breaks}")).ok();
        let found = check("directories");
        assert_ne!(
            one(&found, "fail", seen).fix.as_deref(),
            Some("unbitctl setup --guide uwsgi.it directories"),
            "set-up leaves it alone"
        );
    }
    // A link is the operator's right, and what counts is behind it.
    sh("rm -rf /etc/uwsgi/ssl; install -d /srv/ssl; ln -s /srv/ssl /etc/uwsgi/ssl").ok();
    assert_healthy(&check("directories"), "all 13");
    sh("chmod o+w /srv/ssl").ok();
    one(&check("directories"), "fail", "/etc/uwsgi/ssl (a symbolic link to /srv/ssl) is root:root 0757");
}

/// Whoever owns what is above /containers owns every account.
#[test]
#[ignore = "needs the node: make test"]
fn containers_below_a_directory_of_somebody_elses() {
    sh(MADE).ok();
    sh("mkdir /srv/of && mv /containers /srv/of && ln -s /srv/of/containers /containers").ok();
    let _back = AtEnd(|| {
        sh("rm /containers && mv /srv/of/containers / && rmdir /srv/of").ok();
    });
    assert_healthy(&check("directories"), "all 13");
    for (breaks, seen) in [("chown alice", "uid 1000, mode 0755"), ("chmod 777", "uid 0, mode 0777"), ("chmod 775", "")]
    {
        sh(format!("{breaks} /srv/of; chgrp 1000 /srv/of")).ok();
        let found = check("directories");
        let finding = one(&found, "fail", "/containers is below /srv/of, which is ");
        assert!(finding.seen.ends_with(seen), "{finding:?}");
        assert_eq!(finding.fix.as_deref(), Some("chown root:root /srv/of && chmod go-w /srv/of"));
        sh(finding.fix.as_ref().unwrap()).ok();
        assert_healthy(&check("directories"), "all 13");
    }
    sh("chmod 1777 /srv/of").ok(); // like /tmp: nobody renames what is another's
    assert_healthy(&check("directories"), "all 13");
}

#[test]
#[ignore = "needs the node: make test"]
fn directories_of_a_root_directory_are_its_own() {
    let root = "/srv/root";
    let _gone = AtEnd(|| {
        sh(format!("rm -rf {root} /srv/outside")).ok();
    });
    sh(format!("mkdir -p {root}/etc /srv/outside && chmod 777 /srv/outside")).ok();
    let directories = || {
        let found = findings(sh(format!("{CHECK} --root {root}")));
        found.into_iter().filter(|finding| finding.check == "directories").collect::<Vec<_>>()
    };
    one(&directories(), "fail", "/etc/passwd has no www-data");
    // Another number than this machine's.
    fs::write(format!("{root}/etc/passwd"), "root:x:0:0::/:/bin/sh\nwww-data:x:48:48::/:/bin/sh\n").unwrap();
    fs::write(format!("{root}/etc/group"), "root:x:0:\nwww-data:x:49:\n").unwrap();
    let missing = directories();
    let finding = one(&missing, "fail", "missing: /distros");
    assert_eq!(finding.fix.as_deref(), Some("unbitctl setup --root /srv/root --guide uwsgi.it directories"));
    let finding = one(&missing, "fail", "missing: /containers");
    assert_eq!(finding.fix.as_deref(), Some("unbitctl setup --root /srv/root directories"));
    let made = MADE.replace(" /", &format!(" {root}/")).replace("www-data", "48").replace("-g 48", "-g 49");
    sh(&made).ok();
    assert_healthy(&directories(), "all 13");
    // A link of the root directory's leads where it would lead there.
    sh(format!("rmdir {root}/ns; ln -s /srv/outside {root}/ns")).ok();
    one(&directories(), "fail", "/ns is a symbolic link that leads nowhere");
    sh(format!("mkdir -p {root}/srv/outside")).ok();
    assert_healthy(&directories(), "all 13");
    // What needs a node that runs says so.
    let found = findings(sh(format!("{CHECK} --root {root}")));
    for check in ["filesystem", "mounts", "cgroups", "time"] {
        let mut of_it = found.iter().filter(|finding| finding.check == check).peekable();
        assert!(of_it.peek().is_some() && of_it.all(|finding| finding.state == "not-applicable"), "{check}: {found:?}");
    }
}

// The file system

#[test]
#[ignore = "needs the node: make test"]
fn mounts_stay_where_they_are_made() {
    const WELL: &str = "mounts stay in the mount namespace in which they are made";
    /// What the start of a container does with the root directory.
    const PIVOT: &str = "unshare --mount --propagation unchanged sh -euc 'mount --bind /distros/base /ns; pivot_root /ns /ns/.old_root'";
    one(&check("mounts"), "ok", WELL);
    sh(PIVOT).ok();
    {
        let _private = AtEnd(|| {
            sh("mount --make-rprivate /").ok();
        });
        sh("mount --make-shared /").ok();
        // Containers of examples/ make their mounts private themselves, and start.
        one(&check("mounts"), "ok", "/ is a shared mount, and each container makes its own private");
        let vassal = "/etc/uwsgi/vassals/30001.ini";
        // Started like that it would mount its root directory on /ns for everybody.
        let lacks = |text: &str| text.replace("hook-pre-jail = mount:none none / rec,private\n", "");
        let _lacks = Changed::unseen_by_the_emperor(vassal, lacks);
        let found = check("mounts");
        let finding =
            one(&found, "fail", "/ is a shared mount, and no hook of /etc/uwsgi/vassals/30001.ini makes it private");
        assert!(sh(PIVOT).failed().contains("pivot_root"), "no container could start");
        sh("umount /ns").ok(); // and what it mounted shows here
        sh(finding.fix.as_ref().unwrap().lines().next().unwrap()).ok();
        one(&check("mounts"), "ok", WELL);
        sh(PIVOT).ok();
    }
    // A mount of its own counts as well.
    let shared = "unshare --mount --propagation unchanged sh -euc 'mount --bind /distros /distros; mount --make-shared /distros; \"$@\"' sh";
    one(&check_by(shared, "mounts"), "ok", "/distros is a shared mount, and each container makes its own private");
    one(&check("mounts"), "ok", WELL);
}

/// A library of one of our names that is an original in C: it lacks what only ours have.
fn original(of: &str, mark: &str, to: &str) {
    sh(format!(
        "LC_ALL=C sed 's/{mark}/{}/' {of} >{to} && ! cmp -s {of} {to} && chmod 644 {to}",
        mark.replace("dyn", "dyx").replace("mgmt", "mgmx")
    ))
    .ok();
}

#[test]
#[ignore = "needs the node: make test"]
fn the_library_that_glibc_loads() {
    let ours = sh("find /usr/lib -name libnss_unbit.so.2").ok();
    let _back = AtEnd(|| {
        drop(sh(format!(
            "rm -f /lib/libnss_unbit.so.2 /root/libnss_unbit.so.2; mv -f /tmp/ours {ours} 2>/dev/null; ldconfig"
        )))
    });
    one(&check("nsswitch"), "ok", "libnss_unbit.so.2 can be loaded");
    // As the original's Makefile does it, before ours was installed by hand.
    sh(format!("cp -a {ours} /tmp/ours")).ok();
    original(&ours, "_nss_unbit_initgroups_dyn", "/lib/libnss_unbit.so.2");
    sh(format!("rm {ours} && ldconfig && cp -a /tmp/ours {ours}")).ok();
    let found = check("nsswitch");
    let finding = one(&found, "fail", "glibc loads /lib/libnss_unbit.so.2, which is nss-unbit in C");
    sh(finding.fix.as_ref().unwrap()).ok();
    one(&check("nsswitch"), "ok", "libnss_unbit.so.2 can be loaded");
    // In the very place of ours.
    sh("mv /root/libnss_unbit.so.2 /tmp/original").ok();
    sh(format!("cp /tmp/original {ours}")).ok();
    one(&check("nsswitch"), "fail", "is not unbit's: it is nss-unbit in C");
    sh(format!("cp -a /tmp/ours {ours}")).ok();
    {
        let _other = Other::new();
        let there = format!("/distros/other{ours}");
        sh(format!("mv {there} /tmp/theirs; mkdir /distros/other/lib; cp /tmp/original /distros/other/lib/libnss_unbit.so.2; ldconfig -r /distros/other; mv /tmp/theirs {there}")).ok();
        let found = check("distributions");
        let finding =
            one(&found, "warn", "/distros/other: /lib/libnss_unbit.so.2, which glibc loads there, is nss-unbit in C");
        assert!(finding.fix.as_ref().unwrap().starts_with("mv /distros/other/lib/libnss_unbit.so.2"), "{finding:?}");
    }
    let pam = sh("find /usr/lib -name pam_unbit.so").ok();
    sh(format!("cp -a {pam} /tmp/pam")).ok();
    let _pam = AtEnd(|| drop(sh(format!("mv -f /tmp/pam {pam}"))));
    original("/tmp/pam", "pam_sm_acct_mgmt", &pam);
    one(&check("pam"), "fail", "pam_unbit.so is not unbit's: it is pam-unbit in C");
}

/// Runs a command where /containers is an ext4 of its own, on a loop device that goes with it.
fn on_ext4(mkfs: &str, options: &str, script: &str) -> Done {
    sh(format!(
        "unshare --mount --propagation private bash -euc '
            umask 022
            mount -t tmpfs none /tmp; mkdir /tmp/dev; truncate -s 16M /tmp/image
            mkfs.ext4 -q {mkfs} /tmp/image
            for i in {{0..63}}; do [[ -e /dev/loop$i ]] || mknod /dev/loop$i b 7 $i; done
            [[ -e /dev/loop-control ]] || mknod /dev/loop-control c 10 237
            mount -o loop{options} /tmp/image /containers || exit 77
            disk=$(findmnt -no SOURCE /containers); disk=${{disk#/dev/}}
            {script}'"
    ))
}

const LOOP: &str = "CONFIG_BLK_DEV_LOOP";
const QUOTA: &str = "CONFIG_QFMT_V2";

/// Of `unbitctl check --json`, run there; `None` where the kernel was built without what that
/// takes.
fn check_on_ext4(mkfs: &str, options: &str, prefix: &str, takes: &str) -> Option<Vec<Finding>> {
    let done = on_ext4(mkfs, options, &format!("{prefix} {CHECK}"));
    if done.status == Some(77) {
        let why = done.err.lines().next().unwrap_or_default();
        not_tried(format_args!("{takes}: mkfs.ext4 {mkfs}, mount {options}: {why}"), kernel_lacks(takes));
        return None;
    }
    Some(findings(done).into_iter().filter(|finding| finding.check == "filesystem").collect())
}

#[test]
#[ignore = "needs the node: make test"]
fn quota() {
    let Some(found) = check_on_ext4("", "", "", LOOP) else { return };
    let finding = one(&found, "fail", "user quota is off: /containers (ext4 on /dev/loop");
    assert!(finding.fix.as_ref().unwrap().contains("tune2fs -O quota -Q usrquota /dev/loop"), "{finding:?}");

    // The real thing, where the kernel was built with it (CONFIG_QFMT_V2).
    const FEATURE: &str = "-O quota -E quotatype=usrquota";
    if let Some(found) = check_on_ext4(FEATURE, "", "", QUOTA) {
        one(&found, "fail", "user quota is counted, but limits are not enforced: /containers");
        one(&check_on_ext4(FEATURE, ",usrquota", "", QUOTA).unwrap(), "ok", "user quota is on: /containers (ext4");
        // As the fix says.
        let fixed = "disk=/dev/$disk; umount -d /containers; tune2fs -O quota -Q usrquota /tmp/image >/dev/null; mount -o loop,usrquota /tmp/image /containers;";
        one(&check_on_ext4("", "", fixed, QUOTA).unwrap(), "ok", "user quota is on");
    }

    // The same as the kernel would say it: struct fs_quota_stat, put in by strace.
    if !strace_pokes() {
        return; // nor does it know quotactl_fd(2)
    }
    let answers = |call: &str, flags: &str| {
        format!("strace -qq -o /dev/null -e inject={call}:retval=0:poke_exit=@arg4=0100{flags}")
    };
    for (flags, state, seen) in [
        ("0300", "ok", "user quota is on: /containers"),
        ("0100", "fail", "user quota is counted, but limits are not enforced: /containers"),
        ("0c00", "fail", "user quota is off: /containers"), // the group's
    ] {
        one(&check_on_ext4("", "", &answers("quotactl_fd", flags), LOOP).unwrap(), state, seen);
        // Before Linux 5.14.
        let before = answers("quotactl", flags) + " -e inject=quotactl_fd:error=ENOSYS";
        one(&check_on_ext4("", "", &before, LOOP).unwrap(), state, seen);
    }
    let broken = "strace -qq -o /dev/null -e inject=quotactl_fd:error=EIO";
    one(&check_on_ext4("", "", broken, LOOP).unwrap(), "fail", "quotactl: EIO");
}

#[test]
#[ignore = "needs the node: make test"]
fn scheduler() {
    // The node itself is in memory.
    one(&check("filesystem"), "not-applicable", "no disk with an I/O scheduler is below /");
    let set = |scheduler: &str| {
        format!("mount -o remount,rw /sys; echo {scheduler} >/sys/block/$disk/queue/scheduler 2>/dev/null || exit 77;")
    };
    let Some(found) = check_on_ext4("", "", &set("none"), LOOP) else { return };
    let finding = one(&found, "warn", "I/O scheduler: none on loop");
    let fix = finding.fix.as_ref().unwrap();
    assert!(fix.contains("echo bfq >/sys/block/loop"), "{fix}");
    let as_it_says = "mount -o remount,rw /sys; modprobe -q bfq 2>/dev/null || true; echo bfq >/sys/block/$disk/queue/scheduler || exit 77;";
    if let Some(found) = check_on_ext4("", "", as_it_says, "CONFIG_IOSCHED_BFQ") {
        one(&found, "ok", "I/O scheduler: bfq on loop");
    }
}

// cgroups

/// The memory controller's files of a container: its directory, the file of the limit, and the word
/// for none.
fn memory_of(uid: u32) -> Option<(String, String, &'static str)> {
    let candidates = [
        (format!("/sys/fs/cgroup/memory/{uid}"), "memory.limit_in_bytes", "-1"),
        (format!("/sys/fs/cgroup/{uid}"), "memory.limit_in_bytes", "-1"),
        (format!("/sys/fs/cgroup/{uid}"), "memory.max", "max"),
    ];
    let found = candidates.into_iter().find(|(directory, file, _)| fs::exists(format!("{directory}/{file}")).unwrap());
    if found.is_none() {
        let layout = std::env::var("NODE_LAYOUT").unwrap();
        not_tried(format_args!("no controller memory with --cgroups {layout}"), layout_lacks_controllers());
    }
    found.map(|(directory, file, none)| (directory.clone(), format!("{directory}/{file}"), none))
}

#[test]
#[ignore = "needs the node: make test"]
fn each_container_has_a_limit_of_memory() {
    for uid in [30000, 30001] {
        leader(uid);
    }
    let Some((_, first, none)) = memory_of(30000) else {
        one(&check("cgroups"), "fail", "there is no controller memory");
        return;
    };
    let (_, second, _) = memory_of(30001).unwrap();
    let limits = [&first, &second].map(|file| (file, fs::read_to_string(file).unwrap()));
    let _as_before = AtEnd(|| {
        for (file, limit) in &limits {
            fs::write(file, limit).unwrap();
        }
    });
    one(&check("cgroups"), "ok", "with limits on memory and processes"); // those of examples/container.ini
    for file in [&first, &second] {
        fs::write(file, none).unwrap();
    }
    one(&check("cgroups"), "warn", "no limit on memory: 30000 30001");
    fs::write(&first, "400000000").unwrap();
    let found = check("cgroups");
    let fix = one(&found, "warn", "no limit on memory: 30001").fix.clone().unwrap();
    sh(fix.lines().next().unwrap().replace("BYTES", "400000000")).ok();
    one(
        &check("cgroups"),
        "ok",
        "all 2 containers that run are in cgroups of their own, with limits on memory and processes",
    );
    fs::write(&second, none).unwrap();
    one(&check("cgroups"), "warn", "no limit on memory: 30001");
}

/// Moves the processes of a container to another cgroup, in every hierarchy.
fn move_30001(from: &str, to: &str) {
    sh(format!(
        "find /sys/fs/cgroup -type d -path '*/{from}' -printf '%h\\n' | while read -r top; do
            mkdir -p $top/{to}
            for pid in $(node-pid 30001) $(pgrep -u 30001); do echo $pid >$top/{to}/cgroup.procs; done
        done"
    ))
    .ok();
}

#[test]
#[ignore = "needs the node: make test"]
fn each_container_has_a_cgroup_of_its_own() {
    leader(30000);
    leader(30001);
    {
        let _back = AtEnd(|| move_30001("30001", "30001"));
        move_30001("30001", "system");
        one(&check("cgroups"), "fail", "no cgroup of its own: 30001");
    }
    assert!(check("cgroups").iter().all(|finding| !finding.seen.contains("no cgroup of its own")));
    {
        // A limit further up is its own as long as nobody else is below it.
        let Some((directory, ..)) = memory_of(30001) else { return };
        let (_, first, none) = memory_of(30000).unwrap();
        let top = directory.strip_suffix("/30001").unwrap();
        let limit = fs::read_to_string(&first).unwrap();
        let _back = AtEnd(|| {
            move_30001("30001", "30001");
            fs::write(&first, &limit).unwrap();
            sh("find /sys/fs/cgroup -depth -type d -path '*/limited*' -exec rmdir {} +").ok();
        });
        if none == "max" {
            return not_tried("cgroup v2 hands memory down to no second level here", true);
        }
        move_30001("30001", "limited/30001");
        fs::write(&first, "400000000").unwrap();
        one(&check("cgroups"), "warn", "no limit on memory: 30001");
        fs::write(format!("{top}/limited/memory.limit_in_bytes"), "400000000").unwrap();
        one(&check("cgroups"), "warn", "no limit on processes: 30001");
        sh("for group in $(find /sys/fs/cgroup -type d -name limited); do if [ -e $group/pids.max ]; then echo 500 >$group/pids.max; fi; done").ok();
        one(&check("cgroups"), "ok", "all 2 containers");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn controllers_are_usable() {
    let layout = std::env::var("NODE_LAYOUT").unwrap();
    let found = check("cgroups");
    let of_guide =
        |found: Vec<Finding>| -> Vec<_> { found.into_iter().filter(|finding| finding.profile == "uwsgi.it").collect() };
    let found = of_guide(found);
    let said = found.first().unwrap();
    let names = match layout.as_str() {
        "v2" => "cgroup v2",
        "hybrid" => "cgroup v1 and v2 (hybrid)",
        _ => "cgroup v1",
    };
    assert!(said.seen.starts_with(names), "{layout}: {said:?}");
    let without = |breaks: &str| {
        check_by(&format!("unshare --mount --propagation private sh -euc '{breaks}; \"$@\"' sh"), "cgroups")
    };
    let none = without("umount -R /sys/fs/cgroup");
    let profiles: Vec<_> = none.iter().map(|finding| (finding.seen.as_str(), finding.profile.as_str())).collect();
    assert_eq!(profiles, [("no cgroups are mounted", "login"), ("no cgroups are mounted", "uwsgi.it")]);
    match layout.as_str() {
        "v1" | "hybrid" => {
            assert_eq!(said.state, "ok");
            for controller in ["memory", "cpu"] {
                let lost = without(&format!("umount $(readlink -f /sys/fs/cgroup/{controller})"));
                one(&lost, "fail", &format!("there is no controller {controller}"));
            }
        }
        "v2" if said.state == "ok" => {
            let control = "/sys/fs/cgroup/cgroup.subtree_control";
            let _back = AtEnd(|| fs::write(control, "+memory").unwrap());
            fs::write(control, "-memory").unwrap();
            let found = check("cgroups");
            let finding = one(&found, "fail", "memory is not enabled for containers");
            sh(finding.fix.as_ref().unwrap()).ok();
            one(&check("cgroups"), "ok", "cgroup v2, with memory and cpu");
        }
        _ => {
            not_tried(format_args!("--cgroups {layout}: {}", said.seen), ["v1-single", "v2"].contains(&layout.as_str()))
        }
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn no_container_runs() {
    let _again = AtEnd(|| {
        sh("node-emperor start; node-wait-container 30000; node-wait-container 30001").ok();
    });
    sh("node-emperor stop").ok();
    one(&check("cgroups"), "not-applicable", "no container of an Emperor runs");
}

// A dead node

/// Puts a vassal back, and waits until its container runs as before.
fn assert_restarts(_vassal: Changed) {
    drop(_vassal);
    leader(30001);
    eventually("a container that listens", || {
        check("emperor").iter().all(|finding| finding.state == "ok").then_some(())
    });
}

const VASSAL: &str = "/etc/uwsgi/vassals/30001.ini";

/// The container's pid 1 as it is now, without waiting for one.
fn pid_of(uid: u32) -> Option<String> {
    let done = sh(format!("node-pid {uid}"));
    (done.status == Some(0)).then_some(done.out)
}

#[test]
#[ignore = "needs the node: make test"]
fn an_emperor_that_is_dead() {
    for uid in [30000, 30001] {
        leader(uid);
    }
    assert_healthy(&check("emperor"), "and all 2 containers with a vassal run and listen");
    {
        let _again = AtEnd(|| drop(sh("node-emperor start; node-wait-container 30000; node-wait-container 30001")));
        sh("node-emperor stop").ok();
        let found = findings(sh("unbitctl check --json"));
        let finding = one(&found, "fail", "no Emperor (a root process named uwsgi) runs");
        assert_eq!((finding.check.as_str(), finding.profile.as_str()), ("emperor", "login"));
        let fix = finding.fix.as_deref().unwrap();
        let by_hand = " setsid --fork env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin uwsgi --ini /etc/uwsgi/containers.ini";
        assert!(fix.starts_with("perl -e ") && fix.contains(by_hand), "{fix}");
        // A tenant's process does not pass for it.
        sh("cp /usr/bin/sleep /run/uwsgi").ok();
        let tenant = ["--reuid", "30001", "--regid", "30001", "--clear-groups", "/run/uwsgi", "60"];
        let mut other = Command::new("setpriv").args(tenant).spawn().unwrap();
        let comm = format!("/proc/{}/comm", other.id());
        let _gone = AtEnd(|| drop((other.kill(), other.wait(), fs::remove_file("/run/uwsgi"))));
        eventually("the other uwsgi", || (fs::read_to_string(&comm).ok()? == "uwsgi\n").then_some(()));
        one(&check("emperor"), "fail", "no Emperor (a root process named uwsgi) runs");
    }
    assert_healthy(&check("emperor"), "the Emperor runs");
    // A container that ends as soon as it is started.
    let vassal = Changed::file(VASSAL, |text| format!("{text}nonsense = 1\n"));
    let found = eventually("a container that does not start", || {
        let found = check("emperor");
        found.iter().any(|finding| finding.seen.contains("does not run: 30001")).then_some(found)
    });
    let fix = one(&found, "fail", "has a vassal in /etc/uwsgi/vassals and does not run: 30001").fix.clone().unwrap();
    assert!(fix.ends_with("\nunbitctl check 30001"), "{fix}");
    assert_restarts(vassal);
    // One that nobody can ask.
    let before = pid_of(30001);
    let vassal = Changed::file(VASSAL, |text| text.replace("setns-socket =", ";setns-socket ="));
    let found = eventually("a container that does not listen", || {
        let found = check("emperor");
        (pid_of(30001) != before && found.iter().any(|finding| finding.seen.contains("ns.socket"))).then_some(found)
    });
    one(&found, "fail", "runs, and does not listen on run/ns.socket: 30001");
    assert_restarts(vassal);
    // Without a container's file nothing is asked of one.
    let _files = AtEnd(|| {
        drop(sh(
            "mv /etc/uwsgi/away/* /etc/uwsgi/vassals; rmdir /etc/uwsgi/away; node-wait-container 30000; node-wait-container 30001",
        ))
    });
    sh("mkdir /etc/uwsgi/away && mv /etc/uwsgi/vassals/* /etc/uwsgi/away").ok();
    one(&check("emperor"), "not-applicable", "/etc/uwsgi/vassals has no vassal yet");
}

#[test]
#[ignore = "needs the node: make test"]
fn an_sshd_that_does_not_listen() {
    assert_healthy(
        &check("service").into_iter().filter(|finding| finding.state != "not-applicable").collect::<Vec<_>>(),
        "an sshd listens",
    );
    let _again = AtEnd(|| drop(sh("node-sshd start")));
    sh("node-sshd stop").ok();
    one(&check("service"), "fail", "no sshd listens");
    let unseen = "unshare --mount sh -euc 'mount -t proc -o hidepid=2 proc /proc; exec setpriv --reuid 1000 --regid 1000 --clear-groups \"$@\"' sh";
    one(&check_by(unseen, "service"), "not-applicable", "root is needed to see whether an sshd listens");
}

/// Each thing that an operator might add to the example's file and that makes the tenant root, or
/// its container fail.
#[test]
#[ignore = "needs the node: make test"]
fn files_of_containers_that_give_power_away() {
    leader(30001);
    assert_healthy(&check("vassals"), "none of 2 files gives its tenant power over the node");
    for (line, state, seen) in [
        ("logto = /containers/%n/logs/x.log", "fail", "logto = /containers/30001/logs/x.log"),
        ("hook-asap = chown:/containers/%n/run %n %n", "fail", "hook-asap = chown:/containers/30001/run 30001 30001"),
        (
            "hook-as-root = mount:none /containers/%n/tmp /tmp bind",
            "fail",
            "mount:none /containers/30001/tmp /tmp bind",
        ),
        ("hook-as-root = exec:true", "fail", "hook-as-root = exec:true"),
        ("hook-asap = exec:true", "ok", "none of 2 files"),
        ("ini = /containers/%n/more.ini", "fail", "ini = /containers/30001/more.ini"),
        ("plugins = tuntap", "ok", "none of 2 files"),
        // To ask uWSGI for it, root would load what is there.
        ("plugins-dir = /containers/%n/plugins\nplugins = no-such", "fail", "plugins-dir = /containers/30001/plugins"),
        ("plugins = no-such", "fail", "/usr/bin/uwsgi has no plugin no-such, which is named by the file of: 30001"),
    ] {
        let changed = Changed::unseen_by_the_emperor(VASSAL, |text| format!("{text}{line}\n"));
        let found = check("vassals");
        let finding = one(&found, state, seen);
        assert_eq!(found.len(), 1, "{line}: {found:#?}");
        if let Some(fix) = &finding.fix {
            assert!(
                finding.seen.contains("/etc/uwsgi/vassals/30001.ini line ") || seen.contains("plugin"),
                "{finding:?}"
            );
            assert!(!fix.contains(" /containers/"), "nothing that root does below the tenant's directory: {fix}");
        }
        if line.starts_with("logto") {
            sh(finding.fix.as_ref().unwrap()).ok();
            assert_healthy(&check("vassals"), "none of 2 files");
        }
        drop(changed);
    }
    for (path, breaks, mode) in
        [(VASSAL, "chmod 666", "mode 0666"), ("/etc/uwsgi/vassals", "chown alice", "is owned by uid 1000")]
    {
        sh(format!("{breaks} {path}")).ok();
        let found = check("vassals");
        let finding = one(&found, "fail", mode);
        sh(finding.fix.as_ref().unwrap().split(',').next().unwrap()).ok();
        assert_healthy(&check("vassals"), "none of 2 files");
    }
    sh(format!("chmod 644 {VASSAL}")).ok();
    // What a template has put into all of them is told once.
    let changed = [30000, 30001].map(|uid| {
        let logs = "logto = /containers/%n/a\nlog-backupname = /containers/%n/b\n";
        Changed::unseen_by_the_emperor(format!("/etc/uwsgi/vassals/{uid}.ini"), |text| format!("{text}{logs}"))
    });
    let found = check("vassals");
    assert!(
        one(&found, "fail", "30000.ini line ").seen.ends_with("(1 more such lines, 1 more such files)"),
        "{found:#?}"
    );
    drop(changed);
}

// The guide's services

#[test]
#[ignore = "needs the node: make test"]
fn services_of_the_guide() {
    sh(MADE).ok();
    let _gone = AtEnd(|| drop(sh("rm -f /etc/uwsgi/services/*; kill $(cat /run/stats.pid); rm /run/stats.pid")));
    one(&check("services"), "fail", "/etc/uwsgi/services has no service of the guide");
    sh("touch /etc/uwsgi/services/http.ini").ok();
    let found = check("services");
    let finding = one(&found, "fail", "/etc/uwsgi/services/http.ini exists, but nothing listens on 127.0.0.1:5003");
    assert!(finding.fix.as_ref().unwrap().starts_with("tail -n 50 /var/log/uwsgi/http.log"), "{finding:?}");
    let listen = |address: &str| {
        sh(format!(
            "[ ! -e /run/stats.pid ] || kill $(cat /run/stats.pid); rm -f /run/listens
             perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(LocalAddr => q({address}), LocalPort => 5003, Listen => 1, ReuseAddr => 1) or die;
                open my $f, q(>), q(/run/listens); close $f; sleep 60' </dev/null >/dev/null 2>&1 & echo $! >/run/stats.pid"
        ))
        .ok();
        eventually("a listener", || Path::new("/run/listens").exists().then_some(()));
    };
    listen("127.0.0.1");
    assert_healthy(&check("services"), "every service with a file in /etc/uwsgi/services runs: http");
    listen("0.0.0.0");
    one(&check("services"), "fail", "http offers its statistics on 0.0.0.0:5003, not only on 127.0.0.1");
}

#[test]
#[ignore = "needs the node: make test"]
fn keys_and_certificates_of_the_guide() {
    sh(MADE).ok();
    let _gone = AtEnd(|| drop(sh("rm -rf /etc/uwsgi/local.ini /etc/uwsgi/ssl/*")));
    let certificate = |name: &str, days: &str| {
        sh(format!(
            "cd /etc/uwsgi/ssl; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=node \
                -keyout {name}.key -out {name}.crt {days} 2>&1 && chown root:www-data {name}.key && chmod 640 {name}.key"
        ))
        .ok();
    };
    one(&check("secrets"), "fail", "there is no /etc/uwsgi/local.ini");
    sh("install -m 640 -g www-data /dev/null /etc/uwsgi/local.ini; printf '%s\\n' '[uwsgi]' 'public_ip = 192.0.2.1' 'api_domain = <the_api_domain>' \
        'api_client_cert_file = /etc/uwsgi/ssl/client.crt' 'api_client_key_file = /etc/uwsgi/ssl/client.key' >/etc/uwsgi/local.ini")
    .ok();
    let found = check("secrets");
    one(&found, "fail", "/etc/uwsgi/local.ini has no value for: api_domain");
    for file in ["uwsgi.it.crt", "uwsgi.it.key", "client.crt", "client.key"] {
        one(&found, "fail", &format!("there is no /etc/uwsgi/ssl/{file}"));
    }
    sh("sed -i 's/<the_api_domain>/api.example.com/' /etc/uwsgi/local.ini").ok();
    certificate("client", "-days 365");
    certificate("uwsgi.it", "-days 365");
    assert_healthy(&check("secrets"), "cannot be read by others, and do not expire within 30 days");
    for (breaks, fixes, state, seen) in [
        ("chmod 644 /etc/uwsgi/local.ini", "", "fail", "/etc/uwsgi/local.ini has mode 0644"),
        ("chmod 604 /etc/uwsgi/ssl/client.key", "", "fail", "/etc/uwsgi/ssl/client.key has mode 0604"),
        ("chmod 660 /etc/uwsgi/ssl/uwsgi.it.key", "", "fail", "/etc/uwsgi/ssl/uwsgi.it.key has mode 0660"),
        (
            "cd /etc/uwsgi/ssl; mv client.crt c; echo x >client.crt",
            "mv c client.crt",
            "fail",
            "/etc/uwsgi/ssl/client.crt is not a certificate",
        ),
    ] {
        sh(breaks).ok();
        let found = check("secrets");
        let fix = one(&found, state, seen).fix.clone().unwrap();
        assert_eq!(found.len(), 1, "{found:#?}");
        sh(if fixes.is_empty() { fix } else { format!("cd /etc/uwsgi/ssl; {fixes}") }).ok();
        assert_healthy(&check("secrets"), "cannot be read by others");
    }
    certificate("uwsgi.it", "-days 7");
    one(&check("secrets"), "warn", "/etc/uwsgi/ssl/uwsgi.it.crt expires on ");
    sh("cd /etc/uwsgi/ssl; mkdir /tmp/ca; cd /tmp/ca; echo 01 >serial; : >index
        printf '%s\\n' '[ca]' 'default_ca = d' '[d]' 'database = index' 'new_certs_dir = .' 'serial = serial' 'default_md = sha256' 'policy = p' \\
            '[p]' 'commonName = supplied' >conf
        openssl req -new -key /etc/uwsgi/ssl/client.key -subj /CN=node -out request
        openssl ca -batch -notext -config conf -selfsign -keyfile /etc/uwsgi/ssl/client.key -in request -out /etc/uwsgi/ssl/client.crt \\
            -startdate 200101000000Z -enddate 210101000000Z 2>&1; status=$?; rm -r /tmp/ca; exit $status")
    .ok();
    one(&check("secrets"), "fail", "/etc/uwsgi/ssl/client.crt expired on Jan  1 00:00:00 2021 GMT");
    certificate("client", "-days 365");
    // A customer's key in a file that everybody reads.
    let changed = Changed::unseen_by_the_emperor(VASSAL, |text| format!("{text}; -----BEGIN RSA PRIVATE KEY-----\n"));
    let found = check("secrets");
    let fix = one(&found, "fail", "everybody can read /etc/uwsgi/vassals/30001.ini").fix.clone().unwrap();
    sh(fix).ok();
    assert!(check("secrets").iter().all(|finding| finding.state != "fail"));
    sh(format!("chmod 644 {VASSAL}")).ok();
    assert_restarts(changed);
}

// Distributions

/// A distribution of nothing but what the check looks at.
const OTHER: &str = "
    lib=$(dirname $(find /usr/lib -name libc.so.6 | head -1))
    install -d /distros/other/{.old_root,containers,etc} /distros/other$lib
    cp $lib/libc.so.6 /distros/other$lib
    cp $(find /usr/lib -name libnss_unbit.so.2) /distros/other$lib
    cp /etc/nsswitch.conf /distros/other/etc
    echo root:x:0:0::/root:/bin/sh >/distros/other/etc/passwd";

struct Other;

impl Other {
    fn new() -> Self {
        sh(format!("set -e; {OTHER}")).ok();
        Self
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        sh("rm -rf /distros/other /distros/linked /distros/file /distros/.hidden /srv/other").ok();
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn distributions() {
    assert_healthy(&check("distributions"), "libnss_unbit.so.2 and its line in nsswitch.conf");
    let _other = Other::new();
    assert_healthy(&check("distributions"), "/distros/other: both directories, /usr/lib");
    let module = sh("find /distros/other -name libnss_unbit.so.2").ok();
    for (breaks, state, seen, fix) in [
        ("rmdir .old_root", "fail", "/distros/other/.old_root is missing", "unbitctl setup distributions"),
        ("rmdir containers", "fail", "/distros/other/containers is missing", "unbitctl setup distributions"),
        (
            "rmdir containers; ln -s /containers",
            "fail",
            "/distros/other/containers is not a directory",
            "rm /distros/other/containers",
        ),
        (
            "rmdir .old_root; touch .old_root",
            "fail",
            "/distros/other/.old_root is not a directory",
            "rm /distros/other/.old_root",
        ),
        ("rm $MODULE", "warn", "/distros/other: no /usr/lib", "install -m 644 libnss_unbit.so.2"),
        (
            "printf '\\x28' | dd of=$MODULE bs=1 seek=18 conv=notrunc 2>/dev/null",
            "warn",
            "is not of its architecture",
            "install -m 644",
        ),
        (": >$MODULE", "warn", "is not of its architecture", "install -m 644"),
        (
            "sed -i '/^passwd/s/unbit//' etc/nsswitch.conf",
            "warn",
            "no unbit in the passwd line",
            "unbitctl setup --root /distros/other nsswitch",
        ),
        (
            "rm etc/nsswitch.conf",
            "warn",
            "no unbit in the passwd line",
            "unbitctl setup --root /distros/other nsswitch",
        ),
        // It would keep whoever opens it waiting for ever.
        ("rm etc/nsswitch.conf; mkfifo etc/nsswitch.conf", "warn", "no unbit in the passwd line", "nsswitch"),
        // On the node that file has the line; in the distribution it leads to itself.
        ("ln -sf /etc/nsswitch.conf etc/nsswitch.conf", "warn", "no unbit in the passwd line", "nsswitch"),
        (
            "find . -name libc.so.6 -delete",
            "warn",
            "it has no glibc, and /etc/passwd no line",
            "echo 30001:x:30001:30001:30001:/containers/30001:/bin/bash >>/distros/other/etc/passwd",
        ),
        (
            "chmod o+w .",
            "warn",
            "/distros/other is owned by uid 0, mode 0757",
            "chown root:root /distros/other && chmod go-w /distros/other",
        ),
        ("chown alice .", "warn", "/distros/other is owned by uid 1000, mode 0755", "chown root:root /distros/other"),
    ] {
        sh(format!("cd /distros/other; MODULE={module}; {breaks}")).ok();
        let found = check("distributions");
        let finding = one(&found, state, seen);
        assert!(finding.fix.as_ref().unwrap().contains(fix), "{finding:?}");
        one(&found, "ok", "/distros/base: ");
        assert_eq!(found.len(), 2, "{breaks}: {found:#?}");
        sh(format!("rm -rf /distros/other; {OTHER}")).ok();
        assert_healthy(&check("distributions"), "/distros/other: ");
    }
    // Whoever can write there may have put anything in it, which the set-up would run as root.
    sh("chmod o+w /distros/other; rm /distros/other/etc/nsswitch.conf").ok();
    let found = check("distributions");
    one(&found, "warn", "/distros/other is owned by uid 0, mode 0757");
    let fix = one(&found, "warn", "no unbit in the passwd line").fix.clone().unwrap();
    assert!(fix.starts_with("first make it root's, as shown above") && !fix.contains("unbitctl setup"), "{fix}");
    sh(format!("rm -rf /distros/other; {OTHER}")).ok();
    // A line of passwd does as well.
    sh("find /distros/other -name 'lib*' -type f -delete; echo 30001:x:30001:30001::/:/bin/sh >>/distros/other/etc/passwd").ok();
    assert_healthy(&check("distributions"), "/distros/other: both directories, lines of passwd for 1 containers");
}

#[test]
#[ignore = "needs the node: make test"]
fn what_is_a_distribution() {
    let _other = Other::new();
    sh("mv /distros/other /srv/other; ln -s /srv/other /distros/linked; touch /distros/file; mkdir /distros/.hidden")
        .ok();
    let found = check("distributions");
    assert_healthy(&found, "/distros/linked: ");
    assert_eq!(found.len(), 2, "{found:?}");
    let empty = "unshare --mount sh -euc 'mount -t tmpfs -o mode=755 none /distros; \"$@\"' sh";
    one(&check_by(empty, "distributions"), "warn", "/distros is empty");
    let programs = "strace -f -qq -e trace=execve -e signal=none -o /run/execve";
    assert_healthy(&check_by(programs, "distributions"), "/distros/base: ");
    let run = fs::read_to_string("/run/execve").unwrap();
    assert!(run.contains("unbitctl") && !run.contains("/distros"), "nothing of a distribution runs: {run}");
}

// Time

#[test]
#[ignore = "needs the node: make test"]
fn time() {
    // What the kernel says, by another way: adjtimex(2) with a struct of zeros gives TIME_ERROR, 5,
    // for a clock that nobody keeps.
    let state = sh(format!(r#"perl -e '$clock = "\0" x 256; print syscall({}, $clock)'"#, libc::SYS_adjtimex)).ok();
    one(&check("time"), if state == "5" { "fail" } else { "ok" }, "synchronised");
    let says = |state: u32| format!("strace -qq -o /dev/null -e inject=adjtimex,clock_adjtime:retval={state}");
    let found = check_by(&says(5), "time");
    assert!(one(&found, "fail", "the kernel's clock is not synchronised").fix.as_ref().unwrap().contains("timesyncd"));
    assert_healthy(&check_by(&says(0), "time"), "the kernel's clock is synchronised");
    // STA_UNSYNC alone, in the struct's word behind modes, offset, freq, maxerror and esterror.
    if cfg!(target_pointer_width = "64") && strace_pokes() {
        let words = "00".repeat(40) + "40000000";
        let unsynchronised = format!(
            "strace -qq -o /dev/null -e inject=adjtimex:retval=0:poke_exit=@arg1={words} -e inject=clock_adjtime:retval=0:poke_exit=@arg2={words}"
        );
        one(&check_by(&unsynchronised, "time"), "fail", "not synchronised");
    }
    one(
        &check_by("strace -qq -o /dev/null -e inject=adjtimex,clock_adjtime:error=EPERM", "time"),
        "not-applicable",
        "EPERM",
    );
}

// What glibc answers, and the accounts' shell

#[test]
#[ignore = "needs the node: make test"]
fn an_answer_of_somebody_elses() {
    assert_healthy(&check("nsswitch"), "getent shadow 3000");
    let _hosts = Changed::file("/etc/hosts", |text| format!("192.0.2.9 30000.local\n{text}"));
    one(&check("nsswitch"), "warn", "getent ahostsv4 30000.local has another answer: 192.0.2.9");
}

#[test]
#[ignore = "needs the node: make test"]
fn an_order_in_which_systemd_is_asked_first() {
    assert_healthy(&check("nsswitch"), "unbit is in the right place in passwd, group, shadow and hosts");
    for database in ["passwd", "group", "shadow"] {
        let _switch = Changed::file("/etc/nsswitch.conf", |text| {
            let lines = text.lines().map(|line| match line.strip_prefix(&format!("{database}:")) {
                Some(_) => format!("{database}: files systemd unbit\n"),
                None => format!("{line}\n"),
            });
            lines.collect()
        });
        let found = check("nsswitch");
        let finding = one(&found, "warn", &format!("{database}: systemd is asked before unbit"));
        assert_eq!(finding.fix.as_deref(), Some("unbitctl setup nsswitch"));
        assert!(
            found.iter().all(|other| other.state == "ok" || other == finding),
            "a warning and no fault: {found:#?}"
        );
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_shell_that_cannot_be_run() {
    let bash = Path::new("/usr/bin/bash");
    let mode = |mode| fs::set_permissions(bash, PermissionsExt::from_mode(mode)).unwrap();
    let _back = AtEnd(|| mode(0o755));
    one(&check_by("chmod 644 /usr/bin/bash;", "sshd"), "fail", "/bin/bash cannot be run");
}

// nscd

struct Nscd;

impl Nscd {
    fn start() -> Self {
        sh("mkdir -p /run/nscd /var/cache/nscd && nscd").ok();
        eventually("nscd", || (sh("nscd -g").status == Some(0)).then_some(()));
        Self
    }
}

impl Drop for Nscd {
    fn drop(&mut self) {
        sh("pkill -CONT -x nscd; nscd -K").ok();
        eventually("the end of nscd", || pgrep("^nscd").is_none().then_some(()));
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn nscd() {
    assert_healthy(&check("nscd"), "does not run");
    let off = |databases: &[&str]| {
        let mut configuration = fs::read_to_string("/etc/nscd.conf").unwrap();
        for database in databases {
            configuration += &format!("\nenable-cache {database} no\n");
        }
        Changed::file("/etc/nscd.conf", |_| configuration)
    };
    {
        let _nscd = Nscd::start();
        let found = check("nscd");
        let finding = one(&found, "warn", "caches passwd and group");
        assert_eq!(finding.fix.as_deref(), Some("unbitctl setup nscd && systemctl restart nscd"));
        let _off = off(&["passwd", "group"]);
        let found = check("nscd");
        assert_eq!(
            one(&found, "warn", "caches passwd and group, although").fix.as_deref(),
            Some("systemctl restart nscd")
        );
    }
    {
        let _off = off(&["passwd"]);
        let _nscd = Nscd::start();
        one(&check("nscd"), "warn", "caches group");
    }
    {
        let _off = off(&["passwd", "group"]);
        let _nscd = Nscd::start();
        assert_healthy(&check("nscd"), "caches neither passwd nor group");
        sh("pkill -STOP -x nscd").ok();
        one(&check("nscd"), "fail", "does not answer");
        one(&check("nsswitch"), "not-applicable", "nscd does not answer, and every lookup waits for it");
    }
    assert_healthy(&check("nscd"), "does not run");
    // A socket that was left behind.
    sh("perl -MIO::Socket::UNIX -e 'unlink q(/run/nscd/socket); IO::Socket::UNIX->new(Local => q(/run/nscd/socket), Listen => 1)'").ok();
    assert_healthy(&check("nscd"), "does not run");
    // A stopped one, and as many clients as may wait for it.
    const FULL: &str = "use Socket qw(:DEFAULT SOCK_NONBLOCK); $| = 1;
        my ($at, @clients) = pack_sockaddr_un(q(/run/nscd/socket));
        unlink q(/run/nscd/socket); socket(my $server, AF_UNIX, SOCK_STREAM, 0);
        bind($server, $at) and listen($server, 0) or die $!;
        do { socket(my $client, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0); push @clients, $client } while connect($clients[-1], $at);
        print qq($!\n); <STDIN>";
    let mut full =
        Command::new("perl").args(["-e", FULL]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut last = String::new();
    BufReader::new(full.stdout.take().unwrap()).read_line(&mut last).unwrap();
    assert_eq!(last, "Resource temporarily unavailable\n");
    one(&check_by("timeout 60", "nscd"), "fail", "does not answer: Resource temporarily unavailable");
    drop(full.stdin.take());
    assert!(full.wait().unwrap().success());
    sh("rm /run/nscd/socket").ok();
}

// How it is said

#[test]
#[ignore = "needs the node: make test"]
fn people_and_machines_read_the_same() {
    sh("rmdir /ns").ok();
    let _back = AtEnd(|| {
        sh("mkdir /ns").ok();
    });
    let done = sh("unbitctl check --guide uwsgi.it");
    assert_eq!(done.status, Some(4), "the guide's steps alone fail: {done:?}");
    assert_eq!(sh("unbitctl check").status, Some(0), "a login needs none of them");
    let said = findings(sh(CHECK));
    let lines: Vec<_> = done.out.lines().collect();
    for finding in &said {
        let word = match finding.state.as_str() {
            "fail" => "FAIL",
            "not-applicable" => "-",
            other => other,
        };
        let first = finding.seen.lines().next().unwrap();
        let found = lines
            .iter()
            .filter(|line| line.starts_with(word) && line.contains(&finding.check) && line.ends_with(first));
        assert_eq!(found.count(), 1, "{finding:?} in {}", done.out);
    }
    let [.., of_login, of_guide] = lines.as_slice() else { panic!("{lines:?}") };
    for (profile, last) in [("login", of_login), ("uwsgi.it", of_guide)] {
        let count = |state: &str| {
            said.iter().filter(|finding| (finding.state.as_str(), finding.profile.as_str()) == (state, profile)).count()
        };
        assert!(last.starts_with(&format!("{profile}: {} ok", count("ok"))), "{last}");
        assert!(count("fail") == 0 || last.contains(&format!(" {} fail", count("fail"))), "{last}");
    }

    let terminal =
        |environment: &str| sh(format!("script -qec '{environment} unbitctl check --guide uwsgi.it' /dev/null")).out;
    assert!(!done.out.contains('\x1b'), "this is no terminal");
    assert!(terminal("env").contains("\x1b[1;31mFAIL\x1b[0m"), "{}", terminal("env"));
    assert!(!terminal("env NO_COLOR=1").contains('\x1b'));
    assert!(terminal("env NO_COLOR=").contains('\x1b'), "empty is as good as not set");
    assert_eq!(sh("unbitctl check --nonsense").status, Some(2));
    let nowhere = sh("unbitctl check --root /nowhere");
    assert_eq!((nowhere.status, nowhere.err.as_str()), (Some(1), "unbitctl: /nowhere: there is no such directory\n"));
}

#[test]
#[ignore = "needs the node: make test"]
fn root_is_not_needed_and_what_needs_it_says_so() {
    sh(MADE).ok();
    let _other = Other::new();
    let alice = "setpriv --reuid 1000 --regid 1000 --clear-groups";
    let (roots, alices) = (findings(sh(CHECK)), findings(sh(format!("{alice} {CHECK}"))));
    for check in ["filesystem", "mounts", "cgroups", "time", "nscd", "directories", "distributions"] {
        let of_it = |all: &[Finding]| all.iter().filter(|finding| finding.check == check).cloned().collect::<Vec<_>>();
        assert_eq!(of_it(&roots), of_it(&alices));
    }
    sh("chmod 700 /distros/other /etc/uwsgi").ok();
    let _back = AtEnd(|| {
        sh("chmod 755 /etc/uwsgi").ok();
    });
    one(&check_by(alice, "distributions"), "not-applicable", "/distros/other: root is needed to see");
    one(&check_by(alice, "directories"), "not-applicable", "/etc/uwsgi/ssl: root is needed to see");
    let hidden = "unshare --mount sh -euc 'mount -t proc -o hidepid=2 proc /proc; exec setpriv --reuid 1000 --regid 1000 --clear-groups \"$@\"' sh";
    one(&check_by(hidden, "cgroups"), "not-applicable", "root is needed to see the processes of containers");
}

// Set-up

#[test]
#[ignore = "needs the node: make test"]
fn setup_fixes_what_check_finds() {
    const STEPS: &str = "--guide uwsgi.it nscd directories distributions";
    let _other = Other::new();
    let _configuration = Changed::file("/etc/nscd.conf", |text| format!("# as it was\n{text}"));
    sh(MADE).ok();
    sh("chmod 777 /containers; chgrp 1000 /ns; rmdir /subscribe /etc/uwsgi/tmp_ssl; rm -r /opt/unbit
        chmod 777 /etc/uwsgi/alarms; chown 0:0 /var/log/uwsgi; rmdir /distros/other/.old_root /distros/other/containers")
    .ok();
    sh("rmdir /etc/uwsgi/ssl; install -d -m 757 /srv/ssl; ln -s /srv/ssl /etc/uwsgi/ssl").ok();
    let _no_link = AtEnd(|| {
        sh(format!("rm /etc/uwsgi/ssl; rmdir /srv/ssl; {MADE}")).ok();
    });
    one(&check("directories"), "fail", "missing: /subscribe /opt/unbit/uwsgi/plugins /etc/uwsgi/tmp_ssl");
    one(&check("distributions"), "fail", "/distros/other/.old_root is missing");

    sh(format!("unbitctl setup --dry-run {STEPS}")).ok();
    one(&check("directories"), "fail", "missing: /subscribe");
    sh(format!("unbitctl setup {STEPS}")).ok();
    assert_healthy(&check("directories"), "all 13 exist");
    assert_healthy(&check("distributions"), "/distros/other: ");
    assert_eq!(sh("stat -c %u:%g:%a /srv/ssl /opt/unbit /etc/uwsgi/tmp_ssl").ok(), "0:0:755\n0:0:755\n33:33:700");
    assert!(fs::symlink_metadata("/etc/uwsgi/ssl").unwrap().is_symlink(), "the operator's link stays");
    assert!(sh(format!("unbitctl setup {STEPS}")).ok().starts_with("nothing to do"));

    let configuration = fs::read_to_string("/etc/nscd.conf").unwrap();
    assert!(configuration.starts_with("# as it was\n"));
    let _nscd = Nscd::start();
    assert_healthy(&check("nscd"), "caches neither passwd nor group");
}

/// What others can write to is theirs: set-up, which is root, makes nothing there.
#[test]
#[ignore = "needs the node: make test"]
fn setup_leaves_distributions_alone_that_are_not_roots() {
    let _other = Other::new();
    sh("rmdir /distros/other/.old_root; chown alice /distros/other").ok();
    let found = check("distributions");
    let fix = one(&found, "fail", "/distros/other/.old_root is missing").fix.clone().unwrap();
    assert_eq!(fix, "mkdir -m 755 /distros/other/.old_root");
    sh("unbitctl setup distributions").failed();
    assert!(!fs::exists("/distros/other/.old_root").unwrap());
    for finding in found.iter().filter(|finding| finding.state != "ok") {
        sh(finding.fix.as_ref().unwrap()).ok();
    }
    assert_healthy(&check("distributions"), "/distros/other: ");
}
