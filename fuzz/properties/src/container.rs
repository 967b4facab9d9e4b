//! Names, host names and addresses.

use shared::settings::CONTAINERS;
use shared::{ContainerUid, SecondName};
use std::net::Ipv4Addr;

/// An account's name: a number in its one spelling, or a second name, and never both. No byte is
/// read behind the one that decides.
pub fn names(data: &[u8]) {
    let mut taken = 0;
    let read = ContainerUid::from_bytes(data.iter().copied().inspect(|_| taken += 1));
    assert_eq!((read, ContainerUid::parse(data)), (number(data), number(data)));
    assert!(taken <= 11, "{taken} bytes were read for at most ten digits");
    assert_eq!(SecondName::target_of(data), read);
    if let Some(container) = read {
        assert_eq!(container.name().as_bytes(), data);
        assert_eq!(container.to_string().as_bytes(), data);
        let home = format!("{CONTAINERS}/{container}");
        assert_eq!(container.home().as_c_str().to_str(), Ok(home.as_str()));
        assert!(container.home().padded().starts_with(home.as_bytes()));
        assert!(container.home().padded_name().starts_with(data));
    }

    let mut taken = 0;
    let second = SecondName::from_bytes(data.iter().copied().inspect(|_| taken += 1));
    assert!(taken <= 33, "{taken} bytes were read for at most 32 letters");
    assert_eq!(second.is_some(), is_second_name(data));
    assert!(read.is_none() || second.is_none());
    if let Some(name) = second {
        assert_eq!(name.as_str().as_bytes(), data);
        assert_eq!(name.link_path().to_bytes(), [CONTAINERS.as_bytes(), b"/", data].concat());
        let padded = name.padded();
        assert!(padded.starts_with(data) && padded[data.len()..].iter().all(|byte| *byte == 0));
        assert_eq!(SecondName::parse(name.to_string().as_bytes()), Some(name));
    }
}

fn number(text: &[u8]) -> Option<ContainerUid> {
    let uid = std::str::from_utf8(text).ok()?.parse::<u32>().ok()?;
    let is_one = (30_000..=0x7fff_ffff).contains(&uid) && ![65534, 65535].contains(&uid);
    (is_one && uid.to_string().as_bytes() == text).then(|| ContainerUid::new(uid)).flatten()
}

fn is_second_name(text: &[u8]) -> bool {
    let Some((first, rest)) = text.split_first() else { return false };
    (first.is_ascii_lowercase() || *first == b'_')
        && rest.len() < 32
        && rest.iter().all(|byte| b"abcdefghijklmnopqrstuvwxyz_0123456789-".contains(byte))
}

/// A host name, and an address: `30001.local` is 10.0.0.3 by sums that are done here in another
/// way, both ways.
pub fn hosts(data: &[u8]) {
    let parsed = ContainerUid::parse_host_name(data);
    let lower = data.to_ascii_lowercase();
    let lower = lower.strip_suffix(b".").unwrap_or(&lower);
    assert_eq!(parsed, lower.strip_suffix(b".local").and_then(number));
    parsed.into_iter().for_each(there_and_back);

    let Some((octets, _)) = data.split_first_chunk::<4>() else { return };
    let octets = *octets;
    let [a, b, c, d] = octets.map(u64::from);
    let place = (b << 16 | c << 8 | d).checked_sub(2).filter(|_| a == 10 && octets != [10, 255, 255, 255]);
    let expected = place.and_then(|place| number((place + 30_000).to_string().as_bytes()));
    let found = ContainerUid::from_address(Ipv4Addr::from(octets));
    assert_eq!(found, expected, "{octets:?}");
    found.into_iter().for_each(there_and_back);
    there_and_back(ContainerUid::new(u32::from_be_bytes(octets) >> 1).unwrap_or(ContainerUid::new(30_000).unwrap()));
}

fn there_and_back(container: ContainerUid) {
    let name = container.host_name();
    let end = name.iter().position(|byte| *byte == 0).unwrap();
    assert_eq!(&name[..end], format!("{container}.local").as_bytes());
    assert_eq!(ContainerUid::parse_host_name(&name[..end]), Some(container));
    let place = container.get() - 30_000;
    match container.address() {
        Some(address) => {
            assert_eq!(u32::from(address), 0x0a00_0002 + place);
            assert_eq!(ContainerUid::from_address(address), Some(container));
        }
        None => assert!(place >= 0x00ff_fffd, "10.0.0.0/8 has room for {container}"),
    }
}
