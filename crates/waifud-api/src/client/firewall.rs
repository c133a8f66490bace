//! The firewall of an instance.

use super::{Client, ClientError};
use crate::InstanceFirewall;

impl Client {
    /// Gets the firewall of an instance, with the packets counted.
    pub async fn firewall(&self, instance: &str) -> Result<InstanceFirewall, ClientError> {
        self.json(self.get(&["instances", instance, "firewall"]))
            .await
    }
}
