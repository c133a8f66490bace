//! Calls guest agents so that a slow guest delays only its own calls.
//!
//! libvirt waits several seconds for an agent that does not answer, and the call occupies a thread and a request of
//! libvirtd meanwhile. So each guest has one call at a time. After a slow call, the guest is called on a separate slow
//! lane for a while, twice as long each time. On the fast lane it therefore delays the others by at most one call. Each
//! lane has its own connection, because libvirtd handles five requests of a connection at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virt::connect::Connect;
use waifud_kit::sync::lock;
use waifud_types::InstanceId;

use super::connection::Connector;
use super::error::Fault;
use super::threads::Threads;
use crate::HypervisorError;

/// Concurrent calls on the fast lane.
const THREADS: usize = 4;
/// Concurrent calls on the slow lane.
const SLOW_THREADS: usize = 2;
/// A call that takes longer makes its guest slow.
const SLOW: Duration = Duration::from_secs(2);
/// How long a guest stays on the slow lane after its first slow call, and at most.
const SLOW_PERIOD_MIN: Duration = Duration::from_secs(30);
const SLOW_PERIOD_MAX: Duration = Duration::from_hours(1);

/// The threads of both lanes. They run any function, so that tests need no libvirtd.
struct Lanes {
    fast: Threads,
    slow: Threads,
    guests: Arc<Mutex<HashMap<InstanceId, Guest>>>,
    slow_after: Duration,
}

/// The state of one guest's agent.
#[derive(Default)]
struct Guest {
    /// Held during the guest's call.
    call: Arc<tokio::sync::Mutex<()>>,
    responsiveness: Responsiveness,
}

/// Whether a guest's agent answers in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Responsiveness {
    /// The number of slow calls that began a period on the slow lane.
    slow_calls: u32,
    /// The end of the period on the slow lane.
    slow_until: Option<Instant>,
}

impl Responsiveness {
    fn is_slow(&self, now: Instant) -> bool {
        self.slow_until.is_some_and(|until| now < until)
    }

    /// Records the end of a call.
    fn record_call(&mut self, slow: bool, now: Instant) {
        if slow {
            // Further slow calls on the slow lane do not double its length.
            if !self.is_slow(now) {
                self.slow_calls = self.slow_calls.saturating_add(1);
            }
            self.slow_until = Some(now + self.slow_period());
        } else if self.is_forgettable(now) {
            *self = Self::default();
        }
    }

    fn slow_period(&self) -> Duration {
        let doubled = 1_u32
            .checked_shl(self.slow_calls.saturating_sub(1))
            .unwrap_or(u32::MAX);
        SLOW_PERIOD_MIN
            .saturating_mul(doubled.max(1))
            .min(SLOW_PERIOD_MAX)
    }

    /// Whether the last period on the slow lane ended long enough ago to be forgotten.
    fn is_forgettable(&self, now: Instant) -> bool {
        self.slow_until
            .is_none_or(|until| until + self.slow_period() <= now)
    }
}

impl Lanes {
    fn start(slow_after: Duration) -> std::io::Result<Self> {
        Ok(Self {
            fast: Threads::start("guest-agents", THREADS)?,
            slow: Threads::start("slow-agents", SLOW_THREADS)?,
            guests: Arc::default(),
            slow_after,
        })
    }

    /// Runs a guest's call on its lane, after the guest's earlier calls. `call` receives whether that is the slow lane.
    async fn run<T: Send + 'static>(
        &self,
        id: InstanceId,
        operation: &'static str,
        limit: Duration,
        call: impl FnOnce(bool) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let start = Instant::now();
        let late = || HypervisorError::TimedOut {
            operation,
            after: limit,
        };
        let call_lock = self.call_lock(id, start);
        let guard = tokio::time::timeout(limit, call_lock.lock_owned())
            .await
            .map_err(|_| late())?;
        let slow = self.is_slow(id);
        let threads = if slow { &self.slow } else { &self.fast };
        let (guests, slow_after) = (Arc::clone(&self.guests), self.slow_after);
        let left = limit.saturating_sub(start.elapsed());
        threads
            .run(operation, left, move || {
                // Held until the call ends, even if its caller was dropped.
                let _guard = guard;
                let start = Instant::now();
                let outcome = call(slow);
                let slow = start.elapsed() >= slow_after;
                if let Some(guest) = lock(&guests).get_mut(&id) {
                    guest.responsiveness.record_call(slow, Instant::now());
                }
                outcome
            })
            .await
    }

    fn call_lock(&self, id: InstanceId, now: Instant) -> Arc<tokio::sync::Mutex<()>> {
        let mut guests = lock(&self.guests);
        // Removes guests that have neither a running call nor a slow call to remember.
        guests.retain(|_, guest| {
            Arc::strong_count(&guest.call) > 1 || !guest.responsiveness.is_forgettable(now)
        });
        Arc::clone(&guests.entry(id).or_default().call)
    }

    fn is_slow(&self, id: InstanceId) -> bool {
        let guests = lock(&self.guests);
        let guest = guests.get(&id);
        guest.is_some_and(|guest| guest.responsiveness.is_slow(Instant::now()))
    }
}

/// Calls guest agents through libvirt.
pub(super) struct Agents {
    lanes: Lanes,
    fast: Arc<Connector>,
    slow: Arc<Connector>,
}

impl Agents {
    pub(super) fn start(uri: &str) -> std::io::Result<Self> {
        Ok(Self {
            lanes: Lanes::start(SLOW)?,
            fast: Connector::start(uri.to_owned())?,
            slow: Connector::start(uri.to_owned())?,
        })
    }

    pub(super) async fn call<T: Send + 'static>(
        &self,
        id: InstanceId,
        operation: &'static str,
        limit: Duration,
        call: impl FnOnce(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let connectors = [&self.fast, &self.slow].map(Arc::clone);
        self.lanes
            .run(id, operation, limit, move |is_slow| {
                let [fast, slow] = connectors;
                if is_slow { slow } else { fast }.with(call)
            })
            .await
    }

    /// The connection of the slow lane.
    pub(super) fn slow_connection(&self) -> &Arc<Connector> {
        &self.slow
    }

    /// Stops the reconnecting threads soon after the last other reference is dropped.
    pub(super) fn wake(&self) {
        self.fast.wake();
        self.slow.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_mins(1);

    /// A call that blocks until the other end is dropped, and a receiver that is notified when it starts.
    fn blocked_call() -> (
        impl FnOnce(bool) -> Result<(), HypervisorError> + Send + 'static,
        tokio::sync::oneshot::Receiver<bool>,
        mpsc::Sender<()>,
    ) {
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (release, released) = mpsc::channel();
        let call = move |slow| {
            begun.send(slow).ok();
            released.recv().ok();
            Ok(())
        };
        (call, has_begun, release)
    }

    #[tokio::test]
    async fn guests_with_slow_agents_do_not_delay_others() {
        // Every call counts as slow here, so only the first calls of other guests are checked.
        let lanes = Arc::new(Lanes::start(Duration::ZERO).unwrap());
        let slow_guests: Vec<_> = (0..2 * THREADS).map(|_| InstanceId::generate()).collect();
        for id in &slow_guests {
            lanes.run(*id, "first", LONG, |_| Ok(())).await.unwrap();
        }
        let mut calls = Vec::new();
        for id in slow_guests {
            // More than one call each: none of them may take a thread from the others.
            for _ in 0..2 {
                let (call, begun, release) = blocked_call();
                let lanes = Arc::clone(&lanes);
                let task = tokio::spawn(async move { lanes.run(id, "again", LONG, call).await });
                calls.push((task, begun, release));
            }
        }
        let (_, begun, _) = calls.first_mut().unwrap();
        assert!(begun.await.unwrap(), "the call runs on the fast lane");
        let other = lanes.run(InstanceId::generate(), "ping", LONG, |slow| Ok(!slow));
        assert!(other.await.unwrap());
        let mut tasks = Vec::new();
        for (task, _, release) in calls {
            drop(release);
            tasks.push(task);
        }
        for task in tasks {
            task.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_guest_has_one_call_at_a_time() {
        let lanes = Arc::new(Lanes::start(LONG).unwrap());
        let id = InstanceId::generate();
        let (call, begun, release) = blocked_call();
        let first = {
            let lanes = Arc::clone(&lanes);
            tokio::spawn(async move { lanes.run(id, "first", LONG, call).await })
        };
        begun.await.unwrap();
        let second = lanes.run(id, "second", Duration::from_millis(1), |_| Ok(()));
        assert!(matches!(
            second.await,
            Err(HypervisorError::TimedOut {
                operation: "second",
                ..
            })
        ));
        let other = lanes.run(InstanceId::generate(), "other", LONG, |_| Ok(()));
        other.await.unwrap();
        drop(release);
        first.await.unwrap().unwrap();
        lanes.run(id, "third", LONG, |_| Ok(())).await.unwrap();
    }

    #[test]
    fn slow_periods_double_and_are_forgotten_after_their_length_without_a_slow_call() {
        let start = Instant::now();
        let mut responsiveness = Responsiveness::default();
        responsiveness.record_call(false, start);
        assert_eq!(responsiveness, Responsiveness::default());
        responsiveness.record_call(true, start);
        assert!(responsiveness.is_slow(start) && !responsiveness.is_slow(start + SLOW_PERIOD_MIN));
        // An answer meanwhile does not shorten the period, and another timeout on the slow lane does not double it.
        responsiveness.record_call(false, start);
        responsiveness.record_call(true, start);
        assert_eq!(responsiveness.slow_until, Some(start + SLOW_PERIOD_MIN));
        // A slow call on the fast lane doubles the period.
        let again = start + SLOW_PERIOD_MIN;
        responsiveness.record_call(true, again);
        assert_eq!(responsiveness.slow_until, Some(again + 2 * SLOW_PERIOD_MIN));
        responsiveness.record_call(false, again + 4 * SLOW_PERIOD_MIN);
        assert_eq!(responsiveness, Responsiveness::default());
        for _ in 0..100 {
            let now = responsiveness.slow_until.unwrap_or(start);
            responsiveness.record_call(true, now);
            assert!(responsiveness.slow_until.unwrap() <= now + SLOW_PERIOD_MAX);
        }
    }
}
