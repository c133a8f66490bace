//! Files that a node may fetch: images and bundles of its own instances.

use std::path::PathBuf;

use waifud_types::{Digest, NodeId};

use crate::{Control, ControlError, problems};

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
