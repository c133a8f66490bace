//! The interface that all connections share: addresses, routes, checksums, and the queue of what goes out.

use std::net::Ipv4Addr;

use smoltcp::{
    iface::{Config, Interface, PollResult, SocketSet},
    time::Instant,
    wire::{HardwareAddress, IpCidr},
};

use super::device::{Card, Outgoing};

/// One address and a way out.
pub(crate) struct Net {
    interface: Interface,
    outgoing: Outgoing,
    mtu: u16,
    /// For packets that belong to no connection: the interface answers them itself, with a reset or an echo.
    nobody: SocketSet<'static>,
}

impl Net {
    /// `seed` makes sequence numbers hard to guess.
    pub fn new(address: Ipv4Addr, mtu: u16, seed: u64) -> Self {
        let mut outgoing = Outgoing::new();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(
            config,
            &mut Card::new(None, &mut outgoing, mtu),
            Instant::ZERO,
        );
        interface.update_ip_addrs(|addresses| {
            // An empty list has room; it is a fixed array whose size is a build option of the library.
            let _ = addresses.push(IpCidr::new(address.into(), 32));
        });
        // Everything is reached through the tunnel; the gateway is never spoken to on a link without neighbours.
        let _ = interface.routes_mut().add_default_ipv4_route(address);
        Self {
            interface,
            outgoing,
            mtu,
            nobody: SocketSet::new(Vec::new()),
        }
    }

    /// Hands one packet to a connection.
    pub fn receive(&mut self, packet: &[u8], sockets: &mut SocketSet<'static>, now: Instant) {
        let mut card = Card::new(Some(packet), &mut self.outgoing, self.mtu);
        self.interface.poll_ingress_single(now, &mut card, sockets);
    }

    /// Answers one packet that belongs to no connection.
    pub fn answer(&mut self, packet: &[u8], now: Instant) {
        let mut card = Card::new(Some(packet), &mut self.outgoing, self.mtu);
        self.interface
            .poll_ingress_single(now, &mut card, &mut self.nobody);
    }

    /// Sends what a connection has to say now, as far as the queue has room.
    pub fn transmit(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        let mut card = Card::new(None, &mut self.outgoing, self.mtu);
        while self.interface.poll_egress(now, &mut card, sockets) == PollResult::SocketStateChanged
        {
        }
    }

    /// When a connection's own timers want attention next.
    pub fn due(&mut self, sockets: &SocketSet<'static>, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, sockets)
    }

    pub fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// For guests made of the same parts.
    #[cfg(test)]
    pub fn interface(&mut self) -> &mut Interface {
        &mut self.interface
    }
}
