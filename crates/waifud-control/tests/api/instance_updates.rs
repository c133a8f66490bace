//! Changes of an instance: labels, restart policy, placement, user-data and re-runs of cloud-init; and descriptions.

use crate::common::Server;
use axum::http::Method;
use serde_json::{Value, json};
use waifud_types::{ByteSize, Generation};

async fn with_web() -> Server {
    let server = Server::with_template().await;
    server
        .create(
            &json!({"name": "web", "template": "debian-12", "labels": {"tier": "web", "a": "1"}}),
        )
        .await
        .expect(201);
    server
}

#[tokio::test]
async fn labels_are_merged_one_by_one_and_lists_filter_by_them() {
    let server = with_web().await;
    let answer = server
        .patch_instance(
            "web",
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
        "labels are not part of the spec"
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
            .patch_instance("web", &bad)
            .await
            .expect(422)
            .problem();
        assert_eq!(problem.code, "invalid-label", "{bad}");
        assert!(problem.field.unwrap().starts_with("labels."), "{bad}");
    }
    let many: serde_json::Map<_, _> = (0..63).map(|n| (format!("k{n}"), json!("v"))).collect();
    server
        .patch_instance("web", &json!({"labels": many}))
        .await
        .refused(422, "too-many", "labels");
    assert_eq!(server.instance("web").await, instance);
}

#[tokio::test]
async fn changed_restart_priority_and_placement_increase_the_generation() {
    let server = with_web().await;
    let change = json!({"restart": "always", "priority": 7,
        "placement": {"node": null, "require": {"disk": "ssd"}, "spread": {"group": "web", "strict": true}, "near": null}});
    let instance = server.patched("web", &change).await;
    assert_eq!(instance.generation, Generation(2));
    let spec = serde_json::to_value(&instance.spec).unwrap();
    assert_eq!(spec["restart"], "always");
    assert_eq!(spec["priority"], 7);
    assert_eq!(spec["placement"], change["placement"]);
    let again = server.patched("web", &change).await;
    assert_eq!(
        again.generation,
        Generation(2),
        "an unchanged spec keeps its generation"
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
            .patch_instance("web", &bad)
            .await
            .expect(422)
            .problem();
        assert_eq!(problem.field.as_deref(), Some(field), "{bad}");
    }
}

#[tokio::test]
async fn a_satisfiable_placement_places_a_waiting_instance_and_never_moves_a_placed_one() {
    let (server, _alder) = Server::with_node(ByteSize::gib(8)).await;
    server
        .create(&json!({"name": "web", "template": "debian-12", "placement": {"node": "birch"}}))
        .await
        .expect(201);
    assert_eq!(server.instance("web").await.status.node, None);
    let change = json!({"placement": {"node": "alder"}});
    let placed = server.patched("web", &change).await;
    assert_eq!(placed.status.node.unwrap().as_str(), "alder");
    let problem = server
        .patch_instance("web", &json!({"placement": {"node": "birch"}}))
        .await
        .expect(409)
        .problem();
    assert_eq!(problem.field.as_deref(), Some("spec.placement.node"));
    assert!(problem.hint.is_some());
}

#[tokio::test]
async fn each_re_run_gets_a_new_instance_id_and_an_edit_alone_does_not() {
    let (server, mut agent) = Server::with_user_data().await;
    let mut ids = Vec::new();
    for change in [
        None,
        Some(json!({"user_data": "#!/bin/sh\ntrue\n"})),
        Some(json!({"re_run": true})),
        Some(json!({"re_run": true, "user_data": "#!/bin/sh\nfalse\n"})),
    ] {
        if let Some(change) = change {
            server.patch_instance("web", &change).await.expect(200);
        }
        let put = agent.put().await;
        let documents = agent.documents(&put.bundle).await;
        ids.push(documents.instance_id().to_owned());
    }
    assert_eq!(ids[0], ids[1], "an edit alone keeps the instance ID");
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
async fn a_description_recreates_the_instance_and_a_dry_run_creates_nothing() {
    let server = Server::with_template().await;
    let request = json!({"name": "web", "template": "debian-12", "labels": {"tier": "web"}, "cpus": 3,
        "memory_bytes": 2_147_483_648_u64, "disk_bytes": 32_212_254_720_u64, "pool": "fast",
        "user_data": "#cloud-config\npackages: [htop]\n", "ssh_keys": [common_key()], "run": false, "restart": "never",
        "priority": -3, "protected": false, "mac": "52:54:00:12:34:56", "nics": [], "publish": [],
        "placement": {"node": "alder", "require": {"disk": "ssd"}, "spread": {"group": "web", "strict": false}, "near": null}});
    server.create(&request).await.expect(201);
    let answer = server
        .get("/v1/instances/web/description")
        .await
        .expect(200);
    assert_eq!(answer.headers.get("etag").unwrap(), "\"1\"");
    assert_eq!(answer.headers.get("cache-control").unwrap(), "no-store");
    let described: Value = answer.json();
    assert_eq!(described, request);

    let dry = "/v1/instances?dry_run=true";
    for (body, status, field) in [
        (request.clone(), 409, Some("name")),
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
        .expect(200);
    server.get("/v1/instances/other").await.expect(404);

    // Once the instance is deleted, its description creates it again.
    server.delete("/v1/instances/web").await.expect(200);
    server.create(&described).await.expect(201);
    let again: Value = server
        .get("/v1/instances/web/description")
        .await
        .expect(200)
        .json();
    assert_eq!(again, request);
}

#[tokio::test]
async fn responses_with_user_data_are_not_cacheable() {
    let server = Server::with_template().await;
    let body = json!({"name": "web", "template": "debian-12", "user_data": "#cloud-config\n{}"});
    server.create(&body).await.expect(201);
    let token = json!({"name": "ci", "role": "viewer"});
    for answer in [
        server.post("/v1/tokens", &token).await.expect(201),
        server.post("/v1/join-tokens", &json!({})).await.expect(201),
        server.get("/v1/instances/web/user-data").await.expect(200),
        server
            .get("/v1/instances/web/description")
            .await
            .expect(200),
        server.get("/v1/descriptions").await.expect(200),
    ] {
        let store = answer.headers.get("cache-control");
        assert_eq!(store.unwrap(), "no-store");
    }
}

fn common_key() -> &'static str {
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me"
}

#[tokio::test]
async fn a_page_of_descriptions_ends_when_its_user_data_reaches_4_mib() {
    let server = Server::with_template().await;
    let script = format!("#!/bin/sh\n{}", "# a comment\n".repeat(80_000));
    for n in 0..7 {
        let body = json!({"name": format!("vm-{n}"), "template": "debian-12", "user_data": script});
        server.create(&body).await.expect(201);
    }
    let mut names = Vec::new();
    let mut pages = Vec::new();
    let mut path = "/v1/descriptions?limit=500".to_owned();
    loop {
        let page: Value = server.get(&path).await.expect(200).json();
        let items = page["items"].as_array().unwrap();
        pages.push(items.len());
        for item in items {
            assert_eq!(item["description"]["user_data"], script);
            names.push(item["description"]["name"].as_str().unwrap().to_owned());
        }
        let Some(next) = page["next"].as_str() else {
            break;
        };
        path = format!("/v1/descriptions?limit=500&cursor={next}");
    }
    assert_eq!(pages, [5, 2], "960,010 bytes each");
    let expected: Vec<_> = (0..7).map(|n| format!("vm-{n}")).collect();
    assert_eq!(names, expected);
}
