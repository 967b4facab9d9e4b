//! `unbitctl setup`: fixes what check finds. The changes of each step are next to its
//! [`check`](crate::check).
//!
//! Each step shows its changes and records them in the [`journal`], keeps the old files, and
//! replaces them atomically ([`file`]). Then the programs that read the files must accept them, or
//! the old ones are put back. [`undo`] puts them back later. A set-up runs to its end even if
//! nobody reads its output.

pub mod distribution;
pub mod emperor;
mod file;
mod journal;
mod undo;

use crate::check::{directories, distributions, nscd, nsswitch, pam, sshd};
use crate::command_line::{print_lossy, warn_line};
use crate::lock::Lock;
use crate::report::{self, Format, GUIDE, Profile, State};
use crate::rootfs::RootFs;
use crate::step::{Choices, Step};
use crate::terminal;
use anyhow::{Context, Result, bail};
use journal::{Journal, Replaced};
use nix::sys::stat::Mode;
use std::path::PathBuf;
use std::process::ExitCode;

pub const EXAMPLES: &str = "\
Examples:
  unbitctl setup --dry-run           show what would change
  unbitctl setup                     fix all that can be fixed
  unbitctl setup --guide uwsgi.it    and do the steps of uwsgi.it's guide for a node
  unbitctl setup --keys-only sshd    and refuse all passwords
  unbitctl setup nsswitch --root /distros/precise
  unbitctl setup --undo              undo the last set-up
  unbitctl setup emperor             set up what containers of uWSGI's Emperor need";

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// The steps to do, by the names that check prints; all if none is given
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(STEPS.iter().map(|step| step.name)))]
    steps: Vec<String>,
    /// Configure sshd to refuse all passwords: users then need keys
    #[arg(long, conflicts_with = "undo")]
    keys_only: bool,
    /// Do the steps of this guide as well
    #[arg(long, value_name = "GUIDE", value_parser = [GUIDE], conflicts_with = "undo")]
    guide: Option<String>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Set up this root directory instead of the running node
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Put back the files that the last set-up replaced
    #[arg(long, conflicts_with = "steps")]
    undo: bool,
    /// Put them back even if somebody has changed them since
    #[arg(long, requires = "undo")]
    force: bool,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Set up uWSGI's Emperor, and logins to its containers
    #[command(after_help = emperor::EXAMPLES)]
    Emperor(emperor::Arguments),
    /// Make a distribution that containers start from, with debootstrap or mmdebstrap
    #[command(after_help = distribution::EXAMPLES)]
    Distribution(distribution::Arguments),
}

/// In this order. PAM comes before nsswitch.conf: an account that sshd knows and PAM does not would
/// get a session on the node.
const STEPS: [Step; 6] = [directories::STEP, pam::STEP, sshd::STEP, nsswitch::STEP, nscd::STEP, distributions::STEP];

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.part {
        Some(Part::Emperor(arguments)) => return emperor::run(arguments),
        Some(Part::Distribution(arguments)) => return distribution::run(arguments),
        None => {}
    }
    let node = RootFs::named(arguments.root.as_deref())?;
    if !arguments.dry_run {
        crate::command_line::must_be_root("setup")?;
    }
    if arguments.undo {
        return undo::run(&node, arguments.dry_run, arguments.force);
    }
    let chosen = chosen(&node, &arguments.steps)?;
    let choices = Choices {
        keys_only: arguments.keys_only || ask_keys_only(&node, &chosen, arguments.dry_run),
        guide: arguments.guide.is_some(),
    };
    run_steps(&node, &chosen, choices, arguments.dry_run)
}

/// Runs the steps.
fn run_steps(node: &RootFs, chosen: &[&Step], choices: Choices, dry_run: bool) -> Result<ExitCode> {
    if dry_run {
        let mut any = false;
        let outcome = Outcome::of(chosen, |step, done| dry_run_step(node, step, choices, done, &mut any));
        if !any && outcome.code.is_none() {
            print_lossy!("nothing to do\n");
        }
        outcome.print("setup would end with ");
        return Ok(outcome.code.unwrap_or(ExitCode::SUCCESS));
    }
    nix::sys::stat::umask(Mode::S_IWGRP | Mode::S_IWOTH); // whatever the caller's: sshd and PAM's users read what is made
    let _lock = Lock::of_setup(node)?;
    let mut journal = Journal::begin(node)?;
    let mut counts = Counts::default();
    let outcome = Outcome::of(chosen, |step, _| run_step(node, step, choices, &mut journal, &mut counts));
    let ended = journal.end();
    counts.print(node, outcome.code.is_none());
    let begun: Vec<_> = chosen.iter().copied().filter(|step| !outcome.not_begun.contains(&step.name)).collect();
    let result = remaining_findings(node, &begun, choices);
    outcome.print("");
    ended?;
    outcome.code.map_or(result, Ok)
}

/// The steps of these names; without one, all that a node or a distribution has.
fn chosen(node: &RootFs, names: &[String]) -> Result<Vec<&'static Step>> {
    let is_named = |step: &&Step| names.iter().any(|name| name == step.name);
    if !distributions::is_distribution(node) {
        return Ok(STEPS.iter().filter(|step| names.is_empty() || is_named(step)).collect());
    }
    if names.iter().any(|name| name == directories::STEP.name) {
        bail!(
            "{} is a distribution, and only a node has these directories: it needs {}",
            node.root().display(),
            distributions::NEEDED.join(" and ")
        );
    }
    let of_one = |step: &&Step| [nsswitch::STEP.name, distributions::STEP.name].contains(&step.name);
    Ok(STEPS.iter().filter(|step| if names.is_empty() { of_one(step) } else { is_named(step) }).collect())
}

/// Asks the operator, on a terminal, if it would change something. Without a terminal the answer is
/// no.
fn ask_keys_only(node: &RootFs, chosen: &[&Step], dry_run: bool) -> bool {
    let concerns = chosen.iter().any(|step| step.name == sshd::STEP.name);
    if dry_run || !concerns || !terminal::can_ask() || !sshd::takes_passwords(node) {
        return false;
    }
    let question = "sshd accepts passwords. Should it accept only keys from now on, for all users? [y/N]";
    terminal::ask(question).is_ok_and(|answer| matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The results of the steps, by their names.
#[derive(Default)]
struct Outcome {
    done: Vec<&'static str>,
    failed: Vec<&'static str>,
    /// Only root can see whether they would succeed.
    not_known: Vec<&'static str>,
    /// Because others failed.
    not_begun: Vec<&'static str>,
    /// The exit status, unless all are done.
    code: Option<ExitCode>,
}

impl Outcome {
    /// Runs the steps, each with the names of those that are done.
    fn of(steps: &[&Step], mut run: impl FnMut(&Step, &[&str]) -> Result<()>) -> Self {
        let mut outcome = Self::default();
        for step in steps {
            if step.needs.iter().any(|name| outcome.failed.contains(name)) {
                outcome.not_begun.push(step.name);
                continue;
            }
            match run(step, &outcome.done) {
                Ok(()) => outcome.done.push(step.name),
                Err(error) => {
                    warn_line(format_args!("{}: {error:#}", step.name));
                    if error.is::<crate::command_line::NeedsRoot>() {
                        outcome.not_known.push(step.name);
                        outcome.code.get_or_insert(crate::command_line::exit_code(&error));
                    } else {
                        outcome.failed.push(step.name);
                        outcome.code = Some(crate::command_line::exit_code(&error));
                    }
                }
            }
        }
        outcome
    }

    /// Prints which of several steps are done and which are not, unless all are.
    fn print(&self, before: &str) {
        let lists = [
            ("done", &self.done),
            ("failed", &self.failed),
            ("not known", &self.not_known),
            ("not begun", &self.not_begun),
        ];
        let several = lists.iter().map(|(_, names)| names.len()).sum::<usize>() > 1;
        if self.code.is_some() && several {
            let lists = lists.iter().filter(|(_, names)| !names.is_empty());
            let lists: Vec<_> = lists.map(|(word, names)| format!("{word}: {}", names.join(", "))).collect();
            warn_line(format_args!("{before}{}", lists.join("; ")));
        }
    }
}

/// Shows what a step would change, unless it would certainly fail.
fn dry_run_step(node: &RootFs, step: &Step, choices: Choices, done: &[&str], any: &mut bool) -> Result<()> {
    let changes = file::pending(node, (step.changes)(node, choices)?)?;
    if changes.is_empty() {
        return Ok(());
    }
    let preflight = (step.requires)(node, done).and_then(|()| (step.preflight)(node));
    if preflight.as_ref().err().is_none_or(|error| error.is::<crate::command_line::NeedsRoot>()) {
        *any = true;
        changes.iter().for_each(|change| print_lossy!("{change}"));
        (step.warning)(node, choices).iter().for_each(warn_line);
    }
    preflight
}

/// How many files and directories a set-up has changed.
#[derive(Default)]
struct Counts {
    files: usize,
    /// Directories that were made, and those that were there and have their owner and mode now.
    made: usize,
    fixed: usize,
}

impl Counts {
    fn print(&self, node: &RootFs, all: bool) {
        let undo = node.setup_command("--undo");
        match self.fixed {
            0 => {}
            1 => print_lossy!("1 directory fixed; it stays\n"),
            directories => print_lossy!("{directories} directories fixed; they stay\n"),
        }
        match self.made {
            0 => {}
            1 => print_lossy!("1 directory made; {undo} removes it while it is empty\n"),
            directories => print_lossy!("{directories} directories made; {undo} removes those that are empty\n"),
        }
        match self.files {
            0 if self.made + self.fixed == 0 && all => print_lossy!("nothing to do\n"),
            0 => {}
            1 => print_lossy!("1 file changed; {undo} takes it back\n"),
            files => print_lossy!("{files} files changed; {undo} takes them back\n"),
        }
    }
}

/// Runs one step. Either all of its files are replaced, or none.
fn run_step(node: &RootFs, step: &Step, choices: Choices, journal: &mut Journal, counts: &mut Counts) -> Result<()> {
    let changes = file::pending(node, (step.changes)(node, choices)?)?;
    if changes.is_empty() {
        return Ok(());
    }
    (step.requires)(node, &[])?;
    changes.iter().for_each(|change| print_lossy!("{change}"));
    (step.warning)(node, choices).iter().for_each(warn_line);
    let mut made = Vec::new();
    let result = changes.iter().try_for_each(|change| {
        let recorded = journal.record(change)?;
        let (is_directory, is_there) = (recorded.is_none(), change.is_there());
        made.extend(recorded);
        change.make()?;
        counts.made += usize::from(is_directory && !is_there);
        counts.fixed += usize::from(is_directory && is_there);
        Ok(())
    });
    let result = result.and_then(|()| (step.validate)(node).context("the new files are not accepted"));
    if let Err(error) = result {
        return Err(put_all_back(node, step, &made, journal, error));
    }
    if node.is_running() && !step.follow_up.is_empty() {
        print_lossy!("{}\n", step.follow_up);
    }
    counts.files += made.len();
    Ok(())
}

/// Puts back every file of a step that failed, even if one cannot be. Returns the error of the
/// step, with what could not be put back.
fn put_all_back(
    node: &RootFs,
    step: &Step,
    made: &[Replaced],
    journal: &mut Journal,
    mut error: anyhow::Error,
) -> anyhow::Error {
    let (back, lost): (Vec<_>, Vec<_>) =
        made.iter().rev().map(|replaced| (replaced, replaced.put_back(node))).partition(|(_, done)| done.is_ok());
    for (replaced, done) in lost {
        if let Err(another) = done {
            error = error.context(format!("{} could not be put back: {another:#}", replaced.path));
        }
    }
    for (replaced, _) in back {
        if let Err(another) = journal.forget(replaced) {
            error = error.context(format!("the notes for --undo are not up to date: {another:#}"));
        }
        warn_line(format_args!("{}: {} is as it was before", step.name, replaced.path));
    }
    error
}

/// The findings that remain, shown as check does.
fn remaining_findings(node: &RootFs, steps: &[&Step], choices: Choices) -> Result<ExitCode> {
    let mut findings: Vec<_> = steps.iter().flat_map(|step| (step.check)(node)).collect();
    if choices.guide {
        let of_guide = steps.iter().flat_map(|step| (step.guide)(node));
        findings.extend(of_guide.map(|finding| finding.with_profile(Profile::Guide)));
    }
    findings.retain(|finding| matches!(finding.state, State::Fail | State::Warn));
    if findings.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    report::show(&findings, Format::new(false))
}
