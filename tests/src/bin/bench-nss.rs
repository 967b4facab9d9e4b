//! What the NSS module costs, on a node: `make bench [AGAINST=other.so]`.
//!
//! Ratios, not times, wherever there is something to compare with in the same run: a bare `stat`, a
//! library with one function, a loop over the directory. Every figure is the median of many rounds,
//! and those that are compared take turns.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use libc::{c_char, c_int, c_long};
use std::ffi::{CStr, CString};
use std::fs;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::os::unix::fs::chown;
use std::process::Command;
use std::ptr::null_mut;
use std::time::Instant;
use unbit_tests::nss::{Module, SUCCESS};
use unbit_tests::second_name;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["load", file] => load(file),
        ["lookup", services, name] => lookup(services, name),
        ["groups", services, name] => groups(services, name),
        ["call", file, function, key] => call(file, function, key),
        ["instructions", module] => {
            let _name = second_name("web1", "30001");
            for lookup in LOOKUPS {
                println!("{} {}", instructions(module, &lookup)?, lookup.join(" "));
            }
            Ok(())
        }
        [module, floor] => report(floor, &[("this module", module)]),
        [module, floor, against] => report(floor, &[("this module", module), ("AGAINST", against)]),
        _ => Err("usage: bench-nss MODULE.so ONE-FUNCTION.so [AGAINST.so]".into()),
    }
}

fn report(floor: &str, files: &[(&str, &str)]) -> Result {
    let name = second_name("web1", "30001");
    report_lookups(files);
    report_instructions(files)?;
    drop(name);
    report_loading(floor, files)?;
    report_enumeration(Module::open(files[0].1))?;
    report_through_glibc()
}

// A lookup

type ByName = unsafe extern "C" fn(*const c_char, *mut Record, *mut c_char, usize, *mut c_int) -> c_int;
type ById = unsafe extern "C" fn(u32, *mut Record, *mut c_char, usize, *mut c_int) -> c_int;
type Next = unsafe extern "C" fn(*mut Record, *mut c_char, usize, *mut c_int) -> c_int;
type Reverse =
    unsafe extern "C" fn(*const u8, u32, c_int, *mut Record, *mut c_char, usize, *mut c_int, *mut c_int) -> c_int;

/// Room for any of the structs.
type Record = MaybeUninit<[u64; 16]>;

/// Something to be timed, that says whether it worked.
type Timed = Box<dyn Fn() -> bool>;

/// Calls with a record, a buffer and an errno.
fn called(call: impl FnOnce(*mut Record, *mut c_char, usize, *mut c_int) -> c_int) -> bool {
    let (mut record, mut buffer, mut errno) = (Record::uninit(), [MaybeUninit::<c_char>::uninit(); 256], 0);
    black_box(call(&mut record, buffer.as_mut_ptr().cast(), buffer.len(), &mut errno)) == SUCCESS
}

/// A function of the module, if it has it.
fn function<F>(module: Module, name: &str) -> Option<F> {
    // SAFETY: the types above are those of nss.h.
    module.has(name).then(|| unsafe { module.function(name) })
}

fn by_name(module: Module, name: &str, key: &'static CStr) -> Option<Timed> {
    let call = function::<ByName>(module, name)?;
    // SAFETY: the pointers are good for the call, here and below.
    Some(Box::new(move || called(|r, b, l, e| unsafe { call(black_box(key.as_ptr()), r, b, l, e) })))
}

fn by_id(module: Module, name: &str, id: u32) -> Option<Timed> {
    let call = function::<ById>(module, name)?;
    // SAFETY: as above.
    Some(Box::new(move || called(|r, b, l, e| unsafe { call(black_box(id), r, b, l, e) })))
}

fn by_address(module: Module) -> Option<Timed> {
    let call = function::<Reverse>(module, "gethostbyaddr_r")?;
    let address = [10, 0, 0, 3];
    let once = move |r, b, l, e| {
        let mut h_errno = 0;
        // SAFETY: as above.
        unsafe { call(black_box(address.as_ptr()), 4, libc::AF_INET, r, b, l, e, &mut h_errno) }
    };
    Some(Box::new(move || called(once)))
}

fn report_lookups(files: &[(&str, &str)]) {
    println!("A lookup of container 30001, as a ratio to a bare stat of its home\n");
    println!("| | {} |", files.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---|".repeat(files.len()));
    let modules: Vec<_> = files.iter().map(|(_, file)| Module::open(file)).collect();
    let row = |name: &str, cell: &dyn Fn(Module) -> String| {
        println!("| {name} | {} |", modules.iter().map(|module| cell(*module)).collect::<Vec<_>>().join(" | "));
    };
    for name in ["getpwnam_r", "getgrnam_r", "getspnam_r"] {
        row(name, &|module| ratio_to_stat(by_name(module, name, c"30001")));
    }
    for name in ["getpwuid_r", "getgrgid_r"] {
        row(name, &|module| ratio_to_stat(by_id(module, name, 30001)));
    }
    row("gethostbyaddr_r", &|module| ratio_to_stat(by_address(module)));
    row("getpwnam_r of web1 -> 30001, to a bare readlink and stat", &|module| {
        let both = || bare_readlink(c"/containers/web1") && bare_stat();
        ratio_to(&both, by_name(module, "getpwnam_r", c"web1"), true)
    });
    row("getpwnam_r of a name in no database, to a bare readlink", &|module| {
        let bare = || !bare_readlink(c"/containers/nosuch");
        ratio_to(&bare, by_name(module, "getpwnam_r", c"nosuch"), false)
    });
    let through_glibc = ratio_to_stat(Some(Box::new(|| getpwuid(30001))));
    println!("\ngetpwuid_r of 30001 through glibc, `passwd: files unbit`: {through_glibc}\n");
}

/// The two take turns, so that whatever slows the machine down slows both.
fn ratio_to_stat(what: Option<Timed>) -> String {
    ratio_to(&bare_stat, what, true)
}

fn ratio_to(bare: &dyn Fn() -> bool, what: Option<Timed>, finds: bool) -> String {
    let Some(what) = what else { return "-".to_owned() };
    if !bare() || what() != finds {
        return "fails".to_owned();
    }
    let ratio = median(400, || {
        let before = time(500, bare);
        let ours = time(500, &what);
        2.0 * ours / (before + time(500, bare))
    });
    format!("{ratio:.2}")
}

// Instructions

/// The lookups that `tests/weight` keeps at what they cost: a function and what it is asked for.
const LOOKUPS: [[&str; 2]; 5] = [
    ["getpwuid_r", "30001"],
    ["getpwnam_r", "30001"],
    ["getpwnam_r", "web1"],
    ["getpwnam_r", "nosuch"],
    ["getgrnam_r", "root"],
];

/// Names of no account.
const STRANGERS: [&str; 2] = ["nosuch", "root"];

/// A number that is the same on every machine, busy or not.
fn report_instructions(files: &[(&str, &str)]) -> Result {
    println!(
        "Instructions of a lookup outside the kernel, in the module's function and what it calls (a bare stat has 22; nosuch is in no database)\n"
    );
    println!("| | {} |", files.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---|".repeat(files.len()));
    for lookup in LOOKUPS {
        let counts = files.iter().map(|(_, file)| instructions(file, &lookup));
        println!("| {} | {} |", lookup.join(" of "), counts.collect::<Result<Vec<_>>>()?.join(" | "));
    }
    println!();
    Ok(())
}

/// What callgrind collects from the entry into the function to its return, in a process that calls
/// it once.
fn instructions(file: &str, [function, key]: &[&str; 2]) -> Result<String> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(format!("--toggle-collect=_nss_*_{function}"));
    let done = valgrind.arg(std::env::current_exe()?).args(["call", file, function, key]).output()?;
    let told = String::from_utf8_lossy(&done.stderr);
    let collected = told.lines().find_map(|line| line.split_once("Collected : "));
    match collected {
        Some((_, count)) if done.status.success() => Ok(count.trim().to_owned()),
        _ => Err(format!("{valgrind:?}: {}: {told}", done.status).into()),
    }
}

/// One call, with what it must answer: 30001 is here, and web1 is a second name of it; root and
/// nosuch are nobody's.
fn call(file: &str, name: &str, key: &str) -> Result {
    let module = Module::open(file);
    let key_as_text = CString::new(key)?;
    let missing = || format!("{file} has no {name}");
    let found = if name == "getpwuid_r" {
        let (ask, id) = (function::<ById>(module, name).ok_or_else(missing)?, key.parse()?);
        // SAFETY: the pointers are good for the call, here and below.
        called(|record, buffer, length, errno| unsafe { ask(id, record, buffer, length, errno) })
    } else {
        let ask = function::<ByName>(module, name).ok_or_else(missing)?;
        // SAFETY: as above.
        called(|record, buffer, length, errno| unsafe { ask(key_as_text.as_ptr(), record, buffer, length, errno) })
    };
    if found != STRANGERS.contains(&key) { Ok(()) } else { Err(format!("{name} of {key}: found is {found}").into()) }
}

fn bare_stat() -> bool {
    let mut found = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: room for the answer.
    black_box(unsafe { libc::stat(black_box(c"/containers/30001".as_ptr()), found.as_mut_ptr()) }) == 0
}

fn bare_readlink(path: &CStr) -> bool {
    let mut text = [MaybeUninit::<c_char>::uninit(); 16];
    // SAFETY: room for the text.
    black_box(unsafe { libc::readlink(black_box(path.as_ptr()), text.as_mut_ptr().cast(), text.len()) }) > 0
}

fn getpwuid(uid: u32) -> bool {
    let (mut record, mut buffer, mut found) =
        (MaybeUninit::uninit(), [MaybeUninit::<c_char>::uninit(); 512], null_mut());
    // SAFETY: room for the record.
    unsafe { libc::getpwuid_r(uid, record.as_mut_ptr(), buffer.as_mut_ptr().cast(), buffer.len(), &mut found) };
    !found.is_null()
}

// Loading

fn report_loading(floor: &str, files: &[(&str, &str)]) -> Result {
    println!("Loading it in a fresh process\n");
    println!("| | dlopen, ratio | page faults |\n|---|---|---|");
    let mut rows = vec![("a library of one function", floor)];
    rows.extend(files);
    let mut samples = vec![(vec![], vec![]); rows.len()];
    for _ in 0..500 {
        for ((_, file), (times, faults)) in rows.iter().zip(&mut samples) {
            let told = ask(&["load", file])?;
            let (time, fault) = told.split_once(' ').ok_or("load")?;
            times.push(time.parse::<f64>()?);
            faults.push(fault.parse::<f64>()?);
        }
    }
    let medians: Vec<_> = samples.into_iter().map(|(times, faults)| (middle(times), middle(faults))).collect();
    for ((name, _), (time, faults)) in rows.iter().zip(&medians) {
        println!("| {name} | {:.2} | {faults} |", time / medians[0].0);
    }
    println!();
    Ok(())
}

/// What dlopen costs here and now: nanoseconds, and minor page faults.
fn load(file: &str) -> Result {
    let path = CString::new(file)?;
    let faults = || {
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: room for the answer.
        unsafe {
            libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
            usage.assume_init().ru_minflt
        }
    };
    // SAFETY: libraries that are there to be loaded; a name that is nowhere warms up the dynamic
    // linker.
    unsafe {
        libc::dlopen(c"/nonexistent".as_ptr(), libc::RTLD_NOW);
        black_box((faults(), Instant::now().elapsed()));
        let (faults_before, start) = (faults(), Instant::now());
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        let time = start.elapsed().as_nanos();
        if handle.is_null() {
            return Err(format!("{file} cannot be loaded").into());
        }
        println!("{time} {}", faults() - faults_before);
    }
    Ok(())
}

// Enumeration

fn report_enumeration(module: Module) -> Result {
    println!("Enumeration of N containers, next to a bare loop of getdents and fstatat\n");
    println!("| N | ns per entry | ratio | descriptors | heap |\n|---|---|---|---|---|");
    let next = function::<Next>(module, "getpwent_r").ok_or("no getpwent_r")?;
    let mut made = 2;
    for count in [100, 10_000, 100_000] {
        while made < count {
            make_container(30_000 + made)?;
            made += 1;
        }
        let rounds = (1_000_000 / count as usize).clamp(9, 499);
        let (mut bare, mut ours, mut heap, mut descriptors) = (vec![], vec![], 0, 0);
        for _ in 0..rounds {
            let (time, entries) = bare_loop();
            bare.push(time / entries);
            module.rewind();
            let (heap_before, descriptors_before) = (heap_in_use(), open_descriptors());
            let mut entries = 0.0;
            let start = Instant::now();
            // SAFETY: as above.
            while called(|r, b, l, e| unsafe { next(r, b, l, e) }) {
                entries += 1.0;
                if entries == 50.0 && ours.is_empty() {
                    heap = heap.max(heap_in_use() - heap_before);
                    descriptors = open_descriptors() - descriptors_before;
                }
            }
            ours.push(start.elapsed().as_nanos() as f64 / entries);
        }
        let (bare, ours) = (middle(bare), middle(ours));
        println!("| {count} | {ours:.0} | {:.2} | {descriptors} | {heap} bytes |", ours / bare);
    }
    println!();
    Ok(())
}

fn make_container(uid: u32) -> Result {
    let home = format!("/containers/{uid}");
    fs::create_dir_all(&home)?;
    Ok(chown(&home, Some(uid), Some(uid))?)
}

/// Nanoseconds and entries of the least that a walk can do.
fn bare_loop() -> (f64, f64) {
    let start = Instant::now();
    let mut entries = 0.0;
    let mut buffer = [0u64; 4096];
    // SAFETY: the kernel fills the buffer with whole entries (getdents(2)), and `found`.
    unsafe {
        let directory = libc::open(c"/containers".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY);
        loop {
            let filled = libc::syscall(libc::SYS_getdents64, directory, buffer.as_mut_ptr(), size_of_val(&buffer));
            let mut at = 0;
            while at < filled {
                let entry = &*buffer.as_ptr().cast::<u8>().offset(at as isize).cast::<libc::dirent64>();
                let mut found = MaybeUninit::<libc::stat>::uninit();
                if libc::fstatat(directory, entry.d_name.as_ptr(), found.as_mut_ptr(), 0) == 0
                    && entry.d_name[0] != b'.' as c_char
                {
                    entries += 1.0;
                }
                at += c_long::from(entry.d_reclen);
            }
            if filled <= 0 {
                break;
            }
        }
        libc::close(directory);
    }
    (start.elapsed().as_nanos() as f64, entries)
}

/// The bytes that malloc has given out.
fn heap_in_use() -> usize {
    // SAFETY: a question.
    unsafe { libc::mallinfo2().uordblks }
}

fn open_descriptors() -> usize {
    // SAFETY: a question.
    (0..1024).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1).count()
}

// Through glibc

unsafe extern "C" {
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// The containers are those of the enumeration.
fn report_through_glibc() -> Result {
    println!("The last of N accounts by name, and a container's list of groups, through glibc, in us\n");
    println!("| N | files | extrausers | unbit | unbit, absent | groups by `files unbit` |\n|---|---|---|---|---|---|");
    let passwd = fs::read_to_string("/etc/passwd")?;
    for count in [100, 1_000, 10_000, 100_000] {
        let lines: String = (0..count).map(|i| format!("u{i}:x:{0}:{0}::/:/bin/sh\n", 200_000 + i)).collect();
        let last = format!("u{}", count - 1);
        fs::create_dir_all("/var/lib/extrausers")?;
        fs::write("/var/lib/extrausers/passwd", &lines)?;
        let extrausers = ask(&["lookup", "extrausers", &last])?;
        fs::write("/etc/passwd", format!("{passwd}{lines}"))?;
        let files = ask(&["lookup", "files", &last])?;
        fs::write("/etc/passwd", &passwd)?;
        let unbit = ask(&["lookup", "unbit", &(30_000 + count - 1).to_string()])?;
        let absent = ask(&["lookup", "unbit", "29000000"])?;
        let groups = ask(&["groups", "files unbit", "30001"])?;
        println!("| {count} | {files} | {extrausers} | {unbit} | {absent} | {groups} |");
    }
    Ok(())
}

fn configure(database: &CStr, services: &str) -> Result {
    let services = CString::new(services)?;
    // SAFETY: two strings, before any lookup of this process.
    let status = unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    if status == 0 { Ok(()) } else { Err("no such services".into()) }
}

/// Microseconds for a lookup by these services.
fn lookup(services: &str, name: &str) -> Result {
    configure(c"passwd", services)?;
    let key = CString::new(name)?;
    let once = || {
        let (mut record, mut buffer, mut found) = (MaybeUninit::uninit(), [0 as c_char; 512], null_mut());
        // SAFETY: room for the record.
        unsafe { libc::getpwnam_r(key.as_ptr(), record.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found) };
        !found.is_null()
    };
    if once() != (name != "29000000") {
        return Err(format!("{name} by {services}").into());
    }
    let count = (2e7 / time(1, &once)).clamp(1.0, 1000.0) as u32; // about 20 ms a round
    println!("{:.2}", median(25, || time(count, &once)) / 1000.0);
    Ok(())
}

/// Microseconds for the groups of a login.
fn groups(services: &str, name: &str) -> Result {
    configure(c"group", services)?;
    let (name, primary) = (CString::new(name)?, name.parse::<u32>()?);
    let once = || {
        let (mut list, mut count) = ([0; 64], 64);
        // SAFETY: room for `count` groups.
        unsafe { libc::getgrouplist(name.as_ptr(), primary, list.as_mut_ptr(), &mut count) == 1 }
    };
    if !once() {
        return Err("getgrouplist".into());
    }
    println!("{:.2}", median(25, || time(200, &once)) / 1000.0);
    Ok(())
}

// Measuring

/// The output of this program with these arguments; a dash if it has none to give.
fn ask(arguments: &[&str]) -> Result<String> {
    let done = Command::new(std::env::current_exe()?).args(arguments).output()?;
    Ok(if done.status.success() { String::from_utf8(done.stdout)?.trim().to_owned() } else { "-".to_owned() })
}

/// Nanoseconds for one of `count` times.
fn time(count: u32, what: &dyn Fn() -> bool) -> f64 {
    let start = Instant::now();
    for _ in 0..count {
        black_box(what());
    }
    start.elapsed().as_nanos() as f64 / f64::from(count)
}

fn median(rounds: usize, sample: impl Fn() -> f64) -> f64 {
    middle((0..rounds).map(|_| sample()).collect())
}

fn middle(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
