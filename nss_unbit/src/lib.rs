//! libnss_unbit.so.2: the directory /containers/30001, owned 30001:30001, *is* the account 30001.
//!
//! glibc loads this library into every process that asks who somebody is, and calls the functions in [`exports`]. What they
//! do is short. A name or a number becomes a [`shared::ContainerUid`], or is none of our business. Another name can be a second one
//! ([`shared::SecondName`]): one `readlink` tells whose. One `stat` ([`lookup`]) tells whether that container is here. Its record ([`passwd`], [`group`], [`shadow`], [`hosts`]) goes into
//! the caller's [`buffer`], all of it or nothing, and the outcome becomes one of glibc's status codes ([`abi`]).
//! [`enumeration`] walks /containers for `getent passwd`.
//!
//! A guest in every process keeps quiet: a lookup allocates nothing, takes no lock, reads no environment, logs nothing and leaves
//! errno alone unless it has failed. Without std and without panics the library is 14 kB, and none of its code runs when it is loaded.
//!
//! Raw pointers are handled in `exports` and `buffer`, descriptors in `directory`, turns in `enumeration`; the rest is
//! safe code.
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

/// The compiler wants a panic handler. In a release build nothing calls it, and the tests look that it is gone.
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

/// The unwinder's part that the compiler's own `core` names in a debug build, though nothing here unwinds.
#[cfg(all(panic = "abort", debug_assertions))]
#[unsafe(no_mangle)]
#[allow(unsafe_code)]
extern "C" fn rust_eh_personality() {}
