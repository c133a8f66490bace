//! Renders the documents of an instance.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use waifud_types::Secret;
use waifud_types::template::Datasource;

use crate::{
    Documents, NicDoc, Source,
    documents::{Leaf, Tree},
    nocloud, vendor,
};

/// Renders all documents of one instance. The same source gives the same documents.
pub fn render(source: &Source) -> Documents {
    Documents {
        instance: source.instance,
        instance_id: source.instance_id.clone(),
        openstack: openstack(source),
        ec2: ec2(source),
        nocloud: nocloud::tree(source),
        user_data: source.user_data.clone(),
    }
}

/// The name of a public key in the OpenStack and EC2 documents.
fn key_name(index: usize) -> String {
    format!("key-{index}")
}

fn document(value: &Value) -> Leaf {
    Leaf::Json(Secret::new(value.to_string()))
}

fn openstack(source: &Source) -> Tree {
    let mut tree = Tree::from([
        ("meta_data.json".to_owned(), document(&meta_data(source))),
        ("network_data.json".to_owned(), document(&network(source))),
        (
            "vendor_data.json".to_owned(),
            document(&vendor::openstack(source)),
        ),
        // Dynamic vendor-data has one entry per service; waifud has none.
        ("vendor_data2.json".to_owned(), document(&json!({}))),
    ]);
    if source.user_data.is_some() {
        tree.insert("user_data".to_owned(), Leaf::UserData);
    }
    tree
}

/// `meta_data.json`. cloud-init uses `uuid` as the instance-id and `hostname` as the host name with its domain.
fn meta_data(source: &Source) -> Value {
    let keys = || source.ssh_keys.iter().enumerate();
    let public_keys: serde_json::Map<String, Value> = keys()
        .map(|(index, key)| (key_name(index), json!(key)))
        .collect();
    let listed: Vec<Value> = keys()
        .map(|(index, key)| json!({ "name": key_name(index), "type": "ssh", "data": key }))
        .collect();
    json!({
        "uuid": source.instance_id,
        "name": source.hostname,
        "hostname": source.fqdn(),
        "availability_zone": source.availability_zone,
        "launch_index": 0,
        "project_id": "waifud",
        "public_keys": public_keys,
        "keys": listed,
        "devices": [],
        "meta": {},
    })
}

/// `network_data.json`: network interfaces use DHCP, which assigns their fixed addresses, so these cannot differ. Only
/// interfaces on networks without DHCP have static addresses.
fn network(source: &Source) -> Value {
    let nics = || source.nics.iter().enumerate();
    let links: Vec<Value> = nics()
        .map(|(index, nic)| {
            json!({
                "id": format!("nic{index}"),
                "type": "phy",
                "ethernet_mac_address": nic.mac,
                "mtu": nic.mtu,
            })
        })
        .collect();
    let networks: Vec<Value> = nics()
        .map(|(index, nic)| {
            let mut network = json!({
                "id": format!("network{index}"),
                "type": "ipv4_dhcp",
                "link": format!("nic{index}"),
                "network_id": format!("network{index}"),
            });
            if let Some(address) = nic.static_address()
                && let Some(map) = network.as_object_mut()
            {
                map.insert("type".to_owned(), json!("ipv4"));
                map.insert("ip_address".to_owned(), json!(address.net.addr()));
                map.insert("netmask".to_owned(), json!(address.net.netmask()));
                let routes = address.gateway.filter(|_| index == 0).map(|gateway| {
                    json!({ "network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": gateway })
                });
                map.insert("routes".to_owned(), json!(Vec::from_iter(routes)));
            }
            network
        })
        .collect();
    let first = source.nics.iter().take(1);
    let servers: BTreeSet<_> = first.flat_map(|nic| nic.dns.iter()).collect();
    let services: Vec<Value> = servers
        .into_iter()
        .map(|address| json!({ "type": "dns", "address": address }))
        .collect();
    json!({ "links": links, "networks": networks, "services": services })
}

/// The documents below `/VERSION/`. Each costs one request at every boot, so there are few.
fn ec2(source: &Source) -> Tree {
    let fqdn = source.fqdn();
    let mut tree = Tree::new();
    let mut put = |path: &str, leaf| tree.insert(path.to_owned(), leaf);
    put("meta-data/ami-id", Leaf::text("ami-waifud"));
    put("meta-data/hostname", Leaf::text(fqdn.as_str()));
    put(
        "meta-data/instance-id",
        Leaf::text(source.instance_id.as_str()),
    );
    put("meta-data/instance-type", Leaf::text("waifud"));
    put("meta-data/local-hostname", Leaf::text(fqdn.as_str()));
    put(
        "meta-data/placement/availability-zone",
        Leaf::text(source.availability_zone.as_str()),
    );
    put(
        "dynamic/instance-identity/document",
        document(&identity(source)),
    );
    if let Some(nic) = source.nics.first() {
        put("meta-data/mac", Leaf::text(nic.mac.to_string()));
        if let Some(address) = nic.address {
            let address = address.net.addr().to_string();
            put("meta-data/local-ipv4", Leaf::text(address));
        }
    }
    if source.user_data.is_some() {
        put("user-data", Leaf::UserData);
    }
    // This directory lists numbers and names instead of its children.
    let names: Vec<String> = (0..source.ssh_keys.len())
        .map(|index| format!("{index}={}", key_name(index)))
        .collect();
    if !names.is_empty() {
        let names = Leaf::Listing(Secret::new(names.join("\n")));
        put("meta-data/public-keys", names);
    }
    for (index, key) in source.ssh_keys.iter().enumerate() {
        let path = format!("meta-data/public-keys/{index}/openssh-key");
        put(&path, Leaf::text(key.as_str()));
    }
    if source.datasource == Datasource::Ec2 {
        for (index, nic) in source.nics.iter().enumerate() {
            interface(&mut tree, index, nic);
        }
    }
    tree
}

/// `meta-data/network/interfaces/macs/MAC/…`: cloud-init's EC2 datasource generates its network configuration from these,
/// and warns without them. The OpenStack datasource would fetch each of them without using it.
fn interface(tree: &mut Tree, index: usize, nic: &NicDoc) {
    let mut put = |leaf: &str, value: String| {
        let path = format!("meta-data/network/interfaces/macs/{}/{leaf}", nic.mac);
        tree.insert(path, Leaf::text(value));
    };
    put("device-number", index.to_string());
    put("interface-id", format!("eni-{index}"));
    put("mac", nic.mac.to_string());
    if let Some(address) = nic.address {
        put("local-ipv4s", address.net.addr().to_string());
        put("subnet-ipv4-cidr-block", address.net.trunc().to_string());
    }
}

/// `dynamic/instance-identity/document`, unsigned. Without it, cloud-init's token mode waits for 5 s.
fn identity(source: &Source) -> Value {
    json!({
        "instanceId": source.instance_id,
        "availabilityZone": source.availability_zone,
        "region": "waifud",
        "privateIp": source.nics.first().and_then(|nic: &NicDoc| nic.address).map(|address| address.net.addr()),
        "version": "2017-09-30",
    })
}
