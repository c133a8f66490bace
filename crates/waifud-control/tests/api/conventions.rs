//! The conventions of docs/reference/api.md that hold for all answers.

use crate::common::Server;
use serde_json::{Value, json};
use waifud_types::ByteSize;

/// Checks that an answer has every property of its schema, at every level, unless the property's description says that it
/// may be absent. Returns the number of properties.
fn complete(value: &Value, schema: &Value, all: &Value, at: &str) -> usize {
    if value.is_null() {
        return 0;
    }
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = all.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        return complete(value, schema, all, at);
    }
    let mut count = 0;
    // A nullable object is null or of one schema. What has several schemas has none for all its values.
    if let Some(options) = schema["oneOf"].as_array() {
        let mut objects = options.iter().filter(|option| option["type"] != "null");
        if let (Some(one), None) = (objects.next(), objects.next()) {
            count += complete(value, one, all, at);
        }
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        count += complete(value, part, all, at);
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        count += complete(item, &schema["items"], all, &format!("{at}[{index}]"));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        let description = property["description"].as_str().unwrap_or_default();
        match value.get(name) {
            Some(inner) => count += 1 + complete(inner, property, all, &at),
            None => assert!(description.contains("absent"), "{at} is absent"),
        }
    }
    count
}

#[tokio::test]
async fn unknown_values_are_null_and_absent_only_where_the_document_says_so() {
    let server = Server::with_running_instance().await;
    let lan = json!({"name": "lan", "bridge": "br0"});
    server.post("/v1/networks", &lan).await.expect(201);
    server.token("laptop", "viewer", None).await;
    server.join_token(None).await;
    let document = server.get("/v1/openapi.json").await.expect(200).json();
    let mut count = 0;
    for (template, path, status) in [
        ("/v1/instances", "/v1/instances", 200),
        ("/v1/instances/{name}", "/v1/instances/web", 200),
        ("/v1/instances/{name}", "/v1/instances/nosuch", 404),
        ("/v1/instances/{name}/why", "/v1/instances/web/why", 200),
        ("/v1/templates", "/v1/templates", 200),
        ("/v1/images", "/v1/images", 200),
        ("/v1/nodes", "/v1/nodes", 200),
        ("/v1/networks", "/v1/networks", 200),
        ("/v1/events", "/v1/events", 200),
        ("/v1/tokens", "/v1/tokens", 200),
        ("/v1/join-tokens", "/v1/join-tokens", 200),
        ("/v1/catalog", "/v1/catalog", 200),
        ("/v1/server", "/v1/server", 200),
        ("/v1/whoami", "/v1/whoami", 200),
    ] {
        let answer = server.get(path).await.expect(status).json();
        let responses = &document["paths"][template]["get"]["responses"];
        let content = responses[status.to_string()]["content"]
            .as_object()
            .unwrap();
        let schema = &content.values().next().unwrap()["schema"];
        let found = complete(&answer, schema, &document, path);
        assert!(found > 0, "{path} has no schema: {schema}");
        count += found;
    }
    assert!(count > 300, "{count}");
}

#[tokio::test]
async fn a_watch_from_the_revision_of_a_list_misses_nothing() {
    let server = Server::with_template().await;
    server.join("alder", ByteSize::gib(64)).await;
    for name in ["a", "b"] {
        server.create_instance(name).await;
    }
    let first = server.get("/v1/instances?limit=1").await.expect(200).json();
    server.create_instance("during-the-pages").await;
    let cursor = first["next"].as_str().unwrap();
    let path = format!("/v1/instances?limit=1&cursor={cursor}");
    let second = server.get(&path).await.expect(200).json();
    server.create_instance("after-the-pages").await;
    let created = |events: &Value| -> Vec<String> {
        let all = events["items"].as_array().unwrap();
        let created = all
            .iter()
            .filter(|event| event["kind"] == "instance.created");
        created
            .map(|event| event["object"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    for (page, missed) in [
        (&first, &["during-the-pages", "after-the-pages"][..]),
        (&second, &["after-the-pages"]),
    ] {
        let since = page["revision"].as_str().unwrap();
        let path = format!("/v1/events?since={since}&limit=1000");
        let events = server.get(&path).await.expect(200).json();
        assert_eq!(created(&events), missed);
    }
}
