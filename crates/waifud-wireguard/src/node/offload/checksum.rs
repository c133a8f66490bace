//! The checksum of IP, TCP and UDP (RFC 1071).
//!
//! The sum is that of 16-bit words in the byte order of the machine, which is swapped neither before nor after: the bytes of the
//! result are in the right order.

/// The sum of all words of `bytes`. Sums of parts can be added if all parts but the last one have an even length.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)))
        .sum();
    let (halves, rest) = rest.as_chunks::<2>();
    for half in halves {
        sum += u64::from(u16::from_ne_bytes(*half));
    }
    if let [last] = rest {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

/// The sum in 16 bits.
pub(super) fn fold(mut sum: u64) -> u16 {
    while let Err(_too_large) = u16::try_from(sum) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or_default()
}

/// The checksum, as it is in a packet.
pub(super) fn finish(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}
