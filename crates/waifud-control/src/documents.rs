//! From a placed instance to its sealed bundle: what waifud knows becomes what the guest reads.

use ipnet::Ipv4Net;
use waifud_cloudinit::{NicDoc, SEAL_ENTROPY, SealedBundle, Source, VendorOptions, render, seal};
use waifud_store::{InstanceRow, StoredBundle};
use waifud_types::{Name, Secret};

use crate::env::Entropy;
use crate::{ControlError, subnet};

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
    let gateway = subnet::gateway(net);
    let nics = row
        .spec
        .nics
        .iter()
        .map(|nic| NicDoc {
            mac: nic.mac,
            address: nic.address,
            prefix: net.prefix_len(),
            gateway: nic.address.map(|_| gateway),
            mtu: None,
            dns: nic.address.map(|_| gateway).into_iter().collect(),
        })
        .collect();
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
