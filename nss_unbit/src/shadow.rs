//! The record of a locked password, `30001:!:::::::`, made from the number alone. Nothing is looked
//! up here.

use crate::abi::{Failure, Shadow};
use crate::buffer::Buffer;
use crate::lookup::Account;
use core::ffi::{c_char, c_long, c_ulong};

/// An empty field of a shadow line (nss/putspent.c writes them as nothing).
const EMPTY: c_long = -1;
const EMPTY_FLAG: c_ulong = c_ulong::MAX;

/// The shadow record of a container: its password is locked and never expires.
pub fn record(account: &Account, buffer: &mut Buffer) -> Result<Shadow, Failure> {
    Ok(Shadow {
        sp_namp: buffer.string(account.home.padded_name())?,
        sp_pwdp: buffer.string(*b"!")?,
        sp_lstchg: EMPTY,
        sp_min: EMPTY,
        sp_max: EMPTY,
        sp_warn: EMPTY,
        sp_inact: EMPTY,
        sp_expire: EMPTY,
        sp_flag: EMPTY_FLAG,
    })
}

/// Gives the record a second name.
pub fn rename(record: &mut Shadow, name: *mut c_char) {
    record.sp_namp = name;
}
