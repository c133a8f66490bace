//! Free space in the agent's state directory. Without it, changes from waifud cannot be made durable and are not applied.
//! Guests keep running, and a condition of the node reports it.

use std::path::Path;

use waifud_types::status::Condition;
use waifud_types::{DiskSpace, DiskSpaceState, Timestamp};

use crate::condition::condition;
use crate::control_link::durable::Unwritable;

/// The condition's type.
pub(crate) const KIND: &str = "state-dir";

/// The space on the directory's filesystem; `None` if it cannot be determined.
pub(crate) fn measure(dir: &Path) -> Option<DiskSpace> {
    waifud_kit::filesystem::usage(dir).ok().map(DiskSpace::from)
}

/// The condition of the directory; `None` if there is no problem. Small changes do not change the text, because each new
/// text is an event.
pub(crate) fn of(
    dir: &Path,
    space: Option<DiskSpace>,
    unwritable: Option<&Unwritable>,
    now: Timestamp,
) -> Option<Condition> {
    let state = space.map_or(DiskSpaceState::Ok, DiskSpace::state);
    let dir = dir.display();
    let free = space.map_or_else(String::new, |space| {
        format!(" (less than {} is free)", space.less_than())
    });
    let effect = "changes from waifud are not applied; running guests are not affected, and this node continues automatically";
    let remedy = "free space on that filesystem";
    let (reason, message) = match (unwritable, state) {
        (Some(Unwritable { full: true, .. }), _) => {
            ("full", format!("{dir} is full{free}: {effect}; {remedy}"))
        }
        (Some(Unwritable { why, full: false }), _) => (
            "unwritable",
            format!("cannot write to {dir} ({why}): {effect} once the cause is fixed"),
        ),
        (None, DiskSpaceState::Full) => (
            "full",
            format!("{dir} is almost full{free}: once it is full, {effect}; {remedy}"),
        ),
        (None, DiskSpaceState::Low) => (
            "low",
            format!("{dir} has little free space{free}; {remedy}"),
        ),
        (None, DiskSpaceState::Ok) => return None,
    };
    Some(condition(KIND, false, reason, message, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_types::ByteSize;

    fn condition_at(free: ByteSize, unwritable: Option<&Unwritable>) -> Option<(String, String)> {
        let space = DiskSpace {
            size: ByteSize::gib(100),
            free,
        };
        let dir = Path::new("/var/lib/waifud-agent");
        let condition = of(dir, Some(space), unwritable, Timestamp::UNIX_EPOCH)?;
        assert!(!condition.ok && condition.message.contains("/var/lib/waifud-agent"));
        Some((condition.reason, condition.message))
    }

    #[test]
    fn low_space_and_write_errors_are_distinct_and_enough_space_is_no_condition() {
        let reason =
            |free, unwritable: Option<&Unwritable>| condition_at(free, unwritable).map(|s| s.0);
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
    fn small_changes_keep_the_text() {
        let low = |free| condition_at(ByteSize(free), None).unwrap();
        assert_eq!(low(600_000_000), low(900_000_000));
        assert!(low(600_000_000).1.contains("1G"));
    }
}
