//! Rescue on a node of fakes: another image is booted with the instance's disks attached, and thrown away again.

use waifud_api::agent::RescueImage;
use waifud_hypervisor::DomainState;
use waifud_hypervisor::fake::Op;
use waifud_storage::StoragePool;
use waifud_storage::fake::image_bytes;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, InstanceId, RescueSpec};

use crate::world::World;

/// An image that waifud has, for rescues.
pub fn image(world: &World) -> RescueImage {
    let (bytes, digest) = image_bytes(ByteSize::mib(2), 9);
    let size = u64::try_from(bytes.len()).unwrap();
    world.waifud.add_image(digest, bytes);
    RescueImage {
        digest,
        size_bytes: ByteSize(size),
        virtual_size_bytes: ByteSize::mib(2),
    }
}

/// What waifud sends for `waifuctl rescue`.
pub fn begin(world: &World, id: InstanceId, image: &RescueImage) {
    world.waifud.edit(id, |i| {
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

pub fn end(world: &World, id: InstanceId) {
    world.waifud.edit(id, |i| {
        i.rescue_image = None;
        i.spec.rescue = None;
        i.spec.power.reboots += 1;
    });
}

/// The disks that it was defined with, in order.
fn disks(world: &World, id: InstanceId) -> Vec<String> {
    let spec = world.hypervisor.spec(id).unwrap();
    spec.disks.iter().map(|d| d.name.to_string()).collect()
}

pub async fn until_disks(world: &World, id: InstanceId, wanted: &[&str]) {
    world
        .until("other disks", async || {
            disks(world, id) == wanted && world.domain(id).await == Some(DomainState::Running)
        })
        .await;
    world.until_ready(id).await;
}

#[tokio::test]
async fn a_rescue_boots_the_rescue_image_and_its_end_restores_the_instance() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    let before = world.hypervisor.spec(id).unwrap();
    begin(&world, id, &image(&world));
    until_disks(&world, id, &["rescue", "root"]).await;
    let during = world.hypervisor.spec(id).unwrap();
    assert_eq!(during.disks[1], before.disks[0]);
    assert_eq!(during.nics, before.nics);
    assert_eq!(
        (during.datasource, during.firmware),
        (Datasource::Ec2, Firmware::Uefi)
    );
    world
        .until_status(id, "shown as being mended", |s| {
            s.conditions.iter().any(|c| c.kind == "rescue" && !c.ok)
        })
        .await;
    assert_eq!(world.volumes().await, 2);

    end(&world, id);
    until_disks(&world, id, &["root"]).await;
    assert_eq!(world.hypervisor.spec(id).unwrap(), before);
    world
        .until("thrown away", async || world.volumes().await == 1)
        .await;
    let status = world.waifud.status(id).unwrap();
    assert!(status.conditions.iter().all(|c| c.kind != "rescue"));
    world.delete(id).await;
}

#[tokio::test]
async fn an_agent_killed_at_any_point_continues_the_rescue_and_its_end() {
    for op in [Op::EnsureOff, Op::EnsureDefined, Op::EnsureStarted] {
        let world = World::new();
        world.start();
        let id = world.run_one("web").await;
        let image = image(&world);
        for ending in [false, true] {
            world.hypervisor.hang(op);
            let before = world.hypervisor.calls(op);
            if ending {
                end(&world, id);
            } else {
                begin(&world, id, &image);
            }
            world
                .until("the step is at work", async || {
                    world.hypervisor.calls(op) > before
                })
                .await;
            world.kill().await;
            world.hypervisor.release(op);
            world.start();
            let wanted: &[&str] = if ending {
                &["root"]
            } else {
                &["rescue", "root"]
            };
            until_disks(&world, id, wanted).await;
        }
        world
            .until("thrown away", async || world.volumes().await == 1)
            .await;
    }
}

#[tokio::test]
async fn deleting_removes_the_rescue_disk() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    begin(&world, id, &image(&world));
    until_disks(&world, id, &["rescue", "root"]).await;
    world.delete(id).await;
    assert!(world.pool.volumes().await.unwrap().is_empty());
}
