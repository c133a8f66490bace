//! What can be typed about networks.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCandidates;

use crate::complete;

/// `network …`.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Name a bridge that nodes already have, so that instances can be on it
    #[command(
        visible_alias = "create",
        after_help = "Example:\n  waifuctl network add lan --bridge br0\n  waifuctl create ha -t debian-12 --network lan\n\nwaifud makes no bridge and changes none; docs/guides/lan.md shows how to make one. Guests on it are machines of that \
network: whatever gives addresses there gives them theirs."
    )]
    Add(NetworkAddArgs),
    /// List networks, and which nodes have them
    #[command(visible_alias = "ls", after_help = "Example:\n  waifuctl network list")]
    List,
    /// Show one network, with what each node says of it
    #[command(after_help = "Example:\n  waifuctl network show lan")]
    Show(NetworkNameArg),
    /// Forget a network that no instance uses; bridges stay as they are
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  waifuctl network delete lan"
    )]
    Delete(NetworkNameArg),
}

/// `network add`.
#[derive(Debug, Args)]
pub struct NetworkAddArgs {
    /// Its name, such as lan
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The bridge, by its name on the nodes
    #[arg(long, value_name = "BRIDGE", value_parser = NonEmptyStringValueParser::new())]
    pub bridge: String,
}

/// One network.
#[derive(Debug, Args)]
pub struct NetworkNameArg {
    /// Its name
    #[arg(add = ArgValueCandidates::new(complete::networks), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}
