//! Placement: capacity is never promised twice, equal requests get equal results, groups are spread, and waiting
//! instances are placed as soon as they can be.

use crate::common::{Server, facts, node_name, tombstone};
use proptest::prelude::*;
use serde_json::json;
use waifud_control::placement::{PlacementRequest, choose};
use waifud_store::{NodeCapacity, NodeRow, UnmanagedSummary};
use waifud_types::node::Resources;
use waifud_types::spec::{DiskSpec, InstanceSpec, PlacementSpec, RestartPolicy, SpreadSpec};
use waifud_types::{ByteSize, Digest, Name, NodeId, PowerSpec, WaitReason};

fn capacity(index: u8, memory_gib: u64, reachable: bool, cordoned: bool) -> NodeCapacity {
    NodeCapacity {
        node: NodeRow {
            labels: std::collections::BTreeMap::new(),
            id: NodeId::from_uuid(uuid::Uuid::from_u128(u128::from(index) + 1)),
            name: format!("node-{index}").parse().unwrap(),
            facts: facts(ByteSize::gib(memory_gib)),
            reachable,
            cordoned,
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
    fn placement_never_overcommits_memory_and_is_deterministic(
        nodes in proptest::collection::vec((1_u64..64, any::<bool>(), any::<bool>()), 0..6),
        requests in proptest::collection::vec((1_u32..10, 1_u64..40, proptest::option::of(0_u8..6)), 0..40),
    ) {
        let mut capacities: Vec<_> = (0..).zip(&nodes).map(|(i, (memory, up, cordoned))| capacity(i, *memory, *up, *cordoned)).collect();
        for (cpus, memory, node) in requests {
            let spec = spec(cpus, memory, node);
            let request = PlacementRequest { spec: &spec, arch: "x86_64", bridges: &std::collections::BTreeMap::new(), group_members: &[] };
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
        spread.placement.spread = Some(SpreadSpec { group: "web".parse().unwrap(), strict });
        let bridges = std::collections::BTreeMap::new();
        let mut group: Vec<(NodeId, u32)> = Vec::new();
        let count = |group: &[(NodeId, u32)], id| group.iter().find(|(other, _)| *other == id).map_or(0, |(_, n)| *n);
        for _ in 0..members {
            let request = PlacementRequest { spec: &spread, arch: "x86_64", bridges: &bridges, group_members: &group };
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

async fn create_and_place(server: &Server, body: &serde_json::Value) -> Option<String> {
    node_name(&server.created(body).await)
}

#[tokio::test]
async fn groups_are_spread_over_nodes_and_strict_groups_wait() {
    let (server, alder) = Server::with_node(ByteSize::gib(64)).await;
    server.join("birch", ByteSize::gib(8)).await;
    let body = |name: &str, strict: bool| {
        json!({"name": name, "template": "debian-12",
        "placement": {"spread": {"group": if strict { "db" } else { "web" }, "strict": strict}}})
    };
    let mut nodes = Vec::new();
    for name in ["w1", "w2", "w3", "w4"] {
        nodes.extend(create_and_place(&server, &body(name, false)).await);
    }
    nodes.sort();
    assert_eq!(nodes, ["alder", "alder", "birch", "birch"]);

    let first = server.created(&body("d1", true)).await;
    assert_eq!(node_name(&first).as_deref(), Some("alder"));
    let second = create_and_place(&server, &body("d2", true)).await;
    assert_eq!(second.as_deref(), Some("birch"));
    let third = server.created(&body("d3", true)).await;
    assert_eq!(node_name(&third), None);
    let group: Name = "db".parse().unwrap();
    assert_eq!(
        third.status.wait_reason(),
        Some(WaitReason::SpreadGroup { group })
    );
    let why = server.why("d3").await;
    assert_eq!(why["placement"][0]["code"], "spread-group");
    let fields = json!({"group": "db", "members": 1});
    assert_eq!(why["placement"][0]["fields"], fields);

    server.delete("/v1/instances/d1").await.expect(202);
    assert_eq!(
        server.node_of("d3").await,
        None,
        "the deleted instance is still on its node"
    );
    alder.destroyed(tombstone(&first)).await;
    assert_eq!(server.node_of("d3").await.as_deref(), Some("alder"));
}

/// Waits until the instance is placed.
async fn gets_a_node(server: &Server, name: &str) {
    tokio::time::timeout(crate::common::DEADLINE, async {
        while server.node_of(name).await.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_unplaceable_instances_do_not_block_another_placement() {
    let (server, _alder) = Server::with_node(ByteSize::gib(64)).await;
    let monitor = tokio::spawn({
        let control = server.control.clone();
        async move { control.run_background_tasks().await }
    });
    let mib = |n: u64| ByteSize::mib(128 + n).bytes();
    for n in 0..250 {
        // Each asks for another amount of memory, so that no two are judged together.
        let body = json!({"template": "debian-12", "memory_bytes": mib(n),
            "placement": {"require": {"never": "there"}}});
        server.create(&body).await.expect(201);
    }
    let last = json!({"name": "last", "template": "debian-12",
        "placement": {"require": {"disk": "ssd"}}});
    assert_eq!(create_and_place(&server, &last).await, None);
    let label = json!({"labels": {"disk": "ssd"}});
    server.patch("/v1/nodes/alder", &label).await.expect(200);
    gets_a_node(&server, "last").await;
    server.control.stop_token().cancel();
    monitor.await.unwrap().unwrap();
}

#[tokio::test]
async fn equal_waiting_instances_are_placed_in_order_and_show_equal_reasons() {
    let server = Server::with_template().await;
    let body =
        |name: &str| json!({"name": name, "template": "debian-12", "memory_bytes": 1u64 << 30});
    for n in 0..120 {
        server.create(&body(&format!("i{n:03}"))).await.expect(201);
    }
    server.join("alder", ByteSize::gib(8)).await;
    server.control.retry_waiting(false).await.unwrap();
    let items = server.items("/v1/instances?limit=1000").await;
    let placed: Vec<_> = items
        .iter()
        .map(|item| item["status"]["node"] == "alder")
        .collect();
    let expected: Vec<_> = (0..120).map(|n| n < 8).collect();
    assert_eq!(placed, expected);
    for waiting in &items[8..] {
        let cause = json!({"code": "insufficient-memory", "fields": {"needed_bytes": 1u64 << 30}});
        assert_eq!(waiting["status"]["cause"], cause, "{waiting}");
        let reason = &waiting["status"]["reason"];
        assert_eq!(
            reason, "waiting for: 1G of free memory on one node",
            "{waiting}"
        );
    }
}

#[tokio::test]
async fn an_unpublished_port_is_given_to_the_next_waiting_instance() {
    let (server, _alder) = Server::with_node(ByteSize::gib(64)).await;
    let body =
        |name: &str| json!({"name": name, "template": "debian-12", "publish": [{"port": 8080}]});
    server.create(&body("one")).await.expect(201);
    assert_eq!(create_and_place(&server, &body("two")).await, None);
    let none = json!({"publish": []});
    server.patch_instance("one", &none).await.expect(200);
    assert_eq!(server.node_of("two").await.as_deref(), Some("alder"));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_creates_never_overcommit_a_node_or_share_an_address() {
    let server = Server::with_template().await;
    for name in ["alder", "birch"] {
        server.join(name, ByteSize::gib(16)).await;
    }
    let body = json!({"template": "debian-12", "memory_bytes": 1u64 << 30});
    let answers = futures::future::join_all((0..40).map(|_| server.create(&body))).await;
    let instances: Vec<_> = answers
        .iter()
        .map(crate::common::Answer::instance)
        .collect();
    let placed: Vec<_> = instances
        .iter()
        .filter(|i| i.status.node.is_some())
        .collect();
    assert_eq!(placed.len(), 32, "16 on each node");
    let addresses: std::collections::BTreeSet<_> = placed
        .iter()
        .map(|i| i.spec.nics[0].address.unwrap())
        .collect();
    assert_eq!(addresses.len(), 32);
    let names: std::collections::BTreeSet<_> = instances.iter().map(|i| i.name.clone()).collect();
    assert_eq!(names.len(), 40, "generated names are unique");
    let nodes = server.items("/v1/nodes").await;
    let promised: Vec<_> = nodes
        .iter()
        .map(|node| &node["promised"]["memory_bytes"])
        .collect();
    assert_eq!(promised, [16_u64 << 30; 2]);
}

#[tokio::test]
async fn a_change_of_a_wait_reason_that_its_text_does_not_show_is_no_event() {
    let (server, _alder) = Server::with_node(ByteSize::gib(8)).await;
    let memory = |bytes: u64| json!({"memory_bytes": bytes});
    let full = json!({"name": "full", "template": "debian-12", "memory_bytes": 6_u64 << 30});
    server.create(&full).await.expect(201);
    let body = json!({"name": "web", "template": "debian-12", "memory_bytes": 7_u64 << 30});
    let waiting = server.created(&body).await;
    let waits = async || {
        let kinds = server.kinds("web").await;
        let waits = kinds.iter().filter(|kind| *kind == "instance.waiting");
        waits.count()
    };
    let before = waits().await;
    let bytes = (7_u64 << 30) + (1 << 20);
    let changed = server.patched("web", &memory(bytes)).await;
    assert_eq!(changed.status.reason, waiting.status.reason, "as rounded");
    let cause = changed.status.cause.unwrap();
    assert_eq!(cause.fields["needed_bytes"], bytes, "exact");
    assert_eq!(waits().await, before);
    server.patched("web", &memory(15 << 29)).await;
    assert_eq!(waits().await, before + 1);
}

#[tokio::test]
async fn the_verdict_on_a_node_that_is_too_small_does_not_change_with_its_free_memory() {
    let (server, _alder) = Server::with_node(ByteSize::gib(8)).await;
    let body = json!({"name": "web", "template": "debian-12", "memory_bytes": 9_u64 << 30});
    server.created(&body).await;
    let verdict = async || server.why("web").await["placement"][0].clone();
    let before = verdict().await;
    assert_eq!(before["code"], "too-little-memory");
    assert_eq!(before["reason"], "has 8G of memory");
    server.create_instance("other").await;
    assert_eq!(verdict().await, before);
}
