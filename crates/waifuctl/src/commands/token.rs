//! `waifuctl token …`

use std::net::IpAddr;

use jiff::Timestamp;
use waifud_api::client::ListQuery;
use waifud_api::{CreateToken, CreatedToken, ServerUrl, Token};

use crate::cli::TokenCommand;
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::table;
use crate::text::{age, clock, escape};

/// Runs one of the token commands.
pub async fn run(context: &Context, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(args) => {
            let request = CreateToken {
                name: args.name,
                role: args.role,
                expires_in_s: args.expires,
            };
            let created = context.client.create_token(&request).await?;
            // Only the secret is printed to stdout, so that `waifuctl token create … > FILE` writes a file for `login
            // --token-file`.
            context
                .printer
                .print(&created, || created.secret.expose().clone())?;
            context.printer.note(&format!(
                "note: token {} has the role {}; its secret is shown only once. {}",
                created.token.name,
                created.token.role,
                login(&created)
            ));
            Ok(())
        }
        TokenCommand::List => list(context).await,
        TokenCommand::Revoke(args) => {
            context.client.revoke_token(&args.name).await?;
            let result = serde_json::json!({"name": args.name, "state": "revoked"});
            context
                .printer
                .print(&result, || format!("{}: revoked", escape(&args.name)))
        }
    }
}

/// How to use the token on another machine. The fingerprint lets `login` verify waifud without a question.
fn login(created: &CreatedToken) -> String {
    let elsewhere = created.addresses.iter().find(|url| !is_loopback(url));
    let (url, fingerprint) = match (elsewhere, created.ca_fingerprint) {
        (Some(url), Some(fingerprint)) => (escape(url), fingerprint),
        (None, Some(_)) => {
            return "waifud does not accept connections from other machines; to use the token there, set `listen` in \
                    /etc/waifud/waifud.toml"
                .to_owned();
        }
        // An older waifud.
        (_, None) => return "On the machine that will use it, run: waifuctl login URL".to_owned(),
    };
    let others: Vec<_> = created
        .addresses
        .iter()
        .filter(|other| !is_loopback(other))
        .map(|other| escape(other))
        .filter(|other| *other != url)
        .collect();
    let others = if others.is_empty() {
        String::new()
    } else {
        format!(
            "\nIf that machine cannot reach this address, try {}",
            others.join(", ")
        )
    };
    format!(
        "On the machine that will use it, run:\n  waifuctl login {url} --fingerprint {}{others}",
        waifud_pki::as_openssl_prints(fingerprint)
    )
}

/// Whether the address of a URL is one of this machine only. A name is not: it may mean another address elsewhere.
fn is_loopback(url: &str) -> bool {
    let address = url
        .parse()
        .ok()
        .and_then(|url: ServerUrl| url.host().parse::<IpAddr>().ok());
    address.is_some_and(|address| address.to_canonical().is_loopback())
}

async fn list(context: &Context) -> Result<(), Failure> {
    let mut query = ListQuery::all();
    let mut page = context.client.tokens(&query).await?;
    while let Some(cursor) = page.next.take() {
        query.cursor = Some(cursor);
        let more = context.client.tokens(&query).await?;
        page.items.extend(more.items);
        page.next = more.next;
    }
    context.printer.print(&page, || {
        let now = Timestamp::now();
        let headers = ["NAME", "ID", "ROLE", "MADE BY", "AGE", "USED", "EXPIRES"];
        table(&headers, page.items.iter().map(|t| row(t, now)).collect())
    })
}

fn row(token: &Token, now: Timestamp) -> Vec<String> {
    vec![
        token.name.to_string(),
        escape(&token.id),
        token.role.to_string(),
        escape(&token.created_by),
        age(token.created_at, now),
        token
            .last_used_at
            .map_or_else(|| "never".to_owned(), |at| format!("{} ago", age(at, now))),
        match token.expires_at {
            None => "never".to_owned(),
            Some(end) if end <= now => "expired".to_owned(),
            Some(end) => clock(end),
        },
    ]
}
