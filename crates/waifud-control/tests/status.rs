//! The API shows the true state: after concurrent deletes, renamed nodes, stopped guests, failing nodes.

mod common;

use axum::http::Method;
use common::{DEADLINE, Server, hello, report};
use serde_json::json;
use waifud_api::agent::Hello;
use waifud_types::evidence::{GuestEvidence, RequestSeen};
use waifud_types::status::{CloudInitState, ReadyBy, StepStatus, StoppedBy};
use waifud_types::{BootId, ByteSize, Generation, InstanceState, Timestamp};

fn step(name: &str) -> StepStatus {
    StepStatus {
        name: name.to_owned(),
        percent: None,
        since: Timestamp::UNIX_EPOCH,
        waiting_for: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_a_deleted_instance_does_not_report_running() {
    let server = std::sync::Arc::new(Server::start().await);
    server.template().await;
    let mut agent = server.join("alder", ByteSize::gib(8)).await;
    agent.watch(None).await;
    agent.until_sync().await;
    // The repeated request finds the first answer and waits for an instance that is deleted.
    let body = json!({"name": "web", "template": "debian-12"}).to_string();
    let headers = [("idempotency-key", "k")];
    let create = |path: &'static str| {
        let (server, body) = (server.clone(), body.clone());
        async move { server.call(Method::POST, path, &headers, body).await }
    };
    create("/v1/instances").await.expect(201);
    agent.put().await;
    server.delete("/v1/instances/web").await.expect(202);
    let tombstone = agent.tombstone().await;
    agent.destroyed(tombstone).await;
    let problem = create("/v1/instances?wait=30s").await.expect(409).problem();
    assert_eq!(problem.code, "deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_shows_only_its_own_obstacle() {
    let (server, mut agent) = Server::with_watching_node().await;
    let id = server.create_instance("web").await.id;
    agent.put().await;
    let mut before = report(id, InstanceState::Running);
    before.ready = true;
    before.ready_by = Some(ReadyBy::PhoneHome);
    before.step = Some(step("watch"));
    agent.send_report(before.clone()).await;
    server.delete("/v1/instances/web").await.expect(202);
    // The report was sent before the order arrived.
    before.reason = Some("something of before".to_owned());
    agent.send_report(before).await;
    let shown = server.get("/v1/instances/web").await.instance().status;
    assert_eq!(
        (shown.state, shown.ready, shown.ready_by, shown.step),
        (InstanceState::Deleting, false, None, None)
    );
    assert_eq!(shown.reason.unwrap(), "waiting for alder to destroy it");

    let mut struggling = report(id, InstanceState::Deleting);
    struggling.reason = Some("its disk is busy".to_owned());
    struggling.step = Some(step("remove-disk"));
    agent.send_report(struggling).await;
    let shown = server.get("/v1/instances/web").await.instance().status;
    assert_eq!(
        shown.reason.unwrap(),
        "waiting for alder to destroy it: its disk is busy"
    );
    assert_eq!(shown.step.unwrap().name, "remove-disk");
    assert_eq!(
        server.kinds(&id.to_string()).await.last().unwrap(),
        "instance.deleting"
    );
    let tombstone = agent.tombstone().await;
    agent.destroyed(tombstone).await;
    server.get("/v1/instances/web").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_instance_has_no_readiness_step() {
    let (server, agent) = Server::with_node().await;
    let id = server.create_instance("web").await.id;
    let mut status_report = report(id, InstanceState::Running);
    status_report.step = Some(step("ready"));
    agent.send_report(status_report.clone()).await;
    let shown = server.get("/v1/instances/web").await.instance().status;
    assert_eq!(shown.step.unwrap().name, "ready");
    status_report.ready = true;
    status_report.ready_by = Some(ReadyBy::PhoneHome);
    agent.send_report(status_report).await;
    let shown = server.get("/v1/instances/web").await.instance().status;
    assert_eq!((shown.ready, shown.step), (true, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_a_machine_its_instances_are_stopped_until_reported() {
    let server = Server::start().await;
    server.template().await;
    let memory = ByteSize::gib(8);
    let boots = [(); 4].map(|()| BootId::generate());
    let [here, there, ..] = boots;
    let hello_in = |name: &str, boot| Hello {
        boot_id: Some(boot),
        ..hello(name, memory)
    };
    // alder is on waifud's own machine.
    let (alder, birch) = (
        server.join("alder", memory).await,
        server.join("birch", memory).await,
    );
    alder.hello(&hello_in("alder", here)).await.expect(200);
    birch.hello(&hello_in("birch", there)).await.expect(200);
    server.control.note_boot(here).await.unwrap();
    let create = async |name: &str, node: &str| {
        let body = json!({"name": name, "template": "debian-12", "placement": {"node": node}});
        server.create(&body).await.expect(201).instance().id
    };
    let web = create("web", "alder").await;
    let (off, db) = (create("off", "alder").await, create("db", "birch").await);
    let ready = |id| {
        let mut running = report(id, InstanceState::Running);
        running.ready = true;
        running.ready_by = Some(ReadyBy::PhoneHome);
        running
    };
    alder.send_report(ready(web)).await;
    birch.send_report(ready(db)).await;
    let mut stopped = report(off, InstanceState::Stopped);
    stopped.stopped_by = Some(StoppedBy::Guest);
    alder.send_report(stopped).await;
    let shown = async |name: &str| {
        let path = format!("/v1/instances/{name}");
        let status = server.get(&path).await.instance().status;
        (status.state, status.ready, status.stopped_by)
    };
    let (runs, went_off) = (
        (InstanceState::Running, true, None),
        (InstanceState::Stopped, false, Some(StoppedBy::Host)),
    );
    // A restart of a daemon is not a restart of the machine.
    server.control.note_boot(here).await.unwrap();
    alder.hello(&hello_in("alder", here)).await.expect(200);
    birch.hello(&hello("birch", memory)).await.expect(200);
    assert_eq!((shown("web").await, shown("db").await), (runs, runs));

    // waifud's machine: detected before the agent there reports.
    server.control.note_boot(boots[2]).await.unwrap();
    assert_eq!((shown("web").await, shown("db").await), (went_off, runs));
    let was_off = (InstanceState::Stopped, false, Some(StoppedBy::Guest));
    assert_eq!(shown("off").await, was_off, "it was off before");
    alder.send_report(ready(web)).await;
    alder.hello(&hello_in("alder", boots[2])).await.expect(200);
    assert_eq!(shown("web").await, runs, "the same boot, in contact again");
    let kinds = server.kinds(&web.to_string()).await;
    let tail = &kinds[kinds.len() - 3..];
    assert_eq!(
        tail,
        ["instance.stopped", "instance.started", "instance.ready"]
    );

    // Another node's machine.
    birch.hello(&hello_in("birch", boots[3])).await.expect(200);
    assert_eq!((shown("web").await, shown("db").await), (runs, went_off));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ignores_the_previous_state() {
    let server = std::sync::Arc::new(Server::start().await);
    server.template().await;
    let agent = server.join("alder", ByteSize::gib(8)).await;
    let id = server.create_instance("web").await.id;
    let mut off = report(id, InstanceState::Stopped);
    off.cloud_init.state = CloudInitState::Done;
    agent.send_report(off).await;
    let wait = |method, path: &'static str, body: &'static str| {
        let server = server.clone();
        tokio::spawn(async move { server.call(method, path, &[], body).await })
    };
    let ready = wait(Method::GET, "/v1/instances/web?wait=20s&for=ready", "");
    let mut running = report(id, InstanceState::Running);
    agent.send_report(running.clone()).await;
    running.ready = true;
    running.ready_by = Some(ReadyBy::GuestAgent);
    agent.send_report(running).await;
    assert_eq!(ready.await.unwrap().status, 200);

    agent.send_report(report(id, InstanceState::Failed)).await;
    let stop = wait(
        Method::PATCH,
        "/v1/instances/web?wait=20s",
        r#"{"run":false}"#,
    );
    while server.get("/v1/instances/web").await.instance().generation == Generation(1) {
        tokio::task::yield_now().await;
    }
    let mut stopped = report(id, InstanceState::Stopped);
    stopped.observed_generation = Generation(2);
    agent.send_report(stopped).await;
    assert_eq!(stop.await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_node_has_its_new_name_everywhere() {
    let (server, agent) = Server::with_node().await;
    server.create_instance("web").await;
    agent
        .hello(&hello("birch", ByteSize::gib(8)))
        .await
        .expect(200);
    let rename = json!({"name": "birch"});
    server.patch("/v1/nodes/alder", &rename).await.expect(200);
    let page = server.get("/v1/instances?node=birch").await.json();
    assert_eq!(page["items"][0]["status"]["node"], "birch");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_request_starts_a_guest_that_powered_itself_off() {
    let (server, mut agent) = Server::with_watching_node().await;
    let id = server.create_instance("web").await.id;
    agent.put().await;
    let run = json!({"run": true});
    let running = server.patch("/v1/instances/web", &run).await.instance();
    assert_eq!(running.generation, Generation(1), "nothing changed");
    let mut off = report(id, InstanceState::Stopped);
    off.stopped_by = Some(StoppedBy::Guest);
    agent.send_report(off).await;
    let why = server.get("/v1/instances/web/why").await.json();
    assert!(
        why["hint"].as_str().unwrap().contains("waifuctl start web"),
        "{why}"
    );
    for _ in 0..2 {
        let ordered = server.patch("/v1/instances/web", &run).await.instance();
        assert_eq!(
            ordered.generation,
            Generation(2),
            "one order, however often"
        );
    }
    let put = agent.put().await;
    assert_eq!((put.generation, put.spec.run), (Generation(2), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_free_addresses_is_skipped() {
    let server = Server::start().await;
    server.template().await;
    server.join("alder", ByteSize::gib(1024)).await;
    let small = |node: Option<&str>| json!({"template": "debian-12", "memory_bytes": 128u64 << 20, "placement": {"node": node}});
    for _ in 0..253 {
        server.create(&small(Some("alder"))).await.expect(201);
    }
    let waiting = server.create(&small(None)).await.expect(201).instance();
    assert_eq!(
        waiting.status.reason.as_deref(),
        Some("waiting for: a free address in 10.144.1.0/24")
    );
    let path = format!("/v1/instances/{}", waiting.id);
    let why = server.get(&format!("{path}/why")).await.json();
    let full = "no free address in 10.144.1.0/24";
    assert_eq!(why["placement"][0]["reason"], full);
    // Capacity for one: alder would be the better choice.
    server.join("birch", ByteSize::mib(130)).await;
    let placed = server.get(&path).await.instance();
    assert_eq!(placed.status.node.unwrap().as_str(), "birch");
    let why = server.get(&format!("{path}/why")).await.json();
    assert_eq!(why["placement"][1]["reason"], full);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_with_a_thousand_terms_is_refused() {
    let server = Server::start().await;
    let labels = "label=a&".repeat(2000);
    let path = format!("/v1/instances?{labels}");
    let problem = server.get(&path).await.expect(422).problem();
    assert_eq!(problem.code, "too-many");
    let states = "state=running,stopped&".repeat(2000);
    server
        .get(&format!("/v1/instances?{states}limit=1"))
        .await
        .expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unknown_state_starts_at_the_last_contact() {
    let server = Server::with(|config| {
        config.unreachable_after = std::time::Duration::from_millis(200);
    })
    .await;
    server.template().await;
    let agent = server.join("alder", ByteSize::gib(8)).await;
    let id = server.create_instance("web").await.id;
    let mut ready = report(id, InstanceState::Running);
    ready.ready = true;
    ready.ready_by = Some(ReadyBy::PhoneHome);
    ready.step = Some(step("watch"));
    agent.send_report(ready).await;
    tokio::time::timeout(DEADLINE, async {
        loop {
            server.control.check_contacts().await.unwrap();
            let shown = server.get("/v1/instances/web").await.instance().status;
            if shown.state == InstanceState::Unknown {
                assert_eq!((shown.ready_by, shown.step), (None, None));
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_evidence_is_shown_by_why_and_never_stored() {
    let (server, mut agent) = Server::with_watching_node().await;
    let id = server.create_instance("web").await.id;
    agent.put().await;
    agent.send_report(report(id, InstanceState::Running)).await;
    let none = server.get("/v1/instances/web/why").await.expect(200).json();
    assert!(none["evidence"].is_null(), "{none}");

    let before = server.control.store().revision();
    let mut seen = report(id, InstanceState::Running);
    seen.evidence = Some(GuestEvidence::default());
    agent.send_report(seen.clone()).await;
    let why = server.get("/v1/instances/web/why").await.json();
    assert!(
        why["summary"]
            .as_str()
            .unwrap()
            .ends_with("(no DHCP acknowledgement yet)"),
        "{why}"
    );
    let request = RequestSeen {
        path: "/openstack/latest/user_data".to_owned(),
        status: 200,
        count: 2,
        at: Timestamp::UNIX_EPOCH,
    };
    seen.evidence.as_mut().unwrap().requests.push(request);
    agent.send_report(seen).await;
    // A report without evidence keeps the previous evidence.
    agent.send_report(report(id, InstanceState::Running)).await;
    let why = server.get("/v1/instances/web/why").await.json();
    assert_eq!(why["evidence"]["requests"][0]["count"], 2, "{why}");
    assert!(
        why["summary"]
            .as_str()
            .unwrap()
            .ends_with("(it has requested its user-data)"),
        "{why}"
    );
    assert_eq!(
        server.control.store().revision(),
        before,
        "evidence is not written down"
    );
    let server = server.restart(|_| {}).await;
    let why = server.get("/v1/instances/web/why").await.json();
    assert!(why["evidence"].is_null(), "{why}");
}
