//! Calls to guest agents: a guest that lets them wait costs itself and no other guest.
//!
//! A silent agent holds a thread, and a request of libvirtd, until libvirt gives it up after seconds. So each guest has
//! one call at a time, and one that held a thread for long is asked on a lane apart for a while, twice as long at each
//! time: on the other lane, it delays the others by one call at most. Each lane has a connection of its own, for
//! libvirtd takes five requests of a connection at a time and lets the rest wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virt::connect::Connect;
use waifud_types::InstanceId;

use super::connection::Connector;
use super::error::Fault;
use super::threads::Threads;
use crate::HypervisorError;

/// Calls at a time to guests that answer.
const THREADS: usize = 4;
/// Calls at a time to those that do not.
const SLOW_THREADS: usize = 2;
/// A call that takes longer is one of a slow guest.
const SLOW: Duration = Duration::from_secs(2);
/// How long a guest counts as slow after the first such call, and at most.
const APART_MIN: Duration = Duration::from_secs(30);
const APART_MAX: Duration = Duration::from_hours(1);

/// The lanes, without what is called.
struct Lanes {
    answering: Threads,
    slow: Threads,
    guests: Arc<Mutex<HashMap<InstanceId, Guest>>>,
    slow_after: Duration,
}

/// What is known of one guest's agent.
#[derive(Default)]
struct Guest {
    /// Held by its one call.
    turn: Arc<tokio::sync::Mutex<()>>,
    conduct: Conduct,
}

/// How a guest's agent behaved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Conduct {
    /// Slow calls, each of which began a time apart.
    slow_calls: u32,
    /// Until when it is asked on the lane apart.
    apart_until: Option<Instant>,
}

impl Conduct {
    fn is_apart(&self, now: Instant) -> bool {
        self.apart_until.is_some_and(|until| now < until)
    }

    /// A call is over.
    fn called(&mut self, slow: bool, now: Instant) {
        if slow {
            // More slow calls on the lane apart prove nothing new.
            if !self.is_apart(now) {
                self.slow_calls = self.slow_calls.saturating_add(1);
            }
            self.apart_until = Some(now + self.time_apart());
        } else if self.is_past(now) {
            *self = Self::default();
        }
    }

    fn time_apart(&self) -> Duration {
        let doubled = 1_u32
            .checked_shl(self.slow_calls.saturating_sub(1))
            .unwrap_or(u32::MAX);
        APART_MIN.saturating_mul(doubled.max(1)).min(APART_MAX)
    }

    /// Whether its time apart ended so long ago that it counts no more.
    fn is_past(&self, now: Instant) -> bool {
        self.apart_until
            .is_none_or(|until| until + self.time_apart() <= now)
    }
}

impl Lanes {
    fn start(slow_after: Duration) -> std::io::Result<Self> {
        Ok(Self {
            answering: Threads::start("guest-agents", THREADS)?,
            slow: Threads::start("slow-agents", SLOW_THREADS)?,
            guests: Arc::default(),
            slow_after,
        })
    }

    /// Runs a guest's call on its lane, after the guest's calls before it. `call` is told whether that is the lane
    /// apart.
    async fn run<T: Send + 'static>(
        &self,
        id: InstanceId,
        what: &'static str,
        limit: Duration,
        call: impl FnOnce(bool) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let begun = Instant::now();
        let late = || HypervisorError::TimedOut { what, after: limit };
        let turn = self.turn(id, begun);
        let held = tokio::time::timeout(limit, turn.lock_owned())
            .await
            .map_err(|_| late())?;
        let apart = self.is_apart(id);
        let threads = if apart { &self.slow } else { &self.answering };
        let (guests, slow_after) = (Arc::clone(&self.guests), self.slow_after);
        let left = limit.saturating_sub(begun.elapsed());
        threads
            .run(what, left, move || {
                // Until the call is over, though its caller may have left.
                let _held = held;
                let begun = Instant::now();
                let outcome = call(apart);
                let slow = begun.elapsed() >= slow_after;
                if let Some(guest) = lock(&guests).get_mut(&id) {
                    guest.conduct.called(slow, Instant::now());
                }
                outcome
            })
            .await
    }

    fn turn(&self, id: InstanceId, now: Instant) -> Arc<tokio::sync::Mutex<()>> {
        let mut guests = lock(&self.guests);
        // Whoever is neither asked nor remembered for anything goes.
        guests.retain(|_, guest| Arc::strong_count(&guest.turn) > 1 || !guest.conduct.is_past(now));
        Arc::clone(&guests.entry(id).or_default().turn)
    }

    fn is_apart(&self, id: InstanceId) -> bool {
        let guests = lock(&self.guests);
        let guest = guests.get(&id);
        guest.is_some_and(|guest| guest.conduct.is_apart(Instant::now()))
    }
}

fn lock(guests: &Mutex<HashMap<InstanceId, Guest>>) -> MutexGuard<'_, HashMap<InstanceId, Guest>> {
    guests.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls guest agents through libvirt.
pub(super) struct Agents {
    lanes: Lanes,
    answering: Arc<Connector>,
    slow: Arc<Connector>,
}

impl Agents {
    pub(super) fn start(uri: &str) -> std::io::Result<Self> {
        Ok(Self {
            lanes: Lanes::start(SLOW)?,
            answering: Connector::start(uri.to_owned())?,
            slow: Connector::start(uri.to_owned())?,
        })
    }

    pub(super) async fn call<T: Send + 'static>(
        &self,
        id: InstanceId,
        what: &'static str,
        limit: Duration,
        call: impl FnOnce(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let connectors = [&self.answering, &self.slow].map(Arc::clone);
        self.lanes
            .run(id, what, limit, move |apart| {
                let [answering, slow] = connectors;
                if apart { slow } else { answering }.with(call)
            })
            .await
    }

    /// The connection on which calls may take their time.
    pub(super) fn slow_connection(&self) -> &Arc<Connector> {
        &self.slow
    }

    /// Ends the keepers soon after the last other holder is gone.
    pub(super) fn wake(&self) {
        self.answering.wake();
        self.slow.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_mins(1);

    /// A call that is held up until the other end is dropped, and what says that it has begun.
    fn held_up() -> (
        impl FnOnce(bool) -> Result<(), HypervisorError> + Send + 'static,
        tokio::sync::oneshot::Receiver<bool>,
        mpsc::Sender<()>,
    ) {
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (release, held) = mpsc::channel();
        let call = move |apart| {
            begun.send(apart).ok();
            held.recv().ok();
            Ok(())
        };
        (call, has_begun, release)
    }

    #[tokio::test]
    async fn guests_that_were_silent_once_hold_up_no_other() {
        // Every call is slow that takes any time at all; so only honest guests' first calls count here.
        let lanes = Arc::new(Lanes::start(Duration::ZERO).unwrap());
        let silent: Vec<_> = (0..2 * THREADS).map(|_| InstanceId::generate()).collect();
        for id in &silent {
            lanes.run(*id, "first", LONG, |_| Ok(())).await.unwrap();
        }
        let mut calls = Vec::new();
        for id in silent {
            // More than one call each: none of them may take a thread from the others.
            for _ in 0..2 {
                let (call, begun, release) = held_up();
                let lanes = Arc::clone(&lanes);
                let task = tokio::spawn(async move { lanes.run(id, "again", LONG, call).await });
                calls.push((task, begun, release));
            }
        }
        let (_, begun, _) = calls.first_mut().unwrap();
        assert!(begun.await.unwrap(), "on the lane of those that answer");
        let honest = lanes.run(InstanceId::generate(), "ping", LONG, |apart| Ok(!apart));
        assert!(honest.await.unwrap());
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
        let (call, begun, release) = held_up();
        let first = {
            let lanes = Arc::clone(&lanes);
            tokio::spawn(async move { lanes.run(id, "first", LONG, call).await })
        };
        begun.await.unwrap();
        let second = lanes.run(id, "second", Duration::from_millis(1), |_| Ok(()));
        assert!(matches!(
            second.await,
            Err(HypervisorError::TimedOut { what: "second", .. })
        ));
        let other = lanes.run(InstanceId::generate(), "other", LONG, |_| Ok(()));
        other.await.unwrap();
        drop(release);
        first.await.unwrap().unwrap();
        lanes.run(id, "third", LONG, |_| Ok(())).await.unwrap();
    }

    #[test]
    fn times_apart_grow_and_are_forgotten_after_as_long_without_one() {
        let start = Instant::now();
        let mut conduct = Conduct::default();
        conduct.called(false, start);
        assert_eq!(conduct, Conduct::default());
        conduct.called(true, start);
        assert!(conduct.is_apart(start) && !conduct.is_apart(start + APART_MIN));
        // Answering meanwhile does not shorten it, and more silence on the lane apart does not double it.
        conduct.called(false, start);
        conduct.called(true, start);
        assert_eq!(conduct.apart_until, Some(start + APART_MIN));
        // It was trusted again, and was silent again.
        let again = start + APART_MIN;
        conduct.called(true, again);
        assert_eq!(conduct.apart_until, Some(again + 2 * APART_MIN));
        conduct.called(false, again + 4 * APART_MIN);
        assert_eq!(conduct, Conduct::default());
        for _ in 0..100 {
            let now = conduct.apart_until.unwrap_or(start);
            conduct.called(true, now);
            assert!(conduct.apart_until.unwrap() <= now + APART_MAX);
        }
    }
}
