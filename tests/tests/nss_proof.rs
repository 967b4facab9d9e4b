//! The installed NSS module in hard conditions: every buffer, threads, fork, seccomp, set-user-ID
//! programs, failing disks.

use libc::{c_char, c_int};
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use unbit_tests::nss::*;
use unbit_tests::*;

/// A container that is there until it is dropped: a directory, and nothing runs in it.
struct Container(String);

impl Container {
    fn new(uid: u32) -> Self {
        let home = format!("/containers/{uid}");
        fs::create_dir(&home).unwrap();
        chown(&home, Some(uid), Some(uid)).unwrap();
        Self(home)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Something that is undone at the end, also of a test that fails.
struct Undo<F: FnMut()>(F);

impl<F: FnMut()> Drop for Undo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn ours(function: &Function) -> bool {
    !function.name.starts_with("gethostbyname") // those answer by arithmetic, and never fail
}

// Memory

#[test]
#[ignore = "needs the node: make test"]
fn every_length_at_every_misalignment_is_all_or_nothing() {
    const CANARY: u8 = 0x5a;
    let module = Module::installed();
    let mut memory = Guarded::page();
    let _name = second_name("web1", "30001");
    let mut functions = module.lookups();
    functions.extend(module.by_second_name("web1"));
    functions.extend(module.enumerations());
    for function in functions {
        for misalignment in 0..8 {
            let mut enough = false;
            for length in 0..=512 {
                let case = format!("{}, {length} bytes at {misalignment}", function.name);
                module.rewind();
                let page = memory.bytes();
                page.fill(CANARY);
                // As close to the guard page as this misalignment gets; what is left between are
                // canaries.
                let mut start = page.len() - length;
                while start % 8 != misalignment {
                    start -= 1;
                }
                let at = page.as_mut_ptr() as usize + start;
                let answer = (function.call)(at as *mut c_char, length);
                let page = memory.bytes();
                let mut canaries = page[..start].iter().chain(&page[start + length..]);
                assert!(canaries.all(|byte| *byte == CANARY), "{case}: wrote outside");
                if answer.status == SUCCESS {
                    enough = true;
                    let sizes = answer.strings.iter().map(|(at, text)| (*at, text.len() + 1));
                    let mut parts: Vec<_> =
                        sizes.chain(answer.arrays.iter().map(|(at, size, _)| (*at, *size))).collect();
                    parts.sort_unstable();
                    assert!(parts.iter().all(|(from, size)| *from >= at && from + size <= at + length), "{case}");
                    assert!(parts.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "{case}: overlap");
                    assert!(answer.arrays.iter().all(|(at, _, align)| at % align == 0), "{case}: misaligned");
                } else {
                    assert!(!enough, "{case}: what was enough is no longer");
                    assert_eq!((answer.status, answer.errno), (TRYAGAIN, libc::ERANGE), "{case}");
                    assert!(!function.host || answer.h_errno == NETDB_INTERNAL, "{case}");
                }
            }
            assert!(enough, "{}: 512 bytes are not enough", function.name);
        }
    }
}

// Threads, fork, the end of a process

#[test]
#[ignore = "needs the node: make test"]
fn sixteen_threads_get_the_right_answers() {
    let module = Module::installed();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let functions = module.lookups();
                let expected: Vec<_> = functions.iter().map(|function| roomy(function).status).collect();
                assert!(expected.iter().all(|status| *status == SUCCESS));
                for round in 0..2000 {
                    for function in &functions {
                        assert_eq!(roomy(function).status, SUCCESS, "{} in round {round}", function.name);
                    }
                    assert_eq!(roomy(&module.getpwnam("39999")).status, NOTFOUND);
                    for function in module.enumerations() {
                        assert!([SUCCESS, NOTFOUND].contains(&roomy(&function).status), "{}", function.name);
                    }
                    if round % 7 == 0 {
                        module.rewind();
                    }
                }
            });
        }
    });
    module.rewind();
}

#[test]
#[ignore = "needs the node: make test"]
fn a_child_of_a_busy_process_can_look_up_and_enumerate() {
    let module = Module::installed();
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let functions = [module.lookups(), module.enumerations()].concat_functions();
                while !enough.load(Ordering::Relaxed) {
                    functions.iter().for_each(|function| drop(roomy(function)));
                    module.rewind();
                }
            });
        }
        for round in 0..300 {
            let ended = in_child(|| {
                module.rewind();
                let found = module.enumerations().iter().all(|function| roomy(function).status == SUCCESS);
                found && module.lookups().iter().all(|function| roomy(function).status == SUCCESS)
            });
            assert_eq!(ended, 0, "round {round}");
        }
        enough.store(true, Ordering::Relaxed);
    });
    module.rewind();
}

trait Concat {
    fn concat_functions(self) -> Vec<Function>;
}

impl<const N: usize> Concat for [Vec<Function>; N] {
    fn concat_functions(self) -> Vec<Function> {
        self.into_iter().flatten().collect()
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_child_goes_on_in_an_enumeration_where_its_parent_was() {
    let containers: Vec<_> = (31000..31200).map(Container::new).collect();
    let module = Module::installed();
    module.rewind();
    let next = &module.enumerations()[0];
    for _ in 0..100 {
        assert_eq!(roomy(next).status, SUCCESS);
    }
    let of_child = "/tmp/of-child";
    let rest = || {
        let answers = std::iter::from_fn(|| Some(roomy(next)).filter(|answer| answer.status == SUCCESS));
        answers.map(|answer| answer.texts()[0].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(in_child(|| fs::write(of_child, rest().join(" ")).is_ok()), 0);
    let of_parent = rest();
    assert_eq!(of_parent.len(), containers.len() + 2 - 100);
    assert_eq!(fs::read_to_string(of_child).unwrap(), of_parent.join(" "));
}

#[test]
#[ignore = "needs the node: make test"]
fn an_atexit_handler_can_look_up() {
    extern "C" fn at_exit() {
        let module = Module::installed();
        let found = module.lookups().iter().all(|function| roomy(function).status == SUCCESS);
        // SAFETY: the end of the process; the exit status tells.
        unsafe { libc::_exit(if found && through_glibc("30001") == Some(30001) { 42 } else { 43 }) };
    }
    let ended = in_child(|| {
        // SAFETY: registered for the end of this process.
        unsafe { libc::atexit(at_exit) == 0 }
    });
    assert_eq!(ended, 42);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_setuid_program_can_look_up() {
    let id = "/tmp/setuid-id";
    fs::copy("/usr/bin/id", id).unwrap();
    fs::set_permissions(id, fs::Permissions::from_mode(0o4755)).unwrap();
    let told = sh(format!("setpriv --reuid 1000 --regid 1000 --clear-groups {id} -un")).ok();
    assert_eq!(told, "root", "the witness: it is setuid");
    let told = sh(format!("setpriv --reuid 1000 --regid 1000 --clear-groups {id} 30001")).ok();
    assert_eq!(told, "uid=30001(30001) gid=30001(30001) groups=30001(30001)");
    // In such a program glibc ignores LD_LIBRARY_PATH, and we nothing: there is nothing that we
    // read.
    let told = sh(format!("LD_LIBRARY_PATH=/tmp setpriv --reuid 1000 --regid 1000 --clear-groups {id} -un 30001")).ok();
    assert_eq!(told, "30001");
    fs::remove_file(id).unwrap();
}

/// The uid that glibc's getpwnam_r gives for a name.
fn through_glibc(name: &str) -> Option<u32> {
    let name = CString::new(name).unwrap();
    let mut buffer = [0 as c_char; 1024];
    let mut found = null_mut();
    // SAFETY: all zeros is a passwd; glibc's promise that `found` is it, if anything.
    unsafe {
        let mut record: libc::passwd = std::mem::zeroed();
        libc::getpwnam_r(name.as_ptr(), &mut record, buffer.as_mut_ptr(), buffer.len(), &mut found);
        (!found.is_null()).then_some(record.pw_uid)
    }
}

// The system calls

/// Lets through these system calls of this process from now on, and this action is taken on all
/// others.
fn filter(allowed: &[libc::c_long], otherwise: u32) {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: if jt == 0 { 0 } else { 1 }, k };
    let mut program = vec![libc::sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 }]; // the number of the system call
    for call in allowed {
        program.push(libc::sock_filter { code: IF_EQUAL, jt: 0, jf: 1, k: *call as u32 });
        program.push(step(RETURN, 0, libc::SECCOMP_RET_ALLOW));
    }
    program.push(step(RETURN, 0, otherwise));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads the program.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}

/// What a lookup asks of the kernel, says nss-unbit(8).
const LOOKUP: [libc::c_long; 1] = [libc::SYS_newfstatat];
/// And what an enumeration asks besides: a page at the first one, the directory, and futex when two
/// threads enumerate at once.
const ENUMERATION: [libc::c_long; 8] = [
    libc::SYS_mmap,
    libc::SYS_madvise,
    libc::SYS_openat,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_getdents64,
    libc::SYS_close,
    libc::SYS_futex,
];

/// And what a name that is no number asks first.
const SECOND_NAME: [libc::c_long; 1] = [libc::SYS_readlinkat];

/// Ends this process at once, with a system call of its own.
fn end(good: bool) -> bool {
    // SAFETY: the end of the process.
    unsafe { libc::_exit(if good { 42 } else { 43 }) }
}

#[test]
#[ignore = "needs the node: make test"]
fn under_seccomp_the_documented_system_calls_are_enough() {
    let module = Module::installed();
    let (lookups, enumerations) = (module.lookups(), module.enumerations());
    let own = [libc::SYS_exit_group]; // this test's
    let ended = in_child(|| {
        filter(&[&LOOKUP[..], &own].concat(), libc::SECCOMP_RET_KILL_PROCESS);
        end(lookups.iter().all(|function| roomy(function).status == SUCCESS))
    });
    assert_eq!(ended, 42, "lookups");
    let ended = in_child(|| {
        filter(&[&LOOKUP[..], &ENUMERATION, &own].concat(), libc::SECCOMP_RET_KILL_PROCESS);
        module.rewind();
        let counts: Vec<_> =
            enumerations.iter().map(|next| (0..9).filter(|_| roomy(next).status == SUCCESS).count()).collect();
        module.rewind();
        end(counts == [2, 2, 2])
    });
    assert_eq!(ended, 42, "enumerations");
    let ended = in_child(|| {
        filter(&own, libc::SECCOMP_RET_KILL_PROCESS);
        // Names and numbers that are no container's need none at all, and neither does a login's
        // list of groups.
        let strangers = [module.getpwnam("Root"), module.getpwnam("web.1"), module.getpwuid(1000)];
        let absent = strangers.iter().all(|function| roomy(function).status == NOTFOUND);
        end(absent && module.initgroups("30001", 30001).0 == NOTFOUND)
    });
    assert_eq!(ended, 42, "strangers");
    let ended = in_child(|| {
        filter(&own, libc::SECCOMP_RET_KILL_PROCESS);
        end(roomy(&lookups[0]).status == SUCCESS)
    });
    assert_eq!(ended, -libc::SIGSYS, "the witness: the filter filters");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_second_name_is_one_readlink_and_one_stat_and_an_unknown_name_one_readlink() {
    let module = Module::installed();
    let _name = second_name("web1", "30001");
    let trace = "strace -qq -e trace=%file,%desc -o /tmp/second-name.trace -P /containers/web1 -P /containers/nosuch -P /containers/30001 -P /containers";
    for (name, calls) in [
        ("web1", &["readlinkat(AT_FDCWD, \"/containers/web1\"", "\"/containers/30001\""][..]),
        ("nosuch", &["readlinkat(AT_FDCWD, \"/containers/nosuch\""]),
        ("Web1", &[]),
    ] {
        sh(format!("{trace} perl -e 'getpwnam(shift)' {name}")).ok();
        let made = fs::read_to_string("/tmp/second-name.trace").unwrap();
        assert_eq!(made.lines().count(), calls.len(), "{name}: {made}");
        assert!(made.lines().zip(calls).all(|(line, call)| line.contains(call)), "{name}: {made}");
    }
    let own = [libc::SYS_exit_group];
    let functions = module.by_second_name("web1");
    let ended = in_child(|| {
        filter(&[&LOOKUP[..], &SECOND_NAME, &own].concat(), libc::SECCOMP_RET_KILL_PROCESS);
        end(functions.iter().all(|function| roomy(function).status == SUCCESS))
    });
    assert_eq!(ended, 42);
    let unknown = module.by_second_name("nosuch");
    let ended = in_child(|| {
        filter(&[&SECOND_NAME[..], &own].concat(), libc::SECCOMP_RET_KILL_PROCESS);
        end(unknown.iter().all(|function| roomy(function).status == NOTFOUND))
    });
    assert_eq!(ended, 42, "a name in no database");
    let ended = in_child(|| {
        filter(&[&LOOKUP[..], &own].concat(), libc::SECCOMP_RET_KILL_PROCESS);
        end(roomy(&functions[0]).status == SUCCESS)
    });
    assert_eq!(ended, -libc::SIGSYS, "the witness: readlinkat is needed");
}

// A system that cannot tell

fn assert_unavailable(module: Module, errno: c_int) {
    for function in module.lookups() {
        let answer = roomy(&function);
        if ours(&function) {
            assert_eq!((answer.status, answer.errno), (UNAVAIL, errno), "{}", function.name);
        } else {
            assert_eq!(answer.status, SUCCESS, "{}", function.name);
        }
    }
    // Where the directory is missing, no link is there, and that is all that is asked.
    let by_name = if errno == libc::ENOENT { (NOTFOUND, errno) } else { (UNAVAIL, errno) };
    for function in module.by_second_name("web1") {
        let answer = roomy(&function);
        assert_eq!((answer.status, answer.errno), by_name, "{} of web1", function.name);
    }
    assert_eq!(module.initgroups("30001", 0), (NOTFOUND, libc::ENOENT, vec![]), "it does not ask the system");
}

#[test]
#[ignore = "needs the node: make test"]
fn without_descriptors_lookups_work_and_enumerations_say_so() {
    let module = Module::installed();
    let (lookups, enumerations) = (module.lookups(), module.enumerations());
    let ended = in_child(|| {
        module.rewind();
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel reads the limit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &none) }, 0);
        let found = lookups.iter().all(|function| roomy(function).status == SUCCESS);
        let answers: Vec<_> = enumerations.iter().map(roomy).collect();
        found && answers.iter().all(|answer| (answer.status, answer.errno) == (UNAVAIL, libc::EMFILE))
    });
    assert_eq!(ended, 0);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_missing_containers_directory_is_reported_as_unavailable() {
    let module = Module::installed();
    fs::rename("/containers", "/containers.away").unwrap();
    let _undo = Undo(|| fs::rename("/containers.away", "/containers").unwrap());
    module.rewind();
    assert_unavailable(module, libc::ENOENT);
    for function in module.enumerations() {
        let answer = roomy(&function);
        assert_eq!((answer.status, answer.errno), (UNAVAIL, libc::ENOENT), "{}", function.name);
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_directory_without_search_permission_is_reported_as_unavailable() {
    let module = Module::installed();
    fs::set_permissions("/containers", fs::Permissions::from_mode(0o700)).unwrap();
    let _undo = Undo(|| fs::set_permissions("/containers", fs::Permissions::from_mode(0o755)).unwrap());
    let ended = in_child(|| {
        // SAFETY: this process becomes alice.
        assert_eq!(unsafe { libc::setresuid(1000, 1000, 1000) }, 0);
        module.rewind();
        assert_unavailable(module, libc::EACCES);
        let answers: Vec<_> = module.enumerations().iter().map(roomy).collect();
        answers.iter().all(|answer| (answer.status, answer.errno) == (UNAVAIL, libc::EACCES))
    });
    assert_eq!(ended, 0);
}

#[test]
#[ignore = "needs the node: make test"]
fn eio_is_reported_as_unavailable() {
    let module = Module::installed();
    let ended = in_child(|| {
        module.rewind();
        let failing = [libc::SYS_newfstatat, libc::SYS_openat, libc::SYS_readlinkat];
        let all_but_stat_and_open: Vec<_> = (0..500).filter(|call| !failing.contains(call)).collect();
        filter(&all_but_stat_and_open, libc::SECCOMP_RET_ERRNO | libc::EIO as u32);
        assert_unavailable(module, libc::EIO);
        let answers: Vec<_> = module.enumerations().iter().map(roomy).collect();
        end(answers.iter().all(|answer| (answer.status, answer.errno) == (UNAVAIL, libc::EIO)))
    });
    assert_eq!(ended, 42);
    // Through glibc: getpwnam_r tells the error, and not that there is no such user.
    let ended = in_child(|| {
        assert_eq!(through_glibc("30001"), Some(30001));
        let all_but_stat: Vec<_> = (0..500).filter(|call| *call != libc::SYS_newfstatat).collect();
        filter(&all_but_stat, libc::SECCOMP_RET_ERRNO | libc::EIO as u32);
        let mut buffer = [0 as c_char; 1024];
        let mut found = null_mut();
        // SAFETY: all zeros is a passwd.
        let error = unsafe {
            let mut record: libc::passwd = std::mem::zeroed();
            libc::getpwnam_r(c"30001".as_ptr(), &mut record, buffer.as_mut_ptr(), buffer.len(), &mut found)
        };
        end(error == libc::EIO && found.is_null())
    });
    assert_eq!(ended, 42);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_directory_that_is_not_the_containers_own_is_none() {
    let module = Module::installed();
    let status = |uid: u32| {
        let answer = roomy(&module.getpwuid(uid));
        assert_eq!(answer, Answer { strings: answer.strings.clone(), ..roomy(&module.getpwnam(&uid.to_string())) });
        (answer.status, answer.errno)
    };
    let absent = (NOTFOUND, libc::ENOENT);
    let _cleanup = Undo(|| drop(sh("rm -rf /containers/3001? /containers/elsewhere")));

    assert_eq!(status(30010), absent, "nothing there");
    let container = Container::new(30010);
    assert_eq!(status(30010).0, SUCCESS, "the witness");
    chown(&container.0, Some(0), Some(30010)).unwrap();
    assert_eq!(status(30010), absent, "another owner");
    chown(&container.0, Some(30010), Some(0)).unwrap();
    assert_eq!(status(30010), absent, "another group");

    fs::write("/containers/30011", "").unwrap();
    chown("/containers/30011", Some(30011), Some(30011)).unwrap();
    assert_eq!(status(30011), absent, "a regular file");

    fs::create_dir("/containers/elsewhere").unwrap();
    chown("/containers/elsewhere", Some(30012), Some(30012)).unwrap();
    symlink("elsewhere", "/containers/30012").unwrap();
    assert_eq!(status(30012).0, SUCCESS, "a symlink of the operator's");
    symlink("nowhere", "/containers/30013").unwrap();
    assert_eq!(status(30013), absent, "a symlink to nothing");
    symlink("30014", "/containers/30014").unwrap();
    assert_eq!(status(30014), (UNAVAIL, libc::ELOOP), "a symlink to itself");

    for name in ["30001/", "30001/../30001", "30001/sub", "030001", "+30001", " 30001", "30001 ", "4294997297", ""] {
        assert_eq!(roomy(&module.getpwnam(name)).status, NOTFOUND, "{name:?}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_second_name_is_a_link_of_a_number_and_nothing_else() {
    let module = Module::installed();
    let answers = |name: &str| {
        let answers: Vec<_> = module.by_second_name(name).iter().map(roomy).collect();
        answers.iter().map(|answer| (answer.status, answer.errno)).collect::<Vec<_>>()
    };
    let (found, absent) = (vec![(SUCCESS, STALE); 2], vec![(NOTFOUND, libc::ENOENT); 2]);
    let _cleanup =
        Undo(|| drop(sh("rm -rf /containers/web1 /containers/loop /containers/30012 /containers/elsewhere")));
    {
        let _name = second_name("web1", "30001");
        assert_eq!(answers("web1"), found);
        let texts = roomy(&module.getpwnam("web1")).strings;
        let texts: Vec<_> = texts.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["web1", "x", "30001", "/containers/30001", "/bin/bash"]);
        assert_eq!(roomy(&module.getpwnam("30001")).texts()[0], "30001", "it keeps its own name");
        assert_eq!(module.initgroups("web1", 30001), (NOTFOUND, libc::ENOENT, vec![]));
    }
    assert_eq!(answers("web1"), absent);
    for target in [
        "./30001",
        "/containers/30001",
        "30001/",
        "030001",
        "30002",
        "1000",
        "0",
        "/etc",
        "web2",
        "web1",
        "30001 ",
        "3000100000000000000",
    ] {
        let _name = second_name("web1", target);
        assert_eq!(answers("web1"), absent, "{target:?}");
    }
    fs::create_dir("/containers/web1").unwrap();
    chown("/containers/web1", Some(30001), Some(30001)).unwrap();
    assert_eq!(answers("web1"), absent, "a directory");
    fs::remove_dir("/containers/web1").unwrap();
    fs::write("/containers/web1", "30001").unwrap();
    assert_eq!(answers("web1"), absent, "a file");
    fs::remove_file("/containers/web1").unwrap();

    let container = Container::new(30012);
    let _name = second_name("web1", "30012");
    assert_eq!(answers("web1"), found, "the witness");
    for (uid, gid) in [(0, 30012), (30012, 0), (30001, 30001)] {
        chown(&container.0, Some(uid), Some(gid)).unwrap();
        assert_eq!(answers("web1"), absent, "{uid}:{gid}");
    }
    drop(container);
    fs::create_dir("/containers/elsewhere").unwrap();
    chown("/containers/elsewhere", Some(30012), Some(30012)).unwrap();
    let _directory = second_name("30012", "elsewhere");
    assert_eq!(answers("web1"), found, "the container's directory may be a link, as ever");
    for name in ["Web1", "web1$", "web.1", "../containers/web1", "web1/", "-web1", "lost+found", ""] {
        assert_eq!(answers(name), absent, "{name:?}");
    }
}

// Enumeration

#[test]
#[ignore = "needs the node: make test"]
fn enumerations_are_complete_with_one_descriptor_and_no_memory() {
    const COUNT: u32 = 3000;
    let containers: Vec<_> = (31000..31000 + COUNT).map(Container::new).collect();
    let module = Module::installed();
    module.rewind();
    for next in module.enumerations() {
        let mut found = Vec::with_capacity(COUNT as usize + 10);
        let mut heap_before = 0;
        // The first round is for malloc's own caches.
        for round in 0..2 {
            found.clear();
            let descriptors_before = open_descriptors();
            let mut buffer = [0u8; 100];
            loop {
                let answer = (next.call)(buffer.as_mut_ptr().cast(), 1);
                if answer.status != TRYAGAIN {
                    assert_eq!((answer.status, answer.errno), (NOTFOUND, libc::ENOENT));
                    break;
                }
                let answer = (next.call)(buffer.as_mut_ptr().cast(), buffer.len());
                assert_eq!(answer.status, SUCCESS);
                found.push(answer.texts()[0].parse::<u32>().unwrap());
                assert!(open_descriptors() <= descriptors_before + 1);
            }
            assert_eq!(open_descriptors(), descriptors_before, "{}: closed at the end", next.name);
            if round == 1 {
                assert_eq!(heap(), heap_before, "{}: keeps memory", next.name);
            }
            heap_before = heap();
            module.rewind();
        }
        found.sort_unstable();
        assert_eq!(found, Vec::from_iter([30000, 30001].into_iter().chain(31000..31000 + COUNT)), "{}", next.name);
    }
    assert_eq!(containers.len(), COUNT as usize);
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The bytes that malloc has given out.
fn heap() -> usize {
    // SAFETY: a question.
    unsafe { libc::mallinfo2().uordblks }
}

// errno

#[test]
#[ignore = "needs the node: make test"]
fn a_success_leaves_every_errno_alone() {
    let module = Module::installed();
    static WITNESS: AtomicU32 = AtomicU32::new(0);
    module.rewind();
    let _name = second_name("web1", "30001");
    let functions = [module.lookups(), module.by_second_name("web1"), module.enumerations()].concat_functions();
    for function in functions {
        let mut buffer = [0u8; 512];
        // SAFETY: this thread's errno.
        unsafe { *libc::__errno_location() = STALE };
        let answer = (function.call)(buffer.as_mut_ptr().cast(), buffer.len());
        // SAFETY: as above.
        let errno = unsafe { *libc::__errno_location() };
        assert_eq!((answer.status, answer.errno, errno), (SUCCESS, STALE, STALE), "{}", function.name);
        assert!(!function.host || answer.h_errno == 0, "{}: h_errno is said", function.name);
        WITNESS.fetch_add(1, Ordering::Relaxed);
    }
    assert_eq!(WITNESS.load(Ordering::Relaxed), 18);
    module.rewind();
}
