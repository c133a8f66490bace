//! `waifuctl fabric …`

use std::fmt::Write;

use waifud_api::{Fabric, FabricNode, SetFabric};

use crate::cli::FabricCommand;
use crate::commands::fabric_client;
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::table;
use crate::text::escape;

/// Shows or chooses the fabric.
pub async fn run(context: &Context, command: FabricCommand) -> Result<(), Failure> {
    let fabric = match command {
        FabricCommand::Client(command) => return fabric_client::run(context, command).await,
        FabricCommand::Show => context.client.fabric().await?,
        FabricCommand::Set(args) => {
            let request = SetFabric {
                kind: args.kind.as_str().to_owned(),
            };
            context.client.set_fabric(&request).await?
        }
    };
    context.printer.print(&fabric, || to_text(&fabric))
}

fn to_text(fabric: &Fabric) -> String {
    let mut out = match fabric.configured {
        Some(_) => format!("fabric: {}", fabric.kind),
        None => format!("fabric: {} (default)", fabric.kind),
    };
    if fabric.nodes.is_empty() {
        return out;
    }
    out.push_str("\n\n");
    let rows = fabric.nodes.iter().map(row).collect();
    out.push_str(&table(
        &["NODE", "SUBNET", "ENDPOINT", "WIREGUARD", "PUBLIC KEY"],
        rows,
    ));
    if !fabric.routes.is_empty() {
        out.push_str(
            "\n\nRoutes for your router, so that machines that are not nodes reach guests:",
        );
        for route in &fabric.routes {
            let _infallible = write!(
                out,
                "\n  {} via {}  ({})",
                route.destination, route.via, route.node
            );
        }
    }
    out
}

fn row(node: &FabricNode) -> Vec<String> {
    let endpoint = node.endpoints.first();
    vec![
        node.node.to_string(),
        node.subnet.to_string(),
        endpoint.map_or_else(|| "-".to_owned(), ToString::to_string),
        node.mesh_backend
            .map_or_else(|| "-".to_owned(), |backend| backend.to_string()),
        node.public_key
            .as_ref()
            .map_or_else(|| "-".to_owned(), |key| escape(key)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_api::FabricRoute;
    use waifud_types::{FabricKind, MeshBackend};

    #[test]
    fn nodes_and_routes_are_shown_and_what_is_unknown_is_a_dash() {
        let mut fabric = Fabric {
            kind: FabricKind::Static,
            configured: Some(FabricKind::Static),
            nodes: vec![
                FabricNode {
                    node: "alder".parse().unwrap(),
                    subnet: "10.144.1.0/24".parse().unwrap(),
                    public_key: Some("key=".to_owned()),
                    endpoints: vec!["192.0.2.3:51820".parse().unwrap()],
                    mesh_backend: Some(MeshBackend::Kernel),
                },
                FabricNode {
                    node: "birch".parse().unwrap(),
                    subnet: "10.144.2.0/24".parse().unwrap(),
                    public_key: None,
                    endpoints: Vec::new(),
                    mesh_backend: None,
                },
            ],
            routes: vec![FabricRoute {
                destination: "10.144.1.0/24".parse().unwrap(),
                via: "192.0.2.3".parse().unwrap(),
                node: "alder".parse().unwrap(),
            }],
        };
        assert_eq!(
            to_text(&fabric),
            "fabric: static\n\n\
             NODE   SUBNET         ENDPOINT         WIREGUARD  PUBLIC KEY\n\
             alder  10.144.1.0/24  192.0.2.3:51820  kernel     key=\n\
             birch  10.144.2.0/24  -                -          -\n\n\
             Routes for your router, so that machines that are not nodes reach guests:\n  \
             10.144.1.0/24 via 192.0.2.3  (alder)"
        );
        fabric.configured = None;
        assert!(to_text(&fabric).starts_with("fabric: static (default)\n"));
        fabric.nodes.clear();
        assert_eq!(to_text(&fabric), "fabric: static (default)");
    }
}
