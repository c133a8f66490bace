//! Names of instances for machines that are not guests.

use super::{Client, ClientError};
use crate::Dns;

impl Client {
    /// Gets what a resolver needs to know.
    pub async fn dns(&self) -> Result<Dns, ClientError> {
        self.json(self.get(&["dns"])).await
    }
}
