//! The settings of waifud's devices that the domain's metadata repeats, so that manual changes of them are found.
//!
//! One function reads them from a rendered device and from an existing one. libvirt returns these settings as they were
//! defined; what it normalizes or adds is not compared.

use super::managed::{NAMESPACE, alias_of, our_alias};
use super::tree::Element;

/// The element of our metadata for one device.
const DEVICE: &str = "device";
/// The attribute with the device's name.
const NAME: &str = "name";
/// The name of the VNC server, which has no alias.
const SCREEN: &str = "screen";

/// A change of one of our devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum DeviceChange {
    /// The device does not exist any more.
    Removed {
        /// Its name, for example `disk-root`.
        device: String,
    },
    /// A setting has another value.
    Changed {
        device: String,
        setting: String,
        actual: String,
        expected: String,
    },
}

/// Adds the settings of the rendered devices to our metadata.
pub(super) fn record(mut metadata: Element, devices: &Element) -> Element {
    for device in &devices.children {
        let Some(name) = name(device) else { continue };
        let element = Element::new(&format!("waifud:{DEVICE}")).with(NAME, name);
        let element = settings(device)
            .into_iter()
            .fold(element, |element, (setting, value)| {
                element.with(setting, value)
            });
        metadata.children.push(element);
    }
    metadata
}

/// The differences between the devices of a domain and what its metadata says about them; none for the metadata of an older
/// waifud, which says nothing.
pub(super) fn changes(metadata: &Element, devices: &[Element]) -> Vec<DeviceChange> {
    let mut found = Vec::new();
    let recorded = metadata.children.iter().filter(|child| {
        let (_, local) = child.name.split_once(':').unwrap_or(("", &child.name));
        local == DEVICE && child.attribute("xmlns").is_none_or(|ns| ns == NAMESPACE)
    });
    for expected in recorded {
        let Some(device) = expected.attribute(NAME) else {
            continue;
        };
        let Some(actual) = devices.iter().find(|other| name(other) == Some(device)) else {
            found.push(DeviceChange::Removed {
                device: device.to_owned(),
            });
            continue;
        };
        for (setting, value) in settings(actual) {
            let Some(expected) = expected.attribute(setting) else {
                continue;
            };
            if value != expected {
                found.push(DeviceChange::Changed {
                    device: device.to_owned(),
                    setting: setting.to_owned(),
                    actual: value,
                    expected: expected.to_owned(),
                });
            }
        }
    }
    found
}

/// The name of one of our devices: its alias without the prefix. `None` for others, and for the balloon, whose alias libvirt
/// does not keep.
fn name(device: &Element) -> Option<&str> {
    match device.name.as_str() {
        "graphics" => (device.attribute("type") == Some("vnc")).then_some(SCREEN),
        // A mirror of the serial port, with the same alias.
        "memballoon" | "console" => None,
        _ => our_alias(alias_of(device)?),
    }
}

fn settings(device: &Element) -> Vec<(&'static str, String)> {
    let of = |child: &str, attribute: &str| {
        let child = device.get(child);
        child.and_then(|child| child.attribute(attribute))
    };
    let text = |value: Option<&str>| value.unwrap_or("none").to_owned();
    match device.name.as_str() {
        "interface" => {
            let kind = device.attribute("type").unwrap_or("none");
            let to = ["bridge", "network", "dev"]
                .into_iter()
                .find_map(|attribute| of("source", attribute));
            vec![
                (
                    "connection",
                    to.map_or_else(|| kind.to_owned(), |to| format!("{kind} {to}")),
                ),
                ("mac", text(of("mac", "address"))),
                ("tap", text(of("target", "dev"))),
                ("model", text(of("model", "type"))),
                (
                    "isolation",
                    of("port", "isolated").unwrap_or("no").to_owned(),
                ),
                ("link", of("link", "state").unwrap_or("up").to_owned()),
            ]
        }
        "disk" => {
            let file = ["file", "dev", "name"]
                .into_iter()
                .find_map(|attribute| of("source", attribute));
            vec![
                ("source", text(file)),
                ("format", text(of("driver", "type"))),
                ("bus", text(of("target", "bus"))),
            ]
        }
        "serial" => vec![
            ("type", text(device.attribute("type"))),
            ("socket", text(of("source", "path"))),
            ("log", text(of("log", "file"))),
        ],
        "graphics" => {
            let listens = device.get("listen");
            let socket = listens.and_then(|listen| listen.attribute("socket"));
            vec![("socket", text(socket))]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::describe;
    use super::super::render::{RenderOptions, render, tests::spec};

    fn drift_after(from: &str, to: &str) -> Vec<String> {
        let xml = render(&spec(), RenderOptions::default(), "d");
        assert!(xml.contains(from), "{from} is not in {xml}");
        describe(&xml.replacen(from, to, 1)).unwrap().drift
    }

    #[test]
    fn a_network_interface_that_was_moved_to_another_network_is_reported() {
        assert_eq!(
            drift_after("<source bridge='waifud0'/>", "<source bridge='br9'/>"),
            ["connection of nic-0 is bridge br9 and should be bridge waifud0"]
        );
        let moved = drift_after("<interface type='bridge'>", "<interface type='network'>");
        assert_eq!(
            moved,
            ["connection of nic-0 is network waifud0 and should be bridge waifud0"]
        );
    }

    #[test]
    fn changed_settings_of_waifuds_devices_are_reported() {
        for (from, to, sentence) in [
            (
                "52:54:00:12:34:56",
                "52:54:00:99:99:99",
                "mac of nic-0 is 52:54:00:99:99:99 and should be 52:54:00:12:34:56",
            ),
            (
                "<port isolated='yes'/>",
                "",
                "isolation of nic-0 is no and should be yes",
            ),
            (
                "<mtu size='1420'/>",
                "<mtu size='1420'/><link state='down'/>",
                "link of nic-0 is down and should be up",
            ),
            (
                "<serial type='unix'>",
                "<serial type='pty'>",
                "type of serial is pty and should be unix",
            ),
            (
                "socket='/run/waifud/vnc/web.sock'",
                "address='0.0.0.0'",
                "socket of screen is none and should be /run/waifud/vnc/web.sock",
            ),
            (
                "<source file='/pool/volumes/it",
                "<source file='/else/it",
                "source of disk-a-name-of-more-than-twenty-bytes is /else/it's <odd> & \"legal\" and should be \
                 /pool/volumes/it's <odd> & \"legal\"",
            ),
        ] {
            // The metadata comes first and repeats some of these values: change the devices.
            let xml = render(&spec(), RenderOptions::default(), "d");
            let (head, devices) = xml.split_once("<devices>").unwrap();
            assert!(devices.contains(from), "{from} is not in {devices}");
            let edited = format!("{head}<devices>{}", devices.replacen(from, to, 1));
            assert_eq!(describe(&edited).unwrap().drift, [sentence]);
        }
    }

    #[test]
    fn a_removed_device_is_reported() {
        assert_eq!(
            drift_after("<alias name='ua-waifud-rng'/>", ""),
            [
                "rng was removed by hand",
                "a device that waifud did not add: rng virtio"
            ]
        );
    }
}
