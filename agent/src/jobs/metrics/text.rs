//! The metrics as text, for a node that has no API. `unbitctl list --openmetrics` has the others of
//! each container: no name is in both, so that both texts can be in one directory of
//! node_exporter's.

use super::{domain_sums, each_container, network, of_cgroups, of_others};
use anyhow::Result;
use join::cgroups::Hierarchies;
use join::openmetrics::{
    Kind::{self, Counter, Gauge},
    Text,
};
use shared::ContainerUid;
use std::collections::BTreeMap;

/// The name in the API, that of the family, and what it is.
type Family = (&'static str, &'static str, Kind, &'static str);

const OF_CONTAINERS: [Family; 6] = [
    ("container.io.read", "unbit_container_io_read_bytes_total", Counter, "Bytes read from disks."),
    ("container.io.write", "unbit_container_io_written_bytes_total", Counter, "Bytes written to disks."),
    ("container.mem.rss", "unbit_container_memory_rss_bytes", Gauge, "Memory of its processes."),
    ("container.mem.cache", "unbit_container_memory_cache_bytes", Gauge, "Memory that holds its files."),
    ("container.net.rx", "unbit_container_net_rx_bytes_total", Counter, "Bytes that the tuntap router counts as rx."),
    ("container.net.tx", "unbit_container_net_tx_bytes_total", Counter, "Bytes that the tuntap router counts as tx."),
];

/// In the order of [`super::DOMAIN_METRICS`].
const OF_DOMAINS: [(&str, Kind, &str); 3] = [
    ("unbit_domain_net_rx_bytes_total", Counter, "Bytes that the http router counts as rx."),
    ("unbit_domain_net_tx_bytes_total", Counter, "Bytes that the http router counts as tx."),
    ("unbit_domain_hits_total", Counter, "Requests to the domain."),
];

/// All of them, of each container that runs and of each domain that one has subscribed.
pub fn text() -> Result<String> {
    let network = network()?;
    let hierarchies = Hierarchies::mounted()?;
    let mut containers = BTreeMap::new();
    each_container(|uid, process| {
        containers.entry(uid).or_insert_with(|| {
            let metrics = of_cgroups(&hierarchies, uid, process).into_iter().chain(of_others(uid, &network, None));
            metrics.collect::<BTreeMap<_, _>>()
        });
        Ok(())
    })?;
    let domains = domain_sums(|uid| ContainerUid::new(uid).is_some())?;
    let mut text = Text::default();
    for (metric, name, kind, help) in OF_CONTAINERS {
        let sample = |(uid, metrics): (&ContainerUid, &BTreeMap<_, u64>)| {
            Some((vec![("uid", uid.to_string())], *metrics.get(metric)? as f64))
        };
        text.family(name, kind, help, containers.iter().filter_map(sample));
    }
    for (index, (name, kind, help)) in OF_DOMAINS.into_iter().enumerate() {
        let samples = domains.iter().filter_map(|((domain, uid), sums)| {
            Some((vec![("uid", uid.to_string()), ("domain", domain.to_string())], *sums.get(index)? as f64))
        });
        text.family(name, kind, help, samples);
    }
    Ok(text.end())
}
