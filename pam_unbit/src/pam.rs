//! Bindings for the functions of Linux-PAM that this module calls: pam_modules(3), pam_ext(3),
//! pam_modutil(3), pam_conv(3).
//!
//! Nothing is decided here.
#![allow(unsafe_code)]

use shared::escape;
use std::any::Any;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};

#[cfg(test)]
pub mod fake;

/// Return values of `_pam_types.h`.
pub mod code {
    use std::ffi::c_int;
    pub const SUCCESS: c_int = 0;
    pub const PERM_DENIED: c_int = 6;
    pub const SESSION_ERR: c_int = 14;
    pub const CRED_ERR: c_int = 17;
    pub const IGNORE: c_int = 25;
    pub const ABORT: c_int = 26;
}

/// Flags of `_pam_types.h`.
pub mod flag {
    use std::ffi::c_int;
    pub const DELETE_CRED: c_int = 0x4;
    pub const SILENT: c_int = 0x8000;
}

const PAM_SERVICE: c_int = 1;
const PAM_TTY: c_int = 3;
const PAM_RHOST: c_int = 4;
const PAM_CONV: c_int = 5;
const PAM_ERROR_MSG: c_int = 3;

#[repr(C)]
struct Message {
    style: c_int,
    text: *const c_char,
}

#[repr(C)]
struct Response {
    text: *mut c_char,
    code: c_int,
}

#[repr(C)]
struct Conversation {
    talk: Option<unsafe extern "C" fn(c_int, *mut *const Message, *mut *mut Response, *mut c_void) -> c_int>,
    appdata: *mut c_void,
}

/// Linux-PAM's handle, which is opaque to a module.
#[repr(C)]
pub struct RawHandle {
    _private: [u8; 0],
}

type Cleanup = unsafe extern "C" fn(*mut RawHandle, *mut c_void, c_int);

unsafe extern "C" {
    fn pam_get_user(pamh: *mut RawHandle, user: *mut *const c_char, prompt: *const c_char) -> c_int;
    fn pam_get_item(pamh: *const RawHandle, item: c_int, value: *mut *const c_void) -> c_int;
    fn pam_getenv(pamh: *mut RawHandle, name: *const c_char) -> *const c_char;
    fn pam_get_data(pamh: *const RawHandle, name: *const c_char, data: *mut *const c_void) -> c_int;
    fn pam_set_data(pamh: *mut RawHandle, name: *const c_char, data: *mut c_void, cleanup: Option<Cleanup>) -> c_int;
    fn pam_syslog(pamh: *const RawHandle, priority: c_int, format: *const c_char, ...);
    fn pam_modutil_getpwnam(pamh: *mut RawHandle, user: *const c_char) -> *mut libc::passwd;
}

/// The fields of a passwd entry that this module uses.
pub struct Passwd {
    pub uid: u32,
    pub gid: u32,
}

/// The handle of one PAM transaction, for the time of one call.
pub struct Handle(NonNull<RawHandle>);

impl Handle {
    /// # Safety
    /// `raw` is null or the handle that libpam has passed to the running hook, is used only until
    /// that hook returns, and by this value alone.
    pub unsafe fn new(raw: *mut RawHandle) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// PAM_USER.
    pub fn user(&self) -> Option<&CStr> {
        let mut user = ptr::null();
        // SAFETY: the handle is valid (see `new`).
        match unsafe { pam_get_user(self.0.as_ptr(), &mut user, ptr::null()) } {
            // SAFETY: PAM_USER lives until it is set anew, which nobody does in a hook.
            code::SUCCESS if !user.is_null() => Some(unsafe { borrowed(user) }),
            _ => None,
        }
    }

    /// PAM_SERVICE: the name of the file in /etc/pam.d.
    pub fn service(&self) -> Option<&CStr> {
        let service = self.item(PAM_SERVICE)?;
        // SAFETY: PAM_SERVICE is a string and lives until it is set anew, which nobody does in a
        // hook.
        Some(unsafe { borrowed(service.as_ptr().cast()) })
    }

    /// PAM_RHOST: the client's address, or its host name if sshd looks names up (`UseDNS yes`).
    pub fn remote_host(&self) -> Option<&CStr> {
        let host = self.item(PAM_RHOST)?;
        // SAFETY: PAM_RHOST is a string and lives until it is set anew, which nobody does in a
        // hook.
        Some(unsafe { borrowed(host.as_ptr().cast()) })
    }

    /// PAM_TTY: the terminal of a user of su or login; sshd sets "ssh", cron "cron".
    pub fn terminal(&self) -> Option<&CStr> {
        let terminal = self.item(PAM_TTY)?;
        // SAFETY: PAM_TTY is a string and lives until it is set anew, which nobody does in a hook.
        Some(unsafe { borrowed(terminal.as_ptr().cast()) })
    }

    /// A variable of the PAM environment, pam_getenv(3). The application and every module before
    /// this one can set it.
    pub fn environment(&self, name: &CStr) -> Option<&CStr> {
        // SAFETY: the handle and the name are valid.
        let value = unsafe { pam_getenv(self.0.as_ptr(), name.as_ptr()) };
        // SAFETY: libpam's string lives until the environment changes, and nothing of this module
        // changes it.
        (!value.is_null()).then(|| unsafe { borrowed(value) })
    }

    fn item(&self, item: c_int) -> Option<NonNull<c_void>> {
        let mut value = ptr::null();
        // SAFETY: the handle is valid; libpam writes one pointer.
        match unsafe { pam_get_item(self.0.as_ptr(), item, &mut value) } {
            code::SUCCESS => NonNull::new(value.cast_mut()),
            _ => None,
        }
    }

    /// The passwd entry of an account, as NSS has it.
    pub fn passwd(&self, name: &CStr) -> Option<Passwd> {
        // SAFETY: both pointers are valid; the entry belongs to the handle and is read at once.
        let entry = unsafe { pam_modutil_getpwnam(self.0.as_ptr(), name.as_ptr()).as_ref() }?;
        Some(Passwd { uid: entry.pw_uid, gid: entry.pw_gid })
    }

    /// Logs one line with the usual prefix of PAM, pam_syslog(3): `pam_unbit(sshd:session): `.
    pub fn log(&self, priority: c_int, line: &str) {
        let line = printable(line);
        // SAFETY: the handle is valid; the constant format takes one string.
        unsafe { pam_syslog(self.0.as_ptr(), priority, c"%s".as_ptr(), line.as_ptr()) };
    }

    /// Shows one sentence to the user, if the application has a conversation function.
    pub fn show_error(&self, sentence: &str) {
        let Some(conversation) = self.item(PAM_CONV) else { return };
        // SAFETY: the item of this number is a struct pam_conv, and lives until it is set anew.
        let conversation: &Conversation = unsafe { conversation.cast().as_ref() };
        let Some(talk) = conversation.talk else { return };
        let sentence = printable(sentence);
        let message = Message { style: PAM_ERROR_MSG, text: sentence.as_ptr() };
        let (mut messages, mut response) = (ptr::from_ref(&message), ptr::null_mut::<Response>());
        // SAFETY: the application's own function, with one message, room for one answer, and the
        // application's own data.
        let answer = unsafe { talk(1, &mut messages, &mut response, conversation.appdata) };
        if answer == code::SUCCESS && !response.is_null() {
            // SAFETY: on success the application hands over one response, made with malloc, and its
            // text if there is one.
            unsafe {
                libc::free((*response).text.cast());
                libc::free(response.cast());
            }
        }
    }

    /// Keeps a value with the transaction, and drops the one before. False if libpam has no memory
    /// for it.
    pub fn set_data<T: 'static>(&mut self, value: T) -> bool {
        let value: *mut Kept = Box::into_raw(Box::new(Box::new(value)));
        // SAFETY: the handle is valid; from here on the box is libpam's, which gives it to
        // `cleanup` once.
        let answer = unsafe { pam_set_data(self.0.as_ptr(), DATA.as_ptr(), value.cast(), Some(cleanup)) };
        if answer != code::SUCCESS {
            // SAFETY: libpam did not take the box, so it is ours again.
            drop(unsafe { Box::from_raw(value) });
        }
        answer == code::SUCCESS
    }

    /// The value that [`Self::set_data`] keeps, if it is of this type.
    pub fn get_data<T: 'static>(&self) -> Option<&T> {
        let mut value = ptr::null();
        // SAFETY: the handle is valid; libpam writes one pointer.
        match unsafe { pam_get_data(self.0.as_ptr(), DATA.as_ptr(), &mut value) } {
            // SAFETY: under this name there is only ever the box of `set_data`, alive until it is
            // replaced or the transaction ends.
            code::SUCCESS => unsafe { value.cast::<Kept>().as_ref() }?.downcast_ref(),
            _ => None,
        }
    }
}

type Kept = Box<dyn Any>;

const DATA: &CStr = c"pam_unbit";

unsafe extern "C" fn cleanup(_: *mut RawHandle, value: *mut c_void, _: c_int) {
    if !value.is_null() {
        // SAFETY: the box of `set_data`, which libpam gives back once.
        drop(unsafe { Box::from_raw(value.cast::<Kept>()) });
    }
}

/// # Safety
/// `text` is a string of libpam's, which ends with NUL and lives as long as the handle that the
/// caller borrows.
unsafe fn borrowed<'a>(text: *const c_char) -> &'a CStr {
    // SAFETY: the caller's word.
    unsafe { CStr::from_ptr(text) }
}

/// One line of text for C, in which nothing can forge a second line.
pub fn printable(text: &str) -> CString {
    CString::new(escape::line(text).to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(printable("a\nb\0c\x1b[2J\u{202e}"), c"a\\u{a}b\\u{0}c\\u{1b}[2J\\u{202e}".to_owned());
    }
}
