//! Contexts: the URL, CA and token of each waifud. One file, readable by its owner only.
//!
//! `$XDG_CONFIG_HOME/waifud/contexts.toml`, else `~/.config/waifud/contexts.toml`:
//!
//! ```toml
//! current = "home"
//!
//! [contexts.home]
//! url = "https://waifud.lan:7373"
//! ca = """-----BEGIN CERTIFICATE-----…"""
//! token = "waifud_…"
//! ```

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use waifud_api::ServerUrl;
use waifud_kit::durable::Replacement;
use waifud_types::{Name, Secret};

use crate::failure::Failure;

/// The context for the socket of this machine; it is not in the file.
pub const LOCAL: &str = "local";

/// A context.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// URL of waifud.
    pub url: ServerUrl,
    /// Certificate of its CA in PEM.
    pub ca: String,
    /// The token.
    pub token: Secret<String>,
}

/// All contexts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The current context; `None` for the socket of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Name>,
    /// Contexts by name.
    #[serde(default)]
    pub contexts: BTreeMap<Name, Entry>,
}

/// Path of the file; `None` without a home directory.
pub fn path() -> Option<PathBuf> {
    let dir = |key| {
        std::env::var_os(key)
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
    };
    let config = dir("XDG_CONFIG_HOME").or_else(|| dir("HOME").map(|home| home.join(".config")))?;
    Some(config.join("waifud").join("contexts.toml"))
}

impl Contexts {
    /// Reads the file; a missing file has no contexts. A file that other users can read is refused, since it contains
    /// tokens.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let unreadable = |e: std::io::Error| {
            Failure::input(
                "contexts-unreadable",
                format!("cannot read {}", path.display()),
            )
            .cause(&e)
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            // HOME may belong to another user, for example after `sudo -u`: its contexts do not belong to this user.
            Err(error)
                if error.kind() == ErrorKind::PermissionDenied
                    && std::fs::symlink_metadata(path).is_err() =>
            {
                return Ok(Self::default());
            }
            Err(error) => return Err(unreadable(error)),
        };
        let mode = std::fs::metadata(path)
            .map_err(unreadable)?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(Failure::input(
                "contexts-exposed",
                format!(
                    "{} contains tokens but is readable by other users",
                    path.display()
                ),
            )
            .hint(format!(
                "chmod 600 {}; if other users may have read it, revoke its tokens",
                path.display()
            )));
        }
        // The error of toml quotes the line, which may contain a token.
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                text.bytes()
                    .take(span.start)
                    .filter(|b| *b == b'\n')
                    .count()
                    + 1
            });
            Failure::input(
                "contexts-broken",
                format!("cannot parse {} at line {line}", path.display()),
            )
            .hint("fix that line, or move the file away and log in again: waifuctl login URL")
        })
    }

    /// Writes the file atomically, readable by its owner only.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = toml::to_string(self).map_err(|_| {
            Failure::internal("contexts-unwritable", "cannot serialize the contexts")
        })?;
        write(path, &text).map_err(|e| {
            Failure::input(
                "contexts-unwritable",
                format!("cannot write {}", path.display()),
            )
            .cause(&e)
        })
    }

    /// Gets a context by name.
    pub fn get(&self, name: &Name) -> Result<&Entry, Failure> {
        self.contexts.get(name).ok_or_else(|| {
            Failure::input("unknown-context", format!("context {name} does not exist"))
                .field("--context")
                .hint("waifuctl context list lists contexts; waifuctl login URL creates one")
        })
    }
}

/// Replaces the file atomically. The draft is named after the process, since several can write at the same time.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let draft = path.with_extension(format!("toml.{}", std::process::id()));
    Replacement::of(path).draft(draft).write(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Contexts {
        let entry = Entry {
            url: "https://waifud.lan:7373".parse().unwrap(),
            ca: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            token: "waifud_hunter2".to_owned().into(),
        };
        Contexts {
            current: Some("home".parse().unwrap()),
            contexts: [("home".parse().unwrap(), entry)].into(),
        }
    }

    #[test]
    fn saved_contexts_are_loaded_again_and_only_the_owner_can_read_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waifud/contexts.toml");
        assert!(Contexts::load(&path).unwrap().contexts.is_empty());
        one().save(&path).unwrap();
        one().save(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
        let read = Contexts::load(&path).unwrap();
        let name = read.current.clone().unwrap();
        assert_eq!(read.get(&name).unwrap().token.expose(), "waifud_hunter2");
        assert!(!format!("{read:?}").contains("hunter2"));
        assert!(read.get(&"other".parse().unwrap()).is_err());
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_broken_is_refused_without_its_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("contexts.toml");
        one().save(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let failure = Contexts::load(&path).unwrap_err();
        assert!(format!("{failure:?}").contains("contexts-exposed"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "[contexts.home]\ntoken = waifud_hunter2\n").unwrap();
        let failure = Contexts::load(&path).unwrap_err();
        let said = format!("{failure:?}");
        assert!(
            said.contains("line 2") && !said.contains("hunter2"),
            "{said}"
        );
    }
}
