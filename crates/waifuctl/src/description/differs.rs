//! Compares an instance with a description; fields that are absent from the description are ignored.

use waifud_api::CreateInstance;

use super::Description;

/// The fields in which `have` differs from the description `written`, whose request is `wanted`.
pub fn differs(
    written: &Description,
    wanted: &CreateInstance,
    have: &CreateInstance,
) -> Vec<&'static str> {
    // The name of a field, whether the description contains it, and whether it is the same.
    macro_rules! field {
        ($name:literal, $is_set:expr, $value:ident) => {
            ($name, $is_set, wanted.$value == have.$value)
        };
    }
    let (d, w) = (written, wanted);
    let fields = [
        field!("template", true, template),
        field!("labels", !d.labels.is_empty(), labels),
        field!("cpus", d.cpus.is_some(), cpus),
        field!("memory", d.memory.is_some(), memory_bytes),
        field!("disks[0].size", w.disk_bytes.is_some(), disk_bytes),
        field!("disks[0].pool", w.pool.is_some(), pool),
        ("nics", true, super::same_nics(&d.nics, have)),
        field!("publish", !d.publish.is_empty(), publish),
        field!("firewall", d.firewall.is_some(), firewall),
        field!("ssh_keys", d.ssh_keys.is_some(), ssh_keys),
        field!("user_data", w.user_data.is_some(), user_data),
        field!("run", d.run.is_some(), run),
        field!("restart", d.restart.is_some(), restart),
        field!("priority", d.priority.is_some(), priority),
        field!("protected", d.protected.is_some(), protected),
        field!("placement", d.placement.is_some(), placement),
    ];
    let differing = fields
        .into_iter()
        .filter(|(_, is_set, same)| *is_set && !same);
    differing.map(|(field, _, _)| field).collect()
}
