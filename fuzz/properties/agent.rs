//! What must hold for any input of unbit-agent's parsers. agent/src/main.rs includes this file as
//! its module `properties` for the fuzzer, so that parsers need not be public for it.
//!
//! Whatever an answer of the API or a file of a tenant's has in it: what becomes a path, a rule or
//! a file is made of nothing but what was parsed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use crate::api;
use crate::jobs::{alarms, containers, custom_services, domains, keys, nodes, port_mappings};
use crate::names::DomainName;
use crate::settings::Settings;
use serde_json::Value;
use shared::ContainerUid;
use std::net::Ipv4Addr;

/// The name of a file in a directory, and nothing else.
fn is_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.starts_with('.') && name.len() < 260 && name.bytes().all(known)
}

/// Second parsers see JSON as serde_json does, without the types.
fn json(data: &[u8]) -> Value {
    serde_json::from_slice(data).unwrap_or_default()
}

/// An alarm's file: whose it is, and where it goes; and the name of a file there.
pub fn alarms(data: &[u8]) {
    if let Ok(alarm) = alarms::parse(data, 30001) {
        assert_eq!(alarm.container, 30001);
        let path = alarm.path();
        let time = path.strip_prefix("/alarms/30001?unix=").unwrap();
        assert!(time.bytes().all(|byte| byte.is_ascii_digit()), "{path}");
    }
    if let Ok(alarm) = alarms::parse(data, 0) {
        assert!(ContainerUid::new(alarm.container).is_some());
    }
    assert!(alarms::parse(data, 65534).is_err());
    let name = String::from_utf8_lossy(data);
    if alarms::kind(&name) != alarms::Kind::Other {
        assert!(is_name(&name) && name.len() <= 40, "{name:?}");
    }
}

/// The list of containers: all of its numbers or none, and each becomes a file that is removed when
/// the number goes.
pub fn containers(data: &[u8]) {
    let Ok(listed) = api::containers(data) else { return };
    // An entry can also be an array of its fields.
    let json = json(data);
    assert_eq!(json.as_array().map(Vec::len), Some(listed.len()));
    for uid in listed.keys() {
        assert!(ContainerUid::new(*uid).is_some());
        let file = containers::file_of(*uid);
        assert!(is_name(&file) && file == format!("{uid}.ini"));
        assert_eq!(containers::is_removed_without_entry(&file), *uid != 30000 && file.starts_with('3'));
    }
}

/// A text of keys: as it is written, it has whole lines, and a key.
pub fn keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if api::must_be_plain(text).is_err() {
        return;
    }
    if let Ok(written) = keys::lines(text) {
        let written = String::from_utf8(written).unwrap();
        assert!(written.ends_with('\n') && !written.contains('\r'), "{written:?}");
        assert!(written.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with('#')));
        assert!(written.chars().all(|letter| !letter.is_control() || matches!(letter, '\n' | '\t')));
        assert_eq!(keys::lines(&written).unwrap(), written.as_bytes(), "what is written is not written again");
    }
}

/// A list of nodes: what is written is read again as the same.
pub fn nodes(data: &[u8]) {
    let Ok(said) = api::json::<api::Nodes>("/nodes/", data) else { return };
    if let Ok(addresses) = nodes::addresses(&said.nodes) {
        let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
        assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':' | b'\n')), "{text:?}");
        assert_eq!(nodes::listed(&text), addresses);
        assert!(addresses.len() <= said.nodes.len());
    }
}

/// The domains: names of files, never the API's own, and keys that are public.
pub fn domains(data: &[u8]) {
    let Ok(customers) = api::list::<domains::Customer>("/domains/rsa/", data) else { return };
    let own = DomainName::parse("api.example").unwrap();
    let (files, odd) = domains::files(&customers, &own);
    for (name, key) in &files {
        assert!(is_name(&format!("{name}.pem")), "{name}");
        if let Ok(key) = key {
            // The name of the new file, with the highest number of a process.
            assert!(format!(".{name}.pem.4194304.unbit-agent").len() <= 255, "{name}");
            assert!(
                *name != own && key.contains("PUBLIC KEY-----") && !key.contains("PRIVATE KEY-----"),
                "{name}: {key}"
            );
        }
    }
    assert!(odd.iter().all(|name| DomainName::parse(name).is_none()));
}

/// The services: the name of each file is two numbers.
pub fn services(data: &[u8]) {
    let Ok(listed) = api::list("/custom_services/", data) else { return };
    for (name, config) in custom_services::services(listed).unwrap_or_default() {
        assert!(custom_services::is_service(&name) && is_name(&name), "{name}");
        if api::must_be_ini(&config).is_ok() {
            assert!(config.contains("[uwsgi]"));
        }
    }
}

/// The ports: a text for nft has nothing but its own words and values that were parsed.
pub fn port_mappings(data: &[u8]) {
    let Ok(said) = api::json::<port_mappings::ApiMappings>("/portmappings/", data) else { return };
    let own = Ipv4Addr::new(192, 0, 2, 1);
    let Ok((mappings, skipped)) = said.mappings(Some(own)) else { return };
    let text = mappings.to_string();
    let head = "table ip unbit_ports\ndelete table ip unbit_ports\ntable ip unbit_ports {\n\tchain prerouting {\n\
        \t\ttype nat hook prerouting priority dstnat; policy accept;\n";
    let rules = text.strip_prefix(head).unwrap().strip_suffix("\t}\n}\n").unwrap();
    for rule in rules.lines() {
        let words: Vec<&str> = rule.strip_prefix("\t\t").unwrap().split(' ').collect();
        let ["ip", "daddr", "192.0.2.1", "tcp" | "udp", "dport", port, "dnat", "to", private] = words[..] else {
            panic!("{rule}")
        };
        let (address, to) = private.split_once(':').unwrap();
        assert!(port.parse::<u16>().unwrap() >= 1024 && to.parse::<u16>().unwrap() >= 1024, "{rule}");
        assert_eq!(address.parse::<Ipv4Addr>().unwrap().octets()[0], 10, "{rule}");
    }
    let entries = json(data)["mappings"].as_array().map_or(0, Vec::len);
    assert!(rules.lines().count() + skipped.len() <= entries);
}

/// local.ini: a host that is a name, a port that is a number, and paths that are absolute.
pub fn settings(data: &[u8]) {
    let Ok(settings) = Settings::parse(&String::from_utf8_lossy(data)) else { return };
    let host = settings.api.host.as_str();
    assert!(is_name(host), "{host}");
    let port = settings.api.authority.strip_prefix(host).unwrap();
    assert!(
        port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
    );
    for file in [Some(&settings.key_file), Some(&settings.certificate_file), settings.ca_file.as_ref()] {
        assert!(file.is_none_or(|file| file.is_absolute()));
    }
}
