//! What `unbitctl firewall` lets in, by packets between network namespaces: a guarded machine, the
//! world, a LAN, a container.
//!
//! Every packet has its verdict in a table; and every rule of the ruleset is taken out once, to see
//! a packet's verdict change.
// node: --without sshd,emperor,syslog

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;
use unbit_tests::*;

/// The node's addresses: the one that all know, another one, and one in the LAN.
const NODE: &str = "192.0.2.1";
const OTHER: &str = "192.0.2.2";
const NODE6: &str = "2001:db8::1";

const NODES: &str = "192.0.2.11\n203.0.113.11 # by the LAN\n192.0.2.11\n\n2001:db8::11\n2001:db8:1::11\n";
const ROUTERS: &str = "# the legion\n192.0.2.21\n203.0.113.21\n2001:db8::21\n2001:db8:1::21\n";

/// The namespaces, and how they are wired: the node's interface and addresses, and those of the
/// other side.
const WIRES: [(&str, &str, &[&str], &[&str]); 3] = [
    (
        "world",
        "eth0",
        &["192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64"],
        &[
            "192.0.2.11/24",
            "192.0.2.21/24",
            "192.0.2.66/24",
            "10.0.0.9/32",
            "2001:db8::11/64",
            "2001:db8::21/64",
            "2001:db8::66/64",
        ],
    ),
    (
        "lan",
        "eth1",
        &["203.0.113.1/24", "2001:db8:1::1/64"],
        &["203.0.113.11/24", "203.0.113.21/24", "203.0.113.66/24", "2001:db8:1::11/64", "2001:db8:1::21/64"],
    ),
    (
        "container",
        "emperor0",
        &["10.0.0.1/8", "fd00::1/64"],
        &["10.0.0.5/8", "192.0.2.11/32", "192.0.2.66/32", "fd00::5/64"], // two of them forged: the tuntap router takes what a container says
    ),
];

/// The namespaces, and the lists of nodes.
struct Net;

impl Net {
    fn new() -> Self {
        let mut script = String::from("set -e\nnode='nsenter --net=/run/netns/node'\n");
        for name in ["node", "world", "lan", "container"] {
            // No waiting for addresses that somebody else might have.
            script += &format!(
                "ip netns add {name}\nnsenter --net=/run/netns/{name} sysctl -qw net.ipv6.conf.default.accept_dad=0\n"
            );
        }
        for (name, interface, near, far) in WIRES {
            script += &format!("ip -n node link add {interface} type veth peer name eth0 netns {name}\n");
            script.extend(near.iter().map(|address| format!("ip -n node address add {address} dev {interface}\n")));
            script.extend(far.iter().map(|address| format!("ip -n {name} address add {address} dev eth0\n")));
            script += &format!(
                "ip -n node link set {interface} up\nip -n {name} link set eth0 up\nip -n {name} link set lo up\n"
            );
            for gateway in near.iter().filter(|address| !address.starts_with(OTHER)) {
                let gateway = gateway.split('/').next().unwrap();
                script += &format!("ip -n {name} route add default via {gateway}\n");
            }
        }
        script += "ip -n node link set lo up
            $node sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
            for interface in eth0 eth1 emperor0; do $node sysctl -qw net.ipv4.conf.$interface.rp_filter=0; done
            mkdir -p /etc/uwsgi";
        sh(script).ok();
        // Neighbours that know each other: a first packet may otherwise wait for a second.
        for (name, _, near, far) in WIRES {
            let host = |address: &str| address.split('/').next().unwrap().to_owned();
            for source in far.iter().filter(|address| !address.ends_with("/32")) {
                let to = near.iter().find(|to| to.contains(':') == source.contains(':')).unwrap();
                let ping = format!("nsenter --net=/run/netns/{name} ping -c1 -W1 -q -I {} {}", host(source), host(to));
                eventually(&ping, || (sh(&ping).status == Some(0)).then_some(()));
            }
        }
        fs::write("/etc/uwsgi/nodes", NODES).unwrap();
        fs::write("/etc/uwsgi/legion_nodes", ROUTERS).unwrap();
        Self
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        sh("for name in node world lan container; do ip netns del $name; done; rm -f /etc/uwsgi/{nodes,legion_nodes}")
            .ok();
    }
}

/// Does something in a network namespace. A socket stays in the one it was made in.
fn within<T: Send>(name: &str, action: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // SAFETY: moves this thread, which ends with the action, and nothing else.
            assert_eq!(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            action()
        });
        thread.join().unwrap()
    })
}

/// A command on the node.
fn on_node(command: &str) -> Done {
    sh(format!("exec nsenter --net=/run/netns/node {command}"))
}

fn load(ruleset: &str) {
    run("nsenter", &["--net=/run/netns/node", "nft", "-f", "-"], ruleset.as_bytes()).ok();
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Passes,
    Refused,
}
use Verdict::{Passes, Refused};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Tcp,
    Udp,
    /// As UDP, after the node has sent the same way back.
    Reply,
    Ping,
}
use Kind::{Ping, Reply, Tcp, Udp};

/// Who sends, from which namespace and address, what, from which port (0: any), to which address
/// and port; and how that ends.
type Packet = (&'static str, &'static str, &'static str, Kind, u16, &'static str, u16, Verdict);

const PACKETS: &[Packet] = &[
    // The tuntap gateway.
    ("another node", "world", "192.0.2.11", Udp, 999, NODE, 999, Passes),
    ("another node, source port", "world", "192.0.2.11", Udp, 1000, NODE, 999, Refused),
    ("outside", "world", "192.0.2.66", Udp, 999, NODE, 999, Refused),
    ("a router that is no node", "world", "192.0.2.21", Udp, 999, NODE, 999, Refused),
    ("another node", "world", "2001:db8::11", Udp, 999, NODE6, 999, Passes),
    ("another node, source port", "world", "2001:db8::11", Udp, 1000, NODE6, 999, Refused),
    ("outside", "world", "2001:db8::66", Udp, 999, NODE6, 999, Refused),
    ("outside, answering", "world", "192.0.2.66", Reply, 999, NODE, 999, Refused),
    ("a container", "container", "10.0.0.5", Udp, 999, NODE, 999, Refused),
    ("a container as a node", "container", "192.0.2.11", Udp, 999, NODE, 999, Refused),
    // The fastrouter.
    ("a router", "world", "192.0.2.21", Tcp, 0, NODE, 1999, Passes),
    ("a router", "world", "192.0.2.21", Tcp, 0, NODE, 998, Passes),
    ("a router", "world", "2001:db8::21", Tcp, 0, NODE6, 1999, Passes),
    ("a node that is no router", "world", "192.0.2.11", Tcp, 0, NODE, 1999, Refused),
    ("outside", "world", "192.0.2.66", Tcp, 0, NODE, 1999, Refused),
    ("outside", "world", "192.0.2.66", Tcp, 0, NODE, 998, Refused),
    ("outside", "world", "2001:db8::66", Tcp, 0, NODE6, 1999, Refused),
    ("a container", "container", "10.0.0.5", Tcp, 0, NODE, 1999, Refused),
    ("a container", "container", "10.0.0.5", Tcp, 0, "10.0.0.1", 998, Refused),
    ("a container", "container", "fd00::5", Tcp, 0, NODE6, 1999, Refused),
    ("the node itself", "node", NODE, Tcp, 0, NODE, 1999, Passes),
    // The legion, and the subscriptions that it passes on.
    ("the legion, same port", "world", "192.0.2.21", Udp, 2000, NODE, 2000, Passes),
    ("the legion, same port", "world", "192.0.2.21", Udp, 2099, NODE, 2099, Passes),
    ("the legion, same port", "world", "2001:db8::21", Udp, 2000, NODE6, 2000, Passes),
    ("the legion, another port", "world", "192.0.2.21", Udp, 2001, NODE, 2000, Refused),
    ("the legion, another port", "world", "2001:db8::21", Udp, 2001, NODE6, 2000, Refused),
    ("outside, same port", "world", "192.0.2.66", Udp, 2000, NODE, 2000, Refused),
    ("outside, same port", "world", "2001:db8::66", Udp, 2000, NODE6, 2000, Refused),
    ("outside, answering", "world", "192.0.2.66", Reply, 2001, NODE, 2001, Refused),
    ("outside, any port", "world", "192.0.2.66", Udp, 40000, NODE, 2099, Refused),
    ("the port after the last", "world", "192.0.2.66", Udp, 40000, NODE, 2100, Passes),
    ("a container, same port", "container", "10.0.0.5", Udp, 2000, NODE, 2000, Refused),
    ("the legion", "world", "192.0.2.21", Udp, 3026, NODE, 3022, Passes),
    ("the legion, another port", "world", "192.0.2.21", Udp, 3022, NODE, 3022, Refused),
    ("outside", "world", "192.0.2.66", Udp, 3026, NODE, 3022, Refused),
    // What is public, and what is none of ours.
    ("outside", "world", "192.0.2.66", Tcp, 0, NODE, 22, Passes),
    ("outside", "world", "192.0.2.66", Tcp, 0, NODE, 80, Passes),
    ("outside", "world", "192.0.2.66", Tcp, 0, NODE, 443, Passes),
    ("outside", "world", "2001:db8::66", Tcp, 0, NODE6, 22, Passes),
    ("outside", "world", "2001:db8::66", Tcp, 0, NODE6, 443, Passes),
    ("outside", "world", "192.0.2.66", Tcp, 0, NODE, 8080, Passes),
    ("outside", "world", "192.0.2.66", Ping, 0, NODE, 0, Passes),
    // Answers, even where the node asked from one of the legion's ports.
    ("a resolver's answer", "world", "192.0.2.66", Reply, 53, NODE, 2050, Passes),
    ("a resolver unasked", "world", "192.0.2.66", Udp, 53, NODE, 2051, Refused),
    ("a container's answer", "container", "10.0.0.5", Reply, 7000, "10.0.0.1", 6000, Passes),
    // Containers.
    ("a container", "container", "10.0.0.5", Tcp, 0, NODE, 22, Passes),
    ("a container", "container", "10.0.0.5", Tcp, 0, NODE, 443, Passes),
    ("a container", "container", "fd00::5", Tcp, 0, NODE6, 80, Passes),
    ("a container", "container", "10.0.0.5", Udp, 0, "10.0.0.1", 53, Passes),
    ("a container", "container", "10.0.0.5", Tcp, 0, "10.0.0.1", 53, Passes),
    ("a container", "container", "10.0.0.5", Ping, 0, "10.0.0.1", 0, Passes),
    ("a container", "container", "fd00::5", Ping, 0, "fd00::1", 0, Passes),
    ("a container", "container", "10.0.0.5", Tcp, 0, NODE, 8080, Refused),
    ("a container", "container", "10.0.0.5", Udp, 0, NODE, 2100, Refused),
    ("a container", "container", "fd00::5", Tcp, 0, NODE6, 8080, Refused),
    ("a container as outside", "container", "192.0.2.66", Udp, 0, NODE, 2100, Refused),
    ("a container's address outside", "world", "10.0.0.9", Udp, 0, NODE, 2100, Refused),
    // Through the node, as if it were the node.
    ("a container to a node", "container", "10.0.0.5", Udp, 999, "203.0.113.11", 999, Refused),
    ("a container to a router", "container", "10.0.0.5", Tcp, 0, "203.0.113.21", 1999, Refused),
    ("a container to a router", "container", "10.0.0.5", Udp, 2000, "203.0.113.21", 2000, Refused),
    ("a container to a node", "container", "fd00::5", Udp, 999, "2001:db8:1::11", 999, Refused),
    ("a container to a router", "container", "fd00::5", Tcp, 0, "2001:db8:1::21", 1999, Refused),
    ("a container as outside", "container", "192.0.2.66", Udp, 999, "203.0.113.11", 999, Refused),
    ("a container's address outside", "world", "10.0.0.9", Udp, 999, "203.0.113.11", 999, Refused),
    ("a container to a site", "container", "10.0.0.5", Tcp, 0, "203.0.113.11", 80, Passes),
    ("a container to another host", "container", "10.0.0.5", Tcp, 0, "203.0.113.66", 1999, Passes),
    ("outside through the node", "world", "192.0.2.66", Udp, 999, "203.0.113.11", 999, Passes),
];

/// With `--public-ip 192.0.2.1`: nodes and routers there only; everything else as without.
const PUBLIC: &[Packet] = &[
    ("another node", "world", "192.0.2.11", Udp, 999, NODE, 999, Passes),
    ("a router", "world", "192.0.2.21", Tcp, 0, NODE, 1999, Passes),
    ("the legion, same port", "world", "192.0.2.21", Udp, 2000, NODE, 2000, Passes),
    ("another node", "world", "192.0.2.11", Udp, 999, OTHER, 999, Refused),
    ("a router", "world", "192.0.2.21", Tcp, 0, OTHER, 1999, Refused),
    ("the legion, same port", "world", "192.0.2.21", Udp, 2000, OTHER, 2000, Refused),
    ("another node", "world", "2001:db8::11", Udp, 999, NODE6, 999, Refused),
    ("a router", "world", "2001:db8::21", Tcp, 0, NODE6, 1999, Refused),
    ("outside", "world", "192.0.2.66", Tcp, 0, OTHER, 22, Passes),
    ("outside", "world", "2001:db8::66", Tcp, 0, NODE6, 443, Passes),
    ("a container", "container", "10.0.0.5", Tcp, 0, OTHER, 1999, Refused),
];

/// Other ports of the legion, another network and another interface of the containers, and other
/// services for them.
const OTHER_VALUES: &str =
    "--legion-ports 3000-3001 --containers 192.0.2.64/26 --interface eth1 --containers-reach tcp/8080,udp/2100";

/// With these values. Without them, all but the first end otherwise.
const OTHERWISE: &[Packet] = &[
    ("the legion, same port", "world", "192.0.2.21", Udp, 3001, NODE, 3001, Passes),
    ("the legion, another port", "world", "192.0.2.21", Udp, 3001, NODE, 3000, Refused),
    ("a node that is no router", "world", "192.0.2.11", Udp, 3000, NODE, 3000, Refused),
    ("outside, any port", "world", "10.0.0.9", Udp, 0, NODE, 2099, Passes),
    ("a container's address", "world", "192.0.2.66", Tcp, 0, NODE, 8081, Refused),
    ("the interface of containers", "lan", "203.0.113.66", Tcp, 0, NODE, 8081, Refused),
    ("the interface of containers", "lan", "2001:db8:1::11", Tcp, 0, NODE6, 8081, Refused),
    ("outside", "container", "10.0.0.5", Tcp, 0, NODE, 8081, Passes),
    ("outside", "container", "fd00::5", Tcp, 0, NODE6, 8081, Passes),
    ("what a container may reach", "container", "192.0.2.66", Udp, 0, NODE, 2100, Passes),
    ("a container", "container", "192.0.2.66", Udp, 0, "10.0.0.1", 53, Refused),
    ("a container to a node", "world", "192.0.2.66", Udp, 999, "203.0.113.11", 999, Refused),
    ("a container to a router", "world", "192.0.2.66", Udp, 0, "203.0.113.21", 3001, Refused),
    ("a container to a node", "lan", "203.0.113.66", Udp, 999, "192.0.2.11", 999, Refused),
    ("outside through the node", "container", "10.0.0.5", Udp, 999, "203.0.113.11", 999, Passes),
    ("outside through the node", "container", "fd00::5", Udp, 999, "2001:db8:1::11", 999, Passes),
];

/// Where a packet ends.
fn receiver(to: &str) -> &'static str {
    match to {
        _ if to.starts_with("203.0.113.") || to.starts_with("2001:db8:1:") => "lan",
        "192.0.2.11" => "world",
        _ => "node",
    }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
}

/// Sends all the packets and tells which arrived.
///
/// A datagram is known by its place in the table, a connection and a ping by their success.
fn send(packets: &[Packet]) -> Vec<Verdict> {
    // Every listener once.
    let mut udp = BTreeMap::new();
    let mut tcp = BTreeMap::new();
    for &(.., kind, _, to, port, _) in packets {
        match kind {
            Udp | Reply => drop(
                udp.entry((to, port))
                    .or_insert_with(|| within(receiver(to), || UdpSocket::bind(at(to, port)).unwrap())),
            ),
            Tcp => drop(
                tcp.entry((to, port))
                    .or_insert_with(|| within(receiver(to), || TcpListener::bind(at(to, port)).unwrap())),
            ),
            Ping => {}
        }
    }

    let mut arrived = BTreeSet::new();
    for (number, &(_, from, source, kind, source_port, to, port, _)) in packets.iter().enumerate() {
        if matches!(kind, Udp | Reply) {
            let sender = within(from, || UdpSocket::bind(at(source, source_port)).unwrap());
            if kind == Reply {
                udp[&(to, port)].send_to(b"asked", at(source, source_port)).unwrap();
                let mut asked = [0; 16];
                sender.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                assert_eq!(sender.recv(&mut asked).unwrap(), 5, "the node can ask");
            }
            sender.send_to(number.to_string().as_bytes(), at(to, port)).unwrap();
        }
    }
    std::thread::scope(|scope| {
        let others: Vec<_> = packets
            .iter()
            .enumerate()
            .filter(|(_, packet)| matches!(packet.3, Tcp | Ping))
            .map(|(number, &(_, from, source, kind, _, to, port, _))| {
                scope.spawn(move || {
                    let passed = match kind {
                        Tcp => within(from, || connect(source, to, port)).is_some(),
                        _ => {
                            sh(format!("nsenter --net=/run/netns/{from} ping -c1 -W1 -q -I {source} {to}")).status
                                == Some(0)
                        }
                    };
                    (number, passed)
                })
            })
            .collect();
        for other in others {
            let (number, passed) = other.join().unwrap();
            if passed {
                arrived.insert(number);
            }
        }
    });

    std::thread::sleep(Duration::from_millis(100));
    for socket in udp.values() {
        socket.set_nonblocking(true).unwrap();
        let mut text = [0; 16];
        loop {
            match socket.recv(&mut text) {
                Ok(length) => drop(arrived.insert(std::str::from_utf8(&text[..length]).unwrap().parse().unwrap())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    (0..packets.len()).map(|number| if arrived.contains(&number) { Passes } else { Refused }).collect()
}

/// Connects from an address; `None` if nobody answers. A refusal is no verdict: somebody listens.
fn connect(source: &str, to: &str, port: u16) -> Option<TcpStream> {
    let (source, to) = (at(source, 0), at(to, port));
    let (family, length) = if to.is_ipv4() { (libc::AF_INET, 16) } else { (libc::AF_INET6, 28) };
    let (source, to) = (socket_address(source), socket_address(to));
    // SAFETY: a new descriptor is ours; the addresses are as long as the family's.
    unsafe {
        let socket = OwnedFd::from_raw_fd(libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0));
        assert_eq!(
            libc::bind(socket.as_raw_fd(), source.as_ptr().cast(), length),
            0,
            "{}",
            std::io::Error::last_os_error()
        );
        let patience = libc::timeval { tv_sec: 1, tv_usec: 500_000 }; // one SYN may be lost
        let size = size_of::<libc::timeval>() as u32;
        // A connect ends after SO_SNDTIMEO, see socket(7).
        assert_eq!(
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDTIMEO,
                (&raw const patience).cast(),
                size
            ),
            0
        );
        if libc::connect(socket.as_raw_fd(), to.as_ptr().cast(), length) == 0 {
            return Some(TcpStream::from(socket));
        }
    }
    let error = std::io::Error::last_os_error();
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
    None
}

/// A sockaddr_in or sockaddr_in6, see ip(7) and ipv6(7).
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(ip) => [&(libc::AF_INET as u16).to_ne_bytes(), &port[..], &ip.octets()[..], &[0; 8]].concat(),
        IpAddr::V6(ip) => {
            [&(libc::AF_INET6 as u16).to_ne_bytes(), &port[..], &[0; 4], &ip.octets()[..], &[0; 4]].concat()
        }
    }
}

fn row(&(who, from, source, kind, source_port, to, port, _): &Packet, verdict: Verdict) -> String {
    let any = |port: u16| if port == 0 { "any".to_owned() } else { port.to_string() };
    format!(
        "{who:29} {from:9} {source:13} {:5} {:>6}  {to:14} {:>5}  {verdict:?}",
        format!("{kind:?}"),
        any(source_port),
        any(port)
    )
}

/// Fails with those packets that did not end as the table says.
#[track_caller]
fn assert_verdicts(packets: &[Packet]) {
    let verdicts = send(packets);
    let wrong: Vec<_> = packets
        .iter()
        .zip(&verdicts)
        .filter(|(packet, verdict)| packet.7 != **verdict)
        .map(|(p, &v)| row(p, v))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    println!(
        "{:29} {:9} {:13} {:5} {:>6}  {:14} {:>5}  verdict",
        "packet", "through", "from", "", "port", "to", "port"
    );
    packets.iter().zip(&verdicts).for_each(|(packet, &verdict)| println!("{}", row(packet, verdict)));
}

/// Takes each rule out once; each time some packet must end otherwise.
fn assert_no_rule_is_idle(ruleset: &str, packets: &[Packet], is_rule: impl Fn(&str) -> bool) {
    let lines: Vec<_> = ruleset.lines().collect();
    let mut tried = 0;
    let mut idle = Vec::new();
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| is_rule(line)) {
        let without: Vec<_> =
            lines.iter().enumerate().filter(|&(other, _)| other != number).map(|(_, line)| *line).collect();
        load(&(without.join("\n") + "\n"));
        let verdicts = send(packets);
        let changed: Vec<_> = packets.iter().zip(verdicts).filter(|(packet, verdict)| packet.7 != *verdict).collect();
        println!("without {:?}: {} others", line.trim(), changed.len());
        changed.iter().for_each(|(packet, verdict)| println!("    {}", row(packet, *verdict)));
        if changed.is_empty() {
            idle.push(*line);
        }
        tried += 1;
    }
    assert_eq!(idle, [""; 0], "no packet misses these rules");
    assert!(tried > 0);
    load(ruleset);
    assert_verdicts(packets);
}

/// Whether it is a line of a chain that decides.
fn is_rule(line: &str) -> bool {
    let line = line.trim();
    let verdicts =
        [" accept", " drop", "goto containers", "goto nodes", "goto routers", "goto guarded", "goto to_other_nodes"];
    line == "counter drop" || verdicts.iter().any(|verdict| line.ends_with(verdict)) || line.starts_with("goto ")
}

#[test]
#[ignore = "needs the node: make test"]
fn packets_pass_and_are_refused() {
    let _net = Net::new();
    let open: Vec<Packet> = PACKETS.iter().map(|&(a, b, c, d, e, f, g, _)| (a, b, c, d, e, f, g, Passes)).collect();
    assert_verdicts(&open);
    on_node("unbitctl firewall --apply").ok();
    assert_verdicts(PACKETS);
    on_node("unbitctl firewall --apply").ok();
    assert_verdicts(PACKETS);
    on_node("unbitctl firewall --remove").ok();
    assert_verdicts(&open);
}

#[test]
#[ignore = "needs the node: make test"]
fn no_rule_is_without_a_packet() {
    let _net = Net::new();
    let ruleset = on_node("unbitctl firewall").ok() + "\n";
    assert_no_rule_is_idle(&ruleset, PACKETS, is_rule);
}

#[test]
#[ignore = "needs the node: make test"]
fn nodes_are_let_in_at_the_public_address_only() {
    let _net = Net::new();
    let done = on_node("unbitctl firewall --apply --public-ip 192.0.2.1");
    assert!(done.err.contains("no --public-ip is an IPv6 address"), "{done:?}");
    done.ok();
    assert_verdicts(PUBLIC);
    on_node("unbitctl firewall --apply --public-ip 192.0.2.1 --public-ip 2001:db8::1").ok();
    let verdicts = send(PUBLIC);
    assert_eq!((verdicts[6], verdicts[7], verdicts[3]), (Passes, Passes, Refused));
    on_node("unbitctl firewall --apply").ok();
    assert_eq!(&send(PUBLIC)[3..8], [Passes; 5], "without --public-ip");
}

#[test]
#[ignore = "needs the node: make test"]
fn other_values_make_other_rules() {
    let _net = Net::new();
    on_node("unbitctl firewall --apply").ok();
    let without: Vec<Packet> = OTHERWISE
        .iter()
        .skip(1)
        .map(|&(a, b, c, d, e, f, g, verdict)| (a, b, c, d, e, f, g, if verdict == Passes { Refused } else { Passes }))
        .collect();
    assert_verdicts(&without);
    on_node(&format!("unbitctl firewall --apply {OTHER_VALUES}")).ok();
    assert_verdicts(OTHERWISE);
    on_node("unbitctl firewall --apply --containers-reach ''").ok();
    let resolver = ("a container", "container", "10.0.0.5", Udp, 0, "10.0.0.1", 53, Refused);
    assert_verdicts(&[resolver]);
    // More of them than nft keeps in one comment.
    let many: Vec<_> = (8000..8050).map(|port| format!("tcp/{port}")).collect();
    on_node(&format!("unbitctl firewall --apply --containers-reach {},udp/53", many.join(","))).ok();
    let before = on_node("nft list ruleset").ok();
    let last = ("a container", "container", "10.0.0.5", Udp, 0, "10.0.0.1", 53, Passes);
    assert_verdicts(&[last]);
    on_node("unbitctl firewall --reload").ok();
    assert_eq!(on_node("nft list ruleset").ok(), before);
}

#[test]
#[ignore = "needs the node: make test"]
fn connections_outlive_apply_and_routers_that_are_gone_are_cut() {
    let _net = Net::new();
    on_node("unbitctl firewall --apply").ok();
    let open = |source: &str, port| {
        let listener = within("node", || TcpListener::bind(at(NODE, port)).unwrap());
        let mut client = within("world", || connect(source, NODE, port)).unwrap();
        let mut server = listener.accept().unwrap().0;
        server.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        client.write_all(b"1").unwrap();
        server.read_exact(&mut [0]).unwrap();
        (client, server)
    };
    let (mut operator, mut sshd) = open("192.0.2.66", 22);
    let (mut router, mut fastrouter) = open("192.0.2.21", 1999);
    for (list, passes) in [(ROUTERS, true), ("203.0.113.21\n", false)] {
        fs::write("/etc/uwsgi/legion_nodes", list).unwrap();
        on_node("unbitctl firewall --apply").ok();
        operator.write_all(b"2").unwrap();
        sshd.read_exact(&mut [0]).unwrap();
        router.write_all(b"2").unwrap();
        assert_eq!(fastrouter.read_exact(&mut [0]).is_ok(), passes);
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_bad_list_changes_nothing() {
    let _net = Net::new();
    on_node("unbitctl firewall --apply").ok();
    let before = on_node("nft list ruleset").ok();
    fs::write("/etc/uwsgi/nodes", "192.0.2.11\nnode7.example\n192.0.2.0/24\n").unwrap();
    fs::write("/etc/uwsgi/legion_nodes", "10.0.0.7\n").unwrap();
    let done = on_node("unbitctl firewall --apply");
    assert_eq!((done.status, done.out.as_str()), (Some(1), ""));
    assert_eq!(
        done.err,
        "unbitctl: no rules are made from these lists
unbitctl: /etc/uwsgi/nodes:2: \"node7.example\" is not an IP address
unbitctl: /etc/uwsgi/nodes:3: \"192.0.2.0/24\" is a network: one address a line is needed
unbitctl: /etc/uwsgi/legion_nodes:1: \"10.0.0.7\" is a container's address (--containers 10.0.0.0/8)\n"
    );
    fs::remove_file("/etc/uwsgi/nodes").unwrap();
    assert!(on_node("unbitctl firewall --apply").failed().contains("/etc/uwsgi/nodes does not exist. "));
    assert_eq!(on_node("nft list ruleset").ok(), before);

    // What nft refuses in its last line leaves no part of what came before it.
    fs::write("/etc/uwsgi/nodes", NODES).unwrap();
    fs::write("/etc/uwsgi/legion_nodes", "192.0.2.77\n").unwrap();
    let ruleset = on_node("unbitctl firewall").ok();
    let refused = run(
        "nsenter",
        &["--net=/run/netns/node", "nft", "-f", "-"],
        format!("{ruleset}\nadd rule inet unbit nothing drop\n").as_bytes(),
    );
    assert_ne!(refused.status, Some(0));
    assert_eq!(on_node("nft list ruleset").ok(), before);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_list_is_a_plain_file_that_the_check_can_read_again() {
    let _net = Net::new();
    sh("mkfifo /tmp/fifo").ok();
    let _end = AtEnd(|| fs::remove_file("/tmp/fifo").unwrap());
    for path in ["/tmp/fifo", "/dev/null", "/tmp"] {
        for list in ["nodes", "routers"] {
            let refused = on_node(&format!("timeout 5 unbitctl firewall --{list} {path}"));
            assert_eq!((refused.status, refused.err), (Some(1), format!("unbitctl: {path}: not a regular file\n")));
        }
    }
}

/// Whoever reads standard output has gone; or what it leads to is full.
#[test]
#[ignore = "needs the node: make test"]
fn what_is_loaded_does_not_depend_on_who_reads() {
    let _net = Net::new();
    let gone = |command: &str| on_node(&format!("bash -c 'exec 3> >(true); wait $!; exec unbitctl {command} >&3'"));
    let full = |command: &str| on_node(&format!("bash -c 'exec unbitctl {command} >/dev/full'"));
    let quiet = Done { status: Some(0), out: String::new(), err: String::new() };
    assert_eq!(gone("firewall"), quiet);
    let lost = "unbitctl: write standard output: No space left on device (os error 28)\n";
    assert_eq!(full("firewall"), Done { status: Some(1), out: String::new(), err: lost.to_owned() });
    for apply in [gone, full] {
        assert_eq!(apply("firewall --apply"), quiet);
        on_node("nft list table inet unbit").ok();
        on_node("unbitctl firewall --remove").ok();
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn other_tables_stay() {
    let _net = Net::new();
    load(
        "table inet theirs { chain input { type filter hook input priority filter; policy accept; tcp dport 8081 drop; }; }\n",
    );
    let theirs = on_node("nft list ruleset").ok();
    on_node("unbitctl firewall --apply").ok();
    let both = on_node("nft list ruleset").ok();
    assert!(both.contains("table inet unbit") && both.contains(&theirs), "{both}");
    on_node("unbitctl firewall --remove").ok();
    assert_eq!(on_node("nft list ruleset").ok(), theirs);
    on_node("unbitctl firewall --remove").ok();

    // As at boot: /etc/nftables.conf begins with this and has our file at its end.
    let directory = "/tmp/nftables";
    fs::create_dir_all(directory).unwrap();
    fs::write(format!("{directory}/unbit.nft"), on_node("unbitctl firewall").ok() + "\n").unwrap();
    fs::write(format!("{directory}/nftables.conf"), format!("flush ruleset\ninclude \"{directory}/unbit.nft\"\n"))
        .unwrap();
    for _ in 0..2 {
        on_node(&format!("nft -f {directory}/nftables.conf")).ok();
        assert_verdicts(PACKETS);
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn the_check_sees_what_the_lists_say_now() {
    let _net = Net::new();
    let check = || {
        let text = on_node("unbitctl check --guide uwsgi.it").out;
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines
            .skip_while(|line| line.get(1) != Some(&"ports"))
            .take(3)
            .map(|line| line.join(" ") + "\n")
            .collect::<String>()
    };
    let holds = |seen: &str, parts: &[&str]| {
        parts.iter().for_each(|part| assert!(seen.contains(part), "{part:?} is not in {seen}"))
    };

    holds(&check(), &["warn ports the table inet unbit is not loaded", "fix unbitctl firewall --apply"]);
    sh("rm /etc/uwsgi/nodes /etc/uwsgi/legion_nodes").ok();
    holds(
        &check(),
        &[
            "fix write /etc/uwsgi/nodes and /etc/uwsgi/legion_nodes, one address a line, then: unbitctl firewall --apply",
        ],
    );
    fs::write("/etc/uwsgi/nodes", NODES).unwrap();
    fs::write("/etc/uwsgi/legion_nodes", ROUTERS).unwrap();
    on_node("unbitctl firewall --apply --legion-ports 2000").ok();
    let good = "ok ports the table inet unbit is loaded: nodes: 4, routers: 4";
    holds(&check(), &[good]);

    fs::write("/etc/uwsgi/nodes", NODES.replace("192.0.2.11", "192.0.2.12")).unwrap();
    let fix = "fix unbitctl firewall --legion-ports=2000 --apply";
    holds(&check(), &["FAIL ports ", "nodes ipv4 lacks 192.0.2.12; nodes ipv4 has 192.0.2.11", fix]);
    on_node(fix.trim_start_matches("fix ")).ok();
    holds(&check(), &[good]);

    on_node("nft insert rule inet unbit input accept").ok();
    holds(&check(), &["FAIL ports ", "its rules differ", fix]);
    on_node(fix.trim_start_matches("fix ")).ok();
    holds(&check(), &[good]);

    fs::write("/etc/uwsgi/nodes", "192.0.2.300\n").unwrap();
    holds(
        &check(),
        &[
            "FAIL ports ",
            "/etc/uwsgi/nodes:1: \"192.0.2.300\" is not an IP address",
            "correct the list, then: unbitctl",
        ],
    );
    fs::remove_file("/etc/uwsgi/nodes").unwrap();
    holds(
        &check(),
        &[
            "FAIL ports /etc/uwsgi/nodes: No such file",
            "fix write /etc/uwsgi/nodes, one address a line, then: unbitctl firewall --legion-ports=2000 --apply",
        ],
    );
    load("table inet unbit\ndelete table inet unbit\ntable inet unbit { }\n");
    holds(&check(), &["FAIL ports "]);

    fs::write("/etc/uwsgi/nodes", NODES).unwrap();
    fs::rename("/usr/sbin/nft", "/usr/sbin/nft.away").unwrap();
    let _back = AtEnd(|| fs::rename("/usr/sbin/nft.away", "/usr/sbin/nft").unwrap());
    holds(&check(), &["warn ports nft is not installed", "fix apt install nftables, then: unbitctl firewall --apply"]);
    assert!(on_node("unbitctl firewall --apply").failed().contains("apt install nftables"));
    assert!(on_node("unbitctl firewall").ok().contains("table inet unbit"), "printing needs no nft");
}

#[test]
#[ignore = "needs the node: make test"]
fn only_loading_needs_root() {
    let _net = Net::new();
    for option in ["--nodes /nodes", "--public-ip 192.0.2.1", "--interface tun0", "--apply"] {
        assert_eq!(on_node(&format!("unbitctl firewall --remove {option}")).status, Some(2), "{option}");
    }
    let as_alice = |command: &str| on_node(&format!("setpriv --reuid 1000 --regid 1000 --clear-groups {command}"));
    assert!(as_alice("unbitctl firewall").ok().contains("192.0.2.11"));
    for option in ["--apply", "--remove"] {
        let done = as_alice(&format!("unbitctl firewall {option}"));
        assert_eq!((done.status, done.err), (Some(3), format!("unbitctl: firewall {option} needs root\n")));
    }
    assert!(as_alice("unbitctl check --guide uwsgi.it").out.contains("ports          root is needed to see"));
    let of_an_image =
        sh("mkdir -p /srv/image; unbitctl check --guide uwsgi.it --root /srv/image; rmdir /srv/image").out;
    assert!(of_an_image.contains("a root directory has no packets"), "{of_an_image}");
    fs::write("/etc/uwsgi/nodes", "# none yet\n").unwrap();
    fs::write("/etc/uwsgi/legion_nodes", "").unwrap();
    let done = on_node("unbitctl firewall --apply");
    assert!(done.err.contains("warning: /etc/uwsgi/nodes has no address: UDP 999 is closed to everyone\n"), "{done:?}");
    assert!(done.err.contains("warning: /etc/uwsgi/legion_nodes has no address"), "{done:?}");
    done.ok();
    assert_eq!(send(&PACKETS[..1]), [Refused]);
}
