//! `unbitctl firewall`: the ports of a node, as an nftables ruleset.
//!
//! [`source`] is what the rules are made of, its arguments are [`values`]; [`list`] reads the lists
//! of nodes, [`ruleset`] makes the rules, [`nft`] talks to nft(8). What the rules are, and why, is
//! in unbitctl(8).

pub(crate) mod list;
pub mod nft;
pub mod ruleset;
pub mod source;
pub(crate) mod values;

use crate::command_line::{must_be_root, print_lossy, warn_line};
use crate::report;
use anyhow::{Result, bail};
use ruleset::{BadLists, Ruleset};
use source::Source;
use std::process::ExitCode;

pub const EXAMPLES: &str = "\
Examples:
  unbitctl firewall                 print the rules for the lists in /etc/uwsgi
  unbitctl firewall --apply         load them, in one step
  unbitctl firewall --reload        load them again after the lists have changed
  unbitctl firewall --nodes ./nodes --routers ./legion_nodes --public-ip 192.0.2.1
  unbitctl firewall --remove";

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Load the rules in one step, in place of those loaded before
    #[arg(long)]
    apply: bool,
    /// Load them again for the lists as they are now, with the options of the loaded table; if none
    /// is loaded, do nothing
    #[arg(long, conflicts_with_all = ["apply", "Source"])]
    reload: bool,
    /// Remove the rules; all other tables stay as they are
    #[arg(long, conflicts_with_all = ["apply", "reload", "Source"])]
    remove: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.remove {
        must_be_root("firewall --remove")?;
        nft::remove()?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.reload {
        must_be_root("firewall --reload")?;
        let Some(loaded) = nft::loaded()? else {
            warn_line("table inet unbit is not loaded; nothing to do");
            return Ok(ExitCode::SUCCESS);
        };
        return print_or_load(&Source::from_arguments(loaded.arguments())?, true);
    }
    if arguments.apply {
        must_be_root("firewall --apply")?;
    }
    print_or_load(&arguments.source, arguments.apply)
}

fn print_or_load(source: &Source, loads: bool) -> Result<ExitCode> {
    let ruleset = match Ruleset::made_of(source) {
        Ok(ruleset) => ruleset,
        Err(error) => {
            if let [list, ..] = source.missing().as_slice() {
                let what = if *list == source.nodes { "nodes" } else { "routers" };
                bail!(
                    "{list} does not exist. uwsgi.it's configurator writes it; without uwsgi.it, write the addresses of the other {what} there, one per line, or make it empty if there are none (: >{list}). --{what} FILE names another file"
                );
            }
            let BadLists(lines) = error.downcast::<BadLists>()?;
            warn_line("no rules are made from these lists");
            lines.iter().for_each(warn_line);
            return Ok(ExitCode::FAILURE);
        }
    };
    for warning in ruleset.warnings() {
        warn_line(format_args!("warning: {warning}"));
    }
    if loads {
        nft::load(&ruleset.to_string())?;
        print_lossy!("table inet unbit is loaded: {}\n", ruleset.summary());
    } else {
        report::print(&ruleset.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}
