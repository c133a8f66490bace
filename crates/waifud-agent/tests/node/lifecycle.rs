//! The life cycle of an instance on a node of fakes: created, ready, stopped, crashed, deleted.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use crate::test_node::{TestNode, cloud_init_done, guest_with};
use waifud_api::agent::InstanceReport;
use waifud_api::metadatad::{CloudInitEvent, Observed};
use waifud_hypervisor::fake::Op;
use waifud_hypervisor::{DomainState, Hypervisor, HypervisorError, OffReason};
use waifud_storage::StorageError;
use waifud_types::evidence::ModuleResult;
use waifud_types::spec::RestartPolicy;
use waifud_types::status::{CloudInitState, ReadyBy, StoppedBy};
use waifud_types::template::Datasource;
use waifud_types::{ByteSize, InstanceId, InstanceState};

#[tokio::test]
async fn an_instance_is_created_becomes_ready_and_is_deleted_without_leftovers() {
    let (node, id) = TestNode::with_instance("web").await;
    let status = node.waifud.status(id).unwrap();
    assert_eq!(status.ready_by, Some(ReadyBy::GuestAgent));
    assert_eq!(status.cloud_init.state, CloudInitState::Done);
    assert_eq!(status.cloud_init.instance_id.as_deref(), Some("i-1"));
    assert!(status.hypervisor.is_some());
    assert!(node.metadata.would_serve(id));
    let ports = node.network.state().unwrap().ports;
    assert_eq!(ports.len(), 1);
    assert_eq!(
        node.hypervisor.spec(id).unwrap().nics[0].tap,
        ports[0].tap,
        "the domain's nic is the port in the rules"
    );
    node.delete(id).await;
    assert_eq!(node.ports(), 0);
    assert_eq!(node.hypervisor.starts(), 1);
}

#[tokio::test]
async fn states_change_from_preparing_to_starting_to_running_and_never_back() {
    let (node, id) = TestNode::with_instance("web").await;
    let mut states: Vec<InstanceState> = node
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
    let reports = node.waifud.status_history(id);
    assert!(
        reports
            .iter()
            .all(|s| !s.ready || s.state == InstanceState::Running)
    );
}

#[tokio::test]
async fn concurrent_creations_share_one_download_and_each_gets_its_own_disk() {
    let node = TestNode::started();
    let ids: Vec<_> = (0..20)
        .map(|n| {
            let mut instance = node.instance(&format!("web-{n}"));
            instance.spec.nics[0].address = Some([10, 144, 1, 50 + n].into());
            instance.spec.nics[0].mac = waifud_types::MacAddr::of_guest([1, 1, n]);
            let id = instance.id;
            node.waifud.put(instance);
            id
        })
        .collect();
    for id in &ids {
        node.until_ready(*id).await;
    }
    assert_eq!(node.waifud.fetches(), 1);
    assert_eq!(node.hypervisor.starts(), 20);
    assert_eq!(node.ports(), 20);
    for id in ids {
        node.delete(id).await;
    }
    assert_eq!((node.volumes().await, node.ports()), (0, 0));
}

#[tokio::test]
async fn a_stopped_instance_is_prepared_and_stays_off_until_it_is_started() {
    let node = TestNode::started();
    let mut instance = node.instance("web");
    instance.spec.run = false;
    let id = instance.id;
    node.waifud.put(instance);
    let status = node.until_state(id, InstanceState::Stopped).await;
    assert_eq!(status.stopped_by, None);
    assert_eq!(node.volumes().await, 1);
    node.until_more_reports(3).await;
    assert_eq!(node.hypervisor.starts(), 0);
    node.start_again(id).await;
}

#[tokio::test]
async fn a_stop_asks_the_guest_first_and_counts_as_stopped_by_the_user() {
    let (node, id) = TestNode::with_instance("web").await;
    let status = node.stop(id).await;
    assert_eq!(status.stopped_by, Some(StoppedBy::User));
    assert!(!status.ready);
    node.is_off(id, OffReason::GuestShutdown).await;
    node.start_again(id).await;
}

#[tokio::test]
async fn a_guest_that_missed_the_request_is_asked_again_and_not_forced_off() {
    let (node, id) = TestNode::with_instance("web").await;
    let late = HypervisorError::TimedOut {
        operation: "shutdown",
        after: std::time::Duration::from_mins(1),
    };
    node.hypervisor.fail_next(Op::RequestShutdown, late);
    node.stop(id).await;
    node.is_off(id, OffReason::GuestShutdown).await;
}

#[tokio::test]
async fn an_unresponsive_guest_is_forced_off_after_the_grace_period() {
    let (node, id) = TestNode::with_instance("web").await;
    node.hypervisor.set_ignores_shutdown(id, true);
    node.waifud.edit(id, |i| i.spec.run = false);
    node.until_state(id, InstanceState::Stopping).await;
    node.until_stopped_by(id, StoppedBy::User).await;
    node.is_off(id, OffReason::Destroyed).await;
}

#[tokio::test]
async fn a_guest_that_powers_itself_off_stays_off_until_a_user_starts_it() {
    let (node, id) = TestNode::with_instance("web").await;
    node.hypervisor.power_off(id);
    node.until_stopped_by(id, StoppedBy::Guest).await;
    node.restart().await;
    node.until_more_reports(5).await;
    // Edited user-data is not a request to start.
    node.waifud.edit(id, |i| i.bundle.size_bytes += 1);
    node.until_status(id, "edit seen", |s| s.observed_generation.0 == 2)
        .await;
    assert_eq!(node.hypervisor.starts(), 1);
    node.waifud.edit(id, |_| {});
    node.until_ready(id).await;
    assert_eq!(node.hypervisor.starts(), 2);
}

#[tokio::test]
async fn a_crash_and_a_stop_from_outside_lead_to_a_restart() {
    let (node, id) = TestNode::with_instance("web").await;
    for starts in 2..5 {
        if starts % 2 == 0 {
            node.hypervisor.crash(id);
        } else {
            node.hypervisor.destroy(id);
        }
        node.until("restarted", async || node.hypervisor.starts() == starts)
            .await;
        node.until_ready(id).await;
    }
    // The same after the domain was undefined by hand: the disk still exists.
    node.hypervisor.undefine(id);
    node.until("restarted", async || node.hypervisor.starts() == 5)
        .await;
    node.until_ready(id).await;
    assert_eq!(node.volumes().await, 1);
}

#[tokio::test]
async fn an_instance_with_policy_never_is_not_restarted() {
    let node = TestNode::started();
    let mut instance = node.instance("web");
    instance.spec.restart = RestartPolicy::Never;
    let id = node.run(instance).await;
    node.hypervisor.crash(id);
    node.until_stopped_by(id, StoppedBy::Crash).await;
    // Far longer than the longest pause before a restart. Edited user-data is not a request to start.
    for _ in 0..3 {
        node.waifud.edit(id, |i| i.bundle.size_bytes += 1);
        let generation = node.waifud.instance(id).unwrap().generation;
        node.until_status(id, "edit seen", |s| s.observed_generation == generation)
            .await;
        node.until_more_reports(2).await;
    }
    assert_eq!(node.hypervisor.starts(), 1);
    node.is_off(id, OffReason::Crashed).await;
}

#[tokio::test]
async fn after_a_power_failure_guests_start_again_even_without_waifud() {
    let (node, id) = TestNode::with_instance("web").await;
    node.kill().await;
    node.hypervisor.host_crash();
    node.waifud.set_online(false);
    node.metadata.restart(true);
    node.start();
    node.until("running", async || {
        node.domain(id).await == Some(DomainState::Running)
    })
    .await;
    assert!(node.metadata.would_serve(id));
    assert_eq!(node.ports(), 1);
    node.waifud.set_online(true);
    node.until_ready(id).await;
}

#[tokio::test]
async fn a_guest_paused_by_a_full_pool_is_resumed_when_there_is_space() {
    let node = TestNode::started_after(|node| {
        // No event announces that there is space again, and periodic passes are too rare.
        let timing = &mut node.settings.timing;
        for period in [
            &mut timing.period,
            &mut timing.network,
            &mut timing.metadata,
        ] {
            *period = Duration::from_hours(1);
        }
    });
    let id = node.run_one("web").await;
    let status = node.pause_for_space(id).await;
    assert!(status.reason.unwrap().contains("pool main is full"));
    node.pool.set_full(false);
    node.until_state(id, InstanceState::Running).await;
    assert_eq!(node.hypervisor.starts(), 1, "resumed, not started");
}

#[tokio::test]
async fn a_guest_paused_by_hand_is_not_resumed() {
    let (node, id) = TestNode::with_instance("web").await;
    node.hypervisor.pause(id, false);
    node.until_state(id, InstanceState::Paused).await;
    // Each edit makes the driver observe the guest again and report.
    for _ in 0..5 {
        node.waifud.edit(id, |_| {});
        let generation = node.waifud.instance(id).unwrap().generation;
        let status = node
            .until_status(id, "looked at", |s| s.observed_generation == generation)
            .await;
        assert_eq!(status.state, InstanceState::Paused);
    }
    assert_eq!(
        node.domain(id).await,
        Some(DomainState::Paused { io_error: false })
    );
    assert_eq!(
        node.hypervisor.calls(Op::EnsureStarted),
        1,
        "at its creation"
    );
    // After a resume by hand, it is running again.
    node.hypervisor.ensure_started(id).await.unwrap();
    node.until_state(id, InstanceState::Running).await;
}

async fn running_without_a_guest_agent() -> (TestNode, InstanceId) {
    let node = TestNode::started_after(|node| node.hypervisor.set_default_agent(None));
    let id = node.put("web");
    node.until_state(id, InstanceState::Running).await;
    (node, id)
}

#[tokio::test]
async fn without_a_guest_agent_phone_home_proves_readiness() {
    let (node, id) = running_without_a_guest_agent().await;
    let now = || waifud_types::Timestamp::now();
    node.metadata.observe(
        id,
        now(),
        Observed::Request {
            path: "/openstack/latest/user_data".to_owned(),
            status: 200,
        },
    );
    let status = node
        .until_status(id, "asking", |s| {
            s.cloud_init.state == CloudInitState::Running
        })
        .await;
    let served = status
        .conditions
        .iter()
        .find(|c| c.kind == "metadata-served");
    assert!(served.unwrap().message.contains("user_data"));
    node.metadata.observe(
        id,
        now(),
        Observed::PhoneHome {
            instance_id: Some("i-1".to_owned()),
            hostname: None,
            host_keys: Vec::new(),
        },
    );
    node.until_ready(id).await;
    let status = node.waifud.status(id).unwrap();
    assert_eq!(status.ready_by, Some(ReadyBy::PhoneHome));
    assert_eq!(
        status.step, None,
        "probing continues, but nothing waits for it"
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
    let (node, id) = running_without_a_guest_agent().await;
    let tell = |name: &str, result| {
        let now = waifud_types::Timestamp::now();
        node.metadata.observe(id, now, event(name, result));
    };
    tell("init-network/config-ssh", None);
    tell("init-network/config-ssh", Some(ModuleResult::Success));
    tell("modules-final/config-scripts-user", None);
    let at_work = |module: &str| format!("cloud-init to finish ({module})");
    let waiting = at_work("modules-final/scripts-user");
    node.until_status(id, "the module at work", |s| {
        let step = s.step.as_ref();
        step.and_then(|step| step.waiting_for.as_ref()) == Some(&waiting)
    })
    .await;
    tell(
        "modules-final/config-scripts-user",
        Some(ModuleResult::Fail),
    );
    tell("modules-final", Some(ModuleResult::Fail));
    node.until_ready(id).await;
    let status = node.waifud.status(id).unwrap();
    assert_eq!(status.ready_by, Some(ReadyBy::Reporter));
    assert_eq!(status.cloud_init.state, CloudInitState::Error);
    assert_eq!(
        status.cloud_init.errors,
        ["modules-final/scripts-user failed"]
    );

    // The guest reboots itself: it is not ready until the end of this boot, although it phones home only once.
    node.hypervisor.reboot(id);
    node.until_status(id, "booting", |s| !s.ready).await;
    tell("init-network/check-cache", None);
    tell("modules-final", Some(ModuleResult::Success));
    let status = node.until_status(id, "ready again", |s| s.ready).await;
    assert_eq!(status.ready_by, Some(ReadyBy::Reporter));
    assert_eq!(status.cloud_init.state, CloudInitState::Done);
    assert!(status.cloud_init.errors.is_empty());
}

#[tokio::test]
async fn without_agent_and_reporter_each_boot_becomes_ready_by_the_console() {
    let node = TestNode::new();
    node.hypervisor.set_default_agent(None);
    node.start();
    let mut instance = node.instance("web");
    // cloud-init ignores vendor-data there, so it never reports.
    instance.datasource = Datasource::Ec2;
    let id = instance.id;
    node.waifud.put(instance);
    node.until_state(id, InstanceState::Running).await;
    let directory = node.settings.state_dir.join(format!("instances/{id}"));
    let log = directory.join("console.log");
    let print = |text: &str| {
        let line = format!("[    1.0] cloud-init[9]: Cloud-init v. 22.4.2 {text}\r\n");
        let mut file = File::options().append(true).create(true).open(&log)?;
        file.write_all(line.as_bytes())
    };
    let end = "finished at Sat, 03 Jan 2026 10:00:20 +0000. Datasource DataSourceEc2Local.  Up 31.00 seconds";
    // Only lines after the boot was noticed belong to it.
    let noticed = |status: &InstanceReport| {
        status.cloud_init.state == CloudInitState::Running && !status.ready
    };
    for boot in 0..3 {
        if boot > 0 {
            node.hypervisor.reboot(id);
            node.until_status(id, "booting", |s| !s.ready).await;
        }
        node.until("a stage has begun", async || {
            print("running 'init' at x. Up 3.00 seconds.").unwrap();
            node.waifud
                .status(id)
                .is_some_and(|status| noticed(&status))
        })
        .await;
        if boot == 1 {
            node.restart().await;
            node.until_status(id, "still booting", noticed).await;
        }
        print(end).unwrap();
        let status = node.until_status(id, "ready", |s| s.ready).await;
        assert_eq!(status.ready_by, Some(ReadyBy::Console), "boot {boot}");
        assert_eq!(status.cloud_init.state, CloudInitState::Done);
        let datasource = status.cloud_init.datasource.as_deref();
        assert_eq!(datasource, Some("DataSourceEc2Local"));
    }
}

#[tokio::test]
async fn a_script_that_fails_late_is_an_error_although_the_guest_phoned_home_before() {
    let node = TestNode::new();
    let working = guest_with(&[(
        "/run/cloud-init/status.json",
        r#"{"v1": {"datasource": null, "stage": "modules-final"}}"#,
    )]);
    node.hypervisor.set_default_agent(Some(working));
    node.start();
    let id = node.put("web");
    node.until_status(id, "at work", |s| {
        s.cloud_init.state == CloudInitState::Running
    })
    .await;
    let call = Observed::PhoneHome {
        instance_id: Some("i-1".to_owned()),
        hostname: None,
        host_keys: Vec::new(),
    };
    let calls = node.hypervisor.calls(Op::AgentCommand);
    node.metadata
        .observe(id, waifud_types::Timestamp::now(), call);
    // After many more probes than the agent would wait for.
    node.until("more looks", async || {
        node.hypervisor.calls(Op::AgentCommand) > calls + 100
    })
    .await;
    assert!(!node.waifud.status(id).unwrap().ready, "it still works");
    let failed = guest_with(&[(
        "/run/cloud-init/result.json",
        r#"{"v1": {"datasource": "X", "errors": ["('scripts-user', boom)"]}}"#,
    )]);
    node.hypervisor.set_agent(id, Some(failed));
    let status = node.until_status(id, "its end", |s| s.ready).await;
    assert_eq!(status.ready_by, Some(ReadyBy::GuestAgent));
    assert_eq!(status.cloud_init.state, CloudInitState::Error);
}

#[tokio::test]
async fn errors_of_cloud_init_are_reported_and_a_reboot_revokes_readiness() {
    let node = TestNode::started_after(|node| {
        node.hypervisor.set_default_agent(Some(guest_with(&[(
            "/run/cloud-init/result.json",
            r#"{"v1": {"datasource": "X", "errors": ["Unable to locate package ngnix"]}}"#,
        )])));
    });
    let id = node.put("web");
    node.until_ready(id).await;
    let status = node.waifud.status(id).unwrap();
    assert_eq!(status.cloud_init.state, CloudInitState::Error);
    assert_eq!(status.cloud_init.errors, ["Unable to locate package ngnix"]);
    // The guest reboots: its agent comes back, and cloud-init is running.
    let working = guest_with(&[(
        "/run/cloud-init/status.json",
        r#"{"v1": {"datasource": null, "stage": "init"}}"#,
    )]);
    node.hypervisor.set_agent(id, Some(working));
    node.until_status(id, "not ready", |s| !s.ready).await;
    node.hypervisor.set_agent(id, Some(cloud_init_done()));
    let status = node.until_status(id, "ready again", |s| s.ready).await;
    assert_eq!(status.cloud_init.state, CloudInitState::Done);
}

#[tokio::test]
async fn edited_documents_reach_metadatad_while_the_guest_runs() {
    let (node, id) = TestNode::with_instance("web").await;
    let digest = waifud_types::Digest::from_bytes([99; 32]);
    node.waifud.edit(id, |i| i.bundle.digest = digest);
    node.until("the new documents", async || {
        node.metadata.held()[&id].bundle.digest == digest && node.metadata.would_serve(id)
    })
    .await;
    assert_eq!(node.hypervisor.starts(), 1);
    assert_eq!(node.hypervisor.calls(Op::EnsureDefined), 1);
}

#[tokio::test]
async fn a_missing_disk_is_not_created_again() {
    let (node, id) = TestNode::with_instance("web").await;
    node.stop(id).await;
    let volume = waifud_storage::StoragePool::volumes(&node.pool)
        .await
        .unwrap()[0]
        .clone();
    waifud_storage::StoragePool::ensure_volume_absent(&node.pool, &volume.id)
        .await
        .unwrap();
    node.waifud.edit(id, |i| i.spec.run = true);
    let status = node.until_state(id, InstanceState::Failed).await;
    assert!(status.reason.unwrap().contains("missing"));
    assert_eq!(node.volumes().await, 0);
    // It can still be deleted.
    node.delete(id).await;
}

#[tokio::test]
async fn persistent_errors_are_reported_as_failed_and_their_repair_is_detected() {
    let node = TestNode::started();
    let mut instance = node.instance("web");
    instance.spec.disks[0].size_bytes = ByteSize(4096);
    let id = instance.id;
    node.waifud.put(instance);
    let status = node.until_state(id, InstanceState::Failed).await;
    assert!(status.reason.unwrap().contains("smaller than its image"));
    node.waifud
        .edit(id, |i| i.spec.disks[0].size_bytes = ByteSize::mib(10));
    node.until_ready(id).await;

    node.pool.set_full(true);
    let mut other = node.instance("db");
    other.spec.nics[0].address = Some([10, 144, 1, 250].into());
    other.spec.nics[0].mac = waifud_types::MacAddr::of_guest([9, 9, 9]);
    let other_id = other.id;
    node.waifud.put(other);
    let status = node
        .until_status(other_id, "a reason", |s| s.reason.is_some())
        .await;
    let full = StorageError::NoSpace {
        pool: "main".parse().unwrap(),
    };
    assert_eq!(status.reason, Some(full.to_string()));
    assert!(status.step.unwrap().waiting_for.is_some());
    node.pool.set_full(false);
    node.until_ready(other_id).await;
}

#[tokio::test]
async fn retries_for_the_same_reason_are_one_change_of_state() {
    let lasting = || HypervisorError::StartFailed {
        name: "web".to_owned(),
        message: "no such device".to_owned(),
    };
    let passing = || HypervisorError::TimedOut {
        operation: "start",
        after: Duration::from_mins(1),
    };
    for error in [&lasting as &dyn Fn() -> HypervisorError, &passing] {
        let node = TestNode::started();
        for _ in 0..6 {
            node.hypervisor.fail_next(Op::EnsureStarted, error());
        }
        let id = node.run_one("web").await;
        assert_eq!(node.hypervisor.calls(Op::EnsureStarted), 7);
        let reports = node.waifud.status_history(id);
        let mut states: Vec<_> = reports.iter().map(|report| report.state).collect();
        states.dedup();
        let different: HashSet<_> = states.iter().collect();
        assert_eq!(different.len(), states.len(), "{}: {states:?}", error());
        assert_eq!(states.last(), Some(&InstanceState::Running));
    }
}
