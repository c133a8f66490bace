//! Acknowledged changes survive a kill of the process at any instant.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use waifud_store::{EventFilter, StoreError};

const CHILD: &str = "WAIFUD_STORE_TEST_CHILD";

/// Not a test: the process that the test below kills. It prints acknowledged changes on stdout.
#[test]
#[ignore = "the process that every_acknowledged_change_survives_a_kill kills"]
fn child_that_writes_until_it_is_killed() {
    let dir = std::env::var_os(CHILD);
    let dir = dir.expect("every_acknowledged_change_survives_a_kill starts this");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = common::open(dir.as_ref());
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let store = store.clone();
                tokio::spawn(async move {
                    for count in 0.. {
                        let name = format!("w{writer}-{count}");
                        let job = common::note(name.clone(), count % 5 == 4);
                        if store.write(job).await.is_ok() {
                            println!("acknowledged {name}");
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[test]
fn every_acknowledged_change_survives_a_kill() {
    for after in [1, 40, 333] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child_that_writes_until_it_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut acknowledged = BTreeSet::new();
        let mut killed = false;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some((_, name)) = line.split_once("acknowledged ") {
                acknowledged.insert(name.to_owned());
            }
            if acknowledged.len() >= after && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(acknowledged.len() >= after);

        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let events = runtime
            .block_on(
                common::open(dir.path())
                    .read(|tx| tx.events(0, &EventFilter::default(), 1_000_000)),
            )
            .map_err(|e: StoreError| e)
            .unwrap();
        let stored: BTreeSet<_> = events.iter().map(|e| e.object.name.clone()).collect();
        let lost: Vec<_> = acknowledged.difference(&stored).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        assert!(
            stored.iter().all(|name| !is_failing(name)),
            "a failed job left something behind"
        );
    }
}

fn is_failing(name: &str) -> bool {
    name.split_once('-')
        .is_some_and(|(_, count)| count.parse::<u32>().unwrap() % 5 == 4)
}
