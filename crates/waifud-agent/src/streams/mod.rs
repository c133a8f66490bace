//! Streams that waifud asks for: checked, opened, and joined with a connection that this node dials.
//!
//! An order leads to a part of one instance of this node, or nowhere: the address is the one in the instance's own
//! spec, never one that came with the order.

mod console;
mod dial;
mod guest_command;
mod guest_file;
mod log;
mod target;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use waifud_api::stream::{RefusalReason, StreamKind, StreamOrder, StreamRefusal};
use waifud_types::InstanceId;

pub use dial::{GuestConnection, GuestDialer, TcpDialer};

use crate::shared::Shared;
use target::Source;

/// Streams at once; waifud has limits of its own.
const MOST: usize = 256;
/// To open what a stream leads to: in time for waifud's 30 seconds.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes copied at once, in each direction.
const CHUNK: usize = 32 << 10;

/// Orders on their way to the keeper, and who has each console.
#[derive(Debug)]
pub(crate) struct Streams {
    orders: mpsc::Sender<StreamOrder>,
    inbox: tokio::sync::Mutex<mpsc::Receiver<StreamOrder>>,
    consoles: Mutex<HashMap<InstanceId, CancellationToken>>,
}

impl Default for Streams {
    fn default() -> Self {
        let (orders, inbox) = mpsc::channel(MOST);
        Self {
            orders,
            inbox: tokio::sync::Mutex::new(inbox),
            consoles: Mutex::default(),
        }
    }
}

impl Streams {
    /// Takes an order. One too many is dropped: waifud says that nobody came.
    pub fn order(&self, order: StreamOrder) {
        if self.orders.try_send(order).is_err() {
            tracing::warn!(kind = order.kind.as_str(), "too many streams are asked for");
        }
    }

    /// Takes a console over: a guest's serial port talks to one at a time, and the newest is the one that somebody
    /// sits at. Whoever had it is told by the token.
    fn take_console(&self, id: InstanceId) -> CancellationToken {
        let mine = CancellationToken::new();
        let mut consoles = self.consoles.lock().unwrap_or_else(PoisonError::into_inner);
        consoles.retain(|_, token| !token.is_cancelled());
        if let Some(before) = consoles.insert(id, mine.clone()) {
            before.cancel();
        }
        mine
    }
}

/// Goes on for ever. Streams end with it.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut inbox = shared.streams.inbox.lock().await;
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            order = inbox.recv() => {
                let Some(order) = order else { return };
                if open.len() >= MOST {
                    let refusal = refusal(RefusalReason::TooMany, "the node carries too many streams");
                    let shared = shared.clone();
                    open.spawn(async move { refuse(&shared, &order, &refusal).await });
                } else {
                    open.spawn(serve(shared.clone(), order));
                }
            }
            Some(ended) = open.join_next() => if ended.is_err_and(|e| e.is_panic()) {
                tracing::error!("a stream broke; this is a bug");
            },
        }
    }
}

/// One stream, from order to end.
async fn serve(shared: Arc<Shared>, order: StreamOrder) {
    let kind = order.kind.as_str();
    let opened = timeout(OPEN_TIMEOUT, target::open(&shared, &order))
        .await
        .unwrap_or_else(|_| {
            Err(refusal(
                RefusalReason::NoAnswer,
                "it did not answer in time",
            ))
        });
    let source = match opened {
        Ok(source) => source,
        Err(why) => return refuse(&shared, &order, &why).await,
    };
    let mut wire = match shared.link.stream(order.id).await {
        Ok(wire) => wire,
        Err(error) => {
            tracing::warn!(kind, %error, "a stream was opened and nobody waits for it");
            return;
        }
    };
    tracing::info!(instance = %order.instance, kind, "a stream begins");
    match source {
        Source::Wire(mut guest) => {
            // Ends are passed on in each direction; errors end both.
            let _ended =
                tokio::io::copy_bidirectional_with_sizes(&mut guest, &mut wire, CHUNK, CHUNK).await;
        }
        Source::Guest(mut guest) => {
            let ended =
                tokio::io::copy_bidirectional_with_sizes(&mut guest, &mut wire, CHUNK, CHUNK).await;
            if let Err(error) = ended {
                // waifud sees a connection that ends without its `close_notify`.
                tracing::debug!(%error, kind, "a stream is reset");
                guest.reset();
            }
        }
        Source::Console(guest) => {
            let mine = shared.streams.take_console(order.instance);
            console::copy(guest, wire, &mine).await;
            mine.cancel();
        }
        Source::GuestCommand => {
            guest_command::serve(&shared.hypervisor, order.instance, wire).await;
        }
        Source::Log(tail) => log::send(tail, wire).await,
        Source::Bytes(bytes) => log::send_bytes(&bytes, wire).await,
    }
    tracing::info!(instance = %order.instance, kind, "a stream ended");
}

async fn refuse(shared: &Shared, order: &StreamOrder, refusal: &StreamRefusal) {
    tracing::info!(instance = %order.instance, kind = order.kind.as_str(), "a stream is refused: {}", refusal.message);
    if let Err(error) = shared.link.refuse_stream(order.id, refusal).await {
        tracing::debug!(%error, "nobody waits for the refusal");
    }
}

fn refusal(reason: RefusalReason, message: impl Into<String>) -> StreamRefusal {
    StreamRefusal {
        reason,
        message: message.into(),
    }
}

/// The guest's port of a kind that has one.
const fn port(kind: StreamKind) -> Option<u16> {
    match kind {
        StreamKind::Ssh => Some(22),
        StreamKind::Forward { port } => Some(port),
        _ => None,
    }
}
