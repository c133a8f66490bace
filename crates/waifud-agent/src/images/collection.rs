//! Removes images that are not needed any more from the node's pools after a grace period.
//!
//! An image is needed while any record names it, including records outside the slice, and while any volume is an overlay on
//! it: the pool then refuses to remove it. Before the slice is known, nothing is removed. The time since when an image is
//! unused is only in memory, so a restart begins the grace period again. The removal is one unlink, so after a crash the
//! image either exists or not. An instance that needs it at that moment has it downloaded again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use waifud_storage::StoragePool;
use waifud_types::{Digest, Name};

use crate::control_link::table::Table;
use crate::instance::failure::Failure;
use crate::instance::rescue;

/// Removes unused images from the node's pools.
pub(crate) struct ImageCollector {
    pub table: Arc<Table>,
    pub pools: Arc<BTreeMap<Name, Arc<dyn StoragePool>>>,
    /// Between two runs.
    pub period: Duration,
    /// How long an image has to be unused before it is removed.
    pub grace: Duration,
}

/// Runs until the agent stops.
pub(crate) async fn run(collector: Arc<ImageCollector>) {
    let mut unused = Unused::default();
    loop {
        tokio::time::sleep(collector.period).await;
        if !collector.table.is_slice_known() {
            continue;
        }
        for pool in collector.pools.values() {
            if let Err(failure) = collect(&collector, pool, &mut unused).await {
                tracing::debug!(pool = %pool.name(), "{}", failure.message);
            }
        }
    }
}

async fn collect(
    collector: &ImageCollector,
    pool: &Arc<dyn StoragePool>,
    unused: &mut Unused,
) -> Result<(), Failure> {
    let present = pool.images().await?;
    let grace = collector.grace;
    let due = unused.due(
        pool.name(),
        &present,
        &needed(collector),
        Instant::now(),
        grace,
    );
    for image in due {
        // A record may have been added since.
        if needed(collector).contains(&image) {
            continue;
        }
        match pool.ensure_image_absent(image).await {
            Ok(()) => {
                tracing::info!(pool = %pool.name(), image = %image, "removed an unused image");
            }
            Err(error) => {
                // For example, a volume is still based on it. It is checked again after another grace period.
                tracing::debug!(image = %image, "keeping an unused image: {}", waifud_kit::error::with_causes(&error));
            }
        }
        unused.restart_grace(pool.name(), image);
    }
    Ok(())
}

/// Every image that a record names.
fn needed(collector: &ImageCollector) -> BTreeSet<Digest> {
    let records = collector.table.records();
    let instances = records.iter().filter_map(|record| record.instance.as_ref());
    instances
        .flat_map(|instance| {
            let named = rescue::images(instance).into_iter();
            // The image is needed even before a disk exists.
            named
                .map(|(_, image, _)| image)
                .chain([instance.spec.image])
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Since when images have been unused.
#[derive(Debug, Default)]
struct Unused {
    since: BTreeMap<(Name, Digest), Instant>,
}

impl Unused {
    /// Updates the unused images of a pool. Returns those that have been unused for the whole grace period.
    fn due(
        &mut self,
        pool: &Name,
        present: &[Digest],
        needed: &BTreeSet<Digest>,
        now: Instant,
        grace: Duration,
    ) -> Vec<Digest> {
        let idle: BTreeSet<Digest> = present
            .iter()
            .copied()
            .filter(|image| !needed.contains(image))
            .collect();
        self.since
            .retain(|(of, image), _| of != pool || idle.contains(image));
        idle.into_iter()
            .filter(|image| {
                let since = self.since.entry((pool.clone(), *image)).or_insert(now);
                now.saturating_duration_since(*since) >= grace
            })
            .collect()
    }

    fn restart_grace(&mut self, pool: &Name, image: Digest) {
        self.since.remove(&(pool.clone(), image));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_hours(24);

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    #[test]
    fn an_image_is_due_once_it_was_unused_for_the_whole_grace_period() {
        let (main, other): (Name, Name) = ("main".parse().unwrap(), "other".parse().unwrap());
        let mut unused = Unused::default();
        let begin = Instant::now();
        let hours = |hours| begin + Duration::from_hours(hours);
        let present = [digest(1), digest(2)];
        let needed = BTreeSet::from([digest(2)]);
        let mut due = |pool: &Name, needed: &BTreeSet<Digest>, at| {
            unused.due(pool, &present, needed, at, GRACE)
        };
        assert_eq!(due(&main, &needed, hours(0)), []);
        assert_eq!(due(&main, &needed, hours(23)), []);
        // Another pool has its own time.
        assert_eq!(due(&other, &needed, hours(23)), []);
        assert_eq!(due(&main, &needed, hours(24)), [digest(1)]);
        assert_eq!(due(&other, &needed, hours(24)), []);
        // The grace period restarts for an image that was needed in between.
        let both = BTreeSet::from([digest(1), digest(2)]);
        assert_eq!(due(&main, &both, hours(25)), []);
        assert_eq!(due(&main, &needed, hours(26)), []);
        assert_eq!(due(&main, &needed, hours(49)), []);
        assert_eq!(due(&main, &needed, hours(50)), [digest(1)]);
    }

    #[test]
    fn records_of_absent_instances_are_removed() {
        let main: Name = "main".parse().unwrap();
        let mut unused = Unused::default();
        let now = Instant::now();
        let none = BTreeSet::new();
        unused.due(&main, &[digest(1)], &none, now, GRACE);
        unused.due(&main, &[], &none, now, GRACE);
        assert!(unused.since.is_empty());
        unused.due(&main, &[digest(1)], &none, now, GRACE);
        unused.restart_grace(&main, digest(1));
        assert!(unused.since.is_empty());
    }
}
