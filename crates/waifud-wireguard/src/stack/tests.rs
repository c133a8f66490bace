//! Tests of the stack from the view of its guests and its service, with a clock that the tests advance.

use std::{io::ErrorKind, time::Duration};

use proptest::prelude::*;
use smoltcp::{socket::tcp::State, wire::TcpControl};

use super::{
    FlowId,
    testing::{SERVICE, SimulatedNetwork, guest, seen, segment},
};
use crate::StackLimits;

const MOMENT: Duration = Duration::from_millis(10);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A net with one accepted connection of its first guest.
fn connected(limits: StackLimits) -> (SimulatedNetwork, smoltcp::iface::SocketHandle, FlowId) {
    let mut net = SimulatedNetwork::new(limits, 2);
    let client = net.connect(0);
    net.advance(MOMENT);
    let flow = net.accept().unwrap();
    (net, client, flow)
}

/// Asserts that no flow, timer or counted connection is left.
fn assert_nothing_is_left(net: &SimulatedNetwork) {
    assert_eq!(
        (
            net.stack.connections(),
            net.stack.sources(),
            net.stack.due()
        ),
        (0, 0, None)
    );
}

#[test]
fn a_request_is_answered_and_the_connection_is_removed_at_once() {
    let (mut net, client, flow) = connected(StackLimits::default());
    assert_eq!(flow.source.ip(), guest(1).ip());
    net.guests[0]
        .socket(client)
        .send_slice(b"question")
        .unwrap();
    net.advance(MOMENT);
    assert_eq!(net.read(flow).unwrap().unwrap(), b"question");
    assert_eq!(net.write(flow, b"answer").unwrap().unwrap(), 6);
    net.stack.release(flow, net.now);
    net.advance(MOMENT);
    assert_eq!(net.guests[0].read(client), b"answer");
    assert_eq!(net.guests[0].state(client), State::CloseWait);
    net.guests[0].socket(client).close();
    net.advance(MOMENT);
    assert_nothing_is_left(&net);
}

#[test]
fn a_client_that_closes_first_is_read_to_the_end() {
    let (mut net, client, flow) = connected(StackLimits::default());
    net.guests[0]
        .socket(client)
        .send_slice(b"last words")
        .unwrap();
    net.guests[0].socket(client).close();
    net.advance(MOMENT);
    assert_eq!(net.read(flow).unwrap().unwrap(), b"last words");
    assert_eq!(net.read(flow).unwrap().unwrap(), b"");
    net.write(flow, b"bye").unwrap().unwrap();
    net.stack.shutdown(flow, net.now);
    assert_eq!(
        net.write(flow, b"more").unwrap().unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    net.advance(MOMENT);
    assert_eq!(net.guests[0].read(client), b"bye");
    assert_eq!(net.read(flow).unwrap().unwrap(), b"");
    net.stack.release(flow, net.now);
    assert_nothing_is_left(&net);
}

#[test]
fn a_body_arrives_intact_although_every_seventh_packet_is_lost() {
    let (mut net, client, flow) = connected(StackLimits::default());
    net.lost = |number| number % 7 == 0;
    let body: Vec<u8> = (0..200_000_u32)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    let (mut sent, mut got) = (0, Vec::new());
    for _ in 0..10_000 {
        while sent < body.len()
            && let Some(Ok(length)) = net.write(flow, &body[sent..])
        {
            sent += length;
        }
        net.advance(Duration::from_millis(50));
        got.extend(net.guests[0].read(client));
        if got.len() == body.len() {
            break;
        }
    }
    assert!(got == body, "{} of {} bytes", got.len(), body.len());
}

#[test]
fn a_source_at_its_limit_does_not_prevent_another_from_being_served() {
    let limits = StackLimits {
        max_per_source: 8,
        ..StackLimits::default()
    };
    let mut net = SimulatedNetwork::new(limits, 2);
    for _ in 0..100 {
        net.connect(0);
    }
    net.advance(MOMENT);
    assert_eq!(net.stack.connections(), 8);
    assert_eq!(net.stack.refused().per_source, 92);
    let client = net.connect(1);
    net.advance(MOMENT);
    assert_eq!(net.guests[1].state(client), State::Established);
    assert_eq!(net.stack.sources(), 2);
}

#[test]
fn at_the_total_limit_the_source_with_the_most_connections_loses_its_longest_idle_one() {
    let limits = StackLimits {
        max_connections: 4,
        max_per_source: 4,
        ..StackLimits::default()
    };
    let mut net = SimulatedNetwork::new(limits, 2);
    let clients: Vec<_> = (0..4).map(|_| net.connect(0)).collect();
    net.advance(MOMENT);
    let flows: Vec<_> = (0..4).map(|_| net.accept().unwrap()).collect();
    // All but the third connection were active since then.
    net.advance(secs(1));
    for index in [0, 1, 3] {
        net.guests[0]
            .socket(clients[index])
            .send_slice(b"busy")
            .unwrap();
    }
    net.advance(MOMENT);
    let client = net.connect(1);
    net.advance(MOMENT);
    assert_eq!(net.guests[1].state(client), State::Established);
    assert_eq!(net.guests[0].state(clients[2]), State::Closed);
    let lazy = flows
        .iter()
        .find(|flow| flow.source.port() == 40_003)
        .unwrap();
    assert_eq!(
        net.read(*lazy).unwrap().unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(
        (net.stack.connections(), net.stack.refused().evicted),
        (4, 1)
    );
}

#[test]
fn an_incomplete_handshake_is_retransmitted_and_then_times_out() {
    let mut net = SimulatedNetwork::new(StackLimits::default(), 0);
    net.stack.ingress(
        &segment(guest(1), SERVICE, TcpControl::Syn, 1, None, b""),
        net.now,
    );
    let mut answers = 0;
    for _ in 0..60 {
        net.stack.advance(net.now);
        answers += net
            .stack
            .outgoing()
            .drain(..)
            .filter(|p| seen(p).is_some_and(|s| s.syn && s.ack))
            .count();
        net.now += smoltcp::time::Duration::from_millis(100);
        if net.stack.connections() == 0 {
            break;
        }
    }
    assert!(answers >= 2, "{answers} SYN-ACKs");
    assert_nothing_is_left(&net);
    assert_eq!(net.stack.refused().timed_out, 1);
}

#[test]
fn an_idle_connection_is_reset_for_client_and_service() {
    let (mut net, client, flow) = connected(StackLimits::default());
    net.advance(secs(29));
    assert!(net.read(flow).is_none());
    net.advance(secs(2));
    assert_eq!(
        net.read(flow).unwrap().unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(net.guests[0].state(client), State::Closed);
    assert_nothing_is_left(&net);
}

#[test]
fn a_slow_connection_is_reset_after_the_lifetime() {
    let (mut net, client, flow) = connected(StackLimits::default());
    for _ in 0..14 {
        net.guests[0].socket(client).send_slice(b"x").unwrap();
        net.advance(secs(20));
        assert_eq!(net.read(flow).unwrap().unwrap(), b"x");
    }
    net.guests[0].socket(client).send_slice(b"x").unwrap();
    net.advance(secs(21));
    assert_nothing_is_left(&net);
}

#[test]
fn a_client_that_never_reads_is_reset_after_the_idle_timeout() {
    let (mut net, _client, flow) = connected(StackLimits::default());
    while net.write(flow, &[0; 1024]).is_some() {
        net.advance(MOMENT);
    }
    net.advance(secs(31));
    assert_nothing_is_left(&net);
}

#[test]
fn a_client_that_never_closes_is_reset_after_the_close_timeout() {
    let (mut net, client, flow) = connected(StackLimits::default());
    net.stack.release(flow, net.now);
    net.advance(secs(9));
    assert_eq!(net.guests[0].state(client), State::CloseWait);
    net.advance(secs(2));
    assert_eq!(net.guests[0].state(client), State::Closed);
    assert_nothing_is_left(&net);
}

#[test]
fn a_reset_reaches_the_service_and_the_port_can_be_reused() {
    let (mut net, client, flow) = connected(StackLimits::default());
    net.guests[0].socket(client).abort();
    net.advance(MOMENT);
    assert_eq!(
        net.read(flow).unwrap().unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    net.stack.ingress(
        &segment(flow.source, SERVICE, TcpControl::Syn, 5, None, b""),
        net.now,
    );
    net.stack.advance(net.now);
    let answer = seen(&net.stack.outgoing().pop_front().unwrap()).unwrap();
    assert!(answer.syn && answer.ack);
    // The former connection does not affect the new one.
    net.stack.release(flow, net.now);
    assert_eq!(net.stack.connections(), 1);
}

#[test]
fn other_ports_and_unexpected_segments_are_reset_and_pings_answered() {
    let mut net = SimulatedNetwork::new(StackLimits::default(), 0);
    let other = std::net::SocketAddrV4::new(*SERVICE.ip(), 81);
    for refused in [
        segment(guest(1), other, TcpControl::Syn, 1, None, b""),
        segment(guest(1), SERVICE, TcpControl::None, 1, Some(1), b"x"),
    ] {
        net.stack.ingress(&refused, net.now);
        let answer = net.stack.outgoing().pop_front().unwrap();
        assert!(seen(&answer).unwrap().rst);
    }
    // A reset is never answered with a reset.
    net.stack.ingress(
        &segment(guest(1), SERVICE, TcpControl::Rst, 1, Some(1), b""),
        net.now,
    );
    assert!(net.stack.outgoing().is_empty());
    // An echo request: type 8, code 0, checksum 0xf7ff, identifier 0, number 0.
    let mut ping = segment(guest(1), SERVICE, TcpControl::Syn, 1, None, b"");
    ping.truncate(28);
    ping[2..4].copy_from_slice(&28_u16.to_be_bytes());
    ping[9] = 1;
    ping[20..28].copy_from_slice(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    smoltcp::wire::Ipv4Packet::new_unchecked(&mut ping[..]).fill_checksum();
    net.stack.ingress(&ping, net.now);
    let echo = net.stack.outgoing().pop_front().unwrap();
    assert_eq!(
        (echo[9], echo[20], &echo[12..16]),
        (1, 0, &SERVICE.ip().octets()[..])
    );
    assert_nothing_is_left(&net);
}

#[test]
fn without_a_listener_new_connections_are_refused_and_others_continue() {
    let (mut net, client, flow) = connected(StackLimits::default());
    let waiting = net.connect(0);
    net.advance(MOMENT);
    net.stack.stop_listening(net.now);
    let late = net.connect(1);
    net.advance(MOMENT);
    assert_eq!(net.guests[0].state(waiting), State::Closed);
    assert_eq!(net.guests[1].state(late), State::Closed);
    net.write(flow, b"still here").unwrap().unwrap();
    net.advance(MOMENT);
    assert_eq!(net.guests[0].read(client), b"still here");
    assert_eq!(net.stack.connections(), 1);
}

#[test]
fn closing_resets_all_and_ends_the_listener() {
    let (mut net, client, flow) = connected(StackLimits::default());
    net.connect(1);
    net.advance(MOMENT);
    net.stack.close(net.now);
    net.advance(MOMENT);
    assert_eq!(net.guests[0].state(client), State::Closed);
    assert!(net.read(flow).unwrap().is_err());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert_eq!(
        net.stack.poll_accept(&mut context),
        std::task::Poll::Ready(None)
    );
    net.connect(0);
    net.advance(MOMENT);
    assert_nothing_is_left(&net);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Packets of a real connection with bytes changed, dropped, repeated and reordered, and with corrected checksums,
    /// so that they are processed: nothing panics, the limits hold, and another guest is served afterwards.
    #[test]
    fn modified_packets_do_not_affect_other_guests(
        script in proptest::collection::vec(
            (0_u8..6, any::<i32>(), any::<Option<i32>>(), 0_usize..64, any::<[(u8, u8); 3]>(), any::<bool>()), 1..60),
    ) {
        let limits = StackLimits { max_connections: 8, max_per_source: 4, ..StackLimits::default() };
        let mut net = SimulatedNetwork::new(limits, 2);
        let mut flows = Vec::new();
        for (kind, seq, ack, length, changes, checksums) in script {
            let control = [TcpControl::Syn, TcpControl::None, TcpControl::Psh, TcpControl::Fin, TcpControl::Rst]
                [usize::from(kind.min(4))];
            // Few sources, so that packets reach the same connection; sequence numbers are mostly close to each other.
            let from = guest(3 + kind % 3);
            let near = |number: i32| if checksums { number % 16 } else { number };
            let mut packet = segment(from, SERVICE, control, near(seq), ack.map(near), &vec![1; length]);
            for (at, value) in changes {
                if checksums && let Some(byte) = packet.get_mut(usize::from(at)) {
                    *byte ^= value & 0x11;
                }
            }
            if checksums {
                repair(&mut packet);
            }
            net.stack.ingress(&packet, net.now);
            net.advance(Duration::from_millis(u64::from(seq.unsigned_abs() % 3000)));
            flows.extend(net.accept());
            for flow in &flows {
                let _ = (net.read(*flow), net.write(*flow, b"something"));
            }
            prop_assert!(net.stack.connections() <= 8);
        }
        for flow in flows {
            net.stack.release(flow, net.now);
        }
        let client = net.connect(0);
        net.advance(MOMENT);
        prop_assert_eq!(net.guests[0].state(client), State::Established);
        net.guests[0].socket(client).abort();
        net.advance(secs(400));
        assert_nothing_is_left(&net);
    }

    #[test]
    fn arbitrary_bytes_do_not_affect_other_guests(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..40)) {
        let mut net = SimulatedNetwork::new(StackLimits::default(), 1);
        for mut packet in packets {
            net.stack.ingress(&packet, net.now);
            // Again with a valid header, so that more code is reached.
            if packet.len() >= 20 {
                packet[0] = 0x45;
                packet[6..8].fill(0);
                packet[16..20].copy_from_slice(&SERVICE.ip().octets());
                repair(&mut packet);
                net.stack.ingress(&packet, net.now);
            }
            net.advance(MOMENT);
        }
        net.connect(0);
        net.advance(MOMENT);
        prop_assert!(net.accept().is_some(), "a guest can still connect");
    }
}

/// Corrects lengths and checksums, as far as the headers can be parsed.
fn repair(packet: &mut [u8]) {
    use smoltcp::wire::{Ipv4Packet, TcpPacket};
    let length = packet.len();
    if length < 20 || usize::from(packet[0] & 15) * 4 > length || packet[0] & 15 < 5 {
        return;
    }
    packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    let mut ip = Ipv4Packet::new_unchecked(&mut *packet);
    ip.fill_checksum();
    let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
    let payload = ip.payload_mut();
    if payload.len() >= 20 && TcpPacket::new_checked(&*payload).is_ok() {
        TcpPacket::new_unchecked(payload).fill_checksum(&from, &to);
    }
}
