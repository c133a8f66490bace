//! Create: checked, named, placed and remembered in one transaction, and acknowledged once durable.

use waifud_api::{CreateInstance, Instance};
use waifud_store::{
    InstanceRow, LeaseRow, NewInstance, ReadTx, Remembered, StoreError, StoredAnswer, Taken,
    TemplateSource, WriteTx,
};
use waifud_types::spec::{DiskSpec, InstanceSpec, NicSpec};
use waifud_types::status::InstanceStatus;
use waifud_types::{ByteSize, Digest, InstanceId, MacAddr, Name, PowerSpec};

use crate::auth::principal::{Cause, Principal};
use crate::events::event_builder;
use crate::events::event_builder::EventExt;
use crate::images::image_store::sha256;
use crate::instances::documents;
use crate::instances::generated_names;
use crate::instances::problems as instance_problems;
use crate::instances::validate::{self, Checked};
use crate::instances::view;
use crate::network;
use crate::network::nics::WantedNic;
use crate::network::problems as network_problems;
use crate::network::subnet;
use crate::{Control, ControlError, env};

/// The root disk, unless the template needs more.
const DISK_DEFAULT: ByteSize = ByteSize::gib(10);

/// How long an answer is remembered for its Idempotency-Key, in time that waifud ran: 24 h.
pub const REMEMBERED: std::time::Duration = std::time::Duration::from_hours(24);

/// A key under which the answer is remembered.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// Whose.
    pub principal: String,
    /// The key itself.
    pub key: String,
    /// The digest of the request.
    pub request: Digest,
}

impl IdempotencyKey {
    /// The key of a request with this path and body.
    pub fn new(principal: &Principal, key: &str, path: &str, body: &[u8]) -> Self {
        let request = [path.as_bytes(), b"\0", body].concat();
        Self {
            principal: principal.key_owner(),
            key: key.to_owned(),
            request: sha256(&request),
        }
    }
}

/// The answer, and whether it was given before.
#[derive(Clone, PartialEq, Debug)]
pub struct Created {
    /// The instance.
    pub instance: Instance,
    /// Whether the answer was remembered.
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
        if let Err(full) = self.require_disk_space() {
            // What was created already is answered all the same: the answer takes no room.
            return match self.kept_answer(key).await? {
                Some(instance) => Ok(Created {
                    instance,
                    replayed: true,
                }),
                None => Err(full),
            };
        }
        let control = self.clone();
        self.shared
            .store
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
                let instance = view::instance(row, &control.shared.live);
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

    /// The answer that was given for this key; also to another request, which is a refusal.
    async fn kept_answer(
        &self,
        key: Option<IdempotencyKey>,
    ) -> Result<Option<Instance>, ControlError> {
        let Some(key) = key else { return Ok(None) };
        let read = move |tx: ReadTx<'_>| Self::replay(&tx, &key);
        self.shared.store.read(read).await
    }

    fn replay(tx: &ReadTx<'_>, key: &IdempotencyKey) -> Result<Option<Instance>, ControlError> {
        match tx.remembered(&key.principal, &key.key, key.request)? {
            Remembered::New => Ok(None),
            Remembered::Different => Err(instance_problems::idempotency_mismatch().into()),
            Remembered::Same(answer) => {
                serde_json::from_slice(&answer.body).map(Some).map_err(|e| {
                    ControlError::Inconsistent(format!("a remembered answer can't be read: {e}"))
                })
            }
        }
    }

    fn remember(
        &self,
        tx: &mut WriteTx<'_>,
        key: &IdempotencyKey,
        instance: &Instance,
    ) -> Result<(), ControlError> {
        let answer = StoredAnswer {
            status: 201,
            body: serde_json::to_vec(instance).map_err(|e| {
                ControlError::Inconsistent(format!("an answer can't be written: {e}"))
            })?,
        };
        tx.remember(&key.principal, &key.key, key.request, &answer, self.now())?;
        Ok(())
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
        let macs = choose_macs(tx, self.shared.entropy.as_ref(), &wanted.nics)?;
        let spec = spec(wanted, &template, &macs)?;
        network::check(tx, &spec, &capacities, self.shared.config.guest_range)?;
        let new = NewInstance {
            id: InstanceId::from_uuid(env::uuid(
                self.shared.clock.as_ref(),
                self.shared.entropy.as_ref(),
            )),
            name: self.choose_name(tx, wanted)?,
            labels: wanted.labels.clone(),
            datasource: documents::datasource(template.datasource, &spec.nics),
            spec,
            status: InstanceStatus::pending(None),
            arch: template.arch,
            firmware: template.firmware,
            ssh_keys: wanted.ssh_keys.clone(),
            cloud_id: String::new(),
            user_data: wanted.user_data.clone(),
            at: self.now(),
        };
        let new = NewInstance {
            cloud_id: waifud_cloudinit::instance_id(new.id, 1),
            ..new
        };
        write_down(tx, &new, cause)?;
        let row = tx
            .instance(new.id)?
            .ok_or_else(|| ControlError::Inconsistent("a new instance is not there".to_owned()))?;
        self.place(tx, row, &capacities, cause)
    }

    fn choose_name(&self, tx: &WriteTx<'_>, wanted: &Checked) -> Result<Name, ControlError> {
        if let Some(name) = &wanted.name {
            return Ok(name.clone());
        }
        generated_names::generate(self.shared.entropy.as_ref(), |text| {
            tx.instance_named(text).map(|row| row.is_some())
        })?
        .ok_or_else(|| ControlError::Inconsistent("no name could be made up".to_owned()))
    }
}

/// A MAC address for each nic: the one that was asked for, or one that nobody has.
pub(crate) fn choose_macs(
    tx: &ReadTx<'_>,
    entropy: &dyn env::Entropy,
    nics: &[WantedNic],
) -> Result<Vec<MacAddr>, ControlError> {
    let mut macs: Vec<MacAddr> = Vec::with_capacity(nics.len());
    for nic in nics {
        let mac = match nic.mac {
            Some(mac) => mac,
            None => subnet::free_mac(entropy, |mac| {
                let wished = nics.iter().any(|other| other.mac == Some(mac));
                Ok::<_, StoreError>(wished || macs.contains(&mac) || tx.mac_is_taken(mac)?)
            })?
            .ok_or_else(|| {
                ControlError::Inconsistent("no MAC address could be found".to_owned())
            })?,
        };
        macs.push(mac);
    }
    Ok(macs)
}

/// The spec that a request asks for, of what its template points at.
pub(crate) fn spec(
    wanted: &Checked,
    template: &TemplateSource,
    macs: &[MacAddr],
) -> Result<InstanceSpec, ControlError> {
    let least = template.min_disk_bytes;
    let disk = wanted.disk.unwrap_or(least.max(DISK_DEFAULT));
    if disk < least {
        return Err(instance_problems::disk_too_small(disk, &template.name, least).into());
    }
    let word = |text: &str| -> Result<Name, ControlError> {
        text.parse()
            .map_err(|e: waifud_types::name::NameError| ControlError::Inconsistent(e.to_string()))
    };
    Ok(InstanceSpec {
        template: template.name.clone(),
        image: template.image,
        cpus: wanted.cpus,
        memory_bytes: wanted.memory,
        run: wanted.run,
        power: PowerSpec::default(),
        rescue: None,
        restart: wanted.restart,
        priority: wanted.priority,
        protected: wanted.protected,
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
                    address: nic.address,
                    prefix_len: nic.prefix_len,
                    gateway: nic.gateway,
                    allow_addresses: nic.allow_addresses.clone(),
                })
            })
            .collect::<Result<_, ControlError>>()?,
        publish: wanted.publish.clone(),
        placement: wanted.placement.clone(),
        user_data: wanted
            .user_data
            .as_ref()
            .and_then(validate::user_data_facts),
    })
}

fn write_down(tx: &mut WriteTx<'_>, new: &NewInstance, cause: &Cause) -> Result<(), ControlError> {
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
            nic: u32::try_from(index).unwrap_or(u32::MAX),
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
