//! Compares an instance with a description; fields that are absent from the description are ignored.

use waifud_api::CreateInstance;

use super::Description;

/// The fields in which `have` differs from the description `written`, whose request is `wanted`.
pub fn differs(
    written: &Description,
    wanted: &CreateInstance,
    have: &CreateInstance,
) -> Vec<&'static str> {
    let (w, h) = (wanted, have);
    let fields = [
        ("template", true, w.template == h.template),
        ("labels", !written.labels.is_empty(), w.labels == h.labels),
        ("cpus", written.cpus.is_some(), w.cpus == h.cpus),
        (
            "memory",
            written.memory.is_some(),
            w.memory_bytes == h.memory_bytes,
        ),
        (
            "disks[0].size",
            w.disk_bytes.is_some(),
            w.disk_bytes == h.disk_bytes,
        ),
        ("disks[0].pool", w.pool.is_some(), w.pool == h.pool),
        ("nics", true, super::same_nics(&written.nics, have)),
        (
            "publish",
            !written.publish.is_empty(),
            w.publish == h.publish,
        ),
        (
            "ssh_keys",
            written.ssh_keys.is_some(),
            w.ssh_keys == h.ssh_keys,
        ),
        (
            "user_data",
            w.user_data.is_some(),
            w.user_data == h.user_data,
        ),
        ("run", written.run.is_some(), w.run == h.run),
        ("restart", written.restart.is_some(), w.restart == h.restart),
        (
            "priority",
            written.priority.is_some(),
            w.priority == h.priority,
        ),
        (
            "protected",
            written.protected.is_some(),
            w.protected == h.protected,
        ),
        (
            "placement",
            written.placement.is_some(),
            w.placement == h.placement,
        ),
    ];
    let differing = fields
        .into_iter()
        .filter(|(_, is_set, same)| *is_set && !same);
    differing.map(|(field, _, _)| field).collect()
}
