//! `waifuctl nic …`

use serde::Serialize;
use waifud_api::Instance;
use waifud_types::spec::NicSpec;
use waifud_types::status::{AddressSource, NicState, NicStatus};
use waifud_types::{MacAddr, Name, VlanId};

use crate::cli::{NicAddArgs, NicCommand, NicRemoveArgs, WaitOptions};
use crate::concurrent_change::change_present;
use crate::context::Context;
use crate::failure::Failure;
use crate::network_args::network_text;
use crate::printer::table;
use crate::text::escape;
use crate::wait::{self, Deadline};

/// Changes or lists the nics of an instance.
pub async fn run(context: &Context, command: NicCommand) -> Result<(), Failure> {
    match command {
        NicCommand::Add(args) => add(context, args).await,
        NicCommand::Remove(args) => remove(context, args).await,
        NicCommand::List(args) => {
            let instance = context.client.instance(&args.name).await?;
            let list = List::of(&instance);
            context.printer.print(&list, || to_text(&list))
        }
    }
}

async fn add(context: &Context, args: NicAddArgs) -> Result<(), Failure> {
    let mut request = args.network;
    if args.mac.is_some() && request.mac.is_some() {
        return Err(
            Failure::input("duplicate-mac", "the MAC address is given twice").field("--mac"),
        );
    }
    request.mac = args.mac.or(request.mac);
    request.allow_addresses = args.allow_address;
    // With the generation, so that a repeated request does not add a second nic.
    let (before, added) = change_present(context, &args.name, async |before| {
        let added = context.client.add_nic(&before, &request).await?;
        Ok((before, added))
    })
    .await?;
    let has = |nic: &&NicSpec| before.spec.nics.iter().any(|other| other.name == nic.name);
    let Some(nic) = added.spec.nics.iter().find(|nic| !has(nic)).cloned() else {
        return Err(Failure::input(
            "nic-missing",
            "waifud has not added the nic",
        ));
    };
    let added = waited(context, added, args.wait, |now| is_added(now, &nic.name)).await?;
    context.printer.print(&added, || {
        let state = state_of(&added, &nic.name);
        format!("{}: {}", added.name, added_text(&nic, state))
    })
}

fn added_text(nic: &NicSpec, state: Option<&NicStatus>) -> String {
    let network = network_text(&nic.network, nic.vlan);
    let what = format!("nic {} ({}) on {network}", nic.name, nic.mac);
    match state.map(|nic| (nic.state, nic.reason.as_deref())) {
        Some((NicState::Attached, _)) => format!("{what} added"),
        Some((NicState::NextStart, reason)) => format!(
            "{what} is added at the next start, because the running guest cannot get it: {}",
            escape(reason.unwrap_or("unknown reason"))
        ),
        Some((NicState::Off, _)) => format!("{what} is added at the next start"),
        _ => format!("{what} is being added"),
    }
}

async fn remove(context: &Context, args: NicRemoveArgs) -> Result<(), Failure> {
    let before = context.client.instance(&args.name).await?;
    let id = before.id.to_string();
    let removed = context.client.remove_nic(&id, &args.nic).await?;
    let mac: Option<MacAddr> = args.nic.parse().ok();
    let is_it = |name: &Name, its: MacAddr| name.as_str() == args.nic || mac == Some(its);
    let there = |now: &Instance| now.status.nics.iter().any(|nic| is_it(&nic.name, nic.mac));
    let removed = waited(context, removed, args.wait, |now| !there(now)).await?;
    context.printer.print(&removed, || {
        let nic = removed
            .status
            .nics
            .iter()
            .find(|nic| is_it(&nic.name, nic.mac));
        match nic {
            None if is_observed(&removed) => format!("{}: nic {} removed", removed.name, args.nic),
            _ => format!("{}: nic {} is being removed", removed.name, args.nic),
        }
    })
}

/// Waits until the node has reported what is waited for, if the user wants that.
async fn waited(
    context: &Context,
    instance: Instance,
    options: WaitOptions,
    is_done: impl Fn(&Instance) -> bool,
) -> Result<Instance, Failure> {
    if !options.wait {
        return Ok(instance);
    }
    let name = instance.name.to_string();
    let deadline = Deadline::begin(options.timeout);
    let generation = instance.generation;
    let is_done =
        |now: &Instance| now.status.observed_generation >= Some(generation) && is_done(now);
    let until = Box::pin(wait::until_nics(context, instance, deadline, is_done));
    wait::or_detach(until, &name).await
}

/// Whether the node knows the present spec.
fn is_observed(instance: &Instance) -> bool {
    instance.status.observed_generation >= Some(instance.generation)
}

fn state_of<'a>(instance: &'a Instance, name: &Name) -> Option<&'a NicStatus> {
    // Before the node knows the spec, it may have reported another nic with this name.
    let mut nics = instance
        .status
        .nics
        .iter()
        .filter(|_| is_observed(instance));
    nics.find(|nic| nic.name == *name)
}

fn is_added(instance: &Instance, name: &Name) -> bool {
    let state = state_of(instance, name).map(|nic| nic.state);
    matches!(
        state,
        Some(NicState::Attached | NicState::NextStart | NicState::Off)
    )
}

/// The nics of an instance.
#[derive(Debug, Serialize)]
struct List {
    items: Vec<Item>,
    next: Option<String>,
}

/// A nic as it is printed.
#[derive(Debug, Serialize)]
struct Item {
    name: Name,
    network: Name,
    mac: MacAddr,
    /// The VLAN on the bridge, unless the nic is being removed.
    vlan: Option<VlanId>,
    /// The assigned address.
    address: Option<String>,
    /// Addresses that were observed on the network, if no other nic of the instance is on it.
    observed: Vec<String>,
    /// Null if the node has not reported it.
    state: Option<NicState>,
    reason: Option<String>,
}

impl List {
    fn of(instance: &Instance) -> Self {
        let spec = instance.spec.nics.iter().map(|nic| {
            let state = state_of(instance, &nic.name);
            Item {
                name: nic.name.clone(),
                network: nic.network.clone(),
                mac: nic.mac,
                vlan: nic.vlan,
                address: nic.address.map(|address| address.to_string()),
                observed: observed(instance, nic),
                state: state.map(|nic| nic.state),
                reason: state.and_then(|nic| nic.reason.clone()),
            }
        });
        let in_spec = |nic: &&NicStatus| {
            let mut nics = instance.spec.nics.iter();
            nics.any(|other| other.name == nic.name)
        };
        let leaving = instance.status.nics.iter().filter(|nic| !in_spec(nic));
        let leaving = leaving.map(|nic| Item {
            name: nic.name.clone(),
            network: nic.network.clone(),
            mac: nic.mac,
            vlan: None,
            address: None,
            observed: Vec::new(),
            state: Some(NicState::Removing),
            reason: nic.reason.clone(),
        });
        Self {
            items: spec.chain(leaving).collect(),
            next: None,
        }
    }
}

fn observed(instance: &Instance, nic: &NicSpec) -> Vec<String> {
    let same = |other: &&NicSpec| other.network == nic.network;
    if instance.spec.nics.iter().filter(same).count() > 1 {
        return Vec::new();
    }
    let seen = instance.status.addresses.iter();
    let seen =
        seen.filter(|seen| seen.network == nic.network && seen.source == AddressSource::Observed);
    seen.map(|seen| seen.address.to_string()).collect()
}

fn to_text(list: &List) -> String {
    let rows = list.items.iter().map(|nic| {
        let observed = nic.observed.first().map(|address| format!("{address}*"));
        let address = nic.address.clone().or(observed);
        vec![
            nic.name.to_string(),
            network_text(&nic.network, nic.vlan),
            nic.mac.to_string(),
            address.unwrap_or_else(|| "-".to_owned()),
            match (nic.state, &nic.reason) {
                (Some(state), Some(reason)) => format!("{state}: {}", escape(reason)),
                (Some(state), None) => state.to_string(),
                (None, _) => "-".to_owned(),
            },
        ]
    });
    table(
        &["NAME", "NETWORK", "MAC", "ADDRESS", "STATE"],
        rows.collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(observed: u64, nics: &serde_json::Value) -> Instance {
        let nic = |name: &str, network: &str, mac: &str, address: Option<&str>| {
            serde_json::json!({"name": name, "network": network, "mac": mac, "address": address,
                "allow_addresses": []})
        };
        serde_json::from_value(serde_json::json!({
            "id": "0198c0de-0000-7000-8000-00000000abcd", "name": "web", "labels": {}, "generation": 3,
            "created_at": "2026-11-22T00:00:00Z",
            "spec": {"template": "a", "image": format!("sha256:{}", "0".repeat(64)), "cpus": 1,
                "memory_bytes": 1 << 30, "run": true, "restart": "never", "priority": 0, "protected": false, "disks": [],
                "nics": [nic("eth0", "default", "52:54:00:00:00:01", Some("10.144.1.2")),
                    nic("eth2", "lan", "52:54:00:00:00:03", None)],
                "publish": [], "placement": {"node": null, "spread": null}, "user_data": null},
            "status": {"observed_generation": observed, "state": "running", "reason": null, "ready": false,
                "ready_by": null, "node": "alder", "hypervisor": null, "stopped_by": null, "last_state": null,
                "last_seen": null, "step": null, "restart_needed": [], "nics": nics,
                "addresses": [{"address": "192.168.1.40", "family": "ipv4", "network": "lan", "source": "observed",
                    "primary": false}],
                "cloud_init": {"state": "pending", "instance_id": null, "datasource": null, "errors": []},
                "conditions": []}
        }))
        .unwrap()
    }

    fn status(name: &str, mac: &str, state: &str) -> serde_json::Value {
        serde_json::json!({"name": name, "network": "lan", "mac": mac, "state": state, "reason": null})
    }

    #[test]
    fn nics_are_listed_with_their_states_and_those_that_leave_come_last() {
        let nics = serde_json::json!([
            {"name": "eth0", "network": "default", "mac": "52:54:00:00:00:01", "state": "attached", "reason": null},
            {"name": "eth2", "network": "lan", "mac": "52:54:00:00:00:03", "state": "next-start", "reason": "no slot"},
            status("eth1", "52:54:00:00:00:02", "removing"),
        ]);
        let text = to_text(&List::of(&instance(3, &nics)));
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                "NAME  NETWORK  MAC                ADDRESS        STATE",
                "eth0  default  52:54:00:00:00:01  10.144.1.2     attached",
                "eth2  lan      52:54:00:00:00:03  192.168.1.40*  next-start: no slot",
                "eth1  lan      52:54:00:00:00:02  -              removing",
            ]
        );
    }

    #[test]
    fn a_nic_in_a_vlan_is_shown_as_it_is_requested() {
        let mut instance = instance(3, &serde_json::json!([]));
        instance.spec.nics[1].vlan = Some(20.try_into().unwrap());
        let list = List::of(&instance);
        let text = to_text(&list);
        assert!(
            text.contains("\neth2  lan,vlan=20  52:54:00:00:00:03  "),
            "{text}"
        );
        let json = serde_json::to_value(&list).unwrap();
        assert_eq!(
            (&json["items"][0]["vlan"], &json["items"][1]["vlan"]),
            (&serde_json::Value::Null, &20.into())
        );
        let added = added_text(&instance.spec.nics[1], None);
        assert!(added.contains(" on lan,vlan=20 "), "{added}");
    }

    #[test]
    fn a_nic_is_added_when_the_node_has_it_for_this_generation() {
        let name: Name = "eth2".parse().unwrap();
        let added = |observed, state: &str| {
            let nics = serde_json::json!([status("eth2", "52:54:00:00:00:03", state)]);
            is_added(&instance(observed, &nics), &name)
        };
        assert!(added(3, "attached") && added(3, "next-start") && added(3, "off"));
        assert!(!added(3, "adding"));
        assert!(!added(2, "attached"), "of another nic that had this name");
        assert!(!is_added(&instance(3, &serde_json::json!([])), &name));
    }
}
