//! Who waits for which agent, and which watch each node listens at.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::Extensions;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use waifud_api::Problem;
use waifud_api::stream::{StreamId, StreamKind, StreamOrder, StreamRefusal};
use waifud_types::{Epoch, InstanceId, NodeId};

use super::StreamLimits;
use crate::auth::holdings::Held;
use crate::env::Entropy;
use crate::streams::problems as stream_problems;

/// The agent's end of a stream.
pub type AgentEnd = TokioIo<Upgraded>;

/// Orders that a watch holds until they are sent.
const QUEUE: usize = 64;

type Coming = Result<OnUpgrade, StreamRefusal>;

/// The broker. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Broker(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<StreamId, Waiting>,
    seats: HashMap<NodeId, (u64, mpsc::Sender<StreamOrder>)>,
    next_seat: u64,
    open: HashMap<InstanceId, usize>,
}

#[derive(Debug)]
struct Waiting {
    node: NodeId,
    until: Instant,
    answer: oneshot::Sender<Coming>,
}

/// A place in the count of open streams; given back when dropped.
#[derive(Debug)]
pub struct Place {
    broker: Broker,
    instance: InstanceId,
    _held: Option<Held>,
}

/// Where a node's watch hears of streams. The newest watch of a node is the one that counts.
#[derive(Debug)]
pub struct WatchRegistration {
    broker: Broker,
    node: NodeId,
    number: u64,
    orders: mpsc::Receiver<StreamOrder>,
}

/// Whom a stream leads to.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The node that the instance is on.
    pub node: NodeId,
    /// The instance.
    pub instance: InstanceId,
    /// Its copy there.
    pub epoch: Epoch,
    /// What of it.
    pub kind: StreamKind,
}

impl Broker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node's watch begins.
    pub fn register_watch(&self, node: NodeId) -> WatchRegistration {
        let (sender, orders) = mpsc::channel(QUEUE);
        let mut state = self.state();
        state.next_seat += 1;
        let number = state.next_seat;
        state.seats.insert(node, (number, sender));
        drop(state);
        WatchRegistration {
            broker: self.clone(),
            node,
            number,
            orders,
        }
    }

    /// A place for one more stream, with what it takes of the token that asks.
    pub(crate) fn place(
        &self,
        instance: InstanceId,
        limits: &StreamLimits,
        held: Option<Held>,
    ) -> Result<Place, Problem> {
        let mut state = self.state();
        let total: usize = state.open.values().sum();
        let here = state.open.entry(instance).or_default();
        if total >= limits.total || *here >= limits.per_instance {
            let most = limits.per_instance;
            if *here == 0 {
                state.open.remove(&instance);
            }
            return Err(stream_problems::too_many_streams(most));
        }
        *here += 1;
        drop(state);
        Ok(Place {
            broker: self.clone(),
            instance,
            _held: held,
        })
    }

    /// Asks the node for the stream and waits until its agent comes. Whoever stops waiting takes the id away.
    pub async fn call(
        &self,
        target: Target,
        entropy: &dyn Entropy,
        limits: &StreamLimits,
    ) -> Result<AgentEnd, Problem> {
        let mut bytes = [0; 32];
        entropy.fill(&mut bytes);
        let id = StreamId::from_bytes(bytes);
        let until = Instant::now() + limits.come_within;
        let (answer, coming) = oneshot::channel();
        let seat = {
            let mut state = self.state();
            let seat = state
                .seats
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
            seat
        };
        let _withdrawn = Withdraw { broker: self, id };
        let order = StreamOrder {
            id,
            instance: target.instance,
            epoch: target.epoch,
            kind: target.kind,
        };
        let heard = seat.is_some_and(|seat| seat.try_send(order).is_ok());
        if !heard {
            return Err(stream_problems::node_unreachable());
        }
        let come = async {
            match coming.await {
                Ok(Ok(upgrade)) => match upgrade.await {
                    Ok(upgraded) => Ok(TokioIo::new(upgraded)),
                    Err(_) => Err(stream_problems::agent_did_not_come()),
                },
                Ok(Err(refusal)) => Err(stream_problems::stream_refused(target.kind, &refusal)),
                Err(_) => Err(stream_problems::agent_did_not_come()),
            }
        };
        timeout_at(until, come)
            .await
            .unwrap_or_else(|_| Err(stream_problems::agent_did_not_come()))
    }

    /// The agent of `node` came for a stream: its connection, once switched, goes to who asked. Each id is good once.
    pub fn accept(
        &self,
        node: NodeId,
        id: StreamId,
        request: &mut Extensions,
    ) -> Result<(), Problem> {
        let upgrade = request
            .remove::<OnUpgrade>()
            .ok_or_else(stream_problems::upgrade_required)?;
        self.take(node, id)?
            .send(Ok(upgrade))
            .map_err(|_| stream_problems::no_such_stream())
    }

    /// The agent of `node` can't open a stream.
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

    /// Another node's id, one that was used, one that is too old and one that never was look the same.
    fn take(&self, node: NodeId, id: StreamId) -> Result<oneshot::Sender<Coming>, Problem> {
        let mut state = self.state();
        let good = state
            .waiting
            .get(&id)
            .is_some_and(|waiting| waiting.node == node && Instant::now() < waiting.until);
        let waiting = good.then(|| state.waiting.remove(&id)).flatten();
        drop(state);
        waiting
            .map(|waiting| waiting.answer)
            .ok_or_else(stream_problems::no_such_stream)
    }
}

struct Withdraw<'a> {
    broker: &'a Broker,
    id: StreamId,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.broker.state().waiting.remove(&self.id);
    }
}

impl Drop for Place {
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
    /// The next order; never ends while the seat is taken. May be dropped and called again without losing one.
    pub async fn next(&mut self) -> StreamOrder {
        match self.orders.recv().await {
            Some(order) => order,
            // A newer watch of the node has the seat.
            None => std::future::pending().await,
        }
    }
}

impl Drop for WatchRegistration {
    fn drop(&mut self) {
        let mut state = self.broker.state();
        if state
            .seats
            .get(&self.node)
            .is_some_and(|(number, _)| *number == self.number)
        {
            state.seats.remove(&self.node);
        }
    }
}
