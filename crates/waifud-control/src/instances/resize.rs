//! Resize: change CPUs and memory, or grow a disk, with the reservation in the same transaction.
//!
//! A running guest keeps its CPUs and memory until its next start, so until then the larger amount stays reserved.

use waifud_api::{Problem, UpdateInstance};
use waifud_store::{InstanceRow, NodeRow, WriteTx};
use waifud_types::node::Resources;
use waifud_types::spec::{InstanceSpec, limits};
use waifud_types::status::InstanceStatus;
use waifud_types::{ByteSize, InstanceState};

use crate::instances::problems as instance_problems;
use crate::{ControlError, problems};

/// Applies the requested sizes to the spec, and describes the change for the event.
pub(super) fn apply(
    spec: &mut InstanceSpec,
    change: &UpdateInstance,
    changes: &mut Vec<String>,
) -> Result<(), Problem> {
    if let Some(cpus) = change.cpus.filter(|cpus| *cpus != spec.cpus) {
        in_range("spec.cpus", "the number of CPUs", cpus, 1, limits::CPUS_MAX)?;
        spec.cpus = cpus;
        let s = if cpus == 1 { "" } else { "s" };
        changes.push(format!("{cpus} CPU{s}, effective at the next start"));
    }
    if let Some(memory) = change.memory_bytes.filter(|m| *m != spec.memory_bytes) {
        let (least, most) = (limits::MEMORY_MIN, limits::MEMORY_MAX);
        in_range("spec.memory_bytes", "the memory", memory, least, most)?;
        spec.memory_bytes = memory;
        changes.push(format!("{memory} memory, effective at the next start"));
    }
    if let (Some(size), Some(disk)) = (change.disk_bytes, spec.disks.first_mut()) {
        if size < disk.size_bytes {
            return Err(instance_problems::disk_shrinks(disk.size_bytes, size));
        }
        if size > disk.size_bytes {
            let field = "spec.disks[0].size_bytes";
            let (least, most) = (limits::DISK_MIN, limits::DISK_MAX);
            in_range(field, "the disk's size", size, least, most)?;
            disk.size_bytes = size;
            changes.push(format!("{size} disk"));
        }
    }
    Ok(())
}

fn in_range<T: Copy + PartialOrd + std::fmt::Display>(
    field: &str,
    what: &str,
    value: T,
    least: T,
    most: T,
) -> Result<(), Problem> {
    if value < least || value > most {
        return Err(problems::out_of_range(field, what, least, most));
    }
    Ok(())
}

/// Whether the sizes differ.
pub(super) fn differs(before: &InstanceSpec, after: &InstanceSpec) -> bool {
    before.cpus != after.cpus
        || before.memory_bytes != after.memory_bytes
        || before.disks != after.disks
}

/// Reserves the changed sizes on the instance's node, or refuses them.
pub(super) fn reserve(
    tx: &mut WriteTx<'_>,
    row: &InstanceRow,
    before: &InstanceSpec,
) -> Result<(), ControlError> {
    let Some(node) = row.node else {
        return Ok(());
    };
    let (Some(node), Some(has)) = (tx.node(node)?, tx.reservation(row.id, node)?) else {
        return Ok(());
    };
    fits(&row.spec, before, has, &node)?;
    tx.set_reservation(row.id, node.id, promised(&row.spec, has, &row.status))?;
    tx.set_volume_sizes(row.id, &row.spec.disks)?;
    Ok(())
}

/// Checks the sizes against the node's capacity. `has` is the current reservation.
fn fits(
    spec: &InstanceSpec,
    before: &InstanceSpec,
    has: Resources,
    node: &NodeRow,
) -> Result<(), Problem> {
    let capacity = node.facts.capacity;
    if spec.cpus > has.cpus && spec.cpus > capacity.cpus {
        let has = format!("has only {} CPUs", capacity.cpus);
        return Err(instance_problems::insufficient_capacity(
            "spec.cpus",
            &node.name,
            &has,
        ));
    }
    let (wanted, promised) = (spec.memory_bytes.bytes(), has.memory_bytes.bytes());
    let more = wanted.saturating_sub(promised);
    let total = capacity.memory_bytes.bytes();
    let free = ByteSize(total.saturating_sub(node.promised.memory_bytes.bytes()));
    if more > free.bytes() {
        let has = format!(
            "has {free} of {} memory free, but {} more are needed",
            capacity.memory_bytes,
            ByteSize(more)
        );
        return Err(instance_problems::insufficient_capacity(
            "spec.memory_bytes",
            &node.name,
            &has,
        ));
    }
    for (index, disk) in spec.disks.iter().enumerate() {
        let grows = before
            .disks
            .iter()
            .any(|old| old.name == disk.name && old.size_bytes < disk.size_bytes);
        let pool = node.facts.pools.iter().find(|p| p.name == disk.pool);
        if let Some(pool) = pool.filter(|pool| grows && disk.size_bytes > pool.size_bytes) {
            let field = format!("spec.disks[{index}].size_bytes");
            let has = format!("has a pool {} of only {}", pool.name, pool.size_bytes);
            return Err(instance_problems::insufficient_capacity(
                &field, &node.name, &has,
            ));
        }
    }
    Ok(())
}

/// The new reservation: the larger of the current and the requested sizes, or the requested ones if the guest is off.
fn promised(spec: &InstanceSpec, has: Resources, status: &InstanceStatus) -> Resources {
    let wanted = Resources {
        cpus: spec.cpus,
        memory_bytes: spec.memory_bytes,
    };
    match status.state {
        InstanceState::Pending | InstanceState::Preparing | InstanceState::Stopped => wanted,
        _ => Resources {
            cpus: wanted.cpus.max(has.cpus),
            memory_bytes: wanted.memory_bytes.max(has.memory_bytes),
        },
    }
}

/// Releases what the guest does not use any more; returns whether that freed anything.
pub(crate) fn release_unused(
    tx: &mut WriteTx<'_>,
    row: &InstanceRow,
) -> Result<bool, ControlError> {
    let status = &row.status;
    let sized = |field: &String| field == "cpus" || field == "memory_bytes";
    let current = status.observed_generation >= Some(row.generation);
    let Some(node) = row.node.filter(|_| current) else {
        return Ok(false);
    };
    if status.restart_needed.iter().any(sized) {
        return Ok(false);
    }
    let wanted = Resources {
        cpus: row.spec.cpus,
        memory_bytes: row.spec.memory_bytes,
    };
    Ok(tx.set_reservation(row.id, node, wanted)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_size_stays_reserved_until_the_guest_is_off() {
        let has = Resources {
            cpus: 4,
            memory_bytes: ByteSize::gib(8),
        };
        let json = serde_json::json!({
            "template": "debian-12", "image": format!("sha256:{}", "0".repeat(64)), "cpus": 2,
            "memory_bytes": 1u64 << 30, "run": true, "restart": "on-crash", "priority": 0,
            "protected": false, "disks": [], "nics": [], "publish": [],
            "placement": {"node": null, "spread": null}, "user_data": null,
        });
        let spec: InstanceSpec = serde_json::from_value(json).unwrap();
        let mut status = InstanceStatus::pending(None);
        status.state = InstanceState::Running;
        assert_eq!(promised(&spec, has, &status), has);
        // The node is unreachable, so the guest may still run with the old size.
        status.state = InstanceState::Unknown;
        assert_eq!(promised(&spec, has, &status), has);
        status.state = InstanceState::Stopped;
        assert_eq!(promised(&spec, has, &status).cpus, 2);
    }
}
