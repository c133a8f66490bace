//! `waifuctl node token …`

use jiff::Timestamp;
use serde_json::json;
use waifud_api::join::{CreateJoinToken, JoinTokenInfo};

use crate::cli::{CreateTokenArgs, JoinTokenCommand};
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::table;
use crate::text::{age, escape};

/// Runs one of the join token commands.
pub async fn run(context: &Context, command: JoinTokenCommand) -> Result<(), Failure> {
    match command {
        JoinTokenCommand::Create(args) => create(context, args).await,
        JoinTokenCommand::List => list(context).await,
        JoinTokenCommand::Revoke(args) => {
            context.client.revoke_join_token(&args.id).await?;
            context
                .printer
                .print(&json!({"id": args.id, "revoked": true}), || {
                    format!("{}: revoked", escape(&args.id))
                })
        }
    }
}

async fn create(context: &Context, args: CreateTokenArgs) -> Result<(), Failure> {
    let request = CreateJoinToken {
        name: args.name,
        expires_in_s: Some(args.expires.as_secs()),
        install: false,
    };
    let created = context.client.create_join_token(&request).await?;
    // Only the token is printed to stdout, so that it can be piped; instructions go to stderr.
    context.printer.note(&format!(
        "valid until {}; run this on the machine that should join:\n  sudo waifud-agentd join --token-file - <<<TOKEN",
        created.info.expires_at
    ));
    context
        .printer
        .print(&created, || created.token.expose().clone())
}

async fn list(context: &Context) -> Result<(), Failure> {
    let page = context.client.join_tokens().await?;
    context.printer.print(&page, || {
        let now = Timestamp::now();
        table(
            &["ID", "STATE", "FOR", "NODE", "BY", "AGE", "EXPIRES"],
            page.items.iter().map(|token| row(token, now)).collect(),
        )
    })
}

fn row(token: &JoinTokenInfo, now: Timestamp) -> Vec<String> {
    let or_dash = |text: Option<&String>| text.map_or_else(|| "-".to_owned(), |t| escape(t));
    vec![
        escape(&token.id),
        token.state.as_str().to_owned(),
        or_dash(token.name.as_ref()),
        or_dash(token.node.as_ref()),
        escape(&token.created_by),
        age(token.created_at, now),
        token.expires_at.to_string(),
    ]
}
