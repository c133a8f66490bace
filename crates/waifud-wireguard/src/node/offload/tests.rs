//! Splitting, merging, and one after the other.

use proptest::prelude::*;

use super::checksum::{fold, sum};
use super::*;

/// "Do not fragment".
const DF: u8 = 0x40;
const HEADERS: usize = 20 + 32;

/// A packet of TCP with valid checksums. It has timestamps, like those of Linux.
#[derive(Clone)]
struct Sample {
    port: u16,
    id: u16,
    sequence: u32,
    flags: u8,
    timestamp: u8,
    payload: Vec<u8>,
}

fn sample(sequence: u32, payload: Vec<u8>) -> Sample {
    Sample {
        port: 5201,
        id: 7,
        sequence,
        flags: ACK,
        timestamp: 1,
        payload,
    }
}

impl Sample {
    fn bytes(&self) -> Vec<u8> {
        let mut packet = vec![0; HEADERS];
        packet[0] = 0x45;
        packet[4..6].copy_from_slice(&self.id.to_be_bytes());
        packet[6] = DF;
        packet[8] = 64;
        packet[9] = TCP_PROTOCOL;
        packet[12..16].copy_from_slice(&[10, 144, 1, 5]);
        packet[16..20].copy_from_slice(&[10, 144, 2, 6]);
        packet[20..22].copy_from_slice(&40000_u16.to_be_bytes());
        packet[22..24].copy_from_slice(&self.port.to_be_bytes());
        packet[24..28].copy_from_slice(&self.sequence.to_be_bytes());
        packet[28..32].copy_from_slice(&9_u32.to_be_bytes());
        packet[32] = 8 << 4;
        packet[33] = self.flags;
        packet[34..36].copy_from_slice(&500_u16.to_be_bytes());
        packet[40..44].copy_from_slice(&[1, 1, 8, 10]);
        packet[44..52].copy_from_slice(&[self.timestamp; 8]);
        packet.extend_from_slice(&self.payload);
        let total = u16::try_from(packet.len()).unwrap();
        set_ip_length(&mut packet, 20, total);
        let whole = pseudo_header(&packet, total - 20) + sum(&packet[20..]);
        put(&mut packet, 36, checksum::finish(whole));
        packet
    }
}

fn payload(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

/// What is written for these packets.
fn merged(packets: &[Vec<u8>]) -> Vec<(Header, Vec<u8>)> {
    let mut merger = Merger::default();
    let mut written = Vec::new();
    let mut write = |header: &[u8; HEADER], packet: &[u8]| {
        let header = Header::of(header).unwrap().0;
        written.push((header, packet.to_vec()));
    };
    for packet in packets {
        merger.push(packet, &mut write);
    }
    merger.flush(&mut write);
    written
}

fn splitted(header: Header, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    split(header, packet, |head, rest| {
        packets.push([head, rest].concat());
    });
    packets
}

/// Without the parts that a large packet has only once.
fn lengths(written: &[(Header, Vec<u8>)]) -> Vec<usize> {
    written
        .iter()
        .map(|(_, packet)| packet.len() - HEADERS)
        .collect()
}

fn is_valid(packet: &[u8]) -> bool {
    let length = u16::try_from(packet.len() - 20).unwrap();
    let tcp = pseudo_header(packet, length) + sum(&packet[20..]);
    fold(sum(&packet[..20])) == 0xffff && fold(tcp) == 0xffff
}

#[test]
fn the_checksum_is_that_of_rfc_1071() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    // Odd lengths are padded; parts of an even length can be added.
    assert_eq!(
        fold(sum(&bytes[..7])),
        fold(sum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0]))
    );
    assert_eq!(fold(sum(&bytes)), fold(sum(&bytes[..2]) + sum(&bytes[2..])));
}

#[test]
fn a_large_packet_is_split_into_packets_that_are_complete() {
    let flags = ACK | PSH | FIN | CWR;
    let large = Sample {
        flags,
        id: u16::MAX,
        sequence: u32::MAX - 1000,
        ..sample(0, payload(2500))
    };
    let header = Header {
        flags: NEEDS_CHECKSUM,
        kind: TCP4,
        headers: 52,
        segment: 1000,
        checksum_start: 20,
        checksum_offset: 16,
    };
    let part = |index: u16, from: usize, to: usize, flags| {
        let before = u32::try_from(from).unwrap();
        Sample {
            id: large.id.wrapping_add(index),
            sequence: large.sequence.wrapping_add(before),
            flags,
            payload: large.payload[from..to].to_vec(),
            ..large.clone()
        }
        .bytes()
    };
    let expected = [
        part(0, 0, 1000, ACK | CWR),
        part(1, 1000, 2000, ACK),
        part(2, 2000, 2500, ACK | PSH | FIN),
    ];
    assert_eq!(splitted(header, &large.bytes()), expected);
}

#[test]
fn a_checksum_that_the_kernel_left_out_is_completed() {
    let whole = sample(1, payload(101)).bytes();
    let mut packet = whole.clone();
    let partial = pseudo_header(&packet, u16::try_from(packet.len() - 20).unwrap());
    put(&mut packet, 36, fold(partial).to_ne_bytes());
    let header = Header {
        flags: NEEDS_CHECKSUM,
        checksum_start: 20,
        checksum_offset: 16,
        ..Header::default()
    };
    assert_eq!(splitted(header, &packet), std::slice::from_ref(&whole));
    assert_eq!(splitted(Header::default(), &whole), [whole]);
}

#[test]
fn invalid_large_packets_are_dropped() {
    let large = sample(1, payload(300)).bytes();
    let valid = Header {
        kind: TCP4,
        segment: 100,
        ..Header::default()
    };
    assert_eq!(splitted(valid, &large).len(), 3);
    assert!(
        splitted(
            Header {
                segment: 0,
                ..valid
            },
            &large
        )
        .is_empty()
    );
    assert!(splitted(Header { kind: 99, ..valid }, &large).is_empty());
    for length in 0..large.len() {
        assert!(splitted(valid, &large[..length]).is_empty(), "{length}");
    }
    let beyond = Header {
        flags: NEEDS_CHECKSUM,
        checksum_start: 5000,
        ..Header::default()
    };
    assert!(splitted(beyond, &large).is_empty());
}

#[test]
fn consecutive_packets_are_merged_up_to_a_smaller_one() {
    let sizes = [1000, 1000, 300, 1000];
    let mut sequence = u32::MAX - 1500;
    let mut packets = Vec::new();
    for size in sizes {
        packets.push(sample(sequence, payload(size)).bytes());
        sequence = sequence.wrapping_add(u32::try_from(size).unwrap());
    }
    let written = merged(&packets);
    assert_eq!(lengths(&written), [2300, 1000]);
    let (header, large) = &written[0];
    assert_eq!((header.kind, header.segment), (TCP4, 1000));
    let again = splitted(*header, large);
    assert!(again.iter().all(|packet| is_valid(packet)));
    let payloads = |packets: &[Vec<u8>]| -> Vec<u8> {
        packets
            .iter()
            .flat_map(|it| it[HEADERS..].to_vec())
            .collect()
    };
    assert_eq!(payloads(&again), payloads(&packets[..3]));
    // One alone is as it was.
    assert_eq!(written[1], (Header::default(), packets[3].clone()));
}

#[test]
fn a_push_ends_a_large_packet_and_is_kept() {
    let pushed = Sample {
        flags: ACK | PSH,
        ..sample(1001, payload(1000))
    };
    let packets = [
        sample(1, payload(1000)).bytes(),
        pushed.bytes(),
        sample(2001, payload(1000)).bytes(),
    ];
    let written = merged(&packets);
    assert_eq!(lengths(&written), [2000, 1000]);
    assert_eq!(written[0].1[33], ACK | PSH);
}

#[test]
fn only_packets_with_the_same_headers_are_merged() {
    let first = sample(1, payload(100));
    let next = sample(101, payload(100));
    let is_merged = |next: &[u8]| merged(&[first.bytes(), next.to_vec()]).len() == 1;
    assert!(is_merged(&next.bytes()));
    let others = [
        Sample {
            port: 5202,
            ..next.clone()
        },
        Sample {
            timestamp: 2,
            ..next.clone()
        },
        Sample {
            flags: ACK | FIN,
            ..next.clone()
        },
        Sample {
            flags: ACK | CWR,
            ..next.clone()
        },
        Sample {
            sequence: 102,
            ..next.clone()
        },
        Sample {
            payload: payload(101),
            ..next.clone()
        },
        Sample {
            payload: Vec::new(),
            ..next.clone()
        },
    ];
    for other in others {
        assert!(!is_merged(&other.bytes()));
    }
    // Each byte that the kernel would copy; checksums are made valid again.
    for at in [1, 8, 28, 31, 34, 38] {
        let mut other = next.bytes();
        other[at] ^= 1;
        set_ip_length(&mut other, 20, 152);
        put(&mut other, 36, [0, 0]);
        let whole = pseudo_header(&other, 132) + sum(&other[20..]);
        put(&mut other, 36, checksum::finish(whole));
        assert!(!is_merged(&other), "byte {at}");
    }
    let mut fragment = next.bytes();
    fragment[6] = 0x20;
    set_ip_length(&mut fragment, 20, 152);
    assert!(!is_merged(&fragment));
}

#[test]
fn a_packet_with_a_wrong_checksum_stays_alone_and_wrong() {
    let packets = [
        sample(1, payload(100)).bytes(),
        sample(101, payload(100)).bytes(),
    ];
    for at in [11, 60] {
        for wrong in [0, 1] {
            let mut packets = packets.clone();
            packets[wrong][at] ^= 1;
            let written = merged(&packets);
            let expected: Vec<_> = packets
                .iter()
                .cloned()
                .map(|p| (Header::default(), p))
                .collect();
            assert_eq!(written, expected);
        }
    }
}

#[test]
fn the_order_within_a_connection_is_kept_and_others_are_merged_meanwhile() {
    let of = |port, sequence, flags, length| {
        Sample {
            port,
            flags,
            ..sample(sequence, payload(length))
        }
        .bytes()
    };
    let written = merged(&[
        of(1, 1, ACK, 100),
        of(2, 1, ACK, 50),
        of(1, 101, ACK, 100),
        of(2, 51, ACK, 50),
        // An acknowledgement without data, which is not merged.
        of(1, 201, ACK, 0),
        of(1, 201, ACK, 100),
    ]);
    let of_first: Vec<_> = written
        .iter()
        .filter(|(_, p)| p[23] == 1)
        .cloned()
        .collect();
    assert_eq!(lengths(&of_first), [200, 0, 100]);
    let of_second: Vec<_> = written
        .iter()
        .filter(|(_, p)| p[23] == 2)
        .cloned()
        .collect();
    assert_eq!(lengths(&of_second), [100]);
}

#[test]
fn other_packets_are_passed_on_unchanged() {
    let mut udp = sample(1, payload(10)).bytes();
    udp[9] = 17;
    for packet in [udp, vec![0x60; 40], vec![0x45; 19], Vec::new()] {
        let expected = [(Header::default(), packet.clone())];
        assert_eq!(merged(&[packet]), expected);
    }
}

#[test]
fn a_large_packet_does_not_exceed_what_ip_allows() {
    let packets: Vec<_> = (0..60)
        .map(|number: u32| sample(1 + number * 1380, payload(1380)).bytes())
        .collect();
    let written = merged(&packets);
    assert_eq!(lengths(&written), [47 * 1380, 13 * 1380]);
}

proptest! {
    #[test]
    fn splitting_and_merging_changes_nothing(length in 1..20_000_usize, segment in 1..1400_u16, sequence: u32, id: u16) {
        let large = Sample { id, flags: ACK | PSH, ..sample(sequence, payload(length)) }.bytes();
        let header = Header { kind: TCP4, segment, ..Header::default() };
        let packets = splitted(header, &large);
        prop_assert!(packets.iter().all(|packet| is_valid(packet)));
        let written = merged(&packets);
        prop_assert_eq!(written.len(), 1);
        let (header, mut again) = written[0].clone();
        if packets.len() > 1 {
            prop_assert_eq!(header.segment, segment);
            put(&mut again, 36, [large[36], large[37]]);
        }
        prop_assert_eq!(again, large);
    }

    #[test]
    fn any_bytes_are_accepted(bytes: Vec<u8>, kind in 0..3_u8, flags: u8, segment: u16, start in 0..60_u16) {
        let header = Header { flags, kind, headers: 0, segment, checksum_start: start, checksum_offset: 16 };
        let _any = splitted(header, &bytes);
        prop_assert_eq!(merged(std::slice::from_ref(&bytes)), [(Header::default(), bytes)]);
    }
}
