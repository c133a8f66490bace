//! A few threads for calls that block: libvirt's C library waits for the daemon's answers.
//!
//! Not tokio's own blocking threads: those number hundreds, and a daemon that hangs would fill them all. Here calls
//! queue; whoever waited too long goes away with an error, and his call is not begun any more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

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

    /// Runs `call` on one of the threads. When `limit` has passed, waiting ends; the call may go on, if it had begun.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        limit: Duration,
        call: impl FnOnce() -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            if !answer.is_closed() {
                // Nobody waits any more when this fails.
                let _gone = answer.send(call());
            }
        });
        let lost = || HypervisorError::Other {
            what,
            message: "the call ended without an answer".to_owned(),
        };
        self.jobs.send(job).map_err(|_| lost())?;
        match tokio::time::timeout(limit, answered).await {
            Ok(answer) => answer.map_err(|_| lost())?,
            Err(_late) => Err(HypervisorError::TimedOut { what, after: limit }),
        }
    }
}

fn work(queue: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // The binding panics on what it deems impossible; that must not cost the thread.
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
    async fn a_call_whose_caller_gave_up_is_not_begun() {
        let threads = Arc::new(Threads::start("test", 1).unwrap());
        let (release, held) = mpsc::channel::<()>();
        let (busy, is_busy) = oneshot::channel();
        let slow = tokio::spawn({
            let threads = Arc::clone(&threads);
            async move {
                let call = move || {
                    busy.send(()).ok();
                    held.recv().ok();
                    Ok(())
                };
                threads.run("slow", LONG, call).await
            }
        });
        is_busy.await.unwrap();
        let begun = Arc::new(AtomicBool::new(false));
        let late = threads.run("late", Duration::from_millis(1), {
            let begun = Arc::clone(&begun);
            move || {
                begun.store(true, Ordering::SeqCst);
                Ok(())
            }
        });
        assert!(matches!(
            late.await,
            Err(HypervisorError::TimedOut { what: "late", .. })
        ));
        release.send(()).unwrap();
        slow.await.unwrap().unwrap();
        threads.run("next", LONG, || Ok(())).await.unwrap();
        assert!(!begun.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_panic_costs_the_call_and_not_the_thread() {
        let threads = Threads::start("test", 1).unwrap();
        let lost: Result<(), _> = threads
            .run("odd", LONG, || panic!("this one is part of the test"))
            .await;
        assert!(matches!(lost, Err(HypervisorError::Other { .. })));
        assert_eq!(threads.run("next", LONG, || Ok(7)).await.unwrap(), 7);
    }
}
