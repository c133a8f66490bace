//! The kinds of user-data, and how cloud-init recognizes them.

use super::error::UserDataError;

/// The kind of user-data, which cloud-init recognizes by the first line.
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

/// The kind of user-data by its first line or its MIME headers.
pub(super) fn kind_of(text: &str) -> Result<UserDataKind, UserDataError> {
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
            hint: "add the line MIME-Version: 1.0; without it, cloud-init does not recognize MIME",
        }),
        None => Err(UserDataError::UnknownKind {
            hint: "begin with #cloud-config (YAML), #! (a script), #include, #cloud-boothook, #part-handler, \
                   ## template: jinja, or MIME headers",
        }),
    }
}
