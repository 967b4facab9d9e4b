//! The NSS module as programs use it: through glibc, nscd, and everything else that looks up
//! accounts.

use libc::c_int;
use std::fs;
use std::net::Ipv4Addr;
use unbit_tests::*;

/// /etc/nsswitch.conf with other lines, until it is dropped.
struct Switch(String);

const SWITCH: &str = "/etc/nsswitch.conf";

impl Switch {
    fn new(lines: &str) -> Self {
        let before = fs::read_to_string(SWITCH).unwrap();
        let databases: Vec<_> = lines.lines().filter_map(|line| line.split(':').next()).collect();
        let kept = before.lines().filter(|line| !databases.iter().any(|name| line.starts_with(&format!("{name}:"))));
        let text: String = kept.chain(lines.lines()).map(|line| format!("{line}\n")).collect();
        fs::write(SWITCH, text).unwrap();
        Self(before)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        fs::write(SWITCH, &self.0).unwrap();
    }
}

/// The node has no name server: asking it would end in "try again" where we say "no".
const NO_DNS: &str = "hosts: files unbit";

const PASSWD: &str = "30001:x:30001:30001:30001:/containers/30001:/bin/bash";

/// Everything that getent can ask.
fn assert_getent_answers() {
    for key in ["30001", "30001 30001"] {
        assert!(sh(format!("getent passwd {key}")).ok().lines().all(|line| line == PASSWD));
        assert!(sh(format!("getent group {key}")).ok().lines().all(|line| line == "30001:x:30001:"));
    }
    assert_eq!(sh("getent shadow 30001").ok(), "30001:!:::::::");
    assert_eq!(sh("getent initgroups 30001").ok().trim(), "30001", "no group besides the primary one");
    assert_eq!(sh("getent hosts 30001.local").ok(), "10.0.0.3        30001.local");
    assert_eq!(sh("getent hosts 30000.LOCAL.").ok(), "10.0.0.2        30000.local");
    assert_eq!(sh("getent hosts 10.0.0.3").ok(), "10.0.0.3        30001.local");
    assert_eq!(sh("getent ahosts 30001.local").ok().lines().count(), 3, "stream, datagram, raw");
    assert_eq!(sh("getent ahostsv4 30001.local").ok().split_whitespace().next(), Some("10.0.0.3"));
    // getent wants a host that has IPv6 for this.
    let mapped =
        sh("ip address add fd00::1/64 dev lo nodad; getent ahostsv6 30001.local; ip address del fd00::1/64 dev lo");
    assert_eq!(mapped.ok().split_whitespace().next(), Some("::ffff:10.0.0.3"));
    for absent in [
        "passwd 39999",
        "shadow 030001", // getent takes a number for a uid, but has no such thing for shadow
        "passwd 30001/",
        "group 29999",
        "shadow 65534",
        "hosts 10.0.0.4",
        "hosts 10.0.0.1",
        "hosts 30001.lan",
        "ahosts 16807213.local",
    ] {
        let done = sh(format!("getent {absent}"));
        assert_eq!((done.status, done.out.as_str()), (Some(2), ""), "{absent}");
    }
}

fn assert_enumerations_answer() {
    for (database, line) in [("passwd", PASSWD), ("group", "30001:x:30001:"), ("shadow", "30001:!:::::::")] {
        let all = sh(format!("getent {database}")).ok();
        let place = |name: &str| all.lines().position(|line| line.starts_with(&format!("{name}:")));
        assert!(place("root").is_some() && place("root") < place("30001"), "{database}: files come first");
        assert_eq!(all.lines().filter(|found| *found == line).count(), 1, "{database}");
        assert_eq!(all.lines().filter(|found| found.starts_with("30000:")).count(), 1, "{database}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn getent() {
    assert_getent_answers();
    assert_enumerations_answer();
}

/// `web1` is a second name of 30001 for whoever asks for an account, and for nobody who asks for a
/// group or lists them all.
#[test]
#[ignore = "needs the node: make test"]
fn a_second_name() {
    let _name = second_name("web1", "30001");
    let line = PASSWD.replacen("30001", "web1", 1);
    assert_eq!(sh("getent passwd web1").ok(), line);
    assert_eq!(sh("getent passwd 30001").ok(), PASSWD, "it keeps its own name");
    assert_eq!(sh("getent shadow web1").ok(), "web1:!:::::::");
    assert_eq!(sh("getent initgroups web1").ok().trim(), "web1", "no group besides the primary one");
    assert_eq!(sh("id web1").ok(), "uid=30001(30001) gid=30001(30001) groups=30001(30001)");
    assert_eq!(sh("su -s /bin/sh web1 -c 'id -u; echo $HOME $USER'").ok(), "30001\n/containers/30001 web1");
    assert_eq!(sh("setpriv --reuid web1 --regid 30001 --init-groups id -G").ok(), "30001");
    assert_eq!(sh("chown web1: /tmp && stat -c '%u:%g %U' /tmp; chown 0:0 /tmp").ok(), "30001:30001 30001");
    assert_eq!(sh("cd ~web1 && pwd").ok(), "/containers/30001");
    assert_eq!(sh("getent group web1").status, Some(2));
    assert_eq!(sh("getent hosts web1.local").status, Some(2));
    let refused = sh("useradd -M web1").failed();
    assert!(refused.contains("already exists"), "{refused}");
    for database in ["passwd", "group", "shadow"] {
        let all = sh(format!("getent {database}")).ok();
        assert!(!all.contains("web1") && all.lines().filter(|line| line.starts_with("30001:")).count() == 1, "{all}");
    }
    // An account of the node's own files comes first, whole.
    let _account = add_account("web1:x:1007:1007::/home/web1:/bin/sh");
    assert_eq!(sh("getent passwd web1").ok(), "web1:x:1007:1007::/home/web1:/bin/sh");
    assert_eq!(sh("id -G web1").ok(), "1007");
}

#[test]
#[ignore = "needs the node: make test"]
fn ordinary_programs() {
    assert_eq!(sh("id 30001").ok(), "uid=30001(30001) gid=30001(30001) groups=30001(30001)");
    assert_eq!(sh("ls -ld /containers/30001 | cut -d' ' -f3-4").ok(), "30001 30001");
    assert_eq!(sh("stat -c '%U %G' /containers/30001").ok(), "30001 30001");
    // ps asks for names of other users than the number itself, and would print a name that it does
    // not know as "30001" too
    assert_eq!(
        sh("su -s /bin/sh 30001 -c 'id -u; echo $HOME; pwd'").ok(),
        "30001\n/containers/30001\n/node".replace("/node", &cwd())
    );
    assert_eq!(sh("setpriv --reuid 30001 --regid 30001 --init-groups id -G").ok(), "30001");
    assert_eq!(sh("chown 30001: /tmp && stat -c '%u:%g' /tmp; chown 0:0 /tmp").ok(), "30001:30001");
    assert_eq!(sh("cd ~30001 && pwd").ok(), "/containers/30001", "bash knows the home");
}

fn cwd() -> String {
    std::env::current_dir().unwrap().display().to_string()
}

#[test]
#[ignore = "needs the node: make test"]
fn ps_shows_the_account() {
    let mut sleep = std::process::Command::new("setpriv")
        .args(["--reuid", "30001", "--regid", "30001", "--clear-groups", "sleep", "4711"])
        .spawn()
        .unwrap();
    let user = eventually("the process", || {
        let found = pgrep("^sleep 4711$")?;
        Some(sh(format!("strace -qq -e trace=/stat -o /tmp/ps.strace ps -o user= -p {found}")).ok())
    });
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    assert_eq!(user.trim(), "30001");
    let asked = fs::read_to_string("/tmp/ps.strace").unwrap();
    assert!(asked.contains("\"/containers/30001\""), "the witness: ps asked us");
}

#[test]
#[ignore = "needs the node: make test"]
fn useradd_keeps_clear_of_containers() {
    let limits = "-K UID_MIN=30000 -K UID_MAX=60000 -K GID_MIN=30000 -K GID_MAX=60000";
    sh(format!("useradd {limits} ordinary")).ok();
    let uid = sh("id -u ordinary").ok();
    sh("userdel ordinary").ok();
    // useradd takes the highest in use plus one, and asks for what it finds: 30000 and 30001 are
    // ours.
    assert!(!["30000", "30001"].contains(&uid.as_str()), "{uid}");
    let refused = sh("useradd -u 30001 -M intruder").failed();
    assert!(refused.contains("UID 30001 is not unique"), "{refused}");
    let refused = sh("useradd -M 30001").failed();
    assert!(refused.contains("already exists") || refused.contains("invalid user name"), "{refused}");
    let refused = sh("groupadd -g 30001 intruder").failed();
    assert!(refused.contains("GID '30001' already exists"), "{refused}");
}

/// `useradd --badname` accepts a number as a name. Such an account must not get the group of the
/// container of that number, which owns the container's files.
#[test]
#[ignore = "needs the node: make test"]
fn an_account_named_like_a_container_gets_none_of_its_groups() {
    const BAD_NAME: &str = "$(useradd --help 2>&1 | grep -o -m1 -e '--badnames*')"; // --badnames from Debian 13 on
    sh(format!("useradd {BAD_NAME} --uid 1001 --user-group --no-create-home 30005")).ok();
    // With the plus sign chown does not take them for names.
    sh("mkdir -m 0750 /containers/30005; echo secret >/containers/30005/file; chown +30005:+30005 /containers/30005")
        .ok();
    let groups = sh("id 30005");
    let session = "setpriv --reuid 1001 --regid 1001 --init-groups sh -c 'id -G; cat /containers/30005/file'";
    let session = sh(session);
    let container = sh("getent passwd 30005"); // by number: the container's own account
    sh("userdel 30005; rm -r /containers/30005").ok();
    assert_eq!(groups.ok(), "uid=1001(30005) gid=1001(30005) groups=1001(30005)");
    assert_eq!((session.out.trim(), session.status), ("1001", Some(1)), "{session:?}");
    assert!(session.err.contains("Permission denied"), "{session:?}");
    assert_eq!(container.ok(), PASSWD.replace("30001", "30005"), "the witness: the container is there");
}

#[test]
#[ignore = "needs the node: make test"]
fn python() {
    let script = "
import pwd, grp, socket
p = pwd.getpwnam('30001'); assert p == pwd.getpwuid(30001), p
assert tuple(p) == ('30001', 'x', 30001, 30001, '30001', '/containers/30001', '/bin/bash'), p
g = grp.getgrnam('30001'); assert g == grp.getgrgid(30001) and tuple(g) == ('30001', 'x', 30001, []), g
assert [e.pw_uid for e in pwd.getpwall()].count(30001) == 1
assert [e.gr_gid for e in grp.getgrall()].count(30001) == 1
for absent in '39999', '030001', '30001/':
    try: pwd.getpwnam(absent)
    except KeyError: pass
    else: raise AssertionError(absent)
assert socket.gethostbyname('30001.local') == '10.0.0.3'
assert socket.gethostbyname_ex('30001.LOCAL.') == ('30001.local', [], ['10.0.0.3'])
assert socket.gethostbyaddr('10.0.0.3') == ('30001.local', [], ['10.0.0.3'])
assert socket.getnameinfo(('10.0.0.3', 22), socket.NI_NUMERICSERV) == ('30001.local', '22')
assert socket.getnameinfo(('::ffff:10.0.0.3', 22), socket.NI_NUMERICSERV) == ('30001.local', '22')
assert socket.getnameinfo(('10.0.0.4', 22), socket.NI_NUMERICSERV) == ('10.0.0.4', '22')
import os
assert os.getgrouplist('30001', 30001) == [30001]
assert os.getgrouplist('30001', 100) == [100]
print('good')
";
    let _switch = Switch::new(NO_DNS);
    assert_eq!(run("python3", &["-c", script], b"").ok(), "good");
}

// Name resolution, as C programs do it

/// What getaddrinfo says: the addresses as text and the canonical name, or the error.
fn getaddrinfo(name: &str, family: c_int, flags: c_int) -> Result<(Vec<String>, Option<String>), c_int> {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: glibc's contract: a list that ends, of addresses of the family that each says.
    unsafe {
        let hints =
            libc::addrinfo { ai_family: family, ai_flags: flags, ai_socktype: libc::SOCK_STREAM, ..std::mem::zeroed() };
        let mut list = std::ptr::null_mut();
        let error = libc::getaddrinfo(name.as_ptr(), std::ptr::null(), &hints, &mut list);
        if error != 0 {
            return Err(error);
        }
        let canonical = (*list).ai_canonname;
        let canonical =
            (!canonical.is_null()).then(|| std::ffi::CStr::from_ptr(canonical).to_string_lossy().into_owned());
        let mut addresses = vec![];
        let mut entry = list;
        while !entry.is_null() {
            addresses.push(match (*entry).ai_family {
                libc::AF_INET => {
                    let address = &*(*entry).ai_addr.cast::<libc::sockaddr_in>();
                    Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).to_string()
                }
                libc::AF_INET6 => {
                    let address = &*(*entry).ai_addr.cast::<libc::sockaddr_in6>();
                    std::net::Ipv6Addr::from(address.sin6_addr.s6_addr).to_string()
                }
                other => panic!("family {other}"),
            });
            entry = (*entry).ai_next;
        }
        libc::freeaddrinfo(list);
        Ok((addresses, canonical))
    }
}

fn assert_getaddrinfo_answers() {
    use libc::{AF_INET, AF_INET6, AF_UNSPEC, AI_ADDRCONFIG, AI_CANONNAME, AI_V4MAPPED};
    let address = || vec!["10.0.0.3".to_owned()];
    for flags in [0, AI_ADDRCONFIG, AI_V4MAPPED | AI_ADDRCONFIG] {
        assert_eq!(getaddrinfo("30001.local", AF_UNSPEC, flags), Ok((address(), None)), "{flags:#x}");
        assert_eq!(getaddrinfo("30001.local", AF_INET, flags), Ok((address(), None)), "{flags:#x}");
    }
    for family in [AF_UNSPEC, AF_INET] {
        let canonical = Some("30001.local".to_owned());
        assert_eq!(getaddrinfo("30001.Local.", family, AI_CANONNAME), Ok((address(), canonical)), "{family}");
    }
    assert_eq!(getaddrinfo("30001.local", AF_INET6, AI_V4MAPPED), Ok((vec!["::ffff:10.0.0.3".to_owned()], None)));
    assert!(matches!(getaddrinfo("30001.local", AF_INET6, 0), Err(libc::EAI_NODATA | libc::EAI_NONAME)));
    assert_eq!(getaddrinfo("30001.local", AF_INET, AI_CANONNAME).map(|(_, name)| name), Ok(Some("30001.local".into())));
    // We are not in the way of others: a name of /etc/hosts, and one that nobody has.
    assert!(getaddrinfo("localhost", AF_INET, 0).is_ok_and(|(addresses, _)| addresses[0] == "127.0.0.1"));
    for absent in ["65534.local", "030001.local", "16807213.local"] {
        assert!(getaddrinfo(absent, AF_UNSPEC, 0).is_err_and(|error| error != libc::EAI_SYSTEM), "{absent}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn host_names_by_getaddrinfo() {
    let _switch = Switch::new(NO_DNS);
    assert_getaddrinfo_answers();
}

#[test]
#[ignore = "needs the node: make test"]
fn ping_by_name() {
    sh("ip address add 10.0.0.3/32 dev lo").ok();
    let told = sh("ping -c 1 -W 2 30001.local; ip address del 10.0.0.3/32 dev lo").ok();
    assert!(told.contains("PING 30001.local (10.0.0.3)") && told.contains("1 received"), "{told}");
}

#[test]
#[ignore = "needs the node: make test"]
fn under_valgrind() {
    for command in ["passwd", "group", "shadow 30001", "initgroups 30001", "hosts 30001.local", "hosts 10.0.0.3"] {
        let valgrind = "valgrind --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite";
        let done = sh(format!("{valgrind} getent {command}"));
        assert!(done.err.contains("ERROR SUMMARY: 0 errors"), "{command}: {}", done.err);
        assert!(done.ok().contains("30001"), "{command}");
    }
}

// Others beside us

#[test]
#[ignore = "needs the node: make test"]
fn with_nscd() {
    struct Nscd;
    impl Drop for Nscd {
        fn drop(&mut self) {
            sh("nscd -K").ok();
        }
    }
    sh("mkdir -p /run/nscd /var/cache/nscd && nscd").ok();
    let _nscd = Nscd;
    eventually("nscd", || (sh("nscd -g").status == Some(0)).then_some(()));
    for _ in 0..2 {
        assert_getent_answers(); // the second time out of its cache
    }
    assert_enumerations_answer();
    // Hits are not counted: clients read the cache by themselves. What was not in it yet is.
    let statistics = sh("nscd -g").ok();
    let misses = statistics.lines().filter(|line| line.contains("cache misses on positive entries"));
    let misses: u32 = misses.filter_map(|line| line.split_whitespace().next()?.parse::<u32>().ok()).sum();
    assert!(misses > 4, "the witness: it was asked: {misses}");
    // A container that was not there: its absence is remembered as long as nscd.conf says, and no
    // longer.
    sh("getent passwd 30077").failed();
    sh("install -d -o 30077 -g 30077 /containers/30077; nscd -i passwd").ok();
    assert_eq!(sh("getent passwd 30077 | cut -d: -f1").ok(), "30077");
    sh("rmdir /containers/30077").ok();
}

#[test]
#[ignore = "needs the node: make test"]
fn with_systemd_beside_us() {
    for order in ["unbit systemd", "systemd unbit"] {
        let _switch = Switch::new(&format!("passwd: files {order}\ngroup: files {order}\nshadow: files {order}"));
        assert_getent_answers();
        assert_enumerations_answer();
        assert_eq!(sh("id 30001").ok(), "uid=30001(30001) gid=30001(30001) groups=30001(30001)");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn with_merged_groups() {
    let group = fs::read_to_string("/etc/group").unwrap();
    fs::write("/etc/group", format!("{group}30001:x:30001:alice\n")).unwrap();
    let told = {
        let _switch = Switch::new("group: files [SUCCESS=merge] unbit");
        (sh("getent group 30001").ok(), sh("getent group root").ok(), sh("id -G alice").ok(), sh("getent group").ok())
    };
    fs::write("/etc/group", group).unwrap();
    assert_eq!(told.0, "30001:x:30001:alice", "the members of both");
    assert_eq!(told.1, "root:x:0:");
    assert_eq!(told.2, "1000 30001");
    assert!(told.3.lines().any(|line| line == "30000:x:30000:"));
}

/// Between two services whose groups are merged ours must hand on what it is handed.
#[test]
#[ignore = "needs the node: make test"]
fn between_merged_groups() {
    sh("mkdir -p /var/lib/extrausers; echo readers:x:5000:alice >/var/lib/extrausers/group").ok();
    let group = fs::read_to_string("/etc/group").unwrap();
    fs::write("/etc/group", format!("{group}readers:x:5000:root\n")).unwrap();
    let ask = |line: &str| {
        let _switch = Switch::new(line);
        (sh("getent group readers"), sh("getent group 30001"))
    };
    let (alone, merged) = (
        ask("group: files [SUCCESS=merge] unbit extrausers"),
        ask("group: files [SUCCESS=merge] unbit [SUCCESS=merge] extrausers"),
    );
    fs::write("/etc/group", group).unwrap();
    sh("rm /var/lib/extrausers/group").ok();
    assert_eq!(alone.0.ok(), "readers:x:5000:root", "the witness: without the second action the members are lost");
    assert_eq!(merged.0.ok(), "readers:x:5000:root,alice");
    assert_eq!((alone.1.ok(), merged.1.ok()), ("30001:x:30001:".to_owned(), "30001:x:30001:".to_owned()));
}

#[test]
#[ignore = "needs the node: make test"]
fn with_an_initgroups_line() {
    for line in ["initgroups: unbit files", "initgroups: files unbit", "initgroups: unbit"] {
        let _switch = Switch::new(line);
        assert_eq!(sh("id -G 30001").ok(), "30001", "{line}");
        assert_eq!(sh("id -G root").ok(), "0", "{line}");
    }
    let group = fs::read_to_string("/etc/group").unwrap();
    fs::write("/etc/group", format!("{group}readers:x:500:30001,alice\n")).unwrap();
    let told = {
        let _switch = Switch::new("initgroups: unbit files");
        (sh("id -G 30001").ok(), sh("id -G alice").ok())
    };
    fs::write("/etc/group", group).unwrap();
    assert_eq!(told.0, "30001 500", "we do not end the search for groups that files know");
    assert_eq!(told.1, "1000 500");
}

/// A login must not walk /containers: without `initgroups_dyn` glibc would look through every group
/// for members.
#[test]
#[ignore = "needs the node: make test"]
fn a_login_does_not_list_the_directory() {
    let trace = "strace -f -qq -e trace=getdents64,openat -o /tmp/login.strace";
    sh(format!("{trace} setpriv --reuid 30001 --regid 30001 --init-groups true")).ok();
    let calls = fs::read_to_string("/tmp/login.strace").unwrap();
    assert!(calls.contains("libnss_unbit.so.2"), "the witness: we were asked");
    assert!(!calls.contains("\"/containers\""), "{calls}");
    sh(format!("{trace} getent group")).ok();
    let calls = fs::read_to_string("/tmp/login.strace").unwrap();
    assert!(calls.contains("\"/containers\""), "the witness: strace would have shown it");
}

/// A signal can interrupt a file system that answers slowly, such as an automount on /containers.
#[test]
#[ignore = "needs the node: make test"]
fn an_interrupted_system_call_does_not_end_an_enumeration() {
    let all = sh("getent -s unbit passwd").ok();
    assert!(all.contains("30001:"), "{all}");
    let trace = "strace -qq -P /containers -o /tmp/interrupted.strace -e inject";
    for call in ["openat", "getdents64"] {
        let interrupted = sh(format!("{trace}={call}:error=EINTR:when=1 getent -s unbit passwd")).ok();
        let calls = fs::read_to_string("/tmp/interrupted.strace").unwrap();
        assert!(calls.contains("EINTR"), "the witness: {call} was interrupted: {calls}");
        assert_eq!(interrupted, all, "{call}");
    }
}
