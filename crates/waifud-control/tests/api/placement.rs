//! Placement of created instances: capacity is never promised twice, groups are spread, and waiting instances are placed
//! as soon as they can be. The choice itself is tested beside it, in `placement/choose_tests`.

use crate::common::{Server, node_name, tombstone};
use serde_json::json;
use waifud_types::{ByteSize, Name, WaitReason};

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
