//! The status that instances show: while they are deleted, after their node was renamed or rebooted, and when it was
//! last heard of.

use std::time::{Duration, Instant};

use crate::common::{Answer, DEADLINE, Server, hello, ready_report, report, step};
use axum::http::Method;
use serde_json::json;
use waifud_api::agent::{AgentReport, Hello, MessageOrder};
use waifud_control::env::Clock;
use waifud_types::evidence::{GuestEvidence, RequestSeen};
use waifud_types::status::{CloudInitState, StoppedBy};
use waifud_types::{BootId, ByteSize, Generation, InstanceState, ProcessId, Timestamp, WaitReason};

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_create_that_waits_reports_that_the_instance_was_deleted() {
    let (server, mut agent) = Server::with_watching_node().await;
    let body = json!({"name": "web", "template": "debian-12"}).to_string();
    let headers = [("idempotency-key", "k")];
    let create = |path| server.call(Method::POST, path, &headers, body.clone());
    create("/v1/instances").await.expect(201);
    agent.put().await;
    server.delete("/v1/instances/web").await.expect(202);
    agent.confirm_deletion().await;
    // The repeated request finds the answer of the first one and waits for an instance that is gone.
    let problem = create("/v1/instances?wait=30s").await.expect(409).problem();
    assert_eq!(problem.code, "deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleting_instance_shows_what_delays_it_and_nothing_from_before() {
    let (server, mut agent) = Server::with_watching_node().await;
    let id = server.create_instance("web").await.id;
    agent.put().await;
    let mut before = ready_report(id);
    before.step = Some(step("watch", None));
    agent.report_instance(before.clone()).await;
    server.delete("/v1/instances/web").await.expect(202);
    // This report was sent before the agent received the order.
    before.reason = Some("a reason from before".to_owned());
    agent.report_instance(before).await;
    let shown = server.instance("web").await.status;
    assert_eq!(
        (shown.state, shown.ready, shown.ready_by, shown.step.clone()),
        (InstanceState::Deleting, false, None, None)
    );
    let destruction = |trouble: Option<&str>| {
        Some(WaitReason::Destruction {
            node: Some("alder".parse().unwrap()),
            reachable: true,
            problem: trouble.map(str::to_owned),
        })
    };
    assert_eq!(shown.wait_reason(), destruction(None));
    assert_eq!(shown.reason.unwrap(), "waiting for alder to destroy it");

    let mut struggling = report(id, InstanceState::Deleting);
    struggling.reason = Some("its disk is busy".to_owned());
    struggling.step = Some(step("remove-disk", None));
    agent.report_instance(struggling).await;
    let shown = server.instance("web").await.status;
    assert_eq!(shown.wait_reason(), destruction(Some("its disk is busy")));
    assert_eq!(shown.step.unwrap().name, "remove-disk");
    assert_eq!(
        server.kinds(&id.to_string()).await.last().unwrap(),
        "instance.deleting"
    );
    agent.confirm_deletion().await;
    server.get("/v1/instances/web").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_instance_does_not_show_the_step_that_waits_for_readiness() {
    let (server, agent, web) = Server::with_placed_instance().await;
    let mut waiting = report(web.id, InstanceState::Running);
    waiting.step = Some(step("ready", None));
    agent.report_instance(waiting).await;
    let shown = server.instance("web").await.status;
    assert_eq!(shown.step.unwrap().name, "ready");
    let mut ready = ready_report(web.id);
    ready.step = Some(step("ready", None));
    agent.report_instance(ready).await;
    let shown = server.instance("web").await.status;
    assert_eq!((shown.ready, shown.step.clone()), (true, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_host_reboot_its_instances_are_stopped_until_the_agent_reports_them() {
    let server = Server::with_template().await;
    let memory = ByteSize::gib(8);
    let boots = [(); 4].map(|()| BootId::generate());
    let [here, there, ..] = boots;
    let hello_in = |name: &str, boot| Hello {
        boot_id: Some(boot),
        ..hello(name, memory)
    };
    // waifud and alder run on the same machine.
    let (alder, birch) = (
        server.join("alder", memory).await,
        server.join("birch", memory).await,
    );
    alder.hello(&hello_in("alder", here)).await.expect(200);
    birch.hello(&hello_in("birch", there)).await.expect(200);
    server.control.note_boot(here).await.unwrap();
    let create = async |name: &str, node: &str| {
        let body = json!({"name": name, "template": "debian-12", "placement": {"node": node}});
        server.created(&body).await.id
    };
    let web = create("web", "alder").await;
    let (off, db) = (create("off", "alder").await, create("db", "birch").await);
    alder.report_instance(ready_report(web)).await;
    birch.report_instance(ready_report(db)).await;
    let mut stopped = report(off, InstanceState::Stopped);
    stopped.stopped_by = Some(StoppedBy::Guest);
    alder.report_instance(stopped).await;
    let shown = async |name: &str| {
        let status = server.instance(name).await.status;
        (status.state, status.ready, status.stopped_by)
    };
    let (running, stopped_by_host) = (
        (InstanceState::Running, true, None),
        (InstanceState::Stopped, false, Some(StoppedBy::Host)),
    );
    // Restarted daemons with the same boot IDs change nothing.
    server.control.note_boot(here).await.unwrap();
    alder.hello(&hello_in("alder", here)).await.expect(200);
    birch.hello(&hello("birch", memory)).await.expect(200);
    assert_eq!((shown("web").await, shown("db").await), (running, running));

    // waifud notices the reboot of its own machine before the agent of that machine reconnects.
    server.control.note_boot(boots[2]).await.unwrap();
    assert_eq!(
        (shown("web").await, shown("db").await),
        (stopped_by_host, running)
    );
    let stopped_by_guest = (InstanceState::Stopped, false, Some(StoppedBy::Guest));
    assert_eq!(
        shown("off").await,
        stopped_by_guest,
        "it was stopped before the reboot"
    );
    alder.report_instance(ready_report(web)).await;
    alder.hello(&hello_in("alder", boots[2])).await.expect(200);
    assert_eq!(
        shown("web").await,
        running,
        "the same boot was reported twice"
    );
    let kinds = server.kinds(&web.to_string()).await;
    let tail = &kinds[kinds.len() - 3..];
    assert_eq!(
        tail,
        ["instance.stopped", "instance.started", "instance.ready"]
    );

    // The reboot of another machine is noticed when its agent reconnects.
    birch.hello(&hello_in("birch", boots[3])).await.expect(200);
    assert_eq!(
        (shown("web").await, shown("db").await),
        (running, stopped_by_host)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_is_not_ended_by_the_state_before_the_requested_change() {
    let (server, agent, web) = Server::with_placed_instance().await;
    // cloud-init failed in the boot before, which says nothing about the next one.
    let mut off = report(web.id, InstanceState::Stopped);
    off.cloud_init.state = CloudInitState::Error;
    agent.report_instance(off).await;
    let ready = "/v1/instances/web?wait=300ms&for=ready";
    lasts_its_whole_wait(server.get(ready)).await;
    let (answer, ()) = tokio::join!(server.get("/v1/instances/web?wait=20s&for=ready"), async {
        agent
            .report_instance(report(web.id, InstanceState::Running))
            .await;
        agent.report_instance(ready_report(web.id)).await;
    });
    answer.expect(200);

    // The instance failed before the node received the order.
    agent
        .report_instance(report(web.id, InstanceState::Failed))
        .await;
    let stop = json!({"run": false});
    lasts_its_whole_wait(server.patch("/v1/instances/web?wait=300ms", &stop)).await;
    let mut stopped = report(web.id, InstanceState::Stopped);
    stopped.observed_generation = Generation(2);
    let (answer, ()) = tokio::join!(
        server.patch("/v1/instances/web?wait=20s", &stop),
        agent.report_instance(stopped)
    );
    answer.expect(200);
}

/// Asserts that a request with `wait=300ms` is answered with 202, and not before that time has passed.
async fn lasts_its_whole_wait(request: impl Future<Output = Answer>) {
    let begun = Instant::now();
    request.await.expect(202);
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_show_and_are_filtered_by_the_new_name_of_their_node() {
    let (server, agent, _web) = Server::with_placed_instance().await;
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
async fn setting_run_starts_a_guest_that_powered_itself_off() {
    let (server, mut agent) = Server::with_watching_node().await;
    let id = server.create_instance("web").await.id;
    agent.put().await;
    let run = json!({"run": true});
    let running = server.patch_instance("web", &run).await.instance();
    assert_eq!(running.generation, Generation(1), "it is set already");
    let mut off = report(id, InstanceState::Stopped);
    off.stopped_by = Some(StoppedBy::Guest);
    agent.report_instance(off).await;
    let why = server.why("web").await;
    let hint = &why["hints"][0];
    assert_eq!(hint["action"], "start", "{why}");
    assert_eq!(hint["object"], json!({"type": "instance", "name": "web"}));
    assert_eq!(why["hint"], "start instance web");
    for _ in 0..2 {
        let ordered = server.patch_instance("web", &run).await.instance();
        assert_eq!(
            ordered.generation,
            Generation(2),
            "a repeated order changes nothing"
        );
    }
    let put = agent.put().await;
    assert_eq!((put.generation, put.spec.run), (Generation(2), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_free_addresses_is_not_chosen() {
    let (server, _alder) = Server::with_node(ByteSize::gib(1024)).await;
    let small = |node: Option<&str>| json!({"template": "debian-12", "memory_bytes": 128u64 << 20, "placement": {"node": node}});
    for _ in 0..253 {
        server.create(&small(Some("alder"))).await.expect(201);
    }
    let waiting = server.created(&small(None)).await;
    let subnet = "10.144.1.0/24".parse().unwrap();
    assert_eq!(
        waiting.status.wait_reason(),
        Some(WaitReason::NoFreeAddress { subnet })
    );
    let id = waiting.id.to_string();
    let why = server.why(&id).await;
    let full = "no-free-address";
    assert_eq!(why["placement"][0]["code"], full);
    // birch has memory for one instance. alder has more, and would be preferred.
    server.join("birch", ByteSize::mib(130)).await;
    assert_eq!(server.node_of(&id).await.as_deref(), Some("birch"));
    let why = server.why(&id).await;
    assert_eq!(why["placement"][1]["code"], full);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_with_too_many_terms_is_refused() {
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
async fn an_unknown_instance_keeps_last_seen_and_loses_readiness_and_step() {
    let server = Server::with(|config| {
        config.unreachable_after = Duration::from_millis(200);
    })
    .await;
    server.template().await;
    let agent = server.join("alder", ByteSize::gib(8)).await;
    let id = server.create_instance("web").await.id;
    let mut ready = ready_report(id);
    ready.step = Some(step("watch", None));
    agent.report_instance(ready).await;
    let last_seen = server.instance("web").await.status.last_seen;
    assert!(last_seen.is_some());
    tokio::time::timeout(DEADLINE, async {
        loop {
            server.control.check_contacts().await.unwrap();
            let shown = server.instance("web").await.status;
            if shown.state == InstanceState::Unknown {
                assert_eq!(
                    (shown.ready, shown.ready_by, shown.step.clone()),
                    (false, None, None)
                );
                assert_eq!(shown.last_state, Some(InstanceState::Running));
                assert_eq!(shown.last_seen, last_seen);
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    agent.report_instance(ready_report(id)).await;
    let shown = server.instance("web").await.status;
    assert_eq!(
        (shown.state, shown.ready),
        (InstanceState::Running, true),
        "it is known again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_diagnostics_are_shown_by_why_and_not_stored() {
    let (server, mut agent) = Server::with_watching_node().await;
    let id = server.create_instance("web").await.id;
    agent.put().await;
    agent
        .report_instance(report(id, InstanceState::Running))
        .await;
    let why = server.why("web").await;
    assert!(why["evidence"].is_null(), "{why}");

    let before = server.control.store().revision();
    let mut observed = report(id, InstanceState::Running);
    observed.evidence = Some(GuestEvidence::default());
    agent.report_instance(observed.clone()).await;
    let why = server.why("web").await;
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
    observed.evidence.as_mut().unwrap().requests.push(request);
    agent.report_instance(observed).await;
    // A report without evidence keeps the evidence of the last one.
    agent
        .report_instance(report(id, InstanceState::Running))
        .await;
    let why = server.why("web").await;
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
        "evidence is not stored"
    );
    let server = server.restart(|_| {}).await;
    let why = server.why("web").await;
    assert!(why["evidence"].is_null(), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_arrives_after_a_newer_one_changes_nothing() {
    let (server, mut agent) = Server::with_watching_node().await;
    let id = server.create_instance("web").await.id;
    agent.put().await;
    let made = |seconds: i64, state| AgentReport {
        now: Timestamp::from_second(1_800_000_000 + seconds).ok(),
        instances: vec![report(id, state)],
        ..AgentReport::default()
    };
    agent.report(&made(10, InstanceState::Running)).await;
    let late = agent
        .try_to_report(&made(9, InstanceState::Stopped))
        .await
        .expect(503)
        .problem();
    assert_eq!(late.code, "outdated-report");
    let shown = server.get("/v1/instances/web").await.instance();
    assert_eq!(shown.status.state, InstanceState::Running);
    agent.report(&made(11, InstanceState::Stopped)).await;
    let shown = server.get("/v1/instances/web").await.instance();
    assert_eq!(shown.status.state, InstanceState::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_a_day_off_is_ready_and_gets_instances_and_its_skew_is_shown() {
    const DAY: i32 = 24 * 60 * 60;
    for off in [-DAY, DAY] {
        let (server, clock) = Server::with_manual_clock().await;
        server.template().await;
        let mut agent = server.join("alder", ByteSize::gib(8)).await;
        agent.watch_from_now().await;
        let process = ProcessId::generate();
        let made = |number, instances| AgentReport {
            now: Timestamp::from_second(clock.now().as_second() + i64::from(off)).ok(),
            order: Some(MessageOrder { process, number }),
            instances,
            ..AgentReport::default()
        };
        agent.report(&made(1, Vec::new())).await;
        let web = server.create_instance("web").await;
        assert_eq!(agent.put().await.id, web.id);
        clock.forward(Duration::from_secs(20));
        let running = report(web.id, InstanceState::Running);
        agent.report(&made(2, vec![running])).await;
        server.control.check_contacts().await.unwrap();
        let node = server.get("/v1/nodes/alder").await.json();
        assert_eq!(node["state"], "ready", "{node}");
        let skew = node["clock_skew_s"].as_f64().unwrap();
        assert!((skew - f64::from(off)).abs() < 2.0, "{skew}");
        let contact: Timestamp = node["last_contact"].as_str().unwrap().parse().unwrap();
        assert_eq!(contact, clock.now(), "by waifud's own clock");
        let shown = server.get("/v1/instances/web").await.instance();
        assert_eq!(shown.status.state, InstanceState::Running);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_was_set_back_stays_in_contact() {
    let (server, clock) = Server::with_manual_clock().await;
    let agent = server.join("alder", ByteSize::gib(8)).await;
    let made = |seconds: i64| AgentReport {
        now: Timestamp::from_second(1_800_000_000 + seconds).ok(),
        ..AgentReport::default()
    };
    agent.report(&made(60)).await;
    clock.forward(Duration::from_secs(20));
    agent.try_to_report(&made(20)).await.expect(503);
    let node = server.get("/v1/nodes/alder").await.json();
    let contact: Timestamp = node["last_contact"].as_str().unwrap().parse().unwrap();
    assert_eq!(contact, clock.now(), "{node}");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbered_messages_are_refused_by_their_order_and_not_by_the_nodes_clock() {
    let server = Server::with_template().await;
    let agent = server.join("alder", ByteSize::gib(8)).await;
    let [former, present] = [(); 2].map(|()| ProcessId::generate());
    let order = |process, number| Some(MessageOrder { process, number });
    let report = |order, seconds: i64| AgentReport {
        now: Timestamp::from_second(1_800_000_000 + seconds).ok(),
        order,
        ..AgentReport::default()
    };
    let hello = |order, gib| Hello {
        order,
        ..hello("alder", ByteSize::gib(gib))
    };
    agent.hello(&hello(order(former, 1), 8)).await.expect(200);
    agent.report(&report(order(former, 3), 60)).await;
    // The clock was set back by less than the time that a message may be on its way.
    agent.report(&report(order(former, 4), 20)).await;
    let late = report(order(former, 2), 70);
    let refused = agent.try_to_report(&late).await.expect(503).problem();
    assert_eq!(refused.code, "outdated-report");
    agent.hello(&hello(order(present, 1), 16)).await.expect(200);
    // A late hello of the former process has older facts.
    let refused = agent.hello(&hello(order(former, 5), 8)).await;
    assert_eq!(refused.expect(503).problem().code, "outdated-report");
    let node = server.get("/v1/nodes/alder").await.json();
    let memory = &node["capacity"]["memory_bytes"];
    assert_eq!(memory.as_u64(), Some(16 << 30), "{node}");
    agent.report(&report(order(present, 2), 30)).await;
}
