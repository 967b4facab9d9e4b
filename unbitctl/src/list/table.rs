//! The containers as lines of text.

use super::{Container, State};
use crate::report::harmless;
use jiff::{Timestamp, tz::TimeZone};

const HEADS: [&str; 10] = ["UID", "ADDRESS", "HOST", "STATE", "PID", "SINCE", "MEMORY", "CPU", "SESSIONS", "QUOTA"];

/// The lines, with their heading. With shares of a processor in percent where the CPU time would be.
pub fn lines(containers: &[Container], shares: Option<&[Option<f64>]>) -> Vec<String> {
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
    let causes = std::iter::once(None).chain(containers.iter().map(|container| container.cause.as_deref()));
    rows.iter().zip(causes).map(|(row, cause)| line(row, &widths, cause)).collect()
}

fn line(row: &[String; HEADS.len()], widths: &[usize; HEADS.len()], cause: Option<&str>) -> String {
    let mut line = String::new();
    for ((cell, width), head) in row.iter().zip(widths).zip(HEADS) {
        let is_number = matches!(head, "UID" | "PID" | "CPU" | "SESSIONS");
        let cell = if is_number { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
        line.push_str(&cell);
    }
    line.push_str(&harmless(cause.unwrap_or_default()));
    line.trim_end().to_owned()
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
        container.address.map_or_else(nothing, |address| address.to_string()),
        container.host_name.clone().unwrap_or_else(roots),
        state(container.state).to_owned(),
        container.pid.map_or_else(nothing, |pid| pid.to_string()),
        container.since.and_then(|since| moment(since, zone)).unwrap_or_else(nothing),
        of(used.memory, used.memory_limit).unwrap_or_else(nothing),
        cpu.unwrap_or_else(nothing),
        container.sessions.to_string(),
        of(used.quota_used, used.quota_limit).unwrap_or_else(roots),
    ]
}

const fn state(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::NoAccount => "no account",
        State::NotRunning => "not running",
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
            address: "10.0.0.3".parse().ok(),
            host_name: Some("c30001".into()),
            state: State::Running,
            cause: None,
            pid: Some(42),
            since: Some(0),
            used: Use { memory: Some(1 << 20), memory_limit: Some(1 << 30), cpu_seconds: Some(61.0), ..Use::default() },
            sessions: 2,
        };
        let running = row(&one, None, &TimeZone::UTC);
        assert_eq!(running.join("|"), "30001|10.0.0.3|c30001|running|42|1970-01-01 00:00|1.0M/1.0G|0:01:01|2|-");
        assert_eq!(row(&one, Some(Some(12.34)), &TimeZone::UTC)[7], "12.3%");
        assert_eq!(row(&one, Some(None), &TimeZone::UTC)[7], "-");

        let down = Container {
            uid: 16_807_213,
            host_name: None,
            state: State::NotRunning,
            cause: Some("\x1b[2Jwhy".into()),
            pid: None,
            ..one.clone()
        };
        let lines = lines(&[one.clone(), down], None);
        let at = |line: &str, word: &str| line.find(word).unwrap();
        assert_eq!(at(&lines[0], "STATE"), at(&lines[1], "running"));
        assert_eq!(at(&lines[0], "STATE"), at(&lines[2], "not running"));
        assert!(lines[2].ends_with("  \\u{1b}[2Jwhy") && !lines[1].ends_with(' '));

        (one.state, one.host_name) = (State::Unknown, None);
        let unknown = row(&one, None, &TimeZone::UTC);
        assert_eq!((unknown[2].as_str(), unknown[3].as_str(), unknown[9].as_str()), ("?", "?", "?"));
    }
}
