//! The caller's buffer, into which every string and array of a record goes.
//!
//! glibc's callers choose its address and its length: any address, odd ones too, and any length, none included.
//!
//! The records say what is written. No other file writes to the caller's memory, except [`exports`](crate::exports).
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
    /// Nothing but this `Buffer` uses the `length` bytes at `start` until it is dropped. With a length of 0, any `start` will do.
    pub const unsafe fn new(start: *mut c_char, length: usize) -> Self {
        Self { start: start.cast(), left: length }
    }

    /// Puts a string and its end mark into the buffer.
    ///
    /// The compiler knows its size, and makes of the copy a few stores. A string may have zeros at its end already.
    pub fn string<const N: usize>(&mut self, text: [u8; N]) -> Result<*mut c_char, Failure> {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Ended<const N: usize>([u8; N], u8);
        self.value(Ended(text, 0)).map(<*mut _>::cast)
    }

    /// Puts a value (an array of pointers, an address) into the buffer, where its type is aligned.
    pub fn value<T: Copy>(&mut self, value: T) -> Result<*mut T, Failure> {
        let padding = (self.start as usize).wrapping_neg() % align_of::<T>();
        self.take(padding)?;
        let place = self.take(size_of::<T>())?.cast::<T>();
        // SAFETY: `take` gave size_of::<T>() bytes of the buffer, and the padding before them aligned them.
        unsafe { place.write(value) };
        Ok(place)
    }

    /// Takes the next `length` bytes.
    fn take(&mut self, length: usize) -> Result<*mut u8, Failure> {
        let taken = self.start;
        self.left = self.left.checked_sub(length).ok_or(Failure::BUFFER_TOO_SMALL)?;
        self.start = taken.wrapping_add(length);
        Ok(taken)
    }
}
