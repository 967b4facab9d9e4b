//! The record of a user, `30001:x:30001:30001:30001:/containers/30001:/bin/bash`, made from the
//! number alone. Nothing is looked up here.

use crate::abi::{Failure, Passwd};
use crate::buffer::Buffer;
use crate::lookup::Account;
use core::ffi::c_char;
use shared::settings;

/// The passwd record of a container.
pub fn record(account: &Account, buffer: &mut Buffer) -> Result<Passwd, Failure> {
    let uid = account.container.get();
    Ok(Passwd {
        pw_name: buffer.string(account.home.padded_name())?,
        pw_passwd: buffer.string(*b"x")?,
        pw_uid: uid,
        pw_gid: uid,
        pw_gecos: buffer.string(account.home.padded_name())?, // a second copy, because callers modify gecos in place
        pw_dir: buffer.string(account.home.padded())?,
        pw_shell: buffer.string(settings::SHELL_BYTES)?,
    })
}

/// Gives the record a second name. Nothing else differs.
pub fn rename(record: &mut Passwd, name: *mut c_char) {
    record.pw_name = name;
}
