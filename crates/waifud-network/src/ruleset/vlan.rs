//! Ports in a VLAN of a bridge of the host: closed until the bridge has put them there.
//!
//! The hypervisor attaches a new port, which then is in the bridge's default VLAN. So each direction has a condition of its
//! own in addition to the rules of [`super::lan`]. From the guest, the kernel compares the VLAN that the bridge gives to
//! untagged frames of the port (`meta ibrpvid`) at each frame; tagged frames are never accepted. To the guest, the interface
//! must be in a set to which the agent adds it once the port is in its VLAN only. Elements of that set are interface indexes:
//! a guest that starts again has a port with the same name and another index. Frames of the port's VLAN leave it without a tag.
//!
//! On a bridge that is not VLAN-aware, `meta ibrpvid` has no value and matches nothing. Kernels without it refuse the rule,
//! so it is left out there, and the ports stay closed. Without ports in a VLAN, none of these rules exists.

use std::collections::BTreeSet;

use super::{HostSide, TABLE, collection};
use crate::NetworkState;

/// Indexes of the interfaces of ports that are in their VLAN and in no other one.
pub(crate) type Ready = BTreeSet<u32>;

/// The set of [`Ready`]. Comparisons of rules leave out its elements.
pub(crate) const READY: &str = "vlan_ready";

/// Sets of the bridge table.
pub(super) fn collections(state: &NetworkState, host: &HostSide, ready: &Ready) -> String {
    if !state.has_vlans() {
        return String::new();
    }
    let ports = || state.lan.iter().filter_map(|p| Some((&p.tap, p.vlan?)));
    let mut text = collection(
        "set vlan_ports",
        "type ifname",
        ports().map(|(tap, _)| format!("\"{tap}\"")),
    );
    if host.knows_vlans {
        text.push_str(&collection(
            "set port_vlans",
            "typeof iifname . meta ibrpvid",
            ports().map(|(tap, vlan)| format!("\"{tap}\" . {vlan}")),
        ));
    }
    let ready = ready.iter().filter(|_| host.knows_vlans);
    text.push_str(&collection(
        &format!("set {READY}"),
        "type iface_index",
        ready.map(ToString::to_string),
    ));
    text
}

/// The rule for frames from ports in a VLAN, before those for other ports.
pub(super) fn from_port(state: &NetworkState) -> &'static str {
    if state.has_vlans() {
        "\t\tiifname @vlan_ports goto from_vlan_port\n"
    } else {
        ""
    }
}

/// The same for frames to them.
pub(super) fn to_port(state: &NetworkState) -> &'static str {
    if state.has_vlans() {
        "\t\toifname @vlan_ports oif != @vlan_ready drop\n"
    } else {
        ""
    }
}

/// The chain for frames from ports in a VLAN.
pub(super) fn chains(state: &NetworkState, host: &HostSide) -> String {
    if !state.has_vlans() {
        return String::new();
    }
    let accepts = if host.knows_vlans {
        "\t\tiif @vlan_ready iifname . meta ibrpvid @port_vlans goto from_lan_port\n"
    } else {
        ""
    };
    format!("\tchain from_vlan_port {{\n{accepts}\t\tdrop\n\t}}\n")
}

/// The transaction that replaces the elements of the set.
pub(crate) fn set_ready(ready: &Ready) -> String {
    let flush = format!("flush set bridge {TABLE} {READY}\n");
    if ready.is_empty() {
        return flush;
    }
    let ready: Vec<_> = ready.iter().map(ToString::to_string).collect();
    let ready = ready.join(", ");
    format!("{flush}add element bridge {TABLE} {READY} {{ {ready} }}\n")
}

/// Rules that load only if the kernel knows the VLAN of a port.
pub(crate) const PROBE: &str = "table bridge waifud-probe {
\tchain probe {
\t\tmeta ibrpvid 1 drop
\t}
}
";
