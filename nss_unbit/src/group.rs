//! `30001:x:30001:`

use crate::abi::{Failure, Group};
use crate::buffer::Buffer;
use core::ptr::null_mut;
use shared::ContainerUid;

/// The group record of a container: nobody is a member but by primary gid.
pub fn record(container: ContainerUid, buffer: &mut Buffer) -> Result<Group, Failure> {
    Ok(Group {
        gr_name: buffer.string(container.name().as_bytes())?,
        gr_passwd: buffer.string(b"x")?,
        gr_gid: container.get(),
        gr_mem: buffer.value(null_mut())?,
    })
}
