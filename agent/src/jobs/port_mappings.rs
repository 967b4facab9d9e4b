//! The ports of this node that are forwarded to a container, as an nftables table of their own.
//!
//! Every word of the table comes from a parsed value: a protocol, an address, a port. nft(8) reads
//! it on its standard input.

use super::Node;
use crate::command;
use crate::report::{Action, Report};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use shared::escape;
use shared::settings::ADDRESS_BASE;
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

const NFT: &str = "/usr/sbin/nft";
const PATH: &str = "/portmappings/";
/// Of family ip, because containers have no other addresses.
const TABLE: &str = "unbit_ports";

/// An answer of the API.
#[derive(Deserialize)]
pub struct ApiMappings {
    mappings: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    proto: String,
    public_ip: String,
    public_port: u64,
    private_ip: String,
    private_port: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Protocol {
    Tcp,
    Udp,
}

/// Where packets arrive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Public {
    address: Ipv4Addr,
    protocol: Protocol,
    port: u16,
}

/// And where they go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Private {
    address: Ipv4Addr,
    port: u16,
}

/// All of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Mappings(BTreeMap<Public, Private>);

pub fn round(node: &mut Node, report: &mut Report) -> Result<()> {
    let response: ApiMappings = node.api.json(PATH)?;
    let (mappings, skipped) = response.mappings(node.settings.public_ip).with_context(|| format!("GET {PATH}"))?;
    skipped.iter().for_each(|cause| report.problem(format!("GET {PATH}: {cause}")));
    let ruleset = mappings.to_string();
    // A table of an earlier process may be of any mappings. One that this process has loaded is
    // looked at again: nftables.service empties all there is when it starts anew.
    let is_loaded = match &node.memory.ports {
        Some((loaded, listing)) => *loaded == ruleset && list()?.as_ref() == Some(listing),
        None => mappings.0.is_empty() && list()?.is_none(),
    };
    if is_loaded {
        return Ok(());
    }
    if !node.is_dry_run {
        node.memory.ports = None;
        command::run(NFT, &["-f", "-"], &ruleset)?;
        let listing =
            list()?.with_context(|| format!("the table ip {TABLE} was loaded, and somebody has removed it"))?;
        node.memory.ports = Some((ruleset.clone(), listing));
    }
    report.change(Action::Load, format!("table ip {TABLE}"), Some(ruleset));
    Ok(())
}

/// The table as nft shows it; nothing if there is none.
fn list() -> Result<Option<String>> {
    let tables = command::run(NFT, &["list", "tables", "ip"], "")?;
    if !tables.lines().any(|line| line.trim() == format!("table ip {TABLE}")) {
        return Ok(None);
    }
    command::run(NFT, &["list", "table", "ip", TABLE], "").map(Some)
}

impl ApiMappings {
    /// What is loaded, and why some are skipped.
    pub fn mappings(&self, own: Option<Ipv4Addr>) -> Result<(Mappings, Vec<String>)> {
        Mappings::of(&self.mappings, own)
    }
}

impl Mappings {
    /// A malformed entry makes the whole answer wrong. A port of the node's services, or one that
    /// is mapped twice, is only skipped: one customer could otherwise stop all others' ports.
    fn of(entries: &[Entry], own: Option<Ipv4Addr>) -> Result<(Self, Vec<String>)> {
        if entries.len() > 20_000 {
            bail!("more than 20000 mappings");
        }
        let (mut mappings, mut skipped) = (BTreeMap::new(), Vec::new());
        for entry in entries {
            let (public, private) = entry.parse(own)?;
            if is_services(public.protocol, public.port) {
                skipped.push(format!("{public} is a port of the node's own services, and is not forwarded"));
                continue;
            }
            // The first one counts, as with uwsgi.it's iptables.
            let first = *mappings.entry(public).or_insert(private);
            if first != private {
                skipped.push(format!("{public} is forwarded to {first}, and not to {private} as well"));
            }
        }
        Ok((Self(mappings), skipped))
    }
}

impl Entry {
    fn parse(&self, own: Option<Ipv4Addr>) -> Result<(Public, Private)> {
        let address = |text: &str| -> Result<Ipv4Addr> {
            text.parse().ok().with_context(|| format!("{} is not an IPv4 address", escape::quoted(text)))
        };
        let protocol = match self.proto.as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => bail!("{} is neither tcp nor udp", escape::quoted(other)),
        };
        let public = Public { address: address(&self.public_ip)?, protocol, port: port(self.public_port)? };
        let private = Private { address: address(&self.private_ip)?, port: port(self.private_port)? };
        let is_odd = |address: Ipv4Addr| {
            address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast()
        };
        if is_odd(public.address) || own.is_some_and(|own| own != public.address) {
            bail!("{} is not an address of this node (public_ip in local.ini)", public.address);
        }
        // Of the network of the containers the first address is the node's.
        let [first, ..] = Ipv4Addr::from_bits(ADDRESS_BASE).octets();
        if private.address.octets().first() != Some(&first) || private.address.to_bits() <= ADDRESS_BASE + 1 {
            bail!("{} is not a container's address", private.address);
        }
        Ok((public, private))
    }
}

/// Ports below 1024 are the node's: ssh, web servers, routers. The API gives none of them away, and
/// neither is one taken.
fn port(number: u64) -> Result<u16> {
    match u16::try_from(number) {
        Ok(port @ 1024..) => Ok(port),
        _ => bail!("{number} is not a port from 1024 to 65535"),
    }
}

/// What uwsgi.it's services listen on: fastrouters, legions and their subscriptions.
fn is_services(protocol: Protocol, port: u16) -> bool {
    match protocol {
        Protocol::Tcp => port == 1999,
        Protocol::Udp => matches!(port, 2000..=2099 | 3022 | 3026),
    }
}

impl fmt::Display for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, protocol, port } = self;
        let protocol = if *protocol == Protocol::Tcp { "tcp" } else { "udp" };
        write!(f, "{address} {protocol} {port}")
    }
}

impl fmt::Display for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, port } = self;
        write!(f, "{address}:{port}")
    }
}

impl fmt::Display for Mappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An empty table first, so that there is one to delete: then all of this is loaded or
        // nothing.
        write!(f, "table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n")?;
        write!(f, "\tchain prerouting {{\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n")?;
        for (public, private) in &self.0 {
            let Public { address, protocol, port } = public;
            let protocol = if *protocol == Protocol::Tcp { "tcp" } else { "udp" };
            writeln!(f, "\t\tip daddr {address} {protocol} dport {port} dnat to {private}")?;
        }
        write!(f, "\t}}\n}}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> Result<(Mappings, Vec<String>)> {
        let response: ApiMappings = serde_json::from_str(json)?;
        response.mappings(Some(Ipv4Addr::new(192, 0, 2, 1)))
    }

    fn mappings(json: &str) -> Result<Mappings> {
        parsed(json).map(|(mappings, _)| mappings)
    }

    const GOOD: &str = r#"{"unix": 1, "mappings": [
        {"proto": "udp", "public_ip": "192.0.2.1", "public_port": 5353, "private_ip": "10.0.0.4", "private_port": 1053},
        {"proto": "tcp", "public_ip": "192.0.2.1", "public_port": 9000, "private_ip": "10.0.0.3", "private_port": 8000}]}"#;

    #[test]
    fn a_rule_for_each_in_a_table_of_its_own() {
        let expected = "table ip unbit_ports\ndelete table ip unbit_ports\ntable ip unbit_ports {\n\tchain prerouting {\n\
            \t\ttype nat hook prerouting priority dstnat; policy accept;\n\
            \t\tip daddr 192.0.2.1 tcp dport 9000 dnat to 10.0.0.3:8000\n\
            \t\tip daddr 192.0.2.1 udp dport 5353 dnat to 10.0.0.4:1053\n\t}\n}\n";
        assert_eq!(mappings(GOOD).unwrap().to_string(), expected);
    }

    #[test]
    fn a_word_that_is_no_value_never_reaches_nft() {
        for (from, to) in [
            ("\"tcp\"", "\"tcp; reboot\""),
            ("\"tcp\"", "\"sctp\""),
            ("\"tcp\"", "\"TCP\""),
            ("\"10.0.0.3\"", "\"10.0.0.3; flush ruleset\""),
            ("\"10.0.0.3\"", "\"$(reboot)\""),
            ("\"10.0.0.3\"", "\"192.0.2.9\""),
            ("\"10.0.0.3\"", "\"10.0.0.1\""),
            ("\"10.0.0.3\"", "\"10.0.0.03\""),
            ("\"10.0.0.3\"", "\"127.0.0.1\""),
            ("\"192.0.2.1\"", "\"192.0.2.7\""),
            ("\"192.0.2.1\"", "\"0.0.0.0\""),
            ("\"192.0.2.1\"", "\"2001:db8::1\""),
            ("9000", "22"),
            ("9000", "0"),
            ("9000", "70000"),
            ("9000", "-1"),
            ("9000", "\"9000\""),
            ("9000", "9000.5"),
            ("8000", "80"),
        ] {
            let json = GOOD.replace(from, to);
            assert_ne!(json, GOOD);
            assert!(mappings(&json).is_err(), "{to}");
        }
        assert!(mappings(r#"{"unix": 1}"#).is_err() && mappings("[]").is_err());
    }

    #[test]
    fn what_customers_can_make_keeps_no_other_port_away() {
        for (from, to) in [("9000", "1999"), ("5353", "2000"), ("5353", "3022")] {
            let (kept, skipped) = parsed(&GOOD.replace(from, to)).unwrap();
            assert_eq!((kept.0.len(), skipped.len()), (1, 1), "{to}");
            assert!(skipped[0].contains(&format!("{to} is a port of the node's own services")), "{skipped:?}");
        }
        let (kept, skipped) = parsed(&GOOD.replace("udp", "tcp").replace("5353", "9000")).unwrap();
        assert_eq!(skipped, ["192.0.2.1 tcp 9000 is forwarded to 10.0.0.4:1053, and not to 10.0.0.3:8000 as well"]);
        assert_eq!(kept.0.len(), 1);
    }
}
