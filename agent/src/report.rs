//! The report of a job's round: what it has changed or would change, and what failed. For people,
//! as JSON, and once for the log.

use nix::sys::stat::{FileStat, fstat};
use serde::Serialize;
use shared::escape;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};

/// If there are more of one kind, they are not logged one by one.
const MAX_LINES: usize = 20;

/// Something that is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A file gets another content, or its first.
    Write,
    /// A file goes.
    Remove,
    /// A table of nftables is loaded.
    Load,
    /// Something is sent to the API.
    Send,
}

/// What is done, and to what.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Change {
    action: Action,
    /// A file, a table, or a path of the API.
    what: String,
    /// The value that is sent, or the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            Action::Write => "write",
            Action::Remove => "remove",
            Action::Load => "load",
            Action::Send => "send",
        };
        write!(f, "{action} {}", escape::line(&self.what))?;
        match &self.value {
            // A table, which is made of parsed values alone. Other values can be a tenant's text.
            Some(value) if self.action == Action::Load && value.contains('\n') => {
                f.write_str(":")?;
                let mut lines = value.lines().map(|line| line.replace('\t', "    "));
                lines.try_for_each(|line| write!(f, "\n{}", escape::line(&line)))
            }
            Some(value) => write!(f, ": {}", escape::line(value)),
            None => Ok(()),
        }
    }
}

/// One round of a job.
#[derive(Default, Debug, Serialize)]
pub struct Report {
    /// In the order in which they were made.
    pub changes: Vec<Change>,
    /// Why some were not made. The same fault has the same words in each round.
    pub problems: Vec<String>,
}

impl Report {
    /// Notes a change.
    pub fn change(&mut self, action: Action, what: impl Into<String>, value: Option<String>) {
        self.changes.push(Change { action, what: what.into(), value });
    }

    /// Notes a fault.
    pub fn problem(&mut self, error: impl fmt::Display) {
        self.problems.push(escape::line(&format!("{error:#}")).to_string());
    }
}

/// The problems of the last round, so that each is logged once while it lasts.
#[derive(Default)]
pub struct LoggedProblems(BTreeSet<String>);

impl LoggedProblems {
    /// The lines to log of a round.
    pub fn lines(&mut self, job: &str, report: &Report) -> Vec<String> {
        let changes: Vec<_> = report.changes.iter().filter(|change| change.action != Action::Send).collect();
        let now: BTreeSet<_> = report.problems.iter().cloned().collect();
        let new: Vec<_> = now.difference(&self.0).collect();
        let is_well_again = now.is_empty() && !self.0.is_empty();
        let shown = |change: &&&Change| format!("{job}: {} {}", verb(change.action), change.what);
        let mut lines: Vec<_> = changes.iter().take(MAX_LINES).map(|change| shown(&change)).collect();
        if let Some(more) = changes.len().checked_sub(MAX_LINES).filter(|more| *more > 0) {
            lines.push(format!("{job}: and {more} other changes"));
        }
        lines.extend(new.iter().take(MAX_LINES).map(|problem| format!("{job}: {problem}")));
        if let Some(more) = new.len().checked_sub(MAX_LINES).filter(|more| *more > 0) {
            lines.push(format!("{job}: and {more} other faults"));
        }
        if is_well_again {
            lines.push(format!("{job}: works again"));
        }
        self.0 = now;
        lines
    }
}

const fn verb(action: Action) -> &'static str {
    match action {
        Action::Write => "wrote",
        Action::Remove => "removed",
        Action::Load => "loaded",
        Action::Send => "sent",
    }
}

/// JSON in ASCII. serde_json leaves characters as they are that some terminals act on, such as
/// U+009B.
pub fn json(value: &impl Serialize) -> serde_json::Result<String> {
    let mut text = String::new();
    for character in serde_json::to_string_pretty(value)?.chars() {
        match character {
            '\n' | ' '..='~' => text.push(character),
            _ => text.extend(character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}"))),
        }
    }
    Ok(text + "\n")
}

/// Writes one line to standard error. A write error is ignored.
pub fn log(what: impl fmt::Display) {
    // The journal names the program in each line.
    let is_journal = fstat(io::stderr()).is_ok_and(|status| is_journal(std::env::var_os("JOURNAL_STREAM"), &status));
    let line = format!("{}{}\n", if is_journal { "" } else { "unbit-agent: " }, escape::line(&what.to_string()));
    let _ = io::stderr().write_all(line.as_bytes()); // in one piece
}

/// Whether JOURNAL_STREAM of systemd.exec(5), "DEVICE:INODE", names this file. It is inherited, and
/// standard error may have been redirected since.
fn is_journal(variable: Option<OsString>, status: &FileStat) -> bool {
    variable.is_some_and(|stream| stream == *format!("{}:{}", status.st_dev, status.st_ino))
}

/// Writes to standard output. EPIPE (as with head(1)) is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(problems: &[&str]) -> Report {
        let mut report = Report::default();
        problems.iter().for_each(|problem| report.problem(problem));
        report
    }

    #[test]
    fn a_fault_is_logged_once_while_it_lasts() {
        let mut said = LoggedProblems::default();
        assert_eq!(said.lines("keys", &with(&["a", "b"])), ["keys: a", "keys: b"]);
        assert_eq!(said.lines("keys", &with(&["a", "b"])), [""; 0]);
        assert_eq!(said.lines("keys", &with(&["b", "c"])), ["keys: c"]);
        assert_eq!(said.lines("keys", &with(&[])), ["keys: works again"]);
        assert_eq!(said.lines("keys", &with(&[])), [""; 0]);
        assert_eq!(said.lines("keys", &with(&["a"])), ["keys: a"]);
    }

    #[test]
    fn the_journal_is_known_by_its_device_and_inode() {
        let status = fstat(io::stderr()).unwrap();
        let names = |device, inode| is_journal(Some(format!("{device}:{inode}").into()), &status);
        assert!(names(status.st_dev, status.st_ino));
        assert!(!names(status.st_dev, status.st_ino + 1), "redirected");
        assert!(!is_journal(None, &status), "not a unit of systemd's");
    }

    #[test]
    fn a_flood_of_faults_is_a_few_lines() {
        let many: Vec<_> = (0..1000).map(|number| format!("fault {number}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let lines = LoggedProblems::default().lines("keys", &with(&many));
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (21, Some("keys: and 980 other faults")));
    }

    #[test]
    fn changes_are_logged_and_what_is_sent_is_not() {
        let mut report = Report::default();
        report.change(Action::Write, "/etc/uwsgi/nodes", None);
        report.change(Action::Send, "/metrics/container.cpu/30001", Some("7".to_owned()));
        assert_eq!(LoggedProblems::default().lines("nodes", &report), ["nodes: wrote /etc/uwsgi/nodes"]);
        let shown: Vec<_> = report.changes.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["write /etc/uwsgi/nodes", "send /metrics/container.cpu/30001: 7"]);
    }

    #[test]
    fn a_tenants_text_is_printable_and_in_one_line() {
        let hostile = "\x1b]0;x\x07\r\x1b[2Kfull\nremove /etc/uwsgi/vassals/30002.ini\u{9b}2J\u{10ffff}";
        let mut report = Report::default();
        report.change(Action::Send, "/alarms/30001?unix=1\n", Some(hostile.to_owned()));
        let shown = report.changes[0].to_string();
        assert_eq!(
            shown,
            r"send /alarms/30001?unix=1\u{a}: \u{1b}]0;x\u{7}\u{d}\u{1b}[2Kfull\u{a}remove /etc/uwsgi/vassals/30002.ini\u{9b}2J\u{10ffff}"
        );
        let json = json(&report).unwrap();
        assert!(json.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)), "{json}");
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["changes"][0]["value"], hostile);
    }

    #[test]
    fn a_table_has_its_lines() {
        let mut report = Report::default();
        report.change(Action::Load, "table ip unbit_ports", Some("table ip x {\n\tchain y {\n\t}\n}\n".to_owned()));
        report.change(Action::Load, "table inet unbit", Some("nodes: 2".to_owned()));
        let shown: Vec<_> = report.changes.iter().map(ToString::to_string).collect();
        let table = "load table ip unbit_ports:\ntable ip x {\n    chain y {\n    }\n}";
        assert_eq!(shown, [table, "load table inet unbit: nodes: 2"]);
    }
}
