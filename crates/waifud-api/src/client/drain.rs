//! Requests to drain nodes.

use reqwest::Method;

use super::{Client, ClientError};
use crate::{Drain, DrainNode};

impl Client {
    /// What is left of a drain, or what draining the node would do.
    pub async fn drain(&self, name_or_id: &str, new_address: bool) -> Result<Drain, ClientError> {
        let mut request = self.get(&["nodes", name_or_id, "drain"]);
        if new_address {
            request = request.query(&[("new_address", "true")]);
        }
        self.json(request).await
    }

    /// Drains a node.
    pub async fn drain_node(
        &self,
        name_or_id: &str,
        request: &DrainNode,
    ) -> Result<Drain, ClientError> {
        let path = ["nodes", name_or_id, "drain"];
        self.json(self.request(Method::POST, &path).json(request))
            .await
    }

    /// Ends the drain of a node.
    pub async fn cancel_drain(&self, name_or_id: &str) -> Result<Drain, ClientError> {
        let path = ["nodes", name_or_id, "drain"];
        self.json(self.request(Method::DELETE, &path)).await
    }
}
