//! Sends to the API what each container uses, and how often its domains are requested.
//!
//! A container's cgroups are found by its pid 1, as a login finds them, in either version and under
//! any mount. Only the numbers of a container are kept, until they are sent.

pub mod text;

use super::Node;
use crate::api::Posted;
use crate::client::{MAX_REFUSED, Post};
use crate::names::DomainName;
use crate::quota::Quotas;
use crate::report::{Action, Report};
use anyhow::{Context, Result, bail};
use join::cgroup_usage::{self, field_of, read};
use join::cgroups::{Hierarchies, Version};
use join::link;
use join::proc::{Proc, Status};
use join::running;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use shared::ContainerUid;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the tuntap router and the http router say what they have carried.
const TUNTAP: u16 = 5002;
const HTTP: u16 = 5003;
/// How long they may take, and how much they may say: some hundred bytes for each container or
/// domain.
const ROUTER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER: u64 = 64 << 20;
/// Values that are sent together, so that the round needs no more memory for more containers.
const BATCH: usize = 1000;
/// Below this path.
const METRICS: &str = "/metrics/";

/// A name of the API's and its value.
type Metric = (&'static str, u64);
/// The names of a domain's.
const DOMAIN_METRICS: [&str; 3] = ["domain.net.rx", "domain.net.tx", "domain.hits"];
/// Bytes received and sent, by the number of the container.
type Network = HashMap<u32, (u64, u64)>;

#[derive(Deserialize)]
struct Tuntap {
    #[serde(default)]
    peers: Vec<Peer>,
}

#[derive(Deserialize)]
struct Peer {
    uid: u32,
    rx: u64,
    tx: u64,
}

#[derive(Deserialize)]
struct Http {
    #[serde(default)]
    subscriptions: Vec<Subscription>,
}

#[derive(Deserialize)]
struct Subscription {
    key: String,
    #[serde(default)]
    nodes: Vec<Subscriber>,
}

#[derive(Deserialize)]
struct Subscriber {
    uid: u32,
    rx: u64,
    tx: u64,
    requests: u64,
}

pub fn round(node: &mut Node, report: &mut Report) -> Result<()> {
    let done = send_all(node, report);
    if let Some(reason) = node.quotas.as_mut().and_then(Quotas::end_round) {
        report.problem(format!("container.quota is not sent for every container: {reason}"));
    }
    done
}

fn send_all(node: &mut Node, report: &mut Report) -> Result<()> {
    let listed = node.api.container_numbers()?;
    let mut sender = Sender { refused: HashMap::new(), sent: 0, time: now(), pending: Vec::new() };
    let network = network().unwrap_or_else(|error| {
        report.problem(error);
        Network::default()
    });
    let hierarchies = Hierarchies::mounted()?;
    let mut left = listed.clone();
    // A container that does not run still uses disk space.
    each_container(|uid, process| {
        if left.remove(&uid.get()) {
            let mut metrics = of_cgroups(&hierarchies, uid, process);
            metrics.extend(of_others(uid, &network, node.quotas.as_mut()));
            sender.send_all(node, uid.get(), &metrics, report)?;
        }
        Ok(())
    })?;
    for uid in left {
        let Some(uid) = ContainerUid::new(uid) else { continue };
        let metrics = of_others(uid, &network, node.quotas.as_mut());
        sender.send_all(node, uid.get(), &metrics, report)?;
    }
    let done = domains(node, &listed, &mut sender, report);
    for error in [done, sender.flush(node, report)].into_iter().filter_map(Result::err) {
        report.problem(error);
    }
    if !node.is_dry_run {
        report.change(Action::Send, METRICS, Some(format!("{} values", sender.sent)));
    }
    Ok(())
}

/// What the http router has carried for each domain and container. The API has no use for what is
/// not a container's, or no domain.
fn domains(node: &mut Node, listed: &BTreeSet<u32>, sender: &mut Sender, report: &mut Report) -> Result<()> {
    for ((domain, uid), sums) in domain_sums(|uid| listed.contains(&uid))? {
        for (name, value) in DOMAIN_METRICS.into_iter().zip(sums) {
            sender.send(node, uid, (name, value), Some(&domain), report)?;
        }
    }
    Ok(())
}

/// The values of [`DOMAIN_METRICS`], of the containers that are wanted. A container may have
/// subscribed a domain more than once.
fn domain_sums(is_wanted: impl Fn(u32) -> bool) -> Result<BTreeMap<(DomainName, u32), [u64; 3]>> {
    let mut sums: BTreeMap<_, [u64; 3]> = BTreeMap::new();
    let response = stats::<Http>(HTTP)?;
    for Subscription { key, nodes } in response.map(|response| response.subscriptions).unwrap_or_default() {
        let Some(domain) = DomainName::parse(&key) else { continue };
        for Subscriber { uid, rx, tx, requests } in nodes.into_iter().filter(|node| is_wanted(node.uid)) {
            let sum = sums.entry((domain.clone(), uid)).or_default();
            for (sum, more) in sum.iter_mut().zip([rx, tx, requests]) {
                *sum = sum.saturating_add(more);
            }
        }
    }
    Ok(sums)
}

/// What the tuntap router has carried.
fn network() -> Result<Network> {
    let response = stats::<Tuntap>(TUNTAP)?;
    Ok(response
        .map(|response| response.peers)
        .unwrap_or_default()
        .into_iter()
        .map(|peer| (peer.uid, (peer.rx, peer.tx)))
        .collect())
}

/// Each container that runs, by its pid 1 and the parent of that. Root of another engine's
/// container can take any uid, so there the container must have a link.
fn each_container(mut found: impl FnMut(ContainerUid, &(Proc, Proc)) -> Result<()>) -> Result<()> {
    let mut emperors = HashMap::new();
    for container in running::containers().context("read /proc")? {
        let Ok(parent) = Proc::of(container.parent) else { continue };
        let is_emperor = || parent.read("status").is_ok_and(|status| Status::new(&status).is_emperor());
        let is_vassal = *emperors.entry(container.parent).or_insert_with(is_emperor);
        let has_link = || Path::new(link::DIRECTORY).join(container.uid.to_string()).symlink_metadata().is_ok();
        if is_vassal || has_link() {
            found(container.uid, &(container.process, parent))?;
        }
    }
    Ok(())
}

fn of_cgroups(hierarchies: &Hierarchies, uid: ContainerUid, (process, parent): &(Proc, Proc)) -> Vec<Metric> {
    let Some(cgroups) = hierarchies.of_process(process, parent) else { return Vec::new() };
    let linked = link::target_of(uid).and_then(|target| cgroup_usage::path_of_link(hierarchies, &target));
    let own = |controller| {
        let (version, directories) = cgroups.for_controller(controller)?;
        Some((version, cgroup_usage::own(&directories, linked.as_deref())?.clone()))
    };
    let mut metrics = Vec::new();
    let mut add = |name, value: Option<u64>| metrics.extend(value.map(|value| (name, value)));
    if let Some((version, group)) = own("cpuacct") {
        add("container.cpu", cgroup_usage::cpu_nanoseconds(version, &group));
    }
    if let Some((version, group)) = own("memory") {
        let (rss, cache) = match version {
            Version::One => ("total_rss", "total_cache"),
            Version::Two => ("anon", "file"),
        };
        add("container.mem", cgroup_usage::memory_bytes(version, &group));
        let stat = read(&group, "memory.stat").unwrap_or_default();
        add("container.mem.rss", field_of(&stat, rss));
        add("container.mem.cache", field_of(&stat, cache));
    }
    if let Some((version, group)) = own("blkio") {
        let (read, written) = io(version, &group).unzip();
        add("container.io.read", read);
        add("container.io.write", written);
    }
    metrics
}

/// Bytes read and written, of all devices.
fn io(version: Version, group: &Path) -> Option<(u64, u64)> {
    match version {
        // What was throttled is all that passes; the file that uwsgi.it reads counts for one
        // scheduler alone, which newer kernels do not have.
        Version::One => {
            let text = read(group, "blkio.throttle.io_service_bytes");
            Some(io_of_version_1(&text.or_else(|| read(group, "blkio.io_service_bytes"))?))
        }
        Version::Two => Some(io_of_version_2(&read(group, "io.stat")?)),
    }
}

fn io_of_version_1(text: &str) -> (u64, u64) {
    let sum = |kind: &str| -> u64 {
        let value = |line: &str| {
            let mut words = line.split_whitespace().skip(1);
            if words.next()? == kind { words.next()?.parse::<u64>().ok() } else { None }
        };
        text.lines().filter_map(value).fold(0, u64::saturating_add)
    };
    (sum("Read"), sum("Write"))
}

fn io_of_version_2(text: &str) -> (u64, u64) {
    let sum = |key: &str| -> u64 {
        let words = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
        words.fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

/// The disk, and the network as the tuntap router counts it.
fn of_others(uid: ContainerUid, network: &Network, quotas: Option<&mut Quotas>) -> Vec<Metric> {
    let mut metrics = Vec::new();
    metrics.extend(quotas.and_then(|quotas| quotas.used_bytes(uid)).map(|bytes| ("container.quota", bytes)));
    if let Some((rx, tx)) = network.get(&uid.get()) {
        metrics.extend([("container.net.rx", *rx), ("container.net.tx", *tx)]);
    }
    metrics
}

/// What a router says, all of it; nothing if there is none.
fn stats<T: DeserializeOwned>(port: u16) -> Result<Option<T>> {
    let end = Instant::now() + ROUTER_TIMEOUT;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut socket) = TcpStream::connect_timeout(&address, ROUTER_TIMEOUT) else { return Ok(None) };
    let mut bytes = Vec::new();
    let mut some = [0; 64 << 10];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("{address}: no complete answer within {} s", ROUTER_TIMEOUT.as_secs());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut some) {
            Ok(0) => break,
            Ok(length) => bytes.extend(some.iter().take(length)),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => bail!("{address}: no complete answer within {} s", ROUTER_TIMEOUT.as_secs()),
        }
        if bytes.len() as u64 > MAX_ANSWER {
            bail!("{address}: the answer is longer than {} MiB", MAX_ANSWER >> 20);
        }
    }
    serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{address}: not the JSON of a router"))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Sends metrics, all with the time of the round.
struct Sender {
    /// How many values of each container.
    refused: HashMap<u32, usize>,
    sent: usize,
    time: u64,
    pending: Vec<Post>,
}

impl Sender {
    fn send_all(&mut self, node: &mut Node, uid: u32, metrics: &[Metric], report: &mut Report) -> Result<()> {
        metrics.iter().try_for_each(|metric| self.send(node, uid, *metric, None, report))
    }

    fn send(
        &mut self,
        node: &mut Node,
        uid: u32,
        (name, value): Metric,
        domain: Option<&DomainName>,
        report: &mut Report,
    ) -> Result<()> {
        if self.refused.get(&uid).is_some_and(|count| *count >= MAX_REFUSED) {
            return Ok(());
        }
        let path = format!("{METRICS}{name}/{uid}");
        let mut body = json!({"unix": self.time, "value": value});
        if let (Some(domain), Some(body)) = (domain, body.as_object_mut()) {
            body.insert("domain".to_owned(), domain.as_str().into());
        }
        if node.is_dry_run {
            report.change(Action::Send, path, Some(body.to_string()));
            return Ok(());
        }
        self.pending.push(Post { container: uid, path, body: body.to_string().into_bytes() });
        if self.pending.len() < BATCH { Ok(()) } else { self.flush(node, report) }
    }

    /// A value that the API does not want is a fault of its own; an API that does not answer ends
    /// the round.
    fn flush(&mut self, node: &mut Node, report: &mut Report) -> Result<()> {
        let posts = std::mem::take(&mut self.pending);
        if posts.is_empty() {
            return Ok(());
        }
        for (Post { container, path, .. }, posted) in posts.iter().zip(node.api.send(METRICS, &posts)?) {
            match posted {
                Some(Posted::Created) => self.sent += 1,
                Some(Posted::Refused(status)) => {
                    report.problem(format!("POST {path}: the API answers {status}"));
                    let refused = self.refused.entry(*container).or_insert(0);
                    *refused += 1;
                    if *refused == MAX_REFUSED {
                        report.problem(format!(
                            "POST {METRICS}: {MAX_REFUSED} values of container {container} are refused, and its others are not sent"
                        ));
                    }
                }
                None => {}
            }
        }
        if self.refused.len() >= MAX_REFUSED {
            bail!(
                "POST {METRICS}: values of {MAX_REFUSED} containers or more are refused, and the others are not sent"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_both_versions() {
        let one = "8:0 Read 4096\n8:0 Write 100\n8:0 Sync 1\n8:0 Total 4196\n8:16 Read 1\n8:16 Write 2\nTotal 4199\n";
        assert_eq!(io_of_version_1(one), (4097, 102));
        assert_eq!(io_of_version_1("Total 0\n"), (0, 0));
        let two =
            "8:0 rbytes=4096 wbytes=100 rios=1 wios=2 dbytes=7 dios=0\n8:16 rbytes=1 wbytes=2 rios=0 wios=0\n253:0 \n";
        assert_eq!(io_of_version_2(two), (4097, 102));
    }

    #[test]
    fn routers_say_more_than_is_read() {
        let response: Tuntap =
            serde_json::from_str(r#"{"version":"2","peers":[{"addr":"10.0.0.3","uid":30001,"tx":2,"rx":1,"gid":1}]}"#)
                .unwrap();
        assert_eq!((response.peers[0].uid, response.peers[0].rx, response.peers[0].tx), (30001, 1, 2));
        let response: Http = serde_json::from_str(r#"{"subscriptions":[{"key":"a.example","hash":1,"nodes":[{"name":"x","uid":30001,"requests":3,"tx":2,"rx":1}]}],"cheap":0}"#).unwrap();
        assert_eq!(response.subscriptions[0].nodes[0].requests, 3);
    }
}
