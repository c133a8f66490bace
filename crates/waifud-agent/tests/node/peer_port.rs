//! The peer port: disks go from node to node over TLS, to the node that has a ticket and to no other, and through waifud if
//! that fails.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use waifud_agent::fake::TicketIssuer;
use waifud_agent::interfaces::{PeerNetwork, TlsPeers};
use waifud_api::agent::{AgentInstance, DiskTicket, Release, Ticket, TicketOrder};
use waifud_api::disk_transfer::{BLOCK, DiskFrame};
use waifud_api::node_to_node::{
    ANSWER_HEAD, DiskRequest, PeerRequest, REQUEST_LENGTH, encode_answer, refusal_length,
};
use waifud_hypervisor::ByteStream;
use waifud_kit::sync::lock;
use waifud_pki::{Authority, Identity, NodeKey, NodePeer, NodeRequest, certificates};
use waifud_types::{ByteSize, CopyPath, DiskFormat, InstanceId, NodeId, ReceiveState};

use crate::receive::{copy, elsewhere};
use crate::test_node::TestNode;

const LOCAL: &str = "127.0.0.1:0";

/// A node of this CA: its identity, and its connections to others.
pub fn member(ca: &Authority) -> (NodePeer, Arc<TlsPeers>) {
    listening(ca, LOCAL)
}

fn listening(ca: &Authority, listen: &str) -> (NodePeer, Arc<TlsPeers>) {
    let (key, node) = (NodeKey::generate().unwrap(), NodeId::generate());
    let request = NodeRequest::parse(&key.request().unwrap()).unwrap();
    let certificate = ca.issue_node(&request, node).unwrap();
    let own = Identity::from_pem(&key.to_pem(), &certificate).unwrap();
    let root = certificates(&ca.to_pem()).unwrap().swap_remove(0);
    let listen = listen.parse().unwrap();
    let peers = TlsPeers::new(root, own, Some(listen), Vec::new()).unwrap();
    let key = key.digest();
    (NodePeer { node, key }, Arc::new(peers))
}

impl TestNode {
    /// Where the node says that it listens.
    pub async fn until_listening(&self) -> SocketAddr {
        let endpoints = || self.waifud.facts()?.peer_port?.endpoints.first().copied();
        self.until("an open peer port of a connected agent", async || {
            endpoints().is_some() && self.waifud.is_watched()
        })
        .await;
        endpoints().unwrap()
    }
}

/// A node that has released `web` and listens, and what is needed to connect to it.
struct Source {
    ca: Authority,
    node: TestNode,
    own: NodePeer,
    at: SocketAddr,
    web: InstanceId,
    instance: AgentInstance,
    next: AtomicU8,
}

impl Source {
    async fn new() -> Arc<Self> {
        let source = Self::running().await;
        source.release().await;
        Arc::new(source)
    }

    /// It has not released the instance yet.
    async fn running() -> Self {
        let ca = Authority::generate().unwrap();
        let (own, peers) = member(&ca);
        let node = TestNode::started_after(|node| node.peers = peers);
        let web = node.run_one("web").await;
        let at = node.until_listening().await;
        let instance = node.waifud.instance(web).unwrap();
        Self {
            instance,
            ca,
            node,
            own,
            at,
            web,
            next: AtomicU8::new(1),
        }
    }

    async fn release(&self) {
        self.node.waifud.release(Release {
            instance: self.web,
            epoch: self.instance.epoch,
            stop: true,
        });
        let released = async || self.node.waifud.released().iter().any(|it| it.off);
        self.node.until("released", released).await;
    }

    /// Issues a ticket for disk 0, as waifud does.
    fn issue(&self, receiver: NodePeer, valid_s: u64) -> Ticket {
        let ticket = Ticket::from_bytes([self.next.fetch_add(1, Ordering::Relaxed); 32]);
        self.node.waifud.announce_ticket(TicketOrder {
            ticket: ticket.digest(),
            instance: self.web,
            epoch: self.instance.epoch,
            index: 0,
            receiver: receiver.node,
            receiver_key: receiver.key,
            valid_s,
        });
        ticket
    }

    fn request(&self, ticket: Ticket) -> DiskRequest {
        DiskRequest {
            ticket,
            instance: self.web,
            index: 0,
            from: 0,
        }
    }

    /// Sends a request. Returns the connection if it is accepted, or the reason of the refusal.
    async fn ask(
        &self,
        by: &TlsPeers,
        request: DiskRequest,
    ) -> io::Result<Result<Box<dyn ByteStream>, String>> {
        let mut wire = by.connect(self.at, self.own).await?;
        wire.write_all(&request.encode()).await?;
        let mut head = [0; ANSWER_HEAD];
        wire.read_exact(&mut head).await?;
        let Some(length) = refusal_length(head).unwrap() else {
            return Ok(Ok(wire));
        };
        let mut reason = vec![0; length];
        wire.read_exact(&mut reason).await?;
        Ok(Err(String::from_utf8(reason).unwrap()))
    }

    async fn refused(&self, by: &TlsPeers, request: DiskRequest, part: &str) {
        let answer = self.ask(by, request).await.unwrap();
        let reason = answer.err().unwrap();
        assert!(reason.contains(part), "{reason}");
    }
}

const INVALID: &str = "ticket is not valid";

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_goes_directly_from_node_to_node() {
    let source = Source::new().await;
    let (birch, peers) = member(&source.ca);
    let node = TestNode::started_after(|node| node.peers = peers);
    let instance = source.instance.clone();
    node.waifud.set_ticket_issuer({
        let source = Arc::clone(&source);
        Arc::new(move |_, _| DiskTicket {
            ticket: source.issue(birch, 30),
            source: source.own.node,
            source_key: source.own.key,
            endpoints: vec![source.at],
        })
    });
    let (_, mut incoming) = elsewhere(&node);
    incoming.id = source.web;
    incoming.epoch = instance.epoch;
    incoming.disks = instance.spec.disks;
    node.waifud.put_incoming(copy(&incoming));
    node.until_receiving(source.web, ReceiveState::Received)
        .await;
    assert!(node.waifud.transfers().is_empty(), "none through waifud");
    // Also if waifud gets no report from before the end.
    let received = node.waifud.receiving(source.web).unwrap();
    assert_eq!(received.path, Some(CopyPath::Direct));
    let disk = |node: &TestNode| {
        let facts = node.pool.volume_facts();
        facts.into_values().next().unwrap().size
    };
    assert_eq!(disk(&node), disk(&source.node));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_worth_one_transfer_of_one_disk_to_one_node() {
    let source = Source::new().await;
    let (birch, of_birch) = member(&source.ca);
    let (cedar, of_cedar) = member(&source.ca);

    // One that was not issued.
    let forged = source.request(Ticket::from_bytes([0xff; 32]));
    source.refused(&of_birch, forged, INVALID).await;

    let request = source.request(source.issue(birch, 30));
    source.refused(&of_cedar, request, INVALID).await;
    let mut wire = source.ask(&of_birch, request).await.unwrap().unwrap();
    let mut disk = Vec::new();
    wire.read_to_end(&mut disk).await.unwrap();
    assert!(disk.starts_with(b"wfdisk03"));
    source.refused(&of_birch, request, INVALID).await;

    let expired = source.request(source.issue(birch, 0));
    source.refused(&of_birch, expired, INVALID).await;

    // The same node with a new key.
    let key = cedar.key;
    let old = source.request(source.issue(NodePeer { key, ..birch }, 30));
    source.refused(&of_birch, old, INVALID).await;

    for change in [
        |request: &mut DiskRequest| request.index = 1,
        |request: &mut DiskRequest| request.instance = InstanceId::generate(),
    ] {
        let mut other = source.request(source.issue(birch, 30));
        change(&mut other);
        source.refused(&of_birch, other, INVALID).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_does_not_replace_the_release() {
    let source = Source::running().await;
    let (birch, of_birch) = member(&source.ca);
    let early = source.request(source.issue(birch, 30));
    let why = "has not released the instance";
    source.refused(&of_birch, early, why).await;
    source.release().await;
    let request = source.request(source.issue(birch, 30));
    assert!(source.ask(&of_birch, request).await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_other_clusters_and_other_requests_get_no_answer() {
    let source = Source::new().await;
    let (foreign, of_foreign) = member(&Authority::generate().unwrap());
    let request = source.request(source.issue(foreign, 30));
    assert!(source.ask(&of_foreign, request).await.is_err());
    let (_, of_birch) = member(&source.ca);
    let mut wire = of_birch.connect(source.at, source.own).await.unwrap();
    wire.write_all(&[b'x'; REQUEST_LENGTH]).await.unwrap();
    let mut answer = Vec::new();
    let _ended = wire.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_prove_nothing_are_limited_and_cut_off() {
    let source = Source::new().await;
    // As many as one address may have.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(source.at).await.unwrap());
    }
    let (birch, of_birch) = member(&source.ca);
    source
        .node
        .until("a further caller is turned away", async || {
            of_birch.connect(source.at, source.own).await.is_err()
        })
        .await;
    // The others are cut off, without having sent anything.
    for caller in &mut silent {
        let mut nothing = Vec::new();
        let _ended = caller.read_to_end(&mut nothing).await;
        assert!(nothing.is_empty());
    }
    let request = source.request(source.issue(birch, 30));
    assert!(source.ask(&of_birch, request).await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_a_condition_until_it_is_free() {
    let other = TcpListener::bind(LOCAL).await.unwrap();
    let at = other.local_addr().unwrap();
    let (_, peers) = listening(&Authority::generate().unwrap(), &at.to_string());
    let node = TestNode::started_after(|node| node.peers = peers);
    let condition = || {
        let conditions = node.waifud.facts()?.conditions;
        conditions.into_iter().find(|it| it.kind == "peer-port")
    };
    node.until("the condition", async || condition().is_some())
        .await;
    let taken = condition().unwrap();
    assert!(!taken.ok && taken.reason == "port-taken", "{taken:?}");
    for part in ["`peer_listen`", &at.port().to_string(), "through waifud"] {
        assert!(taken.message.contains(part), "{taken:?}");
    }
    drop(other);
    assert_eq!(node.until_listening().await, at);
    node.until("no condition", async || condition().is_none())
        .await;
}

/// The node that receives from a source that the test plays. All tickets lead to `at`.
async fn receiver(ca: &Authority, source: NodePeer, at: SocketAddr) -> TestNode {
    let (_, peers) = member(ca);
    let node = TestNode::started_after(|node| node.peers = peers);
    let ticket = DiskTicket {
        ticket: Ticket::from_bytes([3; 32]),
        source: source.node,
        source_key: source.key,
        endpoints: vec![at],
    };
    let issuer: TicketIssuer = Arc::new(move |_, _| ticket.clone());
    node.waifud.set_ticket_issuer(issuer);
    node.until_listening().await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_direct_path_disks_go_through_waifud() {
    let ca = Authority::generate().unwrap();
    let (source, _) = member(&ca);
    // Nothing listens; something listens and says nothing; another node of the cluster listens.
    let closed = TcpListener::bind(LOCAL).await.unwrap();
    let silent = TcpListener::bind(LOCAL).await.unwrap();
    let other = Source::new().await;
    let at = |listener: &TcpListener| listener.local_addr().unwrap();
    let paths = [at(&closed), at(&silent), other.at];
    drop(closed);
    for at in paths {
        let node = receiver(&ca, source, at).await;
        let (_, incoming) = elsewhere(&node);
        node.waifud.put_incoming(copy(&incoming));
        node.until_receiving(incoming.id, ReceiveState::Received)
            .await;
        assert_eq!(node.waifud.transfers(), [0], "{at}");
    }
}

/// Plays a node that sends these bytes, from the position that is asked for, and then ends the connection. Records where each
/// transfer began.
pub async fn play_source(
    peers: Arc<TlsPeers>,
    begins: Arc<Mutex<Vec<u64>>>,
    bytes_from: impl Fn(u64) -> Vec<u8> + Send + 'static,
) -> SocketAddr {
    let mut listener = peers.listen().await.unwrap().unwrap();
    let at = peers.endpoints([127, 0, 0, 1].into())[0];
    tokio::spawn(async move {
        loop {
            let incoming = listener.accept().await.unwrap();
            let (_, mut wire) = incoming.handshake.await.unwrap();
            let mut request = [0; REQUEST_LENGTH];
            wire.read_exact(&mut request).await.unwrap();
            let from = PeerRequest::decode(&request).unwrap().from();
            lock(&begins).push(from);
            wire.write_all(&encode_answer(None)).await.unwrap();
            wire.write_all(&bytes_from(from)).await.unwrap();
            let _gone = wire.shutdown().await;
        }
    });
    at
}

/// Frames as a node sends them.
fn encoded(frames: impl IntoIterator<Item = DiskFrame>) -> Vec<u8> {
    frames
        .into_iter()
        .flat_map(|frame| frame.encode())
        .collect()
}

fn header() -> DiskFrame {
    DiskFrame::Header {
        format: DiskFormat::Qcow2,
        length: ByteSize(8 * BLOCK),
        allocated: ByteSize(4 * BLOCK),
    }
}

fn block(number: u64) -> DiskFrame {
    let bytes = vec![7; usize::try_from(BLOCK).unwrap()].into();
    let offset = number * BLOCK;
    DiskFrame::Block { offset, bytes }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_a_node_are_refused_and_the_disk_comes_through_waifud() {
    let ca = Authority::generate().unwrap();
    let (source, peers) = member(&ca);
    let begins = Arc::default();
    let at = play_source(peers, Arc::clone(&begins), |_| {
        encoded([header(), block(0), DiskFrame::End { hash: [0; 32] }])
    })
    .await;
    let node = receiver(&ca, source, at).await;
    let (_, incoming) = elsewhere(&node);
    node.waifud.put_incoming(copy(&incoming));
    node.until_receiving(incoming.id, ReceiveState::Received)
        .await;
    assert_eq!(*lock(&begins), [0], "it is not asked again");
    assert_eq!(node.waifud.transfers(), [0], "from the beginning");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_transfer_that_breaks_continues_directly_where_it_ended() {
    let ca = Authority::generate().unwrap();
    let (source, peers) = member(&ca);
    let begins = Arc::default();
    // One block a connection; the third one has nothing more to send.
    let at = play_source(peers, Arc::clone(&begins), |from| match from / BLOCK {
        number @ 0..2 => encoded([header(), block(number)]),
        _ => encoded([header()]),
    })
    .await;
    let node = receiver(&ca, source, at).await;
    let (_, incoming) = elsewhere(&node);
    node.waifud.put_incoming(copy(&incoming));
    node.until("the path without progress is left", async || {
        !node.waifud.transfers().is_empty()
    })
    .await;
    assert_eq!(*lock(&begins), [0, BLOCK, 2 * BLOCK]);
    assert_eq!(node.waifud.transfers()[0], 2 * BLOCK);
}
