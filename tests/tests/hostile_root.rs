//! Root of a linked container that attacks logins: it has written the program of pid 1, hides its capabilities, and delays each login as long as it can.

use std::fs;
use std::time::{Duration, Instant};
use unbit_tests::linked::*;
use unbit_tests::*;

const TOO_MUCH_POWER: &str = "cannot be entered: its root user has too much power on this node.";

#[track_caller]
fn assert_lands() {
    let done = ssh(30001, "hostname");
    assert_eq!(done.out, "web1\n", "{done:?}\n{}", Log::all().lines().last().unwrap_or_default());
}

/// Looks at each sshd process that it sees, and writes down what it gets from the node's sshd.
const LOOK: &str = "for (;;) { for my $n (map { m(^/proc/(\\d+)/comm) } glob q(/proc/[0-9]*/comm)) { \
    open my $c, q(<), qq(/proc/$n/comm) or next; my $name = <$c> // q(); $name =~ /^sshd/ or next; \
    if (open my $e, q(<), qq(/proc/$n/exe)) { read $e, my $m, 4; open my $o, q(>>), q(/tmp/got); print $o $m } } \
    select undef, undef, undef, 0.01 }";

/// pid 1 leaves CAP_SYS_PTRACE behind (PR_CAPBSET_DROP).
const DROP: &str = "syscall(157, 24, 19, 0, 0, 0) == 0 or die";

fn is_x86_64() -> bool {
    cfg!(target_arch = "x86_64") || {
        not_tried("the numbers of system calls are those of x86_64", true);
        false
    }
}

/// A container whose pid 1 looks harmless, and which is refused. With root's word that it trusts root inside, root inside gets the node's sshd:
/// what the refusal is about.
#[track_caller]
fn assert_seen_through(pid_1: &str, program: &'static str, cause: &str) {
    let container = Engine::new("web1").running(pid_1, program).start();
    let got = format!("/proc/{}/root/tmp/got", container.leader);
    eventually("its pid 1", || fs::exists(format!("/proc/{}/root/tmp/ready", container.leader)).unwrap().then_some(()));
    let _link = container.link(30001);
    assert_refused(TOO_MUCH_POWER, cause);
    assert!(!fs::exists(&got).unwrap());
    let check = sh("unbitctl check 30001");
    assert!(check.status != Some(0) && check.out.contains(cause), "{check:?}");
    let _trust = trust(30001);
    assert_eq!(ssh(30001, "hostname; sleep 1").ok(), "web1");
    assert!(fs::read_to_string(&got).is_ok_and(|got| got.starts_with("\x7fELF")), "the witness: nobody could trace");
    let _su = join_now("su");
    let su = sh("su 30001 -c hostname");
    assert!(su.status != Some(0) && su.out.is_empty(), "{su:?}");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_pid_1_that_has_left_its_power_to_another_process() {
    if !is_x86_64() {
        return;
    }
    let ready = "open my $r, q(>), q(/tmp/ready); close $r; $0 = q(perl); sleep 86400";
    let cause = "can have CAP_SYS_PTRACE in the node's user namespace, though its pid 1 cannot";
    assert_seen_through(&format!("perl -e 'unless (fork) {{ {LOOK} }} {DROP}; {ready}'"), "perl", cause);
    // In a pid namespace of its own, with its parent's /proc.
    let nested =
        format!("unless (fork) {{ syscall(272, 0x20000000) == 0 or die; unless (fork) {{ {LOOK} }} sleep 86400 }}");
    assert_seen_through(&format!("perl -e '{nested} {DROP}; {ready}'"), "perl", cause);
    // One that is another process in each moment. pid 1 leaves no zombies, or the node would soon be out of pids.
    let relay = format!(
        "$SIG{{CHLD}} = q(IGNORE); unless (fork) {{ unless (fork) {{ {LOOK} }} for (;;) {{ if (fork) {{ syscall(231, 0) }} }} }}"
    );
    assert_seen_through(&format!("perl -e '{relay} {DROP}; {ready}'"), "perl", cause);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_pid_1_that_has_left_its_power_to_another_thread() {
    if !is_x86_64() {
        return;
    }
    // prctl(2) is of one thread; what it forks has its capabilities.
    let python = format!(
        "import ctypes, os, threading, time
c = ctypes.CDLL(None)
def other():
    time.sleep(0.5)
    while not os.path.exists(\"/tmp/look\"): time.sleep(0.01)
    os.execvp(\"perl\", [\"perl\", \"-e\", \"{}\"])
threading.Thread(target=other).start()
assert c.prctl(24, 19, 0, 0, 0) == 0
open(\"/tmp/ready\", \"w\").close()
time.sleep(86400)",
        LOOK.replace('\\', "\\\\").replace('$', "\\$")
    );
    let container = Engine::new("web1").running(&format!("python3 -c '{}'", python.replace("\\$", "$")), "python3");
    let container = container.start();
    eventually("its pid 1", || fs::exists(format!("/proc/{}/root/tmp/ready", container.leader)).unwrap().then_some(()));
    let _link = container.link(30001);
    assert_refused(TOO_MUCH_POWER, "can have CAP_SYS_PTRACE in the node's user namespace, though its pid 1 cannot");
}

/// In its own user namespace pid 1 has nothing of the node's; what it has forked before has.
#[test]
#[ignore = "needs the node: make test"]
fn a_pid_1_that_has_gone_to_a_user_namespace_of_its_own() {
    if !is_x86_64() {
        return;
    }
    let map = "while (readlink(q(/proc/1/ns/user)) eq readlink(q(/proc/self/ns/user))) { select undef, undef, undef, 0.01 } \
        for my $f (qw(uid_map gid_map)) { open my $m, q(>), qq(/proc/1/$f) or die; syswrite $m, q(0 1000000 65536) or die } \
        open my $r, q(>), q(/tmp/ready); close $r";
    let go = "syscall(272, 0x10000000) == 0 or die; $0 = q(perl); sleep 86400";
    let pid_1 = format!("perl -e 'unless (fork) {{ {map}; {LOOK} }} {go}'");
    assert_seen_through(&pid_1, "perl", "its pid namespace belongs to the node's");
}

/// Until it executes the container's program, what an engine starts there (`docker exec`, a health check) has the engine's power.
#[test]
#[ignore = "needs the node: make test"]
fn a_program_that_the_engine_starts_is_waited_for() {
    if !is_x86_64() {
        return;
    }
    let container = Engine::new("web1").start();
    let (group, pid_1) = (container.group(), &container.leader);
    let _link = container.link(30001);
    let start = |command: &str| {
        let script = format!("echo $$ >{group}/cgroup.procs; exec nsenter -t {pid_1} -m -p -C {command}");
        let started = std::process::Command::new("bash").args(["-c", &script]).spawn().unwrap();
        // nsenter forks into the pid namespace once it is in the group.
        let children = format!("/proc/{0}/task/{0}/children", started.id());
        eventually("what the engine starts", || {
            fs::read_to_string(&children).is_ok_and(|children| !children.is_empty()).then_some(())
        });
        started
    };
    let kill = |mut process: std::process::Child| {
        sh(format!("pkill -KILL -P {}", process.id())).ok();
        drop((process.kill(), process.wait()));
    };
    let short = start("sleep 86400");
    // sshd's monitor is about to look again.
    let sleeps =
        |pid: &str| fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|call| call.starts_with("230 "));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            eventually("sshd's monitor that waits", || sh("pgrep sshd").out.lines().any(sleeps).then_some(()));
            kill(short);
        });
        assert_lands();
    });
    let long = start("sleep 86400");
    assert_refused(TOO_MUCH_POWER, "can have CAP_SYS_PTRACE in the node's user namespace, though its pid 1 cannot");
    kill(long);
    assert_lands();
    // A user namespace below the container's gives no power outside it.
    let nested = start("setpriv --bounding-set=-sys_ptrace unshare --user --map-root-user sleep 86400");
    assert_lands();
    kill(nested);
}

/// A line of mountinfo is as long as the paths in it. All of it would take sshd's monitor minutes and gigabytes of memory.
#[test]
#[ignore = "needs the node: make test"]
fn mounts_without_end() {
    let late = "perl -e 'select undef, undef, undef, 0.01 until -e q(/tmp/late/perl); exec qw(/tmp/late/perl -e), q(sleep 86400)'";
    let engine = Engine { command: late.to_owned(), program: "perl", ..Engine::new("web1").with_users(Users::usual()) };
    let container = engine.start();
    let _link = container.link(30001);
    assert_lands();
    let inside = |script: &str| sh(format!("nsenter -t {} -U -m {script}", container.leader)).ok();
    inside(
        "perl -e 'my $n = qq(\\n) x 200; chdir q(/tmp); for (1..60) { mkdir $n or die; chdir $n or die }
        for my $i (1..14) { mkdir $i or die; my ($from, $to) = (q(.), qq($i)); syscall(165, $from, $to, 0, 4096 | 16384, 0) == 0 or die $! }'",
    );
    let within = |limit: Duration, what: &str, work: &dyn Fn()| {
        let started = Instant::now();
        work();
        assert!(started.elapsed() < limit, "{what}: {:?}", started.elapsed());
    };
    // Its program is on the mount that is its root directory.
    within(Duration::from_secs(20), "a login", &|| assert_lands());
    inside(
        "bash -ec 'mkdir /tmp/late; mount -t tmpfs -o mode=755 none /tmp/late; cp /usr/bin/perl /tmp/late/new; mv /tmp/late/new /tmp/late/perl'",
    );
    eventually("its program", || {
        let program = fs::read_link(format!("/proc/{}/exe", container.leader)).ok()?;
        program.ends_with("late/perl").then_some(())
    });
    within(Duration::from_secs(20), "a refusal", &|| {
        assert_refused("cannot be entered: its set-up failed a check.", "its pid 1 has more mounts than are read");
    });
    assert_eq!(ssh(30000, "hostname").ok(), "c30000");
    drop(sh("unbitctl check"));
    drop(sh("unbitctl list"));
}

/// The kernel counts the keys of a number, whatever container it is in: root that is the node's root can become another account's number, and use up its
/// keys.
#[test]
#[ignore = "needs the node: make test"]
fn keys_of_another_account_are_used_up() {
    if !is_x86_64() {
        return;
    }
    let other = Engine::new("other").start();
    let use_up = |uid: u32, gid: u32| {
        let keys = format!(
            "$) = q({gid} {gid}); $( = {gid}; syscall(105, {uid}) == 0 or die; for my $i (1..1000) {{ my ($type, $name) = (q(user), qq(k$i)); \
            last if syscall(248, $type, $name, $name, 1, -2) < 0 }} $| = 1; print qq($!\\n); sleep 86400"
        );
        let mut process = std::process::Command::new("nsenter")
            .args(["-t", &other.leader, "-m", "-p", "perl", "-e", &keys])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let stdout = process.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut said).unwrap();
        assert_eq!(said, "Disk quota exceeded\n", "the witness: {uid} has no key left");
        AtEnd(move || drop((process.kill(), process.wait())))
    };
    let _one = use_up(30000, 30000);
    // A session without a keyring of its own has none of anybody else's.
    let look = "perl -e '$b = q( ) x 100; print syscall(250, 6, -3, $b, 100) < 0 ? $! : $b'";
    let done = ssh(30000, &format!("hostname; {look}"));
    assert_eq!(done.out, "c30000\nKey has been revoked", "{done:?}\n{}", Log::all().lines().last().unwrap_or_default());
    assert_eq!(sh("unbitctl enter 30000 -- hostname").ok(), "c30000");
    // The number on the node of 30001 in a container with a user namespace.
    let container = Engine::new("web1").with_users(Users::usual()).start();
    let _link = container.link(30001);
    let _two = use_up(1_030_001, 1_030_001);
    let done = ssh(30001, &format!("hostname; {look}"));
    assert_eq!(done.out, "web1\nKey has been revoked", "{done:?}\n{}", Log::all().lines().last().unwrap_or_default());
    assert_eq!(sh("unbitctl enter 30001 -- hostname").ok(), "web1");
}
