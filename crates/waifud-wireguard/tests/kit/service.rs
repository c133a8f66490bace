//! A minimal HTTP service: returns the client's address, serves bodies of any size, and accepts uploads.

use std::{convert::Infallible, fmt::Write, time::Duration};

use http_body_util::{BodyExt, Collected, Full};
use hyper::{Request, Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::digest::{SHA256, digest};
use waifud_wireguard::{GuestListener, GuestStream};

/// A body that depends only on its length.
pub fn body(length: usize) -> Bytes {
    (0..length)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect()
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in digest(&SHA256, bytes).as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Serves every connection until the listener ends.
pub async fn serve(mut listener: impl GuestListener) {
    while let Some(stream) = listener.accept().await {
        tokio::spawn(async move {
            let source = stream.source();
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| async move {
                let path = request.uri().path().to_owned();
                let content = if path == "/upload" {
                    let uploaded = request.into_body().collect().await;
                    sha256(&uploaded.map(Collected::to_bytes).unwrap_or_default()).into()
                } else if let Some(length) = path.strip_prefix("/body/") {
                    body(length.parse().unwrap_or(0))
                } else {
                    Bytes::from(format!("{}\n", source.ip()))
                };
                Ok::<_, Infallible>(Response::new(Full::new(content)))
            });
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(20))
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}
