//! Builds the domain spec of an instance from what waifud wants and what this node prepared.

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::{DomainNic, DomainSpec};
use waifud_types::TapName;
use waifud_types::spec::NicSpec;
use waifud_types::template::Datasource;

use crate::instance::disks::{Disks, domain_disks};
use crate::instance::failure::Failure;
use crate::instance::rescue;
use crate::network::identity::is_on_lan;
use crate::shared::Shared;

pub(crate) async fn build(
    shared: &Shared,
    want: &AgentInstance,
    datasource: Datasource,
    disks: &Disks,
) -> Result<DomainSpec, Failure> {
    let kind = shared.instances.hypervisor_kind.get().await?;
    let nics = nics(shared, want)?;
    Ok(DomainSpec {
        id: want.id,
        name: want.name.clone(),
        epoch: want.epoch,
        cpus: want.spec.cpus,
        memory: want.spec.memory_bytes,
        kind,
        firmware: rescue::firmware(want),
        datasource,
        disks: domain_disks(shared, want, disks).await?,
        seed: (datasource == Datasource::Cidata).then(|| shared.instances.files.seed(want.id)),
        nics,
        console_log: shared.instances.files.console_log(want.id),
        console_socket: shared.instances.files.console_socket(want.id),
        vnc_socket: shared.instances.files.vnc_socket(want.id),
    })
}

/// The nics of the domain.
pub(crate) fn nics(shared: &Shared, want: &AgentInstance) -> Result<Vec<DomainNic>, Failure> {
    let nics = want.spec.numbered_nics();
    nics.map(|(number, nic)| domain_nic(shared, want, number, nic))
        .collect()
}

/// The domain's nic: on the node's own bridge, or on the host bridge of the nic's network. The host decides the MTU of its
/// own bridges.
fn domain_nic(
    shared: &Shared,
    want: &AgentInstance,
    number: usize,
    nic: &NicSpec,
) -> Result<DomainNic, Failure> {
    let (bridge, mtu) = if is_on_lan(nic) {
        let bridge = want.bridges.get(&nic.network).cloned().ok_or_else(|| {
            Failure::lasting(format!("waifud sent no bridge for network {}", nic.network))
        })?;
        (bridge, None)
    } else {
        (shared.settings.bridge.clone(), Some(shared.settings.mtu))
    };
    Ok(DomainNic {
        number,
        tap: TapName::of(want.id, number),
        mac: nic.mac,
        bridge,
        mtu,
        isolated: !is_on_lan(nic),
    })
}
