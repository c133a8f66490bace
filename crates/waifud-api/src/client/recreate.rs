//! Recreating instances whose node was removed.

use super::{Client, ClientError};
use crate::{Instance, RecreateInstance};

impl Client {
    /// Creates an instance again whose node was removed with its disks, if it has not changed since it was read.
    pub async fn recreate_instance(
        &self,
        instance: &Instance,
        request: &RecreateInstance,
    ) -> Result<Instance, ClientError> {
        self.post_if_unchanged(instance, "recreate", request).await
    }
}
