//! Routes for commands of the guest agent.

use std::time::Duration;

use reqwest::Method;

use super::{Client, ClientError};
use crate::guest_command::{EXEC_TIMEOUT_DEFAULT, ExecRequest, ExecResult, SetPassword};

/// Time for waifud and the node in addition to the program's timeout.
const SLACK: Duration = Duration::from_secs(90);

impl Client {
    /// Runs a program in a guest. The request is not repeated if the connection breaks, since the program may have
    /// run.
    pub async fn exec(&self, name: &str, request: &ExecRequest) -> Result<ExecResult, ClientError> {
        let seconds = request.timeout_s.unwrap_or(EXEC_TIMEOUT_DEFAULT);
        let call = self
            .timeless(Method::POST, &["instances", name, "exec"])
            .timeout(Duration::from_secs(seconds.into()) + SLACK)
            .json(request);
        self.json(call).await
    }

    /// Sets the password of a user in a guest.
    pub async fn set_password(&self, name: &str, request: &SetPassword) -> Result<(), ClientError> {
        let call = self
            .timeless(Method::PUT, &["instances", name, "password"])
            .timeout(SLACK)
            .json(request);
        self.send(call).await.map(drop)
    }
}
