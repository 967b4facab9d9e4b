//! unbitctl: checks, sets up and shows a node. See unbitctl(8).
//!
//! [`check`] looks and changes nothing, and [`setup`] fixes what it finds. [`create`] and
//! [`remove`] make and remove the Emperor's containers, and [`attach`] links accounts to containers
//! of other engines. [`list`], [`sessions`] and [`enter`] are about containers, [`firewall`] about
//! ports. How findings are shown is in [`report`].

mod attach;
mod check;
mod columns;
mod command;
mod command_line;
mod containers;
mod create;
mod emperor;
mod engine;
mod enter;
mod firewall;
mod interrupt;
mod keys;
mod leftovers;
mod list;
mod lock;
mod names;
mod packages;
mod probe;
mod progress;
mod pty_forward;
mod purge;
mod quota;
mod reaper;
mod remove;
mod report;
mod rootfs;
mod sealed_exe;
mod sessions;
mod setup;
mod shell;
mod step;
mod stop;
mod sys;
mod terminal;
mod vassal;

/// What must hold for any input of the parsers here, for the fuzzer.
#[cfg(feature = "fuzz")]
#[path = "../../fuzz/properties/unbitctl.rs"]
pub mod properties;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Check, set up and operate a node whose users log in to their containers by ssh.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit status:
  0  success, perhaps with warnings; for enter: the exit status of the command
  1  a check failed, a login would not work, or something failed; the reason is on stderr
  2  wrong arguments
  3  root is needed
  4  with --guide: only steps of the guide failed, and no check of logins";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  source <(unbitctl completions bash)
  unbitctl completions fish >~/.config/fish/completions/unbitctl.fish";

#[derive(Subcommand)]
enum Command {
    /// Check the node, or each step of a login to one container
    #[command(after_help = check::EXAMPLES)]
    Check(check::Arguments),
    /// Fix what check finds; print each change, and keep the old file
    #[command(after_help = setup::EXAMPLES)]
    Setup(setup::Arguments),
    /// Make a container that uWSGI's Emperor runs, and wait until a login works
    #[command(after_help = create::EXAMPLES)]
    Create(create::Arguments),
    /// Stop and remove a container that the Emperor runs; its files stay unless --purge is given
    #[command(after_help = remove::EXAMPLES)]
    Remove(remove::Arguments),
    /// Link an account to a container of another engine, for ssh (does not enter it)
    #[command(after_help = attach::EXAMPLES)]
    Attach(attach::Arguments),
    /// Remove a link that attach made, or a second name
    #[command(after_help = attach::DETACH_EXAMPLES)]
    Detach(attach::DetachArguments),
    /// Show the containers of this node
    #[command(after_help = list::EXAMPLES)]
    List(list::Arguments),
    /// Show the open sessions, or end one
    #[command(after_help = sessions::EXAMPLES)]
    Sessions(sessions::Arguments),
    /// Run a shell or a command in a container
    #[command(after_help = enter::EXAMPLES)]
    Enter(enter::Arguments),
    /// Print, load or remove the nftables rules of a uwsgi.it node
    #[command(after_help = firewall::EXAMPLES)]
    Firewall(firewall::Arguments),
    /// Print the completions of a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let Arguments { command } =
        Arguments::try_parse_from(&words).unwrap_or_else(|error| enter::with_tip(error, &words).exit());
    // Where SIGCHLD is ignored, nobody learns how a child ended, nor when. Whoever started us may
    // have ignored it.
    let _ = join::sys::reset_signal_action(nix::sys::signal::Signal::SIGCHLD);
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            command_line::warn_line(format_args!("{error:#}"));
            command_line::exit_code(&error)
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Check(arguments) => check::run(&arguments),
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Create(arguments) => create::run(&arguments),
        Command::Remove(arguments) => remove::run(&arguments),
        Command::Attach(arguments) => attach::run(&arguments),
        Command::Detach(arguments) => attach::detach(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Sessions(arguments) => sessions::run(&arguments),
        Command::Enter(arguments) => enter::run(&arguments),
        Command::Firewall(arguments) => firewall::run(&arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "unbitctl", &mut script);
            report::print(&String::from_utf8(script)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_help_has_examples_and_the_first_one_the_exit_statuses() {
        let command = Arguments::command();
        let end = |command: &clap::Command| command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(end(&command).starts_with("Exit status:\n  0 "));
        let names: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(
            names,
            [
                "check",
                "setup",
                "create",
                "remove",
                "attach",
                "detach",
                "list",
                "sessions",
                "enter",
                "firewall",
                "completions"
            ]
        );
        for subcommand in command.get_subcommands() {
            let name = subcommand.get_name();
            let end = end(subcommand);
            assert!(end.starts_with("Examples:\n"), "{name}");
            assert!(end.contains(&format!("unbitctl {name}")), "{name}");
        }
    }
}
