//! Images, facts and reports for tests that need any.

pub use super::facts::facts;
use waifud_api::Instance;
use waifud_api::agent::{Hello, InstanceReport, Tombstone};
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

pub fn hello(name: &str, memory: ByteSize) -> Hello {
    Hello {
        name: name.parse().unwrap(),
        facts: facts(memory),
        now: Timestamp::now(),
        boot_id: None,
        incarnation: None,
        order: None,
        hardware: None,
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
