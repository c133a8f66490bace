//! Templates, images, downloads, networks, tokens, capacity, events, problems, and waifud itself.

use waifud_api::hint::{HintAction, HintKind, HintWhen};
use waifud_api::{
    BackupState, Capacity, CatalogEntry, Certificate, CreateDownload, CreateNetwork,
    CreateTemplate, CreateToken, CreatedToken, Database, DirectorySpace, Download, DownloadState,
    Fabric, FabricNode, FabricRoute, Hint, Image, InstanceSize, Network, NetworkNode, NodeFit,
    Problem, RedisState, Server, SetFabric, Survival, Token, UnplacedInstance, Whoami,
};
use waifud_types::event::{Actor, Event, ObjectRef};
use waifud_types::template::{Datasource, Firmware, Template, TemplateOrigin, TemplateRevision};
use waifud_types::{
    ByteSize, Checksum, Coded, DiskSpaceState, FabricKind, Generation, MeshBackend, Role, Verdict,
};

use super::{INSTANCE, Kind, REVISION, digest, instances, nodes, parse, text, texts, time};

const URL: &str = "https://images.example/debian-12.qcow2";
const SUMS: &str = "https://images.example/SHA512SUMS";

pub fn kinds() -> Vec<Kind> {
    let mut failed = download();
    failed.state = DownloadState::Failed;
    failed.error = Some(problem());
    vec![
        Kind::request("CreateTemplate", [("", create_template())]),
        Kind::one("Template", template()),
        Kind::page("Page_Template", template()),
        Kind::one("Image", image()),
        Kind::page("Page_Image", image()),
        Kind::request("CreateDownload", [("", create_download())]),
        Kind::of("Download", [("running", download()), ("failed", failed)]),
        Kind::page("Page_Download", download()),
        Kind::values(
            "DownloadState",
            [
                DownloadState::Running,
                DownloadState::Failed,
                DownloadState::Other,
            ],
        ),
        Kind::one("CatalogEntry", catalog_entry()),
        Kind::page("Page_CatalogEntry", catalog_entry()),
        Kind::request(
            "CreateNetwork",
            [(
                "",
                CreateNetwork {
                    name: "lan".to_owned(),
                    bridge: "br0".to_owned(),
                },
            )],
        ),
        Kind::one("Network", network()),
        Kind::one("Fabric", fabric()),
        Kind::request(
            "SetFabric",
            ["wireguard", "static", "none"].map(|kind| {
                let request = SetFabric {
                    kind: kind.to_owned(),
                };
                (kind, request)
            }),
        ),
        Kind::page("Page_Network", network()),
        Kind::request(
            "CreateToken",
            [(
                "",
                CreateToken {
                    name: "laptop".to_owned(),
                    role: Role::Operator,
                    expires_in_s: Some(3600),
                },
            )],
        ),
        Kind::one(
            "CreatedToken",
            CreatedToken {
                token: token(),
                secret: "waifud_0123456789abcdef_s3cret".to_owned().into(),
                addresses: texts(&["https://192.0.2.200:7373"]),
                ca_fingerprint: Some(digest(0xca)),
            },
        ),
        Kind::page("Page_Token", token()),
        Kind::one(
            "Whoami",
            Whoami {
                name: "token=laptop".to_owned(),
                role: Role::Viewer,
                from: "192.0.2.9".to_owned(),
            },
        ),
        Kind::one("Capacity", capacity()),
        Kind::one("Event", event()),
        Kind::page("Page_Event", event()),
        Kind::one("Problem", problem()),
        Kind::one("Server", server()),
        Kind::values("Datasource", Datasource::ALL),
        Kind::values("Firmware", Firmware::ALL),
        Kind::values("Role", [Role::Viewer, Role::Operator, Role::Admin]),
        Kind::values(
            "DiskSpaceState",
            [
                DiskSpaceState::Ok,
                DiskSpaceState::Low,
                DiskSpaceState::Full,
            ],
        ),
    ]
}

fn checksum() -> Checksum {
    parse(&format!("sha512:{}", "0f".repeat(64)))
}

fn create_template() -> CreateTemplate {
    CreateTemplate {
        name: "debian-12".to_owned(),
        image: digest(0x1a),
        arch: text("x86_64"),
        datasource: Datasource::Ec2,
        firmware: Firmware::Uefi,
        default_user: text("debian"),
    }
}

fn template() -> Template {
    Template {
        name: parse("debian-12"),
        datasource: Datasource::Openstack,
        firmware: Firmware::Bios,
        default_user: text("debian"),
        min_disk_bytes: ByteSize::gib(3),
        current: digest(0x1a),
        used_by: 2,
        source: Some(TemplateOrigin {
            url: URL.to_owned(),
            catalog: text("debian-12"),
            checksum: Some(checksum()),
            checksums_url: text(SUMS),
            checksums_file: text("debian-12.qcow2"),
            insecure_no_checksum: true,
        }),
        revisions: vec![TemplateRevision {
            image: digest(0x1a),
            arch: "x86_64".to_owned(),
            source_url: text(URL),
            checksum: Some(checksum().to_string()),
            seen_at: time(0),
            size_bytes: ByteSize::mib(300),
        }],
    }
}

fn image() -> Image {
    Image {
        digest: digest(0x1a),
        size_bytes: ByteSize::mib(300),
        virtual_size_bytes: ByteSize::gib(3),
        available: false,
        created_at: time(0),
    }
}

fn create_download() -> CreateDownload {
    CreateDownload {
        name: "debian-12".to_owned(),
        catalog: text("debian-12"),
        url: text(URL),
        checksum: Some(checksum()),
        checksums_url: text(SUMS),
        checksums_file: text("debian-12.qcow2"),
        insecure_no_checksum: true,
        arch: text("x86_64"),
        datasource: Some(Datasource::Nocloud),
        firmware: Some(Firmware::Uefi),
        default_user: text("debian"),
    }
}

fn download() -> Download {
    Download {
        name: parse("debian-12"),
        state: DownloadState::Running,
        source_url: URL.to_owned(),
        checksum: Some(checksum()),
        done_bytes: ByteSize::mib(100),
        total_bytes: Some(ByteSize::mib(300)),
        waiting_for: text("the connection was reset; retrying"),
        error: None,
        created_at: time(0),
    }
}

fn catalog_entry() -> CatalogEntry {
    CatalogEntry {
        name: parse("debian-12"),
        title: "Debian 12".to_owned(),
        arch: "x86_64".to_owned(),
        url: URL.to_owned(),
        checksums_url: SUMS.to_owned(),
        default_user: "debian".to_owned(),
        min_memory_bytes: ByteSize::mib(256),
        firmware: Firmware::Uefi,
        datasource: Datasource::Openstack,
        notes: text("needs an hour"),
    }
}

fn fabric() -> Fabric {
    Fabric {
        kind: FabricKind::Wireguard,
        configured: Some(FabricKind::Wireguard),
        nodes: vec![FabricNode {
            node: parse("alder"),
            subnet: parse("10.144.1.0/24"),
            public_key: Some(super::PUBLIC_KEY.to_owned()),
            endpoints: vec![parse("192.0.2.3:51820")],
            mesh_backend: Some(MeshBackend::Kernel),
        }],
        routes: vec![FabricRoute {
            destination: parse("10.144.1.0/24"),
            via: parse("192.0.2.3"),
            node: parse("alder"),
        }],
    }
}

fn network() -> Network {
    let cause = Verdict::NoBridge {
        bridge: "br0".to_owned(),
    };
    Network {
        name: parse("lan"),
        bridge: text("br0"),
        used_by: 2,
        created_at: Some(time(0)),
        nodes: vec![NetworkNode {
            node: parse("alder"),
            usable: false,
            reason: Some(cause.to_string()),
            cause: Some(Coded::encode(&cause)),
        }],
    }
}

fn token() -> Token {
    Token {
        name: parse("laptop"),
        id: "waifud_0123456789abcdef".to_owned(),
        role: Role::Operator,
        created_at: time(0),
        created_by: "uid=0".to_owned(),
        expires_at: Some(time(59)),
        last_used_at: Some(time(1)),
    }
}

fn capacity() -> Capacity {
    let verdict = instances::verdict();
    Capacity {
        size: InstanceSize {
            cpus: 1,
            memory_bytes: ByteSize::gib(1),
            disk_bytes: ByteSize::gib(10),
        },
        more: 46,
        nodes: vec![NodeFit {
            node: parse("alder"),
            more: 46,
            reason: verdict.reason.clone(),
            coded: verdict.coded.clone(),
        }],
        survival: Some(Survival {
            off: vec![parse("birch")],
            fits: false,
            displaced: 3,
            unplaced_count: 1,
            unplaced: vec![UnplacedInstance {
                name: parse("web"),
                node: parse("birch"),
                memory_bytes: ByteSize::gib(64),
                placement: vec![verdict],
            }],
        }),
    }
}

pub fn event() -> Event {
    Event {
        revision: parse(REVISION),
        at: time(1),
        kind: "instance.started".to_owned(),
        object: ObjectRef {
            kind: "instance".to_owned(),
            id: INSTANCE.to_owned(),
            name: "web".to_owned(),
        },
        actor: Actor {
            kind: "user".to_owned(),
            name: "token=laptop".to_owned(),
            from: text("192.0.2.9"),
        },
        request_id: text("req-1"),
        generation: Some(Generation(4)),
        reason: text("by-request"),
        message: "started".to_owned(),
        details: serde_json::json!({ "hypervisor": "kvm" }),
    }
}

pub fn hints() -> Vec<Hint> {
    let memory_bytes = ByteSize::gib(40);
    let resize = HintAction::Resize { memory_bytes };
    vec![
        Hint::on(&resize, HintKind::Instance, "big").when(HintWhen::Otherwise),
        Hint::action(&HintAction::AddNode),
        Hint::on_kind(&HintAction::List, HintKind::Template),
        Hint::advice("switch it on"),
    ]
}

pub fn problem() -> Problem {
    let mut problem = Problem::new(422, "disk-too-small", "disk 1G is smaller than 3G")
        .field("spec.disks[0].size_bytes")
        .detail("the image has 3G");
    for hint in hints() {
        problem = problem.hint(hint);
    }
    problem.request_id = text("req-1");
    problem
}

fn server() -> Server {
    Server {
        version: "0.1.0".to_owned(),
        now: time(0),
        state_dir: DirectorySpace {
            path: "/var/lib/waifud".to_owned(),
            size_bytes: ByteSize::gib(100),
            free_bytes: ByteSize::gib(4),
            state: DiskSpaceState::Low,
            since: time(0),
        },
        database: Database {
            trouble: text("the disk is full"),
        },
        certificates: vec![Certificate {
            name: "ca".to_owned(),
            not_after: time(59),
        }],
        redis: Some(RedisState {
            url: "rediss://cache.lan:6380".to_owned(),
            compared_at: Some(time(7)),
            bundles: 12,
            conditions: vec![nodes::condition("redis")],
        }),
        backup: Some(BackupState {
            target: "birch:/srv/backup".to_owned(),
            last_at: Some(time(5)),
            every_s: Some(900),
            error: text("the disk is full"),
        }),
    }
}
