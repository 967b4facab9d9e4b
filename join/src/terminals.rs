//! Has sshd's monitor open terminals in the container's `/dev/pts`.
//!
//! The node's `/dev/pts` has no limit for each tenant: a tenant's process can keep a terminal open
//! after its session has ended, and so use up all terminals of the machine (`kernel.pty.max`). So
//! the monitor gets a mount namespace of its own, in which the container's `/dev/pts` covers the
//! node's. That has a limit of its own (`max=` in the kernel's
//! Documentation/filesystems/devpts.rst), and tty(1) finds the terminal's name in the container.
//!
//! Only sshd's monitor is changed here, not the session's processes.

use crate::attach::Attachment;
use crate::deadline::Deadline;
use crate::helper;
use crate::mountinfo;
use crate::proc::Proc;
use crate::refusal::{Context, Reason, Refusal};
use crate::sys::{self, retry};
use caps::Capability;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::{Mode, fstat, stat};
use nix::sys::statfs::{DEVPTS_SUPER_MAGIC, fstatfs};
use nix::unistd::{mkdir, symlinkat};
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;

/// Whose terminals they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Terminals {
    /// Those of the container's `/dev/pts`.
    Container,
    /// Those of a devpts that only this connection has.
    Connection,
    /// The node's: its `/dev/pts` is bound into the container.
    Node,
}

impl Terminals {
    const ALL: [Self; 3] = [Self::Container, Self::Connection, Self::Node];
}

impl fmt::Display for Terminals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Container => "of the container's /dev/pts",
            Self::Connection => "of a /dev/pts of this connection's own",
            Self::Node => "of the node's /dev/pts, which the container shares",
        })
    }
}

const DIRECTORY: &str = "/dev/pts";

/// A connection's own devpts: gid 5 is tty on Debian, and sshd sets owner and mode of each
/// terminal.
const DEVPTS_OPTIONS: &str = "newinstance,gid=5,mode=620,ptmxmode=666,max=64";

impl Attachment {
    /// In sshd's monitor, before it opens a terminal: moves it to a mount namespace of its own, in
    /// which `/dev/pts` is the session's.
    pub fn take_terminals(&self, deadline: Deadline) -> Result<Terminals, Refusal> {
        let (terminals, mount_namespace) = self.make_terminals(deadline)?;
        mount_namespace.map_or(Ok(()), |mount_namespace| enter(&mount_namespace))?;
        Ok(terminals)
    }

    /// A dry run: makes the namespace, and does not enter it.
    pub fn try_terminals(&self, deadline: Deadline) -> Result<Terminals, Refusal> {
        self.make_terminals(deadline).map(|(terminals, _)| terminals)
    }

    /// Makes the namespace in a helper, so that the monitor waits until the deadline at most: each
    /// mount needs a lock that all namespaces share, and a tenant who copies many mounts can hold
    /// it for some time.
    fn make_terminals(&self, deadline: Deadline) -> Result<(Terminals, Option<OwnedFd>), Refusal> {
        let (ours, helpers) =
            retry(|| socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC))
                .context(Reason::Broken, "make a socket pair")?;
        let found = helper::run("prepares /dev/pts", deadline, || {
            let terminals = self.make_namespace()?;
            if terminals != Terminals::Node {
                let mount_namespace = own_mount_namespace()?;
                sys::send_descriptor(&helpers, &mount_namespace)
                    .context(Reason::Broken, "hand over the monitor's mount namespace")?;
            }
            Ok(Terminals::ALL.iter().position(|kind| *kind == terminals).unwrap_or_default())
        })?;
        drop(helpers);
        let mount_namespace =
            sys::receive_descriptor(&ours).context(Reason::Broken, "take over the monitor's mount namespace")?;
        match Terminals::ALL.get(found) {
            Some(terminals) if mount_namespace.is_none() == (*terminals == Terminals::Node) => {
                Ok((*terminals, mount_namespace))
            }
            _ => Err(Refusal::new(Reason::Broken, "the helper has made no mount namespace")),
        }
    }

    /// In the helper.
    fn make_namespace(&self) -> Result<Terminals, Refusal> {
        let ours = retry(|| stat(DIRECTORY)).context(Reason::Misconfigured, "look at the node's /dev/pts")?.st_dev;
        let theirs = if self.can_look_up_dev_safely() { self.open_terminals()? } else { None };
        if let Some(theirs) = &theirs {
            let theirs = retry(|| fstat(theirs)).context(Reason::Broken, "fstat the container's /dev/pts")?;
            if theirs.st_dev == ours {
                return Ok(Terminals::Node);
            }
        }
        begin_mount_namespace()?;
        hide_login_records()?;
        let terminals = match theirs {
            Some(theirs) => {
                mounted(sys::move_mount(&theirs, DIRECTORY), "mount the container's /dev/pts for sshd's monitor")?;
                Terminals::Container
            }
            None => {
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
                let made = retry(|| mount(Some("devpts"), DIRECTORY, Some("devpts"), flags, Some(DEVPTS_OPTIONS)));
                mounted(made, "mount a devpts for sshd's monitor")?;
                Terminals::Connection
            }
        };
        redirect_ptmx()?;
        Ok(terminals)
    }

    /// Whether a lookup in the container's `/dev` cannot wait on a file system that the tenant has
    /// mounted. To change pid 1's mounts, a process inside needs CAP_SYS_ADMIN in the user
    /// namespace that owns them. Of a linked container this is only likely: pid 1 may have had the
    /// capability before.
    fn can_look_up_dev_safely(&self) -> bool {
        !self.has_user_namespace()
            && (!self.leader().is_linked() || self.bounding_set() & Capability::CAP_SYS_ADMIN.bitmask() == 0)
    }

    /// A copy of the mount on the container's `/dev/pts`, if that is a devpts. The helper joins the
    /// mount namespace for it, and returns.
    fn open_terminals(&self) -> Result<Option<OwnedFd>, Refusal> {
        let here = own_mount_namespace()?;
        let process = &self.leader().proc;
        let mounts = || process.open("mountinfo").context(Reason::NotRunning, "open the mounts of its pid 1");
        let mounts = if self.leader().is_linked() { Some(mounts()?.into()) } else { None };
        self.join_mount_namespace()?;
        let opened = if mounts.is_some() { open_pts_cached() } else { open_pts() }?;
        let found = opened.map_or(Ok(None), |opened| copy_of_the_mount(&opened, mounts))?;
        retry(|| setns(&here, CloneFlags::CLONE_NEWNS))
            .context(Reason::Broken, "return to the node's mount namespace")?;
        Ok(found)
    }
}

fn own_mount_namespace() -> Result<OwnedFd, Refusal> {
    Proc::of_self().and_then(|own| own.open("ns/mnt")).context(Reason::Broken, "open our own mount namespace")
}

/// In the monitor. setns(2) changes the root directory to that of the namespace, so an sshd in a
/// chroot(2) would leave it: it is refused.
fn enter(mount_namespace: &OwnedFd) -> Result<(), Refusal> {
    let root = || retry(|| stat("/")).map(|root| (root.st_dev, root.st_ino)).context(Reason::Broken, "look at /");
    let before = root()?;
    retry(|| setns(mount_namespace, CloneFlags::CLONE_NEWNS))
        .context(Reason::Broken, "give sshd's monitor its mount namespace")?;
    if root()? == before {
        return Ok(());
    }
    Err(Refusal::new(Reason::Misconfigured, "sshd's root directory is not that of its mount namespace"))
}

/// In the container's mount namespace. No symbolic link is followed.
fn open_pts() -> Result<Option<OwnedFd>, Refusal> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = retry(|| open("/dev", flags, Mode::empty()))
        .and_then(|devices| retry(|| openat(&devices, "pts", flags, Mode::empty())));
    match opened {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        opened => opened.context(Reason::Broken, "open the container's /dev/pts").map(Some),
    }
}

/// Like [`open_pts`], if a file system that the tenant has mounted could keep us waiting, for good
/// if it is FUSE: not even SIGKILL ends that. What is mounted is in the kernel's cache.
fn open_pts_cached() -> Result<Option<OwnedFd>, Refusal> {
    match sys::open_cached(AT_FDCWD, DIRECTORY) {
        // Before Linux 5.12 nobody can look without asking.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EAGAIN | Errno::EINVAL | Errno::ENOSYS) => Ok(None),
        opened => opened.context(Reason::Broken, "open the container's /dev/pts").map(Some),
    }
}

/// Copies the mount if it is a devpts. statfs(2) could hang on a file system of a linked container,
/// so for those `mounts` (mountinfo) says what it is.
fn copy_of_the_mount(opened: &OwnedFd, mounts: Option<File>) -> Result<Option<OwnedFd>, Refusal> {
    let is_devpts = match mounts {
        None => {
            let status = retry(|| fstatfs(opened)).context(Reason::Broken, "fstatfs the container's /dev/pts")?;
            status.filesystem_type() == DEVPTS_SUPER_MAGIC
        }
        Some(mounts) => {
            let mount = sys::file_id(opened).context(Reason::Broken, "look at the container's /dev/pts")?.mount;
            let mount = mountinfo::find(mounts, mount).context(Reason::NotRunning, "read the mounts of its pid 1")?;
            mount.is_some_and(|mount| mount.filesystem == "devpts")
        }
    };
    if !is_devpts {
        return Ok(None);
    }
    mounted(sys::clone_mount(opened), "copy the mount of the container's /dev/pts").map(Some)
}

/// The result of open_tree(2), move_mount(2) or mount(2). EPERM can come from a seccomp filter that
/// denies only this call.
fn mounted<T>(done: nix::Result<T>, step: &str) -> Result<T, Refusal> {
    match done {
        Err(errno @ Errno::EPERM) => {
            let step = format!("{step} (does sshd's service have SystemCallFilter=?)");
            Err(Refusal::failed(Reason::Misconfigured, step, errno))
        }
        done => done.context(Reason::Broken, step),
    }
}

/// Mounts made in it from here on stay there, and later mounts and unmounts of the node appear in
/// it (MS_SLAVE).
fn begin_mount_namespace() -> Result<(), Refusal> {
    match retry(|| unshare(CloneFlags::CLONE_NEWNS)) {
        Err(errno @ Errno::EPERM) => {
            let step = "give sshd's monitor a mount namespace (does its service have RestrictNamespaces=?)";
            return Err(Refusal::failed(Reason::Misconfigured, step, errno));
        }
        unshared => unshared.context(Reason::Broken, "give sshd's monitor a mount namespace")?,
    }
    let changed = retry(|| mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>));
    mounted(changed, "keep the monitor's mounts from the node")
}

/// The node's `/dev/ptmx` opens a terminal of the devpts on /dev/pts next to it, unless it is a
/// bind mount from another devpts.
fn redirect_ptmx() -> Result<(), Refusal> {
    let here = retry(|| stat(DIRECTORY)).context(Reason::Broken, "look at the session's /dev/pts")?.st_dev;
    let ptmx = retry(|| stat("/dev/ptmx")).context(Reason::Misconfigured, "look at /dev/ptmx")?.st_dev;
    let devices = retry(|| stat("/dev")).context(Reason::Misconfigured, "look at /dev")?.st_dev;
    if ptmx == here || ptmx == devices {
        return Ok(());
    }
    bind("/dev/pts/ptmx", "/dev/ptmx").context(Reason::Broken, "bind the session's ptmx")
}

/// Gives sshd empty utmp(5), wtmp and wtmpdb(8) files of this connection: the session's terminals
/// have the same names as the node's, whose lines sshd would overwrite. lastlog, an array by uid,
/// stays the node's.
///
/// The tmpfs is covered by the devpts later. Whole directories are covered, because a mount on a
/// file moves with it when logrotate(8) renames it.
fn hide_login_records() -> Result<(), Refusal> {
    let keep = "keep the session from the node's records";
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    retry(|| mount(Some("tmpfs"), DIRECTORY, Some("tmpfs"), flags, Some("mode=700,size=64k,nr_inodes=16")))
        .context(Reason::Broken, keep)?;
    let [utmp, log, lastlog] = ["utmp", "log", "log/lastlog"].map(|name| format!("{DIRECTORY}/{name}"));
    retry(|| mkdir(log.as_str(), Mode::S_IRWXU))
        .and_then(|()| retry(|| symlinkat("/dev/null", AT_FDCWD, format!("{log}/wtmp").as_str())))
        .context(Reason::Broken, keep)?;
    File::create(&utmp).and_then(|_| File::create(&lastlog)).context(Reason::Broken, keep)?;
    let covered = [
        (utmp.as_str(), "/run/utmp"),
        ("/var/log/lastlog", &lastlog),
        (&log, "/var/log"),
        (&log, "/var/lib/wtmpdb"),
        (&log, "/run/wtmpdb"),
    ];
    for (what, place) in covered {
        match bind(what, place) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(Refusal::failed(Reason::Broken, format!("{keep}: bind over {place}"), errno)),
        }
    }
    Ok(())
}

fn bind(what: &str, place: &str) -> nix::Result<()> {
    retry(|| mount(Some(what), place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>))
}
