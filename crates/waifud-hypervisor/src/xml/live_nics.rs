//! The nics that waifud gave to a running domain, and whether a definition has one.

use waifud_types::MacAddr;

use super::managed::is_our_nic;
use super::tree::{Element, XmlError};

/// A nic that waifud gave to a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LiveNicDevice {
    /// The port on the node.
    pub tap: String,
    /// The guest's MAC address.
    pub mac: MacAddr,
    /// The device as libvirt returned it, to name it in a request.
    pub xml: String,
}

/// The nics of waifud in a domain's XML. Nics that others added are left out.
pub fn live_nics(xml: &str) -> Result<Vec<LiveNicDevice>, XmlError> {
    let domain = Element::parse(xml)?;
    let devices = domain.get("devices").map_or(&[][..], |d| &d.children);
    let nics = devices.iter().filter(|device| is_our_nic(device));
    Ok(nics.filter_map(device).collect())
}

/// Whether a domain's XML has a nic with this MAC address, also one that an administrator added.
pub fn has_nic(xml: &str, mac: MacAddr) -> Result<bool, XmlError> {
    let domain = Element::parse(xml)?;
    let devices = domain.get("devices").map_or(&[][..], |d| &d.children);
    let mut nics = devices.iter().filter(|device| device.name == "interface");
    Ok(nics.any(|nic| mac_of(nic) == Some(mac)))
}

fn device(nic: &Element) -> Option<LiveNicDevice> {
    Some(LiveNicDevice {
        tap: nic.get("target")?.attribute("dev")?.to_owned(),
        mac: mac_of(nic)?,
        xml: nic.write(),
    })
}

fn mac_of(nic: &Element) -> Option<MacAddr> {
    nic.get("mac")?.attribute("address")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::render::tests::spec;
    use super::super::{RenderOptions, render};
    use super::*;

    #[test]
    fn nics_of_waifud_are_found_and_those_of_others_are_not_touched() {
        let theirs = "<devices><interface type='bridge'><mac address='52:54:00:aa:bb:cc'/><target dev='vnet0'/>\
            <alias name='ua-other'/></interface>";
        let xml = render(&spec(), RenderOptions::default(), "d").replace("<devices>", theirs);
        let nic = &spec().nics[0];
        let found = live_nics(&xml).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].tap.as_str(), found[0].mac),
            (nic.tap.as_str(), nic.mac)
        );
        // libvirt refuses an interface without its source.
        assert!(
            found[0].xml.contains("<source bridge='waifud0'/>"),
            "{}",
            found[0].xml
        );
        assert!(has_nic(&xml, nic.mac).unwrap());
        assert!(has_nic(&xml, "52:54:00:AA:BB:CC".parse().unwrap()).unwrap());
        assert!(!has_nic(&xml, "52:54:00:aa:bb:cd".parse().unwrap()).unwrap());
    }
}
