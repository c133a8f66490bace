//! Tickets for images, with which nodes get them from other nodes.

use std::net::SocketAddr;

use waifud_api::agent::{ImageTicketOrder, ImageTickets, WatchFrame};
use waifud_types::node::{NodeFacts, PeerPortFacts, feature};
use waifud_types::{ByteSize, Digest, PoolKind};

use super::common::facts;
use super::moving::Cluster;

/// `alder` has the image and listens; `birch` is to receive `web`.
async fn cluster() -> (Cluster, NodeFacts, String) {
    let cluster = Cluster::new().await;
    cluster.begin().await;
    let image = cluster.web.spec.image;
    let endpoints = vec!["192.0.2.2:7374".parse().unwrap()];
    let mut has_image = facts(ByteSize::gib(8));
    has_image.peer_port = Some(PeerPortFacts { endpoints });
    has_image.pools[0].images = Some(vec![image]);
    let path = format!("/v1/agent/images/{image}/tickets");
    (cluster, has_image, path)
}

async fn tickets(cluster: &Cluster, path: &str) -> ImageTickets {
    let answer = cluster.birch.post(path, &()).await.expect(200);
    serde_json::from_value(answer.json()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_needs_an_image_gets_tickets_for_nodes_that_have_it() {
    let (mut it, has_image, path) = cluster().await;
    assert_eq!(tickets(&it, &path).await, ImageTickets::default());
    it.alder.report_facts(has_image).await;
    let issued = tickets(&it, &path).await;
    let [source] = &issued.sources[..] else {
        panic!("one node has it: {issued:?}");
    };
    let at: Vec<SocketAddr> = vec!["192.0.2.2:7374".parse().unwrap()];
    assert_eq!(source.source_name.as_str(), "alder");
    assert_eq!(
        (source.source, source.source_key, &source.endpoints),
        (it.alder.id, it.alder.key, &at)
    );
    let order = loop {
        if let WatchFrame::ImageTicket(order) = it.alder.frame().await {
            break order;
        }
    };
    let expected = ImageTicketOrder {
        ticket: source.ticket.digest(),
        image: it.web.spec.image,
        receiver: it.birch.id,
        receiver_key: it.birch.key,
        valid_s: 30,
    };
    assert_eq!(order, expected);
    let again = tickets(&it, &path).await;
    assert_ne!(again.sources[0].ticket, source.ticket);

    // The node that has the image is not told of itself.
    let own = it.alder.post(&path, &()).await.expect(200).json();
    assert_eq!(own["sources"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_cannot_send_an_image_are_not_named() {
    type Change = fn(&mut NodeFacts);
    let (it, has_image, path) = cluster().await;
    let changes: [Change; 4] = [
        |facts| facts.features.retain(|known| known != feature::PEER_IMAGES),
        |facts| facts.peer_port = Some(PeerPortFacts::default()),
        |facts| facts.pools[0].images = None,
        |facts| facts.pools[0].images = Some(vec![Digest::of(b"another")]),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        it.alder.report_facts(has_image.clone()).await;
        assert_eq!(tickets(&it, &path).await.sources.len(), 1, "{number}");
        let mut other = has_image.clone();
        change(&mut other);
        it.alder.report_facts(other).await;
        assert_eq!(tickets(&it, &path).await.sources.len(), 0, "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_sends_images_from_pools_of_any_kind() {
    let (it, mut has_image, path) = cluster().await;
    has_image.pools[0].kind = PoolKind::Reflink;
    it.alder.report_facts(has_image).await;
    let source = &tickets(&it, &path).await.sources[0];
    assert_eq!(source.source, it.alder.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_nodes_that_need_an_image_get_tickets_and_report_where_it_is_from() {
    let (it, has_image, path) = cluster().await;
    it.alder.report_facts(has_image).await;
    let cedar = it.server.join("cedar", ByteSize::gib(8)).await;
    cedar.post(&path, &()).await.expect(404);
    let other = format!("/v1/agent/images/{}/tickets", Digest::of(b"another"));
    it.birch.post(&other, &()).await.expect(404);

    let path = format!("/v1/agent/images/{}/copied", it.web.spec.image);
    let from = |node: waifud_types::NodeId| serde_json::json!({"source": node});
    cedar.post(&path, &from(it.alder.id)).await.expect(404);
    let unknown = waifud_types::NodeId::generate();
    it.birch.post(&path, &from(unknown)).await.expect(404);
    it.birch.post(&path, &from(it.alder.id)).await.expect(204);
    let events = it
        .server
        .get("/v1/events?limit=500")
        .await
        .expect(200)
        .json();
    let events = events["items"].as_array().unwrap().clone();
    let copied: Vec<_> = events
        .iter()
        .filter(|event| event["kind"] == "node.image-copied")
        .collect();
    assert_eq!(copied.len(), 1);
    assert_eq!(copied[0]["object"]["name"], "birch");
    let message = copied[0]["message"].as_str().unwrap();
    assert!(message.ends_with("was copied from alder"), "{message}");
}
