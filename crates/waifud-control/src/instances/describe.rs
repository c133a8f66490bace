//! Descriptions: what would create an instance as it is wanted now, and whether a description could be carried out.

use waifud_api::{CreateInstance, Publish};
use waifud_store::{InstanceRow, ReadTx};
use waifud_types::Generation;

use super::{create, find, network};
use crate::{Control, ControlError, problems, subnet, validate};

impl Control {
    /// The request that would create this instance again, secrets included, and the generation that it is of.
    pub async fn describe(
        &self,
        name_or_id: &str,
    ) -> Result<(CreateInstance, Generation), ControlError> {
        let wanted = name_or_id.to_owned();
        self.shared
            .store
            .read(move |tx| {
                let row = find(&tx, &wanted)?;
                let generation = row.generation;
                Ok((description(&tx, row)?, generation))
            })
            .await
    }

    /// Checks a request to create as far as that can be done without doing it. What it needs may be taken by somebody
    /// else before it is done.
    pub async fn check_create(&self, request: CreateInstance) -> Result<(), ControlError> {
        let wanted = validate::create(request)?;
        let entropy = self.shared.entropy.clone();
        self.shared
            .store
            .read(move |tx| {
                let template = tx
                    .template(wanted.template.as_str())?
                    .ok_or_else(|| problems::unknown_template(wanted.template.as_str()))?;
                if let Some(name) = &wanted.name
                    && tx.instance_named(name.as_str())?.is_some()
                {
                    return Err(problems::name_taken(name).into());
                }
                let mac = match wanted.nic.mac {
                    Some(mac) if tx.mac_is_taken(mac)? => {
                        return Err(problems::mac_taken().into());
                    }
                    Some(mac) => Some(mac),
                    None => subnet::free_mac(entropy.as_ref(), |mac| tx.mac_is_taken(mac))?,
                };
                let mac = mac.ok_or_else(|| {
                    ControlError::Inconsistent("no MAC address could be found".to_owned())
                })?;
                let spec = create::spec(&wanted, &template, mac)?;
                network::check_address(&spec, &tx.rooms()?)?;
                network::check_address_is_free(&tx, &spec)
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
        mac: spec.nics.first().map(|nic| nic.mac),
        nics: Vec::new(),
        publish: spec.publish.iter().map(Publish::from).collect(),
        placement: spec.placement,
    })
}
