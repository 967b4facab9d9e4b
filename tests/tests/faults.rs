//! Faults and kernels: every system call that the module makes fails once, each way that it could,
//! in a login that is real otherwise. What comes of it is the whole session or a clean refusal,
//! never anything between. `faults/tracer.rs` tells how, and what is watched on the way.
//!
//! Logins come by sshd, by sshd to a container that root has linked, and by su with `join=now`.
//!
//! `FAULTS=all` sweeps every call with every errno, in about half an hour. Without it, calls of one
//! kind count once, each with EINTR and one more errno.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))] // whose registers and breakpoints the tracer knows

#[path = "faults/tracer.rs"]
mod tracer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tracer::{Call, Login, Way, login};
use unbit_tests::linked::Engine;
use unbit_tests::*;

const ERRNOS: [(i32, &str); 7] = [
    (libc::EIO, "EIO"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EMFILE, "EMFILE"),
    (libc::EPERM, "EPERM"),
    (libc::ENOSYS, "ENOSYS"),
    (libc::ESRCH, "ESRCH"),
    (libc::EINTR, "EINTR"),
];

/// Tells a whole join from anything less.
const WHERE_AM_I: &str = "echo $UID $EUID ${GROUPS[@]} $HOSTNAME $PWD; cat /proc/self/cgroup; \
                          readlink /proc/self/ns/*; echo /proc/self/fd/*; grep -E '^(Uid|Gid|Groups|Cap)' /proc/self/status";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Joined,
    Refused,
    /// A whole session, whose end the application's parent does not learn: only where the parent's
    /// own calls fail.
    StatusLost,
}

/// How a login ended, where nothing may have gone wrong on the way: with a session like `whole`, or
/// refused with one line in the log, which is given back.
fn outcome(way: Way, uid: u32, login: &Login, log: &Log, whole: &str) -> Result<(Outcome, String), String> {
    let lines = || -> Vec<_> {
        let text = log.text();
        text.lines().filter(|line| line.contains(&format!("container {uid} refused"))).map(str::to_owned).collect()
    };
    let client = &login.client;
    let mut wrong = login.wrong.clone();
    let escort_failed =
        login.calls.iter().any(|call| call.answered && ["supervisor", "helper(forked)"].contains(&call.step));
    // A supervisor that fails ends a session that runs already: how far that has come depends on
    // who is faster.
    let outcome = match client.status {
        Some(0) => Outcome::Joined,
        Some(255) if escort_failed && !client.out.is_empty() && whole.starts_with(client.out.trim_end()) => {
            Outcome::StatusLost
        }
        _ => Outcome::Refused,
    };
    let mut line = String::new();
    match outcome {
        Outcome::Joined if client.out.trim_end() != whole => wrong.push(format!("half a session: {client:?}")),
        Outcome::Joined if !lines().is_empty() && !escort_failed => {
            wrong.push(format!("a session after {:?}", lines()))
        }
        Outcome::Joined | Outcome::StatusLost => {}
        Outcome::Refused => {
            // syslog is not as fast as we are.
            let written = Instant::now();
            while lines().is_empty() && written.elapsed().as_secs() < 2 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            match lines().as_slice() {
                [one] => line.clone_from(one),
                other => wrong.push(format!("{} lines say why it was refused: {other:?}", other.len())),
            }
            // Once it is let in, sshd has no way left to show a sentence: the connection ends.
            let told = way == Way::Su || line.contains("(sshd:account)");
            let sentence = format!("Container {uid} ");
            let is_status = match way {
                Way::Sshd => client.status == Some(255),
                Way::Su => client.status.is_some(),
            };
            if !is_status || !client.out.is_empty() || client.err.contains(&sentence) != told {
                wrong.push(format!("no clean refusal: {client:?}"));
            }
        }
    }
    if wrong.is_empty() { Ok((outcome, line)) } else { Err(wrong.join("; ")) }
}

/// What a whole session says of itself.
fn whole(way: Way, uid: u32) -> String {
    let whole = match way {
        Way::Sshd => ssh(uid, WHERE_AM_I).ok(),
        Way::Su => run("su", &[&uid.to_string(), "-c", WHERE_AM_I], b"").ok(),
    };
    for (kind, namespace) in namespaces(&leader(uid)) {
        assert!(whole.contains(&namespace), "{kind} is not the container's: {whole}");
    }
    whole
}

/// The calls of a login with no fault.
fn undisturbed(way: Way, uid: u32) -> Vec<Call> {
    let (log, whole) = (Log::from_now(), whole(way, uid));
    let login = login(way, uid, WHERE_AM_I, |_| None);
    assert_eq!(outcome(way, uid, &login, &log, &whole).map(|(outcome, _)| outcome), Ok(Outcome::Joined));
    let steps: BTreeSet<_> = login.calls.iter().map(|call| call.step).collect();
    let expected: &[_] = match way {
        Way::Sshd => &[
            "acct_mgmt",
            "close_session",
            "fork(child)",
            "helper",
            "helper(forked)",
            "inside",
            "open_session",
            "setcred",
            "setcred(child)",
            "supervisor",
            "terminals",
        ],
        Way::Su => &["acct_mgmt", "helper", "helper(forked)", "inside", "open_session", "supervisor"],
    };
    assert_eq!(steps.into_iter().collect::<Vec<_>>(), expected, "the witness: the tracer has seen each step");
    for call in &login.calls {
        assert_ne!(call.name(), "?", "the tracer should know {call:?}");
    }
    login.calls
}

/// What a container has, by which one sees that nothing was left in it or taken from it.
fn inventory(uid: u32) -> String {
    let pid = leader(uid);
    sh(format!(
        "for f in $(find /sys/fs/cgroup -name cgroup.procs -path '*/{uid}/*'); do echo $f $(sort -n $f); done; \
         readlink /proc/{pid}/ns/*; ps -eo pid=,uid=,comm= | awk '$2 == {uid}'; ls /proc/{pid}/fd"
    ))
    .ok()
}

#[test]
#[ignore = "needs the node: make test"]
fn every_call_fails_once() {
    assert_every_fault_is_clean(Way::Sshd, &undisturbed(Way::Sshd, 30001), &[]);
}

/// The link is read in acct_mgmt, and what must hold for a linked pid 1 is looked at again in the
/// helper; the rest is the same either way.
#[test]
#[ignore = "needs the node: make test"]
fn every_call_by_a_link_fails_once() {
    let before = undisturbed(Way::Sshd, 30001);
    // Without CAP_SYS_ADMIN, so that a helper looks for its terminals.
    let engine = |uid: u32| {
        Engine::new(&uid.to_string()).running("setpriv --bounding-set=-sys_ptrace,-sys_admin sleep 86400", "sleep")
    };
    let containers = UIDS.map(|uid| engine(uid).start());
    let _links = [0, 1].map(|at| containers[at].link(UIDS[at]));
    let mut calls = undisturbed(Way::Sshd, 30001);
    assert!(calls.iter().any(|call| call.object.contains("/etc/unbit/UID")), "the witness: the link is read");
    calls.retain(|call| ["acct_mgmt", "helper", "terminals"].contains(&call.step));
    assert_every_fault_is_clean(Way::Sshd, &calls, &before);
}

#[test]
#[ignore = "needs the node: make test"]
fn every_call_of_join_now_fails_once() {
    let before = undisturbed(Way::Sshd, 30001);
    let _su = join_now("su");
    assert_every_fault_is_clean(Way::Su, &undisturbed(Way::Su, 30001), &before);
}

const UIDS: [u32; 2] = [30000, 30001];

/// Each call fails in a login of its own. A sample leaves out the kinds of calls in `elsewhere`.
fn assert_every_fault_is_clean(way: Way, calls: &[Call], elsewhere: &[Call]) {
    // On a loaded machine the tracer alone can take the three seconds that a login has.
    let _patience = with_option("timeout=30");
    let all = std::env::var("FAULTS").is_ok_and(|faults| faults == "all");
    let whole = UIDS.map(|uid| whole(way, uid));
    let before = UIDS.map(inventory);
    // What cannot fail. brk(2) of the kernel returns no errno, but the old break. std draws its
    // hash keys with getrandom, and ends the process if it gets none. What fails in fork(3) nobody
    // is told, see `the_guard_on_what_the_monitor_forks`.
    let is_silent = |call: &Call| call.step.starts_with("fork");
    let calls: Vec<_> = calls
        .iter()
        .filter(|call| {
            !["getpid", "getppid", "getuid", "getgid", "exit_group", "getrandom", "brk"].contains(&call.name())
                && !is_silent(call)
        })
        .collect();

    // A sample takes one of a kind, and the other errnos in turn.
    let kind = |call: &Call| (call.step, call.name(), kind(call));
    let mut kinds: BTreeSet<_> = elsewhere.iter().map(kind).collect();
    let mut faults = Vec::new();
    for call in &calls {
        if all {
            faults.extend(ERRNOS.map(|errno| (*call, errno)));
        } else if kinds.insert(kind(call)) {
            faults.push((*call, ERRNOS[kinds.len() % (ERRNOS.len() - 1)]));
            faults.push((*call, ERRNOS[ERRNOS.len() - 1]));
        }
    }

    let next = AtomicUsize::new(0);
    let table: Mutex<BTreeMap<usize, BTreeMap<&str, Outcome>>> = Mutex::default();
    let wrong: Mutex<Vec<String>> = Mutex::default();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for (uid, whole) in UIDS.iter().zip(&whole) {
            let (next, faults, calls, table, wrong) = (&next, &faults, &calls, &table, &wrong);
            scope.spawn(move || {
                while let Some((target, (errno, name))) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let log = Log::from_now();
                    let login = login(way, *uid, WHERE_AM_I, |call| call.is(target).then_some(*errno));
                    let hit: Vec<_> = login.calls.iter().filter(|call| call.answered).collect();
                    let verdict = match (outcome(way, *uid, &login, &log, whole), hit.as_slice()) {
                        // By a supervisor whose child has ended before it asked.
                        (verdict, []) if target.step == "supervisor" && target.name() == "read" => {
                            verdict.map(|(outcome, _)| outcome)
                        }
                        (_, []) => Err("the call was not made".to_owned()),
                        // These return no errno; what looks like one is a failure.
                        (Ok((Outcome::Refused, _)), [call]) if ["setfsuid", "setfsgid"].contains(&call.name()) => {
                            Ok(Outcome::Refused)
                        }
                        (Ok((Outcome::Refused | Outcome::StatusLost, line)), _) if *name == "EINTR" => {
                            Err(format!("not joined: {line}"))
                        }
                        // NS_GET_PARENT of a namespace that is out of sight, which is an answer.
                        (Ok((Outcome::Refused, _)), _) if *name == "EPERM" && target.object.ends_with("xb702") => {
                            Ok(Outcome::Refused)
                        }
                        (Ok((Outcome::Refused, line)), _) if !names(&line, name) => {
                            Err(format!("the errno is not named: {line}"))
                        }
                        (verdict, _) => verdict.map(|(outcome, _)| outcome),
                    };
                    match verdict {
                        Ok(outcome) => {
                            let index = calls.iter().position(|call| call.is(target)).unwrap();
                            table.lock().unwrap().entry(index).or_default().insert(name, outcome);
                        }
                        Err(what) => wrong.lock().unwrap().push(format!("{target}: {name}: {what}")),
                    }
                }
            });
        }
    });

    let table = table.into_inner().unwrap();
    println!("{:<70}{}", "call", ERRNOS.map(|(_, name)| format!("{name:>8}")).concat());
    for (index, outcomes) in &table {
        let mark = |name| match outcomes.get(name) {
            Some(Outcome::Joined) => "joined",
            Some(Outcome::Refused) => "refused",
            Some(Outcome::StatusLost) => "lost",
            None => "",
        };
        let marks = ERRNOS.map(|(_, name)| format!("{:>8}", mark(name)));
        println!("{:<70}{}", calls[*index].to_string(), marks.concat());
    }
    let count = |wanted| table.values().flat_map(BTreeMap::values).filter(|outcome| **outcome == wanted).count();
    println!(
        "{} calls, {} faults: {} joined, {} refused, {} joined with the status lost; {:.0} s",
        table.len(),
        faults.len(),
        count(Outcome::Joined),
        count(Outcome::Refused),
        count(Outcome::StatusLost),
        started.elapsed().as_secs_f64()
    );
    let wrong = wrong.into_inner().unwrap();
    println!("{} in between", wrong.len());
    assert!(wrong.is_empty(), "{} faults went wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(UIDS.map(inventory), before, "the containers are as they were");
    for uid in UIDS {
        let host_name = sh(format!("nsenter -t {} -u hostname", leader(uid))).ok();
        assert_eq!(ssh(uid, "hostname").ok(), host_name);
    }
}

/// Namespaces are of one kind, and so are cgroups, until they are joined.
fn kind(call: &Call) -> String {
    let mut object = call.object.clone();
    if ["setns", "write"].contains(&call.name()) {
        return object;
    }
    for name in ["pid", "uts", "ipc", "net", "cgroup", "time", "mnt", "user"] {
        for (one, any) in [(format!("/ns/{name}"), "/ns/*"), (format!("{name}:[N]"), "*:[N]")] {
            object = object.replace(&one, any);
        }
    }
    match object.strip_prefix("/sys/fs/cgroup/").and_then(|rest| rest.split_once('/')) {
        Some((_, rest)) => format!("/sys/fs/cgroup/*/{rest}"),
        None => object,
    }
}

/// Whether the line names the errno, or what it stands for. That of a look-up in NSS does not reach
/// PAM.
fn names(line: &str, errno: &str) -> bool {
    line.contains(&format!(": {errno} ("))
        || line.contains("there is no such account")
        || line.contains("libnss_unbit.so.2 does not answer")
        || (errno == "ESRCH" && line.contains("its pid 1 has ended"))
        || (errno == "EPERM" && line.contains("belongs to a user namespace that this process cannot see"))
}

/// A login on a kernel that lacks something: each call that `lacking` gives an errno gets it each
/// time.
#[track_caller]
fn on_a_kernel(lacking: impl Fn(&Call) -> Option<i32>) -> (Outcome, String, Login) {
    on_a_kernel_by(Way::Sshd, lacking)
}

#[track_caller]
fn on_a_kernel_by(way: Way, lacking: impl Fn(&Call) -> Option<i32>) -> (Outcome, String, Login) {
    let whole = whole(way, 30001);
    let log = Log::from_now();
    let login = login(way, 30001, WHERE_AM_I, lacking);
    let (outcome, line) = outcome(way, 30001, &login, &log, &whole).unwrap();
    assert!(login.calls.iter().any(|call| call.answered), "the witness: the kernel was asked");
    (outcome, line, login)
}

const SO_PEERPIDFD: u64 = 77;
const NS_GET_PID_FROM_PIDNS: u64 = 0x8004_b706;
const NS_GET_USERNS: u64 = 0xb701;
const NS_GET_NSTYPE: u64 = 0xb703;

fn is_so_peerpidfd(call: &Call) -> bool {
    call.name() == "getsockopt" && call.arguments[2] == SO_PEERPIDFD
}

#[test]
#[ignore = "needs the node: make test"]
fn before_linux_6_5_the_pid_of_so_peercred_leads_to_the_same_checks() {
    let (outcome, _, login) = on_a_kernel(|call| is_so_peerpidfd(call).then_some(libc::ENOPROTOOPT));
    assert_eq!(outcome, Outcome::Joined);
    let pidfd_open = login.calls.iter().find(|call| call.name() == "pidfd_open").unwrap();
    assert_eq!(pidfd_open.arguments[0].to_string(), leader(30001));
    assert!(pidfd_open.result > 0);
}

#[test]
#[ignore = "needs the node: make test"]
fn before_linux_5_3_there_is_no_login() {
    let (outcome, line, _) = on_a_kernel(|call| match call.name() {
        "pidfd_open" => Some(libc::ENOSYS),
        _ => is_so_peerpidfd(call).then_some(libc::ENOPROTOOPT),
    });
    assert_eq!(outcome, Outcome::Refused);
    assert!(line.contains("pidfd_open (Linux 5.3 or newer is needed): ENOSYS"), "{line}");
}

#[test]
#[ignore = "needs the node: make test"]
fn why_there_is_no_pidfd_by_a_link() {
    let container = Engine::new("30001").start();
    let _link = container.link(30001);
    for (errno, cause, sentence) in [
        (libc::ESRCH, "ESRCH", "is not running."),
        (libc::ENOSYS, "pidfd_open (Linux 5.3 or newer is needed): ENOSYS", "this node has a problem."),
        (libc::EMFILE, "EMFILE", "this node has a problem."),
        (libc::EPERM, "EPERM", "this node has a problem."),
    ] {
        let (outcome, line, login) = on_a_kernel(|call| (call.name() == "pidfd_open").then_some(errno));
        assert_eq!(outcome, Outcome::Refused);
        assert!(line.contains(cause), "{line}");
        assert!(login.client.err.contains(sentence), "{:?}", login.client);
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn before_linux_6_11_each_process_of_a_link_is_asked_for_its_number() {
    let container = Engine::new("30001").start();
    let _link = container.link(30001);
    let is_asked = |call: &Call| call.name() == "ioctl" && call.arguments[1] == NS_GET_PID_FROM_PIDNS;
    let (outcome, ..) = on_a_kernel(|call| is_asked(call).then_some(libc::ENOTTY));
    assert_eq!(outcome, Outcome::Joined);
    let (outcome, line, login) = on_a_kernel(|call| is_asked(call).then_some(libc::ESRCH));
    assert_eq!(outcome, Outcome::Refused);
    assert!(line.contains("its pid 1 has ended") && login.client.err.contains("is not running."), "{line}");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_listener_that_has_ended_is_not_sought_by_its_number() {
    // What SO_PEERPIDFD says of it: EINVAL in most kernels.
    for errno in [libc::EINVAL, libc::ESRCH] {
        let (outcome, line, login) = on_a_kernel(|call| is_so_peerpidfd(call).then_some(errno));
        assert_eq!(outcome, Outcome::Refused);
        assert!(
            line.contains("(SO_PEERPIDFD)") && login.calls.iter().all(|call| call.name() != "pidfd_open"),
            "{line}"
        );
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_kernel_that_cannot_tell_what_a_namespace_is_gets_no_login() {
    for (request, name) in [(NS_GET_NSTYPE, "NS_GET_NSTYPE"), (NS_GET_USERNS, "NS_GET_USERNS")] {
        for (errno, errno_name) in [(libc::ENOTTY, "ENOTTY"), (libc::EINVAL, "EINVAL")] {
            let is_it = |call: &Call| call.name() == "ioctl" && call.arguments[1] == request;
            let (outcome, line, _) = on_a_kernel(|call| is_it(call).then_some(errno));
            assert_eq!(outcome, Outcome::Refused);
            assert!(line.contains(&format!("({name}): {errno_name}")), "{line}");
        }
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn kinds_of_namespaces_that_a_kernel_does_not_have_are_not_missed() {
    // Time namespaces are of Linux 5.6, cgroup namespaces of 4.6.
    for absent in ["/ns/time", "/ns/cgroup"] {
        let (outcome, ..) = on_a_kernel(|call| call.object.ends_with(absent).then_some(libc::ENOENT));
        assert_eq!(outcome, Outcome::Joined);
    }
    for needed in ["/ns/pid", "/ns/mnt"] {
        let (outcome, line, _) = on_a_kernel(|call| call.object.ends_with(needed).then_some(libc::ENOENT));
        assert_eq!(outcome, Outcome::Refused, "{line}");
        assert!(line.contains("ENOENT"), "{line}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn logins_work_without_newer_system_calls() {
    // setns takes namespaces, as it does since 3.0, and not a pidfd (5.8). openat2 (5.6) is for
    // linked containers, and has a fallback. clone3 (5.7 with a cgroup), close_range (5.9), `tasks`
    // by a thread itself and the number of a mount (5.8) have fallbacks.
    let calls = undisturbed(Way::Sshd, 30001);
    assert!(calls.iter().all(|call| call.name() != "openat2"));
    for setns in calls.iter().filter(|call| call.name() == "setns") {
        assert!(setns.object.ends_with(":[N]") && !setns.object.contains("pidfd"), "{setns}");
    }
    for name in ["clone3", "close_range"] {
        let (outcome, ..) = on_a_kernel(|call| (call.name() == name).then_some(libc::ENOSYS));
        assert_eq!(outcome, Outcome::Joined, "{name}");
    }
    let _su = join_now("su");
    for errno in [libc::ENOSYS, libc::EINVAL] {
        let (outcome, ..) = on_a_kernel_by(Way::Su, |call| (call.name() == "close_range").then_some(errno));
        assert_eq!(outcome, Outcome::Joined);
    }
}

/// What cgroup v2 says of a cgroup that hands its controllers down, see "no internal processes" in
/// cgroups(7).
#[test]
#[ignore = "needs the node: make test"]
fn a_cgroup_that_takes_no_processes() {
    let before = inventory(30001);
    let is_v2 =
        |procs: &str| procs.ends_with("/cgroup.procs") && !fs::exists(procs.replace("cgroup.procs", "tasks")).unwrap();
    let (outcome, line, _) = on_a_kernel(|call| {
        (call.name() == "clone3" || call.name() == "write" && is_v2(&call.object.replace("UID", "30001")))
            .then_some(libc::EBUSY)
    });
    assert_eq!(outcome, Outcome::Refused);
    assert!(line.contains("join the container's cgroup :/30001: EBUSY"), "{line}");
    assert_eq!(inventory(30001), before, "nothing has moved");
}

/// What the monitor forks gives up CAP_SETUID before anything else happens there, or ends.
#[test]
#[ignore = "needs the node: make test"]
fn the_guard_on_what_the_monitor_forks() {
    for name in ["capget", "capset"] {
        let log = Log::from_now();
        let is_it = |call: &Call| call.step == "fork(child)" && call.name() == name;
        let login = login(Way::Sshd, 30001, WHERE_AM_I, |call| is_it(call).then_some(libc::EPERM));
        let client = &login.client;
        assert_eq!((client.status, client.out.as_str()), (Some(255), ""), "{name}: {client:?}");
        assert_eq!(login.calls.iter().filter(|call| call.answered).count(), 1, "{name}");
        assert!(login.calls.iter().all(|call| call.step != "setcred(child)"), "{name}: it goes on");
        assert_eq!(login.wrong, [""; 0], "{name}");
        log.one_line("session opened"); // that far it came
        log.one_line("give up CAP_SETUID until the container is entered: EPERM");
        let (outcome, ..) = on_a_kernel(|call| (is_it(call) && call.nth == 1).then_some(libc::EINTR));
        assert_eq!(outcome, Outcome::Joined);
    }
}
