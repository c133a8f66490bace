//! Instances: requests, descriptions, states and explanations.

use std::collections::BTreeMap;

use waifud_api::instance::{CreateNic, PlacementVerdict};
use waifud_api::{
    CreateInstance, DryRun, Instance, InstanceDescription, InstanceMove, MoveInstance, Publish,
    RecreateInstance, SetFirewall, UpdateInstance, Why,
};
use waifud_types::evidence::{Dropped, GuestEvidence, ModuleResult, ModuleSeen, RequestSeen};
use waifud_types::spec::{
    DiskSpec, InstanceSpec, NicSpec, PlacementSpec, Protocol, PublishSpec, RestartPolicy,
    SpreadSpec, Unreported, UserDataFacts,
};
use waifud_types::status::{
    AddressFamily, AddressSource, CloudInitState, CloudInitStatus, HypervisorKind, InstanceAddress,
    InstanceStatus, NicState, NicStatus, ReadyBy, StepStatus, StoppedBy,
};
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{
    ByteSize, Coded, CopyPath, Generation, InstanceState, MoveState, PowerSpec, Reboot,
    RescueBegin, RescueOrder, RescueSpec, Verdict, VlanId, WaitReason,
};

use super::{INSTANCE, Kind, digest, firewall, map, nodes, objects, parse, text, texts, time};

const MOVE_STATES: [MoveState; 7] = [
    MoveState::Preparing,
    MoveState::Stopping,
    MoveState::Copying,
    MoveState::Starting,
    MoveState::Removing,
    MoveState::Canceling,
    MoveState::Other,
];
const KEY: &str = "ssh-ed25519 AAAA laptop";

pub fn kinds() -> Vec<Kind> {
    let instances = InstanceState::ALL.map(|state| (state.as_str(), instance(state)));
    let restart = [
        RestartPolicy::Always,
        RestartPolicy::OnCrash,
        RestartPolicy::Never,
    ];
    vec![
        Kind::of("Instance", instances),
        Kind::values("InstanceState", InstanceState::ALL),
        Kind::page("Page_Instance", instance(InstanceState::Running)),
        Kind::request(
            "CreateInstance",
            [("full", create()), ("short", short_create())],
        ),
        Kind::one("InstanceDescription", description()),
        Kind::page("Page_InstanceDescription", description()),
        Kind::request(
            "UpdateInstance",
            [
                ("full", update()),
                ("end-rescue", end_rescue()),
                ("empty", UpdateInstance::default()),
            ],
        ),
        Kind::request(
            "RecreateInstance",
            [(
                "",
                RecreateInstance {
                    node: Some(parse("birch")),
                },
            )],
        ),
        Kind::request(
            "MoveInstance",
            [(
                "",
                MoveInstance {
                    to: Some(parse("birch")),
                    new_address: true,
                },
            )],
        ),
        Kind::of(
            "InstanceMove",
            MOVE_STATES.map(|state| (state.as_str(), moving(state))),
        ),
        Kind::values(
            "CopyPath",
            [CopyPath::Direct, CopyPath::Waifud, CopyPath::Other],
        ),
        Kind::one("Why", why()),
        Kind::one("DryRun", dry_run()),
        Kind::values("RestartPolicy", restart),
        Kind::values("Protocol", [Protocol::Tcp, Protocol::Udp]),
        Kind::values("Reboot", [Reboot::Clean, Reboot::Force]),
        Kind::values(
            "Unreported",
            [
                Unreported::VendorDataDisabled,
                Unreported::ReporterOverridden,
                Unreported::PartMayOverride,
            ],
        ),
        Kind::values(
            "ReadyBy",
            [
                ReadyBy::GuestAgent,
                ReadyBy::Reporter,
                ReadyBy::Console,
                ReadyBy::PhoneHome,
                ReadyBy::Other,
            ],
        ),
        Kind::values(
            "NicState",
            [
                NicState::Attached,
                NicState::Adding,
                NicState::NextStart,
                NicState::Removing,
                NicState::Off,
                NicState::Other,
            ],
        ),
        Kind::request("CreateNic", [("", create_nic())]),
        Kind::values("HypervisorKind", [HypervisorKind::Kvm, HypervisorKind::Tcg]),
        Kind::values(
            "StoppedBy",
            [
                StoppedBy::User,
                StoppedBy::Guest,
                StoppedBy::Crash,
                StoppedBy::Host,
                StoppedBy::Outside,
            ],
        ),
        Kind::values("AddressFamily", [AddressFamily::Ipv4, AddressFamily::Ipv6]),
        Kind::values(
            "AddressSource",
            [AddressSource::Assigned, AddressSource::Observed],
        ),
        Kind::values(
            "CloudInitState",
            [
                CloudInitState::Pending,
                CloudInitState::Running,
                CloudInitState::Done,
                CloudInitState::Degraded,
                CloudInitState::Error,
                CloudInitState::Disabled,
                CloudInitState::Unknown,
            ],
        ),
        Kind::values(
            "ModuleResult",
            [
                ModuleResult::Success,
                ModuleResult::Warn,
                ModuleResult::Fail,
            ],
        ),
    ]
}

fn placement() -> PlacementSpec {
    PlacementSpec {
        node: Some(parse("alder")),
        require: map(&[("disk", "ssd")]),
        spread: Some(SpreadSpec {
            group: parse("front"),
            strict: true,
        }),
        near: Some(parse("db")),
    }
}

/// Every optional part has a value.
pub fn spec() -> InstanceSpec {
    InstanceSpec {
        template: parse("debian-12"),
        image: digest(0x1a),
        cpus: 2,
        memory_bytes: ByteSize::gib(2),
        run: true,
        power: PowerSpec {
            force_off: true,
            reboots: 3,
            force_reboot: true,
        },
        rescue: Some(RescueSpec {
            template: parse("tiny"),
            image: digest(0xcc),
            datasource: Datasource::Cidata,
            firmware: Firmware::Bios,
            ssh_keys: texts(&[KEY]),
        }),
        restart: RestartPolicy::OnCrash,
        priority: 10,
        protected: true,
        disks: vec![DiskSpec {
            name: parse("root"),
            size_bytes: ByteSize::gib(20),
            pool: parse("main"),
        }],
        nics: vec![NicSpec {
            name: parse("nic0"),
            network: parse("lan"),
            mac: parse("52:54:00:01:02:03"),
            address: Some(parse("192.168.1.50")),
            prefix_len: Some(24),
            gateway: Some(parse("192.168.1.1")),
            vlan: Some(vlan()),
            allow_addresses: vec![parse("192.168.1.200/32")],
        }],
        publish: vec![PublishSpec {
            port: 8080,
            guest_port: 80,
            protocol: Protocol::Tcp,
        }],
        firewall: firewall::spec(),
        placement: placement(),
        user_data: Some(UserDataFacts {
            size_bytes: 120,
            sha256: digest(0xda),
            unreported: Some(Unreported::ReporterOverridden),
            replaces_final_message: true,
        }),
    }
}

/// Every optional part has a value, even if no instance has all of them at once.
pub fn status() -> InstanceStatus {
    let wait = WaitReason::NodePreparing {
        node: parse("alder"),
    };
    InstanceStatus {
        observed_generation: Some(Generation(4)),
        state: InstanceState::Running,
        reason: Some(wait.to_string()),
        cause: Some(Coded::encode(&wait)),
        ready: true,
        ready_by: Some(ReadyBy::Reporter),
        last_ready_by: Some(ReadyBy::GuestAgent),
        node: Some(parse("alder")),
        hypervisor: Some(HypervisorKind::Kvm),
        started_at: Some(time(5)),
        stopped_by: Some(StoppedBy::User),
        last_state: Some(InstanceState::Running),
        last_seen: Some(time(6)),
        addresses: vec![InstanceAddress {
            address: parse("192.168.1.50"),
            family: AddressFamily::Ipv4,
            network: parse("lan"),
            source: AddressSource::Assigned,
            primary: true,
        }],
        nics: vec![NicStatus {
            name: parse("eth0"),
            network: parse("lan"),
            mac: parse("52:54:00:12:34:56"),
            state: NicState::Removing,
            reason: text("the guest has not released it yet"),
        }],
        step: Some(StepStatus {
            name: "image".to_owned(),
            percent: Some(40),
            since: time(5),
            waiting_for: text("waifud"),
        }),
        restart_needed: texts(&["cpus"]),
        cloud_init: CloudInitStatus {
            state: CloudInitState::Degraded,
            instance_id: text("i-1"),
            datasource: text("DataSourceOpenStackLocal"),
            errors: texts(&["unable to locate package ngnix"]),
            unknown_because: text("the guest agent does not run"),
        },
        conditions: vec![nodes::condition("metadata-served")],
    }
}

pub fn evidence() -> GuestEvidence {
    GuestEvidence {
        requests: vec![RequestSeen {
            path: "/openstack/latest/user_data".to_owned(),
            status: 200,
            count: 2,
            at: time(6),
        }],
        dhcp_acknowledged_at: Some(time(6)),
        dropped: Some(Dropped {
            spoofed: 1,
            to_host: 2,
        }),
        firewall: Some(firewall::counts()),
        modules: vec![ModuleSeen {
            name: "modules-final/scripts-user".to_owned(),
            at: time(7),
            result: Some(ModuleResult::Fail),
            took_ms: Some(250),
        }],
        console: texts(&["[FAILED] Failed to start nginx"]),
    }
}

/// A pending instance has no node yet; the others have all parts.
fn instance(state: InstanceState) -> Instance {
    let status = match state {
        InstanceState::Pending => InstanceStatus::pending(text("waiting for: a node")),
        state => InstanceStatus { state, ..status() },
    };
    Instance {
        id: parse(INSTANCE),
        name: parse("web"),
        labels: map(&[("team", "blue")]),
        generation: Generation(4),
        created_at: time(0),
        spec: spec(),
        status,
        moving: (state == InstanceState::Moving).then(|| moving(MoveState::Copying)),
    }
}

pub fn moving(state: MoveState) -> InstanceMove {
    InstanceMove {
        from: parse("alder"),
        to: parse("birch"),
        state,
        began_at: time(3),
        done_bytes: Some(ByteSize::mib(20)),
        total_bytes: Some(ByteSize::mib(300)),
        reason: text("pool main is full"),
        path: Some(CopyPath::Direct),
    }
}

fn publish() -> Publish {
    Publish {
        port: 8080,
        guest_port: Some(80),
        protocol: Protocol::Udp,
    }
}

fn short_create() -> CreateInstance {
    CreateInstance {
        name: None,
        labels: BTreeMap::new(),
        template: "debian-12".to_owned(),
        cpus: None,
        memory_bytes: None,
        disk_bytes: None,
        pool: None,
        user_data: None,
        ssh_keys: Vec::new(),
        run: None,
        restart: RestartPolicy::default(),
        priority: 0,
        protected: false,
        mac: None,
        nics: Vec::new(),
        publish: Vec::new(),
        firewall: SetFirewall::default(),
        placement: PlacementSpec::default(),
    }
}

fn create() -> CreateInstance {
    CreateInstance {
        name: text("web"),
        labels: map(&[("team", "blue")]),
        template: "debian-12".to_owned(),
        cpus: Some(2),
        memory_bytes: Some(ByteSize::gib(2)),
        disk_bytes: Some(ByteSize::gib(20)),
        pool: text("main"),
        user_data: Some("#cloud-config\n".to_owned().into()),
        ssh_keys: texts(&[KEY]),
        run: Some(true),
        restart: RestartPolicy::Always,
        priority: 10,
        protected: true,
        mac: Some(parse("52:54:00:01:02:03")),
        nics: vec![create_nic()],
        publish: vec![publish()],
        firewall: firewall::set(),
        placement: placement(),
    }
}

fn vlan() -> VlanId {
    20.try_into().unwrap()
}

fn create_nic() -> CreateNic {
    CreateNic {
        network: text("lan"),
        address: text("192.168.1.50/24"),
        gateway: text("192.168.1.1"),
        vlan: Some(vlan().get()),
        allow_addresses: texts(&["192.168.1.200"]),
        mac: Some(parse("52:54:00:01:02:03")),
    }
}

fn description() -> InstanceDescription {
    InstanceDescription {
        id: parse(INSTANCE),
        generation: Generation(4),
        description: create(),
    }
}

fn update() -> UpdateInstance {
    let labels = [("team".to_owned(), text("blue")), ("old".to_owned(), None)];
    UpdateInstance {
        run: Some(true),
        force: true,
        reboot: Some(Reboot::Force),
        rescue: Some(RescueOrder::Begin(RescueBegin {
            template: "tiny".to_owned(),
            ssh_keys: texts(&[KEY]),
        })),
        cpus: Some(4),
        memory_bytes: Some(ByteSize::gib(4)),
        disk_bytes: Some(ByteSize::gib(40)),
        protected: Some(true),
        publish: Some(vec![publish()]),
        firewall: Some(firewall::set()),
        user_data: Some("#cloud-config\n".to_owned().into()),
        re_run: true,
        labels: labels.into(),
        restart: Some(RestartPolicy::Never),
        priority: Some(10),
        placement: Some(placement()),
    }
}

fn end_rescue() -> UpdateInstance {
    UpdateInstance {
        rescue: Some(RescueOrder::End),
        ..UpdateInstance::default()
    }
}

pub fn verdict() -> PlacementVerdict {
    let fits = Verdict::Fits {
        free_bytes: ByteSize::gib(46),
        total_bytes: ByteSize::gib(64),
        group_members: 1,
        near: Some(parse("db")),
        image: Some(true),
    };
    PlacementVerdict::new(parse("alder"), Some(0.5), &fits)
}

fn why() -> Why {
    let hints = objects::hints();
    Why {
        instance: instance(InstanceState::Running),
        summary: "web: not ready 2m".to_owned(),
        placement: vec![verdict()],
        timeline: vec![objects::event()],
        hint: waifud_api::hint::in_english(&hints),
        hints,
        evidence: Some(evidence()),
    }
}

fn dry_run() -> DryRun {
    let wait = WaitReason::NodeUnreachable {
        node: parse("alder"),
    };
    DryRun {
        node: Some(parse("alder")),
        reason: Some(wait.to_string()),
        cause: Some(Coded::encode(&wait)),
        placement: vec![verdict()],
    }
}
