//! What somebody changed by hand in a domain of ours, in sentences for people. Pure.
//!
//! Devices and sections of others are kept when a domain is redefined (see `merge`), so they are said and not mended.
//! How many CPUs and how much memory waifud asked for stands in the domain's metadata, beside the digest. Names and
//! paths come from whoever edited the domain: they are cut and escaped. Where a disk on the network lies is not said,
//! for such an address can hold a password.

use waifud_types::ByteSize;

use super::ownership::{is_our_device, our_metadata};
use super::tree::Element;

/// At most so many sentences; the last one counts the rest.
const SENTENCES_MAX: usize = 16;
/// At most so many characters of a name or a path.
const VALUE_MAX: usize = 80;
/// Sections of a domain that waifud never writes and libvirt never adds by itself.
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

/// What differs between a domain's inactive XML and what waifud made of it, the settings first; empty for a domain that
/// is not ours.
pub(super) fn drift(domain: &Element) -> Vec<String> {
    let Some(mark) = our_metadata(domain) else {
        return Vec::new();
    };
    let mut found: Vec<String> = cpus(domain, mark)
        .into_iter()
        .chain(memory(domain, mark))
        .collect();
    let sections = domain.children.iter().map(|child| child.name.as_str());
    let theirs = sections.filter(|name| SECTIONS.contains(name));
    found.extend(theirs.map(|name| format!("its section {name} was added by hand")));
    let devices = domain.get("devices").map_or(&[][..], |d| &d.children);
    let theirs = devices
        .iter()
        .filter(|device| !is_our_device(device) && !is_libvirts(device));
    found.extend(theirs.map(sentence));
    let rest = found.len().saturating_sub(SENTENCES_MAX);
    if rest > 0 {
        found.truncate(SENTENCES_MAX - 1);
        found.push(format!("{} more changes", rest + 1));
    }
    found
}

/// Domains that an older waifud defined don't say what was wanted.
fn cpus(domain: &Element, mark: &Element) -> Option<String> {
    let should: u32 = mark.attribute("cpus")?.parse().ok()?;
    let has: u32 = domain.get("vcpu")?.text.trim().parse().ok()?;
    (has != should).then(|| changed("cpus", &has, &should))
}

fn memory(domain: &Element, mark: &Element) -> Option<String> {
    let kib = |text: &str| {
        let kib: u64 = text.trim().parse().ok()?;
        Some(ByteSize(kib.checked_mul(1024)?))
    };
    let should = kib(mark.attribute("memory")?)?;
    let memory = domain.get("memory")?;
    // Whatever unit was written, libvirt shows KiB.
    if memory.attribute("unit").is_some_and(|unit| unit != "KiB") {
        return None;
    }
    let has = kib(&memory.text)?;
    (has != should).then(|| changed("memory", &has, &should))
}

/// How it is said that a setting is another than was asked for.
pub(crate) fn changed(what: &str, has: &impl ToString, should: &impl ToString) -> String {
    let (has, should) = (has.to_string(), should.to_string());
    if has == should {
        // Sizes are said with one decimal.
        return format!("{what} is a little different from {should}");
    }
    let is = if what.ends_with('s') { "are" } else { "is" };
    format!("{what} {is} {has} and should be {should}")
}

/// Whether libvirt adds such a device to domains like ours by itself.
fn is_libvirts(device: &Element) -> bool {
    let has = |name, value| device.attribute(name) == Some(value);
    match device.name.as_str() {
        // They come along with the devices that need them.
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
            let target = shown(target.unwrap_or("without a name"));
            return match file(device) {
                Some(path) => format!("disk {target} ({}) was added by hand", shown(path)),
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
    let words: Vec<_> = words.iter().flatten().map(|word| shown(word)).collect();
    added(format!("{} {}", shown(&device.name), words.join(" ")).trim())
}

/// How it is said that a device is somebody else's.
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

/// Text from a domain as it may stand on a terminal: cut, and without anything that does not print.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars().take(VALUE_MAX) {
        match character {
            '\'' | '"' => shown.push(character),
            _ => shown.extend(character.escape_debug()),
        }
    }
    if text.chars().nth(VALUE_MAX).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::super::render::{render, tests::spec};
    use super::super::{RenderOptions, describe, merge};
    use super::*;
    use proptest::prelude::*;

    /// What libvirt makes of a definition of ours, with further devices and sections.
    fn lived_in(devices: &str, sections: &str) -> String {
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

    fn found(xml: &str) -> Vec<String> {
        describe(xml).unwrap().drift
    }

    #[test]
    fn what_libvirt_adds_by_itself_is_no_drift() {
        assert_eq!(found(&lived_in("", "")), [""; 0]);
    }

    #[test]
    fn devices_of_others_are_named() {
        for (device, said) in [
            (
                "<disk type='file'><source file='/srv/x.img'/><target dev='vdb'/></disk>",
                "disk vdb (/srv/x.img) was added by hand",
            ),
            (
                "<disk type='file' device='cdrom'><target dev='sda'/></disk>",
                "disk sda was added by hand",
            ),
            (
                "<disk type='network'><source protocol='https' name='x?token=geheim'/><target dev='vdc'/></disk>",
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
            assert_eq!(found(&lived_in(device, "")), [said]);
        }
    }

    #[test]
    fn settings_and_sections_that_somebody_changed_are_named_and_sizes_are_for_people() {
        let tuned = lived_in("", "<cputune><shares>9</shares></cputune>");
        let edited = tuned
            .replace(">1048576</memory>", ">4194304</memory>")
            .replace(">2</vcpu>", ">8</vcpu>");
        assert_eq!(
            found(&edited),
            [
                "cpus are 8 and should be 2",
                "memory is 4G and should be 1G",
                "its section cputune was added by hand",
            ]
        );
        let little = tuned.replace(">1048576</memory>", ">1048580</memory>");
        assert_eq!(found(&little)[0], "memory is a little different from 1G");
    }

    #[test]
    fn drift_outlives_a_change_of_the_spec_as_the_device_does_and_settings_follow_the_spec() {
        let lived_in =
            lived_in("<sound model='ich9'/>", "").replace(">1048576</memory>", ">4194304</memory>");
        assert_eq!(found(&lived_in).len(), 2);
        let mut resized = spec();
        resized.memory = ByteSize::gib(3);
        let merged = merge(&resized, RenderOptions::default(), "new", &lived_in).unwrap();
        assert_eq!(
            found(&merged),
            ["a device that waifud did not add: sound ich9"]
        );
    }

    #[test]
    fn domains_of_others_and_of_older_versions_have_nothing_that_should_be() {
        let theirs = "<domain type='kvm'><memory>1</memory><devices><sound model='ich9'/></devices></domain>";
        assert_eq!(found(theirs), [""; 0]);
        let older = "<domain type='kvm'><metadata><w:domain xmlns:w='urn:waifud:domain:1' epoch='1' spec='a'/></metadata>\
            <memory>1</memory><vcpu>9</vcpu><devices><sound model='ich9'/></devices></domain>";
        assert_eq!(
            found(older),
            ["a device that waifud did not add: sound ich9"]
        );
    }

    #[test]
    fn many_changes_are_counted() {
        let all = found(&lived_in(&"<sound model='ich9'/>".repeat(40), ""));
        assert_eq!(all.len(), SENTENCES_MAX);
        assert_eq!(all.last().unwrap(), "25 more changes");
    }

    proptest! {
        #[test]
        fn whatever_a_device_is_called_the_sentence_is_short_and_prints(
            path in "[^\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f]{0,200}",
        ) {
            let disk = Element::new("disk")
                .child(Element::new("source").with("file", &path))
                .child(Element::new("target").with("dev", &path));
            let said = sentence(&disk);
            prop_assert!(!said.chars().any(char::is_control), "{said:?}");
            prop_assert!(!said.contains(['\u{202e}', '\u{2066}', '\u{200b}']), "{said:?}");
            // An escaped character takes ten at most, as in \u{10ffff}.
            prop_assert!(said.chars().count() <= 2 * 10 * VALUE_MAX + 40);
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(shown("a\u{1b}[31m'\u{202e}"), "a\\u{1b}[31m'\\u{202e}");
        assert_eq!(shown(&"x".repeat(90)), format!("{}…", "x".repeat(80)));
    }
}
