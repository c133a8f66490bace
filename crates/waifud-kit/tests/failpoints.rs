//! A daemon stops at the chosen point and does nothing afterwards.

use std::time::Duration;

use waifud_kit::failpoints::{Act, Side, testing};

const WRITE: Act = Act::new("d", "write");
const REPORT: Act = Act::new("d", "report");
const OTHER: Act = Act::new("e", "write");

fn dies(act: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    std::panic::catch_unwind(act).is_err()
}

#[test]
fn a_daemon_stops_at_its_point_and_does_nothing_until_it_is_revived() {
    testing::reset();
    WRITE.before();
    let [before, after] = WRITE.points();
    assert_eq!((before.side, after.side), (Side::Before, Side::After));
    testing::die_at(after, 2);
    WRITE.before();
    WRITE.after();
    assert!(!testing::is_dead("d"));
    assert!(dies(|| WRITE.after()));
    assert!(testing::is_dead("d"));
    assert!(dies(|| REPORT.before()), "a stopped daemon must not act");
    OTHER.before();
    assert_eq!(testing::hits().get(&after), Some(&2));
    testing::revive("d");
    REPORT.before();
    WRITE.after();
}

#[tokio::test]
async fn an_asynchronous_act_never_returns_from_its_point() {
    testing::reset();
    assert_eq!(WRITE.around(async { 1 }).await, 1);
    testing::die_at(WRITE.points()[1], 1);
    let mut done = false;
    let act = WRITE.around(async { done = true });
    assert!(
        tokio::time::timeout(Duration::from_millis(5), act)
            .await
            .is_err()
    );
    assert!(done, "the act precedes the point after it");
    testing::revive("d");
    assert_eq!(WRITE.points()[0].to_string(), "d.write.before");
}
