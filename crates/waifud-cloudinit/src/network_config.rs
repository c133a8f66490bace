//! NoCloud's `network-config`, version 2: the names and addresses of network interfaces.
//!
//! It is omitted for one interface with DHCP, which cloud-init configures by default. Interfaces are matched by MAC address
//! and get the names that waifud shows.

use serde_json::{Map, Value, json};

use crate::{NicDoc, Source};

/// The metric of routes that additional interfaces get by DHCP, for guests that cannot ignore these routes: lower priority than the
/// first interface's routes with 100 (netplan and `NetworkManager`) or 1024 (networkd).
const ADDITIONAL_NIC_METRIC: u32 = 2048;

/// The document; empty if it is not needed. JSON, which is valid YAML.
pub(crate) fn document(source: &Source) -> String {
    if source.nics.len() < 2 && source.nics.iter().all(|nic| nic.static_address().is_none()) {
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
    match nic.static_address() {
        None => {
            set("dhcp4", json!(true));
            if !is_first {
                let overrides = json!({
                    "use-routes": false,
                    "use-dns": false,
                    "route-metric": ADDITIONAL_NIC_METRIC,
                });
                set("dhcp4-overrides", overrides);
            }
        }
        Some(address) => {
            set("dhcp4", json!(false));
            set("addresses", json!([address.net.to_string()]));
            if let Some(gateway) = address.gateway.filter(|_| is_first) {
                set("routes", json!([{ "to": "0.0.0.0/0", "via": gateway }]));
            }
            if !nic.dns.is_empty() && is_first {
                set("nameservers", json!({ "addresses": nic.dns }));
            }
        }
    }
    config
}
