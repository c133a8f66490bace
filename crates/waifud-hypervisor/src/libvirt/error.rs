//! What can go wrong in a call, before it is known whether the connection or the call was at fault.

use virt::error::{Error, ErrorNumber};

use crate::HypervisorError;

/// libvirt quotes QEMU, which can be lengthy.
const MESSAGE_MAX: usize = 600;

/// A failure inside a call.
#[derive(Debug)]
pub(super) enum Fault {
    /// libvirt refused or failed.
    Call { what: &'static str, error: Error },
    /// A domain of this name did not start.
    Start { name: String, error: Error },
    /// It is clear already what to say.
    Known(HypervisorError),
}

impl Fault {
    /// In the words of the interface. `connected` tells whether the connection still stood after the call.
    pub(super) fn into_error(self, uri: &str, connected: bool) -> HypervisorError {
        match self {
            Self::Known(error) => error,
            Self::Call { error, .. } | Self::Start { error, .. } if !connected => {
                unreachable_at(uri, &error)
            }
            Self::Call { what, error } => HypervisorError::Other {
                what,
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

/// libvirt's words on one line, shortened.
pub(super) fn message(error: &Error) -> String {
    let words = error.message().split_whitespace().collect::<Vec<_>>();
    explained(words.join(" ").chars().take(MESSAGE_MAX).collect())
}

/// With what libvirt leaves out: a node that has no UEFI firmware.
fn explained(words: String) -> String {
    if words.contains("find any firmware") {
        return format!("{words}; UEFI guests need OVMF: install the package ovmf on the node");
    }
    words
}

/// Adds which call it was.
pub(super) trait At<T> {
    fn at(self, what: &'static str) -> Result<T, Fault>;

    /// As `at`, with `None` when there is no such domain (any more).
    fn unless_gone(self, what: &'static str) -> Result<Option<T>, Fault>;
}

impl<T> At<T> for Result<T, Error> {
    fn at(self, what: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::Call { what, error })
    }

    fn unless_gone(self, what: &'static str) -> Result<Option<T>, Fault> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.code() == ErrorNumber::NoDomain => Ok(None),
            Err(error) => Err(Fault::Call { what, error }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::explained;

    #[test]
    fn a_node_without_uefi_firmware_is_told_what_to_install() {
        // As libvirt 9 says it.
        let told =
            explained("operation failed: Unable to find any firmware to satisfy 'efi'".to_owned());
        assert!(
            told.ends_with("install the package ovmf on the node"),
            "{told}"
        );
        assert_eq!(explained("no space left".to_owned()), "no space left");
    }
}
