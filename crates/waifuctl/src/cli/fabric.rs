//! Arguments of `fabric`.

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub enum FabricCommand {
    /// Show what connects the guests of different nodes, and the routes to them
    #[command(after_help = "Example:\n  waifuctl fabric show\n\n\
The routes at the end are for the router of the nodes' network: with them, machines that are not nodes reach guests, too.")]
    Show,
    /// Choose what connects the guests of different nodes
    #[command(
        after_help = "Examples:\n  waifuctl fabric set wireguard\n  waifuctl fabric set static\n\n\
Until you choose, one node has none, and several nodes have wireguard. Every node changes to it as soon as it is in contact \
with waifud; connections between guests of different nodes are interrupted meanwhile. docs/reference/fabric.md compares them."
    )]
    Set(FabricSetArgs),
}

#[derive(Debug, Args)]
pub struct FabricSetArgs {
    /// The fabric
    #[arg(value_enum)]
    pub kind: FabricChoice,
}

/// A fabric that can be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum FabricChoice {
    /// Encrypted packets between nodes, over any network
    Wireguard,
    /// Routes, for nodes in one network in which no other machine can forge packets
    Static,
    /// Guests of different nodes do not reach each other
    None,
}

impl FabricChoice {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wireguard => "wireguard",
            Self::Static => "static",
            Self::None => "none",
        }
    }
}
