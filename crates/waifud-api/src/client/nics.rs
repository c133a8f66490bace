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
        self.post_if_unchanged(instance, "nics", nic).await
    }

    /// Removes a nic, named by its name or MAC address, from an instance.
    pub async fn remove_nic(&self, name_or_id: &str, nic: &str) -> Result<Instance, ClientError> {
        let path = ["instances", name_or_id, "nics", nic];
        self.json(self.request(Method::DELETE, &path)).await
    }
}
