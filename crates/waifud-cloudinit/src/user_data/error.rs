//! Why user-data is refused, and how to correct it.

use waifud_types::spec::limits::USER_DATA_MAX;

use crate::yaml;

/// Why user-data is refused. Never contains its text.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserDataError {
    /// More than 1 MiB.
    #[error("the user-data has {found} bytes; the limit is {USER_DATA_MAX}")]
    TooLong {
        /// Its size in bytes.
        found: u64,
    },
    /// It contains control characters.
    #[error("the user-data is not text: line {line} contains a control character")]
    Binary {
        /// The line, from 1.
        line: usize,
    },
    /// UTF-8 with a byte order mark, after which cloud-init does not recognize the first line.
    #[error(
        "the user-data begins with a byte order mark (BOM), so cloud-init would not recognize its first line"
    )]
    ByteOrderMark,
    /// User-data encoded as base64.
    #[error("the user-data is {what}, encoded as base64; cloud-init would not decode it")]
    Base64 {
        /// The kind of the encoded data.
        what: &'static str,
    },
    /// cloud-init does not recognize the first line.
    #[error("cloud-init does not recognize the first line of the user-data")]
    UnknownKind {
        /// How to correct it.
        hint: &'static str,
    },
    /// YAML that PyYAML does not load.
    #[error("the user-data is not valid YAML at line {line}, column {column}: {reason}")]
    NotYaml {
        /// The line, from 1.
        line: u64,
        /// The column, from 1.
        column: u64,
        /// The error at that place.
        reason: &'static str,
    },
    /// Valid YAML of the wrong type: a list or a single value.
    #[error("the user-data is valid YAML, but not {wanted}")]
    WrongShape {
        /// What this kind of user-data requires.
        wanted: &'static str,
    },
    /// A supported kind of user-data that cloud-init would not use.
    #[error("cloud-init would not use the user-data: line {line}: {reason}")]
    NotUsed {
        /// The line, from 1.
        line: usize,
        /// Why.
        reason: &'static str,
    },
    /// An error in one of several parts.
    #[error("part {number} of the user-data: {error}")]
    Part {
        /// The number of the part, from 1.
        number: usize,
        /// The error; its lines are counted from the beginning of the part.
        error: Box<UserDataError>,
    },
}

impl UserDataError {
    /// A part that cloud-init would not use.
    pub(super) fn of_part(reason: &'static str) -> Self {
        Self::NotUsed { line: 1, reason }
    }

    /// How to correct the user-data.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => {
                "keep it under 1 MiB: fetch large files from it, with #include or a script"
            }
            Self::Binary { .. } => "provide it as text; waifuctl unpacks gzip automatically",
            Self::ByteOrderMark => "save it as UTF-8 without a BOM",
            Self::Base64 { .. } => "decode it first, for example with: base64 -d",
            Self::UnknownKind { hint } => hint,
            Self::NotYaml { .. } => {
                "check the indentation there; a value with ': ' or ' #' needs quotes, and tabs are not indentation"
            }
            Self::WrongShape { .. } => {
                "write keys and values after #cloud-config, for example: packages: [htop]"
            }
            Self::NotUsed { .. } => "see the user-data formats in cloud-init's documentation",
            Self::Part { error, .. } => error.hint(),
        }
    }
}

impl From<yaml::YamlError> for UserDataError {
    fn from(error: yaml::YamlError) -> Self {
        Self::NotYaml {
            line: error.line,
            column: error.column,
            reason: error.reason,
        }
    }
}
