//! The addresses of instances and labels in firewalls, in a node's watch.
//!
//! They change with other instances, of any node, and have no revisions. A watch sends them with each instance, remembers what it
//! has sent, and sends an instance again when they are different. A new watch has sent nothing, so it begins with all of them.
//! Changes are collected like names, because many instances may change together.

use std::collections::{HashMap, VecDeque};
use std::future::pending;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use waifud_api::PeerAddresses;
use waifud_api::agent::{AgentInstance, SliceObject, WatchFrame};
use waifud_store::{ReadTx, StoreError};
use waifud_types::{InstanceId, NodeId};

use super::names::COLLECT;

/// The addresses that a watch has sent, by the instance whose firewall names them.
pub(super) type SentPeers = HashMap<InstanceId, Vec<PeerAddresses>>;

/// When a watch reads the addresses again.
#[derive(Debug)]
pub(super) struct PeersWatch {
    pub(super) sent: SentPeers,
    changes: watch::Receiver<u64>,
    /// When to read changes that are being collected.
    due: Option<Instant>,
}

impl PeersWatch {
    pub(super) fn new(changes: watch::Receiver<u64>) -> Self {
        Self {
            sent: SentPeers::new(),
            changes,
            due: None,
        }
    }

    /// Returns when the addresses are due to be read: never while no firewall of the node names any. Cancel-safe.
    pub(super) async fn due(&mut self) {
        if self.sent.is_empty() {
            return pending().await;
        }
        loop {
            if let Some(due) = self.due {
                return sleep_until(due).await;
            }
            if self.changes.changed().await.is_err() {
                // waifud stops.
                return pending().await;
            }
            self.due = Some(Instant::now() + COLLECT);
        }
    }

    /// To be called before the addresses are read, so that a change during that is not missed.
    pub(super) fn begin(&mut self) {
        self.due = None;
        self.changes.mark_unchanged();
    }
}

/// The instances to send again because addresses in their firewalls have changed. They are not resumed from: the frames have the
/// revision `at`, up to which the watch has sent everything.
pub(super) fn changed(
    tx: &ReadTx<'_>,
    node: NodeId,
    at: u64,
    sent: &mut SentPeers,
) -> Result<VecDeque<WatchFrame>, StoreError> {
    let rows = tx.slice_with_peers(node)?;
    sent.retain(|id, _| rows.iter().any(|row| row.instance.id == *id));
    let mut frames = VecDeque::new();
    for row in rows {
        if note(&row.instance, sent) {
            frames.push_back(WatchFrame::Put {
                revision: tx.at(at),
                object: SliceObject::Instance(Box::new(row.instance)),
            });
        }
    }
    Ok(frames)
}

/// Records that the instance is sent. Returns whether its addresses differ from those that were sent before.
pub(super) fn note(instance: &AgentInstance, sent: &mut SentPeers) -> bool {
    if instance.spec.firewall.named_peers().next().is_none() {
        return sent.remove(&instance.id).is_some();
    }
    let peers = instance.firewall_peers.clone();
    let before = sent.insert(instance.id, peers);
    before.as_ref() != Some(&instance.firewall_peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web(addresses: &[&str]) -> AgentInstance {
        let zeros = "0".repeat(64);
        let named = !addresses.is_empty();
        let rules = named.then(|| {
            serde_json::json!({
                "direction": "in", "action": "allow", "protocol": null, "ports": [], "peer": "instance:db",
            })
        });
        serde_json::from_value(serde_json::json!({
            "id": "0198d2a8-1111-7000-8000-00000000000a", "name": "web", "epoch": 1, "generation": 1,
            "spec": {
                "template": "tiny", "image": format!("sha256:{zeros}"), "cpus": 1, "memory_bytes": 1, "run": true,
                "restart": "never", "priority": 0, "protected": false, "disks": [], "nics": [], "publish": [],
                "firewall": {"in": "deny", "out": "allow", "rules": rules.iter().collect::<Vec<_>>()},
                "placement": {"node": null, "spread": null}, "user_data": null,
            },
            "image_size_bytes": 1, "image_virtual_size_bytes": 1, "rescue_image": null, "datasource": "nocloud",
            "firmware": "bios", "bundle": {"digest": format!("sha256:{zeros}"), "key": "", "size_bytes": 1},
            "firewall_peers": if named {
                serde_json::json!([{"peer": "instance:db", "addresses": addresses}])
            } else {
                serde_json::json!([])
            },
        }))
        .unwrap()
    }

    #[test]
    fn an_instance_is_sent_again_only_if_addresses_in_its_firewall_differ() {
        let mut sent = SentPeers::new();
        let one = web(&["10.144.1.2/32"]);
        assert!(note(&one, &mut sent), "nothing was sent before");
        assert!(!note(&one, &mut sent));
        assert!(note(&web(&["10.144.1.3/32"]), &mut sent));
        assert!(
            note(&web(&[]), &mut sent),
            "its rules name no instance any more"
        );
        assert!(!note(&web(&[]), &mut sent));
        assert!(sent.is_empty());
    }
}
