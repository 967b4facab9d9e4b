//! The host name and the address of a container: `30001.local` is 10.0.0.3, by arithmetic.
//!
//! Whether the container exists is not asked here.

use crate::ContainerUid;
use crate::home::NAME_SIZE;
use crate::settings::{ADDRESS_BASE, FIRST_UID};
use core::net::Ipv4Addr;

/// What follows the number in a host name.
const DOMAIN: &[u8; 6] = b".local";

/// Room for a host name.
const HOST_NAME_SIZE: usize = NAME_SIZE + DOMAIN.len();

/// The first container has the network's address plus 2. The node itself has the address plus 1.
const FIRST_HOST: u32 = 2;

/// The host part of an address in 10/8: the last container's address is below 10.255.255.255.
const HOST_MASK: u32 = 0x00ff_ffff;

impl ContainerUid {
    /// The container's address; `None` for a uid beyond the network.
    pub const fn address(self) -> Option<Ipv4Addr> {
        let host = (ADDRESS_BASE & HOST_MASK) as u64 + (self.get() - FIRST_UID) as u64 + FIRST_HOST as u64;
        if host < HOST_MASK as u64 { Some(Ipv4Addr::from_bits(ADDRESS_BASE & !HOST_MASK | host as u32)) } else { None }
    }

    /// The container whose address this is, whether or not it exists.
    pub fn from_address(address: Ipv4Addr) -> Option<Self> {
        let host = address.to_bits().checked_sub(ADDRESS_BASE)?.checked_sub(FIRST_HOST)?;
        Self::new(FIRST_UID.checked_add(host)?).filter(|container| container.address() == Some(address))
    }

    /// Reads a host name: `30001.local` in any case, with or without the dot of the DNS root.
    pub fn parse_host_name(name: &[u8]) -> Option<Self> {
        let name = name.strip_suffix(b".").unwrap_or(name);
        let (number, domain) = name.split_at_checked(name.len().checked_sub(DOMAIN.len())?)?;
        domain.eq_ignore_ascii_case(DOMAIN).then(|| Self::parse(number)).flatten()
    }

    /// The host name: `30001.local`, with zeros after it.
    pub fn host_name(self) -> [u8; HOST_NAME_SIZE] {
        let number = self.name();
        let mut name = [0; HOST_NAME_SIZE];
        for (slot, byte) in name.iter_mut().zip(number.as_bytes().iter().chain(DOMAIN)) {
            *slot = *byte;
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address_of(uid: u32) -> Option<Ipv4Addr> {
        ContainerUid::new(uid).and_then(ContainerUid::address)
    }

    #[test]
    fn addresses_count_from_the_first_container() {
        assert_eq!(address_of(30000), Some(Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(address_of(30001), Some(Ipv4Addr::new(10, 0, 0, 3)));
        assert_eq!(address_of(30254), Some(Ipv4Addr::new(10, 0, 1, 0)));
        assert_eq!(address_of(16_807_212), Some(Ipv4Addr::new(10, 255, 255, 254)));
        assert_eq!(address_of(16_807_213), None, "10.255.255.255 is the broadcast address");
        assert_eq!(address_of(16_807_214), None, "11.0.0.0 is somebody else's");
        assert_eq!(address_of(i32::MAX as u32), None);
    }

    #[test]
    fn an_address_leads_back_to_its_container() {
        for uid in (30_000..100_000).chain(16_700_000..16_810_000).step_by(if cfg!(miri) { 997 } else { 1 }) {
            let Some(container) = ContainerUid::new(uid) else { continue };
            let Some(address) = container.address() else { continue };
            assert_eq!(ContainerUid::from_address(address), Some(container), "{uid} {address}");
        }
        for strange in [[10, 0, 0, 0], [10, 0, 0, 1], [10, 255, 255, 255], [11, 0, 0, 3], [9, 255, 255, 255], [0; 4]] {
            assert_eq!(ContainerUid::from_address(strange.into()), None, "{strange:?}");
        }
        let nobody = Ipv4Addr::from_bits(ADDRESS_BASE + 65534 - 30000 + 2);
        assert_eq!(ContainerUid::from_address(nobody), None, "65534 is nobody");
    }

    #[test]
    fn a_host_name_is_the_number_and_local() {
        for name in ["30001.local", "30001.LOCAL", "30001.Local.", "30001.local."] {
            assert_eq!(ContainerUid::parse_host_name(name.as_bytes()), ContainerUid::new(30001), "{name}");
        }
        for name in [
            "",
            ".",
            ".local",
            "local",
            "30001",
            "30001.",
            "30001local",
            "30001.local..",
            "30001..local",
            "a.30001.local",
            "030001.local",
            "29999.local",
            "65534.local",
            "30001.local.local",
            "30001.locale",
            "30001.loca\u{131}",
        ] {
            assert_eq!(ContainerUid::parse_host_name(name.as_bytes()), None, "{name:?}");
        }
    }

    #[test]
    fn the_longest_host_name_fits() {
        let longest = ContainerUid::new(i32::MAX as u32).map(ContainerUid::host_name);
        assert_eq!(longest, Some(*b"2147483647.local\0\0\0\0\0\0"));
    }
}
