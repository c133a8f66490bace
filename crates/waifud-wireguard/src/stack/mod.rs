//! A TCP server for one address and one port, without I/O and without a clock: packets and the time go in, packets come
//! out, connections are read and written like sockets.
//!
//! smoltcp implements TCP. Its interface keeps all sockets in one set and compares every packet with each of them, and it
//! has no backlog: a SYN without a listening socket is refused. Here, every connection is a [`Flow`] with its own socket
//! set, found by the guest's address and port. A SYN that [`Admission`] admits gets a new listening socket, so no backlog
//! can overflow. The cost of a packet does not depend on the number of connections, so a guest cannot slow down others by
//! opening many.
//!
//! ```text
//!  ingress ─► classify ─┬─ refused ──────────────────► counted
//!                       ├─ other port, ICMP, stray ──► the interface answers: reset, echo
//!                       └─ segment ─► Admission (SYN) ─► Flow::receive ─► dirty
//!  advance ─► dirty flows and those due by the timetable: reset late ones, send, hand over, remove, reschedule
//! ```
//!
//! A flow is in one of three stages ([`Stage`]) and is removed once it is no longer needed. A
//! [`Connection`](crate::Connection) without a flow reads a reset.

mod admission;
mod device;
mod flow;
mod ingress;
mod net;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io::{self, IoSlice},
    net::SocketAddrV4,
    task::{Context, Poll, Waker},
};

use smoltcp::time::Instant;
use tokio::io::ReadBuf;

use self::{
    admission::{Admission, Decision},
    device::Outgoing,
    flow::{Flow, Stage},
    ingress::{Arrival, Cause, classify},
    net::Net,
};
use crate::{Refusals, StackLimits};

/// Identifies a connection: a later one from the same port has another serial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowId {
    pub source: SocketAddrV4,
    serial: u64,
}

/// All connections of the service.
pub(crate) struct Stack {
    service: SocketAddrV4,
    limits: StackLimits,
    net: Net,
    flows: HashMap<SocketAddrV4, Flow>,
    admission: Admission,
    /// When each flow must be updated; an entry may be early but never late.
    timetable: BTreeSet<(Instant, SocketAddrV4)>,
    dirty: Vec<SocketAddrV4>,
    /// Established connections that are not accepted yet.
    ready: VecDeque<FlowId>,
    listener_waker: Option<Waker>,
    serial: u64,
    accepted: u64,
    refused: Refusals,
    /// Whether connections are accepted.
    listening: bool,
    closed: bool,
}

impl Stack {
    pub fn new(service: SocketAddrV4, limits: StackLimits, seed: u64) -> Self {
        Self {
            net: Net::new(*service.ip(), limits.mtu, seed),
            admission: Admission::new(limits.max_connections, limits.max_per_source),
            service,
            limits,
            flows: HashMap::new(),
            timetable: BTreeSet::new(),
            dirty: Vec::new(),
            ready: VecDeque::new(),
            listener_waker: None,
            serial: 0,
            accepted: 0,
            refused: Refusals::default(),
            listening: true,
            closed: false,
        }
    }

    /// Processes a packet with a verified source. Answers are available after [`advance`](Self::advance).
    pub fn ingress(&mut self, packet: &[u8], now: Instant) {
        match classify(packet, self.service) {
            Arrival::Refused(Cause::Malformed) => self.refused.malformed += 1,
            Arrival::Refused(Cause::NotForUs) => self.refused.not_for_us += 1,
            Arrival::Icmp => self.net.answer(packet, now),
            Arrival::OtherPort => {
                self.refused.other_port += 1;
                self.net.answer(packet, now);
            }
            Arrival::Segment { source, opens } => self.segment(source, opens, packet, now),
        }
    }

    fn segment(&mut self, source: SocketAddrV4, opens: bool, packet: &[u8], now: Instant) {
        if opens && self.listening {
            // A client may reuse a port before the service has seen the end of the former connection.
            if self.flows.get_mut(&source).is_some_and(Flow::is_closed) {
                self.remove(source);
            }
            if !self.flows.contains_key(&source) && !self.admit(source, now) {
                return;
            }
        }
        match self.flows.get_mut(&source) {
            Some(flow) => {
                flow.receive(packet, &mut self.net, now);
                if !flow.dirty {
                    flow.dirty = true;
                    self.dirty.push(source);
                }
            }
            None => self.net.answer(packet, now),
        }
    }

    /// Creates a flow for a new connection, if the limits allow it.
    fn admit(&mut self, source: SocketAddrV4, now: Instant) -> bool {
        match self.admission.decide(*source.ip()) {
            Decision::Admit => {}
            Decision::RefuseSource => {
                self.refused.per_source += 1;
                return false;
            }
            Decision::RefuseGlobal => {
                self.refused.global += 1;
                return false;
            }
            Decision::EvictFrom(busiest) => {
                let candidates = self.flows.iter().filter(|(key, _)| *key.ip() == busiest);
                let Some(idlest) = candidates
                    .min_by_key(|(_, flow)| flow.last_progress())
                    .map(|(key, _)| *key)
                else {
                    return false;
                };
                self.refused.evicted += 1;
                self.end(idlest, now);
            }
        }
        let Some(flow) = Flow::listen(self.service, &self.limits, self.serial, now) else {
            return false;
        };
        self.serial += 1;
        self.admission.add(*source.ip());
        self.flows.insert(source, flow);
        true
    }

    /// Does everything that is due at `now`. Must be called after every change, and no later than [`due`](Self::due).
    pub fn advance(&mut self, now: Instant) {
        for source in std::mem::take(&mut self.dirty) {
            self.update(source, now);
        }
        while let Some(&(at, source)) = self.timetable.first()
            && at <= now
        {
            self.timetable.pop_first();
            if let Some(flow) = self.flows.get_mut(&source)
                && flow.scheduled == Some(at)
            {
                flow.scheduled = None;
                self.update(source, now);
                self.defer(source, now);
            }
        }
    }

    /// Postpones a flow that is still due: it can continue only once the queue of outgoing packets is empty.
    fn defer(&mut self, source: SocketAddrV4, now: Instant) {
        if let Some(flow) = self.flows.get_mut(&source)
            && let Some(at) = flow.scheduled
            && at <= now
        {
            self.timetable.remove(&(at, source));
            let later = now + smoltcp::time::Duration::from_millis(1);
            flow.scheduled = Some(later);
            self.timetable.insert((later, source));
        }
    }

    /// Updates a flow: applies its timeouts, sends, accepts or removes it, and schedules the next update.
    fn update(&mut self, source: SocketAddrV4, now: Instant) {
        let Some(flow) = self.flows.get_mut(&source) else {
            return;
        };
        flow.dirty = false;
        if flow.deadline(&self.limits) <= now {
            self.refused.timed_out += 1;
            flow.abort();
        }
        flow.transmit(&mut self.net, now);
        if flow.complete_handshake(now) {
            self.accepted += 1;
            self.ready.push_back(FlowId {
                source,
                serial: flow.serial,
            });
            if let Some(listener) = self.listener_waker.take() {
                listener.wake();
            }
        }
        if flow.is_finished() {
            self.remove(source);
            return;
        }
        let due = flow.due(&mut self.net, &self.limits, now);
        if flow.scheduled.is_none_or(|scheduled| due < scheduled) {
            if let Some(scheduled) = flow.scheduled.replace(due) {
                self.timetable.remove(&(scheduled, source));
            }
            self.timetable.insert((due, source));
        }
    }

    /// Resets a flow and removes it.
    fn end(&mut self, source: SocketAddrV4, now: Instant) {
        if let Some(flow) = self.flows.get_mut(&source) {
            flow.abort();
            flow.transmit(&mut self.net, now);
            self.remove(source);
        }
    }

    fn remove(&mut self, source: SocketAddrV4) {
        if let Some(flow) = self.flows.remove(&source) {
            self.admission.remove(*source.ip());
            if let Some(scheduled) = flow.scheduled {
                self.timetable.remove(&(scheduled, source));
            }
        }
    }

    /// Resets the connections whose source does not satisfy `keep`.
    pub fn retain(&mut self, keep: impl Fn(SocketAddrV4) -> bool, now: Instant) {
        let gone: Vec<_> = self
            .flows
            .keys()
            .copied()
            .filter(|source| !keep(*source))
            .collect();
        for source in gone {
            self.end(source, now);
        }
    }

    /// Stops accepting connections: new and waiting ones are reset, accepted ones continue.
    pub fn stop_listening(&mut self, now: Instant) {
        self.listening = false;
        for id in std::mem::take(&mut self.ready) {
            if self.flow(id).is_some() {
                self.end(id.source, now);
            }
        }
    }

    /// Resets all connections, admits no further ones, and wakes the listener.
    pub fn close(&mut self, now: Instant) {
        self.closed = true;
        self.listening = false;
        self.retain(|_| false, now);
        if let Some(listener) = self.listener_waker.take() {
            listener.wake();
        }
    }

    /// When [`advance`](Self::advance) must be called next.
    pub fn due(&self) -> Option<Instant> {
        self.timetable.first().map(|(at, _)| *at)
    }

    /// Outgoing packets to encrypt, in order.
    pub fn outgoing(&mut self) -> &mut Outgoing {
        self.net.outgoing()
    }

    /// The next connection; `None` once the stack is closed.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<FlowId>> {
        while let Some(id) = self.ready.pop_front() {
            if self.flow(id).is_some() {
                return Poll::Ready(Some(id));
            }
        }
        if self.closed {
            return Poll::Ready(None);
        }
        self.listener_waker = Some(cx.waker().clone());
        Poll::Pending
    }

    pub fn poll_read(
        &mut self,
        id: FlowId,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        now: Instant,
    ) -> Poll<io::Result<()>> {
        self.poll(id, now, |flow| flow.poll_read(cx, buf))
    }

    pub fn poll_write(
        &mut self,
        id: FlowId,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
        now: Instant,
    ) -> Poll<io::Result<usize>> {
        self.poll(id, now, |flow| flow.poll_write(cx, parts))
    }

    /// Polls a connection, whose packets and timers may change with that; an error if it is gone.
    fn poll<T>(
        &mut self,
        id: FlowId,
        now: Instant,
        poll: impl FnOnce(&mut Flow) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Some(flow) = self.flow(id) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let polled = poll(flow);
        if polled.is_ready() {
            self.update(id.source, now);
        }
        polled
    }

    /// Closes the sending side of a connection.
    pub fn shutdown(&mut self, id: FlowId, now: Instant) {
        if let Some(flow) = self.flow(id) {
            flow.shutdown();
            self.update(id.source, now);
        }
    }

    /// Closes a connection that the service has dropped.
    pub fn release(&mut self, id: FlowId, now: Instant) {
        if let Some(flow) = self.flow(id) {
            flow.release(now);
            self.update(id.source, now);
        }
    }

    fn flow(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows
            .get_mut(&id.source)
            .filter(|flow| flow.serial == id.serial && flow.stage == Stage::Held)
    }

    pub fn connections(&self) -> usize {
        self.flows.len()
    }

    pub fn sources(&self) -> usize {
        self.admission.sources()
    }

    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    pub fn refused(&self) -> Refusals {
        self.refused
    }
}
