//! `waifuctl fabric client …`

use std::io::IsTerminal;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use rand::RngCore;
use serde::Serialize;
use waifud_api::{CreateFabricClient, FabricClient, FabricClientConfig};
use waifud_types::Name;
use waifud_types::fabric_client::configuration;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::cli::FabricClientCommand;
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::{Printer, table};
use crate::text::escape;

/// The client as it is printed with `--json`.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    config: &'a FabricClientConfig,
    private_key: Option<&'a str>,
    configuration: &'a str,
}

/// Adds, shows, lists or removes clients of the fabric.
pub async fn run(context: &Context, command: FabricClientCommand) -> Result<(), Failure> {
    let (client, printer) = (&context.client, context.printer);
    match command {
        FabricClientCommand::Add(args) => {
            let keys = args.public_key.is_none().then(generate);
            let (private_key, public_key) = match (keys, args.public_key) {
                (Some((private, public)), _) => (Some(private), public),
                (None, given) => (None, given.unwrap_or_default()),
            };
            let request = CreateFabricClient {
                name: args.name.to_string(),
                public_key,
            };
            let config = client.create_fabric_client(&request).await?;
            print(printer, &config, private_key.as_deref())?;
            if args.qr {
                let text = text(&config, private_key.as_deref());
                match qr_code(&text) {
                    Some(code) if std::io::stderr().is_terminal() => printer.note(&colored(&code)),
                    Some(code) => printer.note(&code),
                    None => printer.note("note: the configuration is too long for a QR code"),
                }
            }
            Ok(())
        }
        FabricClientCommand::Show(args) => {
            let config = client.fabric_client(args.name.as_str()).await?;
            print(printer, &config, None)
        }
        FabricClientCommand::List => {
            let page = client.fabric_clients().await?;
            printer.print(&page, || list(&page.items))
        }
        FabricClientCommand::Remove(args) => {
            client.delete_fabric_client(args.name.as_str()).await?;
            let result = serde_json::json!({"name": args.name, "state": "removed"});
            printer.print(&result, || {
                format!(
                    "{}: removed; nodes out of contact let it in until they return",
                    args.name
                )
            })
        }
    }
}

/// A new pair of keys in base64: the private one and the public one.
fn generate() -> (String, String) {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    let private = StaticSecret::from(bytes);
    let public = PublicKey::from(&private);
    (
        STANDARD.encode(private.as_bytes()),
        STANDARD.encode(public.as_bytes()),
    )
}

fn text(config: &FabricClientConfig, private_key: Option<&str>) -> String {
    configuration(config.client.address, private_key, &config.peers)
}

fn print(
    printer: Printer,
    config: &FabricClientConfig,
    private_key: Option<&str>,
) -> Result<(), Failure> {
    let configuration = text(config, private_key);
    let shown = Shown {
        config,
        private_key,
        configuration: &configuration,
    };
    printer.print(&shown, || configuration.trim_end().to_owned())?;
    for note in notes(config) {
        printer.note(&note);
    }
    Ok(())
}

/// The nodes that the configuration lacks.
fn notes(config: &FabricClientConfig) -> Vec<String> {
    let peers = config.peers.iter();
    peers
        .filter_map(|peer| Some(format!("note: without {}: {}", peer.node, peer.trouble()?)))
        .collect()
}

/// The text as a QR code; `None` if it is too long for one. Light modules are blocks, so that the code is dark on light on a
/// terminal with light text.
fn qr_code(text: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let mut image = code.render::<Dense1x2>();
    image.dark_color(Dense1x2::Light);
    image.light_color(Dense1x2::Dark);
    Some(image.quiet_zone(true).build())
}

/// White on black, whatever the colors of the terminal are.
fn colored(code: &str) -> String {
    let lines = code.lines().map(|line| format!("\x1b[97;40m{line}\x1b[0m"));
    lines.collect::<Vec<_>>().join("\n")
}

fn list(clients: &[FabricClient]) -> String {
    if clients.is_empty() {
        return String::new();
    }
    let row = |client: &FabricClient| {
        let newer: Vec<_> = client.newer_nodes.iter().map(Name::as_str).collect();
        vec![
            client.name.to_string(),
            client.address.to_string(),
            escape(&client.public_key),
            if newer.is_empty() {
                "-".to_owned()
            } else {
                newer.join(",")
            },
        ]
    };
    let rows = clients.iter().map(row).collect();
    table(&["NAME", "ADDRESS", "PUBLIC KEY", "NODES SINCE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_types::FabricClientPeer;

    fn config() -> FabricClientConfig {
        FabricClientConfig {
            client: FabricClient {
                name: "laptop".parse().unwrap(),
                address: [10, 144, 3, 2].into(),
                public_key: "key=".to_owned(),
                created_at: jiff::Timestamp::UNIX_EPOCH,
                newer_nodes: vec!["cedar".parse().unwrap()],
            },
            peers: vec![FabricClientPeer {
                node: "birch".parse().unwrap(),
                public_key: None,
                endpoints: Vec::new(),
                allowed: Vec::new(),
                supports_clients: true,
            }],
        }
    }

    #[test]
    fn generated_keys_belong_together_and_differ() {
        let (private, public) = generate();
        let bytes: [u8; 32] = STANDARD.decode(&private).unwrap().try_into().unwrap();
        let expected = PublicKey::from(&StaticSecret::from(bytes));
        assert_eq!(public, STANDARD.encode(expected.as_bytes()));
        assert_ne!(private, generate().0);
    }

    #[test]
    fn nodes_that_the_configuration_lacks_are_named() {
        let notes = notes(&config());
        assert_eq!(
            notes,
            ["note: without birch: it has not reported a valid WireGuard key yet"]
        );
    }

    #[test]
    fn the_list_names_nodes_that_joined_later() {
        let mut current = config().client;
        current.newer_nodes.clear();
        assert_eq!(
            list(&[config().client, current]),
            "NAME    ADDRESS     PUBLIC KEY  NODES SINCE\n\
             laptop  10.144.3.2  key=        cedar\n\
             laptop  10.144.3.2  key=        -"
        );
        assert_eq!(list(&[]), "");
    }

    #[test]
    fn a_qr_code_has_a_quiet_zone_and_a_text_that_is_too_long_has_none() {
        let code = qr_code(&text(&config(), Some("secret="))).unwrap();
        let lines: Vec<_> = code.lines().collect();
        // Two modules in a line, and four modules without a mark around the code.
        assert!(
            lines.len() > 14
                && lines[0]
                    .chars()
                    .all(|c| c == lines[0].chars().next().unwrap())
        );
        assert_eq!(qr_code(&"x".repeat(3000)), None);
    }
}
