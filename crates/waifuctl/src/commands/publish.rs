//! `waifuctl publish` and `unpublish`: ports of the node that lead to a guest.
//!
//! The list is read, changed and sent back with its generation, so that two who change it at once lose nothing. Then
//! it is asked until the node has taken it up: only the node knows whether a program listens there.

use std::time::{Duration, Instant};

use waifud_api::client::ClientError;
use waifud_api::{Instance, Publish, UpdateInstance};
use waifud_types::InstanceState;

use crate::cli::{PublishArgs, UnpublishArgs};
use crate::context::Context;
use crate::failure::Failure;
use crate::network_args::outside;
use crate::text::escape;

/// How often a change that somebody else overtook is tried.
const TRIES: u32 = 5;

/// A node that is at work takes up a change in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks: the first is soon, later ones are rarer.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Adds a port, or changes where it leads.
pub async fn publish(context: &Context, args: PublishArgs) -> Result<(), Failure> {
    let wanted = args.port;
    let Changed {
        instance,
        before: replaced,
    } = change(context, &args.name, |ports| {
        let before = take(ports, &wanted);
        ports.push(wanted.clone());
        Ok(before)
    })
    .await?;
    let guest_port = |port: &Publish| port.guest_port.unwrap_or(port.port);
    let replaced = replaced.filter(|before| guest_port(before) != guest_port(&wanted));
    let instance = taken_up(context, instance).await?;
    let spec = instance.spec.publish.iter();
    let shown = spec
        .clone()
        .find(|port| key(&Publish::from(*port)) == key(&wanted));
    let trouble = instance.status.conditions.iter();
    let mut trouble = trouble.filter(|condition| condition.kind == "published" && !condition.ok);
    if let Some(condition) = trouble.find(|condition| condition.reason == "port-taken") {
        return Err(Failure::input("port-taken", escape(&condition.message))
            .field("PORT")
            .hint(format!(
                "stop that program, and the port is published by itself; or waifuctl unpublish {} {}",
                instance.name,
                shown.map_or_else(String::new, outside)
            )));
    }
    context.printer.print(&instance, || {
        let port = shown.map_or_else(String::new, ToString::to_string);
        let instead = replaced.map_or_else(String::new, |before| {
            format!(", no longer to its port {}", guest_port(&before))
        });
        match (&instance.status.node, up(&instance)) {
            (Some(node), true) => format!(
                "{}: {port} of {node} leads to it{instead}, at every address of {node}",
                instance.name
            ),
            (Some(node), false) => {
                format!(
                    "{}: {port} will lead to it once {node} is there",
                    instance.name
                )
            }
            (None, _) => format!(
                "{}: {port} will lead to it once it has a node",
                instance.name
            ),
        }
    })
}

/// Takes a port away.
pub async fn unpublish(context: &Context, args: UnpublishArgs) -> Result<(), Failure> {
    let wanted = args.port;
    let name = &args.name;
    let Changed { instance, .. } = change(context, name, |ports| {
        if wanted.guest_port.is_some() {
            return Err(
                Failure::input("invalid-port", "only the node's port is wanted")
                    .field("PORT")
                    .hint("waifuctl unpublish NAME PORT, or PORT/udp"),
            );
        }
        match take(ports, &wanted) {
            Some(before) => Ok(Some(before)),
            None => Err(not_published(name, &wanted, ports)),
        }
    })
    .await?;
    let instance = taken_up(context, instance).await?;
    context.printer.print(&instance, || {
        let port = wanted.port;
        let protocol = wanted.protocol.as_str();
        format!("{}: {port}/{protocol} no longer leads to it", instance.name)
    })
}

/// That there is nothing to take away, and what there is.
fn not_published(name: &str, wanted: &Publish, ports: &[Publish]) -> Failure {
    let shown = |port: &Publish| format!("{}/{}", port.port, port.protocol.as_str());
    let published: Vec<_> = ports.iter().map(shown).collect();
    let hint = if published.is_empty() {
        format!("it publishes no port; waifuctl show {name}")
    } else {
        format!("it publishes {}", published.join(", "))
    };
    Failure::input(
        "not-published",
        format!("{name} does not publish {}", shown(wanted)),
    )
    .field("PORT")
    .hint(hint)
}

/// Takes the port out of the list, and says what it led to.
fn take(ports: &mut Vec<Publish>, wanted: &Publish) -> Option<Publish> {
    let index = ports.iter().position(|port| key(port) == key(wanted))?;
    Some(ports.remove(index))
}

/// What makes a port one port.
fn key(port: &Publish) -> (u16, waifud_types::spec::Protocol) {
    (port.port, port.protocol)
}

/// What came of a change.
struct Changed {
    instance: Instance,
    /// What the port was before it.
    before: Option<Publish>,
}

async fn change(
    context: &Context,
    name: &str,
    edit: impl Fn(&mut Vec<Publish>) -> Result<Option<Publish>, Failure>,
) -> Result<Changed, Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        let instance = context.client.instance(name).await?;
        let before: Vec<Publish> = instance.spec.publish.iter().map(Publish::from).collect();
        let mut ports = before.clone();
        let taken = edit(&mut ports)?;
        for port in &mut ports {
            port.guest_port.get_or_insert(port.port);
        }
        if ports == before {
            return Ok(Changed {
                instance,
                before: taken,
            });
        }
        let change = UpdateInstance {
            publish: Some(ports),
            ..UpdateInstance::default()
        };
        let generation = Some(instance.generation);
        match context
            .client
            .update_instance(name, &change, generation)
            .await
        {
            Err(ClientError::Problem(problem)) if problem.status == 412 && tries < TRIES => {}
            outcome => {
                return Ok(Changed {
                    instance: outcome?,
                    before: taken,
                });
            }
        }
    }
}

/// Waits until the node has taken up what the instance's ports are, or is not there to do it.
async fn taken_up(context: &Context, mut instance: Instance) -> Result<Instance, Failure> {
    let generation = instance.generation;
    let id = instance.id.to_string();
    let deadline = Instant::now() + PATIENCE;
    let mut pause = PAUSES.0;
    loop {
        let status = &instance.status;
        let reachable = status.node.is_some() && status.state != InstanceState::Unknown;
        let taken_up = status.observed_generation >= Some(generation) && up(&instance);
        if taken_up || !reachable || Instant::now() >= deadline {
            return Ok(instance);
        }
        tokio::time::sleep(pause).await;
        pause = PAUSES.1.min(pause * 2);
        instance = context.client.instance(&id).await?;
    }
}

/// Whether the node has put the ports in force as far as it could.
fn up(instance: &Instance) -> bool {
    let mut conditions = instance.status.conditions.iter();
    let decided = conditions
        .any(|condition| condition.kind == "published" && condition.reason != "not-in-force");
    decided || instance.spec.publish.is_empty()
}

#[cfg(test)]
mod tests {
    use waifud_types::spec::Protocol;

    use super::*;

    fn port(port: u16, guest_port: u16, protocol: Protocol) -> Publish {
        Publish {
            port,
            guest_port: Some(guest_port),
            protocol,
        }
    }

    #[test]
    fn a_port_is_taken_by_number_and_protocol_and_what_it_led_to_is_known() {
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

    #[test]
    fn a_port_that_is_not_published_is_an_error_that_names_those_that_are() {
        let wanted = port(99, 99, Protocol::Tcp);
        let ports = [port(2222, 22, Protocol::Tcp), port(53, 53, Protocol::Udp)];
        let shown = format!("{:?}", not_published("web", &wanted, &ports));
        assert!(shown.contains("web does not publish 99/tcp"), "{shown}");
        assert!(shown.contains("it publishes 2222/tcp, 53/udp"), "{shown}");
        let shown = format!("{:?}", not_published("web", &wanted, &[]));
        assert!(shown.contains("it publishes no port"), "{shown}");
    }
}
