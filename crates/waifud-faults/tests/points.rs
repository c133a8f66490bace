//! Who dies where it was told to, and does nothing more.

use std::time::Duration;

use waifud_faults::{Act, Side, testing};

const WRITE: Act = Act::new("d", "write");
const TELL: Act = Act::new("d", "tell");
const OTHER: Act = Act::new("e", "write");

fn dies(act: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    std::panic::catch_unwind(act).is_err()
}

#[test]
fn a_daemon_dies_at_its_point_and_does_nothing_after_it_until_it_is_revived() {
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
    assert!(dies(|| TELL.before()), "the dead do nothing");
    OTHER.before();
    assert_eq!(testing::hits().get(&after), Some(&2));
    testing::revive("d");
    TELL.before();
    WRITE.after();
}

#[tokio::test]
async fn what_can_wait_waits_for_ever() {
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
    assert!(done, "the act itself was before its end");
    testing::revive("d");
    assert_eq!(WRITE.points()[0].to_string(), "d.write.before");
}
