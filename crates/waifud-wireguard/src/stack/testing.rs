//! A simulated network for tests of the stack, without sockets and clocks: guests that use smoltcp as clients, packets that
//! may be lost, and time that advances when the test does so.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    task::{Context, Poll, Waker},
    time::Duration,
};

use smoltcp::{
    iface::{SocketHandle, SocketSet},
    phy::ChecksumCapabilities,
    socket::tcp::{Socket, SocketBuffer, State},
    time::Instant,
    wire::{IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber},
};
use tokio::io::ReadBuf;

use super::{FlowId, Stack, net::Net};
use crate::StackLimits;

pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);

/// Port 40000 of the guest with this number.
pub fn guest(last: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 77, 1, last), 40_000)
}

/// A complete IPv4 packet with one TCP segment.
pub fn segment(
    from: SocketAddrV4,
    to: SocketAddrV4,
    control: TcpControl,
    seq: i32,
    ack: Option<i32>,
    payload: &[u8],
) -> Vec<u8> {
    let tcp = TcpRepr {
        src_port: 1,
        dst_port: 1,
        control,
        seq_number: TcpSeqNumber(seq),
        ack_number: ack.map(TcpSeqNumber),
        window_len: 8192,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let ip = Ipv4Repr {
        src_addr: *from.ip(),
        dst_addr: *to.ip(),
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; ip.buffer_len() + tcp.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    ip.emit(&mut packet, &checksums);
    let mut inner = TcpPacket::new_unchecked(packet.payload_mut());
    tcp.emit(
        &mut inner,
        &ip.src_addr.into(),
        &ip.dst_addr.into(),
        &checksums,
    );
    inner.set_src_port(from.port());
    inner.set_dst_port(to.port());
    inner.fill_checksum(&ip.src_addr.into(), &ip.dst_addr.into());
    bytes
}

/// The flags of a segment that the stack sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub port: u16,
    pub syn: bool,
    pub ack: bool,
    pub rst: bool,
}

pub fn seen(packet: &[u8]) -> Option<Seen> {
    let ip = Ipv4Packet::new_checked(packet).ok()?;
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    Some(Seen {
        port: tcp.dst_port(),
        syn: tcp.syn(),
        ack: tcp.ack(),
        rst: tcp.rst(),
    })
}

/// One guest with any number of client sockets.
pub struct Guest {
    pub net: Net,
    pub sockets: SocketSet<'static>,
    address: Ipv4Addr,
    port: u16,
}

impl Guest {
    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// All received data.
    pub fn read(&mut self, handle: SocketHandle) -> Vec<u8> {
        let socket = self.socket(handle);
        let mut all = vec![0; socket.recv_queue()];
        if !all.is_empty() {
            let length = socket.recv_slice(&mut all).unwrap();
            all.truncate(length);
        }
        all
    }

    pub fn state(&mut self, handle: SocketHandle) -> State {
        self.socket(handle).state()
    }
}

/// The stack, its guests, the time, and the lost packets.
pub struct SimulatedNetwork {
    pub stack: Stack,
    pub guests: Vec<Guest>,
    pub now: Instant,
    /// Whether the packet with this number is lost, in either direction.
    pub lost: fn(u64) -> bool,
    count: u64,
}

impl SimulatedNetwork {
    pub fn new(limits: StackLimits, guests: u8) -> Self {
        let guest = |last| {
            let address = *guest(last).ip();
            Guest {
                net: Net::new(address, 1420, 7),
                sockets: SocketSet::new(vec![]),
                address,
                port: 40_000,
            }
        };
        Self {
            stack: Stack::new(SERVICE, limits, 1),
            guests: (1..=guests).map(guest).collect(),
            now: Instant::from_secs(1),
            lost: |_| false,
            count: 0,
        }
    }

    /// Starts to connect; the handshake happens when time advances.
    pub fn connect(&mut self, guest: usize) -> SocketHandle {
        let guest = &mut self.guests[guest];
        let buffer = || SocketBuffer::new(vec![0; 16 << 10]);
        let mut socket = Socket::new(buffer(), buffer());
        guest.port += 1;
        let context = guest.net.interface().context();
        socket
            .connect(
                context,
                (*SERVICE.ip(), SERVICE.port()),
                (guest.address, guest.port),
            )
            .unwrap();
        guest.sockets.add(socket)
    }

    fn is_delivered(&mut self) -> bool {
        self.count += 1;
        !(self.lost)(self.count)
    }

    /// Transfers packets until no side has more to send at this instant.
    pub fn exchange(&mut self) {
        loop {
            let mut moved = false;
            for index in 0..self.guests.len() {
                let guest = &mut self.guests[index];
                guest.net.transmit(&mut guest.sockets, self.now);
                for packet in std::mem::take(guest.net.outgoing()) {
                    moved = true;
                    if self.is_delivered() {
                        self.stack.ingress(&packet, self.now);
                    }
                }
            }
            self.stack.advance(self.now);
            for packet in std::mem::take(self.stack.outgoing()) {
                moved = true;
                let to = Ipv4Packet::new_checked(&packet[..]).unwrap().dst_addr();
                if self.is_delivered()
                    && let Some(guest) = self.guests.iter_mut().find(|guest| guest.address == to)
                {
                    guest.net.receive(&packet, &mut guest.sockets, self.now);
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Advances the time, and processes all timers that expire meanwhile.
    pub fn advance(&mut self, time: Duration) {
        let end = self.now + time.into();
        loop {
            self.exchange();
            let now = self.now;
            let theirs = self
                .guests
                .iter_mut()
                .filter_map(|guest| guest.net.due(&guest.sockets, now));
            let next = theirs.chain(self.stack.due()).min().unwrap_or(end);
            // A timer that is due but was not processed waits for the next millisecond, as in real use.
            let next = next.max(now + smoltcp::time::Duration::from_millis(1));
            if next > end {
                break;
            }
            self.now = next;
        }
        self.now = end;
        self.exchange();
    }

    pub fn accept(&mut self) -> Option<FlowId> {
        match self
            .stack
            .poll_accept(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(id) => id,
            Poll::Pending => None,
        }
    }

    /// What can be read now; `None` if there is nothing yet, an empty vector at the end.
    pub fn read(&mut self, id: FlowId) -> Option<io::Result<Vec<u8>>> {
        let mut bytes = [0; 4096];
        let mut buf = ReadBuf::new(&mut bytes);
        match self.stack.poll_read(
            id,
            &mut Context::from_waker(Waker::noop()),
            &mut buf,
            self.now,
        ) {
            Poll::Ready(Ok(())) => Some(Ok(buf.filled().to_vec())),
            Poll::Ready(Err(error)) => Some(Err(error)),
            Poll::Pending => None,
        }
    }

    /// The number of bytes written; `None` if there is no space.
    pub fn write(&mut self, id: FlowId, bytes: &[u8]) -> Option<io::Result<usize>> {
        match self.stack.poll_write(
            id,
            &mut Context::from_waker(Waker::noop()),
            &[std::io::IoSlice::new(bytes)],
            self.now,
        ) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }
}
