//! Rescue on a node of fakes: another image is booted with the instance's disks attached, and removed at the end.

use waifud_api::agent::RescueImage;
use waifud_hypervisor::DomainState;
use waifud_hypervisor::fake::Op;
use waifud_storage::StoragePool;
use waifud_storage::fake::image_bytes;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, InstanceId, RescueSpec};

use crate::test_node::TestNode;

/// An image for rescues, stored in waifud.
pub fn image(node: &TestNode) -> RescueImage {
    let (bytes, digest) = image_bytes(ByteSize::mib(2), 9);
    let size = u64::try_from(bytes.len()).unwrap();
    node.waifud.add_image(digest, bytes);
    RescueImage {
        digest,
        size_bytes: ByteSize(size),
        virtual_size_bytes: ByteSize::mib(2),
    }
}

/// What waifud sends for `waifuctl rescue`.
pub fn begin(node: &TestNode, id: InstanceId, image: &RescueImage) {
    node.waifud.edit(id, |i| {
        i.rescue_image = Some(image.clone());
        i.spec.rescue = Some(RescueSpec {
            template: "small".parse().unwrap(),
            image: image.digest,
            datasource: Datasource::Ec2,
            firmware: Firmware::Uefi,
            ssh_keys: Vec::new(),
        });
        i.spec.run = true;
        i.spec.power.reboots += 1;
        i.spec.power.force_reboot = true;
    });
}

pub fn end(node: &TestNode, id: InstanceId) {
    node.waifud.edit(id, |i| {
        i.rescue_image = None;
        i.spec.rescue = None;
        i.spec.power.reboots += 1;
    });
}

/// The disks of its definition, in order.
fn disks(node: &TestNode, id: InstanceId) -> Vec<String> {
    let spec = node.hypervisor.spec(id).unwrap();
    spec.disks.iter().map(|d| d.name.to_string()).collect()
}

pub async fn until_disks(node: &TestNode, id: InstanceId, wanted: &[&str]) {
    node.until("other disks", async || {
        disks(node, id) == wanted && node.domain(id).await == Some(DomainState::Running)
    })
    .await;
    node.until_ready(id).await;
}

#[tokio::test]
async fn a_rescue_boots_the_rescue_image_and_its_end_restores_the_instance() {
    let (node, id) = TestNode::with_instance("web").await;
    let before = node.hypervisor.spec(id).unwrap();
    begin(&node, id, &image(&node));
    until_disks(&node, id, &["rescue", "root"]).await;
    let during = node.hypervisor.spec(id).unwrap();
    assert_eq!(during.disks[1], before.disks[0]);
    assert_eq!(during.nics, before.nics);
    assert_eq!(
        (during.datasource, during.firmware),
        (Datasource::Ec2, Firmware::Uefi)
    );
    node.until_status(id, "shown as being mended", |s| {
        s.conditions.iter().any(|c| c.kind == "rescue" && !c.ok)
    })
    .await;
    assert_eq!(node.volumes().await, 2);

    end(&node, id);
    until_disks(&node, id, &["root"]).await;
    assert_eq!(node.hypervisor.spec(id).unwrap(), before);
    node.until("thrown away", async || node.volumes().await == 1)
        .await;
    let status = node.waifud.status(id).unwrap();
    assert!(status.conditions.iter().all(|c| c.kind != "rescue"));
    node.delete(id).await;
}

#[tokio::test]
async fn an_agent_killed_at_any_point_continues_the_rescue_and_its_end() {
    for op in [Op::EnsureOff, Op::EnsureDefined, Op::EnsureStarted] {
        let node = TestNode::started();
        let id = node.run_one("web").await;
        let image = image(&node);
        for ending in [false, true] {
            node.kill_inside(op, || {
                if ending {
                    end(&node, id);
                } else {
                    begin(&node, id, &image);
                }
            })
            .await;
            let wanted: &[&str] = if ending {
                &["root"]
            } else {
                &["rescue", "root"]
            };
            until_disks(&node, id, wanted).await;
        }
        node.until("thrown away", async || node.volumes().await == 1)
            .await;
    }
}

#[tokio::test]
async fn deleting_removes_the_rescue_disk() {
    let (node, id) = TestNode::with_instance("web").await;
    begin(&node, id, &image(&node));
    until_disks(&node, id, &["rescue", "root"]).await;
    node.delete(id).await;
    assert!(node.pool.volumes().await.unwrap().is_empty());
}
