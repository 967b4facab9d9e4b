// node: --containers '30000 30001 30002'
//! A pid 1 whose root directory is not where a join would end, and a container that is frozen. Both
//! are refused in account, with the cause; what happens only between the check and the join keeps
//! no root process waiting, and leaves nothing half done.

use std::fs;
use std::time::{Duration, Instant};
use unbit_tests::tenant::*;
use unbit_tests::*;

const NOT_TRUSTED: &str = "cannot be entered: its set-up failed a check.";
const CHROOT: &str = "its pid 1's root directory is not the root of its mount namespace (chroot)";
const BECOME: &str = "perl -e '$) = q(30003 30003); $( = 30003; ($<, $>) = (30003, 30003); exec @ARGV'";

/// First one login, which does not take a minute where it hangs and shows where it ends where it
/// works; then every way in.
#[track_caller]
fn assert_refused_within_timeout(user: &str, sentence: &str, cause: &str) {
    let (log, started) = (Log::from_now(), Instant::now());
    let done = run("timeout", &["-s", "KILL", "8", "ssh", &format!("{user}@node"), "hostname; ls /"], b"");
    assert_eq!(done.status, Some(255), "{done:?} after {:.1?}\n{}", started.elapsed(), log.text());
    assert_user_refused(user, sentence, cause);
}

/// A session is where pid 1 is: it sees the same root directory.
#[track_caller]
fn assert_in_the_root_of(uid: u32, leader: &str) {
    let root = sh(format!("stat -L -c %d:%i /proc/{leader}/root")).ok();
    assert_eq!(ssh(uid, "hostname; stat -c %d:%i /").ok(), format!("c{uid}\n{root}"));
}

#[test]
#[ignore = "needs the node: make test"]
fn pid_1_is_in_a_chroot() {
    for chroot in ["chroot /mnt", "unshare --root=/mnt"] {
        let command = format!("bash -c 'mount --rbind / /mnt && exec {chroot} \"$@\"' jail {BECOME}");
        let _hostile = Hostile::become_by(&command, "serve /run/ns.socket");
        assert_refused_within_timeout("30003", NOT_TRUSTED, CHROOT);
    }
    assert_honest_logins();
}

/// What `chroot =` of uWSGI does, where the root of the mount namespace stays the node's.
#[test]
#[ignore = "needs the node: make test"]
fn the_chroot_of_a_vassal() {
    let vassal = "/etc/uwsgi/vassals/30002.ini";
    let restart = || {
        let old = leader(30002);
        sh(format!("kill -KILL {old}")).ok();
        eventually("a new pid 1", || {
            let new = run("node-pid", &["30002"], b"").out;
            (!new.is_empty() && new.trim() != old).then_some(())
        });
        leader(30002)
    };
    {
        let _chroot = Changed::unseen_by_the_emperor(vassal, |text| {
            let kept = text.lines().filter(|line| {
                !["hook-pre-jail", "hook-as-root", "pivot_root"].iter().any(|key| line.starts_with(key))
            });
            let mut text: String = kept.map(|line| format!("{line}\n")).collect();
            for mount in [
                "proc none /distros/base/proc nodev hidepid=2",
                "none /dev /distros/base/dev rec,bind",
                "none /containers /distros/base/containers bind",
                "none /containers/%n/run /distros/base/run bind",
            ] {
                text += &format!("hook-pre-jail = mount:{mount}\n");
            }
            text + "chroot = /distros/base\n"
        });
        restart();
        assert_refused_within_timeout("30002", NOT_TRUSTED, CHROOT);
    }
    let new = restart();
    assert_in_the_root_of(30002, &new);
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn roots_that_a_join_does_end_in() {
    // pivot_root to a bind mount is the example.
    assert_in_the_root_of(30001, &leader(30001));
    for command in [
        "/usr/sbin/chroot /",
        // As switch_root(8) and systemd-nspawn do it: the new root covers the old one.
        "bash -c 'mount --rbind / /mnt && cd /mnt && mount --move . / && exec chroot . \"$@\"' moved",
        // pivot_root(".", "."), as runc and LXC do it.
        "bash -c 'mount --rbind / /mnt && cd /mnt && pivot_root . . && umount -l . && cd / && exec \"$@\"' pivoted",
    ] {
        let hostile = Hostile::become_by(&format!("{command} {BECOME}"), "serve /run/ns.socket");
        assert_in_the_root_of(HOSTILE, &hostile.leader);
    }
}

/// Covers a container's root directory with one that looks the same. A join would end there, and
/// pid 1 is not there.
fn cover(pid: &str) -> String {
    format!(
        "nsenter -t {pid} -m bash -ec 'mount -t tmpfs -o mode=755 none /mnt; cd /
            for entry in *; do
                if [ -L $entry ]; then cp -P $entry /mnt; else mkdir /mnt/$entry; mount --rbind /$entry /mnt/$entry; fi
            done
            mount --move /mnt /'"
    )
}

#[test]
#[ignore = "needs the node: make test"]
fn a_root_that_is_covered_later() {
    let pid = leader(30002);
    let _new = AtEnd(|| {
        sh(format!("kill -KILL {pid}")).ok();
        eventually("a new pid 1", || (run("node-pid", &["30002"], b"").out.trim() != pid).then_some(()));
        leader(30002);
    });
    {
        // Once the container has been checked.
        let _between = between_check_and_join(&cover(&pid));
        let log = Log::from_now();
        let done = run("timeout", &["-s", "KILL", "8", "ssh", "30002@node", "touch /containers/30002/half"], b"");
        assert_eq!(done.status, Some(255), "{done:?}\n{}", log.text());
        log.one_line("refused:");
        assert!(!fs::exists("/containers/30002/half").unwrap(), "a session");
    }
    assert_refused_within_timeout("30002", NOT_TRUSTED, CHROOT);
    assert_honest_logins();
}

/// A container's freezer of one version.
struct Freezer {
    file: String,
    version: u8,
}

impl Freezer {
    /// Those of container 30001 in this layout.
    fn all() -> Vec<Self> {
        let found = sh("find /sys/fs/cgroup -path '*/30001/freezer.state' -o -path '*/30001/cgroup.freeze'").ok();
        let freezers: Vec<_> = found
            .lines()
            .map(|file| Self { file: file.to_owned(), version: if file.ends_with(".state") { 1 } else { 2 } })
            .collect();
        if !freezers.iter().any(|freezer| freezer.version == 1) {
            not_tried("the freezer of cgroup v1 is not in this layout", layout_lacks_controllers());
        }
        freezers
    }

    fn directory(&self) -> &str {
        self.file.rsplit_once('/').unwrap().0
    }

    /// The commands that freeze, and wait until it is done.
    fn freeze(&self) -> String {
        let (file, directory) = (&self.file, self.directory());
        match self.version {
            1 => format!("echo FROZEN >{file}; until grep -qx FROZEN {file}; do sleep 0.01; done"),
            _ => format!("echo 1 >{file}; until grep -qx 'frozen 1' {directory}/cgroup.events; do sleep 0.01; done"),
        }
    }

    fn thaw(&self) {
        sh(format!("echo {} >{}", if self.version == 1 { "THAWED" } else { "0" }, self.file)).ok();
    }

    fn members(&self) -> Vec<String> {
        let procs = fs::read_to_string(format!("{}/cgroup.procs", self.directory())).unwrap();
        procs.lines().map(str::to_owned).collect()
    }
}

const PAUSED: &str = "Container 30001 is paused. Please try again later.";

#[test]
#[ignore = "needs the node: make test"]
fn a_frozen_container() {
    for freezer in Freezer::all() {
        {
            let _thaw = AtEnd(|| freezer.thaw());
            sh(freezer.freeze()).ok();
            let log = Log::from_now();
            assert_refused_within_timeout("30001", PAUSED, "refused: its cgroup ");
            for line in log.lines("refused:") {
                assert!(line.contains("/30001 is frozen"), "{line}");
            }
            assert_eq!(ssh(30000, "hostname").ok(), "c30000", "another container");
        }
        assert_honest_logins();
    }
}

/// A group is frozen with the one above it.
#[test]
#[ignore = "needs the node: make test"]
fn a_container_in_a_group_of_a_frozen_one() {
    for freezer in Freezer::all() {
        let (pid, directory) = (leader(30001), freezer.directory());
        sh(format!("mkdir {directory}/inner && for p in $(cat {directory}/cgroup.procs); do echo $p >{directory}/inner/cgroup.procs; done")).ok();
        {
            let _back = AtEnd(|| {
                freezer.thaw();
                drop(sh(format!(
                    "for p in $(cat {directory}/inner/cgroup.procs); do echo $p >{directory}/cgroup.procs; done; until rmdir {directory}/inner; do sleep 0.02; done"
                )));
            });
            assert_eq!(ssh(30001, "hostname").ok(), "c30001", "the witness: the group is no reason");
            sh(freezer.freeze()).ok();
            assert_refused_within_timeout("30001", PAUSED, "is frozen");
        }
        assert_eq!(leader(30001), pid);
        assert_honest_logins();
    }
}

/// Frozen once it has been checked: what has joined the container's group cannot get out by itself.
/// In a v1 cgroup not even SIGKILL ends it before it is thawed, so a process of the
/// container's user may be left until then.
#[test]
#[ignore = "needs the node: make test"]
fn a_container_that_is_frozen_between_check_and_join() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    const MARGIN: Duration = Duration::from_secs(3);
    let half = "/containers/30001/half-done";
    for freezer in Freezer::all() {
        for way in [
            &["ssh", "30001@node", "touch half-done"][..],
            &["ssh", "-tt", "30001@node", "touch half-done"],
            &["ssh", "-N", "30001@node"],
        ] {
            let before = freezer.members();
            let log = Log::from_now();
            {
                let _thaw = AtEnd(|| freezer.thaw());
                let option = with_option("timeout=1");
                let between = between_check_and_join(&freezer.freeze());
                let started = Instant::now();
                let done = run("timeout", &[&["-s", "KILL", "10"], way].concat(), b"");
                let took = started.elapsed();
                let processes = || sh("ps -eo uid=,pid=,stat=,args= | grep -E '^ *0 .*sshd(-session)?: 30001'").out;
                assert!(
                    done.status == Some(255) && took < TIMEOUT + MARGIN,
                    "{way:?}: {done:?} after {took:.1?}\n{}",
                    processes()
                );
                drop((between, option));
                eventually("the end of root's processes", || processes().is_empty().then_some(()));
                // SIGKILL ends a process that is frozen by cgroup v2; by cgroup v1 it would stay as
                // it is.
                eventually("no root process in the container's group", || {
                    let is_theirs = |pid: &String| {
                        status_field(pid, "Uid").is_none_or(|uid| uid.starts_with("30001\t30001\t30001\t30001"))
                    };
                    freezer.members().iter().all(is_theirs).then_some(())
                });
                log.one_line("refused:");
            }
            eventually("the container has only what it had", || {
                freezer.members().iter().all(|pid| before.contains(pid)).then_some(())
            });
            assert!(!fs::exists(half).unwrap(), "half done: {way:?}");
            assert_eq!(log.lines("refused:").len(), 1, "{}", log.text());
        }
        assert_honest_logins();
    }
}
