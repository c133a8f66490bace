//! The context of a command: the connection to waifud and the printer.
//!
//! The first of these selects the waifud: `--context`; `--socket` or `WAIFUD_SOCKET`; `WAIFUD_URL` with `WAIFUD_CA`
//! and `WAIFUD_TOKEN`; the current context; the socket of this machine. `WAIFUD_CA` and `WAIFUD_TOKEN` are used only
//! with `WAIFUD_URL`. Secrets are never arguments, since all users of a machine can see those.

use std::path::{Path, PathBuf};

use waifud_api::ServerUrl;
use waifud_api::client::{Client, Trust};
use waifud_types::{Name, Secret};

use crate::cli::GlobalArgs;
use crate::contexts::{self, Contexts, Entry, LOCAL};
use crate::failure::Failure;
use crate::printer::Printer;

/// Default path of waifud's socket.
const DEFAULT_SOCKET: &str = "/run/waifud/waifud.sock";

/// The connection and the printer.
pub struct Context {
    /// The client of waifud.
    pub client: Client,
    /// How another process of waifuctl connects to the same waifud.
    pub endpoint: Endpoint,
    /// Output to the user.
    pub printer: Printer,
}

impl Context {
    /// Creates the context from the global options.
    pub fn new(cli: &GlobalArgs) -> Result<Self, Failure> {
        Ok(Self {
            client: client(cli)?,
            endpoint: endpoint(cli)?,
            printer: Printer::new(cli.json, cli.quiet),
        })
    }
}

/// How to connect to a waifud.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// Options of waifuctl.
    Options(Vec<String>),
    /// `WAIFUD_URL` and related variables, which can hold a token and are not options.
    Environment,
}

/// In the order of [`client`]. The path of a socket is made absolute, since ssh may run in another directory.
fn endpoint(cli: &GlobalArgs) -> Result<Endpoint, Failure> {
    let context = |name: &str| Endpoint::Options(vec!["--context".to_owned(), name.to_owned()]);
    if let Some(name) = &cli.context {
        return Ok(context(name.as_str()));
    }
    if let Some(socket) = socket(cli) {
        let bad = || {
            Failure::input("invalid-path", "the path of the socket is not valid UTF-8")
                .field("--socket")
        };
        let path = std::path::absolute(&socket).map_err(|_| bad())?;
        let path = path.into_os_string().into_string().map_err(|_| bad())?;
        return Ok(Endpoint::Options(vec!["--socket".to_owned(), path]));
    }
    if variable("WAIFUD_URL")?.is_some() {
        return Ok(Endpoint::Environment);
    }
    let current = load()?.current;
    Ok(context(current.as_ref().map_or(LOCAL, Name::as_str)))
}

fn client(cli: &GlobalArgs) -> Result<Client, Failure> {
    if let Some(name) = &cli.context {
        return if name.as_str() == LOCAL {
            local()
        } else {
            of_context(&load()?, name)
        };
    }
    if let Some(socket) = socket(cli) {
        return Ok(Client::unix(&socket)?);
    }
    if let Some(url) = variable("WAIFUD_URL")? {
        return of_environment(&url);
    }
    let contexts = load()?;
    match &contexts.current {
        Some(name) => of_context(&contexts, name),
        None => local(),
    }
}

/// `--socket` or `WAIFUD_SOCKET`. Not read by clap, whose usage would show it as an argument.
fn socket(cli: &GlobalArgs) -> Option<PathBuf> {
    let set = || std::env::var_os("WAIFUD_SOCKET").filter(|value| !value.is_empty());
    cli.socket.clone().or_else(|| set().map(PathBuf::from))
}

fn local() -> Result<Client, Failure> {
    Ok(Client::unix(Path::new(DEFAULT_SOCKET))?)
}

fn load() -> Result<Contexts, Failure> {
    contexts::path().map_or_else(|| Ok(Contexts::default()), |path| Contexts::load(&path))
}

fn of_context(contexts: &Contexts, name: &Name) -> Result<Client, Failure> {
    let Entry { url, ca, token } = contexts.get(name)?;
    Ok(Client::https(url, &trust_only(ca)?, Some(token.clone()))?)
}

fn of_environment(url: &str) -> Result<Client, Failure> {
    let url: ServerUrl = url
        .parse()
        .map_err(|e: waifud_api::server_url::ServerUrlError| {
            Failure::input("invalid-url", e.to_string()).field("WAIFUD_URL")
        })?;
    let trust = match variable("WAIFUD_CA")? {
        Some(path) => trust_only(&read_ca(Path::new(&path), "WAIFUD_CA")?)?,
        None => Trust::System,
    };
    let token = variable("WAIFUD_TOKEN")?.map(Secret::new);
    Ok(Client::https(&url, &trust, token)?)
}

/// The value of an environment variable; empty means unset. It can be a secret, so errors do not contain it.
fn variable(key: &str) -> Result<Option<String>, Failure> {
    std::env::var_os(key)
        .filter(|value| !value.is_empty())
        .map(|value| {
            value.into_string().map_err(|_| {
                Failure::input("invalid-variable", format!("{key} is not valid UTF-8")).field(key)
            })
        })
        .transpose()
}

/// Reads the certificate of a CA.
pub fn read_ca(path: &Path, field: &str) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| {
        Failure::input(
            "file-unreadable",
            format!("cannot read the CA certificate {}", path.display()),
        )
        .field(field)
        .cause(&e)
    })
}

/// Trusts only this CA.
pub fn trust_only(pem: &str) -> Result<Trust, Failure> {
    let bad = |e: waifud_pki::PkiError| {
        Failure::input("invalid-ca", "invalid CA certificate")
            .cause(&e)
            .hint("use the file /var/lib/waifud/pki/ca.crt from the machine that runs waifud")
    };
    let ca = waifud_pki::certificates(pem).map_err(bad)?.swap_remove(0);
    Ok(Trust::Only(
        waifud_pki::client_config(&ca, None).map_err(bad)?,
    ))
}
