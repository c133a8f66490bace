//! How often the agent reads the description of a domain, which costs libvirt a document in XML each time.

use std::time::Duration;

use waifud_hypervisor::fake::Op;
use waifud_kit::testing::captured_log::CapturedLog;
use waifud_types::InstanceId;

use crate::test_node::TestNode;

/// So many events that one read too many per event cannot be mistaken for a pass that has only begun.
const EVENTS: u64 = 8;

/// What happened to an instance so far.
#[derive(Clone, Copy, Debug)]
struct Counts {
    passes: u64,
    reads: u64,
}

struct Watched {
    node: TestNode,
    log: CapturedLog,
    ids: Vec<InstanceId>,
}

impl Watched {
    fn counts(&self) -> Vec<Counts> {
        let log = self.log.text();
        let of = |id: &InstanceId| Counts {
            passes: log.matches(&format!("pass instance={id}")).count() as u64,
            reads: self.node.hypervisor.reads(*id),
        };
        self.ids.iter().map(of).collect()
    }

    /// Waits until a pass of each of the first instances has begun since `before`.
    async fn until_passes(&self, before: &[Counts], instances: usize) {
        self.node
            .until("a pass of each", async || {
                let now = self.counts();
                let mut both = now.iter().zip(before).take(instances);
                both.all(|(now, before)| now.passes > before.passes)
            })
            .await;
    }

    /// The passes of each instance since `before`. Each has read its domain once; the last one may only have begun.
    fn passes_with_one_read_each(&self, before: &[Counts]) -> Vec<u64> {
        let now = self.counts();
        let each = now.iter().zip(before).map(|(now, before)| {
            let passes = now.passes - before.passes;
            let reads = now.reads - before.reads;
            assert!(reads.abs_diff(passes) <= 1, "{before:?} became {now:?}");
            passes
        });
        each.collect()
    }
}

#[tokio::test]
async fn a_pass_reads_the_description_of_its_domain_once_and_of_no_other() {
    let log = CapturedLog::begin();
    let mut node = TestNode::new();
    // Only signals begin passes.
    let timing = &mut node.settings.timing;
    for period in [&mut timing.period, &mut timing.network, &mut timing.sweep] {
        *period = Duration::from_hours(1);
    }
    node.start();
    let ids: Vec<_> = ["one", "two", "three"].map(|name| node.put(name)).into();
    for id in &ids {
        node.until_ready(*id).await;
    }
    let watched = Watched { node, log, ids };
    let repair_network = async || {
        // A repaired network begins one pass of each instance.
        let before = watched.counts();
        watched.node.network.cause_drift("rules flushed");
        watched.until_passes(&before, 3).await;
    };
    // What the instances still had to do is done in these passes.
    repair_network().await;
    let before = watched.counts();
    for _ in 0..EVENTS {
        repair_network().await;
    }
    for passes in watched.passes_with_one_read_each(&before) {
        assert!((EVENTS..=EVENTS + 1).contains(&passes), "{passes} passes");
    }

    // A search for unmanaged domains reads none of those that are known. The event also begins a pass of the instance.
    let before = watched.counts();
    for event in 0..EVENTS {
        let earlier = watched.counts();
        let lists_before = watched.node.hypervisor.calls(Op::List);
        let device = format!("screen {event}");
        watched.node.hypervisor.add_device(watched.ids[0], &device);
        watched.until_passes(&earlier, 1).await;
        let searched = async || watched.node.hypervisor.calls(Op::List) > lists_before;
        watched.node.until("a search", searched).await;
    }
    let passes = watched.passes_with_one_read_each(&before);
    assert!(passes[0] >= EVENTS, "{passes:?}");
    assert!(passes[1..].iter().all(|passes| *passes <= 1), "{passes:?}");
}
