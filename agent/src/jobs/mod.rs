//! The jobs: each asks the API, compares the answer with the node, and changes what differs.
//!
//! What all jobs share is here; each job is in its own file.

pub mod alarms;
pub mod containers;
pub mod custom_services;
pub mod domains;
mod file_metadata;
pub mod keys;
pub mod metrics;
pub mod nodes;
pub mod port_mappings;

use crate::api::{Api, ContainerTimes};
use crate::files::{Content, Directory};
use crate::quota::Quotas;
use crate::removal_limit;
use crate::report::{Action, Report};
use crate::settings::Settings;
use anyhow::Result;
use clap::ValueEnum;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

/// A job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Job {
    /// The Emperor's files of the containers: vassals/UID.ini
    Containers,
    /// The keys of container users: .ssh/uwsgi_authorized_keys
    Keys,
    /// The lists of nodes, nodes and legion_nodes, and the firewall made of them
    Nodes,
    /// The files of the customers' services: custom_services/CUSTOMER_ID.ini
    CustomServices,
    /// What containers have raised, to the API: alarms/*
    Alarms,
    /// The ports of this node that lead to containers: table ip unbit_ports of nftables
    PortMappings,
    /// What each container and each domain uses, to the API
    Metrics,
    /// What is in some files of this node, to the API; it may ask for those of a list only
    FileMetadata,
    /// The customers' public keys, by which routers know who may subscribe a domain:
    /// domains/NAME.pem
    Domains,
}

/// The jobs of one of uwsgi.it's daemons, which run in one process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Daemon {
    /// containers, keys, nodes, custom-services, alarms and port-mappings, every 30 seconds, as
    /// root
    Configurator,
    /// metrics and file-metadata, every 300 seconds, as _unbit-agent
    Collector,
    /// domains, every 30 seconds, as www-data
    Dominator,
}

impl Daemon {
    /// In the order of uwsgi.it's.
    pub const fn jobs(self) -> &'static [Job] {
        match self {
            Self::Configurator => {
                &[Job::Containers, Job::Keys, Job::Nodes, Job::CustomServices, Job::Alarms, Job::PortMappings]
            }
            Self::Collector => &[Job::Metrics, Job::FileMetadata],
            Self::Dominator => &[Job::Domains],
        }
    }

    /// Seconds between two rounds.
    pub const fn interval(self) -> u64 {
        match self {
            Self::Configurator | Self::Dominator => 30,
            Self::Collector => 300,
        }
    }

    /// Whose job this is.
    pub fn of(job: Job) -> Self {
        let has_it = |daemon: &Self| daemon.jobs().contains(&job);
        [Self::Collector, Self::Dominator].into_iter().find(has_it).unwrap_or(Self::Configurator)
    }
}

/// What a job has at hand.
pub struct Node {
    /// Where it asks.
    pub api: Api,
    /// What the operator has set.
    pub settings: Settings,
    /// /etc/uwsgi.
    pub directory: PathBuf,
    /// Changes nothing.
    pub is_dry_run: bool,
    /// The operator's word that many may go at once.
    pub may_remove: bool,
    /// Files that the API may ask for, besides those that anybody may know.
    pub allowed_files: Vec<String>,
    /// The process that asks for quotas.
    pub quotas: Option<Quotas>,
    /// What earlier rounds have seen.
    pub memory: Memory,
}

/// What earlier rounds of this process have seen. Without it everything is asked for and compared
/// again, and nothing else is different.
#[derive(Default)]
pub struct Memory {
    /// What the API said of each container's file.
    state: Option<containers::State>,
    /// What it said of its keys, when they were last asked for.
    keys: HashMap<u32, Value>,
    /// The list that `containers` has just got, for `keys`, the next job of the round.
    listed: Option<BTreeMap<u32, ContainerTimes>>,
    /// Whether the firewall is made of the lists as they are.
    is_firewall_loaded: bool,
    /// The ports' rules that were loaded, and how nft shows them.
    ports: Option<(String, String)>,
}

impl Node {
    /// One round of a job.
    pub fn round(&mut self, job: Job) -> Report {
        let mut report = Report::default();
        let done = match job {
            Job::Containers => containers::round(self, &mut report),
            Job::Keys => keys::round(self, &mut report),
            Job::Nodes => nodes::round(self, &mut report),
            Job::CustomServices => custom_services::round(self, &mut report),
            Job::Alarms => alarms::round(self, &mut report),
            Job::PortMappings => port_mappings::round(self, &mut report),
            Job::Metrics => metrics::round(self, &mut report),
            Job::FileMetadata => file_metadata::round(self, &mut report),
            Job::Domains => domains::round(self, &mut report),
        };
        if let Err(error) = done {
            report.problem(error);
        }
        report
    }

    /// A directory below /etc/uwsgi.
    fn open(&self, name: &str) -> Result<Directory> {
        Directory::open(&self.directory.join(name))
    }

    /// Writes a file if it has another content.
    fn write(&self, directory: &Directory, name: &str, text: &str, mode: u32, report: &mut Report) -> Result<()> {
        let old = directory.read(name, crate::api::MAX_TEXT)?;
        if old.as_ref().is_some_and(|old| old.bytes == text.as_bytes()) {
            return Ok(());
        }
        self.put(directory, name, text, old.as_ref(), mode, report)
    }

    /// Writes a file.
    fn put(
        &self,
        directory: &Directory,
        name: &str,
        text: &str,
        old: Option<&Content>,
        mode: u32,
        report: &mut Report,
    ) -> Result<()> {
        if !self.is_dry_run {
            directory.replace(name, text.as_bytes(), old, mode)?;
        }
        report.change(Action::Write, directory.path_of(name), None);
        Ok(())
    }

    /// Removes the files that are not in `stay`, unless they are too many (see [`removal_limit`]).
    fn remove_others(
        &self,
        directory: &Directory,
        (job, what): (&str, &str),
        there: &[String],
        stay: &BTreeSet<String>,
        report: &mut Report,
    ) {
        let going: Vec<_> = there.iter().filter(|name| !stay.contains(*name)).collect();
        if removal_limit::blocks(going.len(), there.len(), self.may_remove) {
            report.problem(removal_limit::message(going.len(), there.len(), what, job));
            return;
        }
        for name in going {
            if !self.is_dry_run
                && let Err(error) = directory.remove(name)
            {
                report.problem(error);
                continue;
            }
            report.change(Action::Remove, directory.path_of(name), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_is_one_daemons() {
        for job in Job::value_variants() {
            let daemons = Daemon::value_variants().iter().filter(|daemon| daemon.jobs().contains(job));
            assert_eq!(daemons.copied().collect::<Vec<_>>(), [Daemon::of(*job)]);
        }
    }
}
