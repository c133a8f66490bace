//! The free space of the state directory: its state, and the changes that have no event yet.
//!
//! There is an event before the filesystem is full. When it is full, requests that would grow the database are refused
//! while there is still some space for reports of nodes and for deletions. When even that is used up, the database
//! refuses writes itself and keeps what was acknowledged. waifud needs no restart afterwards.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use waifud_api::{DirectorySpace, Problem};
use waifud_kit::sync::lock;
use waifud_types::disk_space::FULL_BELOW;
use waifud_types::{ByteSize, DiskSpace, DiskSpaceState, Timestamp};

use super::problems;
use crate::ControlError;
use crate::env::Disk;

/// Changes without an event so far, at most: the disk may fill up and recover many times while nothing can be written.
const UNREPORTED_MAX: usize = 8;

/// Monitors the free space of the state directory.
#[derive(Debug)]
pub(crate) struct DiskSpaceMonitor {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    state: DiskSpaceState,
    since: Timestamp,
    /// Changes without an event so far: while the disk is full, events cannot be written.
    unreported: Vec<Change>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Change {
    pub(super) state: DiskSpaceState,
    pub(super) before: DiskSpaceState,
    pub(super) disk_space: DiskSpace,
    pub(super) at: Timestamp,
}

impl DiskSpaceMonitor {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, now: Timestamp) -> Self {
        Self {
            disk,
            dir,
            seen: Mutex::new(Seen {
                state: DiskSpaceState::Ok,
                since: now,
                unreported: Vec::new(),
            }),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// Records a measurement. The state improves only with a margin of 1/8, so that a few bytes cause no events.
    fn record(&self, disk_space: DiskSpace, at: Timestamp) {
        let mut seen = self.seen();
        let careful = DiskSpace {
            free: ByteSize(disk_space.free.bytes() - disk_space.free.bytes() / 8),
            ..disk_space
        };
        let state = if disk_space.state() > seen.state {
            disk_space.state()
        } else {
            careful.state().min(seen.state)
        };
        if state == seen.state {
            return;
        }
        let before = std::mem::replace(&mut seen.state, state);
        seen.since = at;
        if seen.unreported.len() == UNREPORTED_MAX {
            seen.unreported.pop();
        }
        seen.unreported.push(Change {
            state,
            before,
            disk_space,
            at,
        });
    }

    /// The state directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The space in the state directory now.
    pub(crate) fn current(&self) -> io::Result<DiskSpace> {
        self.disk.disk_space(&self.dir)
    }

    /// Measures the space; a filesystem that cannot be measured changes nothing.
    pub(super) fn observe(&self, now: Timestamp) {
        if let Ok(disk_space) = self.current() {
            self.record(disk_space, now);
        }
    }

    /// The state directory and its space, as the API shows them.
    pub(super) fn directory(&self, now: Timestamp) -> Result<DirectorySpace, ControlError> {
        let disk_space = self.current().map_err(ControlError::io(format!(
            "measuring the free space of {}",
            self.dir.display()
        )))?;
        self.record(disk_space, now);
        let seen = self.seen();
        Ok(DirectorySpace {
            path: self.dir.display().to_string(),
            size_bytes: disk_space.size,
            free_bytes: disk_space.free,
            state: seen.state,
            since: seen.since,
        })
    }

    /// Refuses a change that would grow the database when the filesystem is full.
    pub(crate) fn require(&self) -> Result<(), Problem> {
        match self.current() {
            Ok(disk_space) if disk_space.free < FULL_BELOW => Err(problems::no_space()),
            // A filesystem that cannot be measured reports the error when it is written to.
            _ => Ok(()),
        }
    }

    /// Changes of the state without an event so far.
    pub(super) fn unreported(&self) -> Vec<Change> {
        self.seen().unreported.clone()
    }

    pub(super) fn mark_reported(&self, reported: &[Change]) {
        let mut seen = self.seen();
        seen.unreported.retain(|change| !reported.contains(change));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DiskSpaceState::{Full, Low, Ok};

    fn monitor() -> DiskSpaceMonitor {
        let disk = Arc::new(crate::env::SystemDisk);
        DiskSpaceMonitor::new(disk, PathBuf::from("/"), Timestamp::UNIX_EPOCH)
    }

    fn free(mib: u64) -> DiskSpace {
        DiskSpace {
            size: ByteSize::gib(10),
            free: ByteSize::mib(mib),
        }
    }

    fn states(monitor: &DiskSpaceMonitor) -> Vec<DiskSpaceState> {
        monitor.seen().unreported.iter().map(|c| c.state).collect()
    }

    #[test]
    fn each_change_is_recorded_once_and_small_moves_around_a_limit_are_ignored() {
        let monitor = monitor();
        for mib in [4000, 511, 513, 511, 530, 512, 7, 8, 7, 600, 600] {
            monitor.record(free(mib), Timestamp::UNIX_EPOCH);
        }
        assert_eq!(states(&monitor), [Low, Full, Ok]);
    }

    #[test]
    fn unreported_changes_are_bounded_and_end_with_the_current_state() {
        let monitor = monitor();
        for _ in 0..100 {
            monitor.record(free(1), Timestamp::UNIX_EPOCH);
            monitor.record(free(9000), Timestamp::UNIX_EPOCH);
        }
        assert_eq!(states(&monitor).len(), UNREPORTED_MAX);
        assert_eq!(states(&monitor).last(), Some(&DiskSpaceState::Ok));
    }
}
