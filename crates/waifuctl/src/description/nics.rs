//! Converts and compares nics of descriptions and requests.

use std::net::IpAddr;

use ipnet::IpNet;
use waifud_api::{CreateInstance, CreateNic};
use waifud_types::MacAddr;

use super::NicDescription;

/// The default network of a nic.
const DEFAULT: &str = "default";

/// Converts an argument of `--network` into a description.
pub fn nic(typed: &CreateNic) -> NicDescription {
    NicDescription {
        network: typed.network.clone(),
        address: typed.address.clone(),
        gateway: typed.gateway.clone(),
        vlan: typed.vlan,
        allow_addresses: typed.allow_addresses.clone(),
        mac: typed.mac,
    }
}

/// Converts nics into the fields of a request. For one nic on `default`, only its MAC address is set, for
/// compatibility.
pub(super) fn to_request(described: Vec<NicDescription>) -> (Option<MacAddr>, Vec<CreateNic>) {
    if let [nic] = described.as_slice()
        && is_plain(nic)
    {
        let address = nic.address.clone().map(|address| CreateNic {
            address: Some(address),
            ..CreateNic::default()
        });
        return (nic.mac, address.into_iter().collect());
    }
    let nics = described.into_iter().map(|nic| CreateNic {
        network: nic.network,
        address: nic.address,
        gateway: nic.gateway,
        vlan: nic.vlan,
        allow_addresses: nic.allow_addresses,
        mac: nic.mac,
    });
    (None, nics.collect())
}

fn is_plain(nic: &NicDescription) -> bool {
    nic.network.as_deref().unwrap_or(DEFAULT) == DEFAULT
        && nic.gateway.is_none()
        && nic.vlan.is_none()
        && nic.allow_addresses.is_empty()
}

/// Converts the nics of a request into descriptions.
pub(super) fn of_request(nics: &[CreateNic], mac: Option<MacAddr>) -> Vec<NicDescription> {
    let mut described: Vec<_> = nics.iter().map(nic).collect();
    if described.is_empty() && mac.is_some() {
        described.push(NicDescription::default());
    }
    if let Some(first) = described.first_mut() {
        first.mac = first.mac.or(mac);
    }
    described
}

/// Whether the instance `have` has the nics in `written`. Addresses on `default`, which waifud chooses, and absent fields
/// are ignored.
pub fn same(written: &[NicDescription], have: &CreateInstance) -> bool {
    if written.is_empty() {
        return true;
    }
    let have = of_request(&have.nics, have.mac);
    let network = |nic: &NicDescription| nic.network.clone().unwrap_or_else(|| DEFAULT.to_owned());
    let all = written.iter().zip(&have);
    written.len() == have.len()
        && all.into_iter().all(|(written, have)| {
            let chosen = network(written) == DEFAULT;
            // Without a VLAN in the description, the nic has none: it would be in another network otherwise.
            network(written) == network(have)
                && written.vlan == have.vlan
                && (written.mac.is_none() || written.mac == have.mac)
                && (chosen || written.address.is_none() || written.address == have.address)
                && (written.gateway.is_none() || written.gateway == have.gateway)
                && (written.allow_addresses.is_empty()
                    || ranges(&written.allow_addresses) == ranges(&have.allow_addresses))
        })
}

/// Parses addresses and ranges into a canonical form.
fn ranges(texts: &[String]) -> Vec<Option<IpNet>> {
    let range = |text: &String| {
        let net = text.parse::<IpNet>().ok();
        let net = net.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        net.map(|net| net.trunc())
    };
    let mut ranges: Vec<_> = texts.iter().map(range).collect();
    ranges.sort();
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nics(yaml: &str) -> Vec<NicDescription> {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn have(yaml: &str) -> CreateInstance {
        let (mac, nics) = to_request(nics(yaml));
        let json = serde_json::json!({"template": "a", "mac": mac, "nics": nics});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn nics_that_differ_from_the_description_are_detected() {
        let there = have(
            "[{network: lan, address: 192.168.1.50/24, gateway: 192.168.1.1, mac: '52:54:00:00:00:01', \
             allow_addresses: [192.168.1.200/32, 10.244.0.0/16]}, {network: default, mac: '52:54:00:00:00:02'}]",
        );
        for same_as in [
            "[]",
            "[{network: lan}, {}]",
            "[{network: lan, address: 192.168.1.50/24}, {network: default, address: 10.144.1.9}]",
            "[{network: lan, allow_addresses: [10.244.3.4/16, 192.168.1.200]}, {mac: '52:54:00:00:00:02'}]",
        ] {
            assert!(same(&nics(same_as), &there), "{same_as}");
        }
        for other in [
            "[{network: lan}]",
            "[{}, {network: lan}]",
            "[{network: lan, address: 192.168.1.51/24}, {}]",
            "[{network: lan, gateway: 192.168.1.254}, {}]",
            "[{network: lan, allow_addresses: [192.168.1.200]}, {}]",
            "[{network: lan}, {mac: '52:54:00:00:00:03'}]",
        ] {
            assert!(!same(&nics(other), &there), "{other}");
        }
        let tagged = have("[{network: lan, vlan: 20}]");
        assert_eq!(tagged.nics[0].vlan, Some(20));
        assert!(same(&nics("[{network: lan, vlan: 20}]"), &tagged));
        for other in ["[{network: lan}]", "[{network: lan, vlan: 21}]"] {
            assert!(!same(&nics(other), &tagged), "{other}");
        }
        assert!(!same(
            &nics("[{network: lan, vlan: 20}]"),
            &have("[{network: lan}]")
        ));
        // waifud adds a nic on `default` if none is described. Its description always has it.
        assert!(!same(&nics("[{}]"), &have("[]")));
        assert!(same(&nics("[{}]"), &have("[{mac: '52:54:00:00:00:01'}]")));
    }
}
