//! What in a domain's XML is waifud's: the element in its metadata, and its devices.
//!
//! Each of our devices has an alias that begins with `ua-waifud-`. A domain that is redefined keeps everything else.

use waifud_types::{Epoch, Name};

use super::tree::Element;

/// The namespace of our element in a domain's metadata. The number changes when its meaning does.
pub(super) const NAMESPACE: &str = "urn:waifud:domain:1";

/// The prefix of our devices' aliases; libvirt keeps aliases that begin with `ua-`.
const ALIAS: &str = "ua-waifud-";
/// The rest of the prefix of our disks' aliases.
const DISK: &str = "disk-";
/// The rest of the prefix of our nics' aliases.
const NIC: &str = "nic-";
/// The model of the controllers that devices are plugged into.
pub(super) const ROOT_PORT: &str = "pcie-root-port";

/// The element that marks a device with one of waifud's aliases.
pub(super) fn alias(name: impl std::fmt::Display) -> Element {
    Element::new("alias").with("name", format!("{ALIAS}{name}"))
}

/// The element that gives a disk its alias.
pub(super) fn disk_alias(disk: &Name) -> Element {
    alias(format_args!("{DISK}{disk}"))
}

/// The element that gives a nic its alias.
pub(super) fn nic_alias(number: usize) -> Element {
    alias(format_args!("{NIC}{number}"))
}

/// Whether a device is a nic that waifud added, by its alias.
pub(super) fn is_our_nic(device: &Element) -> bool {
    let alias = alias_of(device).and_then(our_alias);
    device.name == "interface" && alias.is_some_and(|alias| alias.starts_with(NIC))
}

/// Whether a device is a port for others.
pub(super) fn is_root_port(device: &Element) -> bool {
    device.name == "controller" && device.attribute("model") == Some(ROOT_PORT)
}

/// The alias of a device, ours or not.
pub(super) fn alias_of(device: &Element) -> Option<&str> {
    device.get("alias")?.attribute("name")
}

/// Whether a device has one of waifud's aliases.
pub(super) fn has_our_alias(device: &Element) -> bool {
    alias_of(device).is_some_and(|alias| alias.starts_with(ALIAS))
}

/// The rest of one of waifud's aliases; `None` for other aliases.
pub(super) fn our_alias(alias: &str) -> Option<&str> {
    alias.strip_prefix(ALIAS)
}

/// The name of a disk that waifud added, by its alias. `None` for other devices.
pub(super) fn our_disk(device: &Element) -> Option<Name> {
    let name = alias_of(device)?.strip_prefix(ALIAS)?.strip_prefix(DISK)?;
    name.parse().ok().filter(|_| device.name == "disk")
}

/// Whether a redefinition replaces or removes the device.
pub(super) fn is_our_device(device: &Element) -> bool {
    match device.name.as_str() {
        // Graphics have no alias. The VNC server is ours; other kinds of graphics are not.
        "graphics" => device.attribute("type") == Some("vnc"),
        // libvirt mirrors the first serial port as a console each time it parses the XML.
        "console" => device.get("target").is_some_and(|target| {
            target.attribute("type") == Some("serial")
                && target.attribute("port").unwrap_or("0") == "0"
        }),
        // A domain has one balloon; libvirt adds one if none is requested. libvirt also sets the emulator; if it were
        // kept, the path of an older QEMU would never be replaced.
        "memballoon" | "emulator" => true,
        _ => has_our_alias(device),
    }
}

/// Whether an element of a domain's metadata is ours, whatever prefix it is written with.
pub(super) fn is_our_metadata(element: &Element) -> bool {
    let prefix = match element.name.split_once(':') {
        Some((prefix, "domain")) => format!("xmlns:{prefix}"),
        None if element.name == "domain" => "xmlns".to_owned(),
        _ => return false,
    };
    element.attribute(&prefix) == Some(NAMESPACE)
}

/// Our element of a domain's metadata.
pub(super) fn our_metadata(domain: &Element) -> Option<&Element> {
    let metadata = domain.get("metadata")?;
    metadata
        .children
        .iter()
        .find(|child| is_our_metadata(child))
}

/// The epoch and the digest of the spec, from our metadata. `None` for a domain that is not ours.
pub(super) fn epoch_and_digest(domain: &Element) -> Option<(Epoch, String)> {
    let ours = our_metadata(domain)?;
    let epoch = ours.attribute("epoch")?.parse().ok()?;
    Some((Epoch(epoch), ours.attribute("spec")?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_ours_by_its_alias_or_by_its_kind() {
        for (xml, ours) in [
            ("<rng><alias name='ua-waifud-rng'/></rng>", true),
            ("<rng><alias name='ua-other'/></rng>", false),
            ("<rng/>", false),
            ("<graphics type='vnc'/>", true),
            ("<graphics type='spice'/>", false),
            ("<console><target type='serial' port='0'/></console>", true),
            ("<console><target type='virtio' port='1'/></console>", false),
            ("<memballoon model='none'/>", true),
        ] {
            assert_eq!(is_our_device(&Element::parse(xml).unwrap()), ours, "{xml}");
        }
    }

    #[test]
    fn the_alias_of_a_disk_contains_its_name() {
        let name: Name = "root".parse().unwrap();
        let disk = Element::new("disk").child(disk_alias(&name));
        assert_eq!(our_disk(&disk), Some(name.clone()));
        let seed = Element::new("disk").child(alias("seed"));
        assert_eq!(our_disk(&seed), None);
        let nic = Element::new("interface").child(disk_alias(&name));
        assert_eq!(our_disk(&nic), None);
    }
}
