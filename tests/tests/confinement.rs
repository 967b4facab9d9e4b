//! A session is bound as its container's pid 1 is, whatever sshd was started with. Everything that
//! /proc shows about a process of the session must equal pid 1's, except for what [`MAY_DIFFER`]
//! lists with a reason.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use unbit_tests::tenant::*;
use unbit_tests::*;

/// What may differ, as FILE, FILE:FIELD or a beginning of one and `*`. SECURITY.md and pam_unbit(8)
/// have the same list.
const MAY_DIFFER: &[(&str, &[&str])] = &[
    (
        "which process and program it is",
        &[
            "status:Name",
            "status:State",
            "status:Pid",
            "status:Tgid",
            "status:PPid",
            "status:NStgid",
            "status:NSpid",
            "status:NSpgid",
            "status:NSsid",
            "status:Threads",
            "stat:pid",
            "stat:comm",
            "stat:state",
            "stat:ppid",
            "stat:pgrp",
            "stat:session",
            "stat:tty_nr",
            "stat:tpgid",
            "stat:num_threads",
            "cmdline",
            "comm",
            "environ",
            "syscall",
            "wchan",
            "stack",
            "timers",
        ],
    ),
    (
        "what it has used: time, memory, input and output",
        &[
            "status:Vm*",
            "status:Rss*",
            "status:FDSize",
            "status:SigQ",
            "status:HugetlbPages",
            "status:voluntary_ctxt_switches",
            "status:nonvoluntary_ctxt_switches",
            "stat:minflt",
            "stat:cminflt",
            "stat:majflt",
            "stat:cmajflt",
            "stat:utime",
            "stat:stime",
            "stat:cutime",
            "stat:cstime",
            "stat:starttime",
            "stat:vsize",
            "stat:rss",
            "stat:delayacct_blkio_ticks",
            "stat:guest_time",
            "stat:cguest_time",
            "stat:processor",
            "sched:se.exec_start",
            "sched:se.vruntime",
            "sched:se.deadline",
            "sched:se.sum_exec_runtime",
            "sched:se.nr_migrations",
            "sched:se.statistics.*",
            "sched:se.avg.*",
            "sched:sum_*",
            "sched:nr_*",
            "sched:avg_*",
            "sched:wait_*",
            "sched:clock-delta",
            "sched:mm->*",
            "sched:*numa*",
            "sched:current_node",
            "schedstat",
            "io",
            "statm",
            "oom_score",
            "arch_status",
            "ksm_*",
        ],
    ),
    (
        "its memory, addresses and registers",
        &[
            "auxv",
            "maps",
            "smaps",
            "smaps_rollup",
            "numa_maps",
            "pagemap",
            "mem",
            "clear_refs",
            "stat:startcode",
            "stat:endcode",
            "stat:startstack",
            "stat:kstkesp",
            "stat:kstkeip",
            "stat:wchan",
            "stat:start_data",
            "stat:end_data",
            "stat:start_brk",
            "stat:arg_start",
            "stat:arg_end",
            "stat:env_start",
            "stat:env_end",
        ],
    ),
    ("what the kernel has noted of its past (PF_SUPERPRIV, PF_FORKNOEXEC, ...)", &["stat:flags"]),
    (
        "the signals that a program handles, ignores or blocks itself",
        &[
            "status:SigPnd",
            "status:ShdPnd",
            "status:SigBlk",
            "status:SigIgn",
            "status:SigCgt",
            "stat:signal",
            "stat:blocked",
            "stat:sigignore",
            "stat:sigcatch",
        ],
    ),
    ("the file creation mask is the login's: sshd's, or what the user's profile says", &["status:Umask"]),
    ("the groups are the account's: its own group or none, never one of the node's", &["status:Groups"]),
    ("the audit identity is the login's, see pam_loginuid(8)", &["loginuid", "sessionid"]),
    ("the kernel gives each session(2) an autogroup", &["autogroup"]),
];

fn may_differ(key: &str) -> bool {
    MAY_DIFFER.iter().flat_map(|(_, keys)| *keys).any(|listed| match listed.split_once('*') {
        Some((head, "")) => key.starts_with(head),
        Some((head, tail)) => key.starts_with(head) && key.contains(tail.trim_end_matches('*')),
        None => key == *listed,
    })
}

/// The fields of /proc/PID/stat, see proc_pid_stat(5).
const STAT: &str = "pid comm state ppid pgrp session tty_nr tpgid flags minflt cminflt majflt cmajflt utime stime cutime cstime priority \
    nice num_threads itrealvalue starttime vsize rss rsslim startcode endcode startstack kstkesp kstkeip signal blocked sigignore sigcatch \
    wchan nswap cnswap exit_signal processor rt_priority policy delayacct_blkio_ticks guest_time cguest_time start_data end_data start_brk \
    arg_start arg_end env_start env_end exit_code";

/// Everything that /proc and the scheduler show about a process, by FILE or FILE:FIELD.
fn attributes(pid: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut add = |key: String, value: &str| {
        if !may_differ(&key) {
            all.insert(key, value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    };
    for directory in ["", "attr/", "ns/"] {
        for entry in fs::read_dir(format!("/proc/{pid}/{directory}")).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{directory}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().unwrap();
            if kind.is_symlink() && directory == "ns/" {
                add(name, &fs::read_link(entry.path()).unwrap().to_string_lossy());
                continue;
            }
            if !kind.is_file() || may_differ(&entry.file_name().to_string_lossy()) {
                continue;
            }
            let text = match fs::read(entry.path()) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(error) => format!("error: {error}"),
            };
            match name.as_str() {
                "status" => text.lines().filter_map(|line| line.split_once(':')).for_each(|(key, value)| {
                    add(format!("status:{key}"), value);
                }),
                "stat" => {
                    let (pid, rest) = text.split_once(" (").unwrap();
                    let (comm, rest) = rest.rsplit_once(") ").unwrap();
                    let values = [pid, comm].into_iter().chain(rest.split_whitespace());
                    STAT.split_whitespace().zip(values).for_each(|(key, value)| add(format!("stat:{key}"), value));
                }
                // "Max open files            20000 ...", where the name takes 26 columns.
                "limits" => {
                    text.lines().skip(1).for_each(|line| add(format!("limits:{}", line[..26].trim()), &line[26..]))
                }
                "sched" => {
                    text.lines().skip(1).filter_map(|line| line.split_once([':', '='])).for_each(|(key, value)| {
                        add(format!("sched:{}", key.trim()), value);
                    })
                }
                _ => add(name, &text),
            }
        }
    }
    let root = fs::metadata(format!("/proc/{pid}/root/")).unwrap();
    add("root".to_owned(), &format!("{} {}", root.dev(), root.ino()));
    add("I/O priority".to_owned(), &run("ionice", &["-p", pid], b"").ok());
    all
}

/// What of a process is not as its container's pid 1 has it.
fn differences(pid: &str, leader: &str) -> Vec<String> {
    let (own, leaders) = (attributes(pid), attributes(leader));
    assert!(leaders.len() > 80, "the witness: there is something to compare: {leaders:#?}");
    let keys = own.keys().chain(leaders.keys()).collect::<std::collections::BTreeSet<_>>();
    let absent = "absent".to_owned();
    let value = |of: &BTreeMap<String, String>, key| of.get(key).unwrap_or(&absent).clone();
    keys.into_iter()
        .filter(|key| own.get(*key) != leaders.get(*key))
        .map(|key| format!("{key}: {:?}, pid 1 has {:?}", value(&own, key), value(&leaders, key)))
        .collect()
}

/// The processes of a container, as the node counts.
fn processes(leader: &str) -> Vec<String> {
    let namespace = fs::read_link(format!("/proc/{leader}/ns/pid")).unwrap();
    let all = sh("ps -eo pid=").ok();
    let is_inside = |pid: &&str| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|its| its == namespace);
    all.split_whitespace().filter(is_inside).map(str::to_owned).collect()
}

/// A client that says a line when its session is there, and goes on until it is dropped.
struct Client(Child);

impl Client {
    fn start(words: &[&str], input: &str) -> Self {
        let client = Command::new("timeout").arg("30").args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut client = Self(client.unwrap());
        client.0.stdin.as_mut().unwrap().write_all(input.as_bytes()).unwrap();
        let mut said = String::new();
        BufReader::new(client.0.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_ne!(said, "", "{words:?} has no session: {}", Log::all());
        client
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

/// Looks at each process of a session of each kind.
#[track_caller]
fn assert_bound_as_pid_1_is(uid: u32, leader: &str) {
    let address = &format!("{uid}@node");
    let mut wrong: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (words, input) in [
        (&["ssh", address, "echo here; exec sleep 600"][..], ""),
        (&["ssh", "-tt", address, "echo here; exec sleep 600"][..], ""),
        (&["sftp", "-q", "-b", "-", address][..], "pwd\n"),
        (&["sftp", "-q", INTERNAL_SFTP, "-b", "-", address][..], "pwd\n"),
    ] {
        let before = processes(leader);
        let _client = Client::start(words, input);
        sleep(Duration::from_millis(100)); // until it has started all that it starts
        let session: Vec<_> = processes(leader).into_iter().filter(|pid| !before.contains(pid)).collect();
        let least = if words.contains(&INTERNAL_SFTP) { 1 } else { 2 };
        assert!(session.len() >= least, "{words:?}: sshd's child and what it runs: {session:?}");
        for pid in session {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
            for what in differences(&pid, leader) {
                wrong.entry(what).or_default().push(format!("{} of {}", name.trim(), words.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differences: {wrong:#?}", wrong.len());
}

/// Whether limits and OOM scores can be raised on this node.
fn has_sys_resource() -> bool {
    let capabilities = status_field("self", "CapEff").unwrap();
    u64::from_str_radix(&capabilities, 16).unwrap() >> 24 & 1 == 1
}

/// Starts sshd by a command that binds it otherwise than the node's; at the end it is started as
/// before.
fn restart_sshd_by(command: &str) -> AtEnd<impl FnMut() + use<>> {
    sh("node-sshd stop").ok();
    let back = AtEnd(|| drop(sh("node-sshd stop; node-sshd start").ok()));
    sh(format!("{command} node-sshd start")).ok();
    back
}

/// What is set from outside, as root of the node may with any container. Limits are set as the
/// container's user: for another user's process that takes CAP_SYS_RESOURCE.
fn bind(uid: u32, pid: &str, how: &str) {
    let how = how.replace("prlimit", &format!("setpriv --reuid {uid} --regid {uid} --clear-groups prlimit"));
    for command in how.split(';').map(str::trim).filter(|command| !command.is_empty()) {
        sh(command.replace("PID", pid)).ok();
    }
}

/// Every limit, soft and hard ones different, and none higher than what sshd has.
const LOW_LIMITS: &str = "prlimit -p PID --nofile=350:700 --nproc=900:1800 --core=4096:8192 --memlock=65536:131072 --stack=4194304:6291456 \
    --fsize=1073741824:2147483648 --data=1073741824:2147483648 --as=2147483648:4294967296 --cpu=3000:3600 --rss=1073741824:2147483648 \
    --sigpending=500:600 --msgqueue=4096:8192 --locks=77:88 --rttime=1000000:2000000";

fn needs_two_processors() -> bool {
    let processors = sh("taskset -cp 1 | sed 's/.*: //'").ok();
    if !processors.starts_with("0") || processors == "0" {
        not_tried(format!("affinity takes processors 0 and 1, here are {processors}"), true);
    }
    processors.starts_with("0,1") || processors.starts_with("0-")
}

#[test]
#[ignore = "needs the node: make test"]
fn a_session_takes_over_tighter_limits() {
    let leader = leader(30001);
    let (scores, sshds_score) = if has_sys_resource() { ("300", "-500") } else { ("300", "600") };
    bind(
        30001,
        &leader,
        &format!("{LOW_LIMITS}; choom -p PID -n {scores}; renice -n 5 -p PID; chrt -b -p 0 PID; ionice -c3 -p PID"),
    );
    let mut sshds = format!("choom -n {sshds_score} -- nice -n -5 ionice -c2 -n0 prlimit --nofile=400:8192");
    if needs_two_processors() {
        bind(30001, &leader, "taskset -cp 1 PID");
        sshds += " taskset -c 0";
    }
    // A new pid 1 is as the Emperor makes it.
    let _new = AtEnd(|| {
        sh(format!("kill -KILL {leader}")).ok();
        eventually("a new pid 1", || (run("node-pid", &["30001"], b"").out.trim() != leader).then_some(()));
        unbit_tests::leader(30001);
    });
    let _sshd = restart_sshd_by(&sshds);
    // What its limits are is pam_limits' business.
    assert_eq!(ssh("alice", "nice").ok(), sh("nice -n -5 nice").ok(), "an ordinary user's session is bound as sshd is");
    assert_bound_as_pid_1_is(30001, &leader);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_session_takes_over_looser_limits() {
    // By its own commands, before it becomes the container's user.
    let raised = if has_sys_resource() {
        "choom -n -200 -- prlimit --nofile=30000:40000 --core=unlimited --memlock=unlimited"
    } else {
        not_tried("CAP_SYS_RESOURCE is not there to raise limits and OOM scores with", true);
        "prlimit --nofile=3000:8192"
    };
    let sshds_score = if has_sys_resource() { "0" } else { "600" };
    let hostile = Hostile::become_by(
        &format!(
            "{raised} nice -n -3 ionice -c2 -n1 perl -e '$) = q({HOSTILE} {HOSTILE}); $( = {HOSTILE}; ($<, $>) = ({HOSTILE}, {HOSTILE}); exec @ARGV'"
        ),
        "serve /run/ns.socket",
    );
    let mut sshds = format!(
        "choom -n {sshds_score} -- nice -n 7 ionice -c3 chrt -i 0 prlimit --nofile=400:8192 --core=0:unlimited --nproc=3000:"
    );
    if needs_two_processors() {
        sshds += " taskset -c 0";
    }
    let _sshd = restart_sshd_by(&sshds);
    assert_bound_as_pid_1_is(HOSTILE, &hostile.leader);
}

#[test]
#[ignore = "needs the node: make test"]
fn each_scheduling_policy() {
    let leader = leader(30000);
    let _back = AtEnd(|| drop(sh(format!("chrt -o -p 0 {leader}; renice -n 0 -p {leader}")).ok()));
    let _sshd = restart_sshd_by("chrt -b 0 nice -n 2");
    for (policy, nice) in [("--idle", "0"), ("--batch", "19"), ("--other", "0"), ("--other", "-20")] {
        sh(format!("chrt {policy} -p 0 {leader} && renice -n {nice} -p {leader}")).ok();
        // Fields 18, 19, 40 and 41: priority, nice, rt_priority, policy.
        let fields = "18,19,40,41";
        let pid_1 = sh(format!("cut -d' ' -f{fields} /proc/{leader}/stat")).ok();
        assert_eq!(ssh(30000, &format!("cut -d' ' -f{fields} /proc/self/stat")).ok(), pid_1, "{policy} {nice}");
    }
}

/// pid 1 is bound more closely once it has been checked.
#[test]
#[ignore = "needs the node: make test"]
fn what_changes_between_check_and_join() {
    let leader = leader(30000);
    let _back = AtEnd(|| {
        sh(format!("kill -KILL {leader}")).ok();
        eventually("a new pid 1", || (run("node-pid", &["30000"], b"").out.trim() != leader).then_some(()));
        unbit_tests::leader(30000);
    });
    let changes = [
        "choom -p PID -n 400",
        "renice -n 11 -p PID",
        "ionice -c2 -n7 -p PID",
        "chrt -b -p 0 PID",
        "setpriv --reuid 30000 --regid 30000 --clear-groups prlimit -p PID --nofile=333:666 --nproc=777:888",
    ];
    for change in changes.map(|change| change.replace("PID", &leader)) {
        let _between = between_check_and_join(&change);
        let log = Log::from_now();
        let client = Command::new("ssh").args(["30000@node", "exec sleep 3001"]).stdin(Stdio::null()).spawn().unwrap();
        let mut client = Client(client);
        let session = eventually("a session or a refusal", || {
            Some(pgrep("^sleep 3001$")).filter(|session| session.is_some() || client.0.try_wait().unwrap().is_some())
        });
        match session {
            Some(session) => {
                let found = differences(&session, &leader);
                sh(format!("kill -KILL {session}")).ok();
                assert_eq!(found, [""; 0], "after {change}");
            }
            None => drop(log.one_line("refused:")),
        }
        drop(client);
        eventually("its end", || pgrep("^sleep 3001$").is_none().then_some(()));
    }
}

/// What a service manager can take from sshd: the log names it, and nobody reads that the container
/// is not running.
#[test]
#[ignore = "needs the node: make test"]
fn an_sshd_that_lacks_a_capability_says_which() {
    // Without CAP_SYS_CHROOT sshd lets nobody in.
    for lacking in ["sys_admin", "sys_ptrace", "setpcap"] {
        let _sshd = restart_sshd_by(&format!("setpriv --bounding-set -{lacking}"));
        let log = Log::from_now();
        let said = ssh(30000, "true").failed();
        assert!(said.contains("Container 30000 cannot be entered: this node is not set up for it."), "{said}");
        let line = log.one_line("refused:");
        assert!(line.contains(&format!("this process lacks CAP_{}", lacking.to_uppercase())), "{line}");
        assert_eq!(ssh("alice", "echo here").ok(), "here", "without CAP_{}", lacking.to_uppercase());
    }
}

/// Soft limits that leave a process nothing to work with: they hold from the session's first moment
/// on, and not before.
#[test]
#[ignore = "needs the node: make test"]
fn soft_limits_too_low_to_enter_with() {
    let leader = leader(30000);
    let _back = AtEnd(|| {
        bind(30000, &leader, "prlimit -p PID --nofile=1024: --fsize=unlimited:");
    });
    // sshd itself can still run a command with so few.
    bind(30000, &leader, "prlimit -p PID --nofile=18: --fsize=0:");
    assert_eq!(ssh(30000, "ulimit -Sn; ulimit -Sf").ok(), "18\n0");
}

/// Capabilities that are inherited give power to programs that have them as inheritable, also those
/// beyond the bounding set (capabilities(7)): CVE-2022-24769. A session has no such capability of
/// sshd, of an operator or of another service.
#[test]
#[ignore = "needs the node: make test"]
fn inheritable_and_ambient_capabilities_stay_outside() {
    const GIVEN: &str = "setpriv --inh-caps +net_raw,+sys_admin --ambient-caps +net_raw,+sys_admin";
    const ASK: &str = "grep -E \"^Cap(Inh|Prm|Eff|Amb)\" /proc/self/status | cut -f2";
    let none = ["0000000000000000"; 4].join("\n");
    let _sshd = restart_sshd_by(GIVEN);
    let _su = join_now("su");
    for alices in [ssh("alice", ASK), sh(format!("{GIVEN} su alice -c '{ASK}'"))] {
        assert_eq!(alices.ok().lines().next(), Some("0000000000202000"), "the witness: an ordinary user inherits them");
    }
    assert_eq!(ssh(30000, ASK).ok(), none);
    assert_eq!(sh(format!("{GIVEN} unbitctl enter 30000 -- sh -c '{ASK}'")).ok(), none);
    assert_eq!(sh(format!("{GIVEN} su 30000 -c '{ASK}'")).ok(), none);
    let as_root = sh(format!("{GIVEN} unbitctl enter --root 30000 -- sh -c '{ASK}'")).ok();
    let [inheritable, ambient] = [0, 3].map(|line| as_root.lines().nth(line).unwrap().to_owned());
    assert_eq!([inheritable, ambient], ["0000000000000000"; 2]);
}
