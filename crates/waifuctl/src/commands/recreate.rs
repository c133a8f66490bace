//! `waifuctl recreate`

use waifud_api::{Instance, RecreateInstance};

use crate::cli::RecreateArgs;
use crate::confirm::ask;
use crate::context::Context;
use crate::failure::Failure;
use crate::wait::{Deadline, is_lost, or_detach, until_ready};

/// Creates an instance again, with new disks, whose node was removed.
pub async fn run(context: &Context, args: RecreateArgs) -> Result<(), Failure> {
    let deadline = Deadline::begin(args.wait.timeout);
    let before = context.client.instance(&args.name).await?;
    // waifud refuses any other instance, so there is nothing to confirm.
    if !args.yes && is_lost(&before) {
        let name = before.name.as_str();
        ask(&format!("recreating {name}"), &warning(&before), name)?;
    }
    let request = RecreateInstance {
        node: args.node.clone(),
    };
    let recreated = context.client.recreate_instance(&before, &request);
    let mut instance = recreated.await?;
    if args.wait.wait {
        let left = deadline.left(&instance.status);
        let name = instance.name.to_string();
        instance = Box::pin(or_detach(until_ready(context, instance, left), &name)).await?;
    }
    context
        .printer
        .print(&instance, || super::create::summary(&instance))
}

/// The network in which each node has its own range of addresses.
const DEFAULT: &str = "default";

/// What is new, and what is kept.
fn warning(instance: &Instance) -> String {
    let fixed: Vec<_> = instance
        .spec
        .nics
        .iter()
        .filter_map(|nic| nic.address)
        .map(|address| address.to_string())
        .collect();
    // An address there is kept only if the fabric leads to it elsewhere.
    let on_default = instance
        .spec
        .nics
        .iter()
        .any(|nic| nic.network.as_str() == DEFAULT && nic.address.is_none());
    let addresses = match (fixed.is_empty(), on_default) {
        (true, true) => " It gets a new address.".to_owned(),
        (true, false) => String::new(),
        (false, false) => format!(" It keeps {}.", fixed.join(" and ")),
        (false, true) => format!(
            " It keeps {}, and gets a new address on {DEFAULT}.",
            fixed.join(" and ")
        ),
    };
    format!(
        "This creates {} again with new, empty disks. It keeps its name, MAC addresses, user-data and settings.{addresses}",
        instance.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_names_what_is_kept() {
        let with = |nics: serde_json::Value| -> Instance {
            serde_json::from_value(serde_json::json!({
                "id": "0198c0de-0000-7000-8000-00000000abcd", "name": "web", "labels": {}, "generation": 1,
                "created_at": "2026-11-22T00:00:00Z",
                "spec": {"template": "a", "image": format!("sha256:{}", "0".repeat(64)), "cpus": 1,
                    "memory_bytes": 1 << 30, "run": true, "restart": "never", "priority": 0, "protected": false,
                    "disks": [], "publish": [], "placement": {"node": null, "spread": null}, "user_data": null,
                    "nics": nics},
                "status": waifud_types::status::InstanceStatus::pending(None),
            }))
            .unwrap()
        };
        let nic = |network: &str, address: Option<&str>| {
            serde_json::json!({"name": "eth0", "network": network, "mac": "52:54:00:00:00:01", "address": address,
                "allow_addresses": []})
        };
        let kept = "This creates web again with new, empty disks. It keeps its name, MAC addresses, user-data and settings.";
        let (default, lan) = (nic("default", None), nic("lan", Some("192.168.1.40")));
        for (nics, addresses) in [
            (vec![&default], " It gets a new address."),
            (vec![&lan], " It keeps 192.168.1.40."),
            (
                vec![&nic("default", Some("10.144.1.7"))],
                " It keeps 10.144.1.7.",
            ),
            (
                vec![&lan, &default],
                " It keeps 192.168.1.40, and gets a new address on default.",
            ),
            (vec![&nic("lan", None)], ""),
        ] {
            let instance = with(serde_json::json!(nics));
            assert_eq!(warning(&instance), format!("{kept}{addresses}"));
        }
    }
}
