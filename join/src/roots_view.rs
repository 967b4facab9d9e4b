//! What root sees in a container that it has entered: nothing in the places where programs look for more of the machine's own, if the
//! tenant owns them.
//!
//! Perl and Python load modules from `/usr/local` before or besides the distribution's, and name services connect to sockets in `/run`.
//! In the example's containers both are the tenant's. Where root of the container owns them, the rest of its file system is no better, and
//! they stay as they are.

use crate::refusal::{Context, Reason, Refusal};
use crate::sys::retry;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::stat;

const PLACES: [&str; 2] = ["/usr/local", "/run"];

/// In the helper, which has joined the container's mount namespace: goes to a copy of it, in which an empty directory covers each place of
/// the tenant's.
pub fn cover_what_is_the_tenants() -> Result<(), Refusal> {
    let mut theirs = Vec::new();
    for place in PLACES {
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
    // What is mounted here must not show in the container; what is mounted there later shows here.
    retry(|| mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>))
        .context(Reason::Broken, "keep root's mounts from the container")?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for place in theirs {
        retry(|| mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some("mode=755,size=4k,nr_inodes=1")))
            .context(Reason::Broken, format_args!("cover {place}, which is the tenant's"))?;
    }
    Ok(())
}
