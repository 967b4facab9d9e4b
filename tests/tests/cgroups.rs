//! The session is in the cgroups of its container and the monitor is not, whatever the layout of
//! the hierarchies (`tests/run --cgroups`).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::process::{Child, Command, Stdio};
use unbit_tests::*;

/// Says where it runs, in one line.
const PLACE: &str = "echo $(hostname) $(readlink /proc/self/ns/mnt) $(id -u); cat /proc/self/cgroup";

/// What [`PLACE`] says in container 30001.
fn inside() -> String {
    let leader = leader(30001);
    let cgroups = fs::read_to_string(format!("/proc/{leader}/cgroup")).unwrap();
    format!("c30001 {} 30001\n{}", namespaces(&leader)["mnt"], cgroups.trim_end())
}

fn layout() -> String {
    std::env::var("NODE_LAYOUT").unwrap()
}

/// The tops of the hierarchies that the container has a cgroup of its own in.
fn hierarchies() -> Vec<String> {
    let found = sh("find /sys/fs/cgroup -type d -path '*/30001' -printf '%h\\n'").ok();
    let found: Vec<_> = found.lines().map(str::to_owned).collect();
    let enough = match layout().as_str() {
        "v1" | "hybrid" => 2..,
        _ => 1..,
    };
    assert!(enough.contains(&found.len()), "{}: {found:?}", layout());
    found
}

fn members(group: &str) -> BTreeSet<String> {
    fs::read_to_string(format!("{group}/cgroup.procs")).unwrap().lines().map(str::to_owned).collect()
}

/// The members of all of the container's cgroups.
fn all_members() -> Vec<BTreeSet<String>> {
    hierarchies().iter().map(|top| members(&format!("{top}/30001"))).collect()
}

/// The container's processes in another cgroup, of these hierarchies, until this is dropped.
struct Moved {
    to: Vec<String>,
    pids: Vec<(String, String)>,
}

impl Moved {
    fn to(path: &str, hierarchies: &[String]) -> Self {
        let mut moved = Self { to: Vec::new(), pids: Vec::new() };
        for top in hierarchies {
            let to = format!("{top}/{path}");
            fs::create_dir_all(&to).unwrap();
            for pid in members(&format!("{top}/30001")) {
                fs::write(format!("{to}/cgroup.procs"), &pid).unwrap();
                moved.pids.push((format!("{top}/30001/cgroup.procs"), pid));
            }
            moved.to.push(to);
        }
        assert!(!moved.pids.is_empty());
        moved
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        for (procs, pid) in &self.pids {
            drop(fs::write(procs, pid));
        }
        for group in &self.to {
            // Its last session may still be ending. What others live in stays.
            if !group.ends_with("/system") {
                eventually(format!("the end of {group}"), || fs::remove_dir(group).ok());
            }
        }
    }
}

/// The file of the container's cgroup that sets a limit, if this layout has such a controller.
fn control(controller: &str, names: [&str; 2]) -> Option<String> {
    let files = [
        format!("/sys/fs/cgroup/{controller}/30001/{}", names[0]),
        format!("/sys/fs/cgroup/30001/{}", names[0]),
        format!("/sys/fs/cgroup/30001/{}", names[1]),
        format!("/sys/fs/cgroup/unified/30001/{}", names[1]),
    ];
    let found = files.into_iter().find(|file| fs::exists(file).unwrap());
    can_try(controller, found.is_some());
    found
}

/// What a layout has not, on any machine.
const HAS_NOT: [(&str, &[&str]); 4] = [
    ("v1", &["cgroup v2", "both versions"]),
    ("v1-single", &["freezer", "pids", "cgroup v2", "both versions"]),
    ("v2", &["both versions"]),
    ("hybrid", &[]),
];

/// Whether a case that needs something can be tried, given whether it is there. It must not be
/// where the layout has it not. Elsewhere it is this machine that lacks it, which is a failure
/// under `CI=true`.
#[track_caller]
fn can_try(needed: &str, is_there: bool) -> bool {
    let (_, has_not) = HAS_NOT.iter().find(|(name, _)| *name == layout()).unwrap();
    let is_applicable = !has_not.contains(&needed);
    assert!(is_applicable || !is_there, "--cgroups {}: {needed} is there all the same", layout());
    if !is_there {
        let what = if is_applicable { "NOT TRIED" } else { "not applicable" };
        // Where cargo does not swallow it.
        writeln!(std::io::stderr().lock(), "{what} with --cgroups {}: it takes {needed}", layout()).unwrap();
        let must_try = is_applicable && std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!must_try, "NOT TRIED with --cgroups {}: this machine lacks {needed}", layout());
    }
    is_there
}

/// Everybody else logs in, as if nothing were the matter, and sshd lives.
#[track_caller]
fn assert_others_log_in() {
    assert_eq!(ssh("alice", "hostname").ok(), "node");
    assert_eq!(ssh(30000, "hostname").ok(), "c30000");
}

#[track_caller]
fn assert_honest_logins() {
    leader(30001);
    assert_eq!(ssh(30001, PLACE).ok(), inside());
    assert_others_log_in();
}

#[track_caller]
fn assert_nothing_on_the_host() {
    eventually("no process of a container's user on the host", || {
        let host = namespaces("self");
        let processes = sh("ps -eo pid=,uid=,comm= | awk '$2 >= 30000 && $2 < 60000 && $3 !~ /^perl/ {print $1}'").ok();
        let on_the_host = processes.split_whitespace().any(|pid| {
            !supervision::violations(pid).is_empty()
                && fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|link| link.to_string_lossy() == host["mnt"])
        });
        (!on_the_host).then_some(())
    });
}

/// A login that goes on until it is dropped.
struct Client(Child);

impl Client {
    fn start(command: &str) -> Self {
        let mut ssh = Command::new("ssh");
        ssh.args(["30001@node", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(ssh.spawn().unwrap())
    }

    /// Types a line.
    fn say(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    fn end(&mut self) -> (Option<i32>, String) {
        let status = eventually("its end", || self.0.try_wait().unwrap());
        let mut out = String::new();
        self.0.stdout.as_mut().unwrap().read_to_string(&mut out).unwrap();
        (status.code(), out.trim_end().to_owned())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn the_session_is_in_each_cgroup_and_the_monitor_in_none() {
    let log = Log::from_now();
    let _session = Client::start("sleep 1201");
    let sleep = eventually("the session", || pgrep("^sleep 1201$"));
    let monitor = pgrep(r"^sshd(-session)?: 30001 \[(priv|postauth)\]").unwrap();
    let cgroups = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroups(&sleep), cgroups(&leader(30001)));
    assert_eq!(cgroups(&monitor), cgroups(&sh("cat /run/sshd.pid").ok()));
    for members in all_members() {
        assert!(members.contains(&sleep) && !members.contains(&monitor), "{members:?}");
    }

    let line = log.one_line("container 30001: session opened");
    let own: Vec<_> = cgroups(&sleep).lines().filter_map(|line| Some(line.split_once(':')?.1.to_owned())).collect();
    let own: Vec<_> = own.into_iter().filter(|cgroup| cgroup.ends_with(":/30001")).collect();
    assert_eq!(own.len(), hierarchies().len());
    assert!(line.contains(&format!("cgroups {};", own.join(" "))), "{line}");
    let is_v2 = own.contains(&":/30001".to_owned());
    assert_eq!(
        (is_v2, own.len() > 1),
        match layout().as_str() {
            "v1" => (false, true),
            "v1-single" => (false, false),
            "v2" => (true, false),
            "hybrid" => (true, true),
            other => panic!("{other}"),
        }
    );
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_under_a_slice() {
    for path in ["a/b/30001", r"a b/c:d\040e/30001", "30001/app"] {
        let _moved = Moved::to(path, &hierarchies());
        let place = ssh(30001, PLACE).ok();
        assert_eq!(place, inside(), "{path}");
        assert!(place.contains(&format!(":/{path}")), "{place}");
        // Its session may use what was the container's own name.
        drop(sh(format!("rmdir '/sys/fs/cgroup/{path}' 2>/dev/null")));
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_with_a_cgroup_of_its_own_in_one_hierarchy_only() {
    let all = hierarchies();
    for own in 0..all.len() {
        let shared: Vec<_> = all.iter().enumerate().filter(|(i, _)| *i != own).map(|(_, top)| top.clone()).collect();
        let _moved = (!shared.is_empty()).then(|| Moved::to("system", &shared));
        assert_eq!(ssh(30001, PLACE).ok(), inside(), "{}", all[own]);
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_frozen_container_keeps_its_sessions_and_takes_no_more() {
    let Some(freezer) = control("freezer", ["freezer.state", "cgroup.freeze"]) else { return };
    let (freeze, thaw) = if freezer.ends_with("state") { ("FROZEN", "THAWED") } else { ("1", "0") };
    let group = freezer.rsplit_once('/').unwrap().0.to_owned();
    let (before, expected) = (all_members(), inside());
    {
        let (mut waits, given_up) =
            (Client::start(&format!("read line; {PLACE}")), Client::start("exec bash -c 'exec -a given-up-1211 cat'"));
        eventually("both sessions", || {
            let inside = |pattern| pgrep(pattern).is_some_and(|pid| members(&group).contains(&pid));
            (inside("^given-up-1211$") && members(&group).len() >= before[0].len() + 4).then_some(())
        });
        let _thaw = AtEnd(|| fs::write(&freezer, thaw).unwrap());
        fs::write(&freezer, freeze).unwrap();
        let refused = eventually("it is frozen", || Some(ssh(30001, "true")).filter(|done| done.status != Some(0)));
        assert!(refused.err.contains("Container 30001 is paused."), "{refused:?}");
        assert!(waits.is_running());
        assert_others_log_in();
        assert_nothing_on_the_host();
        drop(given_up);
        fs::write(&freezer, thaw).unwrap();
        waits.say("go on");
        assert_eq!(waits.end(), (Some(0), expected));
    }
    eventually("nothing is left", || (all_members() == before).then_some(()));
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn at_the_limit_of_processes() {
    let Some(limit) = control("pids", ["pids.max", "pids.max"]) else { return };
    let _lift = AtEnd(|| fs::write(&limit, "max").unwrap());
    let now: u32 = sh(format!("cat {}", limit.replace("pids.max", "pids.current"))).ok().parse().unwrap();
    let expected = format!("c30001 {}", inside().split(' ').nth(1).unwrap());
    // sshd's child counts, and what it runs; the monitor does not.
    for (room, enters) in [(0, false), (1, false), (2, true)] {
        fs::write(&limit, (now + room).to_string()).unwrap();
        let done = ssh(30001, "read name </proc/sys/kernel/hostname; echo $name; exec readlink /proc/self/ns/mnt");
        assert_eq!(done.status == Some(0), enters, "room for {room}: {done:?}");
        assert_eq!(done.out.replace('\n', " ").trim(), if enters { &expected } else { "" });
        assert_others_log_in();
        assert_nothing_on_the_host();
    }
    fs::write(&limit, "max").unwrap();
    eventually("nothing is left", || (members(limit.rsplit_once('/').unwrap().0).len() as u32 <= now).then_some(()));
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn at_the_limit_of_memory() {
    let Some(limit) = control("memory", ["memory.limit_in_bytes", "memory.max"]) else { return };
    let unlimited = if limit.ends_with("max") { "max" } else { "-1" };
    let usage = limit.replace("limit_in_bytes", "usage_in_bytes").replace("memory.max", "memory.current");
    // None once the container itself was killed for want of memory: its cgroup may go with it.
    let used = || fs::read_to_string(&usage).ok()?.trim().parse::<u64>().ok();
    let _lift = AtEnd(|| drop(fs::write(&limit, unlimited)));
    let sshd = sh("cat /run/sshd.pid").ok();

    let _quiet = Client::start("sleep 1202");
    eventually("the session", || pgrep("^sleep 1202$"));
    let monitor = pgrep(r"^sshd(-session)?: 30001 \[(priv|postauth)\]").unwrap();
    fs::write(&limit, (used().unwrap() + (16 << 20)).to_string()).unwrap();
    // What takes too much is killed, and only that.
    let done = ssh(30001, "perl -e '$_ = q(x) x 200_000_000'; echo ended $?");
    assert_eq!(done.ok(), "ended 137");
    assert_others_log_in();

    // Nothing is left, not even for sshd's child: whoever is killed, the monitors are not, and
    // nobody else.
    for _ in 0..3 {
        drop(used().map(|used| fs::write(&limit, used.to_string())));
        let done = ssh(30001, PLACE);
        println!("with no memory left: {done:?}");
        assert!(done.status != Some(0) || done.out.starts_with("c30001"), "{done:?}");
        assert_others_log_in();
        assert_nothing_on_the_host();
    }
    drop(fs::write(&limit, unlimited));
    leader(30001);
    assert_eq!(sh("cat /run/sshd.pid").ok(), sshd);
    let monitors = fs::read_to_string(format!("/proc/{monitor}/stat"));
    assert!(monitors.is_ok() || pgrep("^sleep 1202$").is_none(), "a monitor ends with its session, not before");
    assert_honest_logins();
}

/// Writes to the `cgroup.procs` of every cgroup of the node.
struct Moves(File);

impl Moves {
    fn from_now() -> Self {
        // SAFETY: the call has just made this descriptor, and nobody else knows of it.
        let inotify = unsafe { File::from_raw_fd(libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC)) };
        for file in sh("find /sys/fs/cgroup -name cgroup.procs -o -name tasks -o -name cgroup.threads").ok().lines() {
            let path = std::ffi::CString::new(file).unwrap();
            // SAFETY: a descriptor that is open and a string that outlives the call.
            let watch = unsafe {
                libc::inotify_add_watch(std::os::fd::AsRawFd::as_raw_fd(&inotify), path.as_ptr(), libc::IN_MODIFY)
            };
            assert!(watch >= 0, "{file}");
        }
        Self(inotify)
    }

    fn count(mut self) -> usize {
        let mut events = [0; 65536];
        self.0.read(&mut events).unwrap_or(0) / size_of::<libc::inotify_event>()
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn nothing_moves_on_a_refusal() {
    let moves = Moves::from_now();
    assert_eq!(ssh(30001, PLACE).ok(), inside());
    // In the one of cgroup v2 it is born.
    let moved = hierarchies().iter().filter(|top| !fs::exists(format!("{top}/30001/cgroup.type")).unwrap()).count();
    assert_eq!(moves.count(), moved, "the witness: a login moves itself, once in each hierarchy of cgroup v1");

    let before = all_members();
    let refused = |cause: &str| {
        let (log, moves) = (Log::from_now(), Moves::from_now());
        let done = ssh(30001, "true");
        assert_ne!(done.status, Some(0), "{done:?}");
        let line = log.one_line("refused:");
        assert!(line.contains(cause), "{line}");
        assert_nothing_on_the_host();
        assert_eq!(moves.count(), 0, "{cause}");
    };
    {
        let socket = "/containers/30001/run/ns.socket";
        sh(format!("mv {socket} {socket}.kept && touch {socket} && chown 30001:30001 {socket}")).ok();
        let _back = AtEnd(|| drop(sh(format!("mv -f {socket}.kept {socket}"))));
        refused("run/ns.socket is not a socket");
    }
    {
        let _auth = Changed::file("/etc/pam.d/sshd", |text| {
            text.lines()
                .filter(|line| !(line.starts_with("auth") && line.contains("unbit")))
                .map(|l| format!("{l}\n"))
                .collect()
        });
        refused("is the auth line of pam_unbit.so missing?");
    }
    {
        let _moved = Moved::to("system", &hierarchies());
        refused("it has no cgroup of its own");
    }
    assert_eq!(all_members(), before);
    assert_honest_logins();
}

/// An sshd on port 2200 in a mount namespace of its own, whose cgroup mounts are made by a script;
/// `$top` is each old one, `$new` a place.
struct Sshd;

impl Sshd {
    fn with_mounts(unshare: &str, script: &str) -> Self {
        let script = format!(
            r#"set -e; n=0
            tops=$(awk '/ - cgroup2? / {{print $5}}' /proc/self/mountinfo)
            for top in $tops; do n=$((n + 1)); new="/run/else where/$n"; mkdir -p "$new"; {script}; done
            umount -R /sys/fs/cgroup
            exec /usr/sbin/sshd -p 2200 -o PidFile=/run/sshd-2200.pid"#
        );
        run("unshare", &["--mount", "--propagation", "private", unshare, "bash", "-c", &script], b"").ok();
        eventually("its pid file", || sh("test -s /run/sshd-2200.pid").status.filter(|status| *status == 0));
        Self
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        sh("pid=$(</run/sshd-2200.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.01; done; rm -f /run/sshd-2200.pid; rm -rf '/run/else where'").ok();
    }
}

fn ssh_2200(command: &str) -> Done {
    run("ssh", &["-p2200", "30001@node", command], b"")
}

#[test]
#[ignore = "needs the node: make test"]
fn only_a_part_of_a_hierarchy_is_mounted() {
    let own = r#"[ ! -d $top/30001 ] || mount --bind $top/30001 "$new""#;
    {
        // The container's own cgroup and nothing else, which mountinfo shows with the root /30001.
        let _sshd = Sshd::with_mounts("--", own);
        assert_eq!(ssh_2200(PLACE).ok(), inside());
    }
    {
        let _moved = Moved::to("a/b/30001", &hierarchies());
        let _sshd = Sshd::with_mounts("--", r#"[ ! -d $top/a ] || mount --bind $top/a "$new""#);
        assert_eq!(ssh_2200(PLACE).ok(), inside());
    }
    {
        // Mounted twice, with something else over one of them.
        let covered = r#"mkdir "$new+"; mount --bind "$new" "$new+"; mount -t tmpfs -o mode=777 none "$new"; touch "$new/cgroup.procs""#;
        let _sshd = Sshd::with_mounts("--", &format!("{own}; {covered}"));
        assert_eq!(ssh_2200(PLACE).ok(), inside());
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn where_the_cgroups_cannot_be_reached() {
    let cases = [
        // Another container's part is mounted, and no other.
        ("--", r#"[ ! -d $top/30000 ] || mount --bind $top/30000 "$new""#, "none of its cgroups can be found"),
        // None at all.
        ("--", ":", "none of its cgroups can be found"),
        // The right one, with something else over it.
        (
            "--",
            r#"[ ! -d $top/30001 ] || { mount --bind $top/30001 "$new"; mount -t tmpfs none "$new"; touch "$new/cgroup.procs"; }"#,
            "in any mount of it: EXDEV",
        ),
        // sshd in a cgroup namespace that the container is not in.
        ("--cgroup", r#"mount --bind $top "$new""#, "none of its cgroups can be found"),
    ];
    for (unshare, script, cause) in cases {
        let _sshd = Sshd::with_mounts(unshare, script);
        let log = Log::from_now();
        let done = ssh_2200("true");
        assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}");
        let line = log.one_line("refused:");
        assert!(line.contains(cause), "{line}");
        assert_nothing_on_the_host();
    }
    assert_honest_logins();
}

/// The top of the hierarchy of cgroup v2, if the layout has one.
fn unified() -> Option<String> {
    let top = hierarchies().into_iter().find(|top| fs::exists(format!("{top}/30001/cgroup.type")).unwrap());
    can_try("cgroup v2", top.is_some());
    top
}

#[test]
#[ignore = "needs the node: make test"]
fn a_container_in_a_threaded_cgroup() {
    let Some(top) = unified() else { return };
    {
        let mut moved = Moved::to("a", std::slice::from_ref(&top));
        let threaded = format!("{top}/a/30001");
        fs::create_dir(&threaded).unwrap();
        moved.to.insert(0, threaded.clone());
        fs::write(format!("{threaded}/cgroup.type"), "threaded").unwrap();
        for (_, pid) in &moved.pids {
            fs::write(format!("{threaded}/cgroup.procs"), pid).unwrap();
        }
        let place = ssh(30001, PLACE).ok();
        assert_eq!(place, inside());
        assert!(place.contains(":/a/30001"), "{place}");
    }
    assert_honest_logins();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_cgroup_that_is_removed_while_the_session_enters() {
    let Some(top) = unified() else { return };
    let before = all_members();
    let log = Log::from_now();
    {
        let back = format!(
            "mkdir -p {top}/30001; for pid in $(cat {top}/a/cgroup.procs); do echo $pid >{top}/30001/cgroup.procs; done; rmdir {top}/a"
        );
        let _back = AtEnd(|| drop(sh(&back)));
        let _gone = between_check_and_join(&format!(
            "mkdir {top}/a; for pid in $(cat {top}/30001/cgroup.procs); do echo $pid >{top}/a/cgroup.procs; done; rmdir {top}/30001"
        ));
        let done = ssh(30001, "hostname");
        assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}");
        assert!(!fs::exists(format!("{top}/30001")).unwrap(), "the witness: it is gone");
    }
    let line = log.one_line("refused:");
    assert!(line.contains("join the container's cgroup :/30001: ENODEV"), "{line}");
    assert_nothing_on_the_host();
    eventually("nothing is left", || (all_members() == before).then_some(()));
    assert_honest_logins();
}
