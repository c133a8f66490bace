//! Checks user-data before a guest boots: whether cloud-init would use all of it.
//!
//! cloud-init ignores user-data that it cannot read, with a line in the guest's log. So such user-data is refused here,
//! with the place and the reason. Nothing is checked that depends on the guest: what a script does, what a URL returns, or
//! what a template renders to.

use waifud_types::spec::limits::USER_DATA_MAX;

use crate::{user_data_kinds as kinds, user_data_parts as parts, yaml};

/// The kind of user-data, which cloud-init recognises by the first line.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum UserDataKind {
    /// No text, or white space only.
    Empty,
    /// `#cloud-config`: YAML.
    CloudConfig,
    /// `#cloud-config-archive`: a YAML list of parts.
    CloudConfigArchive,
    /// `#cloud-config-jsonp`: a JSON patch of the configuration.
    CloudConfigPatch,
    /// `#!`: a script.
    Script,
    /// `#include` or `#include-once`: URLs of further user-data.
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

/// First lines, a longer one before its own prefix (`INCLUSION_TYPES_MAP` in cloud-init).
const KINDS: [(&str, UserDataKind); 8] = [
    ("#cloud-config-archive", UserDataKind::CloudConfigArchive),
    ("#cloud-config-jsonp", UserDataKind::CloudConfigPatch),
    ("#cloud-config", UserDataKind::CloudConfig),
    ("#cloud-boothook", UserDataKind::Boothook),
    ("#part-handler", UserDataKind::PartHandler),
    ("#include", UserDataKind::Include),
    ("#!", UserDataKind::Script),
    ("## template: jinja", UserDataKind::Jinja),
];

/// cloud-init searches for `MIME-Version:` in this many bytes.
const MIME_WINDOW: usize = 4096;

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
    #[error("the user-data is binary: line {line} has a control character")]
    Binary {
        /// The line, from 1.
        line: usize,
    },
    /// UTF-8 with a byte order mark, after which cloud-init does not recognise the first line.
    #[error(
        "the user-data begins with a byte order mark (BOM), so cloud-init would not recognise its first line"
    )]
    ByteOrderMark,
    /// User-data encoded as base64.
    #[error("the user-data is {what}, encoded as base64; cloud-init would not decode it")]
    Base64 {
        /// The kind of the encoded data.
        what: &'static str,
    },
    /// cloud-init does not recognise the first line.
    #[error("cloud-init does not recognise the first line of the user-data")]
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

/// Checks user-data and returns its kind.
pub fn validate_user_data(text: &str) -> Result<UserDataKind, UserDataError> {
    let found = text.len() as u64;
    if found > USER_DATA_MAX {
        return Err(UserDataError::TooLong { found });
    }
    if text.starts_with('\u{feff}') {
        return Err(UserDataError::ByteOrderMark);
    }
    let binary = |b: u8| b.is_ascii_control() && !matches!(b, b'\t' | b'\n' | b'\r');
    if let Some(at) = text.bytes().position(binary) {
        let line = 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
        return Err(UserDataError::Binary { line });
    }
    let kind = match kind_of(text) {
        Err(UserDataError::UnknownKind { hint }) => {
            return Err(match parts::in_base64(text) {
                Some(what) => UserDataError::Base64 { what },
                None => UserDataError::UnknownKind { hint },
            });
        }
        known => known?,
    };
    check(kind, text)?;
    Ok(kind)
}

/// Checks `text` as user-data of the given kind.
pub(crate) fn check(kind: UserDataKind, text: &str) -> Result<(), UserDataError> {
    match kind {
        UserDataKind::Empty => Ok(()),
        UserDataKind::CloudConfig => cloud_config(text),
        UserDataKind::CloudConfigArchive => parts::archive(text),
        UserDataKind::CloudConfigPatch => kinds::json_patch(text),
        UserDataKind::Script => kinds::script(text, 1),
        UserDataKind::Include => kinds::include(text),
        UserDataKind::Boothook => kinds::boothook(text),
        UserDataKind::PartHandler => kinds::part_handler(text),
        UserDataKind::Jinja => kinds::jinja(text),
        UserDataKind::Mime => parts::mime(text),
    }
}

/// Checks that a text is a YAML mapping, or has comments only.
pub(crate) fn cloud_config(text: &str) -> Result<(), UserDataError> {
    let document = yaml::load(text)?;
    match document.root() {
        None => Ok(()),
        Some(root) if root.is("map") || root.is("null") => Ok(()),
        Some(_) => Err(UserDataError::WrongShape {
            wanted: "a mapping of keys to values",
        }),
    }
}

pub(crate) fn kind_of(text: &str) -> Result<UserDataKind, UserDataError> {
    let start = text.trim_start();
    if start.is_empty() {
        return Ok(UserDataKind::Empty);
    }
    let lower: String = start
        .chars()
        .take(64)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    let mut bytes = text.as_bytes();
    bytes = bytes.get(..MIME_WINDOW).unwrap_or(bytes);
    let mime = bytes
        .to_ascii_lowercase()
        .windows(13)
        .any(|window| window == b"mime-version:");
    let known = KINDS
        .into_iter()
        .find(|(first, _)| lower.starts_with(first));
    match known {
        Some((_, kind)) => Ok(kind),
        None if mime => Ok(UserDataKind::Mime),
        None if lower.starts_with("content-type:") => Err(UserDataError::UnknownKind {
            hint: "add the line MIME-Version: 1.0; without it, cloud-init does not recognise MIME",
        }),
        None => Err(UserDataError::UnknownKind {
            hint: "begin with #cloud-config (YAML), #! (a script), #include, #cloud-boothook, #part-handler, \
                   ## template: jinja, or MIME headers",
        }),
    }
}
