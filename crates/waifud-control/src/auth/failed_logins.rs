//! How many wrong tokens came from where, so that nobody tries them by the thousand.
//!
//! Only wrong tokens are refused: whoever has a right one is let in, also from an address that guesses. Time is monotonic, so
//! a clock that is set back blocks nobody for longer.
//!
//! One moment is kept for each address: when its failures are forgiven. Each failure moves it [`STEP`] away; an address
//! whose moment is more than [`BURST`] steps away is refused unseen. Memory is bounded: with [`MOST`] addresses, the one
//! that is forgiven first makes room.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::auth::principal::source_network;

/// So long until one failure is forgiven.
const STEP: Duration = Duration::from_secs(6);
/// So many failures at once are let through: somebody pasted the wrong token, or a script has an old one.
const BURST: u32 = 10;
/// Addresses remembered at most.
const MOST: usize = 4096;

#[derive(Debug, Default)]
pub struct FailedLogins {
    forgiven_at: Mutex<HashMap<IpAddr, Duration>>,
}

impl FailedLogins {
    /// How long wrong tokens of this address are answered with "too many"; `None` when one more is let through.
    pub fn blocked(&self, from: IpAddr, now: Duration) -> Option<Duration> {
        let places = self
            .forgiven_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let left = places.get(&source_network(from))?.checked_sub(now)?;
        left.checked_sub(STEP * (BURST - 1))
            .filter(|left| !left.is_zero())
    }

    /// Notes a failure.
    pub fn note(&self, from: IpAddr, now: Duration) {
        let mut places = self
            .forgiven_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let from = source_network(from);
        if places.len() >= MOST && !places.contains_key(&from) {
            places.retain(|_, forgiven| *forgiven > now);
            if places.len() >= MOST
                && let Some(first) = places.iter().min_by_key(|(_, at)| **at).map(|(ip, _)| *ip)
            {
                places.remove(&first);
            }
        }
        let forgiven = places.entry(from).or_insert(now);
        *forgiven = (*forgiven).max(now) + STEP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1_000 + seconds)
    }

    #[test]
    fn a_burst_is_let_through_then_one_a_step_and_others_are_not_concerned() {
        let failures = FailedLogins::default();
        let bad: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..BURST {
            assert_eq!(failures.blocked(bad, at(0)), None);
            failures.note(bad, at(0));
        }
        assert_eq!(failures.blocked(bad, at(0)), Some(STEP));
        assert_eq!(failures.blocked("192.0.2.2".parse().unwrap(), at(0)), None);
        assert_eq!(failures.blocked(bad, at(6)), None);
        failures.note(bad, at(6));
        assert_eq!(failures.blocked(bad, at(6)), Some(STEP));
        assert_eq!(failures.blocked(bad, at(3600)), None);
    }

    #[test]
    fn a_whole_ipv6_network_counts_as_one_address_and_a_mapped_one_as_ipv4() {
        let failures = FailedLogins::default();
        for host in 0..BURST {
            failures.note(format!("2001:db8::{host:x}").parse().unwrap(), at(0));
            failures.note("::ffff:192.0.2.7".parse().unwrap(), at(0));
        }
        for blocked in ["2001:db8::ffff", "192.0.2.7"] {
            assert!(
                failures.blocked(blocked.parse().unwrap(), at(0)).is_some(),
                "{blocked}"
            );
        }
        assert_eq!(
            failures.blocked("2001:db8:0:1::1".parse().unwrap(), at(0)),
            None
        );
    }

    #[test]
    fn memory_is_bounded() {
        let failures = FailedLogins::default();
        for index in 0..2 * u32::try_from(MOST).unwrap() {
            failures.note(IpAddr::V4(index.into()), at(u64::from(index % 3)));
        }
        assert!(failures.forgiven_at.lock().unwrap().len() <= MOST);
    }
}
