//! What an agent must survive, and what it must never do: its own death at any point, others' absence, stale orders.

use std::time::{Duration, Instant};

use waifud_agent::BootAlone;
use waifud_agent::interfaces::HostPower;
use waifud_api::agent::Tombstone;
use waifud_hypervisor::fake::Op;
use waifud_hypervisor::{DomainState, Hypervisor, HypervisorError};
use waifud_network::fake::Call;
use waifud_storage::fake::Op as PoolOp;
use waifud_types::{Epoch, InstanceId, InstanceState};

use crate::world::World;

/// Kills the agent at a growing number of polls of its work, and starts a new one, until a whole life fits between two
/// kills; so it is killed around every step of the life.
async fn killed_at_every_step(delete: bool) {
    for micros in (0..20_000).step_by(250) {
        let world = World::new();
        let instance = world.instance("web");
        let id = instance.id;
        world.waifud.put(instance);
        world.start();
        if delete {
            world.until_ready(id).await;
            world.waifud.delete(id);
        }
        let until = Instant::now() + Duration::from_micros(micros);
        while Instant::now() < until {
            tokio::task::yield_now().await;
        }
        world.restart().await;
        if delete {
            world.until_destroyed(id).await;
        } else {
            world.until_ready(id).await;
            assert_eq!(
                world.hypervisor.starts(),
                1,
                "started twice after {micros} µs"
            );
            assert_eq!(world.volumes().await, 1);
            assert_eq!(world.ports(), 1);
            assert!(world.metadata.would_serve(id));
        }
        world.kill().await;
    }
}

#[tokio::test]
async fn a_creation_continues_after_the_agent_is_killed_at_any_point() {
    killed_at_every_step(false).await;
}

#[tokio::test]
async fn a_deletion_continues_after_the_agent_is_killed_at_any_point() {
    killed_at_every_step(true).await;
}

/// Each verb that a creation calls.
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
async fn each_verb_continues_after_the_agent_is_killed_inside_it() {
    inside_each_verb(async |world, id, release| {
        world.kill().await;
        release();
        world.start();
        world.until_ready(id).await;
        assert_eq!(world.hypervisor.starts(), 1);
        world.delete(id).await;
    })
    .await;
}

#[tokio::test]
async fn a_deletion_during_each_step_of_a_creation_leaves_nothing() {
    // Steps that only wait are given up in the middle; the others are waited for.
    inside_each_verb(async |world, id, release| {
        world.waifud.delete(id);
        release();
        world.until_destroyed(id).await;
        assert_eq!((world.volumes().await, world.ports()), (0, 0));
    })
    .await;
}

/// Creates an instance in a world of its own for each verb, until that verb hangs; then it is `then`'s turn, who
/// releases the verb.
async fn inside_each_verb(then: impl AsyncFn(&World, InstanceId, &dyn Fn())) {
    for op in hypervisor_ops() {
        let world = World::new();
        world.hypervisor.hang(op);
        let id = begin(&world, async || world.hypervisor.calls(op) > 0).await;
        then(&world, id, &|| world.hypervisor.release(op)).await;
    }
    for op in pool_ops() {
        let world = World::new();
        world.pool.hang(op);
        let id = begin(&world, async || world.pool.calls(op) > 0).await;
        then(&world, id, &|| world.pool.release(op)).await;
    }
}

async fn begin(world: &World, inside: impl AsyncFn() -> bool) -> InstanceId {
    world.start();
    let instance = world.instance("web");
    let id = instance.id;
    world.waifud.put(instance);
    world.until("inside", inside).await;
    id
}

#[tokio::test]
async fn a_stalled_download_shows_its_progress_and_can_be_cancelled() {
    let world = World::new();
    world.waifud.stall_downloads(Some(1024));
    world.start();
    let instance = world.instance("web");
    let id = instance.id;
    world.waifud.put(instance);
    let status = world
        .until_status(id, "downloading", |s| {
            s.step.as_ref().is_some_and(|step| step.percent.is_some())
        })
        .await;
    assert_eq!(status.state, InstanceState::Preparing);
    assert_eq!(status.step.unwrap().name, "image");
    world.waifud.delete(id);
    world.until_destroyed(id).await;
    world.waifud.stall_downloads(None);
    world.run_one("db").await;
}

#[tokio::test]
async fn a_restarted_agent_takes_over_running_guests_without_affecting_them() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    let defined = world.hypervisor.calls(Op::EnsureDefined);
    for _ in 0..3 {
        world.restart().await;
        let reports = world.waifud.status_history(id).len();
        world
            .until("heard of again", async || {
                world.waifud.status_history(id).len() > reports
            })
            .await;
        let status = world.waifud.status(id).unwrap();
        assert_eq!(status.state, InstanceState::Running);
        assert!(status.ready, "what was proven stays proven");
    }
    assert_eq!(world.hypervisor.starts(), 1);
    assert_eq!(world.hypervisor.calls(Op::EnsureDefined), defined);
    assert_eq!(world.hypervisor.calls(Op::EnsureOff), 0);
}

#[tokio::test]
async fn without_waifud_a_guest_keeps_running_and_changes_are_reported_later() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.waifud.set_online(false);
    world.hypervisor.crash(id);
    world
        .until("restarted", async || world.hypervisor.starts() == 2)
        .await;
    world.hypervisor.power_off(id);
    world.waifud.delete(id);
    world.waifud.set_online(true);
    world.until_destroyed(id).await;
}

#[tokio::test]
async fn a_node_that_may_not_start_alone_waits_for_waifud() {
    let mut world = World::new();
    world.start();
    world.run_one("web").await;
    world.kill().await;
    world.hypervisor.host_crash();
    world.waifud.set_online(false);
    world.settings.boot_alone = BootAlone::Never;
    world.start();
    let calls = world.hypervisor.calls(Op::Get);
    world
        .until("looked a few times", async || {
            world.hypervisor.calls(Op::Get) > calls + 5
        })
        .await;
    assert_eq!(world.hypervisor.starts(), 1);
    world.waifud.set_online(true);
    world
        .until("started", async || world.hypervisor.starts() == 2)
        .await;

    world.kill().await;
    world.hypervisor.host_crash();
    world.waifud.set_online(false);
    world.settings.boot_alone = BootAlone::Wait(Duration::from_millis(50));
    world.start();
    world
        .until("started alone", async || world.hypervisor.starts() == 3)
        .await;
}

#[tokio::test]
async fn a_restarted_metadatad_gets_everything_again_and_no_guest_is_affected() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    for keep_disk in [true, false] {
        world.metadata.restart(keep_disk);
        world
            .until("served again", async || world.metadata.would_serve(id))
            .await;
    }
    // Also with waifud away: the bundle is on the node.
    world.waifud.set_online(false);
    world.metadata.restart(false);
    world
        .until("served again", async || world.metadata.would_serve(id))
        .await;
    assert_eq!(world.hypervisor.starts(), 1);
    assert_eq!(world.hypervisor.calls(Op::EnsureOff), 0);
}

#[tokio::test]
async fn no_guest_starts_before_its_documents_and_rules_are_in_place() {
    let world = World::new();
    world.metadata.set_online(false);
    world.start();
    let instance = world.instance("web");
    let id = instance.id;
    world.waifud.put(instance);
    let status = world
        .until_status(id, "waiting for metadatad", |s| {
            s.step.as_ref().is_some_and(|step| step.name == "bundle") && s.reason.is_some()
        })
        .await;
    assert_eq!(status.state, InstanceState::Preparing);
    assert_eq!(world.hypervisor.starts(), 0);
    world.metadata.set_online(true);
    world.until_ready(id).await;

    world.waifud.edit(id, |i| i.spec.run = false);
    world.until_state(id, InstanceState::Stopped).await;
    world.network.cause_drift("rules flushed");
    world.network.fail(Call::Ensure, 10_000);
    world.network.cause_drift("rules flushed");
    world
        .until("noticed", async || world.network.state().is_none())
        .await;
    world.waifud.edit(id, |i| i.spec.run = true);
    world
        .until_status(id, "waiting for the network", |s| {
            s.step.as_ref().is_some_and(|step| step.name == "network") && s.reason.is_some()
        })
        .await;
    assert_eq!(world.hypervisor.starts(), 1);
    world.network.fail(Call::Ensure, 0);
    world.until_ready(id).await;
    assert_eq!(world.ports(), 1);
}

#[tokio::test]
async fn flushed_rules_are_restored_while_guests_run() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.network.cause_drift("nft flush ruleset");
    world.until("put back", async || world.ports() == 1).await;
    world.tunnel.lose();
    let ensured = world.network.ensured();
    world
        .until("routes made again", async || {
            world.network.ensured() > ensured
        })
        .await;
    assert_eq!(world.domain(id).await, Some(DomainState::Running));
}

#[tokio::test]
async fn a_running_guest_keeps_running_when_every_step_fails() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.metadata.set_online(false);
    world.network.fail(Call::Ensure, 1_000_000);
    world.network.cause_drift("gone");
    let status = world
        .until_status(id, "told", |s| s.conditions.iter().any(|c| !c.ok))
        .await;
    assert_eq!(status.state, InstanceState::Running);
    world.restart().await;
    world
        .until_status(id, "running", |s| s.state == InstanceState::Running)
        .await;
    assert_eq!(world.domain(id).await, Some(DomainState::Running));
    world.network.fail(Call::Ensure, 0);
    world.metadata.set_online(true);
    world
        .until_status(id, "all well", |s| {
            s.reason.is_none() && s.conditions.iter().all(|c| c.ok)
        })
        .await;
}

#[tokio::test]
async fn an_outage_of_libvirt_is_recovered() {
    let world = World::new();
    world.hypervisor.set_reachable(false);
    world.start();
    let instance = world.instance("web");
    let id = instance.id;
    world.waifud.put(instance);
    let status = world
        .until_status(id, "waiting for libvirt", |s| s.reason.is_some())
        .await;
    assert!(status.reason.unwrap().contains("libvirt"));
    let facts = world.waifud.facts().expect("the node was introduced");
    assert!(facts.conditions.iter().any(|c| c.kind == "hypervisor"));
    world.hypervisor.set_reachable(true);
    world.until_ready(id).await;
    world.hypervisor.set_reachable(false);
    world
        .until_status(id, "told why", |s| s.reason.is_some())
        .await;
    assert_eq!(
        world.waifud.status(id).unwrap().state,
        InstanceState::Running,
        "guests don't need libvirt"
    );
    world.hypervisor.set_reachable(true);
    world
        .until_status(id, "well again", |s| s.reason.is_none() && s.ready)
        .await;
    assert_eq!(world.hypervisor.starts(), 1);
}

#[tokio::test]
async fn each_failure_of_a_verb_is_reported_and_retried() {
    let world = World::new();
    let other = |what| HypervisorError::Other {
        what,
        message: "it was told to fail".to_owned(),
    };
    for op in hypervisor_ops() {
        for _ in 0..3 {
            world.hypervisor.fail_next(op, other("a verb"));
        }
    }
    world.network.fail(Call::Ensure, 3);
    world.start();
    let id = world.run_one("web").await;
    assert_eq!(world.hypervisor.starts(), 1);
    for op in [Op::EnsureOff, Op::EnsureAbsent, Op::Get] {
        for _ in 0..3 {
            world.hypervisor.fail_next(op, other("a verb"));
        }
    }
    world.delete(id).await;
}

#[tokio::test]
async fn an_instance_outside_the_slice_keeps_running_with_its_network_and_is_reported_as_unmanaged()
{
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.waifud.remove_from_slice(id);
    world
        .until("shown", async || {
            let unmanaged = world.waifud.unmanaged();
            unmanaged.iter().any(|u| u.instance == id && u.running)
                && unmanaged
                    .iter()
                    .any(|u| u.instance == id && u.volume.is_some())
        })
        .await;
    world.restart().await;
    world
        .until("its port in force", async || world.ports() == 1)
        .await;
    assert_eq!(world.domain(id).await, Some(DomainState::Running));
    assert_eq!(world.volumes().await, 1);
    // An operator removes it by hand: now nothing of it is kept.
    world.hypervisor.undefine(id);
    let volumes = waifud_storage::StoragePool::volumes(&world.pool)
        .await
        .unwrap();
    waifud_storage::StoragePool::ensure_volume_absent(&world.pool, &volumes[0].id)
        .await
        .unwrap();
    world
        .until("forgotten", async || {
            world.ports() == 0 && world.waifud.unmanaged().is_empty()
        })
        .await;
    assert!(!world.metadata.held().contains_key(&id));
}

#[tokio::test]
async fn a_list_that_omits_an_instance_destroys_nothing() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.waifud.set_online(false);
    world.waifud.remove_from_slice(id);
    world.waifud.trim();
    world.waifud.set_online(true);
    world
        .until("shown", async || !world.waifud.unmanaged().is_empty())
        .await;
    assert_eq!(world.domain(id).await, Some(DomainState::Running));
    assert_eq!(world.volumes().await, 1);
}

#[tokio::test]
async fn an_unknown_domain_is_kept_and_reported() {
    let world = World::new();
    let stranger = InstanceId::generate();
    world
        .hypervisor
        .ensure_defined(&waifud_hypervisor::conformance::diskless_spec(
            stranger, "stranger",
        ))
        .await
        .unwrap();
    world.hypervisor.ensure_started(stranger).await.unwrap();
    world.start();
    world.run_one("web").await;
    world
        .until("shown", async || {
            world
                .waifud
                .unmanaged()
                .iter()
                .any(|u| u.instance == stranger)
        })
        .await;
    assert_eq!(world.domain(stranger).await, Some(DomainState::Running));
    // Claimed by being given: its record says the epoch, so nothing is destroyed on a stale order.
}

#[tokio::test]
async fn a_deletion_of_an_older_copy_is_not_applied() {
    let world = World::new();
    world.start();
    let mut instance = world.instance("web");
    instance.epoch = Epoch(2);
    let (id, name) = (instance.id, instance.name.clone());
    world.waifud.put(instance);
    world.until_ready(id).await;
    world.waifud.add_tombstone(Tombstone {
        instance: id,
        name: name.clone(),
        epoch: Epoch(1),
    });
    // It is looked after as before.
    world.waifud.edit(id, |i| i.spec.protected = true);
    world
        .until_status(id, "kept", |s| {
            s.observed_generation.0 == 2 && s.state == InstanceState::Running
        })
        .await;
    assert_eq!(world.domain(id).await, Some(DomainState::Running));
    assert!(world.waifud.destroyed().is_empty());
    world.waifud.add_tombstone(Tombstone {
        instance: id,
        name,
        epoch: Epoch(2),
    });
    world.until_destroyed(id).await;
}

#[tokio::test]
async fn a_deletion_of_an_absent_instance_is_confirmed() {
    let world = World::new();
    world.start();
    let id = InstanceId::generate();
    world.waifud.add_tombstone(Tombstone {
        instance: id,
        name: "ghost".parse().unwrap(),
        epoch: Epoch(1),
    });
    world.until_destroyed(id).await;
}

#[tokio::test]
async fn two_copies_of_a_name_wait_for_each_other() {
    let world = World::new();
    world.hypervisor.add_foreign("web");
    world.start();
    let instance = world.instance("web");
    let id = instance.id;
    world.waifud.put(instance);
    let status = world.until_state(id, InstanceState::Failed).await;
    assert!(status.reason.unwrap().contains("not created by waifud"));
    world.delete(id).await;
}

#[tokio::test]
async fn a_new_bridge_of_the_host_is_reported_long_before_the_next_gathering_of_facts() {
    let mut world = World::new();
    world.settings.timing.facts = std::time::Duration::from_hours(1);
    world.start();
    let bridges = || world.waifud.facts().map(|facts| facts.bridges);
    world
        .until("the first facts", async || bridges().is_some())
        .await;
    world.network.set_facts(waifud_network::HostNetworkFacts {
        bridges: vec!["br0".to_owned()],
        ..Default::default()
    });
    world
        .until("the bridge to be told", async || {
            bridges().is_some_and(|names| names.contains(&"br0".to_owned()))
        })
        .await;
}

#[tokio::test]
async fn a_node_reports_its_boot_id() {
    let world = World::new();
    world.start();
    let said = async || {
        let boot = world.host.boot_id();
        assert!(boot.is_some());
        world
            .until("said", async || world.waifud.boot() == boot)
            .await;
        boot
    };
    let first = said().await;
    world.restart().await;
    assert_eq!(said().await, first, "only the agent was restarted");
    world.kill().await;
    world.host.reboot();
    world.start();
    assert_ne!(said().await, first);
}
