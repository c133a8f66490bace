//! Files that a node may fetch: images and bundles of its own instances.

use std::path::PathBuf;

use waifud_types::{Digest, NodeId};

use crate::{Control, ControlError, problems};

impl Control {
    /// Where the file of an image is, for a node that has an instance made from it.
    pub(crate) async fn image_for(
        &self,
        node: NodeId,
        digest: Digest,
    ) -> Result<PathBuf, ControlError> {
        let may = self
            .shared
            .store
            .read(move |tx| tx.image_is_on(digest, node))
            .await?;
        if !may {
            return Err(problems::not_found("image", &digest.to_string()).into());
        }
        self.image_file(digest).await
    }

    /// The ciphertext of a bundle of one of the node's instances.
    pub(crate) async fn bundle(
        &self,
        node: NodeId,
        digest: Digest,
    ) -> Result<Vec<u8>, ControlError> {
        self.shared
            .store
            .read(move |tx| tx.bundle_ciphertext(digest, node))
            .await?
            .ok_or_else(|| problems::not_found("bundle", &digest.to_string()).into())
    }
}
