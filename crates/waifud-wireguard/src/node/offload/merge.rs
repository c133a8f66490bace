//! Merges consecutive packets of TCP connections into large ones for the kernel.
//!
//! Only what the kernel would split into the same packets again is merged: the same headers apart from lengths, numbers and
//! checksums, consecutive, of one size except the last one, not to be fragmented, without flags other than ACK and PSH, and with
//! a valid checksum. Everything else is passed on as it is. The order within a connection is kept.

use super::{
    ACK, HEADER, Header, LARGEST, NEEDS_CHECKSUM, PSH, TCP4, Tcp, checksum, pseudo_header, put,
    set_ip_length,
};

/// Connections whose packets are merged at the same time.
const CONNECTIONS: usize = 16;
/// "Do not fragment", in the seventh byte of the IP header.
const DONT_FRAGMENT: u8 = 0x40;

/// Packets that are being merged.
#[derive(Default)]
pub(in crate::node) struct Merger {
    open: Vec<Merged>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
}

/// A packet that others may be appended to.
struct Merged {
    bytes: Vec<u8>,
    tcp: Tcp,
    /// The number of the next byte.
    next: u32,
    /// The payload of the first packet.
    segment: usize,
    packets: usize,
    /// Nothing may follow.
    complete: bool,
}

/// A packet that may be merged.
struct Candidate<'a> {
    packet: &'a [u8],
    tcp: Tcp,
    sequence: u32,
    pushes: bool,
}

impl Merger {
    /// Takes a packet. Passes packets that are complete, with the header for the device, to `write`.
    pub fn push(&mut self, packet: &[u8], write: &mut impl FnMut(&[u8; HEADER], &[u8])) {
        let tcp = Tcp::of(packet);
        let of_this =
            |merged: &Merged| tcp.is_some_and(|tcp| merged.is_same_connection(packet, tcp));
        let at = self.open.iter().position(of_this);
        let candidate = tcp.and_then(|tcp| Candidate::of(packet, tcp));
        if let (Some(at), Some(candidate)) = (at, &candidate)
            && let Some(merged) = self.open.get_mut(at)
            && merged.append(candidate)
        {
            return;
        }
        if let Some(at) = at {
            self.write(at, write);
        }
        let Some(candidate) = candidate else {
            // The length by the IP header, without padding.
            return write(&Header::default().to_bytes(), packet);
        };
        if self.open.len() >= CONNECTIONS {
            self.write(0, write);
        }
        let buffer = self.spare.pop().unwrap_or_default();
        self.open.push(Merged::new(&candidate, buffer));
    }

    /// Passes on what is left.
    pub fn flush(&mut self, write: &mut impl FnMut(&[u8; HEADER], &[u8])) {
        while !self.open.is_empty() {
            self.write(0, write);
        }
    }

    fn write(&mut self, at: usize, write: &mut impl FnMut(&[u8; HEADER], &[u8])) {
        let mut merged = self.open.remove(at);
        let header = merged.finish();
        write(&header.to_bytes(), &merged.bytes);
        merged.bytes.clear();
        self.spare.push(merged.bytes);
    }
}

impl<'a> Candidate<'a> {
    fn of(packet: &'a [u8], tcp: Tcp) -> Option<Self> {
        let packet = packet.get(..tcp.total)?;
        let header = packet.get(tcp.ip..)?.first_chunk::<20>()?;
        let flags = header[13];
        let mergeable = tcp.ip == 20
            && *packet.get(6)? == DONT_FRAGMENT
            && flags & !PSH == ACK
            && tcp.total > tcp.headers;
        if !mergeable {
            return None;
        }
        let length = u16::try_from(tcp.total - tcp.ip).ok()?;
        let sum = pseudo_header(packet, length) + checksum::sum(packet.get(tcp.ip..)?);
        let valid = checksum::fold(sum) == 0xffff
            && checksum::fold(checksum::sum(packet.get(..tcp.ip)?)) == 0xffff;
        let [.., s0, s1, s2, s3] = *header.first_chunk::<8>()?;
        valid.then_some(Self {
            packet,
            tcp,
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
            pushes: flags & PSH != 0,
        })
    }

    fn payload(&self) -> &'a [u8] {
        self.packet.get(self.tcp.headers..).unwrap_or_default()
    }

    /// The number of the byte after this packet.
    fn next(&self) -> u32 {
        let length = u32::try_from(self.payload().len()).unwrap_or_default();
        self.sequence.wrapping_add(length)
    }
}

impl Merged {
    fn new(first: &Candidate<'_>, mut buffer: Vec<u8>) -> Self {
        buffer.extend_from_slice(first.packet);
        Self {
            bytes: buffer,
            tcp: first.tcp,
            next: first.next(),
            segment: first.payload().len(),
            packets: 1,
            complete: first.pushes,
        }
    }

    fn is_same_connection(&self, packet: &[u8], tcp: Tcp) -> bool {
        let ports = |packet: &[u8], tcp: Tcp| packet.get(tcp.ip..)?.first_chunk::<4>().copied();
        packet.get(12..20) == self.bytes.get(12..20)
            && ports(packet, tcp) == ports(&self.bytes, self.tcp)
    }

    /// Appends a packet if it may follow.
    fn append(&mut self, candidate: &Candidate<'_>) -> bool {
        let payload = candidate.payload();
        let follows = !self.complete
            && candidate.sequence == self.next
            && payload.len() <= self.segment
            && self.bytes.len() + payload.len() <= LARGEST
            && self.has_headers_of(candidate);
        if !follows {
            return false;
        }
        self.bytes.extend_from_slice(payload);
        self.next = candidate.next();
        self.packets += 1;
        self.complete = candidate.pushes || payload.len() < self.segment;
        if candidate.pushes
            && let Some(flags) = self.bytes.get_mut(self.tcp.ip + 13)
        {
            *flags |= PSH;
        }
        true
    }

    /// Whether everything is equal that the kernel would copy to each packet.
    fn has_headers_of(&self, candidate: &Candidate<'_>) -> bool {
        /// Version and service; TTL and protocol. Then of TCP: acknowledged byte and length of the header; window; urgent data.
        const EQUAL: [(usize, usize); 5] = [(0, 2), (8, 10), (28, 33), (34, 36), (38, 40)];
        let same =
            |from: usize, to: usize| self.bytes.get(from..to) == candidate.packet.get(from..to);
        let options = self.tcp.headers;
        options == candidate.tcp.headers
            && EQUAL.iter().all(|(from, to)| same(*from, *to))
            && same(40, options)
    }

    /// Completes the headers. One packet alone stays as it is.
    fn finish(&mut self) -> Header {
        if self.packets == 1 {
            return Header::default();
        }
        let Tcp { ip, headers, .. } = self.tcp;
        let small = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let total = small(self.bytes.len());
        set_ip_length(&mut self.bytes, ip, total);
        // The kernel, or the network card, completes the checksum of each packet.
        let sum = pseudo_header(&self.bytes, small(self.bytes.len() - ip));
        put(&mut self.bytes, ip + 16, checksum::fold(sum).to_ne_bytes());
        Header {
            flags: NEEDS_CHECKSUM,
            kind: TCP4,
            headers: small(headers),
            segment: small(self.segment),
            checksum_start: small(ip),
            checksum_offset: 16,
        }
    }
}
