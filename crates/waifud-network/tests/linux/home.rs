//! A bridge of the host with a simulated home network behind it, and guests on that bridge.

use std::net::{IpAddr, Ipv4Addr};

use waifud_network::{GuestNetwork, LanPort, PortCounters, samples};
use waifud_types::{MacAddr, TapName};

use crate::frames::{BROADCAST, IPV4, Mac, dhcp_answer, ethernet, ipv4, udp};
use crate::lab::{Lab, veth};
use crate::namespace::Namespace;
use crate::wire::{Wire, eventually};

pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
pub const ROUTER_MAC: Mac = [0x02, 0, 0, 0, 0, 0x01];
/// The node's own address there.
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);

pub struct Home {
    pub namespace: Namespace,
    /// The router's end of its link.
    pub wire: Wire,
}

pub struct LanGuest {
    pub namespace: Namespace,
    pub port: LanPort,
    pub wire: Wire,
}

impl Home {
    /// Creates a bridge as `ifupdown` would, with an address if one is given, and a router behind it.
    pub async fn new(lab: &Lab, bridge: &str, with_address: bool) -> Self {
        // Without multicast snooping, the bridge forwards frames with wrong checksums, which these tests send.
        lab.node
            .ip(&format!("link add {bridge} type bridge mcast_snooping 0"));
        lab.node.ip(&format!("link set {bridge} up"));
        let namespace = Namespace::new();
        let cable = format!("c{bridge}");
        veth((&cable, Some(MacAddr::new(ROUTER_MAC))), "eth0", &namespace).await;
        // A bridge takes the lowest MAC address of its ports. A random one could be higher than that of a guest's tap, whose
        // attachment would change the bridge's, and the rules name it.
        let last = bridge.bytes().last().unwrap();
        let mac = format!("02:00:00:00:01:{last:02x}");
        lab.node
            .ip(&format!("link set {cable} address {mac} master {bridge}"));
        lab.node.ip(&format!("link set {cable} up"));
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("addr add {ROUTER}/24 dev eth0"));
        forwards(lab, &cable);
        if with_address {
            lab.node.ip(&format!("addr add {NODE}/24 dev {bridge}"));
        }
        let wire = Wire::new(&namespace, "eth0");
        Self { namespace, wire }
    }

    /// Its DHCP server gives the guest an address.
    pub fn gives(&self, mac: Mac, address: Ipv4Addr) {
        let message = dhcp_answer(5, mac, address);
        let packet = ipv4(ROUTER, Ipv4Addr::BROADCAST, 17, &udp(67, 68, &message));
        self.wire
            .send(&ethernet(BROADCAST, ROUTER_MAC, IPV4, &packet));
    }
}

impl LanGuest {
    pub async fn attach(lab: &Lab, index: usize) -> Self {
        let port = lab.state.lan[index].clone();
        let (namespace, wire) = lab
            .attach_tap(&port.tap, port.mac, &port.bridge, "off")
            .await;
        Self {
            namespace,
            port,
            wire,
        }
    }

    pub fn mac(&self) -> Mac {
        self.port.mac.bytes()
    }

    /// Configures the guest like its DHCP client does, with the router as its gateway.
    pub fn takes(&self, address: Ipv4Addr) {
        self.namespace
            .ip(&format!("addr add {address}/24 dev eth0"));
        self.namespace
            .ip(&format!("route replace default via {ROUTER}"));
    }

    /// Sends a DHCP answer of the router, waits until the address is learned, and configures it.
    pub fn is_given(&self, lab: &Lab, home: &Home, address: Ipv4Addr) {
        home.gives(self.mac(), address);
        eventually("the address is learned", || {
            learned_by_kernel(lab, &self.port.tap).contains(&address.into())
        });
        self.takes(address);
    }
}

/// The addresses that the rules have learned at a port, read as the agent does.
pub async fn learned(lab: &Lab, tap: &TapName) -> Vec<IpAddr> {
    let mut observations = lab.network.observe_ports().await.unwrap();
    observations.remove(tap).unwrap().learned
}

pub async fn counters(lab: &Lab, tap: &TapName) -> PortCounters {
    lab.network.counters(tap).await.unwrap().unwrap()
}

/// The same, read without the adapter.
pub fn learned_by_kernel(lab: &Lab, tap: &TapName) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for set in ["learned4", "learned6"] {
        let text = lab
            .node
            .tool("nft", &["list", "set", "bridge", "waifud", set]);
        let prefix = format!("\"{tap}\" . 0x");
        for part in text.split(&prefix).skip(1) {
            let digits: String = part.chars().take_while(char::is_ascii_hexdigit).collect();
            let number = u128::from_str_radix(&digits, 16).unwrap();
            found.push(if set == "learned4" {
                IpAddr::V4(u32::try_from(number).unwrap().into())
            } else {
                IpAddr::V6(number.into())
            });
        }
    }
    found
}

pub fn forwards(lab: &Lab, port: &str) {
    eventually("the port forwards", || {
        let link = lab.node.ip(&format!("-d link show {port}"));
        link.contains("state forwarding")
    });
}

/// A bridge `br0` with a home, and guest 0 on it with an address from the home's DHCP server. Metadata is connected.
pub async fn guest_at_home(lab: &mut Lab, address: Ipv4Addr) -> (Home, LanGuest) {
    lab.connect_metadata().await;
    let home = Home::new(lab, "br0", true).await;
    lab.state.lan = vec![lan_port(0, "br0")];
    lab.ensure().await;
    let guest = LanGuest::attach(lab, 0).await;
    guest.is_given(lab, &home, address);
    (home, guest)
}

/// Guest number `index` on `bridge`.
pub fn lan_port(index: u8, bridge: &str) -> LanPort {
    LanPort {
        bridge: bridge.to_owned(),
        ..samples::lan_port(index)
    }
}
