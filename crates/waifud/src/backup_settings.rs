//! The section `[backup]` of the configuration file: the regular backups of `waifud-backup.service`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::duration::duration;

/// The shortest time between two backups.
pub const EVERY_MIN: Duration = Duration::from_mins(1);

/// The settings.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackupSettings {
    /// `DIR`, or `[USER@]HOST:DIR` for SSH; empty for no regular backups.
    pub to: String,
    /// The time between two backups.
    #[serde(deserialize_with = "duration")]
    pub every: Duration,
    /// How many backups are kept; 0 for all.
    pub keep: u32,
    /// Whether they include the image files.
    pub with_images: bool,
}

impl Default for BackupSettings {
    fn default() -> Self {
        Self {
            to: String::new(),
            every: Duration::from_mins(15),
            keep: 96,
            with_images: false,
        }
    }
}

impl BackupSettings {
    /// Refuses invalid values.
    pub fn check(&self) -> Result<(), String> {
        if self.every < EVERY_MIN {
            return Err("backup.every: use at least 1m".to_owned());
        }
        if self.to.is_empty() && *self != Self::default() {
            return Err(
                "backup.to is missing; without regular backups, remove the section [backup]"
                    .to_owned(),
            );
        }
        self.target().map(drop)
    }

    /// Where the backups are written to; `None` if there are none.
    pub fn target(&self) -> Result<Option<Target>, String> {
        if self.to.is_empty() {
            return Ok(None);
        }
        let target = self.to.parse();
        target
            .map(Some)
            .map_err(|error: String| format!("backup.to: {error}"))
    }
}

/// Where backups are written to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A directory of another machine.
    Ssh {
        /// `HOST` or `USER@HOST`, as for ssh.
        host: String,
        /// The directory there.
        dir: String,
    },
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let remote = text.split_once(':').filter(|(host, _)| !host.contains('/'));
        let Some((host, dir)) = remote else {
            return Ok(Self::Directory(PathBuf::from(text)));
        };
        // Both become parts of a command.
        let is_host = |c: char| c.is_ascii_alphanumeric() || ".-_@".contains(c);
        let is_dir = |c: char| c.is_ascii_alphanumeric() || ".-_/".contains(c);
        if host.is_empty() || host.starts_with('-') || !host.chars().all(is_host) {
            return Err(format!(
                "invalid host {host:?}: use DIR, or [USER@]HOST:DIR for SSH"
            ));
        }
        if dir.is_empty() || dir.starts_with('-') || !dir.chars().all(is_dir) {
            return Err(format!(
                "invalid directory {dir:?}: over SSH it may have letters, digits, and . - _ / only"
            ));
        }
        Ok(Self::Ssh {
            host: host.to_owned(),
            dir: dir.trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(dir) => dir.display().fmt(f),
            Self::Ssh { host, dir } => write!(f, "{host}:{dir}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_directory_or_a_host_with_one() {
        let directory = |text: &str| Ok(Target::Directory(PathBuf::from(text)));
        for text in ["/srv/backup", "backup", "./a:b", "/a:b"] {
            assert_eq!(text.parse(), directory(text));
        }
        let remote: Target = "me@birch.lan:/srv/backup/".parse().unwrap();
        assert_eq!(remote.to_string(), "me@birch.lan:/srv/backup");
        for bad in [
            "-oProxyCommand=x:/a",
            ":/a",
            "birch:",
            "birch:-rf",
            "birch:/a b",
            "birch:/a;rm",
            "bi$rch:/a",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
