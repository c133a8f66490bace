//! Images, facts and reports for tests that need any.

use waifud_api::Instance;
use waifud_api::agent::{Hello, InstanceReport, Tombstone};
use waifud_types::node::{HypervisorFacts, NoKvm, NodeFacts, PoolFacts, Resources};
use waifud_types::status::{HypervisorKind, ReadyBy, StepStatus};
use waifud_types::{ByteSize, Digest, Epoch, InstanceId, InstanceState, Timestamp};

pub fn image(virtual_size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    bytes[7] = 3;
    bytes[23] = 16;
    bytes[24..32].copy_from_slice(&virtual_size.to_be_bytes());
    bytes
}

pub fn digest(bytes: &[u8]) -> Digest {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    Digest::from_bytes(hash.as_ref().try_into().unwrap())
}

pub fn facts(memory: ByteSize) -> NodeFacts {
    NodeFacts {
        arch: "x86_64".into(),
        cpu_model: "a CPU".into(),
        hypervisor: HypervisorFacts {
            kind: HypervisorKind::Tcg,
            reason: "no /dev/kvm".into(),
            cause: Some(NoKvm::NoDevice),
        },
        agent_version: "0.1.0".into(),
        capacity: Resources {
            cpus: 8,
            memory_bytes: memory,
        },
        used: Resources::default(),
        pools: vec![PoolFacts {
            name: "main".parse().unwrap(),
            kind: waifud_types::PoolKind::Qcow2,
            size_bytes: ByteSize::gib(500),
            used_bytes: ByteSize(0),
            promised_bytes: ByteSize(0),
            health: "ok".into(),
        }],
        bridges: Vec::new(),
        unfit_bridges: std::collections::BTreeMap::new(),
        routes: Vec::new(),
        conditions: Vec::new(),
        labels: std::collections::BTreeMap::default(),
        features: waifud_types::node::feature::ALL.map(str::to_owned).into(),
    }
}

pub fn hello(name: &str, memory: ByteSize) -> Hello {
    Hello {
        name: name.parse().unwrap(),
        facts: facts(memory),
        now: Timestamp::now(),
        boot_id: None,
    }
}

pub fn report(id: InstanceId, state: InstanceState) -> InstanceReport {
    InstanceReport {
        hypervisor: Some(HypervisorKind::Tcg),
        ..InstanceReport::of_state(id, state)
    }
}

/// A report of a running instance whose cloud-init has called home.
pub fn ready_report(id: InstanceId) -> InstanceReport {
    InstanceReport {
        ready: true,
        ready_by: Some(ReadyBy::PhoneHome),
        ..report(id, InstanceState::Running)
    }
}

pub fn step(name: &str, percent: Option<u8>) -> StepStatus {
    StepStatus {
        name: name.to_owned(),
        percent,
        since: Timestamp::UNIX_EPOCH,
        waiting_for: None,
    }
}

/// The order to destroy an instance that never changed its owner.
pub fn tombstone(instance: &Instance) -> Tombstone {
    Tombstone {
        instance: instance.id,
        name: instance.name.clone(),
        epoch: Epoch::FIRST,
    }
}
