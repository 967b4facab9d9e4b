//! The process that answers ssh on this node, and its sandbox: a login has that, and not what the
//! operator has.

use super::sockets::{Socket, sockets};
use crate::sys;
use anyhow::{Context, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};
use join::cgroups::Hierarchies;
use join::proc::{Proc, Status};
use join::sys::{limit_bounding_set, with_errno};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_no_new_privs;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

/// The process that accepts connections to sshd.
pub enum Server {
    /// sshd, by its pid.
    Sshd(i32),
    /// systemd, which starts an sshd for each connection (ssh.socket); and where sshd itself would
    /// listen.
    Socket(Vec<SocketAddr>),
    /// An unknown process.
    Unknown,
}

/// The process that listens on these addresses of sshd; `None` if there is none, and no other sshd.
pub fn find(addresses: &[SocketAddr]) -> Option<Server> {
    let Ok(sockets) = sockets() else { return Some(Server::Unknown) };
    let ports: Vec<_> = addresses.iter().map(SocketAddr::port).collect();
    let is_sshds = |socket: &&Socket| socket.listens && ports.contains(&socket.local.port());
    let inodes: HashSet<_> = sockets.iter().filter(is_sshds).map(|socket| socket.inode).collect();
    let owners = owners(&inodes);
    if let Some(pid) = owners.iter().copied().find(|pid| is_listener(*pid)) {
        return Some(Server::Sshd(pid));
    }
    let is_systemd = owners.iter().any(|pid| name_of(*pid).as_deref() == Some("systemd"));
    match (is_systemd, inodes.is_empty()) {
        (true, _) => Some(Server::Socket(addresses.to_vec())),
        (false, false) => Some(Server::Unknown),
        (false, true) => listener().map(Server::Sshd), // it may listen on other ports
    }
}

/// An sshd that listens somewhere. A tenant may name a process alike, but that is not root's in
/// this pid namespace.
pub fn listener() -> Option<i32> {
    pids().find(|pid| is_listener(*pid))
}

fn pids() -> impl Iterator<Item = i32> {
    join::proc::pids().into_iter().flatten()
}

/// Reads the command line only of root processes outside of containers: reading it takes the lock
/// of the process's memory, which a tenant can hold for seconds (fork(2) with SCHED_IDLE).
fn is_listener(pid: i32) -> bool {
    if !is_roots_process(pid) {
        return false;
    }
    let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let title = String::from_utf8_lossy(&title);
    title.starts_with("sshd: ") && title.contains("[listener]")
}

fn is_roots_process(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/status")).is_ok_and(|status| is_roots(&String::from_utf8_lossy(&status)))
}

/// /proc/PID/status, proc_pid_status(5): of root, and of no pid namespace but ours.
fn is_roots(status: &str) -> bool {
    let status = Status::new(status);
    status.uids().is_some_and(|uids| uids == [0; 4]) && status.nspid().is_some_and(|pids| pids.len() == 1)
}

fn name_of(pid: i32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// The processes of root that have one of these sockets open.
fn owners(inodes: &HashSet<u64>) -> Vec<i32> {
    let has = |pid: &i32| {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        links.filter_map(|link| fs::read_link(link.path()).ok()).any(|link| {
            let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            inode.is_some_and(|inode| inodes.contains(&inode))
        })
    };
    pids().filter(|pid| !inodes.is_empty() && is_roots_process(*pid) && has(pid)).collect()
}

/// An sshd that answers us, as it answers every client. With ssh.socket there is none until
/// somebody connects.
pub struct Answering {
    pub pid: i32,
    #[expect(dead_code, reason = "the process lives as long as the connection")]
    connection: Option<TcpStream>,
}

impl Server {
    /// The process; `None` if it is not known.
    pub fn answer(&self) -> Result<Option<Answering>> {
        const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
        let addresses = match self {
            Self::Sshd(pid) => return Ok(Some(Answering { pid: *pid, connection: None })),
            Self::Unknown => return Ok(None),
            Self::Socket(addresses) => addresses.iter().copied().map(reachable),
        };
        // systemd's socket need not be where sshd would listen itself, but for the port.
        let connect =
            |address: SocketAddr| Some((address, TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).ok()?));
        let Some((address, mut connection)) = addresses.into_iter().find_map(connect) else {
            bail!("systemd listens for sshd, and accepts no connection on this machine's own addresses")
        };
        connection.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        let mut banner = [0; 4];
        connection.read_exact(&mut banner).with_context(|| format!("{address}: no sshd answers"))?;
        let (ours, theirs) = (connection.local_addr()?.port(), address.port());
        let is_it = |socket: &&Socket| (socket.local.port(), socket.remote.port()) == (theirs, ours);
        let inodes = sockets().unwrap_or_default().iter().filter(is_it).map(|socket| socket.inode).collect();
        match owners(&inodes).first() {
            Some(pid) => Ok(Some(Answering { pid: *pid, connection: Some(connection) })),
            None => bail!("{address}: the process of the sshd that answers cannot be seen"),
        }
    }
}

/// Where a socket that is bound to no address in particular is reached.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// What systemd and sshd leave a process of sshd: namespaces, cgroups, capabilities and system
/// calls.
pub struct Sandbox {
    namespaces: Vec<(File, CloneFlags)>,
    cgroups: Vec<PathBuf>,
    bounding: u64,
    permitted: u64,
    no_new_privs: bool,
    filters: Vec<sys::Filter>,
}

/// The mount namespace last: what comes before it happens on the node.
const NAMESPACES: [(&str, CloneFlags); 5] = [
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("net", CloneFlags::CLONE_NEWNET),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// With cgroup v2 they are all in one.
const CONTROLLERS: [&str; 8] = ["pids", "memory", "cpu", "cpuset", "freezer", "devices", "blkio", "cpuacct"];

impl Sandbox {
    pub fn of(pid: i32) -> Result<Self> {
        let status = |of: &str| fs::read_to_string(format!("/proc/{of}/status"));
        let (theirs, ours) = (status(&pid.to_string())?, status("self")?);
        let (sshds, own_status) = (Status::new(&theirs), Status::new(&ours));
        let mut namespaces = Vec::new();
        for (name, kind) in NAMESPACES {
            let path = format!("/proc/{pid}/ns/{name}");
            if fs::read_link(&path).with_context(|| path.clone())? != fs::read_link(format!("/proc/self/ns/{name}"))? {
                namespaces.push((File::open(&path)?, kind));
            }
        }
        let hierarchies = Hierarchies::mounted()?;
        let (process, own) = (Proc::of(pid)?, Proc::of_self()?);
        let groups = CONTROLLERS.iter().filter_map(|controller| hierarchies.for_controller(&process, &own, controller));
        let mut cgroups: Vec<_> = groups.filter_map(|(_, directories)| directories.into_iter().next()).collect();
        cgroups.sort();
        cgroups.dedup();
        // Those that we have as well were there before either of us.
        let has_filters = sshds.field("Seccomp_filters") != own_status.field("Seccomp_filters");
        let has_filters = has_filters && sshds.field("Seccomp") == Some("2");
        Ok(Self {
            namespaces,
            cgroups,
            bounding: mask(&theirs, "CapBnd")?,
            permitted: mask(&theirs, "CapPrm")?,
            no_new_privs: sshds.field("NoNewPrivs") == Some("1"),
            filters: if has_filters {
                sys::seccomp_filters(pid).context("read sshd's seccomp filters")?
            } else {
                Vec::new()
            },
        })
    }

    /// Puts the calling process, which has one thread, into the sandbox for good.
    pub fn enter(&self) -> Result<()> {
        for cgroup in &self.cgroups {
            let file = cgroup.join("cgroup.procs");
            fs::write(&file, b"0").with_context(|| file.display().to_string())?;
        }
        for (namespace, kind) in &self.namespaces {
            setns(namespace, *kind).with_context(|| format!("join sshd's namespace ({kind:?})"))?;
        }
        limit_bounding_set(self.bounding).context("bound capabilities as sshd's are")?;
        if self.no_new_privs {
            set_no_new_privs().context("set no_new_privs")?;
        }
        // Installing a filter takes CAP_SYS_ADMIN, which sshd may have had until then.
        for filter in self.filters.iter().rev() {
            sys::install_seccomp_filter(filter).context("install sshd's seccomp filter")?;
        }
        let permitted: CapsHashSet =
            caps::all().into_iter().filter(|one| self.permitted & one.bitmask() != 0).collect();
        for set in [CapSet::Effective, CapSet::Permitted] {
            with_errno(|| caps::set(None, set, &permitted)).context("take over sshd's capabilities")?;
        }
        Ok(())
    }

    /// What root has and this does not, for people; nothing if there is no difference.
    pub fn limits(&self) -> Option<String> {
        let missing: Vec<_> = SOMETIMES_MISSED
            .iter()
            .filter(|one| self.permitted & one.bitmask() == 0)
            .map(ToString::to_string)
            .collect();
        let mut limits = Vec::new();
        if !missing.is_empty() {
            limits.push(format!("without {}", missing.join(" ")));
        }
        if self.namespaces.iter().any(|(_, kind)| *kind == CloneFlags::CLONE_NEWNS) {
            limits.push("in a mount namespace of its own".to_owned());
        }
        if !self.filters.is_empty() {
            limits.push("with a seccomp filter".to_owned());
        }
        (!limits.is_empty()).then(|| limits.join(", "))
    }
}

/// Those that a login needs, and that a sandbox sometimes takes away.
const SOMETIMES_MISSED: [Capability; 7] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_DAC_READ_SEARCH,
];

fn mask(status: &str, name: &str) -> Result<u64> {
    Status::new(status).capabilities(name).map_err(anyhow::Error::msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_roots_here() {
        assert!(is_roots("Name:\tsshd\nUid:\t0\t0\t0\t0\nNSpid:\t7\n"));
        assert!(!is_roots("Uid:\t0\t0\t0\t0\nNSpid:\t7\t2\n"));
        assert!(!is_roots("Uid:\t0\t30001\t0\t0\nNSpid:\t7\n"));
        assert!(!is_roots(""));
    }

    #[test]
    fn an_address_of_no_interface_is_reached_by_loopback() {
        assert_eq!(reachable("0.0.0.0:22".parse().unwrap()), "127.0.0.1:22".parse().unwrap());
        assert_eq!(reachable("[::]:22".parse().unwrap()), "[::1]:22".parse().unwrap());
    }

    #[test]
    fn our_own_sandbox_limits_nothing() {
        let own = Sandbox::of(std::process::id() as i32).unwrap();
        assert!(own.namespaces.is_empty() && own.cgroups.is_empty() && own.filters.is_empty());
    }
}
