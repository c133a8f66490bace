//! The order in which jobs run: guest suites, other tests, and work without deadlines, side by side.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The kinds of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Boots guests. One takes about one processor for minutes.
    Guests,
    /// Other tests. One takes all processors that it finds, but waits often.
    Rest,
    /// Compiles and has no deadlines, for example a lint. Runs in the processor time that the others leave.
    Background,
}

/// Jobs that several workers take, each once.
pub struct Queues<T> {
    state: Mutex<State<T>>,
    /// A guest suite ended, so another may begin.
    ended: Condvar,
    guests_at_once: usize,
}

struct State<T> {
    guests: VecDeque<T>,
    rest: VecDeque<T>,
    background: VecDeque<T>,
    running_guests: usize,
}

/// A job for a worker, to be given back to [`Queues::done`].
#[derive(Debug, PartialEq, Eq)]
pub struct Taken<T> {
    pub kind: Kind,
    pub job: T,
}

/// The workers of a machine: those for guest suites take nothing else; the one for other tests takes guest suites once
/// no other test is left. One takes the work in the background, which must not slow down the others.
///
/// On two processors, all tests run one after the other: an emulated guest, and above all a guest inside an emulated
/// machine, becomes so slow during other tests that it misses deadlines. With more, guest suites run concurrently with the
/// rest. Two jobs of the rest never run at once: some compare the machine's network and mounts before and after.
pub fn workers(processors: usize) -> &'static [Kind] {
    match processors {
        0..=2 => &[Kind::Background, Kind::Rest],
        3 => &[Kind::Background, Kind::Guests, Kind::Rest],
        _ => &[Kind::Background, Kind::Guests, Kind::Guests, Kind::Rest],
    }
}

/// Whether work in the background can run beside the tests. On two processors, it slows them down so far that tests with
/// real networks miss deadlines, even under the kernel's policy for idle work. There it runs before the tests.
pub fn has_time_for_the_background(processors: usize) -> bool {
    processors > 2
}

impl<T> Queues<T> {
    /// Jobs of each kind are taken in the given order. Of guest suites, `guests_at_once` may run at a time.
    pub fn new(
        guests: impl IntoIterator<Item = T>,
        rest: impl IntoIterator<Item = T>,
        background: impl IntoIterator<Item = T>,
        guests_at_once: usize,
    ) -> Self {
        Self {
            state: Mutex::new(State {
                guests: guests.into_iter().collect(),
                rest: rest.into_iter().collect(),
                background: background.into_iter().collect(),
                running_guests: 0,
            }),
            ended: Condvar::new(),
            guests_at_once: guests_at_once.max(1),
        }
    }

    /// The next job for a worker that prefers one kind. Waits while only guest suites are left and none may run yet.
    /// `None` if no job is left.
    pub fn take(&self, preferred: Kind) -> Option<Taken<T>> {
        let mut state = self.lock();
        loop {
            if let Some(taken) = state.next(preferred, self.guests_at_once) {
                return Some(taken);
            }
            if preferred == Kind::Background || state.guests.is_empty() {
                return None;
            }
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A job of this kind ended.
    pub fn done(&self, kind: Kind) {
        if kind == Kind::Guests {
            self.lock().running_guests -= 1;
            self.ended.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn next(&mut self, preferred: Kind, guests_at_once: usize) -> Option<Taken<T>> {
        let order: &[Kind] = match preferred {
            Kind::Guests => &[Kind::Guests],
            Kind::Rest => &[Kind::Rest, Kind::Guests],
            Kind::Background => &[Kind::Background],
        };
        for &kind in order {
            let job = match kind {
                Kind::Rest => self.rest.pop_front(),
                Kind::Background => self.background.pop_front(),
                Kind::Guests if self.running_guests < guests_at_once => {
                    let job = self.guests.pop_front();
                    self.running_guests += usize::from(job.is_some());
                    job
                }
                Kind::Guests => None,
            };
            if let Some(job) = job {
                return Some(Taken { kind, job });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(kind: Kind, job: &str) -> Taken<&str> {
        Taken { kind, job }
    }

    #[test]
    fn the_worker_for_other_tests_also_takes_guest_suites_but_not_vice_versa() {
        let queues = Queues::new(["install", "demo"], ["api"], [], 2);
        assert_eq!(
            queues.take(Kind::Guests),
            Some(taken(Kind::Guests, "install"))
        );
        assert_eq!(queues.take(Kind::Rest), Some(taken(Kind::Rest, "api")));
        assert_eq!(queues.take(Kind::Rest), Some(taken(Kind::Guests, "demo")));
        assert_eq!(queues.take(Kind::Guests), None);
        let queues = Queues::new([], ["api"], [], 2);
        assert_eq!(queues.take(Kind::Guests), None);
    }

    #[test]
    fn a_guest_suite_waits_until_another_has_ended_where_only_one_may_run() {
        let queues = Queues::new(["one", "two"], ["rest"], [], 1);
        assert_eq!(queues.take(Kind::Guests), Some(taken(Kind::Guests, "one")));
        // This does not keep a worker from other jobs.
        assert_eq!(queues.take(Kind::Rest), Some(taken(Kind::Rest, "rest")));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queues.take(Kind::Rest));
            queues.done(Kind::Guests);
            assert_eq!(waiting.join().unwrap(), Some(taken(Kind::Guests, "two")));
        });
        assert_eq!(queues.take(Kind::Guests), None);
    }

    #[test]
    fn work_in_the_background_is_taken_in_order_by_its_own_worker_only() {
        let queues = Queues::new(["install"], [], ["lint", "doc tests"], 1);
        assert_eq!(
            queues.take(Kind::Background),
            Some(taken(Kind::Background, "lint"))
        );
        assert_eq!(
            queues.take(Kind::Rest),
            Some(taken(Kind::Guests, "install"))
        );
        assert_eq!(
            queues.take(Kind::Background),
            Some(taken(Kind::Background, "doc tests"))
        );
        // It does not wait for guest suites.
        assert_eq!(queues.take(Kind::Background), None);
        queues.done(Kind::Guests);
        let queues = Queues::new([], [], ["lint"], 1);
        assert_eq!(queues.take(Kind::Rest), None);
    }

    #[test]
    fn on_two_processors_nothing_runs_in_the_background() {
        assert!(!has_time_for_the_background(2));
        assert!(has_time_for_the_background(3));
    }

    #[test]
    fn guest_suites_run_concurrently_with_other_tests_only_on_more_than_two_processors() {
        let tests = |processors| {
            let (first, tests) = workers(processors).split_first().unwrap();
            assert_eq!(*first, Kind::Background);
            tests
        };
        for processors in [0, 1, 2] {
            assert_eq!(tests(processors), [Kind::Rest]);
        }
        assert_eq!(tests(3), [Kind::Guests, Kind::Rest]);
        for processors in [4, 64] {
            assert_eq!(tests(processors), [Kind::Guests, Kind::Guests, Kind::Rest]);
        }
    }
}
