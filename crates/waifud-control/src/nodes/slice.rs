//! The watch of a node: the changes since a revision, one `sync`, then further changes.
//!
//! Each object of the slice has the revision of its last change, so a watch resumes without a history. Only revisions of
//! another incarnation of the database, or in the future, cannot be resumed from.
//!
//! A change of the node's own objects is sent at once. Changes of cluster-wide objects wake the watches of all nodes, so they
//! are collected for a moment: when many nodes change together, each watch reads them a few times instead of once for each.
//! Names of instances are sent separately ([`NamesWatch`]).

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use waifud_api::agent::{NodeSlice, RedisAccess, SliceKey, SliceObject, WatchFrame};
use waifud_store::{ReadTx, Topic};
use waifud_types::{BootId, Digest, NodeId, Revision};

use crate::events::problems as event_problems;
use crate::network::{fabric_clients, subnet};
use crate::nodes::firewall_peers::{self, PeersWatch};
use crate::nodes::joining::is_admitted;
use crate::nodes::names::{NAMES_AT_ONCE, NamesWatch};
use crate::nodes::problems as node_problems;
use crate::streams::WatchRegistration;
use crate::{Control, ControlError};

/// The interval of pings, half of the documented one.
const PING: Duration = Duration::from_secs(5);

/// How long changes of cluster-wide objects are collected.
const COLLECT: Duration = Duration::from_millis(100);

/// What a watch waited for.
enum Wake {
    /// Objects may have changed.
    Changes,
    /// Names of other nodes' instances may have changed.
    Names,
    /// Addresses in firewalls may have changed.
    Peers,
    /// A frame that has no revision.
    Frame(Box<WatchFrame>),
    /// waifud stops.
    Stop,
}

/// A node asks for names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NamesRequest {
    /// The last revision that it has stored.
    pub(crate) stored: Option<Revision>,
}

/// A running watch.
#[derive(Debug)]
pub struct SliceWatch {
    control: Control,
    node: NodeId,
    key: Digest,
    /// The boot of the machine that watches.
    boot: Option<BootId>,
    changes: watch::Receiver<u64>,
    cluster_changes: watch::Receiver<u64>,
    /// When to send cluster-wide changes that are being collected.
    due: Option<Instant>,
    since: u64,
    synced: bool,
    /// `None` if the node has not asked for names.
    names: Option<NamesWatch>,
    peers: PeersWatch,
    ready: VecDeque<WatchFrame>,
    registration: WatchRegistration,
}

impl Control {
    /// Starts a watch of the node's slice.
    pub(crate) fn watch_slice(
        &self,
        node: NodeId,
        key: Digest,
        since: Option<Revision>,
        names: Option<NamesRequest>,
    ) -> Result<SliceWatch, ControlError> {
        // It may have said hello to the process before this one, which knew the database from before a restore.
        if !self.contacts().has_said_hello(node) {
            return Err(node_problems::hello_needed().into());
        }
        let newest = self.store().revision();
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
            boot: self.contacts().boot(node),
            changes: self.store().subscribe_topic(Topic::Node(node)),
            cluster_changes: self.store().subscribe_topic(Topic::Cluster),
            due: None,
            since,
            synced: false,
            names: names.map(|request| {
                let changes = self.store().subscribe_topic(Topic::Names);
                NamesWatch::new(request.stored, newest, changes)
            }),
            peers: PeersWatch::new(self.store().subscribe_topic(Topic::Names)),
            ready: VecDeque::new(),
            registration: self.stream_broker().register_watch(node),
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
                match self.wait().await {
                    Wake::Changes => {}
                    Wake::Names => {
                        self.read_names().await?;
                        continue;
                    }
                    Wake::Peers => {
                        self.read_peers().await?;
                        continue;
                    }
                    Wake::Frame(frame) => return Ok(Some(*frame)),
                    Wake::Stop => return Ok(None),
                }
            }
            self.due = None;
            self.cluster_changes.mark_unchanged();
            self.changes.mark_unchanged();
            let (node, key, since) = (self.node, self.key, self.since);
            let contacts = self.control.contacts();
            if self.boot.is_some_and(|boot| contacts.is_copy(node, boot)) {
                return Ok(None);
            }
            let redis = self.control.redis_of_nodes();
            let mut sent = std::mem::take(&mut self.peers.sent);
            let first = !self.synced;
            let (frames, newest, sent) = self
                .control
                .store()
                .read(move |tx| {
                    require_admitted(&tx, node, key)?;
                    let (frames, newest) = frames(&tx, node, since, redis)?;
                    for frame in &frames {
                        if let WatchFrame::Put {
                            object: SliceObject::Instance(instance),
                            ..
                        } = frame
                        {
                            firewall_peers::note(instance, &mut sent);
                        }
                    }
                    let mut all = if first {
                        firewall_peers::changed(&tx, node, since, &mut sent)?
                    } else {
                        VecDeque::new()
                    };
                    all.extend(frames);
                    Ok::<_, ControlError>((all, newest, sent))
                })
                .await?;
            self.peers.sent = sent;
            self.ready = frames;
            self.since = newest.number;
            if !self.synced {
                self.ready.push_back(WatchFrame::Sync { revision: newest });
                self.synced = true;
            }
        }
    }

    /// Reads the names that have changed.
    async fn read_names(&mut self) -> Result<(), ControlError> {
        let Some(watch) = &mut self.names else {
            return Ok(());
        };
        watch.begin();
        let (node, key, since) = (self.node, self.key, watch.since);
        let (names, nodes) = self
            .control
            .store()
            .read(move |tx| {
                require_admitted(&tx, node, key)?;
                let names = tx.names(node, since, NAMES_AT_ONCE)?;
                Ok::<_, ControlError>((names, tx.node_count()?))
            })
            .await?;
        watch.sent(&names, nodes);
        if !names.nodes.is_empty() {
            let nodes = names.nodes;
            self.ready.push_back(WatchFrame::Names { nodes });
        }
        Ok(())
    }

    /// Reads the addresses of instances and labels in firewalls.
    async fn read_peers(&mut self) -> Result<(), ControlError> {
        self.peers.begin();
        let (node, key, since) = (self.node, self.key, self.since);
        let mut sent = std::mem::take(&mut self.peers.sent);
        let (frames, sent) = self
            .control
            .store()
            .read(move |tx| {
                require_admitted(&tx, node, key)?;
                let frames = firewall_peers::changed(&tx, node, since, &mut sent)?;
                Ok::<_, ControlError>((frames, sent))
            })
            .await?;
        self.peers.sent = sent;
        self.ready.extend(frames);
        Ok(())
    }

    /// Waits while there is nothing to read.
    async fn wait(&mut self) -> Wake {
        let ping = Instant::now() + PING;
        loop {
            let due = self.due;
            let names = &mut self.names;
            let names_due = async {
                match names {
                    Some(names) => names.due().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = self.control.stop_token().cancelled() => return Wake::Stop,
                () = sleep_until(ping) => return Wake::Frame(Box::new(WatchFrame::Ping)),
                () = names_due => return Wake::Names,
                () = self.peers.due() => return Wake::Peers,
                order = self.registration.next() => return Wake::Frame(Box::new(order)),
                changed = self.changes.changed() => {
                    return if changed.is_ok() { Wake::Changes } else { Wake::Stop };
                }
                changed = self.cluster_changes.changed(), if due.is_none() => {
                    if changed.is_err() {
                        return Wake::Stop;
                    }
                    self.due = Some(Instant::now() + COLLECT);
                }
                () = sleep_until(due.unwrap_or(ping)), if due.is_some() => return Wake::Changes,
            }
        }
    }
}

/// Fails if waifud does not admit the node any more: its key may have been replaced since the watch began.
fn require_admitted(tx: &ReadTx<'_>, node: NodeId, key: Digest) -> Result<(), ControlError> {
    if is_admitted(tx, node, key)? {
        return Ok(());
    }
    let name = tx.node_key(node)?.map(|admitted| admitted.name);
    Err(node_problems::certificate_not_current(name.as_ref()).into())
}

fn frames(
    tx: &ReadTx<'_>,
    node: NodeId,
    since: u64,
    redis: Option<RedisAccess>,
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
            redis,
            fabric: tx.fabric()?.kind,
            clients: fabric_clients::of_nodes(tx, tx.fabric()?.kind)?,
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
    for row in tx.releases(node, since)? {
        frames.push((
            row.slice_revision,
            WatchFrame::Release {
                revision: tx.at(row.slice_revision),
                release: row.release,
            },
        ));
    }
    for row in tx.incoming(node, since)? {
        frames.push((
            row.slice_revision,
            WatchFrame::Put {
                revision: tx.at(row.slice_revision),
                object: SliceObject::Incoming(Box::new(row.incoming)),
            },
        ));
    }
    // A watch from the beginning does not name what is gone.
    if since > 0 {
        for (instance, revision) in tx.left_slice(node, since)? {
            frames.push((
                revision,
                WatchFrame::Delete {
                    revision: tx.at(revision),
                    key: SliceKey::Instance(instance),
                },
            ));
        }
    }
    cluster_frames(tx, node, since, &mut frames)?;
    // Ordered by revision, so that a client can resume from any frame.
    frames.sort_by_key(|(revision, _)| *revision);
    Ok((resumable(frames), newest))
}

/// Frames of one change have the same revision. A client that resumed from the first of them would miss the others, so all
/// but the last one have the revision before.
fn resumable(frames: Vec<(u64, WatchFrame)>) -> VecDeque<WatchFrame> {
    let mut frames: VecDeque<_> = frames.into();
    let mut ready = VecDeque::with_capacity(frames.len());
    while let Some((number, mut frame)) = frames.pop_front() {
        let is_last = frames.front().is_none_or(|(next, _)| *next != number);
        if !is_last && let Some(revision) = frame.revision_mut() {
            revision.number = number.saturating_sub(1);
        }
        ready.push_back(frame);
    }
    ready
}

/// Adds the changes of cluster-wide objects.
fn cluster_frames(
    tx: &ReadTx<'_>,
    node: NodeId,
    since: u64,
    frames: &mut Vec<(u64, WatchFrame)>,
) -> Result<(), ControlError> {
    for row in tx.peers(node, since)? {
        frames.push((
            row.peer_revision,
            WatchFrame::Put {
                revision: tx.at(row.peer_revision),
                object: SliceObject::Peer(row.peer),
            },
        ));
    }
    // A watch from the beginning does not name what is gone.
    if since > 0 {
        for deleted in tx.deleted_objects(since)? {
            frames.push((
                deleted.revision,
                WatchFrame::Delete {
                    revision: tx.at(deleted.revision),
                    key: deleted.key,
                },
            ));
        }
    }
    Ok(())
}
