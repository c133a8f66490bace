//! Why a port has no connection in its VLAN.

use crate::LanPort;

/// The bridge forwards frames of all VLANs to all ports.
pub(crate) fn not_aware(port: &LanPort) -> Option<String> {
    let vlan = port.vlan?;
    let bridge = &port.bridge;
    Some(format!(
        "bridge {bridge} on this node is not VLAN-aware, so nothing can be in its VLAN {vlan}; run `ip link set {bridge} type bridge vlan_filtering 1` there"
    ))
}
