//! Masks paths for root that has entered a container, as the OCI runtime specification's
//! maskedPaths: an empty directory covers each one that the tenant owns and in which programs look
//! for code or sockets of the machine.
//!
//! Perl and Python load modules from `/usr/local` before or after the distribution's, and name
//! services connect to sockets in `/run`. The tenant owns both in a container of
//! examples/container.ini. Where root of the container owns them, it owns the rest of the file
//! system as well, so nothing is masked.
//!
//! Which capabilities root keeps is not decided here, but in [`privileges`](crate::privileges).

use crate::refusal::{Context, Reason, Refusal};
use crate::sys::retry;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::stat;

const MASKED: [&str; 2] = ["/usr/local", "/run"];

/// Moves the helper, which has joined the container's mount namespace, to a copy of it in which the
/// tenant's directories are masked.
pub fn mask_the_tenants() -> Result<(), Refusal> {
    let mut theirs = Vec::new();
    for place in MASKED {
        match retry(|| stat(place)) {
            Ok(found) if found.st_uid != 0 => theirs.push(place),
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EACCES) => {}
            Err(errno) => return Err(Refusal::failed(Reason::Broken, format!("look at {place} inside"), errno)),
        }
    }
    if theirs.is_empty() {
        return Ok(());
    }
    retry(|| unshare(CloneFlags::CLONE_NEWNS))
        .context(Reason::Broken, "copy the container's mount namespace for root")?;
    // The container must not see these mounts. Mounts that it makes later appear here.
    retry(|| mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>))
        .context(Reason::Broken, "keep root's mounts from the container")?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for place in theirs {
        retry(|| mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some("mode=755,size=4k,nr_inodes=1")))
            .context(Reason::Broken, format_args!("cover {place}, which is the tenant's"))?;
    }
    Ok(())
}
