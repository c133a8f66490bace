//! Converts an edited description into a change.

use std::collections::BTreeMap;

use waifud_api::{CreateInstance, UpdateInstance};

use crate::description::{self, Source};
use crate::failure::Failure;
use crate::user_data;

/// The change from `have` to the description in `source`. Changes of fields that an update cannot change are refused.
pub fn change(have: &CreateInstance, source: Source<'_>) -> Result<UpdateInstance, Failure> {
    let mut documents = description::parse("the description", source.text)?;
    if documents.len() > 1 {
        return Err(
            Failure::input("several", "the edited text contains several descriptions")
                .field("---")
                .hint("keep only the description of this instance"),
        );
    }
    let mut written = documents.pop().map(|d| d.description).unwrap_or_default();
    // A missing field means unchanged; the user's own keys are for new instances only.
    if written.ssh_keys.is_none() {
        written.ssh_keys = Some(have.ssh_keys.clone());
    }
    let nics = description::same_nics(&written.nics, have);
    let wanted = description::request(written, source)?;
    if let Some(text) = &wanted.user_data {
        user_data::check(text.expose())?;
    }
    let completed = completed(wanted, have);
    refuse_fixed_fields(have, &completed, nics)?;
    let set = |now: bool, before: bool, value| (now != before).then_some(value);
    let (run, before) = (completed.run.unwrap_or(true), have.run.unwrap_or(true));
    Ok(UpdateInstance {
        run: set(run, before, run),
        cpus: completed.cpus.filter(|_| completed.cpus != have.cpus),
        memory_bytes: completed
            .memory_bytes
            .filter(|_| completed.memory_bytes != have.memory_bytes),
        disk_bytes: completed
            .disk_bytes
            .filter(|_| completed.disk_bytes != have.disk_bytes),
        publish: (completed.publish != have.publish).then(|| completed.publish.clone()),
        firewall: (completed.firewall != have.firewall).then(|| completed.firewall.clone()),
        protected: set(completed.protected, have.protected, completed.protected),
        user_data: (completed.user_data != have.user_data)
            .then(|| completed.user_data.clone().unwrap_or_default()),
        labels: labels(&have.labels, &completed.labels),
        restart: (completed.restart != have.restart).then_some(completed.restart),
        priority: (completed.priority != have.priority).then_some(completed.priority),
        placement: (completed.placement != have.placement).then_some(completed.placement),
        ..UpdateInstance::default()
    })
}

/// Fields that were removed from the text and have no default are not changed.
fn completed(wanted: CreateInstance, have: &CreateInstance) -> CreateInstance {
    CreateInstance {
        name: wanted.name.or_else(|| have.name.clone()),
        cpus: wanted.cpus.or(have.cpus),
        memory_bytes: wanted.memory_bytes.or(have.memory_bytes),
        disk_bytes: wanted.disk_bytes.or(have.disk_bytes),
        pool: wanted.pool.or_else(|| have.pool.clone()),
        ..wanted
    }
}

/// Refuses changes of fields that are fixed at creation or changed by other commands.
fn refuse_fixed_fields(
    have: &CreateInstance,
    wanted: &CreateInstance,
    nics: bool,
) -> Result<(), Failure> {
    let parts = [
        ("name", wanted.name == have.name),
        ("template", wanted.template == have.template),
        ("disks[0].pool", wanted.pool == have.pool),
        ("nics", nics),
        ("ssh_keys", wanted.ssh_keys == have.ssh_keys),
    ];
    let changed: Vec<_> = parts
        .iter()
        .filter(|(_, same)| !same)
        .map(|(field, _)| *field)
        .collect();
    let Some(first) = changed.first() else {
        return Ok(());
    };
    Err(Failure::input(
        "fixed-field",
        format!("edit cannot change {}", changed.join(", ")),
    )
    .field(first)
    .hint("revert this change; edit can change only labels, cpus, memory, disks[0].size, publish, firewall, user_data, run, restart, priority, protected, placement"))
}

fn labels(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> BTreeMap<String, Option<String>> {
    let removed = before
        .keys()
        .filter(|key| !after.contains_key(*key))
        .map(|key| (key.clone(), None));
    let set = after
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), Some(value.clone())));
    removed.chain(set).collect()
}
