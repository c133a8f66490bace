//! The facts of a node, for these tests and for those of the placement.

use waifud_types::ByteSize;
use waifud_types::node::{HypervisorFacts, NoKvm, NodeFacts, PoolFacts, Resources, feature};
use waifud_types::status::HypervisorKind;

/// 8 CPUs and a pool of 500 GiB.
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
            images: None,
        }],
        bridges: Vec::new(),
        vlan_bridges: Vec::new(),
        unfit_bridges: std::collections::BTreeMap::new(),
        routes: Vec::new(),
        conditions: Vec::new(),
        labels: std::collections::BTreeMap::default(),
        features: feature::ALL.map(str::to_owned).into(),
        mesh: None,
        mesh_backend: None,
        peer_port: None,
        dns: None,
    }
}
