//! One connection: a TCP socket, its stage and its timeouts.

use std::{
    io::{self, IoSlice},
    task::{Context, Poll},
    time::Duration,
};

use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp::{RecvError, Socket, SocketBuffer, State},
    time::Instant,
};
use tokio::io::ReadBuf;

use super::net::Net;
use crate::StackLimits;

/// How long an acknowledgement is delayed to be sent with data. A service answers within this time, which saves one packet
/// of three. A client that sends its request in two parts is delayed by at most this time.
const ACK_DELAY: Duration = Duration::from_millis(5);

/// The stage of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The client has not completed the handshake.
    Handshake,
    /// The service has the connection, or it is queued for the service.
    Held,
    /// The service has dropped it: written data is sent, and then it closes.
    Released,
}

/// A connection with its own socket set, so that packets are not compared with other connections.
pub(crate) struct Flow {
    pub serial: u64,
    pub stage: Stage,
    /// The flow is in the list of flows to update.
    pub dirty: bool,
    /// Its time in the timetable.
    pub scheduled: Option<Instant>,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    opened: Instant,
    /// When payload was last received or acknowledged, or the stage changed.
    last_progress: Instant,
    aborted: bool,
}

impl Flow {
    /// A flow that waits for its SYN. `None` if the stack cannot listen, which does not happen with a valid address.
    pub fn listen(
        service: std::net::SocketAddrV4,
        limits: &StackLimits,
        serial: u64,
        now: Instant,
    ) -> Option<Self> {
        let mut socket = Socket::new(
            SocketBuffer::new(vec![0; limits.rx_buffer]),
            SocketBuffer::new(vec![0; limits.tx_buffer]),
        );
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY.into()));
        socket.listen((*service.ip(), service.port())).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Self {
            serial,
            stage: Stage::Handshake,
            dirty: false,
            scheduled: None,
            sockets,
            handle,
            opened: now,
            last_progress: now,
            aborted: false,
        })
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Processes a segment.
    pub fn receive(&mut self, packet: &[u8], net: &mut Net, now: Instant) {
        let before = (self.socket().recv_queue(), self.socket().send_queue());
        net.receive(packet, &mut self.sockets, now);
        if before != (self.socket().recv_queue(), self.socket().send_queue()) {
            self.last_progress = now;
        }
    }

    /// Sends pending segments.
    pub fn transmit(&mut self, net: &mut Net, now: Instant) {
        net.transmit(&mut self.sockets, now);
    }

    /// When it must be updated next.
    pub fn due(&mut self, net: &mut Net, limits: &StackLimits, now: Instant) -> Instant {
        let deadline = self.deadline(limits);
        net.due(&self.sockets, now)
            .map_or(deadline, |due| due.min(deadline))
    }

    /// When it times out without further progress.
    pub fn deadline(&self, limits: &StackLimits) -> Instant {
        let end = self.opened + limits.lifetime.into();
        let inactive = match self.stage {
            Stage::Handshake => self.opened + limits.handshake_timeout.into(),
            Stage::Held => self.last_progress + limits.idle_timeout.into(),
            Stage::Released => self.last_progress + limits.close_timeout.into(),
        };
        end.min(inactive)
    }

    pub fn last_progress(&self) -> Instant {
        self.last_progress
    }

    /// Ends it immediately: the client receives a reset, the service an error.
    pub fn abort(&mut self) {
        self.aborted = true;
        self.socket().abort();
    }

    /// Whether the client has completed the handshake since the last call. Then the stage is `Held`.
    pub fn complete_handshake(&mut self, now: Instant) -> bool {
        let complete = self.stage == Stage::Handshake
            && matches!(self.socket().state(), State::Established | State::CloseWait);
        if complete {
            self.stage = Stage::Held;
            self.last_progress = now;
        }
        complete
    }

    /// Whether both directions have ended, regularly or with a reset.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.socket().state(), State::Closed | State::TimeWait)
    }

    /// Whether it can be removed. TIME-WAIT is not kept: it protects against old segments of a former connection, which the
    /// tunnel's replay window already drops.
    pub fn is_finished(&mut self) -> bool {
        self.aborted
            || match self.stage {
                Stage::Handshake => self.is_closed() || self.socket().state() == State::Listen,
                Stage::Held => false,
                Stage::Released => self.is_closed(),
            }
    }

    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = self.socket();
        if socket.may_recv() && !socket.can_recv() {
            socket.register_recv_waker(cx.waker());
            return Poll::Pending;
        }
        // Only the available length, because clearing the rest of a large buffer would cost more than the copy.
        let wanted = socket.recv_queue().min(buf.remaining());
        match socket.recv_slice(buf.initialize_unfilled_to(wanted)) {
            Ok(length) => {
                buf.advance(length);
                Poll::Ready(Ok(()))
            }
            Err(RecvError::Finished) => Poll::Ready(Ok(())),
            Err(RecvError::InvalidState) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    /// Writes as much of the parts as fits into the send buffer.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket = self.socket();
        let mut taken = 0;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            match socket.send_slice(part) {
                Ok(0) if taken == 0 => {
                    socket.register_send_waker(cx.waker());
                    return Poll::Pending;
                }
                Ok(length) => {
                    taken += length;
                    if length < part.len() {
                        break;
                    }
                }
                Err(_) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        Poll::Ready(Ok(taken))
    }

    /// Closes the sending side.
    pub fn shutdown(&mut self) {
        self.socket().close();
    }

    /// Closes a connection that the service has dropped.
    pub fn release(&mut self, now: Instant) {
        self.stage = Stage::Released;
        self.last_progress = now;
        self.socket().close();
    }
}
