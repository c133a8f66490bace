//! Files that a node may fetch: images and bundles of its own instances.

use std::path::PathBuf;

use waifud_store::NodeRow;
use waifud_types::{Digest, NodeId};

use crate::events::event_builder;
use crate::{Control, ControlError, Peer, problems};

impl Control {
    /// The path of an image file, for a node with an instance of the image.
    pub(crate) async fn image_for(
        &self,
        node: NodeId,
        digest: Digest,
    ) -> Result<PathBuf, ControlError> {
        let allowed = self
            .store()
            .read(move |tx| tx.image_is_on(digest, node))
            .await?;
        if !allowed {
            return Err(problems::not_found("image", &digest.to_string()).into());
        }
        self.images().verified_file(digest).await
    }

    /// Records that a node has got an image from another one.
    pub(crate) async fn record_image_copied(
        &self,
        node: NodeId,
        image: Digest,
        source: NodeId,
        peer: Peer,
        request_id: &str,
    ) -> Result<(), ControlError> {
        let found = self.store().read(move |tx| {
            if !tx.image_is_on(image, node)? {
                return Err(problems::not_found("image", &image.to_string()).into());
            }
            let found = tx.node(node)?.zip(tx.node(source)?);
            let missing = || ControlError::from(problems::not_found("node", &source.to_string()));
            found.ok_or_else(missing)
        });
        let (node, source): (NodeRow, NodeRow) = found.await?;
        self.require_budget(node.id)?;
        let message = format!("image {} was copied from {}", image.short(), source.name);
        let cause = peer.cause_of(&node.name, request_id);
        let object = event_builder::node(node.id, &node.name);
        let event = self.event("node.image-copied", object, &cause, message);
        self.store()
            .write(move |tx| {
                tx.emit(&event)?;
                Ok::<_, ControlError>(())
            })
            .await?;
        self.contacts().charge(node.id, 1);
        Ok(())
    }

    /// The ciphertext of the bundle of one of the node's instances.
    pub(crate) async fn bundle(
        &self,
        node: NodeId,
        digest: Digest,
    ) -> Result<Vec<u8>, ControlError> {
        self.store()
            .read(move |tx| tx.bundle_ciphertext(digest, node))
            .await?
            .ok_or_else(|| problems::not_found("bundle", &digest.to_string()).into())
    }
}
