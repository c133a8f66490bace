//! Changes the published ports of an instance and waits until its node has applied them.
//!
//! The list is read, changed and sent back with its generation, so that concurrent changes are not lost. Then the instance
//! is polled until the node has applied the ports: only the node knows whether a program listens there.

use waifud_api::{Instance, Publish, UpdateInstance};

use crate::concurrent_change::{change_present, until_observed};
use crate::context::Context;
use crate::failure::Failure;

/// The result of a change.
pub struct Changed {
    pub instance: Instance,
    /// The previous entry of the port.
    pub before: Option<Publish>,
}

/// Removes the port from the list and returns it.
pub fn take(ports: &mut Vec<Publish>, wanted: &Publish) -> Option<Publish> {
    let index = ports.iter().position(|port| key(port) == key(wanted))?;
    Some(ports.remove(index))
}

/// The identity of a published port.
pub fn key(port: &Publish) -> (u16, waifud_types::spec::Protocol) {
    (port.port, port.protocol)
}

/// Edits the list of published ports.
pub async fn change(
    context: &Context,
    name: &str,
    edit: impl Fn(&mut Vec<Publish>) -> Result<Option<Publish>, Failure>,
) -> Result<Changed, Failure> {
    change_present(context, name, async |instance| {
        let before: Vec<Publish> = instance.spec.publish.iter().map(Publish::from).collect();
        let mut ports = before.clone();
        let taken = edit(&mut ports)?;
        for port in &mut ports {
            port.guest_port.get_or_insert(port.port);
        }
        let instance = if ports == before {
            instance
        } else {
            let change = UpdateInstance {
                publish: Some(ports),
                ..UpdateInstance::default()
            };
            let generation = Some(instance.generation);
            let changed = context.client.update_instance(name, &change, generation);
            changed.await?
        };
        Ok(Changed {
            instance,
            before: taken,
        })
    })
    .await
}

/// Waits until the node has applied the ports or is unreachable.
pub async fn until_applied(context: &Context, instance: Instance) -> Result<Instance, Failure> {
    until_observed(context, instance, is_applied).await
}

/// Whether the node has applied the ports as far as possible.
pub fn is_applied(instance: &Instance) -> bool {
    let mut conditions = instance.status.conditions.iter();
    let decided = conditions
        .any(|condition| condition.kind == "published" && condition.reason != "not-in-force");
    decided || instance.spec.publish.is_empty()
}

#[cfg(test)]
pub mod tests {
    use waifud_types::spec::Protocol;

    use super::*;

    pub fn port(port: u16, guest_port: u16, protocol: Protocol) -> Publish {
        Publish {
            port,
            guest_port: Some(guest_port),
            protocol,
        }
    }

    #[test]
    fn a_port_is_removed_by_number_and_protocol() {
        let mut ports = vec![
            port(2222, 22, Protocol::Tcp),
            port(53, 53, Protocol::Udp),
            port(53, 5353, Protocol::Tcp),
        ];
        let wanted = port(2222, 80, Protocol::Tcp);
        assert_eq!(
            take(&mut ports, &wanted),
            Some(port(2222, 22, Protocol::Tcp))
        );
        assert_eq!(take(&mut ports, &wanted), None);
        let udp = port(53, 1, Protocol::Udp);
        assert_eq!(take(&mut ports, &udp), Some(port(53, 53, Protocol::Udp)));
        assert_eq!(ports, [port(53, 5353, Protocol::Tcp)]);
    }
}
