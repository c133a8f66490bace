//! Domains that were edited by hand: the edits are reported, and added devices survive restarts and changes of the
//! spec.

use waifud_types::{ByteSize, InstanceId};

use super::{ExternalChanges, SpecMaker, Violation, existing, expect, succeeds};
use crate::Hypervisor;

const TABLET: &str = "a device that waifud did not add: input tablet";
const MEMORY: &str = "memory is 96M and should be 64M";

pub(super) async fn manual_edits_are_reported_and_devices_are_kept(
    hypervisor: &dyn Hypervisor,
    external: &dyn ExternalChanges,
    create_spec: SpecMaker<'_>,
) -> Result<(), Violation> {
    let mut spec = create_spec(InstanceId::generate(), "conform-drift");
    spec.memory = ByteSize::mib(64);
    let id = spec.id;
    succeeds("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    succeeds("ensure_started", hypervisor.ensure_started(id)).await?;
    has_drift(hypervisor, id, "an unedited domain has no drift", &[]).await?;
    external.add_tablet(id).await;
    external.set_memory(id, ByteSize::mib(96)).await;
    has_drift(hypervisor, id, "edits are reported", &[MEMORY, TABLET]).await?;
    // A domain whose spec has not changed is not redefined, so the edits survive a restart.
    succeeds("ensure_off", hypervisor.ensure_off(id)).await?;
    succeeds("ensure_defined again", hypervisor.ensure_defined(&spec)).await?;
    succeeds("a second start", hypervisor.ensure_started(id)).await?;
    has_drift(hypervisor, id, "edits survive a restart", &[MEMORY, TABLET]).await?;
    spec.memory = ByteSize::mib(80);
    let resized = hypervisor.ensure_defined(&spec);
    succeeds("ensure_defined of a changed spec", resized).await?;
    let rule = "a changed spec sets the memory and keeps the added device";
    has_drift(hypervisor, id, rule, &[TABLET]).await?;
    let listed = hypervisor.list().await.map_err(super::failed("list"))?;
    let holds = listed.iter().any(|d| d.id == id && d.drift == [TABLET]);
    expect(holds, "list reports the drift as well", &listed)?;
    succeeds("ensure_absent", hypervisor.ensure_absent(id)).await
}

async fn has_drift(
    hypervisor: &dyn Hypervisor,
    id: InstanceId,
    rule: &str,
    expected: &[&str],
) -> Result<(), Violation> {
    let observed = existing(hypervisor, id).await?;
    expect(observed.drift == expected, rule, &observed)
}
