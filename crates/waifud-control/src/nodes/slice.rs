//! A node's watch: what changed since, one `sync`, then what changes.
//!
//! Each object of the slice remembers the revision that changed it, so a watch that resumes asks for what is newer:
//! no history has to be kept for it. The only revisions that can't be resumed from are those of another life of the
//! database, and of the future.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::watch;
use waifud_api::agent::{NodeSlice, SliceObject, WatchFrame};
use waifud_store::{ReadTx, Topic};
use waifud_types::{Digest, NodeId, Revision};

use crate::events::problems as event_problems;
use crate::network::subnet;
use crate::nodes::joining::is_admitted;
use crate::nodes::problems as node_problems;
use crate::streams::WatchRegistration;
use crate::{Control, ControlError};

/// A sign of life at least so often; half of what is promised.
const PING: Duration = Duration::from_secs(5);

/// A watch at work.
#[derive(Debug)]
pub struct SliceWatch {
    control: Control,
    node: NodeId,
    key: Digest,
    changes: watch::Receiver<u64>,
    since: u64,
    synced: bool,
    ready: VecDeque<WatchFrame>,
    seat: WatchRegistration,
}

impl Control {
    /// Begins a watch of the node's slice.
    pub(crate) fn watch_slice(
        &self,
        node: NodeId,
        key: Digest,
        since: Option<Revision>,
    ) -> Result<SliceWatch, ControlError> {
        let newest = self.shared.store.revision();
        let since = match since {
            None => 0,
            Some(since)
                if since.incarnation == newest.incarnation && since.number <= newest.number =>
            {
                since.number
            }
            Some(_) => return Err(event_problems::revision_gone(newest).into()),
        };
        Ok(SliceWatch {
            control: self.clone(),
            node,
            key,
            changes: self.shared.store.subscribe_topic(Topic::Node(node)),
            since,
            synced: false,
            ready: VecDeque::new(),
            seat: self.shared.streams.register_watch(node),
        })
    }
}

impl SliceWatch {
    /// The next frame; `None` when waifud stops.
    pub async fn next(&mut self) -> Result<Option<WatchFrame>, ControlError> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(Some(frame));
            }
            if self.synced {
                tokio::select! {
                    () = self.control.shared.stop.cancelled() => return Ok(None),
                    () = tokio::time::sleep(PING) => return Ok(Some(WatchFrame::Ping)),
                    order = self.seat.next() => return Ok(Some(WatchFrame::Stream(order))),
                    changed = self.changes.changed() => if changed.is_err() {
                        return Ok(None);
                    },
                }
            }
            self.changes.mark_unchanged();
            let (node, key, since) = (self.node, self.key, self.since);
            let (frames, newest) = self
                .control
                .shared
                .store
                .read(move |tx| {
                    // A key that was replaced meanwhile sees nothing more.
                    if !is_admitted(&tx, node, key)? {
                        return Err(node_problems::node_not_admitted().into());
                    }
                    frames(&tx, node, since)
                })
                .await?;
            self.ready = frames;
            self.since = newest.number;
            if !self.synced {
                self.ready.push_back(WatchFrame::Sync { revision: newest });
                self.synced = true;
            }
        }
    }
}

fn frames(
    tx: &ReadTx<'_>,
    node: NodeId,
    since: u64,
) -> Result<(VecDeque<WatchFrame>, Revision), ControlError> {
    let newest = tx.at(tx.newest_event()?);
    let row = tx.node(node)?.ok_or_else(node_problems::unknown_node)?;
    let mut frames = Vec::new();
    if row.slice_revision > since {
        let slice = NodeSlice {
            id: row.id,
            name: row.name,
            subnet: row.subnet,
            gateway: subnet::gateway(row.subnet),
            gateway_mac: subnet::GATEWAY_MAC,
            confirmed: row.confirmed.then_some(newest.incarnation),
        };
        frames.push((
            row.slice_revision,
            WatchFrame::Put {
                revision: tx.at(row.slice_revision),
                object: SliceObject::Node(slice),
            },
        ));
    }
    for row in tx.slice(node, since)? {
        frames.push((
            row.slice_revision,
            WatchFrame::Put {
                revision: tx.at(row.slice_revision),
                object: SliceObject::Instance(Box::new(row.instance)),
            },
        ));
    }
    for row in tx.tombstones(node, since)? {
        frames.push((
            row.slice_revision,
            WatchFrame::Tombstone {
                revision: tx.at(row.slice_revision),
                tombstone: row.tombstone,
            },
        ));
    }
    // By revision, so that whoever resumes from any frame has seen everything before it.
    frames.sort_by_key(|(revision, _)| *revision);
    Ok((frames.into_iter().map(|(_, frame)| frame).collect(), newest))
}
