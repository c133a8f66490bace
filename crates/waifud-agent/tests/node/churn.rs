//! Creating and deleting in quick succession leaves nothing behind, and what comes next settles.
//!
//! The fake metadata service carries out every request that was sent, also those whose sender no longer waits.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use waifud_agent::interfaces::MetadataService;
use waifud_api::agent::AgentInstance;
use waifud_api::metadatad::Assignment;
use waifud_hypervisor::Hypervisor;
use waifud_storage::StoragePool;
use waifud_types::{Digest, InstanceId, MacAddr};

use crate::world::World;

const PAIRS: u32 = 300;
/// So few that every address is used again and again.
const ADDRESSES: u8 = 24;

/// Numbers that follow from a seed (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Gives out addresses as waifud does: again only after the node has confirmed that nothing is left.
struct Addresses {
    living: Vec<(InstanceId, u8)>,
    made: u32,
}

impl Addresses {
    fn instance(&mut self, world: &World) -> Option<AgentInstance> {
        let gone: BTreeSet<InstanceId> = world
            .waifud
            .destroyed()
            .iter()
            .map(|order| order.instance)
            .collect();
        self.living.retain(|(id, _)| !gone.contains(id));
        let taken: BTreeSet<u8> = self.living.iter().map(|(_, host)| *host).collect();
        let host = (0..ADDRESSES).find(|host| !taken.contains(host))?;
        self.made += 1;
        let mut instance = world.instance(&format!("churn-{}", self.made));
        self.living.push((instance.id, host));
        let nic = &mut instance.spec.nics[0];
        nic.address = Some(Ipv4Addr::new(10, 144, 1, 10 + host));
        nic.mac = MacAddr::of_guest([7, 7, host]);
        let mut digest = [9; 32];
        digest[..4].copy_from_slice(&self.made.to_be_bytes());
        instance.bundle.digest = Digest::from_bytes(digest);
        Some(instance)
    }

    async fn next(&mut self, world: &World) -> AgentInstance {
        loop {
            if let Some(instance) = self.instance(world) {
                return instance;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn churn(seed: u64, restarts: bool) {
    let world = World::new();
    world.metadata.set_delays(seed);
    world.start();
    let mut numbers = Numbers(seed);
    let mut addresses = Addresses {
        living: Vec::new(),
        made: 0,
    };
    for _ in 0..PAIRS {
        let instance = addresses.next(&world).await;
        let id = instance.id;
        world.waifud.put(instance);
        tokio::time::sleep(Duration::from_micros(numbers.below(12_000))).await;
        if numbers.below(4) == 0 {
            // Edited just before it goes: another bundle, which may be on its way when the order comes.
            let mut digest = [5; 32];
            digest[..16].copy_from_slice(id.as_uuid().as_bytes());
            world.waifud.edit(id, |instance| {
                instance.bundle.digest = Digest::from_bytes(digest);
            });
            tokio::time::sleep(Duration::from_micros(numbers.below(3000))).await;
        }
        if restarts && numbers.below(10) == 0 {
            world.restart().await;
        }
        world.waifud.delete(id);
    }
    world
        .until("every order confirmed", async || {
            world.waifud.pending_tombstones() == 0
        })
        .await;

    // The next ones settle, at the same addresses.
    let mut next = Vec::new();
    for _ in 0..ADDRESSES {
        let instance = addresses.next(&world).await;
        next.push(instance.id);
        world.waifud.put(instance);
    }
    for id in &next {
        world.until_ready(*id).await;
        assert!(world.metadata.would_serve(*id));
    }
    let kept: BTreeSet<InstanceId> = next.iter().copied().collect();
    world
        .until("nobody else's documents are held", async || {
            let held = world.metadata.held();
            held.keys().copied().collect::<BTreeSet<_>>() == kept
                && world.metadata.bundles().len() == kept.len()
        })
        .await;
    for id in &next {
        world.waifud.delete(*id);
    }
    for id in next {
        world.until_destroyed(id).await;
    }
    nothing_is_left(&world).await;
}

async fn nothing_is_left(world: &World) {
    world
        .until("no documents are left", async || {
            world.metadata.held().is_empty() && world.metadata.bundles().is_empty()
        })
        .await;
    assert_eq!(world.hypervisor.list().await.unwrap(), []);
    assert_eq!(world.pool.volumes().await.unwrap(), []);
    assert_eq!(world.ports(), 0);
    for directory in ["instances", "bundles"] {
        let path = world.settings.state_dir.join(directory);
        world
            .until(directory, async || {
                std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none())
            })
            .await;
    }
    let records = world.settings.state_dir.join("records");
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
    let world = World::new();
    world.start();
    let neighbour = world.run_one("neighbour").await;
    world.network.lose_answers(true);
    let instance = world.instance("unlucky");
    let id = instance.id;
    world.waifud.put(instance);
    world
        .until("its port is in force", async || world.ports() == 2)
        .await;
    world
        .until_status(id, "troubled by it", |s| {
            s.reason
                .as_ref()
                .is_some_and(|r| r.contains("the answer was lost"))
        })
        .await;
    world.waifud.delete(id);
    let confirmed = || world.waifud.destroyed().iter().any(|t| t.instance == id);
    world
        .until("only its port is left", async || {
            let status = world.waifud.status(id);
            let at_the_port = status
                .and_then(|status| status.step)
                .is_some_and(|step| step.name == "release-network" && step.waiting_for.is_some());
            at_the_port || confirmed()
        })
        .await;
    assert!(
        !confirmed(),
        "confirmed although {} ports are in force",
        world.ports()
    );
    world.network.lose_answers(false);
    world.until_destroyed(id).await;
    world.delete(neighbour).await;
    assert_eq!(world.ports(), 0);
}

#[tokio::test]
async fn unused_documents_are_removed_and_an_unmanaged_domain_keeps_its_own() {
    let world = World::new();
    let (lost, unmanaged) = (world.instance("lost"), world.instance("unmanaged"));
    world.start();
    world.waifud.put(unmanaged.clone());
    world.until_ready(unmanaged.id).await;
    // As left by an agent whose records are lost.
    world.kill().await;
    let record = |id| world.settings.state_dir.join(format!("records/{id}.json"));
    std::fs::remove_file(record(unmanaged.id)).unwrap();
    world.waifud.remove_from_slice(unmanaged.id);
    let left = [&lost.bundle.digest, &Digest::from_bytes([77; 32])];
    for bundle in left {
        world
            .metadata
            .put_bundle(*bundle, "sealed".into())
            .await
            .unwrap();
    }
    let assignment = Assignment {
        name: lost.name.clone(),
        address: lost.spec.nics[0].address.unwrap(),
        bundle: lost.bundle.clone(),
    };
    world.metadata.assign(lost.id, &assignment).await.unwrap();
    world.start();
    // Another instance gets the address at once.
    let mut heir = world.instance("heir");
    heir.spec.nics[0].address = lost.spec.nics[0].address;
    world.waifud.put(heir.clone());
    world.until_ready(heir.id).await;
    world
        .until("only what is used is held", async || {
            let held: Vec<_> = world.metadata.held().into_keys().collect();
            held == [unmanaged.id, heir.id] && world.metadata.bundles().len() == 2
        })
        .await;
    world.hypervisor.undefine(unmanaged.id);
    world
        .until(
            "the unmanaged domain's documents went with it",
            async || world.metadata.held().len() == 1,
        )
        .await;
}
