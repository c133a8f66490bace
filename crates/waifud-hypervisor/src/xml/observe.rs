//! Reads a domain's XML: its metadata, its hypervisor, its disks and its sockets.

use std::collections::BTreeMap;
use std::path::PathBuf;

use waifud_types::status::HypervisorKind;
use waifud_types::{Epoch, Name, VolumeSource};

use super::drift::drift;
use super::managed::{epoch_and_digest, our_disk};
use super::tree::{Element, XmlError};
use crate::Device;

/// The contents of a domain's XML that waifud uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Described {
    /// KVM or emulation.
    pub kind: HypervisorKind,
    /// The epoch and the digest of the spec, from our metadata; `None` in a domain that is not ours.
    pub ours: Option<(Epoch, String)>,
    /// Our disks, by name.
    pub disks: BTreeMap<Name, VolumeSource>,
    /// Changes that a user made by hand, one sentence each; empty in a domain that is not ours.
    pub drift: Vec<String>,
}

/// Parses a domain's XML.
pub fn describe(xml: &str) -> Result<Described, XmlError> {
    let domain = Element::parse(xml)?;
    let kind = match domain.attribute("type") {
        Some("kvm") => HypervisorKind::Kvm,
        _ => HypervisorKind::Tcg,
    };
    Ok(Described {
        kind,
        ours: epoch_and_digest(&domain),
        disks: our_disks(&domain)
            .filter_map(|(name, disk)| Some((name, source(disk)?)))
            .collect(),
        drift: drift(&domain),
    })
}

/// The unix socket that a running domain's device listens on; `None` if the device is of another type.
pub fn socket(xml: &str, device: Device) -> Result<Option<PathBuf>, XmlError> {
    let domain = Element::parse(xml)?;
    let Some(devices) = domain.get("devices") else {
        return Ok(None);
    };
    let path = match device {
        Device::Console => devices
            .children
            .iter()
            .find(|child| child.name == "serial" && child.attribute("type") == Some("unix"))
            .and_then(|serial| serial.get("source")?.attribute("path")),
        Device::Screen => devices
            .children
            .iter()
            .filter(|child| child.name == "graphics" && child.attribute("type") == Some("vnc"))
            .find_map(|graphics| graphics.attribute("socket")),
    };
    Ok(path.map(PathBuf::from))
}

/// The target (`vda`) of our disk in a domain's XML.
pub fn disk_target(xml: &str, disk: &Name) -> Result<Option<String>, XmlError> {
    let domain = Element::parse(xml)?;
    let mut disks = our_disks(&domain);
    let device = disks
        .find(|(name, _)| name == disk)
        .map(|(_, device)| device);
    let target = device.and_then(|device| device.get("target")?.attribute("dev"));
    Ok(target.map(str::to_owned))
}

fn our_disks(domain: &Element) -> impl Iterator<Item = (Name, &Element)> {
    let devices = domain.get("devices").map_or(&[][..], |d| &d.children);
    devices
        .iter()
        .filter_map(|device| Some((our_disk(device)?, device)))
}

/// The source of a disk; `None` if it is neither a file nor a block device.
fn source(disk: &Element) -> Option<VolumeSource> {
    let source = disk.get("source")?;
    match disk.attribute("type")? {
        "file" => Some(VolumeSource::File(source.attribute("file")?.into())),
        "block" => Some(VolumeSource::Block(source.attribute("dev")?.into())),
        _ => None,
    }
}

/// The path of QEMU for guests of this architecture, from libvirt's capabilities.
pub fn emulator(capabilities: &str, arch: &str) -> Result<Option<String>, XmlError> {
    let capabilities = Element::parse(capabilities)?;
    let guests = capabilities.children.iter().filter(|c| c.name == "guest");
    let arches = guests.filter_map(|guest| guest.get("arch"));
    let matches = |element: &&Element| element.attribute("name") == Some(arch);
    let path = arches.filter(matches).find_map(|arch| arch.get("emulator"));
    Ok(path.map(|emulator| emulator.text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::render::tests::spec;
    use super::super::{RenderOptions, render};
    use super::*;

    #[test]
    fn the_values_of_a_rendered_domain_are_observed() {
        let xml = render(&spec(), RenderOptions::default(), "abc");
        let seen = describe(&xml).unwrap();
        assert_eq!(seen.kind, HypervisorKind::Tcg);
        assert_eq!(seen.ours, Some((Epoch(3), "abc".to_owned())));
    }

    #[test]
    fn sockets_of_devices_are_found_and_pseudo_terminals_are_ignored() {
        let running = "<domain type='qemu'><devices>\
            <serial type='unix'><source mode='bind' path='/run/c'/><target port='0'/></serial>\
            <console type='pty' tty='/dev/pts/1'/>\
            <graphics type='vnc' socket='/run/v'><listen type='socket' socket='/run/v'/></graphics>\
            </devices></domain>";
        assert_eq!(
            socket(running, Device::Console).unwrap(),
            Some("/run/c".into())
        );
        assert_eq!(
            socket(running, Device::Screen).unwrap(),
            Some("/run/v".into())
        );
        let older = "<domain type='qemu'><devices><serial type='pty'><source path='/dev/pts/3'/></serial></devices></domain>";
        assert_eq!(socket(older, Device::Console).unwrap(), None);
        assert_eq!(socket(older, Device::Screen).unwrap(), None);
    }

    #[test]
    fn a_disk_of_waifud_is_found_by_its_name() {
        let xml = render(&spec(), RenderOptions::default(), "abc");
        let found = |name: &str| disk_target(&xml, &name.parse().unwrap()).unwrap();
        assert_eq!(found("root").as_deref(), Some("vda"));
        assert_eq!(
            found("a-name-of-more-than-twenty-bytes").as_deref(),
            Some("vdb")
        );
        assert_eq!(found("data"), None);
    }

    #[test]
    fn a_domain_without_waifuds_metadata_has_no_epoch_and_digest() {
        for xml in [
            "<domain type='kvm'/>",
            "<domain type='kvm'><metadata><x:domain xmlns:x='urn:other' epoch='1' spec='a'/></metadata></domain>",
            "<domain type='kvm'><metadata><w:domain xmlns:w='urn:waifud:domain:1'/></metadata></domain>",
        ] {
            let seen = describe(xml).unwrap();
            assert_eq!((seen.kind, seen.ours), (HypervisorKind::Kvm, None), "{xml}");
        }
    }

    #[test]
    fn the_emulator_is_selected_by_architecture() {
        let capabilities = "<capabilities><host/>
            <guest><os_type>hvm</os_type><arch name='i686'><emulator>/usr/bin/qemu-system-i386</emulator></arch></guest>
            <guest><os_type>hvm</os_type><arch name='x86_64'><emulator>/usr/bin/qemu-system-x86_64</emulator></arch></guest>
            </capabilities>";
        let found = |arch| emulator(capabilities, arch).unwrap();
        assert_eq!(
            found("x86_64").as_deref(),
            Some("/usr/bin/qemu-system-x86_64")
        );
        assert_eq!(found("riscv64"), None);
    }
}
