//! The containers that run, each by its pid 1.
//!
//! For commands that look at all of them. A login finds its own container by
//! [`emperor_socket`](crate::emperor_socket) or [`link`](crate::link), and trusts nothing here.

use crate::proc::{self, Proc, Status};
use shared::ContainerUid;
use std::io;

/// A container that runs.
pub struct Running {
    /// The user of its pid 1.
    pub uid: ContainerUid,
    /// The number of that process.
    pub pid: i32,
    /// That process.
    pub process: Proc,
    /// The number of its parent, which has started the container.
    pub parent: i32,
}

/// The containers whose pid 1 runs as a container's user of this node. Another engine's container
/// with a user namespace is none: its root may be 1000000 here, which is no account.
pub fn containers() -> io::Result<impl Iterator<Item = Running>> {
    let own = Proc::own_namespace("user").ok();
    Ok(proc::pids()?.filter_map(move |pid| {
        let process = Proc::of(pid).ok()?;
        let (uid, parent) = Status::new(&process.read("status").ok()?).container_pid_1()?;
        // Only root can read it.
        let is_elsewhere = process.namespace("user").is_ok_and(|namespace| Some(namespace) != own);
        (!is_elsewhere).then_some(Running { uid, pid, process, parent })
    }))
}
