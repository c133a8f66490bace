//! Nics of running domains. The guest is firmware or nothing, so it may never release a nic.

use std::collections::BTreeMap;

use waifud_types::{InstanceId, MacAddr, TapName};

use super::{SpecMaker, Violation, existing, expect, failed, not_found, succeeds};
use crate::{DomainNic, Hypervisor, LiveNic};

/// A nic of `id` on a bridge of the host.
fn nic(id: InstanceId, number: usize, bridge: &str) -> DomainNic {
    let [a, b, c] = [1, 2, u8::try_from(number).unwrap_or(0)];
    DomainNic {
        number,
        tap: TapName::of(id, number),
        mac: MacAddr::of_guest([a, b, c]),
        bridge: bridge.to_owned(),
        mtu: Some(1420),
        isolated: true,
    }
}

/// Tests with nics on this bridge, which exists.
pub async fn nics_are_added_and_removed(
    hypervisor: &dyn Hypervisor,
    create_spec: SpecMaker<'_>,
    bridge: &str,
) -> Result<(), Violation> {
    let mut spec = create_spec(InstanceId::generate(), "conform-nics");
    let id = spec.id;
    let [first, second, third] = [0, 1, 2].map(|number| nic(id, number, bridge));
    spec.nics.push(first.clone());
    let absent = hypervisor.ensure_nics(id, &spec.nics).await;
    not_found("ensure_nics", id, &absent.map(drop))?;
    succeeds("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    let off = hypervisor.ensure_nics(id, &spec.nics).await;
    expect(
        off.is_err(),
        "nics of a domain that is off are refused",
        &off,
    )?;
    succeeds("ensure_started", hypervisor.ensure_started(id)).await?;

    let all = [first.clone(), second.clone(), third.clone()];
    for _ in 0..2 {
        let nics = ensure(hypervisor, id, &all).await?;
        let holds = nics == attached(&all);
        expect(holds, "nics are added to a running domain, once", &nics)?;
    }
    let observed = existing(hypervisor, id).await?;
    let rule = "a nic of waifud is not a change by hand";
    expect(observed.drift.is_empty(), rule, &observed)?;

    let kept = [first.clone(), third.clone()];
    let nics = ensure(hypervisor, id, &kept).await?;
    let mut others = nics.clone();
    others.retain(|tap, _| *tap != second.tap);
    let rule = "a removed nic is leaving or gone, and the others are not affected";
    let gone = nics
        .get(&second.tap)
        .is_none_or(|nic| *nic == LiveNic::Leaving);
    expect(others == attached(&kept) && gone, rule, &nics)?;

    let nics = ensure(hypervisor, id, &all).await?;
    let holds = nics.keys().eq(attached(&all).keys());
    expect(holds, "a removal can be taken back", &nics)?;

    succeeds("ensure_off", hypervisor.ensure_off(id)).await?;
    spec.nics = kept.to_vec();
    succeeds("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    succeeds("a second start", hypervisor.ensure_started(id)).await?;
    let nics = ensure(hypervisor, id, &kept).await?;
    let rule = "after a start, the domain has the nics of its definition";
    expect(nics == attached(&kept), rule, &nics)?;
    let observed = existing(hypervisor, id).await?;
    expect(observed.drift.is_empty(), "there is no drift", &observed)?;
    succeeds("ensure_absent", hypervisor.ensure_absent(id)).await
}

fn attached(nics: &[DomainNic]) -> BTreeMap<TapName, LiveNic> {
    let taps = nics.iter().map(|nic| nic.tap.clone());
    taps.map(|tap| (tap, LiveNic::Attached)).collect()
}

async fn ensure(
    hypervisor: &dyn Hypervisor,
    id: InstanceId,
    nics: &[DomainNic],
) -> Result<BTreeMap<TapName, LiveNic>, Violation> {
    let ensured = hypervisor.ensure_nics(id, nics).await;
    ensured.map_err(failed("ensure_nics"))
}
