//! Errors of a call, before it is known whether the connection was lost or libvirt refused the call.

use virt::error::{Error, ErrorNumber};

use crate::HypervisorError;

/// The maximum length of a message. libvirt quotes QEMU, whose output can be long.
const MESSAGE_MAX: usize = 600;

/// A failure inside a call.
#[derive(Debug)]
pub(super) enum Fault {
    /// libvirt refused or failed.
    Call {
        operation: &'static str,
        error: Error,
    },
    /// A domain of this name did not start.
    Start { name: String, error: Error },
    /// An error that is already complete.
    Known(HypervisorError),
}

impl Fault {
    /// Converts it into an error of the interface. `connected` is whether the connection was still open after the call.
    pub(super) fn into_error(self, uri: &str, connected: bool) -> HypervisorError {
        match self {
            Self::Known(error) => error,
            Self::Call { error, .. } | Self::Start { error, .. } if !connected => {
                unreachable_at(uri, &error)
            }
            Self::Call { operation, error } => HypervisorError::Other {
                operation,
                message: message(&error),
            },
            Self::Start { name, error } => HypervisorError::StartFailed {
                name,
                message: message(&error),
            },
        }
    }
}

impl From<HypervisorError> for Fault {
    fn from(error: HypervisorError) -> Self {
        Self::Known(error)
    }
}

pub(super) fn unreachable_at(uri: &str, error: &Error) -> HypervisorError {
    HypervisorError::Unreachable {
        uri: uri.to_owned(),
        message: message(error),
    }
}

/// libvirt's message on one line, truncated.
pub(super) fn message(error: &Error) -> String {
    let words = error.message().split_whitespace().collect::<Vec<_>>();
    with_remedy(words.join(" ").chars().take(MESSAGE_MAX).collect())
}

/// Adds a remedy that libvirt does not mention: UEFI guests need the package ovmf.
fn with_remedy(message: String) -> String {
    if message.contains("find any firmware") {
        return format!("{message}; UEFI guests need OVMF: install the package ovmf on the node");
    }
    message
}

/// Adds the operation to an error.
pub(super) trait At<T> {
    fn at(self, operation: &'static str) -> Result<T, Fault>;

    /// Like `at`, but returns `None` if the domain does not exist.
    fn unless_gone(self, operation: &'static str) -> Result<Option<T>, Fault>;
}

impl<T> At<T> for Result<T, Error> {
    fn at(self, operation: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::Call { operation, error })
    }

    fn unless_gone(self, operation: &'static str) -> Result<Option<T>, Fault> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.code() == ErrorNumber::NoDomain => Ok(None),
            Err(error) => Err(Fault::Call { operation, error }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::with_remedy;

    #[test]
    fn the_error_for_missing_uefi_firmware_names_the_package() {
        // The message of libvirt 9.
        let message = with_remedy(
            "operation failed: Unable to find any firmware to satisfy 'efi'".to_owned(),
        );
        assert!(
            message.ends_with("install the package ovmf on the node"),
            "{message}"
        );
        assert_eq!(with_remedy("no space left".to_owned()), "no space left");
    }
}
