//! libnss_unbit.so.2.
#![cfg_attr(panic = "abort", no_std)]

#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn _nss_unbit_probe(uid: u32) -> i32 {
    let Some(c) = shared::ContainerUid::new(uid) else { return 0 };
    match rustix::fs::stat(c.home().as_c_str()) {
        Ok(st) => c.is_owner_of(st.st_mode, st.st_uid, st.st_gid) as i32,
        Err(e) => e.raw_os_error(),
    }
}
