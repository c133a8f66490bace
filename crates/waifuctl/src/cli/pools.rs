//! Arguments of `pool` and `image`.

use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCandidates;

use crate::complete;

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// List the pools of all nodes or of one node
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  waifuctl pool list alder"
    )]
    List {
        /// List only the pools of this node
        #[arg(add = ArgValueCandidates::new(complete::nodes), value_parser = NonEmptyStringValueParser::new())]
        node: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the images in waifud's image store
    #[command(visible_alias = "ls")]
    List,
    /// Remove an image that no template and no instance uses
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  waifuctl image delete 3f9c21"
    )]
    Delete {
        /// The digest of the image, or its first digits
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        digest: String,
    },
}
