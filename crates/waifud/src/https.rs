//! HTTPS: one port for clients and nodes. The handshake identifies the peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;
use waifud_control::Peer;
use waifud_pki::NodePeer;

use crate::connections::{Connections, Place};

/// The time limit for a TLS handshake, which takes two round trips.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The time limit for the header of a request, and for an idle kept-alive connection.
const HEAD: Duration = Duration::from_mins(1);
/// A connection is closed if sent data is not acknowledged for this long.
const UNACKNOWLEDGED_MS: u32 = 60_000;
/// The maximum size of a request header, and of one read or write, in bytes.
const BUFFER: usize = 32 << 10;
/// The pause when no file descriptors are available.
const OUT_OF_FILES: Duration = Duration::from_millis(200);

/// Listens on each address. Port 0 selects a free port.
pub async fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address}; check `listen` in waifud.toml")
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Serves until `stop` is canceled, then waits for running requests. The caller limits this time.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    stop: CancellationToken,
    connections: Connections,
) -> std::io::Result<()> {
    let acceptor = TlsAcceptor::from(tls);
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(OUT_OF_FILES).await;
                continue;
            }
        };
        let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
        let place = connections.admit(from);
        tasks.spawn(async move {
            let close = place.close.clone();
            let met = tokio::select! {
                () = stop.cancelled() => None,
                () = close.cancelled() => None,
                met = meet(stream, from, acceptor) => met,
            };
            if let Some((stream, peer)) = met {
                if let Peer::Certificate { node, .. } = peer {
                    place.proof.set_node(Some(node));
                }
                converse(stream, peer, router, stop, &place).await;
            }
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Completes the handshake and identifies the peer. Certificates of our CA that do not name a node are refused.
async fn meet(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: TlsAcceptor,
) -> Option<(TlsStream<TcpStream>, Peer)> {
    // Both are optional optimizations.
    let _best_effort = stream.set_nodelay(true);
    let _best_effort = setsockopt(&stream, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MS);
    let mut stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%from, %error, "TLS handshake failed");
            return None;
        }
        Err(_) => {
            tracing::debug!(%from, "TLS handshake timed out");
            return None;
        }
    };
    stream.get_mut().1.set_buffer_limit(Some(BUFFER));
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first)
        .map(NodePeer::of);
    let peer = match certificate {
        None => Peer::Tls { from },
        Some(Ok(NodePeer { node, key })) => Peer::Certificate { from, node, key },
        Some(Err(error)) => {
            tracing::warn!(%from, %error, "connection refused: invalid client certificate");
            return None;
        }
    };
    Some((stream, peer))
}

async fn converse(
    stream: TlsStream<TcpStream>,
    peer: Peer,
    router: Router,
    stop: CancellationToken,
    place: &Place,
) {
    let proof = place.proof.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(proof.clone());
        router.clone().call(request.map(Body::new))
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = place.close.cancelled() => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = place.close.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(from = %peer.from(), %error, "connection closed with an error");
    }
}
