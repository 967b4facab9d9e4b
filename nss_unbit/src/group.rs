//! The record of a group, `30001:x:30001:`, made from the number alone. Nothing is looked up here.

use crate::abi::{Failure, Group};
use crate::buffer::Buffer;
use crate::lookup::Account;
use core::ptr::null_mut;

/// The group record of a container. It lists no members: the account has the group as its primary
/// one.
pub fn record(account: &Account, buffer: &mut Buffer) -> Result<Group, Failure> {
    Ok(Group {
        gr_name: buffer.string(account.home.padded_name())?,
        gr_passwd: buffer.string(*b"x")?,
        gr_gid: account.container.get(),
        gr_mem: buffer.value(null_mut())?,
    })
}
