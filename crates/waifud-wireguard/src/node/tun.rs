//! A TUN device: packets that the kernel routes to the link are read here, and written packets are received on the link.
//!
//! The kernel passes and accepts large packets of TCP ([`offload`](super::offload)).

use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

use gotatun::packet::{Packet, PacketBufPool};
use nix::libc;
use tokio::io::{Interest, unix::AsyncFd};

use super::offload::{self, Header, Merger};
use crate::wire::DATAGRAM;

/// How many packets of the link's MTU are read before other tasks run. The last large one may exceed it.
const BATCH: usize = 128;
/// Reported for a link that another program has removed.
const INTEREST: Interest = Interest::READABLE.add(Interest::ERROR);

nix::ioctl_write_ptr_bad!(
    /// Names and configures the device behind an open `/dev/net/tun` (linux/if_tun.h).
    tunsetiff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);
nix::ioctl_write_int_bad!(
    /// Sets which packets the kernel may pass without the work that network cards do (linux/if_tun.h).
    tunsetoffload,
    nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>())
);

/// A device of this process. The link exists as long as this value.
pub(crate) struct Tun {
    device: AsyncFd<File>,
    pool: PacketBufPool<DATAGRAM>,
    /// What was read last.
    buffer: Box<[u8]>,
    merger: Merger,
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
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL | libc::IFF_VNET_HDR;
        // The four flags are the bits 0xd001; the kernel's field is a signed 16-bit one.
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
        let offload = (libc::TUN_F_CSUM | libc::TUN_F_TSO4).cast_signed();
        // SAFETY: the descriptor is open, and the argument is a number.
        if let Err(error) = unsafe { tunsetoffload(device.as_raw_fd(), offload) } {
            tracing::debug!(%error, "the kernel passes no large packets");
        }
        // SAFETY: a `File` keeps its descriptor open until it is dropped, and the `AsyncFd` owns it from here on.
        let device = unsafe { AsyncFd::register_with_interest(device, INTEREST)? };
        Ok(Self {
            device,
            pool: PacketBufPool::new(2 * BATCH),
            buffer: vec![0; offload::HEADER + offload::LARGEST].into_boxed_slice(),
            merger: Merger::default(),
        })
    }

    /// Waits for packets and passes each to `each`, about [`BATCH`] at a time. An error means that the link was removed.
    pub async fn receive(&mut self, mut each: impl FnMut(Packet)) -> io::Result<()> {
        let mut ready = self.device.ready(INTEREST).await?;
        let mut received = 0;
        while received < BATCH {
            let length = match ready.try_io(|device| device.get_ref().read(&mut self.buffer)) {
                Ok(Ok(length)) => length,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(Err(error)) => return Err(error),
                // No more packets; the readiness was cleared.
                Err(_) => break,
            };
            received += 1;
            let read = self.buffer.get(..length).unwrap_or_default();
            let Some((header, packet)) = Header::of(read) else {
                continue;
            };
            let pool = &self.pool;
            offload::split(header, packet, |head, rest| {
                let mut packet = pool.get();
                let length = head.len() + rest.len();
                if length > packet.len() {
                    return;
                }
                packet.truncate(length);
                let (to, after) = packet.split_at_mut(head.len());
                to.copy_from_slice(head);
                after.copy_from_slice(rest);
                received += 1;
                each(packet);
            });
        }
        Ok(())
    }

    /// Sends a packet to the link, at the latest with the next [`flush`](Self::flush). It is lost if the link is down.
    pub fn send(&mut self, packet: &[u8]) {
        let device = self.device.get_ref();
        self.merger
            .push(packet, &mut |header, packet| write(device, header, packet));
    }

    /// Sends what is left.
    pub fn flush(&mut self) {
        let device = self.device.get_ref();
        self.merger
            .flush(&mut |header, packet| write(device, header, packet));
    }
}

fn write(mut device: &File, header: &[u8], packet: &[u8]) {
    if let Err(error) = device.write_vectored(&[IoSlice::new(header), IoSlice::new(packet)]) {
        tracing::trace!(%error, "a packet for the link was lost");
    }
}
