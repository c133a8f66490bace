//! What can be typed about pools and images.

use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;

/// `pool …`.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// List pools of all nodes, or of one
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  waifuctl pool list alder"
    )]
    List {
        /// Only this node's
        #[arg(add = clap_complete::engine::ArgValueCandidates::new(crate::complete::nodes), value_parser = NonEmptyStringValueParser::new())]
        node: Option<String>,
    },
}

/// `image …`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the images that waifud keeps
    #[command(visible_alias = "ls")]
    List,
    /// Remove an image that no template and no instance needs
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  waifuctl image delete 3f9c21"
    )]
    Delete {
        /// Its digest, or the first digits of it
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        digest: String,
    },
}
