//! Bugs that tests switch on, to show that the simulation finds them.
//!
//! A planted bug is a mistake that someone could make: the code at its place asks [`Bug::is_planted`] and does the wrong
//! thing. As with [failpoints](crate::failpoints), the switches exist only with the feature `planted-bugs`, which only the
//! simulation enables, *and* debug assertions, which release builds do not have. Without either, `is_planted` is a constant
//! `false`, and the compiler removes the wrong code.

use std::fmt;
use std::str::FromStr;

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Bug {
    /// waifud does not compare the epoch of a reported release with the epoch that it ordered.
    ForgottenEpochCheck = 1,
    /// An agent destroys the instances that a resumed watch does not mention.
    AbsenceIsDeletion = 2,
    /// waifud frees the address of an instance when its deletion is requested, not when the node confirms it.
    AddressFreedEarly = 3,
    /// The store answers a change before its commit, which then happens with the next change.
    LateCommit = 4,
    /// An agent confirms a deletion while metadatad still serves the documents at the old address.
    DocumentsLeftBehind = 5,
    /// A handover begins before the release is durable: an agent reports a release that it has not written to its disk.
    HandoverBeforeRelease = 6,
    /// waifud orders the old node of a move to delete its disks before the instance was seen on the new node.
    OldDisksDeletedEarly = 7,
}

impl Bug {
    /// Every bug.
    pub const ALL: [Self; 7] = [
        Self::ForgottenEpochCheck,
        Self::AbsenceIsDeletion,
        Self::AddressFreedEarly,
        Self::LateCommit,
        Self::DocumentsLeftBehind,
        Self::HandoverBeforeRelease,
        Self::OldDisksDeletedEarly,
    ];

    /// The name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ForgottenEpochCheck => "forgotten-epoch-check",
            Self::AbsenceIsDeletion => "absence-is-deletion",
            Self::AddressFreedEarly => "address-freed-early",
            Self::LateCommit => "late-commit",
            Self::DocumentsLeftBehind => "documents-left-behind",
            Self::HandoverBeforeRelease => "handover-before-release",
            Self::OldDisksDeletedEarly => "old-disks-deleted-early",
        }
    }

    /// Whether this process has the bug.
    #[cfg(all(feature = "planted-bugs", debug_assertions))]
    pub fn is_planted(self) -> bool {
        switch::is_on(self)
    }

    /// Whether this process has the bug: never in this build.
    #[cfg(not(all(feature = "planted-bugs", debug_assertions)))]
    #[inline]
    #[must_use]
    pub const fn is_planted(self) -> bool {
        false
    }
}

/// The name of an unknown bug.
#[derive(Debug, thiserror::Error)]
#[error("there is no planted bug of this name; there are: {}", Bug::ALL.map(Bug::name).join(", "))]
pub struct UnknownBug;

impl FromStr for Bug {
    type Err = UnknownBug;

    fn from_str(text: &str) -> Result<Self, UnknownBug> {
        let mut all = Self::ALL.into_iter();
        all.find(|bug| bug.name() == text).ok_or(UnknownBug)
    }
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(all(feature = "planted-bugs", debug_assertions))]
pub use switch::plant;

#[cfg(all(feature = "planted-bugs", debug_assertions))]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Bug;

    /// The number of the planted bug; 0 for none.
    static PLANTED: AtomicU8 = AtomicU8::new(0);

    pub(super) fn is_on(bug: Bug) -> bool {
        PLANTED.load(Ordering::Relaxed) == bug as u8
    }

    /// Switches a bug on, for the whole process and until its end.
    pub fn plant(bug: Bug) {
        PLANTED.store(bug as u8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_has_a_name_of_its_own_and_none_is_planted_unasked() {
        for bug in Bug::ALL {
            assert_eq!(bug.to_string().parse::<Bug>().unwrap(), bug);
            assert!(!bug.is_planted());
        }
        let unknown = "typo".parse::<Bug>().unwrap_err().to_string();
        assert!(unknown.ends_with("old-disks-deleted-early"), "{unknown}");
    }
}
