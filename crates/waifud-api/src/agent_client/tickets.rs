//! Tickets, with which a node copies disks and images from other nodes.

use bytes::Bytes;
use hyper::Method;
use waifud_types::{Digest, InstanceId};

use super::{ANSWER_MAX, AgentClient, AgentClientError, body};
use crate::agent::{DiskTicket, ImageCopied, ImageTickets};

impl AgentClient {
    /// Requests a ticket for a disk of an instance that the node receives, to copy it from the node that has it.
    pub async fn disk_ticket(
        &self,
        instance: InstanceId,
        index: u32,
    ) -> Result<DiskTicket, AgentClientError> {
        let path = format!("/v1/agent/moves/{instance}/disks/{index}/ticket");
        let open = self.open(Method::POST, &path, Bytes::new(), None).await?;
        self.json(open).await
    }

    /// Requests tickets for an image, to copy it from nodes that have it.
    pub async fn image_tickets(&self, image: Digest) -> Result<ImageTickets, AgentClientError> {
        let path = format!("/v1/agent/images/{image}/tickets");
        let open = self.open(Method::POST, &path, Bytes::new(), None).await?;
        self.json(open).await
    }

    /// Tells waifud which node has sent an image.
    pub async fn image_copied(
        &self,
        image: Digest,
        copied: ImageCopied,
    ) -> Result<(), AgentClientError> {
        let path = format!("/v1/agent/images/{image}/copied");
        let open = self.open(Method::POST, &path, body(&copied)?, None).await?;
        self.collect(open, ANSWER_MAX).await.map(drop)
    }
}
