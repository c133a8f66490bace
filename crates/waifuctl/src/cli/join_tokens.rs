//! Arguments of `node token`.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use waifud_types::Name;

use super::parse_duration;

#[derive(Debug, Subcommand)]
pub enum JoinTokenCommand {
    /// Create a join token and print it; it is shown only once
    #[command(
        after_help = "Examples:\n  waifuctl node token create\n  waifuctl node token create --name birch --expires 10m --json | jq -r .token\n\n\
A token admits one machine, once. With --name, only the node of that name can use it; a node that joined before gets a \
new key."
    )]
    Create(CreateTokenArgs),
    /// List join tokens
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  waifuctl node token list"
    )]
    List,
    /// Revoke a join token; a node that joined with it stays
    #[command(after_help = "Example:\n  waifuctl node token revoke 1f3a90c2")]
    Revoke(RevokeTokenArgs),
}

#[derive(Debug, Args)]
pub struct CreateTokenArgs {
    /// Lifetime of the token, 1m to 168h
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
    pub expires: Duration,
    /// Admit only the node of this name
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
}

#[derive(Debug, Args)]
pub struct RevokeTokenArgs {
    /// Id of the token, as shown by `waifuctl node token list`
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: String,
}
