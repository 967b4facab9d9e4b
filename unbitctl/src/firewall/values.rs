//! Parses the arguments of `unbitctl firewall`, so that nft(8) cannot read one of them as anything
//! else.

use shared::{decimal, escape};
use std::fmt::{Display, Formatter, Result as Written};
use std::net::Ipv4Addr;
use std::str::FromStr;

/// From one port to another, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

impl FromStr for PortRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (decimal::<u16>(first), decimal(last)) {
            // nft takes minutes to list tens of thousands of pairs.
            (Some(first), Some(last)) if 1024 <= first && first <= last && last - first < 4096 => {
                Ok(Self { first, last })
            }
            _ => Err("a port or a range of at most 4096 ports from 1024 to 65535 is needed, such as 2000-2099"),
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
            let (base, length) = (base.parse::<Ipv4Addr>().ok()?, decimal(length)?);
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

    /// Stricter than the kernel, which bars only spaces, `/` and `:`; nft reads a `*` at the end as
    /// "whatever follows".
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
pub struct Service {
    pub protocol: &'static str,
    pub port: u16,
}

/// Services, by commas; none is a choice as well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Services(pub Vec<Service>);

impl FromStr for Services {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let service = |word: &str| {
            let (protocol, port) = word.split_once('/')?;
            let protocol = ["tcp", "udp"].into_iter().find(|&known| known == protocol)?;
            Some(Service { protocol, port: decimal(port).filter(|&port| port > 0)? })
        };
        let words = text.split(',').filter(|_| !text.is_empty());
        let services = words
            .map(|word| service(word).ok_or_else(|| format!("{} is not like tcp/53 or udp/53", escape::quoted(word))));
        services.collect::<Result<_, _>>().map(Self)
    }
}

impl Display for Services {
    fn fmt(&self, f: &mut Formatter<'_>) -> Written {
        let words: Vec<_> = self.0.iter().map(|service| format!("{}/{}", service.protocol, service.port)).collect();
        f.write_str(&words.join(","))
    }
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
}
