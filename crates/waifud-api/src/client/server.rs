//! The control server itself.

use super::{Client, ClientError};
use crate::server::Server;

impl Client {
    /// Gets the state of waifud itself; `None` if its version does not support this.
    pub async fn server(&self) -> Result<Option<Server>, ClientError> {
        match self.json(self.get(&["server"])).await {
            Ok(server) => Ok(Some(server)),
            Err(ClientError::Problem(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }
}
