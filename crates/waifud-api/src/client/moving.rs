//! Moving instances between nodes.

use reqwest::Method;

use super::{Client, ClientError};
use crate::{Instance, MoveInstance};

impl Client {
    /// Begins to move an instance to another node, if it has not changed since it was read.
    pub async fn move_instance(
        &self,
        instance: &Instance,
        request: &MoveInstance,
    ) -> Result<Instance, ClientError> {
        self.post_if_unchanged(instance, "move", request).await
    }

    /// Cancels the move of an instance.
    pub async fn cancel_move(&self, name_or_id: &str) -> Result<Instance, ClientError> {
        let path = ["instances", name_or_id, "move"];
        self.json(self.request(Method::DELETE, &path)).await
    }
}
