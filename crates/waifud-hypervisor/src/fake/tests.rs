//! The fake passes the conformance tests, and its scripts work as documented.

use super::*;
use crate::conformance::{self, ExternalChanges};

#[async_trait]
impl ExternalChanges for FakeHypervisor {
    async fn destroy(&self, id: InstanceId) {
        FakeHypervisor::destroy(self, id);
    }

    async fn kill(&self, id: InstanceId) {
        self.crash(id);
    }

    async fn pause(&self, id: InstanceId) {
        FakeHypervisor::pause(self, id, false);
    }

    async fn add_tablet(&self, id: InstanceId) {
        self.add_device(id, "input tablet");
    }

    async fn set_memory(&self, id: InstanceId, memory: ByteSize) {
        FakeHypervisor::set_memory(self, id, memory);
    }
}

#[tokio::test]
async fn the_fake_passes_the_conformance_tests() {
    let fake = FakeHypervisor::new();
    conformance::run_all(&fake, &fake, &conformance::diskless_spec)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_fakes_nics_pass_the_conformance_tests() {
    let fake = FakeHypervisor::new();
    let spec = &conformance::diskless_spec;
    conformance::nics_are_added_and_removed(&fake, spec, "br-test")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_guest_that_holds_its_nics_releases_them_when_told_to_or_at_its_end() {
    let fake = FakeHypervisor::new();
    let mut spec = conformance::diskless_spec(InstanceId::generate(), "holds");
    spec.nics = [0, 1]
        .map(|number| DomainNic {
            number,
            tap: TapName::of(spec.id, number),
            mac: waifud_types::MacAddr::of_guest([0, 0, 1]),
            bridge: "br-test".to_owned(),
            mtu: None,
            isolated: false,
        })
        .to_vec();
    let id = spec.id;
    fake.ensure_defined(&spec).await.unwrap();
    fake.ensure_started(id).await.unwrap();
    fake.set_holds_nics(id, true);
    let removed = spec.nics[1].tap.clone();
    let nics = fake.ensure_nics(id, &spec.nics[..1]).await.unwrap();
    assert_eq!(nics.get(&removed), Some(&LiveNic::Leaving));
    fake.set_holds_nics(id, false);
    let nics = fake.ensure_nics(id, &spec.nics[..1]).await.unwrap();
    assert_eq!(nics.get(&removed), None);
    fake.set_refuses_nics(id, Some("no port is free"));
    let nics = fake.ensure_nics(id, &spec.nics).await.unwrap();
    let refused = LiveNic::Refused("no port is free".to_owned());
    assert_eq!(nics.get(&removed), Some(&refused));
}

#[tokio::test]
async fn the_fakes_disks_pass_the_conformance_tests() {
    let fake = FakeHypervisor::new();
    let mut spec = conformance::diskless_spec(InstanceId::generate(), "conform-disk");
    spec.disks.push(crate::DomainDisk {
        name: "root".parse().unwrap(),
        source: waifud_types::VolumeSource::File("/pool/root.qcow2".into()),
        format: waifud_types::DiskFormat::Qcow2,
        backing: None,
    });
    let size_of = |id, disk: Name| {
        let size = fake.disk_size(id, disk.as_str()).unwrap();
        async move { size }
    };
    conformance::disks_grow_under_running_domains(&fake, &fake, &spec, size_of)
        .await
        .unwrap();
}

#[tokio::test]
async fn scripted_errors_are_returned_in_order_and_released_calls_continue() {
    let fake = FakeHypervisor::new();
    let id = InstanceId::generate();
    fake.fail_next(Op::Get, HypervisorError::NotFound(id));
    assert!(fake.get(id).await.is_err());
    assert!(fake.get(id).await.is_ok());

    fake.hang(Op::List);
    let hanging = tokio::spawn({
        let fake = fake.clone();
        async move { fake.list().await }
    });
    tokio::task::yield_now().await;
    assert!(!hanging.is_finished());
    fake.release(Op::List);
    assert!(hanging.await.unwrap().is_ok());
}

#[tokio::test]
async fn domains_survive_a_lost_connection() {
    let fake = FakeHypervisor::new();
    let spec = conformance::diskless_spec(InstanceId::generate(), "web");
    fake.ensure_defined(&spec).await.unwrap();
    fake.ensure_started(spec.id).await.unwrap();
    let mut events = fake.events();
    fake.set_reachable(false);
    assert!(matches!(
        fake.list().await,
        Err(HypervisorError::Unreachable { .. })
    ));
    fake.set_reachable(true);
    assert_eq!(events.recv().await.unwrap().kind, DomainEventKind::Resync);
    let seen = fake.get(spec.id).await.unwrap().unwrap();
    assert_eq!(seen.state, DomainState::Running);
    assert_eq!(fake.starts(), 1);
}

#[tokio::test]
async fn a_scripted_agent_answers_only_while_its_guest_runs() {
    let fake = FakeHypervisor::new();
    let spec = conformance::diskless_spec(InstanceId::generate(), "web");
    fake.ensure_defined(&spec).await.unwrap();
    fake.set_agent(spec.id, Some(Arc::new(|_| Some(serde_json::json!({})))));
    let ping = || {
        fake.agent_command(
            spec.id,
            serde_json::json!({"execute": "guest-ping"}),
            Duration::from_secs(1),
        )
    };
    assert!(matches!(
        ping().await,
        Err(HypervisorError::AgentUnresponsive(_))
    ));
    fake.ensure_started(spec.id).await.unwrap();
    assert_eq!(ping().await.unwrap(), serde_json::json!({}));
}

#[tokio::test]
async fn a_domain_that_was_started_or_defined_again_differs_from_the_former_one() {
    let fake = FakeHypervisor::new();
    let spec = conformance::diskless_spec(InstanceId::generate(), "web");
    let started = async || {
        fake.ensure_defined(&spec).await.unwrap();
        fake.ensure_started(spec.id).await.unwrap();
        fake.domains().pop().unwrap()
    };
    let first = started().await;
    assert_eq!(started().await, first, "it runs already");
    fake.crash(spec.id);
    let again = started().await;
    assert_eq!(
        (again.number, again.starts),
        (first.number, first.starts + 1)
    );
    fake.undefine(spec.id);
    let other = started().await;
    assert_ne!(other.number, first.number);
}
