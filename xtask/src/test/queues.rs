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

/// Which jobs may run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many guest suites may run at once.
    pub guests: usize,
    /// Whether a job of the rest starts only when nothing else is left or running.
    pub rest_alone: bool,
}

impl Limits {
    /// The limits of a machine.
    ///
    /// On two processors, other tests do not run beside an emulated guest: tests with real networks miss their
    /// deadlines. Compilation slows them down too, even under the kernel's policy for idle work.
    pub fn new(processors: usize, guests: usize) -> Self {
        Self {
            guests: guests.max(1),
            rest_alone: processors <= 2,
        }
    }
}

/// Jobs that several workers take, each once.
pub struct Queues<T> {
    state: Mutex<State<T>>,
    /// A job ended, so another may begin.
    ended: Condvar,
    limits: Limits,
}

struct State<T> {
    guests: VecDeque<T>,
    rest: VecDeque<T>,
    background: VecDeque<T>,
    running_guests: usize,
    running_background: usize,
}

/// A job for a worker, to be given back to [`Queues::done`].
#[derive(Debug, PartialEq, Eq)]
pub struct Taken<T> {
    pub kind: Kind,
    pub job: T,
}

/// The workers of a machine: those for guest suites take nothing else; the one for other tests also takes guest suites.
/// One takes the work in the background, which must not slow down the others.
///
/// Two jobs of the rest never run at once: some compare the machine's network and mounts before and after.
pub fn workers(processors: usize) -> &'static [Kind] {
    match processors {
        0..=3 => &[Kind::Background, Kind::Guests, Kind::Rest],
        _ => &[Kind::Background, Kind::Guests, Kind::Guests, Kind::Rest],
    }
}

impl<T> Queues<T> {
    /// Jobs of each kind are taken in the given order.
    pub fn new(
        guests: impl IntoIterator<Item = T>,
        rest: impl IntoIterator<Item = T>,
        background: impl IntoIterator<Item = T>,
        limits: Limits,
    ) -> Self {
        Self {
            state: Mutex::new(State {
                guests: guests.into_iter().collect(),
                rest: rest.into_iter().collect(),
                background: background.into_iter().collect(),
                running_guests: 0,
                running_background: 0,
            }),
            ended: Condvar::new(),
            limits,
        }
    }

    /// The next job for a worker that prefers one kind. Waits while jobs are left of which none may run yet. `None` if no
    /// job is left for this worker.
    pub fn take(&self, preferred: Kind) -> Option<Taken<T>> {
        let mut state = self.lock();
        loop {
            if let Some(taken) = state.next(preferred, self.limits) {
                return Some(taken);
            }
            if !state.is_work_left(preferred) {
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
        let mut state = self.lock();
        match kind {
            Kind::Guests => state.running_guests -= 1,
            Kind::Background => state.running_background -= 1,
            Kind::Rest => return,
        }
        drop(state);
        self.ended.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn next(&mut self, preferred: Kind, limits: Limits) -> Option<Taken<T>> {
        let order: &[Kind] = match preferred {
            Kind::Guests => &[Kind::Guests],
            Kind::Rest if limits.rest_alone => &[Kind::Guests, Kind::Rest],
            Kind::Rest => &[Kind::Rest, Kind::Guests],
            Kind::Background => &[Kind::Background],
        };
        for &kind in order {
            let job = match kind {
                Kind::Rest if limits.rest_alone && !self.has_only_rest() => None,
                Kind::Rest => self.rest.pop_front(),
                Kind::Background => {
                    let job = self.background.pop_front();
                    self.running_background += usize::from(job.is_some());
                    job
                }
                Kind::Guests if self.running_guests < limits.guests => {
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

    /// Whether everything but the rest has ended.
    fn has_only_rest(&self) -> bool {
        self.guests.is_empty()
            && self.background.is_empty()
            && self.running_guests == 0
            && self.running_background == 0
    }

    /// Whether a job is left that a worker may take later.
    fn is_work_left(&self, preferred: Kind) -> bool {
        match preferred {
            Kind::Guests => !self.guests.is_empty(),
            Kind::Rest => !self.guests.is_empty() || !self.rest.is_empty(),
            Kind::Background => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_AT_ONCE: Limits = Limits {
        guests: 2,
        rest_alone: false,
    };
    const ONE_AT_A_TIME: Limits = Limits {
        guests: 1,
        rest_alone: false,
    };

    fn taken(kind: Kind, job: &str) -> Taken<&str> {
        Taken { kind, job }
    }

    #[test]
    fn the_worker_for_other_tests_also_takes_guest_suites_but_not_vice_versa() {
        let queues = Queues::new(["install", "demo"], ["api"], [], TWO_AT_ONCE);
        assert_eq!(
            queues.take(Kind::Guests),
            Some(taken(Kind::Guests, "install"))
        );
        assert_eq!(queues.take(Kind::Rest), Some(taken(Kind::Rest, "api")));
        assert_eq!(queues.take(Kind::Rest), Some(taken(Kind::Guests, "demo")));
        assert_eq!(queues.take(Kind::Guests), None);
        let queues = Queues::new([], ["api"], [], TWO_AT_ONCE);
        assert_eq!(queues.take(Kind::Guests), None);
    }

    #[test]
    fn a_guest_suite_waits_until_another_has_ended_where_only_one_may_run() {
        let queues = Queues::new(["one", "two"], ["rest"], [], ONE_AT_A_TIME);
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
    fn on_two_processors_other_tests_wait_for_guest_suites_and_for_the_background() {
        let queues = Queues::new(["install", "demo"], ["api"], ["lint"], Limits::new(2, 2));
        for (worker, job) in [
            (Kind::Background, taken(Kind::Background, "lint")),
            (Kind::Rest, taken(Kind::Guests, "install")),
            (Kind::Guests, taken(Kind::Guests, "demo")),
        ] {
            assert_eq!(queues.take(worker), Some(job));
        }
        for ended in [Kind::Guests, Kind::Guests, Kind::Background] {
            // The next job of the rest may not begin, but the worker must not end either.
            assert_eq!(queues.lock().next(Kind::Rest, queues.limits), None);
            assert!(queues.lock().is_work_left(Kind::Rest));
            queues.done(ended);
        }
        assert_eq!(queues.take(Kind::Rest), Some(taken(Kind::Rest, "api")));
        assert_eq!(queues.take(Kind::Rest), None);
    }

    #[test]
    fn work_in_the_background_is_taken_in_order_by_its_own_worker_only() {
        let queues = Queues::new(["install"], [], ["lint", "doc tests"], ONE_AT_A_TIME);
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
        let queues = Queues::new([], [], ["lint"], ONE_AT_A_TIME);
        assert_eq!(queues.take(Kind::Rest), None);
    }

    #[test]
    fn other_tests_run_beside_guest_suites_only_on_more_than_two_processors() {
        for processors in [0, 1, 2] {
            assert!(Limits::new(processors, 2).rest_alone);
        }
        for processors in [3, 64] {
            assert!(!Limits::new(processors, 2).rest_alone);
        }
        assert_eq!(Limits::new(2, 0).guests, 1);
    }

    #[test]
    fn every_machine_has_a_worker_for_each_kind() {
        for processors in [0, 1, 2, 3, 4, 64] {
            for kind in [Kind::Background, Kind::Guests, Kind::Rest] {
                assert!(workers(processors).contains(&kind), "{processors}");
            }
        }
    }
}
