//! `waifuctl unpublish`

use waifud_api::Publish;

use crate::cli::UnpublishArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::published_ports::{Changed, change, take, until_applied};

/// Takes a port away.
pub async fn run(context: &Context, args: UnpublishArgs) -> Result<(), Failure> {
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
    let instance = until_applied(context, instance).await?;
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

#[cfg(test)]
mod tests {
    use waifud_types::spec::Protocol;

    use super::*;
    use crate::published_ports::tests::port;

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
