//! Missing and damaged files of images that the database knows, and how they are restored.

use std::path::PathBuf;

use axum::http::Method;
use serde_json::{Value, json};
use waifud_api::Hint;
use waifud_api::hint::{HintAction, HintKind};
use waifud_types::{ByteSize, Digest, InstanceState};

use super::{begin, end, large_image, scripted, settings};
use crate::common::{Answer, Server, digest, image, report, step};
use crate::mirror::Mirror;

fn file(server: &Server, image: Digest) -> PathBuf {
    server.dir.path().join("images").join(image.hex())
}

async fn upload(server: &Server, image: Digest, bytes: &[u8]) -> Answer {
    let path = format!("/v1/images/{image}");
    server.call(Method::PUT, &path, &[], bytes.to_vec()).await
}

async fn shown(server: &Server, image: Digest) -> Value {
    let path = format!("/v1/images/{image}");
    server.get(&path).await.expect(200).json()
}

/// Changes the contents and keeps the size, as a failing disk or an interrupted copy may.
fn damage(server: &Server, image: Digest) {
    let path = file(server, image);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 0xff;
    std::fs::write(&path, bytes).unwrap();
}

#[tokio::test]
async fn an_upload_is_always_verified_and_restores_a_missing_file() {
    let server = Server::start().await;
    let bytes = image(2 << 30);
    let name = server.template().await;
    for wrong in [&b""[..], b"QFI\xfb and nothing of an image", &large_image()] {
        upload(&server, name, wrong).await.expect(422);
    }
    std::fs::remove_file(file(&server, name)).unwrap();
    let problem = upload(&server, name, &large_image())
        .await
        .expect(422)
        .problem();
    assert_eq!(problem.code, "digest-mismatch");
    assert_eq!(shown(&server, name).await["available"], false);
    upload(&server, name, &bytes).await.expect(200);
    assert!(std::fs::read(file(&server, name)).unwrap() == bytes);
    assert_eq!(shown(&server, name).await["available"], true);
    let object = name.to_string();
    assert_eq!(
        server.kinds(&object).await,
        ["image.uploaded", "image.restored"]
    );
}

#[tokio::test]
async fn an_upload_replaces_a_damaged_file() {
    let server = Server::start().await;
    let bytes = image(2 << 30);
    let name = server.template().await;
    damage(&server, name);
    upload(&server, name, &bytes).await.expect(200);
    assert!(std::fs::read(file(&server, name)).unwrap() == bytes);
}

#[tokio::test]
async fn a_download_restores_a_missing_or_damaged_file() {
    let (mirror, server, bytes) = scripted(Vec::new()).await;
    let name = digest(&bytes);
    let body = json!({
        "name": "a", "url": mirror.url("/a.qcow2"), "checksum": name.to_string(),
    });
    begin(&server, &body).await.expect(202);
    end(&server, "a").await.unwrap();
    // An intact file is not fetched again.
    begin(&server, &body).await.expect(202);
    end(&server, "a").await.unwrap();
    assert_eq!(mirror.requests("/a.qcow2").len(), 1);

    std::fs::remove_file(file(&server, name)).unwrap();
    begin(&server, &body).await.expect(202);
    end(&server, "a").await.unwrap();
    assert!(std::fs::read(file(&server, name)).unwrap() == bytes);

    damage(&server, name);
    begin(&server, &body).await.expect(202);
    end(&server, "a").await.unwrap();
    assert!(std::fs::read(file(&server, name)).unwrap() == bytes);
    assert_eq!(mirror.requests("/a.qcow2").len(), 3);
}

#[tokio::test]
async fn a_node_gets_a_problem_instead_of_a_damaged_or_missing_image() {
    let server = Server::start().await;
    let bytes = image(2 << 30);
    let name = server.template().await;
    let node = server.join("alder", ByteSize::gib(8)).await;
    server.create_instance("web").await;
    let path = format!("/v1/agent/images/{name}");
    node.get(&path).await.expect(200);

    for fault in ["damaged", "missing", "truncated"] {
        match fault {
            "damaged" => damage(&server, name),
            "missing" => std::fs::remove_file(file(&server, name)).unwrap(),
            _ => std::fs::write(file(&server, name), &bytes[..1000]).unwrap(),
        }
        let problem = node.get(&path).await.expect(503).problem();
        assert_eq!(problem.code, "image-missing", "{fault}");
        assert!(problem.title.contains(&name.short()), "{}", problem.title);
        assert!(problem.hint.unwrap().contains("debian-12"), "{fault}");
        upload(&server, name, &bytes).await.expect(200);
        assert!(node.get(&path).await.expect(200).bytes == bytes, "{fault}");
    }
}

#[tokio::test]
async fn an_instance_that_waits_for_a_missing_image_file_has_the_hint_to_download_it_again() {
    let (server, node) = Server::with_node(ByteSize::gib(8)).await;
    let web = server.create_instance("web").await;
    let mut waiting = report(web.id, InstanceState::Preparing);
    waiting.step = Some(step("image", None));
    node.report_instance(waiting).await;
    let refresh = async || {
        let hints = server.why("web").await["hints"].clone();
        let hints: Vec<Hint> = serde_json::from_value(hints).unwrap();
        let is = |hint: &Hint| hint.is(&HintAction::Refresh, HintKind::Template, "debian-12");
        hints.iter().any(is)
    };
    assert!(!refresh().await);
    std::fs::remove_file(file(&server, web.spec.image)).unwrap();
    assert!(refresh().await);
}

#[tokio::test]
async fn a_template_requires_the_file_of_its_image() {
    let server = Server::start().await;
    let name = server.template().await;
    std::fs::remove_file(file(&server, name)).unwrap();
    let body = json!({"name": "other", "image": name});
    let problem = server
        .post("/v1/templates", &body)
        .await
        .expect(422)
        .problem();
    assert_eq!(problem.code, "unknown-image");
}

#[tokio::test]
async fn a_template_is_refreshed_from_its_own_source() {
    let (old, new) = (large_image(), [large_image(), b"newer".to_vec()].concat());
    let mirror = Mirror::serve(&[("/a.qcow2", &old)]).await;
    mirror.text("/a.qcow2.sha256", &digest(&old).hex());
    let mut server = Server::with(settings).await;
    let body = json!({
        "name": "a", "url": mirror.url("/a.qcow2"), "default_user": "me", "datasource": "cidata",
        "checksums_url": mirror.url("/a.qcow2.sha256"),
    });
    begin(&server, &body).await.expect(202);
    let made = end(&server, "a").await.unwrap();
    assert_eq!(made["source"]["url"], mirror.url("/a.qcow2").as_str());
    assert_eq!(
        made["source"]["checksums_url"],
        mirror.url("/a.qcow2.sha256").as_str()
    );
    server = server.restart(settings).await;
    let refresh = "/v1/templates/a/refresh";
    server.post(refresh, &json!({})).await.expect(202);
    let same = end(&server, "a").await.unwrap();
    assert_eq!(same["current"], made["current"]);
    // A refresh restores a missing file.
    std::fs::remove_file(file(&server, digest(&old))).unwrap();
    server.post(refresh, &json!({})).await.expect(202);
    end(&server, "a").await.unwrap();
    assert_eq!(shown(&server, digest(&old)).await["available"], true);

    mirror.put("/a.qcow2", &new);
    mirror.text("/a.qcow2.sha256", &digest(&new).hex());
    server.post(refresh, &json!({})).await.expect(202);
    let newer = end(&server, "a").await.unwrap();
    assert_eq!(newer["current"], digest(&new).to_string());
    assert_eq!(newer["revisions"].as_array().unwrap().len(), 2);
    for kept in ["default_user", "datasource", "firmware", "source"] {
        assert_eq!(newer[kept], made[kept], "{kept}");
    }
    // A template of an uploaded image has no source, even if it had one before.
    let name = digest(&old);
    let body = json!({"name": "a", "image": name});
    server.post("/v1/templates", &body).await.expect(201);
    let problem = server.post(refresh, &json!({})).await.expect(409).problem();
    assert_eq!(problem.code, "template-without-source");
    server
        .post("/v1/templates/nothing/refresh", &json!({}))
        .await
        .expect(404);
}
