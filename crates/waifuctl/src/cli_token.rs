//! What can be typed of tokens that let machines in.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use waifud_types::Name;

use crate::cli::parse_duration;

/// `node token …`.
#[derive(Debug, Subcommand)]
pub enum JoinTokenCommand {
    /// Make a token; its text is shown once
    #[command(
        after_help = "Examples:\n  waifuctl node token create\n  waifuctl node token create --name birch --expires 10m --json | jq -r .token\n\nA token lets one machine in, once. With --name it is for the node of that name only, and gives it a new key if it \
has joined before."
    )]
    Create(CreateTokenArgs),
    /// List tokens
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  waifuctl node token list"
    )]
    List,
    /// Make a token worthless; a node that came in by it stays
    #[command(after_help = "Example:\n  waifuctl node token revoke 1f3a90c2")]
    Revoke(RevokeTokenArgs),
}

/// `node token create`.
#[derive(Debug, Args)]
pub struct CreateTokenArgs {
    /// How long it is good for, 1m to 168h
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
    pub expires: Duration,
    /// Only for the node of this name
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
}

/// `node token revoke`.
#[derive(Debug, Args)]
pub struct RevokeTokenArgs {
    /// Its id, as `list` shows it
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: String,
}
