//! `waifuctl login`: verifies the CA of a waifud, authenticates with a token, and stores both as a context.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use waifud_api::ServerUrl;
use waifud_api::client::Client;
use waifud_types::{Digest, Name, Secret};

use super::context::file;
use crate::cli::LoginArgs;
use crate::context::{read_ca, trust_only};
use crate::contexts::{Contexts, Entry, LOCAL};
use crate::failure::Failure;
use crate::printer::Printer;

/// Timeout of the connection and its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The command that prints the fingerprint on the server.
const SHOW_FINGERPRINT: &str =
    "openssl x509 -noout -fingerprint -sha256 -in /var/lib/waifud/pki/ca.crt";
/// Maximum length of a token; real ones have fewer than 100 characters.
const TOKEN_MAX: u64 = 4096;

/// Logs in.
pub async fn run(printer: Printer, args: LoginArgs) -> Result<(), Failure> {
    let path = file()?;
    let mut contexts = Contexts::load(&path)?;
    let name = match args.name {
        Some(name) => name,
        None => name_of(&args.server)?,
    };
    check_name(&name, &args.server, &contexts)?;
    let ca = match (&args.ca, args.fingerprint) {
        (Some(file), _) => read_ca(file, "--ca")?,
        (None, wanted) => verify_ca(&args.server, wanted).await?,
    };
    let trust = trust_only(&ca)?;
    let token = token(args.token_file.as_deref())?;
    let client = Client::https(&args.server, &trust, Some(token.clone()))?;
    // A context is stored only if it works.
    let me = client.whoami().await?;
    let entry = Entry {
        url: args.server,
        ca,
        token,
    };
    let shown =
        serde_json::json!({"context": name, "url": entry.url, "name": me.name, "role": me.role});
    contexts.contexts.insert(name.clone(), entry);
    contexts.current = Some(name.clone());
    contexts.save(&path)?;
    printer.print(&shown, || {
        format!(
            "{name}: logged in to {} as {} ({})",
            client.at(),
            me.name,
            me.role
        )
    })
}

/// The first label of the hostname; for an IP address, `waifud-` and the address with dashes, for example
/// `waifud-127-0-0-1`.
fn name_of(server: &ServerUrl) -> Result<Name, Failure> {
    let host = server.host().to_ascii_lowercase();
    let name = if host.parse::<std::net::IpAddr>().is_ok() {
        format!("waifud-{}", host.replace(['.', ':'], "-").trim_matches('-'))
    } else {
        host.split('.').next().unwrap_or(&host).to_owned()
    };
    name.parse().map_err(|_| {
        Failure::input(
            "no-context-name",
            format!("cannot derive a context name from {host}"),
        )
        .field("--name")
        .hint("choose a name, for example --name home")
    })
}

/// A context is only replaced by one for the same server.
fn check_name(name: &Name, server: &ServerUrl, contexts: &Contexts) -> Result<(), Failure> {
    let other = contexts
        .contexts
        .get(name)
        .filter(|entry| entry.url != *server);
    let (target, hint) = if name.as_str() == LOCAL {
        // This context always exists and cannot be removed.
        (
            "the socket of this machine".to_owned(),
            "choose another name, for example --name home".to_owned(),
        )
    } else if let Some(entry) = other {
        (
            entry.url.to_string(),
            format!("choose another name with --name, or run waifuctl context remove {name}"),
        )
    } else {
        return Ok(());
    };
    Err(Failure::input(
        "context-taken",
        format!("context {name} already refers to {target}"),
    )
    .field("--name")
    .hint(hint))
}

/// The CA that the server presents, verified by its fingerprint or by the user.
async fn verify_ca(server: &ServerUrl, wanted: Option<Digest>) -> Result<String, Failure> {
    let chain = fetch_certificates(server).await?;
    let found = if let Some(wanted) = wanted {
        chain
            .iter()
            .find(|certificate| waifud_pki::fingerprint(certificate) == wanted)
            .ok_or_else(|| {
                Failure::input(
                    "other-fingerprint",
                    format!("the CA of {server} does not match the fingerprint"),
                )
                .field("--fingerprint")
                .hint(format!(
                    "verify it on the server: {SHOW_FINGERPRINT}; if the fingerprint that you gave is correct, the connection is being intercepted"
                ))
            })?
    } else {
        // waifud sends its own certificate, then that of its CA.
        let ca = chain.last().ok_or_else(|| no_certificate(server))?;
        confirm_fingerprint(server, waifud_pki::fingerprint(ca))?;
        ca
    };
    Ok(waifud_pki::to_pem(found))
}

fn no_certificate(server: &ServerUrl) -> Failure {
    Failure::internal(
        "no-certificate",
        format!("{server} does not present a certificate"),
    )
    .hint("check that waifud listens there: `listen` in /etc/waifud/waifud.toml on the server")
}

/// Gets the server's certificates. No data is sent over that connection.
async fn fetch_certificates(server: &ServerUrl) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let unreachable = |cause: &dyn std::error::Error| {
        Failure::internal("unreachable", format!("waifud is unreachable at {server}"))
            .cause(cause)
            .hint(
                "check `listen` in /etc/waifud/waifud.toml on the server, and firewalls on the way",
            )
    };
    let (config, presented) = waifud_pki::peek_config()
        .map_err(|e| Failure::internal("tls", "cannot set up TLS").cause(&e))?;
    let name = ServerName::try_from(server.host().to_owned()).map_err(|e| unreachable(&e))?;
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, async {
        let stream = TcpStream::connect((server.host(), server.port())).await?;
        // The handshake always fails after the certificates were received.
        let _refused = TlsConnector::from(Arc::clone(&config))
            .connect(name, stream)
            .await;
        Ok::<_, std::io::Error>(())
    })
    .await;
    match connected {
        Err(late) => return Err(unreachable(&late)),
        Ok(Err(error)) => return Err(unreachable(&error)),
        Ok(Ok(())) => {}
    }
    let chain = presented.chain();
    if chain.is_empty() {
        return Err(no_certificate(server));
    }
    Ok(chain)
}

/// Asks the user to confirm the fingerprint; fails without a terminal.
fn confirm_fingerprint(server: &ServerUrl, fingerprint: Digest) -> Result<(), Failure> {
    let refused = |title: String| {
        Failure::input("not-trusted", title)
            .field("--fingerprint")
            .hint(format!(
                "pass --fingerprint SHA256 or --ca FILE; on the server: {SHOW_FINGERPRINT}"
            ))
    };
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(refused(format!(
            "the CA of {server} is unknown and cannot be confirmed without a terminal"
        )));
    }
    let mut stderr = std::io::stderr();
    let _stderr_gone = write!(
        stderr,
        "{server} is not known yet. The fingerprint of its CA is\n  {fingerprint}\n\
         Compare it with the output of this command on the server:\n  {SHOW_FINGERPRINT}\n\
         Is it the same [y/N]? ",
        fingerprint = waifud_pki::as_openssl_prints(fingerprint)
    );
    let _stderr_gone = stderr.flush();
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|e| refused("cannot read the answer".to_owned()).cause(&e))?;
    if matches!(line.trim().to_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(refused(format!(
            "not logged in: the fingerprint of the CA of {server} was not confirmed"
        )))
    }
}

/// Reads the token from a file or, without echo, from the terminal.
fn token(file: Option<&Path>) -> Result<Secret<String>, Failure> {
    let unreadable = |e: std::io::Error| {
        Failure::input("token-unreadable", "cannot read the token")
            .field("--token-file")
            .cause(&e)
    };
    let text = match file {
        Some(path) if path == Path::new("-") => {
            limited(std::io::stdin().lock()).map_err(unreadable)?
        }
        Some(path) => std::fs::File::open(path)
            .and_then(limited)
            .map_err(unreadable)?,
        None if std::io::stdin().is_terminal() => {
            let terminal = console::Term::stderr();
            let _stderr_gone = terminal
                .write_str("Token (waifuctl token create NAME --role ROLE on the server): ");
            terminal.read_secure_line().map_err(unreadable)?
        }
        None => {
            return Err(Failure::input("no-token", "no token was given")
                .field("--token-file")
                .hint("pass --token-file FILE, or --token-file - to read standard input"));
        }
    };
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::input("invalid-token", "the token is malformed")
            .field("--token-file")
            .hint("a token is a single word that begins with waifud_"));
    }
    Ok(Secret::new(text.to_owned()))
}

fn limited(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(TOKEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_name_is_derived_from_any_host() {
        let name = |url: &str| name_of(&url.parse().unwrap()).unwrap().to_string();
        assert_eq!(name("https://Waifud.lan:7373"), "waifud");
        assert_eq!(name("https://127.0.0.1:7373"), "waifud-127-0-0-1");
        assert_eq!(name("https://[fd00::1]:7373"), "waifud-fd00--1");
        assert_eq!(name("https://[::1]"), "waifud-1");
    }

    #[test]
    fn the_hint_for_a_taken_context_name_can_be_followed() {
        let server: ServerUrl = "https://waifud.lan:7373".parse().unwrap();
        let hint = |name: &str, contexts: &Contexts| {
            let refused = check_name(&name.parse().unwrap(), &server, contexts);
            format!("{:?}", refused.unwrap_err())
        };
        // The context `local` cannot be removed.
        let local = hint(LOCAL, &Contexts::default());
        assert!(local.contains("--name home"), "{local}");
        assert!(!local.contains("context remove"), "{local}");
        let mut contexts = Contexts::default();
        let entry = Entry {
            url: "https://other.lan:7373".parse().unwrap(),
            ca: String::new(),
            token: Secret::new(String::new()),
        };
        contexts.contexts.insert("waifud".parse().unwrap(), entry);
        let taken = hint("waifud", &contexts);
        assert!(taken.contains("waifuctl context remove waifud"), "{taken}");
    }

    #[test]
    fn a_fingerprint_is_shown_as_openssl_prints_it() {
        let digest: Digest = "0a".repeat(32).parse().unwrap();
        assert_eq!(waifud_pki::as_openssl_prints(digest), ["0A"; 32].join(":"));
    }
}
