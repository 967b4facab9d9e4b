//! `unbitctl sessions`: who is logged in to which container, since when, from where and with which
//! key. It also ends sessions.
//!
//! The kernel knows the open sessions, by the locks that their monitors hold. A monitor describes
//! its session in a record behind the lock, see [`join::sessions`]. Root owns both, so nothing in a
//! container can add, hide or change a line here.

mod end;
mod list;
mod metrics;

use crate::columns::{self, Align, Column, DATE, DAY, NOTHING, Step, Window, moment};
use crate::command_line::must_be_root;
use crate::names::Account;
use crate::report;
use anyhow::Result;
use jiff::tz::TimeZone;
use list::{Id, Session};
use std::process::ExitCode;

pub const EXAMPLES: &str = "\
Examples:
  unbitctl sessions                   who is logged in
  unbitctl sessions web1 --wide       who is logged in to the container web1, with full keys
  unbitctl sessions --end 48213-0f3a
  unbitctl sessions --json | jq '.[] | select(.address == \"192.0.2.7\") | .id'

Columns:
  ID     for --end: the pid of the session's process on the node, and a suffix made from its start time
  UID    the container
  SINCE  when the session was opened
  FROM   the client's address and port
  TTY    its terminals: in the container for sshd, on the node for su and login
  VIA    the service of PAM: sshd, su, login, cron
  KEY    what sshd accepted, as in the log

What does not fit into the terminal (or 80 columns without one) is cut or left out; --wide shows all.
'-' means that there is none, or not yet: a login that is not complete has only an ID and the time of its connection.";

#[derive(clap::Args)]
pub struct Arguments {
    /// Only sessions in this container (a number or a second name)
    #[arg(value_name = "UID", value_parser = Account::parse)]
    account: Option<Account>,
    /// End this session, as a lost connection would; background processes go on
    #[arg(long, value_name = "ID", value_parser = Id::parse, conflicts_with_all = ["wide", "openmetrics"])]
    end: Option<Id>,
    /// Show every column in full, whatever the width of the terminal
    #[arg(long, conflicts_with_all = ["json", "openmetrics"])]
    wide: bool,
    /// Print JSON, with times in seconds
    #[arg(long, conflicts_with = "openmetrics")]
    json: bool,
    /// Print metrics for the textfile collector of Prometheus' node_exporter, with counts of
    /// refused logins
    #[arg(long)]
    openmetrics: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    must_be_root("sessions")?;
    let container = arguments.account.as_ref().map(Account::uid).transpose()?;
    if let Some(id) = arguments.end {
        let ended = end::end(container, id)?;
        report::print(&if arguments.json { serde_json::to_string_pretty(&ended)? + "\n" } else { ended.sentence() })?;
        return Ok(ExitCode::SUCCESS);
    }
    let sessions = list::sessions(container)?;
    let text = if arguments.json {
        serde_json::to_string_pretty(&sessions)? + "\n"
    } else if arguments.openmetrics {
        metrics::text(&sessions, container)?
    } else {
        table(&sessions, Window::new(arguments.wide), &TimeZone::system()).join("\n") + "\n"
    };
    report::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

const COLUMNS: [Column; 7] = [
    Column("ID", Align::Left),
    Column("UID", Align::Right),
    Column("SINCE", Align::Left),
    Column("FROM", Align::Left),
    Column("TTY", Align::Left),
    Column("VIA", Align::Left),
    Column("KEY", Align::Left),
];

const STEPS: [Step; 5] =
    [Step::Truncate("KEY", 17), Step::Truncate("TTY", 8), Step::Drop("VIA"), Step::Drop("SINCE"), Step::Drop("KEY")];

fn table(sessions: &[Session], window: Window, zone: &TimeZone) -> Vec<String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| NOTHING.to_owned());
    let row = |session: &Session| {
        let since =
            session.since_seconds.and_then(|since| moment(since, zone, if window == Window::Any { DATE } else { DAY }));
        let key = match &session.key {
            // If there is no room for both, the fingerprint is more useful than the type.
            Some(key) if window != Window::Any => key.split_once(" SHA256:").map_or_else(
                || key.clone(),
                |(kind, rest)| if kind.contains(' ') { key.clone() } else { format!("SHA256:{rest}") },
            ),
            key => text(key),
        };
        vec![
            session.id.to_string(),
            session.uid.to_string(),
            since.unwrap_or_else(|| NOTHING.to_owned()),
            session.from().unwrap_or_else(|| NOTHING.to_owned()),
            if session.terminals.is_empty() { NOTHING.to_owned() } else { session.terminals.join(",") },
            text(&session.service),
            key,
        ]
    };
    let rows: Vec<_> = sessions.iter().map(row).collect();
    columns::lines(&COLUMNS, &rows, &["TTY"], &STEPS, window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_a_line() {
        let key = "ssh-ed25519 SHA256:gNSIRW+2Iyiuvsdp/bgjy38bvWHw6wQm3tuoXrl3WjQ";
        let one = Session {
            id: Id::parse("48213-0f3a").unwrap(),
            uid: 30001,
            since_seconds: Some(0),
            service: Some("sshd".into()),
            address: Some("203.0.113.177".into()),
            port: Some(51234),
            terminals: vec!["pts/0".into()],
            key: Some(key.into()),
            pid: 48213,
        };
        let other = Session {
            id: Id::parse("7-ffff").unwrap(),
            service: None,
            address: None,
            port: None,
            terminals: Vec::new(),
            key: None,
            ..one.clone()
        };
        let both = [one.clone(), other.clone()];
        assert_eq!(
            table(&both, Window::Any, &TimeZone::UTC),
            [
                "ID            UID  SINCE             FROM                 TTY    VIA   KEY".to_owned(),
                format!("48213-0f3a  30001  1970-01-01 00:00  203.0.113.177:51234  pts/0  sshd  {key}"),
                "7-ffff      30001  1970-01-01 00:00  -                    -      -     -".to_owned(),
            ]
        );
        let narrow = table(&both, Window::Terminal(80), &TimeZone::UTC);
        assert_eq!(narrow[1], "48213-0f3a  30001  01-01 00:00  203.0.113.177:51234  pts/0  SHA256:gNSIRW+...");
        assert!(narrow.iter().all(|line| line.len() <= 80), "{narrow:#?}");
        assert_eq!(table(&[other], Window::Any, &TimeZone::UTC)[0], "ID        UID  SINCE             FROM  VIA  KEY");
        let six = Session { address: Some("2001:db8::7".into()), ..one };
        assert_eq!(six.from().as_deref(), Some("[2001:db8::7]:51234"));
    }
}
