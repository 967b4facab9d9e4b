//! A libpam for tests that any user can run: its functions by their own names, and a transaction. A
//! test chooses the transaction's items, and reads its log and messages.
#![allow(unsafe_code)]

use super::{Cleanup, Conversation, Message, PAM_CONV, PAM_SERVICE, RawHandle, Response, code};
use join::refusal::{Reason, Refusal};
use shared::ContainerUid;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

/// A transaction. What the hooks leave in it is for the test to read.
pub struct Transaction {
    user: Option<CString>,
    service: CString,
    account: Option<libc::passwd>,
    conversation: Conversation,
    data: *mut c_void,
    cleanup: Option<Cleanup>,
    /// Priorities and lines of the log.
    pub log: Vec<(c_int, String)>,
    /// What the user was told.
    pub told: Vec<String>,
}

impl Transaction {
    /// Of this service, for a user; `account` is its uid and gid, where NSS has one.
    pub fn new(service: &str, user: Option<&str>, account: Option<(u32, u32)>) -> Self {
        let account = account.map(|(uid, gid)| {
            // SAFETY: numbers and pointers, for which zero is a value.
            let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
            (entry.pw_uid, entry.pw_gid) = (uid, gid);
            entry
        });
        Self {
            user: user.map(|user| CString::new(user).unwrap()),
            service: CString::new(service).unwrap(),
            account,
            conversation: Conversation { talk: Some(talk), appdata: ptr::null_mut() },
            data: ptr::null_mut(),
            cleanup: None,
            log: Vec::new(),
            told: Vec::new(),
        }
    }

    /// An application that shows nothing to anybody.
    pub fn without_conversation(mut self) -> Self {
        self.conversation.talk = None;
        self
    }

    /// What libpam passes to a hook.
    pub fn handle(&mut self) -> *mut RawHandle {
        self.conversation.appdata = ptr::from_mut(self).cast();
        self.conversation.appdata.cast()
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let handle = self.handle();
        if let Some(cleanup) = self.cleanup.take() {
            // SAFETY: pam_end does the same with what pam_set_data was given.
            unsafe { cleanup(handle, self.data, 0) };
        }
    }
}

thread_local! {
    static DIRECTORIES: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    static COUNTED: RefCell<Vec<(Option<u32>, Reason)>> = const { RefCell::new(Vec::new()) };
}

/// From now on this container has a directory of its own, as far as this test sees.
pub fn make_directory(container: u32) {
    DIRECTORIES.with_borrow_mut(|made| made.push(container));
}

/// In the place of the look at /containers, where only root can make one.
pub fn has_directory(container: ContainerUid) -> bool {
    DIRECTORIES.with_borrow(|made| made.contains(&container.get()))
}

/// In the place of the counters in the node's /run.
pub fn increment(container: Option<ContainerUid>, reason: Reason) -> Result<(), Refusal> {
    COUNTED.with_borrow_mut(|counted| counted.push((container.map(ContainerUid::get), reason)));
    Ok(())
}

/// The refusals that were counted since the last call.
pub fn counted() -> Vec<(Option<u32>, Reason)> {
    COUNTED.take()
}

/// # Safety
/// `handle` is that of a transaction which is alive and used by nobody else during the call, as in
/// libpam.
unsafe fn of<'a>(handle: *const RawHandle) -> &'a mut Transaction {
    // SAFETY: the caller's word.
    unsafe { &mut *handle.cast::<Transaction>().cast_mut() }
}

unsafe extern "C" fn talk(
    count: c_int,
    messages: *mut *const Message,
    answers: *mut *mut Response,
    appdata: *mut c_void,
) -> c_int {
    assert_eq!(count, 1);
    // SAFETY: the module's one message, and the transaction that `handle` has put there. Who takes
    // the answer frees it.
    unsafe {
        of(appdata.cast()).told.push(CStr::from_ptr((**messages).text).to_str().unwrap().to_owned());
        *answers = libc::calloc(1, size_of::<Response>()).cast();
    }
    code::SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pam_get_user(handle: *mut RawHandle, user: *mut *const c_char, _prompt: *const c_char) -> c_int {
    // SAFETY: as libpam has it.
    unsafe { *user = of(handle).user.as_ref().map_or(ptr::null(), |user| user.as_ptr()) };
    code::SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pam_get_item(handle: *const RawHandle, item: c_int, value: *mut *const c_void) -> c_int {
    // SAFETY: as libpam has it.
    unsafe {
        *value = match item {
            PAM_SERVICE => of(handle).service.as_ptr().cast(),
            PAM_CONV => ptr::from_ref(&of(handle).conversation).cast(),
            _ => ptr::null(),
        };
    }
    code::SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn pam_getenv(_handle: *mut RawHandle, _name: *const c_char) -> *const c_char {
    ptr::null()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pam_get_data(handle: *const RawHandle, _name: *const c_char, data: *mut *const c_void) -> c_int {
    // SAFETY: as libpam has it.
    unsafe { *data = of(handle).data };
    code::SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pam_set_data(
    handle: *mut RawHandle,
    _name: *const c_char,
    data: *mut c_void,
    cleanup: Option<Cleanup>,
) -> c_int {
    // SAFETY: as libpam has it: the value before is given back first.
    unsafe {
        if let Some(cleanup) = of(handle).cleanup.take() {
            cleanup(handle, of(handle).data, 0);
        }
        (of(handle).data, of(handle).cleanup) = (data, cleanup);
    }
    code::SUCCESS
}

/// With one argument for its format, which is always "%s". Where Linux has C's variable arguments,
/// a single pointer is passed like any other.
#[unsafe(no_mangle)]
unsafe extern "C" fn pam_syslog(handle: *const RawHandle, priority: c_int, format: *const c_char, line: *const c_char) {
    // SAFETY: as libpam has it.
    unsafe {
        assert_eq!(CStr::from_ptr(format), c"%s");
        of(handle).log.push((priority, CStr::from_ptr(line).to_str().unwrap().to_owned()));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pam_modutil_getpwnam(handle: *mut RawHandle, _user: *const c_char) -> *mut libc::passwd {
    // SAFETY: as libpam has it.
    unsafe { of(handle).account.as_mut().map_or(ptr::null_mut(), ptr::from_mut) }
}
