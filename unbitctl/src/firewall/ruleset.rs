//! The rules, as nft(8) reads them. unbitctl(8) says what they are for.

use super::Source;
use super::list::Addresses;
use std::fmt::{Display, Formatter, Result as Written};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// The rules for these lists. `{}` is the ruleset, `{:#}` a summary of it.
pub struct Ruleset<'a> {
    pub source: &'a Source,
    pub command: String,
    pub nodes: Addresses,
    pub routers: Addresses,
}

impl Ruleset<'_> {
    /// What the operator may not have meant.
    pub fn warnings(&self) -> Vec<String> {
        let Source { nodes, routers, public_ip, .. } = self.source;
        let mut warnings = Vec::new();
        if self.nodes.len() == 0 {
            warnings.push(format!("{nodes} holds no address: UDP 999 is closed to everyone"));
        }
        if self.routers.len() == 0 {
            warnings
                .push(format!("{routers} holds no address: TCP 998 and 1999 and the legion are closed to everyone"));
        }
        let only_ipv4 = !public_ip.is_empty() && public_ip.iter().all(IpAddr::is_ipv4);
        if only_ipv4 && !(self.nodes.ipv6.is_empty() && self.routers.ipv6.is_empty()) {
            warnings
                .push("the lists hold IPv6 addresses, and no --public-ip is one: nobody is let in by IPv6".to_owned());
        }
        warnings
    }
}

impl Display for Ruleset<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Written {
        let Source { public_ip, legion_ports, containers, interface, containers_reach, .. } = self.source;
        let Self { nodes, routers, command, .. } = self;
        if f.alternate() {
            return write!(f, "nodes: {}, routers: {}", nodes.len(), routers.len());
        }

        write!(
            f,
            "#!/usr/sbin/nft -f
# The ports of this node. Made by
#   {command}
# which loads it as well, with --apply. To have it loaded at boot, save it as /etc/unbit.nft and add this as the last line of
# /etc/nftables.conf:
#   include \"/etc/unbit.nft\"

# An empty table first, so that there is one to delete: then this file is loaded whole or not at all, the first time and again.
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
        // No rule can compare two fields of a packet, so the pairs are listed. The last one is the subscriptions'.
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

    # Without a look at connections: who is taken off the list is out at once.
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

    # What the node has not asked for.
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
        self.source.arguments().iter().try_for_each(|argument| writeln!(f, "        return comment \"{argument}\""))?;
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

/// From one port to another, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

impl FromStr for PortRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (decimal(first), decimal(last)) {
            // nft takes minutes to list tens of thousands of pairs.
            (Some(first), Some(last)) if 1024 <= first && first <= last && last - first < 4096 => {
                Ok(Self { first, last })
            }
            _ => Err("4096 ports of 1024 to 65535 at most, the lower one first: 2000-2099"),
        }
    }
}

impl Display for PortRange {
    fn fmt(&self, f: &mut Formatter<'_>) -> Written {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

/// An IPv4 network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    base: Ipv4Addr,
    length: u32,
}

impl Network {
    /// Whether the address is of this network.
    pub fn holds(&self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.base.to_bits()).leading_zeros() >= self.length
    }
}

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('/').and_then(|(base, length)| {
            let (base, length) = (base.parse::<Ipv4Addr>().ok()?, u32::from(decimal(length)?));
            let host = u32::MAX.checked_shr(length).unwrap_or(0);
            ((8..=32).contains(&length) && base.to_bits() & host == 0).then_some(Self { base, length })
        });
        parsed.ok_or("an IPv4 network of 8 to 32 bits is needed: 10.0.0.0/8")
    }
}

impl Display for Network {
    fn fmt(&self, f: &mut Formatter<'_>) -> Written {
        write!(f, "{}/{}", self.base, self.length)
    }
}

/// The name of a network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface(String);

impl FromStr for Interface {
    type Err = &'static str;

    /// Stricter than the kernel, which bars only spaces, `/` and `:`; nft reads a `*` at the end as "whatever follows".
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = |c: char| c.is_ascii_alphanumeric() || "_-.@".contains(c);
        let fits = (1..=15).contains(&text.len()) && text.chars().all(known);
        fits.then(|| Self(text.to_owned())).ok_or("an interface's name is needed, of 15 characters at most")
    }
}

impl Display for Interface {
    fn fmt(&self, f: &mut Formatter<'_>) -> Written {
        f.write_str(&self.0)
    }
}

/// What listens on a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Service {
    protocol: &'static str,
    port: u16,
}

/// Services, by commas; none is a choice as well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Services(Vec<Service>);

impl FromStr for Services {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let service = |word: &str| {
            let (protocol, port) = word.split_once('/')?;
            let protocol = ["tcp", "udp"].into_iter().find(|&known| known == protocol)?;
            Some(Service { protocol, port: decimal(port).filter(|&port| port > 0)? })
        };
        let words = text.split(',').filter(|_| !text.is_empty());
        let services = words.map(|word| service(word).ok_or_else(|| format!("{word:?} is not like tcp/53 or udp/53")));
        services.collect::<Result<_, _>>().map(Self)
    }
}

impl Display for Services {
    fn fmt(&self, f: &mut Formatter<'_>) -> Written {
        let words: Vec<_> = self.0.iter().map(|service| format!("{}/{}", service.protocol, service.port)).collect();
        f.write_str(&words.join(","))
    }
}

/// A number as people write it: no sign.
fn decimal(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges() {
        assert_eq!("2000-2001".parse::<PortRange>().unwrap().ports().collect::<Vec<_>>(), [2000, 2001]);
        assert_eq!("2000".parse::<PortRange>().unwrap().ports().collect::<Vec<_>>(), [2000]);
        assert_eq!("2000-6095".parse::<PortRange>().unwrap().ports().count(), 4096);
        assert!("65535".parse::<PortRange>().is_ok());
        for bad in [
            "",
            "-",
            "2001-2000",
            "2000-6096",
            "65000-65536",
            "999-2000",
            "+2000",
            "2000-",
            "2000-2001-2002",
            "2000 - 2001",
        ] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn networks() {
        let network: Network = "10.0.0.0/8".parse().unwrap();
        assert!(network.holds(Ipv4Addr::new(10, 255, 255, 255)) && !network.holds(Ipv4Addr::new(11, 0, 0, 0)));
        let one: Network = "192.0.2.7/32".parse().unwrap();
        assert!(one.holds(Ipv4Addr::new(192, 0, 2, 7)) && !one.holds(Ipv4Addr::new(192, 0, 2, 6)));
        for bad in ["10.0.0.0", "10.0.0.1/8", "10.0.0.0/33", "0.0.0.0/0", "10.0.0.0/+8", "fd00::/8", "10.0.0.0/8/8"] {
            assert!(bad.parse::<Network>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn interfaces_and_services() {
        assert!("emperor0".parse::<Interface>().is_ok());
        for bad in ["", "a b", "emperor\"", "emperor*", "a123456789012345"] {
            assert!(bad.parse::<Interface>().is_err(), "{bad:?}");
        }
        assert_eq!("udp/53,tcp/8080".parse::<Services>().unwrap().to_string(), "udp/53,tcp/8080");
        assert_eq!("".parse::<Services>().unwrap().0, []);
        for bad in ["53", "icmp/1", "tcp/0", "tcp/65536", "tcp/53,", "tcp / 53"] {
            assert!(bad.parse::<Services>().is_err(), "{bad:?}");
        }
    }

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
