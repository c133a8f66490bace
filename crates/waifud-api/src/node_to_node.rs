//! What two nodes say to each other at a peer port, inside TLS with the certificates of both.
//!
//! The node that receives a disk or an image connects and sends one request. After an answer that accepts it, the other node sends
//! the disk ([`crate::disk_transfer`]), or the bytes of the image as they were published, and closes the connection. The ticket
//! says which image that is. Integers are unsigned and big-endian.
//!
//! ```text
//! request  8 bytes  "wfnode01"
//!          u8       1, a disk; 2, an image
//!          32 bytes ticket
//!          16 bytes disk: id of the instance; image: zeros
//!          u32      disk: its index in the spec; image: zeros
//!          u64      the receiver has everything before this byte of the file
//! answer   u8       0, accepted; 1, refused
//!          u16      length of the reason in bytes, at most 512; 0 if accepted
//!          bytes    reason in UTF-8
//! ```

use bytes::{Buf, BufMut};
use uuid::Uuid;
use waifud_types::InstanceId;

use crate::agent::Ticket;

const MAGIC: &[u8; 8] = b"wfnode01";
const DISK: u8 = 1;
const IMAGE: u8 = 2;

/// The length of a request in bytes.
pub const REQUEST_LENGTH: usize = MAGIC.len() + 1 + 32 + 16 + 4 + 8;

/// The maximum length of a reason in bytes.
pub const REASON_MAX: usize = 512;

/// A request for a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskRequest {
    /// The ticket for it.
    pub ticket: Ticket,
    /// The instance.
    pub instance: InstanceId,
    /// Index of the disk in the spec.
    pub index: u32,
    /// The receiver has everything before this byte of the file.
    pub from: u64,
}

/// A request for an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageRequest {
    /// The ticket for it.
    pub ticket: Ticket,
    /// The receiver has everything before this byte of the file.
    pub from: u64,
}

/// A request, as the other node reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerRequest {
    /// For a disk.
    Disk(DiskRequest),
    /// For an image.
    Image(ImageRequest),
}

/// The request is not one of this protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the request has an unknown format")]
pub struct UnknownRequest;

impl DiskRequest {
    /// The bytes to send.
    pub fn encode(&self) -> [u8; REQUEST_LENGTH] {
        let id = *self.instance.as_uuid().as_bytes();
        encode(DISK, self.ticket, id, self.index, self.from)
    }
}

impl ImageRequest {
    /// The bytes to send.
    pub fn encode(&self) -> [u8; REQUEST_LENGTH] {
        encode(IMAGE, self.ticket, [0; 16], 0, self.from)
    }
}

fn encode(kind: u8, ticket: Ticket, id: [u8; 16], index: u32, from: u64) -> [u8; REQUEST_LENGTH] {
    let mut bytes = [0; REQUEST_LENGTH];
    let mut out = bytes.as_mut_slice();
    out.put_slice(MAGIC);
    out.put_u8(kind);
    out.put_slice(&ticket.to_bytes());
    out.put_slice(&id);
    out.put_u32(index);
    out.put_u64(from);
    bytes
}

impl PeerRequest {
    /// The ticket.
    pub fn ticket(&self) -> Ticket {
        match self {
            Self::Disk(request) => request.ticket,
            Self::Image(request) => request.ticket,
        }
    }

    /// The receiver has everything before this byte of the file.
    pub fn from(&self) -> u64 {
        match self {
            Self::Disk(request) => request.from,
            Self::Image(request) => request.from,
        }
    }

    /// Parses received bytes.
    pub fn decode(bytes: &[u8; REQUEST_LENGTH]) -> Result<Self, UnknownRequest> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(UnknownRequest)?;
        let kind = rest.get_u8();
        let mut ticket = [0; 32];
        rest.copy_to_slice(&mut ticket);
        let ticket = Ticket::from_bytes(ticket);
        let (id, index, from) = (rest.get_u128(), rest.get_u32(), rest.get_u64());
        match kind {
            DISK => Ok(Self::Disk(DiskRequest {
                ticket,
                instance: InstanceId::from_uuid(Uuid::from_u128(id)),
                index,
                from,
            })),
            IMAGE if id == 0 && index == 0 => Ok(Self::Image(ImageRequest { ticket, from })),
            _ => Err(UnknownRequest),
        }
    }
}

/// The beginning of an answer: 1 byte and the length of the reason.
pub const ANSWER_HEAD: usize = 3;

/// An answer that accepts the request, or refuses it for this reason. A longer reason is cut.
pub fn encode_answer(refused: Option<&str>) -> Vec<u8> {
    let reason = refused.unwrap_or_default();
    let reason = &reason[..reason.floor_char_boundary(REASON_MAX)];
    let mut out = vec![u8::from(refused.is_some())];
    out.put_u16(u16::try_from(reason.len()).unwrap_or(0));
    out.put_slice(reason.as_bytes());
    out
}

/// The length of the reason that follows the beginning of an answer that refuses the request; `None` if it accepts it.
pub fn refusal_length(head: [u8; ANSWER_HEAD]) -> Result<Option<usize>, UnknownRequest> {
    let [verdict, length @ ..] = head;
    let length = usize::from(u16::from_be_bytes(length));
    match verdict {
        0 if length == 0 => Ok(None),
        1 if length <= REASON_MAX => Ok(Some(length)),
        _ => Err(UnknownRequest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_arrives_as_it_was_sent_and_another_one_is_refused() {
        let request = DiskRequest {
            ticket: Ticket::from_bytes([0xa5; 32]),
            instance: "0198c0de-0000-7000-8000-00000000abcd".parse().unwrap(),
            index: 7,
            from: (3 << 40) + 5,
        };
        let bytes = request.encode();
        assert_eq!(PeerRequest::decode(&bytes), Ok(PeerRequest::Disk(request)));
        let image = ImageRequest {
            ticket: request.ticket,
            from: 7,
        };
        let of_image = image.encode();
        assert_eq!(
            PeerRequest::decode(&of_image),
            Ok(PeerRequest::Image(image))
        );
        for bytes in [bytes, of_image] {
            for at in 0..9 {
                let mut changed = bytes;
                changed[at] ^= 4;
                assert_eq!(PeerRequest::decode(&changed), Err(UnknownRequest), "{at}");
            }
        }
        for at in [41, 56, 57, 60] {
            let mut changed = of_image;
            changed[at] ^= 1;
            assert_eq!(PeerRequest::decode(&changed), Err(UnknownRequest), "{at}");
        }
    }

    #[test]
    fn an_answer_accepts_or_has_a_reason_of_limited_length() {
        let head = |bytes: &[u8]| refusal_length(bytes[..ANSWER_HEAD].try_into().unwrap());
        assert_eq!(head(&encode_answer(None)), Ok(None));
        let refused = encode_answer(Some("no"));
        assert_eq!(head(&refused), Ok(Some(2)));
        assert_eq!(&refused[ANSWER_HEAD..], b"no");
        let long = "é".repeat(REASON_MAX);
        let long = encode_answer(Some(&long));
        assert_eq!(head(&long), Ok(Some(REASON_MAX)));
        assert_eq!(long.len(), ANSWER_HEAD + REASON_MAX);
        for bad in [[0, 0, 1], [2, 0, 0], [1, 2, 1]] {
            assert_eq!(refusal_length(bad), Err(UnknownRequest), "{bad:?}");
        }
    }
}
