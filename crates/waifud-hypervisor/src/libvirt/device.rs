//! Connects to the unix socket of a domain's device.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::{ByteStream, HypervisorError};

/// Longer than a QEMU that lives takes to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn connect(path: &Path) -> Result<Box<dyn ByteStream>, HypervisorError> {
    const WHAT: &str = "connecting to a device";
    match timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(HypervisorError::Other {
            what: WHAT,
            message: format!("{}: {error}", path.display()),
        }),
        Err(_) => Err(HypervisorError::TimedOut {
            what: WHAT,
            after: CONNECT_TIMEOUT,
        }),
    }
}
