//! Invalid input: a problem that names the field and a remedy, and no changes.

mod common;

use axum::http::Method;
use common::{Answer, Server, digest, image};
use serde_json::{Value, json};

/// The request is refused with this status, code and field and with a hint, and nothing is written.
async fn refused(server: &Server, body: Value, status: u16, code: &str, field: &str) {
    let before = server.footprint().await;
    let answer = server.create(&body).await;
    check(&answer, status, code, field);
    assert_eq!(
        server.footprint().await,
        before,
        "{code} left something behind"
    );
}

fn check(answer: &Answer, status: u16, code: &str, field: &str) {
    let problem = answer.problem();
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (status, code),
        "{problem:?}"
    );
    assert_eq!(problem.field.as_deref(), Some(field), "{problem:?}");
    assert!(problem.hint.is_some(), "{problem:?} has no remedy");
}

#[tokio::test]
async fn an_unknown_template_is_refused() {
    let server = Server::start().await;
    for name in ["nope", "Not A Name", "../../etc/passwd"] {
        refused(
            &server,
            json!({"template": name}),
            422,
            "unknown-template",
            "spec.template",
        )
        .await;
    }
}

#[tokio::test]
async fn a_taken_name_is_refused() {
    let server = Server::start().await;
    server.template().await;
    server.create_instance("web").await;
    refused(
        &server,
        json!({"name": "web", "template": "debian-12"}),
        409,
        "name-taken",
        "name",
    )
    .await;
}

#[tokio::test]
async fn a_name_that_is_not_a_dns_label_is_refused() {
    let server = Server::start().await;
    server.template().await;
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
        refused(
            &server,
            json!({"name": name, "template": "debian-12"}),
            422,
            "invalid-name",
            "name",
        )
        .await;
    }
}

#[tokio::test]
async fn zero_negative_huge_and_malformed_sizes_are_refused() {
    let server = Server::start().await;
    server.template().await;
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
            refused(
                &server,
                json!({"template": "debian-12", field: size}),
                422,
                code,
                shown,
            )
            .await;
        }
    }
    for cpus in [json!(0), json!(1000)] {
        refused(
            &server,
            json!({"template": "debian-12", "cpus": cpus}),
            422,
            "out-of-range",
            "spec.cpus",
        )
        .await;
    }
}

#[tokio::test]
async fn a_disk_smaller_than_the_image_is_refused_with_the_required_size() {
    let server = Server::start().await;
    server.template().await;
    let body = json!({"template": "debian-12", "disk_bytes": 1u64 << 30});
    refused(
        &server,
        body.clone(),
        422,
        "disk-too-small",
        "spec.disks[0].size_bytes",
    )
    .await;
    let problem = server.create(&body).await.problem();
    assert_eq!(
        problem.title,
        "a disk of 1G is too small for template debian-12, which needs 2G"
    );
    assert_eq!(problem.hint.as_deref(), Some("use --disk 2G or more"));
}

#[tokio::test]
async fn invalid_long_or_binary_user_data_is_refused_without_repeating_it() {
    let server = Server::start().await;
    server.template().await;
    let long = format!("#!/bin/sh\n# {}\n", "x".repeat(1 << 20));
    for (text, code) in [
        ("#cloud-config\nusers: [hunter2\n", "user-data-invalid"),
        (long.as_str(), "user-data-too-large"),
        ("#!/bin/sh\n\u{0}hunter2", "user-data-binary"),
        ("hunter2", "unsupported-user-data"),
    ] {
        let body = json!({"template": "debian-12", "user_data": text});
        refused(&server, body.clone(), 422, code, "user_data").await;
        assert!(!format!("{:?}", server.create(&body).await.problem()).contains("hunter2"));
    }
    let body = format!(
        "{{\"template\":\"debian-12\",\"user_data\":\"{}\"}}",
        "x".repeat(9 << 20)
    );
    let answer = server.call(Method::POST, "/v1/instances", &[], body).await;
    check(&answer, 413, "too-large", "body");
    server.create_instance("web").await;
    let answer = server
        .patch(
            "/v1/instances/web",
            &json!({"user_data": "#cloud-config\n- ["}),
        )
        .await;
    check(&answer, 422, "user-data-invalid", "user_data");
}

#[tokio::test]
async fn invalid_keys_labels_and_pools_are_refused() {
    let server = Server::start().await;
    server.template().await;
    let key = json!({"template": "debian-12", "ssh_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]});
    refused(&server, key, 422, "invalid-ssh-key", "ssh_keys[0]").await;
    refused(
        &server,
        json!({"template": "debian-12", "labels": {"a b": "c"}}),
        422,
        "invalid-label",
        "labels.a b",
    )
    .await;
    refused(
        &server,
        json!({"template": "debian-12", "pool": "A"}),
        422,
        "invalid-name",
        "spec.disks[0].pool",
    )
    .await;
    refused(
        &server,
        json!({"template": "debian-12", "sise": 1}),
        422,
        "invalid-field",
        "sise",
    )
    .await;
    let group = json!({"template": "debian-12", "mac": "01:00:5e:00:00:01"});
    refused(&server, group, 422, "invalid-field", "mac").await;
}

#[tokio::test]
async fn the_mac_of_another_instance_is_refused() {
    let server = Server::start().await;
    server.template().await;
    let body = json!({"template": "debian-12", "mac": "52:54:00:00:00:01"});
    server.create(&body).await.expect(201);
    refused(&server, body, 409, "mac-taken", "mac").await;
}

#[tokio::test]
async fn unacceptable_images_are_refused() {
    let server = Server::start().await;
    let mut backing = image(2 << 30);
    backing[15] = 104;
    backing[19] = 10;
    let mut truncated = image(2 << 30);
    truncated.truncate(40);
    for (what, bytes) in [
        ("no image", b"MZ\x90 hello".repeat(100)),
        ("nothing", Vec::new()),
        ("a backing file", backing),
        ("an absurd size", image(u64::MAX)),
        ("no size", image(0)),
        ("a cut header", truncated),
    ] {
        let before = server.footprint().await;
        let path = format!("/v1/images/{}", digest(&bytes));
        let answer = server.call(Method::PUT, &path, &[], bytes).await;
        check(&answer, 422, "invalid-image", "body");
        assert_eq!(
            server.footprint().await,
            before,
            "{what} left something behind"
        );
    }
}

#[tokio::test]
async fn damaged_interrupted_or_too_large_uploads_are_refused() {
    let server = Server::with(|config| config.image_max = waifud_types::ByteSize(8192)).await;
    let before = server.footprint().await;
    let mut bytes = image(2 << 30);
    let path = format!("/v1/images/{}", digest(&bytes));
    bytes[4000] = 1;
    check(
        &server.call(Method::PUT, &path, &[], bytes).await,
        422,
        "digest-mismatch",
        "digest",
    );

    let pieces = [Ok(image(2 << 30)), Err(std::io::Error::other("gone"))];
    let body = axum::body::Body::from_stream(futures::stream::iter(pieces));
    check(
        &server.call(Method::PUT, &path, &[], body).await,
        400,
        "upload-interrupted",
        "body",
    );

    let large = vec![image(2 << 30); 3].concat();
    let path = format!("/v1/images/{}", digest(&large));
    check(
        &server.call(Method::PUT, &path, &[], large).await,
        413,
        "image-too-large",
        "body",
    );
    check(
        &server.call(Method::PUT, "/v1/images/md5:1", &[], "x").await,
        400,
        "invalid-query",
        "digest",
    );
    assert_eq!(server.footprint().await, before);
}

#[tokio::test]
async fn a_repeated_upload_is_stored_once() {
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
async fn a_template_of_a_missing_image_is_refused() {
    let server = Server::start().await;
    let answer = server
        .post(
            "/v1/templates",
            &json!({"name": "a", "image": digest(b"x")}),
        )
        .await;
    check(&answer, 422, "unknown-image", "image");
    let answer = server
        .post(
            "/v1/templates",
            &json!({"name": "A", "image": digest(b"x")}),
        )
        .await;
    check(&answer, 422, "invalid-name", "name");
}

#[tokio::test]
async fn an_instance_without_capacity_waits_and_can_be_deleted() {
    let server = Server::start().await;
    server.template().await;
    server.join("alder", waifud_types::ByteSize::gib(2)).await;
    let big = json!({"name": "big", "template": "debian-12", "memory_bytes": 64u64 << 30});
    let instance = server.create(&big).await.expect(201).instance();
    assert_eq!(instance.status.state.as_str(), "pending");
    let why = server.get("/v1/instances/big/why").await.json();
    assert!(
        why["summary"].as_str().unwrap().contains("64G memory"),
        "{why}"
    );
    server.delete("/v1/instances/big").await.expect(200);
    server.get("/v1/instances/big").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_during_a_create_leaves_nothing() {
    let server = Server::start().await;
    server.template().await;
    server.join("alder", waifud_types::ByteSize::gib(64)).await;
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
        assert_eq!(
            server.get(&path).await.instance().status.state.as_str(),
            "deleting"
        );
        let answer = server
            .patch(&path, &json!({"run": false}))
            .await
            .expect(409);
        assert_eq!(answer.problem().code, "deleting");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_repeats_its_answer_and_refuses_another_body() {
    let server = Server::start().await;
    server.template().await;
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
    check(&answer, 409, "idempotency-key-reused", "Idempotency-Key");
    let answer = server
        .call(
            Method::POST,
            "/v1/instances",
            &[("idempotency-key", "")],
            body,
        )
        .await;
    check(&answer, 400, "invalid-header", "Idempotency-Key");
}

#[tokio::test]
async fn errors_name_invalid_parameters() {
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
        check(&server.get(path).await, 400, "invalid-query", field);
    }
    server.template().await;
    server.create_instance("web").await;
    check(
        &server.get("/v1/instances/web?wait=soon").await,
        400,
        "invalid-query",
        "wait",
    );
    check(
        &server.get("/v1/instances/web?for=rain").await,
        400,
        "invalid-query",
        "for",
    );
    let answer = server
        .call(
            Method::PATCH,
            "/v1/instances/web",
            &[("if-match", "7")],
            "{}",
        )
        .await;
    check(&answer, 400, "invalid-header", "If-Match");
}

#[tokio::test]
async fn files_of_interrupted_uploads_are_removed_at_the_next_start() {
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
