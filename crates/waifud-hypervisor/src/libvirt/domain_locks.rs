//! Serializes the calls about each domain, including calls that continue after their timeout.
//!
//! A caller stops waiting for a call after a time limit, but the call continues. Until it has ended, the
//! observed state of the domain is unreliable and nothing else may change the domain. So the next call waits for it,
//! and fails if its own time limit passes first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use waifud_kit::sync::lock;
use waifud_types::InstanceId;

use super::threads::Threads;
use crate::HypervisorError;

type DomainLock = tokio::sync::Mutex<()>;

/// The lock of each domain with running calls.
#[derive(Default)]
pub(super) struct DomainLocks(Mutex<HashMap<InstanceId, Weak<DomainLock>>>);

impl DomainLocks {
    /// Runs `call` on one of the threads, after the domain's earlier calls have ended.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        id: InstanceId,
        threads: &Threads,
        operation: &'static str,
        limit: Duration,
        call: impl FnOnce() -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let guard = tokio::time::timeout(limit, self.of(id).lock_owned())
            .await
            .map_err(|_| HypervisorError::TimedOut {
                operation,
                after: limit,
            })?;
        let call = move || {
            let _guard = guard;
            call()
        };
        threads.run(operation, limit, call).await
    }

    fn of(&self, id: InstanceId) -> Arc<DomainLock> {
        let mut locks = lock(&self.0);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(&id).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(id, Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);
    const SHORT: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn a_call_waits_for_a_timed_out_call_of_the_same_domain_only() {
        let (locks, threads) = (DomainLocks::default(), Threads::start("test", 2).unwrap());
        let (id, other) = (InstanceId::generate(), InstanceId::generate());
        let (release, released) = mpsc::channel::<()>();
        let (ended, order) = mpsc::channel();
        let (begin, has_begun) = mpsc::channel();
        let released = Arc::new(Mutex::new(released));
        // A call that times out before it began is not made. So it is repeated until one has begun, which ends only when it
        // is released.
        while has_begun.try_recv().is_err() {
            let (begin, ended, released) = (begin.clone(), ended.clone(), released.clone());
            let define = move || {
                begin.send(()).ok();
                released.lock().unwrap().recv().ok();
                ended.send("defined").ok();
                Ok(())
            };
            let late = locks.run(id, &threads, "define", Duration::from_millis(50), define);
            assert!(matches!(
                late.await,
                Err(HypervisorError::TimedOut {
                    operation: "define",
                    ..
                })
            ));
        }
        let early = locks.run(id, &threads, "get", SHORT, || Ok(()));
        assert!(matches!(
            early.await,
            Err(HypervisorError::TimedOut {
                operation: "get",
                ..
            })
        ));
        locks
            .run(other, &threads, "get", LONG, || Ok(()))
            .await
            .unwrap();
        release.send(()).unwrap();
        let get = move || {
            ended.send("got").ok();
            Ok(())
        };
        locks.run(id, &threads, "get", LONG, get).await.unwrap();
        assert_eq!(order.iter().collect::<Vec<_>>(), ["defined", "got"]);
    }

    #[tokio::test]
    async fn locks_of_domains_without_calls_are_removed() {
        let (locks, threads) = (DomainLocks::default(), Threads::start("test", 1).unwrap());
        for _ in 0..3 {
            let id = InstanceId::generate();
            locks
                .run(id, &threads, "get", LONG, || Ok(()))
                .await
                .unwrap();
        }
        locks.of(InstanceId::generate());
        assert_eq!(locks.0.lock().unwrap().len(), 1);
    }
}
