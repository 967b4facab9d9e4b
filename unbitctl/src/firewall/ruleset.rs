//! The rules, as nft(8) reads them. unbitctl(8) says what they are for.

use super::list::Addresses;
use super::source::Source;
use anyhow::Result;
use std::fmt::{Display, Formatter, Result as Written};
use std::net::IpAddr;

/// The bytes of a comment that nft(8) reads.
const MAX_COMMENT: usize = 128;

/// The rules for these lists, which are written as nft(8) reads them.
pub struct Ruleset<'a> {
    pub source: &'a Source,
    pub command: String,
    pub nodes: Addresses,
    pub routers: Addresses,
}

/// Lines of lists that are no node's address, each with file, number and reason.
#[derive(Debug)]
pub struct BadLists(pub Vec<String>);

impl Display for BadLists {
    fn fmt(&self, f: &mut Formatter<'_>) -> Written {
        write!(f, "no rules are made from these lists: {}", self.0.join("; "))
    }
}

impl std::error::Error for BadLists {}

impl<'a> Ruleset<'a> {
    /// The rules for what the lists hold now. Every line that is no address is in the error.
    pub fn made_of(source: &'a Source) -> Result<Self> {
        let mut bad = Vec::new();
        let nodes = Addresses::read(&source.nodes, &source.containers, &mut bad)?;
        let routers = Addresses::read(&source.routers, &source.containers, &mut bad)?;
        if !bad.is_empty() {
            return Err(BadLists(bad).into());
        }
        Ok(Ruleset { source, command: source.command()?, nodes, routers })
    }

    /// How many addresses the lists have.
    pub fn summary(&self) -> String {
        format!("nodes: {}, routers: {}", self.nodes.len(), self.routers.len())
    }

    /// What the operator may not have meant.
    pub fn warnings(&self) -> Vec<String> {
        let Source { nodes, routers, public_ip, .. } = self.source;
        let mut warnings = Vec::new();
        if self.nodes.len() == 0 {
            warnings.push(format!("{nodes} has no address: UDP 999 is closed to everyone"));
        }
        if self.routers.len() == 0 {
            warnings.push(format!("{routers} has no address: TCP 998 and 1999 and the legion are closed to everyone"));
        }
        let only_ipv4 = !public_ip.is_empty() && public_ip.iter().all(IpAddr::is_ipv4);
        if only_ipv4 && !(self.nodes.ipv6.is_empty() && self.routers.ipv6.is_empty()) {
            warnings.push(
                "the lists have IPv6 addresses, but no --public-ip is an IPv6 address: nobody is admitted over IPv6"
                    .to_owned(),
            );
        }
        warnings
    }
}

impl Display for Ruleset<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Written {
        let Source { public_ip, legion_ports, containers, interface, containers_reach, .. } = self.source;
        let Self { nodes, routers, command, .. } = self;
        write!(
            f,
            "#!/usr/sbin/nft -f
# The ports of this node. Made by
#   {command}
# which loads it as well, with --apply. To have it loaded at boot, save it as /etc/unbit.nft and add this as the last line of
# /etc/nftables.conf:
#   include \"/etc/unbit.nft\"

# Declare the table first, so that delete never fails: the file is then loaded completely or not at all.
table inet unbit
delete table inet unbit

table inet unbit {{
"
        )?;

        set(f, "nodes_ipv4", "ipv4_addr", &nodes.ipv4)?;
        set(f, "nodes_ipv6", "ipv6_addr", &nodes.ipv6)?;
        set(f, "routers_ipv4", "ipv4_addr", &routers.ipv4)?;
        set(f, "routers_ipv6", "ipv6_addr", &routers.ipv6)?;
        if !public_ip.is_empty() {
            set(f, "public_ipv4", "ipv4_addr", public_ip.iter().filter(|address| address.is_ipv4()))?;
            set(f, "public_ipv6", "ipv6_addr", public_ip.iter().filter(|address| address.is_ipv6()))?;
        }
        // No rule can compare two fields of a packet, so the pairs are listed. The last one is the
        // subscriptions'.
        let pairs = legion_ports.ports().map(|port| format!("{port} . {port}")).chain(["3026 . 3022".to_owned()]);
        set(f, "routers_ports", "inet_service . inet_service", pairs)?;
        let reach = containers_reach.0.iter().map(|service| format!("{} . {}", service.protocol, service.port));
        set(f, "containers_reach", "inet_proto . inet_service", reach)?;

        let [at_ipv4, at_ipv6] =
            if public_ip.is_empty() { [""; 2] } else { ["ip daddr @public_ipv4 ", "ip6 daddr @public_ipv6 "] };
        write!(
            f,
            "    chain input {{
        type filter hook input priority filter - 10; policy accept;
        iifname \"lo\" accept
        iifname \"{interface}\" goto containers
        ip saddr {containers} goto containers
        udp sport 999 udp dport 999 goto nodes
        udp sport . udp dport @routers_ports goto routers
        ct direction reply ct state established accept
        tcp dport {{ 998, 1999 }} goto routers
        goto guarded
    }}

    # No connection tracking here: a node removed from the list is blocked at once.
    chain nodes {{
        {at_ipv4}ip saddr @nodes_ipv4 accept
        {at_ipv6}ip6 saddr @nodes_ipv6 accept
        counter drop
    }}

    chain routers {{
        {at_ipv4}ip saddr @routers_ipv4 accept
        {at_ipv6}ip6 saddr @routers_ipv6 accept
        counter drop
    }}

    # Packets from containers.
    chain containers {{
        ct direction reply ct state established accept
        meta l4proto {{ icmp, icmpv6 }} accept
        tcp dport {{ 22, 80, 443 }} accept
        meta l4proto . th dport @containers_reach accept
        counter drop
    }}

    chain guarded {{
        tcp dport {{ 998, 1999 }} counter drop
        udp dport {{ 999, 3022 }} counter drop
        udp dport {legion_ports} counter drop
    }}

    # Another node would take the packets of our containers for this node's own.
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname \"{interface}\" goto to_other_nodes
        ip saddr {containers} goto to_other_nodes
    }}

    chain to_other_nodes {{
        ip daddr @nodes_ipv4 goto guarded
        ip daddr @routers_ipv4 goto guarded
        ip6 daddr @nodes_ipv6 goto guarded
        ip6 daddr @routers_ipv6 goto guarded
    }}

    # No packet comes here: `unbitctl check` reads how the table was made.
    chain arguments {{
"
        )?;
        for argument in self.source.arguments() {
            // Paths have fewer bytes, so only --containers-reach is split, which is ASCII.
            for part in argument.as_bytes().chunks(MAX_COMMENT).map(String::from_utf8_lossy) {
                writeln!(f, "        return comment \"{part}\"")?;
            }
        }
        f.write_str("    }\n}\n")
    }
}

fn set<T: Display>(f: &mut Formatter<'_>, name: &str, kind: &str, elements: impl IntoIterator<Item = T>) -> Written {
    writeln!(f, "    set {name} {{\n        type {kind}")?;
    let mut any = false;
    for element in elements {
        write!(f, "{}{element}", if any { ", " } else { "        elements = { " })?;
        any = true;
    }
    f.write_str(if any { " }\n    }\n\n" } else { "    }\n\n" })
}
