//! Nics on bridges that the host already has: their ports, what stands for them towards metadatad, and the addresses
//! that were seen there.
//!
//! A guest is asked for by the address of its first nic, where that is on the routed network. On any other network its
//! address is not ours to give, so the port has an *identity*: an address of a range that only this node's rules and
//! its metadatad know. It is chosen once and kept with the record, since a running guest's documents depend on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use waifud_api::agent::AgentInstance;
use waifud_network::{IDENTITIES, LanPort, PortObservation};
use waifud_types::TapName;
use waifud_types::spec::NicSpec;
use waifud_types::status::{AddressFamily, AddressSource, InstanceAddress};

use crate::control_link::record::{InstanceRecord, Memory};
use crate::network::{DEFAULT_NETWORK, PortError};

/// Whether a nic is on a bridge of the host's own.
pub(crate) fn is_on_lan(nic: &NicSpec) -> bool {
    nic.network.as_str() != DEFAULT_NETWORK
}

/// Whether documents come through a port on a bridge of the host's own.
pub(crate) fn needs_identity(want: &AgentInstance) -> bool {
    want.spec.nics.first().is_some_and(is_on_lan)
}

/// The first address that stands for nobody yet; `None` when all do.
pub(crate) fn free_identity(taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    IDENTITIES.hosts().find(|address| !taken.contains(address))
}

/// The address that metadatad knows a guest by. Without one nobody can ask.
pub(crate) fn identity(want: &AgentInstance, memory: &Memory) -> Option<Ipv4Addr> {
    if needs_identity(want) {
        return memory.identity;
    }
    want.spec.nics.first()?.address
}

/// The ports of one instance on bridges of the host's own.
pub(crate) fn ports_of(record: &InstanceRecord) -> Result<Vec<LanPort>, PortError> {
    let Some(instance) = &record.instance else {
        return Ok(Vec::new());
    };
    let port = |(index, nic): (usize, &NicSpec)| {
        let bridge = instance
            .bridges
            .get(&nic.network)
            .ok_or_else(|| PortError {
                message: format!("waifud named no bridge for network {}", nic.network),
                lasting: true,
            })?;
        let given = nic.address.map(|address| IpNet::from(IpAddr::V4(address)));
        Ok(LanPort {
            instance: instance.id,
            name: instance.name.clone(),
            tap: TapName::of(instance.id, index),
            bridge: bridge.clone(),
            mac: nic.mac,
            given: nic.address,
            fixed: given
                .into_iter()
                .chain(nic.allow_addresses.iter().copied())
                .collect(),
            identity: record.memory.identity.filter(|_| index == 0),
        })
    };
    let nics = instance.spec.nics.iter().enumerate();
    nics.filter(|(_, nic)| is_on_lan(nic)).map(port).collect()
}

/// Addresses that were seen at an instance's ports. Link-local ones lead nowhere from elsewhere, and are left out. The
/// first of IPv4 is what people want, and without one the first at all.
pub(crate) fn observed(
    record: &InstanceRecord,
    sights: &BTreeMap<TapName, PortObservation>,
) -> Vec<InstanceAddress> {
    let Some(instance) = &record.instance else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (index, nic) in instance.spec.nics.iter().enumerate() {
        let sight = sights.get(&TapName::of(instance.id, index));
        let learned = sight.map_or(&[][..], |sight| sight.learned.as_slice());
        all.extend(
            learned
                .iter()
                .filter(|a| !is_link_local(**a))
                .map(|a| InstanceAddress {
                    address: *a,
                    family: match a {
                        IpAddr::V4(_) => AddressFamily::Ipv4,
                        IpAddr::V6(_) => AddressFamily::Ipv6,
                    },
                    network: nic.network.clone(),
                    source: AddressSource::Observed,
                    primary: false,
                }),
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
    use crate::fake::sample_instance;

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
    fn the_first_nic_says_what_a_guest_is_known_by() {
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
    fn what_was_given_needs_no_learning_and_a_network_without_a_bridge_is_said() {
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
    fn seen_addresses_are_shown_without_those_that_lead_nowhere() {
        let record = record(&["lan"]);
        let learned = ["fd00::7", "fe80::1", "192.168.1.40"];
        let sight = PortObservation {
            learned: learned.iter().map(|a| a.parse().unwrap()).collect(),
            ..PortObservation::default()
        };
        let sights = BTreeMap::from([(TapName::of(record.id, 0), sight)]);
        let seen = observed(&record, &sights);
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

    #[test]
    fn identities_are_given_once() {
        let mut taken = BTreeSet::new();
        for _ in 0..300 {
            let next = free_identity(&taken).unwrap();
            assert!(IDENTITIES.contains(&next) && taken.insert(next));
        }
    }
}
