//! The tunnel over the lifetime of its keys: WireGuard renews a session after 120 s and rejects it after 180 s.
//!
//! `cargo test -p waifud-wireguard --test tunnel soak -- --ignored`
//!
//! Ignored by default, because it takes nine minutes: gotatun's timers use the real clock. Admission, timeouts,
//! retransmission and restarts are tested on a fake clock and in `packets.rs`. Run it after a change of gotatun or of this
//! crate.

use std::time::Duration;

use crate::kit::{World, guest_address};
use crate::load::{Load, Outcome};
use tokio::time::{Instant, sleep};
use waifud_wireguard::StackLimits;

/// A few requests on new connections; none may fail.
fn some_requests(world: &World) -> Outcome {
    let load = Load {
        target: ([169, 254, 169, 254], 80).into(),
        sources: vec![guest_address(0)],
        clients: 4,
        requests: 40,
        paths: vec!["/".into()],
        headers: vec![],
        keep: false,
        timeout: Duration::from_secs(5),
    };
    let outcome = world.guests.run(move || load.run());
    assert_eq!(outcome.failed, 0, "{outcome}");
    outcome
}

// Renewal of keys follows the clock of the protocol, so it takes its time. CONTRIBUTING.md says when to run this.
#[test]
#[ignore = "takes nine minutes of real time"]
fn requests_are_answered_while_keys_are_renewed_and_after_long_silence() {
    let Some(world) = World::new(1) else { return };
    let server = world.start_server(StackLimits::default());
    let _node = world.start_node();
    let busy = Instant::now() + Duration::from_mins(5);
    let mut slowest = Duration::ZERO;
    let mut renewed = 0;
    let mut age = Duration::ZERO;
    while Instant::now() < busy {
        slowest = slowest.max(some_requests(&world).percentile(100));
        let now = server.stats().handshake_age.unwrap();
        renewed += u32::from(now < age);
        age = now;
        world.guests.run(|| sleep(Duration::from_millis(200)));
    }
    eprintln!("slowest request of five busy minutes: {slowest:?}, keys renewed {renewed} times");
    assert!(renewed >= 2);
    world.guests.run(|| sleep(Duration::from_mins(4)));
    let first = some_requests(&world);
    eprintln!("after four silent minutes: {first}");
}
