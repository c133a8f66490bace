//! Guests whose documents come from a disk, because of their template or because they cannot reach metadatad.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use waifud_api::agent::{AgentInstance, BundleRef, InstanceReport};
use waifud_cloudinit::{SEAL_ENTROPY, Source, render, seal};
use waifud_types::template::Datasource;
use waifud_types::{InstanceId, Secret};

use crate::test_node::TestNode;

/// A bundle with this user-data, stored in the fake waifud.
pub fn bundle(node: &TestNode, id: InstanceId, user_data: &str) -> BundleRef {
    let documents = render(&Source {
        availability_zone: "alder".to_owned(),
        user_data: Some(Secret::new(user_data.to_owned())),
        datasource: Datasource::Cidata,
        ..Source::new(id, "web".parse().unwrap())
    });
    let sealed = seal(&documents, &[5; SEAL_ENTROPY]).unwrap();
    node.waifud
        .add_bundle(sealed.digest, sealed.ciphertext.clone());
    BundleRef {
        digest: sealed.digest,
        key: sealed.key,
        size_bytes: sealed.ciphertext.len() as u64,
    }
}

fn instance(node: &TestNode, datasource: Datasource) -> AgentInstance {
    let mut instance = node.instance("web");
    instance.bundle = bundle(node, instance.id, "#!/bin/sh\n# first\n");
    instance.datasource = datasource;
    instance
}

fn disk(node: &TestNode, id: InstanceId) -> PathBuf {
    node.settings
        .state_dir
        .join(format!("instances/{id}/cidata.iso"))
}

fn holds(path: &PathBuf, text: &str) -> bool {
    let bytes = std::fs::read(path).unwrap();
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn a_guest_with_its_documents_on_a_disk_starts_without_metadatad() {
    let node = TestNode::started_after(|node| node.metadata.set_online(false));
    let want = instance(&node, Datasource::Cidata);
    let id = node.run(want).await;

    let path = disk(&node, id);
    let spec = node.hypervisor.spec(id).unwrap();
    assert_eq!(
        (spec.datasource, spec.seed.as_deref()),
        (Datasource::Cidata, Some(path.as_path()))
    );
    assert!(holds(&path, "# first"));
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    node.metadata.set_online(true);
    node.delete(id).await;
    assert!(!path.exists());
}

#[tokio::test]
async fn new_documents_are_on_the_disk_from_the_next_start_on() {
    let node = TestNode::started();
    let want = instance(&node, Datasource::Cidata);
    let id = node.run(want).await;

    let second = bundle(&node, id, "#!/bin/sh\n# second\n");
    node.waifud.edit(id, |instance| instance.bundle = second);
    node.until("the change is served", async || {
        node.metadata.would_serve(id)
    })
    .await;
    assert!(
        holds(&disk(&node, id), "# first"),
        "changed under a running guest"
    );
    node.stop(id).await;
    // A kill in between changes nothing.
    node.restart().await;
    node.start_again(id).await;
    assert!(holds(&disk(&node, id), "# second"));
    node.delete(id).await;
}

#[tokio::test]
async fn a_guest_without_a_route_to_metadatad_gets_a_disk_and_a_condition() {
    let node = TestNode::started();
    let mut want = instance(&node, Datasource::Openstack);
    want.spec.nics.clear();
    let id = node.run(want).await;
    let spec = node.hypervisor.spec(id).unwrap();
    assert_eq!(spec.datasource, Datasource::Cidata);
    assert!(holds(&disk(&node, id), "# first"));
    let status = node.waifud.status(id).unwrap();
    let condition = status
        .conditions
        .iter()
        .find(|c| c.kind == "documents")
        .unwrap();
    assert_eq!(condition.reason, "by-disk");
    assert!(
        condition.message.contains("none of its networks"),
        "{}",
        condition.message
    );
    node.delete(id).await;
}

#[tokio::test]
async fn a_guest_that_uses_metadatad_has_no_disk_with_its_documents() {
    let node = TestNode::started();
    let want = instance(&node, Datasource::Ec2);
    let id = node.run(want).await;
    assert_eq!(node.hypervisor.spec(id).unwrap().seed, None);
    assert!(!disk(&node, id).exists());
    node.delete(id).await;
}

#[tokio::test]
async fn guests_started_while_metadatad_is_unreachable_for_long_get_a_disk_until_their_next_start()
{
    let node = TestNode::started_after(|node| {
        node.settings.timing.metadata_patience = Duration::from_millis(200);
    });
    let running = node.run_one("running").await;
    node.metadata.set_online(false);
    let want = instance(&node, Datasource::Openstack);
    let id = node.run(want).await;
    let spec = node.hypervisor.spec(id).unwrap();
    assert_eq!(spec.datasource, Datasource::Cidata);
    assert_eq!(spec.seed, Some(disk(&node, id)));
    assert!(holds(&disk(&node, id), "# first"));
    let by_disk = |status: &InstanceReport| {
        let mut conditions = status.conditions.iter();
        let found = conditions.find(|condition| condition.kind == "documents");
        found.map(|condition| (condition.reason.clone(), condition.message.clone()))
    };
    let (reason, message) = by_disk(&node.waifud.status(id).unwrap()).unwrap();
    assert_eq!(reason, "by-disk");
    assert!(message.contains("was unreachable"), "{message}");

    // A guest that was running already is not changed.
    node.until_more_reports(3).await;
    assert_eq!(node.hypervisor.spec(running).unwrap().seed, None);
    assert_eq!(node.hypervisor.starts(), 2);
    node.metadata.set_online(true);
    node.until("served again", async || node.metadata.would_serve(running))
        .await;
    node.until_more_reports(3).await;
    let spec = node.hypervisor.spec(id).unwrap();
    assert_eq!(spec.datasource, Datasource::Cidata, "not while it runs");

    node.stop(id).await;
    node.start_again(id).await;
    let spec = node.hypervisor.spec(id).unwrap();
    assert_eq!((spec.datasource, spec.seed), (Datasource::Openstack, None));
    assert!(!disk(&node, id).exists());
    let status = node
        .until_status(id, "without the condition", |s| by_disk(s).is_none())
        .await;
    assert!(status.ready);
}
