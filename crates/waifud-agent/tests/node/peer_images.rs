//! Images go from node to node at the peer port, and come from waifud if that fails.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waifud_agent::interfaces::{PeerNetwork, TlsPeers};
use waifud_api::agent::{ImageTicket, ImageTicketOrder, ImageTickets, Ticket};
use waifud_api::node_to_node::{ANSWER_HEAD, ImageRequest, refusal_length};
use waifud_hypervisor::ByteStream;
use waifud_kit::sync::lock;
use waifud_pki::{Authority, NodePeer};
use waifud_types::{ByteSize, Digest, InstanceId};

use crate::peer_port::{member, play_source};
use crate::test_node::TestNode;

fn image() -> (Vec<u8>, Digest) {
    waifud_storage::fake::image_bytes(ByteSize::mib(1), 1)
}

/// A node that has the image.
struct Source {
    ca: Authority,
    node: TestNode,
    own: NodePeer,
    at: SocketAddr,
    next: AtomicU8,
    _dir: tempfile::TempDir,
}

impl Source {
    /// It sends these bytes as the image.
    async fn sending(bytes: &[u8]) -> Arc<Self> {
        let ca = Authority::generate().unwrap();
        let (own, peers) = member(&ca);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        std::fs::write(&file, bytes).unwrap();
        let node = TestNode::started_after(|node| node.peers = peers);
        node.pool.publish(image().1, file);
        let at = node.until_listening().await;
        Arc::new(Self {
            ca,
            node,
            own,
            at,
            next: AtomicU8::new(1),
            _dir: dir,
        })
    }

    /// Issues a ticket, as waifud does.
    fn issue(&self, receiver: NodePeer, image: Digest) -> Ticket {
        let ticket = Ticket::from_bytes([self.next.fetch_add(1, Ordering::Relaxed); 32]);
        self.node.waifud.announce_image_ticket(ImageTicketOrder {
            ticket: ticket.digest(),
            image,
            receiver: receiver.node,
            receiver_key: receiver.key,
            valid_s: 30,
        });
        ticket
    }

    /// What waifud tells a receiver.
    fn ticket(&self, receiver: NodePeer) -> ImageTicket {
        named(self.issue(receiver, image().1), self.own, self.at)
    }

    /// Another node of the cluster, which is told of this one.
    async fn receiver(self: &Arc<Self>) -> TestNode {
        let (own, peers) = member(&self.ca);
        let node = TestNode::started_after(|node| node.peers = peers);
        let source = Arc::clone(self);
        node.waifud
            .set_image_ticket_issuer(Arc::new(move |_| ImageTickets {
                sources: vec![source.ticket(own)],
            }));
        node.until_listening().await;
        node
    }

    /// Sends a request. Returns the connection if it is accepted, or the reason of the refusal.
    async fn ask(
        &self,
        by: &TlsPeers,
        ticket: Ticket,
        from: u64,
    ) -> Result<Box<dyn ByteStream>, String> {
        let mut wire = by.connect(self.at, self.own).await.unwrap();
        let request = ImageRequest { ticket, from }.encode();
        wire.write_all(&request).await.unwrap();
        let mut head = [0; ANSWER_HEAD];
        wire.read_exact(&mut head).await.unwrap();
        let Some(length) = refusal_length(head).unwrap() else {
            return Ok(wire);
        };
        let mut reason = vec![0; length];
        wire.read_exact(&mut reason).await.unwrap();
        Err(String::from_utf8(reason).unwrap())
    }
}

fn named(ticket: Ticket, source: NodePeer, at: SocketAddr) -> ImageTicket {
    ImageTicket {
        ticket,
        source: source.node,
        source_name: "alder".parse().unwrap(),
        source_key: source.key,
        endpoints: vec![at],
    }
}

async fn runs(node: &TestNode) -> InstanceId {
    node.run_one("web").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_from_a_node_that_has_it() {
    let source = Source::sending(&image().0).await;
    let node = source.receiver().await;
    runs(&node).await;
    assert_eq!(node.waifud.fetches(), 0, "nothing from waifud");
    let from = (image().1, source.own.node);
    node.until("waifud knows where it is from", async || {
        node.waifud.images_copied() == [from]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_a_node_are_never_used_and_the_image_comes_from_waifud() {
    let (right, _) = image();
    let mut wrong = right.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let short = right[..right.len() - 1].to_vec();
    let long = [&right[..], b"more"].concat();
    for (bytes, fetches) in [(wrong, 1), (short, 1), (Vec::new(), 1), (long, 0)] {
        let source = Source::sending(&bytes).await;
        let node = source.receiver().await;
        runs(&node).await;
        assert_eq!(node.waifud.fetches(), fetches, "{} bytes", bytes.len());
        let copied = node.waifud.images_copied().len();
        assert_eq!(copied, usize::from(fetches == 0));
        assert_eq!(node.pool.image_digests(), [image().1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_worth_one_transfer_of_its_image_to_one_node() {
    let source = Source::sending(&image().0).await;
    let (birch, of_birch) = member(&source.ca);
    let (_, of_cedar) = member(&source.ca);
    let ticket = source.issue(birch, image().1);
    let invalid = Err("the ticket is not valid here".to_owned());
    let refused = async |by: &TlsPeers, ticket| source.ask(by, ticket, 0).await.map(drop);
    assert_eq!(refused(&of_cedar, ticket).await, invalid);
    let mut wire = source.ask(&of_birch, ticket, 3).await.ok().unwrap();
    let mut received = Vec::new();
    wire.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, image().0[3..]);
    assert_eq!(refused(&of_birch, ticket).await, invalid);
    let forged = Ticket::from_bytes([0xff; 32]);
    assert_eq!(refused(&of_birch, forged).await, invalid);

    let other = source.issue(birch, Digest::of(b"another image"));
    let why = refused(&of_birch, other).await.unwrap_err();
    assert!(why.contains("does not have the image"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_node_continues_where_one_ended() {
    let ca = Authority::generate().unwrap();
    let begins: Arc<Mutex<Vec<u64>>> = Arc::default();
    let length = image().0.len();
    let mut tickets = ImageTickets::default();
    for part in [1000, 2000, length] {
        let (source, peers) = member(&ca);
        let at = play_source(peers, Arc::clone(&begins), move |from| {
            let from = usize::try_from(from).unwrap();
            let (bytes, _) = image();
            bytes[from..bytes.len().min(from + part)].to_vec()
        })
        .await;
        let ticket = Ticket::from_bytes([7; 32]);
        tickets.sources.push(named(ticket, source, at));
    }
    let last = tickets.sources[2].source;
    let (_, peers) = member(&ca);
    let node = TestNode::started_after(|node| node.peers = peers);
    node.waifud
        .set_image_ticket_issuer(Arc::new(move |_| tickets.clone()));
    runs(&node).await;
    assert_eq!(*lock(&begins), [0, 1000, 3000]);
    assert_eq!(node.waifud.fetches(), 0);
    node.until("the node that has sent the end is named", async || {
        node.waifud.images_copied() == [(image().1, last)]
    })
    .await;
}
