//! A packet socket on one port of the bridge: whole frames, with the kernel's notes on what the hardware would still do.

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::{self, c_int, sockaddr_ll, socklen_t};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

/// `struct virtio_net_hdr`, which precedes each frame: veth devices leave checksums to the receiver, and the kernel must
/// know about it when the frame is written again.
pub(crate) const HEADER: usize = 10;
/// More than the longest frame: 64 KiB of segments that are not yet divided.
pub(crate) const LONGEST: usize = 128 * 1024;

/// Of `linux/if_packet.h`.
const PACKET_VNET_HDR: c_int = 15;
const PACKET_IGNORE_OUTGOING: c_int = 23;
/// Room for frames between two reads.
const BUFFER: usize = 8 * 1024 * 1024;

/// What comes in at a port, and what is sent there.
pub(crate) struct Packets(OwnedFd);

impl Packets {
    /// Opens the socket in the network namespace of this thread.
    pub(crate) fn open(port: &str) -> Result<Self> {
        // Without a protocol, it receives nothing until it is bound to the port.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)
            .context("cannot open a packet socket")?;
        enable(&socket, PACKET_VNET_HDR)?;
        enable(&socket, PACKET_IGNORE_OUTGOING)?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        bind(&socket, if_nametoindex(port)?)?;
        Ok(Self(socket))
    }

    /// The length of the next frame with its header, in `buffer`; `None` if there is none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match nix::unistd::read(&self.0, buffer) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error).context("cannot read from a port"),
        }
    }

    /// Sends a frame with its header.
    pub(crate) fn write(&self, frame: &[u8]) -> Result<()> {
        nix::unistd::write(&self.0, frame)?;
        Ok(())
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn enable(socket: &OwnedFd, option: c_int) -> Result<()> {
    let one: c_int = 1;
    let length = socklen_t::try_from(size_of::<c_int>())?;
    // SAFETY: the option is an integer, and the pointer and its length are those of one that lives during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const one).cast(),
            length,
        )
    };
    Errno::result(result).context("cannot set an option of a packet socket")?;
    Ok(())
}

fn bind(socket: &OwnedFd, index: u32) -> Result<()> {
    let all = u16::try_from(libc::ETH_P_ALL)?;
    let address = sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        sll_protocol: all.to_be(),
        sll_ifindex: c_int::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = socklen_t::try_from(size_of::<sockaddr_ll>())?;
    // SAFETY: the pointer and its length are those of an address of the socket's family that lives during the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Errno::result(result).context("cannot bind a packet socket")?;
    Ok(())
}
