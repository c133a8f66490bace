//! The spec of a new instance: what the request asks for, with the defaults of its template.

use waifud_api::InstanceSize;
use waifud_store::{ReadTx, StoreError, TemplateSource};
use waifud_types::spec::{DiskSpec, InstanceSpec, NicSpec, PlacementSpec, RestartPolicy};
use waifud_types::{Digest, FirewallSpec, MacAddr, Name, PowerSpec};

use super::validate::Checked;
use super::{defaults, problems};
use crate::network::nics::WantedNic;
use crate::network::subnet;
use crate::{ControlError, env};

/// A MAC address for each nic: the requested one, or an unused one.
pub(super) fn choose_macs(
    tx: &ReadTx<'_>,
    entropy: &dyn env::Entropy,
    nics: &[WantedNic],
) -> Result<Vec<MacAddr>, ControlError> {
    let mut macs: Vec<MacAddr> = Vec::with_capacity(nics.len());
    for nic in nics {
        let mac = match nic.mac {
            Some(mac) => mac,
            None => subnet::free_mac(entropy, |mac| {
                let requested = nics.iter().any(|other| other.mac == Some(mac));
                Ok::<_, StoreError>(requested || macs.contains(&mac) || tx.mac_is_taken(mac)?)
            })?
            .ok_or_else(|| {
                ControlError::Inconsistent("no free MAC address was found".to_owned())
            })?,
        };
        macs.push(mac);
    }
    Ok(macs)
}

fn word(text: &str) -> Result<Name, ControlError> {
    text.parse()
        .map_err(|e: waifud_types::name::NameError| ControlError::Inconsistent(e.to_string()))
}

/// A spec that has only a size, with the disk in the default pool.
pub(crate) fn of_size(size: InstanceSize) -> Result<InstanceSpec, ControlError> {
    Ok(InstanceSpec {
        template: word("any")?,
        image: Digest::from_bytes([0; 32]),
        cpus: size.cpus,
        memory_bytes: size.memory_bytes,
        run: true,
        power: PowerSpec::default(),
        rescue: None,
        restart: RestartPolicy::default(),
        priority: 0,
        protected: false,
        disks: vec![DiskSpec {
            name: word("root")?,
            size_bytes: size.disk_bytes,
            pool: word(defaults::POOL)?,
        }],
        nics: Vec::new(),
        publish: Vec::new(),
        firewall: FirewallSpec::default(),
        placement: PlacementSpec::default(),
        user_data: None,
    })
}

/// The spec of a request, with the image and the defaults of its template.
pub(super) fn spec(
    wanted: &Checked,
    template: &TemplateSource,
    macs: &[MacAddr],
) -> Result<InstanceSpec, ControlError> {
    let least = template.min_disk_bytes;
    let request = &wanted.request;
    let disk = request
        .disk_bytes
        .unwrap_or(least.max(defaults::SIZE.disk_bytes));
    if disk < least {
        return Err(problems::disk_too_small(disk, &template.name, least).into());
    }
    Ok(InstanceSpec {
        template: template.name.clone(),
        image: template.image,
        cpus: wanted.cpus,
        memory_bytes: wanted.memory,
        run: request.run.unwrap_or(true),
        power: PowerSpec::default(),
        rescue: None,
        restart: request.restart,
        priority: request.priority,
        protected: request.protected,
        disks: vec![DiskSpec {
            name: word("root")?,
            size_bytes: disk,
            pool: wanted.pool.clone(),
        }],
        nics: (0..)
            .zip(wanted.nics.iter().zip(macs))
            .map(|(index, (nic, &mac)): (usize, _)| {
                Ok(NicSpec {
                    name: word(&format!("eth{index}"))?,
                    network: nic.network.clone(),
                    mac,
                    address: nic.address.map(|address| address.ip),
                    prefix_len: nic.address.and_then(|address| address.prefix_len),
                    gateway: nic.address.and_then(|address| address.gateway),
                    vlan: nic.vlan,
                    allow_addresses: nic.allow_addresses.clone(),
                })
            })
            .collect::<Result<_, ControlError>>()?,
        publish: wanted.publish.clone(),
        firewall: wanted.firewall.clone(),
        placement: request.placement.clone(),
        user_data: wanted
            .user_data
            .as_ref()
            .and_then(|checked| checked.facts.clone()),
    })
}
