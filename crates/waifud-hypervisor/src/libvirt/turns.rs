//! One call about a domain at a time, up to its real end.
//!
//! A caller stops waiting for a call after a while; the call may still be carried out. Until it has ended, nothing that
//! is seen of the domain can be relied on, and nothing else may be done to it: the next call waits for its turn, and
//! fails when its own time is over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use waifud_types::InstanceId;

use super::threads::Threads;
use crate::HypervisorError;

type Turn = tokio::sync::Mutex<()>;

/// Whose turn it is, for each domain with calls under way.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<InstanceId, Weak<Turn>>>);

impl Turns {
    /// Runs `call` on one of the threads, after the domain's earlier calls have ended.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        id: InstanceId,
        threads: &Threads,
        what: &'static str,
        limit: Duration,
        call: impl FnOnce() -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let turn = tokio::time::timeout(limit, self.of(id).lock_owned())
            .await
            .map_err(|_| HypervisorError::TimedOut { what, after: limit })?;
        let call = move || {
            let _turn = turn;
            call()
        };
        threads.run(what, limit, call).await
    }

    fn of(&self, id: InstanceId) -> Arc<Turn> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&id).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(id, Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);
    const SHORT: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn a_domain_waits_for_its_call_that_timed_out_and_others_do_not() {
        let (turns, threads) = (Turns::default(), Threads::start("test", 2).unwrap());
        let (id, other) = (InstanceId::generate(), InstanceId::generate());
        let (release, held) = mpsc::channel::<()>();
        let (seen, order) = mpsc::channel();
        let define = {
            let seen = seen.clone();
            move || {
                held.recv().ok();
                seen.send("defined").ok();
                Ok(())
            }
        };
        // As long as it takes for the call to begin; it does not end before it is released.
        let late = turns.run(id, &threads, "define", Duration::from_millis(50), define);
        assert!(matches!(
            late.await,
            Err(HypervisorError::TimedOut { what: "define", .. })
        ));
        let early = turns.run(id, &threads, "get", SHORT, || Ok(()));
        assert!(matches!(
            early.await,
            Err(HypervisorError::TimedOut { what: "get", .. })
        ));
        turns
            .run(other, &threads, "get", LONG, || Ok(()))
            .await
            .unwrap();
        release.send(()).unwrap();
        let look = move || {
            seen.send("looked").ok();
            Ok(())
        };
        turns.run(id, &threads, "get", LONG, look).await.unwrap();
        assert_eq!(order.iter().collect::<Vec<_>>(), ["defined", "looked"]);
    }

    #[tokio::test]
    async fn turns_of_domains_without_calls_are_forgotten() {
        let (turns, threads) = (Turns::default(), Threads::start("test", 1).unwrap());
        for _ in 0..3 {
            let id = InstanceId::generate();
            turns
                .run(id, &threads, "get", LONG, || Ok(()))
                .await
                .unwrap();
        }
        turns.of(InstanceId::generate());
        assert_eq!(turns.0.lock().unwrap().len(), 1);
    }
}
