//! The link to waifud, as the agent sees it.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use waifud_api::agent::{AgentReport, Hello, WatchFrame, Welcome};
use waifud_api::stream::{StreamId, StreamRefusal};
use waifud_hypervisor::ByteStream;
use waifud_types::{Digest, Revision, Timestamp};

/// Why waifud could not be asked, told or listened to. Messages are fit for users.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection, or it broke. Trying again may help.
    #[error("{message}")]
    Unreachable {
        /// Whom, and what the system said.
        message: String,
    },
    /// The history after the revision is trimmed or of another incarnation: watch without one.
    #[error("waifud has trimmed the history after that revision")]
    Gone,
    /// It refused.
    #[error("waifud refused: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// The bytes can't be written for lack of room.
    #[error("cannot write {path:?}: the filesystem is full")]
    NoRoom {
        /// The file.
        path: PathBuf,
    },
    /// The bytes can't be written.
    #[error("cannot write {path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl LinkError {
    /// Whether the same request will fail in the same way: a refusal that is about its content.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if matches!(status, 400 | 409 | 413 | 422))
    }
}

/// Frames of an open watch.
#[async_trait]
pub trait FrameStream: Send {
    /// The next frame; `None` when waifud ended the watch. A silent waifud is an error after a while. Dropping the
    /// future loses nothing.
    async fn next(&mut self) -> Result<Option<WatchFrame>, LinkError>;
}

/// The node's dialled-out connection to waifud. Every verb may be repeated.
#[async_trait]
pub trait ControlLink: Send + Sync {
    /// Until when the certificate is valid by which waifud knows this node; none where there is none.
    fn certificate_until(&self) -> Option<Timestamp> {
        None
    }

    /// Introduces the node. Comes before everything else; again after a lost connection.
    async fn hello(&self, hello: &Hello) -> Result<Welcome, LinkError>;

    /// Watches the node's slice from after `since`, or from the beginning.
    async fn watch(&self, since: Option<Revision>) -> Result<Box<dyn FrameStream>, LinkError>;

    /// Delivers a report; `Ok` once waifud holds it durably.
    async fn report(&self, report: &AgentReport) -> Result<(), LinkError>;

    /// Writes the image's bytes to the file, resuming after what is there already. `progress` is told how many bytes
    /// the file has. The digest is checked by whoever imports the file.
    async fn fetch_image(
        &self,
        image: Digest,
        to: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), LinkError>;

    /// The encrypted bytes of a bundle, verified against its digest.
    async fn fetch_bundle(&self, bundle: Digest) -> Result<Bytes, LinkError>;

    /// Comes for a stream that waifud asked for; what is written reaches whoever wanted it.
    async fn stream(&self, id: StreamId) -> Result<Box<dyn ByteStream>, LinkError>;

    /// Says why a stream can't be opened.
    async fn refuse_stream(&self, id: StreamId, refusal: &StreamRefusal) -> Result<(), LinkError>;
}
