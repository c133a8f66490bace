//! The agent's end of a stream: a request that is upgraded to raw bytes.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{ANSWER_MAX, AgentClient, AgentClientError, body};
use crate::stream::{STREAM_PROTOCOL, StreamId, StreamRefusal};

/// The bytes of a stream. Shutting down the writing half ends that direction.
pub type AgentStream = TokioIo<Upgraded>;

impl AgentClient {
    /// Opens a stream. After success, written bytes reach the client.
    pub async fn stream(&self, id: StreamId) -> Result<AgentStream, AgentClientError> {
        let after = self.timeout;
        timeout(after, self.upgrade(&format!("/v1/agent/streams/{id}")))
            .await
            .map_err(|_| AgentClientError::Timeout { after })?
    }

    /// Refuses a stream; the client gets the reason.
    pub async fn refuse_stream(
        &self,
        id: StreamId,
        refusal: &StreamRefusal,
    ) -> Result<(), AgentClientError> {
        let path = format!("/v1/agent/streams/{id}/refuse");
        self.open(Method::POST, &path, body(refusal)?, None)
            .await
            .map(drop)
    }

    async fn upgrade(&self, path: &str) -> Result<AgentStream, AgentClientError> {
        let broken = |error: hyper::Error| self.unreachable(io::Error::other(error));
        let stream = self
            .way
            .connect()
            .await
            .map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // The task ends with the upgrade or with `sender`.
        tokio::spawn(async move {
            let _seen_by_the_reader = connection.with_upgrades().await;
        });
        let request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .header(header::HOST, "waifud")
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, STREAM_PROTOCOL);
        let request = request
            .body(Full::new(Bytes::new()))
            .map_err(|error| self.unreachable(io::Error::other(error)))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return hyper::upgrade::on(response)
                .await
                .map(TokioIo::new)
                .map_err(broken);
        }
        let bytes = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(|error| self.unreachable(io::Error::other(error)))?
            .to_bytes();
        Err(serde_json::from_slice(&bytes).map_or_else(
            |source| AgentClientError::Unexpected {
                status: status.as_u16(),
                source: Some(source),
            },
            |problem| AgentClientError::Problem(Box::new(problem)),
        ))
    }
}
