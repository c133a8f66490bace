//! Why a port is not applied, and the conversion from errors of the network.

use waifud_network::NetworkError;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct PortError {
    pub message: String,
    /// Whether a retry is unlikely to succeed soon.
    pub lasting: bool,
}

pub(super) fn port_error(error: &NetworkError) -> PortError {
    let lasting = match error {
        NetworkError::Contradiction(_) | NetworkError::Overlap { .. } => true,
        NetworkError::Tool { .. }
        | NetworkError::Kernel { .. }
        | NetworkError::PortTaken { .. }
        | NetworkError::Io { .. } => false,
    };
    PortError {
        message: waifud_kit::error::with_causes(error),
        lasting,
    }
}
