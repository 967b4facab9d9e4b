//! Runs this program from memory, where nobody can change it.
//!
//! A program that root starts in a container can reach the file of the program that started it: a script whose interpreter is /proc/self/exe is that
//! file, with the tenant's libraries (CVE-2019-5736). As root it could write there.

use anyhow::Result;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::fexecve;
use std::ffi::CString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;

/// Goes on only in the copy. Before anything else is done: it begins anew.
pub fn run_from_memory() -> Result<()> {
    let seals = SealFlag::all();
    let mut own = File::open("/proc/self/exe")?;
    if fcntl(&own, FcntlArg::F_GET_SEALS).is_ok_and(|has| SealFlag::from_bits_truncate(has).contains(seals)) {
        return Ok(());
    }
    let mut copy = File::from(memfd_create(c"unbitctl", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    std::io::copy(&mut own, &mut copy)?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    let arguments = std::env::args_os().map(|word| CString::new(word.into_vec())).collect::<Result<Vec<_>, _>>()?;
    let environment = std::env::vars_os()
        .map(|(name, value)| CString::new([name.into_vec(), value.into_vec()].join(&b'=')))
        .collect::<Result<Vec<_>, _>>()?;
    match fexecve(&copy, &arguments, &environment)? {}
}
