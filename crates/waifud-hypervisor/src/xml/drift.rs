//! Describes manual changes of waifud's domains in sentences for users. No I/O.
//!
//! A redefinition keeps devices and sections that others added (see `merge`), so they are reported but not reverted.
//! The domain's metadata contains the CPUs, the memory and the devices of the spec, next to the digest. Names and paths come from
//! the user who edited the domain, so they are truncated and escaped (see `escaped`). The address of a network disk is not shown,
//! because it can contain a password.

use waifud_types::ByteSize;

use super::device_settings::{self, DeviceChange};
use super::escaped::escaped;
use super::managed::{is_our_device, our_metadata};
use super::tree::Element;

/// Sections of a domain that neither waifud nor libvirt adds.
const SECTIONS: [&str; 9] = [
    "blkiotune",
    "cputune",
    "iothreads",
    "launchSecurity",
    "maxMemory",
    "memoryBacking",
    "memtune",
    "numatune",
    "perf",
];
/// The maximum number of sentences; the last one counts the rest.
const SENTENCES_MAX: usize = 16;

/// The differences between a domain's inactive XML and the one that waifud defined, settings first; empty for a domain
/// that does not belong to waifud.
pub(super) fn drift(domain: &Element) -> Vec<String> {
    let Some(metadata) = our_metadata(domain) else {
        return Vec::new();
    };
    let mut found: Vec<String> = cpus(domain, metadata)
        .into_iter()
        .chain(memory(domain, metadata))
        .collect();
    let sections = domain.children.iter().map(|child| child.name.as_str());
    let added_sections = sections.filter(|name| SECTIONS.contains(name));
    found.extend(added_sections.map(|name| format!("section {name} was added by hand")));
    let devices = domain.get("devices").map_or(&[][..], |d| &d.children);
    found.extend(
        device_settings::changes(metadata, devices)
            .iter()
            .map(of_ours),
    );
    let added_devices = devices
        .iter()
        .filter(|device| !is_our_device(device) && !is_added_by_libvirt(device));
    found.extend(added_devices.map(sentence));
    let rest = found.len().saturating_sub(SENTENCES_MAX);
    if rest > 0 {
        found.truncate(SENTENCES_MAX - 1);
        found.push(format!("{} more changes", rest + 1));
    }
    found
}

/// `None` for a domain that an older waifud defined, because its metadata contains no CPUs.
fn cpus(domain: &Element, metadata: &Element) -> Option<String> {
    let expected: u32 = metadata.attribute("cpus")?.parse().ok()?;
    let actual: u32 = domain.get("vcpu")?.text.trim().parse().ok()?;
    (actual != expected).then(|| changed("cpus", &actual, &expected))
}

fn memory(domain: &Element, metadata: &Element) -> Option<String> {
    let kib = |text: &str| {
        let kib: u64 = text.trim().parse().ok()?;
        Some(ByteSize(kib.checked_mul(1024)?))
    };
    let expected = kib(metadata.attribute("memory")?)?;
    let memory = domain.get("memory")?;
    // libvirt converts all units to KiB.
    if memory.attribute("unit").is_some_and(|unit| unit != "KiB") {
        return None;
    }
    let actual = kib(&memory.text)?;
    (actual != expected).then(|| changed("memory", &actual, &expected))
}

/// The sentence for a setting that differs from the spec.
pub(crate) fn changed(setting: &str, actual: &impl ToString, expected: &impl ToString) -> String {
    let (actual, expected) = (actual.to_string(), expected.to_string());
    if actual == expected {
        // Sizes are shown with one decimal.
        return format!("{setting} differs slightly from {expected}");
    }
    let is = if setting == "cpus" { "are" } else { "is" };
    format!("{setting} {is} {actual} and should be {expected}")
}

fn of_ours(change: &DeviceChange) -> String {
    match change {
        DeviceChange::Removed { device } => format!("{} was removed by hand", escaped(device)),
        DeviceChange::Changed {
            device,
            setting,
            actual,
            expected,
        } => changed(
            &format!("{} of {}", escaped(setting), escaped(device)),
            &escaped(actual),
            &escaped(expected),
        ),
    }
}

/// Whether libvirt adds such a device to waifud's domains.
fn is_added_by_libvirt(device: &Element) -> bool {
    let has = |name, value| device.attribute(name) == Some(value);
    match device.name.as_str() {
        // Added with the devices that need it.
        "controller" => true,
        "input" => has("bus", "ps2"),
        "audio" => has("type", "none"),
        // Part of the q35 chipset.
        "watchdog" => has("model", "itco"),
        _ => false,
    }
}

fn sentence(device: &Element) -> String {
    let words = match device.name.as_str() {
        "disk" => {
            let target = device.get("target").and_then(|t| t.attribute("dev"));
            let target = escaped(target.unwrap_or("without a name"));
            return match file(device) {
                Some(path) => format!("disk {target} ({}) was added by hand", escaped(path)),
                None => format!("disk {target} was added by hand"),
            };
        }
        "hostdev" => [
            device.attribute("type").map(str::to_owned),
            host_address(device),
        ],
        "interface" => {
            let mac = device.get("mac").and_then(|mac| mac.attribute("address"));
            [device.attribute("type"), mac].map(|word| word.map(str::to_owned))
        }
        _ => {
            let kind = device
                .attribute("type")
                .or_else(|| device.attribute("model"));
            let target = device
                .get("target")
                .and_then(|t| t.attribute("name").or_else(|| t.attribute("dir")));
            [kind, target.or_else(|| file(device))].map(|word| word.map(str::to_owned))
        }
    };
    let words: Vec<_> = words.iter().flatten().map(|word| escaped(word)).collect();
    added(format!("{} {}", escaped(&device.name), words.join(" ")).trim())
}

/// The sentence for a device that waifud did not add.
pub(crate) fn added(device: &str) -> String {
    format!("a device that waifud did not add: {device}")
}

/// The file or directory of the host behind a device.
fn file(device: &Element) -> Option<&str> {
    let source = device.get("source")?;
    ["file", "dev", "dir", "path"]
        .into_iter()
        .find_map(|name| source.attribute(name))
}

/// `0000:03:00.0` of a PCI device, `1050:0407` of a USB one, the UUID of a mediated one.
fn host_address(device: &Element) -> Option<String> {
    let source = device.get("source")?;
    let hex = |text: &str| text.trim_start_matches("0x").to_owned();
    let of = |element: &Element, name| element.attribute(name).map(hex);
    if let (Some(vendor), Some(product)) = (source.get("vendor"), source.get("product")) {
        return Some(format!("{}:{}", of(vendor, "id")?, of(product, "id")?));
    }
    let address = source.get("address")?;
    if let Some(uuid) = address.attribute("uuid") {
        return Some(uuid.to_owned());
    }
    let part = |name| of(address, name);
    match (part("domain"), part("slot")) {
        (Some(domain), Some(slot)) => Some(format!(
            "{domain}:{}:{slot}.{}",
            part("bus")?,
            part("function")?
        )),
        _ => Some(format!("bus {} device {}", part("bus")?, part("device")?)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::escaped::VALUE_MAX;
    use super::super::render::{render, tests::spec};
    use super::super::{RenderOptions, describe, merge};
    use super::*;
    use proptest::prelude::*;

    /// One of waifud's definitions as libvirt returns it, with additional devices and sections.
    fn edited_definition(devices: &str, sections: &str) -> String {
        let xml = render(&spec(), RenderOptions::default(), "d");
        let with = format!(
            "<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
             <controller type='usb' index='0' model='qemu-xhci'/><input type='mouse' bus='ps2'/>\
             <input type='keyboard' bus='ps2'/><audio id='1' type='none'/><watchdog model='itco' action='reset'/>\
             <console type='unix'><target type='serial' port='0'/></console>{devices}"
        );
        let xml = xml.replace("<devices>", &with);
        xml.replace(
            "<vcpu",
            &format!("<currentMemory unit='KiB'>1</currentMemory>{sections}<vcpu"),
        )
    }

    fn drift_of(xml: &str) -> Vec<String> {
        describe(xml).unwrap().drift
    }

    #[test]
    fn devices_that_libvirt_adds_are_not_drift() {
        assert_eq!(drift_of(&edited_definition("", "")), [""; 0]);
    }

    #[test]
    fn added_devices_are_described() {
        for (device, expected) in [
            (
                "<disk type='file'><source file='/srv/x.img'/><target dev='vdb'/></disk>",
                "disk vdb (/srv/x.img) was added by hand",
            ),
            (
                "<disk type='file' device='cdrom'><target dev='sda'/></disk>",
                "disk sda was added by hand",
            ),
            (
                "<disk type='network'><source protocol='https' name='x?token=secret'/><target dev='vdc'/></disk>",
                "disk vdc was added by hand",
            ),
            (
                "<hostdev type='pci'><source><address domain='0x0000' bus='0x03' slot='0x00' function='0x0'/></source></hostdev>",
                "a device that waifud did not add: hostdev pci 0000:03:00.0",
            ),
            (
                "<hostdev type='usb'><source><vendor id='0x1050'/><product id='0x0407'/></source></hostdev>",
                "a device that waifud did not add: hostdev usb 1050:0407",
            ),
            (
                "<hostdev type='usb'><source><address bus='1' device='4'/></source></hostdev>",
                "a device that waifud did not add: hostdev usb bus 1 device 4",
            ),
            (
                "<interface type='network'><mac address='52:54:00:aa:bb:cc'/></interface>",
                "a device that waifud did not add: interface network 52:54:00:aa:bb:cc",
            ),
            (
                "<sound model='ich9'/>",
                "a device that waifud did not add: sound ich9",
            ),
            (
                "<input type='tablet' bus='usb'/>",
                "a device that waifud did not add: input tablet",
            ),
            (
                "<filesystem type='mount'><source dir='/srv'/><target dir='share'/></filesystem>",
                "a device that waifud did not add: filesystem mount share",
            ),
        ] {
            assert_eq!(drift_of(&edited_definition(device, "")), [expected]);
        }
    }

    #[test]
    fn changed_settings_and_sections_are_reported_with_readable_sizes() {
        let tuned = edited_definition("", "<cputune><shares>9</shares></cputune>");
        let edited = tuned
            .replace(">1048576</memory>", ">4194304</memory>")
            .replace(">2</vcpu>", ">8</vcpu>");
        assert_eq!(
            drift_of(&edited),
            [
                "cpus are 8 and should be 2",
                "memory is 4G and should be 1G",
                "section cputune was added by hand",
            ]
        );
        let slight = tuned.replace(">1048576</memory>", ">1048580</memory>");
        assert_eq!(drift_of(&slight)[0], "memory differs slightly from 1G");
    }

    #[test]
    fn a_change_of_the_spec_resets_settings_and_keeps_added_devices() {
        let edited = edited_definition("<sound model='ich9'/>", "")
            .replace(">1048576</memory>", ">4194304</memory>");
        assert_eq!(drift_of(&edited).len(), 2);
        let mut resized = spec();
        resized.memory = ByteSize::gib(3);
        let merged = merge(&resized, RenderOptions::default(), "new", &edited).unwrap();
        assert_eq!(
            drift_of(&merged),
            ["a device that waifud did not add: sound ich9"]
        );
    }

    #[test]
    fn only_devices_are_reported_for_a_domain_without_stored_settings() {
        let foreign = "<domain type='kvm'><memory>1</memory><devices><sound model='ich9'/></devices></domain>";
        assert_eq!(drift_of(foreign), [""; 0]);
        let older = "<domain type='kvm'><metadata><w:domain xmlns:w='urn:waifud:domain:1' epoch='1' spec='a'/></metadata>\
            <memory>1</memory><vcpu>9</vcpu><devices><sound model='ich9'/></devices></domain>";
        assert_eq!(
            drift_of(older),
            ["a device that waifud did not add: sound ich9"]
        );
    }

    #[test]
    fn changes_beyond_the_limit_are_counted() {
        let all = drift_of(&edited_definition(&"<sound model='ich9'/>".repeat(40), ""));
        assert_eq!(all.len(), SENTENCES_MAX);
        assert_eq!(all.last().unwrap(), "25 more changes");
    }

    proptest! {
        #[test]
        fn sentences_are_short_and_printable_for_any_device_name(
            path in "[^\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f]{0,200}",
        ) {
            let disk = Element::new("disk")
                .child(Element::new("source").with("file", &path))
                .child(Element::new("target").with("dev", &path));
            let text = sentence(&disk);
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            prop_assert!(!text.contains(['\u{202e}', '\u{2066}', '\u{200b}']), "{text:?}");
            // An escaped character takes at most ten, for example \u{10ffff}.
            prop_assert!(text.chars().count() <= 2 * 10 * VALUE_MAX + 40);
        }
    }
}
