//! Rescue over the API: the spec for the node, the documents of the guest, and refused requests.

mod common;

use axum::http::Method;
use common::{Server, digest, image, report};
use serde_json::{Value, json};
use waifud_types::{ByteSize, Digest, InstanceState};

const PATH: &str = "/v1/instances/web";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJj9Zt1zMvFTIbmRXkGl0dDxx3GSSnPEGBIqYCj0P3mD you@desk";

/// A second template with another image.
async fn small(server: &Server) -> Digest {
    let bytes = image(1 << 30);
    let digest = digest(&bytes);
    server
        .call(Method::PUT, &format!("/v1/images/{digest}"), &[], bytes)
        .await
        .expect(201);
    let body = json!({"name": "small", "image": digest, "datasource": "ec2"});
    server.post("/v1/templates", &body).await.expect(201);
    digest
}

fn begin(template: &str) -> Value {
    json!({"rescue": {"begin": {"template": template, "ssh_keys": [KEY]}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rescue_has_its_own_image_and_documents_and_can_be_ended() {
    let server = Server::start().await;
    server.template().await;
    let small = small(&server).await;
    let mut agent = server.join("alder", ByteSize::gib(8)).await;
    let body = json!({"name": "web", "template": "debian-12", "user_data": "#!/bin/sh\nreboot\n"});
    let web = server.create(&body).await.expect(201).instance();
    agent
        .send_report(report(web.id, InstanceState::Running))
        .await;
    agent.watch(None).await;
    let frames = agent.until_sync().await;
    assert!(!frames.is_empty());

    let updated = server.patch(PATH, &begin("small")).await.expect(200);
    let updated = updated.instance();
    assert_eq!(updated.generation, web.generation.next());
    let put = agent.put().await;
    let rescue = put.spec.rescue.as_ref().unwrap();
    assert_eq!((rescue.image, rescue.template.as_str()), (small, "small"));
    let its = put.rescue_image.as_ref().unwrap();
    assert_eq!(its.digest, small);
    assert_eq!(its.virtual_size_bytes, ByteSize::gib(1));
    assert_eq!(put.spec.image, web.spec.image);
    assert_eq!(put.spec.power.reboots, 1);
    agent
        .get(&format!("/v1/agent/images/{small}"))
        .await
        .expect(200);
    let sealed = agent
        .get(&format!("/v1/agent/bundles/{}", put.bundle.digest))
        .await
        .expect(200);
    let documents =
        waifud_cloudinit::open(&sealed.bytes, put.bundle.digest, &put.bundle.key).unwrap();
    let text = format!(
        "{documents:?}{}",
        String::from_utf8_lossy(&documents.cidata())
    );
    assert!(text.contains("you@desk"), "its key is included");
    assert!(!text.contains("reboot"), "its user-data is not applied");
    // Repeating the request changes nothing.
    let again = server.patch(PATH, &begin("small")).await.expect(200);
    assert_eq!(again.instance().generation, updated.generation);
    // While it is in use, it stays.
    server.delete("/v1/templates/small").await;
    agent
        .get(&format!("/v1/agent/images/{small}"))
        .await
        .expect(200);

    let ended = server.patch(PATH, &json!({"rescue": "end"})).await;
    assert_eq!(ended.expect(200).instance().spec.rescue, None);
    let put = agent.put().await;
    assert_eq!((put.spec.rescue, put.rescue_image), (None, None));
    assert_eq!(put.spec.power.reboots, 2);
    agent
        .get(&format!("/v1/agent/images/{small}"))
        .await
        .expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rescue_starts_a_stopped_instance_and_invalid_rescues_change_nothing() {
    let server = Server::start().await;
    server.template().await;
    small(&server).await;
    let _agent = server.join("alder", ByteSize::gib(8)).await;
    let body = json!({"name": "web", "template": "debian-12", "run": false});
    server.create(&body).await.expect(201);
    let before = server.get(PATH).await.expect(200).instance();
    for (body, code, field) in [
        (begin("nowhere"), "unknown-template", "rescue.template"),
        (begin("debian-12"), "image-identical", "rescue.template"),
        (
            json!({"rescue": {"begin": {"template": "small", "ssh_keys": ["no key"]}}}),
            "invalid-ssh-key",
            "rescue.ssh_keys",
        ),
        (
            json!({"rescue": {"begin": {"template": "small"}}, "run": false}),
            "contradiction",
            "run",
        ),
    ] {
        let refused = server.patch(PATH, &body).await.expect(422).problem();
        assert_eq!(
            (refused.code.as_str(), refused.field.as_deref()),
            (code, Some(field))
        );
        assert!(refused.hint.is_some());
    }
    assert_eq!(server.get(PATH).await.expect(200).instance(), before);
    let mut forced = begin("small");
    forced["reboot"] = json!("force");
    let updated = server.patch(PATH, &forced).await.expect(200).instance();
    assert!(updated.spec.run && updated.spec.power.force_reboot);
    assert_eq!(updated.spec.power.reboots, 1);
}
