//! Reads the AppArmor label of the container's pid 1, and gives it to a session as lxc-attach(1)
//! does.
//!
//! The label changes at once (changeprofile) and not at the next exec: sshd's forwardings and its
//! internal sftp server never exec.
//!
//! Which label a session must have is decided in [`confinement`](crate::confinement).

use crate::proc::Proc;
use crate::refusal::{Context, Reason, Refusal};
use crate::sys::retry;
use nix::errno::Errno;
use nix::unistd::write;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Since Linux 5.8. `attr/current` can belong to another security module.
const FILE: &str = "attr/apparmor/current";
const FILE_BEFORE_LINUX_5_8: &str = "attr/current";
/// The kernel returns at most a page (fs/proc/base.c).
const MAX_LABEL: usize = 4096;
/// If this is on, the kernel stacks the new profile on `unconfined` for a process without
/// CAP_MAC_OVERRIDE, and then denies signals between the session and the container's other
/// processes (Linux 6.7, aa_change_profile() in security/apparmor/domain.c).
const RESTRICTION: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_unconfined";

/// The label that confines a process; `None` if it is unconfined, or this kernel does not use
/// AppArmor.
pub fn label_of(process: &Proc) -> io::Result<Option<String>> {
    Ok(read(process)?.and_then(|text| label(&text).map(str::to_owned)))
}

/// pid 1's label, before this process takes it over.
pub struct LabelTransition<'a> {
    label: &'a str,
    theirs: File,
    is_unprivileged_change_restricted: bool,
}

impl<'a> LabelTransition<'a> {
    /// Opens pid 1's label. The process must still have the node's /proc and be allowed to read pid
    /// 1.
    pub fn of(label: &'a str, leader: &Proc) -> Result<Self, Refusal> {
        let theirs = leader.open(FILE).or_else(|_| leader.open(FILE_BEFORE_LINUX_5_8));
        let theirs = theirs.context(Reason::NotRunning, "open the AppArmor label of its pid 1")?.into();
        Ok(Self {
            label,
            theirs,
            is_unprivileged_change_restricted: std::fs::read_to_string(RESTRICTION)
                .is_ok_and(|text| text.trim() != "0"),
        })
    }

    /// Takes the label over now, while the process is root, if that is needed. If the profile
    /// forbids a later step, the login is refused.
    pub fn apply_as_root(&self, own: &Proc) -> Result<(), Refusal> {
        if self.is_unprivileged_change_restricted { self.apply(own) } else { Ok(()) }
    }

    /// Confines this process, and verifies it. `own` is its directory in the node's /proc.
    pub fn apply(&self, own: &Proc) -> Result<(), Refusal> {
        let step = || format!("take over pid 1's AppArmor label {}", self.label.escape_debug());
        if self.other_label(own)?.is_none() {
            return Ok(()); // `apply_as_root` did it
        }
        let file = own.open_to_write(FILE).or_else(|_| own.open_to_write(FILE_BEFORE_LINUX_5_8));
        let file = file.context(Reason::Broken, step())?;
        // One write is one command.
        retry(|| write(&file, format!("changeprofile {}", self.label).as_bytes())).context(Reason::Broken, step())?;
        match self.other_label(own)? {
            Some(now) => Err(Refusal::new(Reason::Broken, format!("{}: it is {now:?} afterwards", step()))),
            None => Ok(()),
        }
    }

    /// The label that this process has instead; `None` if it has the right one. The names that a
    /// process reads depend on its policy namespace (Incus makes one for each container), so this
    /// process reads both labels, and they must be equal.
    fn other_label(&self, own: &Proc) -> Result<Option<String>, Refusal> {
        let now = read(own).context(Reason::Broken, "read our own AppArmor label")?.unwrap_or_default();
        let mut theirs = [0; MAX_LABEL];
        let length =
            self.theirs.read_at(&mut theirs, 0).context(Reason::Broken, "read the AppArmor label of its pid 1")?;
        Ok(if theirs.get(..length) == Some(now.as_bytes()) { None } else { Some(now) })
    }
}

fn read(process: &Proc) -> io::Result<Option<String>> {
    match process.read(FILE) {
        Err(error) if is(&error, Errno::EINVAL) => Ok(None), // AppArmor is built in, but disabled
        Err(error) if is(&error, Errno::ENOENT) && is_on_before_linux_5_8() => {
            process.read(FILE_BEFORE_LINUX_5_8).map(Some)
        }
        Err(error) if is(&error, Errno::ENOENT) => Ok(None),
        text => text.map(Some),
    }
}

fn is_on_before_linux_5_8() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// The label without its mode: `docker-default (enforce)` is docker-default, `unconfined` is none.
pub(crate) fn label(text: &str) -> Option<&str> {
    let text = text.trim_end_matches(['\n', '\0']);
    let modes = [" (enforce)", " (complain)", " (kill)", " (unconfined)", " (mixed)", " (prompt)", " (user)"];
    let label = modes.iter().find_map(|mode| text.strip_suffix(mode)).unwrap_or(text);
    (!label.is_empty() && label != "unconfined").then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_separated_from_its_mode() {
        assert_eq!(label("docker-default (enforce)\n"), Some("docker-default"));
        assert_eq!(label("lxc-container-default-cgns (enforce)"), Some("lxc-container-default-cgns"));
        let of_lxd = "lxc-web1_</var/lib/lxc>//&:lxc-web1_<-var-lib-lxc>:unconfined";
        assert_eq!(label(&format!("{of_lxd} (mixed)\n")), Some(of_lxd));
        assert_eq!(
            label("/usr/bin/with (enforce) in its name (complain)\n"),
            Some("/usr/bin/with (enforce) in its name")
        );
        assert_eq!(label("unconfined\n"), None);
        assert_eq!(label(""), None);
    }

    #[test]
    fn this_process_has_a_label_or_none() {
        label_of(&Proc::of_self().unwrap()).unwrap();
    }
}
