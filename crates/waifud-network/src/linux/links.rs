//! Network interfaces as the kernel lists them, and the guests' bridge.

use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkUnspec};
use waifud_types::MacAddr;

use super::netlink::{carry_out, kernel_error};
use crate::{NetworkError, NetworkState};

#[expect(
    clippy::struct_excessive_bools,
    reason = "independent properties of a link"
)]
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) is_bridge: bool,
    /// Whether it is a bridge that tells VLANs apart.
    pub(super) is_vlan_aware: bool,
    /// A WireGuard or TUN interface.
    pub(super) is_tunnel: bool,
    mac: Vec<u8>,
    mtu: u32,
    /// The index of the bridge that it is a port of.
    controller: Option<u32>,
    /// Whether it is an isolated port: it exchanges no frames with other isolated ports.
    isolated: bool,
}

/// All links of this network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Links(Vec<Link>);

impl Links {
    pub(super) async fn read(handle: &Handle) -> Result<Self, NetworkError> {
        let messages: Vec<LinkMessage> = handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(kernel_error("listing links"))?;
        Ok(Self(messages.iter().map(Link::from).collect()))
    }

    pub(super) fn named(&self, name: &str) -> Option<&Link> {
        self.0.iter().find(|link| link.name == name)
    }

    pub(super) fn name_of(&self, index: u32) -> Option<&str> {
        let link = self.0.iter().find(|link| link.index == index)?;
        Some(&link.name)
    }

    /// Names of all bridges, sorted.
    pub(super) fn bridges(&self) -> Vec<String> {
        let bridges = self.0.iter().filter(|link| link.is_bridge);
        let mut names: Vec<_> = bridges.map(|link| link.name.clone()).collect();
        names.sort();
        names
    }

    /// Names of the bridges that tell VLANs apart, sorted.
    pub(super) fn vlan_aware(&self) -> Vec<String> {
        let bridges = self.0.iter().filter(|link| link.is_vlan_aware);
        let mut names: Vec<_> = bridges.map(|link| link.name.clone()).collect();
        names.sort();
        names
    }

    /// Every bridge with the names of its ports.
    pub(super) fn bridges_with_ports(&self) -> Vec<(String, Vec<String>)> {
        let bridges = self.0.iter().filter(|link| link.is_bridge);
        bridges
            .map(|link| (link.name.clone(), self.ports_of(link.index)))
            .collect()
    }

    /// Names of links that are not bridges.
    pub(super) fn others(&self) -> Vec<String> {
        let others = self.0.iter().filter(|link| !link.is_bridge);
        others.map(|link| link.name.clone()).collect()
    }

    /// Names of a bridge's ports, sorted.
    pub(super) fn ports_of(&self, bridge: u32) -> Vec<String> {
        let ports = self.0.iter();
        let ports = ports.filter(|link| link.controller == Some(bridge));
        let mut names: Vec<_> = ports.map(|link| link.name.clone()).collect();
        names.sort();
        names
    }

    /// Taps of the state that exist but are not isolated ports of the bridge. The hypervisor attaches them when it creates
    /// them, but a bridge that was deleted and created again has lost its ports.
    pub(super) fn misattached(&self, state: &NetworkState, bridge: u32) -> Vec<&Link> {
        state
            .ports
            .iter()
            .filter_map(|port| self.named(port.tap.as_str()))
            .filter(|link| link.controller != Some(bridge) || !link.isolated)
            .collect()
    }

    /// How the bridge differs from the state, as text; `None` if it does not.
    pub(super) fn bridge_difference(&self, state: &NetworkState) -> Option<String> {
        let name = &state.bridge;
        let Some(link) = self.named(name) else {
            return Some(format!("bridge {name} was deleted"));
        };
        if !link.up {
            return Some(format!("bridge {name} is down"));
        }
        if !link.is_as_wanted(state) {
            return Some(format!("bridge {name} was changed"));
        }
        None
    }
}

impl Link {
    /// Whether it is a port of the bridge.
    pub(super) fn is_port_of(&self, bridge: u32) -> bool {
        self.controller == Some(bridge)
    }

    /// Whether it is a port of the bridge and not isolated.
    pub(super) fn is_open_port_of(&self, bridge: u32) -> bool {
        self.controller == Some(bridge) && !self.isolated
    }

    /// Its MAC address, if it is an Ethernet interface.
    pub(super) fn mac(&self) -> Option<MacAddr> {
        let bytes: [u8; 6] = self.mac.as_slice().try_into().ok()?;
        Some(MacAddr::new(bytes))
    }

    fn is_as_wanted(&self, state: &NetworkState) -> bool {
        self.is_bridge
            && self.up
            && self.mac == state.gateway_mac.bytes()
            && self.mtu == u32::from(state.mtu)
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(InfoKind::Bridge) => link.is_bridge = true,
                            LinkInfo::Data(InfoData::Bridge(data)) => {
                                link.is_vlan_aware =
                                    data.contains(&InfoBridge::VlanFiltering(true));
                            }
                            LinkInfo::Kind(InfoKind::Wireguard | InfoKind::Tun) => {
                                link.is_tunnel = true;
                            }
                            LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                                link.isolated = data.contains(&InfoBridgePort::Isolated(true));
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// Creates the bridge or corrects its settings, and returns its index. A link of that name that waifud did not create is
/// not changed: taking over a bridge that carries a LAN would interrupt it.
pub(super) async fn ensure_bridge(
    handle: &Handle,
    links: &Links,
    state: &NetworkState,
    ours: Option<u32>,
) -> Result<u32, NetworkError> {
    let name = &state.bridge;
    let mac = state.gateway_mac;
    match links.named(name) {
        None => {
            create_bridge(handle, name, mac, state.mtu).await?;
            let mut found = handle.link().get().match_name(name.clone()).execute();
            found
                .try_next()
                .await
                .map_err(kernel_error(&format!("finding bridge {name}")))?
                .map(|message| message.header.index)
                .ok_or_else(|| NetworkError::Kernel {
                    what: format!("finding bridge {name}"),
                    message: "it was deleted again".to_owned(),
                })
        }
        // The MAC address is set when the bridge is created, so it identifies our bridge even if we were killed right after.
        Some(link) if link.is_bridge && (link.mac == mac.bytes() || ours == Some(link.index)) => {
            if !link.is_as_wanted(state) {
                let wanted = LinkUnspec::new_with_index(link.index)
                    .address(mac.bytes().to_vec())
                    .mtu(u32::from(state.mtu))
                    .up()
                    .build();
                carry_out(
                    &format!("setting up bridge {name}"),
                    handle.link().set(wanted).execute(),
                )
                .await?;
            }
            Ok(link.index)
        }
        Some(_) => Err(NetworkError::Kernel {
            what: format!("using {name} as the guests' bridge"),
            message: "it exists and was not created by waifud; choose another name".to_owned(),
        }),
    }
}

async fn create_bridge(
    handle: &Handle,
    name: &str,
    mac: MacAddr,
    mtu: u16,
) -> Result<(), NetworkError> {
    let message = LinkBridge::new(name)
        .address(mac.bytes().to_vec())
        .mtu(u32::from(mtu))
        .set_info_data(InfoData::Bridge(vec![
            // No other switch is attached, so STP is not needed, and ports forward immediately.
            InfoBridge::StpState(BridgeStpState::Disabled),
            InfoBridge::ForwardDelay(0),
            InfoBridge::MulticastSnooping(false),
        ]))
        .build();
    carry_out(
        &format!("creating bridge {name}"),
        handle.link().add(message).execute(),
    )
    .await
}

/// Attaches a tap to the bridge.
pub(super) async fn attach(
    handle: &Handle,
    tap: &Link,
    bridge: u32,
    isolated: bool,
) -> Result<(), NetworkError> {
    let what = format!("attaching {}", tap.name);
    let port = LinkUnspec::new_with_index(tap.index)
        .controller(bridge)
        .build();
    let set = async {
        handle.link().set(port).execute().await?;
        let isolated = LinkBridgePort::new(tap.index).isolated(isolated).build();
        handle.link().set_port(isolated).execute().await
    };
    set.await.map_err(kernel_error(&what))
}

/// Whether the gateway's address is on the bridge.
pub(super) async fn has_gateway(
    handle: &Handle,
    bridge: u32,
    state: &NetworkState,
) -> Result<bool, NetworkError> {
    let addresses = addresses(handle, bridge).await?;
    Ok(addresses.iter().any(|address| is_gateway(address, state)))
}

/// Adds the gateway's address to the bridge, and removes the former gateway's address (`before`).
pub(super) async fn ensure_gateway(
    handle: &Handle,
    bridge: u32,
    state: &NetworkState,
    before: Option<IpAddr>,
) -> Result<(), NetworkError> {
    let gateway = IpAddr::V4(state.gateway);
    for address in addresses(handle, bridge).await? {
        // The former gateway, or the present one with a former prefix length.
        let held = local(&address);
        let was_gateway = held == Some(gateway) || (held.is_some() && held == before);
        if was_gateway && !is_gateway(&address, state) {
            carry_out(
                "removing an address of the bridge",
                handle.address().del(address).execute(),
            )
            .await?;
        }
    }
    if has_gateway(handle, bridge, state).await? {
        return Ok(());
    }
    carry_out(
        &format!("adding {gateway} to {}", state.bridge),
        handle
            .address()
            .add(bridge, gateway, state.subnet.prefix_len())
            .execute(),
    )
    .await
}

async fn addresses(handle: &Handle, link: u32) -> Result<Vec<AddressMessage>, NetworkError> {
    let all: Vec<AddressMessage> = handle
        .address()
        .get()
        .set_link_index_filter(link)
        .execute()
        .try_collect()
        .await
        .map_err(kernel_error("listing addresses"))?;
    Ok(all
        .into_iter()
        .filter(|a| a.header.family == AddressFamily::Inet && a.header.index == link)
        .collect())
}

fn local(address: &AddressMessage) -> Option<IpAddr> {
    address.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    })
}

fn is_gateway(address: &AddressMessage, state: &NetworkState) -> bool {
    local(address) == Some(IpAddr::V4(state.gateway))
        && address.header.prefix_len == state.subnet.prefix_len()
}

/// Deletes a link, if it exists.
pub(super) async fn delete(handle: &Handle, links: &Links, name: &str) -> Result<(), NetworkError> {
    let Some(link) = links.named(name) else {
        return Ok(());
    };
    carry_out(
        &format!("deleting {name}"),
        handle.link().del(link.index).execute(),
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::state;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            up: true,
            ..Link::default()
        }
    }

    #[test]
    fn only_taps_of_the_state_are_reported_as_misattached() {
        let state = state(3);
        let mut attached = link(11, state.ports[0].tap.as_str());
        attached.controller = Some(7);
        attached.isolated = true;
        let mut open = link(12, state.ports[1].tap.as_str());
        open.controller = Some(7);
        let links = Links(vec![
            attached,
            open,
            link(13, "eth0"),
            link(14, "wf-00000000"),
        ]);
        let names: Vec<_> = links
            .misattached(&state, 7)
            .iter()
            .map(|l| l.index)
            .collect();
        assert_eq!(names, [12]);
        let names: Vec<_> = links
            .misattached(&state, 8)
            .iter()
            .map(|l| l.index)
            .collect();
        assert_eq!(names, [11, 12]);
    }

    #[test]
    fn differences_of_the_bridge_are_described() {
        let state = state(0);
        let mut bridge = Link {
            is_bridge: true,
            mac: state.gateway_mac.bytes().to_vec(),
            mtu: 1500,
            ..link(7, "waifu0")
        };
        assert_eq!(Links(vec![bridge.clone()]).bridge_difference(&state), None);
        bridge.mtu = 1400;
        let changed = Links(vec![bridge.clone()]).bridge_difference(&state);
        assert_eq!(changed.as_deref(), Some("bridge waifu0 was changed"));
        bridge.up = false;
        let down = Links(vec![bridge]).bridge_difference(&state);
        assert_eq!(down.as_deref(), Some("bridge waifu0 is down"));
        let gone = Links::default().bridge_difference(&state);
        assert_eq!(gone.as_deref(), Some("bridge waifu0 was deleted"));
    }
}
