//! The generation of the kernel's firewall: the number of its commits, which is read in microseconds.
//!
//! While the generation is that of our last commit, no rule has changed, so listing and comparing rules is not necessary.

use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::NetworkError;

// linux/netfilter/nfnetlink.h and nf_tables.h
const SUBSYSTEM_NFTABLES: u16 = 10;
const MESSAGE_NEWGEN: u16 = 15;
const MESSAGE_GETGEN: u16 = 16;
const ATTRIBUTE_ID: u16 = 1;
// linux/netlink.h
const FLAG_REQUEST: u16 = 1;
/// `nlmsghdr`, then `nfgenmsg`.
const HEADERS: usize = 16 + 4;

/// The number of commits in this network namespace. It wraps around.
pub(super) fn generation() -> Result<u32, NetworkError> {
    let failed = |what: &str, message: String| NetworkError::Kernel {
        what: format!("{what} the firewall's generation"),
        message,
    };
    let errno = |error: nix::errno::Errno| failed("requesting", error.desc().to_owned());
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkNetFilter,
    )
    .map_err(errno)?;
    let descriptor = socket.as_raw_fd();
    let kernel = NetlinkAddr::new(0, 0);
    sendto(descriptor, &request(), &kernel, MsgFlags::empty()).map_err(errno)?;
    // The kernel answers before `sendto` returns, so the answer is already there.
    let mut answer = [0; 256];
    let length = recv(descriptor, &mut answer, MsgFlags::MSG_DONTWAIT).map_err(errno)?;
    answer
        .get(..length)
        .and_then(parse)
        .ok_or_else(|| failed("reading", "the answer has an unknown format".to_owned()))
}

fn request() -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADERS);
    message.extend(20_u32.to_ne_bytes());
    message.extend(((SUBSYSTEM_NFTABLES << 8) | MESSAGE_GETGEN).to_ne_bytes());
    message.extend(FLAG_REQUEST.to_ne_bytes());
    // Sequence and port; then nfgenmsg: family, version, resource.
    message.resize(HEADERS, 0);
    message
}

fn parse(answer: &[u8]) -> Option<u32> {
    let u16_at = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if u16_at(4)? != (SUBSYSTEM_NFTABLES << 8) | MESSAGE_NEWGEN {
        return None;
    }
    let mut at = HEADERS;
    loop {
        let length = usize::from(u16_at(at)?);
        if u16_at(at + 2)? == ATTRIBUTE_ID {
            // Attributes of nf_tables are in network byte order.
            return Some(u32::from_be_bytes(
                answer.get(at + 4..at + 8)?.try_into().ok()?,
            ));
        }
        if length < 4 {
            return None;
        }
        at += length.next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_found_after_other_attributes() {
        let mut answer = request();
        answer[4..6].copy_from_slice(&((SUBSYSTEM_NFTABLES << 8) | MESSAGE_NEWGEN).to_ne_bytes());
        for (kind, value) in [(2_u16, [0, 0, 0, 9]), (ATTRIBUTE_ID, [0, 0, 1, 2])] {
            answer.extend(8_u16.to_ne_bytes());
            answer.extend(kind.to_ne_bytes());
            answer.extend(value);
        }
        assert_eq!(parse(&answer), Some(258));
    }

    #[test]
    fn truncated_and_other_answers_have_no_generation() {
        let mut answer = request();
        assert_eq!(parse(&answer), None);
        answer[4..6].copy_from_slice(&((SUBSYSTEM_NFTABLES << 8) | MESSAGE_NEWGEN).to_ne_bytes());
        for length in 0..answer.len() {
            assert_eq!(parse(&answer[..length]), None);
        }
        // An attribute of length 0 must not cause an endless loop.
        answer.extend([0, 0, 7, 0]);
        assert_eq!(parse(&answer), None);
    }
}
