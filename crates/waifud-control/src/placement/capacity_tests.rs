//! How many more instances fit, and which ones would not fit with nodes off.

use std::collections::BTreeMap;

use proptest::prelude::*;
use waifud_store::NodeCapacity;
use waifud_types::spec::{InstanceSpec, Protocol, PublishSpec};
use waifud_types::{ByteSize, Digest, Name, NodeId, Verdict};

use super::capacity::{Outage, Placed, Survival, fit};
use super::choose::{PlacementRequest, choose};
use super::choose_tests::{capacity, holds, name, nic_on, spec, spread_in};

const MANY: u64 = 1000;

/// A node on which instances with so much memory run.
fn node(index: u8, memory_gib: u64, promised_gib: u64) -> NodeCapacity {
    let mut node = capacity(index, memory_gib, true, false);
    node.node.promised.memory_bytes = ByteSize::gib(promised_gib);
    node
}

fn on(node: &NodeCapacity, name_of_it: &str, spec: InstanceSpec) -> Placed {
    Placed {
        name: name(name_of_it),
        node: node.node.id,
        arch: "x86_64".to_owned(),
        spec,
        runs: true,
    }
}

fn survive(off: usize, nodes: &[NodeCapacity], placed: Vec<Placed>) -> Survival {
    let bridges = BTreeMap::from([(name("lan"), "br0".to_owned())]);
    let mut outage = Outage::of_largest(off, nodes, bridges);
    for placed in placed {
        outage.add(placed);
    }
    outage.place()
}

fn moved(survival: &Survival) -> Vec<(&str, NodeId)> {
    let moved = survival.moved.iter();
    moved.map(|(name, node)| (name.as_str(), *node)).collect()
}

/// The names of the instances that do not fit, with the reasons.
fn unplaced(survival: &Survival) -> Vec<(&str, Vec<String>)> {
    let unplaced = survival.unplaced.iter();
    unplaced
        .map(|one| {
            let reason = |it: &waifud_api::PlacementVerdict| format!("{}: {}", it.node, it.reason);
            (one.name.as_str(), one.verdicts.iter().map(reason).collect())
        })
        .collect()
}

#[test]
fn memory_and_addresses_limit_how_many_more_fit_and_cpus_do_not() {
    let mut node = node(0, 8, 3);
    node.node.promised.cpus = 100;
    assert_eq!(fit(&spec(8, 2, None), &node, MANY).more, 2);
    assert_eq!(fit(&spec(8, 5, None), &node, MANY).more, 1);
    assert_eq!(fit(&spec(1, 1, None), &node, 3).more, 3);
    let full = fit(&spec(1, 1, None), &node, 0);
    let no_address = Verdict::NoFreeAddress {
        subnet: node.node.subnet,
    };
    assert_eq!((full.more, full.verdict), (0, no_address));
}

/// A change of the size, a change of the node, and the reason why none fits.
type Unsuitable = (fn(&mut InstanceSpec), fn(&mut NodeCapacity), &'static str);

#[test]
fn a_node_that_is_not_suitable_for_the_size_fits_none_and_says_why() {
    let cases: [Unsuitable; 7] = [
        (|_| {}, |node| node.node.cordoned = true, "cordoned"),
        (
            |_| {},
            |node| node.node.reachable = false,
            "unreachable; would fit",
        ),
        (|spec| spec.cpus = 9, |_| {}, "has 8 CPUs"),
        (
            |spec| spec.memory_bytes = ByteSize::gib(9),
            |_| {},
            "has 8G of memory",
        ),
        (
            |spec| spec.memory_bytes = ByteSize::gib(6),
            |_| {},
            "5G free of 8G",
        ),
        (
            |spec| spec.disks[0].size_bytes = ByteSize::gib(501),
            |_| {},
            "pool main has only 500G",
        ),
        (
            |_| {},
            |node| node.node.facts.pools[0].used_bytes = ByteSize::gib(500),
            "pool main is full: 0B free of 500G",
        ),
    ];
    for (change_spec, change_node, reason) in cases {
        let (mut spec, mut node) = (spec(1, 1, None), node(0, 8, 3));
        change_spec(&mut spec);
        change_node(&mut node);
        let fit = fit(&spec, &node, MANY);
        assert_eq!((fit.more, fit.verdict.to_string().as_str()), (0, reason));
    }
}

#[test]
fn a_size_has_no_image_and_no_architecture() {
    let mut node = node(0, 8, 3);
    holds(&mut node, &[Digest::from_bytes([9; 32])]);
    node.node.facts.arch = "aarch64".to_owned();
    let fit = fit(&spec(1, 1, None), &node, MANY);
    assert_eq!(fit.more, 5);
    assert_eq!(fit.verdict.to_string(), "5G free of 8G");
}

#[test]
fn the_largest_reachable_nodes_are_off_first() {
    let mut away = node(0, 64, 0);
    away.node.reachable = false;
    let nodes = [away, node(1, 8, 0), node(2, 32, 0), node(3, 8, 0)];
    let off = |count| survive(count, &nodes, Vec::new()).off;
    let names = |names: &[&str]| names.iter().map(|it| name(it)).collect::<Vec<Name>>();
    assert_eq!(off(0), names(&[]));
    assert_eq!(off(1), names(&["node-2"]));
    assert_eq!(off(2), names(&["node-2", "node-1"]));
    assert_eq!(off(9), names(&["node-2", "node-1", "node-3"]));
    // Of two nodes with the same memory, the one with more CPUs is larger.
    let mut more_cpus = nodes.clone();
    more_cpus[3].node.facts.capacity.cpus = 9;
    let off = survive(2, &more_cpus, Vec::new()).off;
    assert_eq!(off, names(&["node-2", "node-3"]));
}

#[test]
fn only_instances_that_run_on_nodes_that_are_off_are_placed_elsewhere_largest_first() {
    let nodes = [node(0, 32, 11), node(1, 8, 4), node(2, 16, 8)];
    let mut stopped = on(&nodes[0], "stopped", spec(1, 16, None));
    stopped.runs = false;
    let placed = vec![
        on(&nodes[0], "small", spec(1, 4, None)),
        on(&nodes[0], "large", spec(1, 7, None)),
        stopped,
        on(&nodes[1], "other", spec(1, 4, None)),
    ];
    let survival = survive(1, &nodes, placed);
    let expected = [("large", nodes[2].node.id), ("small", nodes[1].node.id)];
    assert_eq!(moved(&survival), expected);
    assert_eq!((survival.unplaced_count, unplaced(&survival)), (0, vec![]));
}

#[test]
fn an_instance_that_does_not_fit_is_named_with_the_reason_on_each_other_node() {
    let mut cordoned = node(2, 16, 0);
    cordoned.node.cordoned = true;
    let nodes = [node(0, 32, 12), node(1, 8, 1), cordoned];
    let placed = vec![
        on(&nodes[0], "a", spec(1, 6, None)),
        on(&nodes[0], "b", spec(1, 6, None)),
    ];
    let survival = survive(1, &nodes, placed);
    assert_eq!(moved(&survival), [("a", nodes[1].node.id)]);
    let reasons = vec![
        "node-1: 1G free of 8G".to_owned(),
        "node-2: cordoned".to_owned(),
    ];
    assert_eq!(unplaced(&survival), [("b", reasons)]);
    assert_eq!(survival.unplaced[0].node, name("node-0"));
    assert_eq!(survival.unplaced[0].memory, ByteSize::gib(6));
}

#[test]
fn the_filters_of_placement_apply_to_the_instances_of_nodes_that_are_off() {
    type Change = fn(&mut Placed);
    let cases: [(Change, &str); 5] = [
        (
            |it| it.spec.placement.node = Some(name("node-0")),
            "not the requested node",
        ),
        (
            |it| drop(it.spec.placement.require.insert("a".into(), "b".into())),
            "does not have the label a=b",
        ),
        (
            |it| it.arch = "aarch64".to_owned(),
            "is x86_64, but the image is for aarch64",
        ),
        (|it| it.spec.nics.push(nic_on("lan")), "has no bridge br0"),
        (
            |it| it.spec.disks[0].pool = name("fast"),
            "has no pool fast",
        ),
    ];
    let nodes = [node(0, 32, 1), node(1, 8, 0)];
    for (change, reason) in cases {
        let mut placed = on(&nodes[0], "web", spec(1, 1, None));
        change(&mut placed);
        let survival = survive(1, &nodes, vec![placed]);
        let reasons = vec![format!("node-1: {reason}")];
        assert_eq!(unplaced(&survival), [("web", reasons)]);
    }
}

#[test]
fn strict_groups_and_published_ports_are_not_shared_on_the_remaining_nodes() {
    let nodes = [node(0, 32, 4), node(1, 8, 2), node(2, 8, 0)];
    let in_group = || {
        let mut spec = spec(1, 1, None);
        spec.placement.spread = Some(spread_in("db", true));
        spec
    };
    let publishing = || {
        let mut spec = spec(1, 1, None);
        let protocol = Protocol::Tcp;
        spec.publish = vec![PublishSpec {
            port: 80,
            guest_port: 80,
            protocol,
        }];
        spec
    };
    let placed = vec![
        on(&nodes[0], "db1", in_group()),
        on(&nodes[1], "db2", in_group()),
        on(&nodes[0], "db3", in_group()),
        on(&nodes[0], "web1", publishing()),
        on(&nodes[1], "web2", publishing()),
        on(&nodes[0], "web3", publishing()),
    ];
    let survival = survive(1, &nodes, placed);
    let third = nodes[2].node.id;
    assert_eq!(moved(&survival), [("db1", third), ("web1", third)]);
    let shared = |node: u8| format!("node-{node}: already has 1 of the instances in group db");
    let taken =
        |node: u8, by: &str| format!("node-{node}: port 80/tcp is already published to {by}");
    assert_eq!(
        unplaced(&survival),
        [
            ("db3", vec![shared(1), shared(2)]),
            ("web3", vec![taken(1, "web2"), taken(2, "web1")]),
        ]
    );
}

#[test]
fn of_many_instances_that_do_not_fit_the_largest_are_named() {
    let nodes = [node(0, 64, 60), node(1, 1, 1)];
    let placed = (0..150).map(|n| {
        let mut spec = spec(1, 1, None);
        spec.memory_bytes = ByteSize::mib(n + 64);
        on(&nodes[0], &format!("i{n}"), spec)
    });
    let survival = survive(1, &nodes, placed.collect());
    assert_eq!(survival.unplaced_count, 150);
    assert_eq!(survival.unplaced.len(), 100);
    assert_eq!(survival.unplaced[0].name, name("i149"));
}

/// Whether placement would choose one of the nodes.
fn has_node(spec: &InstanceSpec, nodes: &[NodeCapacity]) -> bool {
    let request = PlacementRequest {
        spec,
        arch: "x86_64",
        bridges: &BTreeMap::new(),
        group_members: &[],
        near: None,
    };
    choose(&request, nodes, 0).node.is_some()
}

proptest! {
    #[test]
    fn exactly_as_many_more_fit_as_placement_places(
        (memory, promised) in (1_u64..32, 0_u64..32),
        (cpus, mib) in (1_u32..10, 64_u64..5000),
        (reachable, cordoned) in (any::<bool>(), any::<bool>()),
    ) {
        let mut node = capacity(0, memory, reachable, cordoned);
        node.node.promised.memory_bytes = ByteSize::gib(promised);
        let mut spec = spec(cpus, 1, None);
        spec.memory_bytes = ByteSize::mib(mib);
        let more = fit(&spec, &node, MANY).more;
        for _ in 0..more {
            prop_assert!(has_node(&spec, std::slice::from_ref(&node)));
            node.promise(&spec);
        }
        prop_assert!(!has_node(&spec, std::slice::from_ref(&node)));
    }

    #[test]
    fn with_nodes_off_no_node_is_overfilled_and_nothing_that_still_fits_is_left_out(
        nodes in proptest::collection::vec((1_u64..32, 0_u64..16, any::<bool>(), any::<bool>()), 0..6),
        instances in proptest::collection::vec((0_u8..6, 1_u32..10, 1_u64..16, any::<bool>()), 0..40),
        off in 0_usize..7,
    ) {
        let capacities: Vec<_> = (0..).zip(&nodes).map(|(i, (memory, promised, up, cordoned))| {
            let mut node = capacity(i, *memory, *up, *cordoned);
            node.node.promised.memory_bytes = ByteSize::gib((*promised).min(*memory));
            node
        }).collect();
        let placed: Vec<_> = instances.iter().enumerate().filter_map(|(n, (node, cpus, memory, runs))| {
            let node = capacities.get(usize::from(*node))?;
            let placed = on(node, &format!("i{n}"), spec(*cpus, *memory, None));
            Some(Placed { runs: *runs, ..placed })
        }).collect();
        let survival = survive(off, &capacities, placed.clone());
        let reachable = capacities.iter().filter(|capacity| capacity.node.reachable).count();
        prop_assert_eq!(survival.off.len(), off.min(reachable));
        let is_off = |id: NodeId| {
            let node = capacities.iter().find(|capacity| capacity.node.id == id).unwrap();
            survival.off.contains(&node.node.name)
        };
        let displaced = placed.iter().filter(|it| it.runs && is_off(it.node)).count();
        prop_assert_eq!(survival.moved.len() + survival.unplaced_count, displaced);
        let spec_of = |name: &Name| &placed.iter().find(|it| it.name == *name).unwrap().spec;
        let mut remaining: Vec<_> = capacities.iter().filter(|it| !is_off(it.node.id)).cloned().collect();
        for (name, to) in &survival.moved {
            let to = remaining.iter_mut().find(|capacity| capacity.node.id == *to).unwrap();
            prop_assert!(has_node(spec_of(name), std::slice::from_ref(to)));
            to.promise(spec_of(name));
            prop_assert!(to.node.promised.memory_bytes <= to.node.facts.capacity.memory_bytes);
        }
        for unplaced in &survival.unplaced {
            prop_assert!(!has_node(spec_of(&unplaced.name), &remaining));
            prop_assert_eq!(unplaced.verdicts.len(), remaining.len());
        }
        let again: Vec<_> = placed.into_iter().rev().collect();
        prop_assert_eq!(survive(off, &capacities, again), survival, "the order of the instances does not matter");
    }
}
