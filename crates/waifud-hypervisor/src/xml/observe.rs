//! Reads what a domain's XML says about it: which of ours it is, and what runs it.

use std::path::PathBuf;

use waifud_types::status::HypervisorKind;
use waifud_types::{Epoch, Name};

use super::drift::drift;
use super::tree::{Element, XmlError};
use super::{ALIAS, NAMESPACE};
use crate::Device;

/// What there is to know from a domain's XML.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Described {
    /// KVM or emulation.
    pub kind: HypervisorKind,
    /// Our metadata: epoch and digest of the spec; `None` in a domain that is not ours.
    pub ours: Option<(Epoch, String)>,
    /// What somebody changed by hand, in sentences; empty in a domain that is not ours.
    pub drift: Vec<String>,
}

/// Reads a domain's XML.
pub fn describe(xml: &str) -> Result<Described, XmlError> {
    let domain = Element::parse(xml)?;
    let kind = match domain.attribute("type") {
        Some("kvm") => HypervisorKind::Kvm,
        _ => HypervisorKind::Tcg,
    };
    Ok(Described {
        kind,
        ours: ours(&domain),
        drift: drift(&domain),
    })
}

/// The unix socket that a running domain's device listens at; null where the device is of another kind.
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

/// The target's name (`vda`) of our disk in a domain's XML.
pub fn disk_target(xml: &str, disk: &Name) -> Result<Option<String>, XmlError> {
    let domain = Element::parse(xml)?;
    let alias = format!("{ALIAS}disk-{disk}");
    let devices = domain.get("devices").map_or(&[][..], |d| &d.children);
    let ours = devices.iter().find(|device| {
        let name = device.get("alias").and_then(|a| a.attribute("name"));
        device.name == "disk" && name == Some(&alias)
    });
    let target = ours.and_then(|device| device.get("target")?.attribute("dev"));
    Ok(target.map(str::to_owned))
}

/// The path of the QEMU that runs guests of this architecture, from libvirt's capabilities.
pub fn emulator(capabilities: &str, arch: &str) -> Result<Option<String>, XmlError> {
    let capabilities = Element::parse(capabilities)?;
    let guests = capabilities.children.iter().filter(|c| c.name == "guest");
    let arches = guests.filter_map(|guest| guest.get("arch"));
    let fits = |element: &&Element| element.attribute("name") == Some(arch);
    let path = arches.filter(fits).find_map(|arch| arch.get("emulator"));
    Ok(path.map(|emulator| emulator.text.trim().to_owned()))
}

/// Whether an element of a domain's metadata is ours, whatever prefix it is written with.
pub(super) fn is_ours(element: &Element) -> bool {
    let prefix = match element.name.split_once(':') {
        Some((prefix, "domain")) => format!("xmlns:{prefix}"),
        None if element.name == "domain" => "xmlns".to_owned(),
        _ => return false,
    };
    element.attribute(&prefix) == Some(NAMESPACE)
}

/// Our element of a domain's metadata.
pub(super) fn our_mark(domain: &Element) -> Option<&Element> {
    let metadata = domain.get("metadata")?;
    metadata.children.iter().find(|child| is_ours(child))
}

fn ours(domain: &Element) -> Option<(Epoch, String)> {
    let ours = our_mark(domain)?;
    let epoch = ours.attribute("epoch")?.parse().ok()?;
    Some((Epoch(epoch), ours.attribute("spec")?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::render::tests::spec;
    use super::super::{RenderOptions, render};
    use super::*;

    #[test]
    fn what_is_rendered_is_observed() {
        let xml = render(&spec(), RenderOptions::default(), "abc");
        let seen = describe(&xml).unwrap();
        assert_eq!(seen.kind, HypervisorKind::Tcg);
        assert_eq!(seen.ours, Some((Epoch(3), "abc".to_owned())));
    }

    #[test]
    fn sockets_of_devices_are_found_and_pseudo_terminals_are_none() {
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
    fn a_disk_of_ours_is_found_by_its_name() {
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
    fn other_peoples_domains_are_not_ours() {
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
    fn the_emulator_is_found_by_architecture() {
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
