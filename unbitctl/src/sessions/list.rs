//! Lists the open sessions, from the locks and records of their monitors.

use crate::list::processes::{Clock, started};
use anyhow::{Context, Result};
use join::session_record::Record;
use join::sessions::{self, OpenSession};
use serde::{Serialize, Serializer};
use shared::{ContainerUid, escape};
use std::fmt;
use std::fs;
use std::path::Path;

/// The name of a session: the number of the process that holds its lock, and a suffix made from
/// when that process started, so that another process that gets the number one day makes no session
/// of the same name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Id {
    pub pid: i32,
    mark: u16,
}

impl Id {
    fn of(pid: i32, ticks: u64) -> Self {
        Self { pid, mark: (ticks & u64::from(u16::MAX)) as u16 }
    }

    /// An argument.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = || {
            let (pid, mark) = text.split_once('-')?;
            let id = Self { pid: pid.parse().ok()?, mark: u16::from_str_radix(mark, 16).ok()? };
            (id.pid > 0 && id.to_string() == text).then_some(id)
        };
        parts().ok_or_else(|| "an ID is as `unbitctl sessions` shows it, such as 48213-0f3a".to_owned())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:04x}", self.pid, self.mark)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A session. `None` is nothing there, or not known yet.
#[derive(Clone, Debug, Serialize)]
pub struct Session {
    pub id: Id,
    pub uid: u32,
    /// Since 1970.
    pub since_seconds: Option<u64>,
    pub service: Option<String>,
    pub address: Option<String>,
    pub port: Option<u16>,
    pub terminals: Vec<String>,
    pub key: Option<String>,
    /// The process on the node that the session belongs to.
    pub pid: i32,
}

impl Session {
    /// The client's address and port, as in a URL.
    pub fn from(&self) -> Option<String> {
        let address = self.address.as_ref()?;
        Some(match self.port {
            None => address.clone(),
            Some(port) if address.contains(':') => format!("[{address}]:{port}"),
            Some(port) => format!("{address}:{port}"),
        })
    }
}

/// Those of a container, or of all, by uid and age.
pub fn sessions(container: Option<ContainerUid>) -> Result<Vec<Session>> {
    let directory = Path::new(sessions::DIRECTORY);
    let clock = Clock::new()?;
    let containers = match container {
        Some(container) => vec![container],
        None => sessions::containers(directory).context(sessions::DIRECTORY)?,
    };
    let mut all = Vec::new();
    for container in containers {
        let open = sessions::open_sessions(directory, container);
        let open = open.with_context(|| format!("{}/{container}", sessions::DIRECTORY))?;
        all.extend(open.into_iter().filter_map(|open| session(container, open, clock)));
    }
    all.sort_by_key(|session| (session.uid, session.since_seconds, session.pid));
    Ok(all)
}

/// Nothing if it has ended since.
fn session(container: ContainerUid, open: OpenSession, clock: Clock) -> Option<Session> {
    let ticks = started(open.pid)?;
    let started = clock.milliseconds(ticks);
    // A record older than the process belongs to an earlier process with this pid.
    let record = open.record.filter(|record| record.opened >= started);
    let opened = record.as_ref().map_or(started, |record| record.opened);
    let record = record.unwrap_or_default();
    // Escaped by pam_unbit already, but not trusted here.
    let text = |text: &str| (!text.is_empty()).then(|| escape::line(text).to_string());
    Some(Session {
        id: Id::of(open.pid, ticks),
        uid: container.get(),
        since_seconds: Some(clock.time_of(opened)),
        service: text(&record.service),
        address: text(&record.address),
        port: record.port.parse().ok(),
        terminals: terminals(open.pid, &record).iter().filter_map(|terminal| text(terminal)).collect(),
        key: text(&record.key),
        pid: open.pid,
    })
}

/// For sshd, those whose other end the monitor has open (`mm_answer_pty` of OpenSSH's `monitor.c`),
/// as the container calls them. Else the one that the application has told PAM.
fn terminals(pid: i32, record: &Record) -> Vec<String> {
    match record.service.as_str() {
        "sshd" => terminals_of(pid),
        // cron's PAM_TTY is its own name.
        _ if record.terminal == record.service => Vec::new(),
        _ => vec![record.terminal.trim_start_matches("/dev/").to_owned()],
    }
}

fn terminals_of(pid: i32) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = descriptors
        .filter(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|path| path.ends_with("ptmx")))
        .filter_map(|descriptor| {
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", descriptor.file_name().to_str()?)).ok()?;
            info.lines().find_map(|line| line.strip_prefix("tty-index:")?.trim().parse().ok())
        })
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.iter().map(|number| format!("pts/{number}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_typed_as_it_is_shown() {
        let id = Id::of(48213, 0x1234_0f3a);
        assert_eq!(id.to_string(), "48213-0f3a");
        assert_eq!(Id::parse("48213-0f3a"), Ok(id));
        for text in ["48213", "48213-", "-1-0f3a", "0-0f3a", "48213-f3a", "48213-0F3A", "48213-10f3a", "+1-0f3a", ""] {
            assert!(Id::parse(text).is_err(), "{text}");
        }
    }
}
