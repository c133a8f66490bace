//! Another node, which the test plays: it has an instance, and gives it up when it is told to.

use axum::http::Method;
use serde_json::json;
use waifud_api::agent::{AgentReport, Hello, InstanceReport, Released, Tombstone};
use waifud_control::Peer;
use waifud_store::StoreError;
use waifud_types::node::NodeFacts;
use waifud_types::status::{HypervisorKind, ReadyBy};
use waifud_types::{Epoch, InstanceId, InstanceState, Timestamp};

use crate::cluster::{Cluster, join};

const NAME: &str = "birch";

/// The node.
#[derive(Clone, Copy)]
pub struct Birch(Peer);

impl Birch {
    /// Joins with the facts of `alder`, and runs `web`.
    pub async fn with_web(cluster: &Cluster) -> Self {
        let birch = Self(join(&cluster.waifud, NAME).await);
        let hello = Hello {
            name: NAME.parse().unwrap(),
            facts: facts_of_alder(cluster).await,
            now: Timestamp::now(),
            boot_id: None,
            incarnation: None,
            order: None,
            hardware: None,
        };
        let body = serde_json::to_vec(&hello).unwrap();
        let waifud = &cluster.waifud;
        let welcome = waifud.as_node(birch.0, Method::POST, "/v1/agent/hello", body);
        welcome.await.unwrap();
        birch
            .report(
                cluster,
                &AgentReport {
                    unmanaged: Some(Vec::new()),
                    ..AgentReport::default()
                },
            )
            .await;
        let body = json!({"name": "web", "template": "debian-12", "placement": {"node": NAME},
            "user_data": "#cloud-config\n# first\n"});
        cluster.post("/v1/instances", &body).await.expect(201);
        let web = cluster.web().await.unwrap();
        let running = InstanceReport {
            ready: true,
            ready_by: Some(ReadyBy::GuestAgent),
            hypervisor: Some(HypervisorKind::Tcg),
            ..InstanceReport::of_state(id(&web), InstanceState::Running)
        };
        let report = AgentReport {
            instances: vec![running],
            ..AgentReport::default()
        };
        birch.report(cluster, &report).await;
        birch
    }

    /// Does what the state of the move asks of the node. Repeating it changes nothing.
    pub async fn play(&self, cluster: &Cluster) {
        let Some(web) = cluster.web().await else {
            return;
        };
        let instance = id(&web);
        let mut report = AgentReport::default();
        match web["move"]["state"].as_str() {
            Some("stopping") => report.released.push(Released {
                instance,
                epoch: Epoch::FIRST,
                off: true,
            }),
            Some("removing") => report.destroyed.push(Tombstone {
                instance,
                name: "web".parse().unwrap(),
                epoch: Epoch::FIRST,
            }),
            _ => return,
        }
        self.report(cluster, &report).await;
    }

    /// waifud may be down; then the report is repeated later.
    async fn report(&self, cluster: &Cluster, report: &AgentReport) {
        let body = serde_json::to_vec(report).unwrap();
        let path = "/v1/agent/report";
        let waifud = &cluster.waifud;
        let _repeated_later = waifud.as_node(self.0, Method::POST, path, body).await;
    }
}

fn id(web: &serde_json::Value) -> InstanceId {
    web["id"].as_str().unwrap().parse().unwrap()
}

async fn facts_of_alder(cluster: &Cluster) -> NodeFacts {
    let known = async |cluster: &Cluster| cluster.node().await["state"] == "ready";
    cluster.until("known", known).await;
    let control = cluster.waifud.control();
    let read = control.store().read(|tx| {
        let node = tx.node_named("alder")?;
        Ok::<_, StoreError>(node.unwrap().facts)
    });
    read.await.unwrap()
}
