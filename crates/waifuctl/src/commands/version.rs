//! `waifuctl version`: the versions of waifuctl and waifud.

use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;

/// The output with `--json`.
#[derive(Serialize)]
struct Versions {
    client: Client,
    /// The response of `GET /v1/version`; null if waifud is unreachable.
    server: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct Client {
    version: &'static str,
}

/// Prints both versions; that of waifuctl also if waifud is unreachable.
pub async fn run(context: &Context, client_only: bool) -> Result<(), Failure> {
    let answer = if client_only {
        Ok(None)
    } else {
        context.client.version().await.map(Some)
    };
    let (server, failed) = match answer {
        Ok(server) => (server, None),
        Err(error) => (None, Some(error)),
    };
    let versions = Versions {
        client: Client {
            version: env!("CARGO_PKG_VERSION"),
        },
        server,
    };
    context.printer.print(&versions, || {
        let own = format!("waifuctl {}", versions.client.version);
        let Some(server) = &versions.server else {
            return own;
        };
        let field = |name: &str| match server.get(name) {
            Some(serde_json::Value::String(text)) => escape(text),
            Some(other) => other.to_string(),
            None => "-".to_owned(),
        };
        format!(
            "{own}\nwaifud   {} (API {}, at {})",
            field("version"),
            field("api"),
            context.client.at()
        )
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}
