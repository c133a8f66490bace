//! Releases: what a node that gives an instance up is sent, and what its report changes.

use waifud_api::Instance;
use waifud_api::agent::{AgentReport, Release, Released, Tombstone, WatchFrame};
use waifud_control::Cause;
use waifud_store::StoreError;
use waifud_types::ownership::{OwnershipRole, Part};
use waifud_types::{ByteSize, Epoch, Generation, InstanceId, InstanceState, NodeId};

use super::common::{Agent, Server, facts, report, tombstone};

impl Server {
    async fn release(&self, instance: InstanceId) {
        self.release_with(instance, true).await;
    }

    async fn release_with(&self, instance: InstanceId, stop: bool) {
        let released = self.control.begin_release(instance, stop, Cause::system());
        released.await.unwrap();
    }

    /// Whether the node's guest is known to be off since its release.
    async fn is_off(&self, instance: InstanceId, node: NodeId) -> bool {
        let store = self.control.store();
        let part = store.read(move |tx| tx.part_in(instance, node)).await;
        part.unwrap().unwrap().off
    }

    async fn parts(&self, instance: InstanceId) -> Vec<(NodeId, OwnershipRole, u64)> {
        let store = self.control.store();
        let parts = store.read(move |tx| tx.ownership(instance)).await.unwrap();
        parts
            .iter()
            .map(|part| (part.node, part.role, part.epoch.0))
            .collect()
    }

    /// Gives a node a part in an instance, as a move would.
    async fn set_part(&self, instance: InstanceId, node: NodeId, role: OwnershipRole, epoch: u64) {
        let part = Part {
            node,
            epoch: Epoch(epoch),
            role,
            stop: false,
            off: false,
        };
        let revision = self.control.store().revision();
        let write = self.control.store().write(move |tx| {
            tx.set_part(instance, &part, revision)?;
            if role == OwnershipRole::Owner {
                tx.set_epoch(instance, part.epoch, revision)?;
            }
            Ok::<_, StoreError>(())
        });
        write.await.unwrap();
    }
}

fn order(instance: &Instance, epoch: u64) -> Release {
    Release {
        instance: instance.id,
        epoch: Epoch(epoch),
        stop: true,
    }
}

async fn next_release(agent: &mut Agent) -> Release {
    match agent.frame().await {
        WatchFrame::Release { release, .. } => release,
        other => panic!("a release was expected, not {other:?}"),
    }
}

/// `web` on `alder`, and `birch`, which is to receive it.
async fn with_receiver() -> (Server, Agent, Agent, Instance) {
    let (server, alder, web) = with_instance().await;
    // The default would change with the second node, which would be a further frame.
    server.set_fabric("none").await.expect(200);
    let birch = server.join("birch", ByteSize::gib(8)).await;
    let receiving = OwnershipRole::Receiving;
    server.set_part(web.id, birch.id, receiving, 1).await;
    (server, alder, birch, web)
}

/// `alder` releases the instance, and the new node `birch` becomes its owner.
async fn move_to_birch(server: &Server, alder: &mut Agent, web: &Instance) {
    let birch = server.join("birch", ByteSize::gib(8)).await;
    // The second node has brought a fabric.
    alder.watch_from_now().await;
    server.release(web.id).await;
    next_release(alder).await;
    report_released(alder, web, 1).await;
    let owner = OwnershipRole::Owner;
    server.set_part(web.id, birch.id, owner, 2).await;
}

async fn report_released(agent: &Agent, instance: &Instance, epoch: u64) {
    agent.report_released(instance.id, Epoch(epoch)).await;
}

fn released_report(instance: &Instance, epoch: u64, off: bool) -> AgentReport {
    let released = Released {
        instance: instance.id,
        epoch: Epoch(epoch),
        off,
    };
    AgentReport {
        released: vec![released],
        ..AgentReport::default()
    }
}

/// A server with the watching node `alder` and its instance `web`, which the node has received.
async fn with_instance() -> (Server, Agent, Instance) {
    let (server, mut agent) = Server::with_watching_node().await;
    let web = server.create_instance("web").await;
    assert_eq!(agent.put().await.id, web.id);
    (server, agent, web)
}

/// The frames about instances that a watch from the beginning sends.
async fn about_instances(agent: &mut Agent) -> Vec<WatchFrame> {
    agent.watch(None).await;
    let mut frames = agent.until_sync().await;
    frames.remove(0);
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_receives_a_release_and_its_report_is_stored_once() {
    let (server, mut agent, web) = with_instance().await;
    server.release(web.id).await;
    assert_eq!(next_release(&mut agent).await, order(&web, 1));
    // Until the node confirms, it is sent to each new watch, instead of the instance.
    let frames = about_instances(&mut agent).await;
    assert!(
        matches!(&frames[..], [WatchFrame::Release { release, .. }] if *release == order(&web, 1)),
        "{frames:?}"
    );
    assert_eq!(
        server.parts(web.id).await,
        [(agent.id, OwnershipRole::Releasing, 1)]
    );
    // The status of the guest that shuts down is still the node's.
    agent
        .report_instance(report(web.id, InstanceState::Stopping))
        .await;
    let shown = server.instance("web").await;
    assert_eq!(shown.status.state, InstanceState::Stopping);

    report_released(&agent, &web, 1).await;
    assert_eq!(
        server.parts(web.id).await,
        [(agent.id, OwnershipRole::Released, 1)]
    );
    let revision = server.control.store().revision();
    report_released(&agent, &web, 1).await;
    assert_eq!(server.control.store().revision(), revision, "stored once");

    // A change of the instance does not reach the node any more.
    agent.watch_from_now().await;
    let change = serde_json::json!({"run": false});
    server.patch("/v1/instances/web", &change).await.expect(200);
    let other = server.create_instance("other").await;
    assert_eq!(agent.put().await.id, other.id);
    let kinds = server.kinds(&web.id.to_string()).await;
    assert_eq!(
        kinds
            .iter()
            .filter(|kind| *kind == "instance.released")
            .count(),
        1,
        "{kinds:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_of_another_epoch_of_other_nodes_and_without_an_order_change_nothing() {
    let (server, agent, web) = with_instance().await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    report_released(&agent, &web, 1).await;
    let owner = [(agent.id, OwnershipRole::Owner, 1)];
    assert_eq!(server.parts(web.id).await, owner, "it was not ordered");
    server.release(web.id).await;
    report_released(&birch, &web, 1).await;
    for epoch in [0, 2] {
        report_released(&agent, &web, epoch).await;
    }
    let releasing = [(agent.id, OwnershipRole::Releasing, 1)];
    assert_eq!(server.parts(web.id).await, releasing);
    let unknown = Released {
        instance: InstanceId::generate(),
        epoch: Epoch(1 << 60),
        off: true,
    };
    let report = AgentReport {
        released: vec![unknown],
        ..AgentReport::default()
    };
    agent
        .try_to_report(&report)
        .await
        .refused(422, "out-of-bounds", "released[0].epoch");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_release_sends_the_instance_again_in_the_next_epoch() {
    for recorded in [false, true] {
        let (server, mut agent, web) = with_instance().await;
        server.release(web.id).await;
        assert_eq!(next_release(&mut agent).await.epoch, Epoch(1));
        if recorded {
            report_released(&agent, &web, 1).await;
        }
        let withdrawn = server.control.withdraw_release(web.id, Cause::system());
        withdrawn.await.unwrap();
        let again = agent.put().await;
        assert_eq!((again.id, again.epoch), (web.id, Epoch(2)));
        // The late report of the node.
        report_released(&agent, &web, 1).await;
        assert_eq!(
            server.parts(web.id).await,
            [(agent.id, OwnershipRole::Owner, 2)]
        );
        let frames = about_instances(&mut agent).await;
        assert!(
            matches!(&frames[..], [WatchFrame::Put { .. }]),
            "{frames:?}"
        );
        // And released again.
        server.release(web.id).await;
        assert_eq!(next_release(&mut agent).await, order(&web, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_receives_the_instance_only_as_its_owner() {
    let (server, mut alder, mut birch, web) = with_receiver().await;
    assert!(about_instances(&mut birch).await.is_empty());
    server.release(web.id).await;
    next_release(&mut alder).await;
    assert!(about_instances(&mut birch).await.is_empty());
    report_released(&alder, &web, 1).await;
    server
        .set_part(web.id, birch.id, OwnershipRole::Owner, 2)
        .await;
    let frames = about_instances(&mut birch).await;
    assert!(
        matches!(&frames[..], [WatchFrame::Put { .. }]),
        "{frames:?}"
    );
    let frames = about_instances(&mut alder).await;
    assert!(
        matches!(&frames[..], [WatchFrame::Release { release, .. }] if *release == order(&web, 1)),
        "{frames:?}"
    );
    let late = server
        .control
        .withdraw_release(web.id, Cause::system())
        .await;
    assert!(late.is_err(), "another node is the owner");
    // The first node confirms the deletion of its copy: its part ends, and the instance stays.
    let copy = Tombstone {
        epoch: Epoch(1),
        ..tombstone(&web)
    };
    let (node, ordered, at) = (alder.id, copy.clone(), web.created_at);
    let revision = server.control.store().revision();
    let write = server
        .control
        .store()
        .write(move |tx| tx.put_tombstone(node, &ordered, at, revision));
    write.await.unwrap();
    alder.destroyed(copy).await;
    assert_eq!(
        server.parts(web.id).await,
        [(birch.id, OwnershipRole::Owner, 2)]
    );
    assert_eq!(server.instance("web").await.id, web.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_during_a_release_wins_and_waits_for_every_node_with_a_part() {
    let (server, mut alder, mut birch, web) = with_receiver().await;
    server.release(web.id).await;
    next_release(&mut alder).await;
    server.delete("/v1/instances/web").await.expect(202);
    let ordered = alder.tombstone().await;
    for agent in [&mut alder, &mut birch] {
        let frames = about_instances(agent).await;
        assert!(
            matches!(&frames[..], [WatchFrame::Tombstone { .. }]),
            "{frames:?}"
        );
    }
    // A late report of the release changes nothing.
    report_released(&alder, &web, 1).await;
    let again = server.control.begin_release(web.id, true, Cause::system());
    assert!(again.await.is_err());
    alder.destroyed(ordered.clone()).await;
    let shown = server.instance("web").await;
    assert_eq!(shown.status.state, InstanceState::Deleting);
    birch.destroyed(ordered).await;
    server.get("/v1/instances/web").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_released_copy_can_be_removed_and_the_owner_keeps_the_instance() {
    let (server, mut alder, web) = with_instance().await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    // The second node has brought a fabric.
    alder.watch_from_now().await;
    server.release(web.id).await;
    next_release(&mut alder).await;
    server.delete("/v1/nodes/alder").await.expect(409);
    report_released(&alder, &web, 1).await;
    server.delete("/v1/nodes/alder").await.expect(409);
    server
        .set_part(web.id, birch.id, OwnershipRole::Owner, 2)
        .await;
    server.delete("/v1/nodes/alder").await.expect(204);
    assert_eq!(
        server.parts(web.id).await,
        [(birch.id, OwnershipRole::Owner, 2)]
    );
    birch.report_facts(facts(ByteSize::gib(8))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_without_stop_is_stored_when_recorded_and_again_when_the_guest_is_off() {
    let (server, mut agent, web) = with_instance().await;
    agent
        .report_instance(report(web.id, InstanceState::Running))
        .await;
    server.release_with(web.id, false).await;
    assert!(!next_release(&mut agent).await.stop);
    for (off, events) in [(false, 1), (false, 1), (true, 2), (false, 2)] {
        agent.report(&released_report(&web, 1, off)).await;
        assert_eq!(
            server.parts(web.id).await,
            [(agent.id, OwnershipRole::Released, 1)]
        );
        assert_eq!(server.is_off(web.id, agent.id).await, events == 2);
        let kinds = server.kinds(&web.id.to_string()).await;
        let released = kinds.iter().filter(|kind| *kind == "instance.released");
        assert_eq!(released.count(), events, "{kinds:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_a_released_guest_still_has_are_not_given_to_another_instance() {
    let (server, agent, web) = with_instance().await;
    server.create_instance("other").await;
    let publish = |ports: &[u16]| {
        let ports = ports.iter().map(|port| serde_json::json!({"port": port}));
        serde_json::json!({"publish": ports.collect::<Vec<_>>()})
    };
    let on_web = async |ports: &[u16]| server.patch("/v1/instances/web", &publish(ports)).await;
    let reported = async |generation: u64| {
        let mut running = report(web.id, InstanceState::Running);
        running.observed_generation = Generation(generation);
        agent.report_instance(running).await;
    };
    on_web(&[8080, 8081]).await.expect(200);
    reported(2).await;
    // The node has not applied this when it is to release the instance without stopping the guest.
    on_web(&[8081]).await.expect(200);
    let release = async |stop| {
        let release = server.control.begin_release(web.id, stop, Cause::system());
        release.await.map_err(|error| error.to_string())
    };
    let refused = release(false).await.unwrap_err();
    let why = "node alder has not reported the latest change of it";
    assert!(refused.contains(why), "{refused}");
    reported(3).await;
    release(false).await.unwrap();
    // From now on, changes do not reach the node.
    for off in [false, true] {
        let refused = on_web(&[]).await.expect(409).problem();
        assert_eq!(refused.code, "releasing");
        assert_eq!(refused.field.as_deref(), Some("publish"));
        let other = server.patch("/v1/instances/other", &publish(&[8081])).await;
        assert_eq!(other.expect(409).problem().code, "port-taken");
        agent.report(&released_report(&web, 1, off)).await;
    }
    on_web(&[]).await.expect(200);
    let other = server.patch("/v1/instances/other", &publish(&[8081])).await;
    other.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_agent_does_not_know_releases_is_not_sent_one() {
    let (server, agent, web) = with_instance().await;
    let mut old = facts(ByteSize::gib(64));
    old.features.clear();
    agent.report_facts(old).await;
    let refused = server.control.begin_release(web.id, true, Cause::system());
    let error = refused.await.unwrap_err().to_string();
    assert!(error.contains("the agent on alder is too old"), "{error}");
    assert_eq!(
        server.parts(web.id).await,
        [(agent.id, OwnershipRole::Owner, 1)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_releases_of_an_instance_that_is_deleted_do_not_use_the_nodes_budget_of_changes() {
    let (server, mut alder, web) = with_instance().await;
    server.release(web.id).await;
    next_release(&mut alder).await;
    server.delete("/v1/instances/web").await.expect(202);
    let report = released_report(&web, 1, true);
    for _ in 0..12_000 {
        alder.report(&report).await;
    }
}

/// `web` is being deleted and has parts on `alder`, where it ran, and on `birch`.
async fn deleting_with_two_parts() -> (Server, Agent, Agent, Instance) {
    let (server, alder, birch, web) = with_receiver().await;
    server.delete("/v1/instances/web").await.expect(202);
    (server, alder, birch, web)
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_one_node_of_an_instance_being_deleted_keeps_it_on_the_other() {
    for removed in ["alder", "birch"] {
        let (server, alder, birch, web) = deleting_with_two_parts().await;
        server
            .delete(&format!("/v1/nodes/{removed}"))
            .await
            .expect(204);
        let other = if removed == "alder" { &birch } else { &alder };
        let left = server.parts(web.id).await;
        assert_eq!(left.len(), 1, "{removed}");
        assert_eq!(left[0].0, other.id);
        let shown = server.instance("web").await;
        assert_eq!(shown.status.state, InstanceState::Deleting);
        other.destroyed(tombstone(&web)).await;
        server.get("/v1/instances/web").await.expect(404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_node_that_has_confirmed_its_deletion_leaves_the_instance_to_the_other_node() {
    let (server, alder, birch, web) = deleting_with_two_parts().await;
    alder.destroyed(tombstone(&web)).await;
    server.delete("/v1/nodes/alder").await.expect(204);
    assert_eq!(server.parts(web.id).await.len(), 1, "birch has a copy");
    birch.destroyed(tombstone(&web)).await;
    server.get("/v1/instances/web").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_still_has_published_ports_of_a_released_instance_can_be_removed() {
    let (server, mut alder) = Server::with_watching_node().await;
    let publish = serde_json::json!([{"port": 8080}]);
    let body = serde_json::json!({"name": "web", "template": "debian-12", "publish": publish});
    let web = server.created(&body).await;
    alder.put().await;
    move_to_birch(&server, &mut alder, &web).await;
    server.delete("/v1/nodes/alder").await.expect(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managed_copy_cannot_be_deleted_as_unmanaged() {
    let (server, mut alder) = Server::with_watching_node().await;
    let web = server.create_instance("web").await;
    let record = alder.put().await;
    let copy = alder.unmanaged(&record).await;
    alder.report_unmanaged(vec![copy]).await;
    let path = format!("/v1/nodes/alder/unmanaged/{}", web.id);
    let refused = async || {
        let problem = server.delete(&path).await.expect(409).problem();
        assert_eq!(problem.code, "already-managed");
        assert_eq!(server.parts(web.id).await.len(), 1);
    };
    refused().await;
    let release = server.control.begin_release(web.id, true, Cause::system());
    release.await.unwrap();
    refused().await;
}
