//! Joins a guest's stream with a connection or a pipe of this machine, and listens for such connections.

use std::net::Ipv4Addr;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use waifud_api::client::{PersonStream, StreamEnd};

use crate::commands::cut;
use crate::context::Context;
use crate::failure::Failure;

/// Bytes sent at once.
const CHUNK: usize = 32 << 10;

/// What a connection leads to.
#[derive(Clone, Debug)]
pub struct Far {
    /// The instance's id or name, for waifud.
    pub instance: String,
    /// `ssh`, `screen` or `forward`.
    pub what: &'static str,
    /// With `forward`.
    pub port: Option<u16>,
}

/// Copies both ways until the guest's side ends; the end of what is read here is passed on. Fails with waifud's reason.
pub async fn join(
    stream: PersonStream,
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
) -> Result<(), String> {
    let PersonStream { mut to, mut from } = stream;
    let up = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let Ok(count) = read.read(&mut buffer).await else {
                return Some(());
            };
            let bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
            let sent = if count == 0 {
                to.finish().await
            } else {
                to.send(bytes).await
            };
            // When sending fails, the other direction knows why.
            if count == 0 || sent.is_err() {
                return None;
            }
        }
    };
    let down = async {
        loop {
            let bytes = match from.next().await {
                Ok(bytes) => bytes,
                Err(end) => return end,
            };
            if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                return StreamEnd::Done;
            }
        }
    };
    let end = tokio::select! {
        end = down => end,
        Some(()) = up => StreamEnd::Done,
    };
    let _gone_already = write.shutdown().await;
    to.close().await;
    match end {
        StreamEnd::Done => Ok(()),
        StreamEnd::Cut(reason) => Err(reason),
    }
}

/// Listens on this machine's loopback only.
pub async fn bind(port: u16) -> Result<TcpListener, Failure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(|e| {
            Failure::input(
                "port-unusable",
                format!("port {port} of 127.0.0.1 can't be used"),
            )
            .cause(&e)
            .hint("another one, or 0 for any that is free")
        })
}

/// Opens a stream for each connection. Goes on until it can't listen any more; a connection that fails is told about.
pub async fn listen(context: &Context, listener: TcpListener, far: Far) -> Failure {
    loop {
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                return Failure::ours("accept", "no connections can be accepted").cause(&error);
            }
        };
        let (client, far, json) = (
            context.client.clone(),
            far.clone(),
            context.printer.is_json(),
        );
        tokio::spawn(async move {
            if let Err(failure) = carry(&client, connection, &far).await {
                failure.print(json);
            }
        });
    }
}

async fn carry(
    client: &waifud_api::client::Client,
    mut connection: TcpStream,
    far: &Far,
) -> Result<(), Failure> {
    // Keys typed into a screen or a shell must not wait for more.
    let _slower_without = connection.set_nodelay(true);
    let stream = client
        .open_stream(&far.instance, far.what, far.port)
        .await?;
    let (read, write) = connection.split();
    join(stream, read, write)
        .await
        .map_err(|reason| cut(&far.instance, &reason))
}

/// Returns at Ctrl-C, or when the process is asked to end.
pub async fn asked_to_end() -> Result<(), Failure> {
    let wait = async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    };
    wait.await.map_err(|e: std::io::Error| {
        Failure::ours("signals", "signals can't be waited for").cause(&e)
    })
}
