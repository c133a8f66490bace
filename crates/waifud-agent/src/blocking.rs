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

/// Passes each item of a channel to file access, on a separate thread, until the channel is closed or an access fails.
/// Returns the state that the accesses share.
pub(crate) async fn for_each<T: Send + 'static, S: Send + 'static>(
    mut items: mpsc::Receiver<T>,
    mut state: S,
    access: impl Fn(&mut S, T) -> io::Result<()> + Send + 'static,
) -> io::Result<S> {
    if INLINE.get() {
        while let Some(item) = items.recv().await {
            access(&mut state, item)?;
        }
        return Ok(state);
    }
    on_a_thread(move || {
        while let Some(item) = items.blocking_recv() {
            access(&mut state, item)?;
        }
        Ok(state)
    })
    .await
}

/// Sends an item, and waits while the [`channel`] is full. Returns false once the receiver is gone.
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

    #[test]
    fn items_are_passed_to_file_access_until_the_channel_is_closed() {
        for inline in [false, true] {
            let sum = std::thread::spawn(move || {
                if inline {
                    access_files_inline();
                }
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let (sender, receiver) = mpsc::channel(1);
                    let add = |sum: &mut u32, item: u32| {
                        *sum += item;
                        Ok(())
                    };
                    let added = tokio::spawn(for_each(receiver, 1, add));
                    for item in [2, 3] {
                        sender.send(item).await.unwrap();
                    }
                    drop(sender);
                    added.await.unwrap().unwrap()
                })
            });
            assert_eq!(sum.join().unwrap(), 6, "{inline}");
        }
    }
}
