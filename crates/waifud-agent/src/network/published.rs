//! Which published ports may be in force on this node: those that no program of it listens on.
//!
//! One that is in force stays so, whoever begins to listen later: connections are not cut because somebody tries a
//! port. One that was refused is asked about again whenever the network is put right, so it comes into force by itself
//! once the program is gone.

use std::collections::BTreeSet;

use waifud_network::Port;
use waifud_types::InstanceId;
use waifud_types::spec::{Protocol, PublishSpec};

/// What was decided last.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// In force, as far as it is for us to decide.
    granted: BTreeSet<(InstanceId, PublishSpec)>,
    /// Taken by a program.
    refused: BTreeSet<(InstanceId, PublishSpec)>,
    /// It could not be found out what programs listen on; what is refused is so for that reason.
    unseen: bool,
}

impl Published {
    /// Whether there is anything to decide.
    pub fn asks(ports: &[Port]) -> bool {
        ports.iter().any(|port| !port.publish.is_empty())
    }

    /// Decides about everything that the ports publish.
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

    /// The same while it is not known what programs listen on: only what is in force already stays so.
    pub fn decide_unseen(&mut self, ports: &[Port]) {
        let all = ports.iter().flat_map(|port| &port.publish);
        let listeners = all.map(|published| (published.protocol, published.port));
        self.decide(ports, &listeners.collect());
        self.unseen = true;
    }

    /// Whether it is unknown what programs listen on.
    pub fn is_unseen(&self) -> bool {
        self.unseen
    }

    /// Takes what is refused out of the ports.
    pub fn leave_out(&self, ports: &mut [Port]) {
        for port in ports {
            let id = port.instance;
            let refused = |published: &PublishSpec| self.refused.contains(&(id, published.clone()));
            port.publish.retain(|published| !refused(published));
        }
    }

    /// What is refused of one instance.
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
    use crate::network::ports_of;

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
    fn a_port_that_a_program_has_is_left_out_until_the_program_is_gone() {
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
    fn as_long_as_listeners_are_unknown_only_what_is_in_force_stays() {
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
    fn a_port_in_force_stays_whoever_listens_later() {
        let (id, ports) = publishing(&[80]);
        let mut published = Published::default();
        published.decide(&ports, &BTreeSet::new());
        published.decide(&ports, &BTreeSet::from([(Protocol::Tcp, 80)]));
        assert!(published.refused_of(id).is_empty());
        // Once it was given up it is a port like any other.
        published.decide(&[], &BTreeSet::new());
        published.decide(&ports, &BTreeSet::from([(Protocol::Tcp, 80)]));
        assert_eq!(published.refused_of(id).len(), 1);
    }
}
