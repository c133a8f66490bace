//! What nodes ask for: hello, their slice, their reports, images and bundles.

mod budget;
mod conditions;
mod hello;
mod report;
mod slice;

pub use budget::Budget;
pub use slice::SliceWatch;

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
