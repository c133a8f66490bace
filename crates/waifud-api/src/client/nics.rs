//! Nics of instances.

use reqwest::Method;

use super::{Client, ClientError};
use crate::{CreateNic, Instance};

impl Client {
    /// Adds a nic to an instance, if it has not changed since it was read.
    pub async fn add_nic(
        &self,
        instance: &Instance,
        nic: &CreateNic,
    ) -> Result<Instance, ClientError> {
        let path = ["instances", &instance.id.to_string(), "nics"];
        let request = self
            .request(Method::POST, &path)
            .header("if-match", format!("\"{}\"", instance.generation))
            .json(nic);
        self.json(request).await
    }

    /// Removes a nic, named by its name or MAC address, from an instance.
    pub async fn remove_nic(&self, name_or_id: &str, nic: &str) -> Result<Instance, ClientError> {
        let path = ["instances", name_or_id, "nics", nic];
        self.json(self.request(Method::DELETE, &path)).await
    }
}
