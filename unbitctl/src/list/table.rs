//! Formats `unbitctl list` as a table.

use super::{Container, State};
use crate::columns::{self, Align, Column, DATE, NOTHING, Step, Window, moment};
use jiff::tz::TimeZone;

const COLUMNS: [Column; 14] = [
    Column("UID", Align::Right),
    Column("NAME", Align::Left),
    Column("ENGINE", Align::Left),
    Column("STATE", Align::Left),
    Column("SESSIONS", Align::Right),
    Column("TASKS", Align::Right),
    Column("OOM", Align::Right),
    Column("MEMORY", Align::Right),
    Column("CPU", Align::Right),
    Column("PID", Align::Right),
    Column("SINCE", Align::Left),
    Column("ADDRESS", Align::Left),
    Column("HOST", Align::Left),
    Column("QUOTA", Align::Left),
];

/// The columns that are dropped last show the state of each container and what it uses.
const STEPS: [Step; 12] = [
    Step::Drop("SINCE"),
    Step::Drop("HOST"),
    Step::Drop("ADDRESS"),
    Step::Drop("QUOTA"),
    Step::Drop("PID"),
    Step::Truncate("NAME", 8),
    Step::Drop("ENGINE"),
    Step::Drop("OOM"),
    Step::Drop("SESSIONS"),
    Step::Drop("NAME"),
    Step::Drop("TASKS"),
    Step::Drop("MEMORY"),
];

/// The lines, with their heading. With shares of a processor in percent where the CPU time would
/// be. Why containers do not run is below the table.
pub fn lines(containers: &[Container], shares: Option<&[Option<f64>]>, window: Window) -> Vec<String> {
    let zone = TimeZone::system();
    let share = |at| shares.map(|shares| shares.get(at).copied().flatten());
    let rows: Vec<_> =
        containers.iter().enumerate().map(|(at, container)| row(container, share(at), &zone).to_vec()).collect();
    let causes = containers.iter().filter_map(|container| {
        let cause = container.cause.as_ref()?;
        Some(format!("{}: {cause}", container.uid))
    });
    let mut lines = columns::lines(&COLUMNS, &rows, &["NAME"], &STEPS, window);
    lines.extend(causes);
    lines
}

fn row(container: &Container, share: Option<Option<f64>>, zone: &TimeZone) -> [String; COLUMNS.len()] {
    let nothing = || NOTHING.to_owned();
    let roots = || if container.state == State::Unknown { "?".to_owned() } else { nothing() };
    let used = container.used;
    let cpu = match share {
        None => used.cpu_seconds.map(time),
        Some(share) => share.map(|percent| format!("{percent:.1}%")),
    };
    let number = |number: u64| number.to_string();
    [
        container.uid.to_string(),
        if container.names.is_empty() { nothing() } else { container.names.join(",") },
        container.engine.to_owned(),
        state(container.state),
        container.sessions.map_or_else(|| "?".to_owned(), |sessions| sessions.to_string()),
        with_limit(used.tasks, used.tasks_limit, number).unwrap_or_else(nothing),
        used.oom_kills.map_or_else(nothing, number),
        with_limit(used.memory_bytes, used.memory_limit_bytes, size).unwrap_or_else(nothing),
        cpu.unwrap_or_else(nothing),
        container.pid.map_or_else(nothing, |pid| pid.to_string()),
        container.since_seconds.and_then(|since| moment(since, zone, DATE)).unwrap_or_else(nothing),
        container.address.map_or_else(nothing, |address| address.to_string()),
        container.host_name.clone().unwrap_or_else(roots),
        with_limit(used.quota_used_bytes, used.quota_limit_bytes, size).unwrap_or_else(roots),
    ]
}

/// The state, for people.
fn state(state: State) -> String {
    if state == State::Unknown { "?".to_owned() } else { state.name().replace('-', " ") }
}

/// As ps(1) has it: hours, minutes, seconds.
fn time(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// So much of so much.
fn with_limit(used: Option<u64>, limit: Option<u64>, show: impl Fn(u64) -> String) -> Option<String> {
    let used = show(used?);
    Some(limit.map_or_else(|| used.clone(), |limit| format!("{used}/{}", show(limit))))
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
    use crate::list::resources::Usage;
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

    fn container() -> Container {
        Container {
            uid: 30001,
            names: Vec::new(),
            address: "10.0.0.3".parse().ok(),
            host_name: Some("c30001".into()),
            engine: "uwsgi",
            state: State::Running,
            cause: None,
            pid: Some(42),
            since_seconds: Some(0),
            used: Usage {
                memory_bytes: Some(1 << 20),
                memory_limit_bytes: Some(1 << 30),
                oom_kills: Some(0),
                tasks: Some(12),
                tasks_limit: Some(1000),
                cpu_seconds: Some(61.0),
                ..Usage::default()
            },
            seen: Instant::now(),
            sessions: Some(2),
        }
    }

    fn down() -> Container {
        Container {
            uid: 16_807_213,
            host_name: None,
            state: State::NotRunning,
            cause: Some("connect to run/ns.socket: ECONNREFUSED (Connection refused)".into()),
            pid: None,
            used: Usage::default(),
            sessions: Some(0),
            ..container()
        }
    }

    #[test]
    fn each_column_has_its_value() {
        let one = container();
        let text = |share| row(&one, share, &TimeZone::UTC).join("|");
        assert_eq!(
            text(None),
            "30001|-|uwsgi|running|2|12/1000|0|1.0M/1.0G|0:01:01|42|1970-01-01 00:00|10.0.0.3|c30001|-"
        );
        assert!(text(Some(Some(12.34))).contains("|12.3%|") && text(Some(None)).contains("|1.0M/1.0G|-|42|"));

        let unknown = Container { state: State::Unknown, host_name: None, sessions: None, ..container() };
        let unknown = row(&unknown, None, &TimeZone::UTC);
        assert_eq!([3, 4, 12, 13].map(|cell: usize| unknown[cell].as_str()), ["?"; 4]);
    }

    #[test]
    fn the_causes_are_below_the_table_and_break_no_line() {
        let both = [container(), down()];
        let all = lines(&both, None, Window::Any);
        assert!(
            all[0].starts_with("     UID  ENGINE  STATE        SESSIONS    TASKS  OOM     MEMORY      CPU  PID"),
            "{all:#?}"
        );
        assert!(all[0].ends_with("SINCE             ADDRESS   HOST    QUOTA"), "{all:#?}");
        assert_eq!(all[3..], ["16807213: connect to run/ns.socket: ECONNREFUSED (Connection refused)"]);
        for window in [Window::Terminal(80), Window::Columns(80)] {
            let narrow = lines(&both, None, window);
            assert_eq!(
                narrow[..3],
                [
                    "     UID  ENGINE  STATE        SESSIONS    TASKS  OOM     MEMORY      CPU  PID",
                    "   30001  uwsgi   running             2  12/1000    0  1.0M/1.0G  0:01:01   42",
                    "16807213  uwsgi   not running         0        -    -          -        -    -",
                ]
            );
            assert_eq!(narrow[3..], all[3..]);
        }
    }

    #[test]
    fn what_matters_fits_into_eighty_columns() {
        let names = vec!["webserver".to_owned(), "www".to_owned()];
        let busy = Usage {
            memory_bytes: Some(412 << 20),
            memory_limit_bytes: Some(512 << 20),
            tasks: Some(412),
            tasks_limit: Some(1000),
            ..container().used
        };
        let named = Container { names, engine: "podman", used: busy, ..container() };
        let seen = lines(&[named, down()], None, Window::Terminal(80));
        assert!(seen.iter().all(|line| line.len() <= 80), "{seen:#?}");
        assert!(seen[1].starts_with("   30001  webse..."), "{seen:#?}");
        let head: Vec<_> = seen[0].split_whitespace().collect();
        assert_eq!(head, ["UID", "NAME", "STATE", "SESSIONS", "TASKS", "OOM", "MEMORY", "CPU"], "{seen:#?}");
        let least = lines(&[container(), down()], Some(&[None, None]), Window::Terminal(20));
        assert_eq!(least[..2], ["     UID  STATE     ", "   30001  running   "]);
    }
}
