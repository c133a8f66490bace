//! Redefines a domain without losing what others put into it.
//!
//! What is ours is replaced: the elements that `render` writes, and the devices whose alias is ours. Everything else
//! stays: devices that somebody added (a second disk, a host's device), controllers that libvirt added with the
//! addresses that they have, whole sections such as `cputune`, other programs' metadata. Our own devices keep the bus
//! address that libvirt once gave them, so that a guest finds its nic under the same name after a change.

use super::RenderOptions;
use super::ownership::{alias_of, has_our_alias, is_our_device, is_our_metadata};
use super::render::{domain, letters};
use super::smbios;
use super::tree::{Element, XmlError};
use crate::DomainSpec;

/// The XML that makes `existing` (a domain's inactive, complete XML) into what the spec asks for.
pub fn merge(
    spec: &DomainSpec,
    options: RenderOptions,
    digest: &str,
    existing: &str,
) -> Result<String, XmlError> {
    let existing = Element::parse(existing)?;
    let mut merged = domain(spec, options, digest);

    // Prefixes that kept sections use, such as `xmlns:qemu`.
    for (name, value) in &existing.attributes {
        if name.starts_with("xmlns") {
            merged.attributes.push((name.clone(), value.clone()));
        }
    }
    if let (Some(metadata), Some(theirs)) = (merged.get_mut("metadata"), existing.get("metadata")) {
        let others = theirs
            .children
            .iter()
            .filter(|child| !is_our_metadata(child));
        metadata.children.extend(others.cloned());
    }
    if let (Some(arguments), Some(theirs)) = (
        merged.get_mut(smbios::COMMANDLINE),
        existing.get(smbios::COMMANDLINE),
    ) {
        let all = &theirs.children;
        let others = (0..all.len()).filter(|index| !smbios::is_ours(all, *index));
        arguments
            .children
            .extend(others.filter_map(|index| all.get(index).cloned()));
    }
    let nothing = Element::new("devices");
    let theirs = existing.get("devices").unwrap_or(&nothing);
    if let Some(devices) = merged.get_mut("devices") {
        let kept = theirs
            .children
            .iter()
            .filter(|device| !is_our_device(device));
        let kept: Vec<_> = kept.cloned().collect();
        give_way(&mut devices.children, &kept);
        for device in &mut devices.children {
            keep_address(device, theirs);
        }
        devices.children.extend(kept);
    }
    let written_by_us = |name: &str| {
        // libvirt writes both whenever `memory` is given.
        name == "currentMemory" || merged.get(name).is_some()
    };
    let kept = existing.children.iter();
    let kept: Vec<_> = kept
        .filter(|child| !written_by_us(&child.name))
        .cloned()
        .collect();
    merged.children.extend(kept);
    Ok(merged.write())
}

/// Moves our disks off target names that a kept disk has: `vdb`, say, of a disk that somebody attached before the spec
/// got a second one. To guests the name means nothing; they go by the bus address.
fn give_way(ours: &mut [Element], kept: &[Element]) {
    let mut taken: Vec<String> = ours.iter().chain(kept).filter_map(target).collect();
    for disk in ours.iter_mut().filter(|device| device.name == "disk") {
        let is_theirs = |name: &String| {
            kept.iter()
                .any(|other| target(other).as_ref() == Some(name))
        };
        if !target(disk).as_ref().is_some_and(is_theirs) {
            continue;
        }
        let mut names = (0..).map(|index| format!("vd{}", letters(index)));
        let Some(free) = names.find(|name| !taken.contains(name)) else {
            continue;
        };
        let dev = disk.get_mut("target").and_then(|target| {
            let dev = target.attributes.iter_mut().find(|(name, _)| name == "dev");
            dev.map(|(_, value)| value)
        });
        if let Some(dev) = dev {
            dev.clone_from(&free);
            taken.push(free);
        }
    }
}

fn target(disk: &Element) -> Option<String> {
    let target = disk.get("target").filter(|_| disk.name == "disk")?;
    target.attribute("dev").map(str::to_owned)
}

/// A disk has the address of the disk of ours that was in its place: guests number disks by their addresses, so the first
/// one stays the first when another takes its place, as for a rescue. Other devices have the address that they had.
fn keep_address(device: &mut Element, existing: &Element) {
    let same = |other: &&Element| {
        other.name == device.name
            && match device.name.as_str() {
                "memballoon" => true,
                "disk" => has_our_alias(other) && target(other) == target(device),
                _ => alias_of(other) == alias_of(device) && alias_of(other).is_some(),
            }
    };
    let address = existing.children.iter().find(same);
    if let Some(address) = address.and_then(|other| other.get("address")) {
        device.children.push(address.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::super::describe;
    use super::super::render::{render, tests::spec};
    use super::*;

    const OPTIONS: RenderOptions = RenderOptions { keep_owners: false };

    /// What libvirt makes of a definition of ours, and what people then do to it.
    fn lived_in() -> String {
        let xml = render(&spec(), OPTIONS, "old");
        xml.replace(
            "<alias name='ua-waifud-nic-0'/>",
            "<alias name='ua-waifud-nic-0'/><address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>",
        )
        .replace(
            "<devices>",
            "<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
             <disk type='block' device='disk'><source dev='/dev/sdb'/><target dev='vdx' bus='virtio'/></disk>
             <hostdev mode='subsystem' type='usb'><source><vendor id='0x1050'/></source></hostdev>
             <controller type='pci' index='0' model='pcie-root'/>
             <console type='pty'><target type='serial' port='0'/></console>
             <console type='pty'><target type='virtio' port='1'/></console>
             <graphics type='spice'/>",
        )
        .replace(
            "<vcpu",
            "<currentMemory unit='KiB'>1</currentMemory><cputune><shares>99</shares></cputune><vcpu",
        )
        .replace(
            "<metadata>",
            "<metadata><x:note xmlns:x='urn:theirs'>kept</x:note>",
        )
    }

    fn merged() -> String {
        let mut spec = spec();
        spec.cpus = 7;
        spec.disks.truncate(1);
        merge(&spec, OPTIONS, "new", &lived_in()).unwrap()
    }

    #[test]
    fn what_others_added_stays_and_what_is_ours_follows_the_spec() {
        insta::assert_snapshot!(merged());
    }

    #[test]
    fn devices_of_ours_that_the_spec_lost_are_gone() {
        assert!(!merged().contains("ua-waifud-disk-a-name"));
        assert!(merged().contains("ua-waifud-disk-root"));
    }

    #[test]
    fn the_new_digest_replaces_the_old_one() {
        let seen = describe(&merged()).unwrap();
        assert_eq!(seen.ours.unwrap().1, "new");
    }

    #[test]
    fn a_disk_of_the_spec_gives_way_to_one_that_somebody_attached_before() {
        let mut before = spec();
        before.disks.truncate(1);
        let attached = render(&before, OPTIONS, "old").replace(
            "<devices>",
            "<devices><disk type='block'><target dev='vdb'/></disk>",
        );
        let merged = merge(&spec(), OPTIONS, "new", &attached).unwrap();
        for name in ["vda", "vdb", "vdc"] {
            assert_eq!(
                merged.matches(&format!("dev='{name}'")).count(),
                1,
                "{merged}"
            );
        }
    }

    #[test]
    fn the_first_disk_stays_first_when_another_takes_its_place() {
        let address_of = |xml: &str, disk: &str| {
            let domain = Element::parse(xml).unwrap();
            let devices = domain.get("devices").unwrap();
            let name = format!("ua-waifud-disk-{disk}");
            let disk = devices.children.iter().find(|d| alias_of(d) == Some(&name));
            disk.unwrap().get("address").cloned()
        };
        let mut own = spec();
        own.disks.truncate(1);
        let lived_in = render(&own, OPTIONS, "old").replace(
            "<alias name='ua-waifud-disk-root'/>",
            "<alias name='ua-waifud-disk-root'/><address type='pci' bus='0x05'/>",
        );
        let first = address_of(&lived_in, "root");
        assert!(first.is_some());
        let mut rescued = own.clone();
        let mut small = own.disks[0].clone();
        small.name = "rescue".parse().unwrap();
        rescued.disks.insert(0, small);
        let during = merge(&rescued, OPTIONS, "new", &lived_in).unwrap();
        assert_eq!(address_of(&during, "rescue"), first);
        assert_eq!(address_of(&during, "root"), None);
        let after = merge(&own, OPTIONS, "old", &during).unwrap();
        assert_eq!(address_of(&after, "root"), first);
    }

    #[test]
    fn arguments_that_somebody_gave_qemu_stay_beside_ours() {
        let mut spec = spec();
        spec.datasource = waifud_types::template::Datasource::Ec2;
        let lived_in = render(&spec, OPTIONS, "old").replace(
            "</qemu:commandline>",
            "<qemu:arg value='-smbios'/><qemu:arg value='type=11,value=theirs'/></qemu:commandline>",
        );
        let once = merge(&spec, OPTIONS, "new", &lived_in).unwrap();
        assert_eq!(once.matches("qemu:arg").count(), 4, "{once}");
        assert!(once.contains("type=11,value=theirs"), "{once}");
        assert_eq!(merge(&spec, OPTIONS, "new", &once).unwrap(), once);
    }

    #[test]
    fn merging_again_changes_nothing() {
        let mut spec = spec();
        spec.cpus = 7;
        spec.disks.truncate(1);
        let once = merged();
        assert_eq!(merge(&spec, OPTIONS, "new", &once).unwrap(), once);
    }

    #[test]
    fn a_domain_without_anything_of_others_becomes_what_is_rendered() {
        let old = render(&spec(), OPTIONS, "old");
        let mut changed = spec();
        changed.memory = waifud_types::ByteSize::gib(2);
        assert_eq!(
            merge(&changed, OPTIONS, "new", &old).unwrap(),
            render(&changed, OPTIONS, "new")
        );
    }
}
