//! Instances whose disks, and nodes whose images, are not fetched directly for a while, since that has just failed.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;
use waifud_kit::sync::lock;

/// After a direct transfer that has failed without progress, waifud is preferred for this long.
const AVOID: Duration = Duration::from_mins(1);

/// What is not fetched directly for now: instances, or nodes.
#[derive(Debug)]
pub(crate) struct Avoided<K>(Mutex<HashMap<K, Instant>>);

impl<K> Default for Avoided<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Avoided<K> {
    /// A direct transfer has failed in a way that another one may, too.
    pub fn avoid(&self, key: K) {
        lock(&self.0).insert(key, Instant::now() + AVOID);
    }

    /// Whether the direct path is avoided for now.
    pub(super) fn is_avoided(&self, key: &K) -> bool {
        let now = Instant::now();
        let mut all = lock(&self.0);
        all.retain(|_, until| now < *until);
        all.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use waifud_types::InstanceId;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_instance_is_avoided_for_a_minute() {
        let (web, db) = (InstanceId::generate(), InstanceId::generate());
        let paths = Avoided::default();
        paths.avoid(web);
        assert!(paths.is_avoided(&web) && !paths.is_avoided(&db));
        tokio::time::advance(AVOID).await;
        assert!(!paths.is_avoided(&web));
    }
}
