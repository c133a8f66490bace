//! The verbs of the interface as blocking calls on an open connection.

use std::collections::BTreeSet;
use std::path::PathBuf;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt_sys as sys;
use waifud_types::{ByteSize, InstanceId, Name};

use super::error::{At, Fault, message};
use super::state::domain_state;
use crate::xml::{self, Described, RenderOptions};
use crate::{Device, DomainSpec, DomainState, HypervisorError, ObservedDomain, no_such_disk};

/// All domains of waifud except the known ones. Those cost no call, because the list contains name and UUID.
pub(super) fn list(
    connect: &Connect,
    known: &BTreeSet<InstanceId>,
) -> Result<Vec<ObservedDomain>, Fault> {
    let mut ours = Vec::new();
    for domain in connect.list_all_domains(0).at("list domains")? {
        if known.contains(&InstanceId::from_uuid(
            domain.get_uuid().at("get the domain's UUID")?,
        )) {
            continue;
        }
        if let Some(seen) = observe(&domain)?
            && seen.epoch.is_some()
        {
            ours.push(seen);
        }
    }
    Ok(ours)
}

pub(super) fn get(connect: &Connect, id: InstanceId) -> Result<Option<ObservedDomain>, Fault> {
    match lookup(connect, id)? {
        Some(domain) => observe(&domain),
        None => Ok(None),
    }
}

/// The socket of a device of the running domain.
pub(super) fn device_socket(
    connect: &Connect,
    id: InstanceId,
    device: Device,
) -> Result<PathBuf, Fault> {
    let domain = lookup(connect, id)?.ok_or(HypervisorError::NotFound(id))?;
    if !domain.is_active().at("get the domain's state")? {
        return Err(HypervisorError::NotRunning(id).into());
    }
    let text = domain.get_xml_desc(0).at("get the domain's XML")?;
    let found = xml::socket(&text, device).map_err(|e| invalid_xml(&e))?;
    Ok(found.ok_or_else(|| HypervisorError::Other {
        operation: "get the device's socket",
        message: "it has no socket; restart the guest, because an older waifud-agentd started it"
            .to_owned(),
    })?)
}

pub(super) fn ensure_defined(
    connect: &Connect,
    spec: &DomainSpec,
    options: RenderOptions,
) -> Result<(), Fault> {
    let digest = spec.digest();
    let taken = |name: &str| HypervisorError::NameTaken {
        name: name.to_owned(),
    };
    let Some(domain) = lookup(connect, spec.id)? else {
        let xml = xml::render(spec, options, &digest);
        return match Domain::define_xml(connect, &xml) {
            Ok(_) => Ok(()),
            Err(error) => {
                // libvirt has no specific error for a name that is in use, so the name is looked up after a failure.
                match Domain::lookup_by_name(connect, spec.name.as_str())
                    .unless_gone("find the domain")?
                {
                    Some(_) => Err(taken(spec.name.as_str()).into()),
                    None => Err(error).at("define the domain"),
                }
            }
        };
    };
    let name = domain.get_name().at("get the domain's name")?;
    if name != spec.name.as_str() {
        rename(&domain, spec)?;
    }
    // Includes secrets, for example the password of a screen that was added by hand; otherwise they would be lost.
    let flags = sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE;
    let existing = domain.get_xml_desc(flags).at("get the domain's XML")?;
    if described(&existing)?
        .ours
        .is_some_and(|(_, was)| was == digest)
    {
        return Ok(());
    }
    let xml = xml::merge(spec, options, &digest, &existing).map_err(|e| invalid_xml(&e))?;
    Domain::define_xml(connect, &xml).at("define the domain")?;
    Ok(())
}

/// Restores the name of a domain that was renamed by hand. libvirt can rename a domain only while it is off.
fn rename(domain: &Domain, spec: &DomainSpec) -> Result<(), Fault> {
    match domain.rename(spec.name.as_str(), 0) {
        Ok(_) => Ok(()),
        Err(error) if error.code() == ErrorNumber::OperationFailed => {
            Err(Fault::Known(HypervisorError::NameTaken {
                name: spec.name.to_string(),
            }))
        }
        Err(error) => Err(error).at("rename the domain"),
    }
}

pub(super) fn ensure_started(connect: &Connect, id: InstanceId, paused: bool) -> Result<(), Fault> {
    let domain = existing(connect, id)?;
    let (state, reason) = domain.get_state().at("get the domain's state")?;
    let flags = if paused {
        sys::VIR_DOMAIN_START_PAUSED
    } else {
        0
    };
    let create = || domain.create_with_flags(flags).map(drop);
    let started = match domain_state(state, reason) {
        DomainState::Running | DomainState::ShuttingDown => return Ok(()),
        DomainState::Paused { .. } if paused => return Ok(()),
        DomainState::Paused { .. } if state == sys::VIR_DOMAIN_PMSUSPENDED => {
            domain.pm_wakeup(0).map(drop)
        }
        DomainState::Paused { .. } => domain.resume().map(drop),
        DomainState::Crashed => domain.destroy().and_then(|()| create()),
        DomainState::Off(_) => create(),
    };
    let Err(error) = started else { return Ok(()) };
    // Another process may have done it first.
    if state_of(&domain)? == Some(DomainState::Running) {
        return Ok(());
    }
    let name = domain.get_name().at("get the domain's name")?;
    Err(Fault::Start { name, error })
}

pub(super) fn request_shutdown(connect: &Connect, id: InstanceId) -> Result<(), Fault> {
    let domain = existing(connect, id)?;
    if state_of(&domain)? != Some(DomainState::Running) {
        return Ok(());
    }
    // Without flags, libvirt uses the guest agent if it answers, otherwise the ACPI button.
    match domain.shutdown() {
        Err(error) if !is_gone_or_off(&error) => Err(error).at("shut down the guest"),
        _ => Ok(()),
    }
}

pub(super) fn ensure_off(connect: &Connect, id: InstanceId) -> Result<(), Fault> {
    let Some(domain) = lookup(connect, id)? else {
        return Ok(());
    };
    power_off(&domain)
}

pub(super) fn ensure_absent(connect: &Connect, id: InstanceId) -> Result<(), Fault> {
    let Some(domain) = lookup(connect, id)? else {
        return Ok(());
    };
    power_off(&domain)?;
    let flags = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
    domain
        .undefine_flags(flags)
        .unless_gone("undefine the domain")?;
    Ok(())
}

pub(super) fn ensure_disk_size(
    connect: &Connect,
    id: InstanceId,
    disk: &Name,
    size: ByteSize,
) -> Result<(), Fault> {
    let domain = existing(connect, id)?;
    if !domain.is_active().at("get the domain's state")? {
        return Err(no_such_disk(disk).into());
    }
    // The running definition: the one for the next start may differ.
    let xml = domain.get_xml_desc(0).at("get the domain's XML")?;
    let target = xml::disk_target(&xml, disk).map_err(|error| invalid_xml(&error))?;
    let target = target.ok_or_else(|| no_such_disk(disk))?;
    let has = domain
        .get_block_info(&target, 0)
        .at("get the disk's size")?;
    if has.capacity < size.bytes() {
        let unit = sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES;
        domain
            .block_resize(&target, size.bytes(), unit)
            .at("resize the disk")?;
    }
    Ok(())
}

pub(super) fn agent_command(
    connect: &Connect,
    id: InstanceId,
    command: &str,
    seconds: i32,
) -> Result<String, Fault> {
    let domain = existing(connect, id)?;
    match domain.qemu_agent_command(command, seconds, 0) {
        Ok(answer) => Ok(answer),
        Err(error) => match error.code() {
            ErrorNumber::AgentUnresponsive
            | ErrorNumber::AgentUnsynced
            | ErrorNumber::AgentCommandTimeout
            | ErrorNumber::OperationInvalid
            | ErrorNumber::ArgumentUnsupported => {
                Err(HypervisorError::AgentUnresponsive(id).into())
            }
            ErrorNumber::NoDomain => Err(HypervisorError::NotFound(id).into()),
            _ => Err(error).at("call the guest agent"),
        },
    }
}

fn lookup(connect: &Connect, id: InstanceId) -> Result<Option<Domain>, Fault> {
    Domain::lookup_by_uuid(connect, *id.as_uuid()).unless_gone("find the domain")
}

pub(super) fn existing(connect: &Connect, id: InstanceId) -> Result<Domain, Fault> {
    lookup(connect, id)?.ok_or(Fault::Known(HypervisorError::NotFound(id)))
}

/// `None` if the domain was undefined meanwhile.
fn observe(domain: &Domain) -> Result<Option<ObservedDomain>, Fault> {
    let xml = domain.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE);
    let (Some(xml), Some(state)) = (xml.unless_gone("get the domain's XML")?, state_of(domain)?)
    else {
        return Ok(None);
    };
    let Described {
        kind,
        ours,
        disks,
        drift,
    } = described(&xml)?;
    let (epoch, spec_digest) = ours.unzip();
    Ok(Some(ObservedDomain {
        id: InstanceId::from_uuid(domain.get_uuid().at("get the domain's UUID")?),
        name: domain.get_name().at("get the domain's name")?,
        epoch,
        state,
        kind,
        spec_digest,
        disks,
        drift,
    }))
}

fn state_of(domain: &Domain) -> Result<Option<DomainState>, Fault> {
    let state = domain.get_state().unless_gone("get the domain's state")?;
    Ok(state.map(|(state, reason)| domain_state(state, reason)))
}

fn power_off(domain: &Domain) -> Result<(), Fault> {
    match state_of(domain)? {
        None | Some(DomainState::Off(_)) => Ok(()),
        Some(
            DomainState::Running
            | DomainState::Paused { .. }
            | DomainState::ShuttingDown
            | DomainState::Crashed,
        ) => match domain.destroy() {
            Err(error) if !is_gone_or_off(&error) => Err(error).at("power off the domain"),
            _ => Ok(()),
        },
    }
}

/// Whether a call failed because there was nothing left to do: the domain is off, or undefined.
fn is_gone_or_off(error: &Error) -> bool {
    matches!(
        error.code(),
        ErrorNumber::OperationInvalid | ErrorNumber::NoDomain
    )
}

fn described(xml: &str) -> Result<Described, Fault> {
    xml::describe(xml).map_err(|error| invalid_xml(&error))
}

pub(super) fn invalid_xml(error: &xml::XmlError) -> Fault {
    Fault::Known(HypervisorError::Other {
        operation: "get the domain's XML",
        message: error.to_string(),
    })
}

/// Properties of the host according to libvirt.
pub(super) struct NodeFacts {
    pub(super) cpus: u32,
    pub(super) memory_kib: u64,
    pub(super) arch: String,
    pub(super) qemu_version: u32,
    pub(super) emulator: Option<String>,
}

/// The total memory according to the kernel. libvirt adds up the sizes of the NUMA cells, which was 10 of 24 GB too
/// low on a machine whose memory was partly added while it ran.
fn kernel_memory_kib() -> Option<u64> {
    mem_total_kib(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// `MemTotal:       24684092 kB`, from the text of `/proc/meminfo` (proc(5)).
fn mem_total_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

pub(super) fn node_facts(connect: &Connect) -> Result<NodeFacts, Fault> {
    let info = connect.get_node_info().at("get the host's properties")?;
    let capabilities = connect
        .get_capabilities()
        .at("get libvirt's capabilities")?;
    let emulator = xml::emulator(&capabilities, &info.model).map_err(|e| invalid_xml(&e))?;
    Ok(NodeFacts {
        cpus: info.cpus,
        memory_kib: kernel_memory_kib().unwrap_or(info.memory),
        arch: info.model,
        // Unknown if libvirt has not found QEMU; then the probe cannot run either.
        qemu_version: connect.get_hyp_version().unwrap_or_else(|error| {
            tracing::warn!(message = message(&error), "libvirt has not found QEMU");
            0
        }),
        emulator,
    })
}

#[cfg(test)]
mod tests {
    use super::mem_total_kib;

    #[test]
    fn the_total_memory_is_parsed_from_meminfo() {
        let text = "MemTotal:       24684092 kB\nMemFree:         1 kB\n";
        assert_eq!(mem_total_kib(text), Some(24_684_092));
        assert_eq!(mem_total_kib("MemFree: 1 kB\n"), None);
        assert_eq!(mem_total_kib("MemTotal: many\n"), None);
    }
}
