//! Nics on bridges that the host already has: their ports, and the addresses observed there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use waifud_network::{LanPort, PortObservation};
use waifud_types::TapName;
use waifud_types::status::{AddressFamily, InstanceAddress};

use crate::control_link::record::{InstanceRecord, PortNic};
use crate::network::identity::is_on_lan;
use crate::network::port_error::PortError;

/// The ports of one instance on host bridges.
pub(crate) fn ports_of(record: &InstanceRecord) -> Result<Vec<LanPort>, PortError> {
    let Some(instance) = &record.instance else {
        return Ok(Vec::new());
    };
    let port = |PortNic {
                    number,
                    nic,
                    bridge,
                    is_first,
                }: PortNic<'_>| {
        let bridge = bridge.ok_or_else(|| PortError {
            message: format!("waifud sent no bridge for network {}", nic.network),
            lasting: true,
        })?;
        let given = nic.address.map(|address| IpNet::from(IpAddr::V4(address)));
        Ok(LanPort {
            instance: instance.id,
            name: instance.name.clone(),
            tap: TapName::of(instance.id, number),
            bridge: bridge.clone(),
            vlan: nic.vlan,
            mac: nic.mac,
            given: nic.address,
            fixed: given
                .into_iter()
                .chain(nic.allow_addresses.iter().copied())
                .collect(),
            identity: record
                .memory
                .identity
                .filter(|_| is_first && nic.vlan.is_none()),
        })
    };
    let nics = record.port_nics().into_iter();
    nics.filter(|port| is_on_lan(port.nic)).map(port).collect()
}

/// Addresses that were observed at an instance's ports, without link-local ones, which other networks cannot reach. The
/// primary address is the first IPv4 address, or without one the first address.
pub(crate) fn observed(
    record: &InstanceRecord,
    observations: &BTreeMap<TapName, PortObservation>,
) -> Vec<InstanceAddress> {
    let Some(instance) = &record.instance else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (number, nic) in instance.spec.numbered_nics() {
        let observation = observations.get(&TapName::of(instance.id, number));
        let learned = observation.map_or(&[][..], |seen| seen.learned.as_slice());
        all.extend(
            learned
                .iter()
                .filter(|a| !is_link_local(**a))
                .map(|a| InstanceAddress::observed(*a, nic.network.clone())),
        );
    }
    let first = all.iter().position(|a| a.family == AddressFamily::Ipv4);
    if let Some(primary) = all.get_mut(first.unwrap_or(0)) {
        primary.primary = true;
    }
    all
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_link::record::Memory;
    use crate::fake::sample_instance;
    use crate::network::identity::{identity, needs_identity};
    use waifud_types::spec::NicSpec;

    fn record(networks: &[&str]) -> InstanceRecord {
        let mut instance = sample_instance("web");
        let nic = instance.spec.nics[0].clone();
        instance.spec.nics = networks
            .iter()
            .map(|network| NicSpec {
                network: network.parse().unwrap(),
                address: (*network == "default").then_some([10, 144, 1, 9].into()),
                ..nic.clone()
            })
            .collect();
        instance
            .bridges
            .insert("lan".parse().unwrap(), "br0".to_owned());
        InstanceRecord {
            memory: Memory {
                identity: Some([240, 119, 0, 1].into()),
                ..Memory::default()
            },
            instance: Some(instance.clone()),
            ..InstanceRecord::new(instance.id)
        }
    }

    #[test]
    fn the_first_nic_determines_the_identity() {
        let known_by = |networks: &[&str]| {
            let record = record(networks);
            identity(record.instance.as_ref().unwrap(), &record.memory)
        };
        assert_eq!(known_by(&["default", "lan"]), Some([10, 144, 1, 9].into()));
        assert_eq!(known_by(&["lan", "default"]), Some([240, 119, 0, 1].into()));
        assert_eq!(known_by(&[]), None);
        let ports = ports_of(&record(&["default", "lan"])).unwrap();
        assert_eq!((ports.len(), ports[0].identity), (1, None));
        let ports = ports_of(&record(&["lan", "lan"])).unwrap();
        assert_eq!(ports[0].identity, Some([240, 119, 0, 1].into()));
        assert_eq!(ports[1].identity, None);
    }

    #[test]
    fn a_port_in_a_vlan_has_no_identity() {
        let mut record = record(&["lan", "lan"]);
        let nics = &mut record.instance.as_mut().unwrap().spec.nics;
        nics[0].vlan = Some(20.try_into().unwrap());
        let ports = ports_of(&record).unwrap();
        assert_eq!(ports[0].vlan, Some(20.try_into().unwrap()));
        assert_eq!((ports[0].identity, ports[1].vlan), (None, None));
        let want = record.instance.as_ref().unwrap();
        assert!(!needs_identity(want));
        assert_eq!(identity(want, &record.memory), None);
    }

    #[test]
    fn assigned_addresses_are_fixed_and_a_network_without_a_bridge_is_an_error() {
        let mut given = record(&["lan"]);
        let nic = &mut given.instance.as_mut().unwrap().spec.nics[0];
        nic.address = Some([192, 168, 1, 50].into());
        nic.allow_addresses = vec!["fd00::/64".parse().unwrap()];
        let fixed: Vec<_> = ports_of(&given).unwrap()[0]
            .fixed
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(fixed, ["192.168.1.50/32", "fd00::/64"]);
        let error = ports_of(&record(&["dmz"])).unwrap_err();
        assert!(error.lasting && error.message.contains("dmz"), "{error}");
    }

    #[test]
    fn observed_addresses_exclude_link_local_ones() {
        let record = record(&["lan"]);
        let learned = ["fd00::7", "fe80::1", "192.168.1.40"];
        let observation = PortObservation {
            learned: learned.iter().map(|a| a.parse().unwrap()).collect(),
            ..PortObservation::default()
        };
        let observations = BTreeMap::from([(TapName::of(record.id, 0), observation)]);
        let seen = observed(&record, &observations);
        let shown: Vec<_> = seen
            .iter()
            .map(|a| (a.address.to_string(), a.primary))
            .collect();
        assert_eq!(
            shown,
            [
                ("fd00::7".to_owned(), false),
                ("192.168.1.40".to_owned(), true)
            ]
        );
        assert!(observed(&record, &BTreeMap::new()).is_empty());
    }
}
