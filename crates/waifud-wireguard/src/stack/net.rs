//! The interface that all connections share: addresses, routes, checksums, and the queue of outgoing packets.

use std::net::Ipv4Addr;

use smoltcp::{
    iface::{Config, Interface, PollResult, SocketSet},
    time::Instant,
    wire::{HardwareAddress, IpCidr},
};

use super::device::{Outgoing, PacketDevice};

/// The interface: one address, and the queue of outgoing packets.
pub(crate) struct Net {
    interface: Interface,
    outgoing: Outgoing,
    mtu: u16,
    /// For packets without a connection, which the interface answers with a reset or an echo reply.
    no_sockets: SocketSet<'static>,
}

impl Net {
    /// `seed` makes sequence numbers unpredictable.
    pub fn new(address: Ipv4Addr, mtu: u16, seed: u64) -> Self {
        let mut outgoing = Outgoing::new();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(
            config,
            &mut PacketDevice::new(None, &mut outgoing, mtu),
            Instant::ZERO,
        );
        interface.update_ip_addrs(|addresses| {
            // An empty list has space: it is a fixed array whose size is a build option of the library.
            let _ = addresses.push(IpCidr::new(address.into(), 32));
        });
        // All destinations are behind the tunnel, so the gateway is never resolved.
        let _ = interface.routes_mut().add_default_ipv4_route(address);
        Self {
            interface,
            outgoing,
            mtu,
            no_sockets: SocketSet::new(Vec::new()),
        }
    }

    /// Passes a packet to a connection.
    pub fn receive(&mut self, packet: &[u8], sockets: &mut SocketSet<'static>, now: Instant) {
        let mut card = PacketDevice::new(Some(packet), &mut self.outgoing, self.mtu);
        self.interface.poll_ingress_single(now, &mut card, sockets);
    }

    /// Answers a packet without a connection.
    pub fn answer(&mut self, packet: &[u8], now: Instant) {
        let mut card = PacketDevice::new(Some(packet), &mut self.outgoing, self.mtu);
        self.interface
            .poll_ingress_single(now, &mut card, &mut self.no_sockets);
    }

    /// Sends a connection's pending segments, as far as the queue has space.
    pub fn transmit(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        let mut card = PacketDevice::new(None, &mut self.outgoing, self.mtu);
        while self.interface.poll_egress(now, &mut card, sockets) == PollResult::SocketStateChanged
        {
        }
    }

    /// When a connection's timers are due next.
    pub fn due(&mut self, sockets: &SocketSet<'static>, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, sockets)
    }

    pub fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// For guests in tests, which use the same parts.
    #[cfg(test)]
    pub fn interface(&mut self) -> &mut Interface {
        &mut self.interface
    }
}
