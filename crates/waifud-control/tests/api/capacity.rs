//! `/v1/capacity`: how many more instances fit, and whether the running ones would still fit with nodes off.

use serde_json::{Value, json};
use waifud_api::Capacity;
use waifud_types::ByteSize;

use crate::common::{Server, node_name};

impl Server {
    async fn capacity(&self, query: &str) -> Capacity {
        let answer = self.get(&format!("/v1/capacity{query}")).await.expect(200);
        serde_json::from_value(answer.json()).unwrap()
    }
}

/// The node and the number for each node.
fn by_node(capacity: &Capacity) -> Vec<(&str, u64)> {
    let nodes = capacity.nodes.iter();
    nodes.map(|fit| (fit.node.as_str(), fit.more)).collect()
}

#[tokio::test]
async fn as_many_instances_as_it_says_can_be_created() {
    let (server, _alder) = Server::with_node(ByteSize::gib(4)).await;
    server.join("birch", ByteSize::gib(8)).await;
    server.create_instance("web").await;
    let capacity = server.capacity("").await;
    let size = json!({"cpus": 1, "memory_bytes": 1_u64 << 30, "disk_bytes": 10_u64 << 30});
    assert_eq!(serde_json::to_value(capacity.size).unwrap(), size);
    assert_eq!(by_node(&capacity), [("alder", 4), ("birch", 7)]);
    assert_eq!(capacity.nodes[1].reason, "7G free of 8G");
    assert_eq!(capacity.survival, None);
    for n in 0..capacity.more {
        let placed = server.create_instance(&format!("i{n}")).await;
        assert!(placed.status.node.is_some(), "{n} of {}", capacity.more);
    }
    let more = server.create_instance("more").await;
    assert_eq!(node_name(&more), None);
    assert_eq!(server.capacity("").await.more, 0);
}

#[tokio::test]
async fn the_size_is_that_of_the_parameters_and_free_addresses_limit_small_instances() {
    let (server, _alder) = Server::with_node(ByteSize::gib(64)).await;
    let large = server.capacity("?memory_bytes=17179869184&cpus=8").await;
    assert_eq!(large.more, 4);
    let none = server.capacity("?cpus=9&disk_bytes=1048576").await;
    assert_eq!(
        (none.more, none.nodes[0].reason.as_str()),
        (0, "has 8 CPUs")
    );
    // 253 addresses, of which one is taken.
    server.create_instance("web").await;
    let small = server.capacity("?memory_bytes=67108864").await;
    assert_eq!(small.more, 252);
}

#[tokio::test]
async fn it_names_the_instances_that_would_not_fit_with_the_largest_nodes_off() {
    let (server, _alder) = Server::with_node(ByteSize::gib(16)).await;
    server.join("birch", ByteSize::gib(8)).await;
    let body = |name: &str, gib: u64, node: Value, run: bool| {
        json!({"name": name, "template": "debian-12", "memory_bytes": gib << 30, "run": run,
            "placement": {"node": node}})
    };
    for (name, gib, run) in [("big", 7, true), ("off", 2, false)] {
        let request = body(name, gib, "alder".into(), run);
        server.create(&request).await.expect(201);
        // The node is where it is, not where it has to be.
        let anywhere = json!({"placement": {}});
        server.patch_instance(name, &anywhere).await.expect(200);
    }
    let one = server.capacity("?survive=1").await.survival.unwrap();
    assert_eq!((one.fits, one.displaced, one.unplaced_count), (true, 1, 0));
    assert_eq!(one.off[0].as_str(), "alder");
    let request = body("small", 2, "birch".into(), true);
    server.create(&request).await.expect(201);
    let one = server.capacity("?survive=1").await.survival.unwrap();
    assert_eq!((one.fits, one.displaced, one.unplaced_count), (false, 1, 1));
    let unplaced = serde_json::to_value(&one.unplaced[0]).unwrap();
    assert_eq!(unplaced["name"], "big");
    assert_eq!(unplaced["node"], "alder");
    assert_eq!(unplaced["memory_bytes"], 7_u64 << 30);
    assert_eq!(unplaced["placement"][0]["code"], "insufficient-memory");
    assert_eq!(unplaced["placement"][0]["reason"], "6G free of 8G");
    // A deleted instance needs no other node.
    server.delete("/v1/instances/big").await.expect(202);
    let one = server.capacity("?survive=1").await.survival.unwrap();
    assert_eq!((one.fits, one.displaced), (true, 0));
    let all = server.capacity("?survive=9").await.survival.unwrap();
    assert_eq!((all.off.len(), all.displaced, all.fits), (2, 1, false));
    let none = server.capacity("?survive=0").await.survival.unwrap();
    assert_eq!((none.off.len(), none.displaced, none.fits), (0, 0, true));
}

#[tokio::test]
async fn parameters_out_of_range_are_refused_by_name() {
    let server = Server::start().await;
    assert_eq!(server.capacity("").await.more, 0);
    for (query, field) in [
        ("cpus=0", "cpus"),
        ("cpus=256", "cpus"),
        ("cpus=two", "cpus"),
        ("memory_bytes=67108863", "memory_bytes"),
        ("disk_bytes=1048575", "disk_bytes"),
        ("disk_bytes=-1", "disk_bytes"),
        ("survive=10001", "survive"),
        ("survive=", "survive"),
        ("memory=1", "memory"),
        ("survive=1&survive=2", "survive"),
    ] {
        let answer = server.get(&format!("/v1/capacity?{query}")).await;
        answer.refused(400, "invalid-query", field);
    }
}
