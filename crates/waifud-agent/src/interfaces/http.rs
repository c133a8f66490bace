//! The link to waifud over HTTP.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::fs::OpenOptions;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use waifud_api::agent::{
    AgentReport, DiskTicket, Hello, ImageCopied, ImageTickets, WatchFrame, WatchStart, Welcome,
};
use waifud_api::agent_client::{AgentClient, AgentClientError, DiskBody, WatchStream};
use waifud_api::stream::{StreamId, StreamRefusal};
use waifud_hypervisor::ByteStream;
use waifud_types::{Digest, InstanceId, Timestamp};

use super::{ByteChunks, ControlLink, Destination, FrameStream, LinkError};
use crate::{Membership, MembershipError};

/// The code of a refusal because this machine is a copy of the node.
const DUPLICATE: &str = "duplicate-node";

/// [`ControlLink`] over [`AgentClient`]. It stores the addresses of the last welcome.
#[derive(Debug)]
pub struct HttpLink {
    client: AgentClient,
    member: Option<Membership>,
}

impl HttpLink {
    /// Wraps a client without I/O.
    pub fn new(client: AgentClient) -> Self {
        Self {
            client,
            member: None,
        }
    }

    /// The link of a node that has joined.
    pub fn of(member: Membership) -> Result<Self, MembershipError> {
        Ok(Self {
            client: member.client()?,
            member: Some(member),
        })
    }
}

#[async_trait]
impl ControlLink for HttpLink {
    fn certificate_until(&self) -> Option<Timestamp> {
        self.member.as_ref()?.certificate_until()
    }

    fn local_address(&self) -> Option<IpAddr> {
        self.client.local_address()
    }

    async fn hello(&self, hello: &Hello) -> Result<Welcome, LinkError> {
        let welcome = self.client.hello(hello).await.map_err(link_error)?;
        self.client.set_addresses(&welcome.addresses);
        if let Some(member) = &self.member
            && let Err(error) = member.learn(&welcome.addresses)
        {
            tracing::warn!(%error, "cannot store waifud's addresses");
        }
        Ok(welcome)
    }

    async fn watch(&self, start: WatchStart) -> Result<Box<dyn FrameStream>, LinkError> {
        let stream = self.client.watch(start).await.map_err(link_error)?;
        Ok(Box::new(HttpFrames(stream)))
    }

    async fn report(&self, report: &AgentReport) -> Result<(), LinkError> {
        self.client.report(report).await.map_err(link_error)
    }

    async fn fetch_image(&self, image: Digest, to: Destination<'_>) -> Result<(), LinkError> {
        let Destination {
            file: path,
            progress,
        } = to;
        let failed = |source: std::io::Error| file_error(path, source);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .await
            .map_err(failed)?;
        let have = file.metadata().await.map_err(failed)?.len();
        let client = &self.client;
        let mut body = match client.image(image, have).await {
            // The file is complete or longer than the image: download it from the beginning.
            Err(error) if error.status() == Some(416) => client.image(image, 0).await,
            other => other,
        }
        .map_err(link_error)?;
        let mut at = body.from();
        file.set_len(at).await.map_err(failed)?;
        file.seek(std::io::SeekFrom::Start(at))
            .await
            .map_err(failed)?;
        progress(at);
        let received = async {
            while let Some(chunk) = body.chunk().await.map_err(link_error)? {
                file.write_all(&chunk).await.map_err(failed)?;
                at += u64::try_from(chunk.len()).unwrap_or(0);
                progress(at);
            }
            Ok(())
        };
        let received = received.await;
        // The data of a failed download is kept for resuming.
        file.sync_all().await.map_err(failed)?;
        received
    }

    async fn fetch_disk(
        &self,
        instance: InstanceId,
        index: u32,
        from: u64,
    ) -> Result<Box<dyn ByteChunks>, LinkError> {
        let disk = self.client.disk(instance, index, from).await;
        Ok(Box::new(HttpDisk(disk.map_err(link_error)?)))
    }

    async fn image_tickets(&self, image: Digest) -> Result<ImageTickets, LinkError> {
        self.client.image_tickets(image).await.map_err(link_error)
    }

    async fn image_copied(&self, image: Digest, copied: ImageCopied) -> Result<(), LinkError> {
        let told = self.client.image_copied(image, copied).await;
        told.map_err(link_error)
    }

    async fn disk_ticket(&self, instance: InstanceId, index: u32) -> Result<DiskTicket, LinkError> {
        let ticket = self.client.disk_ticket(instance, index).await;
        ticket.map_err(link_error)
    }

    async fn fetch_bundle(&self, bundle: Digest) -> Result<Bytes, LinkError> {
        self.client.bundle(bundle).await.map_err(link_error)
    }

    async fn stream(&self, id: StreamId) -> Result<Box<dyn ByteStream>, LinkError> {
        let stream = self.client.stream(id).await.map_err(link_error)?;
        Ok(Box::new(stream))
    }

    async fn refuse_stream(&self, id: StreamId, refusal: &StreamRefusal) -> Result<(), LinkError> {
        let client = &self.client;
        client.refuse_stream(id, refusal).await.map_err(link_error)
    }
}

struct HttpDisk(DiskBody);

#[async_trait]
impl ByteChunks for HttpDisk {
    async fn chunk(&mut self) -> Result<Option<Bytes>, LinkError> {
        self.0.chunk().await.map_err(link_error)
    }
}

struct HttpFrames(WatchStream);

#[async_trait]
impl FrameStream for HttpFrames {
    async fn next(&mut self) -> Result<Option<WatchFrame>, LinkError> {
        self.0.next().await.map_err(link_error)
    }
}

/// An error of a file that is written.
pub(crate) fn file_error(path: &Path, source: std::io::Error) -> LinkError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => LinkError::NoRoom { path },
        _ => LinkError::File { path, source },
    }
}

fn link_error(error: AgentClientError) -> LinkError {
    if error.is_gone() {
        return LinkError::Gone;
    }
    match error {
        AgentClientError::Problem(problem) if problem.code == DUPLICATE => LinkError::Duplicate {
            message: match problem.hint {
                Some(hint) => format!("{} ({hint})", problem.title),
                None => problem.title,
            },
        },
        AgentClientError::Problem(problem) => LinkError::Refused {
            status: problem.status,
            // Only a user can restore the file, so the instance's status shows the hint.
            message: match problem.hint {
                Some(hint) if problem.code == "image-missing" => {
                    format!("{} ({hint})", problem.title)
                }
                _ => problem.title,
            },
        },
        AgentClientError::Unreachable { ref source, .. } => LinkError::Unreachable {
            message: format!("{error}: {source}"),
        },
        other => LinkError::Unreachable {
            message: other.to_string(),
        },
    }
}
