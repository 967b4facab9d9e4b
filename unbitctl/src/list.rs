//! `unbitctl list`: the containers of this node, one on each line.
//!
//! Whether a container runs is found out as for a login ([`join::attach`]). The rest comes from one
//! read of /proc and from the container's cgroups. No file of a tenant is opened.

mod metrics;
pub mod processes;
pub mod resources;
mod table;
mod watch;

use crate::columns::Window;
use crate::rootfs::RootFs;
use crate::{containers, engine, names, report};
use anyhow::{Context, Result};
use join::attach::Attachment;
use join::options::Options;
use join::refusal::{Reason, Refusal};
use join::sessions;
use nix::sys::utsname::uname;
use processes::{Process, Processes};
use resources::{Resources, Usage};
use serde::Serialize;
use shared::settings::CONTAINERS;
use shared::{ContainerUid, escape};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub const EXAMPLES: &str = "\
Examples:
  unbitctl list
  unbitctl list --watch             again every 2 seconds, until q or Ctrl-C
  unbitctl list --json | jq '.[] | select(.state != \"running\") | .uid'
  unbitctl list --openmetrics >/var/lib/prometheus/node-exporter/unbit.prom.new

Columns:
  NAME      its second names (symbolic links in /containers); no column if no container has one
  ENGINE    what runs it, according to its link in /etc/unbit; uwsgi if it has no link
  STATE     running, or why a login would be refused; the cause is below the table
  SESSIONS  open sessions, see unbitctl sessions
  TASKS     processes and threads in its pids cgroup, and the limit
  OOM       processes that the kernel killed because its memory was full
  MEMORY    memory used by its memory cgroup, and the limit
  CPU       time used by its cgroup, in hours:minutes:seconds; with --watch, percent of one processor since the last refresh
  PID       its pid 1 on this node, and when that started
  QUOTA     disk space used by its user on the file system of /containers, and the limit

Columns that do not fit into the terminal (or 80 columns without one) are left out; --wide shows all.
'-' means that there is none; '?' that only root can see it.";

#[derive(clap::Args)]
pub struct Arguments {
    /// Refresh every 2 seconds, until q is typed; needs a terminal
    #[arg(long, conflicts_with_all = ["json", "openmetrics"])]
    watch: bool,
    /// Show every column in full, whatever the width of the terminal
    #[arg(long, conflicts_with_all = ["json", "openmetrics"])]
    wide: bool,
    /// Print JSON, with sizes in bytes and times in seconds
    #[arg(long, conflicts_with = "openmetrics")]
    json: bool,
    /// Print metrics for the textfile collector of Prometheus' node_exporter
    #[arg(long)]
    openmetrics: bool,
}

/// A container, as far as it can be seen. `None` is nothing there, or not for us to see.
#[derive(Clone, Debug, Serialize)]
struct Container {
    uid: u32,
    /// Second names.
    names: Vec<String>,
    address: Option<Ipv4Addr>,
    host_name: Option<String>,
    engine: &'static str,
    state: State,
    cause: Option<String>,
    pid: Option<i32>,
    /// Since 1970.
    since_seconds: Option<u64>,
    #[serde(flatten)]
    used: Usage,
    /// When that was.
    #[serde(skip)]
    seen: Instant,
    /// Open sessions.
    sessions: Option<usize>,
}

impl Container {
    /// Percent of one processor since an earlier look. Nothing if it has another pid 1 now: the new
    /// one's cgroup may start at zero.
    fn share(&self, before: &Self) -> Option<f64> {
        let used = self.used.cpu_seconds? - before.used.cpu_seconds?;
        let time = self.seen.duration_since(before.seen).as_secs_f64();
        (self.pid == before.pid && used >= 0.0 && time > 0.0).then(|| used / time * 100.0)
    }
}

impl Serialize for State {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What a login would find; all but the first and the last are reasons of refusals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Running,
    NoAccount,
    NotRunning,
    Starting,
    Paused,
    NotAnswering,
    NotTrusted,
    Misconfigured,
    Broken,
    /// Only root can ask.
    Unknown,
}

impl State {
    const ALL: [Self; 10] = [
        Self::Running,
        Self::NoAccount,
        Self::NotRunning,
        Self::Starting,
        Self::Paused,
        Self::NotAnswering,
        Self::NotTrusted,
        Self::Misconfigured,
        Self::Broken,
        Self::Unknown,
    ];

    /// Its name for machines; with spaces it is the one for people.
    const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::NoAccount => "no-account",
            Self::NotRunning => "not-running",
            Self::Starting => "starting",
            Self::Paused => "paused",
            Self::NotAnswering => "not-answering",
            Self::NotTrusted => "not-trusted",
            Self::Misconfigured => "misconfigured",
            Self::Broken => "broken",
            Self::Unknown => "unknown",
        }
    }

    const fn of(reason: Reason) -> Self {
        match reason {
            Reason::NoContainer | Reason::KeysOnly => Self::NoAccount,
            Reason::NotRunning => Self::NotRunning,
            Reason::Starting => Self::Starting,
            Reason::Paused => Self::Paused,
            Reason::TooManySessions => Self::Running, // counted in a login alone
            Reason::NotAnswering => Self::NotAnswering,
            Reason::NoPidNamespace | Reason::SeveralContainers | Reason::TooManyCgroups => Self::NotTrusted,
            Reason::BadIdMap | Reason::RootTooPowerful | Reason::NotTrusted => Self::NotTrusted,
            Reason::BadLink | Reason::Misconfigured => Self::Misconfigured,
            Reason::Broken => Self::Broken,
        }
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut scanner = Scanner::new()?;
    if arguments.watch {
        watch::run(&mut scanner, arguments.wide)?;
        return Ok(ExitCode::SUCCESS);
    }
    let containers = scanner.scan()?;
    let text = if arguments.json {
        serde_json::to_string_pretty(&containers)? + "\n"
    } else if arguments.openmetrics {
        metrics::text(&containers)
    } else {
        table::lines(&containers, None, Window::new(arguments.wide)).join("\n") + "\n"
    };
    report::print(&text)?;
    if let Some(warning) = scanner.warning() {
        crate::command_line::warn_line(warning);
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the containers again and again, and what it keeps in between.
struct Scanner {
    is_root: bool,
    resources: Resources,
    /// By uid: the containers that were seen to run.
    running: HashMap<u32, Known>,
}

/// A container that answered, and by which process.
#[derive(Clone)]
struct Known {
    pid: i32,
    started: u64,
    host_name: Option<String>,
    asked: Instant,
}

/// uWSGI logs a line in the container's log for each connection to the socket, so `--watch` does
/// not connect every 2 seconds.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// How long a container may take to answer. Once those that do not answer have used up
/// WORKER_TIMEOUT of every worker, the others get the short one.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);
const SHORT_PROBE_TIMEOUT: Duration = Duration::from_millis(10);
const WORKER_TIMEOUT: Duration = Duration::from_secs(1);

impl Scanner {
    fn new() -> Result<Self> {
        let is_root = nix::unistd::geteuid().is_root();
        Ok(Self { is_root, resources: Resources::new(is_root)?, running: HashMap::new() })
    }

    /// What the operator must know about the output.
    const fn warning(&self) -> Option<&'static str> {
        if self.is_root { None } else { Some("without root, states, host names, sessions and quotas are unknown") }
    }

    /// All containers, by uid.
    fn scan(&mut self) -> Result<Vec<Container>> {
        let uids = containers::all(&RootFs::at(None)).with_context(|| format!("read {CONTAINERS}"))?;
        let processes = Processes::read()?;
        let (next, waited) = (AtomicUsize::new(0), AtomicU64::new(0));
        let (known, resources) = (&self.running, &self.resources);
        let asks = |uid: ContainerUid| {
            let has_time = Duration::from_micros(waited.load(Ordering::Relaxed)) < WORKER_TIMEOUT * WORKERS;
            let timeout = self.is_root.then_some(if has_time { PROBE_TIMEOUT } else { SHORT_PROBE_TIMEOUT });
            let started = Instant::now();
            let seen = inspect(uid, &processes, known.get(&uid.get()), resources, timeout);
            if seen.0.state == State::NotAnswering {
                let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                waited.fetch_add(micros, Ordering::Relaxed);
            }
            seen
        };
        // In threads for those that keep us waiting.
        let worker = || {
            let take = || uids.get(next.fetch_add(1, Ordering::Relaxed)).copied();
            std::iter::from_fn(take).map(asks).collect::<Vec<_>>()
        };
        let mut seen: Vec<(Container, Option<Known>)> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().filter_map(|worker| worker.join().ok()).flatten().collect()
        });
        seen.sort_by_key(|(container, _)| container.uid);
        for (name, uid) in names::links(&RootFs::at(None)).iter().filter_map(names::Link::second_name) {
            if let Ok(at) = seen.binary_search_by_key(&uid.get(), |(container, _)| container.uid) {
                seen.get_mut(at).into_iter().for_each(|(container, _)| container.names.push(name.to_string()));
            }
        }
        self.running = seen.iter().filter_map(|(container, known)| Some((container.uid, known.clone()?))).collect();
        Ok(seen.into_iter().map(|(container, _)| container).collect())
    }
}

const WORKERS: u32 = 8;

/// One container. Without `timeout`, which only root has, it is not asked.
fn inspect(
    uid: ContainerUid,
    processes: &Processes,
    known: Option<&Known>,
    resources: &Resources,
    timeout: Option<Duration>,
) -> (Container, Option<Known>) {
    let still = known.filter(|known| {
        let process = processes.get(known.pid);
        known.asked.elapsed() < ASK_AGAIN_AFTER
            && process.is_some_and(|process| process.started() == Some(known.started))
    });
    let mut leader = processes.pid_1_of(uid.get());
    let (mut state, mut cause, mut running) = (State::Running, None, None);
    match (still, timeout) {
        (Some(known), _) => {
            leader = processes.get(known.pid);
            running = Some(known.clone());
        }
        (None, Some(timeout)) => match ask(uid, timeout) {
            Ok((pid, host_name)) => {
                leader = processes.get(pid);
                running = leader.and_then(Process::started).map(|started| Known {
                    pid,
                    started,
                    host_name,
                    asked: Instant::now(),
                });
            }
            Err(refusal) => {
                (state, cause) = (State::of(refusal.reason), Some(escape::line(&refusal.cause).to_string()))
            }
        },
        (None, None) => (state, cause) = from_outside(uid),
    }
    let link = join::link::target_of(uid);
    let container = Container {
        uid: uid.get(),
        names: Vec::new(),
        address: uid.address(),
        host_name: running.as_ref().and_then(|known| known.host_name.clone()),
        engine: engine::by_link(link.as_deref()),
        state,
        cause,
        pid: leader.map(|leader| leader.pid),
        since_seconds: leader.and_then(Process::started).map(|ticks| processes.time_of(ticks)),
        used: resources.usage(uid, leader, link.as_deref()),
        seen: Instant::now(),
        sessions: sessions::count(Path::new(sessions::DIRECTORY), uid),
    };
    (container, running)
}

/// Finds and verifies its pid 1 as a login does. Returns its pid and the container's host name.
fn ask(uid: ContainerUid, timeout: Duration) -> Result<(i32, Option<String>), Refusal> {
    let options = Options { timeout, ..Options::default() };
    let attachment = Attachment::prepare(uid, &options, &mut |_, _| {})?;
    // Joins the UTS namespace to ask for the host name. The worker stays there until the next one;
    // nothing else that it does depends on it.
    let own = attachment.namespaces().iter().find(|namespace| namespace.kind.name == "uts");
    let host_name = own.filter(|own| own.join().is_ok()).and_then(|_| uname().ok());
    let host_name = host_name.map(|name| escape::word(name.nodename().as_bytes()).to_string());
    Ok((attachment.leader().pid, host_name))
}

/// What everybody can see of a container: whether it is one.
fn from_outside(uid: ContainerUid) -> (State, Option<String>) {
    let home = uid.home();
    let home = home.as_c_str().to_string_lossy();
    match std::fs::metadata(home.as_ref()) {
        Ok(status) if uid.owns_directory(status.mode(), status.uid(), status.gid()) => (State::Unknown, None),
        Ok(status) => (State::NoAccount, Some(format!("{home} belongs to {}:{}", status.uid(), status.gid()))),
        Err(error) => (State::NoAccount, Some(format!("{home}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_one_pid_1_and_its_own_time() {
        let first = Instant::now();
        let at = |millis, pid, seconds| Container {
            uid: 30001,
            names: Vec::new(),
            address: None,
            host_name: None,
            engine: engine::UWSGI,
            state: State::Running,
            cause: None,
            pid,
            since_seconds: None,
            used: Usage { cpu_seconds: seconds, ..Usage::default() },
            seen: first + Duration::from_millis(millis),
            sessions: Some(0),
        };
        let before = at(0, Some(7), Some(10.0));
        assert_eq!(at(2000, Some(7), Some(11.0)).share(&before), Some(50.0));
        assert_eq!(at(500, Some(7), Some(11.0)).share(&before), Some(200.0), "two processors");
        assert_eq!(at(2000, Some(8), Some(0.5)).share(&before), None, "it was started again");
        assert_eq!(at(2000, Some(8), Some(99.0)).share(&before), None, "and is in another cgroup");
        assert_eq!(at(2000, Some(7), Some(0.5)).share(&before), None, "its cgroup is another");
        assert_eq!(at(2000, None, None).share(&before), None);
        assert_eq!(before.share(&before), None);
    }
}
