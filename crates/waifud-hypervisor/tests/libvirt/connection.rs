//! libvirtd comes and goes; domains and their watchers don't notice for long.

use std::path::Path;

use waifud_hypervisor::libvirt::{LibvirtConfig, LibvirtHypervisor};
use waifud_hypervisor::{DomainEventKind, DomainState, Hypervisor, HypervisorError};
use waifud_lab::Signal;

use crate::node::{Node, config, hear, until, uri};

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
        refused.to_string().contains("is libvirtd running"),
        "{refused}"
    );
    assert!(hypervisor.host().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_libvirtd_is_found_again_and_its_domains_ran_on() {
    let Some(node) = Node::up() else { return };
    let spec = node.running("survivor").await;
    let pid = node.qemu_pid("survivor").unwrap();
    let mut events = node.hypervisor.events();

    node.lab.kill("libvirtd", Signal::SIGKILL).unwrap();
    hear(&mut events, DomainEventKind::Resync).await; // lost
    hear(&mut events, DomainEventKind::Resync).await; // made anew
    let seen = node.hypervisor.get(spec.id).await.unwrap().unwrap();
    assert_eq!(seen.state, DomainState::Running);
    assert_eq!(node.qemu_pid("survivor").unwrap(), pid);
    node.hypervisor.ensure_started(spec.id).await.unwrap();

    // Events come over the new connection too.
    node.virsh(["destroy", "survivor"]).unwrap();
    hear(
        &mut events,
        DomainEventKind::Stopped(waifud_hypervisor::OffReason::Destroyed),
    )
    .await;
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libvirtd_that_comes_late_heals_by_itself() {
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
    hear(&mut events, DomainEventKind::Resync).await;
    hypervisor.list().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libvirtd_that_hangs_costs_a_call_its_limit_and_no_more() {
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
            matches!(late, Err(HypervisorError::TimedOut { what: "list", .. })),
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
async fn a_new_agent_adopts_what_runs_and_stops_nothing() {
    let Some(node) = Node::up() else { return };
    let spec = node.running("adopted").await;
    let pid = node.qemu_pid("adopted").unwrap();
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
    assert_eq!(node.qemu_pid("adopted").unwrap(), pid);
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
}
