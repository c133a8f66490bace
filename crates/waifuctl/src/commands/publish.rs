//! `waifuctl publish`

use waifud_api::Publish;

use crate::cli::PublishArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::network_args::outside;
use crate::published_ports::{Changed, change, is_applied, key, take, until_applied};
use crate::text::escape;

/// Publishes a port, or changes the guest port of a published one.
pub async fn run(context: &Context, args: PublishArgs) -> Result<(), Failure> {
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
    let instance = until_applied(context, instance).await?;
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
                "stop that program (the port is then published automatically), or run waifuctl unpublish {} {}",
                instance.name,
                shown.map_or_else(String::new, outside)
            )));
    }
    context.printer.print(&instance, || {
        let port = shown.map_or_else(String::new, ToString::to_string);
        let instead = replaced.map_or_else(String::new, |before| {
            format!(", instead of its port {}", guest_port(&before))
        });
        match (&instance.status.node, is_applied(&instance)) {
            (Some(node), true) => format!(
                "{}: {port} is published on all addresses of {node}{instead}",
                instance.name
            ),
            (Some(node), false) => {
                format!(
                    "{}: {port} will be published when {node} has applied the change",
                    instance.name
                )
            }
            (None, _) => format!(
                "{}: {port} will be published when the instance is placed",
                instance.name
            ),
        }
    })
}
