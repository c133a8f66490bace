//! Requests and reports of guests, for the agent: limited per instance and in total. The agent can wait for new ones.
//!
//! A guest can use up only its own limit. Reports have a separate limit, so many requests do not displace them before the
//! agent has read them.

use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use waifud_api::metadatad::{Observation, Observations, Observed};
use waifud_kit::sync::lock;
use waifud_types::{InstanceId, Timestamp};

/// Requests kept per instance: more than during a boot.
const REQUESTS_PER_INSTANCE: usize = 64;
/// Reports kept per instance.
const REPORTS_PER_INSTANCE: usize = 4;
/// Events of cloud-init's reporter kept per instance: a boot has about 130.
const EVENTS_PER_INSTANCE: usize = 500;
/// Observations kept in total.
const IN_ALL: usize = 8_192;
/// Observations in one answer.
const PER_ANSWER: usize = 1_024;
/// How long to collect further observations after the first: a boot requests thirty documents in a row.
const GATHER: Duration = Duration::from_millis(20);

/// The log of one process.
#[derive(Debug)]
pub(crate) struct ObservationLog {
    inner: Mutex<Inner>,
    last: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    total: usize,
    instances: HashMap<InstanceId, Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    requests: VecDeque<Observation>,
    reports: VecDeque<Observation>,
    events: VecDeque<Observation>,
}

impl Kept {
    fn len(&self) -> usize {
        self.requests.len() + self.reports.len() + self.events.len()
    }
}

impl Default for ObservationLog {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            last: watch::Sender::new(0),
        }
    }
}

impl ObservationLog {
    /// Records an observation of an instance.
    pub fn record(&self, instance: InstanceId, at: Timestamp, what: Observed) {
        let last = self.with(|inner| inner.record(instance, at, what));
        self.last.send_replace(last);
    }

    /// Whether a report of the instance is kept.
    pub fn has_report(&self, instance: InstanceId) -> bool {
        self.with(|inner| {
            let kept = inner.instances.get(&instance);
            kept.is_some_and(|kept| !kept.reports.is_empty())
        })
    }

    /// Drops all observations of an instance.
    pub fn forget(&self, instance: InstanceId) {
        self.with(|inner| {
            if let Some(kept) = inner.instances.remove(&instance) {
                inner.total -= kept.len();
            }
        });
    }

    /// The observations after number `after`. Waits for the first one, at most `wait`.
    pub async fn after(&self, after: u64, wait: Duration) -> Observations {
        let found = self.with(|inner| inner.after(after));
        if !found.items.is_empty() || wait.is_zero() {
            return found;
        }
        let mut last = self.last.subscribe();
        let changed = async {
            if last.wait_for(|last| *last > after).await.is_ok() {
                sleep(GATHER).await;
            }
        };
        // In both cases (timeout or a new entry), the log is read again.
        let _ = timeout(wait, changed).await;
        self.with(|inner| inner.after(after))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut lock(&self.inner))
    }
}

impl Inner {
    fn record(&mut self, instance: InstanceId, at: Timestamp, what: Observed) -> u64 {
        self.last += 1;
        let kept = self.instances.entry(instance).or_default();
        let (queue, most) = match what {
            Observed::Request { .. } => (&mut kept.requests, REQUESTS_PER_INSTANCE),
            Observed::PhoneHome { .. } => (&mut kept.reports, REPORTS_PER_INSTANCE),
            Observed::CloudInit(_) => (&mut kept.events, EVENTS_PER_INSTANCE),
        };
        queue.push_back(Observation {
            number: self.last,
            at,
            instance,
            what,
        });
        if queue.len() > most {
            queue.pop_front();
        } else {
            self.total += 1;
        }
        if self.total > IN_ALL {
            self.shrink();
        }
        self.last
    }

    /// Removes the oldest request or event of the instance with the most of them.
    fn shrink(&mut self) {
        let most = self
            .instances
            .values_mut()
            .max_by_key(|kept| kept.requests.len().max(kept.events.len()));
        let Some(kept) = most else { return };
        let longer = if kept.events.len() > kept.requests.len() {
            &mut kept.events
        } else {
            &mut kept.requests
        };
        if longer.pop_front().is_some() {
            self.total -= 1;
        }
    }

    fn after(&self, after: u64) -> Observations {
        if after >= self.last {
            return Observations {
                last: self.last,
                items: Vec::new(),
            };
        }
        let mut items: Vec<&Observation> = self
            .instances
            .values()
            .flat_map(|kept| {
                kept.requests
                    .iter()
                    .chain(&kept.reports)
                    .chain(&kept.events)
            })
            .filter(|item| item.number > after)
            .collect();
        items.sort_by_key(|item| item.number);
        let complete = items.len() <= PER_ANSWER;
        items.truncate(PER_ANSWER);
        let last = match items.last() {
            Some(item) if !complete => item.number,
            _ => self.last,
        };
        Observations {
            last,
            items: items.into_iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use waifud_api::metadatad::CloudInitEvent;

    use super::*;

    fn request(path: &str) -> Observed {
        Observed::Request {
            path: path.to_owned(),
            status: 200,
        }
    }

    fn report() -> Observed {
        Observed::PhoneHome {
            instance_id: None,
            hostname: None,
            host_keys: Vec::new(),
        }
    }

    fn numbers(observations: &Observations) -> Vec<u64> {
        observations.items.iter().map(|item| item.number).collect()
    }

    #[tokio::test]
    async fn each_observation_is_returned_once_and_in_order() {
        let log = ObservationLog::default();
        let (a, b) = (InstanceId::generate(), InstanceId::generate());
        for instance in [a, b, a] {
            log.record(instance, Timestamp::UNIX_EPOCH, request("/"));
        }
        let first = log.after(0, Duration::ZERO).await;
        assert_eq!((numbers(&first), first.last), (vec![1, 2, 3], 3));
        let next = log.after(3, Duration::ZERO).await;
        assert_eq!((numbers(&next), next.last), (vec![], 3));
    }

    #[tokio::test]
    async fn a_flood_of_one_guest_displaces_neither_its_report_nor_other_guests() {
        let log = ObservationLog::default();
        let (flood, quiet) = (InstanceId::generate(), InstanceId::generate());
        log.record(quiet, Timestamp::UNIX_EPOCH, request("/quiet"));
        log.record(flood, Timestamp::UNIX_EPOCH, report());
        for _ in 0..100_000 {
            log.record(flood, Timestamp::UNIX_EPOCH, request("/"));
        }
        let seen = log.after(0, Duration::ZERO).await;
        assert_eq!(seen.items.len(), REQUESTS_PER_INSTANCE + 2);
        assert_eq!(numbers(&seen)[..2], [1, 2]);
    }

    #[tokio::test]
    async fn the_last_500_events_of_a_guest_are_kept_separately_from_its_requests() {
        let log = ObservationLog::default();
        let (flood, quiet) = (InstanceId::generate(), InstanceId::generate());
        let event = |n: usize| {
            Observed::CloudInit(CloudInitEvent {
                name: format!("modules-final/{n}"),
                result: None,
                description: String::new(),
                guest_micros: None,
            })
        };
        log.record(quiet, Timestamp::UNIX_EPOCH, event(0));
        log.record(flood, Timestamp::UNIX_EPOCH, request("/"));
        log.record(flood, Timestamp::UNIX_EPOCH, report());
        for n in 0..20_000 {
            log.record(flood, Timestamp::UNIX_EPOCH, event(n));
        }
        let seen = log.after(0, Duration::ZERO).await;
        assert_eq!(seen.items.len(), 500 + 3);
        assert_eq!(numbers(&seen)[..3], [1, 2, 3]);
        assert_eq!(seen.items.last().unwrap().what, event(19_999));
        log.forget(flood);
        assert_eq!(log.with(|inner| inner.total), 1);
    }

    #[tokio::test]
    async fn many_guests_stay_within_the_limits_and_long_answers_are_split() {
        let log = ObservationLog::default();
        for _ in 0..400 {
            let instance = InstanceId::generate();
            for _ in 0..REQUESTS_PER_INSTANCE {
                log.record(instance, Timestamp::UNIX_EPOCH, request("/"));
            }
        }
        let (mut after, mut count) = (0, 0);
        loop {
            let part = log.after(after, Duration::ZERO).await;
            if part.items.is_empty() {
                break;
            }
            assert!(part.items.len() <= PER_ANSWER);
            (after, count) = (part.last, count + part.items.len());
        }
        assert_eq!(count, IN_ALL);
        assert_eq!(after, 400 * REQUESTS_PER_INSTANCE as u64);
    }

    #[tokio::test]
    async fn a_wait_ends_with_a_new_observation_or_at_its_deadline() {
        let log = ObservationLog::default();
        let empty = log.after(0, Duration::from_millis(5)).await;
        assert!(empty.items.is_empty());
        let (seen, ()) = tokio::join!(log.after(0, Duration::from_hours(1)), async {
            log.record(InstanceId::generate(), Timestamp::UNIX_EPOCH, report());
        });
        assert_eq!(numbers(&seen), [1]);
    }

    #[tokio::test]
    async fn dropped_observations_are_removed_and_numbers_continue() {
        let log = ObservationLog::default();
        let instance = InstanceId::generate();
        assert!(!log.has_report(instance));
        log.record(instance, Timestamp::UNIX_EPOCH, report());
        assert!(log.has_report(instance));
        log.forget(instance);
        log.forget(instance);
        let seen = log.after(0, Duration::ZERO).await;
        assert_eq!((numbers(&seen), seen.last), (vec![], 1));
        assert_eq!(log.with(|inner| inner.total), 0);
    }
}
