//! Files that hold keys: whole or not at all, also after a crash, and for nobody else to read.

use std::io::ErrorKind;
use std::path::Path;

use crate::PkiError;

/// Writes the file so that after a crash it is either as before or complete. Durable when it returns.
pub fn write_durably(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    waifud_kit::durable::replace(path, text.as_bytes(), mode).map_err(|source| PkiError::File {
        path: path.to_owned(),
        what: "written",
        source,
    })
}

/// The file's text; `None` when there is no such file.
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
