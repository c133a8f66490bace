//! Gets a disk directly from the node that has it.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use waifud_api::agent::Incoming;
use waifud_api::node_to_node::DiskRequest;
use waifud_hypervisor::ByteStream;
use waifud_pki::NodePeer;

use super::connect::connect;
use crate::interfaces::{Arrived, ByteChunks, LinkError};
use crate::shared::Shared;

/// A node that sends nothing for this long has stopped.
const SILENCE: Duration = Duration::from_secs(35);
/// Bytes read at once between blocks.
const CHUNK: usize = 4 << 10;

/// Opens the disk at the node that has it, without the blocks before byte `from`. `None` if it has to come through waifud; the
/// reason is logged.
pub(crate) async fn open(
    shared: &Shared,
    incoming: &Incoming,
    index: u32,
    from: u64,
) -> Option<Box<dyn ByteChunks>> {
    if shared.avoided_paths.is_avoided(&incoming.id) {
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
    let node = NodePeer {
        node: ticket.source,
        key: ticket.source_key,
    };
    let peers = shared.peers.as_ref();
    match connect(peers, node, &ticket.endpoints, &request.encode()).await {
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

/// A disk that arrives.
struct PeerDisk {
    wire: Box<dyn ByteStream>,
}

#[async_trait]
impl ByteChunks for PeerDisk {
    async fn chunk(&mut self) -> Result<Option<Bytes>, LinkError> {
        let mut buffer = vec![0; CHUNK];
        let count = self.arrive(&mut buffer).await?;
        buffer.truncate(count);
        Ok((count > 0).then(|| buffer.into()))
    }

    async fn read(&mut self, space: &mut [u8]) -> Result<Arrived, LinkError> {
        Ok(match self.arrive(space).await? {
            0 => Arrived::End,
            count => Arrived::Read(count),
        })
    }
}

impl PeerDisk {
    async fn arrive(&mut self, space: &mut [u8]) -> Result<usize, LinkError> {
        let failed = |message: String| LinkError::Unreachable { message };
        let read = timeout(SILENCE, self.wire.read(space)).await;
        let read = read.map_err(|_| {
            failed(format!(
                "the other node has sent nothing for {} s",
                SILENCE.as_secs()
            ))
        })?;
        read.map_err(|error| failed(error.to_string()))
    }
}
