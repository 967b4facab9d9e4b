//! Formats sessions and refused logins as OpenMetrics. No address, key or ID is among the labels:
//! Prometheus keeps every value of a label for ever.

use super::list::Session;
use crate::engine;
use anyhow::{Context, Result};
use join::openmetrics::{
    Kind::{Counter, Gauge},
    Text,
};
use join::refusal_counters;
use join::sessions;
use shared::ContainerUid;
use std::collections::BTreeMap;
use std::path::Path;

/// Those of a container, or of all.
pub fn text(sessions: &[Session], container: Option<ContainerUid>) -> Result<String> {
    let mut text = Text::default();
    let mut counts: BTreeMap<(u32, &str), u32> = BTreeMap::new();
    for session in sessions {
        *counts.entry((session.uid, session.service.as_deref().unwrap_or_default())).or_default() += 1;
    }
    let counts = counts.iter().map(|((uid, service), count)| {
        (labels(ContainerUid::new(*uid), "service", (*service).to_owned()), f64::from(*count))
    });
    text.family("unbit_sessions", Gauge, "Open sessions, by the service of PAM.", counts);

    let directory = Path::new(refusal_counters::DIRECTORY);
    let containers = match container {
        Some(container) => vec![Some(container)],
        None => {
            let all = sessions::containers(directory).context(refusal_counters::DIRECTORY)?;
            all.into_iter().map(Some).chain([None]).collect()
        }
    };
    let mut refused = Vec::new();
    for container in containers {
        let counted = refusal_counters::read(directory, container).context(refusal_counters::DIRECTORY)?;
        refused.extend(
            counted
                .into_iter()
                .map(|(reason, count)| (labels(container, "reason", reason.name().to_owned()), count as f64)),
        );
    }
    text.family("unbit_refusals_total", Counter, "Logins that pam_unbit refused since boot, by reason.", refused);
    Ok(text.end())
}

fn labels(container: Option<ContainerUid>, key: &'static str, value: String) -> Vec<(&'static str, String)> {
    let uid = container.map(|container| container.to_string()).unwrap_or_default();
    let engine = container.map(|container| engine::by_link(join::link::target_of(container).as_deref()));
    vec![("uid", uid), ("engine", engine.unwrap_or_default().to_owned()), (key, value)]
}
