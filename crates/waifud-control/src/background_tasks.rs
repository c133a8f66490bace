//! The tasks that run for as long as waifud does: node monitoring, disk space, trimming the history, retrying placement, Redis.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::{Control, ControlError};

const TRIM_INTERVAL: Duration = Duration::from_mins(10);
/// Reading the free space of a filesystem is one system call.
const DISK_SPACE_INTERVAL: Duration = Duration::from_secs(2);
/// Waiting instances are tried again this often even if nothing was freed.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

impl Control {
    /// Runs the background tasks until waifud stops.
    pub async fn run_background_tasks(&self) -> Result<(), ControlError> {
        self.expect_reachable_nodes().await?;
        tokio::join!(
            self.run_checks(),
            self.run_placement_retry(),
            self.run_redis()
        );
        Ok(())
    }

    async fn run_placement_retry(&self) {
        let mut timer = interval(RETRY_INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut thorough = true;
        loop {
            tokio::select! {
                () = self.stop_token().cancelled() => return,
                () = self.retry_queue().requested() => {}
                _ = timer.tick() => {}
            }
            let done = tokio::select! {
                () = self.stop_token().cancelled() => return,
                done = self.retry_all(thorough) => done,
            };
            match done {
                Ok(()) => thorough = false,
                Err(error) if error.is_disk_full() => {
                    tracing::debug!(%error, "not enough disk space to place waiting instances");
                }
                Err(error) => {
                    tracing::error!(%error, "placing waiting instances failed; retrying later");
                }
            }
        }
    }

    async fn retry_all(&self, thorough: bool) -> Result<(), ControlError> {
        self.retry_waiting(thorough).await?;
        self.advance_moves().await?;
        self.continue_drains().await
    }

    async fn run_checks(&self) {
        let contact_interval = (self.config().unreachable_after / 4)
            .clamp(Duration::from_millis(50), Duration::from_secs(1));
        let mut contacts = interval(contact_interval);
        let mut disk_space = interval(DISK_SPACE_INTERVAL);
        let mut trim = interval(TRIM_INTERVAL);
        loop {
            let done = tokio::select! {
                () = self.stop_token().cancelled() => return,
                _ = contacts.tick() => self.check_contacts().await,
                _ = disk_space.tick() => self.check_disk_space().await,
                _ = trim.tick() => self.trim().await,
            };
            match done {
                Ok(()) => {}
                // The store has logged it once; each tick would log it again.
                Err(error) if error.is_disk_full() => {
                    tracing::debug!(%error, "not enough disk space to record an observation");
                }
                Err(error) => {
                    tracing::error!(%error, "a background check failed; retrying later");
                }
            }
        }
    }
}
