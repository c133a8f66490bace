//! The other nodes of the cluster, as waifud sent them.
//!
//! Many of them may change at once, and they share one file. So changes are staged and saved together
//! ([`super::table::Table::save_peers`]); nothing acts on a staged change, and the revision that a watch resumes from stays
//! before it.
//!
//! A peer that a restored database does not know is kept until an administrator has confirmed the database, because guests on
//! that node may still run.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use waifud_api::agent::Peer;
use waifud_types::{NodeId, Revision};

/// The durable record of all peers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PeersRecord {
    /// Sorted by id.
    pub peers: Vec<PeerRecord>,
}

/// The record of one peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerRecord {
    /// As waifud last sent it.
    pub peer: Peer,
    /// Whether waifud's present database knows it.
    pub listed: bool,
}

type Peers = BTreeMap<NodeId, PeerRecord>;

/// The peers in memory: the saved ones, and changes that are not saved yet.
#[derive(Debug, Default)]
pub struct PeerTable {
    saved: Peers,
    staged: Option<Staged>,
    /// The peers that a watch from the beginning has sent so far. Those that it omits have left the cluster.
    named: Option<BTreeSet<NodeId>>,
    /// Whether the saved peers have changed since the last question.
    changed: bool,
}

#[derive(Debug)]
struct Staged {
    peers: Peers,
    /// The revision of the newest change.
    revision: Option<Revision>,
}

impl PeerTable {
    /// The saved peers. Those that the present database does not know are left out unless it is unconfirmed (`held`).
    pub fn of(record: PeersRecord, held: bool) -> Self {
        let peers = record.peers.into_iter();
        let peers = peers.filter(|record| record.listed || held);
        Self {
            saved: peers.map(|record| (record.peer.id, record)).collect(),
            ..Self::default()
        }
    }

    /// The saved peers, sorted by id.
    pub fn peers(&self) -> Vec<Peer> {
        let peers = self.saved.values();
        peers.map(|record| record.peer.clone()).collect()
    }

    /// The peers with staged changes.
    pub fn current_peers(&self) -> Vec<Peer> {
        let peers = self.current().values();
        peers.map(|record| record.peer.clone()).collect()
    }

    pub fn has_staged(&self) -> bool {
        self.staged.is_some()
    }

    /// Begins a watch, which sends staged changes again.
    pub fn begin_watch(&mut self, from_the_beginning: bool) {
        self.staged = None;
        self.named = from_the_beginning.then(BTreeSet::new);
    }

    /// Stages a changed peer.
    pub fn put(&mut self, peer: Peer, revision: Revision) {
        if let Some(named) = &mut self.named {
            named.insert(peer.id);
        }
        let record = PeerRecord { peer, listed: true };
        self.stage(Some(revision)).insert(record.peer.id, record);
    }

    /// Stages the removal of a peer.
    pub fn delete(&mut self, id: NodeId, revision: Revision) {
        self.stage(Some(revision)).remove(&id);
    }

    /// Stages the end of a watch's first part: peers that a watch from the beginning omitted are removed. With `keep`, they
    /// are only marked.
    pub fn synced(&mut self, keep: bool) {
        let Some(named) = self.named.take() else {
            return;
        };
        let peers = self.stage(None);
        for record in peers.values_mut() {
            record.listed &= named.contains(&record.peer.id);
        }
        if !keep {
            peers.retain(|_, record| record.listed);
        }
    }

    /// Stages the removal of peers that are only kept until the database is confirmed.
    pub fn confirmed(&mut self) {
        if self.current().values().any(|record| !record.listed) {
            self.stage(None).retain(|_, record| record.listed);
        }
    }

    /// The record to save, if it differs from the saved one.
    pub fn to_save(&self) -> Option<PeersRecord> {
        let staged = &self.staged.as_ref()?.peers;
        (*staged != self.saved).then(|| PeersRecord {
            peers: staged.values().cloned().collect(),
        })
    }

    /// The staged changes are saved. Returns the revision of the newest one.
    pub fn mark_saved(&mut self) -> Option<Revision> {
        let staged = self.staged.take()?;
        self.changed |= !networks(&staged.peers).eq(networks(&self.saved));
        self.saved = staged.peers;
        staged.revision
    }

    /// Whether names, subnets, keys or endpoints of the saved peers have changed since the last call. A peer that is switched
    /// off or on changes nothing in the network.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn current(&self) -> &Peers {
        self.staged.as_ref().map_or(&self.saved, |s| &s.peers)
    }

    fn stage(&mut self, revision: Option<Revision>) -> &mut Peers {
        let saved = &self.saved;
        let staged = self.staged.get_or_insert_with(|| Staged {
            peers: saved.clone(),
            revision: None,
        });
        staged.revision = revision.or(staged.revision);
        &mut staged.peers
    }
}

/// What the guests' network and the fabric use of the peers.
fn networks(peers: &Peers) -> impl Iterator<Item = Peer> {
    peers.values().map(|record| Peer {
        reachable: true,
        ..record.peer.clone()
    })
}
