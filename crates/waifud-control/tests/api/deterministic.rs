//! With a given clock and entropy and an inline store, two runs produce identical bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::{Server, report};
use serde_json::json;
use waifud_control::ControlConfig;
use waifud_control::env::{Clock, Entropy};
use waifud_store::Mode;
use waifud_types::{ByteSize, InstanceState, Timestamp};

/// A clock that advances by a millisecond at each reading.
#[derive(Default)]
struct Ticking(AtomicU64);

impl Clock for Ticking {
    fn now(&self) -> Timestamp {
        let ticks = self.0.fetch_add(1, Ordering::Relaxed);
        Timestamp::from_millisecond(1_700_000_000_000 + i64::try_from(ticks).unwrap()).unwrap()
    }

    fn monotonic(&self) -> std::time::Duration {
        self.now().as_duration().unsigned_abs()
    }
}

/// Pseudorandom bytes (an LCG with Knuth's MMIX constants).
struct PseudoRandom(AtomicU64);

impl Entropy for PseudoRandom {
    fn fill(&self, buffer: &mut [u8]) {
        for byte in buffer {
            let next = |state: u64| {
                state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407)
            };
            let state = self
                .0
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |s| Some(next(s)))
                .unwrap();
            *byte = state.to_be_bytes()[0];
        }
    }
}

async fn run(seed: u64) -> String {
    let dir = tempfile::tempdir().unwrap();
    let config = ControlConfig::new(dir.path().to_owned());
    let clock = Arc::new(Ticking::default());
    let entropy = Arc::new(PseudoRandom(AtomicU64::new(seed)));
    let server = Server::of(dir, config, Mode::Inline, clock, entropy).await;
    server.template().await;
    let agent = server.join("alder", ByteSize::gib(8)).await;
    for _ in 0..12 {
        let instance = server.created(&json!({"template": "debian-12"})).await;
        if instance.status.node.is_some() {
            agent
                .report_instance(report(instance.id, InstanceState::Running))
                .await;
        }
    }
    let mut history = server.get("/v1/events?limit=1000").await.json();
    for event in history["items"].as_array_mut().unwrap() {
        // The request ID is random and not part of the state.
        event["request_id"] = json!(null);
    }
    let mut instances = server.get("/v1/instances").await.json();
    for instance in instances["items"].as_array_mut().unwrap() {
        instance["status"]["last_seen"] = json!(null);
    }
    format!("{history}{instances}")
}

#[tokio::test]
async fn equal_clocks_and_seeds_produce_equal_histories() {
    assert_eq!(run(1).await, run(1).await);
    assert_ne!(run(1).await, run(2).await);
}
