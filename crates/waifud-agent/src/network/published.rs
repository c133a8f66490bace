//! Which published ports may be applied on this node: those that no program on it listens on.
//!
//! An applied port stays even if a program begins to listen on it later, so that connections are not interrupted. A refused
//! port is checked again whenever the network is applied, and is published once the program is gone.

use std::collections::BTreeSet;

use waifud_network::Port;
use waifud_types::InstanceId;
use waifud_types::spec::{Protocol, PublishSpec};

/// The last decision.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// Published.
    granted: BTreeSet<(InstanceId, PublishSpec)>,
    /// Not published, because a program listens on the port.
    refused: BTreeSet<(InstanceId, PublishSpec)>,
    /// The ports of programs could not be listed; that is why ports are refused.
    unseen: bool,
}

impl Published {
    /// Whether any port is to be published.
    pub fn is_needed(ports: &[Port]) -> bool {
        ports.iter().any(|port| !port.publish.is_empty())
    }

    /// Decides for every port to be published.
    pub fn decide(&mut self, ports: &[Port], listeners: &BTreeSet<(Protocol, u16)>) {
        let wanted = ports.iter().flat_map(|port| {
            let published = port.publish.iter();
            published.map(|published| (port.instance, published.clone()))
        });
        let (granted, refused) = wanted.partition(|wanted| {
            let (_, published) = wanted;
            self.granted.contains(wanted)
                || !listeners.contains(&(published.protocol, published.port))
        });
        self.granted = granted;
        self.refused = refused;
        self.unseen = false;
    }

    /// Decides while the ports of programs are unknown: only published ports stay published.
    pub fn decide_unseen(&mut self, ports: &[Port]) {
        let all = ports.iter().flat_map(|port| &port.publish);
        let listeners = all.map(|published| (published.protocol, published.port));
        self.decide(ports, &listeners.collect());
        self.unseen = true;
    }

    /// Whether the ports of programs are unknown.
    pub fn is_unseen(&self) -> bool {
        self.unseen
    }

    /// Removes refused ports.
    pub fn leave_out(&self, ports: &mut [Port]) {
        for port in ports {
            let id = port.instance;
            let refused = |published: &PublishSpec| self.refused.contains(&(id, published.clone()));
            port.publish.retain(|published| !refused(published));
        }
    }

    /// The refused ports of one instance.
    pub fn refused_of(&self, id: InstanceId) -> Vec<PublishSpec> {
        let of = self.refused.iter().filter(|(owner, _)| *owner == id);
        of.map(|(_, published)| published.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_link::record::InstanceRecord;
    use crate::fake::sample_instance;
    use crate::network::ports::ports_of;

    fn publishing(ports: &[u16]) -> (InstanceId, Vec<Port>) {
        let mut instance = sample_instance("web");
        instance.spec.publish = ports
            .iter()
            .map(|port| PublishSpec {
                port: *port,
                guest_port: 80,
                protocol: Protocol::Tcp,
            })
            .collect();
        let record = InstanceRecord {
            instance: Some(instance.clone()),
            ..InstanceRecord::new(instance.id)
        };
        (instance.id, ports_of(&record).unwrap())
    }

    #[test]
    fn a_port_taken_by_a_program_is_refused_until_the_program_is_gone() {
        let (id, ports) = publishing(&[80, 443]);
        let mut published = Published::default();
        let listens = BTreeSet::from([(Protocol::Tcp, 80), (Protocol::Udp, 443)]);
        published.decide(&ports, &listens);
        let mut left = ports.clone();
        published.leave_out(&mut left);
        assert_eq!(left[0].publish, ports[0].publish[1..]);
        assert_eq!(published.refused_of(id), ports[0].publish[..1]);

        published.decide(&ports, &BTreeSet::new());
        assert!(published.refused_of(id).is_empty());
    }

    #[test]
    fn while_listeners_are_unknown_only_published_ports_stay() {
        let (id, ports) = publishing(&[80]);
        let (other, more) = publishing(&[443]);
        let mut published = Published::default();
        published.decide(&ports, &BTreeSet::new());
        let both = [ports, more].concat();
        published.decide_unseen(&both);
        assert!(published.refused_of(id).is_empty());
        assert_eq!(published.refused_of(other).len(), 1);
        published.decide(&both, &BTreeSet::new());
        assert!(published.refused_of(other).is_empty());
    }

    #[test]
    fn a_published_port_stays_when_a_program_listens_later() {
        let (id, ports) = publishing(&[80]);
        let mut published = Published::default();
        published.decide(&ports, &BTreeSet::new());
        published.decide(&ports, &BTreeSet::from([(Protocol::Tcp, 80)]));
        assert!(published.refused_of(id).is_empty());
        // Once unpublished, it is checked like any other port.
        published.decide(&[], &BTreeSet::new());
        published.decide(&ports, &BTreeSet::from([(Protocol::Tcp, 80)]));
        assert_eq!(published.refused_of(id).len(), 1);
    }
}
