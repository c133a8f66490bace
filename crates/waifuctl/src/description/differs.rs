//! Whether an instance is what a description says: only what the description says counts.

use waifud_api::CreateInstance;

use super::Description;

/// The fields in which `have` is not what `said`, with `wanted` made of it, asks for.
pub fn differs(
    said: &Description,
    wanted: &CreateInstance,
    have: &CreateInstance,
) -> Vec<&'static str> {
    let mut fields = Vec::new();
    let mut compare = |field, said: bool, same: bool| {
        if said && !same {
            fields.push(field);
        }
    };
    compare("template", true, wanted.template == have.template);
    compare(
        "labels",
        !said.labels.is_empty(),
        wanted.labels == have.labels,
    );
    compare("cpus", said.cpus.is_some(), wanted.cpus == have.cpus);
    compare(
        "memory",
        said.memory.is_some(),
        wanted.memory_bytes == have.memory_bytes,
    );
    let size = wanted.disk_bytes.is_some();
    compare("disks[0].size", size, wanted.disk_bytes == have.disk_bytes);
    compare(
        "disks[0].pool",
        wanted.pool.is_some(),
        wanted.pool == have.pool,
    );
    compare("nics", true, super::same_nics(&said.nics, have));
    compare(
        "publish",
        !said.publish.is_empty(),
        wanted.publish == have.publish,
    );
    compare(
        "ssh_keys",
        said.ssh_keys.is_some(),
        wanted.ssh_keys == have.ssh_keys,
    );
    compare(
        "user_data",
        wanted.user_data.is_some(),
        wanted.user_data == have.user_data,
    );
    compare("run", said.run.is_some(), wanted.run == have.run);
    compare(
        "restart",
        said.restart.is_some(),
        wanted.restart == have.restart,
    );
    compare(
        "priority",
        said.priority.is_some(),
        wanted.priority == have.priority,
    );
    compare(
        "protected",
        said.protected.is_some(),
        wanted.protected == have.protected,
    );
    compare(
        "placement",
        said.placement.is_some(),
        wanted.placement == have.placement,
    );
    fields
}
