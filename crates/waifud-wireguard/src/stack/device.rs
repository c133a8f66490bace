//! The stack's network device: receives one packet at a time, and queues outgoing ones.

use std::collections::VecDeque;

use bytes::BytesMut;
use smoltcp::{
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
};

/// How many packets may wait to be encrypted. The stack pauses at this limit.
const QUEUE_MAX: usize = 1024;
/// WireGuard pads to 16 bytes; with this spare capacity, padding does not copy.
const PADDING: usize = 16;

/// Outgoing packets in order.
pub(crate) type Outgoing = VecDeque<BytesMut>;

/// The device for one call into the stack: at most one received packet, and the queue of outgoing ones.
pub(crate) struct PacketDevice<'a> {
    incoming: Option<&'a [u8]>,
    outgoing: &'a mut Outgoing,
    mtu: usize,
}

impl<'a> PacketDevice<'a> {
    pub fn new(incoming: Option<&'a [u8]>, outgoing: &'a mut Outgoing, mtu: u16) -> Self {
        Self {
            incoming,
            outgoing,
            mtu: usize::from(mtu),
        }
    }
}

impl Device for PacketDevice<'_> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Slot<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Slot<'_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Slot(self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Slot<'_>> {
        (self.outgoing.len() < QUEUE_MAX).then_some(Slot(self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

/// The received packet.
pub(crate) struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// The next entry of the queue.
pub(crate) struct Slot<'a>(&'a mut Outgoing);

impl TxToken for Slot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = BytesMut::with_capacity(length + PADDING);
        packet.resize(length, 0);
        let result = write(&mut packet);
        self.0.push_back(packet);
        result
    }
}
