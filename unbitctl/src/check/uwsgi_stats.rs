//! Checks the services of uwsgi.it's guide: each one whose file exists listens on the address of
//! its statistics.

use super::sockets::{Socket, sockets};
use crate::report::Finding;
use crate::rootfs::RootFs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

const CHECK: &str = "services";
const DIRECTORY: &str = "/etc/uwsgi/services";
const WHY: &str = "a service that does not offer its statistics does not run, or is not that of the guide";
const WHY_OPEN: &str = "containers and other nodes can read what the statistics show of tenants";

/// Its file, and the ports on 127.0.0.1 that PORTS.md of uwsgi.it has for it.
const SERVICES: [(&str, &[u16]); 6] = [
    ("containers", &[5000, 5001]),
    ("tuntap", &[5002]),
    ("http", &[5003]),
    ("fastrouter", &[5004]),
    ("legion", &[5005]),
    ("custom_services", &[5006]),
];

pub fn check(node: &RootFs) -> Vec<Finding> {
    if !node.is_running() {
        return vec![Finding::not_applicable(CHECK, WHY, "a root directory has no services that run")];
    }
    let has = |name: &str| node.has(&format!("{DIRECTORY}/{name}.ini"));
    let listening = |socket: Socket| match socket.local {
        SocketAddr::V4(address) if socket.listens => Some(address),
        _ => None,
    };
    match sockets() {
        Ok(sockets) => judge(&has, &sockets.into_iter().filter_map(listening).collect::<Vec<_>>()),
        Err(error) => vec![Finding::not_applicable(CHECK, WHY, format!("/proc/net/tcp: {error}"))],
    }
}

fn judge(has: &dyn Fn(&str) -> bool, listening: &[SocketAddrV4]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut well = Vec::new();
    for (name, ports) in SERVICES.iter().filter(|(name, _)| has(name)) {
        let is_local = |port: &&u16| listening.contains(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, **port));
        let is_any =
            |port: &u16| listening.iter().find(|address| address.port() == *port && !address.ip().is_loopback());
        let silent: Vec<_> = ports.iter().filter(|port| !is_local(port) && is_any(port).is_none()).collect();
        if let Some(port) = silent.first() {
            let seen = format!("{DIRECTORY}/{name}.ini exists, but nothing listens on 127.0.0.1:{port}");
            let fix = format!(
                "tail -n 50 /var/log/uwsgi/{name}.log; its file should have the port: grep -n stats {DIRECTORY}/{name}.ini"
            );
            findings.push(Finding::fail(CHECK, WHY, seen, fix));
        }
        if let Some(address) = ports.iter().find_map(is_any) {
            let seen = format!("{name} offers its statistics on {address}, not only on 127.0.0.1");
            let fix =
                format!("write 127.0.0.1:{} there: grep -n {} {DIRECTORY}/{name}.ini", address.port(), address.port());
            findings.push(Finding::fail(CHECK, WHY_OPEN, seen, fix));
        }
        well.push(*name);
    }
    if well.is_empty() {
        return vec![Finding::fail(CHECK, WHY, format!("{DIRECTORY} has no service of the guide"), COPY)];
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            WHY,
            format!("every service with a file in {DIRECTORY} runs: {}", well.join(" ")),
        ));
    }
    findings
}

const COPY: &str = "copy those of uwsgi.it, services/*.ini there, to /etc/uwsgi/services";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::State;

    #[test]
    fn each_service_has_its_ports() {
        let at = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let seen = |names: &[&str], listening: &[SocketAddrV4]| {
            let findings = judge(&|name| names.contains(&name), listening);
            findings.into_iter().map(|finding| (finding.state, finding.seen)).collect::<Vec<_>>()
        };
        let all = [5000, 5001, 5002, 5003].map(at);
        assert_eq!(
            seen(&["containers", "http", "tuntap"], &all),
            [(State::Ok, "every service with a file in /etc/uwsgi/services runs: containers tuntap http".to_owned())]
        );
        let silent = |name: &str, port: u16| {
            (State::Fail, format!("/etc/uwsgi/services/{name}.ini exists, but nothing listens on 127.0.0.1:{port}"))
        };
        assert_eq!(seen(&["containers", "http"], &all[..3]), [silent("http", 5003)]);
        assert_eq!(seen(&["containers"], &all[..1]), [silent("containers", 5001)]);
        let open = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 5004);
        assert_eq!(
            seen(&["fastrouter"], &[open]),
            [(State::Fail, "fastrouter offers its statistics on 0.0.0.0:5004, not only on 127.0.0.1".to_owned())]
        );
        assert_eq!(seen(&[], &all)[0].0, State::Fail);
    }
}
