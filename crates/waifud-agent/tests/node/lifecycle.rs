//! An instance's life on a node of fakes: created, ready, stopped, crashed, deleted.

use std::collections::HashSet;
use std::time::Duration;

use crate::world::{World, cloud_init_done, guest_with};
use waifud_api::metadatad::{CloudInitEvent, Observed};
use waifud_hypervisor::fake::Op;
use waifud_hypervisor::{DomainState, Hypervisor, HypervisorError, OffReason};
use waifud_types::evidence::ModuleResult;
use waifud_types::spec::RestartPolicy;
use waifud_types::status::{CloudInitState, ReadyBy, StoppedBy};
use waifud_types::{ByteSize, InstanceState};

#[tokio::test]
async fn an_instance_is_created_becomes_ready_and_is_deleted_without_leftovers() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    let status = world.waifud.status(id).unwrap();
    assert_eq!(status.ready_by, Some(ReadyBy::GuestAgent));
    assert_eq!(status.cloud_init.state, CloudInitState::Done);
    assert_eq!(status.cloud_init.instance_id.as_deref(), Some("i-1"));
    assert!(status.hypervisor.is_some());
    assert!(world.metadata.would_serve(id));
    let ports = world.network.state().unwrap().ports;
    assert_eq!(ports.len(), 1);
    assert_eq!(
        world.hypervisor.spec(id).unwrap().nics[0].tap,
        ports[0].tap,
        "the domain's nic is the port that the rules speak of"
    );
    world.delete(id).await;
    assert_eq!(world.ports(), 0);
    assert_eq!(world.hypervisor.starts(), 1);
}

#[tokio::test]
async fn states_go_from_preparing_through_starting_to_running_and_never_back() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    let mut states: Vec<InstanceState> = world
        .waifud
        .status_history(id)
        .iter()
        .map(|s| s.state)
        .collect();
    states.dedup();
    for pair in states.windows(2) {
        assert!(pair[0].may_become(pair[1]), "{states:?}");
    }
    assert_eq!(states.last(), Some(&InstanceState::Running));
    let reports = world.waifud.status_history(id);
    assert!(
        reports
            .iter()
            .all(|s| !s.ready || s.state == InstanceState::Running)
    );
}

#[tokio::test]
async fn many_at_once_share_one_download_and_each_gets_its_own() {
    let world = World::new();
    world.start();
    let ids: Vec<_> = (0..20)
        .map(|n| {
            let mut instance = world.instance(&format!("web-{n}"));
            instance.spec.nics[0].address = Some([10, 144, 1, 50 + n].into());
            instance.spec.nics[0].mac = waifud_types::MacAddr::of_guest([1, 1, n]);
            let id = instance.id;
            world.waifud.put(instance);
            id
        })
        .collect();
    for id in &ids {
        world.until_ready(*id).await;
    }
    assert_eq!(world.waifud.fetches(), 1);
    assert_eq!(world.hypervisor.starts(), 20);
    assert_eq!(world.ports(), 20);
    for id in ids {
        world.delete(id).await;
    }
    assert_eq!((world.volumes().await, world.ports()), (0, 0));
}

#[tokio::test]
async fn an_image_whose_import_failed_is_not_downloaded_again() {
    let world = World::new();
    let passing = waifud_storage::StorageError::Tool {
        tool: "qemu-img",
        message: "it is being upgraded".to_owned(),
    };
    world
        .pool
        .fail_next(waifud_storage::fake::Op::ImportImage, passing);
    world.start();
    world.run_one("web").await;
    assert_eq!(world.pool.calls(waifud_storage::fake::Op::ImportImage), 2);
    assert_eq!(world.waifud.fetches(), 1);
}

#[tokio::test]
async fn an_image_is_removed_when_no_instance_needs_it_any_more() {
    use waifud_storage::StoragePool as _;
    let mut world = World::new();
    world.settings.timing.image_grace = std::time::Duration::from_millis(100);
    world.start();
    let id = world.run_one("web").await;
    let image = world.instance("other").spec.image;
    world.restart().await;
    world.until_ready(id).await;
    assert!(world.pool.has_image(image).await.unwrap());
    world.delete(id).await;
    world
        .until("the image is gone", async || {
            !world.pool.has_image(image).await.unwrap()
        })
        .await;
    // An instance that needs it again gets it again.
    let again = world.run_one("again").await;
    assert!(world.pool.has_image(image).await.unwrap());
    world.delete(again).await;
}

#[tokio::test]
async fn a_stopped_instance_is_prepared_and_stays_off_until_it_is_started() {
    let world = World::new();
    world.start();
    let mut instance = world.instance("web");
    instance.spec.run = false;
    let id = instance.id;
    world.waifud.put(instance);
    let status = world.until_state(id, InstanceState::Stopped).await;
    assert_eq!(status.stopped_by, None);
    assert_eq!(world.volumes().await, 1);
    world.waifud.edit(id, |i| i.spec.run = true);
    world.until_ready(id).await;
}

#[tokio::test]
async fn a_stop_asks_the_guest_first_and_counts_as_stopped_by_the_user() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.waifud.edit(id, |i| i.spec.run = false);
    let status = world.until_state(id, InstanceState::Stopped).await;
    assert_eq!(status.stopped_by, Some(StoppedBy::User));
    assert!(!status.ready);
    assert_eq!(
        world.domain(id).await,
        Some(DomainState::Off(OffReason::GuestShutdown))
    );
    world.waifud.edit(id, |i| i.spec.run = true);
    world.until_ready(id).await;
}

#[tokio::test]
async fn a_guest_that_missed_the_request_is_asked_again_and_not_forced_off() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    let late = HypervisorError::TimedOut {
        what: "shutdown",
        after: std::time::Duration::from_mins(1),
    };
    world.hypervisor.fail_next(Op::RequestShutdown, late);
    world.waifud.edit(id, |i| i.spec.run = false);
    world.until_state(id, InstanceState::Stopped).await;
    assert_eq!(
        world.domain(id).await,
        Some(DomainState::Off(OffReason::GuestShutdown))
    );
}

#[tokio::test]
async fn an_unresponsive_guest_is_forced_off_after_the_grace_period() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.hypervisor.set_ignores_shutdown(id, true);
    world.waifud.edit(id, |i| i.spec.run = false);
    world.until_state(id, InstanceState::Stopping).await;
    let status = world.until_state(id, InstanceState::Stopped).await;
    assert_eq!(status.stopped_by, Some(StoppedBy::User));
    assert_eq!(
        world.domain(id).await,
        Some(DomainState::Off(OffReason::Destroyed))
    );
}

#[tokio::test]
async fn a_guest_that_powers_itself_off_stays_off_until_a_user_starts_it() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.hypervisor.power_off(id);
    let status = world.until_state(id, InstanceState::Stopped).await;
    assert_eq!(status.stopped_by, Some(StoppedBy::Guest));
    world.restart().await;
    let reports = world.waifud.reports();
    world
        .until("a few more reports", async || {
            world.waifud.reports() > reports + 5
        })
        .await;
    // Edited user-data is not an order to start.
    world.waifud.edit(id, |i| i.bundle.size_bytes += 1);
    world
        .until_status(id, "edit seen", |s| s.observed_generation.0 == 2)
        .await;
    assert_eq!(world.hypervisor.starts(), 1);
    world.waifud.edit(id, |_| {});
    world.until_ready(id).await;
    assert_eq!(world.hypervisor.starts(), 2);
}

#[tokio::test]
async fn a_crash_and_a_stop_from_outside_lead_to_a_restart() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    for starts in 2..5 {
        if starts % 2 == 0 {
            world.hypervisor.crash(id);
        } else {
            world.hypervisor.destroy(id);
        }
        world
            .until("restarted", async || world.hypervisor.starts() == starts)
            .await;
        world.until_ready(id).await;
    }
    // Also when somebody undefines it altogether: the disk is there.
    world.hypervisor.undefine(id);
    world
        .until("restarted", async || world.hypervisor.starts() == 5)
        .await;
    world.until_ready(id).await;
    assert_eq!(world.volumes().await, 1);
}

#[tokio::test]
async fn an_instance_with_policy_never_is_not_restarted() {
    let world = World::new();
    world.start();
    let mut instance = world.instance("web");
    instance.spec.restart = RestartPolicy::Never;
    let id = instance.id;
    world.waifud.put(instance);
    world.until_ready(id).await;
    world.hypervisor.crash(id);
    let status = world.until_state(id, InstanceState::Stopped).await;
    assert_eq!(status.stopped_by, Some(StoppedBy::Crash));
    assert_eq!(world.hypervisor.starts(), 1);
}

#[tokio::test]
async fn after_a_power_failure_guests_start_again_even_without_waifud() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.kill().await;
    world.hypervisor.host_crash();
    world.waifud.set_online(false);
    world.metadata.restart(true);
    world.start();
    world
        .until("running", async || {
            world.domain(id).await == Some(DomainState::Running)
        })
        .await;
    assert!(world.metadata.would_serve(id));
    assert_eq!(world.ports(), 1);
    world.waifud.set_online(true);
    world.until_ready(id).await;
}

#[tokio::test]
async fn a_guest_paused_by_a_full_pool_is_resumed_when_there_is_space() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.pool.set_full(true);
    world.hypervisor.pause(id, true);
    let status = world.until_state(id, InstanceState::Paused).await;
    assert!(status.reason.unwrap().contains("is full"));
    world.pool.set_full(false);
    world.hypervisor.pause(id, true);
    world.until_state(id, InstanceState::Running).await;
    assert_eq!(world.hypervisor.starts(), 1, "resumed, not started");
}

#[tokio::test]
async fn a_guest_paused_by_hand_is_not_resumed() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.hypervisor.pause(id, false);
    world.until_state(id, InstanceState::Paused).await;
    // Each edit makes the driver look at the guest again and report what it saw.
    for _ in 0..5 {
        world.waifud.edit(id, |_| {});
        let generation = world.waifud.instance(id).unwrap().generation;
        let status = world
            .until_status(id, "looked at", |s| s.observed_generation == generation)
            .await;
        assert_eq!(status.state, InstanceState::Paused);
    }
    assert_eq!(
        world.domain(id).await,
        Some(DomainState::Paused { io_error: false })
    );
    assert_eq!(
        world.hypervisor.calls(Op::EnsureStarted),
        1,
        "at its creation"
    );
    // Resumed by hand, it is running again.
    world.hypervisor.ensure_started(id).await.unwrap();
    world.until_state(id, InstanceState::Running).await;
}

#[tokio::test]
async fn without_a_guest_agent_phone_home_proves_readiness() {
    let world = World::new();
    world.hypervisor.set_default_agent(None);
    world.start();
    let instance = world.instance("web");
    let id = instance.id;
    world.waifud.put(instance);
    world.until_state(id, InstanceState::Running).await;
    let now = || waifud_types::Timestamp::now();
    world.metadata.observe(
        id,
        now(),
        Observed::Request {
            path: "/openstack/latest/user_data".to_owned(),
            status: 200,
        },
    );
    let status = world
        .until_status(id, "asking", |s| {
            s.cloud_init.state == CloudInitState::Running
        })
        .await;
    let served = status
        .conditions
        .iter()
        .find(|c| c.kind == "metadata-served");
    assert!(served.unwrap().message.contains("user_data"));
    world.metadata.observe(
        id,
        now(),
        Observed::PhoneHome {
            instance_id: Some("i-1".to_owned()),
            hostname: None,
            host_keys: Vec::new(),
        },
    );
    world.until_ready(id).await;
    let status = world.waifud.status(id).unwrap();
    assert_eq!(status.ready_by, Some(ReadyBy::PhoneHome));
    assert_eq!(
        status.step, None,
        "looking goes on, and nobody waits for it"
    );
}

fn event(name: &str, result: Option<ModuleResult>) -> Observed {
    Observed::CloudInit(CloudInitEvent {
        name: name.to_owned(),
        result,
        description: String::new(),
        guest_micros: None,
    })
}

#[tokio::test]
async fn without_a_guest_agent_each_boot_becomes_ready_by_cloud_inits_reporter() {
    let world = World::new();
    world.hypervisor.set_default_agent(None);
    world.start();
    let instance = world.instance("web");
    let id = instance.id;
    world.waifud.put(instance);
    world.until_state(id, InstanceState::Running).await;
    let tell = |name: &str, result| {
        let now = waifud_types::Timestamp::now();
        world.metadata.observe(id, now, event(name, result));
    };
    tell("init-network/config-ssh", None);
    tell("init-network/config-ssh", Some(ModuleResult::Success));
    tell("modules-final/config-scripts-user", None);
    let at_work = |module: &str| format!("cloud-init to finish ({module})");
    let waiting = at_work("modules-final/scripts-user");
    world
        .until_status(id, "the module at work", |s| {
            let step = s.step.as_ref();
            step.and_then(|step| step.waiting_for.as_ref()) == Some(&waiting)
        })
        .await;
    tell(
        "modules-final/config-scripts-user",
        Some(ModuleResult::Fail),
    );
    tell("modules-final", Some(ModuleResult::Fail));
    world.until_ready(id).await;
    let status = world.waifud.status(id).unwrap();
    assert_eq!(status.ready_by, Some(ReadyBy::Reporter));
    assert_eq!(status.cloud_init.state, CloudInitState::Error);
    assert_eq!(
        status.cloud_init.errors,
        ["modules-final/scripts-user failed"]
    );

    // It reboots by itself: ready no longer, and again at the end of this boot, though it phones home once in its life.
    world.hypervisor.reboot(id);
    world.until_status(id, "booting", |s| !s.ready).await;
    tell("init-network/check-cache", None);
    tell("modules-final", Some(ModuleResult::Success));
    let status = world.until_status(id, "ready again", |s| s.ready).await;
    assert_eq!(status.ready_by, Some(ReadyBy::Reporter));
    assert_eq!(status.cloud_init.state, CloudInitState::Done);
    assert!(status.cloud_init.errors.is_empty());
}

#[tokio::test]
async fn a_script_that_fails_late_is_an_error_although_the_guest_phoned_home_before() {
    let world = World::new();
    let working = guest_with(&[(
        "/run/cloud-init/status.json",
        r#"{"v1": {"datasource": null, "stage": "modules-final"}}"#,
    )]);
    world.hypervisor.set_default_agent(Some(working));
    world.start();
    let instance = world.instance("web");
    let id = instance.id;
    world.waifud.put(instance);
    world
        .until_status(id, "at work", |s| {
            s.cloud_init.state == CloudInitState::Running
        })
        .await;
    let call = Observed::PhoneHome {
        instance_id: Some("i-1".to_owned()),
        hostname: None,
        host_keys: Vec::new(),
    };
    let calls = world.hypervisor.calls(Op::AgentCommand);
    world
        .metadata
        .observe(id, waifud_types::Timestamp::now(), call);
    // Many looks later than the agent once had patience for.
    world
        .until("more looks", async || {
            world.hypervisor.calls(Op::AgentCommand) > calls + 100
        })
        .await;
    assert!(!world.waifud.status(id).unwrap().ready, "it still works");
    let failed = guest_with(&[(
        "/run/cloud-init/result.json",
        r#"{"v1": {"datasource": "X", "errors": ["('scripts-user', boom)"]}}"#,
    )]);
    world.hypervisor.set_agent(id, Some(failed));
    let status = world.until_status(id, "its end", |s| s.ready).await;
    assert_eq!(status.ready_by, Some(ReadyBy::GuestAgent));
    assert_eq!(status.cloud_init.state, CloudInitState::Error);
}

#[tokio::test]
async fn errors_of_cloud_init_are_reported_and_a_reboot_revokes_readiness() {
    let world = World::new();
    world.hypervisor.set_default_agent(Some(guest_with(&[(
        "/run/cloud-init/result.json",
        r#"{"v1": {"datasource": "X", "errors": ["Unable to locate package ngnix"]}}"#,
    )])));
    world.start();
    let instance = world.instance("web");
    let id = instance.id;
    world.waifud.put(instance);
    world.until_ready(id).await;
    let status = world.waifud.status(id).unwrap();
    assert_eq!(status.cloud_init.state, CloudInitState::Error);
    assert_eq!(status.cloud_init.errors, ["Unable to locate package ngnix"]);
    // It boots anew: its agent comes back, and cloud-init is at work.
    let working = guest_with(&[(
        "/run/cloud-init/status.json",
        r#"{"v1": {"datasource": null, "stage": "init"}}"#,
    )]);
    world.hypervisor.set_agent(id, Some(working));
    world.until_status(id, "not ready", |s| !s.ready).await;
    world.hypervisor.set_agent(id, Some(cloud_init_done()));
    let status = world.until_status(id, "ready again", |s| s.ready).await;
    assert_eq!(status.cloud_init.state, CloudInitState::Done);
}

#[tokio::test]
async fn edited_documents_reach_metadatad_while_the_guest_runs() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    let digest = waifud_types::Digest::from_bytes([99; 32]);
    world.waifud.edit(id, |i| i.bundle.digest = digest);
    world
        .until("the new documents", async || {
            world.metadata.held()[&id].bundle.digest == digest && world.metadata.would_serve(id)
        })
        .await;
    assert_eq!(world.hypervisor.starts(), 1);
    assert_eq!(world.hypervisor.calls(Op::EnsureDefined), 1);
}

#[tokio::test]
async fn a_missing_disk_is_not_created_again() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.waifud.edit(id, |i| i.spec.run = false);
    world.until_state(id, InstanceState::Stopped).await;
    let volume = waifud_storage::StoragePool::volumes(&world.pool)
        .await
        .unwrap()[0]
        .clone();
    waifud_storage::StoragePool::ensure_volume_absent(&world.pool, &volume.id)
        .await
        .unwrap();
    world.waifud.edit(id, |i| i.spec.run = true);
    let status = world.until_state(id, InstanceState::Failed).await;
    assert!(status.reason.unwrap().contains("missing"));
    assert_eq!(world.volumes().await, 0);
    // It can still be deleted.
    world.delete(id).await;
}

#[tokio::test]
async fn lasting_reasons_are_reported_as_failures_and_repairs_are_noticed() {
    let world = World::new();
    world.start();
    let mut instance = world.instance("web");
    instance.spec.disks[0].size_bytes = ByteSize(4096);
    let id = instance.id;
    world.waifud.put(instance);
    let status = world.until_state(id, InstanceState::Failed).await;
    assert!(status.reason.unwrap().contains("smaller than its image"));
    world
        .waifud
        .edit(id, |i| i.spec.disks[0].size_bytes = ByteSize::mib(10));
    world.until_ready(id).await;

    world.pool.set_full(true);
    let mut other = world.instance("db");
    other.spec.nics[0].address = Some([10, 144, 1, 250].into());
    other.spec.nics[0].mac = waifud_types::MacAddr::of_guest([9, 9, 9]);
    let other_id = other.id;
    world.waifud.put(other);
    let status = world
        .until_status(other_id, "told why", |s| s.reason.is_some())
        .await;
    assert!(status.reason.unwrap().contains("is full"));
    assert!(status.step.unwrap().waiting_for.is_some());
    world.pool.set_full(false);
    world.until_ready(other_id).await;
}

#[tokio::test]
async fn retries_for_the_same_reason_are_one_change_of_state() {
    let lasting = || HypervisorError::StartFailed {
        name: "web".to_owned(),
        message: "no such device".to_owned(),
    };
    let passing = || HypervisorError::TimedOut {
        what: "start",
        after: Duration::from_mins(1),
    };
    for error in [&lasting as &dyn Fn() -> HypervisorError, &passing] {
        let world = World::new();
        world.start();
        for _ in 0..6 {
            world.hypervisor.fail_next(Op::EnsureStarted, error());
        }
        let id = world.run_one("web").await;
        assert_eq!(world.hypervisor.calls(Op::EnsureStarted), 7);
        let story = world.waifud.status_history(id);
        let mut states: Vec<_> = story.iter().map(|report| report.state).collect();
        states.dedup();
        let different: HashSet<_> = states.iter().collect();
        assert_eq!(different.len(), states.len(), "{}: {states:?}", error());
        assert_eq!(states.last(), Some(&InstanceState::Running));
    }
}
