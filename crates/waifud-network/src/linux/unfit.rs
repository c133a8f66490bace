//! Links that look like bridges for guests but cannot be used, and why.
//!
//! An access point accepts only frames with the wireless station's own MAC address (IEEE 802.11-2020, 9.3.2: a frame to the
//! distribution system has one source address), so guests behind a wireless uplink receive no answers.

use std::collections::BTreeMap;
use std::path::Path;

use super::links::Links;

/// The links of this network namespace.
const LINKS: &str = "/sys/class/net";

/// Why links cannot carry guests, by name. Links that cannot be read are left out.
pub(super) fn unfit(links: &Links) -> BTreeMap<String, String> {
    let wireless = |name: &str| is_wireless(Path::new(LINKS), name);
    let mut unfit = BTreeMap::new();
    for (name, ports) in links.bridges_with_ports() {
        if let Some(why) = judge(&ports, wireless) {
            unfit.insert(name, why);
        }
    }
    for name in links.others() {
        if wireless(&name) {
            unfit.insert(
                name,
                "is a wireless interface, not a bridge, and can only use its own MAC address"
                    .to_owned(),
            );
        }
    }
    unfit
}

/// A bridge whose uplinks are all wireless cannot carry guests. Taps and veth pairs are not uplinks.
fn judge(ports: &[String], wireless: impl Fn(&str) -> bool) -> Option<String> {
    let leads_out = |name: &&String| {
        let inner = ["tap", "veth", "vnet", waifud_types::TapName::PREFIX];
        !inner.iter().any(|prefix| name.starts_with(prefix))
    };
    let out: Vec<&String> = ports.iter().filter(leads_out).collect();
    if out.is_empty() || !out.iter().all(|name| wireless(name)) {
        return None;
    }
    let names: Vec<&str> = out.iter().map(|name| name.as_str()).collect();
    Some(format!(
        "has no uplink except {}, which is wireless and accepts only its own MAC address",
        names.join(" and ")
    ))
}

fn is_wireless(links: &Path, name: &str) -> bool {
    // The kernel does not allow slashes in link names.
    links.join(name).join("phy80211").exists() || links.join(name).join("wireless").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ports: &[&str]) -> Option<String> {
        let ports: Vec<_> = ports.iter().map(|&name| name.to_owned()).collect();
        judge(&ports, |name| name.starts_with("wl"))
    }

    #[test]
    fn a_bridge_with_only_wireless_uplinks_is_unfit() {
        assert!(of(&["wlan0"]).unwrap().contains("wlan0"));
        assert!(of(&["wlan0", "wf-00000001", "vnet3"]).is_some());
        for fine in [
            &[][..],
            &["eth0"],
            &["eth0", "wlan0"],
            &["wf-00000001"],
            &["veth1"],
        ] {
            assert_eq!(of(fine), None, "{fine:?}");
        }
    }

    #[test]
    fn a_wireless_link_has_a_radio_in_sysfs() {
        let dir = tempfile::tempdir().unwrap();
        for made in ["wlp3s0/phy80211", "ath0/wireless", "eth0/queues"] {
            std::fs::create_dir_all(dir.path().join(made)).unwrap();
        }
        assert!(is_wireless(dir.path(), "wlp3s0") && is_wireless(dir.path(), "ath0"));
        assert!(!is_wireless(dir.path(), "eth0") && !is_wireless(dir.path(), "none"));
    }
}
