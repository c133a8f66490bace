//! The client's end of a stream: a request that is upgraded to a WebSocket.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, Stream, StreamExt};
use reqwest::{Method, StatusCode, Upgraded, header};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::{Client, ClientError};
use crate::Problem;
use crate::stream::RESET_CODE;

/// Timeout for opening a stream; the node's agent has 30 seconds to connect.
const OPEN_TIMEOUT: Duration = Duration::from_secs(45);
/// The close code of an orderly end (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;

/// A stream to a guest.
#[derive(Debug)]
pub struct ClientStream {
    /// To the guest.
    pub to: StreamSink,
    /// From the guest.
    pub from: StreamSource,
}

/// The writing half.
#[derive(Debug)]
pub struct StreamSink(SplitSink<WebSocketStream<Upgraded>, Message>);

/// The reading half.
#[derive(Debug)]
pub struct StreamSource(SplitStream<WebSocketStream<Upgraded>>);

/// How a stream ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamEnd {
    /// The guest ended the stream.
    Done,
    /// The guest has ended its direction and still receives. The next call returns how the stream ends.
    Finished,
    /// The guest reset the connection.
    Reset,
    /// waifud ended the stream, with a reason.
    Closed(String),
    /// The connection to waifud was lost.
    Lost(String),
}

impl StreamSink {
    /// Sends bytes; returns once the connection has accepted them.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), StreamEnd> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.0.send(Message::Binary(bytes)).await.map_err(broken)
    }

    /// Ends the direction to the guest.
    pub async fn finish(&mut self) -> Result<(), StreamEnd> {
        self.0
            .send(Message::Binary(Bytes::new()))
            .await
            .map_err(broken)
    }

    /// Closes the stream as reset by the client.
    pub async fn reset(&mut self) {
        let reset = CloseFrame {
            code: RESET_CODE.into(),
            reason: "the client reset the connection".into(),
        };
        let _gone_already = self.0.send(Message::Close(Some(reset))).await;
    }

    /// Closes the stream.
    pub async fn close(&mut self) {
        let _gone_already = self.0.close().await;
    }
}

impl StreamSource {
    /// Receives the next bytes. Cancel-safe: no bytes are lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Bytes, StreamEnd> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => {
                    return Err(StreamEnd::Finished);
                }
                Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
                Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == RESET_CODE => {
                    return Err(StreamEnd::Reset);
                }
                Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) != NORMAL => {
                    return Err(StreamEnd::Closed(frame.reason.to_string()));
                }
                Some(Ok(Message::Close(_))) => return Err(StreamEnd::Done),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(error)),
                None => {
                    return Err(StreamEnd::Lost("lost the connection to waifud".to_owned()));
                }
            }
        }
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "so that it fits into map_err"
)]
fn broken(error: tokio_tungstenite::tungstenite::Error) -> StreamEnd {
    StreamEnd::Lost(error.to_string())
}

impl Client {
    /// Opens a stream: `what` is `console`, `screen`, `ssh` or `forward`, which takes a port.
    pub async fn open_stream(
        &self,
        name: &str,
        what: &str,
        port: Option<u16>,
    ) -> Result<ClientStream, ClientError> {
        let mut request = self
            .timeless(Method::GET, &["instances", name, what])
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, generate_key());
        if let Some(port) = port {
            request = request.query(&[("port", port)]);
        }
        let open = async {
            let response = request.send().await.map_err(|e| self.transport(e))?;
            let status = response.status();
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return response.upgrade().await.map_err(|e| self.transport(e));
            }
            let body = response.bytes().await.map_err(|e| self.transport(e))?;
            Err(match serde_json::from_slice::<Problem>(&body) {
                Ok(problem) => ClientError::Problem(Box::new(problem)),
                Err(_) => ClientError::Malformed(format!("status {status} instead of a stream")),
            })
        };
        let upgraded = tokio::time::timeout(OPEN_TIMEOUT, open)
            .await
            .map_err(|_| ClientError::TimedOut {
                at: self.at.clone(),
            })??;
        let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
        let (to, from) = socket.split();
        Ok(ClientStream {
            to: StreamSink(to),
            from: StreamSource(from),
        })
    }

    /// The last lines of a guest's log as they come; with `follow`, what is added as well.
    pub async fn log(
        &self,
        name: &str,
        source: &str,
        lines: u32,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        // No total timeout, since a followed log does not end.
        let request = self
            .timeless(Method::GET, &["instances", name, "log"])
            .query(&[("source", source), ("lines", &lines.to_string())])
            .query(&[("follow", follow)]);
        let response = tokio::time::timeout(OPEN_TIMEOUT, self.send(request))
            .await
            .map_err(|_| ClientError::TimedOut {
                at: self.at.clone(),
            })??;
        let at = self.at.clone();
        Ok(response.bytes_stream().map(move |chunk| {
            chunk.map_err(|source| ClientError::Unreachable {
                at: at.clone(),
                source,
            })
        }))
    }
}
