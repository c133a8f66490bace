//! Serves guests' connections, each in its own task and within time limits.

use std::{convert::Infallible, sync::Arc};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, sleep_until};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use waifud_wireguard::{GuestListener, GuestStream};

use crate::MetadataService;

/// Serves connections until the listener ends or `stop` is canceled, and then completes running answers. The caller must
/// limit how long that takes.
pub async fn serve_guests<L: GuestListener>(
    mut listener: L,
    service: Arc<MetadataService>,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            stream = listener.accept() => stream,
            () = stop.cancelled() => break,
        };
        let Some(stream) = stream else { break };
        connections.spawn(serve(stream, Arc::clone(&service), stop.clone()));
    }
    connections.close();
    connections.wait().await;
}

/// Serves one connection. Its source address is read once, from the tunnel.
async fn serve<S: GuestStream>(stream: S, service: Arc<MetadataService>, stop: CancellationToken) {
    let source = *stream.source().ip();
    let limits = service.limits.clone();
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer_guest(source, request).await) }
    });
    let mut builder = http1::Builder::new();
    // The timeout for request heads includes the time between two requests of a connection.
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_header_size(limits.head_bytes)
        .max_buf_size(limits.head_bytes.max(8 << 10))
        // A client may close its sending side after its request (`nc -N`, small HTTP clients) and still read the answer.
        .half_close(true)
        .keep_alive(true);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), answer));
    let end = Instant::now() + limits.lifetime;
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = sleep_until(end) => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%source, %error, "a guest's connection ended early");
    }
}
