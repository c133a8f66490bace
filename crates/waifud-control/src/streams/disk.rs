//! The disks of a moving instance: from the node that has released it, through waifud, to the node that receives it.

use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::io::{AsyncReadExt, ReadHalf, WriteHalf};
use waifud_api::stream::StreamKind;
use waifud_types::ownership::OwnershipRole;
use waifud_types::{InstanceId, MoveState, NodeId};

use super::broker::{AgentEnd, StreamPermit, StreamTarget};
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
                let not_found = || problems::not_found("move", &instance.to_string());
                let row = tx.instance(instance)?.ok_or_else(not_found)?;
                let moving = row.moving.filter(|moving| {
                    moving.target == node && moving.state == MoveState::Copying && !row.deleting
                });
                let moving = moving.ok_or_else(not_found)?;
                let part = tx
                    .part_in(instance, moving.source)?
                    .filter(|part| part.role == OwnershipRole::Released && part.off);
                let part = part.ok_or_else(not_found)?;
                Ok::<_, ControlError>(StreamTarget {
                    node: moving.source,
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
