//! From a placed instance to its sealed bundle: what waifud knows becomes what the guest reads.

use ipnet::Ipv4Net;
use waifud_cloudinit::{NicDoc, SEAL_ENTROPY, SealedBundle, Source, VendorOptions, render, seal};
use waifud_store::{InstanceRow, StoredBundle};
use waifud_types::spec::NicSpec;
use waifud_types::template::Datasource;
use waifud_types::{Name, Secret};

use crate::ControlError;
use crate::env::Entropy;
use crate::network;
use crate::network::subnet;

/// Renders and seals the documents of an instance on a node.
pub fn bundle(
    row: &InstanceRow,
    node: &Name,
    net: Ipv4Net,
    domain: &str,
    ssh_keys: Vec<String>,
    user_data: Option<Secret<String>>,
    entropy: &dyn Entropy,
) -> Result<StoredBundle, ControlError> {
    let nics = row.spec.nics.iter().map(|nic| nic_doc(nic, net)).collect();
    let rescue = row.spec.rescue.as_ref();
    let source = Source {
        instance: row.id,
        instance_id: row.cloud_id.clone(),
        hostname: row.name.clone(),
        domain: Some(domain.to_owned()),
        availability_zone: node.to_string(),
        ssh_keys: with_rescue_keys(ssh_keys, row),
        // Another system than the one that it was written for must not carry it out.
        user_data: user_data.filter(|text| row.spec.rescue.is_none() && !text.expose().is_empty()),
        vendor_data: VendorOptions::default(),
        datasource: rescue.map_or(row.datasource, |rescue| rescue.datasource),
        nics,
        default_user: None,
    };
    let mut fresh = [0; SEAL_ENTROPY];
    entropy.fill(&mut fresh);
    let SealedBundle {
        digest,
        key,
        ciphertext,
    } = seal(&render(&source), &fresh).map_err(ControlError::Seal)?;
    Ok(StoredBundle {
        digest,
        key,
        ciphertext,
    })
}

/// The instance's keys, and while it is mended those of who mends it.
fn with_rescue_keys(mut keys: Vec<String>, row: &InstanceRow) -> Vec<String> {
    for key in row.spec.rescue.iter().flat_map(|rescue| &rescue.ssh_keys) {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

/// What the guest is told of a nic. On `default` its node's DHCP server tells it the rest; on a bridge whoever serves
/// addresses there does, unless somebody gave one: then the router there is the one who knows names.
fn nic_doc(nic: &NicSpec, net: Ipv4Net) -> NicDoc {
    let on_default = network::is_default(&nic.network);
    let gateway = if on_default {
        nic.address.map(|_| subnet::gateway(net))
    } else {
        nic.gateway
    };
    NicDoc {
        name: nic.name.clone(),
        is_static: nic.prefix_len.is_some(),
        mac: nic.mac,
        address: nic.address,
        prefix: nic.prefix_len.unwrap_or(net.prefix_len()),
        gateway,
        mtu: None,
        dns: gateway.into_iter().collect(),
    }
}

/// How an instance of a template finds its documents. Several nics, and addresses that DHCP does not give, can only be
/// described on a disk: by any other way the guest must have an address before it is told which one.
pub fn datasource(template: Datasource, nics: &[NicSpec]) -> Datasource {
    if nics.len() > 1 || nics.iter().any(|nic| nic.prefix_len.is_some()) {
        Datasource::Cidata
    } else {
        template
    }
}
