//! `unbitctl firewall`: the ports of a node, as an nftables ruleset.
//!
//! [`list`] reads the lists of nodes, [`ruleset`] makes the rules, [`nft`] talks to nft(8). What the rules are, and why, is in unbitctl(8).

mod list;
pub mod nft;
mod ruleset;

use crate::command_line::must_be_root;
use crate::report::{self, say};
use crate::shell;
use anyhow::{Result, bail};
use list::Addresses;
use ruleset::{Interface, Network, PortRange, Ruleset, Services};
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

pub const EXAMPLES: &str = "\
Examples:
  unbitctl firewall                 print the rules for the lists in /etc/uwsgi
  unbitctl firewall --apply         load them, in one step
  unbitctl firewall --nodes ./nodes --routers ./legion_nodes --public-ip 192.0.2.1
  unbitctl firewall --remove";

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Load the rules, in place of those loaded before; all of them or none
    #[arg(long)]
    apply: bool,
    /// Take our rules away; all other tables stay as they are
    #[arg(long, conflicts_with_all = ["apply", "Source"])]
    remove: bool,
}

/// What the rules are made of. The table that is loaded keeps it in a chain of its own, for the check.
#[derive(clap::Args, Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// The other nodes, one address a line: who may reach UDP 999
    #[arg(long, value_name = "FILE", default_value = "/etc/uwsgi/nodes", value_parser = list::path)]
    nodes: String,
    /// The http routers, which are the nodes of our legion, one address a line: who may reach TCP 998 and 1999, and the legion's ports
    #[arg(long, value_name = "FILE", default_value = "/etc/uwsgi/legion_nodes", value_parser = list::path)]
    routers: String,
    /// Let nodes and routers in at this address only; may be given again
    #[arg(long, value_name = "IP", value_parser = list::public_ip)]
    public_ip: Vec<IpAddr>,
    /// The UDP ports of legions
    #[arg(long, value_name = "FIRST-LAST", default_value = "2000-2099")]
    legion_ports: PortRange,
    /// The network of the containers
    #[arg(long, value_name = "NETWORK", default_value = "10.0.0.0/8")]
    containers: Network,
    /// The interface through which their packets come
    #[arg(long, value_name = "NAME", default_value = "emperor0")]
    interface: Interface,
    /// What of the node they may reach, besides TCP 22, 80 and 443
    #[arg(long, value_name = "PROTOCOL/PORT,...", default_value = "tcp/53,udp/53")]
    containers_reach: Services,
}

/// The table's own account of how it was made.
#[derive(clap::Parser)]
struct Kept {
    #[command(flatten)]
    source: Source,
}

impl Source {
    /// As a command line has it: what the table keeps.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--nodes={}", self.nodes), format!("--routers={}", self.routers)];
        arguments.extend(self.public_ip.iter().map(|address| format!("--public-ip={address}")));
        arguments.push(format!("--legion-ports={}", self.legion_ports));
        arguments.push(format!("--containers={}", self.containers));
        arguments.push(format!("--interface={}", self.interface));
        arguments.push(format!("--containers-reach={}", self.containers_reach));
        arguments
    }

    /// The command that makes these rules, without what goes without saying, quoted for a shell.
    pub fn command(&self) -> Result<String> {
        let defaults = Self::from_arguments(&[])?.arguments();
        let mut command = String::from("unbitctl firewall");
        for argument in self.arguments().into_iter().filter(|argument| !defaults.contains(argument)) {
            command.push(' ');
            command.push_str(&shell::quoted(&argument));
        }
        Ok(command)
    }

    /// What a table has kept.
    pub fn from_arguments(kept: &[String]) -> Result<Self> {
        let name = String::from("firewall");
        Ok(<Kept as clap::Parser>::try_parse_from(std::iter::once(&name).chain(kept))?.source)
    }

    /// The lists that are not there.
    pub fn missing(&self) -> Vec<&str> {
        [&self.nodes, &self.routers].into_iter().map(String::as_str).filter(|path| !Path::new(path).exists()).collect()
    }

    /// The rules for what the lists hold now. Every line that is no address is in the error.
    pub fn ruleset(&self) -> Result<Ruleset<'_>> {
        let mut bad = Vec::new();
        let nodes = Addresses::read(&self.nodes, &self.containers, &mut bad)?;
        let routers = Addresses::read(&self.routers, &self.containers, &mut bad)?;
        if !bad.is_empty() {
            bail!("no rules are made of these lists\n{}", bad.join("\n"));
        }
        Ok(Ruleset { source: self, command: self.command()?, nodes, routers })
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.remove {
        must_be_root("firewall --remove")?;
        nft::remove()?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.apply {
        must_be_root("firewall --apply")?;
    }
    let ruleset = arguments.source.ruleset()?;
    for warning in ruleset.warnings() {
        crate::command_line::tell(format_args!("warning: {warning}"));
    }
    if arguments.apply {
        nft::load(&ruleset.to_string())?;
        say!("table inet unbit is loaded: {ruleset:#}\n");
    } else {
        report::print(&ruleset.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}
