//! Relays bytes between a client's WebSocket and an agent's stream, with a few buffers at most.
//!
//! Each direction reads only after it has written the previous bytes. A slow reader therefore slows down the other end,
//! through waifud and the agent to the TCP window of the guest.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use waifud_api::stream::StreamKind;

use crate::streams::{AgentEnd, CloseReason, OpenStream, StreamLimits};

/// The size of a read from an agent.
const CHUNK: usize = 32 << 10;
/// The close code of a normal end (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;

/// State shared by the two directions and the timers.
struct Activity {
    /// When data was last transferred, and when the client last sent anything.
    last: watch::Sender<(Instant, Instant)>,
    /// The client has sent everything.
    client_finished: CancellationToken,
    /// The guest has sent everything.
    guest_finished: CancellationToken,
}

/// Connects a client's WebSocket with an agent's stream until one of them ends or the guard closes it. For TCP each
/// direction ends separately.
pub async fn join(client: WebSocket, stream: OpenStream, limits: StreamLimits) {
    let OpenStream {
        agent,
        mut guard,
        permit,
    } = stream;
    let kind = guard.target().kind;
    let (reader, writer) = tokio::io::split(agent);
    let (mut sink, source) = client.split();
    let now = Instant::now();
    let activity = Activity {
        last: watch::Sender::new((now, now)),
        client_finished: CancellationToken::new(),
        guest_finished: CancellationToken::new(),
    };
    let ended = tokio::select! {
        ended = agent_to_client(reader, &mut sink, &activity, kind, limits.ping) => ended,
        ended = client_to_agent(source, writer, &activity) => ended,
        reason = guard.closed() => Err(Some(reason)),
        reason = timeout_reason(&activity, &limits) => Err(Some(reason)),
    };
    let (code, reason) = match ended {
        Ok(()) => (NORMAL, ""),
        // The client disconnected.
        Err(None) => return drop(permit),
        Err(Some(reason)) => (reason.code(), reason.reason()),
    };
    tracing::info!(kind = kind.as_str(), reason, "a stream has ended");
    let close = sink.send(Message::Close(Some(CloseFrame {
        code,
        reason: reason.into(),
    })));
    // A client that does not read is not waited for.
    let _best_effort = tokio::time::timeout(limits.ping, close).await;
    drop(permit);
}

/// How a stream ended: normally, because the client disconnected (`None`), or because it was closed.
type Ended = Result<(), Option<CloseReason>>;

/// Copies from the agent to the client. For TCP it ends when both directions have ended, otherwise with the agent's stream.
async fn agent_to_client(
    mut agent: ReadHalf<AgentEnd>,
    client: &mut SplitSink<WebSocket, Message>,
    activity: &Activity,
    kind: StreamKind,
    ping: Duration,
) -> Ended {
    let mut buffer = vec![0; CHUNK];
    let mut next_ping = Instant::now() + ping;
    let mut open = true;
    loop {
        let message = tokio::select! {
            read = agent.read(&mut buffer), if open => match read {
                Ok(0) if kind.is_tcp() => {
                    open = false;
                    activity.guest_finished.cancel();
                    Message::Binary(Bytes::new())
                }
                Err(_) if kind.is_tcp() => return Err(Some(CloseReason::Reset)),
                Ok(0) | Err(_) => return Ok(()),
                Ok(count) => {
                    Message::Binary(Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default()))
                }
            },
            () = activity.client_finished.cancelled(), if !open => return Ok(()),
            () = sleep_until(next_ping) => {
                next_ping = Instant::now() + ping;
                Message::Ping(Bytes::new())
            }
        };
        let bytes = matches!(message, Message::Binary(_));
        client.send(message).await.map_err(|_| None)?;
        if bytes {
            activity
                .last
                .send_modify(|(flow, _)| *flow = Instant::now());
        }
    }
}

/// Copies from the client to the agent until the client disconnects.
async fn client_to_agent(
    mut client: SplitStream<WebSocket>,
    mut agent: WriteHalf<AgentEnd>,
    activity: &Activity,
) -> Ended {
    loop {
        let message = match client.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) if is_too_large(&error) => {
                return Err(Some(CloseReason::MessageTooLarge));
            }
            Some(Err(_)) | None => return Err(None),
        };
        let now = Instant::now();
        activity.last.send_modify(|(_, life)| *life = now);
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(frame) => {
                // Without the shutdown the agent would treat this as a reset.
                if frame.is_none_or(|frame| frame.code == NORMAL) {
                    let _may_be_closed = agent.shutdown().await;
                }
                return Err(None);
            }
        };
        if bytes.is_empty() {
            let _may_be_closed = agent.shutdown().await;
            activity.client_finished.cancel();
            // The client may still disconnect or time out.
            return until_disconnect(client, activity).await;
        }
        if agent.write_all(&bytes).await.is_err() {
            // The other direction determines the reason, unless it has ended already.
            if activity.guest_finished.is_cancelled() {
                return Err(Some(CloseReason::Reset));
            }
            return until_disconnect(client, activity).await;
        }
        activity
            .last
            .send_modify(|(flow, life)| (*flow, *life) = (now, Instant::now()));
    }
}

async fn until_disconnect(mut client: SplitStream<WebSocket>, activity: &Activity) -> Ended {
    while let Some(Ok(message)) = client.next().await {
        if matches!(message, Message::Close(_)) {
            break;
        }
        activity
            .last
            .send_modify(|(_, life)| *life = Instant::now());
    }
    Err(None)
}

fn is_too_large(error: &axum::Error) -> bool {
    use tokio_tungstenite::tungstenite::Error;
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<Error>())
        .is_some_and(|error| matches!(error, Error::Capacity(_)))
}

/// Completes when no data was transferred for too long, or when the client does not answer pings.
async fn timeout_reason(activity: &Activity, limits: &StreamLimits) -> CloseReason {
    loop {
        let (flow, life) = *activity.last.borrow();
        let now = Instant::now();
        let (idle, dead) = (flow + limits.idle, flow.max(life) + limits.ping * 3);
        if now >= idle {
            return CloseReason::Idle;
        }
        if now >= dead {
            return CloseReason::ClientGone;
        }
        sleep_until(idle.min(dead)).await;
    }
}
