//! libnss_unbit.so.2 by itself: its functions called as glibc calls them, but without glibc in
//! between.

use libc::{AF_INET, c_char, c_int, c_long, c_void};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::ptr::null_mut;

/// `enum nss_status` (nss.h).
pub const TRYAGAIN: c_int = -2;
/// This service cannot tell.
pub const UNAVAIL: c_int = -1;
/// This service knows that there is none.
pub const NOTFOUND: c_int = 0;
/// The record is filled in.
pub const SUCCESS: c_int = 1;

/// `NETDB_INTERNAL` (netdb.h): see errno.
pub const NETDB_INTERNAL: c_int = -1;

/// What an errno or h_errno is before a call, to see that it was left alone.
pub const STALE: c_int = 0x5a5a;

/// What a call came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `enum nss_status`.
    pub status: c_int,
    /// The errno, or [`STALE`].
    pub errno: c_int,
    /// The h_errno, or [`STALE`].
    pub h_errno: c_int,
    /// Each string of the record, and where it is.
    pub strings: Vec<(usize, String)>,
    /// The address of a host.
    pub address: Option<Ipv4Addr>,
    /// Each array and address of the record: where it is, how long, and how it must be aligned.
    pub arrays: Vec<(usize, usize, usize)>,
}

impl Answer {
    /// The strings without their places.
    pub fn texts(&self) -> Vec<&str> {
        self.strings.iter().map(|(_, text)| text.as_str()).collect()
    }

    fn string(&mut self, at: *const c_char) {
        // SAFETY: the module's promise: a string that ends.
        let text = unsafe { CStr::from_ptr(at) };
        self.strings.push((at as usize, text.to_string_lossy().into_owned()));
    }
}

/// A function of the module, with everything but the buffer.
pub struct Function {
    /// What glibc calls it.
    pub name: &'static str,
    /// Whether it says an h_errno.
    pub host: bool,
    /// Calls it with a buffer.
    pub call: Box<dyn Fn(*mut c_char, usize) -> Answer + Send + Sync>,
}

/// The struct gaih_addrtuple of nss.h.
#[repr(C)]
struct AddrTuple {
    next: *mut AddrTuple,
    name: *mut c_char,
    family: c_int,
    addr: [u32; 4],
    scopeid: u32,
}

/// The loaded module.
#[derive(Clone, Copy)]
pub struct Module(*mut c_void);

// SAFETY: a handle of dlopen's, which is never closed.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

type ByName<R> = unsafe extern "C" fn(*const c_char, *mut R, *mut c_char, usize, *mut c_int) -> c_int;
type ById<R> = unsafe extern "C" fn(u32, *mut R, *mut c_char, usize, *mut c_int) -> c_int;
type Next<R> = unsafe extern "C" fn(*mut R, *mut c_char, usize, *mut c_int) -> c_int;
type Groups =
    unsafe extern "C" fn(*const c_char, u32, *mut c_long, *mut c_long, *mut *mut u32, c_long, *mut c_int) -> c_int;
type Host =
    unsafe extern "C" fn(*const c_char, *mut libc::hostent, *mut c_char, usize, *mut c_int, *mut c_int) -> c_int;
type Host2 =
    unsafe extern "C" fn(*const c_char, c_int, *mut libc::hostent, *mut c_char, usize, *mut c_int, *mut c_int) -> c_int;
type Host3 = unsafe extern "C" fn(
    *const c_char,
    c_int,
    *mut libc::hostent,
    *mut c_char,
    usize,
    *mut c_int,
    *mut c_int,
    *mut i32,
    *mut *mut c_char,
) -> c_int;
type Host4 = unsafe extern "C" fn(
    *const c_char,
    *mut *mut AddrTuple,
    *mut c_char,
    usize,
    *mut c_int,
    *mut c_int,
    *mut i32,
) -> c_int;
type Reverse = unsafe extern "C" fn(
    *const c_void,
    u32,
    c_int,
    *mut libc::hostent,
    *mut c_char,
    usize,
    *mut c_int,
    *mut c_int,
    *mut i32,
) -> c_int;

trait Record: 'static {
    fn describe(&self, answer: &mut Answer);
}

impl Record for libc::passwd {
    fn describe(&self, answer: &mut Answer) {
        assert_eq!(self.pw_uid, self.pw_gid);
        for string in [self.pw_name, self.pw_passwd, self.pw_gecos, self.pw_dir, self.pw_shell] {
            answer.string(string);
        }
    }
}

impl Record for libc::group {
    fn describe(&self, answer: &mut Answer) {
        answer.string(self.gr_name);
        answer.string(self.gr_passwd);
        // SAFETY: the module's promise: an array that ends.
        assert!(unsafe { *self.gr_mem }.is_null());
        answer.arrays.push((self.gr_mem as usize, 8, 8));
    }
}

impl Record for libc::spwd {
    fn describe(&self, answer: &mut Answer) {
        answer.string(self.sp_namp);
        answer.string(self.sp_pwdp);
        assert_eq!([self.sp_lstchg, self.sp_min, self.sp_max, self.sp_warn, self.sp_inact, self.sp_expire], [-1; 6]);
    }
}

impl Record for libc::hostent {
    fn describe(&self, answer: &mut Answer) {
        assert_eq!((self.h_addrtype, self.h_length), (AF_INET, 4));
        answer.string(self.h_name);
        // SAFETY: the module's promise: two arrays that end, and an address.
        unsafe {
            assert!((*self.h_aliases).is_null());
            assert!((*self.h_addr_list.add(1)).is_null());
            let address = *self.h_addr_list;
            answer.address = Some(Ipv4Addr::from(*address.cast::<[u8; 4]>()));
            answer.arrays.extend([
                (self.h_aliases as usize, 8, 8),
                (self.h_addr_list as usize, 16, 8),
                (address as usize, 4, 4),
            ]);
        }
    }
}

/// Calls with a place for the record and the two errors.
fn answer<R: Record>(call: impl FnOnce(*mut R, *mut c_int, *mut c_int) -> c_int) -> Answer {
    let mut record = MaybeUninit::uninit();
    let mut answer = Answer { status: 0, errno: STALE, h_errno: STALE, strings: vec![], address: None, arrays: vec![] };
    answer.status = call(record.as_mut_ptr(), &mut answer.errno, &mut answer.h_errno);
    if answer.status == SUCCESS {
        // SAFETY: the module's promise: a success has filled it in.
        unsafe { record.assume_init() }.describe(&mut answer);
    }
    answer
}

impl Module {
    /// The one that glibc would load.
    pub fn installed() -> Self {
        Self::open("libnss_unbit.so.2")
    }

    /// The one in this file.
    pub fn open(file: &str) -> Self {
        let path = CString::new(file).unwrap();
        // SAFETY: a library without constructors.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{file} cannot be loaded");
        Self(handle)
    }

    /// Whether it has this function.
    pub fn has(self, name: &str) -> bool {
        let symbol = CString::new(format!("_nss_unbit_{name}")).unwrap();
        // SAFETY: the handle is good.
        !unsafe { libc::dlsym(self.0, symbol.as_ptr()) }.is_null()
    }

    /// A function of the module.
    ///
    /// # Safety
    /// `F` is the type of a pointer to it.
    pub unsafe fn function<F>(self, name: &str) -> F {
        let symbol = CString::new(format!("_nss_unbit_{name}")).unwrap();
        // SAFETY: the handle is good.
        let address = unsafe { libc::dlsym(self.0, symbol.as_ptr()) };
        assert!(!address.is_null(), "no {name}");
        assert_eq!(size_of::<F>(), size_of_val(&address));
        // SAFETY: the caller's promise.
        unsafe { std::mem::transmute_copy(&address) }
    }

    fn by_name<R: Record>(self, function: &'static str, name: impl AsRef<[u8]>) -> Function {
        let name = CString::new(name.as_ref()).unwrap();
        // SAFETY: here and below, the types are those of nss.h and the pointers are good for the
        // call.
        let call = unsafe { self.function::<ByName<R>>(function) };
        // SAFETY: as above.
        let call = move |b, l| answer(|r, e, _| unsafe { call(name.as_ptr(), r, b, l, e) });
        Function { name: function, host: false, call: Box::new(call) }
    }

    fn by_id<R: Record>(self, function: &'static str, id: u32) -> Function {
        // SAFETY: as above.
        let call = unsafe { self.function::<ById<R>>(function) };
        // SAFETY: as above.
        let call = move |b, l| answer(|r, e, _| unsafe { call(id, r, b, l, e) });
        Function { name: function, host: false, call: Box::new(call) }
    }

    fn next<R: Record>(self, function: &'static str) -> Function {
        // SAFETY: as above.
        let call = unsafe { self.function::<Next<R>>(function) };
        // SAFETY: as above.
        let call = move |b, l| answer(|r, e, _| unsafe { call(r, b, l, e) });
        Function { name: function, host: false, call: Box::new(call) }
    }

    /// `getpwnam_r` of this name.
    pub fn getpwnam(self, name: &str) -> Function {
        self.by_name::<libc::passwd>("getpwnam_r", name)
    }

    /// `getpwnam_r`, `getgrnam_r` and `getspnam_r` of this name.
    pub fn by_any_name(self, name: &[u8]) -> Vec<Function> {
        vec![
            self.by_name::<libc::passwd>("getpwnam_r", name),
            self.by_name::<libc::group>("getgrnam_r", name),
            self.by_name::<libc::spwd>("getspnam_r", name),
        ]
    }

    /// Every lookup of an account that takes a second name.
    pub fn by_second_name(self, name: &str) -> Vec<Function> {
        vec![self.by_name::<libc::passwd>("getpwnam_r", name), self.by_name::<libc::spwd>("getspnam_r", name)]
    }

    /// `getpwuid_r` of this uid.
    pub fn getpwuid(self, uid: u32) -> Function {
        self.by_id::<libc::passwd>("getpwuid_r", uid)
    }

    /// `gethostbyname2_r` of this name and family.
    pub fn gethostbyname2(self, name: impl AsRef<[u8]>, family: c_int) -> Function {
        let name = CString::new(name.as_ref()).unwrap();
        // SAFETY: as above.
        let call = unsafe { self.function::<Host2>("gethostbyname2_r") };
        // SAFETY: as above.
        let call = move |b, l| answer(|r, e, h| unsafe { call(name.as_ptr(), family, r, b, l, e, h) });
        Function { name: "gethostbyname2_r", host: true, call: Box::new(call) }
    }

    /// `gethostbyaddr2_r` of this address.
    pub fn gethostbyaddr(self, address: &[u8], family: c_int) -> Function {
        let address = address.to_owned();
        // SAFETY: as above.
        let call = unsafe { self.function::<Reverse>("gethostbyaddr2_r") };
        let call = move |b, l| {
            let (at, size) = (address.as_ptr().cast(), address.len() as u32);
            // SAFETY: as above.
            answer(|r, e, h| unsafe { call(at, size, family, r, b, l, e, h, null_mut()) })
        };
        Function { name: "gethostbyaddr2_r", host: true, call: Box::new(call) }
    }

    fn gethostbyname4(self, name: &'static CStr, in_place: bool) -> Function {
        // SAFETY: as above.
        let call = unsafe { self.function::<Host4>("gethostbyname4_r") };
        let call = move |b, l| {
            let mut first = MaybeUninit::<AddrTuple>::uninit();
            let mut list = if in_place { first.as_mut_ptr() } else { null_mut() };
            let mut answer =
                Answer { status: 0, errno: STALE, h_errno: STALE, strings: vec![], address: None, arrays: vec![] };
            // SAFETY: as above; a success has filled the tuple in.
            unsafe {
                answer.status =
                    call(name.as_ptr(), &mut list, b, l, &mut answer.errno, &mut answer.h_errno, null_mut());
                if answer.status == SUCCESS {
                    let tuple = &*list;
                    assert!(tuple.next.is_null());
                    assert_eq!((tuple.family, tuple.scopeid), (AF_INET, 0));
                    assert_eq!(tuple.addr[1..], [0; 3]);
                    answer.address = Some(Ipv4Addr::from(u32::from_be(tuple.addr[0])));
                    answer.string(tuple.name);
                    if !in_place {
                        answer.arrays.push((list as usize, size_of::<AddrTuple>(), 8));
                    }
                }
            }
            answer
        };
        Function { name: "gethostbyname4_r", host: true, call: Box::new(call) }
    }

    /// Every lookup there is, of container 30001.
    pub fn lookups(self) -> Vec<Function> {
        let name = c"30001.local";
        // SAFETY: as above.
        let (host, host3, reverse) = unsafe {
            (
                self.function::<Host>("gethostbyname_r"),
                self.function::<Host3>("gethostbyname3_r"),
                // one parameter more than it has does no harm to a C function
                self.function::<Reverse>("gethostbyaddr_r"),
            )
        };
        // SAFETY: as above.
        let host = move |b, l| answer(|r, e, h| unsafe { host(name.as_ptr(), r, b, l, e, h) });
        let host3 = move |b, l| {
            let mut canonical = null_mut();
            // SAFETY: as above.
            let answer =
                // SAFETY: as above.
                answer(|r, e, h| unsafe { host3(name.as_ptr(), AF_INET, r, b, l, e, h, null_mut(), &mut canonical) });
            assert_eq!(canonical as usize, answer.strings.first().map_or(0, |(at, _)| *at));
            answer
        };
        let reverse = move |b, l| {
            let address = [10u8, 0, 0, 3];
            // SAFETY: as above.
            answer(|r, e, h| unsafe { reverse(address.as_ptr().cast(), 4, AF_INET, r, b, l, e, h, null_mut()) })
        };
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 3];
        vec![
            self.getpwnam("30001"),
            self.getpwuid(30001),
            self.by_name::<libc::group>("getgrnam_r", "30001"),
            self.by_id::<libc::group>("getgrgid_r", 30001),
            self.by_name::<libc::spwd>("getspnam_r", "30001"),
            Function { name: "gethostbyname_r", host: true, call: Box::new(host) },
            self.gethostbyname2("30001.local", AF_INET),
            Function { name: "gethostbyname3_r", host: true, call: Box::new(host3) },
            self.gethostbyname4(name, false),
            self.gethostbyname4(name, true),
            Function { name: "gethostbyaddr_r", host: true, call: Box::new(reverse) },
            self.gethostbyaddr(&[10, 0, 0, 3], AF_INET),
            self.gethostbyaddr(&mapped, libc::AF_INET6),
        ]
    }

    /// The enumerations, wherever they are.
    pub fn enumerations(self) -> Vec<Function> {
        vec![
            self.next::<libc::passwd>("getpwent_r"),
            self.next::<libc::group>("getgrent_r"),
            self.next::<libc::spwd>("getspent_r"),
        ]
    }

    /// Sets the enumerations back to their start, with nothing open.
    pub fn rewind(self) {
        for database in ["pw", "gr", "sp"] {
            // SAFETY: as above.
            unsafe {
                self.function::<extern "C" fn() -> c_int>(&format!("end{database}ent"))();
                self.function::<extern "C" fn(c_int) -> c_int>(&format!("set{database}ent"))(0);
            }
        }
    }

    /// `initgroups_dyn` with an empty list: the status, the errno, and the groups.
    pub fn initgroups(self, name: &str, primary: u32) -> (c_int, c_int, Vec<u32>) {
        let name = CString::new(name).unwrap();
        let (mut start, mut size, mut errno) = (0, 1, STALE);
        // SAFETY: as above; the list is malloc's.
        unsafe {
            let call = self.function::<Groups>("initgroups_dyn");
            let mut list = libc::malloc(4).cast();
            let status = call(name.as_ptr(), primary, &mut start, &mut size, &mut list, -1, &mut errno);
            let groups = std::slice::from_raw_parts(list, start as usize).to_vec();
            libc::free(list.cast());
            (status, errno, groups)
        }
    }
}

/// Calls with a buffer that is large enough for all.
pub fn roomy(function: &Function) -> Answer {
    let mut buffer = [0u8; 512];
    (function.call)(buffer.as_mut_ptr().cast(), buffer.len())
}

/// Memory with a page behind it that must not be touched.
pub struct Guarded {
    start: *mut u8,
    length: usize,
}

const PAGE: usize = 4096;

impl Guarded {
    /// One page, and the guard.
    pub fn page() -> Self {
        // SAFETY: memory of our own.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let start = libc::mmap(null_mut(), 2 * PAGE, protection, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(start.add(PAGE), PAGE, libc::PROT_NONE), 0);
            Self { start: start.cast(), length: PAGE }
        }
    }

    /// The memory.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped, and borrowed with us.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: mapped by us.
        unsafe { libc::munmap(self.start.cast(), 2 * PAGE) };
    }
}

/// Does something in a process of its own, and tells how that ended: its exit status, or minus its
/// signal.
pub fn in_child(what: impl FnOnce() -> bool) -> c_int {
    let mut status = 0;
    // SAFETY: the child does as the test says, and ends.
    unsafe {
        let child = libc::fork();
        assert_ne!(child, -1);
        if child == 0 {
            libc::alarm(60);
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
            libc::exit(match done {
                Ok(true) => 0,
                Ok(false) => 1,
                Err(_) => 2,
            });
        }
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
    }
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
}
