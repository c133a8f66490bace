//! Placement, whatever the wishes and the nodes: memory is never promised twice, and the same question gets the same
//! answer.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers may stop at the first surprise"
)]

mod common;

use common::facts;
use proptest::prelude::*;
use waifud_control::placement::{Wish, choose};
use waifud_store::{NodeRoom, NodeRow};
use waifud_types::node::Resources;
use waifud_types::spec::{DiskSpec, InstanceSpec, PlacementSpec, RestartPolicy};
use waifud_types::{ByteSize, Digest, NodeId, PowerSpec, Timestamp};

fn room(index: u8, memory_gib: u64, reachable: bool, cordoned: bool) -> NodeRoom {
    NodeRoom {
        node: NodeRow {
            labels: std::collections::BTreeMap::new(),
            id: NodeId::from_uuid(uuid::Uuid::from_u128(u128::from(index) + 1)),
            name: format!("node-{index}").parse().unwrap(),
            facts: facts(ByteSize::gib(memory_gib)),
            reachable,
            cordoned,
            subnet: format!("10.144.{index}.0/24").parse().unwrap(),
            joined_at: Timestamp::UNIX_EPOCH,
            last_contact: None,
            unclaimed: Vec::new(),
            swept: true,
            confirmed: true,
            promised: Resources::default(),
            slice_revision: 1,
        },
        pools: Vec::new(),
    }
}

fn spec(cpus: u32, memory_gib: u64, node: Option<u8>) -> InstanceSpec {
    InstanceSpec {
        template: "debian-12".parse().unwrap(),
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
            name: "root".parse().unwrap(),
            size_bytes: ByteSize::gib(10),
            pool: "main".parse().unwrap(),
        }],
        nics: Vec::new(),
        publish: Vec::new(),
        placement: PlacementSpec {
            node: node.map(|index| format!("node-{index}").parse().unwrap()),
            ..PlacementSpec::default()
        },
        user_data: None,
    }
}

proptest! {
    #[test]
    fn memory_is_never_promised_twice_and_answers_repeat(
        nodes in proptest::collection::vec((1_u64..64, any::<bool>(), any::<bool>()), 0..6),
        wishes in proptest::collection::vec((1_u32..10, 1_u64..40, proptest::option::of(0_u8..6)), 0..40),
    ) {
        let mut rooms: Vec<_> = (0..).zip(&nodes).map(|(i, (memory, up, cordoned))| room(i, *memory, *up, *cordoned)).collect();
        for (cpus, memory, node) in wishes {
            let spec = spec(cpus, memory, node);
            let wish = Wish { spec: &spec, arch: "x86_64", bridges: &std::collections::BTreeMap::new() };
            let choice = choose(&wish, &rooms, usize::MAX);
            prop_assert_eq!(&choice, &choose(&wish, &rooms, usize::MAX));
            let told = choose(&wish, &rooms, 2);
            prop_assert_eq!(told.node, choice.node);
            prop_assert_eq!(&told.verdicts[..], &choice.verdicts[..rooms.len().min(2)], "the best come first");
            let mut turned = rooms.clone();
            turned.reverse();
            prop_assert_eq!(&choice, &choose(&wish, &turned, usize::MAX), "the order of the nodes does not matter");
            prop_assert_eq!(choice.verdicts.len(), rooms.len());
            prop_assert_eq!(choice.node.is_none(), choice.reason.is_some());
            for verdict in &choice.verdicts {
                prop_assert!(!verdict.reason.is_empty());
                prop_assert!(verdict.score.is_none_or(|score| (0.0..=1.0).contains(&score)));
            }
            if let Some(id) = choice.node {
                let chosen = rooms.iter_mut().find(|room| room.node.id == id).unwrap();
                prop_assert!(chosen.node.reachable && !chosen.node.cordoned);
                if let Some(node) = node {
                    prop_assert_eq!(chosen.node.name.to_string(), format!("node-{}", node));
                }
                let promised = &mut chosen.node.promised;
                promised.cpus += cpus;
                promised.memory_bytes = ByteSize(promised.memory_bytes.bytes() + ByteSize::gib(memory).bytes());
                prop_assert!(promised.memory_bytes <= chosen.node.facts.capacity.memory_bytes);
            } else {
                // Nobody is turned away who would have fitted.
                for room in rooms.iter().filter(|room| room.node.reachable && !room.node.cordoned) {
                    let free = room.node.facts.capacity.memory_bytes.bytes() - room.node.promised.memory_bytes.bytes();
                    let wanted = node.is_none_or(|node| room.node.name.to_string() == format!("node-{node}"));
                    prop_assert!(!wanted || free < ByteSize::gib(memory).bytes() || cpus > 8);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_at_once_never_overcommit_a_node_nor_share_an_address() {
    let server = common::Server::start().await;
    server.template().await;
    for name in ["alder", "birch"] {
        server.join(name, ByteSize::gib(16)).await;
    }
    let body = serde_json::json!({"template": "debian-12", "memory_bytes": 1u64 << 30});
    let answers = futures::future::join_all((0..40).map(|_| server.create(&body))).await;
    let instances: Vec<_> = answers.iter().map(common::Answer::instance).collect();
    let placed: Vec<_> = instances
        .iter()
        .filter(|i| i.status.node.is_some())
        .collect();
    assert_eq!(placed.len(), 32, "16 on each");
    let addresses: std::collections::BTreeSet<_> = placed
        .iter()
        .map(|i| i.spec.nics[0].address.unwrap())
        .collect();
    assert_eq!(addresses.len(), 32);
    let names: std::collections::BTreeSet<_> = instances.iter().map(|i| i.name.clone()).collect();
    assert_eq!(
        names.len(),
        40,
        "names that were made up are names of their own"
    );
    for node in server.get("/v1/nodes").await.json()["items"]
        .as_array()
        .unwrap()
    {
        assert_eq!(node["promised"]["memory_bytes"], 16u64 << 30);
    }
}
