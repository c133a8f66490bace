//! Common starting points of tests, and short forms of the requests that most tests make.

use std::sync::Arc;

use serde_json::{Value, json};
use waifud_api::Instance;
use waifud_control::ControlConfig;
use waifud_control::env::SystemEntropy;
use waifud_store::Mode;
use waifud_types::{ByteSize, InstanceState};

use super::{Agent, Answer, ManualClock, Server, report};

impl Server {
    /// A server whose clock the test moves.
    pub async fn with_manual_clock() -> (Self, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::default());
        let dir = tempfile::tempdir().unwrap();
        let config = ControlConfig::new(dir.path().to_owned());
        let mode = Mode::Threads { readers: 2 };
        let server = Self::of(dir, config, mode, clock.clone(), Arc::new(SystemEntropy)).await;
        (server, clock)
    }

    /// A server with the template `debian-12`.
    pub async fn with_template() -> Self {
        let server = Self::start().await;
        server.template().await;
        server
    }

    /// A server with the template `debian-12` and the node `alder`.
    pub async fn with_node(memory: ByteSize) -> (Self, Agent) {
        let server = Self::with_template().await;
        let agent = server.join("alder", memory).await;
        (server, agent)
    }

    /// A server with the template `debian-12` and the node `alder` of 8 GiB, whose watch is open and in sync.
    pub async fn with_watching_node() -> (Self, Agent) {
        let (server, mut agent) = Self::with_node(ByteSize::gib(8)).await;
        agent.watch_from_now().await;
        (server, agent)
    }

    /// A server with the template `debian-12`, the node `alder` of 8 GiB, and the instance `web` placed on it.
    pub async fn with_placed_instance() -> (Self, Agent, Instance) {
        let (server, agent) = Self::with_node(ByteSize::gib(8)).await;
        let web = server.create_instance("web").await;
        (server, agent, web)
    }

    /// The same, and the node has reported that the instance is running.
    pub async fn with_running_instance() -> Self {
        let (server, agent, web) = Self::with_placed_instance().await;
        let running = report(web.id, InstanceState::Running);
        agent.report_instance(running).await;
        server
    }

    /// A server like [`Self::with_watching_node`], and the instance `web` with user-data. The agent has not received it yet.
    pub async fn with_user_data() -> (Self, Agent) {
        let (server, agent) = Self::with_watching_node().await;
        let body = json!({"name": "web", "template": "debian-12", "user_data": "#!/bin/sh\n"});
        server.created(&body).await;
        (server, agent)
    }

    /// Creates an instance of `debian-12` with default values.
    pub async fn create_instance(&self, name: &str) -> Instance {
        self.created(&json!({"name": name, "template": "debian-12"}))
            .await
    }

    /// Creates an instance, which must succeed.
    pub async fn created(&self, body: &Value) -> Instance {
        self.create(body).await.expect(201).instance()
    }

    /// Tries to create an instance, which must be refused with this status, code and field, and a hint, and must leave
    /// nothing behind. Returns the title and the hint.
    pub async fn create_refused(
        &self,
        body: &Value,
        status: u16,
        code: &str,
        field: &str,
    ) -> String {
        let before = self.footprint().await;
        let problem = self.create(body).await.refused(status, code, field);
        let after = self.footprint().await;
        assert_eq!(after, before, "{code} left something behind");
        format!("{} {}", problem.title, problem.hint.unwrap())
    }

    pub async fn patch_instance(&self, name: &str, body: &Value) -> Answer {
        self.patch(&format!("/v1/instances/{name}"), body).await
    }

    /// Changes an instance, which must succeed.
    pub async fn patched(&self, name: &str, body: &Value) -> Instance {
        self.patch_instance(name, body).await.expect(200).instance()
    }

    /// The instance of this name, which must exist.
    pub async fn instance(&self, name: &str) -> Instance {
        let path = format!("/v1/instances/{name}");
        self.get(&path).await.expect(200).instance()
    }

    /// The name of the node that the instance was placed on.
    pub async fn node_of(&self, name: &str) -> Option<String> {
        node_name(&self.instance(name).await)
    }

    pub async fn why(&self, name: &str) -> Value {
        let path = format!("/v1/instances/{name}/why");
        self.get(&path).await.expect(200).json()
    }

    /// The node of this name, which must exist.
    pub async fn node(&self, name: &str) -> Value {
        let path = format!("/v1/nodes/{name}");
        self.get(&path).await.expect(200).json()
    }

    /// The items of a list.
    pub async fn items(&self, path: &str) -> Vec<Value> {
        let page = self.get(path).await.expect(200).json();
        page["items"].as_array().unwrap().clone()
    }
}

/// The name of the node that the instance was placed on.
pub fn node_name(instance: &Instance) -> Option<String> {
    instance.status.node.as_ref().map(ToString::to_string)
}
