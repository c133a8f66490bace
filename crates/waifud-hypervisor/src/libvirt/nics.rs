//! Nics of running domains.

use std::collections::BTreeMap;

use virt::connect::Connect;
use virt::domain::Domain;
use virt_sys as sys;
use waifud_types::{InstanceId, TapName};

use super::error::{At, Fault, message};
use super::verbs::{existing, invalid_xml};
use crate::xml::{self, LiveNicDevice};
use crate::{DomainNic, LiveNic, nics_of_domain_that_is_off};

/// libvirt waits up to five seconds for a guest to release a nic. A guest that takes longer has it in the result.
pub(super) fn ensure_nics(
    connect: &Connect,
    id: InstanceId,
    wanted: &[DomainNic],
) -> Result<BTreeMap<TapName, LiveNic>, Fault> {
    let domain = existing(connect, id)?;
    if !domain.is_active().at("get the domain's state")? {
        return Err(nics_of_domain_that_is_off().into());
    }
    let mut nics = BTreeMap::new();
    let before = live(&domain)?;
    for nic in before.iter().filter(|nic| !is_wanted(nic, wanted)) {
        if let Err(error) = detach(&domain, nic) {
            // What counts is whether it is still there.
            tracing::warn!(instance = %id, tap = nic.tap, message = message(&error), "cannot ask the guest to release a nic");
        }
    }
    for nic in wanted {
        let there = before.iter().any(|one| is_same(one, nic));
        let state = if there {
            LiveNic::Attached
        } else {
            attach(&domain, nic)?
        };
        nics.insert(nic.tap.clone(), state);
    }
    for nic in live(&domain)?.iter().filter(|nic| !is_wanted(nic, wanted)) {
        if let Some(tap) = TapName::parse(&nic.tap) {
            nics.insert(tap, LiveNic::Leaving);
        }
    }
    Ok(nics)
}

fn is_same(there: &LiveNicDevice, nic: &DomainNic) -> bool {
    there.tap == nic.tap.as_str() && there.mac == nic.mac
}

fn is_wanted(there: &LiveNicDevice, wanted: &[DomainNic]) -> bool {
    wanted.iter().any(|nic| is_same(there, nic))
}

fn live(domain: &Domain) -> Result<Vec<LiveNicDevice>, Fault> {
    let text = domain.get_xml_desc(0).at("get the domain's XML")?;
    xml::live_nics(&text).map_err(|error| invalid_xml(&error))
}

/// Adds a nic to the running domain, and to its definition, so that it has the same bus address after a restart.
fn attach(domain: &Domain, nic: &DomainNic) -> Result<LiveNic, Fault> {
    let flags = sys::VIR_DOMAIN_XML_INACTIVE;
    let defined = domain.get_xml_desc(flags).at("get the domain's XML")?;
    // After a removal that the user took back, the definition still has it.
    let is_defined = xml::has_nic(&defined, nic.mac).map_err(|error| invalid_xml(&error))?;
    let flags = if is_defined {
        sys::VIR_DOMAIN_AFFECT_LIVE
    } else {
        sys::VIR_DOMAIN_AFFECT_LIVE | sys::VIR_DOMAIN_AFFECT_CONFIG
    };
    match domain.attach_device_flags(&xml::nic_device(nic), flags) {
        Ok(_) => Ok(LiveNic::Attached),
        Err(error) if !domain.is_active().at("get the domain's state")? => {
            tracing::debug!(message = message(&error), "the domain stopped meanwhile");
            Err(nics_of_domain_that_is_off().into())
        }
        Err(error) => Ok(LiveNic::Refused(message(&error))),
    }
}

/// Asks the guest to release a nic. The definition keeps it until it is replaced, before the next start at the latest.
fn detach(domain: &Domain, nic: &LiveNicDevice) -> Result<(), virt::error::Error> {
    match domain.detach_device_flags(&nic.xml, sys::VIR_DOMAIN_AFFECT_LIVE) {
        // QEMU does not ask a guest twice.
        Err(error) if !message(&error).contains("already in the process of unplug") => Err(error),
        _ => Ok(()),
    }
}
