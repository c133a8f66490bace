//! Why a node cannot run an instance: a change of the spec or of the node for each verdict.

use waifud_types::firewall::FirewallAction;
use waifud_types::node::feature;

use super::*;

fn in_vlan(network: &str) -> NicSpec {
    NicSpec {
        vlan: Some(20.try_into().unwrap()),
        ..nic_on(network)
    }
}

/// A change that makes a node unable to run an instance, with the verdict on it and what the instance then waits for.
pub(super) type Filter = (
    fn(&mut InstanceSpec),
    fn(&mut NodeCapacity),
    Verdict,
    WaitReason,
);

pub(super) fn too_large(spec: &InstanceSpec) -> WaitReason {
    WaitReason::NoSuitableNode {
        cpus: spec.cpus,
        memory_bytes: spec.memory_bytes,
        disk_bytes: spec.disks[0].size_bytes,
        arch: "x86_64".into(),
    }
}

pub(super) fn keep<T>(_: &mut T) {}

pub(super) fn filters() -> Vec<Filter> {
    let gib = ByteSize::gib;
    let unsized_spec = spec(1, 1, None);
    let suitable = too_large(&unsized_spec);
    vec![
        (
            |spec| spec.placement.node = Some(name("node-9")),
            keep,
            Verdict::NotRequested,
            WaitReason::NoSuchNode {
                node: name("node-9"),
            },
        ),
        (
            |spec| drop(spec.placement.require.insert("rack".into(), "2".into())),
            |node| drop(node.node.labels.insert("rack".into(), "1".into())),
            Verdict::LabelMissing {
                key: "rack".into(),
                value: "2".into(),
            },
            suitable.clone(),
        ),
        (
            keep,
            |node| node.node.facts.arch = "aarch64".into(),
            Verdict::OtherArchitecture {
                arch: "aarch64".into(),
                image_arch: "x86_64".into(),
            },
            suitable.clone(),
        ),
        (
            |spec| spec.firewall.incoming = FirewallAction::Deny,
            |node| node.node.facts.features.clear(),
            Verdict::NoFirewall,
            suitable.clone(),
        ),
        (
            |spec| spec.nics.push(in_vlan("lan")),
            |node| {
                let facts = &mut node.node.facts;
                facts.features.retain(|it| it != feature::VLANS);
                facts.bridges.push("br0".into());
                facts.vlan_bridges.push("br0".into());
            },
            Verdict::NoVlans,
            suitable.clone(),
        ),
        (
            |spec| spec.cpus = 9,
            keep,
            Verdict::TooFewCpus { cpus: 8, needed: 9 },
            too_large(&spec(9, 1, None)),
        ),
        (
            |spec| spec.memory_bytes = ByteSize(ByteSize::gib(8).bytes() + 1),
            keep,
            Verdict::TooLittleMemory {
                total_bytes: gib(8),
                needed_bytes: ByteSize(gib(8).bytes() + 1),
            },
            too_large(&InstanceSpec {
                memory_bytes: ByteSize(gib(8).bytes() + 1),
                ..unsized_spec.clone()
            }),
        ),
        (
            keep,
            |node| node.node.facts.pools.clear(),
            Verdict::NoPool { pool: name("main") },
            suitable.clone(),
        ),
        (
            |spec| spec.disks[0].size_bytes = ByteSize(ByteSize::gib(500).bytes() + 1),
            keep,
            Verdict::PoolTooSmall {
                pool: name("main"),
                size_bytes: gib(500),
                needed_bytes: ByteSize(gib(500).bytes() + 1),
            },
            WaitReason::NoSuitableNode {
                cpus: 1,
                memory_bytes: gib(1),
                disk_bytes: ByteSize(gib(500).bytes() + 1),
                arch: "x86_64".into(),
            },
        ),
        (
            |spec| spec.nics.push(nic_on("lan")),
            keep,
            Verdict::NoBridge {
                bridge: "br0".into(),
            },
            WaitReason::NoBridge {
                bridge: "br0".into(),
            },
        ),
        (
            |spec| spec.nics.push(nic_on("lan")),
            |node| {
                drop(
                    node.node
                        .facts
                        .unfit_bridges
                        .insert("br0".into(), "is wireless".into()),
                );
            },
            Verdict::UnsuitableBridge {
                bridge: "br0".into(),
                because: "is wireless".into(),
            },
            WaitReason::NoBridge {
                bridge: "br0".into(),
            },
        ),
        (
            |spec| spec.nics.push(in_vlan("lan")),
            |node| node.node.facts.bridges.push("br0".into()),
            Verdict::BridgeWithoutVlans {
                bridge: "br0".into(),
            },
            WaitReason::BridgeWithoutVlans {
                bridge: "br0".into(),
            },
        ),
        (
            |spec| spec.nics.push(in_vlan("lan")),
            keep,
            Verdict::NoBridge {
                bridge: "br0".into(),
            },
            WaitReason::NoBridge {
                bridge: "br0".into(),
            },
        ),
        (
            keep,
            |node| node.node.reachable = false,
            Verdict::Unreachable { fits: true },
            WaitReason::NodeUnreachable {
                node: name("node-0"),
            },
        ),
        (
            |spec| spec.memory_bytes = ByteSize::gib(2),
            |node| {
                node.node.reachable = false;
                node.node.promised.memory_bytes = ByteSize::gib(7);
            },
            Verdict::Unreachable { fits: false },
            WaitReason::NodeUnreachable {
                node: name("node-0"),
            },
        ),
        (
            keep,
            |node| node.node.cordoned = true,
            Verdict::Cordoned,
            WaitReason::AllCordoned,
        ),
        (
            keep,
            |node| node.node.unmanaged.swept = false,
            Verdict::NotReported,
            WaitReason::NodeNotReported {
                node: name("node-0"),
            },
        ),
        (
            |spec| spec.memory_bytes = ByteSize(ByteSize::gib(1).bytes() + 1),
            |node| node.node.promised.memory_bytes = ByteSize::gib(7),
            Verdict::InsufficientMemory {
                free_bytes: gib(1),
                total_bytes: gib(8),
                needed_bytes: ByteSize(gib(1).bytes() + 1),
            },
            WaitReason::InsufficientMemory {
                needed_bytes: ByteSize(gib(1).bytes() + 1),
            },
        ),
        (
            keep,
            |node| {
                let used = ByteSize(ByteSize::gib(499).bytes() + 1);
                node.node.facts.pools[0].used_bytes = used;
            },
            Verdict::PoolFull {
                pool: name("main"),
                free_bytes: ByteSize(gib(1).bytes() - 1),
                size_bytes: gib(500),
            },
            WaitReason::PoolFull {
                pool: name("main"),
                node: name("node-0"),
            },
        ),
    ]
}
