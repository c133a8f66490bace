//! Every route of the API answers unsupported methods, unknown objects and unknown callers with a problem; lists, waits
//! and the OpenAPI document.

use crate::common::{Server, collect};
use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use tower::ServiceExt;

const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

fn document() -> Value {
    waifud_control::http::openapi().unwrap()
}

/// Every path, with parameters that name no object, and its methods.
fn paths() -> Vec<(String, Vec<String>)> {
    let digest = format!("sha256:{}", "0".repeat(64));
    document()["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, item)| {
            let path = path
                .replace("{name}", "missing")
                .replace("{digest}", &digest);
            (path, item.as_object().unwrap().keys().cloned().collect())
        })
        .collect()
}

#[tokio::test]
async fn unsupported_methods_are_answered_with_405_and_the_allowed_methods() {
    let server = Server::start().await;
    let mut checked = 0;
    for (path, methods) in paths() {
        for method in METHODS
            .iter()
            .filter(|method| !methods.iter().any(|own| own == *method))
        {
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = server
                .call(method.clone(), &path, &[], "")
                .await
                .expect(405);
            assert_eq!(
                answer.problem().code,
                "method-not-allowed",
                "{method} {path}"
            );
            let allow = answer
                .headers
                .get("allow")
                .unwrap()
                .to_str()
                .unwrap()
                .to_lowercase();
            assert!(
                methods.iter().all(|own| allow.contains(own.as_str())),
                "{path}: {allow}"
            );
            checked += 1;
        }
    }
    assert!(checked > 30);
}

#[tokio::test]
async fn unknown_objects_and_routes_are_answered_with_404() {
    let server = Server::start().await;
    let mut checked = 0;
    for (path, methods) in paths()
        .iter()
        .filter(|(path, _)| path.contains("missing") || path.contains("sha256"))
    {
        // Without a request to upgrade, a stream is refused before its object is looked up.
        let streams = ["/console", "/forward", "/screen", "/ssh"]
            .iter()
            .any(|end| path.ends_with(end));
        for method in methods.iter().filter(|method| *method != "put" && !streams) {
            let method: Method = method.to_uppercase().parse().unwrap();
            // The body must be valid before the object is looked up.
            let body = if path.ends_with("/exec") {
                r#"{"command":["true"]}"#
            } else {
                "{}"
            };
            let answer = server
                .call(method.clone(), path, &[], body)
                .await
                .expect(404);
            let problem = answer.problem();
            assert_eq!(problem.code, "not-found", "{method} {path}");
            assert!(problem.hint.is_some());
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked}");
    for path in [
        "/",
        "/v1",
        "/v1/nope",
        "/v2/instances",
        "/v1/instances/a/b/c",
    ] {
        assert_eq!(
            server.get(path).await.expect(404).problem().code,
            "no-such-route"
        );
    }
}

#[tokio::test]
async fn peers_without_a_verified_identity_are_refused_on_every_protected_route() {
    let server = Server::start().await;
    let open = ["/healthz", "/v1/version", "/v1/openapi.json"];
    let mut checked = 0;
    for (path, methods) in paths()
        .iter()
        .filter(|(path, _)| !open.contains(&path.as_str()))
    {
        for method in methods {
            let request = Request::builder()
                .method(method.to_uppercase().as_str())
                .uri(path)
                .body(Body::from("{}"))
                .unwrap();
            let router = waifud_control::http::user_router(server.control.clone());
            let answer = collect(router.oneshot(request).await.unwrap())
                .await
                .expect(403);
            assert_eq!(answer.problem().code, "forbidden", "{method} {path}");
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
}

#[tokio::test]
async fn the_served_openapi_document_is_version_3_1_and_complete() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let server = Server::start().await;
    assert_eq!(
        server.get("/v1/openapi.json").await.expect(200).json(),
        document
    );
    let mut ids: Vec<_> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values() {
            assert!(operation["summary"].is_string(), "{path} has no summary");
            ids.push(operation["operationId"].as_str().unwrap().to_owned());
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "operation IDs are unique");
    for schema in document.to_string().split("#/components/schemas/").skip(1) {
        let name = schema.split('"').next().unwrap();
        assert!(
            document["components"]["schemas"].get(name).is_some(),
            "{name} is not described"
        );
    }
}

#[tokio::test]
async fn a_valid_request_id_is_echoed_and_an_invalid_one_is_replaced() {
    let server = Server::start().await;
    let answer = server
        .call(Method::GET, "/v1/nope", &[("x-request-id", "mine-1")], "")
        .await;
    assert_eq!(answer.problem().request_id.as_deref(), Some("mine-1"));
    let answer = server
        .call(Method::GET, "/v1/nope", &[("x-request-id", "a b\"c")], "")
        .await;
    let replaced = answer.problem().request_id.unwrap();
    assert!(
        !replaced.is_empty() && !replaced.contains([' ', '"']),
        "{replaced}"
    );
}

#[tokio::test]
async fn lists_are_paginated_and_can_be_filtered() {
    let (server, _alder) = Server::with_node(waifud_types::ByteSize::gib(64)).await;
    for index in 0..25 {
        let body = json!({
            "name": format!("vm-{index:02}"), "template": "debian-12",
            "labels": {"tier": if index % 2 == 0 { "web" } else { "db" }},
        });
        server.create(&body).await.expect(201);
    }
    let mut names = Vec::new();
    let mut path = "/v1/instances?limit=10".to_owned();
    loop {
        let page = server.get(&path).await.expect(200).json();
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["name"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/instances?limit=10&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(
        names,
        (0..25).map(|i| format!("vm-{i:02}")).collect::<Vec<_>>()
    );
    for (query, count) in [
        ("label=tier=web", 13),
        ("label=tier", 25),
        ("label=tier=web&label=none", 0),
        ("state=pending", 25),
        ("state=running,stopped", 0),
        ("node=alder", 25),
        ("node=birch", 0),
        ("template=debian-12&name=vm-07", 1),
    ] {
        let page = server
            .get(&format!("/v1/instances?{query}"))
            .await
            .expect(200)
            .json();
        assert_eq!(page["items"].as_array().unwrap().len(), count, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_is_answered_with_200_at_its_goal_and_with_202_before() {
    let (server, agent) = Server::with_node(waifud_types::ByteSize::gib(64)).await;
    let body = json!({"name": "web", "template": "debian-12"}).to_string();
    let answer = server
        .call(Method::POST, "/v1/instances?wait=1ms", &[], body)
        .await
        .expect(202);
    let id = answer.instance().id;
    let (answer, ()) = tokio::join!(
        server.get("/v1/instances/web?wait=20s"),
        agent.report_instance(crate::common::report(
            id,
            waifud_types::InstanceState::Running
        ))
    );
    assert_eq!(
        answer.expect(200).instance().status.state.as_str(),
        "running"
    );
    server
        .get("/v1/instances/web?wait=1ms&for=ready")
        .await
        .expect(202);
    let stop = json!({"run": false}).to_string();
    server
        .call(Method::PATCH, "/v1/instances/web?wait=1ms", &[], stop)
        .await
        .expect(202);
    let mut stopped = crate::common::report(id, waifud_types::InstanceState::Stopped);
    stopped.observed_generation = waifud_types::Generation(2);
    let (answer, ()) = tokio::join!(
        server.get("/v1/instances/web?wait=20s"),
        agent.report_instance(stopped)
    );
    assert_eq!(
        answer.expect(200).instance().status.state.as_str(),
        "stopped"
    );
    server
        .call(Method::DELETE, "/v1/instances/web?wait=1ms", &[], "")
        .await
        .expect(202);
}
