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
    let source = Source {
        instance: row.id,
        instance_id: row.cloud_id.clone(),
        hostname: row.name.clone(),
        domain: Some(domain.to_owned()),
        availability_zone: node.to_string(),
        ssh_keys,
        user_data: user_data.filter(|text| !text.expose().is_empty()),
        vendor_data: VendorOptions::default(),
        datasource: row.datasource,
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
