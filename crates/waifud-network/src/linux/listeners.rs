//! Ports that programs of this host listen on, as the kernel lists its sockets.
//!
//! The list is read instead of trying to bind ports: a probe could disturb a program that starts at that moment, and needs
//! a capability that the agent may not have. Listeners on loopback addresses are left out, because published ports do not
//! use loopback.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::Path;

use waifud_types::spec::Protocol;

use super::files;
use crate::NetworkError;

/// The directory of the thread, not of the process, because the thread may be in another namespace.
const DIRECTORY: &str = "/proc/thread-self/net";

/// `TCP_LISTEN` and, for sockets without a peer, `TCP_CLOSE` (`linux/tcp_states.h`).
const LISTENS: [(&str, Protocol, &str); 4] = [
    ("tcp", Protocol::Tcp, "0A"),
    ("tcp6", Protocol::Tcp, "0A"),
    ("udp", Protocol::Udp, "07"),
    ("udp6", Protocol::Udp, "07"),
];

/// The files. A kernel without IPv6 lacks two of them.
pub(super) fn read() -> Result<BTreeSet<(Protocol, u16)>, NetworkError> {
    let mut found = BTreeSet::new();
    for (file, protocol, state) in LISTENS {
        let text = files::read(&Path::new(DIRECTORY).join(file))?.unwrap_or_default();
        found.extend(parse(&text, state).map(|port| (protocol, port)));
    }
    Ok(found)
}

/// Whether no program listens on the port at this address or at all addresses.
pub(super) fn is_free(address: SocketAddrV4) -> Result<bool, NetworkError> {
    for (file, _, state) in LISTENS {
        let text = files::read(&Path::new(DIRECTORY).join(file))?.unwrap_or_default();
        if sockets(&text, state).any(|socket| covers(socket, address)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a socket receives what is sent to the address.
fn covers((ip, port): (IpAddr, u16), address: SocketAddrV4) -> bool {
    port == address.port() && (ip.is_unspecified() || ip == IpAddr::V4(*address.ip()))
}

/// Ports in that state, except on loopback addresses.
fn parse<'a>(text: &'a str, state: &'a str) -> impl Iterator<Item = u16> + 'a {
    let sockets = sockets(text, state).filter(|(ip, _)| !ip.is_loopback());
    sockets.map(|(_, port)| port)
}

/// Sockets in that state: a line is `SLOT: ADDRESS:PORT ADDRESS:PORT STATE …`, in hexadecimal (proc(5), `/proc/net/tcp`).
fn sockets<'a>(text: &'a str, state: &'a str) -> impl Iterator<Item = (IpAddr, u16)> + 'a {
    text.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let (address, port) = words.nth(1)?.split_once(':')?;
        if words.nth(1)? != state {
            return None;
        }
        Some((address_of(address)?, u16::from_str_radix(port, 16).ok()?))
    })
}

/// The kernel prints each four octets as one number in the machine's byte order.
fn address_of(text: &str) -> Option<IpAddr> {
    let mut octets = Vec::with_capacity(16);
    for at in (0..text.len()).step_by(8) {
        let word = u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?;
        octets.extend(word.to_ne_bytes());
    }
    if let Ok(four) = <[u8; 4]>::try_from(octets.as_slice()) {
        return Some(Ipv4Addr::from(four).into());
    }
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?);
    // ::ffff:127.0.0.1 is loopback too.
    Some(address.to_ipv4_mapped().map_or(address.into(), IpAddr::V4))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 020200C0:0050 010200C0:9C40 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 020200C0:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
";
    const TCP6: &str =
        "  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A
   1: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A
   2: 0000000000000000FFFF00000100007F:1F91 00000000000000000000000000000000:0000 0A
";

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_are_those_in_the_state_and_not_on_loopback() {
        assert_eq!(parse(TCP, "0A").collect::<Vec<_>>(), [22, 443]);
        assert_eq!(parse(TCP6, "0A").collect::<Vec<_>>(), [8080]);
        assert_eq!(parse("nonsense\n\n1: zz 2", "0A").count(), 0);
        let covered = |text, address: &str| {
            let address = address.parse().unwrap();
            sockets(text, "0A").any(|socket| covers(socket, address))
        };
        assert!(covered(TCP, "192.0.2.9:22") && covered(TCP6, "192.0.2.9:8080"));
        assert!(covered(TCP, "127.0.0.1:5432") && !covered(TCP, "127.0.0.2:5432"));
        assert!(covered(TCP, "192.0.2.2:443") && !covered(TCP, "192.0.2.9:443"));
        assert!(!covered(TCP, "192.0.2.2:80"));
    }
}
