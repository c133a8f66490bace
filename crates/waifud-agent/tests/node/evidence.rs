//! Diagnostics of guests are reported to waifud, and only when they changed.

use waifud_api::metadatad::Observed;
use waifud_network::PortCounters;
use waifud_types::evidence::{Dropped, GuestEvidence};
use waifud_types::{InstanceId, TapName, Timestamp};

use crate::test_node::TestNode;

fn last(node: &TestNode, id: InstanceId) -> Option<GuestEvidence> {
    let reports = node.waifud.status_history(id);
    reports.into_iter().rev().find_map(|report| report.evidence)
}

#[tokio::test]
async fn guest_diagnostics_are_also_reported_after_a_restart_of_the_agent() {
    let (node, id) = TestNode::with_instance("web").await;
    let tap = TapName::of(id, 0);
    let counters = PortCounters {
        spoofed: 3,
        to_host: 1,
        not_ipv4: 7,
        ..PortCounters::default()
    };
    node.network.set_counters(&tap, counters);
    node.network.acknowledge(&tap, Timestamp::now());
    let path = "/openstack/latest/meta_data.json".to_owned();
    let request = Observed::Request { path, status: 200 };
    for _ in 0..2 {
        node.metadata.observe(id, Timestamp::now(), request.clone());
    }
    let directory = node.settings.state_dir.join(format!("instances/{id}"));
    std::fs::write(
        directory.join("console.log"),
        "[FAILED] Failed to start x\nweb login: ",
    )
    .unwrap();

    let is_whole = |seen: &GuestEvidence| {
        let requests: Vec<_> = seen.requests.iter().map(|r| (r.status, r.count)).collect();
        requests == [(200, 2)]
            && seen.dhcp_acknowledged_at.is_some()
            && seen.dropped
                == Some(Dropped {
                    spoofed: 3,
                    to_host: 1,
                })
            && seen.console == ["[FAILED] Failed to start x"]
    };
    node.until("the whole evidence", async || {
        last(&node, id).as_ref().is_some_and(is_whole)
    })
    .await;
    let reported = node.waifud.status_history(id).len();
    // A restarted agent gathers and reports it again.
    node.restart().await;
    node.until("another report of it", async || {
        let mut later = node.waifud.status_history(id).into_iter().skip(reported);
        later.any(|report| report.evidence.as_ref().is_some_and(is_whole))
    })
    .await;
    node.delete(id).await;
}
