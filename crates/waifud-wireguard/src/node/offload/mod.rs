//! Large TCP packets between the kernel and a TUN device.
//!
//! With a header before each packet (`IFF_VNET_HDR`, `linux/virtio_net.h`), the kernel passes up to 64 KiB of one TCP connection
//! at once, and accepts as much. That saves most of the system calls, and most of the work of the kernel for each packet.
//! Only the device sees large packets: [`split`] makes packets of the link's MTU of them before they are encrypted, and
//! [`Merger`] merges decrypted packets that belong together, as network cards do.

mod checksum;
mod merge;
mod split;

pub(super) use self::merge::Merger;
pub(super) use self::split::split;

/// The length of a [`Header`].
pub(super) const HEADER: usize = 10;
/// The largest packet.
pub(super) const LARGEST: usize = 65_535;
/// The checksum of the packet is not complete: it must be computed from `checksum_start`.
const NEEDS_CHECKSUM: u8 = 1;
/// Not a large packet.
const NONE: u8 = 0;
/// A large packet of TCP over IPv4.
const TCP4: u8 = 1;

/// `struct virtio_net_hdr`, in the byte order of the machine.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Header {
    flags: u8,
    kind: u8,
    /// The length of the headers of a large packet; only a hint.
    headers: u16,
    /// Bytes of payload in each packet that a large one is split into.
    segment: u16,
    checksum_start: u16,
    /// Where the checksum is, from `checksum_start`.
    checksum_offset: u16,
}

impl Header {
    /// Splits what was read from the device into the header and the packet.
    pub fn of(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (header, packet) = bytes.split_first_chunk::<HEADER>()?;
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = *header;
        let header = Self {
            flags,
            kind,
            headers: u16::from_ne_bytes([h0, h1]),
            segment: u16::from_ne_bytes([s0, s1]),
            checksum_start: u16::from_ne_bytes([c0, c1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        };
        Some((header, packet))
    }

    /// As it is written before a packet.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let [h0, h1] = self.headers.to_ne_bytes();
        let [s0, s1] = self.segment.to_ne_bytes();
        let [c0, c1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

/// The parts of a TCP packet over IPv4 that is not a fragment.
#[derive(Clone, Copy, Debug)]
struct Tcp {
    /// The length of the IP header.
    ip: usize,
    /// The length of both headers.
    headers: usize,
    /// The length of the packet by its IP header.
    total: usize,
}

/// Bits of the TCP flags.
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;
const TCP_PROTOCOL: u8 = 6;

impl Tcp {
    /// `None` for every other packet, and for one that is too short.
    fn of(packet: &[u8]) -> Option<Self> {
        let (first, _) = packet.split_first_chunk::<20>()?;
        let ip = usize::from(first[0] & 0x0f) * 4;
        let fragment = u16::from_be_bytes([first[6], first[7]]) & 0x3fff;
        let total = usize::from(u16::from_be_bytes([first[2], first[3]]));
        if first[0] >> 4 != 4 || ip < 20 || first[9] != TCP_PROTOCOL || fragment != 0 {
            return None;
        }
        let offset = packet.get(ip..)?.first_chunk::<20>()?[12];
        let headers = ip + usize::from(offset >> 4) * 4;
        let whole = headers >= ip + 20 && total >= headers;
        whole.then_some(Self { ip, headers, total })
    }
}

/// The sum of the addresses, the protocol and this length, which the checksum of TCP includes (RFC 9293).
fn pseudo_header(packet: &[u8], length: u16) -> u64 {
    let [high, low] = length.to_be_bytes();
    let addresses = packet.get(12..20).unwrap_or_default();
    checksum::sum(addresses) + checksum::sum(&[0, TCP_PROTOCOL, high, low])
}

/// Writes bytes into a packet whose length has been checked.
fn put(packet: &mut [u8], at: usize, bytes: [u8; 2]) {
    if let Some(to) = packet.get_mut(at..at + 2) {
        to.copy_from_slice(&bytes);
    }
}

/// Sets the length in the IP header, and the header's checksum.
fn set_ip_length(packet: &mut [u8], ip: usize, length: u16) {
    put(packet, 2, length.to_be_bytes());
    put(packet, 10, [0, 0]);
    let sum = checksum::sum(packet.get(..ip).unwrap_or_default());
    put(packet, 10, checksum::finish(sum));
}

#[cfg(test)]
mod tests;
