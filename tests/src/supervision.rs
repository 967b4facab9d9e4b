//! The supervisor of a session: the only process of the container's user that stays on the node. It
//! is the child of the monitor process and the parent of the session's first process, and has
//! nothing that anybody could take from it.

use crate::{TextOf, descriptors, eventually, pgrep, status_field, up_to_the_monitor};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};

/// [`status_field`] with single spaces; empty when the process is gone.
pub fn status(pid: &str, key: &str) -> String {
    status_field(pid, key).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether there is such a process, and it has not ended and is not about to. (One that ends has
/// left its v1 cgroups some time before it is a zombie.)
pub fn lives(pid: &str) -> bool {
    const PF_EXITING: u32 = 4;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: the state, and the flags as the seventh word,
    // proc_pid_stat(5).
    let words: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let flags = words.get(6).and_then(|flags| flags.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING == 0) && !["Z", "X"].contains(&words[0])
}

/// Why a process of the node cannot pass for a supervisor. Empty once it has ended.
pub fn violations(pid: &str) -> Vec<String> {
    let parent = status(pid, "PPid");
    let mut found = Vec::new();
    let mut must = |holds: bool, violation: String| {
        if !holds {
            found.push(format!("{} ({pid}) {violation}", status(pid, "Name")));
        }
    };
    let of_parent = format!("{}, of the uids {}", status(&parent, "Name"), status(&parent, "Uid"));
    must(
        of_parent.starts_with("sshd") && of_parent.ends_with(" 0 0 0 0"),
        format!("is a child of {parent}, {of_parent}"),
    );
    let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    must(link(pid) == link("self"), format!("is in {:?}", link(pid)));

    let uids = status(pid, "Uid");
    let uid = uids.split(' ').next().unwrap().to_owned();
    must(uid.parse::<u32>().is_ok_and(|uid| uid >= 30000), format!("has the uids {uids}"));
    for ids in ["Uid", "Gid", "Groups"] {
        must(status(pid, ids).split_whitespace().all(|id| id == uid), format!("has {ids} {}", status(pid, ids)));
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        must(status(pid, set).chars().all(|digit| digit == '0'), format!("has {set} {}", status(pid, set)));
    }
    // Root owns the files in /proc of a process that is not dumpable, except the directory itself:
    // proc(5).
    let owner = fs::metadata(format!("/proc/{pid}/status")).map(|file| file.uid()).ok();
    must(owner == Some(0), format!("is dumpable: its files in /proc are {owner:?}'s"));
    let groups = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let (own, monitors) = (groups(pid), groups(&parent));
    must(own == monitors, format!("is in other cgroups than the monitor: {own:?}, and not {monitors:?}"));
    for open in descriptors(pid) {
        must(open == "/dev/null" || open == "anon_inode:[signalfd]", format!("holds {open}"));
    }
    // Of two that were looked at one after the other, one may have ended in between.
    if lives(pid) && status(pid, "PPid") == parent && lives(&parent) { found } else { Vec::new() }
}

/// A login that stays open, and its processes by their numbers on the node.
pub struct SupervisedSession {
    /// The client. Its standard input stays open.
    pub client: Child,
    /// The command.
    pub command: String,
    /// The session's first process, which is sshd's own.
    pub first: String,
    /// The parent of that.
    pub supervisor: String,
    /// sshd's root process.
    pub monitor: String,
}

impl SupervisedSession {
    /// Runs `ssh OPTIONS USER@node` with a command that calls itself `name` and ends when its input
    /// ends.
    #[track_caller]
    pub fn start(user: &str, options: &[&str], name: &str) -> Self {
        let mut ssh = Command::new("ssh");
        let script = format!("exec bash -c 'exec -a {name} cat'");
        ssh.args(options).args([&format!("{user}@node"), &script]);
        let errors = format!("/tmp/{name}.errors");
        let stderr = fs::File::create(&errors).unwrap();
        let client = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let command =
            eventually(format_args!("the command {name}: {}", TextOf(&errors)), || pgrep(&format!("^{name}$")));
        let processes = up_to_the_monitor(&command);
        let [.., first, supervisor, monitor] = processes.as_slice() else { panic!("{processes:?}") };
        let (first, supervisor, monitor) = (first.clone(), supervisor.clone(), monitor.clone());
        assert!(status(&first, "Name").starts_with("sshd"), "{name} is no descendant of sshd: {processes:?}");
        Self { client, command, first, supervisor, monitor }
    }

    /// Each process, for the message of a test that fails.
    pub fn describe(&self) -> String {
        [&self.command, &self.first, &self.supervisor, &self.monitor]
            .map(|pid| {
                let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
                format!(
                    "{pid} ({}, uids {}, {}, NSpid {})",
                    cmdline.trim(),
                    status(pid, "Uid"),
                    status(pid, "State"),
                    status(pid, "NSpid")
                )
            })
            .join(" < ")
    }

    /// There must be a supervisor, and it must have nothing.
    #[track_caller]
    pub fn assert_supervised(&self) {
        assert_eq!(violations(&self.supervisor), [""; 0], "{}", self.describe());
        assert!(lives(&self.supervisor), "{}", self.describe());
    }

    /// Kills the client.
    pub fn hang_up(&mut self) {
        drop((self.client.kill(), self.client.wait()));
    }

    /// The session must be alive: it sends back what it is sent.
    #[track_caller]
    pub fn assert_answers(&mut self) {
        use std::io::{BufRead, BufReader, Write};
        let (stdin, stdout) = (self.client.stdin.as_mut().unwrap(), self.client.stdout.as_mut().unwrap());
        stdin.write_all(b"answer\n").unwrap();
        let mut line = String::new();
        while !line.trim_end().ends_with("answer") {
            line.clear();
            let mut ready = libc::pollfd { fd: stdout.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one struct, as many as said.
            assert_eq!(unsafe { libc::poll(&mut ready, 1, 10_000) }, 1, "the session does not answer");
            let read = BufReader::with_capacity(1, &mut *stdout).read_line(&mut line).unwrap();
            assert_ne!(read, 0, "the session has ended");
        }
    }
}

impl Drop for SupervisedSession {
    fn drop(&mut self) {
        self.hang_up();
        // A stopped supervisor would keep the container, and with it the test, forever.
        if status(&self.supervisor, "State").starts_with('T') {
            crate::sh(format!("kill -KILL {}", self.supervisor));
        }
    }
}
