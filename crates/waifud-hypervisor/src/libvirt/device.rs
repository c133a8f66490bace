//! Connects to the unix socket of a domain's device.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::{ByteStream, HypervisorError};

/// The time limit for a connection. A working QEMU accepts one sooner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn connect(path: &Path) -> Result<Box<dyn ByteStream>, HypervisorError> {
    const OPERATION: &str = "connect to a device";
    match timeout(CONNECT_TIMEOUT, connect_socket(path)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(HypervisorError::Other {
            operation: OPERATION,
            message: format!("{}: {error}", path.display()),
        }),
        Err(_) => Err(HypervisorError::TimedOut {
            operation: OPERATION,
            after: CONNECT_TIMEOUT,
        }),
    }
}

/// Connects to the socket at this path without following links. QEMU's user owns the directory of screens, so a link
/// there could lead root to another program's socket.
async fn connect_socket(path: &Path) -> std::io::Result<UnixStream> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let entry = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)?;
    if !entry.metadata()?.file_type().is_socket() {
        return Err(std::io::Error::other("it is not a socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", entry.as_raw_fd())).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_socket_is_accepted_and_a_link_to_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let _listener = UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink(at("socket"), at("link")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        assert!(connect(&at("socket")).await.is_ok());
        for bad in ["link", "file", "absent"] {
            assert!(connect(&at(bad)).await.is_err(), "{bad}");
        }
    }
}
