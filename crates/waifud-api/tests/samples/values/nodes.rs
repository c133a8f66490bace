//! Nodes, and how they join.

use std::collections::BTreeMap;

use waifud_api::join::{
    CreateJoinToken, CreatedJoinToken, InstallCommands, JoinTokenInfo, JoinTokenState,
};
use waifud_api::{
    AdoptInstance, CreateFabricClient, Dns, DnsServer, DnsServerState, Drain, DrainNode,
    DrainedInstance, FabricClient, FabricClientConfig, Node, Unmanaged, UpdateNode,
};
use waifud_types::node::{
    HypervisorFacts, NoKvm, NodeFacts, NodeState, PeerPortFacts, PoolFacts, Resources,
};
use waifud_types::status::{Condition, HypervisorKind};
use waifud_types::{
    ByteSize, DnsFacts, DnsListener, FabricClientPeer, FabricKind, MeshBackend, MeshFacts,
    MoveState, PoolKind, VolumeId,
};

use super::{INSTANCE, Kind, NODE, digest, instances, map, objects, parse, text, texts, time};

pub fn kinds() -> Vec<Kind> {
    let labels: BTreeMap<_, _> =
        [("disk".to_owned(), text("ssd")), ("old".to_owned(), None)].into();
    vec![
        Kind::one("Node", node()),
        Kind::page("Page_Node", node()),
        Kind::request(
            "UpdateNode",
            [(
                "",
                UpdateNode {
                    name: Some(parse("alder")),
                    cordoned: Some(true),
                    labels,
                },
            )],
        ),
        Kind::request("DrainNode", [("", DrainNode { new_address: true })]),
        Kind::one("Drain", drain()),
        Kind::request(
            "AdoptInstance",
            [(
                "",
                AdoptInstance {
                    name: text("web-2"),
                },
            )],
        ),
        Kind::request(
            "CreateJoinToken",
            [(
                "",
                CreateJoinToken {
                    name: Some(parse("alder")),
                    expires_in_s: Some(600),
                    install: true,
                },
            )],
        ),
        Kind::one(
            "CreatedJoinToken",
            CreatedJoinToken {
                info: join_token(),
                token: "wfj_AQ".to_owned().into(),
                install: Some(InstallCommands {
                    run: "curl … | sh".to_owned().into(),
                    read_first: vec!["curl … -o install".to_owned().into()],
                }),
            },
        ),
        Kind::page("Page_JoinTokenInfo", join_token()),
        Kind::values(
            "JoinTokenState",
            [
                JoinTokenState::Unused,
                JoinTokenState::Spent,
                JoinTokenState::Expired,
                JoinTokenState::Other,
            ],
        ),
        Kind::values(
            "NodeState",
            [
                NodeState::Joining,
                NodeState::Ready,
                NodeState::Cordoned,
                NodeState::Draining,
                NodeState::Unreachable,
                NodeState::Other,
            ],
        ),
        Kind::request(
            "CreateFabricClient",
            [(
                "",
                CreateFabricClient {
                    name: "laptop".to_owned(),
                    public_key: super::PUBLIC_KEY.to_owned(),
                },
            )],
        ),
        Kind::one(
            "FabricClientConfig",
            FabricClientConfig {
                client: fabric_client(),
                peers: vec![FabricClientPeer {
                    node: parse("alder"),
                    public_key: text(super::PUBLIC_KEY),
                    endpoints: vec![parse("192.0.2.3:51820")],
                    allowed: vec![parse("10.144.1.0/24")],
                    supports_clients: true,
                }],
            },
        ),
        Kind::page("Page_FabricClient", fabric_client()),
        Kind::one(
            "Dns",
            Dns {
                domain: "waifu.internal".to_owned(),
                reverse_zones: texts(&["144.10.in-addr.arpa"]),
                servers: vec![DnsServer {
                    node: parse("alder"),
                    address: parse("192.0.2.3:53"),
                    domain: "waifu.internal".to_owned(),
                    state: DnsServerState::Failed,
                    message: text("another program has port 53 there"),
                }],
            },
        ),
        Kind::values(
            "DnsServerState",
            [
                DnsServerState::Serving,
                DnsServerState::Failed,
                DnsServerState::Unreachable,
                DnsServerState::Other,
            ],
        ),
        Kind::values(
            "FabricKind",
            [
                FabricKind::Wireguard,
                FabricKind::Static,
                FabricKind::None,
                FabricKind::Other,
            ],
        ),
        Kind::values(
            "MeshBackend",
            [
                MeshBackend::Kernel,
                MeshBackend::Userspace,
                MeshBackend::Other,
            ],
        ),
        Kind::values(
            "NoKvm",
            [
                NoKvm::NoDevice,
                NoKvm::DeviceDenied,
                NoKvm::Pvm,
                NoKvm::NoCpuSupport,
                NoKvm::TestFailed,
                NoKvm::Other,
            ],
        ),
        Kind::values(
            "PoolKind",
            [
                PoolKind::Qcow2,
                PoolKind::Reflink,
                PoolKind::Other("zfs".to_owned()),
            ],
        ),
    ]
}

fn fabric_client() -> FabricClient {
    FabricClient {
        name: parse("laptop"),
        address: parse("10.144.9.2"),
        public_key: super::PUBLIC_KEY.to_owned(),
        created_at: time(4),
        newer_nodes: vec![parse("birch")],
    }
}

fn join_token() -> JoinTokenInfo {
    JoinTokenInfo {
        id: "0f1e2d3c".to_owned(),
        name: text("alder"),
        state: JoinTokenState::Spent,
        created_by: "token=laptop".to_owned(),
        created_at: time(0),
        expires_at: time(59),
        node: text("alder"),
    }
}

fn resources(cpus: u32, gib: u64) -> Resources {
    Resources {
        cpus,
        memory_bytes: ByteSize::gib(gib),
    }
}

pub fn condition(kind: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        ok: false,
        reason: "not-running".to_owned(),
        message: "the metadata service does not run".to_owned(),
        since: time(2),
    }
}

pub fn facts() -> NodeFacts {
    NodeFacts {
        arch: "x86_64".to_owned(),
        cpu_model: "AMD EPYC".to_owned(),
        hypervisor: HypervisorFacts {
            kind: HypervisorKind::Tcg,
            reason: "/dev/kvm does not exist".to_owned(),
            cause: Some(NoKvm::NoDevice),
        },
        agent_version: "0.1.0".to_owned(),
        capacity: resources(16, 64),
        used: resources(6, 18),
        pools: vec![PoolFacts {
            name: parse("main"),
            kind: PoolKind::Qcow2,
            size_bytes: ByteSize::gib(900),
            used_bytes: ByteSize::gib(200),
            promised_bytes: ByteSize::gib(300),
            health: "ok".to_owned(),
            images: Some(vec![digest(0x1a)]),
        }],
        bridges: texts(&["br0"]),
        vlan_bridges: texts(&["br0"]),
        unfit_bridges: map(&[("br1", "its only uplink is wireless")]),
        routes: vec![parse("192.0.2.0/24")],
        conditions: vec![condition("metadata-served")],
        labels: map(&[("rack", "a")]),
        features: texts(&["release"]),
        mesh: Some(MeshFacts {
            public_key: super::PUBLIC_KEY.to_owned(),
            endpoints: vec![parse("192.0.2.3:51820")],
        }),
        mesh_backend: Some(MeshBackend::Kernel),
        peer_port: Some(PeerPortFacts {
            endpoints: vec![parse("192.0.2.3:7374")],
        }),
        dns: Some(DnsFacts {
            domain: "waifu.internal".to_owned(),
            listen: vec![DnsListener {
                address: parse("192.0.2.3:53"),
                error: text("another program has port 53 there"),
            }],
        }),
    }
}

fn node() -> Node {
    let facts = facts();
    Node {
        id: parse(NODE),
        name: parse("alder"),
        state: NodeState::Ready,
        cordoned: true,
        labels: facts.labels,
        arch: Some(facts.arch),
        cpu_model: Some(facts.cpu_model),
        hypervisor: Some(facts.hypervisor),
        agent_version: Some(facts.agent_version),
        capacity: facts.capacity,
        promised: resources(8, 20),
        used: facts.used,
        subnets: vec![parse("10.144.1.0/24")],
        bridges: facts.bridges,
        unfit_bridges: facts.unfit_bridges,
        mesh_backend: facts.mesh_backend,
        pools: facts.pools,
        last_contact: Some(time(3)),
        clock_skew_s: Some(0.5),
        conditions: facts.conditions,
        unmanaged: vec![Unmanaged {
            kind: "volume".to_owned(),
            instance: parse(INSTANCE),
            name: text("web"),
            volume: Some(VolumeId {
                instance: parse(INSTANCE),
                disk: parse("root"),
            }),
            running: true,
            addresses: vec![parse("10.144.1.12")],
            adoptable: true,
        }],
        confirmed: true,
    }
}

fn drain() -> Drain {
    let waiting = DrainedInstance {
        id: parse(INSTANCE),
        name: parse("big"),
        memory_bytes: ByteSize::gib(64),
        deleting: false,
        moving: None,
        to: None,
        obstacle: Some(objects::problem()),
    };
    let moving = DrainedInstance {
        name: parse("web"),
        moving: Some(instances::moving(MoveState::Copying)),
        to: Some(parse("birch")),
        obstacle: None,
        ..waiting.clone()
    };
    Drain {
        node: parse("alder"),
        draining: true,
        began_at: Some(time(3)),
        new_address: true,
        instances: vec![moving, waiting],
        arriving: vec![parse("guest")],
    }
}
