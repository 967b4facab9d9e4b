//! The lists of nodes that uwsgi.it writes: one address a line. Blank lines and comments (`#`) are
//! passed over.

use super::values::Network;
use anyhow::{Context, Result, bail};
use shared::escape;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The addresses of a list, each once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    pub ipv4: BTreeSet<Ipv4Addr>,
    pub ipv6: BTreeSet<Ipv6Addr>,
}

impl Addresses {
    /// Reads a list; each line that is no node's address adds to `bad`, with file, line and reason.
    /// It is a regular file, as it is read again by the check.
    pub fn read(path: &str, containers: &Network, bad: &mut Vec<String>) -> Result<Self> {
        if !std::fs::metadata(path).with_context(|| path.to_owned())?.is_file() {
            bail!("{path}: not a regular file");
        }
        let text = std::fs::read(path).with_context(|| path.to_owned())?;
        let (addresses, refused) = Self::parse(&text, containers);
        bad.extend(refused.into_iter().map(|(line, reason)| format!("{}:{line}: {reason}", escape::name(path))));
        Ok(addresses)
    }

    pub(crate) fn parse(text: &[u8], containers: &Network) -> (Self, Vec<(usize, String)>) {
        let mut addresses = Self::default();
        let mut bad = Vec::new();
        for (line, number) in text.split(|&byte| byte == b'\n').zip(1..) {
            let line = String::from_utf8_lossy(line);
            let word = line.split('#').next().unwrap_or_default().trim();
            if word.is_empty() {
                continue;
            }
            match address(word, containers) {
                Ok(IpAddr::V4(address)) => drop(addresses.ipv4.insert(address)),
                Ok(IpAddr::V6(address)) => drop(addresses.ipv6.insert(address)),
                Err(reason) => bad.push((number, format!("{} {reason}", escape::quoted(word)))),
            }
        }
        (addresses, bad)
    }

    pub fn len(&self) -> usize {
        self.ipv4.len() + self.ipv6.len()
    }
}

/// An address that can be another node's.
fn address(word: &str, containers: &Network) -> Result<IpAddr, String> {
    let Ok(address) = word.parse::<IpAddr>() else {
        return Err(match word {
            _ if word.contains('/') => "is a network: one address a line is needed",
            _ if word.parse::<SocketAddr>().is_ok() => "has a port: the address alone is needed",
            _ if word.contains(char::is_whitespace) => "is more than one address",
            _ => "is not an IP address",
        }
        .to_owned());
    };
    let reason = match address {
        _ if address.is_unspecified() => "is not the address of a machine",
        _ if address.is_loopback() => "is an address of this node itself",
        _ if address.is_multicast() => "is a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "is the broadcast address",
        IpAddr::V4(v4) if containers.holds(v4) => {
            return Err(format!("is a container's address (--containers {containers})"));
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "is link-local: another machine on each link",
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => return Err(format!("is written as {v4}")),
            None => return Ok(address),
        },
        IpAddr::V4(_) => return Ok(address),
    };
    Err(reason.to_owned())
}

/// An argument: an address that packets to this node can have. By any other all of them would be
/// dropped.
pub fn public_ip(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| "is not an IP address".to_owned())?;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.to_canonical() != address
    {
        return Err("is not an address at which others reach this node".to_owned());
    }
    Ok(address)
}

/// An argument: the path of a list, which the table keeps in a comment.
pub fn path(text: &str) -> Result<String, String> {
    let path = std::path::absolute(text).map_err(|error| error.to_string())?;
    match path.to_str() {
        Some(path) if path.len() <= 100 && !path.contains(|c: char| c == '"' || c.is_control()) => Ok(path.to_owned()),
        _ => Err("nft cannot keep this path: at most 100 bytes, no quotes, no control characters".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Addresses, Vec<(usize, String)>) {
        Addresses::parse(text.as_bytes(), &"10.0.0.0/8".parse().unwrap())
    }

    #[test]
    fn one_address_a_line() {
        let (addresses, bad) =
            parse("# ours\n192.0.2.7\n\n 192.0.2.3 # the third\r\n2001:DB8::1\n192.0.2.7\n2001:db8:0::1");
        assert_eq!(bad, []);
        assert_eq!(addresses.ipv4, BTreeSet::from([Ipv4Addr::new(192, 0, 2, 3), Ipv4Addr::new(192, 0, 2, 7)]));
        assert_eq!(addresses.ipv6, BTreeSet::from(["2001:db8::1".parse().unwrap()]));
        assert_eq!(parse("").0.len(), 0);
    }

    #[test]
    fn every_bad_line_is_named() {
        let refused = [
            ("192.0.2.0/24", "is a network: one address a line is needed"),
            ("192.0.2.7:999", "has a port: the address alone is needed"),
            ("192.0.2.7 192.0.2.8", "is more than one address"),
            ("node7.example", "is not an IP address"),
            ("192.0.2.256", "is not an IP address"),
            ("192.0.2.07", "is not an IP address"),
            ("192.0.2.7;", "is not an IP address"),
            ("fe80::1%eth0", "is not an IP address"),
            ("0.0.0.0", "is not the address of a machine"),
            ("::", "is not the address of a machine"),
            ("127.0.0.1", "is an address of this node itself"),
            ("::1", "is an address of this node itself"),
            ("224.0.0.1", "is a multicast address"),
            ("ff02::1", "is a multicast address"),
            ("255.255.255.255", "is the broadcast address"),
            ("10.200.0.7", "is a container's address (--containers 10.0.0.0/8)"),
            ("fe80::1", "is link-local: another machine on each link"),
            ("::ffff:192.0.2.7", "is written as 192.0.2.7"),
        ];
        let text: String = refused.iter().map(|(word, _)| format!("192.0.2.1\n{word}\n")).collect();
        let (addresses, bad) = parse(&text);
        assert_eq!(addresses.len(), 1);
        let expected =
            refused.iter().zip(1..).map(|((word, reason), at)| (2 * at, format!("{} {reason}", escape::quoted(word))));
        assert_eq!(bad, expected.collect::<Vec<_>>());
        assert_eq!(Addresses::parse(b"\xff\0", &"10.0.0.0/8".parse().unwrap()).1.len(), 1);
    }

    #[test]
    fn public_addresses_are_those_that_others_reach() {
        assert!(public_ip("192.0.2.1").is_ok() && public_ip("2001:db8::1").is_ok() && public_ip("10.0.0.7").is_ok());
        for bad in ["", "0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "::ffff:192.0.2.1", "192.0.2.1/32"] {
            assert!(public_ip(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_that_a_comment_holds() {
        assert_eq!(path("/etc/uwsgi/nodes").unwrap(), "/etc/uwsgi/nodes");
        assert!(path("nodes").unwrap().starts_with('/'));
        for bad in ["/a\"b", "/a\nb", "", &"/a".repeat(51)] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
    }
}
