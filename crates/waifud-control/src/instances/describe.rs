//! Descriptions: the request that would create an instance again, and the check of such a request.

use waifud_api::{
    CreateInstance, CreateNic, DryRun, InstanceDescription, Page, Publish, SetFirewall,
};
use waifud_store::{InstanceFilter, InstanceRow, ReadTx};
use waifud_types::spec::NicSpec;
use waifud_types::{Coded, FirewallSpec, Generation, MacAddr, VlanId};

use super::{amend, find, new_spec};
use crate::instances::problems as instance_problems;
use crate::instances::validate;
use crate::network;
use crate::network::problems as network_problems;
use crate::pagination::{Cursor, PageRequest};
use crate::placement::place::{Related, decide};
use crate::{Control, ControlError};

/// Maximum number of descriptions per page.
const PAGE_MAX: u32 = 50;
/// A page ends with the description in which its user-data reaches this size, so that a slow link and the server's
/// memory bear it.
const PAGE_BYTES: u64 = 4 * 1024 * 1024;

/// How many of the rows fit on one page: at least one, so that every page leads to the next.
fn fitting(rows: &[InstanceRow], limit: u32) -> u32 {
    let mut bytes = 0_u64;
    let mut count = 0;
    for row in rows.iter().take(limit as usize) {
        count += 1;
        bytes += row.spec.user_data.as_ref().map_or(0, |it| it.size_bytes);
        if bytes >= PAGE_BYTES {
            break;
        }
    }
    count.max(1)
}

impl Control {
    /// Describes a page of instances, ordered by name.
    pub async fn descriptions(
        &self,
        page: PageRequest,
    ) -> Result<Page<InstanceDescription>, ControlError> {
        let limit = page.limit.min(PAGE_MAX);
        self.store()
            .read(move |tx| {
                let rows = tx.instances(&InstanceFilter::default(), page.after(), limit + 1)?;
                let count = fitting(&rows, limit);
                let (rows, next) = Cursor::cut(rows, count, |row| row.name.as_str());
                let items = rows.into_iter().map(|row| {
                    Ok(InstanceDescription {
                        id: row.id,
                        generation: row.generation,
                        description: description(&tx, row)?,
                    })
                });
                Ok::<_, ControlError>(Page {
                    items: items.collect::<Result<_, ControlError>>()?,
                    next,
                    revision: tx.at(tx.newest_event()?),
                })
            })
            .await
    }

    /// The request that would create the instance again, including secrets, and its generation.
    pub async fn describe(
        &self,
        name_or_id: &str,
    ) -> Result<(CreateInstance, Generation), ControlError> {
        let wanted = name_or_id.to_owned();
        self.store()
            .read(move |tx| {
                let row = find(&tx, &wanted)?;
                let generation = row.generation;
                Ok((description(&tx, row)?, generation))
            })
            .await
    }

    /// Checks a create request, and chooses a node for it, without creating anything. Another request may still take its
    /// name, its address or the capacity afterwards.
    pub async fn check_create(&self, request: CreateInstance) -> Result<DryRun, ControlError> {
        let wanted = validate::create(request)?;
        let control = self.clone();
        let guest_range = self.config().guest_range;
        self.store()
            .read(move |tx| {
                let template = tx
                    .template_source(wanted.template.as_str())?
                    .ok_or_else(|| instance_problems::unknown_template(wanted.template.as_str()))?;
                if let Some(name) = &wanted.name
                    && tx.instance_named(name.as_str())?.is_some()
                {
                    return Err(instance_problems::name_taken(name).into());
                }
                for mac in wanted.nics.iter().filter_map(|nic| nic.mac) {
                    if tx.mac_is_taken(mac)? {
                        return Err(network_problems::mac_taken().into());
                    }
                }
                let macs = new_spec::choose_macs(&tx, control.entropy(), &wanted.nics)?;
                let spec = new_spec::spec(&wanted, &template, &macs)?;
                let capacities = tx.node_capacities()?;
                network::check(&tx, &spec, &capacities, guest_range)?;
                network::check_address_is_free(&tx, &spec)?;
                network::firewall::check_names(&tx, &spec.firewall, &FirewallSpec::default())?;
                amend::near(&tx, &spec.placement, wanted.name.as_ref())?;
                let related = Related::read(&tx, &spec)?;
                let request = related.request(&spec, &template.traits.arch);
                let (choice, _) = decide(&tx, &request, &capacities, usize::MAX)?;
                let node = capacities
                    .into_iter()
                    .map(|capacity| capacity.node)
                    .find(|node| Some(node.id) == choice.node);
                let reason = choice.reason.filter(|_| node.is_none());
                Ok(DryRun {
                    node: node.map(|node| node.name),
                    reason: reason.as_ref().map(ToString::to_string),
                    cause: reason.as_ref().map(Coded::encode),
                    placement: choice.verdicts,
                })
            })
            .await
    }
}

fn description(tx: &ReadTx<'_>, row: InstanceRow) -> Result<CreateInstance, ControlError> {
    let ssh_keys = tx.ssh_keys(row.id)?;
    let user_data = tx
        .user_data(row.id)?
        .filter(|text| !text.expose().is_empty());
    let spec = row.spec;
    let root = spec.disks.first();
    let (mac, nics) = nics(&spec.nics);
    Ok(CreateInstance {
        name: Some(row.name.to_string()),
        labels: row.labels,
        template: spec.template.to_string(),
        cpus: Some(spec.cpus),
        memory_bytes: Some(spec.memory_bytes),
        disk_bytes: root.map(|disk| disk.size_bytes),
        pool: root.map(|disk| disk.pool.to_string()),
        user_data,
        ssh_keys,
        run: Some(spec.run),
        restart: spec.restart,
        priority: spec.priority,
        protected: spec.protected,
        mac,
        nics,
        publish: spec.publish.iter().map(Publish::from).collect(),
        firewall: SetFirewall::from(&spec.firewall),
        placement: spec.placement,
    })
}

/// The nics as a request. An address on `default` is waifud's choice and is left out. A single ordinary nic is described by
/// its MAC address alone, in the older field.
fn nics(nics: &[NicSpec]) -> (Option<MacAddr>, Vec<CreateNic>) {
    if let [nic] = nics
        && network::is_default(&nic.network)
        && nic.allow_addresses.is_empty()
    {
        return (Some(nic.mac), Vec::new());
    }
    let nics = nics.iter().map(|nic| CreateNic {
        network: Some(nic.network.to_string()),
        address: nic
            .address
            .zip(nic.prefix_len)
            .map(|(address, prefix)| format!("{address}/{prefix}")),
        gateway: nic.gateway.map(|gateway| gateway.to_string()),
        vlan: nic.vlan.map(VlanId::get),
        allow_addresses: nic
            .allow_addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
        mac: Some(nic.mac),
    });
    (None, nics.collect())
}
