//! Limits for each guest, so that one guest cannot keep others from being served.

use std::{collections::HashMap, net::Ipv4Addr, sync::Mutex, time::Duration};

use tokio::time::Instant;
use waifud_kit::sync::lock;

/// Limits for guests. The tunnel's TCP stack limits connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestLimits {
    /// Requests per second and source address on average.
    pub requests_per_second: u32,
    /// Requests that a source may send at once after a pause.
    pub burst: u32,
    /// How long a request head may take, from the start of the connection or the last answer.
    pub head_timeout: Duration,
    /// How long a request body may take after the head.
    pub body_timeout: Duration,
    /// How long a connection may last in total.
    pub lifetime: Duration,
    /// The maximum size of a request head in bytes.
    pub head_bytes: usize,
    /// The maximum size of a phone-home body in bytes.
    pub body_bytes: usize,
}

impl Default for GuestLimits {
    /// 4,000 requests/s with bursts of 8,000: a boot needs about 30, and only many parallel connections reach the limit.
    /// 10 s for a head, 10 s for a body, 5 min in total; 8 KiB of head, 16 KiB of body.
    fn default() -> Self {
        Self {
            requests_per_second: 4_000,
            burst: 8_000,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            lifetime: Duration::from_mins(5),
            head_bytes: 8 << 10,
            body_bytes: 16 << 10,
        }
    }
}

/// The number of sources at which full buckets are removed.
const SWEEP_AT: usize = 1024;

/// Token buckets, one per source address.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    rate: f64,
    burst: f64,
    buckets: Mutex<HashMap<Ipv4Addr, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl RateLimiter {
    pub fn new(limits: &GuestLimits) -> Self {
        Self {
            rate: f64::from(limits.requests_per_second.max(1)),
            burst: f64::from(limits.burst.max(1)),
            buckets: Mutex::default(),
        }
    }

    /// Whether `source` may send another request now.
    pub fn allows(&self, source: Ipv4Addr, now: Instant) -> bool {
        let mut buckets = lock(&self.buckets);
        if buckets.len() >= SWEEP_AT && !buckets.contains_key(&source) {
            buckets.retain(|_, bucket| self.refilled(*bucket, now) < self.burst);
        }
        let bucket = buckets.entry(source).or_insert(Bucket {
            level: self.burst,
            at: now,
        });
        let level = self.refilled(*bucket, now);
        let allowed = level >= 1.0;
        *bucket = Bucket {
            level: if allowed { level - 1.0 } else { level },
            at: now,
        };
        allowed
    }

    fn refilled(&self, bucket: Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.level + passed * self.rate).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limiter(requests_per_second: u32, burst: u32) -> RateLimiter {
        RateLimiter::new(&GuestLimits {
            requests_per_second,
            burst,
            ..GuestLimits::default()
        })
    }

    #[test]
    fn requests_beyond_the_burst_are_refused_for_that_source_only() {
        let limiter = limiter(10, 5);
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let now = Instant::now();
        assert_eq!((0..20).filter(|_| limiter.allows(a, now)).count(), 5);
        assert!(limiter.allows(b, now));
        let later = now + Duration::from_millis(250);
        assert_eq!((0..20).filter(|_| limiter.allows(a, later)).count(), 2);
    }

    #[test]
    fn full_buckets_of_many_sources_are_removed() {
        let limiter = limiter(10, 5);
        let mut now = Instant::now();
        for n in 0..20_000 {
            now += Duration::from_millis(1);
            limiter.allows(Ipv4Addr::from_bits(n), now);
        }
        assert!(limiter.buckets.lock().unwrap().len() <= 2 * SWEEP_AT);
    }

    proptest! {
        #[test]
        fn no_source_exceeds_its_burst_plus_its_rate(
            rate in 1u32..100, burst in 1u32..100, steps in prop::collection::vec(0u64..200, 1..400),
        ) {
            let limiter = limiter(rate, burst);
            let start = Instant::now();
            let (mut passed, mut allowed) = (Duration::ZERO, 0.0);
            for step in steps {
                passed += Duration::from_millis(step);
                if limiter.allows(Ipv4Addr::LOCALHOST, start + passed) {
                    allowed += 1.0;
                }
            }
            prop_assert!(allowed <= f64::from(burst) + passed.as_secs_f64() * f64::from(rate) + 1e-6);
        }
    }
}
