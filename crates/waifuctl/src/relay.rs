//! Connects a stream to a guest with a local connection or pipe, and listens for local connections.

use std::net::Ipv4Addr;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use waifud_api::Instance;
use waifud_api::client::{ClientStream, StreamEnd, StreamSink, StreamSource};

use crate::context::Context;
use crate::failure::Failure;

/// Maximum size of a message in bytes.
const CHUNK: usize = 32 << 10;

/// The target of a forwarded connection.
#[derive(Clone, Debug)]
pub struct StreamTarget {
    /// Id or name of the instance.
    pub instance: String,
    /// `ssh`, `screen` or `forward`.
    pub service: &'static str,
    /// The guest's port, for `forward`.
    pub port: Option<u16>,
}

/// Fails if the instance is off: the same error as for `ssh` and `console`, which open their stream immediately.
pub fn must_be_on(instance: &Instance) -> Result<(), Failure> {
    let (name, state) = (&instance.name, instance.status.state);
    if state.may_be_on() {
        return Ok(());
    }
    Err(Failure::input(
        "instance-not-running",
        format!("instance {name} is {state}, not running"),
    )
    .hint(format!("waifuctl start {name}, or waifuctl why {name}")))
}

/// How a relayed stream ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// By both sides or by waifud, without an error.
    Done,
    /// One side reset its connection.
    Reset,
    /// waifud ended the stream, with a reason.
    Closed(String),
    /// The connection to waifud was lost.
    Lost(String),
}

/// Copies in both directions until both have ended. The end of one direction is passed on while the other continues.
/// If the local connection breaks, the guest's connection is reset.
pub async fn join(
    stream: ClientStream,
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
) -> Ended {
    let ClientStream { mut to, mut from } = stream;
    let end = {
        let up = send_all(&mut read, &mut to);
        let down = receive_all(&mut from, &mut write);
        tokio::pin!(up, down);
        let mut sending = true;
        loop {
            tokio::select! {
                end = &mut down => break end,
                sent = &mut up, if sending => match sent {
                    // If not everything was accepted, the other direction returns the reason.
                    Sent::All | Sent::NotTaken => sending = false,
                    Sent::Broken => break None,
                },
            }
        }
    };
    let Some(end) = end else {
        to.reset().await;
        return Ended::Reset;
    };
    if !matches!(end, StreamEnd::Reset) {
        let _gone_already = write.shutdown().await;
    }
    to.close().await;
    match end {
        StreamEnd::Done | StreamEnd::Finished => Ended::Done,
        StreamEnd::Reset => Ended::Reset,
        StreamEnd::Closed(reason) => Ended::Closed(reason),
        StreamEnd::Lost(reason) => Ended::Lost(reason),
    }
}

/// How sending ended.
enum Sent {
    /// At the end of the local input.
    All,
    /// waifud does not accept more.
    NotTaken,
    /// Reading the local input failed.
    Broken,
}

async fn send_all(read: &mut (impl AsyncRead + Unpin), to: &mut StreamSink) -> Sent {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match read.read(&mut buffer).await {
            Ok(0) => {
                return match to.finish().await {
                    Ok(()) => Sent::All,
                    Err(_) => Sent::NotTaken,
                };
            }
            Ok(count) => count,
            Err(_) => return Sent::Broken,
        };
        let bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
        if to.send(bytes).await.is_err() {
            return Sent::NotTaken;
        }
    }
}

/// Receives until the stream ends; `None` if the data cannot be written locally.
async fn receive_all(
    from: &mut StreamSource,
    write: &mut (impl AsyncWrite + Unpin),
) -> Option<StreamEnd> {
    loop {
        match from.next().await {
            Ok(bytes) => {
                if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                    return None;
                }
            }
            Err(StreamEnd::Finished) => {
                let _gone_already = write.shutdown().await;
            }
            Err(end) => return Some(end),
        }
    }
}

/// Listens on loopback only.
pub async fn bind(port: u16) -> Result<TcpListener, Failure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(|e| {
            Failure::input(
                "port-unusable",
                format!("cannot listen on port {port} of 127.0.0.1"),
            )
            .cause(&e)
            .hint("use another port, or 0 for a free one")
        })
}

/// Opens a stream for each connection until accepting fails. Failures of single connections are printed.
pub async fn listen(context: &Context, listener: TcpListener, target: StreamTarget) -> Failure {
    loop {
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                return Failure::internal("accept", "cannot accept connections").cause(&error);
            }
        };
        let (client, target, json) = (
            context.client.clone(),
            target.clone(),
            context.printer.is_json(),
        );
        tokio::spawn(async move {
            if let Err(failure) = forward_connection(&client, connection, &target).await {
                failure.print(json);
            }
        });
    }
}

async fn forward_connection(
    client: &waifud_api::client::Client,
    mut connection: TcpStream,
    target: &StreamTarget,
) -> Result<(), Failure> {
    // Typed keys must be sent immediately.
    let _slower_without = connection.set_nodelay(true);
    let stream = client
        .open_stream(&target.instance, target.service, target.port)
        .await?;
    let (read, write) = connection.split();
    match join(stream, read, write).await {
        Ended::Done => Ok(()),
        Ended::Reset => {
            // Closing it then sends a reset (RFC 9293, section 3.10.4).
            let _as_an_end_otherwise = connection.set_zero_linger();
            Ok(())
        }
        Ended::Closed(reason) => Err(stream_closed(&target.instance, &reason)),
        Ended::Lost(reason) => Err(stream_lost(&target.instance, &reason)),
    }
}

/// The failure of a stream that waifud or the guest ended.
pub fn stream_closed(name: &str, reason: &str) -> Failure {
    let text = format!("the stream to {name} was closed: {reason}");
    Failure::input("stream-closed", text).hint(format!("waifuctl show {name}"))
}

/// The failure of a stream whose connection to waifud broke.
pub fn stream_lost(name: &str, reason: &str) -> Failure {
    let text = format!("lost the connection to waifud during a stream to {name}: {reason}");
    Failure::internal("stream-lost", text).hint(format!("waifuctl show {name}"))
}

/// Returns at SIGINT (Ctrl-C) or SIGTERM.
pub async fn shutdown_signal() -> Result<(), Failure> {
    let wait = async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    };
    wait.await.map_err(|e: std::io::Error| {
        Failure::internal("signals", "cannot wait for signals").cause(&e)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
    use axum::routing::any;
    use tokio::io::duplex;
    use tokio::net::UnixListener;
    use tokio::sync::oneshot;
    use waifud_api::client::Client;
    use waifud_api::stream::RESET_CODE;

    use super::*;

    const DEADLINE: Duration = Duration::from_mins(1);

    /// A stream and waifud's end of it.
    async fn stream() -> (ClientStream, WebSocket) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("user.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, receiver) = oneshot::channel();
        let sender = std::sync::Arc::new(std::sync::Mutex::new(Some(sender)));
        let handler = move |upgrade: WebSocketUpgrade| async move {
            let sender = sender.lock().unwrap().take().unwrap();
            upgrade.on_upgrade(async move |socket| drop(sender.send(socket)))
        };
        let router = axum::Router::new().fallback(any(handler));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::unix(&socket).unwrap();
        let stream = client.open_stream("web", "ssh", None).await.unwrap();
        (stream, receiver.await.unwrap())
    }

    /// The next message other than ping and pong.
    async fn next(socket: &mut WebSocket) -> Option<Message> {
        tokio::time::timeout(DEADLINE, async {
            loop {
                match socket.recv().await?.ok()? {
                    Message::Ping(_) | Message::Pong(_) => {}
                    message => return Some(message),
                }
            }
        })
        .await
        .unwrap()
    }

    async fn ended(joined: tokio::task::JoinHandle<Ended>) -> Ended {
        tokio::time::timeout(DEADLINE, joined)
            .await
            .unwrap()
            .unwrap()
    }

    #[tokio::test]
    async fn data_sent_after_the_guests_end_arrives_and_the_end_is_passed_on_immediately() {
        let (stream, mut waifud) = stream().await;
        let (mut local, remote) = duplex(1024);
        let (read, write) = tokio::io::split(remote);
        let joined = tokio::spawn(join(stream, read, write));
        waifud.send(Message::Binary("bye".into())).await.unwrap();
        waifud.send(Message::Binary(Bytes::new())).await.unwrap();
        let mut received = String::new();
        let read = tokio::time::timeout(DEADLINE, local.read_to_string(&mut received));
        read.await
            .expect("the end of the guest's direction was not passed on")
            .unwrap();
        assert_eq!(received, "bye");
        local.write_all(b"late").await.unwrap();
        assert_eq!(
            next(&mut waifud).await,
            Some(Message::Binary("late".into()))
        );
        local.shutdown().await.unwrap();
        assert_eq!(next(&mut waifud).await, Some(Message::Binary(Bytes::new())));
        let close = CloseFrame {
            code: 1000,
            reason: "".into(),
        };
        waifud.send(Message::Close(Some(close))).await.unwrap();
        assert_eq!(ended(joined).await, Ended::Done);
    }

    #[tokio::test]
    async fn a_reset_is_passed_on_in_both_directions() {
        let (stream, mut waifud) = stream().await;
        let (_local, remote) = duplex(1024);
        let (read, write) = tokio::io::split(remote);
        let joined = tokio::spawn(join(stream, read, write));
        let close = CloseFrame {
            code: RESET_CODE,
            reason: "".into(),
        };
        waifud.send(Message::Close(Some(close))).await.unwrap();
        assert_eq!(ended(joined).await, Ended::Reset);

        let (stream, mut waifud) = self::stream().await;
        let (local, remote) = duplex(1024);
        let (_read, write) = tokio::io::split(remote);
        // The local peer is gone, so received data cannot be written. There is no local input.
        drop(local);
        let (_silent, read) = duplex(1);
        let joined = tokio::spawn(join(stream, read, write));
        waifud.send(Message::Binary("hello".into())).await.unwrap();
        match next(&mut waifud).await {
            Some(Message::Close(Some(frame))) => assert_eq!(frame.code, RESET_CODE),
            other => panic!("{other:?}"),
        }
        assert_eq!(ended(joined).await, Ended::Reset);
    }
}
