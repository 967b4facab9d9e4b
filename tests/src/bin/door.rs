//! Keeps a door of root's: `door SOCKET PID KIND` hands out the namespaces of a process, in uWSGI's words or, by KIND, in worse ones.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use unbit_tests::wire::{MAGIC, send};

/// As uWSGI has them: all but user, those for children among them.
fn namespaces(pid: &str) -> Vec<OwnedFd> {
    let links = fs::read_dir(format!("/proc/{pid}/ns")).unwrap().map(|link| link.unwrap());
    links.filter(|link| link.file_name() != "user").map(|link| File::open(link.path()).unwrap().into()).collect()
}

fn namespace(pid: &str, name: &str) -> OwnedFd {
    File::open(format!("/proc/{pid}/ns/{name}")).unwrap().into()
}

fn counted(count: usize) -> Vec<u8> {
    [MAGIC, &(count as i32).to_ne_bytes()].concat()
}

fn answer(mut peer: UnixStream, pid: &str, kind: &str) -> std::io::Result<usize> {
    let honest = namespaces(pid);
    let all = honest.len();
    match kind {
        "honest" => send(&peer, &counted(all), &honest),
        "late" => {
            std::thread::sleep(Duration::from_millis(500));
            send(&peer, &counted(all), &honest)
        }
        "silent" => {
            std::thread::sleep(Duration::from_secs(600));
            Ok(0)
        }
        "hang-up" => Ok(0),
        "short" => send(&peer, MAGIC, &honest),
        "split" => {
            let message = counted(all);
            send(&peer, &message[..4], &honest)?;
            std::thread::sleep(Duration::from_millis(100));
            peer.write(&message[4..])
        }
        "long" => send(&peer, &[counted(all), b"!".to_vec()].concat(), &honest),
        "wrong" => send(&peer, b"setns-uwsgi\x07\0\0\0", &honest),
        "too-few" => send(&peer, &counted(all + 1), &honest),
        "too-many" => send(&peer, &counted(all - 1), &honest),
        "none" => send(&peer, &counted(0), &[]),
        "65" => send(&peer, &counted(65), &(0..65).map(|_| namespace(pid, "mnt")).collect::<Vec<_>>()),
        "253" => send(&peer, &counted(253), &(0..253).map(|_| namespace(pid, "mnt")).collect::<Vec<_>>()),
        "files" => {
            send(&peer, &counted(2), &[File::open("/").unwrap().into(), File::open("/dev/null").unwrap().into()])
        }
        "the-hosts" => send(&peer, &counted(namespaces("self").len()), &namespaces("self")),
        "no-mnt" => send(&peer, &counted(1), &[namespace(pid, "pid")]),
        "two-of-a-kind" => {
            send(&peer, &counted(3), &[namespace(pid, "pid"), namespace(pid, "mnt"), namespace("self", "mnt")])
        }
        "user" => send(&peer, &counted(3), &[namespace(pid, "pid"), namespace(pid, "mnt"), namespace(pid, "user")]),
        _ => {
            let (name, owner) = kind.split_once("-of-").expect("no such kind");
            let honest = ["pid", "uts", "ipc", "net", "mnt"].into_iter().filter(|other| *other != name);
            let honest = honest.map(|name| namespace(pid, name)).chain([namespace(owner, name)]).collect::<Vec<_>>();
            send(&peer, &counted(honest.len()), &honest)
        }
    }
}

fn main() {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [socket, pid, kind] = &words[..] else { panic!("door SOCKET PID KIND") };
    for peer in UnixListener::bind(socket).unwrap().incoming() {
        let _ = answer(peer.unwrap(), pid, kind);
    }
}
