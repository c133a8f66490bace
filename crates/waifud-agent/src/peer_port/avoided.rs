//! Instances whose disks are not fetched directly for a while, since that has just failed.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;
use waifud_kit::sync::lock;
use waifud_types::InstanceId;

/// After a direct transfer that has failed without progress, the instance's disks go through waifud for this long.
const AVOID: Duration = Duration::from_mins(1);

/// The instances whose disks are not fetched directly for now.
#[derive(Debug, Default)]
pub(crate) struct AvoidedPaths(Mutex<HashMap<InstanceId, Instant>>);

impl AvoidedPaths {
    /// A direct transfer has failed in a way that another one may, too.
    pub fn avoid(&self, instance: InstanceId) {
        lock(&self.0).insert(instance, Instant::now() + AVOID);
    }

    /// Whether the disks of the instance go through waifud for now.
    pub(super) fn is_avoided(&self, instance: InstanceId) -> bool {
        let now = Instant::now();
        let mut all = lock(&self.0);
        all.retain(|_, until| now < *until);
        all.contains_key(&instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_instance_is_avoided_for_a_minute() {
        let (web, db) = (InstanceId::generate(), InstanceId::generate());
        let paths = AvoidedPaths::default();
        paths.avoid(web);
        assert!(paths.is_avoided(web) && !paths.is_avoided(db));
        tokio::time::advance(AVOID).await;
        assert!(!paths.is_avoided(web));
    }
}
