//! Releases: a node that gives an instance up does not start it again, wherever it is interrupted.

use waifud_agent::BootAlone;
use waifud_agent::interfaces::MetadataService as _;
use waifud_api::agent::{AgentInstance, Release, Released};
use waifud_hypervisor::DomainState;
use waifud_hypervisor::fake::Op;
use waifud_storage::fake::Op as PoolOp;
use waifud_types::status::StoppedBy;
use waifud_types::{Epoch, InstanceId, InstanceState};

use crate::test_node::{TestNode, keep_busy, until_complete_before_the_kill};

fn order(instance: &AgentInstance, stop: bool) -> Release {
    Release {
        instance: instance.id,
        epoch: instance.epoch,
        stop,
    }
}

impl TestNode {
    /// Orders the release of an instance, and returns the instance as it was in the slice.
    pub fn release(&self, id: InstanceId, stop: bool) -> AgentInstance {
        let instance = self.waifud.instance(id).unwrap();
        self.waifud.release(order(&instance, stop));
        instance
    }

    /// Waits until the release is reported, and that the guest is off.
    async fn until_released(&self, instance: &AgentInstance) {
        self.until_reported(instance, true).await;
    }

    async fn until_reported(&self, instance: &AgentInstance, off: bool) {
        let released = Released {
            instance: instance.id,
            epoch: instance.epoch,
            off,
        };
        self.until("released", async || {
            self.waifud.released().contains(&released)
        })
        .await;
    }

    /// Waits until the agent has observed its instances a few more times.
    pub async fn until_observed_again(&self) {
        let calls = self.hypervisor.calls(Op::Get);
        self.until("observed a few times", async || {
            self.hypervisor.calls(Op::Get) > calls + 5
        })
        .await;
    }

    /// Crashes the host and boots it without waifud. Returns after the node has had the time to start its guests.
    pub async fn boot_alone(&mut self) {
        self.kill().await;
        self.hypervisor.host_crash();
        self.waifud.set_online(false);
        self.settings.boot_alone = BootAlone::Start;
        self.start();
        self.until_observed_again().await;
    }

    fn domain_is_off(state: Option<DomainState>) -> bool {
        matches!(state, Some(DomainState::Off(_)))
    }
}

#[tokio::test]
async fn a_released_instance_is_shut_down_and_keeps_its_disk_and_definition() {
    let (node, id) = TestNode::with_instance("web").await;
    let instance = node.release(id, true);
    node.until_released(&instance).await;
    assert!(TestNode::domain_is_off(node.domain(id).await));
    assert_eq!((node.volumes().await, node.ports()), (1, 0));
    assert!(!node.metadata.would_serve(id));
    let status = node.until_state(id, InstanceState::Stopped).await;
    assert_eq!(status.stopped_by, Some(StoppedBy::User));
    assert_eq!(status.epoch, instance.epoch);
    assert!(status.reason.unwrap().contains("release the instance"));
    node.until_observed_again().await;
    assert_eq!(node.hypervisor.starts(), 1);
    assert_eq!(node.waifud.released().len(), 1, "reported once");
    assert!(node.waifud.unmanaged().is_empty());

    // Another connection: it is reported again, and nothing else happens.
    node.waifud.set_online(false);
    node.waifud.trim();
    node.waifud.set_online(true);
    node.until("reported again", async || node.waifud.released().len() == 2)
        .await;
    assert_eq!(node.hypervisor.starts(), 1);
    assert_eq!((node.volumes().await, node.ports()), (1, 0));
}

#[tokio::test]
async fn a_bundle_that_reaches_the_metadata_service_after_the_release_is_dropped() {
    let (node, id) = TestNode::with_instance("web").await;
    let instance = node.release(id, true);
    node.until_released(&instance).await;
    // A request that the agent has stopped waiting for.
    let put = node
        .metadata
        .put_bundle(instance.bundle.digest, "sealed".into());
    put.await.unwrap();
    node.until("the bundle is dropped", async || {
        node.metadata.bundles().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_released_instance_is_not_started_by_a_node_that_boots_alone() {
    let (mut node, released) = TestNode::with_instance("web").await;
    let kept = node.run_one("db").await;
    let instance = node.release(released, true);
    node.until_released(&instance).await;
    let starts = node.hypervisor.starts();
    node.boot_alone().await;
    node.until("the other one is started", async || {
        node.domain(kept).await == Some(DomainState::Running)
    })
    .await;
    node.until_observed_again().await;
    assert!(TestNode::domain_is_off(node.domain(released).await));
    assert_eq!(node.hypervisor.starts(), starts + 1);
    assert_eq!(node.ports(), 1, "only that of the other one");
}

#[tokio::test]
async fn a_release_that_is_recorded_but_not_completed_prevents_a_start_too() {
    let (mut node, id) = TestNode::with_instance("web").await;
    node.hypervisor.hang(Op::RequestShutdown);
    let instance = node.release(id, true);
    node.until("asked to shut down", async || {
        node.hypervisor.calls(Op::RequestShutdown) > 0
    })
    .await;
    node.kill().await;
    node.hypervisor.release(Op::RequestShutdown);
    node.boot_alone().await;
    assert!(TestNode::domain_is_off(node.domain(id).await));
    assert_eq!(node.hypervisor.starts(), 1);
    assert!(node.waifud.released().is_empty());
    node.waifud.set_online(true);
    node.until_released(&instance).await;
}

#[tokio::test]
async fn a_guest_that_may_continue_is_reported_at_once_and_not_started_again_after_its_end() {
    let (node, id) = TestNode::with_instance("web").await;
    let instance = node.release(id, false);
    node.until_reported(&instance, false).await;
    node.until_observed_again().await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    assert_eq!(node.ports(), 1);
    node.restart().await;
    node.until_observed_again().await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    assert!(node.waifud.released().iter().all(|released| !released.off));
    node.hypervisor.crash(id);
    node.until_released(&instance).await;
    assert_eq!(node.ports(), 0, "its port is removed before that");
    node.until_observed_again().await;
    assert!(TestNode::domain_is_off(node.domain(id).await));
    let status = node.until_state(id, InstanceState::Stopped).await;
    assert_eq!(status.stopped_by, Some(StoppedBy::Crash));
    assert_eq!((node.hypervisor.starts(), node.volumes().await), (1, 1));
}

#[tokio::test]
async fn a_withdrawn_release_starts_the_instance_again() {
    let (node, id) = TestNode::with_instance("web").await;
    // Before the node receives it.
    node.waifud.set_online(false);
    let instance = node.release(id, true);
    node.waifud.withdraw_release(instance);
    node.waifud.set_online(true);
    node.until_status(id, "the next epoch", |s| s.epoch == Epoch(2) && s.ready)
        .await;
    assert_eq!(node.hypervisor.starts(), 1);
    assert!(node.waifud.released().is_empty());

    // While the guest is being shut down, and after that.
    for completed in [false, true] {
        let epoch = node.waifud.instance(id).unwrap().epoch.next();
        let starts = node.hypervisor.starts();
        let asked = node.hypervisor.calls(Op::RequestShutdown);
        let instance = node.release(id, true);
        if completed {
            node.until_released(&instance).await;
        } else {
            node.until("asked to shut down", async || {
                node.hypervisor.calls(Op::RequestShutdown) > asked
            })
            .await;
        }
        node.waifud.withdraw_release(instance);
        node.until_status(id, "running again", |s| {
            s.epoch == epoch && s.state == InstanceState::Running && s.ready
        })
        .await;
        assert!(node.hypervisor.starts() <= starts + 1);
        assert_eq!((node.volumes().await, node.ports()), (1, 1));
    }
}

#[tokio::test]
async fn orders_of_older_epochs_are_ignored_before_and_after_a_release() {
    let node = TestNode::started();
    let mut instance = node.instance("web");
    let id = instance.id;
    instance.epoch = Epoch(3);
    node.waifud.put(instance.clone());
    node.until_ready(id).await;
    node.waifud.release(Release {
        epoch: Epoch(2),
        ..order(&instance, true)
    });
    node.run_one("later").await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    assert!(node.waifud.released().is_empty());

    node.waifud.release(order(&instance, true));
    node.until_released(&instance).await;
    // A restored database may contain it as it was before its release.
    let starts = node.hypervisor.starts();
    node.waifud.put(instance.clone());
    node.waifud.restore(2);
    node.run_one("another").await;
    assert!(TestNode::domain_is_off(node.domain(id).await));
    assert_eq!(node.hypervisor.starts(), starts + 1);
}

#[tokio::test]
async fn a_deletion_during_or_after_a_release_takes_precedence() {
    for completed in [false, true] {
        let (node, id) = TestNode::with_instance("web").await;
        node.hypervisor.hang(Op::RequestShutdown);
        let instance = node.release(id, true);
        node.until("asked to shut down", async || {
            node.hypervisor.calls(Op::RequestShutdown) > 0
        })
        .await;
        if completed {
            node.hypervisor.release(Op::RequestShutdown);
            node.until_released(&instance).await;
        }
        node.waifud.put(instance);
        node.waifud.delete(id);
        node.hypervisor.release(Op::RequestShutdown);
        node.until_destroyed(id).await;
        assert_eq!((node.volumes().await, node.ports()), (0, 0));
    }
}

#[tokio::test]
async fn a_release_does_not_wait_for_a_pool_that_does_not_answer() {
    use PoolOp::{HasImage, Images, Usage, Volumes};
    let (node, id) = TestNode::with_instance("web").await;
    for operation in [Usage, Images, HasImage, Volumes] {
        node.pool.hang(operation);
    }
    let instance = node.release(id, true);
    node.until_released(&instance).await;
    assert!(TestNode::domain_is_off(node.domain(id).await));
    for operation in [Usage, Images, HasImage, Volumes] {
        node.pool.release(operation);
    }
    assert_eq!((node.volumes().await, node.ports()), (1, 0));
}

#[tokio::test]
async fn a_release_of_an_instance_that_the_node_does_not_have_is_reported() {
    let node = TestNode::started();
    let instance = node.instance("web");
    node.waifud.release(order(&instance, true));
    node.until_released(&instance).await;
    assert_eq!(node.hypervisor.starts(), 0);
}

#[tokio::test]
async fn a_release_continues_after_the_agent_is_killed_at_any_point() {
    until_complete_before_the_kill(async |pause| {
        let (node, id) = TestNode::with_instance("web").await;
        let instance = node.release(id, true);
        keep_busy(pause).await;
        let complete = !node.waifud.released().is_empty();
        node.restart().await;
        node.until_released(&instance).await;
        assert!(TestNode::domain_is_off(node.domain(id).await));
        assert_eq!(node.hypervisor.starts(), 1, "killed after {pause:?}");
        assert_eq!((node.volumes().await, node.ports()), (1, 0));
        node.kill().await;
        complete
    })
    .await;
}
