//! `waifuctl ip`

use waifud_api::Instance;

use crate::address::{another_address, primary_address};
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;

/// Prints only the primary address, so that `$(waifuctl ip web)` works.
pub async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    let instance = context.client.instance(name).await?;
    let address = primary_address(&instance.status).ok_or_else(|| none_yet(&instance))?;
    if let Some(message) = another_address(&instance.status) {
        context
            .printer
            .note(&format!("warning: {}", escape(message)));
    }
    context
        .printer
        .print(&instance.status.addresses, || address)
}

/// Why the instance has no address. On a bridge, a DHCP server assigns it when the guest asks.
fn none_yet(instance: &Instance) -> Failure {
    let Instance {
        name, spec, status, ..
    } = instance;
    let bridge = spec.nics.first().map(|nic| &nic.network);
    let bridge = bridge.filter(|network| network.as_str() != "default" && status.node.is_some());
    let (why, hint) = match bridge {
        Some(network) => (
            format!(
                "the instance is {}, and no address was observed on {network}, where DHCP assigns addresses",
                status.state
            ),
            format!("waifuctl wait {name} --for address, or waifuctl why {name}"),
        ),
        None => (
            format!("the instance is {}", status.state),
            format!("waifuctl why {name}"),
        ),
    };
    Failure::input("no-address", format!("{name} has no address yet: {why}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_for_a_missing_address_explains_who_assigns_it() {
        let instance: Instance = serde_json::from_value(serde_json::json!({
            "id": waifud_types::InstanceId::generate(), "name": "ha", "labels": {}, "generation": 1,
            "created_at": "2026-11-22T00:00:00Z",
            "spec": {"template": "a", "image": format!("sha256:{}", "0".repeat(64)), "cpus": 1,
                "memory_bytes": 1 << 30, "run": true, "restart": "never", "priority": 0, "protected": false, "disks": [],
                "nics": [{"name": "eth0", "network": "lan", "mac": "52:54:00:00:00:01", "address": null,
                    "allow_addresses": []}],
                "publish": [], "placement": {"node": null, "spread": null}, "user_data": null},
            "status": waifud_types::status::InstanceStatus {
                node: Some("alder".parse().unwrap()),
                state: waifud_types::InstanceState::Running,
                ..waifud_types::status::InstanceStatus::pending(None)
            }
        }))
        .unwrap();
        let shown = format!("{:?}", none_yet(&instance));
        assert!(shown.contains("observed on lan"), "{shown}");
        assert!(shown.contains("--for address"), "{shown}");
    }
}
