//! Moves: a node receives the disks of an instance, wherever it is interrupted, and sends those that it has released.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tokio::io::AsyncReadExt;
use waifud_agent::fake::DiskFault;
use waifud_api::agent::{AgentInstance, Incoming, Release, Tombstone};
use waifud_api::disk_transfer::{BLOCK, DiskDecoder, DiskFrame};
use waifud_api::stream::{RefusalReason, StreamId, StreamKind, StreamOrder};
use waifud_hypervisor::DomainState;
use waifud_hypervisor::fake::Op as HypervisorOp;
use waifud_storage::fake::{Op as PoolOp, image_bytes};
use waifud_storage::{StorageError, StoragePool as _};
use waifud_types::status::StoppedBy;
use waifud_types::{ByteSize, DiskFormat, Epoch, InstanceId, InstanceState, ReceiveState};

use crate::test_node::{TestNode, keep_busy, until_complete_before_the_kill};

/// The blocks of the disk that have data.
const DATA: [u64; 4] = [1, 2, 3, 6];

/// An instance that another node has, and whose disk waifud sends.
pub fn elsewhere(node: &TestNode) -> (AgentInstance, Incoming) {
    let instance = node.instance("web");
    let path = node.settings.state_dir.join("sent-disk");
    let (header, _) = image_bytes(instance.spec.disks[0].size_bytes, 9);
    let file = File::create(&path).unwrap();
    file.write_all_at(&header, 0).unwrap();
    for block in DATA {
        file.write_all_at(&[7; 4096], block * BLOCK + 100).unwrap();
    }
    file.set_len(8 * BLOCK).unwrap();
    node.waifud.add_disk(instance.id, 0, path);
    let incoming = Incoming {
        id: instance.id,
        name: instance.name.clone(),
        epoch: instance.epoch,
        source: "birch".parse().unwrap(),
        image: instance.spec.image,
        image_size_bytes: instance.image_size_bytes,
        disks: instance.spec.disks.clone(),
        copy: false,
        was_on: true,
        stopped_by: None,
    };
    (instance, incoming)
}

pub fn copy(incoming: &Incoming) -> Incoming {
    Incoming {
        copy: true,
        ..incoming.clone()
    }
}

impl TestNode {
    pub async fn until_receiving(&self, id: InstanceId, state: ReceiveState) {
        self.until(&format!("{state:?}"), async || {
            self.waifud
                .receiving(id)
                .is_some_and(|it| it.state == state)
        })
        .await;
    }

    /// Waits until the node says why it does not go on.
    pub async fn until_hindered(&self, id: InstanceId, part: &str) {
        self.until(part, async || {
            let reason = self.waifud.receiving(id).and_then(|it| it.reason);
            reason.is_some_and(|reason| reason.contains(part))
        })
        .await;
    }

    /// The node owns what it has received.
    fn hand_over(&self, mut instance: AgentInstance) {
        instance.epoch = Epoch(instance.epoch.0 + 1);
        self.waifud.hand_over(instance);
    }

    /// Nothing of any instance is on the node.
    async fn is_clean(&self) -> bool {
        self.pool.volume_facts().is_empty() && self.pool.incoming().await.unwrap().is_empty()
    }
}

#[tokio::test]
async fn a_node_prepares_copies_when_it_may_and_starts_what_it_owns() {
    let node = TestNode::started();
    let (instance, incoming) = elsewhere(&node);
    let id = instance.id;
    node.waifud.put_incoming(incoming.clone());
    node.until_receiving(id, ReceiveState::Prepared).await;
    assert_eq!(node.waifud.fetches(), 1, "the image is there");
    assert!(node.waifud.transfers().is_empty());
    assert!(node.is_clean().await);

    node.waifud.put_incoming(copy(&incoming));
    node.until_receiving(id, ReceiveState::Received).await;
    let facts = node.pool.volume_facts();
    let volume = facts.values().next().unwrap();
    assert_eq!(volume.size, instance.spec.disks[0].size_bytes);
    let received = volume.number;
    assert_eq!(node.hypervisor.starts(), 0, "it does not own it");
    assert!(node.waifud.status(id).is_none());
    assert!(node.waifud.unmanaged().is_empty());

    node.hand_over(instance);
    node.until_ready(id).await;
    assert_eq!(node.hypervisor.starts(), 1);
    let facts = node.pool.volume_facts();
    assert_eq!(
        facts.values().next().unwrap().number,
        received,
        "the same disk"
    );
}

#[tokio::test]
async fn an_interrupted_transfer_continues_where_it_ended() {
    let node = TestNode::started();
    let (instance, incoming) = elsewhere(&node);
    let id = instance.id;
    // The header of the transfer, and one block.
    node.waifud.set_disk_fault(Some(DiskFault::EndsAfter(2)));
    node.waifud.put_incoming(copy(&incoming));
    node.until("another attempt", async || {
        node.waifud.transfers().len() > 1
    })
    .await;
    node.restart().await;
    node.until_receiving(id, ReceiveState::Received).await;
    let begins = node.waifud.transfers();
    assert_eq!(begins[..2], [0, BLOCK]);
    assert!(begins.is_sorted(), "{begins:?}");
    assert_eq!(begins.last(), Some(&(7 * BLOCK)), "only the end was left");
    node.hand_over(instance);
    node.until_ready(id).await;
}

#[tokio::test]
async fn a_disk_from_a_pool_of_another_kind_is_converted_from_the_format_that_its_node_states() {
    for (format, interrupted) in [
        (DiskFormat::Qcow2, false),
        (DiskFormat::Raw, false),
        (DiskFormat::Raw, true),
    ] {
        let node = TestNode::started();
        let (instance, incoming) = elsewhere(&node);
        node.waifud.set_disk_format(format);
        if interrupted {
            node.waifud.set_disk_fault(Some(DiskFault::EndsAfter(3)));
        }
        node.waifud.put_incoming(copy(&incoming));
        node.until_receiving(instance.id, ReceiveState::Received)
            .await;
        let volume = node.pool.volume_facts().into_keys().next().unwrap();
        assert_eq!(node.pool.received_format(&volume), Some(format));
    }
}

#[tokio::test]
async fn a_damaged_disk_is_never_used_and_is_copied_again_from_its_beginning() {
    let node = TestNode::started();
    let (_, incoming) = elsewhere(&node);
    node.waifud.set_disk_fault(Some(DiskFault::Damaged));
    node.waifud.put_incoming(copy(&incoming));
    node.until_hindered(incoming.id, "differs from what was sent")
        .await;
    assert!(node.pool.volume_facts().is_empty());
    node.waifud.set_disk_fault(None);
    node.until_receiving(incoming.id, ReceiveState::Received)
        .await;
    assert_eq!(node.waifud.transfers().last(), Some(&0));
}

#[tokio::test]
async fn a_full_pool_and_a_missing_one_are_named_and_nothing_is_lost() {
    let node = TestNode::started();
    let (_, incoming) = elsewhere(&node);
    node.pool.fail_next(
        PoolOp::OpenIncoming,
        StorageError::NoSpace {
            pool: "main".parse().unwrap(),
        },
    );
    node.waifud.put_incoming(copy(&incoming));
    node.until_receiving(incoming.id, ReceiveState::Received)
        .await;

    let (_, mut other) = elsewhere(&node);
    other.disks[0].pool = "fast".parse().unwrap();
    node.waifud.put_incoming(copy(&other));
    node.until_hindered(other.id, "no pool fast").await;
}

#[tokio::test]
async fn a_canceled_move_leaves_nothing_and_the_instance_can_come_again() {
    for (fault, state) in [
        (None, ReceiveState::Received),
        (Some(DiskFault::EndsAfter(3)), ReceiveState::Copying),
    ] {
        let node = TestNode::started();
        let (instance, incoming) = elsewhere(&node);
        let id = instance.id;
        node.waifud.set_disk_fault(fault);
        node.waifud.put_incoming(copy(&incoming));
        node.until_receiving(id, state).await;
        node.waifud.add_tombstone(Tombstone {
            instance: id,
            name: instance.name.clone(),
            epoch: incoming.epoch,
        });
        node.until("confirmed", async || !node.waifud.destroyed().is_empty())
            .await;
        assert!(node.is_clean().await, "{state:?}");

        node.waifud.set_disk_fault(None);
        node.waifud.put_incoming(copy(&incoming));
        node.until("received again", async || {
            !node.pool.volume_facts().is_empty()
        })
        .await;
        node.until_receiving(id, ReceiveState::Received).await;
        node.hand_over(instance);
        node.until_ready(id).await;
    }
}

#[tokio::test]
async fn what_is_received_survives_a_kill_at_each_operation_of_the_pool() {
    for operation in [
        PoolOp::HasImage,
        PoolOp::OpenIncoming,
        PoolOp::CompleteIncoming,
        PoolOp::Volumes,
    ] {
        let node = TestNode::started();
        let (instance, incoming) = elsewhere(&node);
        node.pool.hang(operation);
        let before = node.pool.calls(operation);
        node.waifud.put_incoming(copy(&incoming));
        node.until("the operation runs", async || {
            node.pool.calls(operation) > before
        })
        .await;
        node.kill().await;
        node.pool.release(operation);
        node.start();
        node.until_receiving(instance.id, ReceiveState::Received)
            .await;
        let id = instance.id;
        node.hand_over(instance);
        node.until_ready(id).await;
        assert_eq!(node.pool.volume_facts().len(), 1, "{operation:?}");
    }
}

#[tokio::test]
async fn a_power_cut_before_the_handover_starts_no_guest_and_one_after_it_does() {
    let (mut node, kept) = TestNode::with_instance("db").await;
    let (instance, incoming) = elsewhere(&node);
    let id = instance.id;
    node.waifud.put_incoming(copy(&incoming));
    node.until_receiving(id, ReceiveState::Received).await;
    let starts = node.hypervisor.starts();
    // The node boots without waifud: it has all disks, and does not own them.
    node.boot_alone().await;
    node.until("its own guest is started", async || {
        node.domain(kept).await == Some(DomainState::Running)
    })
    .await;
    node.until_observed_again().await;
    assert_eq!(node.hypervisor.starts(), starts + 1);
    assert_eq!((node.domain(id).await, node.volumes().await), (None, 2));

    node.waifud.set_online(true);
    node.hypervisor.hang(HypervisorOp::EnsureStarted);
    let calls = node.hypervisor.calls(HypervisorOp::EnsureStarted);
    node.hand_over(instance);
    node.until("about to start", async || {
        node.hypervisor.calls(HypervisorOp::EnsureStarted) > calls
    })
    .await;
    node.kill().await;
    node.hypervisor.release(HypervisorOp::EnsureStarted);
    node.boot_alone().await;
    node.until("started by the owner, without waifud", async || {
        node.domain(id).await == Some(DomainState::Running)
    })
    .await;
    assert_eq!(node.volumes().await, 2, "the received disk");
}

#[tokio::test]
async fn a_handover_continues_after_the_agent_is_killed_at_any_point() {
    until_complete_before_the_kill(async |pause| {
        let node = TestNode::started();
        let (instance, incoming) = elsewhere(&node);
        let id = instance.id;
        node.waifud.put_incoming(copy(&incoming));
        node.until_receiving(id, ReceiveState::Received).await;
        node.hand_over(instance);
        keep_busy(pause).await;
        let complete = node.waifud.status(id).is_some_and(|status| status.ready);
        node.restart().await;
        node.until_ready(id).await;
        assert_eq!(node.hypervisor.starts(), 1, "killed after {pause:?}");
        assert_eq!(node.volumes().await, 1);
        node.kill().await;
        complete
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_had_powered_itself_off_stays_off_and_is_started_on_request() {
    let node = TestNode::started();
    let (instance, mut incoming) = elsewhere(&node);
    let id = instance.id;
    incoming.was_on = false;
    incoming.stopped_by = Some(StoppedBy::Guest);
    node.waifud.put_incoming(copy(&incoming));
    node.until_receiving(id, ReceiveState::Received).await;
    node.hand_over(instance);
    let status = node.until_state(id, InstanceState::Stopped).await;
    assert_eq!(status.stopped_by, Some(StoppedBy::Guest));
    assert_eq!(node.hypervisor.starts(), 0);
    node.waifud.edit(id, |_| ());
    node.until_ready(id).await;
}

#[tokio::test]
async fn a_received_disk_that_is_missing_later_is_not_created_again() {
    let node = TestNode::started();
    let (instance, incoming) = elsewhere(&node);
    let id = instance.id;
    node.waifud.put_incoming(copy(&incoming));
    node.until_receiving(id, ReceiveState::Received).await;
    let volume = node.pool.volume_facts().into_keys().next().unwrap();
    node.pool.ensure_volume_absent(&volume).await.unwrap();
    node.hand_over(instance);
    node.until("the loss", async || {
        let step = node.waifud.status(id).and_then(|status| status.step);
        let waits = step.and_then(|step| step.waiting_for);
        waits.is_some_and(|waits| waits.contains("now missing"))
    })
    .await;
    assert!(node.pool.volume_facts().is_empty());
}

#[tokio::test]
async fn an_instance_that_the_node_has_is_not_received() {
    let (node, id) = TestNode::with_instance("web").await;
    let (_, mut incoming) = elsewhere(&node);
    incoming.id = id;
    node.waifud.put_incoming(copy(&incoming));
    node.until_more_reports(3).await;
    assert_eq!(node.waifud.receiving(id), None);
    assert_eq!(node.pool.volume_facts().len(), 1);
    node.until_ready(id).await;
}

/// Asks for the disk as waifud does for another node.
fn disk_order(instance: &AgentInstance, epoch: Epoch, index: u32, from: u64) -> StreamOrder {
    StreamOrder {
        id: StreamId::from_bytes([u8::try_from(index + 1).unwrap(); 32]),
        instance: instance.id,
        epoch,
        kind: StreamKind::Disk { index, from },
    }
}

#[tokio::test]
async fn only_disks_of_released_instances_are_sent() {
    let (node, id) = TestNode::with_instance("web").await;
    let instance = node.waifud.instance(id).unwrap();
    let epoch = instance.epoch;
    let refused = async |order| {
        let outcome = node.waifud.request_stream(order).await.unwrap();
        outcome.err().map(|refusal| refusal.reason)
    };
    let not_here = Some(RefusalReason::NotHere);
    assert_eq!(
        refused(disk_order(&instance, epoch, 0, 0)).await,
        not_here,
        "it runs"
    );
    node.waifud.release(Release {
        instance: id,
        epoch,
        stop: true,
    });
    node.until("released", async || {
        node.waifud.released().iter().any(|released| released.off)
    })
    .await;
    assert_eq!(
        refused(disk_order(&instance, Epoch(9), 0, 0)).await,
        not_here
    );
    assert_eq!(
        refused(disk_order(&instance, epoch, 1, 0)).await,
        not_here,
        "one disk"
    );

    let order = disk_order(&instance, epoch, 0, 0);
    let mut wire = node.waifud.request_stream(order).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    wire.read_to_end(&mut bytes).await.unwrap();
    let mut decoder = DiskDecoder::default();
    decoder.push(&bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.frame().unwrap() {
        frames.push(frame);
    }
    assert!(
        matches!(frames.first(), Some(DiskFrame::Header { format: DiskFormat::Qcow2, length, .. }) if length > &ByteSize(0))
    );
    assert!(matches!(frames.last(), Some(DiskFrame::End { .. })));
    assert!(frames.len() > 2);
}
