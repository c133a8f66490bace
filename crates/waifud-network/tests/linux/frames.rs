//! Frames, built byte by byte.

use std::net::{Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

pub const BROADCAST: Mac = [0xff; 6];
pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;
pub const VLAN: u16 = 0x8100;

pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An ARP packet (RFC 826). `operation`: 1 is a request, 2 a reply.
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        packet.extend(mac);
        packet.extend(address.octets());
    }
    packet
}

/// An IPv4 packet without options (RFC 791).
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(payload);
    packet
}

/// A UDP datagram (RFC 768) without a checksum, which IPv4 allows.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut packet = Vec::new();
    for field in [from, to, length, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// An ICMP echo request with `payload` (RFC 792).
pub fn echo(payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0, 0x77, 0x66, 0, 1];
    packet.extend(payload);
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum);
    packet
}

/// A DHCP request of `mac` (RFC 2131), with further options after the message type.
pub fn dhcp(kind: u8, mac: Mac, options: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0x77, 0x61, 0x69, 0x66];
    message.resize(28, 0);
    message.extend(mac);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, kind]);
    message.extend(options);
    message.push(255);
    message
}

/// A DHCP server's answer that assigns `address` to `mac` (RFC 951 and 2131).
pub fn dhcp_answer(kind: u8, mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut message = dhcp(kind, mac, &[]);
    message[0] = 2;
    message[16..20].copy_from_slice(&address.octets());
    message
}

/// An IPv6 packet (RFC 8200, section 3).
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// A neighbor discovery message (RFC 4861, sections 4.2 to 4.5): type, and the bytes after the checksum. No test
/// verifies the checksum.
pub fn icmpv6(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0], rest].concat()
}

/// A solicitation or an advertisement for `target`.
pub fn neighbor(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    icmpv6(kind, &[&[0; 4], &target.octets()[..]].concat())
}

/// The TCP checksum, which covers a pseudo header (RFC 793, section 3.1).
pub fn tcp_checksum(from: Ipv4Addr, to: Ipv4Addr, segment: &[u8]) -> [u8; 2] {
    let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 6], &length, segment].concat();
    checksum(&pseudo)
}

/// A query for the addresses of a name (RFC 1035).
pub fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0x77, 0x66, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

pub fn contains(frame: &[u8], needle: &[u8]) -> bool {
    frame.windows(needle.len()).any(|window| window == needle)
}

/// The internet checksum (RFC 1071).
fn checksum(octets: &[u8]) -> [u8; 2] {
    let mut sum: u32 = octets
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}
