//! Image downloads from a mirror that misbehaves as real ones do: it breaks off, changes files, redirects without end, and
//! serves wrong contents.

mod image_files;
mod private_sources;
mod redirects;
mod slow_sources;

use std::sync::Arc;
use std::time::Duration;

use crate::common::{DEADLINE, Server, digest, image};
use crate::mirror::{Mirror, Reply};
use axum::http::Method;
use serde_json::{Value, json};
use waifud_control::{ControlConfig, Pace};
use waifud_types::{ByteSize, Checksum, Digest};

fn settings(config: &mut ControlConfig) {
    config.downloads.loopback = true;
    config.downloads.proxies = false;
    config.downloads.pause = Duration::from_millis(1);
}

/// 1.2 MB that start with the header of an image.
fn large_image() -> Vec<u8> {
    let mut bytes = image(2 << 30);
    bytes.extend((0..300_000_u32).flat_map(u32::to_le_bytes));
    bytes
}

fn sha512(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA512, bytes);
    hash.as_ref()
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

async fn begin(server: &Server, body: &Value) -> crate::common::Answer {
    server.post("/v1/downloads", body).await
}

/// Waits for the end of a download: the template, or the problem of its failure.
async fn end(server: &Server, name: &str) -> Result<Value, Value> {
    let ended = async {
        loop {
            let answer = server.get(&format!("/v1/downloads/{name}")).await;
            if answer.status == 404 {
                return Ok(server
                    .get(&format!("/v1/templates/{name}"))
                    .await
                    .expect(200)
                    .json());
            }
            let download = answer.json();
            if download["state"] == "failed" {
                return Err(download["error"].clone());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.unwrap()
}

fn partials(server: &Server) -> usize {
    std::fs::read_dir(server.dir.path().join("images"))
        .unwrap()
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with(".download-")
        })
        .count()
}

/// A mirror that serves the returned image as `a.qcow2`, after it has given these replies to the first requests.
async fn scripted(replies: Vec<Reply>) -> (Mirror, Server, Vec<u8>) {
    let bytes = large_image();
    let mirror = Mirror::serve(&[("/a.qcow2", &bytes)]).await;
    mirror.script("/a.qcow2", replies);
    (mirror, Server::with(settings).await, bytes)
}

/// Begins to download the template `a` from `a.qcow2` of the mirror.
async fn begin_a(server: &Server, mirror: &Mirror, bytes: &[u8]) {
    let checksum = digest(bytes).to_string();
    let body = json!({"name": "a", "url": mirror.url("/a.qcow2"), "checksum": checksum});
    begin(server, &body).await.expect(202);
}

#[tokio::test]
async fn a_downloaded_image_is_verified_and_becomes_a_template() {
    let bytes = large_image();
    let mirror = Mirror::serve(&[("/debian.qcow2", &bytes)]).await;
    mirror.text(
        "/SHA512SUMS",
        &format!("{}  debian.qcow2\n", sha512(&bytes)),
    );
    let server = Server::with(settings).await;
    let body = json!({
        "name": "mine", "url": mirror.url("/debian.qcow2"),
        "checksums_url": mirror.url("/SHA512SUMS"), "default_user": "debian",
    });
    let download = begin(&server, &body).await.expect(202).json();
    assert_eq!(download["state"], "running");
    let template = end(&server, "mine").await.unwrap();
    assert_eq!(template["current"], digest(&bytes).to_string());
    assert_eq!(template["default_user"], "debian");
    let revision = &template["revisions"][0];
    assert_eq!(
        revision["checksum"],
        format!("sha512:{}", sha512(&bytes)).as_str()
    );
    assert_eq!(revision["source_url"], mirror.url("/debian.qcow2").as_str());
    assert_eq!(partials(&server), 0);
    assert_eq!(
        server.kinds("mine").await,
        ["template.download-started", "template.created"]
    );
    // The second download reads the list of checksums and finds that the image is present.
    begin(&server, &body).await.expect(202);
    end(&server, "mine").await.unwrap();
    assert_eq!(mirror.requests("/debian.qcow2").len(), 1);
    assert_eq!(mirror.requests("/SHA512SUMS").len(), 2);
}

#[tokio::test]
async fn an_interrupted_download_resumes_where_it_stopped() {
    let (mirror, server, bytes) = scripted(vec![Reply::cut(100_000), Reply::cut(50_000)]).await;
    begin_a(&server, &mirror, &bytes).await;
    end(&server, "a").await.unwrap();
    let requests = mirror.requests("/a.qcow2");
    assert_eq!(requests.len(), 3);
    assert!(!requests[0].contains("range:"));
    for later in &requests[1..] {
        assert!(later.contains("range: bytes="), "{later}");
        assert!(later.contains("if-range: \"1\""), "{later}");
    }
    assert!(mirror.sent("/a.qcow2") < bytes.len() + 20_000);
}

#[tokio::test]
async fn an_image_that_changes_during_its_download_is_fetched_from_the_start() {
    let (old, new) = (large_image(), {
        let mut bytes = large_image();
        bytes.extend_from_slice(b"newer");
        bytes
    });
    let mirror = Mirror::serve(&[("/a.qcow2", &old)]).await;
    mirror.script("/a.qcow2", vec![Reply::cut(100_000)]);
    mirror.then_serves("/a.qcow2", &new);
    let server = Server::with(settings).await;
    let checksum = digest(&new).to_string();
    begin_a(&server, &mirror, &new).await;
    let template = end(&server, "a").await.unwrap();
    assert_eq!(template["current"], checksum.as_str());
    let requests = mirror.requests("/a.qcow2");
    assert!(requests[1].contains("if-range: \"1\""), "{}", requests[1]);
}

#[tokio::test]
async fn a_download_resumes_after_waifud_is_killed() {
    let (mirror, mut server, bytes) = scripted(vec![Reply::stall(200_000)]).await;
    let checksum = digest(&bytes).to_string();
    begin_a(&server, &mirror, &bytes).await;
    mirror.until_sent("/a.qcow2", 200_000).await;
    let here = server.dir.path().join("images");
    let arrived = async {
        loop {
            let length: u64 = std::fs::read_dir(&here)
                .unwrap()
                .map(|entry| entry.unwrap().metadata().unwrap().len())
                .sum();
            if length > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, arrived).await.unwrap();
    server = server.restart(settings).await;
    server.control.resume_downloads().await.unwrap();
    let template = end(&server, "a").await.unwrap();
    assert_eq!(template["current"], checksum.as_str());
    let requests = mirror.requests("/a.qcow2");
    assert!(requests.last().unwrap().contains("range: bytes="));
}

#[tokio::test]
async fn templates_of_one_image_share_a_download_and_one_can_be_canceled() {
    let (mirror, server, bytes) = scripted(vec![Reply::stall(100_000)]).await;
    let checksum = digest(&bytes).to_string();
    for name in ["one", "two", "three"] {
        let body = json!({"name": name, "url": mirror.url("/a.qcow2"), "checksum": checksum});
        begin(&server, &body).await.expect(202);
    }
    mirror.until_sent("/a.qcow2", 100_000).await;
    server.delete("/v1/templates/two").await.expect(204);
    server.get("/v1/downloads/two").await.expect(404);
    server.get("/v1/templates/two").await.expect(404);
    mirror.release();
    for name in ["one", "three"] {
        assert_eq!(
            end(&server, name).await.unwrap()["current"],
            checksum.as_str()
        );
    }
    assert!(mirror.requests("/a.qcow2").len() <= 2);
    server.get("/v1/templates/two").await.expect(404);
}

#[tokio::test]
async fn a_canceled_download_leaves_no_files() {
    let (mirror, server, bytes) = scripted(vec![Reply::stall(100_000)]).await;
    let body =
        json!({"name": "a", "url": mirror.url("/a.qcow2"), "checksum": digest(&bytes).to_string()});
    begin(&server, &body).await.expect(202);
    mirror.until_sent("/a.qcow2", 100_000).await;
    server.delete("/v1/downloads/a").await.expect(204);
    let removed = async {
        while partials(&server) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, removed).await.unwrap();
    // A new request at once fetches the image from the start.
    begin(&server, &body).await.expect(202);
    end(&server, "a").await.unwrap();
    let requests = mirror.requests("/a.qcow2");
    assert_eq!(requests.len(), 2);
    assert!(!requests[1].contains("range:"), "{}", requests[1]);
}

#[tokio::test]
async fn permanent_failures_are_reported_and_leave_no_files() {
    let bytes = large_image();
    let other = digest(b"other").to_string();
    let packed = [b"\xfd7zXZ\0".to_vec(), vec![0; 4096]].concat();
    let endless = bytes.repeat(4);
    let mirror = Mirror::serve(&[
        ("/a.qcow2", &bytes),
        ("/a.xz", &packed),
        ("/endless", &endless),
        ("/page", b"<html>not here</html>"),
    ])
    .await;
    mirror.text("/SHA256SUMS", "no checksums at all\n");
    mirror.redirect("/loop", "/loop");
    mirror.redirect("/cloud", "http://169.254.169.254/latest/meta-data/");
    mirror.redirect("/file", "file:///etc/shadow");
    mirror.redirect("/guest", "http://10.144.1.1/a");
    mirror.redirect("/nat64", "http://[64:ff9b::a90:101]/a");
    mirror.chunked("/endless");
    let server = Server::with(|config| {
        settings(config);
        config.image_max = ByteSize(2 * large_image().len() as u64);
    })
    .await;
    let before = server.footprint().await.3;
    for (name, path, checksum, code) in [
        ("mismatch", "/a.qcow2", &other, "checksum-mismatch"),
        ("packed", "/a.xz", &other, "invalid-image"),
        ("page", "/page", &other, "checksum-mismatch"),
        ("absent", "/absent", &other, "source-refused"),
        ("loop", "/loop", &other, "invalid-url"),
        ("cloud", "/cloud", &other, "invalid-url"),
        ("guest", "/guest", &other, "invalid-url"),
        ("nat64", "/nat64", &other, "invalid-url"),
        ("file", "/file", &other, "source-refused"),
        ("endless", "/endless", &other, "image-too-large"),
    ] {
        let body = json!({"name": name, "url": mirror.url(path), "checksum": checksum});
        begin(&server, &body).await.expect(202);
        let problem = end(&server, name).await.unwrap_err();
        assert_eq!(problem["code"], code, "{name}: {problem}");
        assert!(problem["hint"].is_string(), "{name}");
        server
            .delete(&format!("/v1/templates/{name}"))
            .await
            .expect(204);
    }
    let body = json!({
        "name": "list", "url": mirror.url("/a.qcow2"), "checksums_url": mirror.url("/SHA256SUMS"),
    });
    begin(&server, &body).await.expect(202);
    assert_eq!(
        end(&server, "list").await.unwrap_err()["code"],
        "invalid-checksums"
    );
    assert_eq!(server.footprint().await.3, before);
}

#[tokio::test]
async fn an_unavailable_source_is_retried_and_finally_given_up() {
    let (mirror, server, bytes) =
        scripted(vec![Reply::status(503), Reply::status(429), Reply::cut(0)]).await;
    begin_a(&server, &mirror, &bytes).await;
    end(&server, "a").await.unwrap();

    mirror.script("/b.qcow2", vec![Reply::status(503); 8]);
    let body =
        json!({"name": "b", "url": mirror.url("/b.qcow2"), "checksum": digest(b"b").to_string()});
    begin(&server, &body).await.expect(202);
    let problem = end(&server, "b").await.unwrap_err();
    assert_eq!(problem["code"], "source-unreachable");
    assert_eq!(mirror.requests("/b.qcow2").len(), 8);
    // A new request starts a new attempt.
    mirror.script("/b.qcow2", vec![Reply::status(404)]);
    begin(&server, &body).await.expect(202);
    assert_eq!(
        end(&server, "b").await.unwrap_err()["code"],
        "source-refused"
    );
}

/// A server that has begun to download `debian-12` of the catalog from this mirror.
async fn downloads_debian_from(mirror: String) -> Server {
    let server = Server::with(|config| {
        settings(config);
        config.downloads.mirror = mirror;
    })
    .await;
    let body = json!({"name": "debian-12"});
    begin(&server, &body).await.expect(202);
    server
}

#[tokio::test]
async fn without_any_connection_a_catalog_download_ends_early_with_hints_that_fit() {
    // Bound, but not listening: connections are refused, and no other test can get the port.
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mirror = format!("http://{}", bound.local_addr().unwrap());
    let server = downloads_debian_from(mirror).await;
    let problem = end(&server, "debian-12").await.unwrap_err();
    assert_eq!(problem["code"], "source-unreachable");
    let title = problem["title"].as_str().unwrap();
    assert!(title.contains("5 attempts without a connection"), "{title}");
    assert!(title.contains("connecting to 127.0.0.1 failed"), "{title}");
    assert_eq!(problem["field"], Value::Null, "the request has no URL");
    let hint = problem["hint"].as_str().unwrap();
    for part in ["HTTPS_PROXY", "catalog_mirror", "upload"] {
        assert!(hint.contains(part), "{part}: {hint}");
    }
}

#[tokio::test]
async fn an_attempt_that_transfers_64_kib_is_progress_and_a_shorter_one_is_a_failure() {
    const PROGRESS: usize = 64 << 10;
    let bytes = large_image();
    let mirror = Mirror::serve(&[("/a.qcow2", &bytes), ("/b.qcow2", &bytes)]).await;
    let failures = || vec![Reply::status(503); 7];
    let enough = [failures(), vec![Reply::cut(PROGRESS)], failures()].concat();
    let steady = vec![Reply::cut(PROGRESS); 9];
    mirror.script("/a.qcow2", [enough, steady].concat());
    let too_short = [failures(), vec![Reply::cut(PROGRESS - 1)]].concat();
    mirror.script("/b.qcow2", too_short);
    let server = Server::with(settings).await;
    begin_a(&server, &mirror, &bytes).await;
    end(&server, "a").await.unwrap();
    assert_eq!(mirror.requests("/a.qcow2").len(), 7 + 1 + 7 + 9 + 1);
    // Images are known by their SHA-256: with it, this one would not be downloaded again.
    let other = format!("sha512:{}", sha512(&bytes));
    let body = json!({"name": "b", "url": mirror.url("/b.qcow2"), "checksum": other});
    begin(&server, &body).await.expect(202);
    let problem = end(&server, "b").await.unwrap_err();
    assert_eq!(problem["code"], "source-unreachable");
    assert_eq!(mirror.requests("/b.qcow2").len(), 8);
}

#[tokio::test]
async fn changed_contents_create_a_revision_and_instances_keep_their_image() {
    let (old, new) = (large_image(), [large_image(), b"newer".to_vec()].concat());
    let mirror = Mirror::serve(&[("/a.qcow2", &old)]).await;
    mirror.text("/a.qcow2.sha256", &digest(&old).hex());
    let server = Server::with(settings).await;
    let _node = server.join("alder", ByteSize::gib(8)).await;
    let body = json!({
        "name": "a", "url": mirror.url("/a.qcow2"), "checksums_url": mirror.url("/a.qcow2.sha256"),
    });
    begin(&server, &body).await.expect(202);
    end(&server, "a").await.unwrap();
    server
        .create(&json!({"name": "web", "template": "a"}))
        .await
        .expect(201);
    mirror.put("/a.qcow2", &new);
    mirror.text("/a.qcow2.sha256", &digest(&new).hex());
    begin(&server, &body).await.expect(202);
    let template = end(&server, "a").await.unwrap();
    assert_eq!(template["current"], digest(&new).to_string());
    assert_eq!(template["revisions"].as_array().unwrap().len(), 2);
    let web = server.get("/v1/instances/web").await.expect(200).json();
    assert_eq!(web["spec"]["image"], digest(&old).to_string());
}

#[tokio::test]
async fn catalog_images_are_fetched_from_the_configured_mirror() {
    let bytes = large_image();
    let entry = waifud_control::images::catalog::entry("debian-12").unwrap();
    let path = entry.url.strip_prefix("https:/").unwrap();
    let list = entry.checksums_url.strip_prefix("https:/").unwrap();
    let mirror = Mirror::serve(&[(path, &bytes)]).await;
    let file = path.rsplit('/').next().unwrap();
    mirror.text(list, &format!("{}  {file}\n", sha512(&bytes)));
    let server = downloads_debian_from(mirror.url("")).await;
    let template = end(&server, "debian-12").await.unwrap();
    assert_eq!(template["default_user"], "debian");
    let shown = server.get("/v1/catalog").await.expect(200).json();
    assert!(shown["items"].as_array().unwrap().len() > 10);
}

#[tokio::test]
async fn invalid_sources_are_refused_and_change_nothing() {
    let server = Server::start().await;
    let before = server.footprint().await;
    let good = format!("sha256:{}", "a".repeat(64));
    for (body, code, field) in [
        (
            json!({"name": "x", "url": "https://127.0.0.1/a", "checksum": good}),
            "invalid-url",
            "url",
        ),
        (
            json!({"name": "x", "url": "https://169.254.169.254/a", "checksum": good}),
            "invalid-url",
            "url",
        ),
        (
            json!({"name": "x", "url": "http://example.org/a", "insecure_no_checksum": true}),
            "invalid-url",
            "url",
        ),
        (
            json!({"name": "x", "url": "https://example.org/a"}),
            "no-checksum",
            "checksum",
        ),
        (json!({"name": "plan-9"}), "not-in-catalog", "catalog"),
        (
            json!({"name": "Bad Name", "url": "https://example.org/a", "checksum": good}),
            "invalid-name",
            "name",
        ),
        (
            json!({"name": "x", "catalog": "arch", "url": "https://example.org/a"}),
            "two-sources",
            "catalog",
        ),
        (
            json!({"name": "x", "url": "https://example.org/a", "checksum": good, "checksums_url": "https://example.org/b"}),
            "two-checksums",
            "checksums_url",
        ),
        (
            json!({"name": "x", "catalog": "arch", "arch": "vax"}),
            "unknown-arch",
            "arch",
        ),
    ] {
        let problem = begin(&server, &body).await.problem();
        assert_eq!(
            (problem.code.as_str(), problem.field.as_deref()),
            (code, Some(field)),
            "{body}"
        );
        assert!(problem.hint.is_some());
    }
    let bad = begin(
        &server,
        &json!({"name": "x", "url": "https://example.org/a", "checksum": "md5:1"}),
    )
    .await;
    assert_eq!(bad.problem().status, 422);
    assert_eq!(server.footprint().await, before);
    let other = server
        .call(Method::DELETE, "/v1/downloads/x", &[], String::new())
        .await;
    other.expect(404);
}

#[test]
fn digests_and_checksums_have_the_same_text_form() {
    let text = digest(b"x").to_string();
    assert_eq!(
        text.parse::<Checksum>().unwrap().to_string(),
        text.parse::<Digest>().unwrap().to_string()
    );
}

#[derive(Debug)]
struct Interfaces(Vec<std::net::IpAddr>);

impl waifud_control::env::Interfaces for Interfaces {
    fn addresses(&self) -> Vec<std::net::IpAddr> {
        self.0.clone()
    }
}

#[tokio::test]
async fn sources_on_waifuds_own_and_guest_addresses_are_refused() {
    let server = Server::with(|config| {
        config.interfaces = Arc::new(Interfaces(vec!["192.0.2.7".parse().unwrap()]));
    })
    .await;
    let before = server.footprint().await;
    let checksum = digest(b"x").to_string();
    for host in [
        "192.0.2.7",
        "[64:ff9b::c000:207]",
        "10.144.1.1",
        "[2002:a90:101::1]",
    ] {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}:7373/a");
            let body = json!({"name": "x", "url": url, "checksum": checksum});
            let problem = begin(&server, &body).await.expect(422).problem();
            assert_eq!(problem.code, "invalid-url", "{url}");
        }
    }
    assert_eq!(server.footprint().await, before);
}
