//! The fabric, which connects the guests of different nodes.

use reqwest::Method;

use super::{Client, ClientError};
use crate::{Fabric, SetFabric};

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
}
