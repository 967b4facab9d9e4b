//! How many logins were refused since boot, by container and reason: counters in
//! `/run/unbit/refusals`, one file for each container.
//!
//! A file is a page of counters, which every process maps and increments atomically. No login waits
//! for another: there is no lock that a killed one could leave.
//!
//! No login depends on a counter.

use crate::refusal::{Context, Reason, Refusal};
use crate::run_directory;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use shared::ContainerUid;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Where the files are, one for each container that has refused a login since boot.
pub const DIRECTORY: &str = "/run/unbit/refusals";

/// The file for names that are no container's.
const NO_CONTAINER: &str = "other";

/// The bytes of a file: more than there will ever be reasons.
const SIZE: usize = 4096;

/// Counts a refusal. The calling process must see the node's /run.
pub fn increment(container: Option<ContainerUid>, reason: Reason) -> Result<(), Refusal> {
    let name = container.map_or_else(|| NO_CONTAINER.to_owned(), |container| container.to_string());
    let file = run_directory::open_file("refusals", &name)?;
    // Allocates the page: a write to a hole in a full file system is a SIGBUS.
    let room = libc::off_t::try_from(SIZE).map_err(|_| Errno::EOVERFLOW);
    room.and_then(|room| sys::retry(|| fallocate(&file, FallocateFlags::empty(), 0, room)))
        .and_then(|()| sys::increment_counter(&file, SIZE, reason as usize))
        .context(Reason::Broken, format_args!("count in {DIRECTORY}/{name}"))
}

/// The counters by reason; empty if no login was refused. `None` is for names that are no
/// container's.
pub fn read(directory: &Path, container: Option<ContainerUid>) -> io::Result<Vec<(Reason, u64)>> {
    let name = container.map_or_else(|| NO_CONTAINER.to_owned(), |container| container.to_string());
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut bytes = Vec::new();
    match File::options().read(true).custom_flags(flags.bits()).open(directory.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?.take(SIZE as u64).read_to_end(&mut bytes)?,
    };
    let numbers =
        bytes.chunks_exact(size_of::<u64>()).filter_map(|number| Some(u64::from_ne_bytes(number.try_into().ok()?)));
    Ok(Reason::ALL.into_iter().zip(numbers).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_place() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{reason:?}");
        }
        let directory = std::env::temp_dir().join(format!("unbit-refusals-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let container = ContainerUid::new(30001);
        assert_eq!(read(&directory, container).unwrap(), []);
        std::fs::write(directory.join("30001"), [0; SIZE]).unwrap();
        let file = File::options().read(true).write(true).open(directory.join("30001")).unwrap().into();
        let add = || (0..1000).for_each(|_| sys::increment_counter(&file, SIZE, Reason::Paused as usize).unwrap());
        std::thread::scope(|scope| drop([scope.spawn(add), scope.spawn(add)]));
        sys::increment_counter(&file, SIZE, Reason::Broken as usize).unwrap();
        assert!(sys::increment_counter(&file, SIZE, SIZE / 8).is_err(), "no number is there");
        let mut seen = read(&directory, container).unwrap();
        assert_eq!(seen.len(), Reason::ALL.len());
        seen.retain(|(_, number)| *number > 0);
        assert_eq!(seen, [(Reason::Paused, 2000), (Reason::Broken, 1)]);
        assert_eq!(read(&directory, None).unwrap(), []);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
