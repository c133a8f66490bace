//! Images that nothing on the node needs any more leave its pools after a grace period.
//!
//! An image is needed while the record of any instance names it, also of one that left the slice, and while a volume is
//! an overlay on it, whoever made the volume: the pool refuses to remove it then. Before waifud's list is known nothing is
//! removed. Since when an image is unused is only in memory: a restart begins the grace period anew and removes nothing
//! too early. The removal is one unlink, so a crash leaves the image either there or gone; an instance that comes for it
//! in that moment has it fetched again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use waifud_storage::StoragePool;
use waifud_types::{Digest, Name};

use crate::instance::failure::Failure;
use crate::instance::rescue;
use crate::shared::Shared;

/// Runs until the agent stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut unused = Unused::default();
    loop {
        tokio::time::sleep(shared.settings.timing.sweep).await;
        if !shared.slice_known.load(Ordering::Relaxed) {
            continue;
        }
        for pool in shared.pools.values() {
            if let Err(failure) = look(&shared, pool, &mut unused).await {
                tracing::debug!(pool = %pool.name(), "{}", failure.message);
            }
        }
    }
}

async fn look(
    shared: &Shared,
    pool: &Arc<dyn StoragePool>,
    unused: &mut Unused,
) -> Result<(), Failure> {
    let present = pool.images().await?;
    let grace = shared.settings.timing.image_grace;
    let due = unused.due(
        pool.name(),
        &present,
        &needed(shared),
        Instant::now(),
        grace,
    );
    for image in due {
        // A record may have come since.
        if needed(shared).contains(&image) {
            continue;
        }
        match pool.ensure_image_absent(image).await {
            Ok(()) => {
                tracing::info!(pool = %pool.name(), image = %image, "removed an unused image");
            }
            Err(error) => {
                // A volume is still based on it, for example. It is looked at again after another grace period.
                tracing::debug!(image = %image, "an unused image stays: {}", crate::with_cause(&error));
            }
        }
        unused.begin_again(pool.name(), image);
    }
    Ok(())
}

/// Every image that a record names.
fn needed(shared: &Shared) -> BTreeSet<Digest> {
    let records = shared.table.records();
    let instances = records.iter().filter_map(|record| record.instance.as_ref());
    instances
        .flat_map(|instance| {
            let named = rescue::images(instance).into_iter();
            // Also when it has no disk yet.
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
    /// Takes in what a pool has and what is needed; gives the images that have been unused for the whole grace period.
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

    fn begin_again(&mut self, pool: &Name, image: Digest) {
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
        // One that was needed in between begins anew.
        let both = BTreeSet::from([digest(1), digest(2)]);
        assert_eq!(due(&main, &both, hours(25)), []);
        assert_eq!(due(&main, &needed, hours(26)), []);
        assert_eq!(due(&main, &needed, hours(49)), []);
        assert_eq!(due(&main, &needed, hours(50)), [digest(1)]);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let main: Name = "main".parse().unwrap();
        let mut unused = Unused::default();
        let now = Instant::now();
        let none = BTreeSet::new();
        unused.due(&main, &[digest(1)], &none, now, GRACE);
        unused.due(&main, &[], &none, now, GRACE);
        assert!(unused.since.is_empty());
        unused.due(&main, &[digest(1)], &none, now, GRACE);
        unused.begin_again(&main, digest(1));
        assert!(unused.since.is_empty());
    }
}
