//! Several changes in one transaction: they do not affect each other, and the history has one order.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

mod common;

use waifud_store::{EventFilter, Mode, Store, StoreError};
use waifud_types::Incarnation;

async fn history(store: &Store) -> Vec<(u64, String)> {
    let events = store
        .read(|tx| tx.events(0, &EventFilter::default(), 1_000_000))
        .await
        .map_err(|e: StoreError| e)
        .unwrap();
    events
        .into_iter()
        .map(|e| (e.revision.number, e.object.name))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_rolls_back_its_own_changes_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = common::open(dir.path());
    let jobs = (0..500).map(|n| store.write(common::note(format!("n{n}"), n % 3 == 0)));
    let answers = futures::future::join_all(jobs).await;
    let failed = answers.iter().filter(|a| a.is_err()).count();
    assert_eq!(failed, 167);
    let history = history(&store).await;
    assert_eq!(history.len(), 333);
    let numbers: Vec<_> = history.iter().map(|(n, _)| *n).collect();
    assert_eq!(
        numbers,
        (1..=333).collect::<Vec<_>>(),
        "failed jobs leave no gaps"
    );
    for (n, answer) in answers.iter().enumerate() {
        if let Ok(number) = answer {
            assert_eq!(
                history[usize::try_from(*number).unwrap() - 1].1,
                format!("n{n}")
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panicking_job_is_rolled_back_and_the_writer_continues() {
    let dir = tempfile::tempdir().unwrap();
    let store = common::open(dir.path());
    let answer: Result<(), StoreError> = store
        .write(|tx| {
            tx.emit(&common::event("lost"))?;
            panic!("on purpose")
        })
        .await;
    assert!(matches!(answer, Err(StoreError::Panicked)));
    store
        .write(common::note("kept".into(), false))
        .await
        .unwrap();
    assert_eq!(history(&store).await, [(1, "kept".to_owned())]);
}

#[tokio::test]
async fn listeners_are_woken_with_the_newest_revision_after_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = common::open(dir.path());
    let mut listener = store.subscribe();
    let number = store
        .write(common::note("one".into(), false))
        .await
        .unwrap();
    assert!(listener.has_changed().unwrap());
    assert_eq!(*listener.borrow_and_update(), number);
    store
        .write(common::note("two".into(), true))
        .await
        .unwrap_err();
    assert!(
        !listener.has_changed().unwrap(),
        "a listener was woken without a change"
    );
}

#[tokio::test]
async fn the_incarnation_and_the_event_numbers_continue_after_the_database_is_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("waifud.db");
    let first = Store::open(&path, Mode::Inline, Incarnation(1)).unwrap();
    first
        .write(common::note("one".into(), false))
        .await
        .unwrap();
    first
        .write(|tx| tx.trim_events(0, 0, 100))
        .await
        .map_err(|e: StoreError| e)
        .unwrap();
    assert_eq!(history(&first).await, []);
    drop(first);
    let second = Store::open(&path, Mode::Inline, Incarnation(2)).unwrap();
    assert_eq!(second.incarnation(), Incarnation(1));
    assert_eq!(
        second
            .write(common::note("two".into(), false))
            .await
            .unwrap(),
        2
    );
}
