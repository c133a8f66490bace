//! What decides between nodes that can all run the instance: its spread group, the instance that it should be near, and
//! where its image is.

use std::collections::BTreeMap;

use waifud_store::NodeCapacity;
use waifud_types::spec::InstanceSpec;
use waifud_types::{ByteSize, Digest, NodeId, Verdict};

use super::{holds, name, order, ready, spec, spread_in};
use crate::placement::choose::{Choice, PlacementRequest, choose};

/// The choice for an instance that should be near the instance `db` on a node.
fn chosen_near(
    spec: &InstanceSpec,
    near: &NodeCapacity,
    group_members: &[(NodeId, u32)],
    capacities: &[NodeCapacity],
) -> Choice {
    let request = PlacementRequest {
        spec,
        arch: "x86_64",
        bridges: &BTreeMap::new(),
        group_members,
        near: Some(near.node.id),
    };
    choose(&request, capacities, usize::MAX)
}

fn near_db() -> InstanceSpec {
    let mut spec = spec(1, 1, None);
    spec.placement.near = Some(name("db"));
    spec
}

/// A node with less free memory than an empty one.
fn busy(index: u8) -> NodeCapacity {
    let mut node = ready(index);
    node.node.promised.memory_bytes = ByteSize::gib(6);
    node
}

#[test]
fn near_outranks_the_score_and_the_verdict_names_the_instance() {
    let (with_db, empty) = (busy(0), ready(1));
    let choice = chosen_near(&near_db(), &with_db, &[], &[empty.clone(), with_db.clone()]);
    assert_eq!(choice.node, Some(with_db.node.id));
    assert_eq!(order(&choice), ["node-0", "node-1"]);
    assert!(choice.verdicts[0].score < choice.verdicts[1].score);
    assert_eq!(choice.verdicts[0].reason, "2G free of 8G, next to db");
    assert_eq!(choice.verdicts[1].reason, "8G free of 8G");
}

#[test]
fn near_does_not_outrank_a_filter() {
    let filters: [fn(&mut NodeCapacity); 4] = [
        |node| node.node.promised.memory_bytes = ByteSize::gib(8),
        |node| node.node.cordoned = true,
        |node| node.node.reachable = false,
        |node| node.node.facts.pools[0].used_bytes = ByteSize::gib(500),
    ];
    for filter in filters {
        let (mut with_db, other) = (ready(0), busy(1));
        filter(&mut with_db);
        let choice = chosen_near(&near_db(), &with_db, &[], &[with_db.clone(), other.clone()]);
        assert_eq!(choice.node, Some(other.node.id), "{:?}", choice.verdicts);
    }
}

#[test]
fn near_decides_between_nodes_with_equally_many_members_of_the_spread_group() {
    let (with_db, empty) = (busy(0), ready(1));
    let nodes = [with_db.clone(), empty.clone()];
    let mut spec = near_db();
    for strict in [false, true] {
        spec.placement.spread = Some(spread_in("web", strict));
        let choice = chosen_near(&spec, &with_db, &[], &nodes);
        assert_eq!(choice.node, Some(with_db.node.id));
        let members = [(with_db.node.id, 1)];
        let choice = chosen_near(&spec, &with_db, &members, &nodes);
        assert_eq!(choice.node, Some(empty.node.id), "spread comes first");
    }
}

#[test]
fn a_node_with_the_image_is_preferred_only_among_about_equally_free_nodes() {
    let image = Digest::from_bytes([0; 32]);
    let (mut with_image, mut empty) = (ready(1), ready(0));
    with_image.node.promised.memory_bytes = ByteSize::gib(1);
    holds(&mut with_image, &[Digest::from_bytes([7; 32]), image]);
    holds(&mut empty, &[]);
    let choice = super::chosen(&spec(1, 1, None), &[], &[with_image.clone(), empty.clone()]);
    assert_eq!(choice.node, Some(with_image.node.id));
    assert_eq!(choice.verdicts[0].reason, "7G free of 8G, image present");
    assert_eq!(choice.verdicts[1].reason, "8G free of 8G, image absent");
    with_image.node.promised.memory_bytes = ByteSize::gib(3);
    let choice = super::chosen(&spec(1, 1, None), &[], &[with_image, empty.clone()]);
    assert_eq!(choice.node, Some(empty.node.id));
}

#[test]
fn only_images_in_the_pool_of_the_root_disk_count() {
    let mut node = ready(0);
    let image = Digest::from_bytes([0; 32]);
    holds(&mut node, &[]);
    let mut other = node.node.facts.pools[0].clone();
    other.name = name("other");
    other.images = Some(vec![image]);
    node.node.facts.pools.push(other);
    let verdict = |spec: &InstanceSpec| {
        let choice = super::chosen(spec, &[], std::slice::from_ref(&node));
        choice.verdicts[0].verdict()
    };
    let mut spec = spec(1, 1, None);
    let image_of = |verdict| match verdict {
        Some(Verdict::Fits { image, .. }) => image,
        other => panic!("{other:?}"),
    };
    assert_eq!(image_of(verdict(&spec)), Some(false));
    spec.disks[0].pool = name("other");
    assert_eq!(image_of(verdict(&spec)), Some(true));
}

#[test]
fn only_the_pools_of_the_instances_own_disks_have_to_have_free_space() {
    let mut node = ready(0);
    let mut full = node.node.facts.pools[0].clone();
    full.name = name("full");
    full.used_bytes = full.size_bytes;
    node.node.facts.pools.push(full);
    let mut spec = spec(1, 1, None);
    let nodes = [node.clone()];
    assert_eq!(super::chosen(&spec, &[], &nodes).node, Some(node.node.id));
    let mut data = spec.disks[0].clone();
    data.name = name("data");
    data.pool = name("full");
    spec.disks.push(data);
    assert_eq!(super::chosen(&spec, &[], &nodes).node, None);
}
