//! Moves of instances between nodes, with agents that the tests play.

mod address;
mod begin;
mod ends;
mod failures;
mod flow;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use waifud_api::Instance;
use waifud_api::agent::{
    AgentReport, Incoming, InstanceReport, Receiving, Release, Released, SliceObject, WatchFrame,
};
use waifud_types::{
    ByteSize, Epoch, InstanceId, InstanceState, NodeId, OwnershipRole, ReceiveState,
};

use super::common::{Agent, Answer, ManualClock, Server, report};

const MOVE: &str = "/v1/instances/web/move";

/// `web` runs on `alder`; `birch` is another node. Both watch.
pub struct Cluster {
    pub server: Server,
    pub clock: Arc<ManualClock>,
    pub alder: Agent,
    pub birch: Agent,
    pub web: Instance,
    /// The request of the move.
    pub request: Value,
}

fn to_birch() -> Value {
    json!({"to": "birch", "new_address": true})
}

impl Cluster {
    pub async fn new() -> Self {
        let (server, clock) = Server::with_manual_clock().await;
        server.template().await;
        let mut alder = server.join("alder", ByteSize::gib(8)).await;
        alder.watch_from_now().await;
        let web = server.create_instance("web").await;
        assert_eq!(alder.put().await.id, web.id);
        let mut birch = server.join("birch", ByteSize::gib(8)).await;
        birch.watch_from_now().await;
        // Of the fabric, which the second node has brought, nothing is asked here.
        alder.watch_from_now().await;
        alder
            .report_instance(report(web.id, InstanceState::Running))
            .await;
        Self {
            server,
            clock,
            alder,
            birch,
            web,
            request: to_birch(),
        }
    }

    pub async fn begin(&self) -> Instance {
        let begun = self.server.post(MOVE, &self.request).await;
        begun.expect(200).instance()
    }

    pub async fn cancel(&self) -> Answer {
        self.server.delete(MOVE).await
    }

    pub async fn shown(&self) -> Instance {
        self.server.instance("web").await
    }

    /// The state of the move; empty if there is none.
    pub async fn state(&self) -> String {
        let moving = self.shown().await.moving;
        moving.map_or_else(String::new, |moving| moving.state.to_string())
    }

    /// The parts of the nodes, by name.
    pub async fn parts(&self) -> Vec<(&'static str, OwnershipRole, u64)> {
        let id = self.web.id;
        let parts = self.server.control.store().read(move |tx| tx.ownership(id));
        let named = |node: NodeId| {
            if node == self.alder.id {
                "alder"
            } else {
                "birch"
            }
        };
        let parts = parts.await.unwrap();
        let mut parts: Vec<_> = parts
            .iter()
            .map(|part| (named(part.node), part.role, part.epoch.0))
            .collect();
        parts.sort_by_key(|(name, ..)| *name);
        parts
    }

    /// birch reports how far it is.
    pub async fn receives(&self, state: ReceiveState) {
        self.birch.report(&receiving(self.web.id, 1, state)).await;
    }

    /// alder reports the release.
    pub async fn releases(&self, off: bool) {
        self.alder.report(&released(self.web.id, 1, off)).await;
    }

    /// birch reports the instance as its own.
    pub async fn runs_on_birch(&self, state: InstanceState) {
        self.birch
            .report_instance(on_birch(self.web.id, state))
            .await;
    }

    /// Begins a move and lets it go on to this state.
    pub async fn advance_to(&mut self, wanted: &str) {
        self.begin().await;
        let steps = ["preparing", "stopping", "copying", "starting", "removing"];
        for (index, step) in steps.into_iter().enumerate() {
            match index {
                0 => assert!(!incoming(&mut self.birch).await.copy),
                1 => {
                    self.receives(ReceiveState::Prepared).await;
                    assert_eq!(release(&mut self.alder).await.epoch, Epoch(1));
                    // Sent again, because the state of the move has changed.
                    assert!(!incoming(&mut self.birch).await.copy);
                }
                2 => {
                    self.releases(true).await;
                    assert!(incoming(&mut self.birch).await.copy);
                }
                3 => {
                    self.receives(ReceiveState::Received).await;
                    assert_eq!(self.birch.put().await.epoch, Epoch(2));
                }
                _ => self.runs_on_birch(InstanceState::Running).await,
            }
            assert_eq!(self.state().await, step);
            if step == wanted {
                return;
            }
        }
        panic!("there is no state {wanted}");
    }
}

pub fn receiving(instance: InstanceId, epoch: u64, state: ReceiveState) -> AgentReport {
    AgentReport {
        receiving: vec![Receiving {
            instance,
            epoch: Epoch(epoch),
            state,
            done_bytes: ByteSize::mib(3),
            total_bytes: ByteSize::mib(12),
            reason: None,
            path: None,
        }],
        ..AgentReport::default()
    }
}

pub fn released(instance: InstanceId, epoch: u64, off: bool) -> AgentReport {
    AgentReport {
        released: vec![Released {
            instance,
            epoch: Epoch(epoch),
            off,
        }],
        ..AgentReport::default()
    }
}

pub fn on_birch(id: InstanceId, state: InstanceState) -> InstanceReport {
    InstanceReport {
        epoch: Epoch(2),
        ..report(id, state)
    }
}

pub async fn incoming(agent: &mut Agent) -> Incoming {
    match agent.frame().await {
        WatchFrame::Put {
            object: SliceObject::Incoming(incoming),
            ..
        } => *incoming,
        other => panic!("an order to receive was expected, not {other:?}"),
    }
}

pub async fn release(agent: &mut Agent) -> Release {
    match agent.frame().await {
        WatchFrame::Release { release, .. } => release,
        other => panic!("a release was expected, not {other:?}"),
    }
}

/// Lets both nodes be silent for longer than a node may.
pub async fn all_off(cluster: &Cluster) {
    cluster.clock.forward(Duration::from_mins(10));
    cluster.server.control.check_contacts().await.unwrap();
}
