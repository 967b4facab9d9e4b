//! unbit-agent: does on a node what uwsgi.it's API asks for. See unbit-agent(8).
//!
//! [`settings`] says where the API is. [`fetcher`] is the process that talks to it, by [`client`]
//! and [`tls`], and [`api`] checks its answers. The [`jobs`] compare and change the node, in
//! [`files`] that are replaced atomically. [`report`] shows people and the log what was done.

mod api;
mod client;
mod command;
mod fetcher;
mod files;
mod identity;
mod jobs;
mod names;
mod quota;
mod removal_limit;
mod report;
mod settings;
mod tls;

/// What must hold for any input of the parsers here, for the fuzzer.
#[cfg(feature = "fuzz")]
#[path = "../../fuzz/properties/agent.rs"]
pub mod properties;

use anyhow::{Context, Result};
use api::Api;
use clap::{CommandFactory, Parser, Subcommand};
use client::Client;
use fetcher::Fetcher;
use identity::Identity;
use jobs::{Daemon, Job, Memory, Node};
use nix::unistd::geteuid;
use quota::Quotas;
use report::{LoggedProblems, log, print};
use serde::Serialize;
use settings::Settings;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tls::{Material, SYSTEM_CA, Tls};

/// Configure a uwsgi.it node as its API says, instead of configurator, collector and dominator.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit status:
  0  everything was done
  1  something failed; the reason is on stderr
  2  wrong arguments
  3  root is needed";

const RUN_EXAMPLES: &str = "\
Examples:
  unbit-agent run configurator
  unbit-agent run dominator --ca-file /etc/uwsgi/ssl/api-ca.pem
  unbit-agent run collector --allow-file /etc/motd";

const ONCE_EXAMPLES: &str = "\
Examples:
  unbit-agent once containers --dry-run
  unbit-agent once nodes --json
  unbit-agent once containers --allow-removal";

const METRICS_EXAMPLES: &str = "\
Examples:
  unbit-agent metrics >/var/lib/prometheus/node-exporter/unbit-agent.prom.new";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  source <(unbit-agent completions bash)
  unbit-agent completions fish >~/.config/fish/completions/unbit-agent.fish";

#[derive(Subcommand)]
enum Command {
    /// Do the jobs of one daemon until terminated
    #[command(after_help = RUN_EXAMPLES)]
    Run {
        /// The daemon
        daemon: Daemon,
        /// Start a round every SECONDS; the default is 300 for the collector and 30 for the others
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
        interval: Option<u64>,
        #[command(flatten)]
        place: Place,
    },
    /// Do a job once
    #[command(after_help = ONCE_EXAMPLES)]
    Once {
        /// The job
        job: Job,
        /// Change nothing and send nothing; print what would be changed and sent
        #[arg(long)]
        dry_run: bool,
        /// Remove what the API no longer lists, even if that is all of it, or more than 3 and more
        /// than a tenth of the list
        #[arg(long)]
        allow_removal: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Print metrics for the textfile collector of Prometheus' node_exporter, without an API
    #[command(after_help = METRICS_EXAMPLES)]
    Metrics,
    /// Print completions for a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where files are, and how the API is verified.
#[derive(clap::Args)]
struct Place {
    /// The directory of local.ini and of the files that the jobs write
    #[arg(long, value_name = "DIR", default_value = "/etc/uwsgi", value_parser = absolute)]
    directory: PathBuf,
    /// Certificate authorities of the API, in PEM; the default is api_ca_file in local.ini, or the
    /// system's authorities
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Accept any certificate that these authorities issued, whatever name it has
    #[arg(long)]
    insecure_server_name: bool,
    /// Allow file-metadata to send this file, besides those in the manual; can be repeated
    #[arg(long, value_name = "FILE")]
    allow_file: Vec<String>,
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = std::path::absolute(text).map_err(|error| error.to_string())?;
    if path.to_str().is_some() { Ok(path) } else { Err("a path in UTF-8 is needed".to_owned()) }
}

/// The job needs root, and this user is not root.
#[derive(Debug)]
struct NeedsRoot(&'static str);

impl std::fmt::Display for NeedsRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} needs root", self.0)
    }
}

impl std::error::Error for NeedsRoot {}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    // Where SIGCHLD is ignored, nobody learns how a child ended. Whoever started us may have
    // ignored it.
    let _ = join::sys::reset_signal_action(nix::sys::signal::Signal::SIGCHLD);
    let done = match command {
        Command::Run { daemon, interval, place } => run(daemon, interval, &place),
        Command::Once { job, dry_run, allow_removal, json, place } => once(job, dry_run, allow_removal, json, &place),
        Command::Metrics => metrics(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "unbit-agent", &mut script);
            print(&String::from_utf8_lossy(&script)).map(|()| ExitCode::SUCCESS).map_err(anyhow::Error::from)
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            log(format_args!("{error:#}"));
            if error.is::<NeedsRoot>() { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}

/// Reads the settings, prepares the connection to the API, and becomes the user that the job needs.
/// It does not connect yet.
fn prepare(daemon: Daemon, place: &Place, is_dry_run: bool, may_remove: bool) -> Result<Node> {
    let is_root = geteuid().is_root();
    if !is_root && daemon == Daemon::Configurator {
        return Err(NeedsRoot("this job").into());
    }
    let settings = Settings::read(&place.directory.join("local.ini"))?;
    let authorities = place.ca_file.as_deref().or(settings.ca_file.as_deref()).unwrap_or(Path::new(SYSTEM_CA));
    let material = Material::read(&settings.key_file, &settings.certificate_file, authorities)?;
    let is_name_verified = !place.insecure_server_name;
    if !is_name_verified {
        log(format_args!(
            "warning: --insecure-server-name: every server with a certificate of {} can pretend to be {}",
            authorities.display(),
            settings.api.host
        ));
    }
    let tls = Tls::new(&material, settings.api.host.clone(), is_name_verified)?;
    let client = Client::new(&settings.api, tls);
    let mut quotas = None;
    // The configurator stays root; only its fetcher drops privileges. The others need root only to
    // read the key.
    let identity = match daemon {
        Daemon::Configurator => Identity::of(identity::OWN_USER)?,
        Daemon::Collector if is_root => {
            let identity = Identity::of(identity::OWN_USER)?;
            quotas = Quotas::start(&identity)?;
            identity.assume()?;
            identity
        }
        Daemon::Dominator if is_root => {
            let identity = Identity::of(identity::ROUTERS_USER)?;
            identity.assume()?;
            identity
        }
        Daemon::Collector | Daemon::Dominator => Identity::own(),
    };
    Ok(Node {
        api: Api(Fetcher::new(client, identity)),
        settings,
        directory: place.directory.clone(),
        is_dry_run,
        may_remove,
        allowed_files: place.allow_file.clone(),
        quotas,
        memory: Memory::default(),
    })
}

fn run(daemon: Daemon, interval: Option<u64>, place: &Place) -> Result<ExitCode> {
    let mut node = prepare(daemon, place, false, false)?;
    let mut jobs: Vec<_> = daemon.jobs().iter().map(|job| (*job, LoggedProblems::default())).collect();
    let interval = Duration::from_secs(interval.unwrap_or(daemon.interval()));
    loop {
        let began = Instant::now();
        for (job, logged) in &mut jobs {
            let report = node.round(*job);
            logged.lines(&name(*job), &report).iter().for_each(log);
        }
        std::thread::sleep(interval.saturating_sub(began.elapsed()));
    }
}

#[derive(Serialize)]
struct JsonOutput<'a> {
    job: &'a str,
    dry_run: bool,
    #[serde(flatten)]
    report: &'a report::Report,
}

fn once(job: Job, is_dry_run: bool, may_remove: bool, json: bool, place: &Place) -> Result<ExitCode> {
    let mut node = prepare(Daemon::of(job), place, is_dry_run, may_remove)?;
    let report = node.round(job);
    if json {
        let answer = JsonOutput { job: &name(job), dry_run: is_dry_run, report: &report };
        print(&report::json(&answer)?).context("write standard output")?;
    } else {
        let lines = report.changes.iter().map(|change| format!("{}{change}\n", if is_dry_run { "would " } else { "" }));
        print(&lines.collect::<String>()).context("write standard output")?;
        report.problems.iter().for_each(log);
    }
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What needs neither an API nor settings.
fn metrics() -> Result<ExitCode> {
    if geteuid().is_root() {
        Identity::of(identity::OWN_USER)?.assume()?;
    }
    print(&jobs::metrics::text::text()?).context("write standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// The name on the command line.
fn name(job: Job) -> String {
    clap::ValueEnum::to_possible_value(&job).map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_help_has_examples_and_the_first_one_the_exit_statuses() {
        let command = Arguments::command();
        command.clone().debug_assert();
        let end = |command: &clap::Command| command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(end(&command).starts_with("Exit status:\n  0 "));
        for subcommand in command.get_subcommands() {
            let (name, end) = (subcommand.get_name(), end(subcommand));
            assert!(end.starts_with("Examples:\n") && end.contains(&format!("unbit-agent {name}")), "{name}");
        }
    }
}
