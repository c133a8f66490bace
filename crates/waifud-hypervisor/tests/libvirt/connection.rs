//! Restarts of libvirtd and of the agent: domains keep running, and the connection is restored.

use std::path::Path;

use waifud_hypervisor::libvirt::{LibvirtConfig, LibvirtHypervisor};
use waifud_hypervisor::{DomainEventKind, DomainState, Hypervisor, HypervisorError};
use waifud_lab::Signal;

use crate::node::{Node, config, until, uri, wait_for_event};

#[tokio::test(flavor = "multi_thread")]
async fn without_libvirtd_the_error_names_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = LibvirtConfig::new(directory.path().join("probe.json"));
    config.uri = uri(Path::new("/nonexistent/libvirt-sock"));
    let hypervisor = LibvirtHypervisor::connect(config).unwrap();
    let refused = hypervisor.list().await.unwrap_err();
    let HypervisorError::Unreachable { message, .. } = &refused else {
        panic!("{refused:?}");
    };
    assert!(message.contains("/nonexistent/libvirt-sock"), "{message}");
    assert!(
        refused
            .to_string()
            .contains("check that libvirtd is running"),
        "{refused}"
    );
    assert!(hypervisor.host().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn domains_keep_running_when_libvirtd_is_killed_and_the_connection_is_restored() {
    let Some(node) = Node::up() else { return };
    let spec = node.running("web").await;
    let pid = node.qemu_pid("web").unwrap();
    let mut events = node.hypervisor.events();

    node.lab.kill("libvirtd", Signal::SIGKILL).unwrap();
    wait_for_event(&mut events, DomainEventKind::Resync).await; // lost
    wait_for_event(&mut events, DomainEventKind::Resync).await; // restored
    let seen = node.hypervisor.get(spec.id).await.unwrap().unwrap();
    assert_eq!(seen.state, DomainState::Running);
    assert_eq!(node.qemu_pid("web").unwrap(), pid);
    node.hypervisor.ensure_started(spec.id).await.unwrap();
    // A restarted libvirtd accepts calls before it has reconnected to QEMU. A `destroy` at that time kills QEMU, so the
    // reconnection fails, libvirt stops the domain for that reason (`shut off (daemon)`), and the `destroy` fails with
    // "domain is not running". A monitor command waits for the end of the reconnection.
    let query = [
        "qemu-monitor-command",
        "web",
        r#"{"execute":"query-status"}"#,
    ];
    let status = node.virsh(query).unwrap();
    assert!(status.contains(r#""status":"running""#), "{status}");

    // The new connection delivers events.
    node.virsh(["destroy", "web"]).unwrap();
    wait_for_event(
        &mut events,
        DomainEventKind::Stopped(waifud_hypervisor::OffReason::Destroyed),
    )
    .await;
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libvirtd_that_starts_later_is_connected_automatically() {
    let Some(node) = Node::up() else { return };
    node.lab.stop("libvirtd").unwrap();
    let hypervisor = LibvirtHypervisor::connect(config(&node.lab)).unwrap();
    let mut events = hypervisor.events();
    let refused = hypervisor.list().await;
    assert!(
        matches!(refused, Err(HypervisorError::Unreachable { .. })),
        "{refused:?}"
    );
    node.lab.start("libvirtd").unwrap();
    wait_for_event(&mut events, DomainEventKind::Resync).await;
    hypervisor.list().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_hanging_libvirtd_end_at_their_limit() {
    let Some(node) = Node::up() else { return };
    let mut config = config(&node.lab);
    config.call_timeout = std::time::Duration::from_millis(500);
    let hypervisor = LibvirtHypervisor::connect(config).unwrap();
    until("the connection", || async {
        hypervisor.list().await.is_ok()
    })
    .await;
    node.lab.kill("libvirtd", Signal::SIGSTOP).unwrap();
    for _ in 0..6 {
        let late = hypervisor.list().await;
        assert!(
            matches!(
                late,
                Err(HypervisorError::TimedOut {
                    operation: "list domains",
                    ..
                })
            ),
            "{late:?}"
        );
    }
    node.lab.kill("libvirtd", Signal::SIGCONT).unwrap();
    until("libvirtd's answer", || async {
        hypervisor.list().await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_connection_lists_running_domains_and_restarts_none() {
    let Some(node) = Node::up() else { return };
    let spec = node.running("running").await;
    let pid = node.qemu_pid("running").unwrap();
    let Node { lab, hypervisor } = node;
    drop(hypervisor);

    let hypervisor = LibvirtHypervisor::connect(config(&lab)).unwrap();
    let listed = hypervisor.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, spec.id);
    assert_eq!(listed[0].epoch, Some(spec.epoch));
    hypervisor.ensure_defined(&spec).await.unwrap();
    hypervisor.ensure_started(spec.id).await.unwrap();
    let node = Node { lab, hypervisor };
    assert_eq!(node.qemu_pid("running").unwrap(), pid);
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
}
