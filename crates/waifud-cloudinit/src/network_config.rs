//! NoCloud's `network-config`, version 2: what each nic is called and how it gets its address.
//!
//! Written only where a guest could not know by itself: with one nic that gets its address by DHCP, cloud-init does the
//! right thing when it is told nothing. Nics are known by their MAC addresses and get the names that waifud shows.

use serde_json::{Map, Value, json};

use crate::{NicDoc, Source};

/// Routes that a later nic learns all the same, where the guest's network program can't be told to leave them alone:
/// behind those of the first, which have 100 (netplan and `NetworkManager`) or 1024 (networkd).
const LATER_METRIC: u32 = 2048;

/// The document; empty where cloud-init needs none. JSON, which is YAML too.
pub(crate) fn document(source: &Source) -> String {
    if source.nics.len() < 2 && source.nics.iter().all(|nic| !nic.is_static) {
        return String::new();
    }
    let nics = source.nics.iter().enumerate();
    let ethernets: Map<String, Value> = nics
        .map(|(index, nic)| (nic.name.to_string(), ethernet(nic, index == 0)))
        .collect();
    json!({ "version": 2, "ethernets": ethernets }).to_string()
}

fn ethernet(nic: &NicDoc, is_first: bool) -> Value {
    let mut config = json!({
        "match": { "macaddress": nic.mac },
        "set-name": nic.name,
    });
    let mut set = |key: &str, value: Value| {
        if let Some(map) = config.as_object_mut() {
            map.insert(key.to_owned(), value);
        }
    };
    if let Some(mtu) = nic.mtu {
        set("mtu", json!(mtu));
    }
    match nic.address.filter(|_| nic.is_static) {
        None => {
            set("dhcp4", json!(true));
            if !is_first {
                let overrides = json!({
                    "use-routes": false,
                    "use-dns": false,
                    "route-metric": LATER_METRIC,
                });
                set("dhcp4-overrides", overrides);
            }
        }
        Some(address) => {
            set("dhcp4", json!(false));
            set("addresses", json!([format!("{address}/{}", nic.prefix)]));
            if let Some(gateway) = nic.gateway.filter(|_| is_first) {
                set("routes", json!([{ "to": "0.0.0.0/0", "via": gateway }]));
            }
            if !nic.dns.is_empty() && is_first {
                set("nameservers", json!({ "addresses": nic.dns }));
            }
        }
    }
    config
}
