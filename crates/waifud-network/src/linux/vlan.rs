//! Ports in a VLAN: puts them there and in no other VLAN, and opens them afterwards.
//!
//! The rules keep such a port closed until its interface is in a set; see `ruleset::vlan`. It is added to the set only after the
//! kernel has listed its VLANs, and removed once they differ, or once its bridge does not tell VLANs apart.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkExtentMask, LinkMessage,
};
use rtnetlink::{Handle, LinkBridgeVlan};
use waifud_types::VlanId;

use super::links::{Link, Links};
use super::netlink::{carry_out, kernel_error};
use crate::ruleset::vlan::Ready;
use crate::{LanPort, NetworkError, NetworkState};

/// The VLANs of a port, with the flags of each.
type Membership = BTreeMap<u16, BridgeVlanInfoFlags>;

/// The VLANs of all ports of bridges, by the index of the interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct PortVlans(BTreeMap<u32, Membership>);

/// What was tried without success, by the index of the interface. It is tried again when the state is applied again.
pub(super) type Failed = BTreeMap<u32, String>;

/// A port that is not exactly in its VLAN, and can be put there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Astray<'a> {
    tap: &'a Link,
    vlan: VlanId,
}

/// The ports in a VLAN, as found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Found<'a> {
    pub(super) ready: Ready,
    pub(super) astray: Vec<Astray<'a>>,
}

/// Untagged frames of the guest are in the VLAN, and frames of the VLAN leave without a tag.
fn only() -> BridgeVlanInfoFlags {
    BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged
}

impl PortVlans {
    /// Reads them. Nothing is read if no port of the state is in a VLAN.
    pub(super) async fn read(handle: &Handle, state: &NetworkState) -> Result<Self, NetworkError> {
        if !state.has_vlans() {
            return Ok(Self::default());
        }
        let filter = vec![LinkExtentMask::BrvlanCompressed];
        let messages: Vec<LinkMessage> = handle
            .link()
            .get()
            .set_filter_mask(AddressFamily::Bridge, filter)
            .execute()
            .try_collect()
            .await
            .map_err(kernel_error("listing the VLANs of bridges"))?;
        let all = messages.iter().filter_map(|message| {
            let mut attributes = message.attributes.iter();
            let specs = attributes.find_map(|attribute| match attribute {
                LinkAttribute::AfSpecBridge(specs) => Some(specs),
                _ => None,
            })?;
            Some((message.header.index, membership(specs)))
        });
        Ok(Self(all.collect()))
    }

    fn is_only_in(&self, index: u32, vlan: VlanId) -> bool {
        let vlans = self.0.get(&index);
        vlans.is_some_and(|vlans| vlans.len() == 1 && vlans.get(&vlan.get()) == Some(&only()))
    }

    /// Compares them with the state. Taps that do not exist yet, or are not ports of their bridge, are neither ready nor astray.
    pub(super) fn compare<'a>(&self, state: &NetworkState, links: &'a Links) -> Found<'a> {
        let mut found = Found::default();
        for (port, vlan) in in_vlans(state) {
            let Some(tap) = at_its_bridge(port, links) else {
                continue;
            };
            if self.is_only_in(tap.index, vlan) {
                found.ready.insert(tap.index);
            } else {
                found.astray.push(Astray { tap, vlan });
            }
        }
        found
    }

    /// Puts a port in its VLAN only.
    async fn repair(&self, handle: &Handle, astray: &Astray<'_>) -> Result<(), NetworkError> {
        let Astray { tap, vlan } = astray;
        let what = format!("putting {} in VLAN {vlan}", tap.name);
        let wanted = LinkBridgeVlan::new(tap.index).vlan(vlan.get(), only());
        carry_out(&what, handle.link().set(wanted.build()).execute()).await?;
        let present = self.0.get(&tap.index).into_iter().flatten();
        let others = present.filter(|(other, _)| **other != vlan.get());
        let mut left = LinkBridgeVlan::new(tap.index);
        let mut is_in_others = false;
        for (other, _) in others {
            left = left.vlan(*other, BridgeVlanInfoFlags::empty());
            is_in_others = true;
        }
        if is_in_others {
            let request = handle.link().del_with_message(left.build());
            carry_out(&what, request.execute()).await?;
        }
        Ok(())
    }
}

/// Puts ports in their VLANs, and returns those that are there then.
pub(super) async fn ensure(
    handle: &Handle,
    state: &NetworkState,
    failed: &mut Failed,
) -> Result<Ready, NetworkError> {
    failed.clear();
    if !state.has_vlans() {
        return Ok(Ready::new());
    }
    // Ports may have been attached since the links were read.
    let links = Links::read(handle).await?;
    let vlans = PortVlans::read(handle, state).await?;
    let found = vlans.compare(state, &links);
    if found.astray.is_empty() {
        return Ok(found.ready);
    }
    for astray in &found.astray {
        // The port of one guest must not affect others.
        if let Err(error) = vlans.repair(handle, astray).await {
            failed.insert(astray.tap.index, error.to_string());
        }
    }
    let vlans = PortVlans::read(handle, state).await?;
    Ok(vlans.compare(state, &links).ready)
}

/// The first difference to what `ensure` has left, as text. `open` are the interfaces that the rules accept.
pub(super) fn difference(
    found: &Found<'_>,
    links: &Links,
    open: &Ready,
    failed: &Failed,
) -> Option<String> {
    let mut astray = found.astray.iter();
    if let Some(port) = astray.find(|port| !failed.contains_key(&port.tap.index)) {
        return Some(format!(
            "{} is not only in VLAN {}",
            port.tap.name, port.vlan
        ));
    }
    // A guest that has stopped has no interface any more.
    let mut differs = open.symmetric_difference(&found.ready);
    let name = differs.find_map(|index| links.name_of(*index))?;
    Some(format!("the VLANs of {name} or of its bridge have changed"))
}

/// Why a port could not be put in its VLAN.
pub(super) fn trouble(links: &Links, port: &LanPort, failed: &Failed) -> Option<String> {
    let tap = port.vlan.and_then(|_| links.named(port.tap.as_str()))?;
    failed.get(&tap.index).cloned()
}

fn in_vlans(state: &NetworkState) -> impl Iterator<Item = (&LanPort, VlanId)> {
    state.lan.iter().filter_map(|port| Some((port, port.vlan?)))
}

/// The interface of a port that is attached to its bridge, if that tells VLANs apart.
fn at_its_bridge<'a>(port: &LanPort, links: &'a Links) -> Option<&'a Link> {
    let bridge = links.named(&port.bridge);
    let bridge = bridge.filter(|link| link.is_vlan_aware)?;
    let tap = links.named(port.tap.as_str())?;
    tap.is_port_of(bridge.index).then_some(tap)
}

/// Reads the attributes of one port. A range of VLANs with the same flags has two: its first and its last one.
fn membership(specs: &[AfSpecBridge]) -> Membership {
    let ends = BridgeVlanInfoFlags::RangeBegin | BridgeVlanInfoFlags::RangeEnd;
    let mut vlans = Membership::new();
    let mut begun: Option<&BridgeVlanInfo> = None;
    for spec in specs {
        let AfSpecBridge::VlanInfo(info) = spec else {
            continue;
        };
        if info.flags.contains(BridgeVlanInfoFlags::RangeBegin) {
            begun = Some(info);
            continue;
        }
        let first = begun.take().map_or(info.vid, |begin| begin.vid);
        for vlan in first..=info.vid {
            vlans.insert(vlan, info.flags.difference(ends));
        }
    }
    vlans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(vid: u16, flags: BridgeVlanInfoFlags) -> AfSpecBridge {
        AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid })
    }

    #[test]
    fn ranges_of_vlans_are_expanded() {
        let none = BridgeVlanInfoFlags::empty();
        let tagged = [
            info(1, only()),
            info(5, BridgeVlanInfoFlags::RangeBegin),
            info(7, BridgeVlanInfoFlags::RangeEnd),
            info(4094, none),
        ];
        let all: Vec<_> = membership(&tagged).into_iter().collect();
        let expected = [(1, only()), (5, none), (6, none), (7, none), (4094, none)];
        assert_eq!(all, expected);
        assert_eq!(membership(&[]), Membership::new());
    }

    #[test]
    fn a_port_is_in_its_vlan_if_it_is_untagged_there_and_in_no_other() {
        let vlan = VlanId::try_from(20).unwrap();
        let is = |vlans: &[(u16, BridgeVlanInfoFlags)]| {
            let vlans = PortVlans([(7, vlans.iter().copied().collect())].into());
            vlans.is_only_in(7, vlan)
        };
        assert!(is(&[(20, only())]));
        assert!(!is(&[]));
        assert!(!is(&[(21, only())]));
        assert!(!is(&[(1, BridgeVlanInfoFlags::Untagged), (20, only())]));
        assert!(!is(&[(20, BridgeVlanInfoFlags::Pvid)]), "tagged");
        assert!(
            !is(&[(20, BridgeVlanInfoFlags::Untagged)]),
            "not the default"
        );
        assert!(!PortVlans::default().is_only_in(7, vlan));
    }
}
