//! Redefines a domain and keeps what others have added to it.
//!
//! Only waifud's parts are replaced: the elements that `render` writes, and the devices with its aliases. Everything
//! else is kept: devices that users added (a second disk, a host device), controllers that libvirt added with their
//! addresses, whole sections, for example `cputune`, and the metadata of other programs. waifud's devices keep the bus
//! addresses that libvirt assigned, so that the guest's nic keeps its name after a change.

use super::RenderOptions;
use super::managed::{alias_of, has_our_alias, is_our_device, is_our_metadata, is_root_port};
use super::render::{domain, letters};
use super::smbios;
use super::tree::{Element, XmlError};
use crate::DomainSpec;

/// Changes the complete, inactive XML of a domain (`existing`) to match the spec.
pub fn merge(
    spec: &DomainSpec,
    options: RenderOptions,
    digest: &str,
    existing: &str,
) -> Result<String, XmlError> {
    let existing = Element::parse(existing)?;
    let mut merged = domain(spec, options, digest);

    // Prefixes that kept sections use, for example `xmlns:qemu`.
    for (name, value) in &existing.attributes {
        if name.starts_with("xmlns") {
            merged.attributes.push((name.clone(), value.clone()));
        }
    }
    if let (Some(metadata), Some(old)) = (merged.get_mut("metadata"), existing.get("metadata")) {
        let others = old.children.iter().filter(|child| !is_our_metadata(child));
        metadata.children.extend(others.cloned());
    }
    if let (Some(arguments), Some(old)) = (
        merged.get_mut(smbios::COMMANDLINE),
        existing.get(smbios::COMMANDLINE),
    ) {
        let all = &old.children;
        let others = (0..all.len()).filter(|index| !smbios::is_our_argument(all, *index));
        arguments
            .children
            .extend(others.filter_map(|index| all.get(index).cloned()));
    }
    let nothing = Element::new("devices");
    let old = existing.get("devices").unwrap_or(&nothing);
    if let Some(devices) = merged.get_mut("devices") {
        let kept = old.children.iter().filter(|device| !is_our_device(device));
        let kept: Vec<_> = kept.cloned().collect();
        rename_conflicting_disks(&mut devices.children, &kept);
        for device in &mut devices.children {
            keep_address(device, old);
        }
        add_only_missing_ports(&mut devices.children, &kept);
        devices.children.extend(kept);
    }
    let is_rendered = |name: &str| {
        // libvirt derives `currentMemory` from `memory`.
        name == "currentMemory" || merged.get(name).is_some()
    };
    let kept = existing.children.iter();
    let kept: Vec<_> = kept
        .filter(|child| !is_rendered(&child.name))
        .cloned()
        .collect();
    merged.children.extend(kept);
    Ok(merged.write())
}

/// Removes as many of the rendered root ports as the domain has already, and gives the others numbers that are free. Existing ones
/// are kept, because the addresses of devices name them.
fn add_only_missing_ports(rendered: &mut Vec<Element>, kept: &[Element]) {
    let mut has = kept.iter().filter(|device| is_root_port(device)).count();
    rendered.retain(|device| {
        let missing = !is_root_port(device) || has == 0;
        has -= usize::from(!missing);
        missing
    });
    let index = |device: &Element| device.attribute("index")?.parse::<usize>().ok();
    let is_pci =
        |device: &&Element| device.name == "controller" && device.attribute("type") == Some("pci");
    let taken: Vec<usize> = kept.iter().filter(is_pci).filter_map(index).collect();
    let mut free = (1..).filter(|number| !taken.contains(number));
    for port in rendered.iter_mut().filter(|device| is_root_port(device)) {
        let attribute = port.attributes.iter_mut().find(|(name, _)| name == "index");
        if let (Some((_, index)), Some(number)) = (attribute, free.next()) {
            *index = number.to_string();
        }
    }
}

/// Renames waifud's disks whose target name a kept disk has: for example `vdb`, if a user attached a disk before the
/// spec got a second one. Guests do not use the name, but the bus address.
fn rename_conflicting_disks(rendered: &mut [Element], kept: &[Element]) {
    let mut taken: Vec<String> = rendered.iter().chain(kept).filter_map(target).collect();
    for disk in rendered.iter_mut().filter(|device| device.name == "disk") {
        let is_kept = |name: &String| {
            kept.iter()
                .any(|other| target(other).as_ref() == Some(name))
        };
        if !target(disk).as_ref().is_some_and(is_kept) {
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

/// A disk keeps the bus address of the disk that was at its position. Guests number disks by their addresses, so the
/// first disk stays the first even if another one takes its place, as in a rescue. Other devices keep their own
/// addresses.
fn keep_address(device: &mut Element, existing: &Element) {
    let same = |other: &&Element| {
        other.name == device.name
            && match device.name.as_str() {
                "memballoon" => true,
                "disk" => has_our_alias(other) && target(other) == target(device),
                _ => alias_of(other) == alias_of(device) && alias_of(other).is_some(),
            }
    };
    let other = existing.children.iter().find(same);
    if let Some(address) = other.and_then(|other| other.get("address")) {
        device.children.push(address.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::super::describe;
    use super::super::render::{render, tests::spec};
    use super::*;

    const OPTIONS: RenderOptions = RenderOptions { keep_owners: false };

    /// One of waifud's definitions as libvirt returns it, with changes by users.
    fn edited_definition() -> String {
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
        merge(&spec, OPTIONS, "new", &edited_definition()).unwrap()
    }

    #[test]
    fn additions_by_users_are_kept_and_managed_parts_follow_the_spec() {
        insta::assert_snapshot!(merged());
    }

    #[test]
    fn a_disk_that_was_removed_from_the_spec_is_removed() {
        assert!(!merged().contains("ua-waifud-disk-a-name"));
        assert!(merged().contains("ua-waifud-disk-root"));
    }

    #[test]
    fn the_new_digest_replaces_the_old_one() {
        let seen = describe(&merged()).unwrap();
        assert_eq!(seen.ours.unwrap().1, "new");
    }

    #[test]
    fn a_disk_of_the_spec_is_renamed_if_an_attached_disk_has_its_name() {
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
    fn a_disk_inserted_as_the_first_gets_the_address_of_the_first() {
        let address_of = |xml: &str, disk: &str| {
            let domain = Element::parse(xml).unwrap();
            let devices = domain.get("devices").unwrap();
            let name = format!("ua-waifud-disk-{disk}");
            let disk = devices.children.iter().find(|d| alias_of(d) == Some(&name));
            disk.unwrap().get("address").cloned()
        };
        let mut own = spec();
        own.disks.truncate(1);
        let edited = render(&own, OPTIONS, "old").replace(
            "<alias name='ua-waifud-disk-root'/>",
            "<alias name='ua-waifud-disk-root'/><address type='pci' bus='0x05'/>",
        );
        let first = address_of(&edited, "root");
        assert!(first.is_some());
        let mut rescued = own.clone();
        let mut rescue_disk = own.disks[0].clone();
        rescue_disk.name = "rescue".parse().unwrap();
        rescued.disks.insert(0, rescue_disk);
        let during = merge(&rescued, OPTIONS, "new", &edited).unwrap();
        assert_eq!(address_of(&during, "rescue"), first);
        assert_eq!(address_of(&during, "root"), None);
        let after = merge(&own, OPTIONS, "old", &during).unwrap();
        assert_eq!(address_of(&after, "root"), first);
    }

    #[test]
    fn qemu_arguments_of_users_are_kept() {
        let mut spec = spec();
        spec.datasource = waifud_types::template::Datasource::Ec2;
        let edited = render(&spec, OPTIONS, "old").replace(
            "</qemu:commandline>",
            "<qemu:arg value='-smbios'/><qemu:arg value='type=11,value=theirs'/></qemu:commandline>",
        );
        let once = merge(&spec, OPTIONS, "new", &edited).unwrap();
        assert_eq!(once.matches("qemu:arg").count(), 4, "{once}");
        assert!(once.contains("type=11,value=theirs"), "{once}");
        assert_eq!(merge(&spec, OPTIONS, "new", &once).unwrap(), once);
    }

    #[test]
    fn a_redefinition_adds_only_the_root_ports_that_are_missing() {
        let ports = |xml: &str| xml.matches("pcie-root-port").count();
        let rendered = render(&spec(), OPTIONS, "old");
        assert_eq!(ports(&rendered), 11, "2 disks, 1 nic, 4 others, 4 spare");
        let mut more = spec();
        let mut second = more.nics[0].clone();
        second.number = 1;
        more.nics.push(second);
        let merged = merge(&more, OPTIONS, "new", &rendered).unwrap();
        assert_eq!(ports(&merged), 12);
        let fewer = merge(&spec(), OPTIONS, "new", &merged).unwrap();
        assert_eq!(ports(&fewer), 12, "devices may be on any of them");
        let older =
            edited_definition().replace("<controller type='pci' model='pcie-root-port'/>", "");
        assert_eq!(ports(&merge(&spec(), OPTIONS, "new", &older).unwrap()), 11);
    }

    #[test]
    fn a_second_merge_changes_nothing() {
        let mut spec = spec();
        spec.cpus = 7;
        spec.disks.truncate(1);
        let once = merged();
        assert_eq!(merge(&spec, OPTIONS, "new", &once).unwrap(), once);
    }

    #[test]
    fn a_domain_without_additions_equals_the_rendered_one() {
        let old = render(&spec(), OPTIONS, "old");
        let mut changed = spec();
        changed.memory = waifud_types::ByteSize::gib(2);
        assert_eq!(
            merge(&changed, OPTIONS, "new", &old).unwrap(),
            render(&changed, OPTIONS, "new")
        );
    }
}
