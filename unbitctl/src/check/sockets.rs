//! Reads the TCP sockets of this network namespace from /proc/net/tcp and tcp6, see
//! proc_pid_net(5).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A line of the tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Socket {
    pub listens: bool,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub inode: u64,
}

/// All sockets; a kernel without IPv6 has only one of the tables.
pub fn sockets() -> io::Result<Vec<Socket>> {
    let tables = [fs::read_to_string("/proc/net/tcp")?, fs::read_to_string("/proc/net/tcp6").unwrap_or_default()];
    Ok(tables.iter().flat_map(|table| table.lines()).filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Socket> {
    const TCP_LISTEN: u8 = 0x0a; // tcp_states.h
    let words: Vec<_> = line.split_whitespace().collect();
    let state = u8::from_str_radix(words.get(3)?, 16).ok()?;
    Some(Socket {
        listens: state == TCP_LISTEN,
        local: address(words.get(1)?)?,
        remote: address(words.get(2)?)?,
        inode: words.get(9)?.parse().ok()?,
    })
}

/// Each four bytes of an address are in the machine's own byte order, the port is not.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let part = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(part(0)?)),
        32 => {
            let parts = [part(0)?, part(8)?, part(16)?, part(24)?];
            let bytes: [u8; 16] = parts.concat().try_into().ok()?;
            IpAddr::from(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_line_of_the_kernels_table() {
        let line = |local: &str, state: &str| {
            format!("   1: {local} 00000000:0000 {state} 00000000:00000000 00:0 0     0        0 4711 1 0 100")
        };
        let local = if cfg!(target_endian = "little") { "0100007F:1388" } else { "7F000001:1388" };
        let socket = parse(&line(local, "0A")).unwrap();
        assert_eq!((socket.listens, socket.local, socket.inode), (true, "127.0.0.1:5000".parse().unwrap(), 4711));
        assert_eq!(socket.remote, "0.0.0.0:0".parse().unwrap());
        assert!(!parse(&line(local, "01")).unwrap().listens);
        let six = "00000000000000000000000000000000:0016";
        assert_eq!(parse(&line(six, "0A")).map(|socket| socket.local), "[::]:22".parse().ok());
        for bad in ["0100007F", "0100007:1388", "0100007F:13888", "x100007F:1388"] {
            assert_eq!(parse(&line(bad, "0A")), None, "{bad}");
        }
        assert_eq!(parse("  sl  local_address rem_address   st tx_queue"), None);
    }

    #[test]
    fn a_socket_of_this_process_is_there() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue }; // without IPv6
            let local = listener.local_addr().unwrap();
            assert!(sockets().unwrap().iter().any(|socket| socket.listens && socket.local == local), "{local}");
        }
    }
}
