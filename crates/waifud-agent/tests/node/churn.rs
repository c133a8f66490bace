//! Creating and deleting in quick succession leaves nothing behind, and later instances become ready.
//!
//! The fake metadata service processes every request, including those whose sender has gone away.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use waifud_agent::interfaces::MetadataService;
use waifud_api::agent::AgentInstance;
use waifud_api::metadatad::Assignment;
use waifud_hypervisor::Hypervisor;
use waifud_kit::testing::random::Random;
use waifud_storage::StoragePool;
use waifud_types::{Digest, InstanceId, MacAddr};

use crate::test_node::TestNode;

const PAIRS: u32 = 300;
/// Few addresses, so that each one is reused often.
const ADDRESSES: u8 = 24;

/// Allocates addresses like waifud: an address is reused only after the node has confirmed the deletion.
struct Addresses {
    existing: Vec<(InstanceId, u8)>,
    made: u32,
}

impl Addresses {
    fn instance(&mut self, node: &TestNode) -> Option<AgentInstance> {
        let gone: BTreeSet<InstanceId> = node
            .waifud
            .destroyed()
            .iter()
            .map(|order| order.instance)
            .collect();
        self.existing.retain(|(id, _)| !gone.contains(id));
        let taken: BTreeSet<u8> = self.existing.iter().map(|(_, host)| *host).collect();
        let host = (0..ADDRESSES).find(|host| !taken.contains(host))?;
        self.made += 1;
        let mut instance = node.instance(&format!("churn-{}", self.made));
        self.existing.push((instance.id, host));
        let nic = &mut instance.spec.nics[0];
        nic.address = Some(Ipv4Addr::new(10, 144, 1, 10 + host));
        nic.mac = MacAddr::of_guest([7, 7, host]);
        let mut digest = [9; 32];
        digest[..4].copy_from_slice(&self.made.to_be_bytes());
        instance.bundle.digest = Digest::from_bytes(digest);
        Some(instance)
    }

    async fn next(&mut self, node: &TestNode) -> AgentInstance {
        loop {
            if let Some(instance) = self.instance(node) {
                return instance;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn churn(seed: u64, restarts: bool) {
    let node = TestNode::started_after(|node| node.metadata.set_delays(seed));
    let mut numbers = Random(seed);
    let mut addresses = Addresses {
        existing: Vec::new(),
        made: 0,
    };
    for _ in 0..PAIRS {
        let instance = addresses.next(&node).await;
        let id = instance.id;
        node.waifud.put(instance);
        tokio::time::sleep(Duration::from_micros(numbers.below(12_000))).await;
        if numbers.below(4) == 0 {
            // Edited just before the deletion: the new bundle may be in transit when the deletion arrives.
            let mut digest = [5; 32];
            digest[..16].copy_from_slice(id.as_uuid().as_bytes());
            node.waifud.edit(id, |instance| {
                instance.bundle.digest = Digest::from_bytes(digest);
            });
            tokio::time::sleep(Duration::from_micros(numbers.below(3000))).await;
        }
        if restarts && numbers.below(10) == 0 {
            node.restart().await;
        }
        node.waifud.delete(id);
    }
    node.until("every order confirmed", async || {
        node.waifud.pending_tombstones() == 0
    })
    .await;

    // Later instances become ready at the same addresses.
    let mut next = Vec::new();
    for _ in 0..ADDRESSES {
        let instance = addresses.next(&node).await;
        next.push(instance.id);
        node.waifud.put(instance);
    }
    for id in &next {
        node.until_ready(*id).await;
        assert!(node.metadata.would_serve(*id));
    }
    let kept: BTreeSet<InstanceId> = next.iter().copied().collect();
    node.until(
        "only the documents of the remaining instances are held",
        async || {
            let held = node.metadata.held();
            held.keys().copied().collect::<BTreeSet<_>>() == kept
                && node.metadata.bundles().len() == kept.len()
        },
    )
    .await;
    for id in &next {
        node.waifud.delete(*id);
    }
    for id in next {
        node.until_destroyed(id).await;
    }
    nothing_is_left(&node).await;
}

async fn nothing_is_left(node: &TestNode) {
    node.until("no documents are left", async || {
        node.metadata.held().is_empty() && node.metadata.bundles().is_empty()
    })
    .await;
    assert_eq!(node.hypervisor.list().await.unwrap(), []);
    assert_eq!(node.pool.volumes().await.unwrap(), []);
    assert_eq!(node.ports(), 0);
    for directory in ["instances", "bundles"] {
        let path = node.settings.state_dir.join(directory);
        node.until(directory, async || {
            std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none())
        })
        .await;
    }
    let records = node.settings.state_dir.join("records");
    let left: Vec<_> = std::fs::read_dir(records)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "node.json")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn creating_and_deleting_in_quick_succession_leaves_nothing() {
    churn(0x5eed_0001, false).await;
}

#[tokio::test]
async fn creating_and_deleting_while_the_agent_is_killed_leaves_nothing() {
    churn(0x5eed_0002, true).await;
}

#[tokio::test]
async fn ports_applied_without_an_answer_are_removed_before_the_deletion_is_confirmed() {
    let (node, neighbor) = TestNode::with_instance("neighbor").await;
    node.network.lose_answers(true);
    let id = node.put("unlucky");
    node.until("its port is in force", async || node.ports() == 2)
        .await;
    node.until_status(id, "troubled by it", |s| {
        s.reason
            .as_ref()
            .is_some_and(|r| r.contains("the answer was lost"))
    })
    .await;
    node.waifud.delete(id);
    let confirmed = || node.waifud.destroyed().iter().any(|t| t.instance == id);
    node.until("only its port is left", async || {
        let status = node.waifud.status(id);
        let at_the_port = status
            .and_then(|status| status.step)
            .is_some_and(|step| step.name == "release-network" && step.waiting_for.is_some());
        at_the_port || confirmed()
    })
    .await;
    assert!(
        !confirmed(),
        "confirmed although {} ports are in force",
        node.ports()
    );
    node.network.lose_answers(false);
    node.until_destroyed(id).await;
    node.delete(neighbor).await;
    assert_eq!(node.ports(), 0);
}

#[tokio::test]
async fn unused_documents_are_removed_and_an_unmanaged_domain_keeps_its_own() {
    let node = TestNode::new();
    let (lost, unmanaged) = (node.instance("lost"), node.instance("unmanaged"));
    node.start();
    node.waifud.put(unmanaged.clone());
    node.until_ready(unmanaged.id).await;
    // Left behind by an agent whose records are lost.
    node.kill().await;
    let record = |id| node.settings.state_dir.join(format!("records/{id}.json"));
    std::fs::remove_file(record(unmanaged.id)).unwrap();
    node.waifud.remove_from_slice(unmanaged.id);
    let left = [&lost.bundle.digest, &Digest::from_bytes([77; 32])];
    for bundle in left {
        node.metadata
            .put_bundle(*bundle, "sealed".into())
            .await
            .unwrap();
    }
    let assignment = Assignment {
        name: lost.name.clone(),
        address: lost.spec.nics[0].address.unwrap(),
        bundle: lost.bundle.clone(),
    };
    node.metadata.assign(lost.id, &assignment).await.unwrap();
    node.start();
    // Another instance gets the address at once.
    let mut heir = node.instance("heir");
    heir.spec.nics[0].address = lost.spec.nics[0].address;
    node.waifud.put(heir.clone());
    node.until_ready(heir.id).await;
    node.until("only what is used is held", async || {
        let held: Vec<_> = node.metadata.held().into_keys().collect();
        held == [unmanaged.id, heir.id] && node.metadata.bundles().len() == 2
    })
    .await;
    node.hypervisor.undefine(unmanaged.id);
    node.until(
        "the unmanaged domain's documents went with it",
        async || node.metadata.held().len() == 1,
    )
    .await;
}

#[tokio::test]
async fn a_cached_bundle_that_no_instance_uses_is_removed_while_the_node_stays_connected() {
    let (node, id) = TestNode::with_instance("web").await;
    let cache = node.settings.state_dir.join("bundles");
    // As after an edit during the download of the former documents.
    let unused = cache.join(Digest::from_bytes([78; 32]).hex());
    std::fs::write(&unused, "sealed").unwrap();
    node.until("it is removed", async || !unused.exists()).await;
    let used = node.waifud.instance(id).unwrap().bundle.digest.hex();
    assert!(cache.join(used).exists());
}
