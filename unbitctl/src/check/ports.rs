//! Whether the table of `unbitctl firewall` is loaded, and is what the lists of nodes make of it
//! now.

use crate::firewall::nft;
use crate::firewall::ruleset::Ruleset;
use crate::firewall::source::Source;
use crate::report::Finding;
use crate::rootfs::RootFs;
use anyhow::Result;

const NAME: &str = "ports";
const WHY: &str = "whoever reaches UDP 999 puts packets into the containers' network, whoever reaches TCP 1999 poses as an http router";
const APPLY: &str = "unbitctl firewall --apply";

pub fn check(node: &RootFs) -> Vec<Finding> {
    vec![if !node.is_running() {
        Finding::not_applicable(NAME, WHY, "a root directory has no packets")
    } else if !nix::unistd::geteuid().is_root() {
        Finding::not_applicable(NAME, WHY, "root is needed to see")
    } else {
        inspect().unwrap_or_else(|error| {
            Finding::warn(NAME, WHY, format!("cannot be seen: {error:#}"), format!("make sure that `{APPLY}` works"))
        })
    }]
}

fn inspect() -> Result<Finding> {
    // A warning only: the ports may be guarded by other means, such as the firewall.sh of uwsgi.it.
    let table = match nft::loaded() {
        Ok(Some(table)) => table,
        Ok(None) => {
            let fix = load(&Source::from_arguments(&[])?)?;
            return Ok(Finding::warn(NAME, WHY, "the table inet unbit is not loaded", fix));
        }
        Err(error) if error.is::<nft::Missing>() => {
            let fix = format!("apt install nftables, then: {}", load(&Source::from_arguments(&[])?)?);
            return Ok(Finding::warn(NAME, WHY, "nft is not installed", fix));
        }
        Err(error) => return Err(error),
    };
    let Ok(source) = Source::from_arguments(table.arguments()) else {
        return Ok(Finding::fail(NAME, WHY, "the table inet unbit was not made by this version of unbitctl", APPLY));
    };
    let again = load(&source)?;
    let ruleset = match Ruleset::made_of(&source) {
        Ok(ruleset) => ruleset,
        Err(error) => {
            let fix = if source.missing().is_empty() { format!("correct the list, then: {again}") } else { again };
            return Ok(Finding::fail(NAME, WHY, format!("{error:#}"), fix));
        }
    };
    let differences = table.differences(&nft::made_of(&ruleset.to_string())?);
    Ok(if differences.is_empty() {
        Finding::ok(NAME, WHY, format!("the table inet unbit is loaded: {}", ruleset.summary()))
    } else {
        Finding::fail(
            NAME,
            WHY,
            format!("the table inet unbit does not agree with the lists: {}", differences.join("; ")),
            again,
        )
    })
}

/// How to load the rules that are made of these lists.
fn load(source: &Source) -> Result<String> {
    let command = format!("{} --apply", source.command()?);
    Ok(match source.missing().as_slice() {
        [] => command,
        missing => format!("write {}, one address a line, then: {command}", missing.join(" and ")),
    })
}
