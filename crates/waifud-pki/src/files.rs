//! Files that contain keys: complete or absent, also after a crash, and readable by their owner only.

use std::io::ErrorKind;
use std::path::Path;

use crate::PkiError;

/// Replaces the file durably: after a crash it has its old contents or the new ones.
pub fn write_durably(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    waifud_kit::durable::replace(path, text.as_bytes(), mode).map_err(|source| PkiError::File {
        path: path.to_owned(),
        what: "written",
        source,
    })
}

/// The text of the file; `None` if the file does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File {
            path: path.to_owned(),
            what: "read",
            source,
        }),
    }
}
