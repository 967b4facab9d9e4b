//! Root's own door, `/run/unbit/<uid>/ns.socket`, for containers of other engines.

use std::fs;
use std::process::Command;
use unbit_tests::*;

const MARK: &str = "/tmp/landed-on-the-host";

/// A door for 30001 that leads into container 30000, so that a login tells by which way it came.
fn open(kind: &str) -> Door {
    Door::open(30001, &leader(30000), kind)
}

#[track_caller]
fn refused(sentence: &str, cause: &str) {
    let log = Log::from_now();
    let done = ssh(30001, &format!("touch {MARK}"));
    assert_eq!(done.status, Some(255), "{done:?}");
    assert!(done.err.contains(sentence), "{done:?}");
    let line = log.one_line("refused:");
    assert!(line.contains(cause), "{line}");
    assert!(!fs::exists(MARK).unwrap());
    for uid in [30000, 30001] {
        assert!(!fs::exists(format!("/proc/{}/root{MARK}", leader(uid))).unwrap());
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn the_door_comes_first() {
    for kind in ["honest", "late"] {
        let _door = open(kind);
        let log = Log::from_now();
        assert_eq!(ssh(30001, "hostname; id -u").ok(), "c30000\n30001", "{kind}");
        let line = log.one_line("session opened");
        assert!(line.contains("memory:/30000") || line.contains(":/30000"), "{line}");
    }
    assert_eq!(ssh(30001, "hostname").ok(), "c30001", "without a door, the Emperor's socket");
}

/// As other engines make them. Inside, every path of /proc/PID/cgroup begins at the container's own group.
#[test]
#[ignore = "needs the node: make test"]
fn a_container_with_a_cgroup_namespace_of_its_own() {
    const SCRIPT: &str = r#"
        for procs in $(find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs -not -path "*cpuset*"); do
            own=${procs%/*}/web1; mkdir -p $own && echo 0 >$own/cgroup.procs
        done
        exec unshare --cgroup bash -ec '
            mount --bind /distros/base /ns; mount -t proc proc /ns/proc; mount --bind /dev /ns/dev
            mount -t tmpfs none /ns/containers; mkdir /ns/containers/30001; mount --bind /containers/30001 /ns/containers/30001
            hostname web1; cd /ns; pivot_root . .old_root; umount -l /.old_root; exec sleep 3001'"#;
    let mut outside = Command::new("unshare")
        .args([
            "-m",
            "-p",
            "-i",
            "-u",
            "-n",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "bash",
            "-ec",
            SCRIPT,
        ])
        .spawn()
        .unwrap();
    let _end = AtEnd(|| {
        drop((outside.kill(), outside.wait()));
        let gone = "rmdir $(find /sys/fs/cgroup -maxdepth 2 -type d -name web1)";
        eventually("the end of web1", || (sh(gone).status == Some(0)).then_some(()));
    });
    let pid = eventually("its pid 1", || pgrep("^sleep 3001$"));
    let _door = Door::open(30001, &pid, "honest");
    let seen = sh(format!("nsenter -t {pid} --cgroup cat /proc/{pid}/cgroup")).ok();
    assert!(!seen.contains("web1"), "the witness: {seen}");
    assert_eq!(ssh(30001, "hostname; id -u; cat /proc/self/cgroup").ok(), format!("web1\n30001\n{seen}"));
    assert_eq!(sh("unbitctl enter 30001 -- hostname").ok(), "web1");
}

#[test]
#[ignore = "needs the node: make test"]
fn every_other_message_is_refused() {
    let (failed, silent) = ("its set-up failed a check.", "does not answer.");
    for (kind, sentence, cause) in [
        ("hang-up", failed, "the door's message is not uwsgi-setns"),
        ("short", failed, "the door's message is 11 bytes where 15 are due"),
        ("split", failed, "the door's message is not uwsgi-setns"),
        ("long", failed, "the door's message is 16 bytes"),
        ("wrong", failed, "the door's message is not uwsgi-setns"),
        ("too-few", failed, "the door's message counts"),
        ("too-many", failed, "the door's message counts"),
        ("none", failed, "the door's message counts 0 descriptors"),
        ("65", failed, "the door's message counts 65 descriptors"),
        ("253", failed, "the door's message counts 253 descriptors"),
        ("files", failed, "what came from the door is no namespace"),
        ("the-hosts", failed, "it has no pid namespace of its own"),
        ("no-mnt", failed, "it has no mnt namespace of its own"),
        ("two-of-a-kind", failed, "two mnt namespaces came from the door"),
        ("user", failed, "of a kind that is not joined"),
        ("silent", silent, "receive from the door: ETIMEDOUT"),
    ] {
        let _door = open(kind);
        refused(sentence, cause);
    }
    assert_eq!(ssh(30001, "hostname").ok(), "c30001");
}

/// One that a user made who is root there, and whom the kernel lets do there what it lets nobody do in the node's.
#[test]
#[ignore = "needs the node: make test"]
fn a_namespace_that_belongs_to_another_user_namespace_is_refused() {
    let kinds = ["uts", "ipc", "net", "cgroup", "mnt"];
    let mut owner = Command::new("unshare");
    owner.arg("--user").args(["--uts", "--ipc", "--net", "--cgroup", "--mount", "sleep", "600"]);
    let mut owner = owner.spawn().unwrap();
    let pid = owner.id().to_string();
    let _end = AtEnd(|| drop((owner.kill(), owner.wait())));
    let host = namespaces("self");
    eventually("its namespaces", || kinds.iter().all(|kind| namespaces(&pid)[*kind] != host[*kind]).then_some(()));
    for kind in kinds {
        let _door = open(&format!("{kind}-of-{pid}"));
        refused("its set-up failed a check.", &format!("its {kind} namespace belongs to another user namespace"));
    }
}

/// What does not fit the kernel leaves out of the message (MSG_CTRUNC).
#[test]
#[ignore = "needs the node: make test"]
fn a_process_that_may_open_too_few_files_takes_no_part_of_the_message() {
    let _door = open("honest");
    let _su = join_now("su");
    let log = Log::from_now();
    let mut joined = 0;
    for limit in 4..40 {
        let done = sh(format!("prlimit --nofile={limit} su 30001 -c hostname"));
        joined += usize::from(done.out == "c30000\n");
        assert!(done.out.is_empty() != (done.status == Some(0)), "{limit}: {done:?}");
    }
    assert!(joined > 1, "the witness: there are enough at last");
    let text = log.text();
    let cut = text.lines().filter(|line| line.contains("message brings more descriptors than this process may open"));
    assert!(cut.count() > 2, "{text}");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_door_that_is_not_roots_is_no_door_and_no_way_around_it_either() {
    let on_the_way = "on the way to the door: mode";
    for (spoil, cause) in [
        ("chown 30001 /run/unbit", on_the_way),
        ("chmod 777 /run/unbit", on_the_way),
        ("chown 30001 /run/unbit/30001", on_the_way),
        ("chmod g+w /run/unbit/30001", on_the_way),
        ("chown 30001 /run/unbit/30001/ns.socket", on_the_way),
        ("mv /run/unbit/30001 /run/unbit/x && ln -s x /run/unbit/30001", "open the door's directory 30001: ENOTDIR"),
        ("cd /run/unbit/30001 && mv ns.socket x && ln -s x ns.socket", on_the_way),
        ("cd /run/unbit/30001 && rm ns.socket && touch ns.socket", on_the_way),
    ] {
        let _door = open("honest");
        sh(spoil).ok();
        refused("its set-up failed a check.", cause);
    }
    {
        let _door = open("honest");
        sh("rm /run/unbit/30001/ns.socket").ok();
        refused("is not running.", "open /run/unbit/30001/ns.socket: ENOENT");
    }
    assert_eq!(ssh(30001, "hostname").ok(), "c30001");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_door_that_another_user_keeps() {
    sh("mkdir -p /run/unbit/30001").ok();
    let keeper = "exec setpriv --reuid 30001 --regid 30001 --clear-groups /unbit/target/debug/door /run/unbit/30001/ns.socket self hang-up";
    // It may only bind in a directory of its own, which root then takes over.
    sh("chown 30001 /run/unbit/30001").ok();
    let mut keeper = Command::new("sh").args(["-c", keeper]).spawn().unwrap();
    eventually("the door", || fs::exists("/run/unbit/30001/ns.socket").unwrap().then_some(()));
    sh("chown 0:0 /run/unbit/30001 /run/unbit/30001/ns.socket").ok();
    refused("its set-up failed a check.", "the door is kept by uid 30001, not by root");
    drop((keeper.kill(), keeper.wait()));
    sh("rm -rf /run/unbit").ok();
}
