//! Networks: names for bridges that nodes have.

use reqwest::Method;

use super::{Client, ClientError, ListQuery};
use crate::{CreateNetwork, Network, Page};

impl Client {
    /// Adds a network for a bridge that nodes already have.
    pub async fn create_network(&self, request: &CreateNetwork) -> Result<Network, ClientError> {
        self.json(self.request(Method::POST, &["networks"]).json(request))
            .await
    }

    /// Lists networks.
    pub async fn networks(&self, query: &ListQuery) -> Result<Page<Network>, ClientError> {
        self.json(self.get(&["networks"]).query(query)).await
    }

    /// Gets a network.
    pub async fn network(&self, name: &str) -> Result<Network, ClientError> {
        self.json(self.get(&["networks", name])).await
    }

    /// Deletes a network that no instance uses.
    pub async fn delete_network(&self, name: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["networks", name]))
            .await
            .map(drop)
    }
}
