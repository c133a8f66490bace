//! The failure of a step: a message for users, and whether it is likely to last.

use waifud_hypervisor::HypervisorError;
use waifud_storage::StorageError;

use crate::control_link::durable::DurableError;
use crate::images::{ImageError, storage_error};
use crate::interfaces::MetadataError;
use crate::network::port_error::PortError;

/// Why a step failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub message: String,
    /// Whether a retry is unlikely to succeed soon.
    pub lasting: bool,
}

impl Failure {
    pub fn passing(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            lasting: false,
        }
    }

    pub fn lasting(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            lasting: true,
        }
    }
}

impl From<HypervisorError> for Failure {
    fn from(error: HypervisorError) -> Self {
        let lasting = match &error {
            HypervisorError::StartFailed { .. }
            | HypervisorError::NameTaken { .. }
            | HypervisorError::Other { .. } => true,
            HypervisorError::Unreachable { .. }
            | HypervisorError::NotFound(_)
            | HypervisorError::NotRunning(_)
            | HypervisorError::AgentUnresponsive(_)
            | HypervisorError::TimedOut { .. } => false,
        };
        Self {
            message: waifud_kit::error::with_causes(&error),
            lasting,
        }
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        storage_error(&error).into()
    }
}

impl From<ImageError> for Failure {
    fn from(ImageError { message, lasting }: ImageError) -> Self {
        Self { message, lasting }
    }
}

impl From<PortError> for Failure {
    fn from(PortError { message, lasting }: PortError) -> Self {
        Self { message, lasting }
    }
}

impl From<MetadataError> for Failure {
    fn from(error: MetadataError) -> Self {
        let lasting = matches!(error, MetadataError::Refused { .. });
        Self {
            message: error.to_string(),
            lasting,
        }
    }
}

impl From<DurableError> for Failure {
    fn from(error: DurableError) -> Self {
        Self::passing(waifud_kit::error::with_causes(&error))
    }
}
