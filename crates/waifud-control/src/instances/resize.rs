//! Resize: more or less of a node's CPUs and memory, and a larger disk, reserved in the same transaction.
//!
//! What is taken away is given back once the guest no longer has it: a running guest keeps its memory until its next
//! start, so until then the larger of both is promised to it.

use waifud_api::{Problem, UpdateInstance};
use waifud_store::{InstanceRow, NodeRow, WriteTx};
use waifud_types::node::Resources;
use waifud_types::spec::{InstanceSpec, limits};
use waifud_types::status::InstanceStatus;
use waifud_types::{ByteSize, InstanceState};

use crate::instances::problems as instance_problems;
use crate::{ControlError, problems};

/// Changes the sizes in the spec as asked and says what that means.
pub(super) fn apply(
    spec: &mut InstanceSpec,
    change: &UpdateInstance,
    said: &mut Vec<String>,
) -> Result<(), Problem> {
    if let Some(cpus) = change.cpus.filter(|cpus| *cpus != spec.cpus) {
        in_range("spec.cpus", "the number of CPUs", cpus, 1, limits::CPUS_MAX)?;
        spec.cpus = cpus;
        let s = if cpus == 1 { "" } else { "s" };
        said.push(format!("{cpus} CPU{s} from the next start on"));
    }
    if let Some(memory) = change.memory_bytes.filter(|m| *m != spec.memory_bytes) {
        let (least, most) = (limits::MEMORY_MIN, limits::MEMORY_MAX);
        in_range("spec.memory_bytes", "the memory", memory, least, most)?;
        spec.memory_bytes = memory;
        said.push(format!("{memory} memory from the next start on"));
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
            said.push(format!("{size} disk"));
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

/// Reserves what the changed spec asks for on the instance's node, or says why there is no room.
pub(super) fn reserve(
    tx: &mut WriteTx<'_>,
    row: &InstanceRow,
    before: &InstanceSpec,
) -> Result<(), ControlError> {
    let Some(node) = row.node else {
        return Ok(());
    };
    let (Some(node), Some(has)) = (tx.node(node)?, tx.reservation(row.id)?) else {
        return Ok(());
    };
    fits(&row.spec, before, has, &node)?;
    tx.set_reservation(row.id, node.id, promised(&row.spec, has, &row.status))?;
    tx.set_volume_sizes(row.id, &row.spec.disks)?;
    Ok(())
}

/// `has` is what is promised to it now.
fn fits(
    spec: &InstanceSpec,
    before: &InstanceSpec,
    has: Resources,
    node: &NodeRow,
) -> Result<(), Problem> {
    let capacity = node.facts.capacity;
    if spec.cpus > has.cpus && spec.cpus > capacity.cpus {
        let has = format!("has {} CPUs", capacity.cpus);
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
            "has {free} free of {}, and this needs {} more",
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
            let has = format!("has {} in all in pool {}", pool.size_bytes, pool.name);
            return Err(instance_problems::insufficient_capacity(
                &field, &node.name, &has,
            ));
        }
    }
    Ok(())
}

/// What is promised to an instance that was promised `has`: as much as it has or should have, whichever is more.
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

/// Gives back what the guest was found to have no longer. Says whether that made room.
pub(crate) fn settle(tx: &mut WriteTx<'_>, row: &InstanceRow) -> Result<bool, ControlError> {
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
    fn what_a_guest_still_has_stays_promised_until_it_is_off() {
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
        // Its node is silent: it may still have it.
        status.state = InstanceState::Unknown;
        assert_eq!(promised(&spec, has, &status), has);
        status.state = InstanceState::Stopped;
        assert_eq!(promised(&spec, has, &status).cpus, 2);
    }
}
