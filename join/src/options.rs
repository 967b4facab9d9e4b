//! Parses the options of a PAM line. Each of the three lines accepts the same ones.
//!
//! Options come from nowhere else: there is no file and no environment variable.

use crate::namespaces::Kind;
use crate::refusal::{Reason, Refusal};
use crate::sessions;
use shared::{decimal, escape};
use std::time::Duration;

/// The options of one line.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// `debug`: log each step at LOG_DEBUG.
    pub debug: bool,
    /// `timeout=SECONDS`: give up after this many seconds if the container does not respond; 1 to
    /// 60, default 3.
    pub timeout: Duration,
    /// `namespaces=LIST`: the kinds to join where the container's differ from the host's; default
    /// all. `mnt` and `pid` must be in it.
    pub namespaces: Vec<Kind>,
    /// `cgroup=optional` lets a container in that has no cgroup of its own; default
    /// `cgroup=required`.
    pub cgroup_required: bool,
    /// `sessions=N`: how many sessions a container may have at once, 1 to 1024, default 64.
    pub sessions: u32,
    /// `join=now`: the application itself enters, in open_session. For services that never call
    /// setcred in a child: su, login, cron.
    pub join_now: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            debug: false,
            timeout: Duration::from_secs(3),
            namespaces: Kind::ALL.to_vec(),
            cgroup_required: true,
            sessions: 64,
            join_now: false,
        }
    }
}

impl Options {
    /// Reads the words after the module's name. An unknown word is an error, so that no misspelt
    /// restriction is ignored.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, Refusal> {
        let mut options = Self::default();
        for word in words {
            let word = String::from_utf8_lossy(word);
            match word.split_once('=') {
                None if word == "debug" => options.debug = true,
                Some(("timeout", seconds)) => options.timeout = parse_timeout(seconds)?,
                Some(("namespaces", list)) => options.namespaces = parse_namespaces(list)?,
                Some(("sessions", number)) => options.sessions = parse_sessions(number)?,
                Some(("cgroup", "required")) => options.cgroup_required = true,
                Some(("join", "now")) => options.join_now = true,
                Some(("cgroup", "optional")) => options.cgroup_required = false,
                _ => return Err(bad(format!("unknown option: {}", escape::name(word.as_ref())))),
            }
        }
        Ok(options)
    }
}

fn parse_timeout(seconds: &str) -> Result<Duration, Refusal> {
    match decimal(seconds) {
        Some(seconds @ 1..=60) => Ok(Duration::from_secs(seconds)),
        _ => Err(bad(format!("option timeout={}: a number of seconds from 1 to 60 is needed", escape::name(seconds)))),
    }
}

fn parse_sessions(number: &str) -> Result<u32, Refusal> {
    match decimal(number) {
        Some(sessions @ 1..=sessions::MAX_SESSIONS) => Ok(sessions),
        _ => Err(bad(format!(
            "option sessions={}: a number of sessions from 1 to {} is needed",
            escape::name(number),
            sessions::MAX_SESSIONS
        ))),
    }
}

fn parse_namespaces(list: &str) -> Result<Vec<Kind>, Refusal> {
    let asked = list
        .split(',')
        .map(|name| {
            Kind::named(name)
                .ok_or_else(|| bad(format!("option namespaces=: no namespace is called {}", escape::quoted(name))))
        })
        .collect::<Result<Vec<_>, _>>()?;
    for needed in ["mnt", "pid"] {
        if !asked.iter().any(|kind| kind.name == needed) {
            return Err(bad(format!(
                "option namespaces=: {needed} must be in it, because a session never stays in the node's"
            )));
        }
    }
    // They are joined in the order of the table, not of the option.
    Ok(Kind::ALL.iter().filter(|kind| asked.contains(kind)).copied().collect())
}

fn bad(cause: String) -> Refusal {
    Refusal::new(Reason::Misconfigured, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::as_bytes)).map_err(|refusal| refusal.cause)
    }

    #[test]
    fn no_words_are_the_defaults() {
        assert_eq!(parse(""), Ok(Options::default()));
    }

    #[test]
    fn each_option_is_read() {
        let options = parse("debug timeout=10 namespaces=uts,mnt,pid cgroup=optional sessions=1024 join=now").unwrap();
        assert!(options.debug && !options.cgroup_required && options.join_now);
        assert_eq!((options.timeout, options.sessions), (Duration::from_secs(10), 1024));
        let names: Vec<_> = options.namespaces.iter().map(|kind| kind.name).collect();
        assert_eq!(names, ["pid", "uts", "mnt"], "the mount namespace stays last");
    }

    #[test]
    fn what_is_not_known_refuses() {
        for line in [
            "debig",
            "debug=1",
            "timeout",
            "timeout=",
            "timeout=0",
            "timeout=61",
            "timeout=-1",
            "timeout=+3",
            "timeout=3s",
            "sessions",
            "sessions=",
            "sessions=0",
            "sessions=1025",
            "sessions=-1",
            "sessions=+1",
            "sessions=two",
            "cgroup",
            "cgroup=no",
            "namespaces=",
            "namespaces=mnt",
            "namespaces=pid,uts",
            "namespaces=mnt,pid,user",
            "join=later",
            "DEBUG",
            "namespaces=mnt,pid,",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
