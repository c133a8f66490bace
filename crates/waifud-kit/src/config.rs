//! Reading a TOML configuration file.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// The configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file exists and cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not valid TOML, or has an unknown key or a value of the wrong type.
    #[error("invalid configuration file {path}, line {line}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line of the mistake, counted from 1.
        line: usize,
        /// The mistake. Quotes no line of the file, which may hold secrets.
        message: String,
    },
}

/// Reads and parses the file. Returns `None` if it does not exist.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Parses the text of the file at `path`. The path is only used in errors.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let before = text.bytes().take(error.span().map_or(0, |span| span.start));
        let line = before.filter(|byte| *byte == b'\n').count() + 1;
        let message = error.message();
        ConfigError::Invalid {
            path: path.to_owned(),
            line,
            message: match key(text.lines().nth(line - 1)) {
                Some(key) if !message.contains(key) => format!("{key}: {message}"),
                _ => message.to_owned(),
            },
        }
    })
}

/// The key that a line sets.
fn key(line: Option<&str>) -> Option<&str> {
    let (key, _value) = line?.split_once('=')?;
    let key = key.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (!key.is_empty() && key.chars().all(plain)).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::temp_path;

    #[derive(Debug, PartialEq, Eq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        port: u16,
    }

    fn load_text(text: &str) -> Result<Option<Settings>, String> {
        let (_directory, path) = temp_path("settings.toml");
        std::fs::write(&path, text).unwrap();
        load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_is_parsed_and_a_missing_one_is_none() {
        assert_eq!(load_text("port = 80"), Ok(Some(Settings { port: 80 })));
        let missing = load::<Settings>(Path::new("/nonexistent/settings.toml"));
        assert_eq!(missing.unwrap(), None);
    }

    #[test]
    fn a_mistake_is_reported_with_its_line_and_key_and_without_the_value() {
        let unknown = load_text("\nprot = \"geheim\"").unwrap_err();
        assert!(
            unknown.contains("line 2: unknown field `prot`"),
            "{unknown}"
        );
        assert!(!unknown.contains("geheim"), "{unknown}");
        let wrong_type = load_text("port = \"geheim\"").unwrap_err();
        assert!(wrong_type.contains("line 1: port: "), "{wrong_type}");
        assert!(load_text("port = ").unwrap_err().contains("line 1"));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error() {
        let error = load::<Settings>(Path::new("/")).unwrap_err();
        assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    }
}
