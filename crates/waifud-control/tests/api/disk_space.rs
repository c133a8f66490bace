//! Low disk space in the state directory: events report it, requests that need space are refused with the next step, and
//! all continues once there is space again. The disk is a fake here; the tests of `waifud` fill a real one.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::{DEADLINE, Server, image};
use crate::mirror::Mirror;
use axum::http::Method;
use serde_json::json;
use waifud_control::env::Disk;
use waifud_types::{ByteSize, DiskSpace};

/// A disk of 100 GiB with as much free space as the test sets.
#[derive(Clone, Debug)]
struct FakeDisk(Arc<AtomicU64>);

impl FakeDisk {
    fn set_free(&self, free: ByteSize) {
        self.0.store(free.bytes(), Ordering::SeqCst);
    }
}

impl Disk for FakeDisk {
    fn disk_space(&self, _: &Path) -> io::Result<DiskSpace> {
        Ok(DiskSpace {
            size: ByteSize::gib(100),
            free: ByteSize(self.0.load(Ordering::SeqCst)),
        })
    }
}

async fn server() -> (Server, FakeDisk) {
    let disk = FakeDisk(Arc::default());
    disk.set_free(ByteSize::gib(50));
    let fake = disk.clone();
    let server = Server::with(|config| {
        config.disk = Arc::new(fake);
        config.downloads.loopback = true;
        config.downloads.proxies = false;
        config.downloads.pause = Duration::from_millis(1);
    })
    .await;
    (server, disk)
}

#[tokio::test]
async fn events_record_when_the_disk_is_low_full_and_free_again() {
    let (server, disk) = server().await;
    for free in [ByteSize::gib(2), ByteSize::mib(1), ByteSize::gib(90)] {
        disk.set_free(free);
        server.control.check_disk_space().await.unwrap();
        server.control.check_disk_space().await.unwrap();
    }
    assert_eq!(
        server.kinds("waifud").await,
        ["waifud.disk-low", "waifud.disk-full", "waifud.disk-ok"]
    );
    disk.set_free(ByteSize::mib(1));
    let shown = server.get("/v1/server").await.expect(200).json();
    assert_eq!(shown["state_dir"]["state"], "full");
    assert_eq!(shown["state_dir"]["free_bytes"], 1 << 20);
}

#[tokio::test]
async fn requests_that_need_space_are_refused_on_a_full_disk_and_accepted_later() {
    let (server, disk) = server().await;
    let template = json!({"name": "t", "image": format!("sha256:{}", "0".repeat(64))});
    let url = json!({"name": "t", "url": "http://127.0.0.1:1/a", "insecure_no_checksum": true});
    disk.set_free(ByteSize::mib(7));
    for (path, body) in [
        ("/v1/instances", json!({"template": "t"})),
        ("/v1/templates", template.clone()),
        ("/v1/downloads", url),
    ] {
        let problem = server.post(path, &body).await.expect(507).problem();
        assert_eq!(problem.code, "no-space", "{path}");
        assert_eq!(problem.field.as_deref(), Some("state_dir"));
        let dir = server.dir.path().display().to_string();
        assert!(problem.title.contains(&dir) && problem.title.contains("7M of 100G is free"));
        assert!(problem.hint.unwrap().contains("free some space"));
        assert_eq!(problem.hints[0].action, "free-space");
    }
    // 8 MiB are enough for requests without images.
    for free in [ByteSize::mib(8), ByteSize::gib(50)] {
        disk.set_free(free);
        let problem = server.post("/v1/templates", &template).await.expect(422);
        assert_eq!(problem.problem().code, "unknown-image", "{free}");
    }
}

#[tokio::test]
async fn a_full_disk_allows_repeated_creates_and_an_undeletable_image_file_does_not_block_deletes()
{
    let (server, disk) = server().await;
    let image = server.template().await;
    let body = json!({"name": "web", "template": "debian-12"}).to_string();
    let create = async |key: &str, body: &str| {
        let headers = [("idempotency-key", key)];
        server
            .call(Method::POST, "/v1/instances", &headers, body.to_owned())
            .await
    };
    let first = create("one", &body).await.expect(201).json();
    disk.set_free(ByteSize::mib(1));
    assert_eq!(create("one", &body).await.expect(201).json(), first);
    create("two", &body).await.expect(507);
    create("one", r#"{"template":"debian-12"}"#)
        .await
        .expect(409);

    // The image cannot be removed, because there is a directory in place of its file.
    let file = server.dir.path().join("images").join(image.hex());
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    server.delete("/v1/templates/debian-12").await.expect(204);
    server.delete("/v1/instances/web").await.expect(200);
    server.get("/v1/instances/web").await.expect(404);
    server.get(&format!("/v1/images/{image}")).await.expect(404);
}

#[tokio::test]
async fn a_download_waits_for_disk_space_and_then_continues() {
    let (server, disk) = server().await;
    let bytes = image(2 << 30);
    let mirror = Mirror::serve(&[("/a.qcow2", &bytes)]).await;
    let checksum = crate::common::digest(&bytes).to_string();
    disk.set_free(ByteSize::mib(60));
    let body = json!({"name": "mine", "url": mirror.url("/a.qcow2"), "checksum": checksum});
    server.post("/v1/downloads", &body).await.expect(202);
    let state = async |wanted: fn(&serde_json::Value) -> bool| {
        loop {
            let download = server.get("/v1/downloads/mine").await.json();
            assert_ne!(download["state"], "failed", "{download}");
            if wanted(&download) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waiting = state(|it| {
        it["waiting_for"]
            .as_str()
            .is_some_and(|why| why.contains("free space"))
    });
    tokio::time::timeout(DEADLINE, waiting).await.unwrap();
    disk.set_free(ByteSize::gib(1));
    let finished = state(|it| it["status"] == 404);
    tokio::time::timeout(DEADLINE, finished).await.unwrap();
    server.get("/v1/templates/mine").await.expect(200);
}
