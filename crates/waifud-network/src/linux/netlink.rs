//! The connection to the kernel's routing netlink, and its errors as text.

use rtnetlink::{Handle, new_connection};

use crate::NetworkError;

/// A handle for requests to the kernel. Its connection ends with the last clone.
pub(super) fn connect(purpose: &str) -> Result<Handle, NetworkError> {
    let (connection, handle, _) = new_connection().map_err(socket_error(purpose))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// An error of the kernel about links, addresses, routes or rules. `what` names the change or the request.
pub(super) fn kernel_error(what: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let what = what.to_owned();
    move |error| NetworkError::Kernel {
        what,
        message: match error {
            rtnetlink::Error::NetlinkError(error) => error.to_io().to_string(),
            other => other.to_string(),
        },
    }
}

/// The error for a socket that could not be opened.
pub(super) fn socket_error(what: &str) -> impl FnOnce(std::io::Error) -> NetworkError {
    let what = what.to_owned();
    move |error| NetworkError::Kernel {
        what,
        message: error.to_string(),
    }
}

/// Sends a request to the kernel and waits for its result.
pub(super) async fn carry_out<T>(
    what: &str,
    request: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, NetworkError> {
    request.await.map_err(kernel_error(what))
}
