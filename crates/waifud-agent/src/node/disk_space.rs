//! Room in the agent's state directory: without it nothing that waifud orders can be made durable, so nothing is taken
//! over. Guests run on, and it is said as a condition of the node.

use std::path::Path;

use nix::sys::statvfs::statvfs;
use waifud_types::status::Condition;
use waifud_types::{ByteSize, DiskSpace, DiskSpaceState, Timestamp};

use crate::control_link::durable::Unwritable;
use crate::instance::conditions::condition;

/// The condition's type.
pub(crate) const KIND: &str = "state-dir";

/// How much room there is on the directory's filesystem; none where it can't be asked.
pub(crate) fn look(dir: &Path) -> Option<DiskSpace> {
    let facts = statvfs(dir).ok()?;
    let bytes = |blocks: u64| ByteSize(blocks.saturating_mul(facts.fragment_size()));
    Some(DiskSpace {
        size: bytes(facts.blocks()),
        free: bytes(facts.blocks_available()),
    })
}

/// What there is to say of the directory; nothing when all is well. The text stays the same while little changes, as
/// each change of it is an event.
pub(crate) fn of(
    dir: &Path,
    room: Option<DiskSpace>,
    unwritable: Option<&Unwritable>,
    now: Timestamp,
) -> Option<Condition> {
    let state = room.map_or(DiskSpaceState::Ok, DiskSpace::state);
    let dir = dir.display();
    let free = room.map_or_else(String::new, |room| {
        format!(" (less than {} is free)", room.less_than())
    });
    let waits = "what waifud orders waits, guests run on, and it goes on by itself";
    let make_room = "make room on that filesystem";
    let (reason, message) = match (unwritable, state) {
        (Some(Unwritable { full: true, .. }), _) => {
            ("full", format!("{dir} is full{free}: {waits}; {make_room}"))
        }
        (Some(Unwritable { why, full: false }), _) => (
            "unwritable",
            format!("nothing can be written in {dir} ({why}): {waits} once that is mended"),
        ),
        (None, DiskSpaceState::Full) => (
            "full",
            format!("{dir} is about to be full{free}: soon {waits}; {make_room}"),
        ),
        (None, DiskSpaceState::Low) => (
            "low",
            format!("there is little room in {dir}{free}; {make_room}"),
        ),
        (None, DiskSpaceState::Ok) => return None,
    };
    Some(condition(KIND, false, reason, message, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(free: ByteSize, unwritable: Option<&Unwritable>) -> Option<(String, String)> {
        let room = DiskSpace {
            size: ByteSize::gib(100),
            free,
        };
        let dir = Path::new("/var/lib/waifud-agent");
        let said = of(dir, Some(room), unwritable, Timestamp::UNIX_EPOCH)?;
        assert!(!said.ok && said.message.contains("/var/lib/waifud-agent"));
        Some((said.reason, said.message))
    }

    #[test]
    fn too_little_room_and_no_writing_are_told_apart_and_room_is_no_condition() {
        let reason = |free, unwritable: Option<&Unwritable>| said(free, unwritable).map(|s| s.0);
        let full = Unwritable {
            why: "No space left on device".to_owned(),
            full: true,
        };
        let read_only = Unwritable {
            why: "Read-only file system".to_owned(),
            full: false,
        };
        assert_eq!(reason(ByteSize::gib(20), None), None);
        assert_eq!(reason(ByteSize::gib(1), None).unwrap(), "low");
        assert_eq!(reason(ByteSize(0), None).unwrap(), "full");
        assert_eq!(reason(ByteSize(0), Some(&full)).unwrap(), "full");
        assert_eq!(
            reason(ByteSize::gib(20), Some(&read_only)).unwrap(),
            "unwritable"
        );
    }

    #[test]
    fn a_few_bytes_more_or_less_say_the_same() {
        let low = |free| said(ByteSize(free), None).unwrap();
        assert_eq!(low(600_000_000), low(900_000_000));
        assert!(low(600_000_000).1.contains("1G"));
    }
}
