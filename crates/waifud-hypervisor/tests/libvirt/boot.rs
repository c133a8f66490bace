//! A real guest, from an image in a pool to its guest agent, through both adapters.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD as BASE64, Engine as _};
use serde_json::json;
use waifud_hypervisor::{DomainDisk, DomainEventKind, DomainState, Hypervisor, OffReason};
use waifud_images::{Guest, build, default_cache_dir};
use waifud_lab::testing;
use waifud_storage::StoragePool;
use waifud_storage::qcow2::{Qcow2Pool, Qcow2PoolConfig};
use waifud_types::{ByteSize, Digest, InstanceId, VolumeId};

use crate::node::{Node, QEMU, hear, until};

/// Emulated, on a machine that may be busy with other tests.
const BOOT: Duration = Duration::from_mins(3);

#[tokio::test(flavor = "multi_thread")]
async fn the_tiny_guest_boots_to_its_agent_and_shuts_down_when_asked() {
    let Some(node) = Node::up() else { return };
    let built = match build(Guest::Tiny, &default_cache_dir(), &|step| {
        eprintln!("{step}");
    }) {
        Ok(built) => built,
        Err(error) => {
            testing::skip(&format!("the tiny image can't be built: {error:#}")).unwrap();
            return;
        }
    };
    let place = node.lab.path_outside("/var/lib/pool");
    let mut config = Qcow2PoolConfig::new("main".parse().unwrap(), &place);
    config.volume_owner = Some((QEMU, QEMU));
    config.image_user = Some((65534, 65534));
    let pool = Qcow2Pool::open(config).unwrap();
    let image: Digest = built.sha256.parse().unwrap();
    std::fs::copy(&built.qcow2, pool.staging_path(image).await.unwrap()).unwrap();
    let begin = Instant::now();
    pool.import_image(image).await.unwrap();
    let imported = begin.elapsed();

    let id = InstanceId::generate();
    let volume = VolumeId {
        instance: id,
        disk: "root".parse().unwrap(),
    };
    let begin = Instant::now();
    let path = pool
        .ensure_volume(&volume, image, ByteSize::gib(1))
        .await
        .unwrap();
    let cloned = begin.elapsed();
    let mut spec = Node::spec(id, "tiny");
    spec.memory = ByteSize::mib(192);
    spec.disks.push(DomainDisk {
        name: "root".parse().unwrap(),
        // The same file as the node sees it.
        path: std::path::Path::new("/var/lib/pool/volumes").join(path.file_name().unwrap()),
    });
    let mut events = node.hypervisor.events();
    let begin = Instant::now();
    node.hypervisor.ensure_defined(&spec).await.unwrap();
    node.hypervisor.ensure_started(id).await.unwrap();
    let started = begin.elapsed();

    let log = node.lab.path_outside(&spec.console_log);
    let begin = Instant::now();
    until("the guest's own line on the console", || async {
        assert!(begin.elapsed() < BOOT);
        let text = std::fs::read(&log).unwrap_or_default();
        String::from_utf8_lossy(&text).contains("tiny: looking for metadata")
    })
    .await;
    let ask = |command| {
        node.hypervisor
            .agent_command(id, command, Duration::from_secs(5))
    };
    let mut answered = false;
    while !answered {
        assert!(begin.elapsed() < BOOT, "the guest agent never answered");
        answered = ask(json!({"execute": "guest-ping"})).await.is_ok();
        if !answered {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    let talking = begin.elapsed();
    hear(&mut events, DomainEventKind::AgentChanged).await;
    let info = ask(json!({"execute": "guest-info"})).await.unwrap();
    assert!(info["version"].is_string(), "{info}");
    // The guest's own idea of its machine is what cloud-init goes by.
    let product = read_file(&node, id, "/sys/class/dmi/id/product_name").await;
    assert_eq!(product, "OpenStack Nova\n");
    let serial = read_file(&node, id, "/sys/class/dmi/id/product_serial").await;
    assert_eq!(serial.trim(), id.to_string());

    // QEMU has the volume and not the image that others share.
    let stored = place.join(format!("images/{}.qcow2", image.hex()));
    assert_eq!(std::fs::metadata(&stored).unwrap().uid(), 0);
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), QEMU);

    node.hypervisor.request_shutdown(id).await.unwrap();
    until("the guest's own power-off", || async {
        let seen = node.hypervisor.get(id).await.unwrap().unwrap();
        seen.state == DomainState::Off(OffReason::GuestShutdown)
    })
    .await;
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), QEMU);
    node.hypervisor.ensure_absent(id).await.unwrap();
    pool.ensure_volume_absent(&volume).await.unwrap();
    pool.ensure_image_absent(image).await.unwrap();
    eprintln!(
        "import {imported:?}, clone {cloned:?}, define and start {started:?}, agent after {talking:?}"
    );
}

/// Reads a small file in the guest, as the agent's readiness check does.
async fn read_file(node: &Node, id: InstanceId, path: &str) -> String {
    let limit = Duration::from_secs(10);
    let run = json!({"execute": "guest-exec", "arguments":
        {"path": "/bin/cat", "arg": [path], "capture-output": true}});
    let pid = node.hypervisor.agent_command(id, run, limit).await.unwrap()["pid"].clone();
    loop {
        let ask = json!({"execute": "guest-exec-status", "arguments": {"pid": pid}});
        let status = node.hypervisor.agent_command(id, ask, limit).await.unwrap();
        if status["exited"] == true {
            let text = status["out-data"].as_str().unwrap_or_default();
            return String::from_utf8(BASE64.decode(text).unwrap()).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
