//! Host names: `30001.local` is 10.0.0.3 on every node, and 10.0.0.3 is `30001.local` on the node
//! that has the container.
//!
//! The arithmetic is in the crate [`shared`].

use crate::abi::{AF_INET, AF_INET6, AddrTuple, Failure, Hostent};
use crate::buffer::Buffer;
use crate::lookup;
use core::ffi::{c_char, c_int};
use core::net::Ipv4Addr;
use core::ptr::null_mut;
use shared::ContainerUid;

/// The container of a host name, and its address. The container can be on another node, because the
/// network spans nodes.
pub fn by_name(name: &[u8], family: c_int) -> Result<(ContainerUid, Ipv4Addr), Failure> {
    let container = ContainerUid::parse_host_name(name).ok_or(Failure::ABSENT)?;
    let address = container.address().ok_or(Failure::ABSENT)?;
    if family == AF_INET { Ok((container, address)) } else { Err(Failure::NO_ADDRESS) }
}

/// The first bytes of an IPv4-mapped IPv6 address, `::ffff:0:0/96`.
const MAPPED: &[u8; 12] = b"\0\0\0\0\0\0\0\0\0\0\xff\xff";

/// The container of an address, if this node has it: other machines in 10/8 must not get a
/// container's name.
///
/// A server that listens on both families sees IPv4 clients by IPv4-mapped addresses.
pub fn by_address(address: &[u8], family: c_int) -> Result<(ContainerUid, Ipv4Addr), Failure> {
    let address = match family {
        AF_INET => Some(address),
        AF_INET6 => address.strip_prefix(MAPPED),
        _ => None,
    };
    let octets = address.and_then(|address| <[u8; 4]>::try_from(address).ok()).ok_or(Failure::ABSENT)?;
    let address = Ipv4Addr::from(octets);
    let container = ContainerUid::from_address(address).ok_or(Failure::ABSENT)?;
    lookup::by_uid(container)?;
    Ok((container, address))
}

/// The hosts record of a container.
pub fn record((container, address): (ContainerUid, Ipv4Addr), buffer: &mut Buffer) -> Result<Hostent, Failure> {
    let address = buffer.value(address.to_bits().to_be())?; // callers read it as a struct in_addr, so it is aligned like one
    Ok(Hostent {
        h_name: buffer.string(container.host_name())?,
        h_aliases: buffer.value(null_mut())?,
        h_addrtype: AF_INET,
        h_length: 4,
        h_addr_list: buffer.value([address.cast::<c_char>(), null_mut()])?.cast(),
    })
}

/// The record that getaddrinfo asks for.
pub fn tuple((container, address): (ContainerUid, Ipv4Addr), buffer: &mut Buffer) -> Result<AddrTuple, Failure> {
    Ok(AddrTuple {
        next: null_mut(),
        name: buffer.string(container.host_name())?,
        family: AF_INET,
        addr: [address.octets(), [0; 4], [0; 4], [0; 4]],
        scopeid: 0,
    })
}
