//! Recreating instances whose node was removed.

use reqwest::Method;

use super::{Client, ClientError};
use crate::{Instance, RecreateInstance};

impl Client {
    /// Creates an instance again whose node was removed with its disks, if it has not changed since it was read.
    pub async fn recreate_instance(
        &self,
        instance: &Instance,
        request: &RecreateInstance,
    ) -> Result<Instance, ClientError> {
        let path = ["instances", &instance.id.to_string(), "recreate"];
        let request = self
            .request(Method::POST, &path)
            .header("if-match", format!("\"{}\"", instance.generation))
            .json(request);
        self.json(request).await
    }
}
