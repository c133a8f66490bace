//! Gets a disk directly from the node that has it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use waifud_api::agent::{DiskTicket, Incoming};
use waifud_api::node_to_node::{ANSWER_HEAD, DiskRequest, refusal_length};
use waifud_hypervisor::ByteStream;
use waifud_pki::NodePeer;

use crate::interfaces::{ByteChunks, LinkError, PeerNetwork};
use crate::shared::Shared;

/// Time for one address, handshake included.
const CONNECT: Duration = Duration::from_secs(3);
/// Addresses that are tried.
const ENDPOINTS: usize = 3;
/// Time for an answer: the other node may wait for the announcement of the ticket, and for a slow disk.
const ANSWER: Duration = Duration::from_secs(25);
/// A node that sends nothing for this long has stopped.
const SILENCE: Duration = Duration::from_secs(35);
/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// Opens the disk at the node that has it, without the blocks before byte `from`. `None` if it has to come through waifud; the
/// reason is logged.
pub(crate) async fn open(
    shared: &Shared,
    incoming: &Incoming,
    index: u32,
    from: u64,
) -> Option<Box<dyn ByteChunks>> {
    if shared.avoided_paths.is_avoided(incoming.id) {
        return None;
    }
    let source = &incoming.source;
    let ticket = match shared.link.disk_ticket(incoming.id, index).await {
        Ok(ticket) => ticket,
        Err(error) => {
            tracing::info!(instance = %incoming.id, "copying a disk of {source} through waifud: {error}");
            return None;
        }
    };
    let request = DiskRequest {
        ticket: ticket.ticket,
        instance: incoming.id,
        index,
        from,
    };
    match connect(shared.peers.as_ref(), &ticket, &request).await {
        Ok((at, wire)) => {
            tracing::info!(instance = %incoming.id, disk = index, "copying a disk directly from {source} at {at}");
            Some(Box::new(PeerDisk { wire }))
        }
        Err(why) => {
            tracing::warn!(
                instance = %incoming.id,
                "copying a disk of {source} through waifud, because the direct path failed: {why}. \
                 Does a firewall on {source} drop connections to its peer port?"
            );
            shared.avoided_paths.avoid(incoming.id);
            None
        }
    }
}

/// Tries the addresses of the node one after another. A node that answers is not asked again.
async fn connect(
    peers: &dyn PeerNetwork,
    ticket: &DiskTicket,
    request: &DiskRequest,
) -> Result<(SocketAddr, Box<dyn ByteStream>), String> {
    let node = NodePeer {
        node: ticket.source,
        key: ticket.source_key,
    };
    let mut why = Vec::new();
    for at in ticket.endpoints.iter().take(ENDPOINTS) {
        match timeout(CONNECT, peers.connect(*at, node)).await {
            Ok(Ok(mut wire)) => {
                let asked = timeout(ANSWER, ask(&mut wire, request)).await;
                return match asked {
                    Ok(Ok(None)) => Ok((*at, wire)),
                    Ok(Ok(Some(refusal))) => Err(format!("{at} refused: {refusal}")),
                    Ok(Err(error)) => Err(format!("{at}: {error}")),
                    Err(_) => Err(format!("{at}: no answer")),
                };
            }
            Ok(Err(error)) => why.push(format!("{at}: {error}")),
            Err(_) => why.push(format!("{at}: no answer within {} s", CONNECT.as_secs())),
        }
    }
    Err(why.join("; "))
}

/// Sends the request. Returns the reason of a refusal.
async fn ask(wire: &mut Box<dyn ByteStream>, request: &DiskRequest) -> io::Result<Option<String>> {
    wire.write_all(&request.encode()).await?;
    wire.flush().await?;
    let mut head = [0; ANSWER_HEAD];
    wire.read_exact(&mut head).await?;
    let Some(length) = refusal_length(head).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let mut reason = vec![0; length];
    wire.read_exact(&mut reason).await?;
    let reason = String::from_utf8_lossy(&reason);
    // It is shown in the log.
    Ok(Some(reason.replace(char::is_control, " ")))
}

/// A disk that arrives.
struct PeerDisk {
    wire: Box<dyn ByteStream>,
}

#[async_trait]
impl ByteChunks for PeerDisk {
    async fn chunk(&mut self) -> Result<Option<Bytes>, LinkError> {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        let failed = |message: String| LinkError::Unreachable { message };
        let read = timeout(SILENCE, self.wire.read_buf(&mut buffer)).await;
        let read = read.map_err(|_| {
            failed(format!(
                "the other node has sent nothing for {} s",
                SILENCE.as_secs()
            ))
        })?;
        let count = read.map_err(|error| failed(error.to_string()))?;
        Ok((count > 0).then(|| buffer.freeze()))
    }
}
