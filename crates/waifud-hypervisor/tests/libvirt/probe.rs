//! What the node says it can do is what it can do.

use std::path::PathBuf;

use waifud_hypervisor::libvirt::kvm::boot::Run;
use waifud_hypervisor::{Hypervisor, HypervisorError};
use waifud_types::InstanceId;
use waifud_types::status::HypervisorKind;

use crate::node::{Node, QEMU};

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_about_kvm_agrees_with_a_real_attempt() {
    let Some(node) = Node::up() else { return };
    let facts = node.hypervisor.host().await.unwrap();
    let emulator = PathBuf::from("/usr/bin/qemu-system-x86_64");
    let attempt = Run::kvm(emulator, Some((QEMU, QEMU))).attempt().await;
    eprintln!("{:?}; a real attempt: {attempt:?}", facts.hypervisor);
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

/// Where the probe says no, libvirt itself may still say yes; then the start has to fail in QEMU's words.
#[tokio::test(flavor = "multi_thread")]
async fn a_kvm_domain_starts_where_the_probe_says_so_and_else_fails_with_a_reason() {
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
