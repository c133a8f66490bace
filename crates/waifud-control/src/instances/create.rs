//! Create: check, name and place an instance in one transaction, and acknowledge it once durable.

use waifud_api::{CreateInstance, Instance};
use waifud_store::{ImageTraits, InstanceRow, LeaseRow, NewInstance, StoreError, Taken, WriteTx};
use waifud_types::event::Cause;
use waifud_types::status::InstanceStatus;
use waifud_types::{FirewallSpec, InstanceId, Name};

use super::amend;
use super::idempotency::IdempotencyKey;
use super::new_spec::{choose_macs, spec};
use crate::events::event_builder::{self, EventExt};
use crate::instances::documents;
use crate::instances::generated_names;
use crate::instances::problems as instance_problems;
use crate::instances::validate::{self, Checked};
use crate::network;
use crate::network::problems as network_problems;
use crate::{Control, ControlError, env};

/// The created instance, and whether the answer is a repetition.
#[derive(Clone, PartialEq, Debug)]
pub struct Created {
    /// The instance.
    pub instance: Instance,
    /// Whether the answer was remembered for its idempotency key.
    pub replayed: bool,
}

impl Control {
    /// Creates an instance.
    pub async fn create_instance(
        &self,
        request: CreateInstance,
        key: Option<IdempotencyKey>,
        cause: Cause,
    ) -> Result<Created, ControlError> {
        let checked = validate::create(request)?;
        if let Err(full) = self.disk_space().require() {
            // A repeated request is still answered, since that needs no space.
            return match self.stored_response(key).await? {
                Some(instance) => Ok(Created {
                    instance,
                    replayed: true,
                }),
                None => Err(full.into()),
            };
        }
        let control = self.clone();
        self.store()
            .write(move |tx| {
                if let Some(key) = &key
                    && let Some(instance) = Self::replay(tx, key)?
                {
                    return Ok(Created {
                        instance,
                        replayed: true,
                    });
                }
                let row = control.create_in(tx, &checked, &cause)?;
                let instance = control.instance_view(row);
                if let Some(key) = &key {
                    control.remember(tx, key, &instance)?;
                }
                Ok(Created {
                    instance,
                    replayed: false,
                })
            })
            .await
    }

    fn create_in(
        &self,
        tx: &mut WriteTx<'_>,
        wanted: &Checked,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        let template = tx
            .template_source(wanted.template.as_str())?
            .ok_or_else(|| instance_problems::unknown_template(wanted.template.as_str()))?;
        let capacities = tx.capacities_for_placement()?;
        let macs = choose_macs(tx, self.entropy(), &wanted.nics)?;
        let spec = spec(wanted, &template, &macs)?;
        network::check(tx, &spec, &capacities, self.config().guest_range)?;
        network::firewall::check_names(tx, &spec.firewall, &FirewallSpec::default())?;
        amend::near(tx, &spec.placement, wanted.name.as_ref())?;
        let new = NewInstance {
            id: InstanceId::from_uuid(env::uuid(self.clock(), self.entropy())),
            name: self.choose_name(tx, wanted)?,
            labels: wanted.request.labels.clone(),
            traits: ImageTraits {
                datasource: documents::datasource(template.traits.datasource, &spec.nics),
                ..template.traits
            },
            spec,
            status: InstanceStatus::pending(None),
            ssh_keys: wanted.ssh_keys.clone(),
            cloud_id: String::new(),
            user_data: wanted.user_data.as_ref().map(|it| it.text.clone()),
            at: self.now(),
        };
        let new = NewInstance {
            cloud_id: waifud_cloudinit::instance_id(new.id, 1),
            ..new
        };
        insert(tx, &new, cause)?;
        let row = tx
            .instance(new.id)?
            .ok_or_else(|| ControlError::Inconsistent("a new instance is missing".to_owned()))?;
        self.place(tx, row, &capacities, cause)
    }

    fn choose_name(&self, tx: &WriteTx<'_>, wanted: &Checked) -> Result<Name, ControlError> {
        if let Some(name) = &wanted.name {
            return Ok(name.clone());
        }
        generated_names::generate(self.entropy(), |text| {
            tx.instance_named(text).map(|row| row.is_some())
        })?
        .ok_or_else(|| ControlError::Inconsistent("no free name was found".to_owned()))
    }
}

fn insert(tx: &mut WriteTx<'_>, new: &NewInstance, cause: &Cause) -> Result<(), ControlError> {
    let spec = &new.spec;
    let revision = tx.emit(
        &event_builder::event(
            new.at,
            "instance.created",
            event_builder::instance(new.id, &new.name),
            cause,
            format!(
                "{} CPU{}, {} memory, from {}@{}",
                spec.cpus,
                if spec.cpus == 1 { "" } else { "s" },
                spec.memory_bytes,
                spec.template,
                spec.image.short()
            ),
        )
        .generation(waifud_types::Generation::FIRST),
    )?;
    tx.insert_instance(new, revision)
        .map_err(|error| match error {
            StoreError::Taken(Taken::InstanceName) => {
                instance_problems::name_taken(&new.name).into()
            }
            other => ControlError::from(other),
        })?;
    for (index, spec) in spec.nics.iter().enumerate() {
        let lease = LeaseRow {
            nic: network::lease_number(index, spec),
            mac: spec.mac,
            address: spec.address,
        };
        match tx.insert_lease(new.id, &lease) {
            Err(StoreError::Taken(Taken::Mac)) => return Err(network_problems::mac_taken().into()),
            Err(StoreError::Taken(Taken::Address)) => {
                return Err(network::address_taken(tx, index, spec)?.into());
            }
            other => other?,
        }
        tx.use_network(&spec.network, new.id)?;
    }
    Ok(())
}
