//! The disks of a moving instance, from the node that has released it to the node that receives it: through waifud, or with a
//! ticket from node to node.

use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::io::{AsyncReadExt, ReadHalf, WriteHalf};
use waifud_api::agent::{DiskTicket, Ticket, TicketOrder, WatchFrame};
use waifud_api::stream::StreamKind;
use waifud_pki::NodePeer;
use waifud_store::{InstanceRow, ReadTx};
use waifud_types::ownership::{OwnershipRole, Part};
use waifud_types::{InstanceId, MoveState, NodeId};

use super::broker::{AgentEnd, StreamPermit, StreamTarget};
use super::problems as stream_problems;
use crate::{Control, ControlError, problems};

/// Bytes read from the sending node at once.
const CHUNK: usize = 256 << 10;

/// A node that sends nothing for this long has stopped.
const SILENCE: Duration = Duration::from_mins(1);

impl Control {
    /// The bytes of a disk for the node that receives the instance, without the blocks before `from`. Refused unless the
    /// move is at the point where disks are copied, so that the guest is off.
    pub(crate) async fn disk_to_receive(
        &self,
        node: NodeId,
        instance: InstanceId,
        index: u32,
        from: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, std::io::Error>> + Send + use<>, ControlError>
    {
        let target = self
            .store()
            .read(move |tx| {
                let (_, part) = released_part(&tx, node, instance)?;
                Ok::<_, ControlError>(StreamTarget {
                    node: part.node,
                    instance,
                    epoch: part.epoch,
                    kind: StreamKind::Disk { index, from },
                })
            })
            .await?;
        let limits = &self.config().streams;
        let permit = self.stream_broker().acquire(instance, limits, None)?;
        let broker = self.stream_broker();
        let agent = broker.request(target, self.entropy(), limits).await?;
        Ok(bytes(agent, permit))
    }

    /// Issues a ticket for a disk to the node that receives the instance, and announces it to the node that has the disk.
    /// Refused as [`Control::disk_to_receive`] is, and if that node does not listen on a peer port.
    pub(crate) async fn issue_disk_ticket(
        &self,
        receiver: NodePeer,
        instance: InstanceId,
        index: u32,
    ) -> Result<DiskTicket, ControlError> {
        let mut bytes = [0; 32];
        self.entropy().fill(&mut bytes);
        let ticket = Ticket::from_bytes(bytes);
        let (order, issued) = self
            .store()
            .read(move |tx| {
                let (row, part) = released_part(&tx, receiver.node, instance)?;
                let has_disk =
                    usize::try_from(index).is_ok_and(|index| index < row.spec.disks.len());
                if !has_disk {
                    return Err(problems::not_found("disk", &index.to_string()).into());
                }
                let source = tx.node(part.node)?.zip(tx.node_key(part.node)?);
                let (source, key) = source.ok_or_else(stream_problems::node_unreachable)?;
                let listens = source.facts.peer_port.unwrap_or_default();
                if listens.endpoints.is_empty() {
                    return Err(stream_problems::no_peer_port(&source.name).into());
                }
                let order = TicketOrder {
                    ticket: ticket.digest(),
                    instance,
                    epoch: part.epoch,
                    index,
                    receiver: receiver.node,
                    receiver_key: receiver.key,
                    valid_s: Ticket::VALID.as_secs(),
                };
                let issued = DiskTicket {
                    ticket,
                    source: source.id,
                    source_key: key.key,
                    endpoints: listens.endpoints,
                };
                Ok::<_, ControlError>((order, issued))
            })
            .await?;
        self.stream_broker()
            .announce(issued.source, WatchFrame::Ticket(order))?;
        Ok(issued)
    }
}

/// The instance that a node receives, and the part of the node that has its disks. Refused unless the move is at the point
/// where disks are copied.
fn released_part(
    tx: &ReadTx<'_>,
    receiver: NodeId,
    instance: InstanceId,
) -> Result<(InstanceRow, Part), ControlError> {
    let not_found = || problems::not_found("move", &instance.to_string());
    let row = tx.instance(instance)?.ok_or_else(not_found)?;
    let moving = row.moving.as_ref().filter(|moving| {
        moving.target == receiver && moving.state == MoveState::Copying && !row.deleting
    });
    let source = moving.ok_or_else(not_found)?.source;
    let part = tx
        .part_in(instance, source)?
        .filter(|part| part.role == OwnershipRole::Released && part.off);
    Ok((row, part.ok_or_else(not_found)?))
}

/// What the node sends, as the body of a response.
fn bytes(
    agent: AgentEnd,
    permit: StreamPermit,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    struct Reading {
        reader: ReadHalf<AgentEnd>,
        // Kept open: the agent treats its end as a disconnect.
        _writer: WriteHalf<AgentEnd>,
        _permit: StreamPermit,
    }
    let (reader, writer) = tokio::io::split(agent);
    let reading = Reading {
        reader,
        _writer: writer,
        _permit: permit,
    };
    futures::stream::unfold(reading, |mut reading| async move {
        let mut buffer = vec![0; CHUNK];
        let read = tokio::time::timeout(SILENCE, reading.reader.read(&mut buffer));
        match read.await {
            Ok(Ok(0)) => None,
            Ok(Ok(count)) => {
                buffer.truncate(count);
                Some((Ok(Bytes::from(buffer)), reading))
            }
            Ok(Err(error)) => Some((Err(error), reading)),
            Err(_) => Some((Err(std::io::ErrorKind::TimedOut.into()), reading)),
        }
    })
}
