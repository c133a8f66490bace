//! Guests whose documents come from a disk: by their template's wish, or because they can't ask for them.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use waifud_api::agent::{AgentInstance, BundleRef};
use waifud_cloudinit::{SEAL_ENTROPY, Source, VendorOptions, instance_id, render, seal};
use waifud_types::template::Datasource;
use waifud_types::{InstanceId, InstanceState, Secret};

use crate::world::World;

/// A bundle with this user-data, which the fake waifud has.
pub fn bundle(world: &World, id: InstanceId, user_data: &str) -> BundleRef {
    let documents = render(&Source {
        instance: id,
        instance_id: instance_id(id, 1),
        hostname: "web".parse().unwrap(),
        domain: None,
        availability_zone: "alder".to_owned(),
        ssh_keys: Vec::new(),
        user_data: Some(Secret::new(user_data.to_owned())),
        vendor_data: VendorOptions::default(),
        datasource: Datasource::Cidata,
        nics: Vec::new(),
        default_user: None,
    });
    let sealed = seal(&documents, &[5; SEAL_ENTROPY]).unwrap();
    world
        .waifud
        .add_bundle(sealed.digest, sealed.ciphertext.clone());
    BundleRef {
        digest: sealed.digest,
        key: sealed.key,
        size_bytes: sealed.ciphertext.len() as u64,
    }
}

fn instance(world: &World, datasource: Datasource) -> AgentInstance {
    let mut instance = world.instance("web");
    instance.bundle = bundle(world, instance.id, "#!/bin/sh\n# first\n");
    instance.datasource = datasource;
    instance
}

fn disk(world: &World, id: InstanceId) -> PathBuf {
    world
        .settings
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
    let world = World::new();
    world.metadata.set_online(false);
    world.start();
    let want = instance(&world, Datasource::Cidata);
    let id = want.id;
    world.waifud.put(want);
    world.until_ready(id).await;

    let path = disk(&world, id);
    let spec = world.hypervisor.spec(id).unwrap();
    assert_eq!(
        (spec.datasource, spec.seed.as_deref()),
        (Datasource::Cidata, Some(path.as_path()))
    );
    assert!(holds(&path, "# first"));
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    world.metadata.set_online(true);
    world.delete(id).await;
    assert!(!path.exists());
}

#[tokio::test]
async fn new_documents_are_on_the_disk_from_the_next_start_on() {
    let world = World::new();
    world.start();
    let want = instance(&world, Datasource::Cidata);
    let id = want.id;
    world.waifud.put(want);
    world.until_ready(id).await;

    let second = bundle(&world, id, "#!/bin/sh\n# second\n");
    world.waifud.edit(id, |instance| instance.bundle = second);
    world
        .until("the change is served", async || {
            world.metadata.would_serve(id)
        })
        .await;
    assert!(
        holds(&disk(&world, id), "# first"),
        "changed under a running guest"
    );
    world.waifud.edit(id, |instance| instance.spec.run = false);
    world.until_state(id, InstanceState::Stopped).await;
    // A kill in between costs nothing.
    world.restart().await;
    world.waifud.edit(id, |instance| instance.spec.run = true);
    world.until_ready(id).await;
    assert!(holds(&disk(&world, id), "# second"));
    world.delete(id).await;
}

#[tokio::test]
async fn a_guest_without_a_route_to_metadatad_gets_a_disk_and_a_condition() {
    let world = World::new();
    world.start();
    let mut want = instance(&world, Datasource::Openstack);
    want.spec.nics.clear();
    let id = want.id;
    world.waifud.put(want);
    world.until_ready(id).await;
    let spec = world.hypervisor.spec(id).unwrap();
    assert_eq!(spec.datasource, Datasource::Cidata);
    assert!(holds(&disk(&world, id), "# first"));
    let status = world.waifud.status(id).unwrap();
    let told = status
        .conditions
        .iter()
        .find(|c| c.kind == "documents")
        .unwrap();
    assert_eq!(told.reason, "by-disk");
    assert!(
        told.message.contains("none of its networks"),
        "{}",
        told.message
    );
    world.delete(id).await;
}

#[tokio::test]
async fn a_guest_that_uses_metadatad_has_no_disk_with_its_documents() {
    let world = World::new();
    world.start();
    let want = instance(&world, Datasource::Ec2);
    let id = want.id;
    world.waifud.put(want);
    world.until_ready(id).await;
    assert_eq!(world.hypervisor.spec(id).unwrap().seed, None);
    assert!(!disk(&world, id).exists());
    world.delete(id).await;
}
