//! The record of a group, `30001:x:30001:`, put together from a number alone: nothing is looked up here.

use crate::abi::{Failure, Group};
use crate::buffer::Buffer;
use crate::lookup::Account;
use core::ptr::null_mut;

/// The group record of a container: nobody is a member but by primary gid.
pub fn record(account: &Account, buffer: &mut Buffer) -> Result<Group, Failure> {
    Ok(Group {
        gr_name: buffer.string(account.home.padded_name())?,
        gr_passwd: buffer.string(*b"x")?,
        gr_gid: account.container.get(),
        gr_mem: buffer.value(null_mut())?,
    })
}
