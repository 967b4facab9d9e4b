//! The node's Emperor: whether it is set up and runs, and how systemd starts it.
//!
//! Its files are made in [`setup::emperor`](crate::setup::emperor).

use crate::command;
use crate::containers::{self, VASSALS};
use crate::rootfs::RootFs;
use anyhow::{Context, Result, bail};
use join::proc::{self, Status};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// What each vassal of the examples includes.
const CGROUPS: &str = "/etc/uwsgi/cgroup.ini";
/// The unit of the examples.
const UNIT: &str = "containers.service";

/// How root starts it without systemd: without a terminal, on which tenants could type, without
/// root's variables, which they could read, and in a session keyring that is revoked: they inherit
/// it, and would read root's keys there and each other's.
pub fn by_hand() -> String {
    const JOIN_SESSION_KEYRING: u32 = 1; // linux/keyctl.h, as are the others
    const REVOKE: u32 = 3;
    const SESSION_KEYRING: i32 = -3;
    let keyctl = libc::SYS_keyctl;
    format!(
        "perl -e 'syscall({keyctl}, {JOIN_SESSION_KEYRING}, 0) > 0 && syscall({keyctl}, {REVOKE}, {SESSION_KEYRING}) == 0 \
         or die \"keyctl: $!\\n\"; exec @ARGV' setsid --fork env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
         uwsgi --ini /etc/uwsgi/containers.ini </dev/null >>/var/log/containers.log 2>&1"
    )
}

/// A node's Emperor, which starts containers.
pub enum Emperor {
    Runs,
    /// It does not run yet; systemd starts it.
    BySystemd,
}

impl Emperor {
    /// Refuses where it is not set up, or nobody could start it.
    pub fn find(node: &RootFs) -> Result<Self> {
        let directory = fs::metadata(VASSALS);
        if !directory.as_ref().is_ok_and(|found| found.is_dir()) || !node.has(CGROUPS) {
            bail!("the Emperor is not set up here, {VASSALS} or {CGROUPS} is missing: unbitctl setup emperor");
        }
        if directory.is_ok_and(|found| found.uid() != 0 || found.mode() & 0o022 != 0) {
            bail!(
                "users other than root can write to {VASSALS}, and root runs what is there: chown root:root {VASSALS} && chmod go-w {VASSALS}"
            );
        }
        if !pids().is_empty() {
            return Ok(Self::Runs);
        }
        if has_systemd(node) && node.has(containers::UNIT) {
            return Ok(Self::BySystemd);
        }
        if has_systemd(node) {
            bail!("no Emperor runs: unbitctl setup emperor");
        }
        bail!("no Emperor runs: start it: {}", by_hand())
    }

    /// Starts it, unless it runs. Once there is a vassal: without one its unit starts nothing.
    pub fn start(&self) -> Result<Option<Service>> {
        match self {
            Self::Runs => Ok(None),
            Self::BySystemd => Ok(Some(Service::enable()?)),
        }
    }

    /// Where its operator reads why it does not do what it should.
    pub fn log_hint(&self) -> &'static str {
        let node = RootFs::at(None);
        if has_systemd(&node) && node.has(containers::UNIT) { "journalctl -u containers" } else { "its log says why" }
    }
}

/// Whether systemd is pid 1, sd_booted(3).
pub fn has_systemd(node: &RootFs) -> bool {
    node.is_running() && node.has("/run/systemd/system")
}

/// The processes that can be the Emperor, see [`Status::is_emperor`].
pub fn pids() -> Vec<i32> {
    let is_one = |pid: &i32| {
        let text = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        Status::new(&text).is_emperor()
    };
    proc::pids().into_iter().flatten().filter(is_one).collect()
}

/// The unit, as it was before it was enabled and started and as it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Service {
    was_enabled: bool,
    was_active: bool,
    is_active: bool,
}

impl Service {
    /// Enables and starts it. Without a vassal it does not start (ConditionDirectoryNotEmpty= of
    /// systemd.unit(5)), and that is no error.
    pub fn enable() -> Result<Self> {
        let is = |what| systemctl(&[what, "--quiet", UNIT]).is_ok();
        let (was_enabled, was_active) = (is("is-enabled"), is("is-active"));
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", UNIT])?;
        Ok(Self { was_enabled, was_active, is_active: is("is-active") })
    }

    pub const fn description(self) -> &'static str {
        match (self.was_enabled, self.was_active, self.is_active) {
            (true, true, _) => "containers.service: is enabled and runs",
            (true, false, true) => "containers.service: started",
            (false, true, true) => "containers.service: enabled; it runs already",
            (false, false, true) => "containers.service: enabled and started",
            (true, false, false) => "containers.service: is enabled, and starts with the first container",
            (false, _, false) => "containers.service: enabled; it starts with the first container",
        }
    }

    /// Stops it, and disables it if it was not enabled before.
    pub fn undo(self) -> Result<()> {
        match (self.was_enabled, self.was_active) {
            (true, true) => Ok(()),
            (true, false) => systemctl(&["stop", UNIT]),
            (false, true) => systemctl(&["disable", UNIT]),
            (false, false) => systemctl(&["disable", "--now", UNIT]),
        }
    }
}

fn systemctl(arguments: &[&str]) -> Result<()> {
    let words = arguments.join(" ");
    let answer =
        command::run(&RootFs::at(None), "systemctl", arguments).with_context(|| format!("systemctl {words}"))?;
    if !answer.succeeded() {
        bail!("systemctl {words}: {}", answer.error_summary());
    }
    Ok(())
}

/// Refuses where `cpu-max` of a vassal would change nothing.
pub fn must_limit_processors(node: &RootFs) -> Result<()> {
    let text = node.read(CGROUPS).context(CGROUPS)?.unwrap_or_default();
    if !text.lines().any(|line| !line.trim_start().starts_with([';', '#']) && line.contains("%(cpu-max)")) {
        bail!(
            "--cpus would change nothing: {CGROUPS} does not use %(cpu-max) (see the examples in /usr/share/doc/unbit)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_arch = "x86_64")] // the page has the number of keyctl(2) there
    fn the_page_has_the_line_to_start_it_by_hand() {
        let line = format!("\n    {}\n", super::by_hand());
        assert!(include_str!("../../docs/operating.md").contains(&line), "{line}");
    }
}
