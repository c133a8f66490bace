//! Matches clients that wait for a stream with agents that open it, and sends orders without a revision to the nodes' watches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use waifud_api::Problem;
use waifud_api::agent::WatchFrame;
use waifud_api::stream::{StreamId, StreamKind, StreamOrder, StreamRefusal};
use waifud_kit::sync::lock;
use waifud_types::{Epoch, InstanceId, NodeId};

use super::StreamLimits;
use crate::auth::holdings::Held;
use crate::env::Entropy;
use crate::streams::problems as stream_problems;

/// The connection of an agent.
pub type AgentEnd = TokioIo<Upgraded>;

/// The maximum number of unsent orders per watch.
const QUEUE: usize = 64;

type AgentAnswer = Result<OnUpgrade, StreamRefusal>;

/// The stream broker. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct StreamBroker(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<StreamId, Waiting>,
    registrations: HashMap<NodeId, (u64, mpsc::Sender<WatchFrame>)>,
    next_registration: u64,
    open: HashMap<InstanceId, usize>,
}

#[derive(Debug)]
struct Waiting {
    node: NodeId,
    until: Instant,
    answer: oneshot::Sender<AgentAnswer>,
}

/// A counted open stream; released when dropped.
#[derive(Debug)]
pub struct StreamPermit {
    broker: StreamBroker,
    instance: InstanceId,
    _held: Option<Held>,
}

/// The registration of a node's watch for orders without a revision: streams and tickets. Only the newest watch of a node receives them.
#[derive(Debug)]
pub struct WatchRegistration {
    broker: StreamBroker,
    node: NodeId,
    number: u64,
    orders: mpsc::Receiver<WatchFrame>,
}

/// The instance that a stream leads to.
#[derive(Clone, Copy, Debug)]
pub struct StreamTarget {
    /// The node of the instance.
    pub node: NodeId,
    /// The instance.
    pub instance: InstanceId,
    /// The epoch of its copy on the node.
    pub epoch: Epoch,
    /// The kind of stream.
    pub kind: StreamKind,
}

impl StreamBroker {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Registers a node's watch.
    pub fn register_watch(&self, node: NodeId) -> WatchRegistration {
        let (sender, orders) = mpsc::channel(QUEUE);
        let mut state = self.state();
        state.next_registration += 1;
        let number = state.next_registration;
        state.registrations.insert(node, (number, sender));
        drop(state);
        WatchRegistration {
            broker: self.clone(),
            node,
            number,
            orders,
        }
    }

    /// Acquires a permit for one more stream.
    pub(crate) fn acquire(
        &self,
        instance: InstanceId,
        limits: &StreamLimits,
        held: Option<Held>,
    ) -> Result<StreamPermit, Problem> {
        let mut state = self.state();
        let total: usize = state.open.values().sum();
        let count = state.open.entry(instance).or_default();
        if total >= limits.total || *count >= limits.per_instance {
            let most = limits.per_instance;
            if *count == 0 {
                state.open.remove(&instance);
            }
            return Err(stream_problems::too_many_streams(most));
        }
        *count += 1;
        drop(state);
        Ok(StreamPermit {
            broker: self.clone(),
            instance,
            _held: held,
        })
    }

    /// Orders the stream from the node and waits until its agent connects. Dropping the future withdraws the order.
    pub async fn request(
        &self,
        target: StreamTarget,
        entropy: &dyn Entropy,
        limits: &StreamLimits,
    ) -> Result<AgentEnd, Problem> {
        let mut bytes = [0; 32];
        entropy.fill(&mut bytes);
        let id = StreamId::from_bytes(bytes);
        let until = Instant::now() + limits.agent_timeout;
        let (answer, agent_answer) = oneshot::channel();
        let registration = {
            let mut state = self.state();
            let registration = state
                .registrations
                .get(&target.node)
                .map(|(_, sender)| sender.clone());
            state.waiting.insert(
                id,
                Waiting {
                    node: target.node,
                    until,
                    answer,
                },
            );
            registration
        };
        let _withdrawn = Withdraw { broker: self, id };
        let order = StreamOrder {
            id,
            instance: target.instance,
            epoch: target.epoch,
            kind: target.kind,
        };
        let sent = registration
            .is_some_and(|registration| registration.try_send(WatchFrame::Stream(order)).is_ok());
        if !sent {
            return Err(stream_problems::node_unreachable());
        }
        let connected = async {
            match agent_answer.await {
                Ok(Ok(upgrade)) => match upgrade.await {
                    Ok(upgraded) => Ok(TokioIo::new(upgraded)),
                    Err(_) => Err(stream_problems::agent_timeout()),
                },
                Ok(Err(refusal)) => Err(stream_problems::stream_refused(target.kind, &refusal)),
                Err(_) => Err(stream_problems::agent_timeout()),
            }
        };
        timeout_at(until, connected)
            .await
            .unwrap_or_else(|_| Err(stream_problems::agent_timeout()))
    }

    /// Announces a ticket to the node that has the disk or the image.
    pub(crate) fn announce(&self, node: NodeId, ticket: WatchFrame) -> Result<(), Problem> {
        let state = self.state();
        let registration = state.registrations.get(&node);
        let sent = registration.is_some_and(|(_, watch)| watch.try_send(ticket).is_ok());
        drop(state);
        if sent {
            Ok(())
        } else {
            Err(stream_problems::node_unreachable())
        }
    }

    /// Accepts the agent's connection for a stream and passes it to the waiting client. Each id is valid once.
    pub fn accept(&self, node: NodeId, id: StreamId, upgrade: OnUpgrade) -> Result<(), Problem> {
        self.take(node, id)?
            .send(Ok(upgrade))
            .map_err(|_| stream_problems::no_such_stream())
    }

    /// Records that the agent could not open a stream.
    pub fn refuse(
        &self,
        node: NodeId,
        id: StreamId,
        refusal: StreamRefusal,
    ) -> Result<(), Problem> {
        self.take(node, id)?
            .send(Err(refusal))
            .map_err(|_| stream_problems::no_such_stream())
    }

    /// Ids that are unknown, used, expired or for another node have the same answer.
    fn take(&self, node: NodeId, id: StreamId) -> Result<oneshot::Sender<AgentAnswer>, Problem> {
        let mut state = self.state();
        let valid = state
            .waiting
            .get(&id)
            .is_some_and(|waiting| waiting.node == node && Instant::now() < waiting.until);
        let waiting = valid.then(|| state.waiting.remove(&id)).flatten();
        drop(state);
        waiting
            .map(|waiting| waiting.answer)
            .ok_or_else(stream_problems::no_such_stream)
    }
}

struct Withdraw<'a> {
    broker: &'a StreamBroker,
    id: StreamId,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.broker.state().waiting.remove(&self.id);
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut state = self.broker.state();
        if let Some(count) = state.open.get_mut(&self.instance) {
            *count -= 1;
            if *count == 0 {
                state.open.remove(&self.instance);
            }
        }
    }
}

impl WatchRegistration {
    /// The next order. It never completes after a newer watch has registered. Cancel safe.
    pub async fn next(&mut self) -> WatchFrame {
        match self.orders.recv().await {
            Some(order) => order,
            // A newer watch of the node has registered.
            None => std::future::pending().await,
        }
    }
}

impl Drop for WatchRegistration {
    fn drop(&mut self) {
        let mut state = self.broker.state();
        if state
            .registrations
            .get(&self.node)
            .is_some_and(|(number, _)| *number == self.number)
        {
            state.registrations.remove(&self.node);
        }
    }
}
