//! A real guest, from an image in a pool to its guest agent, through both adapters.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD as BASE64, Engine as _};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use waifud_hypervisor::{
    DomainDisk, DomainEventKind, DomainSpec, DomainState, Hypervisor, HypervisorError, LiveNic,
    OffReason,
};
use waifud_images::{Guest, build, default_cache_dir};
use waifud_lab::testing;
use waifud_storage::FilePoolConfig;
use waifud_storage::StoragePool;
use waifud_storage::qcow2::Qcow2Pool;
use waifud_types::{ByteSize, Digest, InstanceId, Name, VolumeId, VolumeSource};

use crate::domains::isolated_nic;
use crate::node::{Node, QEMU, until, wait_for_event};

/// The time limit of a boot: emulated, on a machine that may be busy with other tests.
const BOOT: Duration = Duration::from_mins(3);
/// The path of the pool inside the node.
const POOL: &str = "/var/lib/pool";

/// Held while a guest runs, because emulated guests slow each other down.
static GUEST_LOCK: Mutex<()> = Mutex::const_new(());

/// The tiny guest's volume in a pool of the node, and a spec that boots from it.
struct Tiny {
    pool: Qcow2Pool,
    image: Digest,
    volume: VolumeId,
    path: PathBuf,
    spec: DomainSpec,
}

impl Tiny {
    /// `None` if the image cannot be built here; the skip is reported.
    async fn new(node: &Node) -> Option<Self> {
        let built = match build(Guest::Tiny, &default_cache_dir(), &|step| {
            eprintln!("{step}");
        }) {
            Ok(built) => built,
            Err(error) => {
                testing::skip(&format!("cannot build the tiny image: {error:#}")).unwrap();
                return None;
            }
        };
        let mut config = FilePoolConfig::new("main".parse().unwrap(), node.lab.path_outside(POOL));
        config.volume_owner = Some((QEMU, QEMU));
        config.image_user = Some((65534, 65534));
        let pool = Qcow2Pool::open(config).unwrap();
        let image: Digest = built.sha256.parse().unwrap();
        std::fs::copy(&built.qcow2, pool.staging_path(image).await.unwrap()).unwrap();
        let start = Instant::now();
        pool.import_image(image).await.unwrap();
        let imported = start.elapsed();

        let id = InstanceId::generate();
        let disk: Name = "root".parse().unwrap();
        let volume = VolumeId {
            instance: id,
            disk: disk.clone(),
        };
        let start = Instant::now();
        let source = pool
            .ensure_volume(&volume, image, ByteSize::gib(1))
            .await
            .unwrap();
        let path = source.path().to_owned();
        eprintln!("import {imported:?}, clone {:?}", start.elapsed());
        let backing = pool.backing(&volume, image).await.unwrap().unwrap();
        // The same files as the node sees them.
        let inside = |directory: &str, path: &Path| {
            let directory = Path::new(POOL).join(directory);
            directory.join(path.file_name().unwrap())
        };
        let mut spec = Node::spec(id, "tiny");
        spec.memory = ByteSize::mib(192);
        spec.disks.push(DomainDisk {
            name: disk,
            source: VolumeSource::File(inside("volumes", &path)),
            format: waifud_types::DiskFormat::Qcow2,
            backing: Some(inside("images", &backing)),
        });
        Some(Self {
            pool,
            image,
            volume,
            path,
            spec,
        })
    }

    /// Starts it and waits until its agent answers.
    async fn boot(&self, node: &Node) {
        let start = Instant::now();
        node.hypervisor.ensure_defined(&self.spec).await.unwrap();
        node.hypervisor.ensure_started(self.spec.id).await.unwrap();
        let started = start.elapsed();
        let log = node.lab.path_outside(&self.spec.console_log);
        while !std::fs::read(&log)
            .is_ok_and(|text| String::from_utf8_lossy(&text).contains("tiny: looking for metadata"))
        {
            assert!(
                start.elapsed() < BOOT,
                "the guest wrote nothing to its console"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let ping = || json!({"execute": "guest-ping"});
        while ask(node, self.spec.id, ping()).await.is_err() {
            assert!(start.elapsed() < BOOT, "the guest agent never answered");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let answered = start.elapsed();
        eprintln!("define and start {started:?}, agent after {answered:?}");
    }
}

async fn ask(node: &Node, id: InstanceId, command: Value) -> Result<Value, HypervisorError> {
    let limit = Duration::from_secs(10);
    node.hypervisor.agent_command(id, command, limit).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tiny_guest_starts_its_agent_and_shuts_down_on_request() {
    let _guard = GUEST_LOCK.lock().await;
    let Some(node) = Node::up() else { return };
    let Some(tiny) = Tiny::new(&node).await else {
        return;
    };
    let id = tiny.spec.id;
    let mut events = node.hypervisor.events();
    tiny.boot(&node).await;
    wait_for_event(&mut events, DomainEventKind::AgentChanged).await;
    let info = ask(&node, id, json!({"execute": "guest-info"}))
        .await
        .unwrap();
    assert!(info["version"].is_string(), "{info}");
    // cloud-init detects its datasource from these values.
    let product = read_file(&node, id, "/sys/class/dmi/id/product_name").await;
    assert_eq!(product, "OpenStack Nova\n");
    let serial = read_file(&node, id, "/sys/class/dmi/id/product_serial").await;
    assert_eq!(serial.trim(), id.to_string());

    // QEMU can access the volume but not the shared image.
    let stored = node.lab.path_outside(POOL);
    let stored = stored.join(format!("images/{}.qcow2", tiny.image.hex()));
    assert_eq!(std::fs::metadata(&stored).unwrap().uid(), 0);
    assert_eq!(std::fs::metadata(&tiny.path).unwrap().uid(), QEMU);

    a_nic_comes_and_goes_while_the_guest_runs(&node, id).await;

    node.hypervisor.request_shutdown(id).await.unwrap();
    until("the guest's own power-off", || async {
        let seen = node.hypervisor.get(id).await.unwrap().unwrap();
        seen.state == DomainState::Off(OffReason::GuestShutdown)
    })
    .await;
    assert_eq!(std::fs::metadata(&tiny.path).unwrap().uid(), QEMU);
    node.hypervisor.ensure_absent(id).await.unwrap();
    tiny.pool.ensure_volume_absent(&tiny.volume).await.unwrap();
    tiny.pool.ensure_image_absent(tiny.image).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_a_full_pool_paused_continues_when_it_is_resumed() {
    let _guard = GUEST_LOCK.lock().await;
    let Some(node) = Node::up() else { return };
    let Some(mut tiny) = Tiny::new(&node).await else {
        return;
    };
    // The pool again, on a small filesystem that only the node sees.
    let small = "/var/lib/small";
    node.run(["mkdir", small]).unwrap();
    let size = "size=72m,mode=0711";
    node.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", small])
        .unwrap();
    node.run(["cp", "-a", &format!("{POOL}/."), small]).unwrap();
    let volume = Path::new(small).join("volumes");
    let volume = volume.join(tiny.path.file_name().unwrap());
    tiny.spec.disks[0].source = VolumeSource::File(volume);
    tiny.boot(&node).await;
    let id = tiny.spec.id;
    let fill = json!({"execute": "guest-exec", "arguments": {"path": "/bin/dd",
        "arg": ["if=/dev/urandom", "of=/fill", "bs=1048576", "count=80"]}});
    ask(&node, id, fill).await.unwrap();
    let state = || async { node.hypervisor.get(id).await.unwrap().unwrap().state };
    until("the pause", || async {
        state().await == DomainState::Paused { io_error: true }
    })
    .await;
    node.run(["mount", "-o", "remount,size=512m", small])
        .unwrap();
    node.hypervisor.ensure_started(id).await.unwrap();
    assert_eq!(state().await, DomainState::Running);
    let ping = json!({"execute": "guest-ping"});
    until("the agent's answer", || async {
        ask(&node, id, ping.clone()).await.is_ok()
    })
    .await;
    node.hypervisor.ensure_absent(id).await.unwrap();
}

/// A nic is added to the running guest, which sees it and later releases it.
async fn a_nic_comes_and_goes_while_the_guest_runs(node: &Node, id: InstanceId) {
    node.run(["ip", "link", "add", "br-test", "type", "bridge"])
        .unwrap();
    node.run(["ip", "link", "set", "br-test", "up"]).unwrap();
    let nic = isolated_nic(id, "br-test");
    let taps = || node.run(["ls", "/sys/class/net"]).unwrap();
    let sees = async || {
        let command = json!({"execute": "guest-network-get-interfaces"});
        let interfaces = ask(node, id, command).await.unwrap();
        interfaces.to_string().contains(&nic.mac.to_string())
    };
    assert!(!sees().await);
    let added = node.hypervisor.ensure_nics(id, std::slice::from_ref(&nic));
    let expected = [(nic.tap.clone(), LiveNic::Attached)];
    assert_eq!(added.await.unwrap(), expected.into());
    until("the guest to see the nic", &sees).await;
    assert!(taps().contains(nic.tap.as_str()));
    let mut events = node.hypervisor.events();
    until("the guest to release the nic", || async {
        let left = node.hypervisor.ensure_nics(id, &[]).await.unwrap();
        left.is_empty()
    })
    .await;
    wait_for_event(&mut events, DomainEventKind::Changed).await;
    assert!(!taps().contains(nic.tap.as_str()));
    assert!(!sees().await);
}

/// Reads a small file in the guest, as the agent's readiness check does.
async fn read_file(node: &Node, id: InstanceId, path: &str) -> String {
    let run = json!({"execute": "guest-exec", "arguments":
        {"path": "/bin/cat", "arg": [path], "capture-output": true}});
    let pid = ask(node, id, run).await.unwrap()["pid"].clone();
    loop {
        let query = json!({"execute": "guest-exec-status", "arguments": {"pid": pid}});
        let status = ask(node, id, query).await.unwrap();
        if status["exited"] == true {
            let text = status["out-data"].as_str().unwrap_or_default();
            return String::from_utf8(BASE64.decode(text).unwrap()).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
