//! libnss_unbit.so.2: the directory /containers/30001, if 30001:30001 owns it, *is* the account
//! 30001.
//!
//! glibc loads this library into every process that looks up an account, and calls the functions in
//! [`exports`]. A lookup has four steps:
//!
//! 1. The name or number is parsed as a [`shared::ContainerUid`]. Another name can be a second name
//!    ([`shared::SecondName`]); one readlink(2) finds its container. Anything else is not found.
//! 2. One stat(2) shows whether the container exists ([`lookup`]).
//! 3. Its record ([`passwd`], [`group`], [`shadow`], [`hosts`]) is written into the caller's
//!    [`buffer`], as a whole or not at all.
//! 4. The outcome becomes one of glibc's status codes ([`abi`]).
//!
//! [`enumeration`] walks /containers for `getent passwd`.
//!
//! The library is a guest in every process: a lookup allocates nothing, takes no lock, reads no
//! environment variable, logs nothing, and changes errno only if it fails. Without std and panics
//! the library is 14 kB, and none of its code runs when it is loaded.
//!
//! `exports` and `buffer` handle raw pointers, `directory` a descriptor, `enumeration` a lock in
//! shared memory. The rest is safe code.
#![cfg_attr(panic = "abort", no_std)] // `cargo test` builds with unwinding, and so with std

mod abi;
mod buffer;
mod directory;
mod enumeration;
mod exports;
mod group;
mod hosts;
mod lookup;
mod passwd;
mod shadow;

/// The compiler needs a panic handler. In a release build nothing calls it, and tests/weight checks
/// that it is not linked.
#[cfg(panic = "abort")]
#[panic_handler]
#[allow(unsafe_code)]
fn panic(_: &core::panic::PanicInfo) -> ! {
    #[link(name = "c")]
    unsafe extern "C" {
        safe fn abort() -> !;
    }
    abort()
}

/// In a debug build the compiled `core` refers to this function of the unwinder, though nothing
/// here unwinds.
#[cfg(all(panic = "abort", debug_assertions))]
#[unsafe(no_mangle)]
#[allow(unsafe_code)]
extern "C" fn rust_eh_personality() {}
