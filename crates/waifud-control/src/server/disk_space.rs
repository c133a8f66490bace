//! Room in the state directory: looked at all the time, told of in events, and refused to what would grow when it is
//! nearly gone.
//!
//! A full disk must not surprise anybody. Before it is full there is an event; when it is, requests that would grow the
//! database are refused while there still is a little room for what nodes report and for deleting. Where even that is
//! gone the database itself refuses, and nothing that was acknowledged is touched. Nothing has to be restarted after.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use waifud_api::{Database, DirectorySpace, Server};
use waifud_store::StoreError;
use waifud_types::disk_space::FULL_BELOW;
use waifud_types::{ByteSize, DiskSpace, DiskSpaceState, Timestamp};

use crate::auth::principal::Cause;
use crate::env::Disk;
use crate::events::event_builder;
use crate::events::event_builder::EventExt;
use crate::server::problems as server_problems;
use crate::{Control, ControlError};

/// Images leave this much to the database, which needs little and can't do without.
const IMAGES_LEAVE: ByteSize = ByteSize::mib(64);
/// Changes that could not be told of yet, at most: a disk that is full and then not, time and again, is one story.
const UNTOLD: usize = 8;

/// What was seen of the state directory's room.
#[derive(Debug)]
pub(crate) struct DiskSpaceMonitor {
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    state: DiskSpaceState,
    since: Timestamp,
    /// Changes that are not in the history yet: a full disk can't be written down on itself.
    untold: Vec<Change>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Change {
    state: DiskSpaceState,
    before: DiskSpaceState,
    disk_space: DiskSpace,
    at: Timestamp,
}

impl DiskSpaceMonitor {
    /// Nothing was looked at yet.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            seen: Mutex::new(Seen {
                state: DiskSpaceState::Ok,
                since: now,
                untold: Vec::new(),
            }),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a look in. Better is believed when it is clearly better, so that a few bytes are no story.
    fn take(&self, disk_space: DiskSpace, at: Timestamp) {
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
        if seen.untold.len() == UNTOLD {
            seen.untold.pop();
        }
        seen.untold.push(Change {
            state,
            before,
            disk_space,
            at,
        });
    }
}

/// Room for images, and how much of it they leave.
#[derive(Clone, Debug)]
pub(crate) struct ImageSpace {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl ImageSpace {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { disk, dir }
    }

    /// Fails as a full disk would when so many bytes more would leave too little. A disk that can't be asked has room
    /// until it says otherwise.
    pub(crate) fn check(&self, more: u64) -> io::Result<()> {
        let Ok(disk_space) = self.disk.disk_space(&self.dir) else {
            return Ok(());
        };
        if disk_space.free.bytes() < more.saturating_add(IMAGES_LEAVE.bytes()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Control {
    /// The state directory.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.shared.config.state_dir
    }

    /// How much room there is in the state directory now.
    pub(crate) fn current_disk_space(&self) -> io::Result<DiskSpace> {
        self.shared.config.disk.disk_space(self.state_dir())
    }

    /// The state directory with its room, as people are shown it.
    pub fn state_room(&self) -> Result<DirectorySpace, ControlError> {
        let disk_space = self.current_disk_space().map_err(ControlError::io(format!(
            "asking how full {} is",
            self.state_dir().display()
        )))?;
        self.shared.disk_space.take(disk_space, self.now());
        let seen = self.shared.disk_space.seen();
        Ok(DirectorySpace {
            path: self.state_dir().display().to_string(),
            size_bytes: disk_space.size,
            free_bytes: disk_space.free,
            state: seen.state,
            since: seen.since,
        })
    }

    /// How waifud itself is.
    pub async fn server(&self) -> Result<Server, ControlError> {
        Ok(Server {
            database: self.database().await?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now: self.now(),
            state_dir: self.state_room()?,
            certificates: self.certificates()?,
        })
    }

    /// Whether the database can be written.
    pub(crate) async fn database(&self) -> Result<Database, ControlError> {
        let store = self.shared.store.clone();
        let trouble = tokio::task::spawn_blocking(move || store.trouble()).await;
        trouble
            .map(|trouble| Database { trouble })
            .map_err(|_| ControlError::Inconsistent("a look at the database failed".to_owned()))
    }

    /// Refuses what would grow the database when there is next to no room.
    pub(crate) fn require_disk_space(&self) -> Result<(), ControlError> {
        match self.current_disk_space() {
            Ok(disk_space) if disk_space.free < FULL_BELOW => {
                Err(server_problems::no_space().into())
            }
            // A disk that can't be asked says so when it is written to.
            _ => Ok(()),
        }
    }

    /// Refuses an image of so many bytes that does not fit.
    pub fn require_image_space(&self, size: ByteSize) -> Result<(), ControlError> {
        let checked = self.shared.images.disk_space().check(size.bytes());
        checked.map_err(|_| server_problems::no_space().into())
    }

    /// Looks at the room, and tells of changes in the history as soon as it can be written.
    pub async fn check_disk_space(&self) -> Result<(), ControlError> {
        if let Ok(disk_space) = self.current_disk_space() {
            self.shared.disk_space.take(disk_space, self.now());
        }
        let untold = self.shared.disk_space.seen().untold.clone();
        if untold.is_empty() {
            return Ok(());
        }
        let (dir, incarnation) = (
            self.state_dir().display().to_string(),
            self.shared.store.incarnation(),
        );
        let told = untold.clone();
        self.shared
            .store
            .write(move |tx| {
                for change in &untold {
                    let object = event_builder::waifud(incarnation);
                    let (kind, message) = words(change, &dir);
                    let event =
                        event_builder::event(change.at, kind, object, &Cause::system(), message);
                    tx.emit(&event.details(serde_json::json!({
                        "directory": dir,
                        "free_bytes": change.disk_space.free,
                        "size_bytes": change.disk_space.size,
                    })))?;
                }
                Ok::<_, StoreError>(())
            })
            .await?;
        let mut seen = self.shared.disk_space.seen();
        seen.untold.retain(|change| !told.contains(change));
        Ok(())
    }
}

/// The event of a change, and its text.
fn words(change: &Change, dir: &str) -> (&'static str, String) {
    let DiskSpace { size, free } = change.disk_space;
    let here = format!("{free} of {size} is free in {dir}");
    match (change.state, change.before) {
        (DiskSpaceState::Full, _) => (
            "waifud.disk-full",
            format!("{here}: nothing new is taken; guests run on"),
        ),
        (DiskSpaceState::Low, DiskSpaceState::Full) => (
            "waifud.disk-low",
            format!("{here}: requests are taken again, but there is little room"),
        ),
        (DiskSpaceState::Low, _) => (
            "waifud.disk-low",
            format!("{here}: when it is full, nothing new is taken"),
        ),
        (DiskSpaceState::Ok, _) => ("waifud.disk-ok", format!("{here}: there is room again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DiskSpaceState::{Full, Low, Ok};

    fn watch() -> DiskSpaceMonitor {
        DiskSpaceMonitor::new(Timestamp::UNIX_EPOCH)
    }

    fn free(mib: u64) -> DiskSpace {
        DiskSpace {
            size: ByteSize::gib(10),
            free: ByteSize::mib(mib),
        }
    }

    fn states(watch: &DiskSpaceMonitor) -> Vec<DiskSpaceState> {
        watch.seen().untold.iter().map(|c| c.state).collect()
    }

    #[test]
    fn each_change_is_told_once_and_small_moves_around_a_limit_are_none() {
        let watch = watch();
        for mib in [4000, 511, 513, 511, 530, 512, 7, 8, 7, 600, 600] {
            watch.take(free(mib), Timestamp::UNIX_EPOCH);
        }
        assert_eq!(states(&watch), [Low, Full, Ok]);
    }

    #[test]
    fn what_can_t_be_told_does_not_pile_up_and_the_last_word_is_the_present() {
        let watch = watch();
        for _ in 0..100 {
            watch.take(free(1), Timestamp::UNIX_EPOCH);
            watch.take(free(9000), Timestamp::UNIX_EPOCH);
        }
        assert_eq!(states(&watch).len(), UNTOLD);
        assert_eq!(states(&watch).last(), Some(&DiskSpaceState::Ok));
    }
}
