//! Moves bytes between the two ends, and never holds more of them than a few buffers.
//!
//! A direction reads only when what it read before is written: whoever reads slowly slows down the other end, through
//! waifud and the agent down to the guest's own TCP window.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, Stream, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use waifud_api::stream::StreamKind;

use super::broker::{AgentEnd, Place};
use super::guard::{CloseReason, StreamGuard};
use super::{OpenStream, StreamLimits};

/// Bytes read from an agent at once.
const CHUNK: usize = 32 << 10;
/// The close code of an orderly end (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;

/// What the two directions tell the clock and each other.
struct Signs {
    /// When bytes flowed last, and when the person's end was heard of last.
    heard: watch::Sender<(Instant, Instant)>,
    /// The person has no more to send.
    up_finished: CancellationToken,
    /// The guest has no more to send.
    down_finished: CancellationToken,
}

/// Joins a person's WebSocket and an agent's stream until one of them ends or has to. A connection to a guest has two
/// directions: each ends by itself, and the other goes on.
pub async fn join(person: WebSocket, stream: OpenStream, limits: StreamLimits) {
    let OpenStream {
        agent,
        mut gate,
        place,
    } = stream;
    let kind = gate.target().kind;
    let (reader, writer) = tokio::io::split(agent);
    let (mut sink, source) = person.split();
    let now = Instant::now();
    let signs = Signs {
        heard: watch::Sender::new((now, now)),
        up_finished: CancellationToken::new(),
        down_finished: CancellationToken::new(),
    };
    let ended = tokio::select! {
        ended = agent_to_person(reader, &mut sink, &signs, kind, limits.ping) => ended,
        ended = person_to_agent(source, writer, &signs) => ended,
        cut = gate.closed() => Err(Some(cut)),
        cut = silence(&signs, &limits) => Err(Some(cut)),
    };
    let (code, reason) = match ended {
        Ok(()) => (NORMAL, ""),
        // The person left.
        Err(None) => return drop(place),
        Err(Some(cut)) => (cut.code(), cut.reason()),
    };
    tracing::info!(kind = kind.as_str(), reason, "a stream ends");
    let farewell = sink.send(Message::Close(Some(CloseFrame {
        code,
        reason: reason.into(),
    })));
    // One that does not read is not waited for.
    let _told_or_not = tokio::time::timeout(limits.ping, farewell).await;
    drop(place);
}

/// How a stream ended: in order, because the person left (`None`), or because it had to.
type Ended = Result<(), Option<CloseReason>>;

/// Ends once both directions have ended, where they end one by one; else with the agent's.
async fn agent_to_person(
    mut agent: ReadHalf<AgentEnd>,
    person: &mut SplitSink<WebSocket, Message>,
    signs: &Signs,
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
                    signs.down_finished.cancel();
                    Message::Binary(Bytes::new())
                }
                Err(_) if kind.is_tcp() => return Err(Some(CloseReason::Reset)),
                Ok(0) | Err(_) => return Ok(()),
                Ok(count) => {
                    Message::Binary(Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default()))
                }
            },
            () = signs.up_finished.cancelled(), if !open => return Ok(()),
            () = sleep_until(next_ping) => {
                next_ping = Instant::now() + ping;
                Message::Ping(Bytes::new())
            }
        };
        let bytes = matches!(message, Message::Binary(_));
        person.send(message).await.map_err(|_| None)?;
        if bytes {
            signs.heard.send_modify(|(flow, _)| *flow = Instant::now());
        }
    }
}

/// Ends when the person leaves or has to.
async fn person_to_agent(
    mut person: SplitStream<WebSocket>,
    mut agent: WriteHalf<AgentEnd>,
    signs: &Signs,
) -> Ended {
    loop {
        let message = match person.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) if is_too_large(&error) => return Err(Some(CloseReason::Misused)),
            Some(Err(_)) | None => return Err(None),
        };
        let now = Instant::now();
        signs.heard.send_modify(|(_, life)| *life = now);
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(frame) => {
                // Without this the agent takes it for a reset.
                if frame.is_none_or(|frame| frame.code == NORMAL) {
                    let _gone_already = agent.shutdown().await;
                }
                return Err(None);
            }
        };
        if bytes.is_empty() {
            let _gone_already = agent.shutdown().await;
            signs.up_finished.cancel();
            // Whoever said that no more will come may still leave, or fall silent.
            return until_it_leaves(person, signs).await;
        }
        if agent.write_all(&bytes).await.is_err() {
            // The other direction sees why, unless it has ended already.
            if signs.down_finished.is_cancelled() {
                return Err(Some(CloseReason::Reset));
            }
            return until_it_leaves(person, signs).await;
        }
        signs
            .heard
            .send_modify(|(flow, life)| (*flow, *life) = (now, Instant::now()));
    }
}

async fn until_it_leaves(mut person: SplitStream<WebSocket>, signs: &Signs) -> Ended {
    while let Some(Ok(message)) = person.next().await {
        if matches!(message, Message::Close(_)) {
            break;
        }
        signs.heard.send_modify(|(_, life)| *life = Instant::now());
    }
    Err(None)
}

fn is_too_large(error: &axum::Error) -> bool {
    use tokio_tungstenite::tungstenite::Error;
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<Error>())
        .is_some_and(|error| matches!(error, Error::Capacity(_)))
}

/// Ends when nothing was said for too long, or when the person's end does not even answer pings.
async fn silence(signs: &Signs, limits: &StreamLimits) -> CloseReason {
    loop {
        let (flow, life) = *signs.heard.borrow();
        let now = Instant::now();
        let (idle, dead) = (flow + limits.idle, flow.max(life) + limits.ping * 3);
        if now >= idle {
            return CloseReason::Idle;
        }
        if now >= dead {
            return CloseReason::Dead;
        }
        sleep_until(idle.min(dead)).await;
    }
}

/// An agent's stream as the body of an answer: for what goes one way. Ends with the stream; cut off when it has to be.
pub fn read_only(
    stream: OpenStream,
    limits: StreamLimits,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    struct Reading {
        reader: ReadHalf<AgentEnd>,
        // Kept: the agent takes its end for a leave.
        _writer: WriteHalf<AgentEnd>,
        gate: StreamGuard,
        _place: Place,
    }
    let (reader, writer) = tokio::io::split(stream.agent);
    let reading = Reading {
        reader,
        _writer: writer,
        gate: stream.gate,
        _place: stream.place,
    };
    futures::stream::unfold(reading, move |mut reading| async move {
        let mut buffer = vec![0; CHUNK];
        let read = tokio::select! {
            read = reading.reader.read(&mut buffer) => read,
            cut = reading.gate.closed() => {
                tracing::info!(reason = cut.reason(), "a log ends");
                return None;
            }
            () = tokio::time::sleep(limits.idle) => return None,
        };
        match read {
            Ok(0) => None,
            Ok(count) => {
                buffer.truncate(count);
                Some((Ok(Bytes::from(buffer)), reading))
            }
            Err(error) => Some((Err(error), reading)),
        }
    })
}
