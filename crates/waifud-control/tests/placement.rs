//! Placement with arbitrary requests and nodes: memory is never reserved twice, and choices are deterministic.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers may stop at the first surprise"
)]

mod common;

use common::facts;
use proptest::prelude::*;
use waifud_control::placement::{PlacementRequest, choose};
use waifud_store::{NodeCapacity, NodeRow};
use waifud_types::node::Resources;
use waifud_types::spec::{DiskSpec, InstanceSpec, PlacementSpec, RestartPolicy, SpreadSpec};
use waifud_types::{ByteSize, Digest, NodeId, PowerSpec, Timestamp};

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
            joined_at: Timestamp::UNIX_EPOCH,
            last_contact: None,
            unmanaged_count: 0,
            unmanaged_addresses: Vec::new(),
            swept: true,
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
    fn memory_is_never_reserved_twice_and_choices_are_deterministic(
        nodes in proptest::collection::vec((1_u64..64, any::<bool>(), any::<bool>()), 0..6),
        wishes in proptest::collection::vec((1_u32..10, 1_u64..40, proptest::option::of(0_u8..6)), 0..40),
    ) {
        let mut capacities: Vec<_> = (0..).zip(&nodes).map(|(i, (memory, up, cordoned))| capacity(i, *memory, *up, *cordoned)).collect();
        for (cpus, memory, node) in wishes {
            let spec = spec(cpus, memory, node);
            let request = PlacementRequest { spec: &spec, arch: "x86_64", bridges: &std::collections::BTreeMap::new(), group_members: &[] };
            let choice = choose(&request, &capacities, usize::MAX);
            prop_assert_eq!(&choice, &choose(&request, &capacities, usize::MAX));
            let best = choose(&request, &capacities, 2);
            prop_assert_eq!(best.node, choice.node);
            prop_assert_eq!(&best.verdicts[..], &choice.verdicts[..capacities.len().min(2)], "the best come first");
            let mut turned = capacities.clone();
            turned.reverse();
            prop_assert_eq!(&choice, &choose(&request, &turned, usize::MAX), "the order of the nodes does not matter");
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
                // No instance that fits is refused.
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
    fn a_spread_group_is_distributed_as_far_as_capacity_allows(
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

fn on(instance: &waifud_api::Instance) -> String {
    let node = instance.status.node.as_ref();
    node.map_or_else(String::new, ToString::to_string)
}

#[tokio::test]
async fn instances_of_a_group_go_to_different_nodes_or_wait() {
    let server = common::Server::start().await;
    server.template().await;
    let alder = server.join("alder", ByteSize::gib(64)).await;
    server.join("birch", ByteSize::gib(8)).await;
    let body = |name: &str, strict: bool| {
        serde_json::json!({"name": name, "template": "debian-12",
        "placement": {"spread": {"group": if strict { "db" } else { "web" }, "strict": strict}}})
    };
    let mut nodes = Vec::new();
    for name in ["w1", "w2", "w3", "w4"] {
        nodes.push(on(&server
            .create(&body(name, false))
            .await
            .expect(201)
            .instance()));
    }
    nodes.sort();
    assert_eq!(nodes, ["alder", "alder", "birch", "birch"]);

    let first = server
        .create(&body("d1", true))
        .await
        .expect(201)
        .instance();
    let second = server
        .create(&body("d2", true))
        .await
        .expect(201)
        .instance();
    assert_eq!(
        (on(&first).as_str(), on(&second).as_str()),
        ("alder", "birch")
    );
    let third = server
        .create(&body("d3", true))
        .await
        .expect(201)
        .instance();
    assert_eq!(on(&third), "");
    let reason = third.status.reason.unwrap();
    assert!(
        reason.contains("without another instance of the group db"),
        "{reason}"
    );
    let why = server.get("/v1/instances/d3/why").await.json();
    assert_eq!(why["placement"][0]["reason"], "has 1 of the group db");

    server.delete("/v1/instances/d1").await.expect(202);
    let third = server.get("/v1/instances/d3").await.instance();
    assert_eq!(on(&third), "", "the other one is still there");
    alder
        .destroyed(waifud_api::agent::Tombstone {
            instance: first.id,
            name: first.name,
            epoch: waifud_types::Epoch::FIRST,
        })
        .await;
    let third = server.get("/v1/instances/d3").await.instance();
    assert_eq!(on(&third), "alder");
}

/// Waits until the instance has a node.
async fn gets_a_node(server: &common::Server, name: &str) {
    tokio::time::timeout(common::DEADLINE, async {
        while on(&server
            .get(&format!("/v1/instances/{name}"))
            .await
            .instance())
        .is_empty()
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_unplaceable_instances_do_not_block_others() {
    let server = common::Server::start().await;
    server.template().await;
    server.join("alder", ByteSize::gib(64)).await;
    let monitor = tokio::spawn({
        let control = server.control.clone();
        async move { control.run_background_tasks().await }
    });
    let mib = |n: u64| ByteSize::mib(128 + n).bytes();
    for n in 0..250 {
        // Each has other requirements.
        let body = serde_json::json!({"template": "debian-12", "memory_bytes": mib(n),
            "placement": {"require": {"never": "there"}}});
        server.create(&body).await.expect(201);
    }
    let last = serde_json::json!({"name": "last", "template": "debian-12",
        "placement": {"require": {"disk": "ssd"}}});
    assert_eq!(on(&server.create(&last).await.expect(201).instance()), "");
    let label = serde_json::json!({"labels": {"disk": "ssd"}});
    server.patch("/v1/nodes/alder", &label).await.expect(200);
    gets_a_node(&server, "last").await;
    server.control.stop_token().cancel();
    monitor.await.unwrap().unwrap();
}

#[tokio::test]
async fn instances_of_one_class_have_the_same_reason_and_are_placed_in_order() {
    let server = common::Server::start().await;
    server.template().await;
    let body = |name: &str| serde_json::json!({"name": name, "template": "debian-12", "memory_bytes": 1u64 << 30});
    for n in 0..120 {
        server.create(&body(&format!("i{n:03}"))).await.expect(201);
    }
    server.join("alder", ByteSize::gib(8)).await;
    server.control.retry_waiting(false).await.unwrap();
    let page = server.get("/v1/instances?limit=1000").await.json();
    let page: Vec<waifud_api::Instance> = serde_json::from_value(page["items"].clone()).unwrap();
    let placed: Vec<_> = page.iter().map(|i| !on(i).is_empty()).collect();
    let expected: Vec<_> = (0..120).map(|n| n < 8).collect();
    assert_eq!(placed, expected);
    for waits in page.iter().skip(8) {
        let reason = waits.status.reason.as_deref();
        assert_eq!(
            reason,
            Some("waiting for: 1G memory on one node"),
            "{}",
            waits.name
        );
    }
}

#[tokio::test]
async fn an_unpublished_port_is_free_for_a_waiting_instance() {
    let server = common::Server::start().await;
    server.template().await;
    server.join("alder", ByteSize::gib(64)).await;
    let body = |name: &str| serde_json::json!({"name": name, "template": "debian-12", "publish": [{"port": 8080}]});
    server.create(&body("one")).await.expect(201);
    let two = server.create(&body("two")).await.expect(201).instance();
    assert_eq!(on(&two), "");
    let none = serde_json::json!({"publish": []});
    server.patch("/v1/instances/one", &none).await.expect(200);
    let two = server.get("/v1/instances/two").await.instance();
    assert_eq!(on(&two), "alder");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_creates_neither_overcommit_a_node_nor_share_an_address() {
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
