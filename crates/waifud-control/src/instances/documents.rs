//! The sealed bundle of a placed instance: the documents that its guest reads.

use ipnet::Ipv4Net;
use waifud_cloudinit::{
    NicAddress, NicDoc, SEAL_ENTROPY, SealedBundle, Source, VendorOptions, render, seal,
};
use waifud_store::{InstanceRow, NodeRow, StoredBundle};
use waifud_types::Secret;
use waifud_types::node::feature;
use waifud_types::spec::NicSpec;
use waifud_types::template::Datasource;

use crate::ControlError;
use crate::env::Entropy;
use crate::network;
use crate::network::subnet;

/// Renders and seals the documents of an instance on a node.
pub fn bundle(
    row: &InstanceRow,
    node: &NodeRow,
    domain: &str,
    ssh_keys: Vec<String>,
    user_data: Option<Secret<String>>,
    entropy: &dyn Entropy,
) -> Result<StoredBundle, ControlError> {
    let net = row.home.unwrap_or(node.subnet);
    let nics = row.spec.nics.iter().map(|nic| nic_doc(nic, net)).collect();
    let rescue = row.spec.rescue.as_ref();
    // In a VLAN, cloud-init would wait minutes for a service that does not answer.
    let first = row.spec.nics.first();
    let reaches_service = first.is_none_or(|nic| nic.vlan.is_none());
    let source = Source {
        instance: row.id,
        instance_id: row.cloud_id.clone(),
        hostname: row.name.clone(),
        domain: Some(domain.to_owned()),
        availability_zone: node.name.to_string(),
        ssh_keys: with_rescue_keys(ssh_keys, row),
        // The user-data is for the instance's own system, not for a rescue system.
        user_data: user_data.filter(|text| row.spec.rescue.is_none() && !text.expose().is_empty()),
        vendor_data: VendorOptions {
            phone_home: reaches_service,
            reports: reaches_service,
            report_port: node.facts.has(feature::REPORT_PORT),
        },
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

/// The instance's SSH keys, and during a rescue also those of the rescue request.
fn with_rescue_keys(mut keys: Vec<String>, row: &InstanceRow) -> Vec<String> {
    for key in row.spec.rescue.iter().flat_map(|rescue| &rescue.ssh_keys) {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

/// The network configuration of a nic. On `default` the node's DHCP server supplies the rest, on a bridge the DHCP server
/// there. With a fixed address on a bridge, the gateway is also the DNS server.
fn nic_doc(nic: &NicSpec, net: Ipv4Net) -> NicDoc {
    let on_default = network::is_default(&nic.network);
    let gateway = if on_default {
        nic.address.map(|_| subnet::gateway(net))
    } else {
        nic.gateway
    };
    let prefix = nic.prefix_len.unwrap_or(net.prefix_len());
    let net = nic.address.and_then(|ip| Ipv4Net::new(ip, prefix).ok());
    NicDoc {
        name: nic.name.clone(),
        mac: nic.mac,
        address: net.map(|net| NicAddress {
            net,
            is_static: nic.prefix_len.is_some(),
            gateway,
        }),
        mtu: None,
        dns: gateway.into_iter().collect(),
    }
}

/// The datasource of an instance of a template. Several nics and fixed addresses on bridges require a seed disk: any other
/// datasource needs an address before the guest can read its configuration. A nic in a VLAN requires one because the metadata
/// service does not answer there.
pub fn datasource(template: Datasource, nics: &[NicSpec]) -> Datasource {
    let needs_disk = |nic: &NicSpec| nic.prefix_len.is_some() || nic.vlan.is_some();
    if nics.len() > 1 || nics.iter().any(needs_disk) {
        Datasource::Cidata
    } else {
        template
    }
}
