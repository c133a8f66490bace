//! Which ports the network should have: computed from every record, without the ports that contradict another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use waifud_network::{LanPort, NetworkState, Port, check};
use waifud_types::{InstanceId, TapName};

use crate::control_link::record::{InstanceRecord, PortNic};
use crate::network::firewall;
use crate::network::identity::is_on_lan;
use crate::network::lan;
use crate::network::port_error::PortError;

/// The ports of one instance on the routed network. An instance with only a tombstone has none.
pub fn ports_of(record: &InstanceRecord) -> Result<Vec<Port>, PortError> {
    let Some(instance) = &record.instance else {
        return Ok(Vec::new());
    };
    let port = |PortNic {
                    number,
                    nic,
                    is_first,
                    ..
                }: PortNic<'_>| {
        Ok(Port {
            instance: instance.id,
            name: instance.name.clone(),
            tap: TapName::of(instance.id, number),
            mac: nic.mac,
            address: nic.address.ok_or_else(|| PortError {
                message: format!("waifud has not assigned an address to nic {} yet", nic.name),
                lasting: false,
            })?,
            home: instance.home,
            allow_addresses: nic.allow_addresses.clone(),
            publish: if is_first {
                instance.spec.publish.clone()
            } else {
                Vec::new()
            },
            firewall: firewall::of(instance),
        })
    };
    let nics = record.port_nics().into_iter();
    nics.filter(|port| !is_on_lan(port.nic)).map(port).collect()
}

/// The addresses of instances on this node. What other nodes say of these addresses is outdated.
pub(crate) fn local_addresses(records: &[InstanceRecord]) -> BTreeSet<Ipv4Addr> {
    let here = records
        .iter()
        .filter(|record| !record.destroyed && !record.is_given_up());
    let ports = here.filter_map(|record| ports_of(record).ok()).flatten();
    ports.map(|port| port.address).collect()
}

/// The state with every port that is possible. Of two conflicting ports, the one that is already applied stays, and the
/// other one waits. A conflict must not affect the network of other instances.
pub(super) fn choose_ports(
    mut state: NetworkState,
    records: &[InstanceRecord],
    released: &BTreeSet<InstanceId>,
    in_force: &BTreeSet<TapName>,
) -> (NetworkState, BTreeMap<InstanceId, String>) {
    let here = || {
        let records = records.iter();
        records.filter(|record| {
            !record.destroyed && !record.is_given_up() && !released.contains(&record.id)
        })
    };
    let mut wanted: Vec<Port> = here()
        .filter_map(|record| ports_of(record).ok())
        .flatten()
        .collect();
    wanted.sort_by_key(|port| (!in_force.contains(&port.tap), port.instance));
    let mut lan: Vec<LanPort> = here()
        .filter_map(|record| lan::ports_of(record).ok())
        .flatten()
        .collect();
    lan.sort_by_key(|port| (!in_force.contains(&port.tap), port.instance));
    let mut conflicts = BTreeMap::new();
    state.ports.clone_from(&wanted);
    state.lan.clone_from(&lan);
    if check(&state).is_err() {
        state.ports.clear();
        state.lan.clear();
        add_possible(&mut state, wanted, |state| &mut state.ports, &mut conflicts);
        add_possible(&mut state, lan, |state| &mut state.lan, &mut conflicts);
    }
    state
        .ports
        .sort_by_key(|port| (port.instance, port.tap.clone()));
    state
        .lan
        .sort_by_key(|port| (port.instance, port.tap.clone()));
    (state, conflicts)
}

/// Adds each of `ports` with which the state stays valid, and records why the others are left out.
fn add_possible<P: OfInstance>(
    state: &mut NetworkState,
    ports: Vec<P>,
    list: fn(&mut NetworkState) -> &mut Vec<P>,
    conflicts: &mut BTreeMap<InstanceId, String>,
) {
    for port in ports {
        let id = port.instance();
        list(state).push(port);
        if let Err(error) = check(state) {
            conflicts.insert(id, error.to_string());
            list(state).pop();
        }
    }
}

trait OfInstance {
    fn instance(&self) -> InstanceId;
}

impl OfInstance for Port {
    fn instance(&self) -> InstanceId {
        self.instance
    }
}

impl OfInstance for LanPort {
    fn instance(&self) -> InstanceId {
        self.instance
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_link::record::ReleaseRecord;

    fn empty() -> NetworkState {
        NetworkState {
            bridge: "waifu0".to_owned(),
            subnet: "10.144.1.0/24".parse().unwrap(),
            gateway: [10, 144, 1, 1].into(),
            gateway_mac: waifud_types::MacAddr::of_guest([0, 0, 1]),
            metadata_interface: "wfmeta0".to_owned(),
            mtu: 1420,
            domain: "waifu.internal".to_owned(),
            ports: Vec::new(),
            lan: Vec::new(),
            refuse_reports: false,
            remote_subnets: Vec::new(),
            remote_names: [].into(),
        }
    }

    fn nic(record: &mut InstanceRecord) -> &mut waifud_types::spec::NicSpec {
        &mut record.instance.as_mut().unwrap().spec.nics[0]
    }

    #[test]
    fn of_two_ports_with_the_same_address_the_applied_one_is_kept() {
        let (mut a, mut b) = (InstanceRecord::sample("a"), InstanceRecord::sample("b"));
        nic(&mut b).address = nic(&mut a).address;
        let in_force = BTreeSet::from([TapName::of(b.id, 0)]);
        let records = [a.clone(), b.clone()];
        let (state, conflicts) = choose_ports(empty(), &records, &BTreeSet::new(), &in_force);
        assert_eq!(state.ports.len(), 1);
        assert_eq!(state.ports[0].instance, b.id);
        assert!(conflicts.contains_key(&a.id) && !conflicts.contains_key(&b.id));
    }

    #[test]
    fn only_a_first_nic_on_default_publishes_ports_and_every_nic_on_default_has_the_name() {
        let publish = waifud_types::spec::PublishSpec {
            port: 8080,
            guest_port: 80,
            protocol: waifud_types::spec::Protocol::Tcp,
        };
        let of = |networks: [&str; 2]| {
            let mut record = InstanceRecord::sample("web");
            let instance = record.instance.as_mut().unwrap();
            instance.spec.publish = vec![publish.clone()];
            let first = instance.spec.nics[0].clone();
            instance.spec.nics = networks
                .map(|network| waifud_types::spec::NicSpec {
                    network: network.parse().unwrap(),
                    ..first.clone()
                })
                .into();
            let ports = ports_of(&record).unwrap().into_iter();
            let ports = ports.map(|port| (port.name.to_string(), port.publish.len()));
            ports.collect::<Vec<_>>()
        };
        assert_eq!(of(["lan", "default"]), [("web".to_owned(), 0)]);
        assert_eq!(of(["default", "lan"]), [("web".to_owned(), 1)]);
        assert_eq!(of(["lan", "lan"]), []);
    }

    #[test]
    fn an_impossible_port_does_not_affect_others() {
        let (mut a, mut b, c) = (
            InstanceRecord::sample("a"),
            InstanceRecord::sample("b"),
            InstanceRecord::sample("c"),
        );
        nic(&mut a).address = Some([192, 168, 0, 1].into());
        nic(&mut b).mac = empty().gateway_mac;
        let records = [a.clone(), b.clone(), c.clone()];
        let (state, conflicts) =
            choose_ports(empty(), &records, &BTreeSet::new(), &BTreeSet::new());
        assert_eq!(state.ports.len(), 1);
        assert_eq!(state.ports[0].instance, c.id);
        assert_eq!(conflicts.len(), 2, "{conflicts:?}");
    }

    #[test]
    fn an_impossible_port_on_a_lan_does_not_affect_others() {
        let (mut a, mut b, c) = (
            InstanceRecord::sample("a"),
            InstanceRecord::sample("b"),
            InstanceRecord::sample("c"),
        );
        for record in [&mut a, &mut b] {
            nic(record).network = "lan".parse().unwrap();
            nic(record).address = None;
            let bridges = &mut record.instance.as_mut().unwrap().bridges;
            bridges.insert("lan".parse().unwrap(), "br0".to_owned());
        }
        nic(&mut b).mac = c.instance.as_ref().unwrap().spec.nics[0].mac;
        let records = [a.clone(), b.clone(), c.clone()];
        let (state, conflicts) =
            choose_ports(empty(), &records, &BTreeSet::new(), &BTreeSet::new());
        assert_eq!((state.ports.len(), state.lan.len()), (1, 1));
        assert_eq!(state.lan[0].instance, a.id);
        assert_eq!(conflicts.keys().collect::<Vec<_>>(), [&b.id]);
    }

    #[test]
    fn a_released_instance_has_no_port() {
        let mut given_up = InstanceRecord::sample("a");
        let release = waifud_api::agent::Release {
            instance: given_up.id,
            epoch: waifud_types::Epoch::FIRST,
            stop: true,
        };
        for (completed, ports) in [(false, 1), (true, 0)] {
            given_up.release = Some(ReleaseRecord {
                release,
                completed,
                in_slice: Some(true),
            });
            let records = [given_up.clone()];
            let none = BTreeSet::new();
            let (state, _) = choose_ports(empty(), &records, &none, &BTreeSet::new());
            assert_eq!(state.ports.len(), ports, "completed: {completed}");
        }
    }

    #[test]
    fn released_and_destroyed_instances_have_no_port_and_those_outside_the_slice_keep_it() {
        let (mut left, released, mut destroyed) = (
            InstanceRecord::sample("a"),
            InstanceRecord::sample("b"),
            InstanceRecord::sample("c"),
        );
        left.managed = false;
        destroyed.destroyed = true;
        let (state, _) = choose_ports(
            empty(),
            &[left.clone(), released.clone(), destroyed],
            &BTreeSet::from([released.id]),
            &BTreeSet::new(),
        );
        assert_eq!(state.ports.len(), 1);
        assert_eq!(state.ports[0].instance, left.id);
    }
}
