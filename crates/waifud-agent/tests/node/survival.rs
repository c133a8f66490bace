//! What an agent must survive or ignore: its own death at any point, outages of others, stale requests.

use std::time::{Duration, Instant};

use waifud_agent::BootAlone;
use waifud_agent::interfaces::HostPower;
use waifud_api::agent::Tombstone;
use waifud_hypervisor::fake::Op;
use waifud_hypervisor::{DomainState, Hypervisor, HypervisorError};
use waifud_network::fake::Call;
use waifud_storage::fake::Op as PoolOp;
use waifud_types::status::StoppedBy;
use waifud_types::{Epoch, InstanceId, InstanceState};

use crate::test_node::{TestNode, keep_busy, until_complete_before_the_kill};

/// Kills the agent after a growing time and starts a new one, until a complete life cycle fits before the kill. So it is
/// killed around every step of the life cycle.
async fn killed_at_every_step(delete: bool) {
    until_complete_before_the_kill(async |pause| {
        let node = TestNode::new();
        let id = node.put("web");
        node.start();
        if delete {
            node.until_ready(id).await;
            node.waifud.delete(id);
        }
        keep_busy(pause).await;
        let complete = if delete {
            !node.waifud.destroyed().is_empty()
        } else {
            node.waifud.status(id).is_some_and(|status| status.ready)
        };
        node.restart().await;
        if delete {
            node.until_destroyed(id).await;
        } else {
            node.until_ready(id).await;
            assert_eq!(node.hypervisor.starts(), 1, "started twice after {pause:?}");
            assert_eq!(node.volumes().await, 1);
            assert_eq!(node.ports(), 1);
            assert!(node.metadata.would_serve(id));
        }
        node.kill().await;
        complete
    })
    .await;
}

#[tokio::test]
async fn a_creation_continues_after_the_agent_is_killed_at_any_point() {
    killed_at_every_step(false).await;
}

#[tokio::test]
async fn a_deletion_continues_after_the_agent_is_killed_at_any_point() {
    killed_at_every_step(true).await;
}

/// Each operation that a creation calls.
fn hypervisor_ops() -> [Op; 4] {
    [Op::Host, Op::Get, Op::EnsureDefined, Op::EnsureStarted]
}

fn pool_ops() -> [PoolOp; 4] {
    [
        PoolOp::HasImage,
        PoolOp::StagingPath,
        PoolOp::ImportImage,
        PoolOp::EnsureVolume,
    ]
}

#[tokio::test]
async fn each_step_of_a_creation_continues_after_the_agent_is_killed_during_it() {
    inside_each_verb(async |node, id, release| {
        node.kill().await;
        release();
        node.start();
        node.until_ready(id).await;
        assert_eq!(node.hypervisor.starts(), 1);
        node.delete(id).await;
    })
    .await;
}

#[tokio::test]
async fn a_deletion_during_each_step_of_a_creation_leaves_nothing() {
    // Steps that only wait are canceled; the others are awaited.
    inside_each_verb(async |node, id, release| {
        node.waifud.delete(id);
        release();
        node.until_destroyed(id).await;
        assert_eq!((node.volumes().await, node.ports()), (0, 0));
    })
    .await;
}

/// For each operation, creates an instance on a new node until that operation hangs, then calls `then`, which releases
/// the operation.
async fn inside_each_verb(then: impl AsyncFn(&TestNode, InstanceId, &dyn Fn())) {
    for op in hypervisor_ops() {
        let node = TestNode::new();
        node.hypervisor.hang(op);
        let id = begin(&node, async || node.hypervisor.calls(op) > 0).await;
        then(&node, id, &|| node.hypervisor.release(op)).await;
    }
    for op in pool_ops() {
        let node = TestNode::new();
        node.pool.hang(op);
        let id = begin(&node, async || node.pool.calls(op) > 0).await;
        then(&node, id, &|| node.pool.release(op)).await;
    }
}

async fn begin(node: &TestNode, inside: impl AsyncFn() -> bool) -> InstanceId {
    node.start();
    let id = node.put("web");
    node.until("inside", inside).await;
    id
}

#[tokio::test]
async fn a_stalled_download_shows_its_progress_and_can_be_canceled() {
    let node = TestNode::started_after(|node| node.waifud.stall_downloads(Some(1024)));
    let id = node.put("web");
    let status = node
        .until_status(id, "downloading", |s| {
            s.step.as_ref().is_some_and(|step| step.percent.is_some())
        })
        .await;
    assert_eq!(status.state, InstanceState::Preparing);
    assert_eq!(status.step.unwrap().name, "image");
    node.waifud.delete(id);
    node.until_destroyed(id).await;
    node.waifud.stall_downloads(None);
    node.run_one("db").await;
}

#[tokio::test]
async fn a_restarted_agent_takes_over_running_guests_without_affecting_them() {
    let (node, id) = TestNode::with_instance("web").await;
    let defined = node.hypervisor.calls(Op::EnsureDefined);
    for _ in 0..3 {
        node.restart().await;
        let reports = node.waifud.status_history(id).len();
        node.until("connected again", async || {
            node.waifud.status_history(id).len() > reports
        })
        .await;
        let status = node.waifud.status(id).unwrap();
        assert_eq!(status.state, InstanceState::Running);
        assert!(status.ready, "readiness survives a restart of the agent");
    }
    assert_eq!(node.hypervisor.starts(), 1);
    assert_eq!(node.hypervisor.calls(Op::EnsureDefined), defined);
    assert_eq!(node.hypervisor.calls(Op::EnsureOff), 0);
}

#[tokio::test]
async fn without_waifud_a_guest_keeps_running_and_changes_are_reported_later() {
    let (node, id) = TestNode::with_instance("web").await;
    let started = node.waifud.status(id).unwrap().started_at;
    assert!(started.is_some());
    node.waifud.set_online(false);
    node.hypervisor.crash(id);
    node.until("restarted", async || node.hypervisor.starts() == 2)
        .await;
    assert_eq!(node.waifud.status(id).unwrap().started_at, started);
    node.waifud.set_online(true);
    node.until_status(id, "the second run", |s| {
        s.state == InstanceState::Running && s.started_at > started
    })
    .await;

    node.waifud.set_online(false);
    node.hypervisor.power_off(id);
    node.waifud.set_online(true);
    node.until_stopped_by(id, StoppedBy::Guest).await;

    node.waifud.set_online(false);
    node.waifud.delete(id);
    node.waifud.set_online(true);
    node.until_destroyed(id).await;
    assert_eq!(node.hypervisor.starts(), 2);
}

/// The machine loses its power and starts again, without a connection to waifud.
async fn boots_without_waifud(node: &mut TestNode, boot_alone: BootAlone) {
    node.kill().await;
    node.hypervisor.host_crash();
    node.waifud.set_online(false);
    node.settings.boot_alone = boot_alone;
    node.start();
}

/// Waits until the agent has looked at the guest a few times.
async fn looked_a_few_times(node: &TestNode) {
    let calls = node.hypervisor.calls(Op::Get);
    node.until("looked a few times", async || {
        node.hypervisor.calls(Op::Get) > calls + 5
    })
    .await;
}

#[tokio::test]
async fn a_node_that_may_not_start_alone_waits_for_waifud() {
    let mut node = TestNode::started();
    node.run_one("web").await;
    boots_without_waifud(&mut node, BootAlone::Never).await;
    looked_a_few_times(&node).await;
    assert_eq!(node.hypervisor.starts(), 1);
    node.waifud.set_online(true);
    node.until("started", async || node.hypervisor.starts() == 2)
        .await;

    boots_without_waifud(&mut node, BootAlone::Wait(Duration::from_hours(1))).await;
    looked_a_few_times(&node).await;
    assert_eq!(node.hypervisor.starts(), 2, "before its time");

    node.kill().await;
    node.settings.boot_alone = BootAlone::Wait(Duration::from_millis(50));
    node.start();
    node.until("started alone", async || node.hypervisor.starts() == 3)
        .await;
}

#[tokio::test]
async fn a_copy_of_a_node_does_not_start_guests_alone() {
    let mut node = TestNode::started();
    node.run_one("web").await;
    node.kill().await;
    node.hypervisor.host_crash();
    node.waifud.set_duplicate(true);
    node.settings.boot_alone = BootAlone::Wait(Duration::from_millis(300));
    node.start();
    let started = Instant::now();
    node.until("the time to start alone has passed", async || {
        started.elapsed() > Duration::from_secs(1)
    })
    .await;
    looked_a_few_times(&node).await;
    assert_eq!(node.hypervisor.starts(), 1);
    // The other machine is gone for good.
    node.waifud.set_duplicate(false);
    node.until("started", async || node.hypervisor.starts() == 2)
        .await;
}

#[tokio::test]
async fn guests_on_other_hardware_wait_for_waifud_even_if_the_node_starts_them_alone() {
    for boot_alone in [BootAlone::Start, BootAlone::Wait(Duration::from_millis(50))] {
        let mut node = TestNode::started();
        node.run_one("web").await;
        node.host.change_hardware();
        boots_without_waifud(&mut node, boot_alone).await;
        let started = Instant::now();
        node.until("the time to start alone has passed", async || {
            started.elapsed() > Duration::from_millis(500)
        })
        .await;
        looked_a_few_times(&node).await;
        assert_eq!(node.hypervisor.starts(), 1, "{boot_alone:?}");
        node.waifud.set_online(true);
        node.until("started", async || node.hypervisor.starts() == 2)
            .await;
        // From now on, this is the node's hardware.
        boots_without_waifud(&mut node, boot_alone).await;
        node.until("started alone", async || node.hypervisor.starts() == 3)
            .await;
    }
}

#[tokio::test]
async fn a_restarted_metadatad_gets_everything_again_and_no_guest_is_affected() {
    let (node, id) = TestNode::with_instance("web").await;
    for keep_disk in [true, false] {
        node.metadata.restart(keep_disk);
        node.until("served again", async || node.metadata.would_serve(id))
            .await;
    }
    // Even without waifud, because the bundle is on the node.
    node.waifud.set_online(false);
    node.metadata.restart(false);
    node.until("served again", async || node.metadata.would_serve(id))
        .await;
    assert_eq!(node.hypervisor.starts(), 1);
    assert_eq!(node.hypervisor.calls(Op::EnsureOff), 0);
}

#[tokio::test]
async fn no_guest_starts_before_its_documents_and_rules_are_in_place() {
    let node = TestNode::started_after(|node| node.metadata.set_online(false));
    let id = node.put("web");
    let status = node
        .until_status(id, "waiting for metadatad", |s| {
            s.step.as_ref().is_some_and(|step| step.name == "bundle") && s.reason.is_some()
        })
        .await;
    assert_eq!(status.state, InstanceState::Preparing);
    assert_eq!(node.hypervisor.starts(), 0);
    node.metadata.set_online(true);
    node.until_ready(id).await;

    node.stop(id).await;
    node.network.cause_drift("rules flushed");
    node.network.fail(Call::Ensure, 10_000);
    node.network.cause_drift("rules flushed");
    node.until("noticed", async || node.network.state().is_none())
        .await;
    node.waifud.edit(id, |i| i.spec.run = true);
    node.until_status(id, "waiting for the network", |s| {
        s.step.as_ref().is_some_and(|step| step.name == "network") && s.reason.is_some()
    })
    .await;
    assert_eq!(node.hypervisor.starts(), 1);
    node.network.fail(Call::Ensure, 0);
    node.until_ready(id).await;
    assert_eq!(node.ports(), 1);
}

#[tokio::test]
async fn flushed_rules_are_restored_while_guests_run() {
    let (node, id) = TestNode::with_instance("web").await;
    node.network.cause_drift("nft flush ruleset");
    node.until("restored", async || node.ports() == 1).await;
    node.tunnel.lose();
    let ensured = node.network.ensured();
    node.until("routes made again", async || {
        node.network.ensured() > ensured
    })
    .await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
}

#[tokio::test]
async fn a_running_guest_keeps_running_when_every_step_fails() {
    let (node, id) = TestNode::with_instance("web").await;
    node.metadata.set_online(false);
    node.network.fail(Call::Ensure, 1_000_000);
    node.network.cause_drift("gone");
    let status = node
        .until_status(id, "a failed condition", |s| {
            s.conditions.iter().any(|c| !c.ok)
        })
        .await;
    assert_eq!(status.state, InstanceState::Running);
    node.restart().await;
    node.until_status(id, "running", |s| s.state == InstanceState::Running)
        .await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    node.network.fail(Call::Ensure, 0);
    node.metadata.set_online(true);
    node.until_status(id, "without problems", |s| {
        s.reason.is_none() && s.conditions.iter().all(|c| c.ok)
    })
    .await;
}

#[tokio::test]
async fn instances_recover_after_an_outage_of_libvirt() {
    let node = TestNode::started_after(|node| node.hypervisor.set_reachable(false));
    let id = node.put("web");
    let status = node
        .until_status(id, "waiting for libvirt", |s| s.reason.is_some())
        .await;
    assert!(status.reason.unwrap().contains("libvirt"));
    let facts = node.waifud.facts().expect("the node was introduced");
    assert!(facts.conditions.iter().any(|c| c.kind == "hypervisor"));
    node.hypervisor.set_reachable(true);
    node.until_ready(id).await;
    node.hypervisor.set_reachable(false);
    node.until_status(id, "a reason", |s| s.reason.is_some())
        .await;
    assert_eq!(
        node.waifud.status(id).unwrap().state,
        InstanceState::Running,
        "guests keep running without libvirt"
    );
    node.hypervisor.set_reachable(true);
    node.until_status(id, "recovered", |s| s.reason.is_none() && s.ready)
        .await;
    assert_eq!(node.hypervisor.starts(), 1);
}

#[tokio::test]
async fn each_failure_of_a_verb_is_reported_and_retried() {
    let node = TestNode::new();
    // Each operation fails until its failure was reported: one that succeeds at the next attempt may not be.
    let fail = |op| {
        for _ in 0..1000 {
            let failure = HypervisorError::Other {
                operation: "do that",
                message: format!("{op:?} fails in this test"),
            };
            node.hypervisor.fail_next(op, failure);
        }
    };
    let until_reported = async |id, failure: &str| {
        node.until_status(id, failure, |s| {
            let reason = s.reason.as_deref();
            reason.is_some_and(|reason| reason.contains(failure))
        })
        .await;
    };
    let until_each_was_reported = async |id, ops: &[Op]| {
        for op in ops {
            until_reported(id, &format!("{op:?} fails in this test")).await;
            node.hypervisor.clear(*op);
        }
    };
    for op in hypervisor_ops() {
        fail(op);
    }
    node.network.fail(Call::Ensure, u32::MAX);
    node.start();
    let id = node.put("web");
    until_each_was_reported(id, &[Op::Get, Op::Host, Op::EnsureDefined]).await;
    until_reported(id, "injected failure of Ensure").await;
    node.network.fail(Call::Ensure, 0);
    until_each_was_reported(id, &[Op::EnsureStarted]).await;
    node.until_ready(id).await;
    assert_eq!(node.hypervisor.starts(), 1);

    let deletion = [Op::Get, Op::EnsureOff, Op::EnsureAbsent];
    for op in deletion {
        fail(op);
    }
    node.waifud.delete(id);
    until_each_was_reported(id, &deletion).await;
    node.until_destroyed(id).await;
}

#[tokio::test]
async fn an_instance_that_left_the_slice_keeps_running_and_is_reported_as_unmanaged() {
    let (node, id) = TestNode::with_instance("web").await;
    node.waifud.remove_from_slice(id);
    node.until("shown", async || {
        let unmanaged = node.waifud.unmanaged();
        unmanaged.iter().any(|u| u.instance == id && u.running)
            && unmanaged
                .iter()
                .any(|u| u.instance == id && u.volume.is_some())
    })
    .await;
    node.restart().await;
    node.until("its port applied", async || node.ports() == 1)
        .await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    assert_eq!(node.volumes().await, 1);
    // An administrator removes it by hand: its record is removed too.
    node.hypervisor.undefine(id);
    let volumes = waifud_storage::StoragePool::volumes(&node.pool)
        .await
        .unwrap();
    waifud_storage::StoragePool::ensure_volume_absent(&node.pool, &volumes[0].id)
        .await
        .unwrap();
    node.until("forgotten", async || {
        node.ports() == 0 && node.waifud.unmanaged().is_empty()
    })
    .await;
    assert!(!node.metadata.held().contains_key(&id));
}

#[tokio::test]
async fn a_list_that_omits_an_instance_destroys_nothing() {
    let (node, id) = TestNode::with_instance("web").await;
    node.waifud.set_online(false);
    node.waifud.remove_from_slice(id);
    node.waifud.trim();
    node.waifud.set_online(true);
    node.until("shown", async || !node.waifud.unmanaged().is_empty())
        .await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    assert_eq!(node.volumes().await, 1);
}

#[tokio::test]
async fn an_unknown_domain_is_kept_and_reported() {
    let node = TestNode::new();
    let stranger = InstanceId::generate();
    node.hypervisor
        .ensure_defined(&waifud_hypervisor::conformance::diskless_spec(
            stranger, "stranger",
        ))
        .await
        .unwrap();
    node.hypervisor.ensure_started(stranger).await.unwrap();
    node.start();
    node.run_one("web").await;
    node.until("shown", async || {
        node.waifud
            .unmanaged()
            .iter()
            .any(|u| u.instance == stranger)
    })
    .await;
    assert_eq!(node.domain(stranger).await, Some(DomainState::Running));
}

#[tokio::test]
async fn a_deletion_of_an_older_copy_is_not_applied() {
    let node = TestNode::started();
    let mut instance = node.instance("web");
    instance.epoch = Epoch(2);
    let (id, name) = (instance.id, instance.name.clone());
    node.waifud.put(instance);
    node.until_ready(id).await;
    node.waifud.add_tombstone(Tombstone {
        instance: id,
        name: name.clone(),
        epoch: Epoch(1),
    });
    // It is managed as before.
    node.waifud.edit(id, |i| i.spec.protected = true);
    node.until_status(id, "kept", |s| {
        s.observed_generation.0 == 2 && s.state == InstanceState::Running
    })
    .await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    assert!(node.waifud.destroyed().is_empty());
    node.waifud.add_tombstone(Tombstone {
        instance: id,
        name,
        epoch: Epoch(2),
    });
    node.until_destroyed(id).await;
}

#[tokio::test]
async fn a_deletion_of_an_absent_instance_is_confirmed() {
    let node = TestNode::started();
    let id = InstanceId::generate();
    node.waifud.add_tombstone(Tombstone {
        instance: id,
        name: "ghost".parse().unwrap(),
        epoch: Epoch(1),
    });
    node.until_destroyed(id).await;
}

#[tokio::test]
async fn an_instance_fails_while_a_foreign_domain_has_its_name() {
    let node = TestNode::started_after(|node| node.hypervisor.add_foreign("web"));
    let id = node.put("web");
    let status = node.until_state(id, InstanceState::Failed).await;
    let taken = HypervisorError::NameTaken {
        name: "web".to_owned(),
    };
    assert_eq!(status.reason, Some(taken.to_string()));
    node.delete(id).await;
}

#[tokio::test]
async fn a_new_bridge_of_the_host_is_reported_before_the_next_periodic_facts() {
    let node = TestNode::started_after(|node| {
        node.settings.timing.facts = std::time::Duration::from_hours(1);
    });
    let bridges = || node.waifud.facts().map(|facts| facts.bridges);
    node.until("the first facts", async || bridges().is_some())
        .await;
    node.network.set_facts(waifud_network::HostNetworkFacts {
        bridges: vec!["br0".to_owned()],
        ..Default::default()
    });
    node.until("a report of the bridge", async || {
        bridges().is_some_and(|names| names.contains(&"br0".to_owned()))
    })
    .await;
}

#[tokio::test]
async fn a_node_reports_its_boot_id() {
    let node = TestNode::started();
    let boot_id = async || {
        let boot = node.host.boot_id();
        assert!(boot.is_some());
        node.until("reported", async || node.waifud.boot() == boot)
            .await;
        boot
    };
    let first = boot_id().await;
    node.restart().await;
    assert_eq!(boot_id().await, first, "only the agent was restarted");
    node.kill().await;
    node.host.reboot();
    node.start();
    assert_ne!(boot_id().await, first);
}
