//! States for tests: one node's network with numbered guests.

use uuid::Uuid;
use waifud_types::{InstanceId, MacAddr, TapName};

use crate::{IDENTITIES, LanPort, NetworkState, Port};

/// Guest number `index`: `guest-INDEX`, 52:54:00:00:00:(INDEX + 1), 10.144.1.(11 + INDEX), tap `wf-` + a fixed number.
pub(crate) fn port(index: u8) -> Port {
    let mut bytes = [0x77; 16];
    bytes[15] = index;
    let instance: InstanceId = Uuid::from_bytes(bytes).to_string().parse().unwrap();
    Port {
        instance,
        name: format!("guest-{index}").parse().unwrap(),
        tap: TapName::of(instance, 0),
        mac: MacAddr::of_guest([0, 0, index + 1]),
        address: [10, 144, 1, 11 + index].into(),
        allow_addresses: Vec::new(),
        publish: Vec::new(),
    }
}

/// Guest number `index` on `br0`: `lan-INDEX`, 52:54:00:00:01:(INDEX + 1), with an identity and no fixed address.
pub(crate) fn lan_port(index: u8) -> LanPort {
    let mut bytes = [0x78; 16];
    bytes[15] = index;
    let instance: InstanceId = Uuid::from_bytes(bytes).to_string().parse().unwrap();
    let identity = u32::from(IDENTITIES.network()) + u32::from(index) + 1;
    LanPort {
        instance,
        name: format!("lan-{index}").parse().unwrap(),
        tap: TapName::of(instance, 0),
        bridge: "br0".to_owned(),
        mac: MacAddr::of_guest([0, 1, index + 1]),
        given: None,
        fixed: Vec::new(),
        identity: Some(identity.into()),
    }
}

/// 10.144.1.0/24 on `waifu0` with `guests` ports.
pub(crate) fn state(guests: u8) -> NetworkState {
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
    }
}
