//! Tests of the stack from the view of its guests and its service, with a clock that the tests advance.

use std::{io::ErrorKind, time::Duration};

use proptest::prelude::*;
use smoltcp::{socket::tcp::State, wire::TcpControl};

use super::{
    FlowId,
    testing::{SERVICE, World, guest, seen, segment},
};
use crate::StackLimits;

const MOMENT: Duration = Duration::from_millis(10);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A world with one accepted connection of its first guest.
fn connected(limits: StackLimits) -> (World, smoltcp::iface::SocketHandle, FlowId) {
    let mut world = World::new(limits, 2);
    let client = world.connect(0);
    world.pass(MOMENT);
    let flow = world.accept().unwrap();
    (world, client, flow)
}

/// Asserts that no flow, timer or counted connection is left.
fn assert_nothing_is_left(world: &World) {
    assert_eq!(
        (
            world.stack.connections(),
            world.stack.sources(),
            world.stack.due()
        ),
        (0, 0, None)
    );
}

#[test]
fn a_request_is_answered_and_the_connection_is_removed_at_once() {
    let (mut world, client, flow) = connected(StackLimits::default());
    assert_eq!(flow.source.ip(), guest(1).ip());
    world.guests[0]
        .socket(client)
        .send_slice(b"question")
        .unwrap();
    world.pass(MOMENT);
    assert_eq!(world.read(flow).unwrap().unwrap(), b"question");
    assert_eq!(world.write(flow, b"answer").unwrap().unwrap(), 6);
    world.stack.release(flow, world.now);
    world.pass(MOMENT);
    assert_eq!(world.guests[0].read(client), b"answer");
    assert_eq!(world.guests[0].state(client), State::CloseWait);
    world.guests[0].socket(client).close();
    world.pass(MOMENT);
    assert_nothing_is_left(&world);
}

#[test]
fn a_client_that_closes_first_is_read_to_the_end() {
    let (mut world, client, flow) = connected(StackLimits::default());
    world.guests[0]
        .socket(client)
        .send_slice(b"last words")
        .unwrap();
    world.guests[0].socket(client).close();
    world.pass(MOMENT);
    assert_eq!(world.read(flow).unwrap().unwrap(), b"last words");
    assert_eq!(world.read(flow).unwrap().unwrap(), b"");
    world.write(flow, b"bye").unwrap().unwrap();
    world.stack.shutdown(flow, world.now);
    assert_eq!(
        world.write(flow, b"more").unwrap().unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    world.pass(MOMENT);
    assert_eq!(world.guests[0].read(client), b"bye");
    assert_eq!(world.read(flow).unwrap().unwrap(), b"");
    world.stack.release(flow, world.now);
    assert_nothing_is_left(&world);
}

#[test]
fn a_body_arrives_intact_although_every_seventh_packet_is_lost() {
    let (mut world, client, flow) = connected(StackLimits::default());
    world.lost = |number| number % 7 == 0;
    let body: Vec<u8> = (0..200_000_u32)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    let (mut sent, mut got) = (0, Vec::new());
    for _ in 0..10_000 {
        while sent < body.len()
            && let Some(Ok(length)) = world.write(flow, &body[sent..])
        {
            sent += length;
        }
        world.pass(Duration::from_millis(50));
        got.extend(world.guests[0].read(client));
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
    let mut world = World::new(limits, 2);
    for _ in 0..100 {
        world.connect(0);
    }
    world.pass(MOMENT);
    assert_eq!(world.stack.connections(), 8);
    assert_eq!(world.stack.refused().per_source, 92);
    let client = world.connect(1);
    world.pass(MOMENT);
    assert_eq!(world.guests[1].state(client), State::Established);
    assert_eq!(world.stack.sources(), 2);
}

#[test]
fn at_the_total_limit_the_source_with_the_most_connections_loses_its_longest_idle_one() {
    let limits = StackLimits {
        max_connections: 4,
        max_per_source: 4,
        ..StackLimits::default()
    };
    let mut world = World::new(limits, 2);
    let clients: Vec<_> = (0..4).map(|_| world.connect(0)).collect();
    world.pass(MOMENT);
    let flows: Vec<_> = (0..4).map(|_| world.accept().unwrap()).collect();
    // All but the third connection were active since then.
    world.pass(secs(1));
    for index in [0, 1, 3] {
        world.guests[0]
            .socket(clients[index])
            .send_slice(b"busy")
            .unwrap();
    }
    world.pass(MOMENT);
    let client = world.connect(1);
    world.pass(MOMENT);
    assert_eq!(world.guests[1].state(client), State::Established);
    assert_eq!(world.guests[0].state(clients[2]), State::Closed);
    let lazy = flows
        .iter()
        .find(|flow| flow.source.port() == 40_003)
        .unwrap();
    assert_eq!(
        world.read(*lazy).unwrap().unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(
        (world.stack.connections(), world.stack.refused().evicted),
        (4, 1)
    );
}

#[test]
fn an_incomplete_handshake_is_retransmitted_and_then_times_out() {
    let mut world = World::new(StackLimits::default(), 0);
    world.stack.ingress(
        &segment(guest(1), SERVICE, TcpControl::Syn, 1, None, b""),
        world.now,
    );
    let mut answers = 0;
    for _ in 0..60 {
        world.stack.advance(world.now);
        answers += world
            .stack
            .outgoing()
            .drain(..)
            .filter(|p| seen(p).is_some_and(|s| s.syn && s.ack))
            .count();
        world.now += smoltcp::time::Duration::from_millis(100);
        if world.stack.connections() == 0 {
            break;
        }
    }
    assert!(answers >= 2, "{answers} SYN-ACKs");
    assert_nothing_is_left(&world);
    assert_eq!(world.stack.refused().timed_out, 1);
}

#[test]
fn an_idle_connection_is_reset_for_client_and_service() {
    let (mut world, client, flow) = connected(StackLimits::default());
    world.pass(secs(29));
    assert!(world.read(flow).is_none());
    world.pass(secs(2));
    assert_eq!(
        world.read(flow).unwrap().unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(world.guests[0].state(client), State::Closed);
    assert_nothing_is_left(&world);
}

#[test]
fn a_slow_connection_is_reset_after_the_lifetime() {
    let (mut world, client, flow) = connected(StackLimits::default());
    for _ in 0..14 {
        world.guests[0].socket(client).send_slice(b"x").unwrap();
        world.pass(secs(20));
        assert_eq!(world.read(flow).unwrap().unwrap(), b"x");
    }
    world.guests[0].socket(client).send_slice(b"x").unwrap();
    world.pass(secs(21));
    assert_nothing_is_left(&world);
}

#[test]
fn a_client_that_never_reads_is_reset_after_the_idle_timeout() {
    let (mut world, _client, flow) = connected(StackLimits::default());
    while world.write(flow, &[0; 1024]).is_some() {
        world.pass(MOMENT);
    }
    world.pass(secs(31));
    assert_nothing_is_left(&world);
}

#[test]
fn a_client_that_never_closes_is_reset_after_the_close_timeout() {
    let (mut world, client, flow) = connected(StackLimits::default());
    world.stack.release(flow, world.now);
    world.pass(secs(9));
    assert_eq!(world.guests[0].state(client), State::CloseWait);
    world.pass(secs(2));
    assert_eq!(world.guests[0].state(client), State::Closed);
    assert_nothing_is_left(&world);
}

#[test]
fn a_reset_reaches_the_service_and_the_port_can_be_reused() {
    let (mut world, client, flow) = connected(StackLimits::default());
    world.guests[0].socket(client).abort();
    world.pass(MOMENT);
    assert_eq!(
        world.read(flow).unwrap().unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    world.stack.ingress(
        &segment(flow.source, SERVICE, TcpControl::Syn, 5, None, b""),
        world.now,
    );
    world.stack.advance(world.now);
    let answer = seen(&world.stack.outgoing().pop_front().unwrap()).unwrap();
    assert!(answer.syn && answer.ack);
    // The former connection does not affect the new one.
    world.stack.release(flow, world.now);
    assert_eq!(world.stack.connections(), 1);
}

#[test]
fn other_ports_and_unexpected_segments_are_reset_and_pings_answered() {
    let mut world = World::new(StackLimits::default(), 0);
    let other = std::net::SocketAddrV4::new(*SERVICE.ip(), 81);
    for refused in [
        segment(guest(1), other, TcpControl::Syn, 1, None, b""),
        segment(guest(1), SERVICE, TcpControl::None, 1, Some(1), b"x"),
    ] {
        world.stack.ingress(&refused, world.now);
        let answer = world.stack.outgoing().pop_front().unwrap();
        assert!(seen(&answer).unwrap().rst);
    }
    // A reset is never answered with a reset.
    world.stack.ingress(
        &segment(guest(1), SERVICE, TcpControl::Rst, 1, Some(1), b""),
        world.now,
    );
    assert!(world.stack.outgoing().is_empty());
    // An echo request: type 8, code 0, checksum 0xf7ff, identifier 0, number 0.
    let mut ping = segment(guest(1), SERVICE, TcpControl::Syn, 1, None, b"");
    ping.truncate(28);
    ping[2..4].copy_from_slice(&28_u16.to_be_bytes());
    ping[9] = 1;
    ping[20..28].copy_from_slice(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    smoltcp::wire::Ipv4Packet::new_unchecked(&mut ping[..]).fill_checksum();
    world.stack.ingress(&ping, world.now);
    let echo = world.stack.outgoing().pop_front().unwrap();
    assert_eq!(
        (echo[9], echo[20], &echo[12..16]),
        (1, 0, &SERVICE.ip().octets()[..])
    );
    assert_nothing_is_left(&world);
}

#[test]
fn without_a_listener_new_connections_are_refused_and_others_continue() {
    let (mut world, client, flow) = connected(StackLimits::default());
    let waiting = world.connect(0);
    world.pass(MOMENT);
    world.stack.stop_listening(world.now);
    let late = world.connect(1);
    world.pass(MOMENT);
    assert_eq!(world.guests[0].state(waiting), State::Closed);
    assert_eq!(world.guests[1].state(late), State::Closed);
    world.write(flow, b"still here").unwrap().unwrap();
    world.pass(MOMENT);
    assert_eq!(world.guests[0].read(client), b"still here");
    assert_eq!(world.stack.connections(), 1);
}

#[test]
fn closing_resets_all_and_ends_the_listener() {
    let (mut world, client, flow) = connected(StackLimits::default());
    world.connect(1);
    world.pass(MOMENT);
    world.stack.close(world.now);
    world.pass(MOMENT);
    assert_eq!(world.guests[0].state(client), State::Closed);
    assert!(world.read(flow).unwrap().is_err());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert_eq!(
        world.stack.poll_accept(&mut context),
        std::task::Poll::Ready(None)
    );
    world.connect(0);
    world.pass(MOMENT);
    assert_nothing_is_left(&world);
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
        let mut world = World::new(limits, 2);
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
            world.stack.ingress(&packet, world.now);
            world.pass(Duration::from_millis(u64::from(seq.unsigned_abs() % 3000)));
            flows.extend(world.accept());
            for flow in &flows {
                let _ = (world.read(*flow), world.write(*flow, b"something"));
            }
            prop_assert!(world.stack.connections() <= 8);
        }
        for flow in flows {
            world.stack.release(flow, world.now);
        }
        let client = world.connect(0);
        world.pass(MOMENT);
        prop_assert_eq!(world.guests[0].state(client), State::Established);
        world.guests[0].socket(client).abort();
        world.pass(secs(400));
        assert_nothing_is_left(&world);
    }

    #[test]
    fn arbitrary_bytes_do_not_affect_other_guests(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..40)) {
        let mut world = World::new(StackLimits::default(), 1);
        for mut packet in packets {
            world.stack.ingress(&packet, world.now);
            // Again with a valid header, so that more code is reached.
            if packet.len() >= 20 {
                packet[0] = 0x45;
                packet[6..8].fill(0);
                packet[16..20].copy_from_slice(&SERVICE.ip().octets());
                repair(&mut packet);
                world.stack.ingress(&packet, world.now);
            }
            world.pass(MOMENT);
        }
        world.connect(0);
        world.pass(MOMENT);
        prop_assert!(world.accept().is_some(), "a guest can still connect");
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
