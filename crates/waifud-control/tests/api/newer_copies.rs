//! Copies on nodes that are newer than a restored database: waifud takes over their epochs, if nothing speaks against it.

use serde_json::json;
use waifud_api::agent::{
    AgentInstance, AgentReport, InstanceReport, Released, SliceObject, Unmanaged, WatchFrame,
};
use waifud_control::Cause;
use waifud_types::{ByteSize, Epoch, InstanceId, InstanceState, OwnershipRole, WaitReason};

use crate::common::{Agent, Server, hello, report};
use crate::unmanaged::restored;

/// What a node has that the restored database does not know.
struct Newer {
    copy: AgentInstance,
    /// As the node reports it while the instance is not in its slice.
    unmanaged: Unmanaged,
}

impl Newer {
    /// As the node reports it while the instance is in its slice.
    fn managed(&self) -> InstanceReport {
        InstanceReport {
            epoch: self.copy.epoch,
            ..report(self.copy.id, InstanceState::Running)
        }
    }
}

/// A server with `web` on its watching node `alder`, and a backup from before `web` got another epoch. Returns the server
/// that was restored from that backup.
async fn restored_with_newer_copy() -> (Server, Agent, Newer) {
    let (yesterday, mut agent) = Server::with_watching_node().await;
    let web = yesterday.create_instance("web").await;
    agent.put().await;
    let today = restored(&yesterday).await;

    let release = yesterday
        .control
        .begin_release(web.id, true, Cause::system());
    release.await.unwrap();
    let order = agent.frame().await;
    assert!(matches!(order, WatchFrame::Release { .. }), "{order:?}");
    let withdraw = yesterday.control.withdraw_release(web.id, Cause::system());
    withdraw.await.unwrap();
    let copy = agent.put().await;
    assert_eq!(copy.epoch, Epoch(2));
    let unmanaged = agent.unmanaged(&copy).await;

    let mut agent = today.agent_again(&agent).await;
    agent.watch_from_now().await;
    assert_eq!(epoch(&today, web.id).await, Epoch::FIRST);
    (today, agent, Newer { copy, unmanaged })
}

/// A report that a copy is released and off.
fn released(instance: InstanceId, epoch: Epoch) -> AgentReport {
    AgentReport {
        released: vec![Released {
            instance,
            epoch,
            off: true,
        }],
        ..AgentReport::default()
    }
}

/// The part of the only node in an instance.
async fn part(server: &Server, id: InstanceId) -> (OwnershipRole, Epoch) {
    let store = server.control.store();
    let parts = store.read(move |tx| tx.ownership(id)).await.unwrap();
    assert_eq!(parts.len(), 1, "{parts:?}");
    (parts[0].role, parts[0].epoch)
}

/// The epoch in which the node receives the instance next.
async fn next_epoch(agent: &mut Agent) -> Epoch {
    loop {
        if let WatchFrame::Put {
            object: SliceObject::Instance(instance),
            ..
        } = agent.frame().await
        {
            return instance.epoch;
        }
    }
}

async fn epoch(server: &Server, id: InstanceId) -> Epoch {
    let row = server.control.store().read(move |tx| tx.instance(id)).await;
    row.unwrap().unwrap().epoch
}

/// Changes and deletes `web`; the node receives both in the epoch of its copy.
async fn is_changed_and_deleted(server: &Server, mut agent: Agent, newer: &Newer) {
    let put = agent.put().await;
    assert_eq!((put.id, put.epoch), (newer.copy.id, newer.copy.epoch));
    server
        .patched("web", &json!({"memory_bytes": 3_u64 << 30}))
        .await;
    let put = agent.put().await;
    assert_eq!(put.epoch, newer.copy.epoch);
    assert_eq!(put.spec.memory_bytes, ByteSize::gib(3));
    server.delete("/v1/instances/web").await.expect(202);
    the_copy_is_destroyed(server, &mut agent, newer).await;
}

/// The node receives the deletion in the epoch of its copy.
async fn the_copy_is_destroyed(server: &Server, agent: &mut Agent, newer: &Newer) {
    let tombstone = agent.tombstone().await;
    assert_eq!(tombstone.epoch, newer.copy.epoch);
    agent.destroyed(tombstone).await;
    server.get("/v1/instances/web").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_copy_that_its_node_manages_is_changed_and_deleted_after_a_restore() {
    let (server, agent, newer) = restored_with_newer_copy().await;
    agent.report_instance(newer.managed()).await;
    // The same report already counts.
    let web = server.instance("web").await;
    assert_eq!(web.status.state, InstanceState::Running);
    let kinds = server.kinds("instance/web").await;
    assert!(
        kinds.contains(&"instance.newer-copy".to_owned()),
        "{kinds:?}"
    );
    is_changed_and_deleted(&server, agent, &newer).await;
}

/// After a restore without the instance, its node kept it as unmanaged.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_copy_that_was_unmanaged_is_changed_and_deleted_after_a_restore() {
    let (server, agent, newer) = restored_with_newer_copy().await;
    agent.report_unmanaged(vec![newer.unmanaged.clone()]).await;
    is_changed_and_deleted(&server, agent, &newer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_was_ordered_before_the_report_reaches_the_newer_copy() {
    let (server, mut agent, newer) = restored_with_newer_copy().await;
    server.delete("/v1/instances/web").await.expect(202);
    assert_eq!(agent.tombstone().await.epoch, Epoch::FIRST);
    // The node ignores it, and reports its copy.
    agent.report_instance(newer.managed()).await;
    the_copy_is_destroyed(&server, &mut agent, &newer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_epoch_of_a_copy_that_another_node_may_have_taken_over_is_not_used() {
    let (server, agent, newer) = restored_with_newer_copy().await;
    let id = newer.copy.id;
    // Another node has an even newer copy.
    let birch = server.join("birch", ByteSize::gib(8)).await;
    let mut newest = newer.unmanaged.clone();
    newest.record.as_mut().unwrap().epoch = newer.copy.epoch.next();
    birch.report_unmanaged(vec![newest]).await;
    agent.report_instance(newer.managed()).await;
    assert_eq!(epoch(&server, id).await, Epoch::FIRST);
    // That of a node that does not own the instance is never used.
    birch.report_unmanaged(Vec::new()).await;
    birch.report_instance(newer.managed()).await;
    assert_eq!(epoch(&server, id).await, Epoch::FIRST);
    // Nor one that another node has, too: one of both may have released it to the other.
    birch.report_unmanaged(vec![newer.unmanaged.clone()]).await;
    agent.report_instance(newer.managed()).await;
    assert_eq!(epoch(&server, id).await, Epoch::FIRST);
    birch.report_unmanaged(Vec::new()).await;
    // Nor that of an order to delete the copy, which may be newer than the copy.
    let deleting = InstanceReport {
        state: InstanceState::Deleting,
        ..newer.managed()
    };
    agent.report_instance(deleting).await;
    assert_eq!(epoch(&server, id).await, Epoch::FIRST);
    agent.report_instance(newer.managed()).await;
    assert_eq!(epoch(&server, id).await, newer.copy.epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_cannot_raise_an_epoch_without_a_restore() {
    let (server, mut agent) = Server::with_watching_node().await;
    let web = server.create_instance("web").await;
    let copy = agent.put().await;
    let mut report = report(web.id, InstanceState::Running);
    report.epoch = copy.epoch.next();
    agent.report_instance(report).await;
    assert_eq!(epoch(&server, web.id).await, copy.epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_was_withdrawn_after_the_backup_does_not_count_after_a_restore() {
    let (yesterday, mut agent) = Server::with_watching_node().await;
    let web = yesterday.create_instance("web").await;
    let copy = agent.put().await;
    let begin = yesterday
        .control
        .begin_release(web.id, true, Cause::system());
    begin.await.unwrap();
    agent.frame().await;
    agent.report_released(web.id, copy.epoch).await;
    let today = restored(&yesterday).await;
    let withdraw = yesterday.control.withdraw_release(web.id, Cause::system());
    withdraw.await.unwrap();
    let copy = agent.put().await;
    let unmanaged = agent.unmanaged(&copy).await;

    let mut agent = today.agent_again(&agent).await;
    agent.watch_from_now().await;
    let newer = Newer { copy, unmanaged };
    agent.report_instance(newer.managed()).await;
    assert_eq!(epoch(&today, web.id).await, Epoch(2));
    let parts = today.control.store();
    let parts = parts.read(move |tx| tx.ownership(web.id)).await.unwrap();
    assert_eq!(parts[0].role, OwnershipRole::Owner);
    is_changed_and_deleted(&today, agent, &newer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_reaches_a_copy_that_was_released_after_the_backup() {
    for deleted_first in [false, true] {
        let (server, mut agent, newer) = restored_with_newer_copy().await;
        let id = newer.copy.id;
        if deleted_first {
            server.delete("/v1/instances/web").await.expect(202);
            assert_eq!(agent.tombstone().await.epoch, Epoch::FIRST);
        }
        agent.report(&released(id, newer.copy.epoch)).await;
        assert_eq!(
            part(&server, id).await,
            (OwnershipRole::Released, newer.copy.epoch)
        );
        if !deleted_first {
            assert_eq!(agent.release().await, (id, newer.copy.epoch));
            server.delete("/v1/instances/web").await.expect(202);
        }
        the_copy_is_destroyed(&server, &mut agent, &newer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_of_a_node_that_has_not_noticed_the_restore_does_not_count() {
    let (yesterday, mut agent) = Server::with_watching_node().await;
    let today = restored(&yesterday).await;
    // Created after the backup: it is not among the unmanaged objects until the node has noticed the restore.
    yesterday.create_instance("web").await;
    let copy = agent.put().await;
    let list = |unmanaged| AgentReport {
        unmanaged: Some(unmanaged),
        ..AgentReport::default()
    };
    let early = today.agent_of(&agent);
    let refused = early.try_to_report(&list(Vec::new())).await;
    assert_eq!(refused.expect(503).problem().code, "hello-needed");
    // It would not notice the restore either if its hello had gone to the process before this one.
    let refused = early.get("/v1/agent/watch").await;
    assert_eq!(refused.expect(503).problem().code, "hello-needed");
    // Its address could be given to another one otherwise.
    let db = today.create_instance("db").await;
    assert_eq!(db.status.node, None);
    let unmanaged = agent.unmanaged(&copy).await;
    let agent = today.agent_again(&agent).await;
    agent.report(&list(vec![unmanaged])).await;
    let db = today.instance("db").await;
    assert!(db.status.node.is_some(), "{db:?}");
    assert_ne!(db.spec.nics[0].address, copy.spec.nics[0].address);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_was_taken_over_from_a_report_is_in_the_slice_of_its_node() {
    for raised in [false, true] {
        let (_server, mut agent, newer) = restored_with_newer_copy().await;
        let id = newer.copy.id;
        let own = if raised {
            newer.copy.epoch
        } else {
            Epoch::FIRST
        };
        agent.report(&released(id, own)).await;
        assert_eq!(agent.release().await, (id, own));
        // A node takes an instance that a watch from the beginning omits for one that waifud does not have.
        agent.watch(None).await;
        let frames = agent.until_sync().await;
        let released = frames.iter().any(|frame| match frame {
            WatchFrame::Release { release, .. } => release.instance == id && release.epoch == own,
            _ => false,
        });
        assert!(released, "{frames:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_released_after_the_backup_returns_to_its_node_once_every_node_is_confirmed()
 {
    // The database contains the epoch of the release, or an older one.
    for raised in [false, true] {
        let (server, mut agent, newer) = restored_with_newer_copy().await;
        let id = newer.copy.id;
        let own = if raised {
            newer.copy.epoch
        } else {
            Epoch::FIRST
        };
        agent.report_unmanaged(Vec::new()).await;
        agent.report(&released(id, own)).await;
        assert_eq!(part(&server, id).await, (OwnershipRole::Released, own));
        let confirm = "/v1/nodes/alder/confirm";
        server.post(confirm, &json!({})).await.expect(200);
        let (role, epoch) = part(&server, id).await;
        assert_eq!(role, OwnershipRole::Owner);
        assert!(epoch > newer.copy.epoch, "{epoch}");
        assert_eq!(next_epoch(&mut agent).await, epoch);
        // A late report changes nothing.
        agent.report(&released(id, own)).await;
        assert_eq!(part(&server, id).await, (OwnershipRole::Owner, epoch));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_instance_does_not_return_to_its_node_before_every_node_has_reported() {
    let (server, agent, newer) = restored_with_newer_copy().await;
    let id = newer.copy.id;
    agent.report_unmanaged(Vec::new()).await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    for node in ["alder", "birch"] {
        let confirm = format!("/v1/nodes/{node}/confirm");
        server.post(&confirm, &json!({})).await.expect(200);
    }
    agent.report(&released(id, Epoch::FIRST)).await;
    let released = (OwnershipRole::Released, Epoch::FIRST);
    assert_eq!(part(&server, id).await, released);
    // It was handed over to the other node after the backup.
    birch.report_unmanaged(vec![newer.unmanaged.clone()]).await;
    assert_eq!(part(&server, id).await, released);
    birch.report_unmanaged(Vec::new()).await;
    assert_eq!(part(&server, id).await.0, OwnershipRole::Owner);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_got_its_node_after_the_backup_is_not_placed_again_and_can_be_adopted() {
    let (yesterday, mut alder) = Server::with_watching_node().await;
    yesterday.set_fabric("none").await.expect(200);
    let birch = yesterday.join("birch", ByteSize::gib(8)).await;
    let cordon = async |server: &Server, node: &str, cordoned: bool| {
        let path = format!("/v1/nodes/{node}");
        let body = json!({ "cordoned": cordoned });
        server.patch(&path, &body).await.expect(200);
    };
    for node in ["alder", "birch"] {
        cordon(&yesterday, node, true).await;
    }
    let web = yesterday.create_instance("web").await;
    assert_eq!(web.status.state, InstanceState::Pending);
    let today = restored(&yesterday).await;
    cordon(&yesterday, "alder", false).await;
    alder.watch_from_now().await;
    let store = yesterday.control.store();
    let rows = store.read(move |tx| tx.slice(alder.id, 0)).await.unwrap();
    let copy = rows[0].instance.clone();
    assert_eq!(copy.id, web.id);
    let unmanaged = alder.unmanaged(&copy).await;

    let alder = today.agent_again(&alder).await;
    let birch = today.agent_of(&birch);
    let again = hello("birch", ByteSize::gib(8));
    birch.hello(&again).await.expect(200);
    birch.report_unmanaged(Vec::new()).await;
    // birch has room, but alder may run the guest.
    for node in ["alder", "birch"] {
        cordon(&today, node, false).await;
    }
    assert_eq!(today.instance("web").await.status.node, None);
    alder.report_unmanaged(vec![unmanaged]).await;
    let node = "alder".parse().unwrap();
    let waits = today.instance("web").await.status.wait_reason();
    assert_eq!(waits, Some(WaitReason::CopyExists { node }));
    let adopt = format!("/v1/nodes/alder/unmanaged/{}/adopt", web.id);
    today.post(&adopt, &json!({"name": null})).await.expect(201);
    let (role, epoch) = part(&today, web.id).await;
    assert_eq!(role, OwnershipRole::Owner);
    assert!(epoch > copy.epoch, "{epoch}");
}
