//! Power and size on a node of fakes: forced stops, reboots, growing disks, a host that goes down.

use crate::world::World;
use waifud_hypervisor::fake::Op;
use waifud_hypervisor::{DomainEventKind, DomainState, Hypervisor, OffReason};
use waifud_storage::StoragePool;
use waifud_types::status::StoppedBy;
use waifud_types::{ByteSize, InstanceState};

#[tokio::test]
async fn a_forced_stop_does_not_ask_the_guest_and_may_follow_a_clean_one() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.hypervisor.set_ignores_shutdown(id, true);
    world.waifud.edit(id, |i| {
        i.spec.run = false;
        i.spec.power.force_off = true;
    });
    let status = world.until_state(id, InstanceState::Stopped).await;
    assert_eq!(status.stopped_by, Some(StoppedBy::User));
    assert_eq!(world.hypervisor.calls(Op::RequestShutdown), 0);
    assert_eq!(
        world.domain(id).await,
        Some(DomainState::Off(OffReason::Destroyed))
    );
    world.waifud.edit(id, |i| {
        i.spec.run = true;
        i.spec.power.force_off = false;
    });
    world.until_ready(id).await;
}

#[tokio::test]
async fn a_reboot_is_done_once_whenever_the_agent_is_killed() {
    let steps = [
        Op::Get,
        Op::RequestShutdown,
        Op::EnsureDefined,
        Op::EnsureStarted,
    ];
    for op in steps {
        let world = World::new();
        world.start();
        let id = world.run_one("web").await;
        // So that the reboot has something to define.
        world.waifud.edit(id, |i| i.spec.cpus = 2);
        world
            .until_status(id, "to need a restart", |s| s.restart_needed == ["cpus"])
            .await;
        world.hypervisor.hang(op);
        let before = world.hypervisor.calls(op);
        world.waifud.edit(id, |i| i.spec.power.reboots += 1);
        world
            .until("the step is at work", async || {
                world.hypervisor.calls(op) > before
            })
            .await;
        world.kill().await;
        world.hypervisor.release(op);
        world.start();
        world
            .until_status(id, "rebooted", |s| {
                s.state == InstanceState::Running && s.ready && s.restart_needed.is_empty()
            })
            .await;
        world.restart().await;
        world.until_ready(id).await;
        assert_eq!(world.hypervisor.starts(), 2, "killed at {op:?}");
        assert_eq!(world.hypervisor.spec(id).unwrap().cpus, 2);
    }
}

#[tokio::test]
async fn a_reboot_forces_off_an_unresponsive_guest_or_on_request() {
    for force in [false, true] {
        let world = World::new();
        world.start();
        let id = world.run_one("web").await;
        world.hypervisor.set_ignores_shutdown(id, true);
        world.waifud.edit(id, |i| {
            i.spec.power.reboots += 1;
            i.spec.power.force_reboot = force;
        });
        world
            .until("started again", async || world.hypervisor.starts() == 2)
            .await;
        world.until_ready(id).await;
        let asked = world.hypervisor.calls(Op::RequestShutdown);
        assert_eq!(asked == 0, force);
        assert!(
            world
                .waifud
                .status_history(id)
                .iter()
                .any(|s| s.state == InstanceState::Stopping)
        );
    }
}

#[tokio::test]
async fn a_reboot_starts_a_guest_that_powered_itself_off() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.hypervisor.power_off(id);
    let status = world.until_state(id, InstanceState::Stopped).await;
    assert_eq!(status.stopped_by, Some(StoppedBy::Guest));
    world.waifud.edit(id, |i| i.spec.power.reboots += 1);
    world.until_ready(id).await;
    assert_eq!(world.hypervisor.starts(), 2);
}

#[tokio::test]
async fn a_node_that_receives_an_instance_ignores_its_past_reboots() {
    let world = World::new();
    world.start();
    let mut instance = world.instance("web");
    instance.spec.power.reboots = 5;
    let id = instance.id;
    world.waifud.put(instance);
    world.until_ready(id).await;
    // The records are lost and the guest runs on.
    world.kill().await;
    std::fs::remove_dir_all(world.settings.state_dir.join("records")).unwrap();
    world.start();
    world.until_ready(id).await;
    // A restored database has counted less; its next order counts.
    let before = world.waifud.status(id).unwrap().observed_generation;
    world.waifud.edit(id, |i| i.spec.power.reboots = 3);
    world
        .until_status(id, "taken up", |s| s.observed_generation > before)
        .await;
    world.waifud.edit(id, |i| i.spec.power.reboots = 4);
    world
        .until("rebooted", async || world.hypervisor.starts() == 2)
        .await;
    world.until_ready(id).await;
}

#[tokio::test]
async fn a_disk_grows_under_a_running_guest_and_under_one_that_is_off() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    let size = ByteSize::mib(64);
    world.hypervisor.hang(Op::EnsureDiskSize);
    world.waifud.edit(id, |i| i.spec.disks[0].size_bytes = size);
    world
        .until("being grown", async || {
            world.hypervisor.calls(Op::EnsureDiskSize) > 0
        })
        .await;
    world.restart().await;
    world.hypervisor.release(Op::EnsureDiskSize);
    world
        .until("grown", async || {
            world.hypervisor.disk_size(id, "root") == Some(size)
        })
        .await;
    world.until_ready(id).await;
    assert_eq!(world.hypervisor.starts(), 1, "it ran on");
    world.waifud.edit(id, |i| i.spec.run = false);
    world.until_state(id, InstanceState::Stopped).await;
    let size = ByteSize::mib(96);
    world.waifud.edit(id, |i| i.spec.disks[0].size_bytes = size);
    world
        .until("grown in its pool", async || {
            let volumes = world.pool.volumes().await.unwrap();
            volumes[0].size == Some(size)
        })
        .await;
}

#[tokio::test]
async fn a_guest_keeps_running_when_its_disk_cannot_be_grown() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    let error = || waifud_hypervisor::HypervisorError::Other {
        what: "block resize",
        message: "no".to_owned(),
    };
    world.hypervisor.fail_next(Op::EnsureDiskSize, error());
    world.hypervisor.fail_next(Op::EnsureDiskSize, error());
    world
        .waifud
        .edit(id, |i| i.spec.disks[0].size_bytes = ByteSize::mib(64));
    world
        .until("grown after all", async || {
            world.hypervisor.disk_size(id, "root").is_some()
        })
        .await;
    assert_eq!(world.domain(id).await, Some(DomainState::Running));
}

#[tokio::test]
async fn a_guest_stopped_by_a_host_shutdown_starts_again_only_with_the_host() {
    let world = World::new();
    world.start();
    let clean = world.run_one("clean").await;
    let pulled = world.run_one("pulled").await;
    world.host.set_stopping(true);
    // As somebody else's script may do it; or ours.
    world.hypervisor.power_off(clean);
    world.hypervisor.destroy(pulled);
    for id in [clean, pulled] {
        let status = world.until_state(id, InstanceState::Stopped).await;
        assert_eq!(status.stopped_by, Some(StoppedBy::Host));
        assert!(status.reason.unwrap().contains("shutting down"));
    }
    world.restart().await;
    world.until_state(clean, InstanceState::Stopped).await;
    assert_eq!(world.hypervisor.starts(), 2);
    world.kill().await;
    world.host.set_stopping(false);
    world.start();
    world.until_ready(clean).await;
    world.until_ready(pulled).await;
}

#[tokio::test]
async fn at_boot_the_higher_priority_starts_first() {
    let world = World::new();
    world.start();
    let mut ids = Vec::new();
    for (name, priority) in [("web", 0), ("db", 10), ("cache", 5)] {
        let mut instance = world.instance(name);
        instance.spec.priority = priority;
        ids.push((priority, instance.id));
        world.waifud.put(instance);
    }
    for (_, id) in &ids {
        world.until_ready(*id).await;
    }
    world.kill().await;
    world.hypervisor.host_crash();
    let mut events = world.hypervisor.events();
    world.start();
    world
        .until("all started again", async || world.hypervisor.starts() == 6)
        .await;
    let mut started = Vec::new();
    while let Ok(event) = events.try_recv() {
        if event.kind == DomainEventKind::Started {
            started.push(event.id);
        }
    }
    ids.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
    let expected: Vec<_> = ids.into_iter().map(|(_, id)| id).collect();
    assert_eq!(started, expected);
}

#[tokio::test]
async fn after_a_cancelled_host_shutdown_the_higher_priority_starts_first_too() {
    let world = World::new();
    world.start();
    let mut ids = Vec::new();
    for (name, priority) in [("web", 0), ("db", 10)] {
        let mut instance = world.instance(name);
        instance.spec.priority = priority;
        ids.push(instance.id);
        world.waifud.put(instance);
    }
    for id in &ids {
        world.until_ready(*id).await;
    }
    world.host.set_stopping(true);
    for id in &ids {
        world.hypervisor.power_off(*id);
    }
    for id in &ids {
        let status = world.until_state(*id, InstanceState::Stopped).await;
        assert_eq!(status.stopped_by, Some(StoppedBy::Host));
    }
    let mut events = world.hypervisor.events();
    world.host.set_stopping(false);
    world
        .until("both started again", async || {
            world.hypervisor.starts() == 4
        })
        .await;
    let mut started = Vec::new();
    while let Ok(event) = events.try_recv() {
        if event.kind == DomainEventKind::Started {
            started.push(event.id);
        }
    }
    ids.reverse();
    assert_eq!(started, ids);
}

#[tokio::test]
async fn a_crash_loop_reports_its_count_and_the_next_start() {
    let mut world = World::new();
    world.settings.timing.restart_min = std::time::Duration::from_millis(400);
    world.settings.timing.restart_max = std::time::Duration::from_millis(400);
    world.start();
    let id = world.run_one("web").await;
    for _ in 0..2 {
        world.hypervisor.crash(id);
        let status = world.until_state(id, InstanceState::Stopped).await;
        assert_eq!(status.stopped_by, Some(StoppedBy::Crash));
        let reason = status.reason.unwrap();
        assert!(reason.contains("it crashed") && reason.contains("the next start is attempted at"));
        world.until_ready(id).await;
    }
    let status = world
        .until_status(id, "in a loop", |s| {
            s.conditions.iter().any(|c| c.reason == "crash-loop")
        })
        .await;
    let looping = status.conditions.iter().find(|c| c.kind == "stable");
    assert!(looping.unwrap().message.contains("2 times"));
    // The count survives the agent, and its owner's word ends it.
    world.restart().await;
    world.until_ready(id).await;
    world.waifud.edit(id, |i| i.spec.power.reboots += 1);
    world
        .until_status(id, "no longer in a loop", |s| {
            s.ready && s.conditions.iter().all(|c| c.reason != "crash-loop")
        })
        .await;
}

#[tokio::test]
async fn a_full_pool_is_reported_while_it_pauses_a_guest() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.pool.set_full(true);
    world.hypervisor.pause(id, true);
    let status = world.until_state(id, InstanceState::Paused).await;
    let reason = status.reason.unwrap();
    assert!(reason.starts_with("pool main is full"), "{reason}");
}
