//! Runs file access so that a slow disk does not block other async tasks.

use std::cell::Cell;
use std::io;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, mpsc};
use tokio::task;

thread_local! {
    static INLINE: Cell<bool> = const { Cell::new(false) };
}

/// Makes the agents of this thread access files on the thread itself, for simulations: when a separate thread ends depends
/// on the kernel, so a run could not be repeated.
pub fn access_files_inline() {
    INLINE.set(true);
}

/// Runs file access on a separate thread. It runs to its end even if the caller is dropped.
pub(crate) async fn on_a_thread<T: Send + 'static>(
    access: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if INLINE.get() {
        return access();
    }
    match task::spawn_blocking(access).await {
        Ok(outcome) => outcome,
        Err(ended) => Err(io::Error::other(ended)),
    }
}

/// A channel from file access to an async task, for this many items that are not consumed yet. The sender is given to
/// [`send`].
pub(crate) fn channel<T>(capacity: usize) -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    // On one thread, nothing is consumed before the access has ended.
    let capacity = if INLINE.get() {
        Semaphore::MAX_PERMITS
    } else {
        capacity
    };
    mpsc::channel(capacity)
}

/// Sends an item, and waits while the [`channel`] is full. Returns false if nobody receives any more.
pub(crate) fn send<T>(channel: &mpsc::Sender<T>, item: T) -> bool {
    if INLINE.get() {
        channel.try_send(item).is_ok()
    } else {
        channel.blocking_send(item).is_ok()
    }
}

/// Runs file access on this thread, in synchronous code that is called from async tasks. On a multi-threaded runtime, other
/// tasks move to another thread meanwhile.
pub(crate) fn here<T>(access: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => {
            task::block_in_place(access)
        }
        _ => access(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_run_without_a_runtime_and_in_either_kind() {
        assert_eq!(here(|| 1), 1);
        let one = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert_eq!(one.block_on(async { here(|| 2) }), 2);
        let many = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        // With one worker, the other task runs only if the first one released the worker.
        let ran = many.block_on(many.spawn(async {
            let (done, wait) = std::sync::mpsc::channel();
            tokio::spawn(async move { done.send(3) });
            here(|| {
                wait.recv_timeout(std::time::Duration::from_mins(1))
                    .unwrap()
            })
        }));
        assert_eq!(ran.unwrap(), 3);
        assert_eq!(many.block_on(on_a_thread(|| Ok(4))).unwrap(), 4);
    }

    #[test]
    fn access_on_this_thread_fills_a_channel_without_waiting_for_its_receiver() {
        let sent = std::thread::spawn(|| {
            access_files_inline();
            let (sender, receiver) = channel(1);
            let taken = [send(&sender, 1), send(&sender, 2)];
            drop(receiver);
            (taken, send(&sender, 3))
        });
        assert_eq!(sent.join().unwrap(), ([true, true], false));
    }
}
