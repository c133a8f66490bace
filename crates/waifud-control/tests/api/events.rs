//! Events: their order, their retention, and streams that lose none.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::common::{DEADLINE, Server, report, step};
use axum::body::Body;
use axum::http::{Method, Request};
use eventsource_stream::Eventsource;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::json;
use waifud_api::client::SseEvent;
use waifud_types::{ByteSize, InstanceState, Revision};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_erases_neither_events_nor_idempotency_answers() {
    const DAY: Duration = Duration::from_hours(24);
    let (server, clock) = Server::with_manual_clock().await;
    server.template().await;
    let body = json!({"name": "web", "template": "debian-12"}).to_string();
    let key = [("idempotency-key", "k")];
    let create = async || {
        server
            .call(Method::POST, "/v1/instances", &key, body.clone())
            .await
    };
    create().await.expect(201);
    let kinds = server.kinds("web").await;
    assert!(!kinds.is_empty());
    server.control.trim().await.unwrap();
    for years in [10, -1, 0] {
        clock.set(years, DAY / 2);
        // An event with the wrong time does not make the others older either.
        server
            .create(&json!({"template": "debian-12"}))
            .await
            .expect(201);
        server.control.trim().await.unwrap();
        assert_eq!(server.kinds("web").await, kinds, "{years} years");
        let again = create().await.expect(201);
        assert!(
            again.headers.contains_key("idempotency-replayed"),
            "{years} years"
        );
    }
    clock.set(0, DAY * 2);
    server.control.trim().await.unwrap();
    create().await.expect(409);
    assert_eq!(server.kinds("web").await, kinds);
    clock.set(0, DAY * 91);
    server.control.trim().await.unwrap();
    assert!(
        server.kinds("web").await.is_empty(),
        "the retention period is over"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachability_is_measured_by_the_monotonic_clock() {
    let (server, clock) = Server::with_manual_clock().await;
    server.join("alder", ByteSize::gib(8)).await;
    let state = async || server.node("alder").await["state"].clone();
    for years in [1, -1] {
        clock.set(years, Duration::from_secs(20));
        server.control.check_contacts().await.unwrap();
        assert_eq!(state().await, "ready", "{years}");
    }
    clock.set(-1, Duration::from_secs(31));
    server.control.check_contacts().await.unwrap();
    assert_eq!(state().await, "unreachable");
}

struct Stream(BoxStream<'static, SseEvent>);

impl Stream {
    async fn open(server: &Server, path: &str, last: Option<&str>) -> Self {
        let mut request = Request::builder()
            .uri(path)
            .header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = server.raw(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status().as_u16(), 200);
        let events = response.into_body().into_data_stream().eventsource();
        Self(events.map(|event| event.unwrap()).boxed())
    }

    /// The next event; `None` when the stream has ended.
    async fn next(&mut self) -> Option<SseEvent> {
        tokio::time::timeout(DEADLINE, self.0.next()).await.unwrap()
    }
}

async fn create_many(server: &Server, count: usize) {
    let body = json!({"template": "debian-12"});
    let answers = futures::future::join_all((0..count).map(|_| server.create(&body))).await;
    assert!(answers.iter().all(|answer| answer.status.as_u16() == 201));
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_increase_strictly_under_concurrency_and_pages_miss_none() {
    let (server, _alder) = Server::with_node(ByteSize::gib(1000)).await;
    create_many(&server, 100).await;
    let mut numbers = Vec::new();
    let mut next = "0000000a.0".to_owned();
    loop {
        let page = server
            .get(&format!("/v1/events?limit=7&since={next}"))
            .await
            .expect(200)
            .json();
        for event in page["items"].as_array().unwrap() {
            numbers.push(
                event["revision"]
                    .as_str()
                    .unwrap()
                    .parse::<Revision>()
                    .unwrap()
                    .number,
            );
        }
        match page["next"].as_str() {
            Some(cursor) => next = cursor.to_owned(),
            None => break,
        }
    }
    // An upload, a template, a token, a node that was admitted and one that joined, and for each instance its creation
    // and its placement.
    assert_eq!(numbers, (1..=205).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeatedly_interrupted_stream_delivers_each_event_once() {
    let (server, _alder) = Server::with_node(ByteSize::gib(1000)).await;
    let start = server.control.store().revision().to_string();
    let (numbers, ()) = tokio::join!(
        async {
            let mut numbers = Vec::new();
            let mut last = start.clone();
            let mut length = 0;
            while numbers.len() < 400 {
                length = length % 13 + 1;
                let mut stream = Stream::open(&server, "/v1/events", Some(&last)).await;
                for _ in 0..length.min(400 - numbers.len()) {
                    let event = stream.next().await.unwrap();
                    last = event.id;
                    numbers.push(last.parse::<Revision>().unwrap().number);
                }
            }
            numbers
        },
        create_many(&server, 200)
    );
    assert_eq!(numbers, (6..406).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_one_object_carries_its_events_and_progress() {
    let (server, agent, web) = Server::with_placed_instance().await;
    let id = web.id;
    server.create_instance("other").await;
    let mut stream = Stream::open(
        &server,
        "/v1/events?object=instance/web&since=0000000a.0",
        None,
    )
    .await;
    assert_eq!(stream.next().await.unwrap().event, "instance.created");
    assert_eq!(stream.next().await.unwrap().event, "instance.placed");
    let mut at_work = report(id, InstanceState::Preparing);
    at_work.step = Some(step("image", Some(40)));
    agent.report_instance(at_work).await;
    let both: BTreeSet<_> = [stream.next().await.unwrap(), stream.next().await.unwrap()]
        .into_iter()
        .map(|event| {
            let progress = event.event == "progress";
            assert!(
                !progress || event.data.contains("\"percent\":40"),
                "{}",
                event.data
            );
            event.event
        })
        .collect();
    assert_eq!(
        both,
        BTreeSet::from(["instance.preparing".to_owned(), "progress".to_owned()])
    );
    server.control.stop_token().cancel();
    assert_eq!(stream.next().await, None, "streams end when waifud stops");
}

#[tokio::test]
async fn events_can_be_filtered_by_every_object_type_and_unknown_types_are_refused() {
    let server = Server::with_template().await;
    server
        .post("/v1/networks", &json!({"name": "lan", "bridge": "br0"}))
        .await
        .expect(201);
    server.token("laptop", "viewer", None).await;
    server.join_token(None).await;
    let all = server.get("/v1/events").await.json();
    let all = all["items"].as_array().unwrap();
    let types: BTreeSet<_> = all
        .iter()
        .map(|event| event["object"]["type"].as_str().unwrap())
        .collect();
    assert!(types.len() >= 5, "{types:?}");
    for event in all {
        let (kind, name) = (&event["object"]["type"], &event["object"]["name"]);
        let path = format!(
            "/v1/events?object={}/{}",
            kind.as_str().unwrap(),
            name.as_str().unwrap()
        );
        let found = server.get(&path).await.expect(200).json();
        assert!(found["items"].as_array().unwrap().contains(event), "{path}");
    }
    for unknown in ["cluster/x", "nosuch/web", "/web"] {
        let path = format!("/v1/events?object={unknown}");
        let problem = server.get(&path).await.expect(400).problem();
        assert_eq!(problem.field.as_deref(), Some("object"), "{unknown}");
        assert!(problem.hint.unwrap().contains("network, token, join-token"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trimmed_and_foreign_revisions_are_answered_with_410() {
    let server = Server::with_template().await;
    create_many(&server, 10).await;
    server
        .control
        .store()
        .write(|tx| tx.trim_events(5, 0, 1000))
        .await
        .map_err(|e: waifud_store::StoreError| e)
        .unwrap();
    for since in ["0000000a.3", "0000000b.20", "0000000a.999"] {
        for accept in ["application/json", "text/event-stream"] {
            let path = format!("/v1/events?since={since}");
            let answer = server
                .call(Method::GET, &path, &[("accept", accept)], "")
                .await
                .expect(410);
            let problem = answer.problem();
            assert_eq!(
                (problem.code.as_str(), problem.field.as_deref()),
                ("revision-gone", Some("since"))
            );
            let oldest = problem.detail.unwrap();
            server.items(&format!("/v1/events?since={oldest}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_name_the_actor_and_the_request_and_contain_no_secret() {
    let server = Server::with_template().await;
    let body = json!({"template": "debian-12", "name": "web", "user_data": "#!/bin/sh\n# hunter2"})
        .to_string();
    server
        .call(
            Method::POST,
            "/v1/instances",
            &[("x-request-id", "req-7")],
            body,
        )
        .await
        .expect(201);
    server
        .patch_instance("web", &json!({"user_data": "#!/bin/sh\n# hunter3"}))
        .await
        .expect(200);
    let page = server.get("/v1/events?object=web").await.json();
    let created = &page["items"][0];
    assert_eq!(created["request_id"], "req-7");
    assert_eq!(
        created["actor"],
        json!({"type": "user", "name": "uid=0", "from": "unix:uid=0"})
    );
    for path in [
        "/v1/events",
        "/v1/instances",
        "/v1/instances/web",
        "/v1/instances/web/why",
    ] {
        assert!(
            !server.get(path).await.json().to_string().contains("hunter"),
            "{path}"
        );
    }
}
