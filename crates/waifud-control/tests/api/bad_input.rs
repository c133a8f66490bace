//! Invalid requests: the problem names the field and the next step, and nothing is left behind.

use crate::common::{Server, assert_contains, digest, image, tombstone};
use axum::http::Method;
use serde_json::json;
use waifud_api::hint::HintAction;
use waifud_types::ByteSize;

#[tokio::test]
async fn an_unknown_template_is_refused() {
    let server = Server::start().await;
    for name in ["nope", "Not A Name", "../../etc/passwd"] {
        let body = json!({"template": name});
        server
            .create_refused(&body, 422, "unknown-template", "spec.template")
            .await;
    }
}

#[tokio::test]
async fn a_duplicate_name_is_refused() {
    let server = Server::with_template().await;
    server.create_instance("web").await;
    let body = json!({"name": "web", "template": "debian-12"});
    server
        .create_refused(&body, 409, "name-taken", "name")
        .await;
}

#[tokio::test]
async fn a_name_that_is_not_a_dns_label_is_refused() {
    let server = Server::with_template().await;
    for name in [
        "",
        "Web",
        "a_b",
        "-a",
        "a-",
        "a.b",
        "a b",
        "ü",
        "a\nb",
        "a/../b",
        &"a".repeat(64),
        "0190b1c2-7d3e-7a4f-8b5c-6d7e8f901234",
    ] {
        let body = json!({"name": name, "template": "debian-12"});
        server
            .create_refused(&body, 422, "invalid-name", "name")
            .await;
    }
}

#[tokio::test]
async fn out_of_range_and_malformed_sizes_are_refused() {
    let server = Server::with_template().await;
    let disk = "spec.disks[0].size_bytes";
    for (field, shown) in [("memory_bytes", "spec.memory_bytes"), ("disk_bytes", disk)] {
        for (size, code) in [
            (json!(0), "out-of-range"),
            (json!(1), "out-of-range"),
            (json!(u64::MAX), "out-of-range"),
            (json!(-1), "invalid-field"),
            (json!(1.5e9), "invalid-field"),
            (json!(1e40), "invalid-field"),
            (json!("20"), "invalid-field"),
            (json!("20G"), "invalid-field"),
        ] {
            let body = json!({"template": "debian-12", field: size});
            server.create_refused(&body, 422, code, shown).await;
        }
    }
    for cpus in [json!(0), json!(1000)] {
        let body = json!({"template": "debian-12", "cpus": cpus});
        server
            .create_refused(&body, 422, "out-of-range", "spec.cpus")
            .await;
    }
}

#[tokio::test]
async fn a_disk_smaller_than_the_image_is_refused_with_the_required_size() {
    let server = Server::with_template().await;
    let body = json!({"template": "debian-12", "disk_bytes": 1u64 << 30});
    server
        .create_refused(
            &body.clone(),
            422,
            "disk-too-small",
            "spec.disks[0].size_bytes",
        )
        .await;
    let problem = server.create(&body).await.problem();
    assert_eq!(
        problem.title,
        "a disk of 1G is too small for template debian-12, which needs at least 2G"
    );
    assert_eq!(problem.hint.as_deref(), Some("use 2G or more"));
    assert_eq!(
        problem.hints[0].known_action(),
        Some(HintAction::SetMinimum {
            field: "spec.disks[0].size_bytes".to_owned(),
            bytes: ByteSize::gib(2),
        })
    );
}

#[tokio::test]
async fn invalid_user_data_is_refused_without_being_repeated() {
    let server = Server::with_template().await;
    let long = format!("#!/bin/sh\n# {}\n", "x".repeat(1 << 20));
    for (text, code) in [
        ("#cloud-config\nusers: [hunter2\n", "user-data-invalid"),
        (long.as_str(), "user-data-too-large"),
        ("#!/bin/sh\n\u{0}hunter2", "user-data-binary"),
        ("hunter2", "unsupported-user-data"),
    ] {
        let body = json!({"template": "debian-12", "user_data": text});
        server
            .create_refused(&body.clone(), 422, code, "user_data")
            .await;
        assert!(!format!("{:?}", server.create(&body).await.problem()).contains("hunter2"));
    }
    let body = format!(
        "{{\"template\":\"debian-12\",\"user_data\":\"{}\"}}",
        "x".repeat(9 << 20)
    );
    let answer = server.call(Method::POST, "/v1/instances", &[], body).await;
    answer.refused(413, "too-large", "body");
    server.create_instance("web").await;
    let answer = server
        .patch_instance("web", &json!({"user_data": "#cloud-config\n- ["}))
        .await;
    answer.refused(422, "user-data-invalid", "user_data");
}

#[tokio::test]
async fn invalid_keys_labels_pools_and_fields_are_refused() {
    let server = Server::with_template().await;
    let key = json!({"template": "debian-12", "ssh_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]});
    server
        .create_refused(&key, 422, "invalid-ssh-key", "ssh_keys[0]")
        .await;
    let body = json!({"template": "debian-12", "labels": {"a b": "c"}});
    server
        .create_refused(&body, 422, "invalid-label", "labels.a b")
        .await;
    let body = json!({"template": "debian-12", "pool": "A"});
    server
        .create_refused(&body, 422, "invalid-name", "spec.disks[0].pool")
        .await;
    let body = json!({"template": "debian-12", "sise": 1});
    server
        .create_refused(&body, 422, "invalid-field", "sise")
        .await;
    let group = json!({"template": "debian-12", "mac": "01:00:5e:00:00:01"});
    server
        .create_refused(&group, 422, "invalid-field", "mac")
        .await;
}

#[tokio::test]
async fn a_duplicate_mac_is_refused() {
    let server = Server::with_template().await;
    let body = json!({"template": "debian-12", "mac": "52:54:00:00:00:01"});
    server.create(&body).await.expect(201);
    server.create_refused(&body, 409, "mac-taken", "mac").await;
}

#[tokio::test]
async fn uploads_that_are_not_standalone_images_are_refused() {
    let server = Server::start().await;
    let mut backing = image(2 << 30);
    backing[15] = 104;
    backing[19] = 10;
    let mut truncated = image(2 << 30);
    truncated.truncate(40);
    for (case, bytes) in [
        ("no image", b"MZ\x90 hello".repeat(100)),
        ("nothing", Vec::new()),
        ("a backing file", backing),
        ("an absurd size", image(u64::MAX)),
        ("no size", image(0)),
        ("a truncated header", truncated),
    ] {
        let before = server.footprint().await;
        let path = format!("/v1/images/{}", digest(&bytes));
        let answer = server.call(Method::PUT, &path, &[], bytes).await;
        answer.refused(422, "invalid-image", "body");
        assert_eq!(
            server.footprint().await,
            before,
            "{case} left something behind"
        );
    }
}

#[tokio::test]
async fn damaged_interrupted_and_oversized_uploads_are_refused() {
    let server = Server::with(|config| config.image_max = waifud_types::ByteSize(8192)).await;
    let before = server.footprint().await;
    let mut bytes = image(2 << 30);
    let path = format!("/v1/images/{}", digest(&bytes));
    bytes[4000] = 1;
    server
        .call(Method::PUT, &path, &[], bytes)
        .await
        .refused(422, "digest-mismatch", "digest");

    let pieces = [Ok(image(2 << 30)), Err(std::io::Error::other("gone"))];
    let body = axum::body::Body::from_stream(futures::stream::iter(pieces));
    server
        .call(Method::PUT, &path, &[], body)
        .await
        .refused(400, "upload-interrupted", "body");

    let large = vec![image(2 << 30); 3].concat();
    let path = format!("/v1/images/{}", digest(&large));
    server
        .call(Method::PUT, &path, &[], large)
        .await
        .refused(413, "image-too-large", "body");
    server
        .call(Method::PUT, "/v1/images/md5:1", &[], "x")
        .await
        .refused(400, "invalid-query", "digest");
    assert_eq!(server.footprint().await, before);
}

#[tokio::test]
async fn uploading_an_image_twice_stores_it_once() {
    let server = Server::start().await;
    let bytes = image(2 << 30);
    let path = format!("/v1/images/{}", digest(&bytes));
    let first = server
        .call(Method::PUT, &path, &[], bytes.clone())
        .await
        .expect(201)
        .json();
    let second = server
        .call(Method::PUT, &path, &[], bytes)
        .await
        .expect(200)
        .json();
    assert_eq!(first, second);
    assert_eq!(
        server
            .call(Method::HEAD, &path, &[], "")
            .await
            .status
            .as_u16(),
        200
    );
    assert_eq!(server.footprint().await.3.len(), 1);
}

#[tokio::test]
async fn a_template_of_an_unknown_image_is_refused() {
    let server = Server::start().await;
    let answer = server
        .post(
            "/v1/templates",
            &json!({"name": "a", "image": digest(b"x")}),
        )
        .await;
    answer.refused(422, "unknown-image", "image");
    let answer = server
        .post(
            "/v1/templates",
            &json!({"name": "A", "image": digest(b"x")}),
        )
        .await;
    answer.refused(422, "invalid-name", "name");
}

#[tokio::test]
async fn an_instance_that_fits_nowhere_waits_and_can_be_deleted() {
    let (server, _alder) = Server::with_node(waifud_types::ByteSize::gib(2)).await;
    let big = json!({"name": "big", "template": "debian-12", "memory_bytes": 64u64 << 30});
    let instance = server.created(&big).await;
    assert_eq!(instance.status.state.as_str(), "pending");
    let why = server.why("big").await;
    assert_contains(&why["summary"], "64G memory");
    server.delete("/v1/instances/big").await.expect(200);
    server.get("/v1/instances/big").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_deleted_during_its_creation_is_removed() {
    let (server, alder) = Server::with_node(waifud_types::ByteSize::gib(64)).await;
    for round in 0..10 {
        let name = format!("web-{round}");
        let body = json!({"name": name, "template": "debian-12"});
        let path = format!("/v1/instances/{name}");
        let (created, deleted) = tokio::join!(server.create(&body), async {
            loop {
                let answer = server.delete(&path).await;
                if answer.status.as_u16() != 404 {
                    return answer;
                }
            }
        });
        created.expect(201);
        deleted.expect(202);
        let instance = server.instance(&name).await;
        assert_eq!(instance.status.state.as_str(), "deleting");
        let answer = server
            .patch(&path, &json!({"run": false}))
            .await
            .expect(409);
        assert_eq!(answer.problem().code, "deleting");
        alder.destroyed(tombstone(&instance)).await;
        server.get(&path).await.expect(404);
    }
    assert_eq!(server.footprint().await.0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_idempotency_key_returns_the_first_answer_and_refuses_another_body() {
    let server = Server::with_template().await;
    let body = json!({"template": "debian-12"}).to_string();
    let key = [("idempotency-key", "k1")];
    let post = |body: String| server.call(Method::POST, "/v1/instances", &key, body);
    let answers = futures::future::join_all((0..20).map(|_| post(body.clone()))).await;
    let first = &answers[0];
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), &answer.bytes), (201, &first.bytes));
    }
    let replayed = answers
        .iter()
        .filter(|a| a.headers.contains_key("idempotency-replayed"))
        .count();
    assert_eq!(replayed, 19);
    assert_eq!(server.footprint().await.0, 1);
    let answer = post(json!({"template": "debian-12", "cpus": 2}).to_string()).await;
    answer.refused(409, "idempotency-key-reused", "Idempotency-Key");
    let answer = server
        .call(
            Method::POST,
            "/v1/instances",
            &[("idempotency-key", "")],
            body,
        )
        .await;
    answer.refused(400, "invalid-header", "Idempotency-Key");
}

#[tokio::test]
async fn invalid_parameters_are_named_in_the_problem() {
    let server = Server::start().await;
    for (path, field) in [
        ("/v1/instances?limit=0", "limit"),
        ("/v1/instances?limit=x", "limit"),
        ("/v1/instances?cursor=%00", "cursor"),
        ("/v1/instances?state=asleep", "state"),
        ("/v1/instances?sate=running", "sate"),
        ("/v1/events?since=7", "since"),
        ("/v1/events?watch=perhaps", "watch"),
        ("/v1/nodes?limit=5000", "limit"),
    ] {
        server.get(path).await.refused(400, "invalid-query", field);
    }
    server.template().await;
    server.create_instance("web").await;
    server
        .get("/v1/instances/web?wait=soon")
        .await
        .refused(400, "invalid-query", "wait");
    server
        .get("/v1/instances/web?for=rain")
        .await
        .refused(400, "invalid-query", "for");
    let answer = server
        .call(
            Method::PATCH,
            "/v1/instances/web",
            &[("if-match", "7")],
            "{}",
        )
        .await;
    answer.refused(400, "invalid-header", "If-Match");
}

#[tokio::test]
async fn leftovers_of_interrupted_uploads_are_removed_at_start() {
    let server = Server::start().await;
    let image = server.template().await;
    let images = server.dir.path().join("images");
    std::fs::write(images.join(".incoming-x1"), "half").unwrap();
    std::fs::write(images.join("0".repeat(64)), "no row").unwrap();
    let config = waifud_control::ControlConfig::new(server.dir.path().to_owned());
    waifud_control::Control::new(
        server.control.store().clone(),
        config,
        std::sync::Arc::new(waifud_control::env::SystemClock),
        std::sync::Arc::new(waifud_control::env::SystemEntropy),
    )
    .await
    .unwrap();
    assert_eq!(server.footprint().await.3, [images.join(image.hex())]);
}
