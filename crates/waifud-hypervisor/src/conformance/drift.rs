//! Domains that somebody edits by hand: it is seen, and devices outlive restarts and changes of the spec.

use waifud_types::{ByteSize, InstanceId};

use super::{Outside, SpecMaker, Violation, done, expect, found};
use crate::Hypervisor;

const TABLET: &str = "a device that waifud did not add: input tablet";
const MEMORY: &str = "memory is 96M and should be 64M";

pub(super) async fn edits_by_hand_are_seen_and_devices_are_kept(
    hypervisor: &dyn Hypervisor,
    outside: &dyn Outside,
    make: SpecMaker<'_>,
) -> Result<(), Violation> {
    let mut spec = make(InstanceId::generate(), "conform-drift");
    spec.memory = ByteSize::mib(64);
    let id = spec.id;
    done("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    done("ensure_started", hypervisor.ensure_started(id)).await?;
    drifted(hypervisor, id, "a domain of ours has no drift", &[]).await?;
    outside.add_tablet(id).await;
    outside.set_memory(id, ByteSize::mib(96)).await;
    drifted(hypervisor, id, "edits are seen", &[MEMORY, TABLET]).await?;
    // What is defined already is left as it is, and a restart changes nothing.
    done("ensure_off", hypervisor.ensure_off(id)).await?;
    done("ensure_defined again", hypervisor.ensure_defined(&spec)).await?;
    done("a second start", hypervisor.ensure_started(id)).await?;
    drifted(hypervisor, id, "edits outlive a restart", &[MEMORY, TABLET]).await?;
    spec.memory = ByteSize::mib(80);
    let resized = hypervisor.ensure_defined(&spec);
    done("ensure_defined of a changed spec", resized).await?;
    let rule = "a changed spec has its memory, and the device stays";
    drifted(hypervisor, id, rule, &[TABLET]).await?;
    let listed = hypervisor.list().await.map_err(super::failed("list"))?;
    let right = listed.iter().any(|d| d.id == id && d.drift == [TABLET]);
    expect(right, "list tells of drift, too", &listed)?;
    done("ensure_absent", hypervisor.ensure_absent(id)).await
}

async fn drifted(
    hypervisor: &dyn Hypervisor,
    id: InstanceId,
    rule: &str,
    wanted: &[&str],
) -> Result<(), Violation> {
    let seen = found(hypervisor, id).await?;
    expect(seen.drift == wanted, rule, &seen)
}
