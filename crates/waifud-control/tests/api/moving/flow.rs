//! A move from its request to its end.

use serde_json::json;
use waifud_api::agent::{DiskTicket, SliceObject, TicketOrder, WatchFrame};
use waifud_api::stream::{RefusalReason, StreamKind, StreamRefusal};
use waifud_types::node::{NodeFacts, PeerPortFacts};
use waifud_types::{
    ByteSize, CopyPath, Epoch, InstanceState, MoveState, OwnershipRole, ReceiveState, WaitReason,
};

use super::super::common::{facts, hello};
use super::{Cluster, MOVE, incoming, on_birch, receiving, release, released};

use OwnershipRole::{Owner, Receiving, Released, Releasing};

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_moves_in_steps_and_its_old_copy_is_deleted_at_the_end() {
    let mut it = Cluster::new().await;
    let begun = it.begin().await;
    let moving = begun.moving.unwrap();
    assert_eq!(
        (moving.from.as_str(), moving.to.as_str(), moving.state),
        ("alder", "birch", MoveState::Preparing)
    );
    assert_eq!(begun.status.state, InstanceState::Running, "it still runs");
    let order = incoming(&mut it.birch).await;
    assert_eq!(
        (order.id, order.epoch, order.copy),
        (it.web.id, Epoch(1), false)
    );
    assert_eq!(order.disks, begun.spec.disks);
    assert!(order.was_on);
    assert_eq!(
        it.parts().await,
        [("alder", Owner, 1), ("birch", Receiving, 1)]
    );
    let promised = |node: serde_json::Value| node["promised"]["memory_bytes"].clone();
    let memory = json!(begun.spec.memory_bytes);
    assert_eq!(promised(it.server.node("birch").await), memory);

    it.receives(ReceiveState::Prepared).await;
    assert!(release(&mut it.alder).await.stop);
    assert_eq!(
        it.parts().await,
        [("alder", Releasing, 1), ("birch", Receiving, 1)]
    );
    let stopping = it.shown().await;
    assert_eq!(stopping.status.state, InstanceState::Moving);
    assert_eq!(
        stopping.status.wait_reason(),
        Some(WaitReason::Moving {
            to: "birch".parse().unwrap(),
            state: MoveState::Stopping,
            problem: None,
        })
    );
    incoming(&mut it.birch).await;

    it.releases(false).await;
    assert_eq!(it.state().await, "stopping", "the guest may still run");
    it.releases(true).await;
    assert!(incoming(&mut it.birch).await.copy);
    it.receives(ReceiveState::Copying).await;
    let copying = it.shown().await;
    let moving = copying.moving.unwrap();
    assert_eq!(
        (moving.state, moving.done_bytes, moving.total_bytes),
        (
            MoveState::Copying,
            Some(ByteSize::mib(3)),
            Some(ByteSize::mib(12))
        )
    );
    let step = copying.status.step.unwrap();
    assert_eq!(
        (step.name.as_str(), step.percent),
        ("move-copying", Some(25))
    );

    it.receives(ReceiveState::Received).await;
    let record = it.birch.put().await;
    assert_eq!((record.id, record.epoch), (it.web.id, Epoch(2)));
    let address = record.spec.nics[0].address.unwrap();
    let before = it.web.spec.nics[0].address.unwrap();
    assert_eq!((before.octets()[2], address.octets()[2]), (1, 2));
    assert_eq!(record.spec.nics[0].mac, it.web.spec.nics[0].mac);
    // birch has to be able to serve the documents for the new address.
    let documents = it.birch.documents(&record.bundle).await;
    assert_eq!(documents.instance(), it.web.id);
    assert_eq!(
        it.parts().await,
        [("alder", Released, 1), ("birch", Owner, 2)]
    );
    assert_eq!(it.shown().await.status.node.unwrap().as_str(), "birch");

    it.runs_on_birch(InstanceState::Starting).await;
    assert_eq!(
        it.state().await,
        "starting",
        "the old disks are kept until it runs"
    );
    it.runs_on_birch(InstanceState::Running).await;
    let tombstone = it.alder.tombstone().await;
    assert_eq!((tombstone.instance, tombstone.epoch), (it.web.id, Epoch(1)));
    assert_eq!(it.state().await, "removing");
    it.alder.destroyed(tombstone).await;
    assert_eq!(it.parts().await, [("birch", Owner, 2)]);
    let over = it.shown().await;
    assert_eq!(
        (over.moving, over.status.state),
        (None, InstanceState::Running)
    );
    assert_eq!(promised(it.server.node("alder").await), json!(0));
    assert_eq!(promised(it.server.node("birch").await), memory);
    let kinds = it.server.kinds(&it.web.id.to_string()).await;
    for kind in [
        "instance.moving",
        "instance.releasing",
        "instance.copying",
        "instance.handed-over",
        "instance.moved",
        "instance.move-finished",
    ] {
        let times = kinds.iter().filter(|known| *known == kind).count();
        assert_eq!(times, 1, "{kind}: {kinds:?}");
    }

    // And back, in the next epoch.
    let back = json!({"to": "alder", "new_address": true});
    it.server.post(MOVE, &back).await.expect(200);
    let order = incoming(&mut it.alder).await;
    assert_eq!((order.epoch, order.source.as_str()), (Epoch(2), "birch"));
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_of_other_nodes_other_epochs_and_other_states_do_not_let_a_move_go_on() {
    let it = Cluster::new().await;
    it.begin().await;
    let prepared = receiving(it.web.id, 1, ReceiveState::Prepared);
    it.alder.report(&prepared).await;
    it.birch
        .report(&receiving(it.web.id, 2, ReceiveState::Prepared))
        .await;
    assert_eq!(it.state().await, "preparing");
    assert_eq!(
        it.parts().await,
        [("alder", Owner, 1), ("birch", Receiving, 1)]
    );

    it.birch.report(&prepared).await;
    assert_eq!(it.state().await, "stopping");
    it.receives(ReceiveState::Received).await;
    it.birch.report(&released(it.web.id, 1, true)).await;
    it.alder.report(&released(it.web.id, 2, true)).await;
    assert_eq!(it.state().await, "stopping", "alder has not released it");
    it.releases(true).await;
    // What birch has reported before the copy began is not forgotten.
    assert_eq!(it.state().await, "starting");

    // The old node does not decide about the instance any more.
    it.alder
        .report_instance(super::report(it.web.id, InstanceState::Running))
        .await;
    assert_eq!(it.state().await, "starting");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_report_is_stored_once() {
    let it = Cluster::new().await;
    it.begin().await;
    it.receives(ReceiveState::Prepared).await;
    let before = it.server.control.store().revision();
    for state in [ReceiveState::Prepared, ReceiveState::Copying] {
        it.receives(state).await;
    }
    assert_eq!(it.server.control.store().revision(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_watch_of_the_receiving_node_begins_with_the_order_or_the_instance() {
    for (state, is_order) in [
        ("preparing", true),
        ("stopping", true),
        ("copying", true),
        ("starting", false),
        ("removing", false),
    ] {
        let mut it = Cluster::new().await;
        it.advance_to(state).await;
        it.birch.watch(None).await;
        let frames = it.birch.until_sync().await;
        let of_web = frames.iter().filter_map(|frame| match frame {
            WatchFrame::Put { object, .. } => Some(object),
            _ => None,
        });
        let orders = of_web
            .clone()
            .filter(|it| matches!(it, SliceObject::Incoming(_)));
        let instances = of_web.filter(|it| matches!(it, SliceObject::Instance(_)));
        assert_eq!(
            (orders.count(), instances.count()),
            (usize::from(is_order), usize::from(!is_order)),
            "{state}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_continues_after_a_restart_of_waifud_at_each_point() {
    for state in ["preparing", "stopping", "copying", "starting", "removing"] {
        let mut it = Cluster::new().await;
        it.advance_to(state).await;
        it.server = it.server.restart(|_| ()).await;
        it.alder = it.server.agent_of(&it.alder);
        it.birch = it.server.agent_of(&it.birch);
        it.alder
            .hello(&hello("alder", ByteSize::gib(8)))
            .await
            .expect(200);
        it.birch
            .hello(&hello("birch", ByteSize::gib(8)))
            .await
            .expect(200);
        assert_eq!(it.state().await, state);
        // Both agents report everything again.
        it.receives(ReceiveState::Prepared).await;
        it.releases(true).await;
        it.receives(ReceiveState::Received).await;
        it.runs_on_birch(InstanceState::Running).await;
        assert_eq!(it.state().await, "removing", "from {state}");
        it.alder.watch(None).await;
        let frames = it.alder.until_sync().await;
        let tombstone = frames.into_iter().find_map(|frame| match frame {
            WatchFrame::Tombstone { tombstone, .. } => Some(tombstone),
            _ => None,
        });
        it.alder.destroyed(tombstone.unwrap()).await;
        assert_eq!(it.parts().await, [("birch", Owner, 2)], "from {state}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_goes_off_before_its_node_releases_it_is_not_started_either() {
    let mut it = Cluster::new().await;
    it.begin().await;
    assert!(incoming(&mut it.birch).await.was_on);
    let mut off = super::report(it.web.id, InstanceState::Stopped);
    off.stopped_by = Some(waifud_types::status::StoppedBy::Guest);
    it.alder.report_instance(off).await;
    it.receives(ReceiveState::Prepared).await;
    let order = incoming(&mut it.birch).await;
    assert!(!order.was_on);
    let by_guest = Some(waifud_types::status::StoppedBy::Guest);
    assert_eq!(order.stopped_by, by_guest);
    it.releases(true).await;
    assert!(!incoming(&mut it.birch).await.was_on);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_off_is_not_started_because_of_the_move() {
    let mut it = Cluster::new().await;
    let mut off = super::report(it.web.id, InstanceState::Stopped);
    off.stopped_by = Some(waifud_types::status::StoppedBy::Guest);
    it.alder.report_instance(off).await;
    it.begin().await;
    let order = incoming(&mut it.birch).await;
    assert!(!order.was_on);
    assert_eq!(
        order.stopped_by,
        Some(waifud_types::status::StoppedBy::Guest)
    );
    it.receives(ReceiveState::Prepared).await;
    it.releases(true).await;
    it.receives(ReceiveState::Received).await;
    it.birch
        .report_instance(on_birch(it.web.id, InstanceState::Stopped))
        .await;
    assert_eq!(it.state().await, "removing", "off is where it belongs");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_receiving_node_gets_tickets_and_the_other_one_is_told() {
    let mut it = Cluster::new().await;
    it.begin().await;
    let disk = |index: u32| format!("/v1/agent/moves/{}/disks/{index}/ticket", it.web.id);
    let (path, no_disk) = (disk(0), disk(1));
    it.birch.post(&path, &()).await.expect(404);
    incoming(&mut it.birch).await;
    it.receives(ReceiveState::Prepared).await;
    release(&mut it.alder).await;
    it.birch.post(&path, &()).await.expect(404);
    it.releases(true).await;
    it.alder.post(&path, &()).await.expect(404);

    let refused = it.birch.post(&path, &()).await.expect(409).problem();
    assert_eq!(refused.code, "no-peer-port");
    let at: Vec<std::net::SocketAddr> = vec!["192.0.2.2:7374".parse().unwrap()];
    let mut facts = facts(ByteSize::gib(8));
    let report = async |it: &Cluster, endpoints: &[_]| {
        let endpoints = endpoints.to_vec();
        it.alder
            .report_facts(NodeFacts {
                peer_port: Some(PeerPortFacts { endpoints }),
                ..facts.clone()
            })
            .await;
    };
    report(&it, &[]).await;
    it.birch.post(&path, &()).await.expect(409);
    report(&it, &at).await;
    it.birch.post(&no_disk, &()).await.expect(404);
    let answer = it.birch.post(&path, &()).await.expect(200);
    let issued: DiskTicket = serde_json::from_value(answer.json()).unwrap();
    assert_eq!(
        (issued.source, issued.source_key, &issued.endpoints),
        (it.alder.id, it.alder.key, &at)
    );
    let order = loop {
        if let WatchFrame::Ticket(order) = it.alder.frame().await {
            break order;
        }
    };
    let expected = TicketOrder {
        ticket: issued.ticket.digest(),
        instance: it.web.id,
        epoch: Epoch(1),
        index: 0,
        receiver: it.birch.id,
        receiver_key: it.birch.key,
        valid_s: 30,
    };
    assert_eq!(order, expected);
    let other: DiskTicket = {
        let answer = it.birch.post(&path, &()).await.expect(200);
        serde_json::from_value(answer.json()).unwrap()
    };
    assert_ne!(other.ticket, issued.ticket);

    // An agent that has just started does not know its address yet.
    facts.cpu_model = "another CPU".to_owned();
    it.alder.report_facts(facts).await;
    it.birch.post(&path, &()).await.expect(200);

    it.receives(ReceiveState::Received).await;
    it.birch.post(&path, &()).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_of_the_disks_is_shown_and_recorded() {
    for (path, words) in [
        (CopyPath::Direct, "copied directly"),
        (CopyPath::Waifud, "copied through waifud"),
    ] {
        let mut it = Cluster::new().await;
        it.advance_to("copying").await;
        let mut report = receiving(it.web.id, 1, ReceiveState::Copying);
        report.receiving[0].path = Some(path);
        it.birch.report(&report).await;
        assert_eq!(it.shown().await.moving.unwrap().path, Some(path));
        it.receives(ReceiveState::Received).await;
        let events = it.server.get("/v1/events?object=web").await.expect(200);
        let text = events.json().to_string();
        assert!(text.contains(words), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_receiving_node_gets_disks_and_only_while_they_are_copied() {
    let mut it = Cluster::new().await;
    it.begin().await;
    let path = format!("/v1/agent/moves/{}/disks/0?from=1048576", it.web.id);
    it.birch.get(&path).await.expect(404);
    incoming(&mut it.birch).await;
    it.receives(ReceiveState::Prepared).await;
    release(&mut it.alder).await;
    it.birch.get(&path).await.expect(404);
    it.releases(true).await;
    it.alder.get(&path).await.expect(404);
    let bad = format!("/v1/agent/moves/{}/disks/0?from=much", it.web.id);
    it.birch.get(&bad).await.expect(400);

    let Cluster {
        alder, birch, web, ..
    } = &mut it;
    let asking = async { birch.get(&path).await };
    let answering = async {
        let order = loop {
            if let WatchFrame::Stream(order) = alder.frame().await {
                break order;
            }
        };
        let kind = StreamKind::Disk {
            index: 0,
            from: 1 << 20,
        };
        assert_eq!(
            (order.instance, order.epoch, order.kind),
            (web.id, Epoch(1), kind)
        );
        let refusal = StreamRefusal {
            reason: RefusalReason::Other,
            message: "the disk is gone".to_owned(),
        };
        let path = format!("/v1/agent/streams/{}/refuse", order.id);
        alder.post(&path, &refusal).await.expect(204);
    };
    let (answer, ()) = tokio::join!(asking, answering);
    let problem = answer.problem();
    assert!(
        problem.title.contains("the disk is gone") || problem.detail.is_some(),
        "{problem:?}"
    );
    it.receives(ReceiveState::Received).await;
    it.birch.get(&path).await.expect(404);
}
