//! The result of the KVM probe agrees with the node's capabilities.

use std::path::PathBuf;

use waifud_hypervisor::libvirt::kvm::boot::Run;
use waifud_hypervisor::{Hypervisor, HypervisorError};
use waifud_types::InstanceId;
use waifud_types::status::HypervisorKind;

use crate::node::{Node, QEMU};

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_agrees_with_a_run_of_the_test_machine() {
    let Some(node) = Node::up() else { return };
    let facts = node.hypervisor.host().await.unwrap();
    let emulator = PathBuf::from("/usr/bin/qemu-system-x86_64");
    let attempt = Run::kvm(emulator, Some((QEMU, QEMU))).attempt().await;
    eprintln!(
        "{:?}; a run of the test machine: {attempt:?}",
        facts.hypervisor
    );
    let expected = match attempt {
        Ok(_) => HypervisorKind::Kvm,
        Err(_) => HypervisorKind::Tcg,
    };
    assert_eq!(facts.hypervisor.kind, expected);
    assert!(!facts.hypervisor.reason.is_empty());
    assert_eq!(facts.arch, std::env::consts::ARCH);
    assert!(facts.capacity.cpus >= 1 && facts.capacity.memory_bytes.bytes() > 0);
    assert_ne!(facts.cpu_model, "unknown");
    assert_eq!(node.hypervisor.host().await.unwrap(), facts);
}

/// If the probe fails, libvirt may still accept a KVM domain; then the start must fail with QEMU's message.
#[tokio::test(flavor = "multi_thread")]
async fn a_kvm_domain_starts_if_the_probe_found_kvm_and_otherwise_fails_with_a_message() {
    let Some(node) = Node::up() else { return };
    let facts = node.hypervisor.host().await.unwrap();
    let mut spec = Node::spec(InstanceId::generate(), "fast");
    spec.kind = HypervisorKind::Kvm;
    let outcome = match node.hypervisor.ensure_defined(&spec).await {
        Ok(()) => node.hypervisor.ensure_started(spec.id).await,
        refused => refused,
    };
    eprintln!("a KVM domain: {outcome:?}");
    match facts.hypervisor.kind {
        HypervisorKind::Kvm => outcome.unwrap(),
        HypervisorKind::Tcg => assert!(
            matches!(
                &outcome,
                Err(HypervisorError::StartFailed { message, .. } | HypervisorError::Other { message, .. })
                    if !message.is_empty()
            ),
            "{outcome:?}"
        ),
    }
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
}
