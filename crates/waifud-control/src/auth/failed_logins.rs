//! Limits invalid tokens per source address.
//!
//! A valid token is always accepted, even from a blocked address. Time is monotonic, so a change of the system clock does
//! not extend a block.
//!
//! One timestamp is kept per address: when its failures expire. Each failure adds [`STEP`]; an address whose time is more
//! than [`BURST`] steps ahead is blocked. Memory is bounded: with [`ADDRESSES_MAX`] addresses, the one that expires first is removed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use waifud_kit::sync::lock;

use crate::auth::principal::source_network;

/// The time until one failure expires.
const STEP: Duration = Duration::from_secs(6);
/// Failures allowed at once, for example for a script with an old token.
const BURST: u32 = 10;
/// The maximum number of addresses.
const ADDRESSES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub struct FailedLogins {
    expires_at: Mutex<HashMap<IpAddr, Duration>>,
}

impl FailedLogins {
    /// How long the address stays blocked; `None` if one more attempt is allowed.
    pub fn blocked(&self, from: IpAddr, now: Duration) -> Option<Duration> {
        let addresses = lock(&self.expires_at);
        let left = addresses.get(&source_network(from))?.checked_sub(now)?;
        left.checked_sub(STEP * (BURST - 1))
            .filter(|left| !left.is_zero())
    }

    /// Records a failure.
    pub fn record(&self, from: IpAddr, now: Duration) {
        let mut addresses = lock(&self.expires_at);
        let from = source_network(from);
        if addresses.len() >= ADDRESSES_MAX && !addresses.contains_key(&from) {
            addresses.retain(|_, forgiven| *forgiven > now);
            if addresses.len() >= ADDRESSES_MAX
                && let Some(first) = addresses
                    .iter()
                    .min_by_key(|(_, at)| **at)
                    .map(|(ip, _)| *ip)
            {
                addresses.remove(&first);
            }
        }
        let forgiven = addresses.entry(from).or_insert(now);
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
    fn a_burst_is_allowed_then_one_attempt_per_step_for_each_address() {
        let failures = FailedLogins::default();
        let bad: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..BURST {
            assert_eq!(failures.blocked(bad, at(0)), None);
            failures.record(bad, at(0));
        }
        assert_eq!(failures.blocked(bad, at(0)), Some(STEP));
        assert_eq!(failures.blocked("192.0.2.2".parse().unwrap(), at(0)), None);
        assert_eq!(failures.blocked(bad, at(6)), None);
        failures.record(bad, at(6));
        assert_eq!(failures.blocked(bad, at(6)), Some(STEP));
        assert_eq!(failures.blocked(bad, at(3600)), None);
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_ipv4() {
        let failures = FailedLogins::default();
        for host in 0..BURST {
            failures.record(format!("2001:db8::{host:x}").parse().unwrap(), at(0));
            failures.record("::ffff:192.0.2.7".parse().unwrap(), at(0));
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
        for index in 0..2 * u32::try_from(ADDRESSES_MAX).unwrap() {
            failures.record(IpAddr::V4(index.into()), at(u64::from(index % 3)));
        }
        assert!(failures.expires_at.lock().unwrap().len() <= ADDRESSES_MAX);
    }
}
