//! What a hostile tenant runs inside its container, as itself or, where it owns that, as pid 1.
//!
//!     tenant serve SOCKET          listens, treats each connection as the word in ~/kind says
//!                                  (see `Treatment`), and writes to ~/kind.told how far it came
//!     tenant orphan SOCKET         listens, and ends; a child keeps the socket
//!     tenant swap A B              exchanges two paths as fast as it can: for four seconds, and
//!                                  until ~/enough is there, but not for more than thirty
//!     tenant fuse SOCKET DIRECTORY mounts a file system of its own on the directory, and sends
//!                                  whoever connects a file of it, of which the last close writes
//!                                  and is never answered

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, mem, process, ptr, thread};
use unbit_tests::scm_rights::{MAGIC, send};
use unbit_tests::tenant::INHERITED;

fn main() {
    let words: Vec<_> = env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", socket] => serve(socket),
        ["orphan", socket] => orphan(socket),
        ["swap", a, b] => swap(a, b),
        ["fuse", socket, directory] => fuse(socket, directory),
        _ => process::exit(2),
    }
}

/// What is made ready before anybody connects, so that it can be sent at once.
struct Treatment {
    kind: String,
    message: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// The other ends, which stay open.
    kept: Vec<OwnedFd>,
}

impl Treatment {
    fn of(kind: &str) -> Self {
        let mut made =
            Self { kind: kind.to_owned(), message: MAGIC.to_vec(), descriptors: Vec::new(), kept: Vec::new() };
        match kind.split('-').collect::<Vec<_>>()[..] {
            ["short"] => made.message.truncate(5),
            ["long"] => made.message = [MAGIC, &[b'x'; 60_000]].concat(),
            ["wrong"] => made.message = b"setns-uwsgi\x07\0\0\0".to_vec(),
            // As many descriptors as are asked for, and a count that tells of as many, or of
            // others.
            ["send", count, what] | ["miscount", count, what] => {
                let count: i32 = count.parse().unwrap();
                let told = if kind.starts_with("mis") { count.wrapping_mul(-7) } else { count };
                made.message.extend(told.to_ne_bytes());
                let forged = (what == "forged").then(forged_namespaces);
                for i in 0..count as usize {
                    let descriptor = match (what, &forged) {
                        ("own", _) => namespace("self", i),
                        ("hosts", _) => namespace("self", OF_THE_HOST + i % 2),
                        ("others", _) => File::open(format!("/proc/self/fd/{}", INHERITED + i as i32)).unwrap().into(),
                        (_, Some(forger)) => namespace(&forger.to_string(), i),
                        ("file", _) => File::open("/etc/passwd").unwrap().into(),
                        ("dir", _) => File::open("/").unwrap().into(),
                        ("fifo", _) => fifo(),
                        ("socket", _) => {
                            let (one, other) = UnixStream::pair().unwrap();
                            made.kept.push(one.into());
                            other.into()
                        }
                        _ => process::exit(2),
                    };
                    made.descriptors.push(descriptor);
                }
            }
            // A connection that nobody reads from, and whose last close waits for an hour for
            // somebody to.
            ["linger"] => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let mut full = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                made.kept.push(listener.accept().unwrap().0.into());
                full.set_nonblocking(true).unwrap();
                while full.write(&[0; 65536]).is_ok() {}
                full.set_nonblocking(false).unwrap();
                let linger = libc::linger { l_onoff: 1, l_linger: 3600 };
                // SAFETY: the option takes this struct, which is read at once.
                let answer = unsafe {
                    let value = ptr::from_ref(&linger).cast();
                    let size = mem::size_of_val(&linger) as u32;
                    libc::setsockopt(full.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, size)
                };
                assert_eq!(answer, 0);
                made.message.extend(1i32.to_ne_bytes());
                made.descriptors.push(full.into());
            }
            _ => {}
        }
        made
    }

    /// What becomes of a connection; what is returned stays open.
    fn treat(self, mut peer: UnixStream) -> Option<(UnixStream, Vec<OwnedFd>)> {
        let (mut bytes, mut descriptors) = (0, 0);
        let (mut stays, mut end) = (true, Ok(()));
        match self.kind.split('-').collect::<Vec<_>>()[..] {
            ["silent"] => {}
            ["close"] => stays = false,
            ["split"] => {
                stays = false;
                end = MAGIC.iter().try_for_each(|byte| {
                    bytes += peer.write(&[*byte])?;
                    thread::sleep(Duration::from_millis(2));
                    Ok(())
                });
            }
            ["drip"] => {
                stays = false;
                while end.is_ok() {
                    end = peer.write(b"u").map(|taken| bytes += taken);
                    thread::sleep(Duration::from_millis(500));
                }
            }
            ["die", wait] => {
                spin(wait);
                process::exit(0);
            }
            // In a user namespace of its own its bounding set looks full.
            ["unshare", "birth"] => {
                wait_for_a_birth();
                end = unshare(libc::CLONE_NEWUSER);
            }
            ["unshare", wait] => {
                spin(wait);
                end = unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWUTS);
            }
            _ => {
                if self.kind == "late" {
                    thread::sleep(Duration::from_millis(200));
                }
                end = send(&peer, &self.message, &self.descriptors)
                    .map(|taken| (bytes, descriptors) = (taken, self.descriptors.len()));
            }
        }
        let end = end.err().map(|error| format!(", then {:?}", error.kind())).unwrap_or_default();
        tell(&format!("{}: {bytes} bytes and {descriptors} descriptors{end}", self.kind));
        if self.kind == "linger" {
            thread::spawn(|| drop(self.descriptors)); // it is still ours, and we wait
        }
        stays.then_some((peer, self.kept))
    }
}

/// Writes down how far a treatment came.
fn tell(line: &str) {
    let path = format!("{}/kind.told", env::var("HOME").unwrap());
    let mut told = OpenOptions::new().append(true).create(true).open(path).unwrap();
    told.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn serve(path: &str) {
    let kind_file = format!("{}/kind", env::var("HOME").unwrap());
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    // SAFETY: no handler is installed; children that end are not waited for.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let mut held = Vec::new();
    let mut next = Treatment::of("silent");
    loop {
        let kind = fs::read_to_string(&kind_file).unwrap_or_default();
        if kind != next.kind {
            next = Treatment::of(&kind);
            fs::write(format!("{kind_file}.ready"), &kind).unwrap();
        }
        let mut ready = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one struct, as many as said.
        if unsafe { libc::poll(&mut ready, 1, 20) } != 1 || kind == "deaf" {
            continue;
        }
        let Ok((peer, _)) = listener.accept() else { continue };
        held.extend(next.treat(peer));
        next = Treatment::of(&kind);
    }
}

fn orphan(path: &str) {
    let _ = fs::remove_file(path);
    let _listener = UnixListener::bind(path).unwrap();
    // SAFETY: this program has one thread.
    if unsafe { libc::fork() } == 0 {
        thread::sleep(Duration::from_secs(600));
    }
}

fn swap(a: &str, b: &str) {
    let enough = format!("{}/enough", env::var("HOME").unwrap());
    let [a, b] = [a, b].map(|path| CString::new(path).unwrap());
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4)
        || (!fs::exists(&enough).unwrap() && started.elapsed() < Duration::from_secs(30))
    {
        // SAFETY: two paths that end with NUL.
        unsafe { libc::renameat2(libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), libc::RENAME_EXCHANGE) };
    }
}

fn spin(microseconds: &str) {
    let (started, wait) = (Instant::now(), Duration::from_micros(microseconds.parse().unwrap()));
    while started.elapsed() < wait {}
}

/// Until somebody else is born in this pid namespace.
fn wait_for_a_birth() {
    let started = Instant::now();
    let mut last = number_of_a_child();
    loop {
        let looked = Instant::now();
        while looked.elapsed() < Duration::from_millis(20) {
            // SAFETY: takes numbers.
            if unsafe { libc::kill(last + 1, 0) } == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
            {
                return;
            }
        }
        // One that was born and has ended between two looks has left a gap.
        let next = number_of_a_child();
        if next != last + 1 {
            return;
        }
        last = next;
        assert!(started.elapsed() < Duration::from_secs(10), "nobody comes");
    }
}

fn number_of_a_child() -> i32 {
    // SAFETY: the child ends at once, and is waited for; nothing is written for a null status.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        libc::waitpid(child, ptr::null_mut(), 0);
        child
    }
}

fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: takes a number.
    if unsafe { libc::unshare(flags) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const KINDS: [&str; 7] = ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"];
/// Where those kinds begin in which a container is with the host.
const OF_THE_HOST: usize = 5;

/// One of a process's namespaces, each number another.
fn namespace(pid: &str, number: usize) -> OwnedFd {
    File::open(format!("/proc/{pid}/ns/{}", KINDS[number % KINDS.len()])).unwrap().into()
}

/// A process with namespaces of its own, in a user namespace of its own, where it is root.
fn forged_namespaces() -> u32 {
    let (mut ready, mut tell) = UnixStream::pair().unwrap();
    // SAFETY: this program has one thread where it makes these.
    match unsafe { libc::fork() } {
        0 => {
            unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWUTS).unwrap();
            tell.write_all(b"x").unwrap();
            thread::sleep(Duration::from_secs(600));
            process::exit(0);
        }
        child => {
            ready.read_exact(&mut [0]).unwrap();
            child as u32
        }
    }
}

fn fifo() -> OwnedFd {
    let path = format!("{}/fifo", env::var("HOME").unwrap());
    let name = CString::new(path.as_str()).unwrap();
    // SAFETY: a path that ends with NUL.
    unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
    OpenOptions::new().read(true).write(true).open(path).unwrap().into()
}

/// The socket is pid 1's, who called listen; the file system belongs to a child in a user namespace
/// of its own, which answers on it.
fn fuse(path: &str, directory: &str) {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    // SAFETY: this program has one thread so far.
    match unsafe { libc::fork() } {
        0 => serve_fuse(&listener, directory),
        _ => loop {
            thread::sleep(Duration::from_secs(600));
        },
    }
}

fn serve_fuse(listener: &UnixListener, directory: &str) {
    // SAFETY: takes nothing.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS).unwrap();
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    let target = CString::new(directory).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let options = CString::new(options).unwrap();
    // SAFETY: four strings that end with NUL.
    let mounted = unsafe {
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        libc::mount(c"tenant".as_ptr(), target.as_ptr(), c"fuse".as_ptr(), flags, options.as_ptr().cast())
    };
    assert_eq!(mounted, 0, "{}", io::Error::last_os_error());
    let mute = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let mute = Arc::clone(&mute);
        move || answer_fuse(&device, &mute)
    });
    let open = || OpenOptions::new().read(true).write(true).open(format!("{directory}/file")).unwrap();
    let dirt = open();
    loop {
        let file: OwnedFd = open().into();
        fs::write(format!("{}/kind.ready", env::var("HOME").unwrap()), "fuse").unwrap();
        let (peer, _) = listener.accept().unwrap();
        let sent = send(&peer, MAGIC, std::slice::from_ref(&file));
        tell(&format!("fuse: {:?}", sent.map_err(|error| error.kind())));
        drop(file);
        mute.store(true, Ordering::SeqCst);
        dirt.write_all_at(&[b'x'; 4096], 0).unwrap();
        thread::sleep(Duration::from_secs(600));
    }
}

/// Just enough of fuse(4): one directory with one file, cached for writing.
fn answer_fuse(mut device: &File, mute: &AtomicBool) {
    const SIZE: u64 = 4096;
    let words = |values: &[u64]| values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>();
    let halves = |values: &[u32]| values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>();
    let attributes = |node: u64| {
        let (mode, links) = if node == 1 { (0o40755, 2) } else { (0o100_644, 1) };
        [words(&[node, SIZE, 8, 0, 0, 0]), halves(&[0, 0, 0, mode, links, 0, 0, 0, 4096, 0])].concat()
    };
    let mut request = vec![0; 1 << 17];
    while let Ok(length) = device.read(&mut request) {
        let word = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        let half = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let (operation, unique, node) = (half(4), word(8), word(16));
        let answer = match operation {
            1 => Ok([words(&[2, 0, 3600, 3600, 0]), attributes(2)].concat()), // LOOKUP
            2 | 42 => continue,                                               // FORGET has no answer
            3 | 4 => Ok([words(&[3600, 0]), attributes(node)].concat()),      // GETATTR, SETATTR
            14 | 27 => Ok(words(&[1, 0])),                                    // OPEN, OPENDIR
            16 if mute.load(Ordering::SeqCst) => continue,                    // WRITE
            16 => Ok(halves(&[half(56), 0])),
            18 | 25 | 29 => Ok(Vec::new()), // RELEASE, FLUSH, RELEASEDIR
            26 => {
                // INIT: version 7.31, FUSE_WRITEBACK_CACHE
                Ok(halves(&[7, 31, 65536, 1 << 16, 12 << 16 | 12, 65536, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
            }
            _ => Err(-libc::ENOSYS),
        };
        let _ = length;
        let (error, body) = answer.map_or_else(|error| (error, Vec::new()), |body| (0, body));
        let header = halves(&[16 + body.len() as u32, error as u32]);
        let _ = device.write_all(&[header, words(&[unique]), body].concat());
    }
}
