//! The fabric, which connects the guests of different nodes.

use reqwest::Method;

use super::{Client, ClientError};
use crate::{CreateFabricClient, Fabric, FabricClient, FabricClientConfig, Page, SetFabric};

impl Client {
    /// Gets the fabric.
    pub async fn fabric(&self) -> Result<Fabric, ClientError> {
        self.json(self.get(&["fabric"])).await
    }

    /// Chooses the fabric.
    pub async fn set_fabric(&self, request: &SetFabric) -> Result<Fabric, ClientError> {
        self.json(self.request(Method::PUT, &["fabric"]).json(request))
            .await
    }

    /// Adds a client of the fabric.
    pub async fn create_fabric_client(
        &self,
        request: &CreateFabricClient,
    ) -> Result<FabricClientConfig, ClientError> {
        let post = self.request(Method::POST, &["fabric", "clients"]);
        self.json(post.json(request)).await
    }

    /// Lists the clients of the fabric, which are on one page.
    pub async fn fabric_clients(&self) -> Result<Page<FabricClient>, ClientError> {
        self.json(self.get(&["fabric", "clients"])).await
    }

    /// Gets what a client needs for its configuration.
    pub async fn fabric_client(&self, name: &str) -> Result<FabricClientConfig, ClientError> {
        self.json(self.get(&["fabric", "clients", name])).await
    }

    /// Removes a client of the fabric.
    pub async fn delete_fabric_client(&self, name: &str) -> Result<(), ClientError> {
        let delete = self.request(Method::DELETE, &["fabric", "clients", name]);
        self.send(delete).await.map(drop)
    }
}
