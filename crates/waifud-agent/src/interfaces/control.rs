//! The link to waifud, as the agent sees it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use waifud_api::agent::{
    AgentReport, DiskTicket, Hello, ImageCopied, ImageTickets, WatchFrame, WatchStart, Welcome,
};
use waifud_api::stream::{StreamId, StreamRefusal};
use waifud_hypervisor::ByteStream;
use waifud_types::{Digest, InstanceId, Timestamp};

/// Why a request to waifud failed. Messages are suitable for users.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection, or the connection failed. A retry may help.
    #[error("{message}")]
    Unreachable {
        /// The address and the error.
        message: String,
    },
    /// The history after the revision is trimmed or belongs to another incarnation: watch without a revision.
    #[error("waifud has trimmed the history since that revision")]
    Gone,
    /// waifud refused the request.
    #[error("waifud refused: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// waifud's message.
        message: String,
    },
    /// Another machine with this node's key is in contact with waifud; this one is a copy of it.
    #[error("waifud refused: {message}")]
    Duplicate {
        /// waifud's message.
        message: String,
    },
    /// The filesystem is full.
    #[error("cannot write {path:?}: the filesystem is full")]
    NoRoom {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
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
    /// Whether a retry of the same request fails again, because the refusal is about its content.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if matches!(status, 400 | 409 | 413 | 422))
    }
}

/// Frames of an open watch.
#[async_trait]
pub trait FrameStream: Send {
    /// The next frame; `None` if waifud closed the watch. Fails if waifud sends nothing for a while. Dropping the future
    /// loses nothing.
    async fn next(&mut self) -> Result<Option<WatchFrame>, LinkError>;
}

/// Bytes that arrive in pieces.
#[async_trait]
pub trait ByteChunks: Send {
    /// The next bytes; `None` at the end.
    async fn chunk(&mut self) -> Result<Option<Bytes>, LinkError>;

    /// The next bytes, in `space` where that saves a copy. `space` must not be empty.
    async fn read(&mut self, space: &mut [u8]) -> Result<Arrived, LinkError> {
        let _elsewhere = space;
        self.chunk().await.map(Arrived::of)
    }
}

/// What has arrived.
#[derive(Debug)]
pub enum Arrived {
    /// This many bytes, in the given space.
    Read(usize),
    /// These bytes.
    Chunk(Bytes),
    /// Nothing more will arrive.
    End,
}

impl Arrived {
    /// From [`ByteChunks::chunk`].
    pub fn of(chunk: Option<Bytes>) -> Self {
        chunk.map_or(Self::End, Self::Chunk)
    }
}

/// Where a download goes.
#[derive(Clone, Copy)]
pub struct Destination<'a> {
    /// The file.
    pub file: &'a Path,
    /// Called with the size of the file whenever it changes.
    pub progress: &'a (dyn Fn(u64) + Send + Sync),
}

/// The node's outgoing connection to waifud. Every request may be repeated.
#[async_trait]
pub trait ControlLink: Send + Sync {
    /// Until when this node's client certificate is valid; `None` without a certificate.
    fn certificate_until(&self) -> Option<Timestamp> {
        None
    }

    /// This node's own address in the last connection to waifud; `None` before the first one, or if it had no address.
    fn local_address(&self) -> Option<IpAddr> {
        None
    }

    /// Introduces the node. Must be sent first, and again after a lost connection.
    async fn hello(&self, hello: &Hello) -> Result<Welcome, LinkError>;

    /// Watches the node's slice and the names of other nodes' instances.
    async fn watch(&self, start: WatchStart) -> Result<Box<dyn FrameStream>, LinkError>;

    /// Delivers a report. `Ok` means that waifud has stored it durably.
    async fn report(&self, report: &AgentReport) -> Result<(), LinkError>;

    /// Downloads the image to the file, resuming after its present content. The digest is verified at the import.
    async fn fetch_image(&self, image: Digest, to: Destination<'_>) -> Result<(), LinkError>;

    /// Tickets for an image, to copy it from other nodes. None if there are no such nodes.
    async fn image_tickets(&self, _image: Digest) -> Result<ImageTickets, LinkError> {
        Ok(ImageTickets::default())
    }

    /// Tells waifud which node has sent an image.
    async fn image_copied(&self, _image: Digest, _copied: ImageCopied) -> Result<(), LinkError> {
        Ok(())
    }

    /// Opens a disk of an instance that this node receives, without the blocks before byte `from`.
    async fn fetch_disk(
        &self,
        instance: InstanceId,
        index: u32,
        from: u64,
    ) -> Result<Box<dyn ByteChunks>, LinkError>;

    /// A ticket for a disk of an instance that this node receives, to copy it from the node that has it. Refused if that is not
    /// possible.
    async fn disk_ticket(&self, instance: InstanceId, index: u32) -> Result<DiskTicket, LinkError>;

    /// The encrypted bytes of a bundle, verified against its digest.
    async fn fetch_bundle(&self, bundle: Digest) -> Result<Bytes, LinkError>;

    /// Opens a stream that waifud requested, which is connected to the client.
    async fn stream(&self, id: StreamId) -> Result<Box<dyn ByteStream>, LinkError>;

    /// Reports why a requested stream cannot be opened.
    async fn refuse_stream(&self, id: StreamId, refusal: &StreamRefusal) -> Result<(), LinkError>;
}
