//! The groups of an account: what a login asks for.
//!
//! Without this glibc would walk /containers at each login, to look for the account among the members of each group
//! (nss/initgroups.c, `compat_call`).
#![allow(unsafe_code)]

use crate::abi::Failure;
use crate::lookup;
use core::ffi::{c_long, c_void};
use shared::ContainerUid;

/// glibc's list of groups, as the parameters of `initgroups_dyn` describe it.
#[derive(Debug)]
pub struct Groups {
    /// How many there are.
    pub start: *mut c_long,
    /// How many there is room for.
    pub size: *mut c_long,
    /// Where they are: memory of malloc's.
    pub list: *mut *mut u32,
    /// How many there may be at most; 0 and below mean any number.
    pub limit: c_long,
}

impl Groups {
    /// Adds the group of the account, unless it is the primary one, which glibc has put on the list already.
    ///
    /// A list that is at its limit stays as it is, like in glibc's own services: the caller has what it asked for.
    ///
    /// # Safety
    /// The pointers are those of an `initgroups_dyn` call.
    pub unsafe fn add(&mut self, name: &[u8], primary: u32) -> Result<(), Failure> {
        let container =
            ContainerUid::parse(name).filter(|container| container.get() != primary).ok_or(Failure::ABSENT)?;
        lookup::present(container)?;
        // SAFETY: the caller's promise: `start` of `size` elements are in use.
        unsafe {
            let start = *self.start;
            if start == *self.size && !self.grow()? {
                return Ok(());
            }
            (*self.list).wrapping_offset(start as isize).write(container.get());
            *self.start = start + 1;
        }
        Ok(())
    }

    /// Makes room for one more, if there may be one more.
    ///
    /// # Safety
    /// As for [`Self::add`].
    unsafe fn grow(&mut self) -> Result<bool, Failure> {
        #[link(name = "c")]
        unsafe extern "C" {
            fn realloc(memory: *mut c_void, size: usize) -> *mut c_void;
        }
        // SAFETY: the caller's promise: the list is malloc's, and may move.
        unsafe {
            let size = *self.size;
            if self.limit > 0 && size >= self.limit {
                return Ok(false);
            }
            let larger = size.wrapping_add(1);
            let moved = realloc((*self.list).cast(), size_of::<u32>().wrapping_mul(larger as usize));
            if moved.is_null() {
                return Err(Failure::OUT_OF_MEMORY);
            }
            *self.list = moved.cast();
            *self.size = larger;
        }
        Ok(true)
    }
}
