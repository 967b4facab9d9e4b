//! Checks nscd, which caches answers about accounts after they have changed.

use crate::report::Finding;
use crate::rootfs::RootFs;
use crate::step::{Change, Choices, Step};
use anyhow::Result;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

const CHECK: &str = "nscd";
const WHY: &str =
    "nscd remembers for a while that an account does not exist, so the user of a new container cannot log in at first";

/// Where glibc looks for it (`_PATH_NSCDSOCKET` of nscd/nscd-client.h).
const SOCKET: &str = "/var/run/nscd/socket";
const CONFIGURATION: &str = "/etc/nscd.conf";

/// What it may not remember, and how it is asked for it: the request's type in nscd/nscd-client.h,
/// and a key.
const DATABASES: [(&str, i32, &[u8]); 2] = [("passwd", 1, b"0\0"), ("group", 3, b"0\0")];

/// How long it may take to answer, in seconds.
const TIMEOUT: i64 = 3;

pub const STEP: Step =
    Step { follow_up: "to make nscd read its file again: systemctl restart nscd", ..Step::new(CHECK, check, fix) };

pub fn check(node: &RootFs) -> Vec<Finding> {
    let text = node.read(CONFIGURATION).ok().flatten().unwrap_or_default();
    let configured = cached(&text);
    vec![if node.is_running() { live(node, &configured) } else { installed(node, &configured) }]
}

/// `enable-cache passwd no`, and the same for group.
fn fix(node: &RootFs, _: Choices) -> Result<Vec<Change>> {
    let text = node.read(CONFIGURATION)?.unwrap_or_default();
    let fixed = without_caches(&text);
    let change = Change::File { path: CONFIGURATION.to_owned(), content: fixed.clone(), mode: 0o644 };
    Ok(if fixed == text { Vec::new() } else { vec![change] })
}

fn installed(node: &RootFs, configured: &[&str]) -> Finding {
    let is_there = ["/usr/sbin/nscd", "/usr/sbin/unscd"].iter().any(|program| node.has(program));
    match (is_there, configured) {
        (false, _) => Finding::ok(CHECK, WHY, "is not installed"),
        (true, []) => Finding::ok(CHECK, WHY, "caches neither passwd nor group"),
        (true, cached) => Finding::warn(
            CHECK,
            WHY,
            format!("is configured to cache {}", cached.join(" and ")),
            node.setup_command(CHECK),
        ),
    }
}

fn live(node: &RootFs, configured: &[&str]) -> Finding {
    let restart = "systemctl restart nscd";
    let (mut caches, mut pid) = (Vec::new(), 0);
    for (database, request, key) in DATABASES {
        match ask(request, key) {
            Ok(answer) => {
                pid = answer.pid;
                if answer.is_cached {
                    caches.push(database);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Finding::ok(CHECK, WHY, "does not run");
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Finding::not_applicable(CHECK, WHY, "root is needed to see");
            }
            Err(error) => {
                let seen = format!("listens on {SOCKET} and does not answer: {error}");
                return Finding::fail(CHECK, "every lookup of an account waits for it first", seen, restart);
            }
        }
    }
    match (caches.as_slice(), configured) {
        ([], _) => Finding::ok(CHECK, WHY, format!("runs (pid {pid}) and caches neither passwd nor group")),
        (caches, []) => {
            let seen =
                format!("runs (pid {pid}) and caches {}, although {CONFIGURATION} says no", caches.join(" and "));
            Finding::warn(CHECK, WHY, seen, restart)
        }
        (caches, _) => {
            let seen = format!("runs (pid {pid}) and caches {}", caches.join(" and "));
            Finding::warn(CHECK, WHY, seen, format!("{} && {restart}", node.setup_command(CHECK)))
        }
    }
}

/// Whether each question to glibc waits for it, ten seconds and in vain: five for its map of the
/// database, five for the answer.
pub fn hangs(node: &RootFs) -> bool {
    let hangs = |error: io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    node.is_running() && DATABASES.first().is_some_and(|(_, request, key)| ask(*request, key).is_err_and(hangs))
}

/// The state of a database of nscd.
struct Answer {
    pid: i32,
    /// It answers out of this database; else glibc asks the modules itself.
    is_cached: bool,
}

/// Asks as glibc does: version 2, the type, the key's length, the key. The answer begins with the
/// version and with whether there is one: -1 for a database that is off.
fn ask(request: i32, key: &[u8]) -> io::Result<Answer> {
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // With a full backlog connect(2) waits as well, for as long as a write.
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(TIMEOUT, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(TIMEOUT, 0))?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(SOCKET)?)?;
    let pid = getsockopt(&socket, sockopt::PeerCredentials)?.pid();
    let mut socket = UnixStream::from(socket);
    let head = [2, request, key.len() as i32].map(i32::to_ne_bytes).concat();
    socket.write_all(&[&head, key].concat())?;
    let (mut version, mut found) = ([0; 4], [0; 4]);
    socket.read_exact(&mut version)?;
    socket.read_exact(&mut found)?;
    Ok(Answer { pid, is_cached: i32::from_ne_bytes(found) != -1 })
}

/// The words of a line of nscd.conf(5), without its comment.
fn words(line: &str) -> Vec<&str> {
    line.split('#').next().unwrap_or_default().split_whitespace().collect()
}

/// Which of our databases a configuration has cached. Off unless it says yes; the last line counts.
fn cached(text: &str) -> Vec<&'static str> {
    let is_on = |database: &str| {
        let mut said = text.lines().filter_map(|line| match words(line).as_slice() {
            ["enable-cache", name, value, ..] if *name == database => Some(*value == "yes"),
            _ => None,
        });
        said.next_back().unwrap_or(false)
    };
    DATABASES.iter().map(|(database, ..)| *database).filter(|database| is_on(database)).collect()
}

/// nscd's configuration, with our databases off.
fn without_caches(text: &str) -> String {
    let line = |line: &str| match words(line).as_slice() {
        ["enable-cache", database, "yes", ..] if DATABASES.iter().any(|(ours, ..)| ours == database) => {
            line.replacen("yes", "no", 1)
        }
        _ => line.to_owned(),
    };
    text.split_inclusive('\n').map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "\
# /etc/nscd.conf
#	enable-cache		passwd		yes
	debug-level		0
	enable-cache		passwd		yes
	positive-time-to-live	passwd		600
	enable-cache		group		yes
	enable-cache		hosts		yes # enable-cache group no
	enable-cache	netgroup	no";

    #[test]
    fn what_is_cached_is_what_the_last_line_says() {
        assert_eq!(cached(DEBIAN), ["passwd", "group"]);
        assert_eq!(cached(&format!("{DEBIAN}\nenable-cache passwd no\n")), ["group"]);
        assert_eq!(cached("enable-cache group yes"), ["group"]);
        assert!(cached("").is_empty());
        assert!(cached("#enable-cache passwd yes\nenable-cache passwd\nenable-cache passwds yes").is_empty());
    }

    #[test]
    fn the_fix_turns_ours_off_and_leaves_the_rest() {
        let fixed = without_caches(DEBIAN);
        assert!(cached(&fixed).is_empty());
        assert_eq!(without_caches(&fixed), fixed);
        let changed: Vec<_> = DEBIAN.lines().zip(fixed.lines()).filter(|(before, after)| before != after).collect();
        assert_eq!(
            changed,
            [
                ("\tenable-cache\t\tpasswd\t\tyes", "\tenable-cache\t\tpasswd\t\tno"),
                ("\tenable-cache\t\tgroup\t\tyes", "\tenable-cache\t\tgroup\t\tno"),
            ]
        );
        assert_eq!(DEBIAN.lines().count(), fixed.lines().count());
    }
}
