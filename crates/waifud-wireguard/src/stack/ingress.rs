//! Classifies an inner packet by its bytes before the TCP stack processes it.

use std::net::SocketAddrV4;

use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket};

/// The class of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// A segment for the service.
    Segment {
        /// The guest's address and port.
        source: SocketAddrV4,
        /// Whether it requests a new connection: SYN without ACK and RST.
        opens: bool,
    },
    /// A segment for another port of the service's address.
    OtherPort,
    /// ICMP for the service's address.
    Icmp,
    /// Not answered.
    Refused(Cause),
}

/// Why a packet is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Not a complete IPv4 packet: malformed, a fragment, or another version.
    Malformed,
    /// Another destination or protocol.
    NotForUs,
}

/// Classifies a packet. Bytes after the end of the IPv4 packet are padding and ignored.
pub(crate) fn classify(packet: &[u8], service: SocketAddrV4) -> Arrival {
    use Arrival::{Icmp, OtherPort, Refused, Segment};
    use Cause::{Malformed, NotForUs};

    let Ok(ip) = Ipv4Packet::new_checked(packet) else {
        return Refused(Malformed);
    };
    // Reassembly would need memory that a guest could fill, and ordinary clients of a small service do not fragment.
    if ip.version() != 4
        || ip.header_len() < 20
        || ip.more_frags()
        || ip.frag_offset() != 0
        || !ip.verify_checksum()
    {
        return Refused(Malformed);
    }
    if ip.dst_addr() != *service.ip() {
        return Refused(NotForUs);
    }
    match ip.next_header() {
        IpProtocol::Icmp => Icmp,
        IpProtocol::Tcp => {
            let Ok(tcp) = TcpPacket::new_checked(ip.payload()) else {
                return Refused(Malformed);
            };
            let source = SocketAddrV4::new(ip.src_addr(), tcp.src_port());
            // The stack panics on both (RFC 1122, section 3.2.1.3; RFC 6335, section 6).
            if source.port() == 0 || !unicast(source) {
                return Refused(Malformed);
            }
            if tcp.dst_port() != service.port() {
                return OtherPort;
            }
            let opens = tcp.syn() && !tcp.ack() && !tcp.rst();
            // A new connection may end one of another guest, so the packet is verified completely first.
            if opens && !tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()) {
                return Refused(Malformed);
            }
            Segment { source, opens }
        }
        _ => Refused(NotForUs),
    }
}

fn unicast(source: SocketAddrV4) -> bool {
    let ip = source.ip();
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::testing::{SERVICE, guest, segment};
    use proptest::prelude::*;
    use smoltcp::wire::TcpControl;

    #[test]
    fn a_syn_to_the_service_opens() {
        let packet = segment(guest(7), SERVICE, TcpControl::Syn, 1, None, b"");
        assert_eq!(
            classify(&packet, SERVICE),
            Arrival::Segment {
                source: guest(7),
                opens: true
            }
        );
        let packet = segment(guest(7), SERVICE, TcpControl::None, 1, Some(1), b"x");
        assert_eq!(
            classify(&packet, SERVICE),
            Arrival::Segment {
                source: guest(7),
                opens: false
            }
        );
    }

    #[test]
    fn padding_behind_the_packet_is_ignored() {
        let mut packet = segment(guest(7), SERVICE, TcpControl::Syn, 1, None, b"");
        packet.extend([0; 8]);
        assert!(matches!(
            classify(&packet, SERVICE),
            Arrival::Segment { .. }
        ));
    }

    #[test]
    fn another_port_or_address_is_recognized() {
        let port = SocketAddrV4::new(*SERVICE.ip(), 81);
        let packet = segment(guest(7), port, TcpControl::Syn, 1, None, b"");
        assert_eq!(classify(&packet, SERVICE), Arrival::OtherPort);
        let host = SocketAddrV4::new([10, 0, 0, 1].into(), 80);
        let packet = segment(guest(7), host, TcpControl::Syn, 1, None, b"");
        assert_eq!(
            classify(&packet, SERVICE),
            Arrival::Refused(Cause::NotForUs)
        );
    }

    #[test]
    fn fragments_are_refused() {
        for (first, second) in [(0x20, 0x00), (0x00, 0x01)] {
            let mut packet = segment(guest(7), SERVICE, TcpControl::Syn, 1, None, b"");
            packet[6] = first;
            packet[7] = second;
            let mut ip = Ipv4Packet::new_unchecked(&mut packet[..]);
            ip.fill_checksum();
            assert_eq!(
                classify(&packet, SERVICE),
                Arrival::Refused(Cause::Malformed)
            );
        }
    }

    #[test]
    fn impossible_source_addresses_are_refused() {
        for source in [
            "0.0.0.0:5",
            "224.0.0.1:5",
            "255.255.255.255:5",
            "10.0.0.2:0",
        ] {
            let packet = segment(
                source.parse().unwrap(),
                SERVICE,
                TcpControl::Syn,
                1,
                None,
                b"",
            );
            assert_eq!(
                classify(&packet, SERVICE),
                Arrival::Refused(Cause::Malformed),
                "{source}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_cause_a_panic(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            classify(&packet, SERVICE);
        }
    }
}
