//! Splits large packets of the kernel into packets of the link's MTU, and completes checksums.

use super::{
    CWR, FIN, Header, NEEDS_CHECKSUM, NONE, PSH, TCP4, Tcp, checksum, pseudo_header, put,
    set_ip_length,
};

/// The longest headers of IPv4 and TCP.
const HEADERS: usize = 120;

/// Passes each packet to `each`, in two parts that follow each other. A packet that is invalid is dropped: the kernel makes none.
pub(in crate::node) fn split(header: Header, packet: &[u8], mut each: impl FnMut(&[u8], &[u8])) {
    if header.kind == TCP4 {
        let _dropped_if_invalid = split_tcp(header, packet, &mut each);
    } else if header.kind == NONE && header.flags & NEEDS_CHECKSUM == 0 {
        each(packet, &[]);
    } else if header.kind == NONE {
        let _dropped_if_invalid = complete(header, packet, &mut each);
    }
}

fn split_tcp(header: Header, packet: &[u8], each: &mut impl FnMut(&[u8], &[u8])) -> Option<()> {
    let tcp = Tcp::of(packet)?;
    let payload = packet.get(tcp.headers..tcp.total)?;
    let mut buffer = [0; HEADERS];
    let headers = buffer.get_mut(..tcp.headers)?;
    headers.copy_from_slice(packet.get(..tcp.headers)?);
    let (first_id, first_sequence) = (word(headers, 4)?, long(headers, tcp.ip + 4)?);
    let flags = *headers.get(tcp.ip + 13)?;
    let segment = usize::from(header.segment);
    if segment == 0 {
        return None;
    }
    let count = payload.len().div_ceil(segment);
    for (index, part) in payload.chunks(segment).enumerate() {
        let number = u16::try_from(index).ok()?;
        let before = u32::try_from(index * segment).ok()?;
        put(headers, 4, first_id.wrapping_add(number).to_be_bytes());
        let length = u16::try_from(tcp.headers + part.len()).ok()?;
        set_ip_length(headers, tcp.ip, length);

        let sequence = first_sequence.wrapping_add(before).to_be_bytes();
        headers
            .get_mut(tcp.ip + 4..tcp.ip + 8)?
            .copy_from_slice(&sequence);
        let mut of_this = flags;
        if index > 0 {
            of_this &= !CWR;
        }
        if index + 1 < count {
            of_this &= !(FIN | PSH);
        }
        *headers.get_mut(tcp.ip + 13)? = of_this;

        put(headers, tcp.ip + 16, [0, 0]);
        let length = u16::try_from(tcp.headers - tcp.ip + part.len()).ok()?;
        let sum = pseudo_header(headers, length)
            + checksum::sum(headers.get(tcp.ip..)?)
            + checksum::sum(part);
        put(headers, tcp.ip + 16, checksum::finish(sum));
        each(headers, part);
    }
    Some(())
}

/// Completes a checksum: the field contains the sum of the pseudo header.
fn complete(header: Header, packet: &[u8], each: &mut impl FnMut(&[u8], &[u8])) -> Option<()> {
    let start = usize::from(header.checksum_start);
    let field = start + usize::from(header.checksum_offset);
    let sum = checksum::sum(packet.get(start..)?);
    // Zero would mean that there is none (UDP); both mean the same number.
    let sum = match checksum::finish(sum) {
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    let mut buffer = [0; HEADERS];
    let head = buffer.get_mut(..field + 2)?;
    head.copy_from_slice(packet.get(..field + 2)?);
    put(head, field, sum);
    each(head, packet.get(field + 2..)?);
    Some(())
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
