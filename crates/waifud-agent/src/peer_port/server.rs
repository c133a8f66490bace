//! Listens on the peer port, and sends disks and images to nodes that have a ticket.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use waifud_api::node_to_node::{PeerRequest, REQUEST_LENGTH, encode_answer};
use waifud_hypervisor::ByteStream;

use super::PortState;
use super::admission::{Admission, TransferPermit, Unproven};
use super::tickets::Order;
use crate::interfaces::{IncomingPeer, PeerListener};
use crate::shared::Shared;
use crate::transfer::send;

/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time for a request after the handshake.
const REQUEST: Duration = Duration::from_secs(5);
/// Time to open a disk, and to send the answer.
const OPEN: Duration = Duration::from_secs(20);
/// The pause after an error of the open port, for example because there are no file descriptors left.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs until the agent stops. Open transfers end with it.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        let listener = match shared.peers.listen().await {
            Ok(Some(listener)) => listener,
            Ok(None) => return std::future::pending().await,
            Err(error) => {
                failed(&shared, &error);
                sleep(shared.settings.timing.peer_port).await;
                continue;
            }
        };
        if shared.port.set(PortState::Open) {
            tracing::info!("listening for other nodes on {}", shared.peers.port_name());
            shared.node_checks.request_facts();
        }
        serve(&shared, listener).await;
    }
}

/// The port cannot be opened. The condition says so; moves go through waifud.
fn failed(shared: &Shared, error: &io::Error) {
    let port = shared.peers.port_name();
    let (reason, cause) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            "port-taken",
            format!("another program has {port}; stop it, or set `peer_listen` in agentd.toml"),
        ),
        _ => (
            "failed",
            format!("cannot listen on {port}: {error}; see `peer_listen` in agentd.toml"),
        ),
    };
    let message = format!("disks of instances that move from this node go through waifud: {cause}");
    let state = PortState::Failed { reason, message };
    if shared.port.set(state) {
        tracing::warn!("{cause}; retrying");
        shared.node_checks.request_facts();
    }
}

async fn serve(shared: &Arc<Shared>, mut listener: Box<dyn PeerListener>) {
    let admission = Admission::default();
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(peer) => {
                    // Too many callers: the connection is closed. Those that may have a disk get it through waifud.
                    let Some(unproven) = admission.admit(peer.address) else { continue };
                    open.spawn(connection(Arc::clone(shared), peer, unproven));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection at the peer port");
                    sleep(PAUSE).await;
                }
            },
            Some(ended) = open.join_next() => if ended.is_err_and(|e| e.is_panic()) {
                tracing::error!("a connection's task panicked, which is a bug");
            },
        }
    }
}

/// One connection.
async fn connection(shared: Arc<Shared>, peer: IncomingPeer, unproven: Unproven) {
    let address = peer.address;
    match answered(&shared, peer, unproven).await {
        Ok(Some(transfer)) => transfer.run().await,
        Ok(None) => {}
        Err(error) => {
            tracing::debug!(%address, %error, "a connection at the peer port ended before its request");
        }
    }
}

/// Reads the request and answers it. Returns the transfer if it is accepted.
async fn answered(
    shared: &Shared,
    peer: IncomingPeer,
    unproven: Unproven,
) -> io::Result<Option<Transfer>> {
    let address = peer.address;
    let (node, mut wire) = timeout(HANDSHAKE, peer.handshake).await??;
    let mut bytes = [0; REQUEST_LENGTH];
    timeout(REQUEST, wire.read_exact(&mut bytes)).await??;
    let request = PeerRequest::decode(&bytes).map_err(io::Error::other)?;
    let refuse = async |mut wire: Box<dyn ByteStream>, reason: &str| {
        let answer = encode_answer(Some(reason));
        timeout(REQUEST, async {
            wire.write_all(&answer).await?;
            wire.shutdown().await
        })
        .await??;
        Ok(None)
    };
    let order = match shared.tickets.redeem(&request, node).await {
        Ok(order) => order,
        Err(error) => {
            tracing::warn!(node = %node.node, %address, ?request, "refused a request at the peer port: {error}");
            return refuse(wire, "the ticket is not valid here").await;
        }
    };
    let Some(permit) = unproven.begin_transfer() else {
        return refuse(wire, "the node already sends the maximum number of files").await;
    };
    let content = match timeout(OPEN, open(shared, &order)).await? {
        Ok(content) => content,
        Err(refusal) => {
            tracing::warn!(?order, "refused a request at the peer port: {refusal}");
            return refuse(wire, &refusal).await;
        }
    };
    timeout(REQUEST, wire.write_all(&encode_answer(None))).await??;
    tracing::info!(?order, to = %address, "sending a file directly");
    Ok(Some(Transfer {
        content,
        from: request.from(),
        wire,
        _permit: permit,
    }))
}

/// Opens what a ticket is for, or says why that is not possible.
async fn open(shared: &Shared, order: &Order) -> Result<Content, String> {
    match order {
        Order::Disk(order) => send::open_released(
            &shared.table,
            &shared.pools,
            order.instance,
            order.epoch,
            order.index,
        )
        .await
        .map(Content::Disk)
        .map_err(|refusal| refusal.message),
        Order::Image(order) => {
            for pool in shared.pools.values() {
                match pool.open_image(order.image).await {
                    Ok(Some(file)) => return Ok(Content::Image(file)),
                    Ok(None) => {}
                    Err(error) => return Err(waifud_kit::error::with_causes(&error)),
                }
            }
            Err("the node does not have the image as it was published".to_owned())
        }
    }
}

/// What is sent.
enum Content {
    Disk(send::OpenDisk),
    Image(File),
}

struct Transfer {
    content: Content,
    from: u64,
    wire: Box<dyn ByteStream>,
    _permit: TransferPermit,
}

impl Transfer {
    async fn run(self) {
        match self.content {
            Content::Disk(disk) => send::send(disk, self.from, self.wire).await,
            Content::Image(file) => send::send_image(file, self.from, self.wire).await,
        }
    }
}
