//! What holds once every fault has ended and the cluster has had time.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use waifud_api::{Drain, Instance, Node};
use waifud_kit::sync::lock;
use waifud_types::{InstanceId, InstanceState};

use super::network::{
    routes_lead_to_the_node_of_each_guest, the_firewall_of_a_port_is_as_requested,
    the_nics_of_a_guest_are_as_requested,
};
use super::requests::every_request_ends;
use super::snapshot::{Database, Shown, Snapshot};
use super::{Violation, hold};
use crate::world::World;

/// Checks all of them. Each node has power, each wire is healed, and waifud runs.
pub async fn at_rest(world: &World) -> Result<(), Violation> {
    let shown = shown(world).await?;
    let nodes = Snapshot::of_all(world);
    let Some(database) = Database::read(world).await? else {
        return Err(Violation {
            invariant: "every_request_ends",
            what: "waifud does not run".to_owned(),
        });
    };
    every_request_ends(world, &nodes, &database, &shown)?;
    every_status_is_true(world, &nodes, &shown)?;
    every_node_is_as_requested(world).await?;
    a_drained_node_is_empty_or_says_what_stays(world, &database).await?;
    routes_lead_to_the_node_of_each_guest(world, &nodes)?;
    the_firewall_of_a_port_is_as_requested(world, &nodes, &database)?;
    the_nics_of_a_guest_are_as_requested(world, &nodes, &database)?;
    no_object_is_orphaned(world, &nodes, &shown)?;
    no_record_is_damaged(world)
}

async fn shown(world: &World) -> Result<Shown, Violation> {
    let path = "/v1/instances?limit=1000";
    let answer = world.waifud.as_user("GET", path, &Value::Null).await;
    let list = answer.filter(|answer| answer.status == 200);
    let list = list.map(|answer| answer.json()).unwrap_or_default();
    let items: Option<Vec<Instance>> = serde_json::from_value(list["items"].clone()).ok();
    hold!(
        world,
        items.is_some(),
        every_status_is_true,
        "the instances cannot be listed: {list}"
    );
    let items = items.unwrap_or_default().into_iter();
    Ok(items.map(|instance| (instance.id, instance)).collect())
}

/// What waifud shows is what is on the node.
fn every_status_is_true(
    world: &World,
    nodes: &[Snapshot<'_>],
    shown: &Shown,
) -> Result<(), Violation> {
    for (id, seen) in shown {
        let (name, status) = (&seen.name, &seen.status);
        let mut on = nodes.iter().filter(|at| at.runs(*id));
        let on = on.next().map(|at| at.node.name.as_str());
        let shows_running = status.state == InstanceState::Running;
        let promise = world.promises.of(*id);
        hold!(
            world,
            shows_running == on.is_some(),
            every_status_is_true,
            "{name} is shown as {:?}, and runs on {on:?}",
            status.state
        );
        hold!(
            world,
            on.is_none() || status.node.as_ref().map(waifud_types::Name::as_str) == on,
            every_status_is_true,
            "{name} is shown on {:?}, and runs on {on:?}",
            status.node
        );
        hold!(
            world,
            promise.is_some(),
            every_status_is_true,
            "{name} is shown, but no user created it"
        );
    }
    Ok(())
}

/// The nodes are those that were admitted and not removed, and each is cordoned or not, as an operator wanted.
async fn every_node_is_as_requested(world: &World) -> Result<(), Violation> {
    let path = "/v1/nodes?limit=1000";
    let answer = world.waifud.as_user("GET", path, &Value::Null).await;
    let list = answer.map(|answer| answer.json()).unwrap_or_default();
    let items: Option<Vec<Node>> = serde_json::from_value(list["items"].clone()).ok();
    let shown: BTreeMap<String, bool> = items
        .unwrap_or_default()
        .into_iter()
        .map(|node| (node.name.to_string(), node.cordoned))
        .collect();
    let wanted: BTreeSet<&str> = world.members().map(|node| node.name.as_str()).collect();
    hold!(
        world,
        shown.keys().map(String::as_str).collect::<BTreeSet<_>>() == wanted,
        every_node_is_as_requested,
        "the nodes {:?} are shown, and were to be {wanted:?}",
        shown.keys()
    );
    for (name, cordoned) in lock(&world.cordons).iter() {
        hold!(
            world,
            shown.get(name) == Some(cordoned),
            every_node_is_as_requested,
            "{name} was to be cordoned: {cordoned}, and is {:?}",
            shown.get(name)
        );
    }
    Ok(())
}

/// A node that is being drained names each instance that is still on it, with the reason.
async fn a_drained_node_is_empty_or_says_what_stays(
    world: &World,
    database: &Database,
) -> Result<(), Violation> {
    let drains = lock(&world.drains).clone();
    for node in world.members().filter(|node| drains.contains(&node.name)) {
        let path = format!("/v1/nodes/{}/drain", node.name);
        let answer = world.waifud.as_user("GET", &path, &Value::Null).await;
        let shown = answer.map(|answer| answer.json()).unwrap_or_default();
        let drain: Option<Drain> = serde_json::from_value(shown.clone()).ok();
        hold!(
            world,
            drain.is_some(),
            a_drained_node_is_empty_or_says_what_stays,
            "the drain of {} cannot be shown: {shown}",
            node.name
        );
        // It has ended: the node was empty.
        let Some(drain) = drain.filter(|drain| drain.draining) else {
            continue;
        };
        let rows = database.instances.values();
        let on_it = rows.filter(|row| row.node.is_some() && row.node == node.id());
        let on_it: BTreeSet<InstanceId> = on_it.map(|row| row.id).collect();
        let stay = drain.instances.iter();
        let with_reason = stay.filter(|one| one.obstacle.is_some());
        let explained: BTreeSet<InstanceId> = with_reason.map(|one| one.id).collect();
        hold!(
            world,
            !on_it.is_empty() && explained == on_it,
            a_drained_node_is_empty_or_says_what_stays,
            "{} has {on_it:?}, and its drain says {:?}",
            node.name,
            drain.instances
        );
    }
    Ok(())
}

/// No orphan volume, domain, port, document, image or file.
fn no_object_is_orphaned(
    world: &World,
    nodes: &[Snapshot<'_>],
    shown: &Shown,
) -> Result<(), Violation> {
    for (node, id, _) in world.abandoned.all() {
        hold!(
            world,
            world.members().all(|member| member.name != node),
            no_object_is_orphaned,
            "{node} has a copy of {id} from before it was removed, and an operator can neither adopt nor delete it: {}",
            what_is_left(world, &node, id)
        );
    }
    // A removed machine is as it was left.
    for at in nodes.iter().filter(|at| at.node.is_member()) {
        let node = at.node;
        let mut left: BTreeSet<(&str, InstanceId)> = BTreeSet::new();
        let volumes = at.volumes.keys();
        left.extend(volumes.map(|volume| ("volume", volume.instance)));
        left.extend(at.domains.keys().map(|id| ("domain", *id)));
        left.extend(at.ports.iter().map(|port| ("port", port.instance)));
        let lan = node.network_state().map(|state| state.lan);
        left.extend(lan.iter().flatten().map(|port| ("port", port.instance)));
        left.extend(at.held.keys().map(|id| ("document", *id)));
        let files = node.instances_with_files();
        left.extend(files.into_iter().map(|id| ("file", id)));
        let others = node.other_files();
        for (what, id) in left {
            let owner = shown.get(&id).and_then(|seen| seen.status.node.as_ref());
            hold!(
                world,
                owner.is_some_and(|owner| owner.as_str() == node.name),
                no_object_is_orphaned,
                "{} has a {what} of {id}, which waifud shows on {owner:?}",
                node.name
            );
        }
        hold!(
            world,
            others.is_empty(),
            no_object_is_orphaned,
            "{} has the files {others:?}",
            node.name
        );
        let used: BTreeSet<_> = at.held.values().map(|held| held.bundle.digest).collect();
        for bundle in node.metadata.bundles() {
            hold!(
                world,
                used.contains(&bundle),
                no_object_is_orphaned,
                "{}'s metadata service keeps the documents {bundle}, which no instance uses",
                node.name
            );
        }
        for image in node.images() {
            hold!(
                world,
                image == world.image.1,
                no_object_is_orphaned,
                "{} has the image {image}, which no template has",
                node.name
            );
        }
    }
    Ok(())
}

/// What a node has of an instance, for a message.
fn what_is_left(world: &World, node: &str, id: InstanceId) -> String {
    let mut nodes = world.nodes.iter();
    let Some(node) = nodes.find(|at| at.name == node) else {
        return String::new();
    };
    let all = [
        ("a domain", node.domains().iter().any(|one| one.id == id)),
        ("a volume", node.mark(id).is_some()),
        ("a port", node.ports().iter().any(|one| one.instance == id)),
        ("documents", node.metadata.held().contains_key(&id)),
        ("files", node.instances_with_files().contains(&id)),
    ];
    let left = all.iter().filter(|(_, is_left)| *is_left);
    let left: Vec<&str> = left.map(|(what, _)| *what).collect();
    format!("{left:?}, {}", node.record_text(id))
}

/// No agent has moved a record aside as damaged.
fn no_record_is_damaged(world: &World) -> Result<(), Violation> {
    for node in &world.nodes {
        let damaged = node.damaged_records();
        hold!(
            world,
            damaged.is_empty(),
            no_record_is_damaged,
            "{} has the damaged records {damaged:?}",
            node.name
        );
    }
    Ok(())
}
