//! `30001:x:30001:30001:30001:/containers/30001:/bin/bash`

use crate::abi::{Failure, Passwd};
use crate::buffer::Buffer;
use shared::{ContainerUid, settings};

/// The passwd record of a container.
pub fn record(container: ContainerUid, buffer: &mut Buffer) -> Result<Passwd, Failure> {
    let name = container.name();
    Ok(Passwd {
        pw_name: buffer.string(name.as_bytes())?,
        pw_passwd: buffer.string(b"x")?,
        pw_uid: container.get(),
        pw_gid: container.get(),
        pw_gecos: buffer.string(name.as_bytes())?, // a copy of its own: callers cut gecos up in place
        pw_dir: buffer.string(container.home().as_c_str().to_bytes())?,
        pw_shell: buffer.string(settings::SHELL.as_bytes())?,
    })
}
