//! What nodes ask for: hello, their slice, their reports, images and bundles.

mod hello;
mod report;
mod slice;

pub use slice::SliceWatch;

use waifud_types::{Digest, NodeId};

use crate::{Control, ControlError, problems};

impl Control {
    /// The node that a request comes from. On the local socket of a single-node cluster it need not say so.
    pub(crate) async fn asking_node(&self, named: Option<NodeId>) -> Result<NodeId, ControlError> {
        let found = self
            .shared
            .store
            .read(move |tx| match named {
                Some(id) => tx.node(id).map(|row| row.map(|row| row.id)),
                None => tx.nodes("", 2).map(|rows| match rows.as_slice() {
                    [only] => Some(only.id),
                    _ => None,
                }),
            })
            .await?;
        found.ok_or_else(|| problems::unknown_node().into())
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
