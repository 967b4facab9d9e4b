//! The values that the rules are made of, and how a table stores them.

use super::list;
use super::values::{Interface, Network, PortRange, Services};
use crate::shell;
use anyhow::Result;
use std::net::IpAddr;
use std::path::Path;

/// What the rules are made of. The table that is loaded keeps it in a chain of its own, for the
/// check.
#[derive(clap::Args, Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// A file with the addresses of the other nodes, which may reach UDP 999
    #[arg(long, value_name = "FILE", default_value = "/etc/uwsgi/nodes", value_parser = list::path)]
    pub nodes: String,
    /// A file with the addresses of the http routers (this node's legion), which may reach TCP 998
    /// and 1999 and the legion's ports
    #[arg(long, value_name = "FILE", default_value = "/etc/uwsgi/legion_nodes", value_parser = list::path)]
    pub routers: String,
    /// Admit nodes and routers at this address only; may be given more than once
    #[arg(long, value_name = "IP", value_parser = list::public_ip)]
    pub public_ip: Vec<IpAddr>,
    /// The UDP ports of legions
    #[arg(long, value_name = "FIRST-LAST", default_value = "2000-2099")]
    pub legion_ports: PortRange,
    /// The network of the containers
    #[arg(long, value_name = "NETWORK", default_value = "10.0.0.0/8")]
    pub containers: Network,
    /// The interface through which packets of containers come
    #[arg(long, value_name = "NAME", default_value = "emperor0")]
    pub interface: Interface,
    /// What containers may reach on the node besides TCP 22, 80 and 443
    #[arg(long, value_name = "PROTOCOL/PORT,...", default_value = "tcp/53,udp/53")]
    pub containers_reach: Services,
}

/// The arguments from which a loaded table was made.
#[derive(clap::Parser)]
struct Kept {
    #[command(flatten)]
    source: Source,
}

impl Source {
    /// As a command line has it: what the table keeps.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--nodes={}", self.nodes), format!("--routers={}", self.routers)];
        arguments.extend(self.public_ip.iter().map(|address| format!("--public-ip={address}")));
        arguments.push(format!("--legion-ports={}", self.legion_ports));
        arguments.push(format!("--containers={}", self.containers));
        arguments.push(format!("--interface={}", self.interface));
        arguments.push(format!("--containers-reach={}", self.containers_reach));
        arguments
    }

    /// The command that makes these rules, without the defaults, quoted for a shell.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_table_keeps_makes_the_same_table() {
        let arguments = [
            "--nodes=/a b/nodes",
            "--routers=/etc/uwsgi/legion_nodes",
            "--public-ip=192.0.2.1",
            "--public-ip=2001:db8::1",
            "--legion-ports=2000",
            "--containers=10.8.0.0/16",
            "--interface=tun0",
            "--containers-reach=",
        ]
        .map(str::to_owned);
        let source = Source::from_arguments(&arguments).unwrap();
        assert_eq!(source.arguments(), arguments);
        let defaults = Source::from_arguments(&[]).unwrap();
        assert_eq!(Source::from_arguments(&defaults.arguments()).unwrap(), defaults);
        assert!(Source::from_arguments(&["--unheard-of".to_owned()]).is_err());
    }
}
