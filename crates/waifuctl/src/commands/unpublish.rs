//! `waifuctl unpublish`

use waifud_api::Publish;

use crate::cli::UnpublishArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::published_ports::{Changed, change, take, until_applied};

/// Stops publishing a port.
pub async fn run(context: &Context, args: UnpublishArgs) -> Result<(), Failure> {
    let wanted = args.port;
    let name = &args.name;
    let Changed { instance, .. } = change(context, name, |ports| {
        if wanted.guest_port.is_some() {
            return Err(
                Failure::input("invalid-port", "unpublish accepts only the node port")
                    .field("PORT")
                    .hint(format!("waifuctl unpublish {name} {}", shown(&wanted))),
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
        format!(
            "{}: {port}/{protocol} is no longer published",
            instance.name
        )
    })
}

/// A node port with its protocol.
fn shown(port: &Publish) -> String {
    format!("{}/{}", port.port, port.protocol.as_str())
}

/// An error that lists the published ports.
fn not_published(name: &str, wanted: &Publish, ports: &[Publish]) -> Failure {
    let published: Vec<_> = ports.iter().map(shown).collect();
    let hint = if published.is_empty() {
        format!("{name} publishes no ports")
    } else {
        format!("published ports: {}", published.join(", "))
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
    fn an_error_for_an_unpublished_port_lists_the_published_ones() {
        let wanted = port(99, 99, Protocol::Tcp);
        let ports = [port(2222, 22, Protocol::Tcp), port(53, 53, Protocol::Udp)];
        let shown = format!("{:?}", not_published("web", &wanted, &ports));
        assert!(shown.contains("web does not publish 99/tcp"), "{shown}");
        assert!(
            shown.contains("published ports: 2222/tcp, 53/udp"),
            "{shown}"
        );
        let shown = format!("{:?}", not_published("web", &wanted, &[]));
        assert!(shown.contains("web publishes no ports"), "{shown}");
    }
}
