//! Opens files in root's runtime directory `/run/unbit`, which a reboot empties.
//!
//! No tenant can write there. What is in the files is decided by the callers.

use crate::refusal::{Context, Reason, Refusal};
use crate::safe_path;
use crate::sys::retry;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use std::os::fd::OwnedFd;

/// Opens a file in a directory of /run/unbit, and makes both if they do not exist. Only root may
/// write to any component, and read the files.
pub fn open_file(directory_name: &str, file_name: &str) -> Result<OwnedFd, Refusal> {
    let path = format!("/run/unbit/{directory_name}");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut directory = retry(|| open("/run", flags, Mode::empty())).context(Reason::Broken, "open /run")?;
    for (name, mode) in [("unbit", 0o755), (directory_name, 0o700)] {
        let step = format!("make the directory {name} of {path} (is /run writable for this service?)");
        match retry(|| openat(&directory, name, flags, Mode::empty())) {
            Err(Errno::ENOENT) => {
                match retry(|| mkdirat(&directory, name, Mode::from_bits_truncate(mode))) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(Refusal::failed(Reason::Broken, step, errno)),
                }
                directory = retry(|| openat(&directory, name, flags, Mode::empty())).context(Reason::Broken, step)?;
            }
            opened => {
                directory = opened.context(Reason::Broken, format_args!("open the directory {name} of {path}"))?
            }
        }
        must_belong_to_root(&directory, SFlag::S_IFDIR, name, &path)?;
    }
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = retry(|| openat(&directory, file_name, flags, Mode::from_bits_truncate(0o600)))
        .context(Reason::Broken, format_args!("open {path}/{file_name} (is /run writable for this service?)"))?;
    must_belong_to_root(&file, SFlag::S_IFREG, file_name, &path)?;
    Ok(file)
}

fn must_belong_to_root(file: &OwnedFd, kind: SFlag, name: &str, path: &str) -> Result<(), Refusal> {
    let status = retry(|| fstat(file)).context(Reason::Broken, format_args!("fstat {name} of {path}"))?;
    if safe_path::kind(&status) == kind && safe_path::must_belong_to_root(&status).is_ok() {
        return Ok(());
    }
    let seen = format!("mode {:o} of uid {}", status.st_mode, status.st_uid);
    Err(Refusal::new(Reason::Misconfigured, format!("{name} of {path} has {seen}, and root alone may write there")))
}
