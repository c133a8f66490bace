//! The protocol between waifud and node agents, and commands for guest agents.

use waifud_api::agent::{
    AgentInstance, AgentReport, BundleRef, DiskTicket, Hello, ImageCopied, ImageTicket,
    ImageTicketOrder, ImageTickets, Incoming, InstanceName, InstanceReport, MeshClient,
    MeshClients, MessageOrder, NodeNames, NodeSlice, OwnNode, Peer, Receiving, RedisAccess,
    Release, Released, RescueImage, SliceKey, SliceObject, Ticket, TicketOrder, Tombstone,
    Unmanaged, WatchFrame, Welcome,
};
use waifud_api::guest_command::{ExecRequest, ExecResult, GuestAnswer, GuestCommand, SetPassword};
use waifud_api::join::{JoinRequest, Joined};
use waifud_api::stream::{RefusalReason, StreamId, StreamKind, StreamOrder, StreamRefusal};
use waifud_types::status::StoppedBy;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{
    ByteSize, CopyPath, Epoch, FabricKind, Generation, Incarnation, ReceiveState, Secret, VolumeId,
};

use super::{
    INSTANCE, Kind, NODE, PUBLIC_KEY, REVISION, digest, firewall, instances, map, nodes, parse,
    text, texts, time,
};

const PROCESS: &str = "0198d2a8-3333-4000-8000-00000000000c";
const PEM: &str = "-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n";

pub fn kinds() -> Vec<Kind> {
    let refusals = RefusalReason::ALL.map(|reason| StreamRefusal {
        reason,
        message: "the guest is off".to_owned(),
    });
    vec![
        Kind::one("Hello", hello()),
        Kind::one("Welcome", welcome()),
        Kind::one("OwnNode", OwnNode { node: parse(NODE) }),
        Kind::of("WatchFrame", frames()),
        Kind::of(
            "AgentReport",
            [("full", report()), ("empty", AgentReport::default())],
        ),
        Kind::one(
            "JoinRequest",
            JoinRequest {
                secret: "c2VjcmV0".to_owned().into(),
                csr: PEM.replace("CERTIFICATE", "CERTIFICATE REQUEST"),
                name: parse("alder"),
            },
        ),
        Kind::one(
            "Joined",
            Joined {
                node: parse(NODE),
                name: parse("alder"),
                certificate: PEM.to_owned(),
                ca: PEM.to_owned(),
                addresses: texts(&["https://192.0.2.200:7373"]),
            },
        ),
        Kind::one(
            "DiskTicket",
            DiskTicket {
                ticket: Ticket::from_bytes([0xa5; 32]),
                source: parse(NODE),
                source_key: digest(0x4e),
                endpoints: vec![parse("192.0.2.3:7374"), parse("[2001:db8::3]:7374")],
            },
        ),
        Kind::one(
            "ImageTickets",
            ImageTickets {
                sources: vec![ImageTicket {
                    ticket: Ticket::from_bytes([0xa5; 32]),
                    source: parse(NODE),
                    source_name: parse("alder"),
                    source_key: digest(0x4e),
                    endpoints: vec![parse("192.0.2.3:7374")],
                }],
            },
        ),
        Kind::one(
            "ImageCopied",
            ImageCopied {
                source: parse(NODE),
            },
        ),
        Kind::values("StreamRefusal", refusals.clone()),
        Kind::request("ExecRequest", [("", exec())]),
        Kind::one("ExecResult", exec_result()),
        Kind::request("SetPassword", [("", password())]),
        Kind::request(
            "GuestCommand",
            [
                ("exec", GuestCommand::Exec(exec())),
                ("set-password", GuestCommand::SetPassword(password())),
            ],
        ),
        Kind::of(
            "GuestAnswer",
            [
                ("exec", GuestAnswer::Exec(exec_result())),
                ("password-set", GuestAnswer::PasswordSet),
                ("timed-out", GuestAnswer::TimedOut),
                ("refused", GuestAnswer::Refused(refusals[0].clone())),
            ],
        ),
    ]
}

fn order() -> MessageOrder {
    MessageOrder {
        process: parse(PROCESS),
        number: 9,
    }
}

fn hello() -> Hello {
    Hello {
        name: parse("alder"),
        facts: nodes::facts(),
        now: time(0),
        boot_id: Some(parse(PROCESS)),
        incarnation: Some(Incarnation(0xab)),
        order: Some(order()),
        hardware: Some(digest(4)),
    }
}

fn welcome() -> Welcome {
    Welcome {
        node: parse(NODE),
        incarnation: Incarnation(0xab),
        addresses: texts(&["https://192.0.2.200:7373"]),
    }
}

fn frames() -> Vec<(&'static str, WatchFrame)> {
    let revision = parse(REVISION);
    let put = |object| WatchFrame::Put { revision, object };
    let delete = |key| WatchFrame::Delete { revision, key };
    let stream = |kind| {
        WatchFrame::Stream(StreamOrder {
            id: StreamId::from_bytes([0xa5; 32]),
            instance: parse(INSTANCE),
            epoch: Epoch(3),
            kind,
        })
    };
    let lines = 100;
    let log = StreamKind::ConsoleLog {
        lines,
        follow: true,
    };
    vec![
        ("put-node", put(SliceObject::Node(node_slice()))),
        (
            "put-instance",
            put(SliceObject::Instance(Box::new(record()))),
        ),
        ("put-peer", put(SliceObject::Peer(peer()))),
        (
            "put-incoming",
            put(SliceObject::Incoming(Box::new(incoming()))),
        ),
        (
            "delete-instance",
            delete(SliceKey::Instance(parse(INSTANCE))),
        ),
        ("delete-peer", delete(SliceKey::Peer(parse(NODE)))),
        (
            "tombstone",
            WatchFrame::Tombstone {
                revision,
                tombstone: tombstone(),
            },
        ),
        (
            "release",
            WatchFrame::Release {
                revision,
                release: Release {
                    instance: parse(INSTANCE),
                    epoch: Epoch(3),
                    stop: true,
                },
            },
        ),
        ("names", names()),
        ("sync", WatchFrame::Sync { revision }),
        ("stream-console", stream(StreamKind::Console)),
        ("stream-console-log", stream(log)),
        (
            "stream-cloud-init-log",
            stream(StreamKind::CloudInitLog { lines }),
        ),
        ("stream-guest-command", stream(StreamKind::GuestCommand)),
        ("stream-ssh", stream(StreamKind::Ssh)),
        ("stream-forward", stream(StreamKind::Forward { port: 80 })),
        ("stream-screen", stream(StreamKind::Screen)),
        (
            "stream-disk",
            stream(StreamKind::Disk {
                index: 1,
                from: 3 << 20,
            }),
        ),
        (
            "ticket",
            WatchFrame::Ticket(TicketOrder {
                ticket: digest(0x7c),
                instance: parse(INSTANCE),
                epoch: Epoch(3),
                index: 1,
                receiver: parse(NODE),
                receiver_key: digest(0x4e),
                valid_s: 30,
            }),
        ),
        (
            "image-ticket",
            WatchFrame::ImageTicket(ImageTicketOrder {
                ticket: digest(0x7c),
                image: digest(0x1a),
                receiver: parse(NODE),
                receiver_key: digest(0x4e),
                valid_s: 30,
            }),
        ),
        ("ping", WatchFrame::Ping),
    ]
}

fn names() -> WatchFrame {
    let web = InstanceName {
        name: parse("web"),
        addresses: vec![[10, 144, 1, 7].into(), [10, 144, 1, 9].into()],
    };
    let names = NodeNames {
        node: parse(NODE),
        revision: parse(REVISION),
        names: vec![web],
    };
    WatchFrame::Names { nodes: vec![names] }
}

fn incoming() -> Incoming {
    Incoming {
        id: parse(INSTANCE),
        name: parse("web"),
        epoch: Epoch(3),
        source: parse("birch"),
        image: digest(1),
        image_size_bytes: ByteSize::mib(300),
        disks: instances::spec().disks,
        copy: true,
        was_on: false,
        stopped_by: Some(StoppedBy::Guest),
    }
}

fn receiving() -> Vec<Receiving> {
    let states = [
        (ReceiveState::Preparing, None),
        (ReceiveState::Prepared, None),
        (ReceiveState::Copying, Some(CopyPath::Direct)),
        (ReceiveState::Received, Some(CopyPath::Waifud)),
        (ReceiveState::Other, Some(CopyPath::Other)),
    ];
    let receiving = |(state, path)| Receiving {
        instance: parse(INSTANCE),
        epoch: Epoch(3),
        state,
        done_bytes: ByteSize::mib(20),
        total_bytes: ByteSize::mib(300),
        reason: text("pool main is full"),
        path,
    };
    states.into_iter().map(receiving).collect()
}

fn node_slice() -> NodeSlice {
    NodeSlice {
        clients: Some(MeshClients {
            subnet: parse("10.144.9.0/24"),
            clients: vec![MeshClient {
                name: parse("laptop"),
                address: parse("10.144.9.2"),
                public_key: super::PUBLIC_KEY.to_owned(),
            }],
        }),
        id: parse(NODE),
        name: parse("alder"),
        subnet: parse("10.144.1.0/24"),
        gateway: parse("10.144.1.1"),
        gateway_mac: parse("52:54:00:00:00:01"),
        confirmed: Some(Incarnation(0xab)),
        fabric: FabricKind::Wireguard,
        redis: Some(redis_access()),
    }
}

pub fn redis_access() -> RedisAccess {
    RedisAccess {
        url: "rediss://cache.lan:6380".to_owned(),
        ca: text("-----BEGIN CERTIFICATE-----\n"),
        username: text("waifud-node"),
        password: Some(Secret::new("secret".to_owned())),
        prefix: "waifud".to_owned(),
    }
}

fn peer() -> Peer {
    Peer {
        id: parse(NODE),
        name: parse("birch"),
        subnets: vec![parse("10.144.2.0/24")],
        extra: vec![parse("10.144.1.7/32")],
        public_key: Some(PUBLIC_KEY.to_owned()),
        endpoints: vec![parse("192.0.2.3:51820"), parse("[2001:db8::3]:51820")],
        reachable: true,
    }
}

fn tombstone() -> Tombstone {
    Tombstone {
        instance: parse(INSTANCE),
        name: parse("web"),
        epoch: Epoch(3),
    }
}

pub fn bundle() -> BundleRef {
    BundleRef {
        digest: digest(0xb0),
        key: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
            .to_owned()
            .into(),
        size_bytes: 2048,
    }
}

fn record() -> AgentInstance {
    AgentInstance {
        id: parse(INSTANCE),
        name: parse("web"),
        epoch: Epoch(3),
        generation: Generation(4),
        spec: instances::spec(),
        image_size_bytes: ByteSize::mib(300),
        image_virtual_size_bytes: ByteSize::gib(3),
        rescue_image: Some(RescueImage {
            digest: digest(0xcc),
            size_bytes: ByteSize::mib(20),
            virtual_size_bytes: ByteSize::mib(100),
        }),
        datasource: Datasource::Nocloud,
        firmware: Firmware::Uefi,
        bundle: bundle(),
        restored: true,
        bridges: map(&[("lan", "br0")]),
        home: Some(parse("10.144.2.0/24")),
        firewall_peers: firewall::addresses(),
    }
}

/// Every optional part has a value.
fn report() -> AgentReport {
    AgentReport {
        facts: Some(nodes::facts()),
        now: Some(time(1)),
        instances: vec![instance_report()],
        destroyed: vec![tombstone()],
        released: vec![Released {
            instance: parse(INSTANCE),
            epoch: Epoch(3),
            off: true,
        }],
        receiving: receiving(),
        unmanaged: Some(vec![Unmanaged {
            kind: "volume".to_owned(),
            instance: parse(INSTANCE),
            name: text("web"),
            volume: Some(VolumeId {
                instance: parse(INSTANCE),
                disk: parse("root"),
            }),
            running: true,
            addresses: vec![parse("10.144.1.12")],
            record: Some(Box::new(record())),
            bundle: text("AAEC"),
        }]),
        order: Some(order()),
        boot_id: Some(parse(PROCESS)),
    }
}

fn instance_report() -> InstanceReport {
    let status = instances::status();
    InstanceReport {
        id: parse(INSTANCE),
        epoch: Epoch(3),
        observed_generation: Generation(4),
        state: status.state,
        reason: status.reason,
        started_at: status.started_at,
        stopped_by: status.stopped_by,
        hypervisor: status.hypervisor,
        ready: status.ready,
        ready_by: status.ready_by,
        addresses: status.addresses,
        nics: Some(status.nics),
        step: status.step,
        restart_needed: status.restart_needed,
        cloud_init: status.cloud_init,
        conditions: status.conditions,
        evidence: Some(instances::evidence()),
    }
}

fn exec() -> ExecRequest {
    ExecRequest {
        command: texts(&["cat", "-n"]),
        timeout_s: Some(5),
        stdin_base64: Some("aGVsbG8=".to_owned().into()),
    }
}

fn exec_result() -> ExecResult {
    ExecResult {
        exit_code: 1,
        stdout_base64: "aGVsbG8=".to_owned(),
        stderr_base64: "d29ybGQ=".to_owned(),
        truncated: true,
    }
}

fn password() -> SetPassword {
    SetPassword {
        user: "debian".to_owned(),
        password: "hunter2".to_owned().into(),
    }
}
