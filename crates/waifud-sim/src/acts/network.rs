//! Changes of an instance's network: its firewall, and further nics on a bridge of the hosts.

use serde_json::{Value, json};
use waifud_api::{SetFirewall, SetFirewallRule};
use waifud_kit::sync::lock;
use waifud_types::firewall::{FirewallAction, FirewallDirection, FirewallProtocol};

use super::requests::{any, change, change_by};
use crate::random::Random;
use crate::world::{LAN, Promise, World};

fn action(random: &Random) -> FirewallAction {
    if random.percent(50) {
        FirewallAction::Allow
    } else {
        FirewallAction::Deny
    }
}

/// A user replaces the firewall of an instance.
pub(super) async fn firewall(world: &World, random: &Random) -> bool {
    // Rules do not apply to nics on bridges of the host, so an instance cannot have both.
    let Some(one) = any(world, random, |promise| promise.fields.nics.is_empty()) else {
        return false;
    };
    let rules = (0..random.below(4)).map(|_| rule(world, random));
    let firewall = if random.percent(30) {
        SetFirewall::default()
    } else {
        SetFirewall {
            incoming: action(random),
            outgoing: action(random),
            rules: rules.collect(),
        }
    };
    let body = json!({"firewall": firewall});
    change(world, one, &body, |promise| {
        promise.fields.firewall = firewall;
    })
    .await
}

fn rule(world: &World, random: &Random) -> SetFirewallRule {
    let other = any(world, random, |_| true).map(|(_, promise)| promise);
    let peer = match (random.below(4), other) {
        (0, Some(other)) => Some(format!("instance:{}", other.name)),
        (1, Some(other)) => {
            let label = other.fields.labels.get("team");
            let value = label.map_or("1", String::as_str);
            Some(format!("label:team={value}"))
        }
        (2, _) => Some("10.144.0.0/16".to_owned()),
        _ => None,
    };
    let port = 20 + random.below(4);
    SetFirewallRule {
        direction: if random.percent(50) {
            FirewallDirection::In
        } else {
            FirewallDirection::Out
        },
        action: action(random),
        protocol: Some(FirewallProtocol::Tcp),
        ports: vec![port.to_string()],
        peer,
    }
}

/// A user adds a nic, also while the guest runs.
pub(super) async fn add_nic(world: &World, random: &Random) -> bool {
    let few = 3;
    let fits =
        |promise: &Promise| promise.fields.firewall.is_open() && promise.fields.nics.len() < few;
    let Some(one) = any(world, random, fits) else {
        return false;
    };
    let [a, b, c] = [(); 3].map(|()| random.below(256));
    let mac = format!("52:54:00:{a:02x}:{b:02x}:{c:02x}");
    let path = format!("/v1/instances/{}/nics", one.1.name);
    let body = json!({"network": LAN, "address": null, "gateway": null, "mac": mac});
    change_by(world, one, ("POST", &path), &body, |promise| {
        promise.fields.nics.insert(mac);
    })
    .await
}

/// A user removes a nic. Some guests do not release it for a while.
pub(super) async fn remove_nic(world: &World, random: &Random) -> bool {
    let Some(one) = any(world, random, |promise| !promise.fields.nics.is_empty()) else {
        return false;
    };
    let nics: Vec<String> = one.1.fields.nics.iter().cloned().collect();
    let Some(mac) = random.pick(&nics) else {
        return false;
    };
    if random.percent(30) {
        lock(&world.holding_nics).insert(one.0);
        world.hold_nics(one.0, true);
    }
    let path = format!("/v1/instances/{}/nics/{mac}", one.1.name);
    change_by(world, one, ("DELETE", &path), &Value::Null, |promise| {
        promise.fields.nics.remove(mac);
    })
    .await
}
