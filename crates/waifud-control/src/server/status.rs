//! The state of waifud itself, as `GET /v1/server` shows it.

use waifud_api::{BackupState, Database, Server};

use crate::{Control, ControlError};

impl Control {
    /// waifud's version, database, state directory and certificates.
    pub async fn server(&self) -> Result<Server, ControlError> {
        Ok(Server {
            database: self.database().await?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now: self.now(),
            state_dir: self.disk_space().directory(self.now())?,
            certificates: self.certificates()?,
            redis: self.redis_state(),
            backup: self.backup_state().await,
        })
    }

    /// What `waifud backup --to` has written about its last attempt.
    async fn backup_state(&self) -> Option<BackupState> {
        let file = self.disk_space().dir().join(BackupState::FILE);
        let text = tokio::fs::read(&file).await.ok()?;
        serde_json::from_slice(&text)
            .inspect_err(|error| tracing::warn!(file = %file.display(), %error, "invalid file"))
            .ok()
    }

    /// Whether the database can be written.
    pub(crate) async fn database(&self) -> Result<Database, ControlError> {
        let store = self.store().clone();
        let trouble = tokio::task::spawn_blocking(move || store.write_error()).await;
        trouble
            .map(|trouble| Database { trouble })
            .map_err(|_| ControlError::Inconsistent("checking the database failed".to_owned()))
    }
}
