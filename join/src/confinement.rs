//! Reads how the container's pid 1 is confined, and confines a session in the same way, whatever
//! sshd was started with: bounding set, no_new_privs, AppArmor label, limits, scheduling.
//! pam_unbit(8) lists what is taken over and what is not.
//!
//! Ids and effective capabilities are dropped in [`privileges`](crate::privileges), not here.

use crate::apparmor::{self, LabelTransition};
use crate::proc::{Proc, Status};
use crate::refusal::{Context, Reason, Refusal};
use crate::seccomp;
use crate::sys::{self, CpuSet, Scheduling, retry};
use caps::CapSet;
use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use std::fs::OpenOptions;
use std::io::Write;

/// Everything that is taken over from a process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Confinement {
    /// The bounding set, as a mask of bits (PR_CAPBSET_DROP of prctl(2)).
    pub bounding_set: u64,
    /// Whether set-user-ID programs have no effect (PR_SET_NO_NEW_PRIVS of prctl(2)).
    pub no_new_privs: bool,
    /// Whether it has a seccomp filter.
    has_filter: bool,
    apparmor_label: Option<String>,
    oom_score_adj: i32,
    limits: Vec<Limit>,
    scheduling: Scheduling,
    io_priority: i32,
    cpus: CpuSet,
}

impl Confinement {
    /// Reads all of it. The caller must check afterwards that the process is still alive, so that
    /// `pid` was not another's.
    pub fn of(proc: &Proc, pid: i32) -> Result<Self, Refusal> {
        let read = |name: &str| proc.read(name).context(Reason::NotRunning, format_args!("read /proc/{pid}/{name}"));
        let unreadable = |name: &str| Refusal::new(Reason::Broken, format!("/proc/{pid}/{name} cannot be understood"));
        let status = read("status")?;
        let (bounding_set, no_new_privs) =
            bounding_set_and_no_new_privs(&status).ok_or_else(|| unreadable("status"))?;
        let about = |what: &str| format!("read the {what} of its pid 1");
        Ok(Self {
            bounding_set,
            no_new_privs,
            has_filter: has_filter(&status),
            apparmor_label: apparmor::label_of(proc).context(Reason::NotRunning, about("AppArmor label"))?,
            oom_score_adj: read("oom_score_adj")?.trim().parse().map_err(|_| unreadable("oom_score_adj"))?,
            limits: limits(&read("limits")?).ok_or_else(|| unreadable("limits"))?,
            scheduling: Scheduling::of(pid)
                .context(Reason::NotRunning, about("scheduling policy"))?
                .inherited_by_child(),
            io_priority: sys::io_priority(pid).context(Reason::NotRunning, about("I/O priority"))?,
            cpus: CpuSet::of(pid).context(Reason::NotRunning, about("CPU affinity"))?,
        })
    }

    /// Takes over what needs root and the node's /proc. Without CAP_SYS_RESOURCE or CAP_SYS_NICE a
    /// limit cannot be raised: then the session keeps sshd's, which is tighter than pid 1's.
    pub fn apply_as_root(&self) -> Result<(), Refusal> {
        let about = |what: &str| format!("take over the {what} of its pid 1");
        self.apply_oom_score_adj().context(Reason::Broken, about("oom_score_adj"))?;
        self.apply_scheduling().context(Reason::Broken, about("scheduling policy and nice value"))?;
        // After the nice value, from which the kernel derives a priority that was never set.
        if sys::io_priority(0) != Ok(self.io_priority) {
            sys::set_io_priority(self.io_priority).context(Reason::Broken, about("I/O priority"))?;
        }
        self.limits.iter().try_for_each(|limit| limit.apply_hard().context(Reason::Broken, limit.about()))
    }

    /// Takes over the soft limits, in the last step: one that is too low for another step would end
    /// the helper without a report.
    pub fn apply_soft_limits(&self) -> Result<(), Refusal> {
        self.limits.iter().try_for_each(|limit| limit.apply_soft().context(Reason::Broken, limit.about()))
    }

    fn apply_oom_score_adj(&self) -> std::io::Result<()> {
        const FILE: &str = "/proc/self/oom_score_adj";
        let is_tighter = || {
            std::fs::read_to_string(FILE)
                .is_ok_and(|own| own.trim().parse().is_ok_and(|own: i32| own > self.oom_score_adj))
        };
        match OpenOptions::new().write(true).open(FILE)?.write_all(self.oom_score_adj.to_string().as_bytes()) {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) && is_tighter() => Ok(()),
            written => written,
        }
    }

    fn apply_scheduling(&self) -> nix::Result<()> {
        let own = Scheduling::of(0)?;
        if own == self.scheduling {
            return Ok(());
        }
        match self.scheduling.apply() {
            Err(Errno::EPERM | Errno::EACCES) if own.nice() > self.scheduling.nice() => {
                self.scheduling.with_nice(own.nice()).apply()
            }
            applied => applied,
        }
    }

    /// Applies pid 1's bounding set, a seccomp filter if it has one, and no_new_privs, so that no
    /// set-user-ID program gives a session more than pid 1 can get. With a filter, this process
    /// cannot join or make namespaces or keyrings from here on.
    pub fn apply_restrictions(&self) -> Result<(), Refusal> {
        sys::limit_bounding_set(self.bounding_set)
            .context(Reason::Broken, "drop capabilities that its pid 1 cannot have (CAP_SETPCAP is needed)")?;
        // An exec as root would bring these back.
        sys::with_errno(|| caps::clear(None, CapSet::Inheritable))
            .context(Reason::Broken, "drop inheritable capabilities")?;
        if self.has_filter {
            seccomp::apply().context(Reason::Broken, "install a system call filter, because its pid 1 has one")?;
        }
        if self.no_new_privs {
            retry(set_no_new_privs).context(Reason::Broken, "set no_new_privs, which its pid 1 has")?;
        }
        Ok(())
    }

    /// pid 1's AppArmor label, if it has one, to be taken over last, because a profile can forbid
    /// any of the other steps. Must be called while the process is root on the node.
    pub fn apparmor_label(&self, proc: &Proc) -> Result<Option<LabelTransition<'_>>, Refusal> {
        self.apparmor_label.as_ref().map(|label| LabelTransition::of(label, proc)).transpose()
    }

    /// Takes over the CPU affinity. Must be called after the cgroups are joined, because a cpuset
    /// resets it.
    pub fn apply_affinity(&self) -> Result<(), Refusal> {
        if CpuSet::of(0).as_ref() == Ok(&self.cpus) {
            return Ok(());
        }
        self.cpus.apply().context(Reason::Broken, "take over the CPU affinity of its pid 1")
    }
}

pub(crate) fn bounding_set_and_no_new_privs(status: &str) -> Option<(u64, bool)> {
    let status = Status::new(status);
    Some((status.capabilities("CapBnd").ok()?, status.numbers("NoNewPrivs").ok()? != [0]))
}

/// Whether a process has a seccomp filter: 2 is SECCOMP_MODE_FILTER. A kernel without seccomp has
/// no such line.
pub(crate) fn has_filter(status: &str) -> bool {
    Status::new(status).numbers("Seccomp").is_ok_and(|mode| mode != [0])
}

/// A limit of getrlimit(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limit {
    pub(crate) resource: Resource,
    pub(crate) soft: rlim_t,
    pub(crate) hard: rlim_t,
}

impl Limit {
    fn about(self) -> String {
        format!("take over pid 1's limit {:?}", self.resource)
    }

    /// Sets the hard limit, and lowers the soft limit to it if it is above.
    fn apply_hard(self) -> nix::Result<()> {
        let (soft, hard) = retry(|| getrlimit(self.resource))?;
        if hard == self.hard {
            return Ok(());
        }
        match retry(|| setrlimit(self.resource, soft.min(self.hard), self.hard)) {
            Err(Errno::EPERM) if hard < self.hard => Ok(()),
            set => set,
        }
    }

    fn apply_soft(self) -> nix::Result<()> {
        let (soft, hard) = retry(|| getrlimit(self.resource))?;
        let wanted = self.soft.min(hard);
        if soft == wanted {
            return Ok(());
        }
        retry(|| setrlimit(self.resource, wanted, hard))
    }
}

/// The lines of /proc/PID/limits, proc_pid_limits(5). prlimit(2) would need CAP_SYS_RESOURCE just
/// to read them.
const LIMITS: [(&str, Resource); 16] = [
    ("Max cpu time", Resource::RLIMIT_CPU),
    ("Max file size", Resource::RLIMIT_FSIZE),
    ("Max data size", Resource::RLIMIT_DATA),
    ("Max stack size", Resource::RLIMIT_STACK),
    ("Max core file size", Resource::RLIMIT_CORE),
    ("Max resident set", Resource::RLIMIT_RSS),
    ("Max processes", Resource::RLIMIT_NPROC),
    ("Max open files", Resource::RLIMIT_NOFILE),
    ("Max locked memory", Resource::RLIMIT_MEMLOCK),
    ("Max address space", Resource::RLIMIT_AS),
    ("Max file locks", Resource::RLIMIT_LOCKS),
    ("Max pending signals", Resource::RLIMIT_SIGPENDING),
    ("Max msgqueue size", Resource::RLIMIT_MSGQUEUE),
    ("Max nice priority", Resource::RLIMIT_NICE),
    ("Max realtime priority", Resource::RLIMIT_RTPRIO),
    ("Max realtime timeout", Resource::RLIMIT_RTTIME),
];

pub(crate) fn limits(text: &str) -> Option<Vec<Limit>> {
    let number = |word: &str| if word == "unlimited" { Some(libc::RLIM_INFINITY) } else { word.parse().ok() };
    LIMITS
        .iter()
        .map(|(name, resource)| {
            let mut values = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
            Some(Limit { resource: *resource, soft: number(values.next()?)?, hard: number(values.next()?)? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_whole_or_not_at_all() {
        let status = "NoNewPrivs:\t1\nCapEff:\t3\nCapBnd:\t000001ffffffffff\n";
        assert_eq!(bounding_set_and_no_new_privs(status), Some((0x1ff_ffff_ffff, true)));
        assert_eq!(bounding_set_and_no_new_privs("CapBnd:\t0000000000000000\nNoNewPrivs:\t0\n"), Some((0, false)));
        for status in ["", "CapBnd:\t0\n", "NoNewPrivs:\t0\n", "CapBnd:\tx\nNoNewPrivs:\t0\n"] {
            assert_eq!(bounding_set_and_no_new_privs(status), None, "{status:?}");
        }
    }

    #[test]
    fn a_filter_is_seen_whatever_its_mode() {
        assert!(has_filter("Seccomp:\t2\nSeccomp_filters:\t1\n") && has_filter("Seccomp:\t1\n"));
        assert!(!has_filter("Seccomp:\t0\nSeccomp_filters:\t0\n") && !has_filter(""));
    }

    #[test]
    fn the_kernels_own_limits_are_those_of_getrlimit() {
        let read = limits(&std::fs::read_to_string("/proc/self/limits").unwrap()).unwrap();
        for limit in read {
            assert_eq!(getrlimit(limit.resource).unwrap(), (limit.soft, limit.hard), "{limit:?}");
        }
        assert_eq!(limits("Max cpu time 1 2 seconds\n"), None, "one of sixteen");
    }
}
