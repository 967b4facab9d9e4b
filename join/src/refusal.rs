//! Why a login is refused: one plain sentence for the user, one line with the cause for the
//! operator.
//!
//! All sentences that users read are in this file. The causes are where each refusal happens.

use nix::errno::Errno;
use std::fmt;

/// Why a login is refused. It selects the sentence that the user reads. The operator reads
/// [`Refusal::cause`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The account is not a container that exists here.
    NoContainer,
    /// Container users log in with keys; no password module may run for them.
    KeysOnly,
    /// The container has no pid 1, or it ended during the login.
    NotRunning,
    /// The container's pid 1 still runs its engine's program.
    Starting,
    /// The container's processes are stopped (cgroup freezer).
    Paused,
    /// As many sessions are open as `sessions=` allows.
    TooManySessions,
    /// Something that waits on the container took longer than `timeout=`.
    NotAnswering,
    /// The link is not a symbolic link that root owns, or does not lead to a container's cgroup.
    BadLink,
    /// No process of the linked cgroup is in a pid namespace of its own.
    NoPidNamespace,
    /// The linked cgroup has processes of more than one container.
    SeveralContainers,
    /// More cgroups are below the linked one than are walked.
    TooManyCgroups,
    /// The container's user namespace gives its user a number on the node that no session may have.
    BadIdMap,
    /// Root inside could reach the node through a session.
    RootTooPowerful,
    /// What listens on the socket is not the container's pid 1, or the container is not set up to
    /// be entered.
    NotTrusted,
    /// PAM or the node is not set up as this module needs it.
    Misconfigured,
    /// A system call failed that should not.
    Broken,
}

impl Reason {
    /// All of them, in the order of their values.
    pub const ALL: [Self; 16] = [
        Self::NoContainer,
        Self::KeysOnly,
        Self::NotRunning,
        Self::Starting,
        Self::Paused,
        Self::TooManySessions,
        Self::NotAnswering,
        Self::BadLink,
        Self::NoPidNamespace,
        Self::SeveralContainers,
        Self::TooManyCgroups,
        Self::BadIdMap,
        Self::RootTooPowerful,
        Self::NotTrusted,
        Self::Misconfigured,
        Self::Broken,
    ];

    /// Its name in JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoContainer => "no-container",
            Self::KeysOnly => "keys-only",
            Self::NotRunning => "not-running",
            Self::Starting => "starting",
            Self::Paused => "paused",
            Self::TooManySessions => "too-many-sessions",
            Self::NotAnswering => "not-answering",
            Self::BadLink => "bad-link",
            Self::NoPidNamespace => "no-pid-namespace",
            Self::SeveralContainers => "several-containers",
            Self::TooManyCgroups => "too-many-cgroups",
            Self::BadIdMap => "bad-id-map",
            Self::RootTooPowerful => "root-too-powerful",
            Self::NotTrusted => "not-trusted",
            Self::Misconfigured => "misconfigured",
            Self::Broken => "broken",
        }
    }

    /// What the user reads after "Container 30001 ".
    const fn sentence(self) -> &'static str {
        match self {
            Self::NoContainer => "is not on this node.",
            Self::KeysOnly => "accepts only SSH keys.",
            Self::NotRunning => "is not running. Please try again in a moment.",
            Self::Starting => "is starting. Please try again in a moment.",
            Self::Paused => "is paused. Please try again later.",
            Self::TooManySessions => "has too many open sessions.",
            Self::NotAnswering => "does not answer. Please try again in a moment.",
            Self::BadLink => {
                "cannot be entered: this node has a wrong link to it. Please ask the operator of this node."
            }
            Self::NoPidNamespace => {
                "is starting, or has no pid namespace of its own. Please ask the operator of this node if this continues."
            }
            Self::SeveralContainers => {
                "cannot be entered: its link leads to more than one container. Please ask the operator of this node."
            }
            Self::TooManyCgroups => "has too many cgroups. Please remove some, or ask the operator of this node.",
            Self::BadIdMap => {
                "cannot be entered: its user has no uid of its own on this node. Please ask the operator of this node."
            }
            Self::RootTooPowerful => {
                "cannot be entered: its root user has too much power on this node. Please ask the operator of this node."
            }
            Self::NotTrusted => "cannot be entered: its set-up failed a check. Please ask the operator of this node.",
            Self::Misconfigured => "cannot be entered: this node is not set up for it. Please ask its operator.",
            Self::Broken => "cannot be entered: this node has a problem. Please ask its operator.",
        }
    }
}

/// The error of this crate: a login that is refused.
#[derive(Debug)]
pub struct Refusal {
    /// Decides what the user reads.
    pub reason: Reason,
    /// For the operator: the step, and the name of the errno if there is one.
    pub cause: String,
}

impl Refusal {
    /// A refusal that comes from no errno.
    pub fn new(reason: Reason, cause: impl Into<String>) -> Self {
        Self { reason, cause: cause.into() }
    }

    /// A step that failed with an errno.
    pub fn failed(reason: Reason, step: impl fmt::Display, errno: Errno) -> Self {
        Self::new(reason, format!("{step}: {errno:?} ({})", errno.desc()))
    }

    /// The sentence for the user; `who` is the account's name.
    pub fn sentence(&self, who: &str) -> String {
        format!("Container {who} {}", self.reason.sentence())
    }
}

/// The cause, for the operator.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl std::error::Error for Refusal {}

/// Turns an errno into a refusal that names the step, as anyhow's `Context` does.
pub trait Context<T> {
    /// The value, or a refusal for this reason that names the step and the errno.
    fn context(self, reason: Reason, step: impl fmt::Display) -> Result<T, Refusal>;
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, reason: Reason, step: impl fmt::Display) -> Result<T, Refusal> {
        self.map_err(|errno| Refusal::failed(reason, step, errno))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, reason: Reason, step: impl fmt::Display) -> Result<T, Refusal> {
        self.map_err(|error| match error.raw_os_error() {
            Some(errno) => Refusal::failed(reason, step, Errno::from_raw(errno)),
            None => Refusal::new(reason, format!("{step}: {error}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_reads_the_step_and_the_errno_and_the_user_a_sentence() {
        let failed: nix::Result<()> = Err(Errno::ECONNREFUSED);
        let refusal = failed.context(Reason::NotRunning, "connect to run/ns.socket").unwrap_err();
        assert_eq!(refusal.cause, "connect to run/ns.socket: ECONNREFUSED (Connection refused)");
        assert_eq!(refusal.sentence("30001"), "Container 30001 is not running. Please try again in a moment.");
    }
}
