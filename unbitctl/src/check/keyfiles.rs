//! Checks files of SSH keys: sshd reads each line of a tenant's file into the memory of a root
//! process, however long it is.

use super::{cgroups, server, sshd};
use crate::command::SSHD;
use crate::report::Finding;
use crate::rootfs::RootFs;
use join::cgroups::{Hierarchies, Version};
use join::proc::Proc;
use shared::settings::{CONTAINERS, FIRST_UID};
use std::fs;
use std::path::PathBuf;

const CHECK: &str = "keyfiles";
const WHY: &str = "sshd reads a line of ~/.ssh/authorized_keys whole: a file of 20 GB without a newline, which takes no room on the disk, takes the node's memory";
const FIX: &str = "systemctl edit ssh, and add the two lines MemoryMax=1G and OOMPolicy=continue below [Service]; then: systemctl restart ssh";

pub fn check(node: &RootFs) -> Vec<Finding> {
    vec![if !node.is_running() {
        Finding::not_applicable(CHECK, WHY, "a root directory has no sshd that runs")
    } else if !node.has(SSHD) {
        Finding::not_applicable(CHECK, WHY, format!("there is no {}", SSHD))
    } else if !nix::unistd::geteuid().is_root() {
        Finding::not_applicable(CHECK, WHY, "root is needed to see where sshd looks for keys")
    } else {
        match sshd::effective_config(node, &FIRST_UID.to_string()) {
            Err(error) => Finding::not_applicable(CHECK, WHY, format!("{error:#}")),
            Ok(config) if !config.value("AuthorizedKeysFile").split_whitespace().any(is_tenants) => {
                Finding::ok(CHECK, WHY, "sshd looks for keys only outside the tenants' directories")
            }
            Ok(_) => server::listener()
                .and_then(|pid| Proc::of(pid).ok())
                .map_or_else(nobody_listens, |sshd| judge(limit_of(&sshd))),
        }
    }]
}

/// Whether a value of AuthorizedKeysFile is in the directory of its user: relative, or there by
/// name.
fn is_tenants(file: &str) -> bool {
    file != "none" && (!file.starts_with('/') || file.starts_with(&format!("{CONTAINERS}/")))
}

fn nobody_listens() -> Finding {
    let seen = "sshd does not listen itself: with ssh.socket, make sure that ssh@.service has MemoryMax=";
    Finding::not_applicable(CHECK, WHY, seen)
}

/// The memory limit of sshd's own cgroup. `None` if it has no limit, or if sshd shares its cgroup
/// with pid 1.
fn limit_of(listener: &Proc) -> Option<u64> {
    let (version, directories) = Hierarchies::mounted().ok()?.for_controller(listener, &Proc::of(1).ok()?, "memory")?;
    limit_in(version, &directories, &|file| fs::read_to_string(file).ok())
}

fn limit_in(version: Version, directories: &[PathBuf], read: &dyn Fn(&PathBuf) -> Option<String>) -> Option<u64> {
    let file = if version == Version::One { "memory.limit_in_bytes" } else { "memory.max" };
    let text = read(&directories.first()?.join(file))?;
    cgroups::is_limit(&text).then(|| text.trim().parse().ok()).flatten()
}

fn judge(limit: Option<u64>) -> Finding {
    match limit {
        Some(limit) => Finding::ok(CHECK, WHY, format!("sshd's cgroup may have {} MiB of memory", limit >> 20)),
        None => Finding::warn(
            CHECK,
            WHY,
            "sshd reads tenants' authorized_keys files, and its cgroup has no memory limit",
            FIX,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_a_file_of_keys_is() {
        for file in [".ssh/authorized_keys", "%h/.ssh/authorized_keys", "/containers/%u/keys"] {
            assert!(is_tenants(file), "{file}");
        }
        for file in ["none", "/etc/ssh/keys/%u", "/containers.keys/%u"] {
            assert!(!is_tenants(file), "{file}");
        }
    }

    #[test]
    fn the_limit_is_that_of_its_own_cgroup() {
        let directories = ["/cg/system.slice/ssh.service", "/cg/system.slice"].map(PathBuf::from);
        let limit = |version, expected: &'static str, text: &'static str| {
            limit_in(version, &directories, &|file| (file == &directories[0].join(expected)).then(|| text.to_owned()))
        };
        assert_eq!(limit(Version::Two, "memory.max", "1073741824\n"), Some(1 << 30));
        assert_eq!(limit(Version::Two, "memory.max", "max\n"), None);
        assert_eq!(limit(Version::One, "memory.limit_in_bytes", "1073741824\n"), Some(1 << 30));
        assert_eq!(limit(Version::One, "memory.limit_in_bytes", "9223372036854771712\n"), None);
        assert_eq!(limit_in(Version::Two, &[], &|_| Some("1".into())), None);
        assert_eq!(limit_in(Version::Two, &directories[1..], &|_| None), None);
    }
}
