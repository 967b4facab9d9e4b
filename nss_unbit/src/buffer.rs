//! The caller's buffer, into which every string and array of a record goes.
//!
//! glibc's callers choose its address and its length. The address can be unaligned, and the length
//! 0.
//!
//! What is written is decided in the files of the records. Only this file and
//! [`exports`](crate::exports) write to the caller's memory.
#![allow(unsafe_code)]

use crate::abi::Failure;
use core::ffi::c_char;

/// What is left of a caller's buffer.
#[derive(Debug)]
pub struct Buffer {
    start: *mut u8,
    left: usize,
}

impl Buffer {
    /// The buffer of a call.
    ///
    /// # Safety
    /// Nothing but this `Buffer` uses the `length` bytes at `start` until it is dropped. With a
    /// length of 0, any `start` will do.
    pub const unsafe fn new(start: *mut c_char, length: usize) -> Self {
        Self { start: start.cast(), left: length }
    }

    /// Appends a string and a NUL. The string may end in NULs already.
    ///
    /// It is an array, so that the compiler turns the copy into a few stores.
    pub fn string<const N: usize>(&mut self, text: [u8; N]) -> Result<*mut c_char, Failure> {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Ended<const N: usize>([u8; N], u8);
        self.value(Ended(text, 0)).map(<*mut _>::cast)
    }

    /// Appends a value (an array of pointers, an address), aligned for its type.
    pub fn value<T: Copy>(&mut self, value: T) -> Result<*mut T, Failure> {
        let padding = (self.start as usize).wrapping_neg() % align_of::<T>();
        self.take(padding)?;
        let place = self.take(size_of::<T>())?.cast::<T>();
        // SAFETY: `take` gave size_of::<T>() bytes of the buffer, and the padding before them
        // aligned them.
        unsafe { place.write(value) };
        Ok(place)
    }

    /// Takes the next `length` bytes of the buffer.
    fn take(&mut self, length: usize) -> Result<*mut u8, Failure> {
        let taken = self.start;
        self.left = self.left.checked_sub(length).ok_or(Failure::BUFFER_TOO_SMALL)?;
        self.start = taken.wrapping_add(length);
        Ok(taken)
    }
}
