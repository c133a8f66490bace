//! A TUN device: packets that the kernel routes to the link are read here, and written packets are received on the link.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

use gotatun::packet::{Packet, PacketBufPool};
use nix::libc;
use tokio::io::{Interest, unix::AsyncFd};

use crate::wire::DATAGRAM;

/// How many packets are read before other tasks run.
const BATCH: usize = 64;
/// Reported for a link that another program has removed.
const INTEREST: Interest = Interest::READABLE.add(Interest::ERROR);

nix::ioctl_write_ptr_bad!(
    /// Names and configures the device behind an open `/dev/net/tun` (linux/if_tun.h).
    tunsetiff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// A device of this process. The link exists as long as this value.
pub(crate) struct Tun {
    device: AsyncFd<File>,
    pool: PacketBufPool<DATAGRAM>,
}

impl Tun {
    /// Creates the link, down and without addresses, in the network namespace of the calling thread. Fails with
    /// `ResourceBusy` if there is a link of that name.
    pub fn create(interface: &str) -> io::Result<Self> {
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        let mut name = [0; libc::IFNAMSIZ];
        // The last byte stays zero: the configuration has been checked for the length.
        for (to, from) in name
            .iter_mut()
            .zip(interface.bytes().take(libc::IFNAMSIZ - 1))
        {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
        // The three flags are the bits 0x9001; the kernel's field is a signed 16-bit one.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "only the bits matter, and they fit"
        )]
        let request = libc::ifreq {
            ifr_name: name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: flags as libc::c_short,
            },
        };
        // SAFETY: the descriptor is open, and the request is a complete, initialized structure of the type that this call
        // reads; the kernel keeps no pointer to it.
        unsafe { tunsetiff(device.as_raw_fd(), &raw const request)? };
        // SAFETY: a `File` keeps its descriptor open until it is dropped, and the `AsyncFd` owns it from here on.
        let device = unsafe { AsyncFd::register_with_interest(device, INTEREST)? };
        Ok(Self {
            device,
            pool: PacketBufPool::new(BATCH),
        })
    }

    /// Waits for packets and passes each to `each`, at most [`BATCH`] at a time. An error means that the link was removed.
    pub async fn receive(&self, mut each: impl FnMut(Packet)) -> io::Result<()> {
        let mut ready = self.device.ready(INTEREST).await?;
        for _ in 0..BATCH {
            let mut packet = self.pool.get();
            match ready.try_io(|device| device.get_ref().read(&mut packet)) {
                Ok(Ok(length)) => {
                    packet.truncate(length);
                    each(packet);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                // No more packets; the readiness was cleared.
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Sends a packet to the link. It is lost if the link is down.
    pub fn send(&self, packet: &[u8]) {
        if let Err(error) = self.device.get_ref().write(packet) {
            tracing::trace!(%error, "a packet for the link was lost");
        }
    }
}
