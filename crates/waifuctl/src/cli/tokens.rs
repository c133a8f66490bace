//! Arguments of `token`.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use waifud_types::Role;

use super::parse_seconds;

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a token; its secret is shown only once
    #[command(
        after_help = "Examples:\n  waifuctl token create laptop --role operator --expires 90d\n  waifuctl token create ci --role viewer --json | jq -r .secret\n\n\
Roles, each with the permissions of the previous one:\n  viewer    read everything except user-data, descriptions, consoles, logs and tokens\n  \
operator  create, change and delete instances, templates and images; use console, screen, logs, ssh,\n            forward, exec and passwd; read user-data and descriptions\n  \
admin     manage nodes, networks, tokens, join tokens and unmanaged instances"
    )]
    Create(TokenCreateArgs),
    /// List tokens without their secrets
    #[command(visible_alias = "ls")]
    List,
    /// Revoke a token; it stops working immediately
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  waifuctl token revoke laptop"
    )]
    Revoke(TokenNameArg),
}

#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// Name of the token, usually the user, program or machine that uses it, for example laptop
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// viewer, operator or admin
    #[arg(long, value_parser = parse_role)]
    pub role: Role,
    /// Lifetime of the token, for example 12h or 30d [default: unlimited]
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    pub expires: Option<u64>,
}

#[derive(Debug, Args)]
pub struct TokenNameArg {
    /// Name of the token
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}

fn parse_role(text: &str) -> Result<Role, String> {
    [Role::Viewer, Role::Operator, Role::Admin]
        .into_iter()
        .find(|role| role.as_str() == text)
        .ok_or_else(|| "write viewer, operator or admin".to_owned())
}
