//! Free space on the filesystem of a daemon's state, and the limits below which it is too little.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ByteSize;

/// Below this, the filesystem counts as full. The rest is for reports from nodes and for deletions.
pub const FULL_BELOW: ByteSize = ByteSize::mib(8);
/// Below this, space is low, whatever the size of the filesystem.
const LOW_BELOW: ByteSize = ByteSize::mib(512);
/// Above this, space is never low: a twentieth of a large filesystem is more than a state directory needs.
const LOW_AT_MOST: ByteSize = ByteSize::gib(10);

/// The space of a filesystem that is available to unprivileged users, as `df` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSpace {
    /// Its size.
    pub size: ByteSize,
    /// The free space.
    pub free: ByteSize,
}

impl From<waifud_kit::filesystem::Usage> for DiskSpace {
    fn from(usage: waifud_kit::filesystem::Usage) -> Self {
        Self {
            size: ByteSize(usage.size),
            free: ByteSize(usage.available),
        }
    }
}

/// Whether there is enough free space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskSpaceState {
    /// There is enough.
    Ok,
    /// Less than 512 MiB is free, or less than a twentieth up to 10 GiB.
    Low,
    /// New data is refused.
    Full,
}

impl DiskSpace {
    /// Whether there is enough free space.
    pub fn state(self) -> DiskSpaceState {
        let twentieth = self.size.bytes() / 20;
        let low = twentieth.clamp(LOW_BELOW.bytes(), LOW_AT_MOST.bytes());
        if self.free < FULL_BELOW {
            DiskSpaceState::Full
        } else if self.free.bytes() < low {
            DiskSpaceState::Low
        } else {
            DiskSpaceState::Ok
        }
    }

    /// The next power of two above the free space, which rarely changes. For messages that are compared with earlier
    /// ones to detect a change.
    pub fn less_than(self) -> ByteSize {
        let above = self.free.bytes().saturating_add(1);
        ByteSize(above.checked_next_power_of_two().unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn room(size: ByteSize, free: ByteSize) -> DiskSpaceState {
        DiskSpace { size, free }.state()
    }

    #[test]
    fn the_limit_for_low_space_is_a_share_of_the_size_within_bounds() {
        use DiskSpaceState::{Full, Low, Ok};
        for (size, free, state) in [
            (ByteSize::gib(1), ByteSize::mib(600), Ok),
            (ByteSize::gib(1), ByteSize::mib(500), Low),
            (ByteSize::gib(40), ByteSize::gib(3), Ok),
            (ByteSize::gib(40), ByteSize::gib(1), Low),
            (ByteSize::gib(4000), ByteSize::gib(11), Ok),
            (ByteSize::gib(4000), ByteSize::gib(9), Low),
            (ByteSize::gib(40), ByteSize::mib(7), Full),
            (ByteSize(0), ByteSize(0), Full),
        ] {
            assert_eq!(room(size, free), state, "{free} of {size}");
        }
    }

    #[test]
    fn the_limits_are_those_of_the_documentation_to_the_byte() {
        use DiskSpaceState::{Full, Low, Ok};
        let guide = include_str!("../../../docs/guides/troubleshooting.md");
        for row in [
            "| less than 5 % of the filesystem (at least 512 MiB, at most 10 GiB) |",
            "| less than 8 MiB |",
        ] {
            assert!(guide.contains(row), "{row}");
        }
        for (size, limit, enough, too_little) in [
            (ByteSize::gib(40), ByteSize::mib(8), Low, Full),
            (ByteSize::gib(1), ByteSize::mib(512), Ok, Low),
            (ByteSize::gib(40), ByteSize::gib(2), Ok, Low),
            (ByteSize::gib(4000), ByteSize::gib(10), Ok, Low),
        ] {
            assert_eq!(room(size, limit), enough, "{limit} of {size}");
            let less = ByteSize(limit.bytes() - 1);
            assert_eq!(room(size, less), too_little, "less than {limit} of {size}");
        }
    }

    proptest! {
        #[test]
        fn less_free_space_never_improves_the_state(size: u64, a: u64, b: u64) {
            let (less, more) = (a.min(b), a.max(b));
            prop_assert!(room(ByteSize(size), ByteSize(less)) >= room(ByteSize(size), ByteSize(more)));
        }

        #[test]
        fn the_free_space_is_below_the_reported_limit(free in 0..u64::MAX / 4) {
            let said = DiskSpace { size: ByteSize(u64::MAX), free: ByteSize(free) }.less_than().bytes();
            prop_assert!(free < said && said / 4 <= free);
        }
    }
}
