//! What guests were seen to do reaches waifud, and only when it changed.

use waifud_api::metadatad::Observed;
use waifud_network::PortCounters;
use waifud_types::evidence::{Dropped, GuestEvidence};
use waifud_types::{InstanceId, TapName, Timestamp};

use crate::world::World;

fn last(world: &World, id: InstanceId) -> Option<GuestEvidence> {
    let story = world.waifud.status_history(id);
    story.into_iter().rev().find_map(|said| said.evidence)
}

#[tokio::test]
async fn requests_lease_drops_and_console_lines_are_reported_also_by_a_new_process() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    let tap = TapName::of(id, 0);
    let counters = PortCounters {
        spoofed: 3,
        to_host: 1,
        not_ipv4: 7,
    };
    world.network.set_counters(&tap, counters);
    world.network.acknowledge(&tap, Timestamp::now());
    let path = "/openstack/latest/meta_data.json".to_owned();
    let request = Observed::Request { path, status: 200 };
    for _ in 0..2 {
        world
            .metadata
            .observe(id, Timestamp::now(), request.clone());
    }
    let directory = world.settings.state_dir.join(format!("instances/{id}"));
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
    world
        .until("the whole evidence", async || {
            last(&world, id).as_ref().is_some_and(is_whole)
        })
        .await;
    let told = world.waifud.status_history(id).len();
    // Another process of the agent finds it again, and whoever listens hears it.
    world.restart().await;
    world
        .until("it to be said again", async || {
            let mut later = world.waifud.status_history(id).into_iter().skip(told);
            later.any(|said| said.evidence.as_ref().is_some_and(is_whole))
        })
        .await;
    world.delete(id).await;
}
