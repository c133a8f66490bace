//! The choice of a node: each filter, the order of the nodes, and the reasons.

mod conflicts;
#[path = "../../../tests/api/common/facts.rs"]
mod facts;
mod filters;
mod preferences;
mod properties;

use std::collections::BTreeMap;

use waifud_api::PlacementVerdict;
use waifud_store::{NodeCapacity, NodeRow, UnmanagedSummary};
use waifud_types::node::Resources;
use waifud_types::spec::{
    DiskSpec, InstanceSpec, NicSpec, PlacementSpec, RestartPolicy, SpreadSpec,
};
use waifud_types::{
    ByteSize, Digest, FirewallSpec, MacAddr, Name, NodeId, PowerSpec, Verdict, WaitReason,
};

use self::facts::facts;
use self::filters::{filters, keep, too_large};
use crate::placement::choose::{Choice, PlacementRequest, choose};

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn capacity(
    index: u8,
    memory_gib: u64,
    reachable: bool,
    cordoned: bool,
) -> NodeCapacity {
    NodeCapacity {
        node: NodeRow {
            labels: BTreeMap::new(),
            id: NodeId::from_uuid(uuid::Uuid::from_u128(u128::from(index) + 1)),
            name: name(&format!("node-{index}")),
            facts: facts(ByteSize::gib(memory_gib)),
            reachable,
            cordoned,
            drain: None,
            subnet: format!("10.144.{index}.0/24").parse().unwrap(),
            last_contact: None,
            unmanaged: UnmanagedSummary {
                count: 0,
                addresses: Vec::new(),
                swept: true,
            },
            confirmed: true,
            boot_id: None,
            promised: Resources::default(),
            slice_revision: 1,
        },
        pools: Vec::new(),
    }
}

pub(super) fn spec(cpus: u32, memory_gib: u64, node: Option<u8>) -> InstanceSpec {
    InstanceSpec {
        template: name("debian-12"),
        image: Digest::from_bytes([0; 32]),
        cpus,
        memory_bytes: ByteSize::gib(memory_gib),
        run: true,
        power: PowerSpec::default(),
        rescue: None,
        restart: RestartPolicy::default(),
        priority: 0,
        protected: false,
        disks: vec![DiskSpec {
            name: name("root"),
            size_bytes: ByteSize::gib(10),
            pool: name("main"),
        }],
        nics: Vec::new(),
        publish: Vec::new(),
        firewall: FirewallSpec::default(),
        placement: PlacementSpec {
            node: node.map(|index| name(&format!("node-{index}"))),
            ..PlacementSpec::default()
        },
        user_data: None,
    }
}

/// A request of a spec for an `x86_64` image, with the bridge `br0` for the network `lan`.
fn chosen(
    spec: &InstanceSpec,
    group_members: &[(NodeId, u32)],
    capacities: &[NodeCapacity],
) -> Choice {
    let request = PlacementRequest {
        spec,
        arch: "x86_64",
        bridges: &BTreeMap::from([(name("lan"), "br0".to_owned())]),
        group_members,
        near: None,
    };
    choose(&request, capacities, usize::MAX)
}

/// A node with 8 GiB that is empty and ready.
fn ready(index: u8) -> NodeCapacity {
    capacity(index, 8, true, false)
}

/// The names of the nodes, best first.
fn order(choice: &Choice) -> Vec<&str> {
    choice
        .verdicts
        .iter()
        .map(|verdict| verdict.node.as_str())
        .collect()
}

pub(super) fn spread_in(group: &str, strict: bool) -> SpreadSpec {
    let group = name(group);
    SpreadSpec { group, strict }
}

/// The node reports that it has these images.
pub(super) fn holds(node: &mut NodeCapacity, images: &[Digest]) {
    node.node.facts.pools[0].images = Some(images.to_vec());
}

pub(super) fn nic_on(network: &str) -> NicSpec {
    NicSpec {
        name: name("net0"),
        network: name(network),
        mac: MacAddr::of_guest([1, 1, 1]),
        address: None,
        prefix_len: None,
        gateway: None,
        vlan: None,
        allow_addresses: Vec::new(),
    }
}

#[test]
fn every_filter_gives_its_verdict_and_the_instance_waits_for_its_reason() {
    for (change_spec, change_node, verdict, reason) in filters() {
        let (mut spec, mut node) = (spec(1, 1, None), ready(0));
        change_spec(&mut spec);
        change_node(&mut node);
        let choice = chosen(&spec, &[], &[node]);
        let expected = Choice {
            node: None,
            verdicts: vec![PlacementVerdict::new(name("node-0"), None, &verdict)],
            nodes: 1,
            reason: Some(reason),
        };
        assert_eq!(choice, expected);
    }
}

#[test]
fn a_node_without_the_obstacle_is_chosen_although_others_have_it() {
    for (change_spec, change_node, verdict, _) in filters() {
        let mut other = ready(1);
        match &verdict {
            Verdict::NotRequested => other.node.name = name("node-9"),
            Verdict::LabelMissing { .. } => {
                drop(other.node.facts.labels.insert("rack".into(), "2".into()));
            }
            Verdict::TooFewCpus { .. } => other.node.facts.capacity.cpus = 9,
            Verdict::TooLittleMemory { .. } => {
                other.node.facts.capacity.memory_bytes = ByteSize::gib(9);
            }
            Verdict::PoolTooSmall { .. } => {
                other.node.facts.pools[0].size_bytes = ByteSize::gib(501);
            }
            Verdict::NoBridge { .. }
            | Verdict::UnsuitableBridge { .. }
            | Verdict::BridgeWithoutVlans { .. }
            | Verdict::NoVlans => {
                other.node.facts.bridges.push("br0".into());
                other.node.facts.vlan_bridges.push("br0".into());
            }
            _ => {}
        }
        let (mut spec, mut node) = (spec(1, 1, None), ready(0));
        change_spec(&mut spec);
        change_node(&mut node);
        let choice = chosen(&spec, &[], &[node, other.clone()]);
        assert_eq!(choice.node, Some(other.node.id), "{verdict:?}");
        assert_eq!(choice.reason, None);
    }
}

#[test]
fn exactly_the_free_capacity_of_a_node_is_enough() {
    let mut node = ready(0);
    node.node.promised.memory_bytes = ByteSize::gib(5);
    let mut spec = spec(8, 3, None);
    spec.disks[0].size_bytes = ByteSize::gib(500);
    let choice = chosen(&spec, &[], &[node]);
    let fits = Verdict::Fits {
        free_bytes: ByteSize::gib(3),
        total_bytes: ByteSize::gib(8),
        group_members: 0,
        near: None,
        image: None,
    };
    assert_eq!(
        choice.verdicts,
        [PlacementVerdict::new(name("node-0"), Some(0.0), &fits)]
    );
    assert!(choice.node.is_some());
}

#[test]
fn the_reason_is_that_of_the_node_which_is_closest_to_running_the_instance() {
    let mut small = ready(4);
    small.node.facts.capacity.memory_bytes = ByteSize::gib(1);
    let mut shared = ready(3);
    shared.node.name = name("node-3");
    let away = capacity(2, 8, false, false);
    let full = capacity(1, 8, true, true);
    let mut spec = spec(1, 2, None);
    spec.placement.spread = Some(spread_in("web", true));
    let members = [(shared.node.id, 1)];
    let mut busy = ready(5);
    busy.node.promised.memory_bytes = ByteSize::gib(7);
    let choice = chosen(
        &spec,
        &members,
        &[
            small.clone(),
            shared.clone(),
            away.clone(),
            full.clone(),
            busy,
        ],
    );
    let best_first = ["node-5", "node-1", "node-2", "node-3", "node-4"];
    assert_eq!(order(&choice), best_first);
    let needed_bytes = ByteSize::gib(2);
    assert_eq!(
        choice.reason,
        Some(WaitReason::InsufficientMemory { needed_bytes })
    );
    let choice = chosen(
        &spec,
        &members,
        &[small.clone(), shared.clone(), away.clone(), full],
    );
    assert_eq!(choice.reason, Some(WaitReason::AllCordoned));
    let choice = chosen(&spec, &members, &[small.clone(), shared.clone(), away]);
    assert_eq!(
        choice.reason,
        Some(WaitReason::NodeUnreachable {
            node: name("node-2")
        })
    );
    let choice = chosen(&spec, &members, &[small.clone(), shared]);
    assert_eq!(
        choice.reason,
        Some(WaitReason::SpreadGroup { group: name("web") })
    );
    let choice = chosen(&spec, &members, &[small]);
    assert_eq!(choice.reason, Some(too_large(&spec)));
    let choice = chosen(&spec, &members, &[]);
    assert_eq!(
        (choice.nodes, choice.reason),
        (0, Some(WaitReason::NoNodes))
    );
}

#[test]
fn members_of_the_group_matter_before_the_score_and_only_to_a_spread_instance() {
    let (mut busy, empty) = (ready(0), ready(1));
    busy.node.promised.memory_bytes = ByteSize::gib(4);
    let members = [(empty.node.id, 1)];
    let mut spec = spec(1, 1, None);
    let nodes = [busy.clone(), empty.clone()];
    assert_eq!(chosen(&spec, &members, &nodes).node, Some(empty.node.id));
    spec.placement.spread = Some(spread_in("web", false));
    assert_eq!(chosen(&spec, &members, &nodes).node, Some(busy.node.id));
    // A strict group does not exclude a node without members.
    spec.placement.spread = Some(spread_in("web", true));
    assert_eq!(chosen(&spec, &members, &nodes).node, Some(busy.node.id));
    assert_eq!(chosen(&spec, &members, &[empty]).node, None);
}

#[test]
fn equal_nodes_are_chosen_by_name() {
    let choice = chosen(&spec(1, 1, None), &[], &[ready(2), ready(0), ready(1)]);
    assert_eq!(order(&choice), ["node-0", "node-1", "node-2"]);
}

#[test]
fn the_score_weighs_what_stays_free_of_memory_cpus_and_disk() {
    let score = |change: fn(&mut NodeCapacity)| {
        let mut node = ready(0);
        change(&mut node);
        // 2 of 8 GiB, 2 of 8 CPUs, 10 of 500 GiB.
        chosen(&spec(2, 2, None), &[], &[node]).verdicts[0]
            .score
            .unwrap()
    };
    let near = |score: f64, expected: f64| {
        assert!(
            (score - expected).abs() < 1e-9,
            "{score} instead of {expected}"
        );
    };
    // 0.9 · (0.6 · 0.75 + 0.25 · 0.75 + 0.15 · 0.98), rounded.
    near(score(keep), 0.71);
    near(
        score(|node| holds(node, &[Digest::from_bytes([0; 32])])),
        0.81,
    );
    near(
        score(|node| holds(node, &[Digest::from_bytes([1; 32])])),
        0.71,
    );
    near(
        score(|node| node.node.promised.memory_bytes = ByteSize::gib(4)),
        0.44,
    );
    near(score(|node| node.node.promised.cpus = 4), 0.59);
    near(score(|node| node.node.promised.cpus = 40), 0.54);
    near(
        score(|node| node.node.facts.pools[0].used_bytes = ByteSize::gib(240)),
        0.64,
    );
    near(
        score(|node| node.pools.push((name("main"), ByteSize::gib(240)))),
        0.64,
    );
    // The larger of what is used and what is promised counts; other pools do not.
    near(
        score(|node| {
            node.node.facts.pools[0].used_bytes = ByteSize::gib(100);
            node.pools.push((name("main"), ByteSize::gib(240)));
            node.pools.push((name("other"), ByteSize::gib(490)));
        }),
        0.64,
    );
}

#[test]
fn a_requested_node_that_cannot_run_the_instance_is_named_with_its_verdict() {
    let mut small = ready(0);
    small.node.facts.capacity.memory_bytes = ByteSize::gib(1);
    let mut spec = spec(1, 2, Some(0));
    let verdict = Verdict::TooLittleMemory {
        total_bytes: ByteSize::gib(1),
        needed_bytes: ByteSize::gib(2),
    };
    let unsuitable = WaitReason::RequestedNodeUnsuitable {
        node: name("node-0"),
        verdict: Box::new(verdict),
    };
    assert_eq!(
        chosen(&spec, &[], &[ready(1), small.clone()]).reason,
        Some(unsuitable)
    );
    // It is only busy.
    small.node.facts.capacity.memory_bytes = ByteSize::gib(8);
    small.node.cordoned = true;
    assert_eq!(
        chosen(&spec, &[], &[ready(1), small]).reason,
        Some(WaitReason::AllCordoned)
    );
    // The bridge is missing on every node.
    spec.placement.node = None;
    spec.nics.push(nic_on("lan"));
    let no_bridge = WaitReason::NoBridge {
        bridge: "br0".into(),
    };
    assert_eq!(
        chosen(&spec, &[], &[ready(0), ready(1)]).reason,
        Some(no_bridge)
    );
    // One node has it, but is too small.
    let mut with_bridge = capacity(1, 1, true, false);
    with_bridge.node.facts.bridges.push("br0".into());
    assert_eq!(
        chosen(&spec, &[], &[ready(0), with_bridge]).reason,
        Some(too_large(&spec))
    );
}

#[test]
fn the_disks_together_are_named_when_no_node_is_large_enough() {
    let mut spec = spec(9, 1, None);
    let mut data = spec.disks[0].clone();
    data.name = name("data");
    spec.disks.push(data);
    let reason = WaitReason::NoSuitableNode {
        cpus: 9,
        memory_bytes: ByteSize::gib(1),
        disk_bytes: ByteSize::gib(20),
        arch: "x86_64".into(),
    };
    assert_eq!(chosen(&spec, &[], &[ready(0)]).reason, Some(reason));
}
