//! Draining nodes, with agents that the tests play.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use waifud_api::{Drain, Instance};
use waifud_types::{ByteSize, InstanceState, ReceiveState};

use super::common::{Agent, Answer, ManualClock, Server, facts, report, tombstone};
use super::moving::{on_birch, receiving, released};

const DRAIN: &str = "/v1/nodes/alder/drain";

/// `small`, `middle` and `large` (1, 2 and 3 GiB) run on `alder`; `birch` is another node.
struct Cluster {
    server: Server,
    clock: Arc<ManualClock>,
    alder: Agent,
    birch: Agent,
}

impl Cluster {
    async fn new(birch_memory: ByteSize) -> Self {
        let (server, clock) = Server::with_manual_clock().await;
        server.template().await;
        let alder = server.join("alder", ByteSize::gib(8)).await;
        for (name, gib) in [("small", 1), ("middle", 2), ("large", 3)] {
            let size = ByteSize::gib(gib);
            let body = json!({"name": name, "template": "debian-12", "memory_bytes": size});
            let created = server.created(&body).await;
            let running = report(created.id, InstanceState::Running);
            alder.report_instance(running).await;
        }
        let birch = server.join("birch", birch_memory).await;
        Self {
            server,
            clock,
            alder,
            birch,
        }
    }

    async fn begin(&self) -> Drain {
        let begun = self.server.post(DRAIN, &json!({"new_address": true})).await;
        drain(&begun.expect(200))
    }

    async fn plan(&self) -> Drain {
        drain(&self.server.get(DRAIN).await.expect(200))
    }

    async fn continues(&self) {
        self.server.control.continue_drains().await.unwrap();
    }

    /// Plays both nodes until the instance is on birch and nothing of it is left on alder.
    async fn finish_move(&self, name: &str) {
        let before = self.server.instance(name).await;
        let id = before.id;
        let (alder, birch) = (&self.alder, &self.birch);
        birch
            .report(&receiving(id, 1, ReceiveState::Prepared))
            .await;
        alder.report(&released(id, 1, true)).await;
        birch
            .report(&receiving(id, 1, ReceiveState::Received))
            .await;
        birch
            .report_instance(on_birch(id, InstanceState::Running))
            .await;
        alder.destroyed(tombstone(&before)).await;
        let after = self.server.instance(name).await;
        assert_eq!(after.moving, None, "{name}");
        assert_eq!(after.status.node.unwrap().as_str(), "birch");
    }

    async fn state(&self) -> Value {
        self.server.node("alder").await["state"].clone()
    }
}

fn drain(answer: &Answer) -> Drain {
    serde_json::from_value(answer.json()).unwrap()
}

/// Each instance with the node that it moves to and whether it is moving.
fn listed(drain: &Drain) -> Vec<(&str, Option<&str>, bool)> {
    let instances = drain.instances.iter();
    instances
        .map(|it| {
            let to = it.to.as_ref().map(waifud_types::Name::as_str);
            (it.name.as_str(), to, it.moving.is_some())
        })
        .collect()
}

/// The code and the title of an instance's obstacle.
fn obstacle(drain: &Drain, name: &str) -> (String, String) {
    let mut instances = drain.instances.iter();
    let found = instances.find(|it| it.name.as_str() == name).unwrap();
    let problem = found.obstacle.clone().unwrap();
    (problem.code, problem.title)
}

/// No instance can leave its node with its address.
async fn without_fabric(it: &Cluster) {
    it.server.set_fabric("none").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_keep_their_addresses_where_the_fabric_carries_them() {
    let it = Cluster::new(ByteSize::gib(8)).await;
    let plan = it.plan().await;
    assert_eq!(listed(&plan)[0], ("large", Some("birch"), false));
    let begun = it.server.post(DRAIN, &json!({})).await;
    assert!(drain(&begun.expect(200)).draining);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_leave_at_a_time_until_the_node_is_empty_and_stays_cordoned() {
    let it = Cluster::new(ByteSize::gib(8)).await;
    let begun = it.begin().await;
    assert_eq!(
        listed(&begun),
        [
            ("large", Some("birch"), true),
            ("middle", Some("birch"), true),
            ("small", Some("birch"), false)
        ]
    );
    assert!(begun.draining);
    assert_eq!(it.state().await, "draining");
    let again = it.begin().await;
    assert_eq!(again, begun, "repeating the request changes nothing");
    it.continues().await;
    assert_eq!(it.plan().await, begun, "no third one begins");

    it.finish_move("large").await;
    it.continues().await;
    assert_eq!(
        listed(&it.plan().await),
        [
            ("middle", Some("birch"), true),
            ("small", Some("birch"), true)
        ]
    );
    it.finish_move("small").await;
    it.finish_move("middle").await;
    assert_eq!(it.state().await, "draining", "not ended yet");
    it.continues().await;
    let end = it.plan().await;
    assert_eq!((end.draining, end.instances.len()), (false, 0));
    assert_eq!(it.state().await, "cordoned");
    let kinds = it.server.kinds("node/alder").await;
    let ends = ["node.draining", "node.drained"].map(str::to_owned);
    assert!(kinds.ends_with(&ends), "{kinds:?}");

    let empty = it.begin().await;
    assert_eq!((empty.draining, empty.instances.len()), (false, 0));
    assert_eq!(it.state().await, "cordoned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_what_fits_and_changes_nothing() {
    let it = Cluster::new(ByteSize::gib(4)).await;
    without_fabric(&it).await;
    let before = it.server.control.store().revision();
    let plan = it.server.get(&format!("{DRAIN}?new_address=true")).await;
    let plan = drain(&plan.expect(200));
    // 4 GiB of which a part is reserved for the node: the largest fits, and then nothing of 2 GiB.
    assert!(!plan.draining);
    let to: Vec<_> = listed(&plan);
    assert_eq!(to[0], ("large", Some("birch"), false), "{to:?}");
    assert_eq!(to[1], ("middle", None, false), "{to:?}");
    let (code, title) = obstacle(&plan, "middle");
    assert_eq!(code, "cannot-move");
    assert!(title.contains("birch: "), "{title}");

    let bound = it.plan().await;
    let (code, _) = obstacle(&bound, "large");
    assert_eq!(code, "new-address-needed");
    assert_eq!(it.server.control.store().revision(), before);
    assert_eq!(it.state().await, "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_stays_and_is_moved_when_it_fits() {
    let it = Cluster::new(ByteSize::gib(4)).await;
    let begun = it.begin().await;
    assert_eq!(obstacle(&begun, "middle").0, "cannot-move");
    it.finish_move("large").await;
    it.continues().await;
    let stuck = it.plan().await;
    assert!(stuck.draining);
    assert_eq!(obstacle(&stuck, "middle").0, "cannot-move");

    it.birch.report_facts(facts(ByteSize::gib(16))).await;
    it.continues().await;
    let middle = it.server.instance("middle").await;
    assert_eq!(middle.moving.unwrap().to.as_str(), "birch");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_created_for_the_node_stays_until_it_is_moved_by_name() {
    let it = Cluster::new(ByteSize::gib(8)).await;
    let pinned = json!({"placement": {"node": "alder"}});
    it.server.patched("small", &pinned).await;
    let begun = it.begin().await;
    let (code, title) = obstacle(&begun, "small");
    assert_eq!(code, "cannot-move");
    assert!(title.contains("pinned to alder"), "{title}");
    for name in ["large", "middle"] {
        it.finish_move(name).await;
    }
    it.continues().await;
    assert!(it.plan().await.draining);
    let to = json!({"to": "birch", "new_address": true});
    let path = "/v1/instances/small/move";
    it.server.post(path, &to).await.expect(200);
    it.finish_move("small").await;
    it.continues().await;
    assert!(!it.plan().await.draining);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_canceled_begins_no_further_move() {
    let it = Cluster::new(ByteSize::gib(8)).await;
    it.begin().await;
    let kept = drain(&it.server.delete(DRAIN).await.expect(200));
    assert!(!kept.draining);
    assert_eq!(it.state().await, "cordoned");
    it.finish_move("large").await;
    it.continues().await;
    let left = it.plan().await;
    assert_eq!(listed(&left)[0], ("middle", Some("birch"), true), "goes on");
    assert!(left.instances[1].moving.is_none());
    it.server
        .delete(DRAIN)
        .await
        .refused(409, "not-draining", "name");

    it.begin().await;
    let uncordon = json!({"cordoned": false});
    it.server
        .patch("/v1/nodes/alder", &uncordon)
        .await
        .expect(200);
    assert_eq!(it.state().await, "ready");
    assert!(!it.plan().await.draining);
    let kinds = it.server.kinds("node/alder").await;
    let canceled = kinds.iter().filter(|kind| *kind == "node.drain-canceled");
    assert_eq!(canceled.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_cannot_succeed_is_refused_and_changes_nothing() {
    let it = Cluster::new(ByteSize::gib(8)).await;
    without_fabric(&it).await;
    let before = it.server.control.store().revision();
    let refused = it.server.post(DRAIN, &json!({})).await;
    let refused = refused.refused(409, "new-address-needed", "new_address");
    assert!(refused.title.contains("large"), "{refused:?}");
    it.server
        .post("/v1/nodes/oak/drain", &json!({}))
        .await
        .expect(404);
    it.server
        .post(DRAIN, &json!({"new_addresses": true}))
        .await
        .expect(422);
    assert_eq!(it.server.control.store().revision(), before);
    assert_eq!(it.state().await, "ready");

    let (server, _alder, _web): (Server, Agent, Instance) = Server::with_placed_instance().await;
    let nodes = server.items("/v1/nodes").await;
    let path = format!("/v1/nodes/{}/drain", nodes[0]["name"].as_str().unwrap());
    server
        .post(&path, &json!({"new_address": true}))
        .await
        .refused(409, "only-node", "name");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_an_unreachable_node_wait_for_it() {
    let it = Cluster::new(ByteSize::gib(8)).await;
    it.clock.forward(Duration::from_mins(10));
    it.birch.report_facts(facts(ByteSize::gib(8))).await;
    it.server.control.check_contacts().await.unwrap();
    assert_eq!(it.state().await, "unreachable");
    let begun = it.begin().await;
    assert_eq!(obstacle(&begun, "small").0, "node-unreachable");
    assert_eq!(it.state().await, "unreachable");

    it.alder.report_facts(facts(ByteSize::gib(8))).await;
    it.continues().await;
    assert!(it.plan().await.instances[0].moving.is_some());
    assert_eq!(it.state().await, "draining");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_arrives_is_moved_away_again() {
    let it = Cluster::new(ByteSize::gib(8)).await;
    let there = json!({"name": "guest", "template": "debian-12", "placement": {"node": "birch"}});
    let guest = it.server.created(&there).await;
    let running = report(guest.id, InstanceState::Running);
    it.birch.report_instance(running).await;
    let here = json!({"to": "alder", "new_address": true});
    it.server
        .post("/v1/instances/guest/move", &here)
        .await
        .expect(200);
    let begun = it.begin().await;
    assert_eq!(begun.arriving, ["guest".parse().unwrap()]);
    for name in ["large", "middle"] {
        it.finish_move(name).await;
    }
    it.continues().await;
    it.finish_move("small").await;
    it.continues().await;
    let waits = it.plan().await;
    assert_eq!((waits.draining, waits.instances.len()), (true, 0));
}
