//! Makes containers as other engines do: without Emperor and socket, with a pid 1 that can be root,
//! and with root's link to its cgroup.

use crate::{AtEnd, Log, eventually, namespaces, sh, ssh};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// Where root's links are.
pub const LINKS: &str = "/etc/unbit";

/// The group around the groups of all these containers.
const SLICE: &str = "engine.slice";

/// The sentence for a container that is not what it should be.
pub const NOT_TRUSTED: &str = "cannot be entered: its set-up failed a check.";

/// A login of 30001 is refused with this sentence, and one line of the log has the cause.
#[track_caller]
pub fn assert_refused(sentence: &str, cause: &str) {
    let log = Log::from_now();
    let done = ssh(30001, "hostname");
    assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}\n{}", log.text());
    let line = log.one_line("refused:");
    assert!(done.err.contains(sentence), "{done:?}\n{line}");
    assert!(line.contains(cause), "{line}");
}

/// How to make one.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Its host name, and the name of its cgroups.
    pub name: String,
    /// The namespaces, as unshare(1) has them.
    pub unshare: &'static str,
    /// The maps of a user namespace of its own.
    pub users: Option<Users>,
    /// What is done, as root in its namespaces, before its root directory is its own.
    pub before: String,
    /// Its pid 1, with what becomes it.
    pub command: String,
    /// The name of pid 1's program once that is executed.
    pub program: &'static str,
}

/// A user namespace: its maps as in /proc/PID/uid_map, and whether setgroups(2) is allowed there.
#[derive(Clone, Debug)]
pub struct Users {
    /// `INSIDE OUTSIDE COUNT`, one or more lines.
    pub uids: String,
    /// The map of the gids, likewise.
    pub gids: String,
    /// What goes to /proc/PID/setgroups: `allow` or `deny`.
    pub setgroups: &'static str,
}

impl Users {
    /// 65536 ids from 1000000 on, as LXC and Incus have them.
    pub fn usual() -> Self {
        Self::of("0 1000000 65536")
    }

    /// One map for uids and gids.
    pub fn of(map: &str) -> Self {
        Self { uids: map.to_owned(), gids: map.to_owned(), setgroups: "allow" }
    }
}

impl Engine {
    /// A container whose root is root of the node, without CAP_SYS_PTRACE.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            unshare: "-m -p -i -u -n -C",
            users: None,
            before: String::new(),
            command: "setpriv --bounding-set=-sys_ptrace sleep 86400".to_owned(),
            program: "sleep",
        }
    }

    /// With another pid 1.
    pub fn running(mut self, command: &str, program: &'static str) -> Self {
        (self.command, self.program) = (command.to_owned(), program);
        self
    }

    /// With other namespaces.
    pub fn unsharing(mut self, kinds: &'static str) -> Self {
        self.unshare = kinds;
        self
    }

    /// With a user namespace, whose root keeps all its capabilities.
    pub fn with_users(mut self, users: Users) -> Self {
        (self.users, self.command) = (Some(users), "sleep 86400".to_owned());
        self
    }

    /// With something done before.
    pub fn after(mut self, script: &str) -> Self {
        self.before = script.to_owned();
        self
    }

    /// Starts it, and waits until its pid 1 runs its program.
    #[track_caller]
    pub fn start(&self) -> Container {
        let inner = format!(
            "mount --bind /distros/base /ns; mount -t proc -o nosuid,nodev,noexec proc /ns/proc; mount --rbind /dev /ns/dev
            mount -t tmpfs -o mode=755 none /ns/containers
            for uid in 30000 30001; do mkdir /ns/containers/$uid; mount --bind /containers/$uid /ns/containers/$uid; done
            mount -t tmpfs -o mode=1777 none /ns/tmp
            hostname {}; {}
            cd /ns; pivot_root . .old_root; umount -l /.old_root; exec env -i PATH=$PATH {}",
            self.name,
            if self.before.is_empty() { "true" } else { &self.before },
            self.command
        );
        let enter = if self.users.is_some() { "/unbit/target/debug/user-namespace" } else { "env" };
        let script = format!(
            "tops=/sys/fs/cgroup; [ -e $tops/cgroup.procs ] || tops=$(find $tops -mindepth 1 -maxdepth 1 -type d -not -name '*cpuset*')
            for top in $tops; do own=$top/{SLICE}/{}; mkdir -p $own; echo 0 >$own/cgroup.procs; done
            exec {enter} unshare {} --fork --kill-child --propagation private bash -ec \"$0\"",
            self.name, self.unshare
        );
        let mut outside = Command::new("bash").args(["-ec", &script, &inner]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = outside.id().to_string();
        if let Some(users) = &self.users {
            eventually("the user namespace", || {
                (namespaces(&pid).get("user")? != &namespaces("self")["user"]).then_some(())
            });
            let write = |file: &str, text: &str| {
                fs::write(format!("/proc/{pid}/{file}"), text).unwrap_or_else(|error| panic!("{file} {text}: {error}"));
            };
            write("setgroups", users.setgroups);
            write("uid_map", &users.uids);
            write("gid_map", &users.gids);
            outside.stdin.take().unwrap().write_all(b"go\n").unwrap();
        }
        let mut container = Container { outside, leader: String::new(), name: self.name.clone() };
        container.leader = eventually(format!("pid 1 of {self:?}"), || {
            let pid = sh(format!("pgrep -P {pid}")).out.trim().to_owned();
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            // The shell that makes it has other children before, some of them with the same name.
            let is_pid_1 = status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"));
            (is_pid_1 && status.starts_with(&format!("Name:\t{}\n", self.program))).then_some(pid)
        });
        container
    }
}

/// One that runs, until this is dropped.
pub struct Container {
    /// The process that has made it, which waits for it outside.
    pub outside: Child,
    /// Its pid 1, as the node counts.
    pub leader: String,
    name: String,
}

impl Container {
    /// Its cgroup directories, in every hierarchy.
    pub fn groups(&self) -> Vec<String> {
        let found = sh(format!("find /sys/fs/cgroup -maxdepth 3 -type d -path '*/{SLICE}/{}'", self.name)).ok();
        found.lines().map(str::to_owned).collect()
    }

    /// The one of cgroup v2 if there is one.
    pub fn group(&self) -> String {
        let groups = self.groups();
        let version_2 = groups.iter().find(|group| fs::exists(format!("{group}/cgroup.type")).unwrap());
        version_2.unwrap_or(&groups[0]).clone()
    }

    /// Links it to an account.
    pub fn link(&self, uid: u32) -> Link {
        LEADERS.lock().unwrap().insert(uid, self.leader.clone());
        Link::to(uid, &self.group())
    }

    /// Ends it, and leaves its groups.
    pub fn stop(&mut self) {
        self.kill();
        eventually("the end of its pid 1", || (!fs::exists(format!("/proc/{}", self.leader)).unwrap()).then_some(()));
    }
}

impl Container {
    /// A pid 1 that has changed its ids does not end with the process outside.
    fn kill(&mut self) {
        if matches!(self.outside.try_wait(), Ok(None)) {
            drop(sh(format!("kill -KILL {}", self.leader)));
        }
        drop((self.outside.kill(), self.outside.wait()));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.kill();
        let gone = format!(
            "for group in $(find /sys/fs/cgroup -maxdepth 3 -type d -path '*/{SLICE}/{}'); do find $group -depth -type d -delete || exit 1; done
            rmdir --ignore-fail-on-non-empty $(find /sys/fs/cgroup -maxdepth 2 -type d -name {SLICE}) 2>/dev/null || true",
            self.name
        );
        let ended = (0..250).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            sh(&gone).status == Some(0)
        });
        assert!(ended || std::thread::panicking(), "{} does not end: {}", self.name, sh("ps -eo pid,stat,args").out);
    }
}

/// The pid 1 of each account that is linked to a container.
static LEADERS: Mutex<BTreeMap<u32, String>> = Mutex::new(BTreeMap::new());

/// The pid 1 of an account that is linked to a container.
pub fn linked_leader(uid: u32) -> Option<String> {
    LEADERS.lock().unwrap().get(&uid).cloned()
}

/// A link that root made, until this is dropped.
pub struct Link(u32);

impl Link {
    /// The account's link to anything.
    pub fn to(uid: u32, target: &str) -> Self {
        sh(format!("mkdir -p {LINKS} && ln -sfn {target} {LINKS}/{uid}")).ok();
        Self(uid)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        LEADERS.lock().unwrap().remove(&self.0);
        sh(format!("rm -rf {LINKS}/{}*; [ ! -d {LINKS} ] || rmdir --ignore-fail-on-non-empty {LINKS}", self.0)).ok();
    }
}

/// Root's word that it trusts root in this account's container, until this is dropped.
pub fn trust(uid: u32) -> AtEnd<impl FnMut()> {
    let file = format!("{LINKS}/{uid}.root-is-trusted");
    fs::write(&file, "").unwrap();
    AtEnd(move || drop(fs::remove_file(&file)))
}
