//! The invariants of the cluster. Each function is named after what it checks.
//!
//! Those in [`always`] hold at every moment, also during faults; they are checked after each act and after each message. Those
//! in [`at_rest`] hold once every fault has ended and the cluster has had time. How many objects each of them has looked at is
//! counted: an invariant that never looked at anything has shown nothing.

mod always;
mod at_rest;
mod disks;
mod documents;
mod network;
mod observed;
mod requests;
mod snapshot;
mod unknown;

use std::fmt;

pub use always::always;
pub use at_rest::at_rest;
pub use observed::{Observed, Opened};
pub use snapshot::Database;

/// An invariant that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The name of the function that found it.
    pub invariant: &'static str,
    /// What it found.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// Counts a look of an invariant, and fails with its name if it does not hold.
macro_rules! hold {
    ($world:expr, $holds:expr, $invariant:ident, $($what:tt)+) => {
        $world.looked(stringify!($invariant));
        if !$holds {
            return Err($crate::invariants::Violation {
                invariant: stringify!($invariant),
                what: format!($($what)+),
            });
        }
    };
}

pub(crate) use hold;

/// The names of all invariants.
pub const ALL: &[&str] = &[
    "acknowledged_changes_survive",
    "absence_destroys_nothing",
    "nothing_stops_a_guest_without_a_request",
    "an_instance_never_runs_on_two_nodes",
    "an_address_is_served_once",
    "an_address_belongs_to_one_instance",
    "an_instance_stays_in_the_database_until_its_node_confirms",
    "an_address_stays_reserved_until_its_node_confirms",
    "documents_are_served_to_the_owner_of_the_address_only",
    "a_release_is_recorded_by_the_node_before_waifud_counts_it",
    "a_released_guest_that_is_off_stays_off",
    "a_guest_finds_what_it_wrote_to_its_disk",
    "what_guests_wrote_survives",
    "copies_that_were_given_up_stay",
    "no_error_is_hidden",
    "every_request_ends",
    "every_move_ends",
    "every_status_is_true",
    "every_node_is_as_requested",
    "a_drained_node_is_empty_or_says_what_stays",
    "routes_lead_to_the_node_of_each_guest",
    "the_firewall_of_a_port_is_as_requested",
    "the_nics_of_a_guest_are_as_requested",
    "no_object_is_orphaned",
    "no_record_is_damaged",
];
