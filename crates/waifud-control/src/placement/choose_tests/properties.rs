//! Properties of all choices.

use std::collections::BTreeMap;

use proptest::prelude::*;
use waifud_types::spec::SpreadSpec;
use waifud_types::{ByteSize, NodeId};

use super::{capacity, name, spec};
use crate::placement::choose::{PlacementRequest, choose};

proptest! {
    #[test]
    fn placement_never_overcommits_memory_and_is_deterministic(
        nodes in proptest::collection::vec((1_u64..64, any::<bool>(), any::<bool>()), 0..6),
        requests in proptest::collection::vec((1_u32..10, 1_u64..40, proptest::option::of(0_u8..6)), 0..40),
    ) {
        let mut capacities: Vec<_> = (0..).zip(&nodes).map(|(i, (memory, up, cordoned))| capacity(i, *memory, *up, *cordoned)).collect();
        for (cpus, memory, node) in requests {
            let spec = spec(cpus, memory, node);
            let request = PlacementRequest { spec: &spec, arch: "x86_64", bridges: &BTreeMap::new(), group_members: &[], near: None };
            let choice = choose(&request, &capacities, usize::MAX);
            prop_assert_eq!(&choice, &choose(&request, &capacities, usize::MAX));
            let limited = choose(&request, &capacities, 2);
            prop_assert_eq!(limited.node, choice.node);
            prop_assert_eq!(&limited.verdicts[..], &choice.verdicts[..capacities.len().min(2)], "the best come first");
            let mut reversed = capacities.clone();
            reversed.reverse();
            prop_assert_eq!(&choice, &choose(&request, &reversed, usize::MAX), "the order of the nodes does not matter");
            prop_assert_eq!(choice.verdicts.len(), capacities.len());
            prop_assert_eq!(choice.node.is_none(), choice.reason.is_some());
            for verdict in &choice.verdicts {
                prop_assert!(!verdict.reason.is_empty());
                prop_assert!(verdict.score.is_none_or(|score| (0.0..=1.0).contains(&score)));
            }
            if let Some(id) = choice.node {
                let chosen = capacities.iter_mut().find(|capacity| capacity.node.id == id).unwrap();
                prop_assert!(chosen.node.reachable && !chosen.node.cordoned);
                if let Some(node) = node {
                    prop_assert_eq!(chosen.node.name.to_string(), format!("node-{}", node));
                }
                let promised = &mut chosen.node.promised;
                promised.cpus += cpus;
                promised.memory_bytes = ByteSize(promised.memory_bytes.bytes() + ByteSize::gib(memory).bytes());
                prop_assert!(promised.memory_bytes <= chosen.node.facts.capacity.memory_bytes);
            } else {
                // No instance waits that would have fitted.
                for capacity in capacities.iter().filter(|capacity| capacity.node.reachable && !capacity.node.cordoned) {
                    let free = capacity.node.facts.capacity.memory_bytes.bytes() - capacity.node.promised.memory_bytes.bytes();
                    let wanted = node.is_none_or(|node| capacity.node.name.to_string() == format!("node-{node}"));
                    prop_assert!(!wanted || free < ByteSize::gib(memory).bytes() || cpus > 8);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn a_group_is_spread_over_the_nodes_with_capacity(
        nodes in proptest::collection::vec(1_u64..12, 1..6),
        strict: bool,
        members in 1_usize..30,
    ) {
        let mut capacities: Vec<_> = (0..).zip(&nodes).map(|(i, memory)| capacity(i, *memory, true, false)).collect();
        let alone = spec(1, 1, None);
        let mut spread = alone.clone();
        spread.placement.spread = Some(SpreadSpec { group: name("web"), strict });
        let bridges = BTreeMap::new();
        let mut group: Vec<(NodeId, u32)> = Vec::new();
        let count = |group: &[(NodeId, u32)], id| group.iter().find(|(other, _)| *other == id).map_or(0, |(_, n)| *n);
        for _ in 0..members {
            let request = PlacementRequest { spec: &spread, arch: "x86_64", bridges: &bridges, group_members: &group, near: None };
            let choice = choose(&request, &capacities, usize::MAX);
            let free: Vec<_> = capacities.iter().filter(|capacity| {
                let request = PlacementRequest { spec: &alone, ..request };
                choose(&request, std::slice::from_ref(*capacity), 1).node.is_some()
            }).map(|capacity| capacity.node.id).collect();
            let fewest = free.iter().map(|id| count(&group, *id)).min();
            if let Some(id) = choice.node {
                prop_assert_eq!(Some(count(&group, id)), fewest);
                prop_assert!(!strict || fewest == Some(0));
                capacities.iter_mut().find(|capacity| capacity.node.id == id).unwrap().promise(&spread);
                if let Some((_, n)) = group.iter_mut().find(|(other, _)| *other == id) {
                    *n += 1;
                } else {
                    group.push((id, 1));
                }
            } else {
                prop_assert!(fewest.is_none_or(|fewest| strict && fewest > 0));
                prop_assert!(choice.reason.is_some());
            }
        }
    }
}
