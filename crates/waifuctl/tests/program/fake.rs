//! waifuctl against a fake waifud that counts requests and scripts the states of one instance.

mod concurrent;
mod deletions;
mod doctor;
mod downloads;
mod interrupts;
mod starts;
mod terminals;
mod waits;

use std::collections::{BTreeMap, VecDeque};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::process::Command;

const ID: &str = "0198c0de-0000-7000-8000-00000000abcd";

#[derive(Default)]
struct Script {
    /// Requests by method and path.
    counts: BTreeMap<String, u32>,
    /// Responses to `GET /v1/instances/…`; the last one is repeated.
    instance: VecDeque<Value>,
    /// Responses to all other requests by method and path; the last one is repeated.
    others: BTreeMap<String, VecDeque<(u16, Value)>>,
    /// The JSON bodies of requests by method and path.
    bodies: BTreeMap<String, Vec<Value>>,
}

struct Fake {
    dir: tempfile::TempDir,
    script: Arc<Mutex<Script>>,
}

impl Fake {
    fn start(instance: impl IntoIterator<Item = Value>, others: &[(&str, Value)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(dir.path().join("sock")).unwrap();
        let script = Arc::new(Mutex::new(Script {
            instance: instance.into_iter().collect(),
            others: others
                .iter()
                .map(|(k, v)| ((*k).to_owned(), VecDeque::from([(200, v.clone())])))
                .collect(),
            ..Script::default()
        }));
        let router = axum::Router::new()
            .fallback(answer)
            .with_state(script.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { dir, script }
    }

    /// Sets the responses to a request by method and path; the last one is repeated.
    fn script(&self, request: &str, replies: impl IntoIterator<Item = (u16, Value)>) {
        let mut script = self.script.lock().unwrap();
        let replies = replies.into_iter().collect();
        script.others.insert(request.to_owned(), replies);
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waifuctl"));
        command
            .args(line.split_whitespace())
            .env("WAIFUD_SOCKET", self.dir.path().join("sock"))
            .env("HOME", self.dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, line: &str, code: i32) -> (String, String) {
        let output = self.command(line).output();
        let output = tokio::time::timeout(Duration::from_mins(1), output).await;
        let output = output
            .unwrap_or_else(|_| panic!("{line} does not end"))
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{line}: {out}{err}");
        (out, err)
    }

    fn count(&self, request: &str) -> u32 {
        let script = self.script.lock().unwrap();
        script.counts.get(request).copied().unwrap_or_default()
    }

    /// The JSON bodies of a request by method and path.
    fn bodies(&self, request: &str) -> Vec<Value> {
        let script = self.script.lock().unwrap();
        script.bodies.get(request).cloned().unwrap_or_default()
    }

    /// States of the instance that were not read.
    fn unread(&self) -> usize {
        self.script.lock().unwrap().instance.len() - 1
    }
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request) -> Response {
    let path = request.uri().path();
    if path == "/v1/events" && request.headers()["accept"] == "text/event-stream" {
        // An event every few milliseconds, each of which makes a watch read the instance.
        let events = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let event = Bytes::from_static(b"event: progress\ndata: {}\n\n");
            Some((Ok::<_, std::io::Error>(event), ()))
        });
        return Body::from_stream(events).into_response();
    }
    let key = format!("{} {path}", request.method());
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await;
    let body = serde_json::from_slice(&body.unwrap()).ok();
    let mut script = script.lock().unwrap();
    *script.counts.entry(key.clone()).or_default() += 1;
    if let Some(body) = body {
        script.bodies.entry(key.clone()).or_default().push(body);
    }
    if let Some(replies) = script.others.get_mut(&key) {
        let next = if replies.len() > 1 {
            replies.pop_front()
        } else {
            replies.front().cloned()
        };
        let (status, value) = next.unwrap();
        return (StatusCode::from_u16(status).unwrap(), axum::Json(value)).into_response();
    }
    if key.starts_with("GET /v1/instances/") {
        let value = if script.instance.len() > 1 {
            script.instance.pop_front()
        } else {
            script.instance.front().cloned()
        };
        if let Some(value) = value {
            return axum::Json(value).into_response();
        }
    }
    let (_, problem) = problem(404, "not-found", "not found");
    (StatusCode::NOT_FOUND, axum::Json(problem)).into_response()
}

/// A problem with its status.
fn problem(status: u16, code: &str, title: &str) -> (u16, Value) {
    let problem = json!({"type": format!("/problems/{code}"), "title": title, "status": status,
        "detail": null, "code": code, "field": null, "hint": null, "request_id": null});
    (status, problem)
}

fn page(items: &[Value]) -> Value {
    json!({"items": items, "next": null, "revision": "0000000a.1"})
}

fn template(name: &str) -> Value {
    json!({"name": name, "datasource": "openstack", "firmware": "bios", "default_user": null,
        "min_disk_bytes": 1, "current": format!("sha256:{}", "0".repeat(64)), "used_by": 0, "source": null,
        "revisions": []})
}

fn node(changes: Value) -> Value {
    let mut node = json!({
        "id": "0198c0de-0000-7000-8000-0000000000a1", "name": "alder", "state": "ready", "labels": {},
        "arch": "x86_64", "cpu_model": null, "hypervisor": {"kind": "kvm", "reason": "it works"},
        "agent_version": "0.1.0", "capacity": {"cpus": 4, "memory_bytes": 1}, "promised": {"cpus": 0, "memory_bytes": 0},
        "used": {"cpus": 0, "memory_bytes": 0}, "subnets": [], "bridges": [], "pools": [], "last_contact": null,
        "clock_skew_s": 0.1, "conditions": [], "unmanaged": [], "confirmed": true
    });
    if let (Value::Object(to), Value::Object(from)) = (&mut node, changes) {
        to.extend(from);
    }
    node
}

fn instance(name: &str, id: &str, status: Value) -> Value {
    let mut instance = json!({
        "id": id, "name": name, "labels": {}, "generation": 1, "created_at": "2026-11-22T00:00:00Z",
        "spec": {"template": "a", "image": format!("sha256:{}", "0".repeat(64)), "cpus": 1,
            "memory_bytes": 1 << 30, "run": true, "restart": "never", "priority": 0, "protected": false, "disks": [],
            "nics": [], "publish": [], "placement": {"node": null, "spread": null}, "user_data": null},
        "status": {"observed_generation": 1, "state": "running", "reason": null, "ready": true,
            "ready_by": "guest-agent", "node": "alder", "hypervisor": null, "stopped_by": null, "last_state": null,
            "last_seen": null, "addresses": [], "step": null, "restart_needed": [], "cloud_init": {"state": "done",
            "instance_id": null, "datasource": null, "errors": []}, "conditions": []}
    });
    if let (Some(to), Value::Object(from)) = (instance["status"].as_object_mut(), status) {
        to.extend(from);
    }
    instance
}

/// The states of a reboot, from the state before it to the end of cloud-init.
fn reboot(ready_by: &str, end: Value) -> Vec<Value> {
    let cloud_init = |state: &str| json!({"state": state, "instance_id": null, "datasource": null, "errors": []});
    let step = json!({"name": "ready", "percent": null, "since": "2026-11-22T00:00:00Z", "waiting_for": null});
    let mut states = vec![
        instance("web", ID, json!({"ready_by": ready_by})),
        // Status from before the reboot: it says ready, but for the old generation.
        instance("web", ID, json!({"ready_by": ready_by})),
        instance(
            "web",
            ID,
            json!({"observed_generation": 2, "state": "stopping"}),
        ),
        instance(
            "web",
            ID,
            json!({"observed_generation": 2, "state": "starting", "ready": false, "ready_by": null}),
        ),
        instance(
            "web",
            ID,
            json!({"observed_generation": 2, "ready": false, "ready_by": null, "step": step,
            "cloud_init": cloud_init("pending")}),
        ),
        instance(
            "web",
            ID,
            json!({"observed_generation": 2, "ready": false, "ready_by": null, "step": step,
            "cloud_init": cloud_init("running")}),
        ),
        instance("web", ID, end),
    ];
    for state in states.iter_mut().skip(1) {
        state["generation"] = json!(2);
    }
    states
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_with_wait_ends_when_the_instance_is_ready_again_in_the_new_boot() {
    let states = reboot("guest-agent", json!({"observed_generation": 2}));
    let patched = states[1].clone();
    let patch = format!("PATCH /v1/instances/{ID}");
    let fake = Fake::start(states, &[(&patch, patched)]);
    let (out, _) = fake.run("reboot web --wait", 0).await;
    assert_eq!(out, "web: running and ready\n");
    assert_eq!(fake.unread(), 0, "it ended before the instance was ready");
    assert_eq!(fake.count(&patch), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_with_wait_reports_an_error_of_cloud_init_in_the_new_boot() {
    let end = json!({"observed_generation": 2, "cloud_init": {"state": "error", "instance_id": null,
        "datasource": null, "errors": ["scripts-user failed"]}});
    let states = reboot("guest-agent", end);
    let patched = states[1].clone();
    let fake = Fake::start(states, &[(&format!("PATCH /v1/instances/{ID}"), patched)]);
    let (_, err) = fake.run("reboot web --wait", 1).await;
    assert!(err.contains("scripts-user failed"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_with_wait_does_not_wait_for_a_second_phone_home() {
    let mut states = reboot(
        "phone-home",
        json!({"observed_generation": 2, "ready": false, "ready_by": null}),
    );
    let patched = states[1].clone();
    // After the start, cloud-init does not phone home again: the state stays not ready.
    states.truncate(5);
    let fake = Fake::start(states, &[(&format!("PATCH /v1/instances/{ID}"), patched)]);
    let (out, _) = fake.run("reboot web --wait", 0).await;
    assert_eq!(out, "web: running\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_yaml_list_needs_two_requests_regardless_of_the_number_of_instances() {
    let id = |n: u32| format!("0198c0de-0000-7000-8000-{n:012x}");
    let all: Vec<_> = (0..20)
        .map(|n| instance(&format!("vm-{n}"), &id(n), json!({})))
        .collect();
    let described: Vec<_> = (0..20)
        .map(|n| json!({"id": id(n), "generation": 1, "description": {"name": format!("vm-{n}"), "template": "a"}}))
        .collect();
    let fake = Fake::start(
        [],
        &[
            ("GET /v1/instances", page(&all)),
            ("GET /v1/descriptions", page(&described)),
        ],
    );
    let (out, _) = fake.run("list -o yaml", 0).await;
    assert_eq!(out.matches("template: a").count(), 20, "{out}");
    assert!(out.contains("name: vm-7\n"), "{out}");
    assert_eq!(fake.count("GET /v1/instances"), 1);
    assert_eq!(fake.count("GET /v1/descriptions"), 1);
    let total: u32 = fake.script.lock().unwrap().counts.values().sum();
    assert_eq!(total, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_a_node_or_template_that_does_not_exist_is_an_error_that_names_the_existing_ones()
{
    let fake = Fake::start(
        [],
        &[
            ("GET /v1/instances", page(&[])),
            ("GET /v1/nodes", page(&[])),
            (
                "GET /v1/templates",
                page(&[template("debian-12"), template("alpine")]),
            ),
            ("GET /v1/templates/alpine", template("alpine")),
        ],
    );
    let (_, err) = fake.run("list --node nosuch", 1).await;
    assert!(err.contains("node \"nosuch\" does not exist"), "{err}");
    assert!(err.contains("field: --node"), "{err}");
    let (_, err) = fake.run("list -t nosuch --json", 1).await;
    let problem: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(problem["code"], "not-found");
    assert_eq!(problem["field"], "--template");
    assert_eq!(problem["hint"], "existing templates: debian-12, alpine");
    let (out, _) = fake.run("list -t alpine -o name", 0).await;
    assert_eq!(out, "");
}
