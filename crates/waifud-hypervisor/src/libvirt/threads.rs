//! A fixed number of threads for blocking calls: libvirt's C library waits for the daemon's answers.
//!
//! tokio's blocking threads are not used: there are hundreds of them, and a hanging daemon would occupy them all. Here
//! calls are queued. A call that has waited too long returns an error and is not started.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;
use waifud_kit::sync::lock;

use crate::HypervisorError;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end when this is dropped and their calls are done.
pub(super) struct Threads {
    jobs: mpsc::Sender<Job>,
}

impl Threads {
    pub(super) fn start(name: &str, count: usize) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..count {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name(format!("{name}-{index}"))
                .spawn(move || work(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Runs `call` on one of the threads. Stops waiting after `limit`; a call that has started then continues.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        limit: Duration,
        call: impl FnOnce() -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            if !answer.is_closed() {
                // This fails only if the caller has stopped waiting.
                let _caller_gone = answer.send(call());
            }
        });
        let lost = || HypervisorError::Other {
            operation,
            message: "the call ended without an answer".to_owned(),
        };
        self.jobs.send(job).map_err(|_| lost())?;
        match tokio::time::timeout(limit, answered).await {
            Ok(answer) => answer.map_err(|_| lost())?,
            Err(_late) => Err(HypervisorError::TimedOut {
                operation,
                after: limit,
            }),
        }
    }
}

fn work(queue: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = lock(queue).recv();
        let Ok(job) = job else { return };
        // The binding panics on values that it does not expect; the thread must survive that.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a call into libvirt panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_queued_call_is_not_started_after_its_timeout() {
        let threads = Arc::new(Threads::start("test", 1).unwrap());
        let (release, released) = mpsc::channel::<()>();
        let (busy, is_busy) = oneshot::channel();
        let slow = tokio::spawn({
            let threads = Arc::clone(&threads);
            async move {
                let call = move || {
                    busy.send(()).ok();
                    released.recv().ok();
                    Ok(())
                };
                threads.run("slow", LONG, call).await
            }
        });
        is_busy.await.unwrap();
        let started = Arc::new(AtomicBool::new(false));
        let late = threads.run("late", Duration::from_millis(1), {
            let started = Arc::clone(&started);
            move || {
                started.store(true, Ordering::SeqCst);
                Ok(())
            }
        });
        assert!(matches!(
            late.await,
            Err(HypervisorError::TimedOut {
                operation: "late",
                ..
            })
        ));
        release.send(()).unwrap();
        slow.await.unwrap().unwrap();
        threads.run("next", LONG, || Ok(())).await.unwrap();
        assert!(!started.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_panic_fails_the_call_and_keeps_the_thread() {
        let threads = Threads::start("test", 1).unwrap();
        let lost: Result<(), _> = threads
            .run("panic", LONG, || panic!("a panic for the test"))
            .await;
        assert!(matches!(lost, Err(HypervisorError::Other { .. })));
        assert_eq!(threads.run("next", LONG, || Ok(7)).await.unwrap(), 7);
    }
}
