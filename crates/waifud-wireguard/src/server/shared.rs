//! The state that the receiving task, the listener and the connections share: wire, socket and stack.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use gotatun::packet::Packet;
use smoltcp::time::Instant as StackInstant;
use tokio::{
    task::yield_now,
    time::{MissedTickBehavior, interval, sleep_until},
};
use waifud_kit::sync::lock;

use super::stats::ServerStats;
use crate::{
    stack::Stack,
    udp::DatagramSocket,
    wire::{Sealed, TICK, Wire},
};

/// How many rounds of "advance, encrypt, send" are made in a row before other tasks run.
const ROUNDS: usize = 16;

/// The output. Dropped when the server is closed, so remaining connections do not keep the port in use.
struct Outside {
    wire: Wire,
    socket: Arc<DatagramSocket>,
    sealed: Vec<Sealed>,
}

impl Outside {
    /// Sends the sealed packets.
    fn send(&mut self) {
        self.socket.send(&mut self.sealed);
    }
}

/// The shared state.
pub(crate) struct Shared {
    outside: Mutex<Option<Outside>>,
    stack: Mutex<Stack>,
    /// The origin of the stack's time. Monotonic, unlike smoltcp's own clock.
    epoch: Instant,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    pub fn new(socket: Arc<DatagramSocket>, wire: Wire, stack: Stack) -> Self {
        let outside = Outside {
            wire,
            socket,
            sealed: Vec::new(),
        };
        Self {
            outside: Mutex::new(Some(outside)),
            stack: Mutex::new(stack),
            epoch: Instant::now(),
        }
    }

    fn now(&self) -> StackInstant {
        let micros = self.epoch.elapsed().as_micros();
        StackInstant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Changes the wire and sends the resulting packets. `None` if the server is closed.
    pub fn outside<R>(&self, change: impl FnOnce(&mut Wire, &mut Vec<Sealed>) -> R) -> Option<R> {
        let mut guard = lock(&self.outside);
        let outside = guard.as_mut()?;
        let result = change(&mut outside.wire, &mut outside.sealed);
        outside.send();
        Some(result)
    }

    /// Changes the stack and sends the resulting packets.
    pub fn drive<R>(&self, change: impl FnOnce(&mut Stack, StackInstant) -> R) -> R {
        let (result, pending) = {
            let mut stack = lock(&self.stack);
            let result = change(&mut stack, self.now());
            (result, !stack.outgoing().is_empty())
        };
        if pending {
            self.flush();
        }
        result
    }

    /// Sends all pending packets of the stack. The output stays locked, so that packets are sent in order.
    fn flush(&self) {
        let mut guard = lock(&self.outside);
        let Some(outside) = guard.as_mut() else {
            return;
        };
        for _ in 0..ROUNDS {
            let outgoing = {
                let mut stack = lock(&self.stack);
                stack.advance(self.now());
                std::mem::take(stack.outgoing())
            };
            if outgoing.is_empty() {
                return;
            }
            for packet in outgoing {
                let packet = Packet::from_bytes(packet);
                outside.wire.seal(packet, &mut outside.sealed);
            }
            outside.send();
        }
    }

    /// Passes received packets from the socket to the stack and sends the answers. False if the server is closed.
    fn receive(&self, packets: &mut Vec<Packet>) -> bool {
        {
            let mut guard = lock(&self.outside);
            let Some(outside) = guard.as_mut() else {
                return false;
            };
            let Outside {
                wire,
                socket,
                sealed,
            } = outside;
            let now = Instant::now();
            socket.receive(|datagram, from| packets.extend(wire.open(datagram, from, now, sealed)));
            outside.send();
        }
        if !packets.is_empty() {
            self.drive(|stack, now| {
                for packet in packets.drain(..) {
                    stack.ingress(&packet, now);
                }
                stack.advance(now);
            });
        }
        true
    }

    /// Resets every connection, ends the listener and closes the socket.
    pub fn close(&self) {
        self.drive(Stack::close);
        *lock(&self.outside) = None;
    }

    pub fn stats(&self) -> ServerStats {
        let wire = lock(&self.outside)
            .as_ref()
            .map(|outside| outside.wire.stats())
            .unwrap_or_default();
        let stack = lock(&self.stack);
        let mut refused = stack.refused();
        refused.not_from_peer = wire.not_from_peer;
        refused.source_not_allowed = wire.source_not_allowed;
        refused.malformed += wire.not_ipv4;
        ServerStats {
            handshake_age: wire.handshake_age,
            received_bytes: wire.received_bytes,
            sent_bytes: wire.sent_bytes,
            connections: stack.connections(),
            sources: stack.sources(),
            accepted: stack.accepted(),
            refused,
        }
    }

    /// When the stack must be updated next.
    fn due(&self) -> Instant {
        let due = lock(&self.stack).due();
        let micros = due.map_or(u64::MAX, |due| {
            u64::try_from(due.total_micros()).unwrap_or(0)
        });
        self.epoch
            .checked_add(Duration::from_micros(micros))
            .unwrap_or_else(|| Instant::now() + TICK)
    }
}

/// Closes the server when the receiving task ends for any reason, so that the listener ends as well instead of waiting
/// forever.
struct ClosesAtEnd(Arc<Shared>);

impl Drop for ClosesAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Receives packets and handles timers until the server is closed.
pub(crate) fn receive(
    shared: Arc<Shared>,
    socket: Arc<DatagramSocket>,
) -> impl Future<Output = ()> + Send {
    let closes = ClosesAtEnd(Arc::clone(&shared));
    async move {
        let _closes = closes;
        receive_on(&shared, &socket).await;
    }
}

async fn receive_on(shared: &Shared, socket: &DatagramSocket) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut packets = Vec::new();
    loop {
        let due = shared.due();
        tokio::select! {
            ready = socket.readable() => {
                if let Err(error) = ready {
                    tracing::error!(%error, "the tunnel's UDP socket has failed");
                    return;
                }
                if !shared.receive(&mut packets) {
                    return;
                }
                // Under load there is always more to receive; other tasks must run as well.
                yield_now().await;
            }
            () = sleep_until(due.into()) => shared.drive(Stack::advance),
            _ = tick.tick() => {
                if shared.outside(|wire, sealed| wire.tick(Instant::now(), sealed)).is_none() {
                    return;
                }
            }
        }
    }
}
