//! The containers as lines of text.

use super::{Container, State};
use crate::report::wrap;
use jiff::{Timestamp, tz::TimeZone};

const HEADS: [&str; 12] =
    ["UID", "NAME", "ADDRESS", "HOST", "ENGINE", "STATE", "PID", "SINCE", "MEMORY", "CPU", "SESSIONS", "QUOTA"];

/// In a narrow window the columns go in this order: the rest says which container does how, and what it uses.
const LEAST_USE: [&str; 9] = ["SINCE", "ADDRESS", "HOST", "QUOTA", "ENGINE", "PID", "SESSIONS", "NAME", "MEMORY"];

/// The lines, with their heading. With shares of a processor in percent where the CPU time would be. In a window of this many columns a cause for which
/// the line has no room comes below it.
pub fn lines(containers: &[Container], shares: Option<&[Option<f64>]>, window: Option<usize>) -> Vec<String> {
    let zone = TimeZone::system();
    let mut rows = vec![HEADS.map(str::to_owned)];
    for (at, container) in containers.iter().enumerate() {
        let share = shares.map(|shares| shares.get(at).copied().flatten());
        rows.push(row(container, share, &zone));
    }
    let mut widths = [0; HEADS.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    // A column that would be empty is not shown.
    if containers.iter().all(|container| container.names.is_empty()) {
        hide(&mut widths, "NAME");
    }
    let window = window.unwrap_or(usize::MAX);
    for least in LEAST_USE {
        let needed: usize = widths.iter().filter(|width| **width > 0).map(|width| width + GAP.len()).sum();
        if needed > window.saturating_add(GAP.len()) {
            hide(&mut widths, least);
        }
    }
    let causes = std::iter::once(None).chain(containers.iter().map(|container| container.cause.as_deref()));
    rows.iter().zip(causes).flat_map(|(row, cause)| with_cause(line(row, &widths), cause, window)).collect()
}

fn hide(widths: &mut [usize; HEADS.len()], least: &str) {
    let column = widths.iter_mut().zip(HEADS).find(|(_, head)| *head == least);
    column.into_iter().for_each(|(width, _)| *width = 0);
}

const GAP: &str = "  ";

/// A column of no width is not shown.
fn line(row: &[String; HEADS.len()], widths: &[usize; HEADS.len()]) -> String {
    let mut line = String::new();
    for ((cell, width), head) in row.iter().zip(widths).zip(HEADS).filter(|((_, width), _)| **width > 0) {
        let is_number = matches!(head, "UID" | "PID" | "CPU" | "SESSIONS");
        line.push_str(&if is_number { format!("{cell:>width$}{GAP}") } else { format!("{cell:<width$}{GAP}") });
    }
    line
}

fn with_cause(line: String, cause: Option<&str>, window: usize) -> Vec<String> {
    const MARGIN: &str = "       ";
    let cause = cause.unwrap_or_default();
    if line.chars().count().saturating_add(cause.chars().count()) <= window || cause.is_empty() {
        return vec![(line + cause).trim_end().to_owned()];
    }
    let below = wrap(cause, Some(window.saturating_sub(MARGIN.len())));
    std::iter::once(line.trim_end().to_owned()).chain(below.iter().map(|part| format!("{MARGIN}{part}"))).collect()
}

fn row(container: &Container, share: Option<Option<f64>>, zone: &TimeZone) -> [String; HEADS.len()] {
    let nothing = || "-".to_owned();
    let roots = || if container.state == State::Unknown { "?".to_owned() } else { nothing() };
    let used = container.used;
    let cpu = match share {
        None => used.cpu_seconds.map(time),
        Some(share) => share.map(|percent| format!("{percent:.1}%")),
    };
    [
        container.uid.to_string(),
        if container.names.is_empty() { nothing() } else { container.names.join(",") },
        container.address.map_or_else(nothing, |address| address.to_string()),
        container.host_name.clone().unwrap_or_else(roots),
        container.engine.to_owned(),
        state(container.state).to_owned(),
        container.pid.map_or_else(nothing, |pid| pid.to_string()),
        container.since.and_then(|since| moment(since, zone)).unwrap_or_else(nothing),
        of(used.memory, used.memory_limit).unwrap_or_else(nothing),
        cpu.unwrap_or_else(nothing),
        container.sessions.map_or_else(|| "?".to_owned(), |sessions| sessions.to_string()),
        of(used.quota_used, used.quota_limit).unwrap_or_else(roots),
    ]
}

const fn state(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::NoAccount => "no account",
        State::NotRunning => "not running",
        State::Starting => "starting",
        State::Paused => "paused",
        State::NotAnswering => "not answering",
        State::NotTrusted => "not trusted",
        State::Misconfigured => "misconfigured",
        State::Broken => "broken",
        State::Unknown => "?",
    }
}

fn moment(seconds: u64, zone: &TimeZone) -> Option<String> {
    let moment = Timestamp::from_second(seconds.try_into().ok()?).ok()?.to_zoned(zone.clone());
    Some(moment.strftime("%Y-%m-%d %H:%M").to_string())
}

/// As ps(1) has it: hours, minutes, seconds.
fn time(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn of(used: Option<u64>, limit: Option<u64>) -> Option<String> {
    let used = size(used?);
    Some(limit.map_or_else(|| used.clone(), |limit| format!("{used}/{}", size(limit))))
}

/// In units of 1024, with three digits at most.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "K", "M", "G", "T"] {
        if value < 9.95 && unit != "B" {
            return format!("{value:.1}{unit}");
        }
        if value < 1023.5 {
            return format!("{value:.0}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.0}P")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::resources::Use;
    use std::time::Instant;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0K"),
            (10_189, "10K"),
            (1 << 20, "1.0M"),
            (1023 << 20, "1023M"),
            ((1 << 30) - 1, "1.0G"),
            (5 << 40, "5.0T"),
            (u64::MAX, "16384P"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
        assert_eq!(time(3_725.9), "1:02:05");
    }

    #[test]
    fn columns_are_aligned_and_the_cause_is_last() {
        let mut one = Container {
            uid: 30001,
            names: Vec::new(),
            address: "10.0.0.3".parse().ok(),
            host_name: Some("c30001".into()),
            engine: "uwsgi",
            state: State::Running,
            cause: None,
            pid: Some(42),
            since: Some(0),
            used: Use { memory: Some(1 << 20), memory_limit: Some(1 << 30), cpu_seconds: Some(61.0), ..Use::default() },
            seen: Instant::now(),
            sessions: Some(2),
        };
        let running = row(&one, None, &TimeZone::UTC);
        assert_eq!(
            running.join("|"),
            "30001|-|10.0.0.3|c30001|uwsgi|running|42|1970-01-01 00:00|1.0M/1.0G|0:01:01|2|-"
        );
        assert_eq!(row(&one, Some(Some(12.34)), &TimeZone::UTC)[9], "12.3%");
        assert_eq!(row(&one, Some(None), &TimeZone::UTC)[9], "-");

        let down = Container {
            uid: 16_807_213,
            host_name: None,
            state: State::NotRunning,
            cause: Some("why".into()),
            pid: None,
            ..one.clone()
        };
        let both = [one.clone(), down];
        let lines = lines(&both, None, None);
        let at = |line: &str, word: &str| line.find(word).unwrap();
        assert_eq!(at(&lines[0], "STATE"), at(&lines[1], "running"));
        assert_eq!(at(&lines[0], "STATE"), at(&lines[2], "not running"));
        assert!(lines[2].ends_with("  why") && !lines[1].ends_with(' '));
        assert_eq!(super::lines(&both, None, Some(200)), lines, "a window with room enough");
        let named = Container { names: vec!["web1".into(), "www".into()], ..one.clone() };
        let named = super::lines(&[named, both[1].clone()], None, Some(80));
        assert!(named[0].starts_with("     UID  NAME      ENGINE"), "{named:#?}");
        assert!(
            named[1].starts_with("   30001  web1,www  uwsgi ") && named[2].starts_with("16807213  -  "),
            "{named:#?}"
        );
        assert!(named.iter().all(|line| line.len() <= 80), "{named:#?}");

        (one.state, one.host_name, one.sessions) = (State::Unknown, None, None);
        let unknown = row(&one, None, &TimeZone::UTC);
        assert_eq!([3, 5, 10, 11].map(|cell: usize| unknown[cell].as_str()), ["?"; 4]);
    }

    #[test]
    fn in_a_narrow_window_the_cause_is_below_and_columns_of_less_use_go() {
        let down = Container {
            uid: 30001,
            names: Vec::new(),
            address: "10.0.0.3".parse().ok(),
            host_name: None,
            engine: "uwsgi",
            state: State::NotRunning,
            cause: Some("connect to run/ns.socket: ECONNREFUSED (Connection refused)".into()),
            pid: None,
            since: None,
            used: Use::default(),
            seen: Instant::now(),
            sessions: Some(0),
        };
        let seen = |window| lines(std::slice::from_ref(&down), Some(&[None]), Some(window));
        assert_eq!(
            seen(88),
            [
                "  UID  ADDRESS   HOST  ENGINE  STATE        PID  SINCE  MEMORY  CPU  SESSIONS  QUOTA",
                "30001  10.0.0.3  -     uwsgi   not running    -  -      -         -         0  -",
                "       connect to run/ns.socket: ECONNREFUSED (Connection refused)",
            ]
        );
        assert_eq!(
            seen(40),
            [
                "  UID  STATE        MEMORY  CPU",
                "30001  not running  -         -",
                "       connect to run/ns.socket:",
                "       ECONNREFUSED (Connection refused)",
            ]
        );
        assert_eq!(seen(41)[0], "  UID  STATE        MEMORY  CPU  SESSIONS");
        assert_eq!(seen(20)[0], "  UID  STATE        CPU");
    }
}
