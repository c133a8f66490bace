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
        let path = ["instances", &instance.id.to_string(), "move"];
        let request = self
            .request(Method::POST, &path)
            .header("if-match", format!("\"{}\"", instance.generation))
            .json(request);
        self.json(request).await
    }

    /// Cancels the move of an instance.
    pub async fn cancel_move(&self, name_or_id: &str) -> Result<Instance, ClientError> {
        let path = ["instances", name_or_id, "move"];
        self.json(self.request(Method::DELETE, &path)).await
    }
}
