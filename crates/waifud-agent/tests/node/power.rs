//! Power and size on a node of fakes: forced stops, reboots, growing disks, a host that shuts down.

use std::time::Duration;

use tokio::sync::broadcast;
use waifud_api::agent::InstanceReport;
use waifud_hypervisor::fake::Op;
use waifud_hypervisor::{DomainEvent, DomainEventKind, DomainState, Hypervisor, OffReason};
use waifud_storage::StoragePool;
use waifud_types::status::StoppedBy;
use waifud_types::{ByteSize, InstanceId, InstanceState};

use crate::test_node::TestNode;

/// The instances whose domains were started, in order.
fn started(events: &mut broadcast::Receiver<DomainEvent>) -> Vec<InstanceId> {
    let mut started = Vec::new();
    while let Ok(event) = events.try_recv() {
        if event.kind == DomainEventKind::Started {
            started.push(event.id);
        }
    }
    started
}

#[tokio::test]
async fn a_forced_stop_does_not_ask_the_guest_and_may_follow_a_clean_one() {
    let (node, id) = TestNode::with_instance("web").await;
    node.hypervisor.set_ignores_shutdown(id, true);
    node.waifud.edit(id, |i| {
        i.spec.run = false;
        i.spec.power.force_off = true;
    });
    node.until_stopped_by(id, StoppedBy::User).await;
    assert_eq!(node.hypervisor.calls(Op::RequestShutdown), 0);
    node.is_off(id, OffReason::Destroyed).await;
    node.waifud.edit(id, |i| {
        i.spec.run = true;
        i.spec.power.force_off = false;
    });
    node.until_ready(id).await;
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
        let node = TestNode::started();
        let id = node.run_one("web").await;
        // So that the reboot has to define the domain again.
        node.waifud.edit(id, |i| i.spec.cpus = 2);
        node.until_status(id, "to need a restart", |s| s.restart_needed == ["cpus"])
            .await;
        node.kill_inside(op, || {
            node.waifud.edit(id, |i| i.spec.power.reboots += 1);
        })
        .await;
        node.until_status(id, "rebooted", |s| {
            s.state == InstanceState::Running && s.ready && s.restart_needed.is_empty()
        })
        .await;
        node.restart().await;
        node.until_ready(id).await;
        assert_eq!(node.hypervisor.starts(), 2, "killed at {op:?}");
        assert_eq!(node.hypervisor.spec(id).unwrap().cpus, 2);
    }
}

#[tokio::test]
async fn a_reboot_forces_off_an_unresponsive_guest_or_on_request() {
    for force in [false, true] {
        let node = TestNode::started();
        let id = node.run_one("web").await;
        node.hypervisor.set_ignores_shutdown(id, true);
        node.waifud.edit(id, |i| {
            i.spec.power.reboots += 1;
            i.spec.power.force_reboot = force;
        });
        node.until("started again", async || node.hypervisor.starts() == 2)
            .await;
        node.until_ready(id).await;
        let asked = node.hypervisor.calls(Op::RequestShutdown);
        assert_eq!(asked == 0, force);
        assert!(
            node.waifud
                .status_history(id)
                .iter()
                .any(|s| s.state == InstanceState::Stopping)
        );
    }
}

#[tokio::test]
async fn a_reboot_starts_a_guest_that_powered_itself_off() {
    let (node, id) = TestNode::with_instance("web").await;
    node.hypervisor.power_off(id);
    node.until_stopped_by(id, StoppedBy::Guest).await;
    node.waifud.edit(id, |i| i.spec.power.reboots += 1);
    node.until_ready(id).await;
    assert_eq!(node.hypervisor.starts(), 2);
}

#[tokio::test]
async fn a_node_that_receives_an_instance_ignores_its_past_reboots() {
    let node = TestNode::started();
    let mut instance = node.instance("web");
    instance.spec.power.reboots = 5;
    let id = node.run(instance).await;
    // The records are lost and the guest keeps running.
    node.kill().await;
    std::fs::remove_dir_all(node.settings.state_dir.join("records")).unwrap();
    node.start();
    node.until_ready(id).await;
    // A restored database has a lower count. Its next request takes effect.
    let before = node.waifud.status(id).unwrap().observed_generation;
    node.waifud.edit(id, |i| i.spec.power.reboots = 3);
    node.until_status(id, "taken up", |s| s.observed_generation > before)
        .await;
    node.waifud.edit(id, |i| i.spec.power.reboots = 4);
    node.until("rebooted", async || node.hypervisor.starts() == 2)
        .await;
    node.until_ready(id).await;
}

#[tokio::test]
async fn a_disk_grows_under_a_running_guest_and_under_one_that_is_off() {
    let (node, id) = TestNode::with_instance("web").await;
    let size = ByteSize::mib(64);
    node.hypervisor.hang(Op::EnsureDiskSize);
    node.waifud.edit(id, |i| i.spec.disks[0].size_bytes = size);
    node.until("being grown", async || {
        node.hypervisor.calls(Op::EnsureDiskSize) > 0
    })
    .await;
    node.restart().await;
    node.hypervisor.release(Op::EnsureDiskSize);
    node.until("grown", async || {
        node.hypervisor.disk_size(id, "root") == Some(size)
    })
    .await;
    node.until_ready(id).await;
    assert_eq!(node.hypervisor.starts(), 1, "it ran on");
    node.stop(id).await;
    let size = ByteSize::mib(96);
    node.waifud.edit(id, |i| i.spec.disks[0].size_bytes = size);
    node.until("grown in its pool", async || {
        let volumes = node.pool.volumes().await.unwrap();
        volumes[0].size == Some(size)
    })
    .await;
}

#[tokio::test]
async fn a_guest_keeps_running_when_its_disk_cannot_be_grown() {
    let (node, id) = TestNode::with_instance("web").await;
    let error = || waifud_hypervisor::HypervisorError::Other {
        operation: "block resize",
        message: "no".to_owned(),
    };
    for _ in 0..1000 {
        node.hypervisor.fail_next(Op::EnsureDiskSize, error());
    }
    node.waifud
        .edit(id, |i| i.spec.disks[0].size_bytes = ByteSize::mib(64));
    let status = node
        .until_status(id, "the failure", |s| {
            let reason = s.reason.as_deref();
            reason.is_some_and(|reason| reason.contains("block resize"))
        })
        .await;
    assert_eq!(status.state, InstanceState::Running);
    node.hypervisor.clear(Op::EnsureDiskSize);
    node.until("grown after all", async || {
        node.hypervisor.disk_size(id, "root").is_some()
    })
    .await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    assert_eq!(node.hypervisor.starts(), 1);
    assert_eq!(node.hypervisor.calls(Op::EnsureOff), 0);
    assert_eq!(node.hypervisor.calls(Op::RequestShutdown), 0);
}

#[tokio::test]
async fn a_guest_stopped_by_a_host_shutdown_starts_again_only_with_the_host() {
    let (node, clean) = TestNode::with_instance("clean").await;
    let pulled = node.run_one("pulled").await;
    node.host.set_stopping(true);
    // As a script on the host may do it.
    node.hypervisor.power_off(clean);
    node.hypervisor.destroy(pulled);
    for id in [clean, pulled] {
        let status = node.until_stopped_by(id, StoppedBy::Host).await;
        assert!(status.reason.unwrap().contains("shutting down"));
    }
    node.restart().await;
    node.until_state(clean, InstanceState::Stopped).await;
    assert_eq!(node.hypervisor.starts(), 2);
    node.kill().await;
    node.host.set_stopping(false);
    node.start();
    node.until_ready(clean).await;
    node.until_ready(pulled).await;
}

#[tokio::test]
async fn at_boot_the_higher_priority_starts_first() {
    let node = TestNode::started();
    let mut ids = Vec::new();
    for (name, priority) in [("web", 0), ("db", 10), ("cache", 5)] {
        let mut instance = node.instance(name);
        instance.spec.priority = priority;
        ids.push((priority, instance.id));
        node.waifud.put(instance);
    }
    for (_, id) in &ids {
        node.until_ready(*id).await;
    }
    node.kill().await;
    node.hypervisor.host_crash();
    let mut events = node.hypervisor.events();
    node.start();
    node.until("all started again", async || node.hypervisor.starts() == 6)
        .await;
    let started = started(&mut events);
    ids.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
    let expected: Vec<_> = ids.into_iter().map(|(_, id)| id).collect();
    assert_eq!(started, expected);
}

#[tokio::test]
async fn after_a_canceled_host_shutdown_the_higher_priority_starts_first_too() {
    let node = TestNode::started();
    let mut ids = Vec::new();
    for (name, priority) in [("web", 0), ("db", 10)] {
        let mut instance = node.instance(name);
        instance.spec.priority = priority;
        ids.push(instance.id);
        node.waifud.put(instance);
    }
    for id in &ids {
        node.until_ready(*id).await;
    }
    node.host.set_stopping(true);
    for id in &ids {
        node.hypervisor.power_off(*id);
    }
    for id in &ids {
        node.until_stopped_by(*id, StoppedBy::Host).await;
    }
    let mut events = node.hypervisor.events();
    node.host.set_stopping(false);
    node.until("both started again", async || node.hypervisor.starts() == 4)
        .await;
    let started = started(&mut events);
    ids.reverse();
    assert_eq!(started, ids);
}

#[tokio::test]
async fn a_crash_loop_reports_its_count_and_the_next_start() {
    let node = TestNode::started_after(|node| {
        node.settings.timing.restart_min = Duration::from_millis(400);
        node.settings.timing.restart_max = Duration::from_millis(400);
    });
    let id = node.run_one("web").await;
    for _ in 0..2 {
        node.hypervisor.crash(id);
        let status = node.until_stopped_by(id, StoppedBy::Crash).await;
        let reason = status.reason.unwrap();
        assert!(reason.contains("it crashed") && reason.contains("the next start is attempted at"));
        node.until_ready(id).await;
    }
    let status = node
        .until_status(id, "in a loop", |s| {
            s.conditions.iter().any(|c| c.reason == "crash-loop")
        })
        .await;
    let looping = status.conditions.iter().find(|c| c.kind == "stable");
    assert!(looping.unwrap().message.contains("2 times"));
    // The count survives a restart of the agent, and a user's request to start ends it.
    node.restart().await;
    node.until_ready(id).await;
    node.waifud.edit(id, |i| i.spec.power.reboots += 1);
    node.until_status(id, "no longer in a loop", |s| {
        s.ready && s.conditions.iter().all(|c| c.reason != "crash-loop")
    })
    .await;
}

#[tokio::test]
async fn a_full_pool_is_reported_while_it_pauses_a_guest() {
    let (node, id) = TestNode::with_instance("web").await;
    let status = node.pause_for_space(id).await;
    let reason = status.reason.unwrap();
    assert!(reason.starts_with("pool main is full"), "{reason}");
}

#[tokio::test]
async fn a_guest_that_ran_for_a_while_is_no_longer_in_a_crash_loop() {
    let mut node = TestNode::started_after(|node| {
        node.settings.timing.restart_min = Duration::from_millis(400);
        node.settings.timing.restart_max = Duration::from_millis(400);
    });
    let id = node.run_one("web").await;
    for _ in 0..2 {
        node.hypervisor.crash(id);
        node.until_stopped_by(id, StoppedBy::Crash).await;
        node.until_ready(id).await;
    }
    let in_a_loop = |s: &InstanceReport| s.conditions.iter().any(|c| c.reason == "crash-loop");
    node.until_status(id, "in a loop", in_a_loop).await;

    // From now on, 100 ms are a while.
    node.kill().await;
    node.settings.timing.stable = Duration::from_millis(100);
    node.start();
    node.until_status(id, "stable", |s| s.ready && !in_a_loop(s))
        .await;
    assert_eq!(node.hypervisor.starts(), 3);
    node.hypervisor.crash(id);
    let status = node.until_stopped_by(id, StoppedBy::Crash).await;
    let reason = status.reason.unwrap();
    assert!(reason.contains("it crashed;"), "the count: {reason}");
    let status = node.until_status(id, "ready again", |s| s.ready).await;
    assert!(!in_a_loop(&status), "{:?}", status.conditions);
}
