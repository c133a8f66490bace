//! The section `[backup]` of the configuration file: the regular backups of `waifud-backup.service`.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use super::regular::{EVERY_MIN, Plan};
use crate::config::DEFAULT_PATH;
use crate::duration::duration;

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
        self.plan().map(drop)
    }

    /// The backups to make, unless there is no directory for them.
    fn plan(&self) -> Result<Option<Plan>, String> {
        if self.to.is_empty() {
            return Ok(None);
        }
        let target = self
            .to
            .parse()
            .map_err(|error| format!("backup.to: {error}"))?;
        Ok(Some(Plan {
            target,
            every: Some(self.every),
            keep: (self.keep > 0).then_some(self.keep),
            with_images: self.with_images,
        }))
    }

    /// The backups to make.
    ///
    /// # Errors
    /// The settings name no directory. `file` is the configuration file.
    pub fn required(&self, file: Option<&Path>) -> anyhow::Result<Plan> {
        let plan = self.plan().map_err(anyhow::Error::msg)?;
        let file = file.unwrap_or_else(|| Path::new(DEFAULT_PATH));
        plan.with_context(|| {
            format!(
                "there are no regular backups: set `to` in section [backup] of {}, for example to = \
                 \"backup@birch.lan:/srv/backup\", and run systemctl restart waifud-backup",
                file.display()
            )
        })
    }
}
