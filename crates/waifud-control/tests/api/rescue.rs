//! Rescue over the API: the spec that the node receives, the documents of the guest, and refused requests.

use crate::common::{Server, digest, image, ready_report, report};
use axum::http::Method;
use serde_json::{Value, json};
use waifud_api::agent::InstanceReport;
use waifud_types::status::ReadyBy;
use waifud_types::{ByteSize, Digest, InstanceState};

const PATH: &str = "/v1/instances/web";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJj9Zt1zMvFTIbmRXkGl0dDxx3GSSnPEGBIqYCj0P3mD you@desk";

/// Creates the template `small` from another image than that of `debian-12`.
async fn create_small_template(server: &Server) -> Digest {
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
async fn a_rescue_uses_its_own_image_and_documents_until_it_ends() {
    let server = Server::with_template().await;
    let small = create_small_template(&server).await;
    let mut agent = server.join("alder", ByteSize::gib(8)).await;
    let body = json!({"name": "web", "template": "debian-12", "user_data": "#!/bin/sh\nreboot\n"});
    let web = server.created(&body).await;
    agent
        .report_instance(report(web.id, InstanceState::Running))
        .await;
    agent.watch(None).await;
    let frames = agent.until_sync().await;
    assert!(!frames.is_empty());

    let ordered = server.patch(PATH, &begin("small")).await;
    let ordered = ordered.expect(200).instance();
    assert_eq!(ordered.generation, web.generation.next());
    let put = agent.put().await;
    let rescue = put.spec.rescue.as_ref().unwrap();
    assert_eq!((rescue.image, rescue.template.as_str()), (small, "small"));
    let image = put.rescue_image.as_ref().unwrap();
    assert_eq!(image.digest, small);
    assert_eq!(image.virtual_size_bytes, ByteSize::gib(1));
    assert_eq!(put.spec.image, web.spec.image);
    assert_eq!(put.spec.power.reboots, 1);
    agent.image(small).await.expect(200);
    let documents = agent.documents(&put.bundle).await;
    let text = format!(
        "{documents:?}{}",
        String::from_utf8_lossy(&documents.cidata())
    );
    assert!(
        text.contains("you@desk"),
        "the rescue grants access to the SSH key"
    );
    assert!(
        !text.contains("reboot"),
        "the rescue does not run the user-data of the instance"
    );
    // A repeated order changes nothing.
    let again = server.patch(PATH, &begin("small")).await.expect(200);
    assert_eq!(again.instance().generation, ordered.generation);
    // The image stays while the rescue uses it.
    server.delete("/v1/templates/small").await.expect(204);
    agent.image(small).await.expect(200);

    let ended = server.patch(PATH, &json!({"rescue": "end"})).await;
    assert_eq!(ended.expect(200).instance().spec.rescue, None);
    let put = agent.put().await;
    assert_eq!((put.spec.rescue, put.rescue_image), (None, None));
    assert_eq!(put.spec.power.reboots, 2);
    agent.image(small).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rescue_starts_a_stopped_instance_and_invalid_rescues_change_nothing() {
    let server = Server::with_template().await;
    create_small_template(&server).await;
    let _agent = server.join("alder", ByteSize::gib(8)).await;
    let body = json!({"name": "web", "template": "debian-12", "run": false});
    server.create(&body).await.expect(201);
    let before = server.instance("web").await;
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
        let answer = server.patch(PATH, &body).await;
        answer.refused(422, code, field);
    }
    assert_eq!(server.instance("web").await, before);
    let mut forced = begin("small");
    forced["reboot"] = json!("force");
    let ordered = server.patched("web", &forced).await.spec;
    assert!(ordered.run && ordered.power.force_reboot);
    assert_eq!(ordered.power.reboots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readiness_of_a_rescue_system_is_not_taken_for_that_of_the_instance() {
    let server = Server::with_template().await;
    create_small_template(&server).await;
    let mut agent = server.join("alder", ByteSize::gib(8)).await;
    let body = json!({"name": "web", "template": "debian-12"});
    let web = server.created(&body).await;
    agent.watch(None).await;
    agent.until_sync().await;
    server.patch(PATH, &begin("small")).await.expect(200);
    let put = agent.put().await;
    let of_rescue = |ready_by| InstanceReport {
        observed_generation: put.generation,
        ready_by: Some(ready_by),
        ..ready_report(web.id)
    };
    agent.report_instance(of_rescue(ReadyBy::Reporter)).await;
    let status = server.instance("web").await.status;
    assert_eq!(status.ready_by, Some(ReadyBy::Reporter));
    assert_eq!(status.last_ready_by, None);

    server
        .patch(PATH, &json!({"rescue": "end"}))
        .await
        .expect(200);
    // The node has not received the change yet.
    agent.report_instance(of_rescue(ReadyBy::Console)).await;
    assert_eq!(server.instance("web").await.status.last_ready_by, None);
    let put = agent.put().await;
    let mut own = ready_report(web.id);
    own.observed_generation = put.generation;
    agent.report_instance(own).await;
    let status = server.instance("web").await.status;
    assert_eq!(status.last_ready_by, Some(ReadyBy::PhoneHome));
}
