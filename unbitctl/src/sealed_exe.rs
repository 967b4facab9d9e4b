//! Runs this program from a sealed memfd, which nobody can change, as runc does since
//! CVE-2019-5736.
//!
//! A program that root starts in a container can be a script whose interpreter is /proc/self/exe:
//! this program, with the tenant's libraries. Running as root, these could write to its file.

use crate::sys;
use anyhow::Result;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::fexecve;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;

/// Re-executes this program from a sealed copy; returns only in the copy. Call it first.
pub fn run_from_memory() -> Result<()> {
    let mut own = File::open("/proc/self/exe")?;
    // A file in memory that has no name: it is the copy.
    if own.metadata()?.nlink() == 0 && fstatfs(&own)?.filesystem_type() == TMPFS_MAGIC {
        return Ok(());
    }
    let copy = match memfd() {
        Ok(mut copy) => {
            std::io::copy(&mut own, &mut copy)?;
            fcntl(
                &copy,
                FcntlArg::F_ADD_SEALS(
                    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL,
                ),
            )?;
            copy
        }
        // vm.memfd_noexec=2 forbids programs in such files.
        Err(Errno::EACCES) => {
            let mut copy = File::from(sys::file_in_memory()?);
            std::io::copy(&mut own, &mut copy)?;
            File::open(format!("/proc/self/fd/{}", copy.as_raw_fd()))? // nobody runs what can still be written
        }
        Err(errno) => return Err(errno.into()),
    };
    let arguments = std::env::args_os().map(|word| CString::new(word.into_vec())).collect::<Result<Vec<_>, _>>()?;
    let environment = std::env::vars_os()
        .map(|(name, value)| CString::new([name.into_vec(), value.into_vec()].join(&b'=')))
        .collect::<Result<Vec<_>, _>>()?;
    match fexecve(&copy, &arguments, &environment)? {}
}

/// A memfd whose content can be run: with vm.memfd_noexec=1 only if it is made for that, which
/// kernels before 6.3 know nothing of.
fn memfd() -> nix::Result<File> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create(c"unbitctl", flags | MFdFlags::from_bits_retain(MFD_EXEC)) {
        Err(Errno::EINVAL) => memfd_create(c"unbitctl", flags),
        made => made,
    }
    .map(File::from)
}
