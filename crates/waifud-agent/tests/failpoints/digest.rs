//! The state that a verb leaves in every place, without the values that differ between clusters.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};
use waifud_metadata::{BundleStore, StateStore};
use waifud_storage::StoragePool;
use waifud_store::{InstanceFilter, StoreError};
use waifud_types::OwnershipRole;

use crate::cluster::Cluster;

/// One fact per line. While waifud is down, a single word.
pub async fn of(cluster: &Cluster) -> String {
    let mut text = String::new();
    let Some(list) = cluster.get("/v1/instances").await else {
        return "waifud is down".to_owned();
    };
    for instance in list["items"].as_array().unwrap() {
        writeln!(text, "instance {:#}", plain(instance)).unwrap();
    }
    users_and_events(cluster, &mut text).await;
    on_node(cluster, &mut text).await;
    documents(cluster, &mut text).await;
    text
}

/// An instance without ids, times and random values.
fn plain(instance: &Value) -> Value {
    let mut plain = instance.clone();
    for path in ["/id", "/created_at", "/status/last_seen", "/spec/image"] {
        if let Some(value) = plain.pointer_mut(path) {
            *value = json!("-");
        }
    }
    if let Some(at) = plain.pointer_mut("/status/started_at")
        && !at.is_null()
    {
        *at = json!("-");
    }
    for nic in plain["spec"]["nics"].as_array_mut().unwrap() {
        nic["mac"] = json!("-");
    }
    for nic in plain["status"]["nics"].as_array_mut().unwrap() {
        nic["mac"] = json!("-");
    }
    for condition in plain["status"]["conditions"].as_array_mut().unwrap() {
        condition["since"] = json!("-");
    }
    plain
}

/// The content of waifud's database besides instances, and the events.
async fn users_and_events(cluster: &Cluster, text: &mut String) {
    let node = cluster.get("/v1/nodes/alder").await.unwrap_or_default();
    for field in ["state", "promised", "unmanaged"] {
        writeln!(text, "node {field} {}", node[field]).unwrap();
    }
    let control = cluster.waifud.control();
    let rows = control.store().read(|tx| {
        let mut counts = Vec::new();
        for node in tx.nodes("", 10)? {
            counts.push(("addresses taken", tx.taken_addresses(node.subnet)?.len()));
            counts.push(("tombstones", tx.tombstones(node.id, 0)?.len()));
            counts.push(("slice", tx.slice(node.id, 0)?.len()));
            counts.push(("releases", tx.releases(node.id, 0)?.len()));
        }
        let all = tx.instances(&InstanceFilter::default(), "", 100)?;
        counts.push(("instances", all.len()));
        for instance in &all {
            let parts = tx.ownership(instance.id)?.into_iter();
            let released = parts.filter(|part| part.role == OwnershipRole::Released);
            counts.push(("released", released.count()));
        }
        Ok::<_, StoreError>(counts)
    });
    writeln!(text, "database {:?}", rows.await.unwrap()).unwrap();
    let events = cluster
        .get("/v1/events?limit=1000")
        .await
        .unwrap_or_default();
    let by_users: Vec<&str> = events["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|event| event["object"]["type"] == "instance" && event["actor"]["type"] != "node")
        .filter_map(|event| event["kind"].as_str())
        // Whether the node connects before or after a request is random.
        .filter(|kind| *kind != "instance.waiting")
        .collect();
    writeln!(text, "events by users {by_users:?}").unwrap();
}

async fn on_node(cluster: &Cluster, text: &mut String) {
    cluster.machine.tell(text).await;
    for volume in cluster.pool.volumes().await.unwrap() {
        writeln!(text, "volume {} {:?}", volume.id.disk, volume.size).unwrap();
    }
    for port in cluster
        .network
        .state()
        .iter()
        .flat_map(|state| &state.ports)
    {
        writeln!(text, "port {:?} {:?}", port.address, port.publish).unwrap();
    }
    for port in cluster.network.state().iter().flat_map(|state| &state.lan) {
        writeln!(text, "port on {} {:?}", port.bridge, port.identity).unwrap();
    }
    let state = &cluster.settings.state_dir;
    for (what, dir) in [
        ("records", state.join("records")),
        ("guests' directories", state.join("instances")),
        ("bundles kept", state.join("bundles")),
        ("images on their way", cluster.dir.path().join("pool")),
    ] {
        writeln!(text, "{what} {}", files(&dir)).unwrap();
    }
}

fn files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir);
    entries.map_or(0, |entries| entries.flatten().count())
}

/// What metadatad would serve, from its disk.
async fn documents(cluster: &Cluster, text: &mut String) {
    let disk = &cluster.metadatad.disk;
    let bundles = disk.bundles().await.unwrap();
    writeln!(text, "bundles {}", bundles.len()).unwrap();
    for (_, served) in disk.assignments().await.unwrap() {
        let bundle = served.bundle;
        let bytes = disk.bundle(bundle.digest).await.unwrap();
        let opened =
            bytes.and_then(|b| waifud_cloudinit::open(&b, bundle.digest, &bundle.key).ok());
        let user_data = opened.as_ref().and_then(|d| d.user_data());
        writeln!(
            text,
            "served {} at {}: {user_data:?}",
            served.name, served.address
        )
        .unwrap();
    }
}
