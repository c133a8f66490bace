//! Nics of a description, of a request, and whether an instance has those that are described.

use std::net::IpAddr;

use ipnet::IpNet;
use waifud_api::{CreateInstance, CreateNic};
use waifud_types::MacAddr;

use super::NicDescription;

/// The network of a nic that names none.
const DEFAULT: &str = "default";

/// A nic as it is typed after `--network`, for a description.
pub fn nic(typed: &CreateNic) -> NicDescription {
    NicDescription {
        network: typed.network.clone(),
        address: typed.address.clone(),
        gateway: typed.gateway.clone(),
        allow_addresses: typed.allow_addresses.clone(),
        mac: typed.mac,
    }
}

/// The parts of a request that say nics. One nic on `default` is said as it always was: its MAC address by itself.
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
        allow_addresses: nic.allow_addresses,
        mac: nic.mac,
    });
    (None, nics.collect())
}

fn is_plain(nic: &NicDescription) -> bool {
    nic.network.as_deref().unwrap_or(DEFAULT) == DEFAULT
        && nic.gateway.is_none()
        && nic.allow_addresses.is_empty()
}

/// The nics that a request says.
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

/// Whether an instance that `have` describes has the nics that were `said`. An address on `default` is waifud's choice and
/// does not count; nor does what was left out.
pub fn same(said: &[NicDescription], have: &CreateInstance) -> bool {
    if said.is_empty() {
        return true;
    }
    let have = of_request(&have.nics, have.mac);
    let network = |nic: &NicDescription| nic.network.clone().unwrap_or_else(|| DEFAULT.to_owned());
    let all = said.iter().zip(&have);
    said.len() == have.len()
        && all.into_iter().all(|(said, have)| {
            let chosen = network(said) == DEFAULT;
            network(said) == network(have)
                && (said.mac.is_none() || said.mac == have.mac)
                && (chosen || said.address.is_none() || said.address == have.address)
                && (said.gateway.is_none() || said.gateway == have.gateway)
                && (said.allow_addresses.is_empty()
                    || ranges(&said.allow_addresses) == ranges(&have.allow_addresses))
        })
}

/// Addresses and ranges, however they are written.
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
    fn an_instance_has_the_nics_that_are_described_or_it_differs() {
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
        assert!(same(&nics("[{}]"), &have("[]")) || have("[]").mac.is_none());
    }
}
