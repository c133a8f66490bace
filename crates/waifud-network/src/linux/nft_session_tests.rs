//! The session with a real `nft` in a network namespace, and with scripts in its place that fail in different ways.

use std::os::unix::fs::PermissionsExt;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::*;
use crate::linux::tool::Tool;

const NFT: &str = "/usr/sbin/nft";

/// Runs a test on a thread with a network namespace of its own.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !geteuid().is_root() || !Path::new(NFT).exists() {
        waifud_kit::testing::skip(&format!("root and {NFT} are needed"));
        return;
    }
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap();
}

async fn with_set() -> NftSession {
    let mut session = NftSession::new(NFT.into());
    let made = session
        .run("add table inet t\nadd set inet t s { type ipv4_addr; }")
        .await;
    assert_eq!(made, Ok(()));
    session
}

async fn listed() -> String {
    let nft = Tool::new("nft", NFT.into());
    nft.run(&["list", "set", "inet", "t", "s"], "")
        .await
        .unwrap()
}

fn pid(session: &NftSession) -> Pid {
    let id = session.process.as_ref().unwrap().child.id().unwrap();
    Pid::from_raw(id.try_into().unwrap())
}

/// A program that is started in place of `nft`.
fn script(dir: &tempfile::TempDir, body: &str) -> NftSession {
    let path = dir.path().join("nft");
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    NftSession::new(path)
}

async fn is_lost(session: &mut NftSession) -> String {
    match session.run("add table inet t").await {
        Err(SessionError::Lost(why)) => why,
        other => panic!("{other:?}"),
    }
}

async fn is_not_sent(session: &mut NftSession, statements: &str) {
    let refused = session.run(statements).await;
    let not_sent = matches!(refused, Err(SessionError::NotSent(_)));
    assert!(not_sent, "{refused:?}");
}

#[test]
fn a_transaction_is_in_force_when_it_is_confirmed() {
    in_namespace(|| async {
        let mut session = with_set().await;
        let process = pid(&session);
        for last in 1..20 {
            let change = format!(
                "add element inet t s {{ 10.0.0.{last} }}\nadd element inet t s {{ 10.0.1.{last} }}"
            );
            assert_eq!(session.run(&change).await, Ok(()));
            let set = listed().await;
            assert!(set.contains(&format!("10.0.0.{last}")), "{set}");
            assert!(set.contains(&format!("10.0.1.{last}")), "{set}");
        }
        assert_eq!(pid(&session), process);
    });
}

#[test]
fn a_refused_transaction_changes_nothing_and_the_next_one_is_applied() {
    in_namespace(|| async {
        let mut session = with_set().await;
        let process = pid(&session);
        for (bad, words) in [
            (
                "add element inet t s { 10.0.0.1 }\nadd element inet nosuch s { 10.0.0.2 }",
                "No such file",
            ),
            ("add element inet t s {{ 10.0.0.3", "syntax error"),
            ("add element inet t s { nonsense }", "nonsense"),
            ("delete element inet t s { 10.9.9.9 }", "No such file"),
        ] {
            match session.run(bad).await {
                Err(SessionError::Refused(message)) => {
                    assert!(message.contains(words), "{bad}: {message}");
                    let last = bad.lines().last().unwrap();
                    assert!(message.contains(last), "{bad}: {message}");
                }
                other => panic!("{bad}: {other:?}"),
            }
            assert!(!listed().await.contains("10.0.0."), "{bad}");
            let good = "add element inet t s { 10.1.0.1 }";
            assert_eq!(session.run(good).await, Ok(()), "after {bad}");
            assert!(listed().await.contains("10.1.0.1"), "after {bad}");
            let good = "delete element inet t s { 10.1.0.1 }";
            assert_eq!(session.run(good).await, Ok(()), "after {bad}");
        }
        assert_eq!(pid(&session), process);
    });
}

#[test]
fn a_killed_session_fails_one_request_and_is_started_again_after_the_pause() {
    in_namespace(|| async {
        let mut session = with_set().await;
        kill(pid(&session), Signal::SIGKILL).unwrap();
        is_lost(&mut session).await;
        let change = "add element inet t s { 10.0.0.1 }";
        let paused = session.run(change).await;
        assert!(
            matches!(paused, Err(SessionError::NotSent(_))),
            "{paused:?}"
        );
        session.paused_until = Some(Instant::now());
        assert_eq!(session.run(change).await, Ok(()));
        assert!(listed().await.contains("10.0.0.1"));
    });
}

#[test]
fn a_hanging_session_is_killed_and_its_transaction_is_not_applied_later() {
    in_namespace(|| async {
        let mut session = with_set().await;
        let process = pid(&session);
        kill(process, Signal::SIGSTOP).unwrap();
        let started = Instant::now();
        let change = "add element inet t s { 10.0.0.1 }";
        let lost = session.run(change).await;
        assert_eq!(
            lost,
            Err(SessionError::Lost("no answer in time".to_owned()))
        );
        assert!(started.elapsed() < 3 * TIMEOUT);
        // The process was reaped, so its id is free.
        assert!(kill(process, None).is_err());
        assert!(!listed().await.contains("10.0.0.1"));
    });
}

#[test]
fn a_session_that_ends_floods_or_answers_another_request_is_dropped() {
    in_namespace(|| async {
        for (body, causes) in [
            (
                "read x; echo 'list table inet waifud-end-of-0' >&2; sleep 60",
                ["it answered another request"].as_slice(),
            ),
            ("read x; exit 1", &["it ended"]),
            // It may end before it is asked.
            ("exit 0", &["it ended", "writing to it failed"]),
            (
                "while :; do echo overflow overflow overflow; done >&2",
                &["it ended"],
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut session = script(&dir, body);
            let why = is_lost(&mut session).await;
            let named = causes.iter().any(|cause| why.contains(cause));
            assert!(named, "{body}: {why}");
            assert!(session.process.is_none());
        }
        let mut session = NftSession::new("/nonexistent/nft".into());
        is_not_sent(&mut session, "add table inet t").await;
    });
}

#[test]
fn lines_are_accepted_up_to_the_length_of_an_atomic_write() {
    in_namespace(|| async {
        let mut session = with_set().await;
        let statement = |index: u32| format!("add element inet t s {{ 10.0.1.{index} }}\n");
        // Each has at least 36 bytes: these fit, and twice as many do not.
        let fits: String = (100..200).map(statement).collect();
        assert!(fits.len() > LINE_MAX * 3 / 4);
        assert_eq!(session.run(&fits).await, Ok(()));
        let set = listed().await;
        assert!(
            set.contains("10.0.1.100") && set.contains("10.0.1.199"),
            "{set}"
        );
        is_not_sent(&mut session, &fits.repeat(2)).await;
    });
}

#[test]
fn a_process_is_replaced_before_its_history_grows() {
    in_namespace(|| async {
        let mut session = with_set().await;
        let first = pid(&session);
        for _ in 0..REQUESTS_MAX {
            assert_eq!(session.run("add table inet t").await, Ok(()));
        }
        assert_ne!(pid(&session), first);
        assert!(session.process.as_ref().unwrap().requests < REQUESTS_MAX);
        let gone = async {
            while kill(first, None).is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.unwrap();
    });
}
