//! Formats `unbitctl list` as OpenMetrics.

use super::{Container, State};
use join::openmetrics::{
    Kind::{self, Counter, Gauge},
    Text,
};

/// A family that has one number of each container, where there is one.
type Family = (&'static str, Kind, &'static str, fn(&Container) -> Option<f64>);

const FAMILIES: [Family; 11] = [
    ("unbit_container_sessions", Gauge, "Open sessions.", |container| container.sessions.map(|count| count as f64)),
    ("unbit_container_start_time_seconds", Gauge, "When its pid 1 started, since 1970.", |container| {
        of(container.since_seconds)
    }),
    ("unbit_container_memory_bytes", Gauge, "Memory that its cgroup uses.", |container| {
        of(container.used.memory_bytes)
    }),
    ("unbit_container_memory_limit_bytes", Gauge, "Memory that its cgroup may use.", |container| {
        of(container.used.memory_limit_bytes)
    }),
    ("unbit_container_memory_peak_bytes", Gauge, "The most memory that its cgroup ever used.", |container| {
        of(container.used.memory_peak_bytes)
    }),
    ("unbit_container_oom_kills_total", Counter, "Processes killed because its memory was full.", |container| {
        of(container.used.oom_kills)
    }),
    ("unbit_container_tasks", Gauge, "Processes and threads in its cgroup.", |container| of(container.used.tasks)),
    ("unbit_container_tasks_limit", Gauge, "Processes and threads that its cgroup may have.", |container| {
        of(container.used.tasks_limit)
    }),
    ("unbit_container_cpu_seconds_total", Counter, "Processor time that its cgroup has used.", |container| {
        container.used.cpu_seconds
    }),
    ("unbit_container_quota_used_bytes", Gauge, "Disk space that its user has.", |container| {
        of(container.used.quota_used_bytes)
    }),
    ("unbit_container_quota_limit_bytes", Gauge, "Disk space that its user may have.", |container| {
        of(container.used.quota_limit_bytes)
    }),
];

fn of(number: Option<u64>) -> Option<f64> {
    number.map(|number| number as f64)
}

/// All of them, each with the labels uid and engine.
pub fn text(containers: &[Container]) -> String {
    let labels =
        |container: &Container| vec![("uid", container.uid.to_string()), ("engine", container.engine.to_owned())];
    let mut text = Text::default();
    let states = containers.iter().flat_map(|container| {
        State::ALL.into_iter().map(move |state| {
            let state_of_it = [("state", state.name().to_owned())];
            (labels(container).into_iter().chain(state_of_it).collect(), f64::from(u8::from(container.state == state)))
        })
    });
    text.family("unbit_container_state", Gauge, "1 for the state in which it is.", states);
    for (name, kind, help, number) in FAMILIES {
        let samples = containers.iter().filter_map(|container| Some((labels(container), number(container)?)));
        text.family(name, kind, help, samples);
    }
    text.end()
}
