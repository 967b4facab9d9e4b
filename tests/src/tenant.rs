//! Imitates a hostile tenant, and watches that its attacks have no effect.

use crate::{
    AtEnd, HOST_MARKER, Log, OWN_NAMESPACES, client_errors, eventually, leader, namespaces, pgrep, run, sh, ssh,
    supervision,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

/// The container whose own pid 1 is the tenant's code.
pub const HOSTILE: u32 = 30003;

/// Puts the tenant's tool where the container's user finds it, at the same path inside and outside.
pub fn give_tool(uid: u32) -> String {
    install_program(uid, "tenant")
}

/// Does the same with another program of `src/bin`.
pub fn install_program(uid: u32, program: &str) -> String {
    let tool = format!("/containers/{uid}/{program}");
    let built = std::env::current_exe().unwrap();
    let built = built.ancestors().nth(2).unwrap().join(program);
    sh(format!("[ -e {tool} ] || install -o {uid} -g {uid} -m 755 {} {tool}", built.display())).ok();
    tool
}

/// A command that the tenant starts by an ordinary login. It goes on until this is dropped.
pub struct Inside(Child);

impl Inside {
    /// Starts it.
    pub fn start(uid: u32, script: &str) -> Self {
        let script = format!("export HOME=/containers/{uid}; {script}");
        // With a terminal its processes get a hangup when the client goes.
        let mut ssh = Command::new("ssh");
        ssh.args(["-tt", "-oLogLevel=ERROR", &format!("{uid}@node"), &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Self(ssh.spawn().unwrap())
    }

    /// Waits for its own end.
    pub fn wait(&mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

/// Says what `tenant serve` does with the next connections, and waits until it is prepared.
pub fn set_treatment(uid: u32, kind: &str) {
    let file = format!("/containers/{uid}/kind");
    for left in ["ready", "told"] {
        drop(fs::remove_file(format!("{file}.{left}")));
    }
    fs::write(format!("{file}.new"), kind).unwrap();
    fs::rename(format!("{file}.new"), &file).unwrap(); // never seen half written
    eventually(kind, || (fs::read_to_string(format!("{file}.ready")).ok()? == kind).then_some(()));
}

/// What `tenant serve` has logged since [`set_treatment`]: how far it came with each connection.
pub fn listener_log(uid: u32) -> BTreeSet<String> {
    let log = fs::read_to_string(format!("/containers/{uid}/kind.told")).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

/// Puts a file or directory back in its place when this ends, wherever in its directory it has
/// gone.
pub struct Restored(String);

impl Restored {
    /// The one that is there now.
    pub fn later(path: &str) -> Self {
        let (directory, name) = path.rsplit_once('/').unwrap();
        let inode = sh(format!("stat -c %i {path}")).ok();
        Self(format!(
            "cd {directory} && real=$(find . -maxdepth 1 -inum {inode}) && [ \"$real\" = ./{name} ] || {{ rm -rf {name}; mv \"$real\" {name}; }}"
        ))
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        sh(&self.0).ok();
    }
}

/// From this number on the tenant's pid 1 holds five namespaces of container 30000's, as if two
/// tenants had one purpose.
pub const INHERITED: i32 = 3;

/// A container like the Emperor's, except that its pid 1 is `tenant`, and on request its /etc the
/// tenant's own.
pub struct Hostile {
    outside: Child,
    /// Its pid 1, as the node counts.
    pub leader: String,
}

impl Hostile {
    /// Starts it with the tool's words, and waits for its socket.
    pub fn start(words: &str) -> Self {
        let uid = HOSTILE;
        // By number: setpriv would ask the tenant's passwd.
        Self::become_by(
            &format!("perl -e '$) = q({uid} {uid}); $( = {uid}; ($<, $>) = ({uid}, {uid}); exec @ARGV'"),
            words,
        )
    }

    /// Starts one by a command that becomes the container's user, and may leave more behind.
    pub fn become_by(command: &str, words: &str) -> Self {
        let uid = HOSTILE;
        give_home();
        let home = format!("/containers/{uid}");
        sh(format!("rm -f {home}/run/ns.socket {home}/kind*")).ok();
        let other = leader(30000);
        let inherited = ["mnt", "pid", "net", "ipc", "uts"].into_iter().zip(INHERITED..);
        let inherited: String = inherited.map(|(kind, number)| format!("{number}</proc/{other}/ns/{kind} ")).collect();
        let script = format!(
            "ulimit -c 0; exec {inherited}
            for procs in $(find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs -not -path '*cpuset*'); do
                own=${{procs%/*}}/{uid}; mkdir -p $own && echo 0 >$own/cgroup.procs
            done
            mount --bind /distros/base /ns
            mount -t proc -o nodev,hidepid=2 proc /ns/proc
            mount --bind /dev /ns/dev; mount --bind /dev/pts /ns/dev/pts
            mount -t tmpfs -o mode=755 none /ns/containers; mkdir /ns/containers/{uid}
            mount --bind {home} /ns/containers/{uid}
            for own in run tmp; do mount --bind {home}/$own /ns/$own; done
            mount --bind {home}/logs /ns/var/log
            [ ! -e {home}/etc/passwd ] || mount --bind {home}/etc /ns/etc
            hostname c{uid}; ip link set lo up
            cd /ns; pivot_root . .old_root; umount -l /.old_root
            exec env -i HOME={home} {command} {home}/tenant {words}"
        );
        let outside = Command::new("unshare")
            .args(["-m", "-p", "-i", "-u", "-n", "--fork", "--propagation", "private"])
            .args(["bash", "-ec", &script])
            .stdin(Stdio::null())
            .stderr(client_errors())
            .spawn()
            .unwrap();
        let mut hostile = Self { outside, leader: String::new() };
        let socket = format!("{home}/run/ns.socket");
        hostile.leader = eventually("the hostile pid 1", || {
            let pid = run("node-pid", &[&uid.to_string()], b"");
            (pid.status == Some(0) && Path::new(&socket).exists()).then(|| pid.out.trim().to_owned())
        });
        hostile
    }

    /// The mount namespace that was its pid 1's to begin with.
    pub fn mounts(&self) -> String {
        namespaces(&self.leader)["mnt"].clone()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        // With pid 1 all of its pid namespace ends.
        drop(sh(format!("pkill -KILL -P {}", self.outside.id())));
        drop(self.outside.wait());
        let gone = format!("rmdir $(find /sys/fs/cgroup -maxdepth 2 -type d -name {HOSTILE})");
        let ended = (0..250).any(|_| {
            sleep(Duration::from_millis(20));
            sh(&gone).status == Some(0)
        });
        assert!(ended || std::thread::panicking(), "{HOSTILE} does not end: {}", sh("ps -eo pid,stat,args").out);
    }
}

/// The hostile container's directory, with the key that opens every account.
pub fn give_home() {
    let (uid, home) = (HOSTILE, format!("/containers/{HOSTILE}"));
    sh(format!("install -d -o {uid} -g {uid} -m 755 {home} {home}/run {home}/tmp {home}/logs {home}/etc {home}/files"))
        .ok();
    sh(format!("install -d -o {uid} -g {uid} -m 700 {home}/.ssh")).ok();
    sh(format!("install -o {uid} -g {uid} -m 600 /root/.ssh/id_ed25519.pub {home}/.ssh/uwsgi_authorized_keys")).ok();
    give_tool(uid);
}

/// Looks, all the time that it lives, at every process that sshd has started, and panics in
/// [`Watch::done`] if one of them was what it must not be: with root's power or a group beyond the
/// container's in a tenant's file system, a container's user on the host, or a process inside that
/// holds a namespace, a pidfd, a cgroup, or a file out of the container's mounts.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(usize, BTreeSet<String>)>>,
    sshd: usize,
    canary: String,
    log: Log,
}

/// What a tenant has no business to change: files of the host and of the distribution, with every
/// time and owner. And those of another tenant, but for its logs.
const CANARIES: &str = "find /etc /root /home /var/lib /distros/base -xdev -printf '%p %y %l %m %U %G %s %T@ %C@\\n' | sort; ls -A /dev /; \
     find /containers/30000 -name logs -prune -o -printf '%p %y %l %m %U %G %s %T@\\n' | sort";

impl Watch {
    /// From now on.
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let host = namespaces("self");
                let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
                while !stop.load(Ordering::SeqCst) {
                    for pid in numbers_in_proc() {
                        let Some(look) = ProcessSnapshot::at(pid, &host) else { continue };
                        if look.inside {
                            seen.insert(pid);
                        }
                        // sshd's child is between two system calls for some microseconds; what
                        // lasts is not that.
                        if look.wrong(&host).is_some() {
                            sleep(Duration::from_millis(10));
                            found.extend(ProcessSnapshot::at(pid, &host).and_then(|again| again.wrong(&host)));
                        }
                    }
                    sleep(Duration::from_millis(10));
                }
                (seen.len(), found)
            }
        });
        let canary = sh(CANARIES).ok();
        Self { stop, thread: Some(thread), sshd: listeners_and_monitors(), canary, log: Log::from_now() }
    }

    /// What has been logged since.
    pub const fn log(&self) -> &Log {
        &self.log
    }

    /// Everything must be as before, and honest people still log in.
    #[track_caller]
    pub fn done(mut self) {
        eventually("sshd's processes are as many as before", || (listeners_and_monitors() <= self.sshd).then_some(()));
        leader(30001);
        let in_container = ssh(30001, "hostname; id -G; sleep 0.7").ok();
        assert_eq!(in_container, "c30001\n30001");
        for user in ["root", "alice"] {
            assert_eq!(ssh(user, "hostname").ok(), "node");
        }
        self.stop.store(true, Ordering::SeqCst);
        let (seen, found) = self.thread.take().unwrap().join().unwrap();
        assert!(found.is_empty(), "{found:#?}");
        assert!(seen > 0, "the watch has seen no session at all");
        let canary = sh(CANARIES).ok();
        let touched: Vec<_> =
            canary.lines().zip(self.canary.lines()).find(|(now, before)| now != before).into_iter().collect();
        assert!(canary == self.canary, "a file outside was touched: {touched:?}");
        assert!(!Path::new(HOST_MARKER).exists(), "a session on the host");
        // One that has just ended is there until its parent has waited for it.
        let stuck = || sh("ps -eo stat=,comm= | grep -E '^(D|Z).*sshd'").out;
        eventually("nothing of sshd's is left behind", || stuck().is_empty().then_some(()));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn listeners_and_monitors() -> usize {
    run("pgrep", &["-c", "^sshd"], b"").out.trim().parse().unwrap()
}

fn numbers_in_proc() -> Vec<u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// One process at one moment.
struct ProcessSnapshot {
    pid: u32,
    name: String,
    status: String,
    inside: bool,
    of_our_users: bool,
}

impl ProcessSnapshot {
    /// A process that sshd is an ancestor of; nothing else is of interest.
    fn at(pid: u32, host: &BTreeMap<String, String>) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let is_ours =
            |kind| Some(fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?.to_string_lossy() == host[kind]);
        // A supervisor stays in the monitor's mount namespace, which is another than the
        // node's.
        let is_supervisor = is_ours("pid")? && field(&status, "Name").starts_with("pam_unbit:");
        let (inside, of_our_users) = (!is_ours("mnt")? && !is_supervisor, is_ours("user")?);
        // The helper that joins for a session: nobody inside sees it, and it forks when it has
        // nothing left.
        if inside && is_ours("pid")? && field(&status, "Name").starts_with("sshd") {
            return None;
        }
        let mut ancestor = status.clone();
        let mut hops = 0;
        while !field(&ancestor, "Name").starts_with("sshd") {
            let parent = field(&ancestor, "PPid").to_owned();
            hops += 1;
            if parent == "0" || parent.is_empty() || hops > 20 {
                return None;
            }
            ancestor = fs::read_to_string(format!("/proc/{parent}/status")).ok()?;
        }
        Some(Self { pid, name: field(&status, "Name").to_owned(), status, inside, of_our_users })
    }

    fn wrong(&self, host: &BTreeMap<String, String>) -> Option<String> {
        let line = |key| field(&self.status, key);
        let uids: Vec<u32> = line("Uid").split_whitespace().filter_map(|uid| uid.parse().ok()).collect();
        let what = if !self.inside {
            if *uids.first()? < 30000 {
                return None;
            }
            // A session's supervisor belongs there, as long as it has nothing.
            let violations = supervision::violations(&self.pid.to_string());
            if violations.is_empty() {
                return None;
            }
            format!("is a container's user on the host: {}", violations.join(", "))
        } else if self.of_our_users && uids.iter().any(|uid| *uid < 30000) {
            format!("has the uids {uids:?} inside")
        } else if self.of_our_users
            && ["CapPrm", "CapEff", "CapInh", "CapAmb"].iter().any(|set| line(set).contains(|digit| digit != '0'))
        {
            "has capabilities inside".to_owned()
        } else if let Some(group) = line("Groups").split_whitespace().find(|group| *group != uids[0].to_string()) {
            format!("has the group {group} inside")
        } else if line("Gid").split_whitespace().any(|gid| gid != uids[0].to_string()) {
            format!("has the gids {} inside", line("Gid"))
        } else {
            format!("holds {}", self.holds(host)?)
        };
        Some(format!("{} ({}) {what}", self.name, self.pid))
    }

    /// What it has open and should not.
    fn holds(&self, host: &BTreeMap<String, String>) -> Option<String> {
        let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", self.pid)).unwrap_or_default();
        let mountinfo = read("mountinfo");
        let mounts: BTreeSet<_> = mountinfo.lines().filter_map(|line| line.split(' ').next()).collect();
        let numbers = fs::read_dir(format!("/proc/{}/fd", self.pid)).ok()?;
        numbers.filter_map(|number| Some((number.as_ref().ok()?.path(), number.ok()?.file_name()))).find_map(
            |(link, number)| {
                let open = fs::read_link(&link).ok()?.to_string_lossy().into_owned();
                // With a kind and a number: a namespace, a socket, a pipe.
                let is_bad = if open.ends_with(']') && !open.starts_with('/') {
                    let is_plain = ["socket:[", "pipe:[", "anon_inode:["].iter().any(|kind| open.starts_with(kind));
                    open.contains("pidfd")
                        || OWN_NAMESPACES.iter().any(|kind| open == host[*kind])
                        || (self.name.starts_with("sshd") && !is_plain)
                } else {
                    // Devices are sshd's from before it entered, and lead nowhere. A tenant's user
                    // namespace has mounts of its own.
                    let is_device = || fs::metadata(&link).is_ok_and(|file| file.file_type().is_char_device());
                    let info = read(&format!("fdinfo/{}", number.to_string_lossy()));
                    let mount = field(&info, "mnt_id");
                    let is_elsewhere = || !mount.is_empty() && !mounts.contains(mount);
                    open.ends_with("/cgroup.procs") || (self.of_our_users && !is_device() && is_elsewhere())
                };
                is_bad.then_some(open)
            },
        )
    }
}

fn field<'a>(status: &'a str, key: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap_or_default().trim()
}

/// Waits for a process of the tenant's to listen.
pub fn wait_for_listener(uid: u32) -> AtEnd<impl FnMut()> {
    let socket = format!("/containers/{uid}/run/ns.socket");
    eventually("the listener", || Path::new(&socket).exists().then_some(()));
    sleep(Duration::from_millis(50));
    AtEnd(move || {
        while let Some(pid) = pgrep(&format!("^/containers/{uid}/tenant ")) {
            sh(format!("kill -KILL {pid}"));
            sleep(Duration::from_millis(20));
        }
    })
}
