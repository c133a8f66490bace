//! States for tests of this crate and of others: one node's network with numbered guests.
#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "for tests: every text here is valid"
)]

use waifud_types::firewall::FirewallRule;
use waifud_types::{InstanceId, MacAddr, TapName};

use crate::{
    IDENTITIES, LanPort, NetworkState, Port, PortFirewall, PortRule, RemoteName, RemoteSubnet,
};

fn instance(network: u8, index: u8) -> InstanceId {
    let mut id = format!("{network:02x}").repeat(15);
    for dash in [8, 13, 18, 23] {
        id.insert(dash, '-');
    }
    format!("{id}{index:02x}").parse().unwrap()
}

/// Guest number `index`: `guest-INDEX`, 52:54:00:00:00:(INDEX + 1), 10.144.1.(11 + INDEX), tap `wf-` + a fixed number.
pub fn port(index: u8) -> Port {
    let instance = instance(0x77, index);
    Port {
        instance,
        name: format!("guest-{index}").parse().unwrap(),
        tap: TapName::of(instance, 0),
        mac: MacAddr::of_guest([0, 0, index + 1]),
        address: [10, 144, 1, 11 + index].into(),
        home: None,
        allow_addresses: Vec::new(),
        publish: Vec::new(),
        firewall: PortFirewall::default(),
    }
}

/// Guest number `index` on `br0`: `lan-INDEX`, 52:54:00:00:01:(INDEX + 1), with an identity and no fixed address.
pub fn lan_port(index: u8) -> LanPort {
    let instance = instance(0x78, index);
    let identity = u32::from(IDENTITIES.network()) + u32::from(index) + 1;
    LanPort {
        instance,
        name: format!("lan-{index}").parse().unwrap(),
        tap: TapName::of(instance, 0),
        bridge: "br0".to_owned(),
        vlan: None,
        mac: MacAddr::of_guest([0, 1, index + 1]),
        given: None,
        fixed: Vec::new(),
        identity: Some(identity.into()),
    }
}

/// Node number `index`: `node-INDEX` with 10.144.INDEX.0/24, over the fabric `fab0`.
pub fn remote(index: u8) -> RemoteSubnet {
    RemoteSubnet {
        node: format!("node-{index}").parse().unwrap(),
        subnet: format!("10.144.{index}.0/24").parse().unwrap(),
        fabric: Some("fab0".to_owned()),
        shared: false,
    }
}

/// A guest of node number `index` with the address 10.144.INDEX.`host`.
pub fn remote_name(name: &str, index: u8, host: u8) -> RemoteName {
    RemoteName {
        name: name.parse().unwrap(),
        address: [10, 144, index, host].into(),
    }
}

/// 10.144.1.0/24 on `waifu0` with `guests` ports.
pub fn state(guests: u8) -> NetworkState {
    NetworkState {
        bridge: "waifu0".to_owned(),
        subnet: "10.144.1.0/24".parse().unwrap(),
        gateway: [10, 144, 1, 1].into(),
        gateway_mac: MacAddr::new([0x02, 0x77, 0x61, 0x69, 0x66, 0x75]),
        metadata_interface: "wgw0".to_owned(),
        mtu: 1500,
        domain: "waifu.internal".to_owned(),
        ports: (0..guests).map(port).collect(),
        lan: Vec::new(),
        refuse_reports: false,
        remote_subnets: Vec::new(),
        remote_names: [].into(),
    }
}

/// A firewall rule as words: direction, action, then a protocol (`-` for any) and ports separated by commas, if it has some. For
/// example `in allow tcp 22,80-90`.
pub fn port_rule(words: &str, peers: Option<&[&str]>) -> PortRule {
    let mut words = words.split(' ');
    let json = serde_json::json!({
        "direction": words.next(),
        "action": words.next(),
        "protocol": words.next().filter(|word| *word != "-"),
        "ports": words.next().map_or_else(Vec::new, |ports| ports.split(',').collect()),
        "peer": null,
    });
    let rule: FirewallRule = serde_json::from_value(json).unwrap();
    PortRule {
        id: rule.id(),
        direction: rule.direction,
        action: rule.action,
        protocol: rule.protocol,
        ports: rule.ports,
        peers: peers.map(|peers| peers.iter().map(|net| net.parse().unwrap()).collect()),
    }
}
