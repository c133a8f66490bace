//! The task that serves stream requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use waifud_api::stream::{RefusalReason, StreamOrder, StreamRefusal};

use super::context::StreamServer;
use super::refusal::refusal;
use super::requests::MAX;
use super::target::{self, StreamTarget};
use super::{console, guest_command, log};
use crate::transfer::send;

/// Time to open the target of a stream. waifud waits for 30 seconds.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes copied at once, in each direction.
const CHUNK: usize = 32 << 10;

/// Runs until the agent stops. Open streams end with it.
pub(crate) async fn run(server: Arc<StreamServer>) {
    let mut inbox = server.inbox.0.lock().await;
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            request = inbox.recv() => {
                let Some(request) = request else { return };
                if open.len() >= MAX {
                    let refusal = refusal(RefusalReason::TooMany, "the limit of open streams on the node is reached");
                    let server = server.clone();
                    open.spawn(async move { refuse(&server, &request, &refusal).await });
                } else {
                    open.spawn(serve(server.clone(), request));
                }
            }
            Some(ended) = open.join_next() => if ended.is_err_and(|e| e.is_panic()) {
                tracing::error!("a stream's task panicked, which is a bug");
            },
        }
    }
}

/// One stream, from request to end.
async fn serve(server: Arc<StreamServer>, request: StreamOrder) {
    let kind = request.kind.as_str();
    let opened = timeout(OPEN_TIMEOUT, target::open(&server, &request))
        .await
        .unwrap_or_else(|_| {
            Err(refusal(
                RefusalReason::NoAnswer,
                format!("no answer within {} s", OPEN_TIMEOUT.as_secs()),
            ))
        });
    let target = match opened {
        Ok(target) => target,
        Err(why) => return refuse(&server, &request, &why).await,
    };
    let mut wire = match server.link.stream(request.id).await {
        Ok(wire) => wire,
        Err(error) => {
            tracing::warn!(kind, %error, "opened a stream, but waifud no longer waits for it");
            return;
        }
    };
    tracing::info!(instance = %request.instance, kind, "stream opened");
    match target {
        StreamTarget::Device(mut guest) => {
            // Each direction ends separately; an error ends both.
            let _ended =
                tokio::io::copy_bidirectional_with_sizes(&mut guest, &mut wire, CHUNK, CHUNK).await;
        }
        StreamTarget::Tcp(mut guest) => {
            let ended =
                tokio::io::copy_bidirectional_with_sizes(&mut guest, &mut wire, CHUNK, CHUNK).await;
            if let Err(error) = ended {
                // waifud sees a connection that ends without its `close_notify`.
                tracing::debug!(%error, kind, "stream reset");
                guest.reset();
            }
        }
        StreamTarget::Console(guest) => {
            let mine = server.consoles.take_over(request.instance);
            console::copy(guest, wire, &mine).await;
            mine.cancel();
        }
        StreamTarget::GuestCommand => {
            guest_command::serve(&server.hypervisor, request.instance, wire).await;
        }
        StreamTarget::Log(tail) => log::send(tail, wire).await,
        StreamTarget::Disk { disk, from } => send::send(disk, from, wire).await,
        StreamTarget::Bytes(bytes) => log::send_bytes(&bytes, wire).await,
    }
    tracing::info!(instance = %request.instance, kind, "stream closed");
}

async fn refuse(server: &StreamServer, request: &StreamOrder, refusal: &StreamRefusal) {
    tracing::info!(instance = %request.instance, kind = request.kind.as_str(), "stream refused: {}", refusal.message);
    if let Err(error) = server.link.refuse_stream(request.id, refusal).await {
        tracing::debug!(%error, "waifud no longer waits for the refused stream");
    }
}
