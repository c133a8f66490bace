//! Arguments of `network`.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCandidates;

use crate::complete;

#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Add a network for a bridge that nodes already have
    #[command(
        visible_alias = "create",
        after_help = "Example:\n  waifuctl network add lan --bridge br0\n  waifuctl create ha -t debian-12 --network lan\n\n\
waifud does not create or change bridges; docs/guides/lan.md describes how to create one. Guests on the bridge are part \
of its network and get their addresses there, usually from a DHCP server."
    )]
    Add(NetworkAddArgs),
    /// List networks and the nodes that have them
    #[command(visible_alias = "ls", after_help = "Example:\n  waifuctl network list")]
    List,
    /// Show one network and its state on each node
    #[command(after_help = "Example:\n  waifuctl network show lan")]
    Show(NetworkNameArg),
    /// Delete a network that no instance uses; bridges are not changed
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  waifuctl network delete lan"
    )]
    Delete(NetworkNameArg),
}

#[derive(Debug, Args)]
pub struct NetworkAddArgs {
    /// Name of the network, for example lan
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Name of the bridge on the nodes
    #[arg(long, value_name = "BRIDGE", value_parser = NonEmptyStringValueParser::new())]
    pub bridge: String,
}

#[derive(Debug, Args)]
pub struct NetworkNameArg {
    /// Name of the network
    #[arg(add = ArgValueCandidates::new(complete::networks), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}
