//! How often the agent reads the description of a domain, which costs libvirt a document in XML each time.

use std::time::Duration;

use waifud_types::InstanceState;

use crate::test_node::TestNode;

#[tokio::test]
async fn a_pass_reads_the_description_of_its_domain_once_and_of_no_other() {
    let mut node = TestNode::new();
    // Only signals begin passes.
    let timing = &mut node.settings.timing;
    for period in [&mut timing.period, &mut timing.network, &mut timing.sweep] {
        *period = Duration::from_hours(1);
    }
    node.start();
    let ids: Vec<_> = ["one", "two", "three"].map(|name| node.put(name)).into();
    for id in &ids {
        node.until_state(*id, InstanceState::Running).await;
        node.until_ready(*id).await;
    }
    let reads = || ids.iter().map(|id| node.hypervisor.reads(*id)).collect();
    let settled = async || {
        let mut last: Vec<u64> = Vec::new();
        loop {
            let now: Vec<u64> = reads();
            if now == last {
                return now;
            }
            last = now;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let mut before = settled().await;
    for _ in 0..3 {
        // A repaired network begins one pass of each instance.
        node.network.cause_drift("rules flushed");
        node.until("a pass of each", async || {
            let now: Vec<u64> = reads();
            now.iter().zip(&before).all(|(now, before)| now > before)
        })
        .await;
        let after = settled().await;
        let expected: Vec<u64> = before.iter().map(|reads| reads + 1).collect();
        assert_eq!(after, expected);
        before = after;
    }

    // A search for unmanaged domains reads none of those that are known. The event also begins a pass of the instance.
    let before = settled().await;
    node.hypervisor.add_device(ids[0], "a second screen");
    let after = settled().await;
    assert_eq!(after[1..], before[1..]);
    assert_eq!(after[0], before[0] + 1);
}
