//! Requests of users. What waifud acknowledges becomes a promise.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use waifud_api::SetFirewall;
use waifud_types::spec::{RestartPolicy, SpreadSpec};
use waifud_types::{ByteSize, Digest, InstanceId};

use crate::invariants::Violation;
use crate::random::Random;
use crate::world::{Answer, Fields, Promise, Release, Unanswered, World};

/// The names of instances; a deleted one's name is used again.
pub(super) const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// Sends a request of a user, and records it.
pub(super) async fn request(
    world: &World,
    method: &str,
    path: &str,
    body: &Value,
) -> Option<Answer> {
    let answer = world.waifud.as_user(method, path, body).await;
    let status = answer
        .as_ref()
        .map_or("no answer".to_owned(), |answer| answer.status.to_string());
    world
        .history
        .act(&format!("user: {method} {path} {body} -> {status}"));
    world.require_no_failure(&format!("{method} {path}"), answer.as_ref());
    answer
}

pub(super) async fn create(world: &World, random: &Random) -> bool {
    let living = world.promises.living();
    let is_free = |name: &&str| living.iter().all(|(_, promise)| promise.name != **name);
    let free: Vec<&str> = NAMES.into_iter().filter(is_free).collect();
    let Some(name) = random.pick(&free) else {
        return false;
    };
    let run = random.percent(80);
    let cpus = 1 + random.below(2);
    let user_data = format!("#cloud-config\n# {name} {}\n", random.below(1000));
    let body = json!({
        "name": name, "template": "debian-12", "cpus": cpus, "memory_bytes": 256 << 20, "disk_bytes": 1 << 30,
        "run": run, "user_data": user_data,
    });
    let promise = Promise {
        name: (*name).to_owned(),
        generation: 1,
        fields: Fields {
            run,
            cpus: u32::try_from(cpus).unwrap_or(1),
            memory: ByteSize::mib(256),
            disk: ByteSize::gib(1),
            user_data: Some(Digest::of(user_data.as_bytes())),
            published: BTreeSet::new(),
            firewall: SetFirewall::default(),
            nics: BTreeSet::new(),
            protected: false,
            restart: RestartPolicy::default(),
            priority: 0,
            labels: BTreeMap::new(),
            spread: None,
            reboots: 0,
        },
        deleted: false,
        release: None,
        may_stop: !run,
        was_released: false,
        starts_before_reboot: None,
        unmanaged: false,
        voided: false,
        forgotten: false,
        may_vanish: false,
        moved: false,
        lost: false,
    };
    let Some(answer) = request(world, "POST", "/v1/instances", &body).await else {
        world.remember_unanswered(Unanswered::Create(promise));
        return false;
    };
    let created = answer.json();
    let id = created["id"].as_str().and_then(|id| id.parse().ok());
    let Some(id) = id.filter(|_| answer.is_success()) else {
        return false;
    };
    world.promises.set(id, promise);
    true
}

/// One of the living instances that fit.
pub(super) fn any(
    world: &World,
    random: &Random,
    fits: impl Fn(&Promise) -> bool,
) -> Option<(InstanceId, Promise)> {
    let mut living = world.promises.living();
    living.retain(|(_, promise)| fits(promise));
    random.pick(&living).cloned()
}

pub(super) async fn delete(world: &World, random: &Random) -> bool {
    let Some((id, promise)) = any(world, random, |_| true) else {
        return false;
    };
    let path = format!("/v1/instances/{}", promise.name);
    let after = Promise {
        deleted: true,
        may_stop: true,
        ..promise.clone()
    };
    let Some(answer) = request(world, "DELETE", &path, &Value::Null).await else {
        world.remember_unanswered(Unanswered::Change(id, after));
        return false;
    };
    if !answer.is_success() {
        return false;
    }
    if promise.fields.protected {
        world.violate(Violation {
            invariant: "acknowledged_changes_survive",
            what: format!("{} was protected, and could be deleted", promise.name),
        });
    }
    world.promises.set(id, after);
    true
}

/// A change of one instance: the body, and what it promises.
pub(super) async fn change(
    world: &World,
    one: (InstanceId, Promise),
    body: &Value,
    promised: impl FnOnce(&mut Promise),
) -> bool {
    let path = format!("/v1/instances/{}", one.1.name);
    change_by(world, one, ("PATCH", &path), body, promised).await
}

/// A change of one instance by a request with this method and path.
pub(super) async fn change_by(
    world: &World,
    (id, mut promise): (InstanceId, Promise),
    (method, path): (&str, &str),
    body: &Value,
    promised: impl FnOnce(&mut Promise),
) -> bool {
    promised(&mut promise);
    let Some(answer) = request(world, method, path, body).await else {
        world.remember_unanswered(Unanswered::Change(id, promise));
        return false;
    };
    if !answer.is_success() {
        return false;
    }
    let generation = answer.json()["generation"].as_u64();
    promise.generation = generation.unwrap_or(promise.generation);
    world.promises.set(id, promise);
    true
}

pub(super) async fn start(world: &World, random: &Random) -> bool {
    let Some(one) = any(world, random, |promise| !promise.fields.run) else {
        return false;
    };
    change(world, one, &json!({"run": true}), |promise| {
        promise.fields.run = true;
    })
    .await
}

pub(super) async fn stop(world: &World, random: &Random) -> bool {
    let Some(one) = any(world, random, |promise| promise.fields.run) else {
        return false;
    };
    let force = random.percent(30);
    change(
        world,
        one,
        &json!({"run": false, "force": force}),
        |promise| {
            promise.fields.run = false;
            promise.may_stop = true;
        },
    )
    .await
}

pub(super) async fn reboot(world: &World, random: &Random) -> bool {
    let Some(one) = any(world, random, |promise| promise.fields.run) else {
        return false;
    };
    let how = if random.percent(30) { "force" } else { "clean" };
    let starts = world.starts_of(one.0);
    let floor = world.waifud.read(|tx| tx.epoch_floor()).await;
    // Without an answer, waifud does not run, and takes no request either.
    let floor = floor.and_then(Result::ok).map_or(0, |floor| floor.0);
    change(world, one, &json!({"reboot": how}), |promise| {
        promise.fields.reboots = (promise.fields.reboots + 1).max(floor);
        promise.may_stop = true;
        // Starts are counted from the beginning on another node, and after a deletion that was under way.
        let same_copy = !promise.moved && !promise.lost && !promise.may_vanish;
        promise.starts_before_reboot = same_copy.then_some(starts);
    })
    .await
}

pub(super) async fn edit(world: &World, random: &Random) -> bool {
    let Some(one) = any(world, random, |_| true) else {
        return false;
    };
    let number = random.below(1000);
    let odd = number % 2 == 1;
    match random.below(7) {
        0 | 1 => {
            let text = format!("#cloud-config\n# {number}\n");
            let digest = Digest::of(text.as_bytes());
            let body = json!({"user_data": text, "re_run": odd});
            change(world, one, &body, |promise| {
                promise.fields.user_data = Some(digest);
            })
            .await
        }
        2 => {
            let body = json!({"re_run": true});
            change(world, one, &body, |_| {}).await
        }
        3 => {
            change(world, one, &json!({"protected": odd}), |promise| {
                promise.fields.protected = odd;
            })
            .await
        }
        4 => {
            let (restart, name) = if odd {
                (RestartPolicy::Always, "always")
            } else {
                (RestartPolicy::Never, "never")
            };
            let priority = i32::try_from(number).unwrap_or(0);
            let body = json!({"restart": name, "priority": priority});
            change(world, one, &body, |promise| {
                promise.fields.restart = restart;
                promise.fields.priority = priority;
            })
            .await
        }
        5 => {
            let value = odd.then(|| number.to_string());
            change(world, one, &json!({"labels": {"team": value}}), |promise| {
                let labels = &mut promise.fields.labels;
                match value {
                    Some(value) => labels.insert("team".to_owned(), value),
                    None => labels.remove("team"),
                };
            })
            .await
        }
        _ => {
            let group = SpreadSpec {
                group: sample_group(),
                strict: number % 4 == 1,
            };
            let spread = odd.then_some(group);
            let placement = json!({"node": null, "require": {}, "spread": spread});
            change(world, one, &json!({"placement": placement}), |promise| {
                promise.fields.spread = spread;
            })
            .await
        }
    }
}

/// The spread group of the run.
fn sample_group() -> waifud_types::Name {
    match "group".parse() {
        Ok(name) => name,
        Err(_) => sample_group(),
    }
}

pub(super) async fn resize(world: &World, random: &Random) -> bool {
    let Some(one) = any(world, random, |_| true) else {
        return false;
    };
    match random.below(3) {
        0 => {
            let cpus = u32::try_from(1 + random.below(4)).unwrap_or(1);
            change(world, one, &json!({"cpus": cpus}), |promise| {
                promise.fields.cpus = cpus;
            })
            .await
        }
        1 => {
            // A few large ones do not fit on one node.
            let memory = ByteSize::mib(256 << random.below(6));
            let body = json!({"memory_bytes": memory});
            change(world, one, &body, |promise| promise.fields.memory = memory).await
        }
        _ => {
            let disk = ByteSize(one.1.fields.disk.bytes() + (1 << 30));
            let body = json!({"disk_bytes": disk});
            change(world, one, &body, |promise| promise.fields.disk = disk).await
        }
    }
}

pub(super) async fn publish(world: &World, random: &Random) -> bool {
    let Some(one) = any(world, random, |_| true) else {
        return false;
    };
    // Few ports, so that instances on one node compete for them.
    let ports: BTreeSet<u16> = (8001..8004).filter(|_| random.percent(40)).collect();
    let list: Vec<Value> = ports.iter().map(|port| json!({"port": port})).collect();
    change(world, one, &json!({"publish": list}), |promise| {
        promise.fields.published = ports;
    })
    .await
}

pub(super) async fn release(world: &World, random: &Random, withdraw: bool) -> bool {
    let fits = |promise: &Promise| promise.release.is_some() == withdraw && !promise.moved;
    let Some((id, promise)) = any(world, random, fits) else {
        return false;
    };
    let stop = random.percent(75);
    let ordered = order_release(world, id, &promise.name, withdraw, stop).await;
    if ordered && withdraw && random.percent(60) {
        // At once, so that the node may not have heard of the withdrawal.
        order_release(world, id, &promise.name, false, stop).await;
    }
    ordered
}

async fn order_release(
    world: &World,
    id: InstanceId,
    name: &str,
    withdraw: bool,
    stop: bool,
) -> bool {
    if !stop {
        // If a restored database does not contain it, an operator who adopts the running guest does not end the release.
        world.forget_backup();
    }
    let status = world.waifud.release(id, withdraw, stop).await;
    let what = if withdraw { "withdraw" } else { "begin" };
    world.history.act(&format!(
        "{what} the release of {name}, stop {stop} -> {status:?}"
    ));
    if status == Some(500) {
        world.violate(Violation {
            invariant: "no_error_is_hidden",
            what: format!("{what} the release of {name}: 500"),
        });
    }
    let promised = |promise: &mut Promise| {
        promise.release = (!withdraw).then_some(Release { stop });
        promise.may_stop = true;
        promise.was_released = true;
    };
    if status.is_none()
        && let Some(mut after) = world.promises.of(id)
    {
        promised(&mut after);
        world.remember_unanswered(Unanswered::Change(id, after));
    }
    if status != Some(204) {
        return false;
    }
    world.promises.change(id, promised);
    true
}
