//! Changes of labels, policies and user-data, and repeated first boots.

mod common;

use axum::http::Method;
use common::Server;
use serde_json::{Value, json};
use waifud_types::{ByteSize, Generation};

async fn with_web() -> Server {
    let server = Server::start().await;
    server.template().await;
    server
        .create(
            &json!({"name": "web", "template": "debian-12", "labels": {"tier": "web", "a": "1"}}),
        )
        .await
        .expect(201);
    server
}

#[tokio::test]
async fn labels_are_set_and_removed_one_by_one_and_filter_lists() {
    let server = with_web().await;
    let answer = server
        .patch(
            "/v1/instances/web",
            &json!({"labels": {"tier": "db", "a": null, "b": "2"}}),
        )
        .await
        .expect(200);
    let instance = answer.instance();
    let labels: Vec<_> = instance
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(labels, ["b=2", "tier=db"]);
    assert_eq!(
        instance.generation,
        Generation(1),
        "labels are no part of the spec"
    );
    let listed = |query: &'static str| {
        let server = &server;
        async move {
            let page: Value = server.get(query).await.expect(200).json();
            page["items"].as_array().unwrap().len()
        }
    };
    assert_eq!(listed("/v1/instances?label=tier=db").await, 1);
    assert_eq!(listed("/v1/instances?label=tier=web").await, 0);
    assert_eq!(listed("/v1/instances?label=a").await, 0);
    assert_eq!(listed("/v1/instances?label=b&label=tier").await, 1);
    let events: Value = server.get("/v1/events?object=web").await.expect(200).json();
    assert!(events.to_string().contains("labels changed"), "{events}");

    for bad in [
        json!({"labels": {"": "x"}}),
        json!({"labels": {"a b": "x"}}),
        json!({"labels": {"a": "\u{7}"}}),
    ] {
        let problem = server
            .patch("/v1/instances/web", &bad)
            .await
            .expect(422)
            .problem();
        assert_eq!(problem.code, "invalid-label", "{bad}");
        assert!(problem.field.unwrap().starts_with("labels."), "{bad}");
    }
    let many: serde_json::Map<_, _> = (0..63).map(|n| (format!("k{n}"), json!("v"))).collect();
    let problem = server
        .patch("/v1/instances/web", &json!({"labels": many}))
        .await
        .expect(422)
        .problem();
    assert_eq!(
        (problem.code.as_str(), problem.field.as_deref()),
        ("too-many", Some("labels"))
    );
    assert_eq!(server.get("/v1/instances/web").await.instance(), instance);
}

#[tokio::test]
async fn policies_are_replaced_and_increment_the_generation() {
    let server = with_web().await;
    let change = json!({"restart": "always", "priority": 7,
        "placement": {"node": null, "require": {"disk": "ssd"}, "spread": {"group": "web", "strict": true}}});
    let instance = server
        .patch("/v1/instances/web", &change)
        .await
        .expect(200)
        .instance();
    assert_eq!(instance.generation, Generation(2));
    let spec = serde_json::to_value(&instance.spec).unwrap();
    assert_eq!(spec["restart"], "always");
    assert_eq!(spec["priority"], 7);
    assert_eq!(spec["placement"], change["placement"]);
    let again = server
        .patch("/v1/instances/web", &change)
        .await
        .expect(200)
        .instance();
    assert_eq!(
        again.generation,
        Generation(2),
        "a request without changes keeps the generation"
    );
    for (bad, field) in [
        (json!({"restart": "sometimes"}), "spec.restart"),
        (json!({"priority": "high"}), "spec.priority"),
        (json!({"placement": {"node": "A B"}}), "spec.placement.node"),
        (
            json!({"placement": {"require": {"": "x"}}}),
            "spec.placement.require.",
        ),
    ] {
        let problem = server
            .patch("/v1/instances/web", &bad)
            .await
            .expect(422)
            .problem();
        assert_eq!(problem.field.as_deref(), Some(field), "{bad}");
    }
}

#[tokio::test]
async fn a_satisfiable_placement_places_an_instance_and_does_not_move_a_placed_one() {
    let server = Server::start().await;
    server.template().await;
    server.join("alder", ByteSize::gib(8)).await;
    server
        .create(&json!({"name": "web", "template": "debian-12", "placement": {"node": "birch"}}))
        .await
        .expect(201);
    assert_eq!(
        server.get("/v1/instances/web").await.instance().status.node,
        None
    );
    let change = json!({"placement": {"node": "alder"}});
    let placed = server
        .patch("/v1/instances/web", &change)
        .await
        .expect(200)
        .instance();
    assert_eq!(placed.status.node.unwrap().as_str(), "alder");
    let problem = server
        .patch(
            "/v1/instances/web",
            &json!({"placement": {"node": "birch"}}),
        )
        .await
        .expect(409)
        .problem();
    assert_eq!(problem.field.as_deref(), Some("spec.placement.node"));
    assert!(problem.hint.is_some());
}

#[tokio::test]
async fn a_re_run_changes_the_instance_id_and_an_edit_does_not() {
    let (server, mut agent) = Server::with_watching_node().await;
    server
        .create(&json!({"name": "web", "template": "debian-12", "user_data": "#!/bin/sh\n"}))
        .await
        .expect(201);
    let mut ids = Vec::new();
    for change in [
        None,
        Some(json!({"user_data": "#!/bin/sh\ntrue\n"})),
        Some(json!({"re_run": true})),
        Some(json!({"re_run": true, "user_data": "#!/bin/sh\nfalse\n"})),
    ] {
        if let Some(change) = change {
            server.patch("/v1/instances/web", &change).await.expect(200);
        }
        let put = agent.put().await;
        let path = format!("/v1/agent/bundles/{}", put.bundle.digest);
        let bytes = agent.get(&path).await.bytes;
        let documents = waifud_cloudinit::open(&bytes, put.bundle.digest, &put.bundle.key).unwrap();
        ids.push(documents.instance_id().to_owned());
    }
    assert_eq!(ids[0], ids[1], "an edit alone keeps it");
    assert!(
        ids[1].ends_with("-1") && ids[2].ends_with("-2") && ids[3].ends_with("-3"),
        "{ids:?}"
    );
    let stale = server
        .call(
            Method::PATCH,
            "/v1/instances/web",
            &[("if-match", "\"1\"")],
            json!({"re_run": true}).to_string(),
        )
        .await;
    stale.expect(412);
}

#[tokio::test]
async fn a_description_creates_an_equal_instance_and_a_dry_run_creates_nothing() {
    let server = Server::start().await;
    server.template().await;
    let asked = json!({"name": "web", "template": "debian-12", "labels": {"tier": "web"}, "cpus": 3,
        "memory_bytes": 2_147_483_648_u64, "disk_bytes": 32_212_254_720_u64, "pool": "fast",
        "user_data": "#cloud-config\npackages: [htop]\n", "ssh_keys": [common_key()], "run": false, "restart": "never",
        "priority": -3, "protected": false, "mac": "52:54:00:12:34:56", "nics": [], "publish": [],
        "placement": {"node": "alder", "require": {"disk": "ssd"}, "spread": {"group": "web", "strict": false}}});
    server.create(&asked).await.expect(201);
    let answer = server
        .get("/v1/instances/web/description")
        .await
        .expect(200);
    assert_eq!(answer.headers.get("etag").unwrap(), "\"1\"");
    assert_eq!(answer.headers.get("cache-control").unwrap(), "no-store");
    let described: Value = answer.json();
    assert_eq!(described, asked);

    let dry = "/v1/instances?dry_run=true";
    for (body, status, field) in [
        (asked.clone(), 409, Some("name")),
        (
            json!({"name": "other", "template": "debian-12", "mac": "52:54:00:12:34:56"}),
            409,
            None,
        ),
        (json!({"template": "nowhere"}), 422, Some("spec.template")),
        (
            json!({"template": "debian-12", "disk_bytes": 1_048_576}),
            422,
            Some("spec.disks[0].size_bytes"),
        ),
        (
            json!({"template": "debian-12", "user_data": "nonsense"}),
            422,
            Some("user_data"),
        ),
    ] {
        let answer = server.call(Method::POST, dry, &[], body.to_string()).await;
        let problem = answer.expect(status).problem();
        if field.is_some() {
            assert_eq!(problem.field.as_deref(), field, "{body}");
        }
    }
    let good = json!({"name": "other", "template": "debian-12"});
    server
        .call(Method::POST, dry, &[], good.to_string())
        .await
        .expect(204);
    server.get("/v1/instances/other").await.expect(404);

    // After the conflicting instance is deleted, the description creates it again.
    server
        .call(Method::DELETE, "/v1/instances/web", &[], "")
        .await;
    server.create(&described).await.expect(201);
    let again: Value = server
        .get("/v1/instances/web/description")
        .await
        .expect(200)
        .json();
    assert_eq!(again, asked);
}

fn common_key() -> &'static str {
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me"
}
