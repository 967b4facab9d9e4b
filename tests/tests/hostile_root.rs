//! Root of a linked container that attacks logins: it has written the program of pid 1, hides its
//! capabilities, and delays each login as long as it can.

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

/// Leaves CAP_SYS_PTRACE out of its bounding set, and keeps it (PR_CAPBSET_DROP).
const DROP: &str = "syscall(157, 24, 19, 0, 0, 0) == 0 or die";
/// And then gives up every capability (capset(2)).
const GIVE_UP: &str =
    "my ($head, $none) = (pack(q(L2), 0x20080522, 0), chr(0) x 24); syscall(126, $head, $none) == 0 or die";

/// Says that it is as it will be, and has the name by which the engine finds it.
const READY: &str = "open my $r, q(>), q(/tmp/ready); close $r; $0 = q(perl)";

#[track_caller]
fn await_ready(leader: &str) {
    eventually("its pid 1", || fs::exists(format!("/proc/{leader}/root/tmp/ready")).unwrap().then_some(()));
}

fn is_x86_64() -> bool {
    cfg!(target_arch = "x86_64") || {
        not_tried("the numbers of system calls are those of x86_64", true);
        false
    }
}

/// A container whose pid 1 looks harmless, and which is refused. With root's word that it trusts
/// root inside, root inside gets the node's sshd: what the refusal is about.
#[track_caller]
fn assert_seen_through(pid_1: &str, program: &'static str, cause: &str) {
    let refused = || assert_refused(TOO_MUCH_POWER, cause);
    assert_refused_unless_trusted(pid_1, program, refused, &[cause]);
}

/// [`assert_seen_through`], with what a login must come to. `unbitctl check` must give one of these
/// causes.
#[track_caller]
fn assert_refused_unless_trusted(pid_1: &str, program: &'static str, assert_refused: impl Fn(), causes: &[&str]) {
    let container = Engine::new("web1").running(pid_1, program).start();
    let got = format!("/proc/{}/root/tmp/got", container.leader);
    await_ready(&container.leader);
    let _link = container.link(30001);
    assert_refused();
    assert!(!fs::exists(&got).unwrap());
    let check = sh("unbitctl check 30001");
    assert!(check.status != Some(0) && causes.iter().any(|cause| check.out.contains(cause)), "{check:?}");
    fs::write(format!("/proc/{}/root/tmp/look", container.leader), "").unwrap();
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
    let cause = "can have CAP_SYS_PTRACE in the node's user namespace, though its pid 1 cannot";
    assert_seen_through(
        &format!("perl -e 'unless (fork) {{ {LOOK} }} {DROP}; {GIVE_UP}; {READY}; sleep 86400'"),
        "perl",
        cause,
    );
    // In a pid namespace of its own, with its parent's /proc.
    let nested =
        format!("unless (fork) {{ syscall(272, 0x20000000) == 0 or die; unless (fork) {{ {LOOK} }} sleep 86400 }}");
    assert_seen_through(&format!("perl -e '{nested} {DROP}; {GIVE_UP}; {READY}; sleep 86400'"), "perl", cause);
}

/// pid 1 has left its power to a process that passes it on to a child all the time, behind many
/// others in the list of processes: when it is looked at, only the child has the power. `wait` is
/// before each step, `end` is what the parent does after it, and `pid_1` what pid 1 does.
#[track_caller]
fn assert_relay_is_refused(wait: &str, end: &str, pid_1: &str) {
    const TRACER: &str = "can have CAP_SYS_PTRACE in the node's user namespace, though its pid 1 cannot";
    const TOO_FAST: &str = "there was no time left to look at all its processes";
    if !is_x86_64() {
        return;
    }
    let idle = format!("for (1..300) {{ unless (fork) {{ {DROP}; {GIVE_UP}; sleep 86400; exit }} }}");
    let relay = format!("unless (fork) {{ until (-e q(/tmp/look)) {{ {wait}; if (fork) {{ {end} }} }} {LOOK} }}");
    let pid_1 = format!("perl -e '$SIG{{CHLD}} = q(IGNORE); {idle} {relay} {DROP}; {GIVE_UP}; {READY}; {pid_1}'");
    let refused = || {
        for _ in 0..5 {
            let log = Log::from_now();
            let done = ssh(30001, "hostname");
            assert_eq!((done.status, done.out.as_str()), (Some(255), ""), "{done:?}\n{}", log.text());
            let line = log.one_line("refused:");
            assert!([TRACER, TOO_FAST].iter().any(|cause| line.contains(cause)), "{line}");
        }
    };
    assert_refused_unless_trusted(&pid_1, "perl", refused, &[TRACER, TOO_FAST]);
}

const EXIT: &str = "syscall(231, 0)";

#[test]
#[ignore = "needs the node: make test"]
fn a_relay_whose_processes_leave_no_zombies() {
    assert_relay_is_refused("", EXIT, "sleep 86400");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_relay_whose_processes_stay_zombies_for_a_while() {
    let reap_late =
        "$SIG{CHLD} = q(DEFAULT); for (;;) { select undef, undef, undef, 0.02; 1 while waitpid(-1, 1) > 0 }";
    assert_relay_is_refused("", EXIT, reap_late);
}

/// All of them end at the same time, every four seconds.
#[test]
#[ignore = "needs the node: make test"]
fn a_relay_whose_processes_go_on_without_the_power() {
    let end = format!("{DROP}; {GIVE_UP}; select undef, undef, undef, 4 - time % 4; {EXIT}");
    assert_relay_is_refused("select undef, undef, undef, 0.003", &end, "sleep 86400");
}

/// It has ended, and nobody has waited for it.
#[test]
#[ignore = "needs the node: make test"]
fn a_zombie_that_could_trace_keeps_nobody_out() {
    if !is_x86_64() {
        return;
    }
    let pid_1 = format!("perl -e 'unless (fork) {{ exit }} {DROP}; {GIVE_UP}; {READY}; sleep 86400'");
    let container = Engine::new("web1").running(&pid_1, "perl").start();
    await_ready(&container.leader);
    let states = || sh(format!("ps -o stat= --ppid {}", container.leader)).out;
    eventually("its zombie", || states().starts_with('Z').then_some(()));
    let _link = container.link(30001);
    assert_lands();
    assert!(states().starts_with('Z'), "the witness: it is still there");
}

/// The bounding set says what a process can gain, and not what it has.
#[test]
#[ignore = "needs the node: make test"]
fn cap_sys_ptrace_outside_the_bounding_set_is_found() {
    if !is_x86_64() {
        return;
    }
    let ready = "open my $r, q(>), q(/tmp/ready); close $r";
    let pid_1 = "its root can have CAP_SYS_PTRACE in the node's user namespace, and /etc/unbit/UID.root-is-trusted does not exist";
    assert_seen_through(&format!("perl -e '{DROP}; {ready}; {LOOK}'"), "perl", pid_1);
    let child = "can have CAP_SYS_PTRACE in the node's user namespace, though its pid 1 cannot";
    let drop_all = "exec qw(setpriv --bounding-set=-sys_ptrace sleep 86400)";
    assert_seen_through(&format!("perl -e 'unless (fork) {{ {DROP}; {LOOK} }} {ready}; {drop_all}'"), "sleep", child);
}

/// A FUSE server that answers until the file HANG is there: `DEVICE DIRECTORY HANG NAMES`. NAMES
/// are directories in its file system, which is mounted on DIRECTORY. The kernel must ask it for
/// each permission.
const SERVER: &str = r#"
my ($device, $directory, $hang, $names) = @ARGV;
open my $fuse, "+<", $device or die "$device: $!";
my $options = "fd=" . fileno($fuse) . ",rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other\0";
my ($none, $type, $at) = ("none\0", "fuse\0", "$directory\0");
syscall(165, $none, $at, $type, 0, $options) == 0 or die "mount: $!";
exit if fork;
syscall(272, 0x20000) == 0 or die;
$0 = "server";
my ($next, %inodes) = (2);
$inodes{$_} = $next++ for split /,/, $names;
sub attributes { pack "Q6L10", $_[0], (0) x 8, 040755, 2, 0, 0, 0, 4096, 0 }
while (defined sysread $fuse, my $request, 1 << 20) {
    my ($length, $operation, $unique, $node) = unpack "LLQQ", $request;
    next if -e $hang;
    my $answer = sub { syswrite $fuse, pack("LlQ", 16 + length $_[1], $_[0], $unique) . $_[1] };
    if ($operation == 26) { $answer->(0, pack "L4S2L2S2L8", 7, 31, 4096, 0, 12, 9, 4096, 1, 1, (0) x 9) }
    elsif ($operation == 2 || $operation == 42) {}
    elsif ($operation == 3) { $answer->(0, pack("QLL", 0, 0, 0) . attributes($node)) }
    elsif ($operation == 1) {
        my $inode = $inodes{unpack "Z*", substr $request, 40};
        $inode ? $answer->(0, pack("Q4L2", $inode, (0) x 5) . attributes($inode)) : $answer->(-2, "");
    }
    elsif ($operation == 27 || $operation == 28) { $answer->(0, pack "QLL", 1, 0, 0) }
    else { $answer->(-38, "") }
}
"#;

/// A linked container that has mounted it, and the file that silences it. It had the capability for
/// that once, if it has none now.
fn with_server(script: &str) -> Option<(Container, String)> {
    if !fs::read_to_string("/proc/filesystems").unwrap().lines().any(|line| line.ends_with("\tfuse")) {
        not_tried("this kernel has no FUSE", true);
        return None;
    }
    fs::write("/containers/30001/server.pl", SERVER).unwrap();
    let make = "system(qw(mknod /tmp/fuse c 10 229)) == 0 or die; mkdir q(/tmp/f)";
    let serve = |directory: &str, names: &str| {
        format!("system(qw(perl /containers/30001/server.pl /tmp/fuse {directory} /tmp/hang {names})) == 0 or die")
    };
    let script = script.replace("SERVE_ROOT", &serve("/tmp/f", "o")).replace("SERVE_DEV", &serve("/dev", "pts"));
    let pid_1 = format!("setpriv --bounding-set=-sys_ptrace perl -e '{make}; {script}; $0 = q(perl); sleep 86400'");
    let container = Engine::new("web1").running(&pid_1, "perl").start();
    // The server's own mount namespace has the container's first root directory.
    let server = eventually("its server", || {
        sh(format!("pgrep -x server --ns {} --nslist pid", container.leader)).out.lines().next().map(str::to_owned)
    });
    await_ready(&server);
    Some((container, format!("/proc/{server}/root/tmp/hang")))
}

/// A login gets as far as its session. What waits there for the server is the session's process.
#[track_caller]
fn assert_holds_its_user_alone() {
    let waiting = |who: &str| {
        sh(format!("for p in $(pgrep {who}); do grep -l request_wait_answer /proc/$p/stack; done 2>/dev/null")).out
    };
    let log = Log::from_now();
    let mut client = std::process::Command::new("ssh").args(["-q", "30001@node", "true"]).spawn().unwrap();
    eventually("the session", || log.text().contains("session opened").then_some(()));
    let process = eventually("a process that waits", || Some(waiting("-U 30001")).filter(|found| !found.is_empty()));
    let inside = sh(format!("grep ^NSpid {}", process.trim().replace("stack", "status"))).out;
    assert_eq!(inside.split_whitespace().count(), 3, "it is inside: {inside}");
    assert_eq!(waiting("-u 0"), "");
    assert_eq!(ssh(30000, "hostname").ok(), "c30000");
    drop((client.kill(), client.wait()));
}

#[test]
#[ignore = "needs the node: make test"]
fn a_root_directory_whose_file_system_does_not_answer() {
    if !is_x86_64() {
        return;
    }
    let pivot = "SERVE_ROOT; chdir q(/tmp/f) or die; my ($new, $old) = (q(.), q(o)); syscall(155, $new, $old) == 0 or die; \
        chdir q(/) or die; open my $r, q(>), q(/o/tmp/ready) or die; close $r";
    let Some((container, hang)) = with_server(pivot) else { return };
    let _link = container.link(30001);
    let log = Log::from_now();
    let done = ssh(30001, "true");
    assert!(done.err.contains("/bin/bash: No such file"), "the witness: it lands there: {done:?} {}", log.text());
    fs::write(&hang, "").unwrap();
    assert_holds_its_user_alone();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_dev_whose_file_system_does_not_answer() {
    if !is_x86_64() {
        return;
    }
    // CAP_SYS_ADMIN is gone from pid 1's bounding set, as if nobody had ever mounted anything.
    let drop = "SERVE_DEV; syscall(157, 24, 21, 0, 0, 0) == 0 or die; open my $r, q(>), q(/tmp/ready) or die; close $r";
    let Some((container, hang)) = with_server(drop) else { return };
    let _link = container.link(30001);
    assert_lands();
    fs::write(&hang, "").unwrap();
    assert_holds_its_user_alone();
    let check = sh("unbitctl check 30001").out;
    assert!(check.contains("sshd opens terminals of a /dev/pts of this connection's own"), "{check}");
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
assert c.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
open(\"/tmp/ready\", \"w\").close()
time.sleep(86400)",
        LOOK.replace('\\', "\\\\").replace('$', "\\$")
    );
    let container = Engine::new("web1").running(&format!("python3 -c '{}'", python.replace("\\$", "$")), "python3");
    let container = container.start();
    await_ready(&container.leader);
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

/// Until it executes the container's program, what an engine starts there (`docker exec`, a health
/// check) has the engine's power.
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

/// A line of mountinfo is as long as the paths in it. All of it would take sshd's monitor minutes
/// and gigabytes of memory.
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

/// The kernel counts the keys of a number, whatever container it is in: root that is the node's
/// root can become another account's number, and use up its keys.
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
