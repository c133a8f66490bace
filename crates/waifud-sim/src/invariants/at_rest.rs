//! What holds once every fault has ended and the cluster has had time.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use waifud_kit::sync::lock;
use waifud_types::InstanceId;

use super::{Violation, hold};
use crate::world::{Promise, World};

/// The answer of waifud about one instance.
struct Shown {
    name: String,
    state: String,
    node: Option<String>,
    reason: Option<String>,
}

/// Checks all of them. Each node has power, each wire is healed, and waifud runs.
pub async fn at_rest(world: &World) -> Result<(), Violation> {
    let shown = shown(world).await?;
    let running = running(world).await;
    every_request_ends(world, &shown, &running)?;
    every_status_is_true(world, &shown, &running)?;
    no_object_is_orphaned(world, &shown).await
}

async fn shown(world: &World) -> Result<BTreeMap<InstanceId, Shown>, Violation> {
    let path = "/v1/instances?limit=1000";
    let answer = world.waifud.as_user("GET", path, &Value::Null).await;
    let answer = answer.filter(|answer| answer.status == 200);
    hold!(
        answer.is_some(),
        no_request_ends_with_an_internal_error,
        "the instances cannot be listed"
    );
    let list = answer.map(|answer| answer.json()).unwrap_or_default();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let shown = items.iter().filter_map(|item| {
        let id: InstanceId = item["id"].as_str()?.parse().ok()?;
        let status = &item["status"];
        Some((
            id,
            Shown {
                name: text(&item["name"])?,
                state: text(&status["state"])?,
                node: text(&status["node"]),
                reason: text(&status["reason"]),
            },
        ))
    });
    Ok(shown.collect())
}

async fn running(world: &World) -> BTreeMap<InstanceId, String> {
    let mut running = BTreeMap::new();
    for node in &world.nodes {
        let of_node = node.running().await.into_iter();
        running.extend(of_node.map(|id| (id, node.name.clone())));
    }
    running
}

/// Every request ends as it should, or shows what it waits for.
fn every_request_ends(
    world: &World,
    shown: &BTreeMap<InstanceId, Shown>,
    running: &BTreeMap<InstanceId, String>,
) -> Result<(), Violation> {
    for (id, promise) in world.promises.all() {
        let Promise { name, run, .. } = &promise;
        let seen = shown.get(&id);
        if promise.deleted {
            let state = seen.map(|seen| &seen.state);
            hold!(
                seen.is_none(),
                every_request_ends,
                "the deletion of {name} does not end: {state:?}"
            );
            continue;
        }
        let runs = running.contains_key(&id);
        if promise.released {
            hold!(
                !runs,
                every_request_ends,
                "{name} was released, and still runs"
            );
        } else if seen.is_some_and(|seen| seen.node.is_none()) {
            let reason = seen.and_then(|seen| seen.reason.as_ref());
            hold!(
                reason.is_some(),
                every_request_ends,
                "{name} waits for a node without a reason"
            );
        } else {
            hold!(
                runs == *run,
                every_request_ends,
                "{name} runs: {runs}, requested: {run}; {:?}",
                seen.and_then(|seen| seen.reason.as_ref())
            );
        }
    }
    Ok(())
}

/// What waifud shows is what is on the node.
fn every_status_is_true(
    world: &World,
    shown: &BTreeMap<InstanceId, Shown>,
    running: &BTreeMap<InstanceId, String>,
) -> Result<(), Violation> {
    for (id, seen) in shown {
        let on = running.get(id);
        let name = &seen.name;
        hold!(
            (seen.state == "running") == on.is_some(),
            every_status_is_true,
            "{name} is shown as {}, and runs on {on:?}",
            seen.state
        );
        hold!(
            on.is_none() || seen.node.as_ref() == on,
            every_status_is_true,
            "{name} is shown on {:?}, and runs on {on:?}",
            seen.node
        );
        hold!(
            world.promises.of(*id).is_some(),
            every_status_is_true,
            "{name} is shown, but no user created it"
        );
    }
    Ok(())
}

/// No orphan volume, domain, port, document or file.
async fn no_object_is_orphaned(
    world: &World,
    shown: &BTreeMap<InstanceId, Shown>,
) -> Result<(), Violation> {
    for node in &world.nodes {
        let mut left: BTreeSet<(&str, InstanceId)> = BTreeSet::new();
        let volumes = node.volumes().await.into_iter();
        left.extend(volumes.map(|volume| ("volume", volume.instance)));
        let domains = node.domains().await.into_iter();
        left.extend(domains.map(|domain| ("domain", domain.id)));
        left.extend(node.ports().iter().map(|port| ("port", port.instance)));
        let held = node.metadata.held().into_keys();
        left.extend(held.map(|id| ("document", id)));
        left.extend(node.files().into_iter().map(|id| ("file", id)));
        for (what, id) in left {
            let owner = shown.get(&id).and_then(|seen| seen.node.as_ref());
            hold!(
                owner == Some(&node.name),
                no_object_is_orphaned,
                "{} has a {what} of {id}, which waifud shows on {owner:?}",
                node.name
            );
        }
        let held = node.metadata.held();
        let mut used: BTreeSet<_> = held.values().map(|held| held.bundle.digest).collect();
        // A node that has released an instance keeps its record, and may keep the documents that the record names.
        let sent = lock(&world.observed).documents.clone().into_iter();
        let released = |id| {
            world
                .promises
                .of(id)
                .is_some_and(|promise| promise.released)
        };
        used.extend(
            sent.filter(|(id, _)| released(*id))
                .map(|(_, bundle)| bundle),
        );
        let bundles = node.metadata.bundles();
        let unused = bundles.iter().find(|bundle| !used.contains(bundle));
        hold!(
            unused.is_none(),
            no_object_is_orphaned,
            "{} keeps the documents {unused:?}, which no instance uses",
            node.name
        );
    }
    Ok(())
}
