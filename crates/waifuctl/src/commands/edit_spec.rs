//! From an edited description to the change that it asks for.

use std::collections::BTreeMap;

use waifud_api::{CreateInstance, UpdateInstance};

use super::edit::check_user_data;
use crate::description::{self, Source};
use crate::failure::Failure;

/// The change from `have` to the description in `source`. What an update can't change is refused by name.
pub fn change(have: &CreateInstance, source: Source<'_>) -> Result<UpdateInstance, Failure> {
    let mut documents = description::parse("the description", source.text)?;
    if documents.len() > 1 {
        return Err(
            Failure::input("several", "there is more than one description")
                .field("---")
                .hint("keep one document"),
        );
    }
    let mut said = documents.pop().map(|d| d.description).unwrap_or_default();
    // Left out here means: as it is. The caller's own keys are for new instances.
    if said.ssh_keys.is_none() {
        said.ssh_keys = Some(have.ssh_keys.clone());
    }
    let nics = description::same_nics(&said.nics, have);
    let wanted = description::request(said, source)?;
    if let Some(text) = &wanted.user_data {
        check_user_data(text.expose())?;
    }
    let whole = whole(wanted, have);
    fixed(have, &whole, nics)?;
    let set = |now: bool, before: bool, value| (now != before).then_some(value);
    let (run, before) = (whole.run.unwrap_or(true), have.run.unwrap_or(true));
    Ok(UpdateInstance {
        run: set(run, before, run),
        cpus: whole.cpus.filter(|_| whole.cpus != have.cpus),
        memory_bytes: whole
            .memory_bytes
            .filter(|_| whole.memory_bytes != have.memory_bytes),
        disk_bytes: whole
            .disk_bytes
            .filter(|_| whole.disk_bytes != have.disk_bytes),
        publish: (whole.publish != have.publish).then(|| whole.publish.clone()),
        protected: set(whole.protected, have.protected, whole.protected),
        user_data: (whole.user_data != have.user_data)
            .then(|| whole.user_data.clone().unwrap_or_default()),
        labels: labels(&have.labels, &whole.labels),
        restart: (whole.restart != have.restart).then_some(whole.restart),
        priority: (whole.priority != have.priority).then_some(whole.priority),
        placement: (whole.placement != have.placement).then_some(whole.placement),
        ..UpdateInstance::default()
    })
}

/// What was taken out of the text and has no default of its own stays as it is.
fn whole(wanted: CreateInstance, have: &CreateInstance) -> CreateInstance {
    CreateInstance {
        name: wanted.name.or_else(|| have.name.clone()),
        cpus: wanted.cpus.or(have.cpus),
        memory_bytes: wanted.memory_bytes.or(have.memory_bytes),
        disk_bytes: wanted.disk_bytes.or(have.disk_bytes),
        pool: wanted.pool.or_else(|| have.pool.clone()),
        ..wanted
    }
}

/// Refuses changes of what is fixed at creation or changed by another verb.
fn fixed(have: &CreateInstance, wanted: &CreateInstance, nics: bool) -> Result<(), Failure> {
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
        format!("edit does not change {}", changed.join(", ")),
    )
    .field(first)
    .hint("put it back as it was; what can be changed: labels, cpus, memory, disks[0].size, publish, user_data, run, restart, priority, protected, placement"))
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
