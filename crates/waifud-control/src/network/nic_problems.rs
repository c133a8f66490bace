//! Problems with nics that are added to an instance or removed from it.

use waifud_api::Problem;
use waifud_api::hint::{Hint, HintAction, HintKind};
use waifud_types::{Name, Verdict};

/// The instance has as many nics as it can have.
pub fn too_many_nics(most: usize) -> Problem {
    Problem::new(
        422,
        "too-many",
        format!("an instance has at most {most} nics"),
    )
    .field("spec.nics")
    .hint("remove a nic first")
}

/// The instance has no such nic.
pub fn unknown_nic(instance: &Name, wanted: &str) -> Problem {
    let shown: String = wanted.chars().take(80).collect();
    Problem::new(404, "not-found", format!("{instance} has no nic {shown:?}")).hint(Hint::on(
        &HintAction::Show,
        HintKind::Instance,
        instance.as_str(),
    ))
}

/// The first nic cannot be removed.
pub fn first_nic(instance: &Name, nic: &Name) -> Problem {
    Problem::new(
        409,
        "first-nic",
        format!(
            "{nic} is the first nic of {instance}, which has its default route and reaches its metadata and published ports"
        ),
    )
    .hint("create another instance with the nics that you want")
}

/// Another nic has the MAC address.
pub fn added_mac_taken(index: usize) -> Problem {
    Problem::new(409, "mac-taken", "another nic has this MAC address")
        .field(format!("spec.nics[{index}].mac"))
        .hint("omit mac to let waifud choose one")
}

/// A nic of the instance with this MAC address is still being removed, from another network or with another address.
pub fn still_being_removed(index: usize, nic: &Name, network: &Name) -> Problem {
    Problem::new(
        409,
        "nic-being-removed",
        format!("nic {nic} on {network} is still being removed"),
    )
    .field(format!("spec.nics[{index}].network"))
    .hint("try again when it is gone, or add it again with its MAC address to keep it")
}

/// The node of the instance cannot connect guests to the network.
pub fn network_not_on_node(index: usize, network: &Name, node: &Name, why: &Verdict) -> Problem {
    let remedy = match why {
        Verdict::BridgeWithoutVlans { bridge } => Some(make_vlan_aware(bridge, node)),
        _ => None,
    };
    let why = match why {
        Verdict::NoBridge { .. } | Verdict::UnsuitableBridge { .. } => format!("it {why}"),
        _ => why.to_string(),
    };
    let problem = Problem::new(
        409,
        "network-not-on-node",
        format!("{node} cannot connect the instance to network {network}: {why}"),
    );
    let problem = match remedy {
        Some(remedy) => problem
            .field(format!("spec.nics[{index}].vlan"))
            .hint(remedy),
        None => problem.field(format!("spec.nics[{index}].network")),
    };
    problem.hint(Hint::on(
        &HintAction::Show,
        HintKind::Network,
        network.as_str(),
    ))
}

/// How to make a bridge tell VLANs apart.
pub fn make_vlan_aware(bridge: &str, node: &Name) -> Hint {
    Hint::advice(format!(
        "on {node}, run: ip link set {bridge} type bridge vlan_filtering 1; see docs/guides/lan.md for the setting that lasts"
    ))
}
